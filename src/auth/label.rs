//! What the access labels of a route ask for, typed. Whatever cannot be read closes the route.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::diagnostic::{Diagnostic, Place, brief, nearest};
use crate::label::{Key, RouteSpec, Value, network, path};

use super::htpasswd::{Line, Refusal, realm};
use super::identity::folded;

/// The keys of this feature; all of them guard.
pub const KEYS: &[Key] = &[
    Key::route("auth", "directory groups, or `*` for any signed-in user", "open", "Who may enter after signing in.").guarding(),
    Key::route("auth-mode", "form or basic", "form", "How a browser signs in: a page with a cookie, or HTTP Basic.").guarding(),
    Key::route("auth-bypass", "path prefixes", "none", "Paths that stay open without signing in, such as webhooks.").guarding(),
    Key::route("allow", "networks like `10.0.0.0/8`, comma separated", "any", "Client addresses that may enter; all others get 403.")
        .guarding(),
    Key::route("forward-auth", "URL", "none", "An external service that is asked about each request.").guarding(),
    Key::route("basic-auth", "htpasswd lines (bcrypt, argon2 or apr1)", "none", "Users of this one route, without a directory.").guarding(),
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
    /// By their folded names, as the label writes them.
    OneOf(BTreeMap<String, String>),
}

/// The access keys of one spec, typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub groups: Option<Groups>,
    pub mode: Mode,
    pub bypass: Vec<String>,
    /// Empty: any address.
    pub allow: Vec<IpNet>,
    /// URL of the authorizer that is asked about each request.
    pub forward_auth: Option<String>,
    /// Users of this route alone; never two of one name.
    pub basic_auth: Arc<[Line]>,
    /// What tells their credentials from those of other users; `None`: there are none.
    pub realm: Option<[u8; 32]>,
    /// The route must not serve: why (a label that could not be read, a feature that is not there).
    pub closed: Option<String>,
}

impl Access {
    /// Is `user` one of the route's own?
    pub fn has_own(&self, user: &str) -> bool {
        let user = folded(user);
        self.basic_auth.iter().any(|line| folded(&line.user) == user)
    }

    /// Does anybody have to say who they are?
    pub fn asks(&self) -> bool {
        self.groups.is_some() || self.forward_auth.is_some() || !self.basic_auth.is_empty()
    }
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
        reader.access.basic_auth = reader.users(value);
        reader.access.realm = (!reader.access.basic_auth.is_empty()).then(|| realm(&reader.access.basic_auth));
    }
    reader.without_effect(spec);
    (reader.access, reader.findings)
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
            _ => Some(Groups::OneOf(names.into_iter().map(|name| (folded(&name), name)).collect())),
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

    fn users(&mut self, value: &Value) -> Arc<[Line]> {
        let mut users = BTreeMap::new();
        for line in value.lines() {
            let Some(read) = self.read(&line, htpasswd) else { continue };
            if read.hash.is_weak() {
                let message =
                    format!("the password of `{}` is hashed by apr1, which is guessed soon by whoever sees it", brief(&read.user));
                let finding = Diagnostic::warning("weak-hash", message).at(secret(&line));
                self.findings.push(finding.help("make the line with `htpasswd -nB USER`"));
            }
            if let Some(twice) = users.insert(folded(&read.user), read) {
                let finding = Diagnostic::error("bad-basic-auth", format!("the user `{}` has two lines", brief(&twice.user)));
                self.unreadable(&line, finding.at(secret(&line)).help("keep one of them"));
            }
        }
        users.into_values().collect()
    }

    fn unreadable(&mut self, value: &Value, finding: Diagnostic) {
        self.access.closed.get_or_insert_with(|| format!("`{}` could not be read", brief(&value.label)));
        self.findings.push(finding);
    }

    /// Says of labels that only change how somebody signs in that nobody has to.
    fn without_effect(&mut self, spec: &RouteSpec) {
        let asks = ["auth", "basic-auth", "forward-auth"].iter().any(|key| spec.get(key).is_some());
        for (key, needs) in [("auth-mode", spec.get("auth").is_some()), ("auth-bypass", asks)] {
            if let (Some(value), false) = (spec.get(key), needs) {
                let message = format!("nobody has to sign in here, so `{}` does nothing", brief(&value.label));
                self.findings.push(
                    Diagnostic::warning("no-sign-in", message)
                        .at(value.key_place())
                        .help("add `auth` with the groups that may enter, or remove the label"),
                );
            }
        }
    }
}

fn url(value: &Value) -> Result<String, Diagnostic> {
    let uri = value.text.parse::<http::Uri>().ok();
    // A password in it would be shown wherever the label is.
    let bare = |uri: &http::Uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let good = |uri: &http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && bare(uri) && uri.host().is_some_and(|host| !host.is_empty())
    };
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

fn htpasswd(line: &Value) -> Result<Line, Diagnostic> {
    let user = line.text.split_once(':').unwrap_or_default().0;
    Line::parse(&line.text).map_err(|why| {
        let message = match why {
            Refusal::Damaged(_) | Refusal::Costly(..) => format!("the line of user `{}` cannot be used: {why}", brief(user)),
            _ => format!("the line of user `{}` is not `user:hash` with bcrypt, argon2 or apr1", brief(user)),
        };
        Diagnostic::error("bad-basic-auth", message).at(secret(line)).help(match why {
            Refusal::Doubled => "Docker got every `$` twice: double them only in the stack file, where one level is taken away",
            _ => "make the line with `htpasswd -nB USER`",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::htpasswd::tests::{APR1, BCRYPT};
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
    fn what_cannot_be_read_closes_the_route() {
        for (key, text, code) in [
            ("allow", "10.0.0.0/33", "bad-network"),
            ("allow", "10.0.0.0/8, office", "bad-network"),
            ("allow", ",", "empty-list"),
            ("auth", "*, staff", "bad-auth"),
            ("auth", ",", "bad-auth"),
            ("auth-mode", "fomr", "bad-auth-mode"),
            ("auth-bypass", "hooks", "bad-path"),
            ("forward-auth", "auth.example.com", "bad-url"),
            ("basic-auth", "ada:secret", "bad-basic-auth"),
            ("basic-auth", "ada:$2y$05$short", "bad-basic-auth"),
            ("basic-auth", "ada:$2y$16$W1XwaGi59JVeDrAB0rc.u575ZQYyFeTWE2Qt2NLGqBb3bu.h4LvSa", "bad-basic-auth"),
            ("basic-auth", &format!("ada:{BCRYPT}\nAda:{BCRYPT}"), "bad-basic-auth"),
            ("basic-auth", "secret", "bad-basic-auth"),
        ] {
            let (access, findings) = parse(&spec(&[(key, text)]));
            assert_eq!(findings[0].code, code, "{key}: {text}");
            assert!(access.closed.is_some(), "{key}: {text}");
        }
    }

    #[test]
    fn what_changes_a_sign_in_that_nobody_asks_for_is_said() {
        for (labels, codes) in [
            (&[("auth-mode", "basic")][..], &["no-sign-in"][..]),
            (&[("auth-bypass", "/hooks")], &["no-sign-in"]),
            (&[("auth-mode", "basic"), ("auth", "*")], &[]),
            (&[("auth-bypass", "/hooks"), ("forward-auth", "http://a.test/")], &[]),
        ] {
            let (access, findings) = parse(&spec(labels));
            assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), codes, "{labels:?}");
            assert_eq!(access.closed, None, "{labels:?}");
        }
    }

    #[test]
    fn a_route_that_the_labels_closed_stays_closed() {
        let mut closed = spec(&[("allow", "127.0.0.1")]);
        closed.close("`skep.atuh` is not a key");
        assert_eq!(parse(&closed).0.closed.as_deref(), Some("`skep.atuh` is not a key"));
    }

    #[test]
    fn groups_are_separated_by_commas_only() {
        let (access, _) = parse(&spec(&[("auth", "Human Resources, staff"), ("auth-mode", "Basic"), ("auth-bypass", "/a /b")]));
        let written = [("human resources", "Human Resources"), ("staff", "staff")];
        let wanted = written.map(|(folded, name)| (folded.to_owned(), name.to_owned()));
        assert_eq!(access.groups, Some(Groups::OneOf(BTreeMap::from(wanted))));
        assert_eq!((access.mode, access.bypass), (Mode::Basic, vec!["/a".to_owned(), "/b".to_owned()]));
    }

    #[test]
    fn a_route_may_have_users_of_its_own() {
        let (access, findings) = parse(&spec(&[("basic-auth", &format!("ada:{BCRYPT}\n\n bob:{APR1}"))]));
        assert_eq!(access.basic_auth.iter().map(|line| line.user.as_str()).collect::<Vec<_>>(), ["ada", "bob"]);
        assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["weak-hash"]);
        assert_eq!(access.closed, None);
    }

    #[test]
    fn findings_do_not_repeat_passwords() {
        let (_, findings) = parse(&spec(&[("basic-auth", "ada:hunter2\nbob:$2y$05$hash")]));
        assert_eq!(findings.len(), 2);
        let shown = serde_json::to_string(&findings).expect("serializes") + &crate::diagnostic::render(&findings, false);
        assert!(!shown.contains("hunter2") && !shown.contains("$05$hash"), "{shown}");
    }
}
