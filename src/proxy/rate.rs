//! Rate limits by key, on `governor`'s counting (GCRA) with a store of ours, because its own stores grow with the number of keys.
//!
//! So many callers have a cell of their own; a caller that is not seen for as long as its burst takes to refill is forgotten,
//! as it would start anew anyway. When all cells are taken, further callers share a fixed number of cells, told apart by a
//! hash that nobody outside can foresee: a flood of addresses gets the shared cells' rate and no more, those who have a cell
//! keep it, and a newcomer in a flood may be refused by a neighbour's doing until a cell gets free. It never opens, and it
//! never blocks everybody.

use std::hash::{BuildHasher, BuildHasherDefault, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use fnv::FnvHasher;
use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use http::HeaderMap;

use crate::traffic::{By, Rate};

/// Callers with a cell of their own, a route; 3 MB.
const CALLERS: usize = 100_000;
/// Cells that all further callers share.
const SHARED: usize = 4096;
/// A full store looks for callers to forget at most this often.
const SWEEP: Duration = Duration::from_secs(1);

/// Time since its making; what the limiter reads.
#[derive(Clone, Debug)]
pub struct Monotonic(Instant);

impl Default for Monotonic {
    fn default() -> Self {
        Monotonic(Instant::now())
    }
}

impl Clock for Monotonic {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// One route's rate limit.
pub struct RateLimit<C: Clock = Monotonic> {
    limiter: RateLimiter<u64, Shared, C, NoOpMiddleware<C::Instant>>,
    cells: Arc<Cells>,
    clock: C,
    began: C::Instant,
    swept: AtomicU64,
    by: By,
    hash: RandomState,
}

impl RateLimit {
    /// Nobody has asked yet.
    pub fn new(rate: &Rate) -> RateLimit {
        RateLimit::with(rate, Monotonic::default(), CALLERS)
    }
}

impl<C: Clock + Clone> RateLimit<C> {
    fn with(rate: &Rate, clock: C, callers: usize) -> RateLimit<C> {
        let period = Duration::from_secs_f64(1.0 / rate.per_second.max(f64::MIN_POSITIVE)).max(Duration::from_nanos(1));
        let burst = NonZeroU32::new(rate.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
        let cells = Arc::new(Cells::new(callers));
        let began = clock.now();
        RateLimit {
            limiter: RateLimiter::new(quota, Shared(cells.clone()), clock.clone()),
            cells,
            clock,
            began,
            swept: AtomicU64::new(0),
            by: rate.by.clone(),
            hash: RandomState::new(),
        }
    }

    /// Counts a request. `Err`: it is too much, and how long until it would not be.
    pub fn check(&self, client: IpAddr, headers: &HeaderMap) -> Result<(), Duration> {
        if self.cells.is_full() {
            self.sweep_now_and_then();
        }
        self.limiter.check_key(&self.key(client, headers)).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// A number for the caller: 64 bits of a keyed hash, so that no value is kept and nobody can choose a neighbour.
    fn key(&self, client: IpAddr, headers: &HeaderMap) -> u64 {
        match &self.by {
            By::Route => 0,
            By::Ip => self.address(client),
            By::Header(name) => {
                headers.get(name).map_or_else(|| self.address(client), |value| self.hash.hash_one((b'h', value.as_bytes())))
            }
        }
    }

    fn address(&self, client: IpAddr) -> u64 {
        match client.to_canonical() {
            IpAddr::V4(address) => self.hash.hash_one((b'4', address.to_bits())),
            // One customer has at least a /64 and can take any address in it.
            IpAddr::V6(address) => self.hash.hash_one((b'6', address.to_bits() >> 64)),
        }
    }

    /// Forgets the callers that would start anew anyway.
    pub fn sweep(&self) {
        self.cells.sweep(self.now());
    }

    fn sweep_now_and_then(&self) {
        let (last, now) = (self.swept.load(Ordering::Relaxed), self.now());
        let due = now.saturating_sub(last) >= u64::try_from(SWEEP.as_nanos()).unwrap_or(u64::MAX);
        if due && self.swept.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.sweep();
        }
    }

    fn now(&self) -> u64 {
        self.clock.now().duration_since(self.began).as_u64()
    }

    /// Callers that have a cell of their own.
    #[cfg(test)]
    fn callers(&self) -> usize {
        self.cells.count.load(Ordering::Relaxed)
    }
}

/// Theoretical arrival times by caller, in nanoseconds since the limiter's beginning; 0: nobody came yet.
struct Cells {
    known: DashMap<u64, AtomicU64, BuildHasherDefault<FnvHasher>>,
    count: AtomicUsize,
    most: usize,
    shared: Vec<AtomicU64>,
}

impl Cells {
    fn new(most: usize) -> Cells {
        let shared = std::iter::repeat_with(AtomicU64::default).take(SHARED).collect();
        Cells { known: DashMap::default(), count: AtomicUsize::new(0), most, shared }
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= self.most
    }

    fn sweep(&self, now: u64) {
        self.known.retain(|_, arrival| {
            let kept = arrival.load(Ordering::Relaxed) > now;
            if !kept {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            kept
        });
        if self.known.capacity() > 4 * self.known.len() {
            self.known.shrink_to_fit();
        }
    }
}

/// The store as governor wants it.
struct Shared(Arc<Cells>);

impl StateStore for Shared {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Cells { known, count, shared, .. } = &*self.0;
        if let Some(cell) = known.get(key) {
            return replace(&cell, decide);
        }
        if self.0.is_full() {
            return replace(&shared[(*key % SHARED as u64) as usize], decide);
        }
        let cell = known.entry(*key).or_insert_with(|| {
            count.fetch_add(1, Ordering::Relaxed);
            AtomicU64::default()
        });
        replace(&cell, decide)
    }
}

fn replace<T, E>(cell: &AtomicU64, decide: impl Fn(Option<Nanos>) -> Result<(T, Nanos), E>) -> Result<T, E> {
    let mut before = cell.load(Ordering::Acquire);
    loop {
        let (outcome, arrival) = decide((before > 0).then(|| before.into()))?;
        match cell.compare_exchange_weak(before, arrival.into(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Ok(outcome),
            Err(other) => before = other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limit(per_second: f64, burst: u32, by: By) -> (RateLimit<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RateLimit::with(&Rate { per_second, burst, by }, clock.clone(), CALLERS), clock)
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (limit, clock) = limit(2.0, 3, By::Ip);
        let none = HeaderMap::new();
        let pass = |client: u32| limit.check(v4(client), &none);
        assert_eq!((0..3).filter(|_| pass(1).is_ok()).count(), 3);
        assert_eq!(pass(1), Err(Duration::from_millis(500)));
        assert_eq!(pass(2), Ok(()), "others are not concerned");
        clock.advance(Duration::from_millis(500));
        assert_eq!((pass(1), pass(1).is_err()), (Ok(()), true));
    }

    #[test]
    fn who_counts_as_one_caller() {
        let header = |value: &str| HeaderMap::from_iter([("x-key".parse().unwrap(), value.parse().unwrap())]);
        let (v6, near, far) = (0x2001_0db8_u128 << 96 | 1, 0x2001_0db8_u128 << 96 | 2, 0x2001_0db9_u128 << 96);
        let v6 = [v6, near, far].map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)));
        let none = HeaderMap::new();
        // first, second, by, one caller?
        for (first, second, by, same) in [
            ((v4(1), &none), (v4(2), &none), By::Ip, false),
            ((v4(1), &none), (IpAddr::V6(Ipv4Addr::from_bits(1).to_ipv6_mapped()), &none), By::Ip, true),
            ((v6[0], &none), (v6[1], &none), By::Ip, true),
            ((v6[0], &none), (v6[2], &none), By::Ip, false),
            ((v4(1), &none), (v4(2), &none), By::Route, true),
            ((v4(1), &header("a")), (v4(2), &header("a")), By::Header("x-key".parse().unwrap()), true),
            ((v4(1), &header("a")), (v4(1), &header("b")), By::Header("x-key".parse().unwrap()), false),
            ((v4(1), &none), (v4(1), &none), By::Header("x-key".parse().unwrap()), true),
            ((v4(1), &none), (v4(2), &none), By::Header("x-key".parse().unwrap()), false),
        ] {
            let (limit, _) = limit(1.0, 1, by.clone());
            assert_eq!(limit.check(first.0, first.1), Ok(()));
            assert_eq!(limit.check(second.0, second.1).is_err(), same, "{first:?} {second:?} {by:?}");
        }
    }

    #[test]
    fn a_million_callers_are_bounded_and_neither_free_nor_all_refused() {
        let (limit, clock) = limit(1.0, 2, By::Ip);
        let none = HeaderMap::new();
        let regular = v4(u32::MAX);
        assert_eq!(limit.check(regular, &none), Ok(()));
        let passed = (0..1_000_000).filter(|number| limit.check(v4(*number), &none).is_ok()).count();
        assert_eq!(limit.callers(), CALLERS);
        assert!((CALLERS..=CALLERS + 2 * SHARED).contains(&passed), "{passed}");
        assert_eq!(limit.check(regular, &none), Ok(()), "who was there before keeps its own count");
        assert!(limit.check(regular, &none).is_err());
        clock.advance(Duration::from_secs(10));
        let newcomers = (2_000_000..2_001_000).filter(|number| limit.check(v4(*number), &none).is_ok()).count();
        assert_eq!(newcomers, 1000, "after the flood everybody has a cell again");
        assert!(limit.callers() <= 1000);
    }

    #[test]
    fn callers_are_forgotten_only_when_they_would_start_anew() {
        let (limit, clock) = limit(1.0, 5, By::Ip);
        let none = HeaderMap::new();
        (0..5).for_each(|_| assert_eq!(limit.check(v4(1), &none), Ok(())));
        clock.advance(Duration::from_secs(4));
        limit.sweep();
        assert_eq!(limit.callers(), 1);
        clock.advance(Duration::from_secs(1));
        limit.sweep();
        assert_eq!(limit.callers(), 0);
    }
}
