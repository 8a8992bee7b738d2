//! A client connection as pingora wants it: our own accept loop hands these to the proxy.
//! It buffers writes, remembers who is at the other end, looks for the HTTP/2 preface, and limits how long a request head may take.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::protocols::ALPN;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Interval, MissedTickBehavior, Sleep, interval};

use super::forwarded::Connection;
use super::frames::Frames;
use super::handshake::Handshake;
use super::socket::Socket;
use super::wire::PREFACE;

/// Head and start of a body leave in one packet.
const WRITE_BUFFER: usize = 8 * 1024;
/// How often a half-closed connection is looked at whether it is still there.
const LOOK: Duration = Duration::from_secs(1);
/// The first bytes of a body may come along with the head, so a little more than a head is read before it is too large.
const BESIDE_HEAD: usize = 16 * 1024;
const TOO_LARGE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Is the connection reading a request head? Even: a head is awaited; odd: it was read and the request is being served.
/// Counting, not a flag, so that a deadline of one head never ends the next.
#[derive(Debug, Default)]
pub struct HeadPhase {
    phase: AtomicU32,
    /// How many requests the connection has carried.
    requests: AtomicU32,
}

impl PerConnection {
    /// A client at `peer`, accepted on `local`.
    pub fn accepted(peer: SocketAddr, local: SocketAddr) -> PerConnection {
        PerConnection { connection: Connection { peer, local, secure: false }, phase: Arc::default(), handshake: None }
    }
}

impl HeadPhase {
    /// The head was read: bodies may take as long as the route's timeouts allow.
    pub fn done(&self) {
        self.phase.fetch_or(1, Ordering::Relaxed);
    }

    /// A request begins: the number that it has on this connection, from 1.
    pub fn count(&self) -> u32 {
        self.requests.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The request is finished, the next one's head is awaited.
    pub fn awaited(&self) {
        self.phase.fetch_add(self.now() & 1, Ordering::Relaxed);
    }

    /// Requests that were begun on the connection.
    pub fn served(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    fn now(&self) -> u32 {
        self.phase.load(Ordering::Relaxed)
    }
}

/// What travels with each request of the connection.
#[derive(Clone, Debug)]
pub struct PerConnection {
    pub connection: Connection,
    pub phase: Arc<HeadPhase>,
    /// Where TLS was terminated here.
    pub handshake: Option<Arc<Handshake>>,
}

/// What a client may take for the head of a request.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub time: Duration,
    pub bytes: usize,
    /// How long a request goes on once its client has shut its writing side down.
    pub half_close: Duration,
}

/// A connection from a client, in the clear or secured.
#[derive(Debug)]
pub struct ClientStream {
    inner: BufWriter<Socket>,
    /// Bytes that were read before this stream was made, or while looking for the HTTP/2 preface; given out first.
    peeked: BytesMut,
    phase: Arc<HeadPhase>,
    limits: HeadLimits,
    /// Bytes since the present head of HTTP/1 was awaited, and which head that is.
    head_bytes: (u32, usize),
    /// Once the client speaks HTTP/2.
    frames: Option<Frames>,
    /// Somebody waits for a place: whoever is idle hears of it, the longest first.
    crowd: Arc<Notify>,
    yields: Option<Pin<Box<OwnedNotified>>>,
    /// Runs once the client has shut its writing side down, while its request is served.
    half_closed: Option<(Interval, Instant)>,
    /// Runs from the head's first byte (for the first request: from the accept) until the head was read.
    deadline: Option<(u32, Pin<Box<Sleep>>)>,
    socket: Arc<SocketDigest>,
    proxy: Arc<ProxyDigest>,
    established: TimingDigest,
}

impl ClientStream {
    /// Wraps a socket of which `peeked` was read already: the start of a request, or of HTTP/2. The time for a head starts now.
    /// Between two requests it ends itself when `crowd` is notified.
    ///
    /// # Errors
    /// Never in practice: pingora's digest wants a response that cannot be built otherwise than with success.
    pub fn resume(
        socket: Socket,
        about: &PerConnection,
        peeked: BytesMut,
        limits: HeadLimits,
        crowd: Arc<Notify>,
    ) -> io::Result<ClientStream> {
        let digest = SocketDigest::from_raw_fd(socket.tcp().as_raw_fd());
        // Set once, before anybody else holds the digest, so it cannot be occupied.
        let _ = digest.peer_addr.set(Some(PeerAddr::Inet(about.connection.peer)));
        let head = ResponseHeader::build(200, Some(0)).map_err(|error| io::Error::other(error.to_string()))?;
        let mut stream = ClientStream {
            inner: BufWriter::with_capacity(WRITE_BUFFER, socket),
            peeked,
            phase: about.phase.clone(),
            limits,
            head_bytes: (0, 0),
            frames: None,
            crowd,
            yields: None,
            half_closed: None,
            deadline: Some((about.phase.now(), Box::pin(tokio::time::sleep(limits.time)))),
            socket: Arc::new(digest),
            proxy: Arc::new(ProxyDigest::new(Box::new(head), Some(Box::new(about.clone())))),
            established: TimingDigest { established_ts: std::time::SystemTime::now(), ..TimingDigest::default() },
        };
        if stream.peeked.starts_with(PREFACE) {
            let after = stream.peeked.split_off(PREFACE.len());
            stream.peeked.extend_from_slice(&after);
            stream.begin_http2(&after)?;
        }
        Ok(stream)
    }

    /// The preface was seen, and `after` behind it: from here on frames are counted.
    fn begin_http2(&mut self, after: &[u8]) -> io::Result<()> {
        self.phase.done();
        let mut frames = Frames::new(Instant::now());
        frames.pass(after, Instant::now()).map_err(io::Error::other)?;
        self.frames = Some(frames);
        // A head may have begun in what was read.
        self.deadline = self.awaited().map(|awaited| (awaited, Box::pin(tokio::time::sleep(self.limits.time))));
        Ok(())
    }

    /// The socket, and what nobody read of what was given to [`ClientStream::resume`].
    pub fn into_parts(self) -> (Socket, BytesMut) {
        (self.inner.into_inner(), self.peeked)
    }

    /// The head that is awaited now, if any: of HTTP/1 by the phase, of HTTP/2 by the frames.
    fn awaited(&self) -> Option<u32> {
        match &self.frames {
            Some(frames) => frames.awaited(),
            None => Some(self.phase.now()).filter(|phase| phase.is_multiple_of(2)),
        }
    }

    /// Fails the read when the head takes too long. Between requests no deadline runs: pingora's keep-alive limit does.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> Result<(), io::Error> {
        let awaited = self.awaited();
        match &mut self.deadline {
            Some((armed, deadline)) if Some(*armed) == awaited => match deadline.as_mut().poll(cx) {
                Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the request's head took too long")),
                Poll::Pending => Ok(()),
            },
            Some(_) => {
                self.deadline = None;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Bytes arrived: the first ones of a head start its deadline, and there is an end to its size.
    fn bytes_arrived(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(frames) = &mut self.frames {
            frames.pass(bytes, Instant::now()).map_err(|flood| {
                tracing::debug!(client = ?self.socket.peer_addr(), "{flood}: the connection is closed");
                io::Error::other(flood)
            })?;
        }
        let Some(awaited) = self.awaited() else { return Ok(()) };
        if self.deadline.as_ref().is_none_or(|(armed, _)| *armed != awaited) {
            self.deadline = Some((awaited, Box::pin(tokio::time::sleep(self.limits.time))));
        }
        let (of, seen) = self.head_bytes;
        self.head_bytes = (awaited, bytes.len() + if of == awaited { seen } else { 0 });
        if self.frames.is_none() && self.head_bytes.1 > 2 * self.limits.bytes + BESIDE_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's head is too large"));
        }
        Ok(())
    }

    /// A client may shut its writing side down after its request and must get its whole answer (RFC 9112, 9.6), which pingora
    /// would end here. So while it only probes whether the client is there (it then reads a single byte), a connection has not
    /// ended before it is gone in both directions.
    fn await_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let patience = self.limits.half_close;
        let (looks, since) = self.half_closed.get_or_insert_with(|| {
            let mut looks = interval(LOOK.min(patience.max(Duration::from_millis(1))));
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (looks, Instant::now())
        });
        while looks.poll_tick(cx).is_ready() {
            if since.elapsed() >= patience {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = SockRef::from(self.inner.get_ref().tcp()).take_error()? {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Pending
    }

    /// Is this a connection of HTTP/1 between two requests that is to make room for another?
    fn yields(&mut self, cx: &mut Context<'_>) -> bool {
        let idle = self.frames.is_none() && self.awaited().is_some_and(|awaited| awaited > 0 && self.head_bytes.0 != awaited);
        if !idle {
            // A notification that it has meanwhile passes on to the next.
            self.yields = None;
            return false;
        }
        let yields = self.yields.get_or_insert_with(|| Box::pin(self.crowd.clone().notified_owned()));
        yields.as_mut().poll(cx).is_ready()
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(count)), Some(frames)) = (&written, &mut self.frames) {
            frames.wrote(*count);
        }
        written
    }

    fn is_probe(&self, buf: &ReadBuf<'_>) -> bool {
        buf.remaining() == 1 && self.frames.is_none() && self.awaited().is_none()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.peeked.is_empty() {
            let count = self.peeked.len().min(buf.remaining());
            buf.put_slice(&self.peeked.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before => match self.is_probe(buf) {
                true => self.await_reset(cx),
                false => Poll::Ready(Ok(())),
            },
            Poll::Ready(Ok(())) => {
                let arrived = self.bytes_arrived(&buf.filled()[before..]);
                if arrived.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                    // Said where there is room to say it; the connection ends in any case.
                    let _ = Pin::new(&mut self.inner).poll_write(cx, TOO_LARGE);
                    let _ = Pin::new(&mut self.inner).poll_flush(cx);
                }
                Poll::Ready(arrived)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // As if the client had ended the connection.
            Poll::Pending if self.yields(cx) => Poll::Ready(Ok(())),
            Poll::Pending => match self.check_deadline(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(&mut self.inner).await {
            tracing::debug!(%error, "closing a client connection");
        }
    }
}

#[async_trait]
impl Peek for ClientStream {
    /// Reads until `buf` is full or the bytes differ from the HTTP/2 preface: a short HTTP/1 request must not wait for more.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let until = tokio::time::Instant::now() + self.limits.time;
        let mut seen = std::mem::take(&mut self.peeked);
        while seen.len() < buf.len() && PREFACE.starts_with(&seen) {
            let mut chunk = [0_u8; 24];
            let wanted = (buf.len() - seen.len()).min(chunk.len());
            let count = tokio::time::timeout_at(until, self.inner.read(&mut chunk[..wanted]))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client sent nothing"))??;
            if count == 0 {
                break;
            }
            seen.extend_from_slice(&chunk[..count]);
        }
        if seen.starts_with(PREFACE) && buf.len() == PREFACE.len() {
            self.begin_http2(&seen[PREFACE.len()..])?;
            buf.copy_from_slice(PREFACE);
        } else {
            buf.fill(0);
        }
        self.peeked = seen;
        Ok(true)
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.inner.get_ref().tcp().as_raw_fd()
    }
}

impl Ssl for ClientStream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.get_ref().agreed_on_http2().then_some(ALPN::H2)
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(self.established.clone())]
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.proxy.clone())
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}
