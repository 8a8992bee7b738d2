//! DNS-01 by dynamic updates (RFC 2136) signed with TSIG (RFC 8945): BIND, Knot, PowerDNS and whatever else takes them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use hickory_proto::op::{Message, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigError;
use hickory_proto::rr::{Name, RData, Record as Answer, RecordSet, RecordType, TSigVerifier, TSigner, rdata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dns::{Error, Fault, Provider, Record, secret};
use super::tsig;
use crate::config::dns::PORT;
use crate::config::{self, TsigAlgorithm};

/// One update, connection included.
const UPDATE: Duration = Duration::from_secs(10);
/// How far the server's clock may be off, in seconds (RFC 8945, 10).
const FUDGE: u16 = 300;

/// Updates one server.
pub struct Rfc2136 {
    /// `host:port`
    server: String,
    signer: TSigner,
    ttl: u32,
}

impl fmt::Debug for Rfc2136 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Rfc2136({}, key {})", self.server, self.signer.signer_name())
    }
}

impl Rfc2136 {
    pub fn from_config(dns: &config::Dns) -> Result<Rfc2136, Error> {
        let wrong = |what: String, help: &str| Error::new(Fault::Settings, what, help);
        let server = dns.server.as_deref().ok_or_else(|| wrong("dns.server is not set".into(), "name the zone's primary server"))?;
        let file = dns.tsig_key_file.as_deref();
        let shown = file.map(|file| file.display().to_string()).unwrap_or_default();
        let key = tsig::key(secret("tsig-key-file", file)?.reveal())
            .map_err(|what| wrong(format!("{shown} (dns.tsig-key-file) {what}"), "write what `tsig-keygen skep` prints into it"))?;
        let name = match (&key.name, &dns.tsig_name) {
            (Some(own), Some(set)) if !own.eq_ignore_ascii_case(set.trim_end_matches('.')) => {
                return Err(wrong(format!("dns.tsig-name is {set}, but {shown} holds the key {own}"), "leave dns.tsig-name out"));
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => {
                return Err(wrong("dns.tsig-name is not set, and the key file does not say it".into(), "set it as on the server"));
            }
        };
        let name =
            Name::from_ascii(name).map_err(|error| wrong(format!("{name} is no name of a key ({error})"), "set it as on the server"))?;
        let algorithm = match key.algorithm.or(dns.tsig_algorithm).unwrap_or(TsigAlgorithm::Sha256) {
            TsigAlgorithm::Sha256 => rdata::tsig::TsigAlgorithm::HmacSha256,
            TsigAlgorithm::Sha384 => rdata::tsig::TsigAlgorithm::HmacSha384,
            TsigAlgorithm::Sha512 => rdata::tsig::TsigAlgorithm::HmacSha512,
        };
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(key.secret.reveal())
            .map_err(|_| wrong(format!("{shown} (dns.tsig-key-file) holds no base64"), "write what `tsig-keygen skep` prints into it"))?;
        let signer = TSigner::new(bytes, algorithm, name, FUDGE)
            .map_err(|error| wrong(format!("the key in {shown} cannot be used ({error})"), "make a new one with `tsig-keygen skep`"))?;
        Ok(Rfc2136 { server: with_port(server), signer, ttl: dns.ttl })
    }

    async fn update(&self, record: &Record, make: fn(RecordSet, Name, bool) -> Message) -> Result<(), Error> {
        let zone = record.zone()?;
        let name = |text: &str| {
            let mut name = Name::from_ascii(text)
                .map_err(|error| Error::new(Fault::Zone, format!("{text} is no name for DNS ({error})"), "rename it"))?;
            name.set_fqdn(true);
            Ok(name)
        };
        let (origin, owner) = (name(zone)?, name(&record.name)?);
        if !origin.zone_of(&owner) {
            return Err(Error::new(Fault::Zone, format!("{owner} is not in the zone {origin}"), "remove it by hand"));
        }
        let mut set = RecordSet::with_ttl(owner.clone(), RecordType::TXT, self.ttl);
        set.insert(Answer::from_rdata(owner, self.ttl, RData::TXT(TXT::new(vec![record.value.clone()]))), 0);
        let message = make(set, origin, false);
        match tokio::time::timeout(UPDATE, self.exchange(message, zone)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.unreachable(&format!("takes longer than {UPDATE:?}"))),
        }
    }

    async fn exchange(&self, mut message: Message, zone: &str) -> Result<(), Error> {
        let broken = |error: &dyn fmt::Display| self.unreachable(&format!("ends the connection ({error})"));
        let now = jiff::Timestamp::now().as_second().unsigned_abs();
        let unsigned =
            |error: &dyn fmt::Display| Error::new(Fault::Settings, format!("an update cannot be signed ({error})"), "check the TSIG key");
        let verifier = message.finalize(&self.signer, now).map_err(|error| unsigned(&error))?;
        let bytes = message.to_vec().map_err(|error| unsigned(&error))?;
        let length = u16::try_from(bytes.len()).map_err(|error| unsigned(&error))?;
        let mut stream = self.connect().await?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        stream.write_all(&framed).await.map_err(|error| broken(&error))?;
        let length = stream.read_u16().await.map_err(|error| broken(&error))?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.map_err(|error| broken(&error))?;
        self.judge(&answer, message.id, verifier, zone)
    }

    async fn connect(&self) -> Result<TcpStream, Error> {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host(&self.server).await.map_err(|error| self.unreachable(&format!("has no address ({error})")))?.collect();
        TcpStream::connect(&addresses[..]).await.map_err(|error| self.unreachable(&format!("takes no connection ({error})")))
    }

    fn judge(&self, answer: &[u8], id: u16, verifier: Option<TSigVerifier>, zone: &str) -> Result<(), Error> {
        let strange = |error: &dyn fmt::Display| {
            Error::new(
                Fault::Provider,
                format!("{} answers an update with something else ({error})", self.server),
                "is dns.server a DNS server that takes updates?",
            )
        };
        let message = Message::from_vec(answer).map_err(|error| strange(&error))?;
        if message.id != id {
            return Err(strange(&"another answer's number"));
        }
        let error = message.signature().and_then(|signature| signature.data.error);
        if let Some(refusal) =
            refusal(message.response_code, error, &self.server, zone, self.signer.signer_name().to_ascii().trim_end_matches('.'))
        {
            return Err(refusal);
        }
        match verifier.map(|mut verifier| verifier.verify(answer)) {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(Error::new(
                Fault::Provider,
                format!("the answer of {} is not signed by the TSIG key ({error})", self.server),
                "somebody may be in between: check the way to the server, and both clocks",
            )),
            None => Err(strange(&"no way to verify it")),
        }
    }

    fn unreachable(&self, what: &str) -> Error {
        Error::new(
            Fault::Network,
            format!("the DNS server {} {what}", self.server),
            "check dns.server, that it runs, and that TCP to it is let through",
        )
    }
}

#[async_trait]
impl Provider for Rfc2136 {
    async fn publish(&self, record: &Record) -> Result<(), Error> {
        self.update(record, |set, zone, edns| update_message::append(set, zone, false, edns)).await
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        self.update(record, update_message::delete_by_rdata).await
    }
}

/// What the server's codes mean for whoever set this up (RFC 2136, 2.2; RFC 8945, 5.2).
fn refusal(code: ResponseCode, error: Option<TsigError>, server: &str, zone: &str, key: &str) -> Option<Error> {
    let settings = |what: String, help: &str| Some(Error::new(Fault::Settings, what, help));
    match (code, error) {
        (_, Some(TsigError::BadKey)) => settings(
            format!("{server} does not know the key {key} (BADKEY)"),
            "check dns.tsig-name and dns.tsig-algorithm against the server's key",
        ),
        (_, Some(TsigError::BadSig)) => {
            settings(format!("{server} has another secret for the key {key} (BADSIG)"), "put the server's secret into dns.tsig-key-file")
        }
        (_, Some(TsigError::BadTime)) => settings(
            format!("the clocks of this machine and of {server} differ by more than five minutes (BADTIME)"),
            "set both clocks, as by NTP",
        ),
        (_, Some(other)) => {
            settings(format!("{server} does not take the signature of the key {key} ({other:?})"), "check the TSIG key on both sides")
        }
        (ResponseCode::NoError, None) => None,
        (ResponseCode::NotAuth | ResponseCode::NotZone, None) => {
            settings(format!("{server} is not the server of the zone {zone} ({code})"), "set dns.server to the primary server of that zone")
        }
        (ResponseCode::Refused, None) => settings(
            format!("{server} refuses to let the key {key} change the zone {zone} (REFUSED)"),
            "allow it there: in BIND, `update-policy { grant KEY name _acme-challenge.NAME. TXT; };` or `allow-update`",
        ),
        (code, None) => Some(Error::new(
            Fault::Provider,
            format!("{server} answers an update of the zone {zone} with {code}"),
            "look into its log; it is tried again",
        )),
    }
}

/// `host:port` of `host`, `host:port`, an address, or `[v6]:port`.
fn with_port(server: &str) -> String {
    if let Ok(address) = server.parse::<SocketAddr>() {
        return address.to_string();
    }
    if let Ok(ip) = server.trim_matches(['[', ']']).parse() {
        return SocketAddr::new(ip, PORT).to_string();
    }
    match server.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}:{port}"),
        _ => format!("{server}:{PORT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_get_the_usual_port() {
        for (written, read) in [
            ("ns1.example.com", "ns1.example.com:53"),
            ("ns1.example.com:5353", "ns1.example.com:5353"),
            ("192.0.2.1", "192.0.2.1:53"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            assert_eq!(with_port(written), read);
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let of = |code, error| refusal(code, error, "ns1:53", "example.com", "skep");
        assert_eq!(of(ResponseCode::NoError, None), None);
        for (code, error, fault, said) in [
            (ResponseCode::NotAuth, Some(TsigError::BadKey), Fault::Settings, "does not know the key skep"),
            (ResponseCode::NotAuth, Some(TsigError::BadSig), Fault::Settings, "another secret"),
            (ResponseCode::NotAuth, Some(TsigError::BadTime), Fault::Settings, "clocks"),
            (ResponseCode::NotAuth, None, Fault::Settings, "not the server of the zone example.com"),
            (ResponseCode::NotZone, None, Fault::Settings, "not the server of the zone"),
            (ResponseCode::Refused, None, Fault::Settings, "refuses to let the key skep"),
            (ResponseCode::ServFail, None, Fault::Provider, "answers an update"),
            (ResponseCode::NoError, Some(TsigError::BadTrunc), Fault::Settings, "does not take the signature"),
        ] {
            let error = of(code, error).unwrap();
            assert!(error.fault == fault && error.what.contains(said), "{error}");
        }
    }
}
