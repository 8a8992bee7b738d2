//! Authorities that give certificates by ACME: those that everybody knows, and `[issuer.NAME]` for others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::given::Given;
use super::settings::{flag, optional_path, optional_text, put, text};
use super::{Config, DnsProvider};
use crate::diagnostic::{Diagnostic, brief, nearest};

/// Obtaining certificates: who asks, whom, and how names are proved to be ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// Where the authority writes to before a certificate lapses; most accept none.
    pub email: Option<String>,
    /// Nobody else can agree to the authorities' terms of service.
    pub agree_tos: bool,
    /// Names of [`Issuer`]s; the next one is asked where one fails.
    pub issuers: Vec<String>,
    pub challenge: Challenge,
    /// Is each name asked over HTTP whether it reaches us, before an authority asks?
    pub probe: bool,
    /// The port of that question: the one at which the authority will ask.
    pub probe_port: u16,
}

/// By what a name is proved to be ours (RFC 8555, 8; RFC 8737). Wildcards are proved by DNS-01 whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// A file over plain HTTP.
    #[default]
    Http01,
    /// A certificate in a handshake.
    TlsAlpn01,
    /// A TXT record.
    Dns01,
}

/// One authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    pub name: String,
    /// URL of its ACME directory.
    pub directory: String,
    /// External account binding (RFC 8555, 7.3.4): the id, and the file with the key (base64url, as authorities hand it out).
    pub eab_kid: Option<String>,
    pub eab_key_file: Option<PathBuf>,
    /// PEM file with the certificates by which the directory itself is trusted; `None`: the machine's authorities.
    pub root: Option<PathBuf>,
    /// The kind of certificate, where the authority offers several, as `shortlived`.
    pub profile: Option<String>,
    /// It certifies only what the whole internet knows and reaches.
    pub public: bool,
}

/// The authorities whose directories everybody knows, and whether they want an external account binding.
const KNOWN: [(&str, &str, bool); 4] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory", false),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory", false),
    ("zerossl", "https://acme.zerossl.com/v2/DV90", true),
    ("google", "https://dv.acme-v02.api.pki.goog/directory", true),
];

type Set = fn(&mut Issuer, &Given) -> Result<(), Diagnostic>;

/// The keys of `[issuer.NAME]`.
const KEYS: [(&str, Set); 6] = [
    ("directory", |issuer, given| put(&mut issuer.directory, directory(given))),
    ("eab-kid", |issuer, given| put(&mut issuer.eab_kid, optional_text(given, "kid-1"))),
    ("eab-key-file", |issuer, given| put(&mut issuer.eab_key_file, optional_path(given))),
    ("root", |issuer, given| put(&mut issuer.root, optional_path(given))),
    ("profile", |issuer, given| put(&mut issuer.profile, optional_text(given, "shortlived"))),
    ("public", |issuer, given| put(&mut issuer.public, flag(given))),
];

impl Acme {
    /// Can certificates be asked for? Where not, `cert: acme` cannot be had.
    pub fn configured(&self) -> bool {
        self.agree_tos && !self.issuers.is_empty()
    }
}

impl Default for Acme {
    fn default() -> Acme {
        Acme {
            email: None,
            agree_tos: false,
            issuers: vec!["letsencrypt".to_owned()],
            challenge: Challenge::Http01,
            probe: true,
            probe_port: 80,
        }
    }
}

impl Issuer {
    pub fn new(name: &str, directory: &str) -> Issuer {
        Issuer {
            name: name.to_owned(),
            directory: directory.to_owned(),
            eab_kid: None,
            eab_key_file: None,
            root: None,
            profile: None,
            public: true,
        }
    }

    /// The authorities that need no `[issuer.NAME]`.
    pub fn known() -> impl Iterator<Item = Issuer> {
        KNOWN.into_iter().map(|(name, directory, _)| Issuer::new(name, directory))
    }
}

/// Sets `NAME.key` of `[issuer.NAME]`, and makes the issuer where it is new.
pub(super) fn set(issuers: &mut BTreeMap<String, Issuer>, name: &str, given: &Given) -> Result<(), Diagnostic> {
    let (name, key) = name.rsplit_once('.').unwrap_or((name, ""));
    let fine = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
    if !(1..=40).contains(&name.len()) || !name.bytes().all(fine) || key.is_empty() {
        return Err(Diagnostic::error("bad-issuer", format!("`{}` does not name an issuer's setting", brief(name)))
            .help("write `[issuer.NAME]` on a line of its own and its keys below; NAME has lower-case letters, digits and dashes"));
    }
    let Some((_, set)) = KEYS.iter().find(|(known, _)| *known == key) else { return Err(unknown(key)) };
    set(issuers.entry(name.to_owned()).or_insert_with(|| Issuer::new(name, "")), given)
}

/// Is `key` one of `[issuer.NAME]`?
pub(super) fn is_key(key: &str) -> bool {
    KEYS.iter().any(|(known, _)| *known == key)
}

/// Which setting the variable `SKEP_ISSUER_{rest}` is, without its `issuer.`: `NAME_KEY` in capitals.
pub(super) fn of_variable(issuers: &BTreeMap<String, Issuer>, rest: &str) -> Option<String> {
    let capitals = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let (name, key) = KEYS.iter().find_map(|(key, _)| Some((rest.strip_suffix(&format!("_{}", capitals(key)))?, key)))?;
    let known = issuers.keys().find(|known| capitals(known) == name).cloned();
    Some(format!("{}.{key}", known.unwrap_or_else(|| name.to_ascii_lowercase().replace('_', "-"))))
}

/// Settings of `[acme]` and `[issuer.NAME]` that are fine alone and not together.
pub(super) fn contradictions(config: &Config) -> Vec<Diagnostic> {
    let acme = &config.acme;
    let mut findings = Vec::new();
    if !acme.agree_tos && (acme.email.is_some() || *acme != Acme { agree_tos: acme.agree_tos, email: None, ..Acme::default() }) {
        findings.push(
            Diagnostic::error("terms-not-agreed", "[acme] is set, but nobody has agreed to the terms of service of its issuers")
                .help("read them at the authority, then write agree-tos = true in [acme]"),
        );
    }
    for name in &acme.issuers {
        findings.extend(asked(config, name));
    }
    if acme.challenge == Challenge::Dns01 && config.dns.provider == DnsProvider::Off {
        findings.push(
            Diagnostic::error("dns-01-of-nobody", "acme.challenge is dns-01, but dns.provider is off")
                .help("name in [dns] who publishes the records"),
        );
    }
    for issuer in config.issuers.values() {
        let section = &issuer.name;
        if issuer.directory.is_empty() {
            findings.push(
                Diagnostic::error("issuer-without-directory", format!("[issuer.{section}] has no directory"))
                    .help("write directory = \"https://ca.example.com/acme/directory\""),
            );
        }
        let (there, lacks) = match (&issuer.eab_kid, &issuer.eab_key_file) {
            (Some(_), None) => ("eab-kid", "eab-key-file"),
            (None, Some(_)) => ("eab-key-file", "eab-kid"),
            _ => continue,
        };
        findings.push(
            Diagnostic::error("eab-incomplete", format!("[issuer.{section}] has {there}, but not {lacks}"))
                .help("an external account binding has an id and a key; the authority gives both"),
        );
    }
    findings
}

/// What is wrong with `name` as one of `acme.issuers`.
fn asked(config: &Config, name: &str) -> Option<Diagnostic> {
    let Some(issuer) = config.issuers.get(name) else {
        let finding = Diagnostic::error("unknown-issuer", format!("acme.issuers names `{}`, which is not known", brief(name)));
        return Some(match nearest(name, config.issuers.keys().map(String::as_str)) {
            Some(near) => finding.help(format!("did you mean \"{near}\"?")),
            None => finding.help(format!("write [issuer.{}] with its directory, or name one of {}", brief(name), known_names())),
        });
    };
    let binding = KNOWN.iter().any(|(known, directory, binding)| *binding && *known == name && *directory == issuer.directory);
    (config.acme.agree_tos && binding && issuer.eab_kid.is_none()).then(|| {
        Diagnostic::error("issuer-wants-binding", format!("{name} gives certificates only to accounts that it knows"))
            .help(format!("write eab-kid and eab-key-file, which it gives to its customers, in [issuer.{name}]"))
    })
}

fn known_names() -> String {
    KNOWN.map(|(name, ..)| name).join(", ")
}

fn unknown(key: &str) -> Diagnostic {
    let finding = Diagnostic::error("unknown-setting", format!("`{}` is not a setting of an issuer", brief(key)));
    match nearest(key, KEYS.iter().map(|(known, _)| *known)) {
        Some(near) => finding.help(format!("did you mean `{near}`?")),
        None => finding.help(format!("there are {}", KEYS.map(|(known, _)| known).join(", "))),
    }
}

/// URL of an ACME directory. Account keys and certificates depend on who answers there, so it is over TLS only.
fn directory(given: &Given) -> Result<String, Diagnostic> {
    const EXAMPLE: &str = "https://ca.example.com/acme/directory";
    let text = text(given, EXAMPLE)?;
    let bad = |why: &str| Diagnostic::error("bad-directory", format!("`{}` {why}", brief(&text))).help(format!("write \"{EXAMPLE}\""));
    let uri: http::Uri = text.parse().map_err(|_| bad("is not a URL"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("https"), Some(authority)) if !authority.as_str().contains('@') => Ok(text),
        (Some("https"), Some(_)) => Err(bad("must not hold a user or a password")),
        (Some(_), Some(_)) => Err(bad("is not https")),
        _ => Err(bad("is not a URL")),
    }
}

/// The address by which an authority writes to us.
pub(super) fn email(given: &Given) -> Result<Option<String>, Diagnostic> {
    const EXAMPLE: &str = "ops@example.com";
    let Some(text) = optional_text(given, EXAMPLE)? else { return Ok(None) };
    let parts = text.rsplit_once('@').filter(|(user, host)| !user.is_empty() && host.contains('.'));
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'?' | b'%'));
    match parts.filter(|_| plain) {
        Some(_) => Ok(Some(text)),
        None => Err(Diagnostic::error("bad-email", format!("`{}` is not an e-mail address", brief(&text)))
            .help(format!("write \"{EXAMPLE}\", without `mailto:`"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::parse;
    use crate::diagnostic::Place;

    #[test]
    fn issuers_are_described_in_sections_of_their_own() {
        let text = "[acme]\nagree-tos = true\nissuers = [\"step\", \"letsencrypt\"]\n[issuer.step]\ndirectory = \"https://ca.test/acme/acme/directory\"\n\
                    root = \"/etc/skep/root.pem\"\npublic = false\n[issuer.letsencrypt]\nprofile = \"shortlived\"";
        let (config, findings) = parse("skep.toml", text, &[]);
        assert_eq!(findings, []);
        let config = config.unwrap();
        let step = &config.issuers["step"];
        assert_eq!((step.directory.as_str(), step.public), ("https://ca.test/acme/acme/directory", false));
        assert_eq!(step.root, Some(PathBuf::from("/etc/skep/root.pem")));
        let known = &config.issuers["letsencrypt"];
        assert_eq!((known.profile.as_deref(), known.directory.as_str()), (Some("shortlived"), KNOWN[0].1));
        assert!(config.acme.configured() && config.issuers.len() == KNOWN.len() + 1);
    }

    #[test]
    fn issuers_are_described_by_the_environment_too() {
        let variables = [
            ("SKEP_ACME_AGREE_TOS", "true"),
            ("SKEP_ACME_ISSUERS", "my-ca letsencrypt-staging"),
            ("SKEP_ISSUER_MY_CA_DIRECTORY", "https://ca.test/dir"),
            ("SKEP_ISSUER_MY_CA_EAB_KID", "kid"),
            ("SKEP_ISSUER_MY_CA_EAB_KEY_FILE", "/run/secrets/eab"),
            ("SKEP_ISSUER_LETSENCRYPT_STAGING_PROFILE", "tlsserver"),
        ];
        let (config, findings) = parse("skep.toml", "", &variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(findings, []);
        let config = config.unwrap();
        assert_eq!(config.issuers["my-ca"].eab_key_file, Some(PathBuf::from("/run/secrets/eab")));
        assert_eq!(config.issuers["letsencrypt-staging"].profile.as_deref(), Some("tlsserver"));
    }

    /// The example's issuer is commented out: it is no default.
    #[test]
    fn the_example_of_an_issuer_can_be_used() {
        let example = include_str!("../../config/skep.toml");
        let lines = example.lines().skip_while(|line| *line != "# [issuer.example]").take_while(|line| !line.is_empty());
        let code = lines.filter_map(|line| line.strip_prefix("# ")).filter(|line| line.starts_with('[') || line.contains(" = "));
        let text = code.collect::<Vec<_>>().join("\n");
        let (config, findings) = parse("skep.toml", &text, &[]);
        assert_eq!(findings, [], "{text}");
        assert_eq!(config.unwrap().issuers["example"].eab_kid.as_deref(), Some("kid-1"));
        assert!(KEYS.iter().all(|(key, _)| text.contains(&format!("\n{key} = "))), "{text}");
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        // text, code, what the message or the help says
        let table = [
            ("[acme]\nemail = \"ops@example.com\"", "terms-not-agreed", "agree-tos = true"),
            ("[acme]\nissuers = [\"letsencrypt-staging\"]", "terms-not-agreed", "agree-tos = true"),
            ("[acme]\nagree-tos = true\nemail = \"ops\"", "bad-email", "ops@example.com"),
            ("[acme]\nagree-tos = true\nemail = \"mailto:ops@example.com, x@y.z\"", "bad-email", "mailto"),
            ("[acme]\nagree-tos = true\nissuers = [\"letsencrpt\"]", "unknown-issuer", "\"letsencrypt\""),
            ("[acme]\nagree-tos = true\nissuers = [\"corporate\"]", "unknown-issuer", "[issuer.corporate]"),
            ("[acme]\nagree-tos = true\nissuers = [\"zerossl\"]", "issuer-wants-binding", "eab-kid"),
            ("[acme]\nagree-tos = true\nchallenge = \"dns\"", "bad-word", "dns-01"),
            ("[acme]\nagree-tos = true\nchallenge = \"dns-01\"", "dns-01-of-nobody", "[dns]"),
            ("[acme]\nprobe-port = 0", "out-of-range", "1"),
            ("[issuer.a]\nprofile = \"x\"", "issuer-without-directory", "directory ="),
            ("[issuer.a]\ndirectory = \"http://ca.test/dir\"", "bad-directory", "https"),
            ("[issuer.a]\ndirectory = \"https://me:pw@ca.test/dir\"", "bad-directory", "password"),
            ("[issuer.a]\ndirectory = \"/dir\"", "bad-directory", "not a URL"),
            ("[issuer.zerossl]\neab-kid = \"x\"", "eab-incomplete", "eab-key-file"),
            ("[issuer.zerossl]\neab-key-file = \"/x\"", "eab-incomplete", "but not eab-kid"),
            ("[issuer.a]\ndirectry = \"https://ca.test/dir\"", "unknown-setting", "directory"),
            ("[issuer.A_B]\ndirectory = \"https://ca.test/dir\"", "bad-issuer", "lower-case"),
            ("[issuer]\ndirectory = \"https://ca.test/dir\"", "bad-issuer", "[issuer.NAME]"),
            ("issuer = 1", "bad-issuer", "[issuer.NAME]"),
        ];
        for (text, code, said) in table {
            let (config, findings) = parse("skep.toml", text, &[]);
            assert!(config.is_none(), "{text}");
            let finding = findings.iter().find(|finding| finding.code == code).unwrap_or_else(|| panic!("{text}: {findings:?}"));
            assert!(format!("{} {}", finding.message, finding.help.as_deref().unwrap_or("")).contains(said), "{text}: {finding:?}");
        }
        let (_, findings) = parse("skep.toml", "[issuer.a]\ndirectory = 5", &[]);
        let Some(Place::File { text, span, .. }) = &findings[0].place else { panic!("no place") };
        assert_eq!(&text[span.clone()], "5");
    }

    proptest! {
        #[test]
        fn any_issuer_is_survived(name in "\\PC{0,20}", key in "[a-z.-]{0,12}", value in "\\PC{0,40}") {
            let mut issuers = BTreeMap::new();
            let _ = set(&mut issuers, &format!("{name}.{key}"), &Given::Text(value));
            let _ = of_variable(&issuers, &name);
        }
    }
}
