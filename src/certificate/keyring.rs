//! Which certificate a client is shown: the one of exactly its name, else of the wildcard above it, else the default one.
//! Built anew for each change and swapped whole; looking up allocates nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::Source;
use super::record::Record;

/// A certificate with its key, ready to be shown.
pub struct Entry {
    pub key: Arc<CertifiedKey>,
    /// Lower case, `*.example.com` for wildcards.
    names: Box<[Box<str>]>,
    pub source: Source,
    pub not_after: Timestamp,
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Entry").field("names", &self.names).field("source", &self.source).finish_non_exhaustive()
    }
}

/// Why a record cannot be shown to clients.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("its PEM text cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("its key cannot be used: {0}")]
    Key(#[from] rustls::Error),
    #[error("it holds no certificate")]
    Empty,
}

impl Entry {
    /// The certificate of `record` with its key loaded by `provider`.
    ///
    /// # Errors
    /// When chain or key are not what they should be, or do not belong together.
    pub fn new(record: &Record, provider: &CryptoProvider) -> Result<Entry, Unusable> {
        let chain = CertificateDer::pem_slice_iter(record.chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() {
            return Err(Unusable::Empty);
        }
        let key = PrivateKeyDer::from_pem_slice(record.key.reveal().as_bytes())?;
        let key = CertifiedKey::from_der(chain, key, provider)?;
        let names = record.names.iter().map(|name| Box::from(name.as_str())).collect();
        Ok(Entry { key: Arc::new(key), names, source: record.source, not_after: record.not_after })
    }

    /// With a key that is loaded already, which several may share. `names` in lower case.
    pub fn with_key(key: Arc<CertifiedKey>, names: impl IntoIterator<Item = Box<str>>, source: Source, not_after: Timestamp) -> Entry {
        Entry { key, names: names.into_iter().collect(), source, not_after }
    }

    /// For `names`, with a key of its own.
    #[cfg(test)]
    pub fn for_tests(names: &[&str]) -> Entry {
        let made =
            rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("a certificate");
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let key = CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).expect("a pair");
        let names = names.iter().map(|name| Box::from(*name)).collect();
        Entry { key: Arc::new(key), names, source: Source::SelfSigned, not_after: Timestamp::MAX }
    }

    /// Does the certificate stand for `host`? A wildcard stands for one label (RFC 9525, 6.3).
    pub fn covers(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(rest) => parent == Some(rest),
            None => **name == *host,
        })
    }
}

type Map = HashMap<Box<str>, Arc<Entry>, foldhash::fast::RandomState>;

/// All certificates that can be shown, by name.
#[derive(Debug)]
pub struct Keyring {
    exact: Map,
    /// By what follows `*.`.
    wildcard: Map,
    default: Arc<Entry>,
}

impl Keyring {
    /// Of several certificates for one name the better one is shown: one that clients trust rather than one of our own, then the one
    /// that lasts longest. `default` is shown to whom none of the others fits.
    pub fn new(entries: impl IntoIterator<Item = Arc<Entry>>, default: Arc<Entry>) -> Keyring {
        let (mut exact, mut wildcard) = (Map::default(), Map::default());
        for entry in entries {
            for name in &entry.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut wildcard, rest),
                    None => (&mut exact, &**name),
                };
                if map.get(name).is_none_or(|there| is_better(&entry, there)) {
                    map.insert(Box::from(name), Arc::clone(&entry));
                }
            }
        }
        Keyring { exact, wildcard, default }
    }

    /// The certificate for `name` (lower case); the default one where there is none, or the client named no host.
    pub fn find(&self, name: Option<&str>) -> &Arc<Entry> {
        name.and_then(|name| self.known(name)).unwrap_or(&self.default)
    }

    /// The certificate that stands for `name`, if there is one.
    pub fn known(&self, name: &str) -> Option<&Arc<Entry>> {
        // RFC 6066 has no dot at the end; clients do.
        let name = name.strip_suffix('.').unwrap_or(name);
        self.exact.get(name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }

    /// How many names have a certificate.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Is there but the default?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn is_better(new: &Entry, old: &Entry) -> bool {
    // What the user gave by hand outranks what we found by ourselves.
    let rank = |entry: &Entry| match entry.source {
        Source::File => 3,
        Source::Acme => 2,
        Source::Internal => 1,
        Source::SelfSigned => 0,
    };
    (rank(new), new.not_after) > (rank(old), old.not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(names: &[&str], source: Source, days: i64) -> Arc<Entry> {
        let not_after = Timestamp::from_second(days * 86_400).expect("in range");
        Arc::new(Entry { source, not_after, ..Entry::for_tests(names) })
    }

    #[test]
    fn exact_before_wildcard_before_default() {
        let (exact, wildcard, default) =
            (entry(&["a.test", "b.a.test"], Source::Acme, 1), entry(&["*.a.test"], Source::Acme, 2), entry(&[], Source::SelfSigned, 3));
        let keyring = Keyring::new([wildcard.clone(), exact.clone()], default.clone());
        for (name, wanted) in [
            (Some("a.test"), &exact),
            (Some("b.a.test"), &exact),
            (Some("c.a.test"), &wildcard),
            (Some("c.a.test."), &wildcard),
            (Some("d.c.a.test"), &default),
            (Some("test"), &default),
            (Some(""), &default),
            (None, &default),
        ] {
            assert!(Arc::ptr_eq(keyring.find(name), wanted), "{name:?}");
        }
        assert_eq!((keyring.len(), keyring.known("x.test").is_none()), (3, true));
    }

    #[test]
    fn the_better_certificate_wins_whatever_the_order() {
        let by_hand = entry(&["a.test"], Source::File, 1);
        let (old, new) = (entry(&["a.test"], Source::Acme, 2), entry(&["a.test"], Source::Acme, 3));
        let own = entry(&["a.test"], Source::SelfSigned, 9);
        let best = |entries: &[&Arc<Entry>]| {
            let keyring = Keyring::new(entries.iter().map(|entry| Arc::clone(entry)), own.clone());
            keyring.find(Some("a.test")).clone()
        };
        for order in [[&old, &new, &own], [&own, &new, &old], [&new, &own, &old]] {
            assert!(Arc::ptr_eq(&best(&order), &new));
        }
        assert!(Arc::ptr_eq(&best(&[&new, &by_hand]), &by_hand));
    }
}
