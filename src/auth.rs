//! Who may pass a route. Until sign-in exists, a route that asks for it is closed: protection fails closed, never open.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::diagnostic::{Diagnostic, Place, brief, nearest};
use crate::label::{Key, RouteSpec, Value, network, path};

const FEATURE: &str = "sign-in";

/// The keys of this feature; all of them guard.
pub const KEYS: &[Key] = &[
    Key::route(
        "auth",
        "directory groups, or `*` for any signed-in user",
        "open",
        "Who may enter after signing in; the route is closed until sign-in is built in.",
    )
    .guarding()
    .later(FEATURE),
    Key::route("auth-mode", "form or basic", "form", "How a browser signs in: a page with a cookie, or HTTP Basic.")
        .guarding()
        .later(FEATURE),
    Key::route("auth-bypass", "path prefixes", "none", "Paths that stay open without signing in, such as webhooks.")
        .guarding()
        .later(FEATURE),
    Key::route("allow", "networks like `10.0.0.0/8`, comma separated", "any", "Client addresses that may enter; all others get 403.")
        .guarding(),
    Key::route("forward-auth", "URL", "none", "An external service that is asked about each request.").guarding().later(FEATURE),
    Key::route("basic-auth", "htpasswd lines (bcrypt, argon2 or apr1)", "none", "Users of this one route, without a directory.")
        .guarding()
        .later(FEATURE),
];

/// How a browser signs in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Form,
    Basic,
}

/// Which directory groups may enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    AnySignedIn,
    OneOf(Vec<String>),
}

/// The access keys of one spec, typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub groups: Option<Groups>,
    pub mode: Mode,
    pub bypass: Vec<String>,
    /// Empty: any address.
    pub allow: Vec<IpNet>,
    pub forward_auth: Option<String>,
    /// htpasswd lines, `user:hash`.
    pub basic_auth: Vec<String>,
    /// The route must not serve: why (a label that could not be read, a feature that is not there).
    pub closed: Option<String>,
}

/// May this request pass?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// 403: the address is not in `allow`.
    Forbidden,
    /// 503: the route is closed; why.
    Closed(String),
}

/// Reads the access keys. Whatever cannot be read closes the route.
pub fn parse(spec: &RouteSpec) -> (Access, Vec<Diagnostic>) {
    let mut reader = Reader { access: Access { closed: spec.closed.clone(), ..Access::default() }, findings: Vec::new() };
    if let Some(value) = spec.get("allow") {
        reader.access.allow = reader.list(value, network);
    }
    if let Some(value) = spec.get("auth") {
        reader.access.groups = reader.groups(value);
    }
    if let Some(value) = spec.get("auth-mode") {
        reader.access.mode = reader.mode(value);
    }
    if let Some(value) = spec.get("auth-bypass") {
        reader.access.bypass = reader.list(value, path);
    }
    if let Some(value) = spec.get("forward-auth") {
        reader.access.forward_auth = reader.read(value, url);
    }
    if let Some(value) = spec.get("basic-auth") {
        reader.access.basic_auth = value.lines().iter().filter_map(|line| reader.read(line, htpasswd)).collect();
    }
    for value in ["auth", "auth-mode", "auth-bypass", "forward-auth", "basic-auth"].iter().filter_map(|key| spec.get(key)) {
        reader.sign_in_is_missing(value);
    }
    (reader.access, reader.findings)
}

/// Decides by address and closed state.
pub fn admit(access: &Access, client: IpAddr) -> Verdict {
    if let Some(reason) = &access.closed {
        return Verdict::Closed(reason.clone());
    }
    // A dual-stack listener shows 10.0.0.1 as ::ffff:10.0.0.1, which is in no IPv4 network.
    let client = client.to_canonical();
    match access.allow.is_empty() || access.allow.iter().any(|net| net.contains(&client)) {
        true => Verdict::Pass,
        false => Verdict::Forbidden,
    }
}

struct Reader {
    access: Access,
    findings: Vec<Diagnostic>,
}

impl Reader {
    /// The typed value; closes the route when it cannot be read.
    fn read<T>(&mut self, value: &Value, parse: fn(&Value) -> Result<T, Diagnostic>) -> Option<T> {
        parse(value).map_err(|finding| self.unreadable(value, finding)).ok()
    }

    fn list<T>(&mut self, value: &Value, parse: fn(&Value) -> Result<T, Diagnostic>) -> Vec<T> {
        let parts = value.list();
        if parts.is_empty() {
            self.unreadable(
                value,
                Diagnostic::error("empty-list", "the list has no entry").at(value.place()).help("write at least one entry"),
            );
        }
        parts.iter().filter_map(|part| self.read(part, parse)).collect()
    }

    fn groups(&mut self, value: &Value) -> Option<Groups> {
        // Names of groups may have spaces, so only commas separate them.
        let names: Vec<String> = value.text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let star = names.iter().any(|name| name == "*");
        match names.len() {
            0 => {
                let finding = Diagnostic::error("bad-auth", "no group is named").at(value.place());
                self.unreadable(value, finding.help("write the groups that may enter, or `*` for any signed-in user"));
                None
            }
            1 if star => Some(Groups::AnySignedIn),
            _ if star => {
                let finding =
                    Diagnostic::error("bad-auth", "`*` lets every signed-in user in, so other groups mean nothing").at(value.place());
                self.unreadable(value, finding.help("write either `*` or the groups"));
                None
            }
            _ => Some(Groups::OneOf(names)),
        }
    }

    fn mode(&mut self, value: &Value) -> Mode {
        match value.text.to_ascii_lowercase().as_str() {
            "form" => return Mode::Form,
            "basic" => return Mode::Basic,
            other => {
                let finding =
                    Diagnostic::error("bad-auth-mode", format!("`{}` is no way to sign in", brief(&value.text))).at(value.place());
                let help = match nearest(other, ["form", "basic"]) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => "write `form` or `basic`".to_owned(),
                };
                self.unreadable(value, finding.help(help));
            }
        }
        Mode::default()
    }

    fn unreadable(&mut self, value: &Value, finding: Diagnostic) {
        self.access.closed.get_or_insert_with(|| format!("`{}` could not be read", brief(&value.label)));
        self.findings.push(finding);
    }

    fn sign_in_is_missing(&mut self, value: &Value) {
        self.access.closed.get_or_insert_with(|| format!("`{}` asks for sign-in, which is not built in so far", brief(&value.label)));
        self.findings.push(
            Diagnostic::warning("no-sign-in-yet", "sign-in is not built in so far, so the route is closed: it answers 503")
                .at(secret(value))
                .help("use `skep.allow` with networks, or remove the label to open the route to everybody"),
        );
    }
}

fn url(value: &Value) -> Result<String, Diagnostic> {
    let uri = value.text.parse::<http::Uri>().ok();
    let good = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    uri.filter(good).map(|_| value.text.clone()).ok_or_else(|| {
        Diagnostic::error("bad-url", format!("`{}` is not a URL", brief(&value.text)))
            .at(value.place())
            .help("write it like `https://auth.example.com/verify`")
    })
}

/// A place that does not repeat passwords and hashes: findings are printed and logged.
fn secret(value: &Value) -> Place {
    match value.label.to_ascii_lowercase().ends_with("basic-auth") {
        true => Place::Label { key: value.label.clone(), value: "…".to_owned(), span: 0..value.label.len(), in_key: true },
        false => value.place(),
    }
}

fn htpasswd(line: &Value) -> Result<String, Diagnostic> {
    const HASHES: [&str; 5] = ["$2a$", "$2b$", "$2y$", "$argon2", "$apr1$"];
    let (user, hash) = line.text.split_once(':').unwrap_or_default();
    if !user.is_empty() && HASHES.iter().any(|begin| hash.starts_with(begin)) {
        return Ok(line.text.clone());
    }
    let message = format!("the line of user `{}` is not `user:hash` with bcrypt, argon2 or apr1", brief(user));
    Err(Diagnostic::error("bad-basic-auth", message).at(secret(line)).help(match hash.starts_with("$$") {
        true => "Docker got every `$` twice: double them only in the stack file, where one level is taken away",
        false => "make the line with `htpasswd -nB USER`",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::Dialect;

    fn spec(labels: &[(&'static str, &str)]) -> RouteSpec {
        let mut spec = RouteSpec::new("", Dialect::Native);
        for (key, text) in labels {
            spec.values.insert(key, Value::new(&format!("skep.{key}"), text).expect("not blank"));
        }
        spec
    }

    #[test]
    fn addresses_are_admitted_by_network() {
        let (access, findings) = parse(&spec(&[("allow", "10.0.0.0/8, 192.0.2.7 2001:db8::/32")]));
        assert_eq!(findings, []);
        for (client, verdict) in [
            ("10.1.2.3", Verdict::Pass),
            ("::ffff:10.1.2.3", Verdict::Pass),
            ("192.0.2.7", Verdict::Pass),
            ("192.0.2.8", Verdict::Forbidden),
            ("2001:db8::1", Verdict::Pass),
            ("::1", Verdict::Forbidden),
        ] {
            assert_eq!(admit(&access, client.parse().expect("an address")), verdict, "{client}");
        }
        assert_eq!(admit(&Access::default(), IpAddr::from([192, 0, 2, 8])), Verdict::Pass);
    }

    #[test]
    fn what_cannot_be_read_or_enforced_closes_the_route() {
        for (key, text, code) in [
            ("allow", "10.0.0.0/33", "bad-network"),
            ("allow", "10.0.0.0/8, office", "bad-network"),
            ("allow", ",", "empty-list"),
            ("auth", "staff", "no-sign-in-yet"),
            ("auth", "*", "no-sign-in-yet"),
            ("auth", "*, staff", "bad-auth"),
            ("auth", ",", "bad-auth"),
            ("auth-mode", "basic", "no-sign-in-yet"),
            ("auth-mode", "fomr", "bad-auth-mode"),
            ("auth-bypass", "/hooks", "no-sign-in-yet"),
            ("auth-bypass", "hooks", "bad-path"),
            ("forward-auth", "https://auth.example.com/verify", "no-sign-in-yet"),
            ("forward-auth", "auth.example.com", "bad-url"),
            ("basic-auth", "ada:$2y$05$abc", "no-sign-in-yet"),
            ("basic-auth", "ada:secret", "bad-basic-auth"),
            ("basic-auth", "secret", "bad-basic-auth"),
        ] {
            let (access, findings) = parse(&spec(&[(key, text)]));
            assert_eq!(findings[0].code, code, "{key}: {text}");
            assert!(matches!(admit(&access, IpAddr::from([127, 0, 0, 1])), Verdict::Closed(_)), "{key}: {text}");
        }
    }

    #[test]
    fn a_route_that_the_labels_closed_stays_closed() {
        let mut closed = spec(&[("allow", "127.0.0.1")]);
        closed.close("`skep.atuh` is not a key");
        let (access, _) = parse(&closed);
        assert_eq!(admit(&access, IpAddr::from([127, 0, 0, 1])), Verdict::Closed("`skep.atuh` is not a key".to_owned()));
    }

    #[test]
    fn groups_are_separated_by_commas_only() {
        let (access, _) = parse(&spec(&[("auth", "Human Resources, staff"), ("auth-mode", "Basic"), ("auth-bypass", "/a /b")]));
        assert_eq!(access.groups, Some(Groups::OneOf(vec!["Human Resources".to_owned(), "staff".to_owned()])));
        assert_eq!((access.mode, access.bypass), (Mode::Basic, vec!["/a".to_owned(), "/b".to_owned()]));
    }

    #[test]
    fn findings_do_not_repeat_passwords() {
        let (_, findings) = parse(&spec(&[(
            "basic-auth",
            "ada:hunter2
bob:$2y$05$hash",
        )]));
        assert_eq!(findings.len(), 2);
        let shown = serde_json::to_string(&findings).expect("serializes") + &crate::diagnostic::render(&findings, false);
        assert!(!shown.contains("hunter2") && !shown.contains("$05$hash"), "{shown}");
    }
}
