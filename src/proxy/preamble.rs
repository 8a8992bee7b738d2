//! The PROXY header (HAProxy's proxy-protocol.txt, versions 1 and 2) that a load balancer in front writes before anything
//! else of a connection: read in front of a client's bytes, and written in front of an upstream's.

use std::io;
use std::net::SocketAddr;

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::upstream::ProxyVersion;

/// Larger headers are refused. Addresses need at most 107 bytes; the rest are fields that we do not read.
const LARGEST: usize = 4096;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes that are asked for at once; most headers come with one read.
const CHUNK: usize = 512;

/// What stood before a client's first bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Preamble {
    pub named: Named,
    /// Bytes that were read past the header: the client's own.
    pub unread: Vec<u8>,
}

/// What a header says of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// There was no header.
    Nothing,
    /// LOCAL or UNKNOWN: the connection is the load balancer's own.
    Itself,
    /// The client, and what it connected to.
    Client { source: SocketAddr, destination: SocketAddr },
}

/// Reads the header off `stream`. The caller bounds the time.
///
/// # Errors
/// When the connection ends or fails before a whole header, and of kind `InvalidData` for a malformed or too large one.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Preamble> {
    let mut bytes = Vec::with_capacity(CHUNK);
    loop {
        if let Some((named, length)) = parse(&bytes)? {
            return Ok(Preamble { named, unread: bytes.split_off(length) });
        }
        if bytes.len() >= LARGEST {
            return Err(invalid("the PROXY header is too large"));
        }
        let room = (LARGEST - bytes.len()).min(CHUNK);
        if stream.take(room as u64).read_buf(&mut bytes).await? == 0 {
            return match bytes.is_empty() {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Err(invalid("the connection ended within the PROXY header")),
            };
        }
    }
}

/// What the header says and its length; `None` where more bytes are needed to know.
fn parse(bytes: &[u8]) -> io::Result<Option<(Named, usize)>> {
    if !is_begun(bytes, V1) && !is_begun(bytes, V2) {
        return Ok(Some((Named::Nothing, 0)));
    }
    if bytes.starts_with(V2) && bytes.len() >= 16 && usize::from(u16::from_be_bytes([bytes[14], bytes[15]])) + 16 > LARGEST {
        return Err(invalid("the PROXY header is too large"));
    }
    let config = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };
    match ProxyHeader::parse(bytes, config) {
        Ok((header, length)) => match header.proxied_address() {
            None => Ok(Some((Named::Itself, length))),
            Some(ProxiedAddress { protocol: Protocol::Stream, source, destination }) => {
                Ok(Some((Named::Client { source: *source, destination: *destination }, length)))
            }
            Some(_) => Err(invalid("the PROXY header is not about TCP")),
        },
        Err(proxy_header::Error::BufferTooShort) => Ok(None),
        Err(_) => Err(invalid("the PROXY header is malformed")),
    }
}

/// Could `bytes` begin with `signature`, as far as they go?
fn is_begun(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.starts_with(signature) || signature.starts_with(bytes)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The header that tells an upstream of `source` and `destination`. Both are written in one family.
pub fn write(version: ProxyVersion, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (mut source, mut destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() != destination.is_ipv4() {
        (source, destination) = (mapped(source), mapped(destination));
    }
    let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
    let mut bytes = Vec::with_capacity(108);
    let written = match version {
        ProxyVersion::V1 => header.encode_v1(&mut bytes),
        ProxyVersion::V2 => header.encode_v2(&mut bytes),
    };
    debug_assert!(written.is_ok(), "two addresses of one family, TCP, no fields: nothing that cannot be written");
    bytes
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        std::net::IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        std::net::IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(source: &str, destination: &str) -> Named {
        Named::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [V2, &[0x20 | command, family], &length, payload].concat()
    }

    const V4_ADDRESSES: [u8; 12] = [1, 2, 3, 4, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    #[test]
    fn headers_are_read_and_what_follows_is_the_clients() {
        let v6: Vec<u8> = [[0_u8; 15].as_slice(), &[1], &[0; 15], &[2], &[0, 7, 0, 9]].concat();
        // what comes (followed by "GET /"), what it names
        let table = [
            (b"PROXY TCP4 1.2.3.4 10.0.0.1 4660 80\r\n".to_vec(), client("1.2.3.4:4660", "10.0.0.1:80")),
            (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), client("[2001:db8::1]:1", "[::1]:2")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Named::Itself),
            (b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n".to_vec(), Named::Itself),
            (v2(1, 0x11, &V4_ADDRESSES), client("1.2.3.4:4660", "10.0.0.1:80")),
            (v2(1, 0x11, &[V4_ADDRESSES.as_slice(), &[0xEE, 0, 1, 9]].concat()), client("1.2.3.4:4660", "10.0.0.1:80")),
            (v2(1, 0x21, &v6), client("[::1]:7", "[::2]:9")),
            (v2(0, 0x11, &V4_ADDRESSES), Named::Itself),
            (v2(0, 0x00, &[]), Named::Itself),
            (v2(1, 0x31, &[0; 216]), Named::Itself),
            (Vec::new(), Named::Nothing),
        ];
        for (header, named) in table {
            let bytes = [header.as_slice(), b"GET /"].concat();
            assert_eq!(parse(&bytes).unwrap(), Some((named, header.len())), "{header:?}");
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]).unwrap(), None, "{header:?} up to {cut}");
            }
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        let table = [
            b"PROXY TCP4 1.2.3.4 10.0.0.1 4660 99999\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
            b"PROXY TCP9 1.2.3.4 10.0.0.1 4660 80\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 10.0.0.1 4660 80\rX".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
            v2(2, 0x11, &V4_ADDRESSES),
            v2(1, 0x12, &V4_ADDRESSES),
            v2(1, 0x55, &V4_ADDRESSES),
            v2(1, 0x11, &[0; 5]).into_iter().chain([0; 20]).collect(),
            v2(1, 0x11, &vec![0; 4096]),
        ];
        for bytes in table {
            assert!(parse(&bytes).is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[tokio::test]
    async fn it_may_come_in_pieces_and_ends_with_an_answer() {
        let mut pieces = b"PRO".chain(&b"XY TCP4 1.2.3.4 10.0.0.1 4660"[..]).chain(&b" 80\r"[..]).chain(&b"\nPOST"[..]);
        let seen = read(&mut pieces).await.unwrap();
        assert_eq!(seen, Preamble { named: client("1.2.3.4:4660", "10.0.0.1:80"), unread: b"POST".to_vec() });
        assert_eq!(read(&mut &b"PROXY TCP4"[..]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&mut &b""[..]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let seen = read(&mut &b"GET / HTTP/1.1"[..]).await.unwrap();
        assert_eq!(seen, Preamble { named: Named::Nothing, unread: b"GET / HTTP/1.1".to_vec() });
    }

    #[test]
    fn what_is_written_is_read_back() {
        // client, destination, as they are read back
        let table = [
            ("1.2.3.4:5", "10.0.0.1:80", client("1.2.3.4:5", "10.0.0.1:80")),
            ("[::ffff:1.2.3.4]:5", "10.0.0.1:80", client("1.2.3.4:5", "10.0.0.1:80")),
            ("[2001:db8::1]:5", "10.0.0.1:80", client("[2001:db8::1]:5", "[::ffff:10.0.0.1]:80")),
            ("1.2.3.4:0", "[::1]:80", client("[::ffff:1.2.3.4]:0", "[::1]:80")),
        ];
        for (source, destination, named) in table {
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let bytes = write(version, source.parse().unwrap(), destination.parse().unwrap());
                assert_eq!(parse(&bytes).unwrap(), Some((named, bytes.len())), "{source} {version:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(begin in 0_usize..3, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [[&b""[..], V1, V2][begin], &bytes].concat();
            if let Ok(Some((_, length))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
