//! Keys for certificates that we sign ourselves, and the authority that signs them: made once, by whichever process is first.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rcgen::KeyPair;
use zeroize::Zeroize;

use super::Source;
use super::authority::{self, Authority, KEY};
use super::record::{Origin, Record};
use crate::store::{self, Store};

/// Why there is no certificate of our own making.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Authority(#[from] authority::Error),
    #[error("the internal authority cannot be kept or read: {0}")]
    Store(#[from] store::Error),
    #[error("there is no randomness for a key")]
    Randomness,
}

/// The internal authority of this store. The first one who asks makes it; it is made anew once it expired, or if it was damaged.
///
/// # Errors
/// The store's.
pub async fn authority(store: &dyn Store, now: Timestamp) -> Result<Authority, Error> {
    loop {
        let kept: Option<(Authority, _)> = store::read(store, KEY).await?;
        let version = match kept {
            Some((authority, _)) if authority.not_after > now => return Ok(authority),
            Some((_, version)) => Some(version),
            None => None,
        };
        let new = with_key(|key| Authority::found(&id()?, key, now).map_err(Error::from))?;
        match store::write(store, KEY, &new, version.as_ref()).await {
            Ok(_) => {
                tracing::info!(id = new.id, "made an internal certificate authority; clients have to be told to trust its root");
                return Ok(new);
            }
            // Somebody else was first: theirs it is.
            Err(store::Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A certificate of `authority` for `names` of `service`, with a key of its own.
///
/// # Errors
/// As [`Authority::issue`] says.
pub fn internal(authority: &Authority, service: &str, names: &BTreeSet<String>, now: Timestamp) -> Result<Record, Error> {
    let origin = origin(service, Source::Internal)?;
    with_key(|key| Ok(authority.issue(origin, names, key, now)?))
}

/// A self-signed certificate for `names` of `service`, with a key of its own; without names, the default one.
///
/// # Errors
/// As [`authority::self_signed`] says.
pub fn self_signed(service: &str, names: &BTreeSet<String>, now: Timestamp) -> Result<Record, Error> {
    let origin = origin(service, Source::SelfSigned)?;
    with_key(|key| Ok(authority::self_signed(origin, names, key, now)?))
}

fn origin(service: &str, source: Source) -> Result<Origin, Error> {
    Ok(Origin { id: id()?, service: service.to_owned(), source, issuer: None })
}

/// A [`Record::id`] that was never used.
///
/// # Errors
/// There is no randomness.
pub fn id() -> Result<String, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Randomness)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// Does something with a new key (ECDSA P-256: every client knows it, and it signs fast), which is wiped afterwards.
fn with_key<T>(work: impl FnOnce(&KeyPair) -> Result<T, Error>) -> Result<T, Error> {
    let mut key = KeyPair::generate().map_err(|error| Error::Authority(error.into()))?;
    let done = work(&key);
    key.zeroize();
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keyed::Keyed;

    #[tokio::test]
    async fn all_processes_have_one_authority_and_it_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = || Keyed::open(directory.path()).expect("a store").0;
        let now = Timestamp::now();
        let (one, other) = (open(), open());
        let (first, second) = tokio::join!(authority(&one, now), authority(&other, now));
        let first = first.expect("made");
        assert_eq!(first, second.expect("made"));
        assert_eq!(authority(&open(), now).await.expect("read"), first);
        // At the end of its life there is a new one.
        let next = authority(&one, first.not_after).await.expect("made anew");
        assert_ne!(next, first);
        assert_eq!(authority(&other, first.not_after).await.expect("read"), next);
    }

    #[test]
    fn every_certificate_has_its_own_key_and_id() {
        let names = BTreeSet::from(["a.test".to_owned()]);
        let (one, other) = (self_signed("s", &names, Timestamp::now()).unwrap(), self_signed("s", &names, Timestamp::now()).unwrap());
        assert!(one.key != other.key && one.id != other.id && one.id.len() == 16);
    }
}
