//! An answer about signing in, written already: the one form in which pages, redirects and authorizers' words go to the client.

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode};

/// Status, fields and body as they go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: String,
    /// The word for logs.
    pub reason: &'static str,
}

impl Reply {
    pub fn new(status: StatusCode, reason: &'static str) -> Reply {
        Reply { status, headers: Vec::new(), body: String::new(), reason }
    }

    /// A GET elsewhere (RFC 9110, 15.4.4).
    pub fn see_other(to: &str, reason: &'static str) -> Reply {
        Reply::new(StatusCode::SEE_OTHER, reason).with(header::LOCATION, to)
    }

    /// With a field more; one whose value cannot be said is left out.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &str) -> Reply {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    #[must_use]
    pub fn with_body(mut self, kind: &str, body: String) -> Reply {
        self.body = body;
        self.with(header::CONTENT_TYPE, kind)
    }

    /// The fields with those of `usual` that this answer does not have itself, and the body for `method`.
    pub fn sent(&self, method: &Method, mut usual: Vec<(HeaderName, HeaderValue)>) -> (Vec<(HeaderName, HeaderValue)>, String) {
        usual.retain(|(name, _)| self.headers.iter().all(|(own, _)| own != name));
        usual.extend(self.headers.iter().cloned());
        usual.push((header::CONTENT_LENGTH, HeaderValue::from(self.body.len())));
        (usual, if *method == Method::HEAD { String::new() } else { self.body.clone() })
    }
}
