//! Passive ejection: who fails several times in a row gets no requests for a while, longer each time, and comes back slowly.
//! A state machine of one backend over events, the clock and a seed; it knows no neighbours: who calls says whether it may go.

use std::time::Duration;

use super::Moment;

/// Failures in a row until a backend is out.
const FAILURES: u32 = 5;
/// The first time out; each relapse doubles it.
const FIRST: u64 = 5_000;
const LONGEST: u64 = 300_000;
/// How long a backend that came back gets less than its share.
const SLOW_START: u64 = 10_000;
/// Its share when it comes back, of [`WHOLE`].
const LEAST: u64 = WHOLE / 10;
/// A full share.
pub const WHOLE: u64 = 1 << 32;

/// What a backend's requests said of it so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// In a row.
    failures: u32,
    /// Out, or back without having answered well so far.
    out: bool,
    /// The last ejection's beginning and end.
    since: Moment,
    until: Moment,
    /// What the last ejection was for.
    after: u32,
    relapses: u32,
}

/// What changed, for the log: said once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected {
        pause: Duration,
        failures: u32,
    },
    /// It answered well again.
    Returned,
}

impl Standing {
    /// A request failed. `may_go` is asked only where the backend would be ejected: are there others that can serve?
    pub fn failed(&mut self, now: Moment, seed: u64, may_go: impl FnOnce() -> bool) -> Option<Change> {
        if self.is_ejected(now) {
            // Requests that were on their way, or tried here for want of anyone else.
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES || !may_go() {
            return None;
        }
        let last = self.until.0.saturating_sub(self.since.0);
        // Whoever stayed well for as long as it was out begins anew.
        let relapsed = last > 0 && now.0.saturating_sub(self.until.0) < last.max(SLOW_START);
        self.relapses = if relapsed { self.relapses.saturating_add(1) } else { 0 };
        let pause = jittered(FIRST.checked_shl(self.relapses.min(16)).map_or(LONGEST, |pause| pause.min(LONGEST)), seed);
        (self.since, self.until, self.after, self.out) = (now, Moment(now.0 + pause), self.failures, true);
        // Back on probation: one more failure is enough, one good answer clears it.
        self.failures = FAILURES - 1;
        Some(Change::Ejected { pause: Duration::from_millis(pause), failures: self.after })
    }

    /// A request that began at `began` was answered well.
    pub fn succeeded(&mut self, now: Moment, began: Moment) -> Option<Change> {
        if self.is_ejected(now) {
            if began < self.since {
                return None;
            }
            // It was asked for want of anyone else, and can serve.
            self.until = now;
        }
        self.failures = 0;
        std::mem::take(&mut self.out).then_some(Change::Returned)
    }

    /// Comes back now for another reason than an answered request, in slow start as well.
    pub fn welcome(&mut self, now: Moment) {
        if !self.is_ejected(now) {
            (self.since, self.until) = (now, now);
        }
    }

    pub fn is_ejected(&self, now: Moment) -> bool {
        now < self.until
    }

    /// A success would change something.
    pub fn is_troubled(&self) -> bool {
        self.failures > 0 || self.out
    }

    /// When the last ejection ends or ended; the beginning of time where there was none.
    pub fn until(&self) -> Moment {
        self.until
    }

    /// Failures that the last ejection was for.
    pub fn after(&self) -> u32 {
        self.after
    }
}

/// The part of its share, of [`WHOLE`], that a backend gets whose last ejection ended at `until`.
pub fn share(until: Moment, now: Moment) -> u64 {
    match now.0.checked_sub(until.0) {
        None => 0,
        Some(back) if until.0 > 0 && back < SLOW_START => LEAST + (WHOLE - LEAST) / SLOW_START * back,
        Some(_) => WHOLE,
    }
}

/// From when on a backend has its full share again; the beginning of time where it always had.
pub fn recovered(until: Moment) -> Moment {
    if until.0 == 0 { until } else { Moment(until.0 + SLOW_START) }
}

/// Up to a tenth longer or shorter, so that edges and backends do not come back all at once.
fn jittered(pause: u64, seed: u64) -> u64 {
    pause * 9 / 10 + seed % (pause / 5 + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fail(standing: &mut Standing, times: u32, now: u64) -> Option<Change> {
        (0..times).filter_map(|_| standing.failed(Moment(now), now, || true)).last()
    }

    #[test]
    fn five_failures_in_a_row_eject_and_fewer_do_not() {
        let mut standing = Standing::default();
        assert_eq!(fail(&mut standing, 4, 1_000), None);
        assert_eq!(standing.succeeded(Moment(1_000), Moment(0)), None);
        assert_eq!(fail(&mut standing, 4, 1_000), None, "a good answer in between clears");
        let Some(Change::Ejected { pause, failures: 5 }) = fail(&mut standing, 1, 1_000) else { panic!("{standing:?}") };
        assert!((4_500..=5_500).contains(&(pause.as_millis() as u64)));
        assert!(standing.is_ejected(Moment(5_000)) && !standing.is_ejected(Moment(6_600)));
    }

    #[test]
    fn relapses_double_the_time_up_to_five_minutes_and_being_well_begins_anew() {
        let (mut standing, mut now, mut pauses) = (Standing::default(), 1_000, Vec::new());
        for _ in 0..12 {
            let Some(Change::Ejected { pause, .. }) = fail(&mut standing, FAILURES, now) else { panic!("{standing:?}") };
            pauses.push(pause.as_millis() as u64);
            now = standing.until().0 + 1;
        }
        for (number, pause) in pauses.iter().enumerate() {
            let wanted = (FIRST << number).min(LONGEST);
            assert!((wanted * 9 / 10..=wanted * 11 / 10).contains(pause), "{pauses:?}");
        }
        assert_eq!(standing.succeeded(Moment(now), Moment(now)), Some(Change::Returned));
        now += 2 * LONGEST;
        assert!(matches!(fail(&mut standing, FAILURES, now), Some(Change::Ejected { pause, .. }) if pause < Duration::from_secs(6)));
    }

    #[test]
    fn who_is_back_is_on_probation() {
        let mut standing = Standing::default();
        fail(&mut standing, FAILURES, 1_000);
        let back = standing.until().0;
        assert!(fail(&mut standing.clone(), 1, back).is_some(), "one more failure is enough");
        assert_eq!(standing.succeeded(Moment(back), Moment(back)), Some(Change::Returned), "one good answer clears");
        assert_eq!(standing.succeeded(Moment(back), Moment(back)), None, "and is told once");
        assert_eq!(fail(&mut standing, 1, back), None);
    }

    #[test]
    fn only_requests_that_began_since_bring_it_back_before_its_time() {
        let mut standing = Standing::default();
        fail(&mut standing, FAILURES, 1_000);
        assert_eq!(standing.succeeded(Moment(1_100), Moment(900)), None);
        assert!(standing.is_ejected(Moment(1_100)));
        assert_eq!(standing.succeeded(Moment(1_100), Moment(1_050)), Some(Change::Returned));
        assert!(!standing.is_ejected(Moment(1_100)));
    }

    proptest! {
        #[test]
        fn a_share_grows_from_a_tenth_to_the_whole(until in 1u64..1_000_000, steps in proptest::collection::vec(0u64..20_000, 2..30)) {
            prop_assert_eq!(share(Moment(until), Moment(until - 1)), 0);
            prop_assert_eq!(share(Moment(until), recovered(Moment(until))), WHOLE);
            let mut steps = steps;
            steps.sort_unstable();
            let shares: Vec<u64> = steps.iter().map(|step| share(Moment(until), Moment(until + step))).collect();
            prop_assert!(shares.is_sorted() && shares.iter().all(|share| (LEAST..=WHOLE).contains(share)), "{:?}", shares);
        }

        /// Nobody is ejected who may not go, nor for longer than five and a half minutes.
        #[test]
        fn an_ejection_is_allowed_and_bounded(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..20_000, any::<u64>()), 1..200)) {
            let (mut standing, mut now) = (Standing::default(), 0);
            for (fails, may_go, pause, seed) in steps {
                now += pause;
                let before = standing.is_ejected(Moment(now));
                match fails {
                    true => _ = standing.failed(Moment(now), seed, || may_go),
                    false => _ = standing.succeeded(Moment(now), Moment(now)),
                }
                prop_assert!(before || may_go || !standing.is_ejected(Moment(now)));
                prop_assert!(standing.until().0 <= now + LONGEST * 11 / 10);
            }
        }
    }
}
