//! An authority that answers whatever a story wants it to: for what no real one can be brought to say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use skep::config::Issuer;

use crate::pebble::server_certificate;

/// One answer: status, headers, body.
pub type Answer = (u16, Vec<(&'static str, String)>, String);

/// Registers everybody, and answers other requests from its table.
pub struct Authority {
    directory: tempfile::TempDir,
    address: SocketAddr,
    seen: Seen,
}

/// Paths with what was signed and sent there.
type Seen = Arc<Mutex<Vec<(String, serde_json::Value)>>>;

impl Authority {
    /// `answers` by path: `/dir`, `/new-nonce` and `/new-account` have usual answers where they are not given.
    pub async fn answering(answers: BTreeMap<&'static str, Answer>) -> Authority {
        let directory = tempfile::tempdir().unwrap();
        server_certificate(directory.path());
        let chain = CertificateDer::pem_file_iter(directory.path().join("cert.pem")).unwrap().collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.path().join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(usual(address).into_iter().chain(answers).collect::<BTreeMap<_, _>>());
        let seen = Seen::default();
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers, noted) = (acceptor.clone(), Arc::clone(&answers), Arc::clone(&noted));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, Arc::clone(&answers), Arc::clone(&noted)));
                    // A client may leave at any time.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Authority { directory, address, seen }
    }

    /// What was sent to `path`, in its order.
    pub fn payloads(&self, path: &str) -> Vec<serde_json::Value> {
        self.seen.lock().unwrap().iter().filter(|(to, _)| to == path).map(|(_, payload)| payload.clone()).collect()
    }

    pub fn issuer(&self) -> Issuer {
        let mut issuer = Issuer::new("odd", &format!("https://{}/dir", self.address));
        issuer.root = Some(self.directory.path().join("ca.pem"));
        issuer
    }
}

fn usual(address: SocketAddr) -> BTreeMap<&'static str, Answer> {
    let at = |path: &str| format!("https://{address}/{path}");
    let directory = serde_json::json!({
        "newNonce": at("new-nonce"), "newAccount": at("new-account"), "newOrder": at("new-order"), "renewalInfo": at("renewal-info"),
    });
    BTreeMap::from([
        ("/dir", (200, vec![], directory.to_string())),
        ("/new-nonce", (200, vec![], String::new())),
        ("/new-account", (201, vec![("location", at("account/1"))], "{}".to_owned())),
    ])
}

async fn answer(
    request: Request<Incoming>,
    answers: Arc<BTreeMap<&'static str, Answer>>,
    seen: Seen,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if let Ok(signed) = serde_json::from_slice::<serde_json::Value>(&body) {
        let payload = BASE64_URL_SAFE_NO_PAD.decode(signed["payload"].as_str().unwrap()).unwrap();
        seen.lock().unwrap().push((path.clone(), serde_json::from_slice(&payload).unwrap_or_default()));
    }
    let found = answers.iter().find(|(known, _)| path == **known || path.starts_with(&format!("{known}/")));
    let (status, headers, body) = found.map_or((404, vec![], String::new()), |(_, answer)| answer.clone());
    let mut builder = Response::builder().status(status).header("replay-nonce", format!("{:016x}", fastrand::u64(..)));
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(Full::from(body))
}
