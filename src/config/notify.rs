//! `[notify]`: who hears how backups went. URLs of receivers are secrets more often than not, so no finding here shows more of one than
//! its host, and none points at the text.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use lettre::message::Mailbox;
use serde::{Deserialize, Serialize};

use super::Config;
use super::given::Given;
use super::settings::{is_off, names};
use crate::diagnostic::{Diagnostic, brief};

/// Who hears of what needs somebody.
#[derive(Clone, PartialEq, Eq)]
pub struct Notify {
    /// URLs that get generic JSON, in Slack's and Mattermost's form, and topics of ntfy. As they are secrets, a file may hold them:
    /// `file:/run/secrets/hook`.
    pub webhooks: Vec<String>,
    pub slack: Vec<String>,
    pub ntfy: Vec<String>,
    /// `smtps://user@host:465`, `smtp://host:25`; with STARTTLS where the server has it, always with a user.
    pub smtp: Option<String>,
    pub smtp_password_file: Option<PathBuf>,
    pub mail_from: Option<String>,
    pub mail_to: Vec<String>,
    /// Told from this on: failures only, warnings too, or successes too.
    pub level: Level,
    /// Base URLs of a healthchecks-style service: `/start`, nothing and `/fail` are added.
    pub ping: Vec<String>,
    /// What has not changed is told again so often.
    pub repeat: Duration,
    /// Certificates by which receivers are trusted besides the machine's authorities, as PEM.
    pub ca: Option<PathBuf>,
}

/// From which weight on something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Success,
    Warning,
    Error,
}

pub(super) const LEVELS: &[(&str, Level)] = &[("success", Level::Success), ("warning", Level::Warning), ("error", Level::Error)];

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Level::Success => "success",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

impl Default for Notify {
    fn default() -> Notify {
        Notify {
            webhooks: Vec::new(),
            slack: Vec::new(),
            ntfy: Vec::new(),
            smtp: None,
            smtp_password_file: None,
            mail_from: None,
            mail_to: Vec::new(),
            level: Level::Warning,
            ping: Vec::new(),
            repeat: Duration::from_secs(24 * 3600),
            ca: None,
        }
    }
}

/// Without the secrets.
impl fmt::Debug for Notify {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked = |urls: &[String]| urls.iter().map(|url| masked(url)).collect::<Vec<_>>();
        formatter
            .debug_struct("Notify")
            .field("webhooks", &masked(&self.webhooks))
            .field("slack", &masked(&self.slack))
            .field("ntfy", &masked(&self.ntfy))
            .field("smtp", &self.smtp.as_deref().map(self::masked))
            .field("mail_from", &self.mail_from)
            .field("mail_to", &self.mail_to)
            .field("level", &self.level)
            .field("ping", &masked(&self.ping))
            .field("repeat", &self.repeat)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl Notify {
    /// Does anybody hear of anything?
    pub fn is_heard(&self) -> bool {
        let mail = self.smtp.is_some() && !self.mail_to.is_empty();
        mail || !(self.webhooks.is_empty() && self.slack.is_empty() && self.ntfy.is_empty())
    }

    /// Who mails are from: as configured, or the user of the server.
    ///
    /// # Errors
    /// There is none, or it is no address.
    pub fn sender(&self) -> Result<Mailbox, String> {
        let user = || self.smtp.as_deref().and_then(|url| Server::parse(url).ok()).and_then(|server| server.user);
        let text = self.mail_from.clone().or_else(user).ok_or("there is no notify.mail-from")?;
        text.parse().map_err(|_| format!("`{}` is no address of a sender", brief(&text)))
    }
}

/// A mail server, as `notify.smtp` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// TLS from the first byte on.
    pub tls: bool,
    pub user: Option<String>,
    pub host: String,
    pub port: u16,
}

impl Server {
    /// Reads `smtps://user@host:465`; a user that is an address may keep its `@`.
    ///
    /// # Errors
    /// What is wrong, without the text: it may hold a password.
    pub fn parse(url: &str) -> Result<Server, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("is not a URL")?;
        let tls = match scheme {
            "smtps" => true,
            "smtp" => false,
            _ => return Err("is neither smtp:// nor smtps://"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        if user.is_some_and(|user| user.contains(':')) {
            return Err("holds a password");
        }
        let user = user.map(|user| percent_encoding::percent_decode_str(user).decode_utf8_lossy().into_owned());
        if user.as_deref().is_some_and(|user| user.is_empty() || user.contains(char::is_control)) {
            return Err("has a user that cannot be one");
        }
        let authority: http::uri::Authority = host.parse().map_err(|_| "has a host that cannot be one")?;
        if authority.host().is_empty() || authority.as_str().ends_with(':') {
            return Err("has a host or a port that cannot be one");
        }
        let usual = match (tls, &user) {
            (true, _) => 465,
            (false, Some(_)) => 587,
            (false, None) => 25,
        };
        let port = authority.port_u16().unwrap_or(usual);
        Ok(Server { tls, user, host: authority.host().trim_matches(['[', ']']).to_owned(), port })
    }
}

/// What of a receiver's URL may be shown: where it leads, and nothing that would let anybody in.
pub fn masked(url: &str) -> String {
    if let Some(path) = url.strip_prefix("file:") {
        return format!("the URL in {}", brief(path));
    }
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) else {
        return "a text that is no URL".to_owned();
    };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{}://{}", brief(scheme), brief(host))
}

/// A list of texts; `off` is an empty one. What is wrong with them is said later, without a place in the text.
pub(super) fn list(given: &Given) -> Result<Vec<String>, Diagnostic> {
    if is_off(given) { Ok(Vec::new()) } else { names(given) }
}

/// What is wrong with a receiver's URL, and whether that keeps it from being used.
pub fn receiver(url: &str) -> Result<Option<&'static str>, &'static str> {
    if let Some(path) = url.strip_prefix("file:") {
        return if path.starts_with('/') { Ok(None) } else { Err("names a file without the way from the root") };
    }
    let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("is not a URL with a host")?;
    match uri.scheme_str() {
        Some("https") => Ok(None),
        Some("http") if is_public(host) => Ok(Some("sends what may be a secret in clear over the Internet")),
        Some("http") => Ok(None),
        _ => Err("is neither https:// nor http://"),
    }
}

/// Can only a public network lie between here and there?
fn is_public(host: &str) -> bool {
    const LOCAL: [&str; 6] = [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test"];
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => !(ip.is_loopback() || ip.is_private() || ip.is_link_local()),
        Ok(IpAddr::V6(ip)) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
        Err(_) => host.contains('.') && !LOCAL.iter().any(|end| host.to_ascii_lowercase().ends_with(end)),
    }
}

pub(super) fn contradictions(config: &Config) -> Vec<Diagnostic> {
    let notify = &config.notify;
    let mut findings = urls(notify);
    findings.extend(mail(notify));
    findings
}

/// Said at the start and by `skep backup status`: backups whose failures nobody is told of. Whoever watches the metrics may leave it so.
pub fn unheard(config: &Config) -> Option<Diagnostic> {
    let alone = !config.backup.targets.is_empty() && !config.notify.is_heard();
    alone.then(|| {
        Diagnostic::info("nobody-hears", "nobody is told when a backup fails or is missing")
            .help("set notify.mail-to with notify.smtp, notify.webhooks, notify.slack or notify.ntfy, or watch skep_backup_overdue")
    })
}

fn urls(notify: &Notify) -> Vec<Diagnostic> {
    let lists = [
        ("notify.webhooks", &notify.webhooks),
        ("notify.slack", &notify.slack),
        ("notify.ntfy", &notify.ntfy),
        ("notify.ping", &notify.ping),
    ];
    let mut findings = Vec::new();
    for (name, list) in lists {
        for (index, url) in list.iter().enumerate() {
            let which = if list.len() == 1 { name.to_owned() } else { format!("{name}, number {},", index + 1) };
            // Names are filled in later; braces are no part of a URL.
            let plain = url.replace(['{', '}'], "");
            match receiver(if name == "notify.ping" { &plain } else { url }) {
                Ok(None) => {}
                Ok(Some(odd)) => findings.push(
                    Diagnostic::warning("secret-in-clear", format!("{which} ({}) {odd}", masked(url))).help("write https:// if it can be"),
                ),
                Err(wrong) => findings.push(
                    Diagnostic::error("bad-receiver", format!("{which} ({}) {wrong}", masked(url)))
                        .help("write \"https://example.com/hook\", or \"file:/run/secrets/hook\" for a URL that lies in that file"),
                ),
            }
        }
    }
    findings
}

fn mail(notify: &Notify) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let mut wrong = |code: &str, what: String, help: &str| findings.push(Diagnostic::error(code, what).help(help));
    for address in &notify.mail_to {
        if address.parse::<Mailbox>().is_err() {
            wrong("bad-email", format!("`{}` in notify.mail-to is not an e-mail address", brief(address)), "write \"ops@example.com\"");
        }
    }
    let Some(url) = &notify.smtp else {
        if !notify.mail_to.is_empty() {
            wrong("mail-without-server", "notify.mail-to is set, but no server takes mails".to_owned(), EXAMPLE);
        }
        return findings;
    };
    let server = match Server::parse(url) {
        Ok(server) => server,
        Err(why) => {
            let help = if why == "holds a password" { "put it into a file, and name that by notify.smtp-password-file" } else { EXAMPLE };
            wrong("bad-mail-server", format!("notify.smtp ({}) {why}", masked(url)), help);
            return findings;
        }
    };
    if notify.mail_to.is_empty() {
        wrong("mail-to-nobody", "notify.smtp is set, but notify.mail-to names nobody".to_owned(), "write mail-to = [\"ops@example.com\"]");
    } else if let Err(why) = notify.sender() {
        wrong("no-sender", format!("mails have no sender: {why}"), "write mail-from = \"Skep <skep@example.com>\"");
    }
    match (&server.user, &notify.smtp_password_file) {
        (Some(_), None) => {
            let what = "notify.smtp has a user, but notify.smtp-password-file names no password";
            wrong("mail-without-password", what.to_owned(), "write smtp-password-file = \"/run/secrets/smtp\"");
        }
        (None, Some(_)) => {
            let what = "notify.smtp-password-file is set, but notify.smtp has no user";
            wrong("mail-without-user", what.to_owned(), EXAMPLE);
        }
        _ => {}
    }
    findings
}

const EXAMPLE: &str = "write smtp = \"smtps://user@mail.example.com\", or \"smtp://mail.example.com\" for a server that wants no password";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::parse;
    use crate::diagnostic::Severity;

    #[test]
    fn mail_servers() {
        let server =
            |tls, user: Option<&str>, host: &str, port| Ok(Server { tls, user: user.map(str::to_owned), host: host.to_owned(), port });
        let table = [
            ("smtps://mail.example.com", server(true, None, "mail.example.com", 465)),
            ("smtps://ops@mail.example.com:1465/", server(true, Some("ops"), "mail.example.com", 1465)),
            ("smtps://ops@example.com@mail.example.com", server(true, Some("ops@example.com"), "mail.example.com", 465)),
            ("smtp://ops%40example.com@mail", server(false, Some("ops@example.com"), "mail", 587)),
            ("smtp://[::1]:2525", server(false, None, "::1", 2525)),
            ("smtp://localhost", server(false, None, "localhost", 25)),
            ("smtp://ops:s3cret@mail", Err("holds a password")),
            ("mail.example.com", Err("is not a URL")),
            ("https://mail", Err("is neither smtp:// nor smtps://")),
            ("smtp://", Err("has a host that cannot be one")),
            ("smtp://a b", Err("has a host that cannot be one")),
        ];
        for (text, read) in table {
            assert_eq!(Server::parse(text), read, "{text}");
        }
    }

    #[test]
    fn mistakes_are_found_and_no_secret_is_shown() {
        // [notify], codes
        let table: [(&str, &[&str]); 16] = [
            ("webhooks = [\"https://example.com/s3cret\"]", &[]),
            ("webhooks = \"file:/run/secrets/hook\"", &[]),
            ("webhooks = \"file:hook\"", &["bad-receiver"]),
            ("webhooks = [\"example.com/s3cret\"]", &["bad-receiver"]),
            ("slack = [\"ftp://s3cret:s3cret@example.com/s3cret?s3cret\"]", &["bad-receiver"]),
            ("ntfy = [\"http://example.com/s3cret\"]", &["secret-in-clear"]),
            ("ntfy = [\"http://ntfy:8080/s3cret\", \"http://10.0.0.7/s3cret\", \"http://[::1]/x\"]", &[]),
            ("ping = [\"https://hc-ping.com/s3cret/{volume}?create=1\"]", &[]),
            ("mail-to = [\"ops@example.com\"]", &["mail-without-server"]),
            ("smtp = \"smtp://mail\"", &["mail-to-nobody"]),
            ("smtp = \"smtp://mail\"\nmail-to = [\"ops\"]\nmail-from = \"Skep <skep@example.com>\"", &["bad-email"]),
            ("smtp = \"smtp://mail\"\nmail-to = [\"ops@example.com\"]", &["no-sender"]),
            ("smtp = \"smtps://a@example.com@mail\"\nmail-to = [\"ops@example.com\"]", &["mail-without-password"]),
            ("smtp = \"smtps://a@example.com@mail\"\nmail-to = [\"ops@example.com\"]\nsmtp-password-file = \"/p\"", &[]),
            ("smtp = \"smtps://a:s3cret@mail\"\nmail-to = [\"ops@example.com\"]", &["bad-mail-server"]),
            (
                "smtp = \"smtp://mail\"\nmail-to = [\"Ops <ops@example.com>\"]\nmail-from = \"skep@x.de\"\nsmtp-password-file = \"/p\"",
                &["mail-without-user"],
            ),
        ];
        for (text, codes) in table {
            let (config, findings) = parse("skep.toml", &format!("[notify]\n{text}"), &[]);
            assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), codes, "{text}: {findings:?}");
            assert!(!format!("{findings:?}").contains("s3cret"), "{findings:?}");
            let fatal = findings.iter().any(|finding| finding.severity == Severity::Error);
            assert_eq!(config.is_none(), fatal, "{text}");
            assert!(!format!("{config:?}").contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn backups_of_which_nobody_hears_are_pointed_out() {
        let text = "[backup]\ntargets = [\"/srv/backups\"]\n[notify]\n";
        for (more, alone) in [("", true), ("ntfy = \"https://ntfy.sh/x\"", false)] {
            let (config, _) = parse("skep.toml", &format!("{text}{more}"), &[]);
            assert_eq!(unheard(&config.unwrap()).is_some(), alone, "{more}");
        }
        assert_eq!(unheard(&Config::default()), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_of_a_url_ends_before_its_path(
            scheme in "https?", user in "[a-z:]{0,9}", host in "[a-z.]{1,20}", path in "[0-9/?#@]{1,20}"
        ) {
            let at = if user.is_empty() { String::new() } else { format!("{user}@") };
            prop_assert_eq!(masked(&format!("{scheme}://{at}{host}/{path}")), format!("{scheme}://{host}"));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}") {
            let _ = (masked(&text), receiver(&text), Server::parse(&text), Server::parse(&format!("smtp://{text}")));
        }
    }
}
