//! Requests of the edge's own, beside the proxied ones: copies for mirrors, error pages of services.
//! A plain HTTP client with few connections; whatever it asks never holds up a client for long.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::upstream::{Backend, Scheme};

const CONNECT: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS: usize = 8;

/// Why nothing came.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] hyper_util::client::legacy::Error),
    #[error("the answer broke off")]
    Broken,
    #[error("the answer is too long")]
    TooLong,
    #[error("no request can be made of it: {0}")]
    Request(#[from] http::Error),
}

/// The clients for HTTP/1 and for HTTP/2 with prior knowledge.
pub struct Fetch {
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
}

impl Default for Fetch {
    fn default() -> Self {
        let client = |http2| {
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT));
            connector.set_nodelay(true);
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .http2_only(http2)
                .build(connector)
        };
        Fetch { http1: client(false), http2: client(true) }
    }
}

impl Fetch {
    /// Sends `request` to `backend`, whatever its target names, and reads the answer up to `most` bytes.
    ///
    /// # Errors
    /// When there is no answer, or a longer one. How long it takes is for the caller to bound.
    pub async fn ask(&self, backend: &Backend, mut request: Request<Full<Bytes>>, most: usize) -> Result<Response<Bytes>, Error> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = Uri::builder().scheme("http").authority(backend.address.to_string()).path_and_query(path).build()?;
        let client = match backend.scheme {
            Scheme::H2c | Scheme::Grpc => &self.http2,
            // Targets over TLS are refused when the state is built.
            Scheme::Http | Scheme::Https | Scheme::Grpcs | Scheme::Tcp => &self.http1,
        };
        *request.version_mut() = http::Version::HTTP_11;
        let (head, mut body) = client.request(request).await?.into_parts();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Error::Broken)?.into_data() else { continue };
            if read.len() + data.len() > most {
                return Err(Error::TooLong);
            }
            read.extend_from_slice(&data);
        }
        Ok(Response::from_parts(head, read.freeze()))
    }
}
