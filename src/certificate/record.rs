//! A certificate with its key as the store keeps it, and what can be read off it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Source;
use super::pem::{self, Flaw};

/// Text that never shows: not in logs, errors or debug output; wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    /// The text itself: only for whoever signs or stores with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// When an authority wants a certificate renewed (RFC 9773, 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub start: Timestamp,
    pub end: Timestamp,
    /// When it may be asked for again.
    pub ask_again: Timestamp,
}

/// One certificate, with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the record in the store, `[0-9a-f]{16}`: never used twice.
    pub id: String,
    /// The service for which it was obtained.
    pub service: String,
    pub source: Source,
    /// Which of the configured issuers gave it.
    pub issuer: Option<String>,
    /// Sorted, as in [`super::wanted::Wish::names`].
    pub names: Vec<String>,
    /// PEM, leaf first.
    pub chain: String,
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: Secret,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    #[serde(default)]
    pub window: Option<Window>,
    /// Since when no label wants it.
    #[serde(default)]
    pub unwanted_since: Option<Timestamp>,
}

/// Of a certificate, what its texts do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// As in [`Record::id`].
    pub id: String,
    pub service: String,
    pub source: Source,
    pub issuer: Option<String>,
}

impl Record {
    /// The certificate in `chain` that belongs to `key`: PEM, in any order, also both in one text.
    ///
    /// # Errors
    /// What keeps it from being served; that it expired does not.
    pub fn from_pem(origin: Origin, chain: &str, key: &str) -> Result<Record, Flaw> {
        let read = pem::read(chain, key)?;
        let Origin { id, service, source, issuer } = origin;
        let pem::Read { chain, key, names, not_before, not_after } = read;
        Ok(Record { id, service, source, issuer, names, chain, key, not_before, not_after, window: None, unwanted_since: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::local::self_signed;

    #[test]
    fn a_record_reads_back_and_shows_no_key() {
        let record = self_signed("shop_web", &["a.test".to_owned()].into(), Timestamp::now()).expect("made");
        let text = serde_json::to_string(&record).expect("JSON");
        assert_eq!(serde_json::from_str::<Record>(&text).expect("read back"), record);
        let letters = record.key.reveal().lines().nth(1).expect("base64");
        assert!(text.contains(letters));
        assert!(!format!("{record:?} {:?}", record.key).contains(letters));
        let origin = Origin { id: String::new(), service: String::new(), source: Source::File, issuer: None };
        assert_eq!(Record::from_pem(origin, &record.chain, record.key.reveal()).expect("read").names, ["a.test"]);
    }
}
