//! Finds where a challenge's record belongs: behind CNAMEs, in which zone, on which authoritative servers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::{DnsError, NetError};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record as Answer, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};

use super::dns::{Error, Fault, Record};
use super::propagation::Server;
use crate::config::dns::PORT;

/// Longer chains of CNAMEs are loops or mistakes.
const MOST_ALIASES: usize = 8;
/// More name servers of a zone, and addresses of each, are not asked.
const MOST_SERVERS: usize = 16;
/// One question to one server, by UDP and if need be by TCP.
pub(super) const QUESTION: Duration = Duration::from_secs(3);
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

    /// Who must answer with `record`.
    pub(super) async fn servers(&self, record: &Record) -> Result<Vec<Server>, Error> {
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
pub(super) fn nothing_there(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain),
        _ => false,
    }
}

pub(super) fn absolute(name: &str) -> Result<Name, Error> {
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

#[cfg(test)]
mod tests {
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
    fn names_that_dns_cannot_hold_are_refused() {
        assert!(absolute(&"a".repeat(64)).is_err());
        assert!(absolute(&["abcdefg"; 40].join(".")).is_err());
        assert_eq!(text(&absolute("_acme-challenge.EXAMPLE.com").unwrap()), "_acme-challenge.example.com");
    }
}
