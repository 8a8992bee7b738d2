//! One question of an active check: a GET of the check's path to one task, over the protocol that requests take to it.
//! A connection of its own each time, because a task must prove that it still accepts them.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Backend, Check, Scheme, Trust};

const USER_AGENT: &str = concat!("skep/", env!("CARGO_PKG_VERSION"), " (health check)");

/// The certificates in a file of authorities, each as DER; or in words why there are none.
pub type Authority<'a> = &'a (dyn Fn(&Path) -> Result<Arc<[Vec<u8>]>, String> + Sync);

/// Whose certificates a task behind TLS may have: as for the requests themselves, so mostly the machine's authorities.
#[derive(Clone)]
pub struct Vouchers {
    provider: Arc<CryptoProvider>,
    machine: ClientConfig,
}

impl Vouchers {
    /// Reads the machine's authorities; the disk is read, so once.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults, which no configuration can cause.
    pub fn of_this_machine() -> Result<Vouchers, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // What cannot be read or used is nothing to trust in; without any, checks over TLS fail and say so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Vouchers { machine: trusting(&provider, roots)?, provider })
    }

    /// Speaks `protocol` to whom `trust` believes.
    fn connector(&self, trust: &Trust, protocol: &[u8], authority: Authority<'_>) -> Result<TlsConnector, String> {
        let mut config = match trust {
            Trust::Machine => self.machine.clone(),
            Trust::Authority(path) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(authority(path)?.iter().map(|der| CertificateDer::from(der.as_slice())));
                trusting(&self.provider, roots).map_err(|error| format!("no TLS: {error}"))?
            }
            Trust::Unverified => {
                let mut config = self.machine.clone();
                config.dangerous().set_certificate_verifier(Arc::new(Unverified(self.provider.clone())));
                config
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn trusting(provider: &Arc<CryptoProvider>, roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Believes whoever answers: a label says so, and a finding warns of it.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Asks once, within the check's timeout. The answer's status, or in words why there was none.
pub async fn ask(backend: &Backend, check: &Check, vouchers: &Vouchers, authority: Authority<'_>) -> Result<u16, String> {
    match tokio::time::timeout(check.timeout, exchange(backend, check, vouchers, authority)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    }
}

async fn exchange(backend: &Backend, check: &Check, vouchers: &Vouchers, authority: Authority<'_>) -> Result<u16, String> {
    let speaking = |protocol| vouchers.connector(&backend.trust, protocol, authority);
    let stream = TcpStream::connect(backend.address).await.map_err(|error| format!("no connection: {}", error.kind()))?;
    match backend.scheme {
        Scheme::Http => http1(stream, backend, check).await,
        Scheme::H2c | Scheme::Grpc => http2(stream, backend, check).await,
        Scheme::Https => http1(secure(stream, backend, &speaking(b"http/1.1")?).await?, backend, check).await,
        Scheme::Grpcs => http2(secure(stream, backend, &speaking(b"h2")?).await?, backend, check).await,
        // What is carried as it is has no HTTP to be asked over, and no check.
        Scheme::Tcp => Ok(200),
    }
}

/// The same names and authorities as for requests (`proxy/peer.rs`).
async fn secure(
    stream: TcpStream,
    backend: &Backend,
    connector: &TlsConnector,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, String> {
    let name = if backend.sni.is_empty() { backend.address.ip().to_string() } else { backend.sni.to_string() };
    let name = ServerName::try_from(name).map_err(|_| "its name is not one that a certificate can have".to_owned())?;
    connector.connect(name, stream).await.map_err(|error: io::Error| format!("no TLS: {error}"))
}

async fn http1(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, backend: &Backend, check: &Check) -> Result<u16, String> {
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.map_err(unanswered)?;
    let request = request(backend, check, Version::HTTP_11)?;
    status(sender.send_request(request), connection).await
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, backend: &Backend, check: &Check) -> Result<u16, String> {
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(unanswered)?;
    let request = request(backend, check, Version::HTTP_2)?;
    status(sender.send_request(request), connection).await
}

/// The answer's status. Both in one future: whoever drops it closes the connection, and nothing is left running.
async fn status(answer: impl Future<Output = hyper::Result<Response<Incoming>>>, connection: impl Future) -> Result<u16, String> {
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The answer may have come with the connection's end.
        _ = connection => answer.await,
    };
    answer.map(|answer| answer.status().as_u16()).map_err(unanswered)
}

fn request(backend: &Backend, check: &Check, version: Version) -> Result<Request<Empty<Bytes>>, String> {
    let host = check.host.clone().unwrap_or_else(|| backend.address.to_string());
    let request = Request::get(&check.path).version(version).header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*");
    let request = match version {
        Version::HTTP_2 => {
            let scheme = if matches!(backend.scheme, Scheme::Https | Scheme::Grpcs) { "https" } else { "http" };
            request.uri(format!("{scheme}://{host}{}", check.path))
        }
        _ => request.header(header::HOST, host).header(header::CONNECTION, "close"),
    };
    request.body(Empty::new()).map_err(|error| format!("its path cannot be asked for: {error}"))
}

fn unanswered(error: hyper::Error) -> String {
    match error.is_closed() || error.is_canceled() || error.is_incomplete_message() {
        true => "the connection broke before the answer".to_owned(),
        false => format!("no HTTP: {error}"),
    }
}
