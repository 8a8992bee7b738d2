//! One request to a DNS provider's API and its answer: JSON over HTTPS, both bounded in time and size, secrets marked as such.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::dns::{Error, Fault};
use super::record::Secret;
use crate::outbound::causes;

/// One request, connection included.
const REQUEST: Duration = Duration::from_secs(30);
/// Longer answers are no answers.
const LONGEST: usize = 1024 * 1024;
/// What names are made of passes as it is.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

/// The API of one provider.
#[derive(Debug)]
pub struct Api {
    provider: &'static str,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// With the version, without a slash at its end.
    base: String,
}

/// What the API said.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Api {
    pub fn new(provider: &'static str, base: String) -> Result<Api, Error> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| {
                let what = format!("this machine's certificate authorities cannot be read ({error})");
                Error::new(Fault::Settings, what, "install the package ca-certificates")
            })?
            // Plain HTTP is for addresses of this machine: the configuration lets no others through.
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Api { provider, client, base })
    }

    /// The whole URL of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Sends one request. Whatever the API answers is a reply, errors too.
    pub async fn call(&self, method: Method, path: &str, headers: HeaderMap, body: String) -> Result<Reply, Error> {
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.url(path).parse().map_err(|error| self.fails(&format!("has no URL for {path} ({error})")))?;
        *request.headers_mut() = headers;
        for (name, value) in [(ACCEPT, "application/json"), (CONTENT_TYPE, "application/json"), (USER_AGENT, "skep")] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let exchange = async {
            let response =
                self.client.request(request).await.map_err(|error| self.fails(&format!("does not answer ({})", causes(&error))))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LONGEST).collect().await;
            Ok(Reply { status, body: body.map_err(|error| self.fails(&format!("breaks its answer off ({error})")))?.to_bytes() })
        };
        match tokio::time::timeout(REQUEST, exchange).await {
            Ok(reply) => reply,
            Err(_) => Err(self.fails(&format!("does not answer within {REQUEST:?}"))),
        }
    }

    fn fails(&self, what: &str) -> Error {
        let host = self.base.split("//").nth(1).unwrap_or(&self.base);
        Error::new(Fault::Network, format!("{} at {host} {what}", self.provider), "check that this machine reaches it; it is tried again")
    }
}

/// Adds a header; secrets are marked, so that nothing prints them.
pub fn header(headers: &mut HeaderMap, name: &'static str, value: &str, setting: &str) -> Result<(), Error> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::new(Fault::Settings, format!("dns.{setting} holds what no key is made of"), "copy it again"))?;
    value.set_sensitive(true);
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// [`header`] of a secret.
pub fn secret_header(headers: &mut HeaderMap, name: &'static str, before: &str, secret: &Secret, setting: &str) -> Result<(), Error> {
    let text = zeroize::Zeroizing::new(format!("{before}{}", secret.reveal()));
    header(headers, name, &text, setting)
}

/// A name in a path or query.
pub fn escaped(name: &str) -> String {
    utf8_percent_encode(name, NAME).to_string()
}

/// TXT values come with or without quotation marks.
pub fn same_value(given: &str, value: &str) -> bool {
    given.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(given) == value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_their_place() {
        assert_eq!(escaped("_acme-challenge.example.com"), "_acme-challenge.example.com");
        assert_eq!(escaped("a/../b?c=d&e"), "a%2F..%2Fb%3Fc%3Dd%26e");
    }

    #[test]
    fn quoted_values_are_the_same() {
        assert!(same_value("\"abc\"", "abc") && same_value("abc", "abc"));
        assert!(!same_value("\"abcd\"", "abc") && !same_value("\"abc", "abc") && !same_value("\"", "abc"));
    }

    #[test]
    fn secrets_are_not_shown_with_their_headers() {
        let mut headers = HeaderMap::new();
        secret_header(&mut headers, "authorization", "Bearer ", &Secret::new("hunter2".into()), "x").unwrap();
        assert!(!format!("{headers:?}").contains("hunter2"));
        assert_eq!(headers["authorization"], "Bearer hunter2");
        let error =
            secret_header(&mut headers, "authorization", "", &Secret::new("hun\nter2".into()), "cloudflare-token-file").unwrap_err();
        assert!(error.what.contains("dns.cloudflare-token-file") && !error.to_string().contains("ter2"));
    }
}
