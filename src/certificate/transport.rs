//! HTTP to an authority: bounded in time and size, over TLS only, with errors that say what `Retry-After` said.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::ari::retry_after;
use super::failure::Refused;
use crate::outbound::{Client, Outbound};

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("skep/", env!("CARGO_PKG_VERSION")));
const CONNECT: Duration = Duration::from_secs(10);
/// Chains are some kilobytes; directories less.
const LARGEST: usize = 1024 * 1024;

/// Connections to one authority, shared by all that talk to it.
#[derive(Clone)]
pub struct Transport {
    client: Client,
    /// For one request with its whole answer.
    timeout: Duration,
    /// What the last answer said about coming back.
    said: Arc<Mutex<Option<Timestamp>>>,
}

impl Transport {
    /// Trusts the certificates in `root`, or the machine's authorities.
    ///
    /// # Errors
    /// The file cannot be read or holds no certificate.
    pub fn new(root: Option<&Path>, timeout: Duration) -> Result<Transport, String> {
        let mut roots = RootCertStore::empty();
        match root {
            Some(path) => add_file(&mut roots, path)?,
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        let client = Outbound { roots, https_only: true, connect: CONNECT, kept: 2 }.client()?;
        Ok(Transport { client, timeout, said: Arc::default() })
    }

    /// The same connections for another conversation, with its own [`Transport::said`].
    pub fn again(&self) -> Transport {
        Transport { said: Arc::default(), ..self.clone() }
    }

    /// What the last answer's `Retry-After` said.
    pub fn said(&self) -> Option<Timestamp> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A GET without authentication: the directory, and renewal information.
    ///
    /// # Errors
    /// No answer, or one that is an error.
    pub async fn get(&self, url: &str) -> Result<(HeaderMap, Bytes), Error> {
        let request = Request::get(url).body(Full::default())?;
        let (parts, body) = self.exchange(request).await?.into_parts();
        Ok((parts.headers, body))
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Error> {
        request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
        let whole = async {
            let (parts, body) = self.client.request(request).await.map_err(|error| Error::Other(Box::new(error)))?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await.map_err(Error::Other)?.to_bytes();
            Ok::<_, Error>(Response::from_parts(parts, body))
        };
        let answer: Response<Bytes> = match tokio::time::timeout(self.timeout, whole).await {
            Ok(answer) => answer?,
            Err(_) => return Err(other(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.timeout)))),
        };
        let said = retry_after(answer.headers(), Timestamp::now());
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
        refused(answer, said)
    }
}

/// Errors are told apart by status and `Retry-After`, which instant-acme does not pass on. `badNonce` it handles itself.
fn refused(answer: Response<Bytes>, retry_after: Option<Timestamp>) -> Result<Response<Bytes>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let problem = serde_json::from_slice::<Problem>(answer.body()).ok().filter(|problem| problem.r#type.is_some());
    let nonce = problem.as_ref().is_some_and(|problem| super::failure::kind(problem) == "badNonce");
    if status == StatusCode::BAD_REQUEST && nonce {
        return Ok(answer);
    }
    Err(other(Refused { status: status.as_u16(), retry_after, problem }))
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let bad = |what: String| format!("the root certificates in {} cannot be used: {what}", PathBuf::from(path).display());
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(error.to_string()))?;
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err(bad("there is no certificate in it".to_owned())),
        _ => Ok(()),
    }
}

impl HttpClient for Transport {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await; // it cannot fail: the type says so
            let (parts, body) = this.exchange(Request::from_parts(parts, Full::new(body.to_bytes()))).await?.into_parts();
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}
