//! A client's socket: bare, or with TLS on it. Everything above reads and writes without knowing which.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// One client's socket.
#[derive(Debug)]
pub enum Socket {
    Plain(TcpStream),
    /// Boxed: it is ten times as large.
    Secure(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// The socket below TLS.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Socket::Plain(tcp) => tcp,
            Socket::Secure(tls) => tls.get_ref().0,
        }
    }

    /// Was HTTP/2 agreed on while the connection was secured (ALPN, RFC 7301)?
    pub(super) fn agreed_on_http2(&self) -> bool {
        matches!(self, Socket::Secure(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2"))
    }

    /// Says goodbye as TLS wants it (close_notify, RFC 8446, 6.1), as far as the kernel takes it at once: nobody waits for it.
    pub(super) fn say_goodbye(&mut self) {
        if let Socket::Secure(tls) = self {
            let (tcp, session) = tls.get_mut();
            session.send_close_notify();
            let mut out = Vec::new();
            if session.write_tls(&mut out).is_ok() && !out.is_empty() {
                // A client that takes nothing any more is not told.
                _ = tcp.try_write(&out);
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Socket::Secure(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Socket::Secure(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Socket::Secure(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Socket::Secure(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Secure(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}
