//! Connections to upstreams that wait for their next request. Each worker has its own, so that a connection stays on the
//! thread whose events drive it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::TcpStream;

/// How long an idle connection is kept; less than most servers keep theirs.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(30);
/// Connections that are kept for one address.
const MOST: usize = 512;

/// One worker's idle connections.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<HashMap<SocketAddr, Vec<Kept>, fnv::FnvBuildHasher>>);

#[derive(Debug)]
struct Kept {
    tcp: TcpStream,
    since: Instant,
}

impl Kept {
    /// Neither closed by the other side nor spoken on, as far as the events tell.
    fn is_quiet(&self) -> bool {
        self.tcp.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// The same, asked of the kernel: an end that nobody told us of yet.
    fn is_quiet_now(&self) -> bool {
        let peeked = SockRef::from(&self.tcp).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

impl Idle {
    /// The connection to `address` that was used last, if one is still good. `careful`: the request cannot be repeated.
    pub(super) fn take(&self, address: SocketAddr, careful: bool, now: Instant) -> Option<TcpStream> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get_mut(&address)?;
        while let Some(one) = kept.pop() {
            if one.is_quiet() && (!careful || one.is_quiet_now()) && now.saturating_duration_since(one.since) < KEPT_FOR {
                return Some(one.tcp);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless there are enough.
    pub(super) fn put(&self, address: SocketAddr, tcp: TcpStream, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.entry(address).or_default();
        if kept.len() < MOST {
            kept.push(Kept { tcp, since: now });
        }
    }

    /// Closes what is too old or was closed by the other side. To be called every few seconds.
    pub(super) fn sweep(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, kept| {
            kept.retain(|one| one.since.elapsed() < KEPT_FOR && one.is_quiet());
            !kept.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn only_quiet_connections_are_given_out_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let idle = Idle::default();
        let (quiet, _held) = pair(&listener).await;
        let (closed, theirs) = pair(&listener).await;
        let (talking, mut speaker) = pair(&listener).await;
        let local = quiet.local_addr().unwrap();
        drop(theirs);
        speaker.write_all(b"surprise").await.unwrap();
        for tcp in [quiet, closed, talking] {
            idle.put(address, tcp, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(idle.take(address, true, Instant::now()).expect("the quiet one").local_addr().unwrap(), local);
        assert!(idle.take(address, false, Instant::now()).is_none());
        let (again, theirs) = pair(&listener).await;
        idle.put(address, again, Instant::now());
        drop(theirs);
        tokio::time::sleep(Duration::from_millis(50)).await;
        idle.sweep();
        assert!(idle.0.lock().unwrap().is_empty());
    }
}
