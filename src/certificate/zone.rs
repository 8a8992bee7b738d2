//! Finds where a challenge's record belongs (CNAMEs, the zone, its authoritative servers) and watches it arrive there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::{DnsError, NetError};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record as Answer, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use tokio::time::Instant;

use super::dns::{Error, Fault, Record};
use crate::config::dns::PORT;

/// Longer chains of CNAMEs are loops or mistakes.
const MOST_ALIASES: usize = 8;
/// More name servers of a zone, and addresses of each, are not asked.
const MOST_SERVERS: usize = 16;
/// One question to one server, by UDP and if need be by TCP.
const QUESTION: Duration = Duration::from_secs(3);
/// Between two looks: it doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// This label is nobody's: what answers to it is a wildcard.
const NOBODY: &str = "_skep-looks-for-wildcards";

/// Asks the resolver, and the servers that it names.
#[derive(Debug)]
pub struct Zones {
    resolver: Resolver,
    nameservers: Vec<SocketAddr>,
    /// Where authoritative servers listen.
    port: u16,
}

/// Debug output of the resolver itself is pages long.
struct Resolver(TokioResolver);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Resolver(..)")
    }
}

/// An authoritative server of a zone.
#[derive(Debug)]
struct Server {
    name: String,
    addresses: Vec<(SocketAddr, TokioResolver)>,
}

/// What a server says about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Has,
    Lacks,
    /// No answer, or none that means something.
    Silent,
}

impl Zones {
    /// Asks `resolver`, or whom `/etc/resolv.conf` names; `nameservers` stand in for each zone's own ones.
    pub fn new(resolver: &[SocketAddr], nameservers: Vec<SocketAddr>) -> Result<Zones, Error> {
        let built = match resolver {
            [] => TokioResolver::builder_tokio().and_then(|mut builder| {
                builder.options_mut().cache_size = 0;
                builder.options_mut().use_hosts_file = ResolveHosts::Never;
                builder.build()
            }),
            given => asking(given, true),
        };
        let resolver = built.map_err(|error| {
            Error::new(Fault::Settings, format!("/etc/resolv.conf names no resolver ({error})"), "write resolver = [\"9.9.9.9\"] in [dns]")
        })?;
        Ok(Zones { resolver: Resolver(resolver), nameservers, port: PORT })
    }

    /// Expects authoritative servers on another port.
    #[must_use]
    pub fn with_port(self, port: u16) -> Zones {
        Zones { port, ..self }
    }

    /// Where `name` leads by CNAME: usually to itself. A wildcard's CNAME is no delegation: our record will hide it.
    pub async fn target(&self, name: &str) -> Result<String, Error> {
        let mut current = name.to_owned();
        for hop in 0..MOST_ALIASES {
            let Some(next) = self.alias(&current).await? else { return Ok(current) };
            if hop == 0 && self.alias(&nobody(&current)).await?.as_ref() == Some(&next) {
                return Ok(current);
            }
            current = next;
        }
        Err(Error::new(
            Fault::Zone,
            format!("{name} is a CNAME that leads over more than {MOST_ALIASES} others, or in a circle"),
            "let it point straight to the name where the TXT record may be written",
        ))
    }

    /// The zone that `name` is in: the closest name above it with a SOA record.
    pub async fn zone_of(&self, name: &str) -> Result<String, Error> {
        for candidate in ancestors(name) {
            let soa = self.ask(candidate, RecordType::SOA).await?;
            if soa.iter().any(|answer| answer.record_type() == RecordType::SOA && same(&answer.name, candidate)) {
                return Ok(candidate.to_owned());
            }
        }
        Err(Error::new(
            Fault::Zone,
            format!("no zone with a SOA record is found for {name}"),
            "is the domain registered and its zone served? If it is known to other resolvers only, set dns.resolver to one of them",
        ))
    }

    /// Waits until every server of the record's zone answers with it; those that are silent for a third of `patience` are passed over.
    pub async fn wait(&self, record: &Record, patience: Duration) -> Result<(), Error> {
        let start = Instant::now();
        let late = |what: &str| {
            Error::new(
                Fault::Zone,
                format!("{what} the TXT record at {} within {patience:?}", record.name),
                "check that changes reach all servers of the zone (notify, transfers), or raise dns.propagation-timeout",
            )
        };
        let Ok(servers) = tokio::time::timeout(patience, self.servers(record)).await else {
            return Err(late("the zone's servers were not found to be asked for"));
        };
        let servers = servers?;
        let mut pause = PAUSES.0;
        loop {
            let seen = futures_util::future::join_all(servers.iter().map(|server| server.seen(record))).await;
            let waited = start.elapsed();
            if arrived(&seen, waited * 3 > patience) {
                for (server, _) in servers.iter().zip(&seen).filter(|(_, seen)| **seen == Seen::Silent) {
                    tracing::warn!(server = server.name, name = record.name, "a name server does not answer and is passed over");
                }
                return Ok(());
            }
            if waited + pause > patience {
                let slow: Vec<&str> =
                    servers.iter().zip(&seen).filter(|(_, seen)| **seen != Seen::Has).map(|(server, _)| server.name.as_str()).collect();
                return Err(late(&format!("{} did not answer with", slow.join(", "))));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn servers(&self, record: &Record) -> Result<Vec<Server>, Error> {
        if !self.nameservers.is_empty() {
            return self.nameservers.iter().map(|address| Server::new(address.to_string(), &[*address])).collect();
        }
        let zone = match &record.zone {
            Some(zone) => zone.clone(),
            None => self.zone_of(&record.name).await?,
        };
        let names: Vec<String> = self
            .ask(&zone, RecordType::NS)
            .await?
            .iter()
            .filter_map(|answer| if let RData::NS(server) = &answer.data { Some(text(&server.0)) } else { None })
            .take(MOST_SERVERS)
            .collect();
        let found = futures_util::future::try_join_all(names.iter().map(|name| self.addresses(name))).await?;
        let servers: Vec<Server> = names
            .into_iter()
            .zip(found)
            .filter(|(_, addresses)| !addresses.is_empty())
            .map(|(name, addresses)| Server::new(name, &addresses))
            .collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(Error::new(
                Fault::Zone,
                format!("no name server of {zone} has an address"),
                "check the zone's NS records, or write nameservers = [...] in [dns]",
            ));
        }
        Ok(servers)
    }

    async fn addresses(&self, server: &str) -> Result<Vec<SocketAddr>, Error> {
        let (four, six) = tokio::join!(self.ask(server, RecordType::A), self.ask(server, RecordType::AAAA));
        let address = |answer: &Answer| match &answer.data {
            RData::A(four) => Some(IpAddr::V4(four.0)),
            RData::AAAA(six) => Some(IpAddr::V6(six.0)),
            _ => None,
        };
        Ok(four?.iter().chain(&six?).filter_map(address).map(|ip| SocketAddr::new(ip, self.port)).take(MOST_SERVERS).collect())
    }

    /// The CNAME of `name`, if it is one.
    async fn alias(&self, name: &str) -> Result<Option<String>, Error> {
        let answers = self.ask(name, RecordType::CNAME).await?;
        Ok(answers.iter().filter(|answer| same(&answer.name, name)).find_map(|answer| match &answer.data {
            RData::CNAME(target) => Some(text(&target.0)),
            _ => None,
        }))
    }

    /// The answers; none for names and types that there are not.
    async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<Answer>, Error> {
        match self.resolver.0.lookup(absolute(name)?, kind).await {
            Ok(lookup) => Ok(lookup.answers().to_vec()),
            Err(error) if nothing_there(&error) => Ok(Vec::new()),
            Err(error) => Err(silent(&format!("the resolver does not say what {kind} records {name} has ({error})"))),
        }
    }
}

impl Server {
    fn new(name: String, addresses: &[SocketAddr]) -> Result<Server, Error> {
        let addresses = addresses.iter().map(|address| Ok((*address, asking(&[*address], false)?))).collect::<Result<_, NetError>>();
        Ok(Server { name, addresses: addresses.map_err(|error| silent(&format!("a name server cannot be asked ({error})")))? })
    }

    async fn seen(&self, record: &Record) -> Seen {
        let Ok(name) = absolute(&record.name) else { return Seen::Silent };
        let looks = self.addresses.iter().map(async |(_, resolver)| {
            // Once by UDP and once by TCP, each of them tried again.
            match tokio::time::timeout(QUESTION * 2, resolver.lookup(name.clone(), RecordType::TXT)).await {
                Ok(Ok(lookup)) if lookup.answers().iter().any(|answer| holds(answer, &record.value)) => Seen::Has,
                Ok(Ok(_)) => Seen::Lacks,
                Ok(Err(error)) if nothing_there(&error) => Seen::Lacks,
                Ok(Err(_)) | Err(_) => Seen::Silent,
            }
        });
        together(&futures_util::future::join_all(looks).await)
    }
}

/// Nobody answered.
pub(super) fn silent(what: &str) -> Error {
    Error::new(Fault::Network, what, "check the network, the name servers and dns.resolver; it is tried again")
}

/// A resolver that asks these servers, with recursion or without, and remembers nothing.
pub(super) fn asking(servers: &[SocketAddr], recursion: bool) -> Result<TokioResolver, NetError> {
    let on = |mut connection: ConnectionConfig, port| {
        connection.port = port;
        connection
    };
    let server = |address: &SocketAddr| {
        let connections = vec![on(ConnectionConfig::udp(), address.port()), on(ConnectionConfig::tcp(), address.port())];
        NameServerConfig::new(address.ip(), true, connections)
    };
    let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.recursion_desired = recursion;
    options.timeout = QUESTION;
    options.attempts = 1;
    options.try_tcp_on_error = true;
    builder.build()
}

/// The name or the type is not there: said by the server, not guessed from its silence.
fn nothing_there(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain),
        _ => false,
    }
}

fn absolute(name: &str) -> Result<Name, Error> {
    let mut parsed = Name::from_ascii(name).map_err(|error| {
        Error::new(Fault::Zone, format!("{name} is not a name for DNS ({error})"), "labels have up to 63 letters, names 253")
    })?;
    parsed.set_fqdn(true);
    Ok(parsed)
}

fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn same(name: &Name, written: &str) -> bool {
    text(name) == written.to_ascii_lowercase()
}

/// `name` and what is above it, the root left aside.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, above)| above)).filter(|name| !name.is_empty())
}

/// A sibling of `name` that nobody has.
fn nobody(name: &str) -> String {
    name.split_once('.').map_or_else(|| NOBODY.to_owned(), |(_, above)| format!("{NOBODY}.{above}"))
}

/// Is it a TXT record with this value? Long ones come in pieces (RFC 1035, 3.3.14).
fn holds(answer: &Answer, value: &str) -> bool {
    matches!(&answer.data, RData::TXT(txt) if txt.txt_data.concat() == value.as_bytes())
}

/// What a server says by all of its addresses: one that lacks the record can be asked by the authority too.
fn together(seen: &[Seen]) -> Seen {
    [Seen::Lacks, Seen::Has].into_iter().find(|one| seen.contains(one)).unwrap_or(Seen::Silent)
}

/// May the authority be told? Silent servers count as long as they may still come back.
fn arrived(seen: &[Seen], impatient: bool) -> bool {
    seen.contains(&Seen::Has) && !seen.contains(&Seen::Lacks) && (impatient || !seen.contains(&Seen::Silent))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::TXT;

    use super::*;

    #[test]
    fn zones_are_looked_for_from_the_name_upwards() {
        assert_eq!(
            ancestors("_acme-challenge.a.example.com").collect::<Vec<_>>(),
            ["_acme-challenge.a.example.com", "a.example.com", "example.com", "com"]
        );
        assert_eq!(nobody("_acme-challenge.a.example.com"), format!("{NOBODY}.a.example.com"));
        assert_eq!(ancestors("").count(), 0);
    }

    #[test]
    fn every_server_that_answers_must_have_the_record() {
        use Seen::*;
        for (seen, at_first, later) in [
            (&[Has, Has][..], true, true),
            (&[Has, Lacks], false, false),
            (&[Has, Silent], false, true),
            (&[Silent], false, false),
            (&[Lacks, Silent], false, false),
            (&[], false, false),
        ] {
            assert_eq!((arrived(seen, false), arrived(seen, true)), (at_first, later), "{seen:?}");
        }
        // IPv6 is often broken on one side; a server that is behind is behind.
        assert_eq!(together(&[Has, Silent]), Has);
        assert_eq!(together(&[Has, Lacks]), Lacks);
        assert_eq!(together(&[]), Silent);
    }

    #[test]
    fn values_are_compared_whole() {
        let record = |pieces: &[&str]| {
            let txt = TXT::new(pieces.iter().map(|piece| (*piece).to_owned()).collect());
            Answer::from_rdata(absolute("_acme-challenge.example.com").unwrap(), 60, RData::TXT(txt))
        };
        assert!(holds(&record(&["abc"]), "abc") && holds(&record(&["ab", "c"]), "abc"));
        assert!(!holds(&record(&["abcd"]), "abc") && !holds(&record(&["ab"]), "abc"));
    }

    #[test]
    fn names_that_dns_cannot_hold_are_refused() {
        assert!(absolute(&"a".repeat(64)).is_err());
        assert!(absolute(&["abcdefg"; 40].join(".")).is_err());
        assert_eq!(text(&absolute("_acme-challenge.EXAMPLE.com").unwrap()), "_acme-challenge.example.com");
    }
}
