//! What is agreed on with clients over TLS: versions, protocols, session tickets, and which certificate they are shown.
//! One crypto provider for all of it, the process's own.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::challenge;
use super::keyring::{Entry, Keyring};
use crate::config::Profile;

/// The protocols above TLS that are spoken, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

const MODERN: &[&SupportedProtocolVersion] = &[&version::TLS13];
const INTERMEDIATE: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// The keyring that handshakes take from, swapped while they go on.
pub struct Shown(ArcSwap<Keyring>);

impl fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shown").field("names", &self.0.load().len()).finish_non_exhaustive()
    }
}

impl Shown {
    pub fn new(keyring: Keyring) -> Shown {
        Shown(ArcSwap::from_pointee(keyring))
    }

    /// From the next handshake on. Connections that are secured already stay as they are.
    pub fn swap(&self, keyring: Keyring) {
        self.0.store(Arc::new(keyring));
    }

    /// What a client that asks for `name` is shown.
    pub fn find(&self, name: Option<&str>) -> Arc<Entry> {
        Arc::clone(self.0.load().find(name))
    }

    /// Is there a certificate for `name` beside the default one?
    pub fn known(&self, name: &str) -> Option<Arc<Entry>> {
        self.0.load().known(name).cloned()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().find(hello.server_name()).key))
    }
}

/// Why TLS cannot be spoken as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("the authorities' certificates cannot be used: {0}")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// Makes the settings of handshakes; holds what all of them share.
#[derive(Clone, Debug)]
pub struct Terms {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
    shown: Arc<Shown>,
    /// Encrypts what clients bring back to go on with a session; changes its key by itself.
    tickets: Arc<dyn ProducesTickets>,
}

impl Terms {
    pub fn new(profile: Profile, provider: Arc<CryptoProvider>, shown: Arc<Shown>, tickets: Arc<dyn ProducesTickets>) -> Terms {
        let versions = match profile {
            Profile::Modern => MODERN,
            Profile::Intermediate => INTERMEDIATE,
        };
        Terms { provider: Arc::new(preferring(&provider)), versions, shown, tickets }
    }

    /// For clients that need not say who they are.
    ///
    /// # Errors
    /// When the provider cannot speak any of the versions.
    pub fn open(&self) -> Result<Arc<ServerConfig>, Error> {
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.versions)?
            .with_no_client_auth()
            .with_cert_resolver(self.shown.clone());
        Ok(Arc::new(self.common(config)))
    }

    /// For clients that may prove who they are by a certificate of one of `authorities` (DER). One that is shown must be good;
    /// whether one is needed is the route's to say.
    ///
    /// # Errors
    /// When they are no usable certificates.
    pub fn asking(&self, authorities: &[Vec<u8>]) -> Result<Arc<ServerConfig>, Error> {
        let config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(self.versions)?
            .with_client_cert_verifier(self.verifier(authorities)?)
            .with_cert_resolver(self.shown.clone());
        let mut config = self.common(config);
        // A session of a host that asks for no certificate must not be taken over here: its tickets are another key's.
        config.ticketer = Arc::new(NoTickets);
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For the authority that validates a name by its certificate for the occasion (RFC 8737).
    ///
    /// # Errors
    /// As [`Terms::open`].
    pub fn validation(&self, certificate: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
        config.alpn_protocols = vec![challenge::ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn common(&self, mut config: ServerConfig) -> ServerConfig {
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        config.ignore_client_order = true;
        config.ticketer = self.tickets.clone();
        config
    }

    fn verifier(&self, authorities: &[Vec<u8>]) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(CertificateDer::from_slice(certificate))?;
        }
        Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).allow_unauthenticated().build()?)
    }
}

/// The provider with its suites in the order in which they are chosen: all are strong, so the fastest come first.
fn preferring(provider: &CryptoProvider) -> CryptoProvider {
    let mut provider = provider.clone();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = format!("{:?}", suite.suite());
        !name.contains("AES_128_GCM")
    });
    provider
}

/// Sessions end with their connection.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
