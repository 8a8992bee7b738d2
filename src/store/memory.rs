//! A store for runs without a state directory, as the demo's: what is in it ends with the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use super::{Change, Entry, Error, MAX_VALUE, Store, Version, check_key};

/// Shared by its clones.
#[derive(Clone, Debug)]
pub struct Memory {
    entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    /// Counts changes; watchers wait for it.
    changes: watch::Sender<u64>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { entries: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl Memory {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `change` if `expected` is the version of what is under `key`.
    fn replace(&self, key: &str, expected: Option<&Version>, value: Option<&[u8]>) -> Result<Version, Error> {
        check_key(key)?;
        if let Some(value) = value.filter(|value| value.len() > MAX_VALUE) {
            return Err(Error::TooLarge { key: key.to_owned(), bytes: value.len() });
        }
        let mut entries = self.entries();
        if entries.get(key).map(|entry| &entry.version) != expected {
            return Err(Error::Conflict { key: key.to_owned() });
        }
        let number = *self.changes.borrow() + 1;
        let version = Version::new(number.to_string());
        match value {
            Some(value) => drop(entries.insert(key.to_owned(), Entry { version: version.clone(), value: value.to_vec().into() })),
            None => drop(entries.remove(key)),
        }
        // While the entries are held, so that numbers are given out once.
        self.changes.send_replace(number);
        Ok(version)
    }

    fn versions(&self, prefix: &str) -> BTreeMap<String, Version> {
        let entries = self.entries();
        entries.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, entry)| (key.clone(), entry.version.clone())).collect()
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        Box::pin(async move {
            check_key(key)?;
            Ok(self.entries().get(key).cloned())
        })
    }

    fn put<'a>(&'a self, key: &'a str, value: &'a [u8], expected: Option<&'a Version>) -> BoxFuture<'a, Result<Version, Error>> {
        Box::pin(async move { self.replace(key, expected, Some(value)) })
    }

    fn remove<'a>(&'a self, key: &'a str, expected: &'a Version) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.replace(key, Some(expected), None).map(drop) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, Version>, Error>> {
        Box::pin(async move { Ok(self.versions(prefix)) })
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Change> {
        let (memory, prefix, changes) = (self.clone(), prefix.to_owned(), self.changes.subscribe());
        let told: BTreeMap<String, Version> = BTreeMap::new();
        let stream = stream::unfold((memory, prefix, changes, told), |(memory, prefix, mut changes, mut told)| async move {
            loop {
                changes.borrow_and_update();
                let now = memory.versions(&prefix);
                let new = now.iter().find(|(key, version)| told.get(*key) != Some(version));
                let gone = told.keys().find(|key| !now.contains_key(*key));
                let change = match (new, gone) {
                    (Some((key, version)), _) => Change { key: key.clone(), version: Some(version.clone()) },
                    (None, Some(key)) => Change { key: key.clone(), version: None },
                    // An error means that the last owner is gone: nothing will ever change, and `memory` here is an owner.
                    (None, None) => match changes.changed().await {
                        Ok(()) => continue,
                        Err(_) => return None,
                    },
                };
                match &change.version {
                    Some(version) => drop(told.insert(change.key.clone(), version.clone())),
                    None => drop(told.remove(&change.key)),
                }
                return Some((change, (memory, prefix, changes, told)));
            }
        });
        stream.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_second_is_told() {
        let store = Memory::default();
        let first = store.put("a/1", b"one", None).await.expect("new");
        assert!(matches!(store.put("a/1", b"two", None).await, Err(Error::Conflict { .. })));
        let second = store.put("a/1", b"two", Some(&first)).await.expect("replaced");
        assert!(matches!(store.remove("a/1", &first).await, Err(Error::Conflict { .. })));
        assert_eq!(store.get("a/1").await.expect("there").expect("a value").value.as_slice(), b"two");
        assert_eq!(store.list("a/").await.expect("listed").len(), 1);
        store.remove("a/1", &second).await.expect("removed");
        assert!(store.list("").await.expect("listed").is_empty());
        assert!(matches!(store.put("../x", b"", None).await, Err(Error::Key { .. })));
    }

    #[tokio::test]
    async fn watchers_hear_of_what_is_there_and_of_every_change() {
        let store = Memory::default();
        let first = store.put("a/1", b"one", None).await.expect("new");
        store.put("b/1", b"other", None).await.expect("new");
        let mut changes = store.watch("a/");
        assert_eq!(changes.next().await, Some(Change { key: "a/1".into(), version: Some(first.clone()) }));
        let late = store.clone();
        tokio::spawn(async move { late.remove("a/1", &first).await });
        assert_eq!(changes.next().await, Some(Change { key: "a/1".into(), version: None }));
    }
}
