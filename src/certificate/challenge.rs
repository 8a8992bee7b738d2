//! Answers to what certificate authorities ask of us while they validate a name: put here by whoever orders, read by the listeners.

use std::sync::Arc;

use dashmap::DashMap;
use rustls::sign::CertifiedKey;

/// Where HTTP-01 asks (RFC 8555, 8.3); the rest of the path is the token.
pub const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol by which TLS-ALPN-01 asks (RFC 8737, 4).
pub const ALPN: &[u8] = b"acme-tls/1";

/// The answers that are live now. Few and short-lived: whoever puts one takes it away again.
#[derive(Debug, Default)]
pub struct Challenges {
    /// Token to key authorization (HTTP-01, and the nonces by which we probe ourselves).
    http: DashMap<String, String>,
    /// Name to its validation certificate (TLS-ALPN-01).
    tls: DashMap<String, Arc<CertifiedKey>>,
}

/// Takes its answers away when dropped.
#[derive(Debug)]
#[must_use = "the answer is live as long as this is"]
pub struct Live {
    challenges: Arc<Challenges>,
    key: Key,
}

#[derive(Debug)]
enum Key {
    Http(String),
    Tls(String),
}

impl Challenges {
    /// Answers HTTP requests for `token` with `answer`.
    pub fn answer_http(self: &Arc<Self>, token: &str, answer: String) -> Live {
        self.http.insert(token.to_owned(), answer);
        Live { challenges: Arc::clone(self), key: Key::Http(token.to_owned()) }
    }

    /// Answers TLS connections for `name` that speak [`ALPN`] with `certificate`.
    pub fn answer_tls(self: &Arc<Self>, name: &str, certificate: Arc<CertifiedKey>) -> Live {
        self.tls.insert(name.to_owned(), certificate);
        Live { challenges: Arc::clone(self), key: Key::Tls(name.to_owned()) }
    }

    /// The answer for a request's path; `None` where the path is not of a challenge that is live.
    pub fn http(&self, path: &str) -> Option<String> {
        Some(self.http.get(path.strip_prefix(PATH)?)?.clone())
    }

    /// The validation certificate of `name`.
    pub fn tls(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&*self.tls.get(name)?))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        match &self.key {
            Key::Http(token) => drop(self.challenges.http.remove(token)),
            Key::Tls(name) => drop(self.challenges.tls.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_lives_as_long_as_its_order() {
        let challenges = Arc::new(Challenges::default());
        let live = challenges.answer_http("token", "token.thumbprint".into());
        assert_eq!(challenges.http("/.well-known/acme-challenge/token").as_deref(), Some("token.thumbprint"));
        for path in ["/token", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/token/", "/.well-known/acme-challenge/other"] {
            assert_eq!(challenges.http(path), None, "{path}");
        }
        drop(live);
        assert_eq!(challenges.http("/.well-known/acme-challenge/token"), None);
    }
}
