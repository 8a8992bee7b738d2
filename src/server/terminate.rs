//! TLS on accepted connections: from the first bytes to a secured socket, within a time and among a bounded number of others.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use rustls::ServerConfig;
use rustls::server::ClientHello;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::{StartHandshake, TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::hello::{self, First};
use super::places::Places;
use crate::certificate::challenge::{self, Challenges};
use crate::certificate::tls::{Shown, Terms};
use crate::proxy::handshake::{ClientCertificate, Handshake};
use crate::proxy::socket::Socket;
use crate::state::{Route, State};

/// The settings of handshakes: one for clients that need not say who they are, one for each authority that clients may prove
/// themselves by.
pub struct Settings {
    pub terms: Terms,
    pub open: Arc<ServerConfig>,
    /// By the authorities' file.
    pub asking: HashMap<Arc<Path>, Arc<ServerConfig>>,
}

/// What all HTTPS listeners share.
pub struct Terminator {
    pub shown: Arc<Shown>,
    pub settings: ArcSwap<Settings>,
    pub challenges: Arc<Challenges>,
    /// For handshakes; more than there are wait.
    pub places: Arc<Places>,
}

/// What became of a connection.
pub enum Secured {
    /// It is secured here.
    Here { socket: Socket, handshake: Arc<Handshake> },
    /// It is for a service that secures it itself. All that was read of it is in `unread`.
    Elsewhere { tcp: TcpStream, unread: BytesMut, name: Box<str>, route: Arc<Route> },
}

/// Why there is no secured connection.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] crate::certificate::tls::Error),
    #[error("took too long")]
    Late,
    #[error("{0}")]
    Refused(rustls::Error),
    #[error("not TLS")]
    Other,
    #[error("a client certificate cannot be read")]
    Certificate,
}

impl Terminator {
    /// Secures a connection of `client`, of which `unread` was read already. `None`: it ended, or it was asked by an authority and is
    /// answered; clients learn why as far as TLS has words for it.
    pub async fn secure(&self, tcp: TcpStream, unread: BytesMut, client: Option<IpAddr>, state: &Arc<State>) -> Option<Secured> {
        let limit = state.config.https.handshake_timeout;
        let peer = client;
        match tokio::time::timeout(limit, self.attempt(tcp, unread, client, state)).await.unwrap_or(Err(Failed::Late)) {
            Ok(secured) => secured,
            Err(error) => {
                tracing::debug!(%error, client = ?peer, "no TLS with a client");
                None
            }
        }
    }

    async fn attempt(
        &self,
        mut tcp: TcpStream,
        unread: BytesMut,
        client: Option<IpAddr>,
        state: &Arc<State>,
    ) -> Result<Option<Secured>, Failed> {
        let (accepted, bytes) = match hello::read(&mut tcp, unread).await? {
            First::Hello { accepted, bytes } => (accepted, bytes),
            First::Other { request } => {
                if request {
                    hello::refuse_clear_text(&mut tcp).await?;
                }
                return Err(Failed::Other);
            }
            First::Refused { why, alert } => {
                tcp.write_all(&alert).await?;
                return Err(Failed::Refused(why));
            }
        };
        let began = Instant::now();
        let hello = accepted.client_hello();
        let name = hello.server_name().map(|name| Box::<str>::from(name.strip_suffix('.').unwrap_or(name)));
        if let Some((name, route)) = name.clone().and_then(|name| Some((name.clone(), state.passthrough.find(&name)?.clone()))) {
            return Ok(Some(Secured::Elsewhere { tcp, unread: bytes, name, route }));
        }
        drop(bytes);
        if is_validation(&hello) {
            self.validate(tcp, *accepted, name.as_deref()).await?;
            return Ok(None);
        }
        let authority = name.as_deref().and_then(|name| state.client_authority(name)).cloned();
        let shown = self.shown.find(name.as_deref());
        let config = self.config(authority.as_ref());
        let place = self.places.take(client).await;
        let tls = StartHandshake::from_parts(*accepted, tcp).into_stream(config).await?;
        drop(place);
        let client = proof(&tls, authority.as_ref())?;
        let handshake = Handshake { server_name: name, shown, asked: authority, client, took: began.elapsed() };
        Ok(Some(Secured::Here { socket: Socket::Secure(Box::new(tls)), handshake: Arc::new(handshake) }))
    }

    fn config(&self, authority: Option<&Arc<Path>>) -> Arc<ServerConfig> {
        let settings = self.settings.load();
        // An authority that cannot be read has no settings: nobody can prove anything, and the route stays closed to all.
        authority.and_then(|authority| settings.asking.get(authority)).unwrap_or(&settings.open).clone()
    }

    /// Shows an authority that `name` is ours (RFC 8737): the handshake is all of it.
    async fn validate(&self, tcp: TcpStream, accepted: rustls::server::Accepted, name: Option<&str>) -> Result<(), Failed> {
        let certificate = name.and_then(|name| self.challenges.tls(name)).ok_or(Failed::Other)?;
        let config = self.settings.load().terms.validation(certificate)?;
        let mut tls = StartHandshake::from_parts(accepted, tcp).into_stream(config).await?;
        tls.shutdown().await?;
        Ok(())
    }
}

/// Who the client proved to be.
fn proof(tls: &TlsStream<TcpStream>, authority: Option<&Arc<Path>>) -> Result<Option<ClientCertificate>, Failed> {
    let Some((authority, chain)) = authority.zip(tls.get_ref().1.peer_certificates()) else { return Ok(None) };
    let Some(der) = chain.first() else { return Ok(None) };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Failed::Certificate)?;
    // Into a header: what is no plain text there is left to the encoded form.
    let subject: String =
        certificate.subject().to_string().chars().map(|letter| if (' '..='~').contains(&letter) { letter } else { '?' }).collect();
    Ok(Some(ClientCertificate {
        authority: authority.clone(),
        subject: subject.into(),
        encoded: format!(":{}:", BASE64_STANDARD.encode(der)).into(),
    }))
}

/// Does an authority validate a name, and nothing else?
fn is_validation(hello: &ClientHello<'_>) -> bool {
    let mut protocols = hello.alpn().into_iter().flatten();
    protocols.next() == Some(challenge::ALPN) && protocols.next().is_none()
}

impl Settings {
    /// Settings without authorities.
    ///
    /// # Errors
    /// As [`Terms::open`].
    pub fn new(terms: Terms) -> Result<Settings, crate::certificate::tls::Error> {
        Ok(Settings { open: terms.open()?, terms, asking: HashMap::new() })
    }
}
