//! A client connection as pingora wants it: our own accept loop hands these to the proxy.
//! It buffers writes, remembers who is at the other end, looks for the HTTP/2 preface, and limits how long a request head may take.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID, UniqueIDType,
};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::forwarded::Connection;
use super::wire::PREFACE;

/// Head and start of a body leave in one packet.
const WRITE_BUFFER: usize = 8 * 1024;

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
        PerConnection { connection: Connection { peer, local, secure: false }, phase: Arc::default() }
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

    fn now(&self) -> u32 {
        self.phase.load(Ordering::Relaxed)
    }
}

/// What travels with each request of the connection.
#[derive(Clone, Debug)]
pub struct PerConnection {
    pub connection: Connection,
    pub phase: Arc<HeadPhase>,
}

/// A plain TCP connection from a client.
#[derive(Debug)]
pub struct ClientStream {
    inner: BufWriter<TcpStream>,
    /// Bytes that were read before this stream was made, or while looking for the HTTP/2 preface; given out first.
    peeked: BytesMut,
    phase: Arc<HeadPhase>,
    header_timeout: Duration,
    /// Runs from the head's first byte (for the first request: from the accept) until the head was read.
    deadline: Option<(u32, Pin<Box<Sleep>>)>,
    socket: Arc<SocketDigest>,
    proxy: Arc<ProxyDigest>,
    established: TimingDigest,
}

impl ClientStream {
    /// Wraps a socket of which `peeked` was read already: the start of a request, or of HTTP/2.
    ///
    /// # Errors
    /// Never in practice: pingora's digest wants a response that cannot be built otherwise than with success.
    pub fn resume(tcp: TcpStream, about: &PerConnection, peeked: BytesMut, header_timeout: Duration) -> io::Result<ClientStream> {
        let socket = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Set once, before anybody else holds the digest, so it cannot be occupied.
        let _ = socket.peer_addr.set(Some(PeerAddr::Inet(about.connection.peer)));
        let head = ResponseHeader::build(200, Some(0)).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(ClientStream {
            inner: BufWriter::with_capacity(WRITE_BUFFER, tcp),
            peeked,
            phase: about.phase.clone(),
            header_timeout,
            deadline: Some((about.phase.now(), Box::pin(tokio::time::sleep(header_timeout)))),
            socket: Arc::new(socket),
            proxy: Arc::new(ProxyDigest::new(Box::new(head), Some(Box::new(about.clone())))),
            established: TimingDigest { established_ts: std::time::SystemTime::now(), ..TimingDigest::default() },
        })
    }

    /// The socket, and what nobody read of what was given to [`ClientStream::resume`].
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.inner.into_inner(), self.peeked)
    }

    /// Fails the read when the head takes too long. Between requests no deadline runs: pingora's keep-alive limit does.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> Result<(), io::Error> {
        let phase = self.phase.now();
        match &mut self.deadline {
            Some((armed, deadline)) if *armed == phase => match deadline.as_mut().poll(cx) {
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

    /// Bytes arrived: the first ones of a head start its deadline.
    fn bytes_arrived(&mut self) {
        let phase = self.phase.now();
        let armed = self.deadline.as_ref().is_some_and(|(armed, _)| *armed == phase);
        if phase.is_multiple_of(2) && !armed {
            self.deadline = Some((phase, Box::pin(tokio::time::sleep(self.header_timeout))));
        }
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
            Poll::Ready(Ok(())) => {
                if buf.filled().len() > before {
                    self.bytes_arrived();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match self.check_deadline(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
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
        let limit = self.header_timeout;
        let mut seen = std::mem::take(&mut self.peeked);
        while seen.len() < buf.len() && PREFACE.starts_with(&seen) {
            let mut chunk = [0_u8; 24];
            let wanted = (buf.len() - seen.len()).min(chunk.len());
            let count = tokio::time::timeout(limit, self.inner.read(&mut chunk[..wanted]))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the client sent nothing"))??;
            if count == 0 {
                break;
            }
            seen.extend_from_slice(&chunk[..count]);
        }
        let is_preface = seen.len() >= buf.len() && seen.starts_with(PREFACE);
        if is_preface {
            // HTTP/2 has its own idle limit; the head deadline is for HTTP/1.
            self.phase.done();
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
        self.inner.get_ref().as_raw_fd()
    }
}

impl Ssl for ClientStream {}

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
