//! Which kept certificate serves which wanted name, and which ones serve none.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Source;
use super::due::due;
use super::names;
use super::record::Record;
use super::wanted::Wish;

/// The kept certificates, by name.
#[derive(Debug)]
pub struct Coverage<'a> {
    by_name: BTreeMap<&'a str, Vec<Kept<'a>>>,
    now: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Kept<'a> {
    record: &'a Record,
    due: Timestamp,
}

/// How a wanted name is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service<'a> {
    Fresh(&'a Record),
    /// Valid, to be renewed.
    Due(&'a Record),
    /// Nothing valid; what there was.
    Missing(Option<&'a Record>),
}

impl<'a> Service<'a> {
    /// The certificate that serves or served it.
    pub fn record(self) -> Option<&'a Record> {
        match self {
            Service::Fresh(record) | Service::Due(record) => Some(record),
            Service::Missing(record) => record,
        }
    }
}

impl<'a> Coverage<'a> {
    pub fn new(records: &[&'a Record], now: Timestamp, seed: u64) -> Coverage<'a> {
        let mut by_name: BTreeMap<&str, Vec<Kept<'_>>> = BTreeMap::new();
        for &record in records {
            let kept = Kept { record, due: due(record, seed) };
            for name in &record.names {
                by_name.entry(name).or_default().push(kept);
            }
        }
        Coverage { by_name, now }
    }

    /// How `name`, wanted from `source`, is served. By whatever service it was obtained, and by a wildcard too; a file of the user's serves
    /// whatever source is wanted. The newest certificate counts, not the one that is valid longest: a new one may have a shorter life.
    pub fn of(&self, name: &str, source: Source) -> Service<'a> {
        match self.best(name, source) {
            Some(Kept { record, .. }) if record.not_after <= self.now => Service::Missing(Some(record)),
            Some(Kept { record, due }) if due <= self.now => Service::Due(record),
            Some(Kept { record, .. }) => Service::Fresh(record),
            None => Service::Missing(None),
        }
    }

    fn best(&self, name: &str, source: Source) -> Option<Kept<'a>> {
        let wildcard = names::wildcard(name);
        [Some(name), wildcard.as_deref()]
            .into_iter()
            .flatten()
            .flat_map(|name| self.by_name.get(name).into_iter().flatten().copied())
            .filter(|kept| kept.record.source == source || kept.record.source == Source::File)
            .max_by_key(|Kept { record, due }| {
                let valid = record.not_after > self.now;
                (valid, valid && *due > self.now, record.not_before, record.not_after, &record.id)
            })
    }

    /// Has `record` been renewed, at least for some of its names? Authorities take one successor only (RFC 9773, 5).
    pub fn is_replaced(&self, record: &Record) -> bool {
        let successor = |other: &&Record| other.issuer == record.issuer && other.not_before > record.not_before;
        record.names.iter().any(|name| self.by_name.get(name.as_str()).into_iter().flatten().any(|kept| successor(&kept.record)))
    }

    /// The records that serve a name that is wanted, though they may be past their time.
    pub fn in_use(&self, wishes: &[Wish]) -> BTreeSet<&'a str> {
        let wanted = wishes.iter().flat_map(|wish| wish.names.iter().map(|name| (name, wish.source)));
        wanted.filter_map(|(name, source)| self.best(name, source)).map(|kept| kept.record.id.as_str()).collect()
    }
}
