//! A client's connection on the lean path: the socket and what was read of it beyond the present request.
//! Between requests it holds no memory but its own few words.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pingora_timeout::timeout;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::socket::Socket;
use super::stream::PerConnection;

/// What is read at once while looking for a head.
const READ: usize = 8 * 1024;
/// How often a half-closed connection is looked at whether it is still there.
const LOOK: Duration = Duration::from_secs(1);
/// As much of what follows a request is taken in while that one is served.
const AHEAD: usize = 64 * 1024;

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Socket,
    /// Read and not served yet.
    pub(super) buffer: BytesMut,
    /// Its answer broke off: it must not look as if it had ended well.
    pub(super) broken: bool,
    /// The client will send nothing more; it may still read.
    pub(super) half_closed: bool,
    /// Runs once it has shut its writing side down, while its request is served, and since when.
    looks: Option<(Interval, Instant)>,
    /// How long it is served after that.
    patience: Duration,
    pub(super) about: PerConnection,
}

impl Client {
    pub(super) fn new(socket: Socket, about: PerConnection) -> Client {
        Client { socket, buffer: BytesMut::new(), broken: false, half_closed: false, looks: None, patience: Duration::MAX, about }
    }

    /// With bytes that were read before those that it has.
    pub(super) fn with_before(mut self, mut bytes: BytesMut) -> Client {
        bytes.extend_from_slice(&self.buffer);
        self.buffer = bytes;
        self
    }

    /// Reads once; the count is 0 at the end of what the client sends.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the stack: a connection that waits must not hold a buffer.
        let count = ready!(poll_into(&mut self.socket, cx, &mut self.buffer))?;
        self.half_closed |= count == 0;
        Poll::Ready(Ok(count))
    }

    /// From now on a client that sends no more is served for so long.
    pub(super) fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// While the upstream is at work: takes in what the client sends ahead, and fails once it is gone. Its end alone is no
    /// reason to go at once: a client may send no more and still wait for its answer.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while !self.half_closed && self.buffer.len() < AHEAD {
            if let Err(error) = ready!(self.poll_fill(cx)) {
                return Poll::Ready(error);
            }
        }
        if !self.half_closed {
            return Poll::Pending;
        }
        // Nothing more is read, so nothing tells of its end in both directions: it is looked for.
        let (looks, since) = self.looks.get_or_insert_with(|| {
            let mut looks = interval(LOOK.min(self.patience.max(Duration::from_millis(1))));
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (looks, Instant::now())
        });
        while looks.poll_tick(cx).is_ready() {
            if since.elapsed() >= self.patience {
                return Poll::Ready(io::ErrorKind::ConnectionAborted.into());
            }
            if let Ok(Some(error)) | Err(error) = SockRef::from(self.socket.tcp()).take_error() {
                return Poll::Ready(error);
            }
        }
        Poll::Pending
    }

    /// Reads a body of `length` bytes into the buffer, each piece within `pause`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the client pauses, others when it is gone.
    pub(super) async fn gather(&mut self, length: usize, pause: Duration) -> io::Result<()> {
        while self.buffer.len() < length {
            match timeout(pause, self.fill()).await {
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => _ = count?,
            }
        }
        Ok(())
    }

    /// Reads and drops what is left of a request's body, as long as it takes no longer than `limit`. True: it is all read.
    pub(super) async fn discard(&mut self, mut left: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            bytes::Buf::advance(&mut self.buffer, taken);
            left -= taken as u64;
            let rest = until.saturating_duration_since(Instant::now());
            if left == 0 {
                return true;
            }
            if rest.is_zero() || !matches!(timeout(rest, self.fill()).await, Ok(Ok(1..))) {
                return false;
            }
        }
    }

    /// Has the client sent something that is not read yet? Asked of the kernel.
    pub(super) fn was_spoken_to(&self) -> bool {
        matches!(SockRef::from(self.socket.tcp()).peek(&mut [MaybeUninit::uninit()]), Ok(1..))
    }

    /// Says that no more comes, then reads and drops what is left of a request: closing with unread bytes would be a reset, and a
    /// reset takes away what the client has not read of its answer yet.
    pub(super) async fn linger(&mut self, left: u64, limit: Duration) {
        // An error means that nobody is there to wait for.
        if self.socket.shutdown().await.is_ok() {
            self.discard(left, limit).await;
        }
    }

    /// Writes all of it, within `limit`.
    pub(super) async fn send(&mut self, bytes: &[u8], limit: Duration) -> io::Result<()> {
        let sent = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        timeout(limit, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// Reads what is there into the end of `buffer`, which grows by just that.
pub(super) fn poll_into(socket: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
    let mut room = [const { MaybeUninit::<u8>::uninit() }; READ];
    let mut piece = ReadBuf::uninit(&mut room);
    ready!(Pin::new(socket).poll_read(cx, &mut piece))?;
    buffer.extend_from_slice(piece.filled());
    Poll::Ready(Ok(piece.filled().len()))
}
