//! Does a name lead to us? Asked as authorities ask for HTTP-01, before one of them does: their failed validations are counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use hickory_net::{DnsError, NetError};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::challenge::{Challenges, PATH};
use super::failure::{Blame, Refusal};
use super::unverified;
use super::zone::asking;
use crate::diagnostic::brief;

const USER_AGENT: &str = concat!("skep/", env!("CARGO_PKG_VERSION"), " (self-probe)");
const AT_ONCE: usize = 16;
const RESOLVING: Duration = Duration::from_secs(10);
const CONNECTING: Duration = Duration::from_secs(5);
/// One answer, connection included.
const ANSWERING: Duration = Duration::from_secs(10);
/// All of one name: authorities give up earlier.
const WHOLE: Duration = Duration::from_secs(40);
/// As many as Let's Encrypt follows.
const REDIRECTS: usize = 10;
/// An answer is a line.
const LARGEST: usize = 4096;
/// More addresses of a name are not tried.
const ADDRESSES: usize = 8;

/// Asks names whether they lead here.
pub struct Probe {
    challenges: Arc<Challenges>,
    resolver: TokioResolver,
    port: u16,
    tls: TlsConnector,
}

impl Probe {
    /// The listeners answer from `challenges`; `servers` are asked for addresses, where there are none those of `/etc/resolv.conf`.
    ///
    /// # Errors
    /// There is no DNS server to ask.
    pub fn new(challenges: Arc<Challenges>, servers: &[SocketAddr], port: u16) -> Result<Probe, String> {
        let resolver = match servers {
            [] => TokioResolver::builder_tokio().and_then(|mut builder| {
                builder.options_mut().cache_size = 0;
                builder.options_mut().use_hosts_file = ResolveHosts::Never; // authorities do not see it either
                builder.build()
            }),
            servers => asking(servers, true),
        };
        let resolver = resolver.map_err(|error| format!("/etc/resolv.conf names no DNS server ({error}): set resolver in [dns]"))?;
        let tls = unverified::connector().map_err(|error| format!("TLS cannot be used: {error}"))?;
        Ok(Probe { challenges, resolver, port, tls })
    }

    /// Asks all `names` (no wildcards) at once. For an authority of the `public`, names with private addresses only are refused too.
    pub async fn ask(&self, names: &BTreeSet<String>, public: bool) -> BTreeMap<String, Result<(), Refusal>> {
        let asked: Vec<_> = names.iter().cloned().map(|name| self.named(name, public)).collect();
        futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await
    }

    async fn named(&self, name: String, public: bool) -> (String, Result<(), Refusal>) {
        let outcome = timeout(WHOLE, self.one(&name, public)).await;
        let late = || refusal("timeout", format!("asking {name} takes longer than {WHOLE:?}: check its DNS and the way here"));
        let outcome = outcome.unwrap_or_else(|_| Err(late()));
        (name, outcome)
    }

    async fn one(&self, name: &str, public: bool) -> Result<(), Refusal> {
        let addresses = self.addresses(name).await?;
        if public && addresses.iter().all(|address| !is_public(*address)) {
            let text = format!("{name} points to {}, which the internet cannot reach: point it to a public address", list(&addresses));
            return Err(refusal("private-address", format!("{text}, or prove it by DNS-01 (acme.challenge)")));
        }
        let (token, answer) = (random("skep-probe-"), random(""));
        let live = self.challenges.answer_http(&token, answer.clone());
        let outcome = self.follow(name, &format!("{PATH}{token}"), &answer, public).await;
        drop(live);
        outcome
    }

    /// The addresses of `name`, those of version 6 first, as authorities try them.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let mut absolute = Name::from_ascii(name).map_err(|error| refusal("dns", format!("{name} is not a name for DNS: {error}")))?;
        absolute.set_fqdn(true);
        let lookup = |kind| timeout(RESOLVING, self.resolver.lookup(absolute.clone(), kind));
        let mut found = Vec::new();
        let mut failed = None;
        let mut exists = false;
        for answer in <[_; 2]>::from(tokio::join!(lookup(RecordType::AAAA), lookup(RecordType::A))) {
            match answer {
                Ok(Ok(lookup)) => found.extend(lookup.answers().iter().filter_map(|answer| match &answer.data {
                    RData::A(four) => Some(IpAddr::V4(four.0)),
                    RData::AAAA(six) => Some(IpAddr::V6(six.0)),
                    _ => None,
                })),
                Ok(Err(error)) => match there_is_none(&error) {
                    Some(ResponseCode::NXDomain) => {}
                    Some(_) => exists = true,
                    None => failed = Some(error.to_string()),
                },
                Err(_) => failed = Some(format!("no answer within {RESOLVING:?}")),
            }
        }
        found.truncate(ADDRESSES);
        match (found.is_empty(), failed) {
            (false, _) => Ok(found),
            (true, Some(error)) => {
                Err(refusal("dns", format!("DNS gives no answer for {name} ({}): check the name servers of its zone", brief(&error))))
            }
            (true, None) if exists => {
                Err(refusal("no-address", format!("{name} has neither an A nor an AAAA record: add one that points to this machine")))
            }
            (true, None) => {
                Err(refusal("nxdomain", format!("{name} does not exist in DNS: add an A or AAAA record that points to this machine")))
            }
        }
    }

    /// Asks for `path` at `name`, and wherever that leads, until an answer decides.
    async fn follow(&self, name: &str, path: &str, expected: &str, public: bool) -> Result<(), Refusal> {
        let authority = if name.contains(':') { format!("[{name}]") } else { name.to_owned() };
        let mut place = Place { https: false, host: authority, port: self.port, path: path.to_owned() };
        for _ in 0..=REDIRECTS {
            let (address, status, headers, body) = self.fetch(&place, public).await?;
            if status == StatusCode::OK && body.trim_ascii() == expected.as_bytes() {
                return Ok(());
            }
            let Some(location) = headers.get(header::LOCATION).filter(|_| status.is_redirection()) else {
                return Err(refusal("elsewhere", somebody_else(name, address, status, &headers)));
            };
            let location = location.to_str().unwrap_or_default();
            place = place.redirected(location, self.port).map_err(|why| {
                refusal("redirect", format!("{name} redirects to {}, {why}: exempt {PATH} from the redirect", brief(location)))
            })?;
        }
        Err(refusal("redirect", format!("{name} leads over more than {REDIRECTS} redirects: exempt {PATH} from them")))
    }

    /// The answer of the first address that takes a connection. On behalf of an authority of the `public`, a redirect leads nobody
    /// into our own network.
    async fn fetch(&self, place: &Place, public: bool) -> Result<(SocketAddr, StatusCode, HeaderMap, Bytes), Refusal> {
        let mut last = None;
        let addresses = self.addresses(&place.host).await?;
        for ip in addresses.into_iter().filter(|ip| !public || is_public(*ip)) {
            let address = SocketAddr::new(ip, place.port);
            match timeout(CONNECTING, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let answer = timeout(ANSWERING, self.exchange(stream, place)).await;
                    let (status, headers, body) = answer
                        .unwrap_or_else(|_| Err(format!("no answer within {ANSWERING:?}")))
                        .map_err(|error| refusal("connection", broken(place, address, &error)))?;
                    return Ok((address, status, headers, body));
                }
                Ok(Err(error)) => last = Some(refusal("refused", nobody(place, address, &error.to_string()))),
                Err(_) => last = Some(refusal("timeout", nobody(place, address, &format!("no connection within {CONNECTING:?}")))),
            }
        }
        Err(last.unwrap_or_else(|| refusal("private-address", format!("{} has no address that the internet can reach", place.host))))
    }

    async fn exchange(&self, stream: TcpStream, place: &Place) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        if !place.https {
            return get(stream, place).await;
        }
        let name = ServerName::try_from(place.host.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| error.to_string())?;
        get(stream, place).await
    }
}

/// Where an authority asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    https: bool,
    /// IPv6 in brackets.
    host: String,
    port: u16,
    path: String,
}

impl Place {
    /// Where `location` leads from here, as far as authorities follow.
    fn redirected(&self, location: &str, http_port: u16) -> Result<Place, &'static str> {
        const LONGEST: usize = 2000;
        let uri: Uri = Some(location).filter(|text| text.len() <= LONGEST).and_then(|text| text.parse().ok()).ok_or("which is no URL")?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let https = match uri.scheme_str() {
            None if uri.host().is_none() && path.starts_with('/') => return Ok(Place { path, ..self.clone() }),
            Some("http") => false,
            Some("https") => true,
            _ => return Err("which authorities do not follow"),
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { http_port });
        if ![80, 443, http_port].contains(&port) {
            return Err("a port that authorities do not ask: they take 80 and 443 only");
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("which names no host")?.to_owned();
        Ok(Place { https, host, port, path })
    }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: &Place,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let said = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let host = if matches!(place.port, 80 | 443) { place.host.clone() } else { format!("{}:{}", place.host, place.port) };
    let request = Request::get(&place.path).header(header::HOST, host).header(header::USER_AGENT, USER_AGENT);
    let request = request.header(header::CONNECTION, "close").body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await.map_err(said)?.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map(|body| body.to_bytes()).unwrap_or_default(); // a long one is not ours
        Ok((head.status, head.headers, body))
    };
    // The connection moves what the exchange waits for, and ends with it.
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// The code of an answer that says that there is nothing.
fn there_is_none(error: &NetError) -> Option<ResponseCode> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            Some(none.response_code).filter(|code| matches!(code, ResponseCode::NoError | ResponseCode::NXDomain))
        }
        _ => None,
    }
}

/// Before an authority has been asked, only the name can be to blame.
fn refusal(kind: &str, text: String) -> Refusal {
    Refusal::ours(kind, Blame::Name, text)
}

fn nobody(place: &Place, address: SocketAddr, what: &str) -> String {
    format!(
        "{} points to {}, where nobody takes a connection at port {} ({what}): let that port through to this machine, or correct the \
         record; if it is only this machine that cannot reach itself by that address, set acme.probe = false",
        place.host,
        address.ip(),
        address.port()
    )
}

fn broken(place: &Place, address: SocketAddr, what: &str) -> String {
    format!(
        "{} points to {address}, which gives no answer ({}): something that is not this edge listens there, or cuts the connection",
        place.host,
        brief(what)
    )
}

fn somebody_else(name: &str, address: SocketAddr, status: StatusCode, headers: &HeaderMap) -> String {
    let server = headers.get(header::SERVER).and_then(|server| server.to_str().ok());
    let server = server.map(|server| format!(", a server that calls itself {}", brief(server))).unwrap_or_default();
    format!(
        "{name} points to {address}, where somebody else answers ({}{server}): point it to this machine, or let what is in front of it \
         pass {PATH} on",
        status.as_u16()
    )
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Can it be reached from the internet (RFC 6890)?
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            let [first, second, ..] = four.octets();
            let shared = first == 100 && (64..128).contains(&second);
            !(four.is_private() || four.is_loopback() || four.is_link_local() || four.is_documentation() || first == 0 || shared)
        }
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) => is_public(IpAddr::V4(four)),
            None => !(six.is_loopback() || six.is_unspecified() || six.is_unique_local() || six.is_unicast_link_local()),
        },
    }
}

/// 128 bits that nobody can guess, in hexadecimal digits.
fn random(prefix: &str) -> String {
    let mut bytes = [0; 16];
    // Without randomness there is no TLS either; a known token would only prove less.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes.iter().fold(prefix.to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn here() -> Place {
        Place { https: false, host: "a.test".to_owned(), port: 5002, path: "/x".to_owned() }
    }

    #[test]
    fn redirects_lead_where_authorities_follow() {
        for (location, expected) in [
            ("/y?z", Ok((false, "a.test", 5002, "/y?z"))),
            ("http://b.test/", Ok((false, "b.test", 5002, "/"))),
            ("https://b.test", Ok((true, "b.test", 443, "/"))),
            ("https://[::1]:443/y", Ok((true, "[::1]", 443, "/y"))),
            ("http://b.test:5002/y", Ok((false, "b.test", 5002, "/y"))),
            ("http://b.test:8080/y", Err("80 and 443 only")),
            ("ftp://b.test/y", Err("do not follow")),
            ("y", Err("do not follow")),
            ("", Err("no URL")),
            ("http://", Err("no URL")),
        ] {
            match (here().redirected(location, 5002), expected) {
                (Ok(place), Ok((https, host, port, path))) => {
                    assert_eq!(place, Place { https, host: host.to_owned(), port, path: path.to_owned() }, "{location}");
                }
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{location}: {why}"),
                (found, expected) => panic!("{location}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn private_addresses_are_known() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("2600::1", true),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("::ffff:192.168.0.1", false),
            ("::1", false),
            ("fd00::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn tokens_are_not_guessed() {
        assert_ne!(random(""), random(""));
        assert_eq!(random("x").len(), 33);
    }

    proptest! {
        #[test]
        fn any_location_is_survived(location in "\\PC{0,60}", port: u16) {
            if let Ok(place) = here().redirected(&location, port) {
                prop_assert!(place.path.starts_with('/') && !place.host.is_empty());
            }
        }
    }
}
