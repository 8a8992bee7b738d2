//! `[ldap]`: the directory that knows users and groups.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::dn::Dn;
use super::filter::Template;
use super::given::Given;
use super::settings::{is_off, optional_text, text};
use crate::diagnostic::{Diagnostic, brief};

/// Where the directory is, and how users and groups are found in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ldap {
    /// Asked in this order; empty: there is no directory.
    pub servers: Vec<Server>,
    /// Do `ldap://` servers have to speak TLS before anything is said (RFC 4511, 4.14)?
    pub starttls: bool,
    /// PEM file with the certificates by which servers are trusted; `None`: the machine's authorities.
    pub ca: Option<PathBuf>,
    /// Who searches; `None`: nobody (an anonymous search), or the users themselves with `bind_template`.
    pub bind_dn: Option<String>,
    pub bind_password_file: Option<PathBuf>,
    pub scheme: Scheme,
    /// Users are searched below it.
    pub user_base: Option<String>,
    /// `None`: as the scheme has it.
    pub user_filter: Option<Template>,
    /// The name by which users sign in themselves, with `{user}` in it; `None`: it is searched.
    pub bind_template: Option<String>,
    /// Groups are searched below it; `None`: below `user_base`.
    pub group_base: Option<String>,
    /// `None`: as the scheme has it.
    pub group_filter: Option<Template>,
    /// Is a member of a group in a group a member of that one too?
    pub nested_groups: bool,
    /// Attributes; `None`: as the scheme has them.
    pub user_attribute: Option<String>,
    pub name_attribute: Option<String>,
    pub email_attribute: Option<String>,
    pub group_attribute: Option<String>,
    /// For a connection with its TLS handshake.
    pub connect_timeout: Duration,
    /// For an answer.
    pub request_timeout: Duration,
    /// Connections to a server that are kept for searches, and searches at one time.
    pub pool_size: usize,
    /// Entries that are asked for at a time (RFC 2696).
    pub page_size: usize,
    /// Servers that this directory may refer to; they get the same names and passwords.
    pub referrals: Vec<Server>,
}

/// How a directory says who is in which group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Entries of groups list their members: groupOfNames, groupOfUniqueNames, posixGroup.
    #[default]
    Groups,
    /// Entries of users list their groups: `memberOf`.
    MemberOf,
    ActiveDirectory,
}

/// A directory server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// TLS from the first byte (`ldaps`).
    pub tls: bool,
}

impl Default for Ldap {
    fn default() -> Ldap {
        Ldap {
            servers: Vec::new(),
            starttls: true,
            ca: None,
            bind_dn: None,
            bind_password_file: None,
            scheme: Scheme::Groups,
            user_base: None,
            user_filter: None,
            bind_template: None,
            group_base: None,
            group_filter: None,
            nested_groups: true,
            user_attribute: None,
            name_attribute: None,
            email_attribute: None,
            group_attribute: None,
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
            pool_size: 4,
            page_size: 500,
            referrals: Vec::new(),
        }
    }
}

impl Ldap {
    /// The attribute with the name to sign in with.
    pub fn user_attribute(&self) -> &str {
        self.user_attribute.as_deref().unwrap_or(if self.scheme == Scheme::ActiveDirectory { "sAMAccountName" } else { "uid" })
    }

    /// The attribute with the name of a group.
    pub fn group_attribute(&self) -> &str {
        self.group_attribute.as_deref().unwrap_or("cn")
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        let uri: http::Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
        let (tls, port) = match uri.scheme_str() {
            Some("ldaps") => (true, 636),
            Some("ldap") => (false, 389),
            _ => return Err("is neither ldap:// nor ldaps://".to_owned()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or("must not hold a user or a password")?;
        if uri.path().len() > 1 || uri.query().is_some() {
            return Err("has more than a host and a port: the base has a setting of its own".to_owned());
        }
        let host = authority.host().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(fine) {
            return Err("has no host".to_owned());
        }
        let digits =
            authority.as_str().rsplit_once(':').is_some_and(|(before, _)| !before.is_empty() && !authority.as_str().ends_with(']'));
        match (digits, authority.port_u16()) {
            (true, None | Some(0)) => Err("has no port behind its colon".to_owned()),
            (_, given) => Ok(Server { host, port: given.unwrap_or(port), tls }),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "ldaps" } else { "ldap" };
        match self.host.contains(':') {
            true => write!(formatter, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(formatter, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// Is there a directory to ask?
pub fn is_configured(ldap: &Ldap) -> bool {
    !ldap.servers.is_empty()
}

pub(super) fn servers(given: &Given) -> Result<Vec<Server>, Diagnostic> {
    const EXAMPLE: &str = "[\"ldaps://ldap.example.com\"]";
    if is_off(given) {
        return Ok(Vec::new());
    }
    let texts = given.texts().ok_or_else(|| {
        Diagnostic::error("bad-type", format!("this is {}, not a list of servers", given.kind())).help(format!("write {EXAMPLE}"))
    })?;
    let bad = |text: &str, why: &str| Diagnostic::error("bad-server", format!("`{}` {why}", brief(text))).help(format!("write {EXAMPLE}"));
    let servers: Vec<Server> =
        texts.into_iter().map(|text| text.parse().map_err(|why: String| bad(text, &why))).collect::<Result<_, Diagnostic>>()?;
    match servers.len() {
        0..=16 => Ok(servers),
        _ => Err(Diagnostic::error("too-many-servers", "these are more than 16 servers").help("name those that are near")),
    }
}

pub(super) fn base(given: &Given) -> Result<Option<String>, Diagnostic> {
    const EXAMPLE: &str = "ou=people,dc=example,dc=org";
    let Some(text) = optional_text(given, EXAMPLE)? else { return Ok(None) };
    match Dn::parse(&text) {
        Some(_) => Ok(Some(text)),
        None => Err(Diagnostic::error("bad-dn", format!("`{}` is not a distinguished name", brief(&text)))
            .help(format!("write it like \"{EXAMPLE}\"; a comma in a value is written \\\\, in TOML"))),
    }
}

/// Active Directory takes `user@domain` and `DOMAIN\user` too.
pub(super) fn bind_name(given: &Given) -> Result<Option<String>, Diagnostic> {
    let given_name = given.text().filter(|text| !text.contains('=') && text.contains(['@', '\\']));
    match given_name {
        Some(text) => Ok(Some(text.to_owned())),
        None => base(given),
    }
}

pub(super) fn bind_template(given: &Given) -> Result<Option<String>, Diagnostic> {
    const EXAMPLE: &str = "uid={user},ou=people,dc=example,dc=org";
    let Some(text) = optional_text(given, EXAMPLE)? else { return Ok(None) };
    let bad = |why: &str| Diagnostic::error("bad-template", format!("`{}` {why}", brief(&text))).help(format!("write \"{EXAMPLE}\""));
    if text.matches("{user}").count() != 1 || text.matches(['{', '}']).count() != 2 {
        return Err(bad("does not have {user} in it once, and nothing else in braces"));
    }
    let dn = text.contains('=');
    match text.replace("{user}", "x") {
        example if dn && Dn::parse(&example).is_none() => Err(bad("is not a distinguished name")),
        _ if dn && !text.contains("={user}") => Err(bad("does not have {user} as a value of its own")),
        _ if dn || text.starts_with("{user}@") || text.ends_with("\\{user}") => Ok(Some(text)),
        _ => Err(bad("is neither a distinguished name nor, for Active Directory, {user}@domain or DOMAIN\\{user}")),
    }
}

pub(super) fn filter(given: &Given, places: &[&str], example: &str) -> Result<Option<Template>, Diagnostic> {
    if is_off(given) {
        return Ok(None);
    }
    let text = text(given, example)?;
    let bad =
        |why: &str| Diagnostic::error("bad-filter", format!("`{}`: {why}", brief(&text))).help(format!("write it like \"{example}\""));
    let template = Template::parse(&text, places).map_err(|why| bad(&why))?;
    match template.has_user() || template.has_dn() {
        true => Ok(Some(template)),
        false => Err(bad(&format!("it has no {} in it, so it would find everybody's", places.join(" or ")))),
    }
}

pub(super) fn attribute(given: &Given, example: &str) -> Result<Option<String>, Diagnostic> {
    let Some(text) = optional_text(given, example)? else { return Ok(None) };
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match text.len() <= 64 && text.bytes().all(fine) {
        true => Ok(Some(text)),
        false => Err(Diagnostic::error("bad-attribute", format!("`{}` is not the name of an attribute", brief(&text)))
            .help(format!("write \"{example}\""))),
    }
}

/// Settings of `[ldap]` that are fine alone and not together.
pub(super) fn contradictions(ldap: &Ldap) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let mut error = |code: &str, message: &str, help: &str| findings.push(Diagnostic::error(code, message).help(help));
    if !is_configured(ldap) {
        if *ldap != Ldap::default() {
            error("ldap-without-servers", "[ldap] is set, but names no server", "write servers = [\"ldaps://ldap.example.com\"]");
        }
        return findings;
    }
    if ldap.user_base.is_none() && ldap.bind_template.is_none() {
        let help = "write user-base = \"ou=people,dc=example,dc=org\" to have them searched, or bind-template where names follow a rule";
        error("ldap-without-users", "[ldap] says neither where users are searched nor how they are named", help);
    }
    match (&ldap.bind_dn, &ldap.bind_password_file) {
        (Some(_), None) => {
            let help = "write bind-password-file = \"/run/secrets/ldap\", or leave bind-dn out for an anonymous search";
            error("ldap-bind-incomplete", "ldap.bind-dn has no password", help);
        }
        (None, Some(_)) => {
            let help = "write bind-dn = \"cn=reader,dc=example,dc=org\"";
            error("ldap-bind-incomplete", "ldap.bind-password-file is a password of nobody", help);
        }
        _ => {}
    }
    if ldap.scheme != Scheme::MemberOf && ldap.group_base.is_none() && ldap.user_base.is_none() && ldap.bind_template.is_some() {
        error("ldap-without-groups", "[ldap] does not say where groups are searched", "write group-base = \"ou=groups,dc=example,dc=org\"");
    }
    if ldap.bind_template.as_ref().is_some_and(|template| !template.contains('=')) && ldap.user_base.is_none() {
        let help = "write user-base = \"dc=example,dc=org\": such a name does not say where the entry is";
        error("ldap-without-users", "ldap.bind-template is no distinguished name, and there is no user-base", help);
    }
    if let Some(filter) = &ldap.user_filter
        && !filter.finds_by(ldap.user_attribute())
    {
        let attribute = ldap.user_attribute();
        error(
            "ldap-user-filter",
            &format!("ldap.user-filter does not find users by `{attribute}`, by which they are looked up again"),
            &format!(
                "write ({attribute}={{user}}) into it, beside others as (|({attribute}={{user}})(mail={{user}})), or set user-attribute"
            ),
        );
    }
    if !ldap.starttls && ldap.servers.iter().chain(&ldap.referrals).any(|server| !server.tls) {
        findings.push(
            Diagnostic::warning("ldap-in-clear", "ldap.starttls is off: passwords go over the network as everybody there can read them")
                .help("leave starttls out, or name the server as ldaps://..."),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse};

    fn codes(text: &str) -> (Option<Config>, Vec<String>) {
        let (config, findings) = parse("skep.toml", &format!("[ldap]\n{text}"), &[]);
        assert!(findings.iter().all(|finding| finding.help.is_some()), "{findings:?}");
        (config, findings.into_iter().map(|finding| finding.code).collect())
    }

    #[test]
    fn few_lines_make_a_directory() {
        let text = "servers = [\"ldaps://dc1.corp.example\", \"ldap://[2001:db8::7]:3389\"]\nscheme = \"active-directory\"\n\
                    bind-dn = \"skep@corp.example\"\nbind-password-file = \"/run/secrets/ldap\"\nuser-base = \"dc=corp,dc=example\"";
        let (config, findings) = codes(text);
        assert_eq!(findings, [""; 0]);
        let ldap = config.unwrap().ldap;
        assert_eq!(
            ldap.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["ldaps://dc1.corp.example:636", "ldap://[2001:db8::7]:3389"]
        );
        assert_eq!((ldap.user_attribute(), ldap.scheme), ("sAMAccountName", Scheme::ActiveDirectory));
        assert!(is_configured(&ldap) && !is_configured(&Ldap::default()));
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        const FINE: &str = "servers = [\"ldaps://a\"]\nuser-base = \"dc=x\"\n";
        for (text, code) in [
            ("servers = [\"ldaps://a\"]", "ldap-without-users"),
            ("servers = [\"ldaps://a\"]\nbind-template = \"uid={user},dc=x\"", "ldap-without-groups"),
            (
                "servers = [\"ldaps://a\"]\nscheme = \"active-directory\"\nbind-template = \"{user}@x\"\ngroup-base = \"dc=x\"",
                "ldap-without-users",
            ),
            ("user-base = \"dc=x\"", "ldap-without-servers"),
            ("servers = [\"https://a\"]", "bad-server"),
            ("servers = [\"ldap://a/dc=x\"]", "bad-server"),
            ("servers = [\"ldap://me:pw@a\"]", "bad-server"),
            ("servers = [\"ldap://a:0\"]", "bad-server"),
            ("servers = [\"ldap://a:\"]", "bad-server"),
            ("servers = [\"ldap://\"]", "bad-server"),
            ("servers = [\"a\"]", "bad-server"),
            ("servers = 1", "bad-type"),
            ("scheme = \"ad\"", "bad-word"),
        ] {
            assert_eq!(codes(text).1.first().map(String::as_str), Some(code), "{text}");
        }
        for (text, code) in [
            ("bind-dn = \"cn=reader\"", "ldap-bind-incomplete"),
            ("bind-password-file = \"/x\"", "ldap-bind-incomplete"),
            ("bind-dn = \"reader\"", "bad-dn"),
            ("group-base = \"groups\"", "bad-dn"),
            ("bind-template = \"uid=ada,dc=x\"", "bad-template"),
            ("bind-template = \"{user}\"", "bad-template"),
            ("bind-template = \"uid=x{user},dc=x,{user}\"", "bad-template"),
            ("bind-template = \"{user}=x,dc=x\"", "bad-template"),
            ("user-filter = \"(uid=ada)\"", "bad-filter"),
            ("user-filter = \"uid={user}\"", "bad-filter"),
            ("user-filter = \"(member={dn})\"", "bad-filter"),
            ("user-filter = \"(mail={user})\"", "ldap-user-filter"),
            ("name-attribute = \"a b\"", "bad-attribute"),
            ("page-size = 0", "out-of-range"),
        ] {
            assert_eq!(codes(&format!("{FINE}{text}")).1, [code], "{text}");
        }
        for text in [
            "user-filter = \"(mail={user})\"\nuser-attribute = \"mail\"",
            "bind-template = \"EXAMPLE\\\\{user}\"",
            "group-filter = \"(&(objectClass=role)(|(occupant={dn})(memberUid={user})))\"",
        ] {
            assert_eq!(codes(&format!("{FINE}{text}")).1, [""; 0], "{text}");
        }
    }

    #[test]
    fn passwords_in_clear_are_a_warning_and_no_more() {
        let (config, findings) = codes("servers = [\"ldap://a\"]\nuser-base = \"dc=x\"\nstarttls = false");
        assert_eq!(findings, ["ldap-in-clear"]);
        assert!(config.is_some());
        assert_eq!(codes("servers = [\"ldaps://a\"]\nuser-base = \"dc=x\"\nstarttls = false").1, [""; 0]);
    }
}
