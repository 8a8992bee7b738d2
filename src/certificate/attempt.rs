//! What is remembered of attempts to obtain certificates: small, bounded, kept over restarts under one key. Each event yields the next state.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::failure::{Blame, Failure, Refusal};
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

/// Names that no label wants are remembered for so long: taking a label away and putting it back is no way around the pauses.
const UNWANTED: SignedDuration = SignedDuration::from_hours(24);
/// And no more of them than these.
const MOST_UNWANTED: usize = 1_000;
/// That a name reached us, and nothing else, is remembered for so long.
const REACHED: SignedDuration = SignedDuration::from_hours(1);
/// Characters of an error.
const LONGEST_ERROR: usize = 300;

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
            Failure::Names(refusals) => {
                quota.trouble = None;
                for (name, refusal) in refusals {
                    if refusal.tried {
                        quota.invalid(name, now);
                    }
                    if is_policy(refusal) {
                        let trouble = Trouble::again(quota.refused.get(name), &refusal.text, true, now);
                        quota.refused.insert(name.clone(), trouble);
                    } else {
                        let history = self.names.entry(name.clone()).or_default();
                        history.reached = None;
                        history.failed = Some(Trouble::again(history.failed.as_ref(), &refusal.text, true, now));
                    }
                }
            }
            Failure::RateLimited { until, names, text } if names.is_empty() => quota.until = Some((*until, brief(text))),
            Failure::RateLimited { until, names, text } => {
                quota.names.extend(names.iter().map(|name| (name.clone(), (*until, brief(text)))));
            }
            Failure::Unavailable { retry_after, text } => quota.unavailable(*retry_after, text, now),
            Failure::Account { text, .. } => quota.unavailable(None, text, now),
            Failure::Local(text) => {
                for name in names {
                    let history = self.names.entry(name.clone()).or_default();
                    let alone = history.failed.as_ref().is_some_and(|trouble| trouble.alone);
                    history.failed = Some(Trouble::again(history.failed.as_ref(), text, alone, now));
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
        self.names.retain(|_, history| {
            history.not_of_the_future(now);
            let troubled = history.unreachable.is_some() || history.failed.is_some();
            troubled || history.reached.is_some_and(|at| later(at, REACHED) > now)
        });
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

/// Another authority may well certify the name: this one does not want to, or may not (RFC 8555, 6.7; RFC 8659 for `caa`).
fn is_policy(refusal: &Refusal) -> bool {
    refusal.blame == Blame::Authority || matches!(refusal.kind.as_str(), "rejectedIdentifier" | "unsupportedIdentifier" | "caa")
}

impl Trouble {
    pub(super) fn again(before: Option<&Trouble>, error: &str, alone: bool, now: Timestamp) -> Trouble {
        Trouble { times: before.map_or(1, |before| before.times.saturating_add(1)), at: now, error: brief(error), alone }
    }
}

pub(super) fn brief(error: &str) -> String {
    error.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST_ERROR).collect()
}
