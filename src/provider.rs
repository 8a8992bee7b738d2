//! When to list Docker again: a pure clockwork of events, debounce, polling, back-off and resync.
//! It knows neither the clock nor the engine, so a test can play a storm, a quiet day or a dead engine in a microsecond.

pub mod api;
pub mod compose;
pub mod docker;
pub mod files;
pub mod listing;
pub mod overlay;
pub mod wire;
pub mod yaml;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::time::{Duration, Instant};

use crate::snapshot::{Condition, Origin, Snapshot};

/// What the clockwork is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The engine answers and its event stream is being read.
    Connected,
    /// The engine told that something changed.
    Changed,
    Listed(Outcome),
    /// The time of the last [`Step::Wait`] has come.
    Woke,
    /// The engine does not answer, or its event stream ended.
    Lost,
}

/// How a listing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good {
        /// The engine has tasks to poll: it manages a swarm.
        tasks: bool,
        /// See [`moving`].
        moving: bool,
        /// It differs from the one before.
        changed: bool,
    },
    Failed,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forget stream and listing, connect anew; tell [`Event::Connected`] or [`Event::Lost`].
    Connect,
    /// Start this listing; tell [`Event::Listed`].
    List(Scope),
    /// Tell the next event, or [`Event::Woke`] at this time.
    Wait(Option<Instant>),
}

/// How much to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Only the tasks of Swarm services, one call: Swarm has no task events.
    Tasks,
}

/// The times that the clockwork keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From the first event after quiet to the listing.
    pub debounce: Duration,
    /// Between full listings while events storm, if the engine answers quickly.
    pub gap: Duration,
    pub poll_busy: Duration,
    pub poll_rest: Duration,
    pub resync: Duration,
}

/// Tasks follow events by up to this long.
const ECHO: Duration = Duration::from_secs(2);
/// What has not moved for so long (a task that no node can take) is polled at a quarter of the busy pace.
const STUCK: Duration = Duration::from_secs(30);
/// A full listing waits for so many times what the last one took, so that a large or busy engine is not kept busy by us.
const REST: u32 = 4;
const REST_LONGEST: Duration = Duration::from_secs(1);
/// Failed listings in a row until the connection is given up.
const PATIENCE: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone, Debug)]
pub struct Clock {
    pace: Pace,
    seed: u64,
    phase: Phase,
    /// Failed attempts (to connect, or to list) since the last good listing.
    failures: u32,
    /// The oldest change that no full listing has seen.
    change: Option<Instant>,
    last_event: Option<Instant>,
    /// Starts of the last listing and of the last full one.
    listed: Option<Instant>,
    full: Option<Instant>,
    /// How long the last full one took.
    took: Duration,
    /// When a listing last brought something new.
    news: Option<Instant>,
    tasks: bool,
    moving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away {
        retry: Instant,
    },
    Connecting,
    Idle,
    Listing(Scope),
    /// The last listing failed.
    Pausing {
        retry: Instant,
    },
}

impl Clock {
    /// `seed` spreads the retries of many edges.
    pub fn new(pace: Pace, seed: u64, now: Instant) -> Clock {
        Clock {
            pace,
            seed,
            phase: Phase::Away { retry: now },
            failures: 0,
            change: None,
            last_event: None,
            listed: None,
            full: None,
            took: Duration::ZERO,
            news: None,
            tasks: false,
            moving: false,
        }
    }

    /// The one way in: what happened, and when; the answer is the next thing to do.
    pub fn on(&mut self, event: Event, now: Instant) -> Step {
        match (event, self.phase) {
            (Event::Connected, _) => {
                self.phase = Phase::Idle;
                self.full = None;
            }
            (Event::Lost, Phase::Away { .. }) => {}
            (Event::Lost, _) => self.phase = Phase::Away { retry: self.retry(now) },
            (Event::Changed, _) => {
                self.change.get_or_insert(now);
                self.last_event = Some(now);
            }
            (Event::Listed(outcome), Phase::Listing(scope)) => self.listed(outcome, scope, now),
            (Event::Listed(_) | Event::Woke, _) => {}
        }
        self.next(now)
    }

    fn listed(&mut self, outcome: Outcome, scope: Scope, now: Instant) {
        match outcome {
            Outcome::Good { tasks, moving, changed } => {
                (self.tasks, self.moving, self.failures, self.phase) = (tasks, moving, 0, Phase::Idle);
                if scope == Scope::All {
                    self.full = self.listed;
                    self.took = self.listed.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
                }
                if changed {
                    self.news = Some(now);
                }
            }
            Outcome::Failed => {
                let retry = self.retry(now);
                // What the failed listing should have seen is still unseen.
                self.full = None;
                self.phase = if self.failures.is_multiple_of(PATIENCE) { Phase::Away { retry } } else { Phase::Pausing { retry } };
            }
        }
    }

    fn next(&mut self, now: Instant) -> Step {
        match self.phase {
            Phase::Away { retry } if now >= retry => {
                self.phase = Phase::Connecting;
                Step::Connect
            }
            Phase::Connecting | Phase::Listing(_) => Step::Wait(None),
            Phase::Pausing { retry } if now >= retry => self.list(Scope::All, now),
            Phase::Away { retry } | Phase::Pausing { retry } => Step::Wait(Some(retry)),
            Phase::Idle => match self.due(now) {
                (due, scope) if now >= due => self.list(scope, now),
                (due, _) => Step::Wait(Some(due)),
            },
        }
    }

    fn list(&mut self, scope: Scope, now: Instant) -> Step {
        self.phase = Phase::Listing(scope);
        self.listed = Some(now);
        if scope == Scope::All {
            self.change = None;
        }
        Step::List(scope)
    }

    /// The next listing of a connected, idle clockwork.
    fn due(&self, now: Instant) -> (Instant, Scope) {
        let Some(full) = self.full else { return (now, Scope::All) };
        let resync = full + self.pace.resync;
        let gap = (self.took * REST).min(REST_LONGEST).max(self.pace.gap);
        let all = self.change.map_or(resync, |change| (change + self.pace.debounce).max(full + gap).min(resync));
        // A change is about to be listed, tasks included.
        match self.listed.filter(|_| self.tasks && self.change.is_none()).map(|listed| listed + self.poll(now)) {
            Some(tasks) if tasks < all => (tasks, Scope::Tasks),
            _ => (all, Scope::All),
        }
    }

    fn poll(&self, now: Instant) -> Duration {
        let within = |time: Option<Instant>, span: Duration| time.is_some_and(|time| now.saturating_duration_since(time) < span);
        if within(self.last_event, ECHO) || self.moving && within(self.news, STUCK) {
            self.pace.poll_busy
        } else if self.moving {
            (self.pace.poll_busy * 4).min(self.pace.poll_rest)
        } else {
            self.pace.poll_rest
        }
    }

    /// Doubles with each failure, up to a bound; between half and all of it, so that edges do not knock together.
    fn retry(&mut self, now: Instant) -> Instant {
        let whole = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_LONGEST);
        self.failures = self.failures.saturating_add(1);
        // SplitMix64: enough for spreading, and the same on every run of a test.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        now + whole / 2 + (whole / 2).mul_f64((mixed >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// Something is being updated, started or replaced, so its tasks will soon be others.
pub fn moving(snapshot: &Snapshot) -> bool {
    snapshot.services.iter().filter(|service| service.origin == Origin::Swarm).any(|service| {
        let healthy = service.tasks.iter().filter(|task| task.condition == Condition::Healthy).count();
        service.updating || healthy < service.tasks.len() || service.replicas.is_some_and(|replicas| replicas != healthy as u64)
    })
}

/// How discovery fares, for metrics. Counters only grow.
#[derive(Debug, Default)]
pub struct Health {
    pub connected: AtomicBool,
    /// Calls made to the engine's API.
    pub calls: AtomicU64,
    /// Full listings that succeeded.
    pub refreshes: AtomicU64,
    /// Task polls that succeeded.
    pub polls: AtomicU64,
    /// Listings that failed.
    pub failures: AtomicU64,
    pub reconnects: AtomicU64,
    /// Events heard.
    pub events: AtomicU64,
    /// When Docker was last listed, in milliseconds since 1970; 0: never.
    pub listed_at: AtomicI64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Service, Task};

    const PACE: Pace = Pace {
        debounce: Duration::from_millis(10),
        gap: Duration::from_millis(100),
        poll_busy: Duration::from_millis(250),
        poll_rest: Duration::from_secs(5),
        resync: Duration::from_secs(60),
    };
    const GOOD: Outcome = Outcome::Good { tasks: true, moving: false, changed: true };

    /// Plays a clockwork against simulated time: listings take `listing` (5 ms), and what it does is noted with the time in ms.
    struct Play {
        clock: Clock,
        start: Instant,
        now: Duration,
        wait: Option<Duration>,
        answer: Outcome,
        reachable: bool,
        listing: Duration,
        done: Vec<(u64, &'static str)>,
    }

    impl Play {
        fn new() -> Play {
            let start = Instant::now();
            let clock = Clock::new(PACE, 7, start);
            Play {
                clock,
                start,
                now: Duration::ZERO,
                wait: None,
                answer: GOOD,
                reachable: true,
                listing: Duration::from_millis(5),
                done: Vec::new(),
            }
        }

        /// A clockwork that has listed once, its notes wiped.
        fn quiet(answer: Outcome) -> Play {
            let mut play = Play { answer, ..Play::new() };
            play.tell(Event::Woke);
            play.done.clear();
            play
        }

        fn tell(&mut self, event: Event) {
            let mut event = event;
            loop {
                let step = self.clock.on(event, self.start + self.now);
                let mut note = |what| self.done.push((self.now.as_millis() as u64, what));
                event = match step {
                    Step::Connect => {
                        note("connect");
                        if self.reachable { Event::Connected } else { Event::Lost }
                    }
                    Step::List(scope) => {
                        note(if scope == Scope::All { "all" } else { "tasks" });
                        self.now += self.listing;
                        Event::Listed(self.answer)
                    }
                    Step::Wait(until) => return self.wait = until.map(|until| until - self.start),
                };
            }
        }

        /// Lets time pass up to `end`.
        fn until(&mut self, end: u64) {
            let end = Duration::from_millis(end);
            while let Some(wait) = self.wait.filter(|wait| *wait <= end) {
                self.now = self.now.max(wait);
                self.tell(Event::Woke);
            }
            self.now = self.now.max(end);
        }

        fn change_at(&mut self, time: u64) {
            self.until(time);
            self.tell(Event::Changed);
        }

        fn times(&self, what: &str) -> Vec<u64> {
            self.done.iter().filter(|(_, done)| *done == what).map(|(time, _)| *time).collect()
        }
    }

    #[test]
    fn it_connects_and_lists_at_once() {
        let mut play = Play::new();
        play.tell(Event::Woke);
        assert_eq!(play.done, [(0, "connect"), (0, "all")]);
    }

    #[test]
    fn the_first_event_after_quiet_lists_within_20_ms() {
        let mut play = Play::quiet(GOOD);
        play.change_at(1000);
        play.until(1020);
        assert_eq!(play.times("all"), [1010]);
    }

    #[test]
    fn a_storm_is_listed_once_in_100_ms_and_once_after_it() {
        let mut play = Play::quiet(GOOD);
        for time in 1000..1300 {
            play.change_at(time);
        }
        play.until(3000);
        assert_eq!(play.times("all"), [1010, 1110, 1210, 1310]);
    }

    #[test]
    fn a_slow_engine_is_listed_a_fifth_of_the_time() {
        let mut play = Play { listing: Duration::from_millis(200), ..Play::new() };
        play.tell(Event::Woke);
        for time in 1000..6000 {
            play.change_at(time);
        }
        assert!(play.times("all").len() <= 8, "{:?}", play.times("all"));
    }

    #[test]
    fn a_change_during_a_listing_is_listed_again_and_never_two_at_once() {
        let mut clock = Clock::new(PACE, 7, Instant::now());
        let now = Instant::now();
        assert_eq!(clock.on(Event::Woke, now), Step::Connect);
        assert_eq!(clock.on(Event::Connected, now), Step::List(Scope::All));
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        for milliseconds in 0..20 {
            assert_eq!(clock.on(Event::Changed, at(milliseconds)), Step::Wait(None));
        }
        assert_eq!(clock.on(Event::Listed(GOOD), at(20)), Step::Wait(Some(at(100))));
        assert_eq!(clock.on(Event::Woke, at(100)), Step::List(Scope::All));
    }

    #[test]
    fn tasks_are_polled_slowly_at_rest_and_everything_is_listed_each_minute() {
        let mut play = Play::quiet(GOOD);
        play.until(60_500);
        assert_eq!(play.times("tasks"), (1..12).map(|number| number * 5000).collect::<Vec<_>>());
        assert_eq!(play.times("all"), [60_000]);
    }

    #[test]
    fn tasks_are_polled_quickly_while_something_moves() {
        let mut play = Play::quiet(Outcome::Good { tasks: true, moving: true, changed: true });
        play.until(1000);
        assert_eq!(play.times("tasks"), [250, 500, 750, 1000]);
    }

    #[test]
    fn what_does_not_move_any_more_is_polled_less() {
        let mut play = Play::quiet(Outcome::Good { tasks: true, moving: true, changed: true });
        play.answer = Outcome::Good { tasks: true, moving: true, changed: false };
        play.until(29_900);
        assert_eq!(play.times("tasks").len(), 119);
        play.done.clear();
        play.until(39_900);
        assert_eq!(play.times("tasks").len(), 10);
    }

    #[test]
    fn an_event_is_followed_by_quick_polls_because_tasks_lag() {
        let mut play = Play::quiet(GOOD);
        play.change_at(10_000);
        play.done.clear();
        play.until(14_000);
        assert_eq!(play.done[0].1, "all");
        assert_eq!(play.times("tasks").len(), 7);
    }

    #[test]
    fn an_engine_without_tasks_is_not_polled() {
        let mut play = Play::quiet(Outcome::Good { tasks: false, moving: false, changed: true });
        play.until(59_000);
        assert_eq!(play.done, []);
    }

    #[test]
    fn a_dead_engine_is_tried_with_growing_pauses_up_to_a_bound() {
        let mut play = Play { reachable: false, ..Play::new() };
        play.tell(Event::Woke);
        play.until(120_000);
        let times = play.times("connect");
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (index, pause) in pauses.iter().enumerate() {
            let whole = (100u64 << index.min(16)).min(10_000);
            assert!((whole / 2..=whole + 1).contains(pause), "pause {index} of {pauses:?}");
        }
        assert!(pauses.len() > 12);
        play.reachable = true;
        play.until(140_000);
        assert_eq!(play.times("all").len(), 1);
    }

    #[test]
    fn a_lost_stream_is_connected_again_soon_and_all_is_listed() {
        let mut play = Play::quiet(GOOD);
        play.until(1000);
        play.tell(Event::Lost);
        play.until(1101);
        assert_eq!(play.done.iter().map(|(_, what)| *what).collect::<Vec<_>>(), ["connect", "all"]);
    }

    #[test]
    fn failed_listings_pause_and_the_third_connects_anew() {
        let mut play = Play::quiet(GOOD);
        play.answer = Outcome::Failed;
        play.change_at(1000);
        play.until(2000);
        let done: Vec<_> = play.done.iter().map(|(_, what)| *what).take(5).collect();
        assert_eq!(done, ["all", "all", "all", "connect", "all"]);
        play.answer = GOOD;
        play.done.clear();
        play.until(20_000);
        assert_eq!(play.times("all").len(), 1);
    }

    #[test]
    fn moving_is_what_is_not_yet_as_wanted() {
        let service = |replicas, conditions: &[Condition], updating| Service {
            replicas,
            updating,
            tasks: conditions.iter().map(|condition| Task { condition: *condition, ..Task::default() }).collect(),
            ..Service::default()
        };
        let file = Service { origin: Origin::File, replicas: Some(1), ..Service::default() };
        for (service, expected) in [
            (service(Some(1), &[Condition::Healthy], false), false),
            (service(Some(1), &[Condition::Healthy], true), true),
            (service(Some(2), &[Condition::Healthy], false), true),
            (service(Some(1), &[Condition::Healthy, Condition::Starting], false), true),
            (service(Some(0), &[], false), false),
            (service(None, &[], false), false),
            (service(None, &[Condition::Down], false), true),
            (file, false),
        ] {
            assert_eq!(moving(&Snapshot { services: vec![service.clone()], ..Snapshot::default() }), expected, "{service:?}");
        }
    }

    proptest::proptest! {
        /// Whatever happens, there is one listing at a time, and a waiting clockwork has a reason to.
        #[test]
        fn no_order_of_events_stalls_it(events in proptest::collection::vec((0..6u8, 0..3000u64), 1..200)) {
            let mut now = Instant::now();
            let mut clock = Clock::new(PACE, 1, now);
            let mut listing = false;
            let mut connecting = false;
            for (kind, pause) in events {
                now += Duration::from_millis(pause);
                let event = match kind {
                    0 => Event::Changed,
                    1 => Event::Woke,
                    2 => Event::Lost,
                    3 if listing => Event::Listed(GOOD),
                    4 if listing => Event::Listed(Outcome::Failed),
                    5 if connecting => Event::Connected,
                    _ => continue,
                };
                listing &= !matches!(event, Event::Listed(_) | Event::Lost);
                connecting &= !matches!(event, Event::Connected | Event::Lost);
                match clock.on(event, now) {
                    Step::List(_) => {
                        proptest::prop_assert!(!listing);
                        listing = true;
                    }
                    Step::Connect => (connecting, listing) = (true, false),
                    Step::Wait(None) => proptest::prop_assert!(listing || connecting),
                    Step::Wait(Some(until)) => proptest::prop_assert!(until > now && until <= now + PACE.resync),
                }
            }
        }
    }
}
