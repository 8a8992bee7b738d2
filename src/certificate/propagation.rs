//! Watches a record arrive at the servers of its zone: an authority may ask any of them.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_net::NetError;
use hickory_proto::rr::{RData, Record as Answer, RecordType};
use hickory_resolver::TokioResolver;
use tokio::time::Instant;

use super::dns::{Error, Fault, Record};
use super::zone::{QUESTION, Zones, absolute, asking, nothing_there, silent};

/// Between two looks: it doubles from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// An authoritative server of a zone.
#[derive(Debug)]
pub struct Server {
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

/// Waits until every server of the record's zone answers with it; those that are silent for a third of `patience` are passed over.
pub async fn wait(zones: &Zones, record: &Record, patience: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let late = |what: &str| {
        Error::new(
            Fault::Zone,
            format!("{what} the TXT record at {} within {patience:?}", record.name),
            "check that changes reach all servers of the zone (notify, transfers), or raise dns.propagation-timeout",
        )
    };
    let Ok(servers) = tokio::time::timeout(patience, zones.servers(record)).await else {
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

impl Server {
    pub fn new(name: String, addresses: &[SocketAddr]) -> Result<Server, Error> {
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
}
