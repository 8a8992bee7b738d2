//! One question to a running edge: an HTTP GET of its admin listener, bounded in time and size.
//! The standard library does: one request, one answer, `Connection: close`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Ten thousand tasks have about 10 MB.
const MAX_ANSWER: usize = 128 << 20;

/// Asks `address` for `path`, all within `limit`. Returns status and body.
pub(super) fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, Vec<u8>)> {
    let address = dialled(address);
    let end = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(limit))?;
    // In one piece: whoever answers early and closes would otherwise reset what is still on its way.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("no whole answer within {limit:?}")));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("the answer has more than {MAX_ANSWER} bytes")));
        }
    }
    parts(&answer).ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// A listener on every interface is asked on loopback.
fn dialled(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Status and body; `None` for what is not a whole HTTP/1 answer.
fn parts(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let body = &answer[end + 4..];
    let length = lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let whole = length.is_none_or(|(_, length)| length.trim().parse() == Ok(body.len()));
    whole.then(|| (status, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answered(answer: &'static [u8]) -> io::Result<(u16, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let read = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(answer).unwrap();
            read
        });
        let result = get(address, "/x", Duration::from_secs(5));
        assert!(server.join().unwrap() > 0);
        result
    }

    #[test]
    fn an_answer_is_status_and_body() {
        assert_eq!(answered(b"HTTP/1.0 503 No\r\ncontent-length: 2\r\n\r\nhi").unwrap(), (503, b"hi".to_vec()));
        assert_eq!(answered(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n{}").unwrap(), (200, b"{}".to_vec()));
        for broken in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"] {
            assert_eq!(answered(broken).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }

    #[test]
    fn silence_ends_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let began = Instant::now();
        assert!(get(listener.local_addr().unwrap(), "/", Duration::from_millis(100)).is_err());
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn every_interface_means_this_machine() {
        for (given, wanted) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")] {
            assert_eq!(dialled(given.parse().unwrap()), wanted.parse().unwrap());
        }
    }
}
