//! Notices over HTTP: one POST, judged by its status. Redirects are not followed: a notice is for whom it is addressed to.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use rustls::RootCertStore;

use super::courier::{Refusal, certificates};
use crate::outbound::{Client, Outbound, causes};

/// Bytes of an answer that are read.
const LARGEST: usize = 64 * 1024;
const CONNECT: Duration = Duration::from_secs(10);
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("skep/", env!("CARGO_PKG_VERSION")));

/// Connections to all receivers.
pub(super) struct Webhooks {
    ca: Option<PathBuf>,
    /// Made at first use: most who run this tell nobody.
    client: OnceLock<Client>,
}

impl Webhooks {
    /// Trusts the certificates in `ca` besides the machine's authorities.
    pub fn new(ca: Option<PathBuf>) -> Webhooks {
        Webhooks { ca, client: OnceLock::new() }
    }

    fn client(&self) -> Result<Client, Refusal> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let made = client(self.ca.as_deref()).map_err(Refusal::passing)?;
        Ok(self.client.get_or_init(|| made).clone())
    }

    pub async fn post(&self, url: &str, kind: &'static str, fields: HeaderMap, body: String) -> Result<(), Refusal> {
        let client = self.client()?;
        let uri: Uri = url.parse().map_err(|_| Refusal::lasting("what is given as its URL is none"))?;
        let mut request =
            Request::post(uri.clone()).body(Full::new(Bytes::from(body))).map_err(|_| Refusal::lasting("its URL cannot be asked"))?;
        let own = request.headers_mut();
        own.extend(fields);
        own.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        own.insert(header::USER_AGENT, USER_AGENT);
        own.extend(credentials(&uri).map(|value| (header::AUTHORIZATION, value)));
        let answer = client.request(request).await.map_err(|error| Refusal::passing(causes(&error)))?;
        let (head, body) = answer.into_parts();
        // Read so that the connection can be used again; what it says is not needed.
        _ = Limited::new(body, LARGEST).collect().await;
        judged(head.status, &head.headers)
    }
}

/// What an answer means for a notice.
fn judged(status: StatusCode, fields: &HeaderMap) -> Result<(), Refusal> {
    if status.is_success() {
        return Ok(());
    }
    let said = || fields.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs);
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Refusal { after: said(), ..Refusal::passing(format!("it answers {status}")) })
        }
        _ if status.is_server_error() => Err(Refusal { after: said(), ..Refusal::passing(format!("it answers {status}")) }),
        _ if status.is_redirection() => {
            Err(Refusal::lasting(format!("it answers {status}, and redirects are not followed: give the URL that it leads to")))
        }
        _ => Err(Refusal::lasting(format!("it answers {status}"))),
    }
}

/// The user and password of a URL, which are sent as a header.
fn credentials(uri: &Uri) -> Option<HeaderValue> {
    let (user, _) = uri.authority()?.as_str().rsplit_once('@')?;
    let plain = percent_encoding::percent_decode_str(user).collect::<Vec<u8>>();
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn client(ca: Option<&Path>) -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        roots.add_parsable_certificates(certificates(path)?);
    }
    Outbound { roots, https_only: false, connect: CONNECT, kept: 2 }.client()
}
