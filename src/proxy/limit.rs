//! What bounds a route, with its counters: who may pass now, who waits, who is turned away.
//!
//! One call takes a request's head after routing and returns a [`Pass`] or an answer; it knows `http` types only, so every
//! shell that speaks HTTP can ask it. The state is kept by route and outlives the tables: a part of it begins anew only when
//! its own label changed. It is here and not in `traffic`, because waiting for a place and counting rates need a running
//! clock and a runtime; what the labels mean and when a circuit opens is decided there.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::Answer;
use super::mirror::Lane;
use super::page::Shelf;
use super::places::Places;
use super::rate::RateLimit;
use crate::state::{Route, State};
use crate::traffic::circuit::{Circuit, Passage};
use crate::traffic::{self, LimitNow};

/// How often callers that nobody hears of any more are forgotten.
const SWEEP: Duration = Duration::from_secs(10);
/// A place gets free when some request ends, and nobody knows when that is.
const BUSY_RETRY: u64 = 1;

/// All routes' limits. Bounded by [`Limits::keep`].
pub struct Limits {
    routes: DashMap<Arc<str>, Arc<Held>>,
    began: Instant,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { routes: DashMap::new(), began: Instant::now() }
    }
}

/// What is held for one route.
pub struct Held {
    setting: traffic::Limits,
    rate: Option<Arc<RateLimit>>,
    places: Option<Arc<Places>>,
    circuit: Option<Arc<Mutex<Circuit>>>,
    pub(super) lane: Arc<Lane>,
    pub(super) shelf: Arc<Shelf>,
    pub counters: Arc<Counters>,
}

/// What happened on a route since the process began, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub rate_limited: AtomicU64,
    /// Found no place, or not in time.
    pub rejected: AtomicU64,
    pub body_too_large: AtomicU64,
    /// Answered while the circuit was open.
    pub short_circuited: AtomicU64,
    pub mirrored: AtomicU64,
    pub mirror_failed: AtomicU64,
    pub mirror_too_large: AtomicU64,
    pub mirror_dropped: AtomicU64,
    pub compressed_in: AtomicU64,
    pub compressed_out: AtomicU64,
}

/// Counts one, or so many.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// A request's leave to go on; to be held until its answer's last byte.
#[derive(Default)]
pub struct Pass {
    held: Option<Arc<Held>>,
    _place: Option<OwnedSemaphorePermit>,
    circuit: Option<(Arc<Mutex<Circuit>>, bool)>,
    began: Option<Instant>,
}

impl Limits {
    /// May this request go on to its upstream? Waits for a place where the route has a queue; takes nothing of the body.
    ///
    /// # Errors
    /// The answer that the request gets instead.
    pub async fn admit(&self, route: &Route, client: IpAddr, headers: &HeaderMap) -> Result<Pass, Answer> {
        if route.traffic.limits.is_empty() {
            return Ok(Pass::default());
        }
        let held = self.of(route);
        held.check_rate(client, headers)?;
        held.check_length(headers)?;
        // Asked twice: nobody shall wait for a place in front of an open circuit, and the trial is for one who has a place.
        held.check_circuit(self.began.elapsed())?;
        let place = match &held.places {
            Some(places) => Some(places.take().await.ok_or_else(|| {
                count(&held.counters.rejected, 1);
                Answer::Busy(BUSY_RETRY)
            })?),
            None => None,
        };
        let circuit = match &held.circuit {
            Some(circuit) => match lock(circuit).admit(self.began.elapsed()) {
                Passage::Refused(wait) => return Err(held.short_circuited(wait)),
                passage => Some((circuit.clone(), passage == Passage::Trial)),
            },
            None => None,
        };
        Ok(Pass { held: Some(held), _place: place, circuit, began: Some(self.began) })
    }

    /// What is held for the route; made where nobody asked before.
    pub(super) fn of(&self, route: &Route) -> Arc<Held> {
        if let Some(held) = self.routes.get(&route.id) {
            return held.clone();
        }
        self.routes.entry(route.id.clone()).or_insert_with(|| Arc::new(Held::new(&route.traffic.limits, None))).clone()
    }

    /// Takes over what a new table says and forgets routes that it does not have. To be called after each swap, by its one writer.
    pub fn keep(&self, state: &State) {
        let mut named = HashSet::new();
        for route in state.routes.values().map(|listing| &listing.route).filter(|route| !route.traffic.limits.is_empty()) {
            named.insert(route.id.clone());
            let before = self.routes.get(&route.id).map(|held| held.clone());
            if before.as_ref().is_none_or(|held| held.setting != route.traffic.limits) {
                self.routes.insert(route.id.clone(), Arc::new(Held::new(&route.traffic.limits, before.as_deref())));
            }
        }
        self.routes.retain(|id, _| named.contains(id));
    }

    /// Forgets callers of rate limits from time to time; for ever, as a task.
    pub async fn tend(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let rates: Vec<_> = self.routes.iter().filter_map(|held| held.rate.clone()).collect();
            rates.iter().for_each(|rate| rate.sweep());
        }
    }

    /// All routes at this moment, by id.
    pub fn now(&self) -> Vec<LimitNow> {
        let now = self.began.elapsed();
        let mut all: Vec<_> = self.routes.iter().map(|held| held.now(held.key(), now)).collect();
        all.sort_by(|one, other| one.route.cmp(&other.route));
        all
    }
}

impl Held {
    /// Takes from `before` the parts whose settings are the same.
    fn new(setting: &traffic::Limits, before: Option<&Held>) -> Held {
        let rate = before.filter(|held| held.setting.rate == setting.rate).and_then(|held| held.rate.clone());
        let places = before.filter(|held| held.setting.inflight == setting.inflight).and_then(|held| held.places.clone());
        let circuit = before.filter(|held| held.setting.circuit == setting.circuit).and_then(|held| held.circuit.clone());
        let same_page = before.filter(|held| held.setting.error_page == setting.error_page);
        Held {
            setting: setting.clone(),
            rate: rate.or_else(|| setting.rate.as_ref().map(|rate| Arc::new(RateLimit::new(rate)))),
            places: places.or_else(|| setting.inflight.map(|inflight| Arc::new(Places::new(inflight)))),
            circuit: circuit.or_else(|| setting.circuit.map(|breaker| Arc::new(Mutex::new(Circuit::new(breaker))))),
            lane: before.map_or_else(Arc::default, |held| held.lane.clone()),
            shelf: same_page.map_or_else(Arc::default, |held| held.shelf.clone()),
            counters: before.map_or_else(Arc::default, |held| held.counters.clone()),
        }
    }

    fn check_rate(&self, client: IpAddr, headers: &HeaderMap) -> Result<(), Answer> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check(client, headers).map_err(|wait| {
            count(&self.counters.rate_limited, 1);
            let setting = self.setting.rate.as_ref();
            let window = setting.map_or(1.0, |rate| f64::from(rate.burst) / rate.per_second);
            Answer::RateLimited { retry: seconds(wait), burst: setting.map_or(0, |rate| rate.burst), window: window.ceil().max(1.0) as u64 }
        })
    }

    fn check_length(&self, headers: &HeaderMap) -> Result<(), Answer> {
        let Some(most) = self.setting.body else { return Ok(()) };
        let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse::<u64>().ok());
        if declared.is_some_and(|declared| declared > most) {
            count(&self.counters.body_too_large, 1);
            return Err(Answer::TooLarge);
        }
        Ok(())
    }

    fn check_circuit(&self, now: Duration) -> Result<(), Answer> {
        match self.circuit.as_ref().and_then(|circuit| lock(circuit).refuses(now)) {
            Some(wait) => Err(self.short_circuited(wait)),
            None => Ok(()),
        }
    }

    fn short_circuited(&self, wait: Duration) -> Answer {
        count(&self.counters.short_circuited, 1);
        Answer::Broken(seconds(wait))
    }

    fn now(&self, route: &Arc<str>, now: Duration) -> LimitNow {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { rate_limited, rejected, body_too_large, short_circuited, compressed_in, compressed_out, .. } = &*self.counters;
        let Counters { mirrored, mirror_failed, mirror_too_large, mirror_dropped, .. } = &*self.counters;
        LimitNow {
            route: route.clone(),
            rate_limited: read(rate_limited),
            in_flight: self.places.as_ref().map_or(0, |places| places.taken()),
            queued: self.places.as_ref().map_or(0, |places| places.waiting()),
            rejected: read(rejected),
            body_too_large: read(body_too_large),
            circuit: self.circuit.as_ref().map(|circuit| lock(circuit).standing(now)),
            short_circuited: read(short_circuited),
            mirrored: read(mirrored),
            mirror_failed: read(mirror_failed),
            mirror_too_large: read(mirror_too_large),
            mirror_dropped: read(mirror_dropped),
            compressed_in: read(compressed_in),
            compressed_out: read(compressed_out),
        }
    }
}

impl Pass {
    /// What is held for the request's route; `None`: the route has no limits.
    pub fn held(&self) -> Option<&Arc<Held>> {
        self.held.as_ref()
    }

    /// The upstream answered, or failed to. Only the first word counts.
    pub fn answered(&mut self, failed: bool) {
        if let (Some((circuit, trial)), Some(began)) = (self.circuit.take(), self.began) {
            lock(&circuit).record(began.elapsed(), trial, failed);
        }
    }

    /// May the body be so long, in bytes so far? Counts those that may not.
    ///
    /// # Errors
    /// The answer to a longer one.
    pub fn check_body(&self, so_far: u64) -> Result<(), Answer> {
        match &self.held {
            Some(held) if held.setting.body.is_some_and(|most| so_far > most) => {
                count(&held.counters.body_too_large, 1);
                Err(Answer::TooLarge)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((circuit, true)) = self.circuit.take() {
            lock(&circuit).give_up();
        }
    }
}

/// A circuit is a few numbers: what a panicking thread left is as good as any.
fn lock(circuit: &Mutex<Circuit>) -> std::sync::MutexGuard<'_, Circuit> {
    circuit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whole seconds, never too early.
fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Origin, Service, Snapshot};
    use crate::traffic::circuit::Standing;

    fn state(labels: &[(&str, &str)]) -> State {
        let labels = labels.iter().chain(&[("skep.host", "a.de"), ("skep.address", "127.0.0.1:1")]);
        let service = Service {
            name: "shop".to_owned(),
            origin: Origin::File,
            labels: labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Service::default()
        };
        State::build(Arc::default(), Arc::new(Snapshot { services: vec![service], ..Snapshot::default() }))
    }

    fn route(state: &State) -> Arc<Route> {
        state.routes["shop"].route.clone()
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn ask(limits: &Limits, state: &State) -> Result<Pass, Answer> {
        limits.admit(&route(state), CLIENT, &HeaderMap::new()).await
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_pass_is_dropped() {
        let (limits, state) = (Limits::default(), state(&[("skep.max-inflight", "1 queue 0")]));
        let pass = ask(&limits, &state).await.expect("a place is free");
        assert_eq!(ask(&limits, &state).await.err(), Some(Answer::Busy(1)));
        assert_eq!((limits.now()[0].in_flight, limits.now()[0].rejected), (1, 1));
        drop(pass);
        assert!(ask(&limits, &state).await.is_ok());
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn_and_not_for_ever() {
        let (limits, state) = (Arc::new(Limits::default()), state(&[("skep.max-inflight", "1 queue 2 wait 300ms")]));
        let first = ask(&limits, &state).await.expect("a place is free");
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for number in 0..2 {
            let (asked, route, order) = (limits.clone(), route(&state), order.clone());
            waiting.push(tokio::spawn(async move {
                let pass = asked.admit(&route, CLIENT, &HeaderMap::new()).await;
                order.lock().expect("nobody panicked").push(number);
                drop(pass);
            }));
            while limits.now()[0].queued <= number {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(ask(&limits, &state).await.err(), Some(Answer::Busy(1)), "the queue is full");
        drop(first);
        for task in waiting {
            task.await.expect("nobody panicked");
        }
        assert_eq!(*order.lock().expect("nobody panicked"), [0, 1]);
        let _held = ask(&limits, &state).await;
        assert_eq!(ask(&limits, &state).await.err(), Some(Answer::Busy(1)), "after its time");
        assert_eq!(limits.now()[0].queued, 0);
    }

    #[tokio::test]
    async fn what_did_not_change_survives_a_swap_and_what_did_begins_anew() {
        let limits = Limits::default();
        let rate = ("skep.rate-limit", "1/h");
        let circuit = ("skep.circuit", "100% of 1 in 1m for 1m");
        let before = state(&[rate, circuit]);
        limits.keep(&before);
        let mut pass = ask(&limits, &before).await.expect("the first one passes");
        pass.answered(true);
        drop(pass);
        assert_eq!(limits.now()[0].circuit, Some(Standing::Open));
        let after = state(&[rate, circuit, ("skep.compress", "on")]);
        limits.keep(&after);
        assert!(matches!(ask(&limits, &after).await.err(), Some(Answer::RateLimited { retry: 3590.., burst: 1, window: 3600 })));
        let other = state(&[("skep.rate-limit", "2/h"), circuit]);
        limits.keep(&other);
        assert!(matches!(ask(&limits, &other).await.err(), Some(Answer::Broken(..=60))), "the rate passes, the circuit is still open");
        assert_eq!((limits.now()[0].rate_limited, limits.now()[0].short_circuited), (1, 1));
        limits.keep(&state(&[]));
        assert_eq!(limits.now(), []);
    }

    #[tokio::test]
    async fn places_that_are_taken_stay_taken_across_a_swap() {
        let limits = Limits::default();
        let inflight = ("skep.max-inflight", "1 queue 0");
        let (before, after) = (state(&[inflight]), state(&[inflight, ("skep.compress", "on")]));
        limits.keep(&before);
        let pass = ask(&limits, &before).await.expect("a place is free");
        limits.keep(&after);
        assert_eq!(ask(&limits, &after).await.err(), Some(Answer::Busy(1)));
        drop(pass);
        assert!(ask(&limits, &after).await.is_ok());
    }

    #[tokio::test]
    async fn a_lost_trial_is_given_back() {
        let (limits, state) = (Limits::default(), state(&[("skep.circuit", "100% of 1 in 1m for 1ms")]));
        ask(&limits, &state).await.expect("it is closed").answered(true);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let trial = ask(&limits, &state).await.expect("one is tried");
        assert!(ask(&limits, &state).await.is_err());
        drop(trial);
        ask(&limits, &state).await.expect("another is tried").answered(false);
        assert_eq!(limits.now()[0].circuit, Some(Standing::Closed));
    }

    #[tokio::test]
    async fn declared_lengths_are_decided_with_the_head() {
        let (limits, state) = (Limits::default(), state(&[("skep.max-body", "10")]));
        for (length, fine) in [("10", true), ("11", false), ("0", true)] {
            let headers = HeaderMap::from_iter([(CONTENT_LENGTH, length.parse().expect("digits"))]);
            let answer = limits.admit(&route(&state), CLIENT, &headers).await.err();
            assert_eq!(answer, (!fine).then_some(Answer::TooLarge), "{length}");
        }
        let pass = ask(&limits, &state).await.expect("nothing is declared");
        assert!(pass.check_body(10).is_ok() && pass.check_body(11).is_err());
    }
}
