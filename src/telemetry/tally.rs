//! What finished requests add up to, by route. Every thread counts in a stripe of its own under a lock that nobody else
//! wants but a scrape, so cores share no cache line and a count is plain addition; a scrape adds the stripes up.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Record;

/// Methods that are counted by name; anybody can invent others.
const METHODS: [&str; 11] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", Record::TCP, Record::TLS];
/// Seconds; from a cached answer on the same machine to the default response timeout.
const REQUEST_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Seconds; a connection stands in well under a millisecond or has a problem.
const CONNECT_BUCKETS: [f64; 11] = [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0];
/// An upgraded connection lasts as long as its user likes: its length says nothing about speed.
const SWITCHING_PROTOCOLS: u16 = 101;
/// More stripes than this cost memory for nothing: two threads may share one.
const MOST_STRIPES: usize = 64;

/// Counts of all routes, in stripes.
pub(super) struct Tally {
    stripes: Box<[Stripe]>,
    /// The name of no route.
    unmatched: Arc<str>,
}

/// Two cache lines, because processors fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Stripe(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// Ids come from labels, not from strangers: a fast hash will do.
    routes: HashMap<Arc<str>, Series, RandomState>,
    connect: Timing<CONNECT>,
    response: Timing<REQUEST>,
}

/// The sum of all stripes; routes in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) routes: BTreeMap<Arc<str>, Series>,
    pub(super) connect: Timing<CONNECT>,
    pub(super) response: Timing<REQUEST>,
}

/// One route's counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    /// By method and status; a route gives few different answers, so a walk is faster than a map.
    answers: Vec<((u8, u16), u64)>,
    pub(super) duration: Timing<REQUEST>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) retries: u64,
}

/// The length of [`REQUEST_BUCKETS`] and [`CONNECT_BUCKETS`]: what tells one kind of [`Timing`] from the other.
const REQUEST: usize = REQUEST_BUCKETS.len();
const CONNECT: usize = CONNECT_BUCKETS.len();

/// How many observations fell under which bound, and their sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing<const BOUNDS: usize> {
    bounds: &'static [f64; BOUNDS],
    under: [u64; BOUNDS],
    over: u64,
    sum: Duration,
}

impl Default for Timing<REQUEST> {
    fn default() -> Self {
        Timing::new(&REQUEST_BUCKETS)
    }
}

impl Default for Timing<CONNECT> {
    fn default() -> Self {
        Timing::new(&CONNECT_BUCKETS)
    }
}

impl<const BOUNDS: usize> Timing<BOUNDS> {
    const fn new(bounds: &'static [f64; BOUNDS]) -> Self {
        Timing { bounds, under: [0; BOUNDS], over: 0, sum: Duration::ZERO }
    }

    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound);
        *at.map_or(&mut self.over, |at| &mut self.under[at]) += 1;
        self.sum = self.sum.saturating_add(duration);
    }

    fn add(&mut self, other: &Self) {
        for (sum, count) in self.under.iter_mut().zip(other.under) {
            *sum += count;
        }
        self.over += other.over;
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// In seconds.
    pub(super) fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    pub(super) fn count(&self) -> u64 {
        self.under.iter().sum::<u64>() + self.over
    }

    /// Bounds in seconds with what fell between them and the bound before, up to infinity.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        self.bounds.iter().copied().zip(self.under).chain([(f64::INFINITY, self.over)]).collect()
    }
}

impl Series {
    fn count(&mut self, record: &Record<'_>) {
        let answer = (method(record.method), status(record.status));
        match self.answers.iter_mut().find(|(known, _)| *known == answer) {
            Some((_, count)) => *count += 1,
            None => self.answers.push((answer, 1)),
        }
        if record.status != SWITCHING_PROTOCOLS && !record.is_connection() {
            self.duration.observe(record.duration);
        }
        self.bytes_in += record.bytes_in;
        self.bytes_out += record.bytes_out;
        self.retries += u64::from(record.retries);
    }

    fn add(&mut self, other: &Series) {
        for (answer, count) in &other.answers {
            match self.answers.iter_mut().find(|(known, _)| known == answer) {
                Some((_, sum)) => *sum += count,
                None => self.answers.push((*answer, *count)),
            }
        }
        self.duration.add(&other.duration);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.retries += other.retries;
    }

    /// Method, status and count of the answers that were given.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&'static str, u16, u64)> {
        self.answers
            .iter()
            .map(|((method, status), count)| (METHODS.get(usize::from(*method)).copied().unwrap_or("OTHER"), *status, *count))
    }
}

impl Tally {
    /// Nothing counted; a stripe for each thread that can run at one time.
    pub(super) fn new() -> Tally {
        let stripes = thread::available_parallelism().map_or(1, usize::from).clamp(1, MOST_STRIPES);
        Tally { stripes: (0..stripes).map(|_| Stripe::default()).collect(), unmatched: Arc::from("") }
    }

    /// Counts a finished request.
    pub(super) fn record(&self, record: &Record<'_>) {
        let mut counts = self.stripes[place() % self.stripes.len()].lock();
        let route = record.route.unwrap_or(&self.unmatched);
        match counts.routes.get_mut(route) {
            Some(series) => series.count(record),
            None => counts.routes.entry(Arc::clone(route)).or_default().count(record),
        }
        if let Some(connect) = record.connect {
            counts.connect.observe(connect);
        }
        if let Some(response) = record.upstream {
            counts.response.observe(response);
        }
    }

    /// Forgets the routes that `keep` does not name.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        for stripe in &self.stripes {
            stripe.lock().routes.retain(|route, _| *route == self.unmatched || keep(route));
        }
    }

    /// All stripes added up, one after the other: requests wait for their own stripe at most.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for stripe in &self.stripes {
            let counts = stripe.lock();
            for (route, series) in &counts.routes {
                totals.routes.entry(Arc::clone(route)).or_default().add(series);
            }
            totals.connect.add(&counts.connect);
            totals.response.add(&counts.response);
        }
        totals
    }
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after any panic: each is one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of this thread among those that ever counted.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    PLACE.with(|place| {
        place.get().unwrap_or_else(|| {
            let own = NEXT.fetch_add(1, Ordering::Relaxed);
            place.set(Some(own));
            own
        })
    })
}

/// The place in [`METHODS`]; its length for all others.
fn method(name: &str) -> u8 {
    METHODS.iter().position(|known| *known == name).unwrap_or(METHODS.len()) as u8
}

/// 0 for what HTTP does not know; a backend may send any three digits.
fn status(code: u16) -> u16 {
    if (100..600).contains(&code) { code } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_observation_belongs_to_the_first_bound_that_is_not_below_it() {
        let mut timing: Timing<REQUEST> = Timing::default();
        for milliseconds in [0, 1, 2, 60_000, 60_001] {
            timing.observe(Duration::from_millis(milliseconds));
        }
        let filled: Vec<(f64, u64)> = timing.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.001, 2), (0.0025, 1), (60.0, 1), (f64::INFINITY, 1)]);
        assert_eq!((timing.count(), timing.sum()), (5, 120.004));
    }

    proptest! {
        #[test]
        fn two_halves_add_up_to_the_whole(observed in proptest::collection::vec((0_u64..100_000_000, any::<bool>()), 0..50)) {
            let (mut whole, mut halves) = (Timing::<CONNECT>::default(), [Timing::<CONNECT>::default(); 2]);
            for (microseconds, half) in observed {
                whole.observe(Duration::from_micros(microseconds));
                halves[usize::from(half)].observe(Duration::from_micros(microseconds));
            }
            let [mut one, other] = halves;
            one.add(&other);
            prop_assert_eq!((one.buckets(), one.count(), one.sum()), (whole.buckets(), whole.count(), whole.sum()));
        }
    }
}
