//! Authorities that give certificates by ACME: those that everybody knows, and `[issuer.NAME]` for others.

use std::path::PathBuf;

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
}

/// The authorities that need no `[issuer.NAME]`.
const KNOWN: [(&str, &str); 4] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
    ("zerossl", "https://acme.zerossl.com/v2/DV90"),
    ("google", "https://dv.acme-v02.api.pki.goog/directory"),
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
        Issuer { name: name.to_owned(), directory: directory.to_owned(), eab_kid: None, eab_key_file: None, root: None, profile: None }
    }

    /// The authorities that need no `[issuer.NAME]`.
    pub fn known() -> impl Iterator<Item = Issuer> {
        KNOWN.into_iter().map(|(name, directory)| Issuer::new(name, directory))
    }
}
