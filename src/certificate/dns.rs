//! DNS-01 (RFC 8555, 8.4): publishes TXT records through a provider, waits until the zone's servers answer with them, and takes
//! just them away again, whatever became of the order.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use super::record::Secret;
use super::{cloudflare, hook, journal, ovh, rfc2136, zone};
use crate::config::{self, DnsProvider};

/// The label below which authorities look (RFC 8555, 8.4).
const LABEL: &str = "_acme-challenge";
/// Finding a zone takes some questions to the resolver; together they may take so long.
const FINDING: Duration = Duration::from_secs(60);
/// Pauses before a removal is tried again. What still fails then is left to [`Dns::sweep`].
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Longer files are no secrets.
const LONGEST_SECRET: u64 = 16 * 1024;
/// Letters of what others say that are passed on.
const LONGEST_SAID: usize = 500;

/// Whose turn it is to repair something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Our settings: nothing changes until somebody changes them.
    Settings,
    /// The name's zone, or its delegation.
    Zone,
    /// The provider refused or failed.
    Provider,
    /// Nobody answered: trying again may help.
    Network,
}

/// Why a record could not be published, seen or removed: whose fault it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {help}")]
pub struct Error {
    pub fault: Fault,
    pub what: String,
    pub help: String,
}

impl Error {
    pub fn new(fault: Fault, what: impl Into<String>, help: impl Into<String>) -> Error {
        Error { fault, what: what.into(), help: help.into() }
    }

    /// Has it a chance without anybody doing something?
    pub fn passes(&self) -> bool {
        matches!(self.fault, Fault::Provider | Fault::Network)
    }
}

/// One TXT record of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name that is to be proven, without `*.`.
    pub domain: String,
    /// Where the record lies, CNAMEs followed: lower case, without a trailing dot.
    pub name: String,
    /// The zone in which that is; `None`: the provider does not ask for it.
    pub zone: Option<String>,
    pub value: String,
}

impl Record {
    /// The zone, for providers that cannot do without.
    pub fn zone(&self) -> Result<&str, Error> {
        self.zone.as_deref().ok_or_else(|| {
            Error::new(
                Fault::Zone,
                format!("the zone of {} is not known", self.name),
                "it is a leftover of another provider: remove it by hand",
            )
        })
    }
}

/// Who writes into zones. Several values may be live under one name (a wildcard and its apex): each call is about one.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Adds the record beside those that are there. Bounded in time.
    async fn publish(&self, record: &Record) -> Result<(), Error>;
    /// Takes exactly this record away; one that is not there is fine. Bounded in time.
    async fn remove(&self, record: &Record) -> Result<(), Error>;
    /// Is [`Record::zone`] to be found out?
    fn needs_zone(&self) -> bool {
        true
    }
}

/// What orders use.
#[derive(Debug)]
pub struct Dns {
    provider: Arc<dyn Provider>,
    zones: zone::Zones,
    journal: Option<journal::Journal>,
    /// Zero: do not look whether a record is there.
    patience: Duration,
    removals: TaskTracker,
}

/// A record that is live as long as this is. [`Published::remove`] tells whether that worked; dropped, it is removed in the background.
#[derive(Debug)]
#[must_use = "the record is taken away when this is dropped"]
pub struct Published {
    dns: Arc<Dns>,
    /// `None` once it is removed.
    record: Option<Record>,
}

/// What orders use, by the settings; `None` when DNS-01 is off. Leftovers are remembered below `state`.
pub fn from_config(dns: &config::Dns, state: Option<&Path>) -> Result<Option<Arc<Dns>>, Error> {
    let Some(provider) = provider(dns)? else { return Ok(None) };
    let zones = zone::Zones::new(&dns.resolver, dns.nameservers.clone())?;
    Ok(Some(Arc::new(Dns::new(provider, zones, state, dns.propagation_timeout))))
}

/// The provider of the settings; `None` when DNS-01 is off. Reads the files that hold its secrets.
pub fn provider(dns: &config::Dns) -> Result<Option<Arc<dyn Provider>>, Error> {
    Ok(Some(match dns.provider {
        DnsProvider::Off => return Ok(None),
        DnsProvider::Rfc2136 => Arc::new(rfc2136::Rfc2136::from_config(dns)?),
        DnsProvider::Cloudflare => Arc::new(cloudflare::Cloudflare::from_config(dns)?),
        DnsProvider::Ovh => Arc::new(ovh::Ovh::from_config(dns)?),
        DnsProvider::Exec => Arc::new(hook::Hook::from_config(dns)?),
    }))
}

impl Dns {
    pub fn new(provider: Arc<dyn Provider>, zones: zone::Zones, state: Option<&Path>, patience: Duration) -> Dns {
        let journal = state.map(|state| journal::Journal::new(state.join("dns")));
        Dns { provider, zones, journal, patience, removals: TaskTracker::new() }
    }

    /// Publishes `value` for `name` (`*.` is left aside). Fails without leaving anything behind, as far as the provider lets us.
    pub async fn publish(self: &Arc<Self>, name: &str, value: &str) -> Result<Published, Error> {
        let record = tokio::time::timeout(FINDING, self.place(name, value))
            .await
            .unwrap_or_else(|_| Err(zone::silent(&format!("finding the zone of {name} takes longer than {FINDING:?}"))))?;
        if let Some(journal) = &self.journal {
            journal.note(&record).await;
        }
        // Before the provider is asked: a failure half way, or a dropped order, must be cleaned up after too.
        let mut published = Published { dns: Arc::clone(self), record: Some(record.clone()) };
        let outcome = self.provider.publish(&record).await;
        if outcome.as_ref().is_err_and(|error| !error.passes()) {
            // It was refused as a whole, and so would be its removal.
            published.record = None;
            self.forget(&record).await;
        }
        outcome.map(|()| published)
    }

    /// Waits until all authoritative servers answer with all of these records.
    pub async fn wait(&self, published: &[Published]) -> Result<(), Error> {
        if self.patience.is_zero() {
            return Ok(());
        }
        let records = published.iter().filter_map(|published| published.record.as_ref());
        let waits = records.map(|record| self.zones.wait(record, self.patience));
        futures_util::future::try_join_all(waits).await.map(drop)
    }

    /// Removes what an earlier run left behind: how many records. For starts, and now and then.
    pub async fn sweep(&self) -> usize {
        let Some(journal) = &self.journal else { return 0 };
        let mut swept = 0;
        for record in journal.leftovers().await {
            match self.provider.remove(&record).await {
                Ok(()) => {
                    tracing::info!(name = record.name, "removed a DNS-01 record that an earlier run left behind");
                    self.forget(&record).await;
                    swept += 1;
                }
                Err(error) => tracing::warn!(name = record.name, %error, "a DNS-01 record of an earlier run could not be removed"),
            }
        }
        swept
    }

    /// Waits for the removals that go on in the background. For stops: bound it.
    pub async fn finish(&self) {
        self.removals.close();
        self.removals.wait().await;
    }

    async fn place(&self, name: &str, value: &str) -> Result<Record, Error> {
        let domain = domain(name);
        let target = self.zones.target(&record_name(&domain)).await?;
        let zone = match self.provider.needs_zone() {
            true => Some(self.zones.zone_of(&target).await?),
            false => None,
        };
        Ok(Record { domain, name: target, zone, value: value.to_owned() })
    }

    async fn take_away(&self, record: &Record) -> Result<(), Error> {
        let mut outcome = self.provider.remove(record).await;
        for pause in AGAIN {
            if !outcome.as_ref().is_err_and(Error::passes) {
                break;
            }
            tokio::time::sleep(pause).await;
            outcome = self.provider.remove(record).await;
        }
        if outcome.is_ok() {
            self.forget(record).await;
        }
        outcome
    }

    async fn forget(&self, record: &Record) {
        if let Some(journal) = &self.journal {
            journal.forget(record).await;
        }
    }
}

impl Published {
    /// Takes the record away, in the background even when this is not waited for to its end.
    pub async fn remove(mut self) -> Result<(), Error> {
        match self.spawn_removal() {
            Some(removal) => removal.await.unwrap_or_else(|_| Err(zone::silent("the removal of a record was cut off"))),
            None => Ok(()),
        }
    }

    fn spawn_removal(&mut self) -> Option<tokio::task::JoinHandle<Result<(), Error>>> {
        let record = self.record.take()?;
        let dns = Arc::clone(&self.dns);
        // Without a runtime, the journal remembers it for the next start.
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let removal = async move {
            let outcome = dns.take_away(&record).await;
            if let Err(error) = &outcome {
                tracing::warn!(name = record.name, %error, "a DNS-01 record could not be removed");
            }
            outcome
        };
        Some(self.dns.removals.spawn_on(removal, &runtime))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(self.spawn_removal());
    }
}

/// What is proven for `name`: itself, or what a wildcard stands below.
fn domain(name: &str) -> String {
    name.strip_prefix("*.").unwrap_or(name).trim_end_matches('.').to_ascii_lowercase()
}

/// Where authorities look for the TXT records of `domain`.
pub fn record_name(domain: &str) -> String {
    format!("{LABEL}.{domain}")
}

/// What others say, as part of one line of an error: without what could steer a terminal, and not all of it.
pub(super) fn one_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let words = text.split(|letter: char| letter.is_control() || letter.is_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(LONGEST_SAID).collect()
}

/// The text of a secret's file, without white space around it.
pub(super) fn secret(setting: &str, path: Option<&Path>) -> Result<Secret, Error> {
    use std::io::Read;
    let unset = || Error::new(Fault::Settings, format!("dns.{setting} is not set"), "name the file that holds it");
    let path = path.ok_or_else(unset)?;
    let wrong =
        |what: String| Error::new(Fault::Settings, format!("{} (dns.{setting}) {what}", path.display()), "put the secret into that file");
    let mut text = zeroize::Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    file.take(LONGEST_SECRET + 1).read_to_string(&mut text).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    match text.trim() {
        "" => Err(wrong("is empty".to_owned())),
        _ if text.len() as u64 > LONGEST_SECRET => Err(wrong("is too long for a secret".to_owned())),
        trimmed => Ok(Secret::new(trimmed.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_and_its_apex_are_proven_under_one_name() {
        for name in ["example.com", "*.example.com", "Example.COM."] {
            assert_eq!(record_name(&domain(name)), "_acme-challenge.example.com", "{name}");
        }
        assert_eq!(record_name(&domain("*.a.example.com")), "_acme-challenge.a.example.com");
    }

    #[test]
    fn what_others_say_becomes_one_line() {
        assert_eq!(one_line(b" \n"), "");
        assert_eq!(one_line(b"no such\n\tzone\x1b[31m\n"), "no such zone [31m");
        assert_eq!(one_line(&[b'x'; 10_000]).len(), LONGEST_SAID);
    }

    proptest! {
        #[test]
        fn what_others_say_never_steers_a_terminal(said: Vec<u8>) {
            prop_assert!(!one_line(&said).chars().any(char::is_control));
        }
    }

    #[test]
    fn secrets_are_trimmed_bounded_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            secret("cloudflare-token-file", Some(&file))
        };
        assert_eq!(read("  hunter2\n").unwrap().reveal(), "hunter2");
        assert!(!format!("{:?}", read("hunter2").unwrap()).contains("hunter2"));
        for (text, said) in [(" \n", "is empty"), (&*"x".repeat(20_000), "too long")] {
            let error = read(text).unwrap_err();
            assert!(error.fault == Fault::Settings && error.what.contains(said), "{error}");
        }
        assert!(secret("x", Some(Path::new("/nowhere"))).unwrap_err().what.contains("cannot be read"));
        assert!(secret("x", None).unwrap_err().what.contains("dns.x is not set"));
    }
}
