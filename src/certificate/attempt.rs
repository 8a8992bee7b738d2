//! What is remembered of attempts to obtain certificates: small, bounded, kept over restarts under one key. Each event yields the next state.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::issuer::Issuer;
use super::jitter::later;
use super::plan::Order;
use super::quota::Quota;

/// The memory of all attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempts {
    names: BTreeMap<String, History>,
    issuers: BTreeMap<String, Quota>,
    /// When the authority may be asked for a certificate's window, by record.
    windows: BTreeMap<String, Timestamp>,
    /// Records for which a successor was ordered, with its names. Where its end was never seen, the authority may have given it.
    replaced: BTreeMap<String, Vec<String>>,
}

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When it was last seen to reach us.
    pub reached: Option<Timestamp>,
    /// It does not reach us.
    pub unreachable: Option<Trouble>,
    /// Orders came to nothing because of it.
    pub failed: Option<Trouble>,
}

/// Failures in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub times: u32,
    /// The last one.
    pub at: Timestamp,
    pub error: String,
    /// It is its own fault.
    #[serde(default)]
    pub alone: bool,
}

/// What an order came to, if not to a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// These names cannot be had; the others may be had without them.
    Names(BTreeMap<String, Blame>),
    /// The authority wants no orders for `names` (none: no orders at all) before then.
    RateLimited { until: Timestamp, names: BTreeSet<String>, error: String },
    /// The authority is down, or does not let us in.
    Issuer { until: Option<Timestamp>, error: String },
    /// Something of ours: nobody else is to blame.
    Local(String),
}

/// Why one name cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    pub error: String,
    /// The authority tried to validate it, which it counts.
    pub tried: bool,
    /// The authority does not want the name, as another one may.
    pub by_issuer: bool,
}

/// Names that no label wants are remembered for so long: taking a label away and putting it back is no way around the pauses.
const UNWANTED: SignedDuration = SignedDuration::from_hours(24);
/// And no more of them than these.
const MOST_UNWANTED: usize = 1_000;
/// Characters of an error.
const LONGEST_ERROR: usize = 400;

impl Attempts {
    pub fn name(&self, name: &str) -> Option<&History> {
        self.names.get(name)
    }

    pub fn issuer(&self, name: &str) -> Option<&Quota> {
        self.issuers.get(name)
    }

    /// It once spoiled an order: it is ordered by itself from now on.
    pub fn is_alone(&self, name: &str) -> bool {
        let failed = self.name(name).and_then(|history| history.failed.as_ref()).is_some_and(|trouble| trouble.alone);
        failed || self.issuers.values().any(|quota| quota.refused.contains_key(name))
    }

    /// Has a successor of that record been ordered, that did not come to nothing? Authorities take one only.
    pub fn is_replaced(&self, record: &str) -> bool {
        self.replaced.contains_key(record)
    }

    /// From when on the authority may be asked for the window of that record.
    pub fn window(&self, record: &str) -> Option<Timestamp> {
        self.windows.get(record).copied()
    }

    /// A name was asked whether it reaches us.
    #[must_use]
    pub fn probed(mut self, name: &str, answer: Result<(), &str>, now: Timestamp) -> Attempts {
        let history = self.names.entry(name.to_owned()).or_default();
        match answer {
            Ok(()) => (history.reached, history.unreachable) = (Some(now), None),
            Err(error) => {
                history.reached = None;
                history.unreachable = Some(Trouble::again(history.unreachable.as_ref(), error, false, now));
            }
        }
        self
    }

    /// `order` is about to be sent to `issuer`: to be stored before it is.
    #[must_use]
    pub fn ordered(mut self, issuer: &Issuer, order: &Order, now: Timestamp) -> Attempts {
        self.issuers.entry(issuer.name.clone()).or_default().ordered(&issuer.limits, &order.names, order.exempt, now);
        if let Some(record) = &order.replaces {
            self.replaced.insert(record.clone(), order.names.clone());
        }
        self
    }

    /// A certificate for these names is there. `issuer`: `None` where it is of our own.
    #[must_use]
    pub fn issued(mut self, issuer: Option<&str>, names: &[String], now: Timestamp) -> Attempts {
        for name in names {
            if let Some(history) = self.names.get_mut(name) {
                history.failed = None;
            }
        }
        if let Some(quota) = issuer.and_then(|issuer| self.issuers.get_mut(issuer)) {
            quota.settled(names, true, now);
            quota.trouble = None;
            quota.refused.retain(|name, _| !names.contains(name));
        }
        self
    }

    /// An order for `names` came to nothing.
    #[must_use]
    pub fn failed(mut self, issuer: Option<&str>, names: &[String], failure: &Failure, now: Timestamp) -> Attempts {
        let mut own = Quota::default();
        let quota = match issuer {
            Some(issuer) => self.issuers.entry(issuer.to_owned()).or_default(),
            None => &mut own,
        };
        quota.settled(names, false, now);
        self.replaced.retain(|_, successor| successor != names);
        match failure {
            Failure::Names(blamed) => {
                quota.trouble = None;
                for (name, blame) in blamed {
                    if blame.tried {
                        quota.invalid(name, now);
                    }
                    if blame.by_issuer {
                        let before = quota.refused.get(name);
                        let trouble = Trouble::again(before, &blame.error, true, now);
                        quota.refused.insert(name.clone(), trouble);
                    } else {
                        let history = self.names.entry(name.clone()).or_default();
                        history.reached = None;
                        history.failed = Some(Trouble::again(history.failed.as_ref(), &blame.error, true, now));
                    }
                }
            }
            Failure::RateLimited { until, names, error } if names.is_empty() => quota.until = Some((*until, brief(error))),
            Failure::RateLimited { until, names, error } => {
                quota.names.extend(names.iter().map(|name| (name.clone(), (*until, brief(error)))));
            }
            Failure::Issuer { until, error } => {
                quota.until = until.map(|until| (until, brief(error))).or(quota.until.take());
                quota.trouble = Some(Trouble::again(quota.trouble.as_ref(), error, false, now));
            }
            Failure::Local(error) => {
                for name in names {
                    let history = self.names.entry(name.clone()).or_default();
                    let alone = history.failed.as_ref().is_some_and(|trouble| trouble.alone);
                    history.failed = Some(Trouble::again(history.failed.as_ref(), error, alone, now));
                }
            }
        }
        self
    }

    /// The authority was asked for the window of a record, and may be asked `again`.
    #[must_use]
    pub fn asked(mut self, record: &str, again: Timestamp) -> Attempts {
        self.windows.insert(record.to_owned(), again);
        self
    }

    /// Drops what is of no use any more: what is of names and records that are gone, and what no limit counts.
    #[must_use]
    pub fn forget(mut self, wanted: &BTreeSet<&str>, records: &BTreeSet<&str>, now: Timestamp) -> Attempts {
        for quota in self.issuers.values_mut() {
            quota.forget(now);
        }
        self.issuers.retain(|_, quota| *quota != Quota::default());
        self.windows.retain(|record, _| records.contains(record.as_str()));
        self.replaced.retain(|record, _| records.contains(record.as_str()));
        for history in self.names.values_mut() {
            history.not_of_the_future(now);
        }
        let mut unwanted: Vec<(Timestamp, String)> = (self.names.iter())
            .filter(|(name, _)| !wanted.contains(name.as_str()))
            .map(|(name, history)| (history.last(), name.clone()))
            .collect();
        unwanted.sort();
        let surplus = unwanted.len().saturating_sub(MOST_UNWANTED);
        for (number, (last, name)) in unwanted.into_iter().enumerate() {
            if number < surplus || later(last, UNWANTED) <= now {
                self.names.remove(&name);
            }
        }
        self
    }
}

impl History {
    /// When something was last heard of it.
    fn last(&self) -> Timestamp {
        let troubles = [&self.unreachable, &self.failed].into_iter().flatten().map(|trouble| trouble.at);
        troubles.chain(self.reached).max().unwrap_or(Timestamp::MIN)
    }

    /// A clock that was ahead leaves no pauses of years.
    fn not_of_the_future(&mut self, now: Timestamp) {
        self.reached = self.reached.filter(|at| *at <= now);
        for trouble in [&mut self.unreachable, &mut self.failed].into_iter().flatten() {
            trouble.at = trouble.at.min(now);
        }
    }
}

impl Trouble {
    fn again(before: Option<&Trouble>, error: &str, alone: bool, now: Timestamp) -> Trouble {
        Trouble { times: before.map_or(1, |before| before.times.saturating_add(1)), at: now, error: brief(error), alone }
    }
}

fn brief(error: &str) -> String {
    error.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST_ERROR).collect()
}
