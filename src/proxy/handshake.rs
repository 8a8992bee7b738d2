//! What a client and this edge agreed on when they secured their connection, as far as its requests are decided by it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::certificate::keyring::Entry;

/// A finished TLS handshake.
#[derive(Debug)]
pub struct Handshake {
    /// The host that the client asked for (SNI, RFC 6066, 3), in lower case; `None`: it named none.
    pub server_name: Option<Box<str>>,
    /// The certificate that it was shown.
    pub shown: Arc<Entry>,
    /// By which authorities' word the client could prove itself: their file.
    pub asked: Option<Arc<Path>>,
    /// Who the client proved to be.
    pub client: Option<ClientCertificate>,
    pub took: Duration,
}

/// A client's certificate that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The file of the authorities by which it was verified.
    pub authority: Arc<Path>,
    /// Its subject as text (RFC 4514).
    pub subject: Arc<str>,
    /// The certificate as RFC 9440 writes it: a byte sequence of structured fields.
    pub encoded: Arc<str>,
}

impl Handshake {
    /// May a request for `host` be served here? Yes where it is the host that the client asked for, where it asked for none, and where
    /// the certificate that it was shown stands for both (RFC 9110, 7.4; RFC 9113, 9.1.1).
    pub fn speaks_for(&self, host: &str) -> bool {
        self.server_name.as_deref().is_none_or(|name| name == host || (self.shown.covers(name) && self.shown.covers(host)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate_speaks_for_all_its_names_and_no_other() {
        let shown = Arc::new(Entry::for_tests(&["a.test", "*.b.test"]));
        let with = |name: Option<&str>| Handshake {
            server_name: name.map(Box::from),
            shown: shown.clone(),
            asked: None,
            client: None,
            took: Duration::ZERO,
        };
        for (name, host, wanted) in [
            (Some("a.test"), "a.test", true),
            (Some("a.test"), "x.b.test", true),
            (Some("a.test"), "x.y.b.test", false),
            (Some("a.test"), "c.test", false),
            (Some("c.test"), "c.test", true),
            (Some("c.test"), "a.test", false),
            (None, "c.test", true),
        ] {
            assert_eq!(with(name).speaks_for(host), wanted, "{name:?} {host}");
        }
    }
}
