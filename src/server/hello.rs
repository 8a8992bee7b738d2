//! The first bytes of a connection to an HTTPS listener: a ClientHello, a request in clear, or neither.
//! They are kept as they came, so that a connection that is not ours to decrypt can be passed on whole.

use std::io;

use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A ClientHello is far smaller; larger ones are refused.
const LONGEST: usize = 64 * 1024;
/// Bytes that are asked for at once.
const READ: usize = 4096;
/// The type of a TLS record that carries a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;

const IN_CLEAR: &str = "This port speaks HTTPS: the address begins with https://, not http://.\n";

/// What a connection began with.
pub(super) enum First {
    Hello {
        accepted: Box<Accepted>,
        /// As it came.
        bytes: BytesMut,
    },
    /// Something else, and whether it looks like a request in clear.
    Other { request: bool },
    /// A ClientHello that cannot be answered; the alert that says so.
    Refused { why: rustls::Error, alert: Vec<u8> },
}

/// Reads the first bytes, of which `bytes` were read already. The caller bounds the time.
pub(super) async fn read(tcp: &mut TcpStream, mut bytes: BytesMut) -> io::Result<First> {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        while fed < bytes.len() {
            if bytes[0] != HANDSHAKE {
                return Ok(First::Other { request: is_request(&bytes) });
            }
            fed += acceptor.read_tls(&mut &bytes[fed..])?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(First::Hello { accepted: Box::new(accepted), bytes }),
            Ok(None) => {}
            Err((why, mut alert)) => {
                let mut out = Vec::new();
                alert.write_all(&mut out)?;
                return Ok(First::Refused { why, alert: out });
            }
        }
        if bytes.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
        bytes.reserve(READ);
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Requests begin with a method: capital letters.
fn is_request(bytes: &[u8]) -> bool {
    bytes.iter().take(3).all(u8::is_ascii_uppercase)
}

/// Says to a client that speaks HTTP in clear what is wrong, and how it is right.
pub(super) async fn refuse_clear_text(tcp: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {}\r\n\r\n{IN_CLEAR}", IN_CLEAR.len());
    tcp.write_all(answer.as_bytes()).await?;
    tcp.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_noise() {
        for (bytes, wanted) in [(&b"GET / HTTP/1.1"[..], true), (b"PRI * HTTP/2.0", true), (b"\x80\x2e\x01", false), (b"get /", false)] {
            assert_eq!(is_request(bytes), wanted);
        }
    }
}
