//! Who the client really is, and what we tell the upstream of it: X-Forwarded-*, Forwarded (RFC 7239), X-Request-Id.
//! Nothing of it is believed unless the peer is in `trusted-proxies`; what we send is always set by us.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

use super::handshake::ClientCertificate;
use crate::config::Auth;

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
pub const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's certificate, verified here (RFC 9440, 2.1), and its subject as text.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
pub const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");

/// The headers of this family that we set ourselves.
const FAMILY: [HeaderName; 10] = [
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PREFIX,
    X_REAL_IP,
    X_REQUEST_ID,
    FORWARDED,
    CLIENT_CERT,
    X_CLIENT_CERT_SUBJECT,
];

/// A chain of proxies longer than this is cut at its far end; it is text that strangers wrote.
const LONGEST_CHAIN: usize = 32;

/// What the listener knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// TLS was terminated here.
    pub secure: bool,
}

/// What is known of a request's way to us, after trust was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The first address from our side that is not a trusted proxy.
    pub client: IpAddr,
    /// The peer is one of the proxies in front of us.
    pub trusted: bool,
    pub secure: bool,
    /// The port that the client connected to, as far as we know.
    pub port: u16,
    /// The host that the client asked for, as far as we know. Routing goes by the request's own host.
    pub host: String,
    /// `X-Forwarded-For` for the upstream: the believed chain and the peer.
    pub chain: String,
    /// `Forwarded` for the upstream.
    pub forwarded: String,
    pub request_id: String,
    /// Who the client proved to be by a certificate.
    pub certificate: Option<ClientCertificate>,
}

impl Origin {
    /// The client with its port, which is known only where the client itself is our peer.
    pub fn source(&self, connection: &Connection) -> SocketAddr {
        let itself = connection.peer.ip().to_canonical() == self.client;
        SocketAddr::new(self.client, if itself { connection.peer.port() } else { 0 })
    }
}

/// Decides who the client is and writes the chains for the upstream. `host` is what the client asked for, `fresh_id` is used
/// unless a trusted peer brought an id.
pub fn origin(connection: &Connection, headers: &HeaderMap, trusted: &[IpNet], host: &str, fresh_id: String) -> Origin {
    let peer = connection.peer.ip().to_canonical();
    let own_proto = if connection.secure { "https" } else { "http" };
    if !is_trusted(peer, trusted) {
        return Origin {
            client: peer,
            trusted: false,
            secure: connection.secure,
            port: connection.local.port(),
            host: host.to_owned(),
            chain: text(peer),
            forwarded: element(peer, host, own_proto),
            request_id: fresh_id,
            certificate: None,
        };
    }
    let believed = believed_chain(headers);
    let client = believed.iter().rev().copied().find(|address| !is_trusted(*address, trusted)).or(believed.first().copied());
    let secure = believed_proto(headers).map_or(connection.secure, |proto| proto == "https");
    let mut chain: Vec<String> = believed.iter().map(IpAddr::to_string).collect();
    chain.push(peer.to_string());
    let proto = if secure { "https" } else { "http" };
    let mut elements: Vec<String> = believed.iter().map(|address| format!("for={}", node(*address))).collect();
    elements.push(element(peer, host, proto));
    Origin {
        client: client.unwrap_or(peer),
        trusted: true,
        secure,
        port: believed_port(headers).unwrap_or(if secure != connection.secure { default_port(secure) } else { connection.local.port() }),
        host: believed_host(headers).unwrap_or_else(|| host.to_owned()),
        chain: chain.join(", "),
        forwarded: elements.join(", "),
        request_id: believed_id(headers).unwrap_or(fresh_id),
        certificate: None,
    }
}

/// The fields that tell the upstream where the request came from, one call each.
pub fn each(origin: &Origin, prefix: Option<&str>, mut set: impl FnMut(HeaderName, &str)) {
    set(X_FORWARDED_FOR, &origin.chain);
    // Of a stranger the chain is the client alone.
    if origin.trusted {
        set(X_REAL_IP, &origin.client.to_string())
    } else {
        set(X_REAL_IP, &origin.chain)
    }
    set(X_FORWARDED_PROTO, if origin.secure { "https" } else { "http" });
    set(X_FORWARDED_PORT, itoa::Buffer::new().format(origin.port));
    set(X_FORWARDED_HOST, &origin.host);
    set(FORWARDED, &origin.forwarded);
    set(X_REQUEST_ID, &origin.request_id);
    if let Some(prefix) = prefix {
        set(X_FORWARDED_PREFIX, prefix);
    }
    if let Some(certificate) = &origin.certificate {
        set(CLIENT_CERT, &certificate.encoded);
        set(X_CLIENT_CERT_SUBJECT, &certificate.subject);
    }
}

/// May this header of a request not go on as it came? So it is with what we set ourselves, with what only we may say of whoever signed
/// in (`ours`), and of strangers with everything that claims to be from a proxy. Underscores count as hyphens, because many upstreams
/// read them so.
pub fn is_replaced(name: &HeaderName, trusted: bool, ours: &Auth) -> bool {
    const CLAIMS: &str = "x-forwarded-";
    // Not even a trusted proxy says who signed in: it may pass on what a stranger sent.
    if ours.headers().any(|own| own.as_str().len() == name.as_str().len() && begins(name.as_str(), own.as_str())) {
        return true;
    }
    let name = name.as_str();
    // Every other name differs in its first letters.
    if !name.starts_with(['x', 'f', 'c']) {
        return false;
    }
    FAMILY.iter().any(|own| own.as_str().len() == name.len() && begins(name, own.as_str())) || (!trusted && begins(name, CLAIMS))
}

/// Does `name` begin with `with`, a name in lower case, in any spelling that upstreams take for it?
fn begins(name: &str, with: &str) -> bool {
    let same = |(sent, own): (u8, u8)| sent == own || (matches!(sent, b'_' | b'-') && matches!(own, b'-' | b'_'));
    name.len() >= with.len() && name.bytes().zip(with.bytes()).all(same)
}

/// Is `address` one of the proxies in front of us?
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// A request id from 128 random bits: 32 hex digits.
pub fn request_id(seed: u128) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    // By hand: formatting costs more than all of the routing.
    seed.to_be_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// The addresses of `X-Forwarded-For`, else of `Forwarded`, far end first. An entry that is no address ends the belief:
/// what stands left of it could have been written by anybody.
fn believed_chain(headers: &HeaderMap) -> Vec<IpAddr> {
    let mut chain: Vec<IpAddr> = Vec::new();
    let (name, forwarded) = if headers.contains_key(X_FORWARDED_FOR) { (X_FORWARDED_FOR, false) } else { (FORWARDED, true) };
    for line in headers.get_all(name).iter() {
        let Ok(line) = line.to_str() else {
            chain.clear();
            continue;
        };
        for entry in line.split(',') {
            let text = if forwarded { parameter(entry, "for") } else { Some(entry.trim().to_owned()) };
            match text.as_deref().and_then(parse_node) {
                Some(address) => chain.push(address),
                None => chain.clear(),
            }
        }
    }
    chain.split_off(chain.len().saturating_sub(LONGEST_CHAIN))
}

fn believed_proto(headers: &HeaderMap) -> Option<&'static str> {
    let last = |name: HeaderName| headers.get_all(name).iter().next_back().and_then(|value| value.to_str().ok());
    let text = match last(X_FORWARDED_PROTO) {
        Some(line) => line.rsplit(',').next().unwrap_or("").trim().to_owned(),
        None => parameter(last(FORWARDED)?.rsplit(',').next().unwrap_or(""), "proto")?,
    };
    match text.to_ascii_lowercase().as_str() {
        "https" | "wss" => Some("https"),
        "http" | "ws" => Some("http"),
        _ => None,
    }
}

fn believed_host(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(X_FORWARDED_HOST)?.to_str().ok()?.split(',').next().unwrap_or("").trim();
    is_host(text).then(|| text.to_owned())
}

fn believed_port(headers: &HeaderMap) -> Option<u16> {
    headers.get(X_FORWARDED_PORT)?.to_str().ok()?.trim().parse().ok().filter(|port| *port != 0)
}

fn believed_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let fine = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    fine.then(|| text.to_owned())
}

/// The value of `name=` in one Forwarded element, without its quotes.
fn parameter(element: &str, name: &str) -> Option<String> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`: an address with or without port.
fn parse_node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(inside, _)| inside);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// An address as people write it.
fn text(address: IpAddr) -> String {
    let IpAddr::V4(address) = address else { return address.to_string() };
    let mut text = String::with_capacity(15);
    for (index, part) in address.octets().into_iter().enumerate() {
        if index > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(part));
    }
    text
}

/// An address as RFC 7239 section 6 writes it.
fn node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => text(address),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    }
}

/// RFC 3986 host characters only.
fn is_host(text: &str) -> bool {
    let known = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%' | b'!' | b'$' | b'&'..=b'+' | b'=')
    };
    (1..=255).contains(&text.len()) && text.bytes().all(known)
}

fn element(peer: IpAddr, host: &str, proto: &str) -> String {
    // The host is the client's text: nothing of it may end the quoted string.
    let node = node(peer);
    match is_host(host) {
        true => ["for=", &node, ";host=\"", host, "\";proto=", proto].concat(),
        false => ["for=", &node, ";proto=", proto].concat(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Option<HeaderValue> {
        HeaderValue::from_str(text).ok()
    }

    fn connection(peer: &str) -> Connection {
        Connection { peer: peer.parse().unwrap(), local: "10.0.0.1:8080".parse().unwrap(), secure: false }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, text) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(text).unwrap());
        }
        map
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
    }

    #[test]
    fn a_stranger_is_believed_nothing() {
        let sent = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=9.9.9.9;proto=https"),
            ("x-request-id", "mine"),
            ("x-forwarded-port", "443"),
        ]);
        let origin = origin(&connection("203.0.113.7:5000"), &sent, &trusted(), "a.test", "fresh".into());
        assert_eq!(origin.client, "203.0.113.7".parse::<IpAddr>().unwrap());
        assert_eq!((origin.secure, origin.port), (false, 8080));
        assert_eq!(origin.chain, "203.0.113.7");
        assert_eq!(origin.forwarded, "for=203.0.113.7;host=\"a.test\";proto=http");
        assert_eq!(origin.request_id, "fresh");
    }

    #[test]
    fn a_trusted_peer_is_believed_up_to_the_first_stranger() {
        // X-Forwarded-For as sent, client that we see, chain that goes on
        let table = [
            ("198.51.100.1", "198.51.100.1", "198.51.100.1, 10.0.0.9"),
            ("6.6.6.6, 198.51.100.1, 10.1.1.1", "198.51.100.1", "6.6.6.6, 198.51.100.1, 10.1.1.1, 10.0.0.9"),
            ("10.2.2.2, 10.1.1.1", "10.2.2.2", "10.2.2.2, 10.1.1.1, 10.0.0.9"),
            ("nonsense, 198.51.100.1", "198.51.100.1", "198.51.100.1, 10.0.0.9"),
            ("198.51.100.1, nonsense", "10.0.0.9", "10.0.0.9"),
            ("[2001:db8::1]:443", "2001:db8::1", "2001:db8::1, 10.0.0.9"),
            ("198.51.100.1:1234", "198.51.100.1", "198.51.100.1, 10.0.0.9"),
            ("", "10.0.0.9", "10.0.0.9"),
        ];
        for (sent, client, chain) in table {
            let origin = origin(&connection("10.0.0.9:1"), &headers(&[("x-forwarded-for", sent)]), &trusted(), "a.test", "id".into());
            assert_eq!(origin.client, client.parse::<IpAddr>().unwrap(), "{sent}");
            assert_eq!(origin.chain, chain, "{sent}");
        }
    }

    #[test]
    fn forwarded_is_read_where_there_is_no_x_forwarded_for() {
        let sent = headers(&[("forwarded", "for=\"[2001:db8::5]:80\";proto=https, for=10.3.3.3")]);
        let origin = origin(&connection("10.0.0.9:1"), &sent, &trusted(), "a.test", "id".into());
        assert_eq!(origin.client, "2001:db8::5".parse::<IpAddr>().unwrap());
        assert_eq!(origin.forwarded, "for=\"[2001:db8::5]\", for=10.3.3.3, for=10.0.0.9;host=\"a.test\";proto=http");
    }

    #[test]
    fn proto_port_and_id_of_a_trusted_peer() {
        let sent = headers(&[("x-forwarded-host", "public.test"), ("x-forwarded-proto", "https")]);
        assert_eq!(origin(&connection("10.0.0.9:1"), &sent, &trusted(), "a.test", "id".into()).host, "public.test");
        assert_eq!(origin(&connection("203.0.113.7:1"), &sent, &trusted(), "a.test", "id".into()).host, "a.test");
        let sent = headers(&[("x-forwarded-proto", "https"), ("x-request-id", "abc-1")]);
        let seen = origin(&connection("10.0.0.9:1"), &sent, &trusted(), "a.test", "id".into());
        assert_eq!((seen.secure, seen.port, seen.request_id.as_str()), (true, 443, "abc-1"));
        let sent = headers(&[("x-forwarded-proto", "gopher"), ("x-request-id", "bad id"), ("x-forwarded-port", "99999")]);
        let seen = origin(&connection("10.0.0.9:1"), &sent, &trusted(), "a.test", "id".into());
        assert_eq!((seen.secure, seen.port, seen.request_id.as_str()), (false, 8080, "id"));
    }

    #[test]
    fn claims_of_strangers_stay_behind_in_every_spelling() {
        // header, goes on from a stranger, goes on from a trusted proxy
        let table = [
            ("x-forwarded-for", false, false),
            ("x_forwarded_for", false, false),
            ("x-forwarded_proto", false, false),
            ("x_real_ip", false, false),
            ("x-request-id", false, false),
            ("x-forwarded-user", false, false),
            ("x_forwarded_user", false, false),
            ("x-forwarded_groups", false, false),
            ("x_forwarded-email", false, false),
            ("x-forwarded-users", false, true),
            ("x-remote", false, false),
            ("x_remote", false, false),
            ("x-forward", true, true),
            ("authorization", true, true),
        ];
        let auth = Auth { token_header: Some(HeaderName::from_static("x-remote")), ..Auth::default() };
        for (name, stranger, proxy) in table {
            let name = HeaderName::from_static(name);
            assert_eq!((!is_replaced(&name, false, &auth), !is_replaced(&name, true, &auth)), (stranger, proxy), "{name}");
        }
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        let seen = origin(&connection("[::ffff:10.0.0.9]:1"), &headers(&[("x-forwarded-for", "1.2.3.4")]), &trusted(), "a", "id".into());
        assert_eq!(seen.client, "1.2.3.4".parse::<IpAddr>().unwrap());
    }

    proptest! {
        #[test]
        fn any_header_text_is_survived_and_stays_one_line(text in "[ -~]{0,300}", host in "[ -~]{0,80}") {
            let sent = headers(&[("x-forwarded-for", &text), ("forwarded", &text), ("x-forwarded-proto", &text), ("x-request-id", &text)]);
            let seen = origin(&connection("10.0.0.9:1"), &sent, &trusted(), &host, "id".into());
            prop_assert!(value(&seen.chain).is_some());
            prop_assert!(value(&seen.forwarded).is_some());
            prop_assert!(value(&seen.request_id).is_some());
        }

        #[test]
        fn a_stranger_never_chooses_its_own_address(text in "[0-9a-f.:, ]{0,60}") {
            let sent = headers(&[("x-forwarded-for", &text), ("forwarded", &text)]);
            let seen = origin(&connection("203.0.113.7:5000"), &sent, &trusted(), "a.test", "id".into());
            prop_assert_eq!(seen.client, "203.0.113.7".parse::<IpAddr>().unwrap());
        }
    }
}
