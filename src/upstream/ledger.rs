//! Live counters of backends: how many requests are in flight, how many there were, how many failed.
//! They survive swaps of the table, because they belong to backends and not to routes, and are dropped when no table names them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;

use super::{Backend, Pool};

/// Counters of one backend. They are read for choosing and for metrics, where a value a moment old is good enough: hence relaxed ordering.
#[derive(Debug, Default)]
pub struct Stats {
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
}

impl Stats {
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

/// Counters keyed by [`Backend::id`], and the turns of round-robin keyed by service. Bounded by [`Ledger::prune`].
#[derive(Debug, Default)]
pub struct Ledger {
    stats: DashMap<Arc<str>, Arc<Stats>>,
    turns: DashMap<Arc<str>, AtomicU64>,
}

/// One request in flight on a backend, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Stats>);

impl InFlight {
    /// The backend failed this request.
    pub fn failed(&self) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
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
        begin(&self.stats.entry(Arc::clone(&backend.id)).or_default())
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
        if let Some(turn) = self.turns.get(service) {
            return turn.fetch_add(1, Ordering::Relaxed);
        }
        self.turns.entry(Arc::clone(service)).or_default().fetch_add(1, Ordering::Relaxed)
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
        self.turns.retain(|service, _| services.contains(&**service));
    }
}

#[cfg(test)]
mod tests {
    use super::super::pick::tests::{backend, pool};
    use super::*;

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let ledger = Ledger::default();
        let one = backend("shop", 1);
        let (first, second) = (ledger.start(&one), ledger.start(&one));
        second.failed();
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
        assert!(ledger.turns.is_empty());
        drop(guard);
        ledger.prune([&table]);
        assert!(ledger.stats(&busy.id).is_none());
    }
}
