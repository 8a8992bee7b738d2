//! `[auth]`: how people and programs sign in on routes whose labels ask for it.

use std::path::PathBuf;
use std::time::Duration;

use http::header::HeaderName;

use super::given::Given;
use super::settings::{is_off, names, text};
use super::{Config, ldap};
use crate::diagnostic::{Diagnostic, brief};

/// Signing in, whoever knows the users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// File of users with hashed passwords and groups; `None`: there is none.
    pub users: Option<PathBuf>,
    /// The host at which everybody signs in for all others; `None`: each host signs in by itself.
    pub host: Option<String>,
    /// A session ends once it was not used for so long,
    pub session_idle: Duration,
    /// and so long after its sign-in in any case.
    pub session_lifetime: Duration,
    /// Groups are asked for again so often.
    pub recheck: Duration,
    /// Basic credentials that were right are not asked about again for so long.
    pub basic_cache: Duration,
    /// The keys of cookies are replaced so often.
    pub key_rotation: Duration,
    /// What upstreams read who somebody is from; `None`: it is not said.
    pub user_header: Option<HeaderName>,
    pub groups_header: Option<HeaderName>,
    pub email_header: Option<HeaderName>,
    pub name_header: Option<HeaderName>,
    /// What upstreams get a signed token by.
    pub token_header: Option<HeaderName>,
    /// URLs that `forward-auth` labels of Docker services may name, or begin with.
    pub authorizers: Vec<String>,
}

impl Auth {
    /// All headers that only we may send.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        let all = [&self.user_header, &self.groups_header, &self.email_header, &self.name_header, &self.token_header];
        all.into_iter().filter_map(Option::as_ref)
    }
}

impl Default for Auth {
    fn default() -> Auth {
        const HOUR: Duration = Duration::from_secs(3600);
        let header = |name| Some(HeaderName::from_static(name));
        Auth {
            users: None,
            host: None,
            session_idle: 12 * HOUR,
            session_lifetime: 7 * 24 * HOUR,
            recheck: HOUR / 12,
            basic_cache: HOUR / 12,
            key_rotation: 30 * 24 * HOUR,
            user_header: header("x-forwarded-user"),
            groups_header: header("x-forwarded-groups"),
            email_header: header("x-forwarded-email"),
            name_header: header("x-forwarded-name"),
            token_header: None,
            authorizers: Vec::new(),
        }
    }
}

/// What somebody else has to know of an edge's settings to tell which of its routes are closed: no secrets, no paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Somebody knows users.
    pub sign_in: bool,
    pub authorizers: Vec<String>,
    pub https: Vec<std::net::SocketAddr>,
}

impl Facts {
    pub fn of(config: &Config) -> Facts {
        Facts { sign_in: is_configured(config), authorizers: config.auth.authorizers.clone(), https: config.https.listen.clone() }
    }

    /// `config` as the edge has it of which these are the facts.
    pub fn apply(self, config: &mut Config) {
        match (self.sign_in, is_configured(config)) {
            (true, false) => config.auth.users = Some(PathBuf::from("as the edge has it")),
            (false, true) => (config.auth.users, config.ldap) = (None, ldap::Ldap::default()),
            _ => {}
        }
        (config.auth.authorizers, config.https.listen) = (self.authorizers, self.https);
    }
}

/// Does anybody know users? Where not, routes that ask for sign-in are closed.
pub fn is_configured(config: &Config) -> bool {
    config.auth.users.is_some() || ldap::is_configured(&config.ldap)
}

pub(super) fn header(given: &Given) -> Result<Option<HeaderName>, Diagnostic> {
    // What the proxy itself writes or is framed by.
    const OURS: [&str; 9] =
        ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "cookie", "x-request-id"];
    if is_off(given) {
        return Ok(None);
    }
    let text = text(given, "X-Forwarded-User")?;
    let name = text.to_ascii_lowercase().parse::<HeaderName>().ok().filter(|name| !OURS.contains(&name.as_str()));
    name.map(Some).ok_or_else(|| {
        Diagnostic::error("bad-header-name", format!("`{}` is not a header that can be given to upstreams", brief(&text)))
            .help("write a name like \"X-Forwarded-User\", or \"off\"")
    })
}

pub(super) fn host(given: &Given) -> Result<Option<String>, Diagnostic> {
    if is_off(given) {
        return Ok(None);
    }
    let text = text(given, "login.example.com")?;
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    let host = text.trim_end_matches('.').to_ascii_lowercase();
    match !host.is_empty() && host.len() <= 253 && host.bytes().all(fine) {
        true => Ok(Some(host)),
        false => Err(Diagnostic::error("bad-host", format!("`{}` is not a host", brief(&text)))
            .help("write the host alone, without a scheme, a port or a path: \"login.example.com\"")),
    }
}

pub(super) fn authorizers(given: &Given) -> Result<Vec<String>, Diagnostic> {
    let urls = names(given)?;
    let wrong = urls.iter().find(|url| {
        let uri = url.parse::<http::Uri>().ok();
        uri.is_none_or(|uri| !matches!(uri.scheme_str(), Some("http" | "https")) || uri.path().is_empty() || uri.query().is_some())
    });
    match wrong {
        None => Ok(urls),
        Some(url) => Err(Diagnostic::error("bad-url", format!("`{}` is not the URL of an authorizer", brief(url)))
            .help("write it like \"http://authelia:9091/api/verify\"")),
    }
}

/// Settings of `[auth]` that are fine alone and not together.
pub(super) fn contradictions(config: &Config) -> Vec<Diagnostic> {
    let auth = &config.auth;
    let mut findings = Vec::new();
    if auth.session_idle > auth.session_lifetime {
        findings.push(
            Diagnostic::error("session-order", "auth.session-idle is longer than auth.session-lifetime")
                .help("a session that is used ends after session-lifetime, one that is not after session-idle"),
        );
    }
    let headers: Vec<&HeaderName> = auth.headers().collect();
    if let Some(twice) = headers.iter().enumerate().find_map(|(index, name)| headers[..index].contains(name).then_some(name)) {
        findings.push(
            Diagnostic::error("header-twice", format!("two settings of [auth] write the header `{twice}`")).help("give each its own name"),
        );
    }
    findings
}
