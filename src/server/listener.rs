//! Listening sockets and the accept loop: each accepted connection becomes a task that pingora's HTTP application serves.
//! The loop is ours, so that the order of a graceful stop, the number of connections and the socket options are too.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::worker::Serve;
use crate::proxy::lean::{Lean, SWEEP};
use crate::proxy::stream::PerConnection;

/// Connections that wait to be accepted while all workers are busy.
const BACKLOG: u32 = 4096;
/// How long the loop rests when the process is out of file descriptors; connections that end free some.
const REST: Duration = Duration::from_millis(50);

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
    // Connections inherit it: what is written leaves at once.
    socket.set_nodelay(true)?;
    socket.listen(BACKLOG)
}

/// Does the kernel know no IPv6 at all (`ipv6.disable=1`)?
fn without_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32)
}

fn advice(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("see who listens there with: ss -ltnp 'sport = :{}', or choose another address with --http", address.port())
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a privilege: setcap cap_net_bind_service=+ep on the binary, or a port above {}", 1023)
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address".to_owned(),
        _ => "check the address in [http] listen or --http".to_owned(),
    }
}

/// What the accept loops of one worker share.
#[derive(Clone)]
pub struct Acceptor {
    pub lean: Arc<Lean>,
    /// Free places for connections.
    pub places: Arc<Semaphore>,
    pub connections: TaskTracker,
    /// True once the edge is stopping: answers then close their connections.
    pub stopping: watch::Receiver<bool>,
}

impl Serve for Acceptor {
    /// Accepts until the edge stops. Past the connection limit new ones wait in the kernel's backlog.
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
                // The semaphore is never closed, so a place always comes.
                let place = self.places.clone().acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let lean = self.lean.clone();
                    self.connections.spawn(async move {
                        lean.serve(tcp, PerConnection::accepted(peer, local)).await;
                        drop(place);
                    });
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "accepting connections fails; trying again");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    async fn keep_house(self) {
        let mut stopping = self.stopping.clone();
        while tokio::time::timeout(SWEEP, stopping.wait_for(|stop| *stop)).await.is_err() {
            self.lean.sweep();
        }
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

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
