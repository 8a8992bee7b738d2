//! What is known of live backends: requests in flight, begun and failed, their health, and each service's retry budget.
//! It survives swaps of the table, because it belongs to backends and not to routes, and is dropped when no table names them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::one::RefMut;

use super::budget::Budget;
use super::check::{Checked, Verdict};
use super::ejection::Change;
use super::health::{Fitness, Health};
use super::{Backend, Check, Failure, Moment, Pool};
use crate::snapshot::Condition;

/// Counters of one backend. They are read for choosing and for metrics, where a value a moment old is good enough: hence relaxed ordering.
#[derive(Debug, Default)]
pub struct Stats {
    /// Of the backend.
    id: Arc<str>,
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    health: Health,
    /// Of the backend's service.
    budget: Arc<Budget>,
}

impl Stats {
    /// What is known of the backend's health.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Requests that were begun and have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that were ever begun.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that the backend failed: no connection, broken off, too late.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// What is known by [`Backend::id`], and by service. Bounded by [`Ledger::prune`].
#[derive(Debug, Default)]
pub struct Ledger {
    stats: DashMap<Arc<str>, Arc<Stats>>,
    services: DashMap<Arc<str>, Arc<Service>>,
    /// Until then some backend is ejected or comes back, in milliseconds. As long as all is well, picking looks at nothing else.
    ailing: AtomicU64,
    /// Backends whose checks do not pass, or not yet.
    unsettled: AtomicU32,
}

/// What is counted for a whole service.
#[derive(Debug, Default)]
struct Service {
    /// Of round-robin.
    turn: AtomicU64,
    budget: Arc<Budget>,
}

/// One attempt in flight on a backend, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Stats>);

impl InFlight {
    /// It is the first attempt of a request: what the retry budget is a share of.
    pub fn is_first(&self, now: Moment) {
        self.0.budget.request(now);
    }

    /// The backend answered an attempt that began at `began` as a healthy one does.
    pub fn succeeded(&self, now: Moment, began: Moment) -> Option<Change> {
        self.0.health.succeeded(now, began)
    }

    /// The answer broke off after it had begun: counted, but no reason to think that the next one will.
    pub fn broke_off(&self) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a retry from the service's budget, if there is one left.
    pub fn may_retry(&self, now: Moment) -> bool {
        self.0.budget.take(now)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ledger {
    /// Counts a request on `backend` until the guard is dropped.
    pub fn start(&self, backend: &Backend) -> InFlight {
        // Counted while the map's entry is held, so that a concurrent prune cannot drop counters that are in use.
        let begin = |stats: &Arc<Stats>| {
            stats.in_flight.fetch_add(1, Ordering::Relaxed);
            stats.requests.fetch_add(1, Ordering::Relaxed);
            InFlight(Arc::clone(stats))
        };
        if let Some(stats) = self.stats.get(&backend.id) {
            return begin(&stats);
        }
        begin(&self.entry(backend))
    }

    fn entry(&self, backend: &Backend) -> RefMut<'_, Arc<str>, Arc<Stats>> {
        let budget = Arc::clone(&self.service(&backend.service).budget);
        self.stats
            .entry(Arc::clone(&backend.id))
            .or_insert_with(|| Arc::new(Stats { id: Arc::clone(&backend.id), budget, ..Stats::default() }))
    }

    /// The attempt's backend, which is one of `pool`, failed it. Whoever fails several times in a row is ejected, if the pool can spare it.
    pub fn failed(&self, attempt: &InFlight, pool: &Pool, failure: Failure, now: Moment, seed: u64) -> Option<Change> {
        attempt.0.failures.fetch_add(1, Ordering::Relaxed);
        if !failure.blames_the_task() {
            return None;
        }
        let change = attempt.0.health.failed(now, seed, || pool.can_spare(self, &attempt.0.id, failure, now));
        if matches!(change, Some(Change::Ejected { .. })) {
            self.ailing.fetch_max(attempt.0.health.recovered().0, Ordering::Relaxed);
        }
        change
    }

    /// Is every backend known to be well? Then nobody needs to look at them one by one.
    pub(super) fn all_well(&self, now: Moment) -> bool {
        now.0 >= self.ailing.load(Ordering::Relaxed) && self.unsettled.load(Ordering::Relaxed) == 0
    }

    /// What is known of the backend with this id; who is unheard of is well.
    pub fn fitness(&self, id: &str, now: Moment) -> Fitness {
        self.stats.get(id).map_or(Fitness::Fit(super::ejection::WHOLE), |stats| stats.health.fitness(now))
    }

    /// Why the backend with this id gets no requests although it is up; in words.
    pub fn ailment(&self, id: &str, now: Moment) -> Option<String> {
        self.stats(id)?.health.ailment(now)
    }

    /// Retries that each service's budget refused, by name.
    pub fn refused_retries(&self) -> Vec<(Arc<str>, u64)> {
        self.services.iter().map(|entry| (Arc::clone(entry.key()), entry.budget.refused())).collect()
    }

    /// Tasks with a check get requests once it passes. To be called before the table with these pools is swapped in.
    pub fn admit<'a>(&self, pools: impl IntoIterator<Item = &'a Pool>) {
        let mut checked = HashMap::new();
        for group in pools.into_iter().flat_map(|pool| &pool.groups) {
            for backend in group.backends.iter().filter(|backend| backend.condition == Condition::Healthy) {
                *checked.entry(&backend.id).or_insert(false) |= group.check.is_some();
                if group.check.is_some() {
                    drop(self.entry(backend));
                }
            }
        }
        for (id, checked) in checked {
            // Looked up first and changed later: no lock is taken within the map's.
            if let Some(stats) = self.stats(id) {
                stats.health.expect_checks(checked);
            }
        }
        self.settle();
    }

    /// Takes an answer to the check of the backend with this id: its status, or why there was none. The new verdict where it changed.
    pub fn answered(&self, id: &str, answer: Result<u16, String>, check: &Check, now: Moment) -> Option<Verdict> {
        let stats = self.stats(id)?;
        let change = stats.health.answered(answer, check, now)?;
        self.ailing.fetch_max(stats.health.recovered().0, Ordering::Relaxed);
        self.settle();
        Some(change)
    }

    /// What the checks of the backend with this id said so far.
    pub fn checked(&self, id: &str) -> Option<Checked> {
        self.stats(id)?.health.checked()
    }

    fn settle(&self) {
        let unsettled = self.stats.iter().filter(|entry| entry.health.is_unsettled()).count();
        self.unsettled.store(u32::try_from(unsettled).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn service(&self, name: &Arc<str>) -> Arc<Service> {
        if let Some(service) = self.services.get(name) {
            return Arc::clone(&service);
        }
        Arc::clone(&self.services.entry(Arc::clone(name)).or_default())
    }

    /// Requests in flight on the backend with this id.
    pub fn in_flight(&self, id: &str) -> u32 {
        self.stats.get(id).map_or(0, |stats| stats.in_flight())
    }

    /// The counters of the backend with this id, if it ever had a request.
    pub fn stats(&self, id: &str) -> Option<Arc<Stats>> {
        self.stats.get(id).map(|stats| Arc::clone(&stats))
    }

    /// The next turn of a service's round-robin.
    pub(super) fn turn(&self, service: &Arc<str>) -> u64 {
        self.service(service).turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Forgets backends that no pool names and that have no request in flight, and services that no pool names. To be called after each swap.
    pub fn prune<'a>(&self, pools: impl IntoIterator<Item = &'a Pool>) {
        let mut named = HashSet::new();
        let mut services = HashSet::new();
        for group in pools.into_iter().flat_map(|pool| &pool.groups) {
            services.insert(&*group.service);
            named.extend(group.backends.iter().map(|backend| &*backend.id));
        }
        self.stats.retain(|id, stats| named.contains(&**id) || stats.in_flight() > 0);
        self.services.retain(|service, _| services.contains(&**service));
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::pick::tests::{backend, pool};
    use super::super::{Affinity, Balance};
    use super::*;

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let ledger = Ledger::default();
        let one = backend("shop", 1);
        let (first, second) = (ledger.start(&one), ledger.start(&one));
        second.broke_off();
        assert_eq!(ledger.in_flight(&one.id), 2);
        drop(first);
        drop(second);
        let stats = ledger.stats(&one.id).expect("it had requests");
        assert_eq!((stats.in_flight(), stats.requests(), stats.failures()), (0, 2, 1));
        assert_eq!(ledger.in_flight("shop/unheard-of@10.0.0.1:80"), 0);
    }

    #[test]
    fn counters_live_as_long_as_a_table_or_a_request_needs_them() {
        let ledger = Ledger::default();
        let (named, idle, busy) = (backend("shop", 1), backend("old", 2), backend("old", 3));
        drop(ledger.start(&named));
        drop(ledger.start(&idle));
        let guard = ledger.start(&busy);
        ledger.turn(&Arc::from("old"));
        let table = pool(vec![("shop", 1, vec![named.clone()])]);
        ledger.prune([&table]);
        assert!(ledger.stats(&named.id).is_some() && ledger.stats(&idle.id).is_none());
        assert_eq!(ledger.in_flight(&busy.id), 1);
        assert!(!ledger.services.contains_key("old"));
        drop(guard);
        ledger.prune([&table]);
        assert!(ledger.stats(&busy.id).is_none());
    }

    fn picked(pool: &Pool, ledger: &Ledger, now: u64, seed: u64) -> Option<Arc<str>> {
        pool.pick(ledger, Affinity::default(), &[], Moment(now), seed).map(|backend| backend.id.clone())
    }

    fn fail(ledger: &Ledger, pool: &Pool, backend: &Backend, failure: Failure, times: u32, now: u64) -> Option<Change> {
        (0..times).filter_map(|seed| ledger.failed(&ledger.start(backend), pool, failure, Moment(now), u64::from(seed))).last()
    }

    #[test]
    fn who_is_ejected_gets_nothing_and_comes_back_slowly() {
        for balance in [Balance::PowerOfTwo, Balance::RoundRobin, Balance::Least] {
            let (ledger, sick, well) = (Ledger::default(), backend("shop", 1), backend("shop", 2));
            let pool = Pool { balance, ..pool(vec![("shop", 1, vec![sick.clone(), well.clone()])]) };
            assert!(fail(&ledger, &pool, &sick, Failure::Reset, 5, 1_000).is_some());
            let share = |now| (0..1000).filter(|seed| picked(&pool, &ledger, now, *seed) == Some(sick.id.clone())).count();
            assert_eq!(share(2_000), 0);
            let back = 7_000;
            let shares = [share(back), share(back + 4_000), share(back + 12_000)];
            assert!((10..200).contains(&shares[0]) && shares[0] < shares[1] && shares[1] < shares[2], "{shares:?}");
            assert!((400..600).contains(&shares[2]), "{shares:?}");
        }
    }

    #[test]
    fn the_last_one_stays_and_overload_takes_half_at_most() {
        let all: Vec<Backend> = (1..=4).map(|number| backend("shop", number)).collect();
        let pool = pool(vec![("shop", 1, all.clone())]);
        for (failure, gone) in
            [(Failure::Connect, 3), (Failure::Reset, 3), (Failure::Status(503), 2), (Failure::Timeout, 2), (Failure::Stale, 0)]
        {
            let ledger = Ledger::default();
            let ejected = all.iter().filter(|backend| fail(&ledger, &pool, backend, failure, 20, 1_000).is_some()).count();
            assert_eq!(ejected, gone, "{failure:?}");
        }
    }

    #[test]
    fn who_is_out_is_asked_where_nobody_else_is_left_the_least_bad_first() {
        let (ledger, one, two) = (Ledger::default(), backend("shop", 1), backend("shop", 2));
        let both = pool(vec![("shop", 1, vec![one.clone(), two.clone()])]);
        assert!(fail(&ledger, &both, &two, Failure::Reset, 5, 1_000).is_some());
        assert!(both.can_spare(&ledger, &one.id, Failure::Reset, Moment(7_000)));
        assert!(fail(&ledger, &both, &one, Failure::Reset, 5, 7_000).is_some(), "the other one is back by now");
        let alone = pool(vec![("shop", 1, vec![one.clone()])]);
        assert_eq!(picked(&alone, &ledger, 7_100, 1), Some(one.id.clone()));
        assert_eq!(picked(&both, &ledger, 7_100, 1), Some(two.id.clone()));
    }

    #[test]
    fn a_check_opens_and_closes_a_task() {
        let check = Check {
            path: "/".into(),
            host: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            status: vec![200..=399],
            unhealthy: 1,
            healthy: 1,
        };
        let (ledger, one, two) = (Ledger::default(), backend("shop", 1), backend("shop", 2));
        let mut pool = pool(vec![("shop", 1, vec![one.clone(), two.clone()])]);
        pool.groups[0].check = Some(Arc::new(check.clone()));
        ledger.admit([&pool]);
        assert!(picked(&pool, &ledger, 1, 1).is_some(), "nothing is known of anyone: all are asked");
        ledger.answered(&one.id, Ok(200), &check, Moment(1));
        assert!((0..100).all(|seed| picked(&pool, &ledger, 1, seed) == Some(one.id.clone())), "one is known to be good");
        assert_eq!(ledger.ailment(&two.id, Moment(1)).as_deref(), Some("waiting for its check to pass"));
        ledger.answered(&one.id, Ok(500), &check, Moment(2));
        ledger.answered(&two.id, Err("no connection".into()), &check, Moment(2));
        assert_eq!(picked(&pool, &ledger, 2, 1), None, "all are known to be bad");
        assert_eq!(ledger.ailment(&two.id, Moment(2)).as_deref(), Some("failing its check: no connection"));
        pool.groups[0].check = None;
        ledger.admit([&pool]);
        assert!(picked(&pool, &ledger, 2, 1).is_some() && ledger.all_well(Moment(2)));
    }

    proptest! {
        /// Whatever fails when: somebody healthy is always asked, and never everybody is out at once.
        #[test]
        fn a_pool_never_ejects_its_last(
            count in 1u8..6,
            steps in proptest::collection::vec((0usize..6, any::<bool>(), 0u64..3_000, 0usize..5), 1..200),
        ) {
            let ledger = Ledger::default();
            let all: Vec<Backend> = (1..=count).map(|number| backend("shop", number)).collect();
            let pool = pool(vec![("shop", 1, all.clone())]);
            let mut now = 0;
            for (which, fails, pause, failure) in steps {
                now += pause;
                let backend = &all[which % all.len()];
                let failure = [Failure::Connect, Failure::Reset, Failure::Stale, Failure::Timeout, Failure::Status(503)][failure];
                match fails {
                    true => _ = fail(&ledger, &pool, backend, failure, 2, now),
                    false => _ = ledger.start(backend).succeeded(Moment(now), Moment(now)),
                }
                prop_assert!(picked(&pool, &ledger, now, pause).is_some());
                prop_assert!(all.iter().any(|backend| !matches!(ledger.fitness(&backend.id, Moment(now)), Fitness::Ejected(_))));
            }
        }
    }
}
