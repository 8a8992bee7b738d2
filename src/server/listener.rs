//! Listening sockets and the accept loop: each accepted connection becomes a task that pingora's HTTP application serves.
//! The loop is ours, so that the order of a graceful stop, the number of connections and the socket options are too.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Admitted};
use super::holder;
use super::terminate::{Secured, Terminator};
use super::worker::Serve;
use crate::config::{self, ProxyProtocol};
use crate::proxy::conduit::Conduit;
use crate::proxy::forwarded;
use crate::proxy::lean::{Lean, SWEEP};
use crate::proxy::passthrough;
use crate::proxy::preamble::{self, Named};
use crate::proxy::socket::Socket;
use crate::proxy::stream::PerConnection;
use crate::state::Live;

/// Connections that wait to be accepted while all workers are busy.
const BACKLOG: u32 = 4096;
/// How long the loop rests when the process is out of file descriptors; connections that end free some.
pub(super) const REST: Duration = Duration::from_millis(50);
/// A connection that ends anyway is waited for so long before an idle one is asked to make room.
const MOMENT: Duration = Duration::from_millis(20);
/// More than any pool of the allocator holds, in bytes.
const MUCH: usize = 8 << 20;
/// A client that went without a word is found out after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// An address that cannot be listened on, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {advice}")]
pub struct BindError {
    pub address: SocketAddr,
    pub source: io::Error,
    pub advice: String,
}

/// Binds `address`. `[::]` takes IPv4 too, whatever the system's default is, and stands for all of IPv4 where there is no IPv6.
///
/// # Errors
/// When the address is taken, not ours, or its port needs a privilege.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bound = match listen(address) {
        Err(error) if without_ipv6(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    };
    bound.map_err(|source| BindError { address, advice: advice(&source, address), source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // Connections inherit both: what is written leaves at once, and a client that went without a word is found out.
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE_INTERVAL))?;
    socket.listen(BACKLOG)
}

/// Does the kernel know no IPv6 at all (`ipv6.disable=1`)?
fn without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

fn advice(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder::of(address) {
            Some(holder) => {
                format!("it is in use by {} (pid {}): stop that, or choose another address with --http or --https", holder.name, holder.pid)
            }
            None => format!(
                "see who listens there with: ss -ltnp 'sport = :{}', or choose another address with --http or --https",
                address.port()
            ),
        },
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a privilege: setcap cap_net_bind_service=+ep on the binary, or a port above {}", 1023)
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address".to_owned(),
        _ => "check the address in [http] or [https] listen, or --http and --https".to_owned(),
    }
}

/// What the accept loops of one worker share.
#[derive(Clone)]
pub struct Acceptor {
    pub lean: Arc<Lean>,
    /// Free places for connections.
    pub places: Arc<Semaphore>,
    /// Notified where somebody waits for a place.
    pub crowd: Arc<Notify>,
    pub connections: TaskTracker,
    /// For what a reload may change.
    pub live: Arc<Live>,
    pub admission: Arc<Admission>,
    pub proxy_protocol: ProxyProtocol,
    /// Where connections are secured before anything is said on them.
    pub terminator: Option<Arc<Terminator>>,
    /// For those that a service secures itself.
    pub conduit: Conduit,
    /// True once the edge is stopping: answers then close their connections.
    pub stopping: watch::Receiver<bool>,
}

impl Serve for Acceptor {
    /// Accepts until the edge stops. Past the connection limit new ones wait, here and in the kernel's backlog, and idle ones end.
    async fn accept(self, listener: TcpListener) {
        let mut stopping = self.stopping.clone();
        let local = match listener.local_addr() {
            Ok(local) => local,
            Err(error) => {
                tracing::error!(%error, "a listener has no address");
                return;
            }
        };
        loop {
            let next = async {
                let accepted = listener.accept().await;
                (self.place().await, accepted)
            };
            let (place, accepted) = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let connection = self.clone().serve(tcp, PerConnection::accepted(peer, local));
                    self.connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    self.say_rarely(|| tracing::warn!(%error, "accepting connections fails; trying again"));
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn keep_house(self) {
        let mut stopping = self.stopping.clone();
        while tokio::time::timeout(SWEEP, stopping.wait_for(|stop| *stop)).await.is_err() {
            self.lean.sweep();
            // The allocator looks for memory to give back when it is asked for much, and after a burst nobody asks.
            drop(std::hint::black_box(Vec::<u8>::with_capacity(MUCH)));
        }
    }
}

/// A client that may come in.
struct Welcome {
    tcp: TcpStream,
    about: PerConnection,
    /// What came behind a PROXY header.
    unread: BytesMut,
    /// Its place among its address's connections.
    admitted: Option<Admitted>,
}

impl Acceptor {
    /// A place for one connection; an idle one ends for it where there is none.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        place(&self.places, &self.crowd).await
    }

    async fn serve(self, tcp: TcpStream, about: PerConnection) {
        let state = self.live.load();
        let Some(welcome) = self.welcome(tcp, about, &state.config.proxy).await else { return };
        let Welcome { tcp, mut about, unread, admitted } = welcome;
        let Some(terminator) = &self.terminator else {
            // The connection may outlive many states.
            drop(state);
            return self.lean.serve(Socket::Plain(tcp), about, unread).await;
        };
        let client = admitted.as_ref().map(|_| about.connection.peer.ip());
        let secured = Box::pin(terminator.secure(tcp, unread, client, &state)).await;
        drop(state);
        match secured {
            Some(Secured::Here { socket, handshake }) => {
                (about.connection.secure, about.handshake) = (true, Some(handshake));
                self.lean.serve(socket, about, BytesMut::new()).await;
            }
            Some(Secured::Elsewhere { tcp, unread, name, route }) => {
                // Boxed: the others must not hold the room of the few.
                Box::pin(passthrough::serve(&self.conduit, tcp, unread, &name, &route, &about)).await;
            }
            None => {}
        }
    }

    /// The client behind the socket, if it may come in. A socket that is not welcome is closed without a word.
    async fn welcome(&self, mut tcp: TcpStream, mut about: PerConnection, limits: &config::Proxy) -> Option<Welcome> {
        let peer = about.connection.peer;
        let trusted = |address: SocketAddr| forwarded::is_trusted(address.ip().to_canonical(), &limits.trusted_proxies);
        let mut unread = BytesMut::new();
        if self.proxy_protocol != ProxyProtocol::Off && trusted(peer) {
            let preamble =
                tokio::time::timeout(limits.header_timeout, preamble::read(&mut tcp)).await.unwrap_or_else(|late| Err(late.into()));
            let gone = |error: io::Error| tracing::debug!(%error, %peer, "the client was gone before it was served");
            let preamble = preamble.map_err(gone).ok()?;
            match preamble.named {
                Named::Client { source, destination } => {
                    (about.connection.peer, about.connection.local) = (source, destination);
                }
                Named::Nothing if self.proxy_protocol == ProxyProtocol::On => {
                    self.say_rarely(
                        || tracing::warn!(%peer, "a trusted proxy sent no PROXY header: its connections are closed; check its settings"),
                    );
                    return None;
                }
                Named::Nothing | Named::Itself => {}
            }
            unread = BytesMut::from(&preamble.unread[..]);
        }
        let client = about.connection.peer;
        let admitted = if trusted(client) { None } else { Some(self.admit(client)?) };
        Some(Welcome { tcp, about, unread, admitted })
    }

    fn admit(&self, client: SocketAddr) -> Option<Admitted> {
        let admitted = self.admission.admit(client.ip());
        if admitted.is_none() {
            self.say_rarely(|| {
                tracing::warn!(
                    client = %client.ip(),
                    refused = self.admission.refused(),
                    "a client has proxy.max-connections-per-client connections and further ones are closed; \
                     a load balancer in front belongs into proxy.trusted-proxies"
                );
            });
        }
        admitted
    }

    fn say_rarely(&self, say: impl FnOnce()) {
        if self.admission.is_worth_saying(Instant::now()) {
            say();
        }
    }
}

/// A place for one connection; one of the `crowd` ends for it where there is none.
pub(super) async fn place(places: &Arc<Semaphore>, crowd: &Notify) -> Option<OwnedSemaphorePermit> {
    // The semaphore is never closed, so a place always comes.
    if let Ok(place) = tokio::time::timeout(MOMENT, places.clone().acquire_owned()).await {
        return place.ok();
    }
    crowd.notify_one();
    places.clone().acquire_owned().await.ok()
}

pub(super) fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `config` calls one address in two places is one to the kernel too.
    #[tokio::test]
    async fn every_address_of_ipv6_includes_those_of_ipv4() {
        let all = bind("[::]:0".parse().unwrap()).unwrap();
        let port = all.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok());
        assert!(bind((Ipv4Addr::LOCALHOST, port).into()).is_err());
        let own = bind("[::1]:0".parse().unwrap()).unwrap();
        assert!(bind((Ipv4Addr::LOCALHOST, own.local_addr().unwrap().port()).into()).is_ok());
    }

    #[test]
    fn only_a_kernel_without_ipv6_is_given_ipv4_instead() {
        for (errno, wanted) in [(Errno::EAFNOSUPPORT, true), (Errno::EADDRINUSE, false), (Errno::EADDRNOTAVAIL, false)] {
            assert_eq!(without_ipv6(&io::Error::from(errno)), wanted);
        }
    }

    #[tokio::test]
    async fn a_taken_address_says_whom_to_look_for() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = first.local_addr().unwrap();
        let text = bind(taken).unwrap_err().to_string();
        assert!(text.contains(&format!("sport = :{}", taken.port())), "{text}");
    }
}
