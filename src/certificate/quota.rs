//! What one authority was asked for lately, so that its limits are kept, and what it said last.

use std::collections::BTreeMap;
use std::hash::Hasher;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::attempt::{Trouble, brief};
use super::issuer::{Limit, Limits, MEMORY};
use super::jitter::later;
use super::names;

/// One authority, as this edge's account knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// It is down, or does not let us in.
    pub trouble: Option<Trouble>,
    /// It wants no orders before then, and says why.
    pub until: Option<(Timestamp, String)>,
    /// Names that it does not want to hear of before then.
    pub names: BTreeMap<String, (Timestamp, String)>,
    /// Names that it refuses of its own accord, as others may not.
    pub refused: BTreeMap<String, Trouble>,
    orders: Vec<Order>,
    /// When it failed to validate a name.
    failures: BTreeMap<String, Vec<Timestamp>>,
}

/// One order, kept for as long as a limit may count it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    at: Timestamp,
    state: State,
    /// Of its names, in order.
    set: u64,
    /// Registered domains that it counts for.
    domains: Vec<String>,
    /// While it is under way, or if its end was never seen.
    #[serde(default)]
    names: Vec<String>,
    /// Nothing counts it any more once its end was seen.
    #[serde(default)]
    passing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It counts as issued: nobody saw that it was not.
    UnderWay,
    Issued,
    Failed,
}

impl Quota {
    /// An order is about to be sent. `exempt`: the limit by registered domain does not count it.
    pub fn ordered(&mut self, limits: &Limits, names: &[String], exempt: bool, now: Timestamp) {
        if *limits == Limits::default() {
            return;
        }
        let passing = limits.orders.is_none() && limits.domain.is_none() && limits.duplicates.is_none();
        let mut domains: Vec<String> =
            if exempt { Vec::new() } else { names.iter().map(|name| names::registered(name).to_owned()).collect() };
        domains.sort();
        domains.dedup();
        self.orders.push(Order { at: now, state: State::UnderWay, set: set(names), domains, names: names.to_vec(), passing });
    }

    /// The order for these names has come to an end. Certificates count from now on.
    pub fn settled(&mut self, names: &[String], issued: bool, now: Timestamp) {
        let set = set(names);
        let Some(index) = self.orders.iter().rposition(|order| order.state == State::UnderWay && order.set == set) else { return };
        let order = &mut self.orders[index];
        if order.passing {
            self.orders.remove(index);
        } else {
            order.names = Vec::new();
            order.state = if issued { State::Issued } else { State::Failed };
            order.at = if issued { now } else { order.at };
        }
    }

    /// It is down, or does not let us in; it may have said when to come back.
    pub fn unavailable(&mut self, until: Option<Timestamp>, error: &str, now: Timestamp) {
        self.until = until.map(|until| (until, brief(error))).or(self.until.take());
        self.trouble = Some(Trouble::again(self.trouble.as_ref(), error, false, now));
    }

    /// It could not validate `name`.
    pub fn invalid(&mut self, name: &str, now: Timestamp) {
        self.failures.entry(name.to_owned()).or_default().push(now);
    }

    /// From when on it takes another order at all; `None`: now.
    pub fn orders_free(&self, limits: &Limits, now: Timestamp) -> Option<Timestamp> {
        free(limits.orders?, self.orders.iter().map(|order| order.at), now)
    }

    /// From when on it takes another certificate below `domain`.
    pub fn domain_free(&self, limits: &Limits, domain: &str, now: Timestamp) -> Option<Timestamp> {
        let counted = |order: &&Order| order.state != State::Failed && order.domains.iter().any(|own| own == domain);
        free(limits.domain?, self.orders.iter().filter(counted).map(|order| order.at), now)
    }

    /// From when on it takes another certificate for the very same names.
    pub fn set_free(&self, limits: &Limits, names: &[String], now: Timestamp) -> Option<Timestamp> {
        let (limit, set) = (limits.duplicates?, set(names));
        free(limit, self.orders.iter().filter(|order| order.state != State::Failed && order.set == set).map(|order| order.at), now)
    }

    /// From when on it may try to validate `name` again. An order whose end was never seen may have failed.
    pub fn validation_free(&self, limits: &Limits, name: &str, now: Timestamp) -> Option<Timestamp> {
        let unseen = self.orders.iter().filter(|order| order.names.iter().any(|own| own == name)).map(|order| order.at);
        free(limits.failures?, self.failures.get(name).into_iter().flatten().copied().chain(unseen), now)
    }

    /// Drops what no limit counts any more. What claims to be of the future is of a clock that was wrong.
    pub fn forget(&mut self, now: Timestamp) {
        let furthest = later(now, MEMORY);
        if self.until.as_ref().is_some_and(|(until, _)| *until <= now || *until > furthest) {
            self.until = None;
        }
        self.names.retain(|_, (until, _)| *until > now && *until <= furthest);
        self.refused.retain(|_, trouble| later(trouble.at, MEMORY) > now);
        for order in &mut self.orders {
            order.at = order.at.min(now);
        }
        self.orders.retain(|order| later(order.at, MEMORY) > now);
        for times in self.failures.values_mut() {
            times.retain(|at| *at <= now && later(*at, MEMORY) > now);
        }
        self.failures.retain(|_, times| !times.is_empty());
        for trouble in self.refused.values_mut().chain(&mut self.trouble) {
            trouble.at = trouble.at.min(now);
        }
    }
}

/// From when on one more fits, where these counted; `None`: now.
fn free(limit: Limit, times: impl Iterator<Item = Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let mut counted: Vec<Timestamp> = times.filter(|at| later(*at, limit.per) > now).collect();
    if counted.len() < limit.most {
        return None;
    }
    counted.sort();
    // Where nothing is allowed, it never gets better.
    Some(counted.get(counted.len() - limit.most).map_or(Timestamp::MAX, |at| later(*at, limit.per)))
}

/// Names in any order are the same set.
fn set(names: &[String]) -> u64 {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = fnv::FnvHasher::default();
    for name in sorted {
        hash.write(name.as_bytes());
        hash.write_u8(0);
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + hours * 3600).expect("a time")
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn the_fifth_duplicate_is_the_last_for_a_week() {
        let (mut quota, limits) = (Quota::default(), Limits::LETS_ENCRYPT);
        let pair = names(&["a.example.com", "b.example.com"]);
        for hour in 0..5 {
            assert_eq!(quota.set_free(&limits, &pair, at(hour)), None);
            quota.ordered(&limits, &pair, false, at(hour));
            quota.settled(&pair, true, at(hour));
        }
        let turned = names(&["b.example.com", "a.example.com"]);
        assert_eq!(quota.set_free(&limits, &turned, at(5)), Some(at(168) + SignedDuration::from_secs(60)));
        assert_eq!(quota.set_free(&limits, &pair[..1], at(5)), None);
        assert_eq!(quota.set_free(&limits, &pair, at(169)), None);
    }

    #[test]
    fn domains_count_certificates_and_not_failures_nor_renewals_in_the_window() {
        let (mut quota, limits) = (Quota::default(), Limits::LETS_ENCRYPT);
        for number in 0..150 {
            let name = names(&[&format!("n{number}.example.co.uk")]);
            quota.ordered(&limits, &name, number % 3 == 0, at(0));
            quota.settled(&name, number % 3 != 1, at(0));
        }
        assert!(quota.domain_free(&limits, "example.co.uk", at(1)).is_some(), "50 were issued");
        assert_eq!(quota.domain_free(&limits, "example.com", at(1)), None);
        assert_eq!(quota.orders_free(&limits, at(1)), None);
        quota.ordered(&limits, &names(&["x.example.net"]), false, at(1));
        assert_eq!(quota.domain_free(&limits, "example.net", at(1)), None);
    }

    #[test]
    fn orders_whose_end_was_never_seen_count_for_everything() {
        let (mut quota, limits) = (Quota::default(), Limits::LETS_ENCRYPT);
        let name = names(&["a.example.com"]);
        for _ in 0..5 {
            quota.ordered(&limits, &name, false, at(0));
        }
        assert!(quota.set_free(&limits, &name, at(0)).is_some() && quota.validation_free(&limits, "a.example.com", at(0)).is_some());
        quota.forget(at(2));
        assert!(quota.set_free(&limits, &name, at(2)).is_some() && quota.validation_free(&limits, "a.example.com", at(2)).is_none());
        quota.forget(at(200));
        assert_eq!(quota, Quota::default());
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_limited() {
        let mut quota = Quota::default();
        quota.ordered(&Limits::default(), &names(&["a.test"]), false, at(0));
        assert_eq!(quota, Quota::default());
        quota.ordered(&Limits::UNTOLD, &names(&["a.test"]), false, at(0));
        quota.settled(&names(&["a.test"]), true, at(0));
        assert_eq!(quota, Quota::default());
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_lock_us_out() {
        let mut quota = Quota { until: Some((at(100_000), "later".into())), ..Quota::default() };
        quota.ordered(&Limits::LETS_ENCRYPT, &names(&["a.example.com"]), false, at(100_000));
        quota.invalid("a.example.com", at(100_000));
        quota.forget(at(0));
        assert_eq!(quota.until, None);
        quota.forget(at(200));
        assert_eq!(quota, Quota::default());
    }
}
