//! Certificates and the memory of attempts in the store. What cannot be stored is kept in memory and stored later: a certificate that was
//! obtained must not be lost, and must not be obtained again for that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attempt::Attempts;
use super::record::Record;
use crate::store::{self, Error, Store, Version};

/// Of records, by their id.
const RECORDS: &str = "certificate/";
/// Of [`Attempts`].
const ATTEMPTS: &str = "attempts";
/// How often another process may be first before it is an error.
const RACES: usize = 8;

/// The one place in this process that writes them.
#[derive(Debug)]
pub struct Shelf {
    store: Arc<dyn Store>,
    records: BTreeMap<String, Record>,
    versions: BTreeMap<String, Version>,
    /// Records that are not stored as they are here.
    unsaved: BTreeSet<String>,
    attempts: Attempts,
    version: Option<Version>,
}

impl Shelf {
    /// Reads everything. Records that cannot be read are left where they are, and said.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Shelf, Error> {
        let (attempts, version) = attempts(&*store).await?;
        let mut shelf = Shelf { store, records: BTreeMap::new(), versions: BTreeMap::new(), unsaved: BTreeSet::new(), attempts, version };
        for key in shelf.store.list(RECORDS).await?.into_keys() {
            shelf.read(&key).await?;
        }
        Ok(shelf)
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub fn record(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Remembers what `change` makes of the attempts, on top of what others may have remembered.
    ///
    /// # Errors
    /// It is remembered here, but not stored.
    pub async fn remember(&mut self, change: impl Fn(Attempts) -> Attempts) -> Result<(), Error> {
        self.attempts = change(std::mem::take(&mut self.attempts));
        for _ in 0..RACES {
            match store::write(&*self.store, ATTEMPTS, &self.attempts, self.version.as_ref()).await {
                Ok(version) => {
                    self.version = Some(version);
                    return Ok(());
                }
                Err(Error::Conflict { .. }) => {
                    let (theirs, version) = attempts(&*self.store).await?;
                    (self.attempts, self.version) = (change(theirs), version);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict { key: ATTEMPTS.to_owned() })
    }

    /// Keeps `record`, instead of the one with its id.
    pub async fn keep(&mut self, record: Record) {
        let id = record.id.clone();
        self.records.insert(id.clone(), record);
        self.save(&id).await;
    }

    /// Removes a record. Where that fails it comes back at the next start, and is removed again then.
    pub async fn remove(&mut self, id: &str) {
        self.records.remove(id);
        self.unsaved.remove(id);
        let Some(version) = self.versions.remove(id) else { return };
        if let Err(error) = self.store.remove(&key(id), &version).await {
            tracing::warn!(id, %error, "a certificate that nobody needs cannot be removed from the store");
        }
    }

    /// Stores what could not be stored before.
    pub async fn save_again(&mut self) {
        for id in self.unsaved.clone() {
            self.save(&id).await;
        }
    }

    async fn save(&mut self, id: &str) {
        let Some(record) = self.records.get(id) else { return };
        match store::write(&*self.store, &key(id), record, self.versions.get(id)).await {
            Ok(version) => {
                self.versions.insert(id.to_owned(), version);
                self.unsaved.remove(id);
            }
            // What is said of a certificate is all that changes; theirs is as good.
            Err(Error::Conflict { .. }) if self.versions.contains_key(id) => {
                self.versions.remove(id);
                self.unsaved.remove(id);
                if let Err(error) = self.read(&key(id)).await {
                    tracing::warn!(id, %error, "a certificate was changed by somebody else, and cannot be read");
                }
            }
            Err(error) => {
                if self.unsaved.insert(id.to_owned()) {
                    tracing::error!(names = ?record.names, %error, "a certificate is in use but cannot be stored: it is tried again");
                }
            }
        }
    }

    async fn read(&mut self, key: &str) -> Result<(), Error> {
        match store::read::<Record>(&*self.store, key).await {
            Ok(Some((record, version))) if self::key(&record.id) == key => {
                self.versions.insert(record.id.clone(), version);
                self.records.insert(record.id.clone(), record);
            }
            Ok(Some(_)) => tracing::error!(key, "a stored certificate has another id than its key: it is not used"),
            Ok(None) => {}
            Err(error @ Error::Unusable { .. }) => tracing::error!(%error, "a stored certificate cannot be read: it is not used"),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn key(id: &str) -> String {
    format!("{RECORDS}{id}")
}

/// What was remembered; nothing where it cannot be understood, which is said: then limits may be hit.
async fn attempts(store: &dyn Store) -> Result<(Attempts, Option<Version>), Error> {
    let Some(entry) = store.get(ATTEMPTS).await? else { return Ok(<_>::default()) };
    let attempts = serde_json::from_slice(&entry.value).unwrap_or_else(|error| {
        tracing::error!(%error, "what was remembered of attempts to obtain certificates cannot be read: it is forgotten");
        Attempts::default()
    });
    Ok((attempts, Some(entry.version)))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::simulation::record;
    use super::*;
    use crate::store::memory::Memory;

    #[tokio::test]
    async fn what_is_kept_is_there_again_and_what_two_remember_adds_up() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let mut one = Shelf::open(store.clone()).await.expect("a shelf");
        let mut other = Shelf::open(store.clone()).await.expect("a shelf");
        let now = Timestamp::UNIX_EPOCH;
        one.keep(record("00000000000000aa", "web", &["a.example.com"], now, Timestamp::MAX)).await;
        one.remember(|attempts| attempts.probed("a.example.com", Ok(()), now)).await.expect("stored");
        other.remember(|attempts| attempts.probed("b.example.com", Err("no such host"), now)).await.expect("stored");
        one.remember(|attempts| attempts.probed("c.example.com", Ok(()), now)).await.expect("stored");

        let mut again = Shelf::open(store.clone()).await.expect("a shelf");
        assert_eq!(again.records().count(), 1);
        for name in ["a.example.com", "b.example.com", "c.example.com"] {
            assert!(again.attempts().name(name).is_some(), "{name}");
        }
        again.remove("00000000000000aa").await;
        assert_eq!(Shelf::open(store).await.expect("a shelf").records().count(), 0);
    }
}
