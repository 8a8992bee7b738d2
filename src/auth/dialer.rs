//! Opens connections to directory servers, with TLS by our own rules: our provider, the authorities of the settings, and the server's
//! name or address in its certificate.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, StdStream};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;

use super::connection::{Connection, Trouble, garbled, said};
use crate::config::ldap::Server;

/// Opens connections.
pub struct Dialer {
    tls: Arc<ClientConfig>,
    verifier: Arc<WebPkiServerVerifier>,
    starttls: bool,
    connect: Duration,
    request: Duration,
    page: usize,
}

impl Dialer {
    /// Trusts the certificates in `ca`, or the machine's authorities.
    ///
    /// # Errors
    /// There is nobody to trust.
    pub fn new(ldap: &crate::config::Ldap) -> Result<Dialer, String> {
        let roots = Arc::new(roots(ldap.ca.as_deref())?);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let no_tls = |error: &dyn fmt::Display| format!("TLS to the directory cannot be set up: {error}");
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let verifier = verifier.build().map_err(|error| no_tls(&error))?;
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| no_tls(&error))?;
        let tls = Arc::new(tls.with_root_certificates(roots).with_no_client_auth());
        let (connect, request) = (ldap.connect_timeout, ldap.request_timeout);
        Ok(Dialer { tls, verifier, starttls: ldap.starttls, connect, request, page: ldap.page_size })
    }

    /// Connects, with TLS.
    ///
    /// # Errors
    /// The server cannot be reached in time, or is not the one that its certificate should name.
    pub async fn dial(&self, server: &Server) -> Result<Connection, Trouble> {
        let late = || Trouble::Connection(format!("no connection within {:?}", self.connect));
        let opened = AssertUnwindSafe(self.open(server)).catch_unwind();
        let (connection, ldap) = tokio::time::timeout(self.connect, opened)
            .await
            .map_err(|_| late())?
            .map_err(|_| garbled())?
            .map_err(|error| Trouble::Connection(said(&error)))?;
        Ok(Connection::new(connection, ldap, self.request, self.page))
    }

    async fn open(&self, server: &Server) -> Result<(LdapConnAsync, ldap3::Ldap), LdapError> {
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
        stream.set_nodelay(true)?;
        let settings = LdapConnSettings::new().set_std_stream(StdStream::Tcp(stream.into_std()?)).set_starttls(self.starttls);
        if !server.host.contains(':') {
            return LdapConnAsync::with_settings(settings.set_config(Arc::clone(&self.tls)), &server.to_string()).await;
        }
        // The client library takes the brackets of an IPv6 address for a part of the name, so it is given another one.
        let name = ServerName::try_from(server.host.clone())?;
        let mut tls = (*self.tls).clone();
        tls.enable_sni = false;
        tls.dangerous().set_certificate_verifier(Arc::new(Named { name, verifier: Arc::clone(&self.verifier) }));
        let other = Server { host: "address.invalid".to_owned(), ..server.clone() };
        LdapConnAsync::with_settings(settings.set_config(Arc::new(tls)), &other.to_string()).await
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return match added {
            0 => Err("this machine trusts no authority: set ldap.ca to a file with the directory's".to_owned()),
            _ => Ok(roots),
        };
    };
    let bad = |what: &dyn fmt::Display| format!("ldap.ca, {}, cannot be used: {what}", path.display());
    let certificates: Vec<CertificateDer<'_>> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(&error))?;
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err(bad(&"there is no certificate in it")),
        _ => Ok(roots),
    }
}

/// Checks certificates for a name of our own, whatever name the handshake is about.
#[derive(Debug)]
struct Named {
    name: ServerName<'static>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
