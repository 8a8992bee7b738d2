//! How Skep asks others over HTTP: authorities of certificates, authorizers, receivers of notices. One client for all of them, so that TLS
//! is set up in one place. Whom to trust and how long to wait is said by whoever asks.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};

/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(30);

/// HTTP/1.1 only: a request that is given up ends its connection, while one of HTTP/2 that has gone silent would be used on and on.
pub type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What a client is to be like.
pub struct Outbound {
    pub roots: RootCertStore,
    /// `http://` is refused.
    pub https_only: bool,
    /// For the connection alone.
    pub connect: Duration,
    /// Connections to one host that are kept.
    pub kept: usize,
}

impl Outbound {
    /// # Errors
    /// TLS cannot be set up; a sentence.
    pub fn client(self) -> Result<Client, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be used: {error}"))?
            .with_root_certificates(self.roots)
            .with_no_client_auth();
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(self.connect));
        connector.set_nodelay(true);
        let builder = HttpsConnectorBuilder::new().with_tls_config(config);
        let builder = if self.https_only { builder.https_only() } else { builder.https_or_http() };
        Ok(legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(self.kept)
            .build(builder.enable_http1().wrap_connector(connector)))
    }
}

/// An error with its causes: `client error (Connect): tcp connect error: Connection refused`.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
