//! A DNS-01 record from its publication to its end: found a place for, published, waited for, and taken away again, just that one,
//! whatever became of the order.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::dns::{Error, Fault, Provider, Record, domain, provider, record_name};
use super::journal::Journal;
use super::propagation;
use super::zone::{Zones, silent};
use crate::config;

/// Finding a zone takes some questions to the resolver; together they may take so long.
const FINDING: Duration = Duration::from_secs(60);
/// Pauses before a removal is tried again. What still fails then is left to [`Dns::sweep`].
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// What orders use.
#[derive(Debug)]
pub struct Dns {
    provider: Arc<dyn Provider>,
    zones: Zones,
    journal: Option<Journal>,
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
    let zones = Zones::new(&dns.resolver, dns.nameservers.clone())?;
    Ok(Some(Arc::new(Dns::new(provider, zones, state, dns.propagation_timeout))))
}

impl Dns {
    pub fn new(provider: Arc<dyn Provider>, zones: Zones, state: Option<&Path>, patience: Duration) -> Dns {
        let journal = state.map(|state| Journal::new(state.join("dns")));
        Dns { provider, zones, journal, patience, removals: TaskTracker::new() }
    }

    /// Publishes `value` for `name` (`*.` is left aside). Fails without leaving anything behind, as far as the provider lets us.
    pub async fn publish(self: &Arc<Self>, name: &str, value: &str) -> Result<Published, Error> {
        let record = tokio::time::timeout(FINDING, self.place(name, value))
            .await
            .unwrap_or_else(|_| Err(silent(&format!("finding the zone of {name} takes longer than {FINDING:?}"))))?;
        if let Some(journal) = &self.journal {
            journal.note(&record).await;
        }
        // Before the provider is asked: a failure half way, or a dropped order, must be cleaned up after too.
        let mut published = Published { dns: Arc::clone(self), record: Some(record.clone()) };
        let outcome = self.bounded(self.provider.publish(&record)).await;
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
        let waits = records.map(|record| propagation::wait(&self.zones, record, self.patience));
        futures_util::future::try_join_all(waits).await.map(drop)
    }

    /// Removes what earlier runs left behind and what could not be removed when it should have been: how many records. For starts, and
    /// now and then, as every hour.
    pub async fn sweep(&self) -> usize {
        let Some(journal) = &self.journal else { return 0 };
        let mut swept = 0;
        for (record, hopeless) in journal.leftovers().await {
            match self.bounded(self.provider.remove(&record)).await {
                Ok(()) => {
                    tracing::info!(name = record.name, "removed a DNS-01 record that was left behind");
                    self.forget(&record).await;
                    swept += 1;
                }
                Err(error) => {
                    tracing::warn!(name = record.name, value = record.value, %error, "a DNS-01 record that was left behind could not be removed");
                    if hopeless {
                        self.forget(&record).await;
                    }
                }
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
        let mut outcome = self.bounded(self.provider.remove(record)).await;
        for pause in AGAIN {
            if !outcome.as_ref().is_err_and(Error::passes) {
                break;
            }
            tokio::time::sleep(pause).await;
            outcome = self.bounded(self.provider.remove(record)).await;
        }
        match (&outcome, &self.journal) {
            (Ok(()), _) => self.forget(record).await,
            (Err(_), Some(journal)) => journal.give_up(record).await,
            (Err(_), None) => {}
        }
        outcome
    }

    async fn bounded(&self, change: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let longest = self.provider.longest();
        tokio::time::timeout(longest, change).await.unwrap_or_else(|_| {
            let what = format!("the DNS provider takes longer than {longest:?}");
            Err(Error::new(Fault::Provider, what, "check whether it is reached and well; it is tried again"))
        })
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
            Some(removal) => removal.await.unwrap_or_else(|_| Err(silent("the removal of a record was cut off"))),
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
