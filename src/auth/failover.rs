//! Which server of a directory is asked next: the first that is well, and the earlier ones again once they have had time to recover.

use std::time::Duration;

use jiff::Timestamp;

/// A server that failed is left alone for so long where there is another; twice as long each time it fails again.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// All servers of a directory, in the order of preference.
#[derive(Clone, Debug)]
pub struct Failover(Vec<Standing>);

/// How one server does, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Its URL.
    pub server: String,
    pub up: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// What was wrong the last time, as a sentence without secrets; kept after it recovered.
    pub error: Option<String>,
    pub requests: u64,
    pub failures: u64,
    /// When it was asked last.
    pub last: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Standing {
    health: Health,
    /// In a row.
    failed: u32,
    /// Left alone until then.
    until: Timestamp,
    /// Somebody is trying whether it is well again.
    tried: bool,
}

/// What everybody should hear of, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Down,
    Up,
}

impl Failover {
    pub fn new(servers: impl IntoIterator<Item = String>, now: Timestamp) -> Failover {
        let health = |server| Health { server, up: true, since: now, error: None, requests: 0, failures: 0, last: None };
        Failover(servers.into_iter().map(|server| Standing { health: health(server), failed: 0, until: now, tried: false }).collect())
    }

    /// Whom to ask, where those of `asked` have failed this request already. Whoever asks says how it went, by [`Failover::succeeded`],
    /// [`Failover::failed`] or [`Failover::given_up`]: of a server that is down, one request at a time finds out whether it still is.
    pub fn next(&mut self, asked: &[usize], now: Timestamp) -> Option<usize> {
        let free = |(index, standing): &(usize, &Standing)| !asked.contains(index) && !standing.tried;
        let ready = |standing: &Standing| standing.failed == 0 || now >= standing.until || now < standing.health.since;
        let mut all = self.0.iter().enumerate().filter(free);
        let first = all.clone().find(|(_, standing)| ready(standing));
        // With none that is ready, waiting would help nobody: the one that has rested longest.
        let rested = || asked.is_empty().then(|| all.by_ref().min_by_key(|(_, standing)| standing.until)).flatten();
        let index = first.or_else(rested)?.0;
        let standing = &mut self.0[index];
        standing.tried = standing.failed > 0;
        standing.health.requests += 1;
        standing.health.last = Some(now);
        Some(index)
    }

    /// `index` answered.
    pub fn succeeded(&mut self, index: usize, now: Timestamp) -> Option<Change> {
        let standing = &mut self.0[index];
        (standing.failed, standing.tried) = (0, false);
        if standing.health.up {
            return None;
        }
        (standing.health.up, standing.health.since) = (true, now);
        Some(Change::Up)
    }

    /// `index` did not.
    pub fn failed(&mut self, index: usize, why: &str, now: Timestamp) -> Option<Change> {
        let standing = &mut self.0[index];
        // Many that were under way when it went down are one failure.
        if standing.failed == 0 || standing.tried {
            let pause = FIRST.saturating_mul(1 << standing.failed.min(10)).min(LONGEST);
            standing.until = now.saturating_add(pause).unwrap_or(now);
            (standing.failed, standing.tried) = (standing.failed.saturating_add(1), false);
        }
        standing.health.failures += 1;
        standing.health.error = Some(why.to_owned());
        if !standing.health.up {
            return None;
        }
        (standing.health.up, standing.health.since) = (false, now);
        Some(Change::Down)
    }

    /// Nobody waits for the answer of `index` any more.
    pub fn given_up(&mut self, index: usize) {
        self.0[index].tried = false;
    }

    pub fn health(&self) -> impl Iterator<Item = &Health> {
        self.0.iter().map(|standing| &standing.health)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn servers(count: usize) -> Failover {
        Failover::new((0..count).map(|index| format!("ldaps://{index}")), at(0))
    }

    #[test]
    fn the_first_is_asked_while_it_is_well_and_again_once_it_recovered() {
        let mut servers = servers(2);
        assert_eq!(servers.next(&[], at(0)), Some(0));
        assert_eq!(servers.failed(0, "refused", at(0)), Some(Change::Down));
        assert_eq!(servers.next(&[0], at(0)), Some(1), "the same request goes on");
        assert_eq!(servers.succeeded(1, at(0)), None);
        assert_eq!(servers.next(&[], at(0)), Some(1), "later ones do not try the first again at once");
        assert_eq!(servers.next(&[], at(1)), Some(0), "one does after its pause,");
        assert_eq!(servers.next(&[], at(1)), Some(1), "while others go past it");
        assert_eq!(servers.failed(0, "refused again", at(1)), None, "it is known to be down");
        assert_eq!(servers.next(&[], at(2)), Some(1), "the pause grows");
        assert_eq!(servers.next(&[], at(3)), Some(0));
        assert_eq!(servers.succeeded(0, at(3)), Some(Change::Up));
        assert_eq!(servers.next(&[], at(3)), Some(0));
        let health: Vec<&Health> = servers.health().collect();
        assert_eq!((health[0].failures, health[0].since, health[0].error.as_deref()), (2, at(3), Some("refused again")));
        assert!(health[0].up && health[1].up);
    }

    #[test]
    fn with_all_down_one_request_at_a_time_still_tries() {
        let mut servers = servers(2);
        for index in [0, 1] {
            assert_eq!(servers.next(&[], at(0)), Some(index));
            servers.failed(index, "refused", at(0));
        }
        assert_eq!(servers.next(&[], at(0)), Some(0));
        assert_eq!(servers.next(&[], at(0)), Some(1));
        assert_eq!(servers.next(&[], at(0)), None, "both are being tried");
        servers.given_up(1);
        assert_eq!(servers.next(&[], at(0)), Some(1));
    }

    #[test]
    fn a_crowd_that_fails_together_fails_once() {
        let mut servers = servers(1);
        for _ in 0..50 {
            assert_eq!(servers.next(&[], at(0)), Some(0));
        }
        let changes: Vec<_> = (0..50).filter_map(|_| servers.failed(0, "refused", at(0))).collect();
        assert_eq!(changes, [Change::Down]);
        assert_eq!(servers.0[0].until, at(1));
        assert_eq!(servers.health().next().unwrap().failures, 50);
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_no_server_out() {
        let mut servers = servers(2);
        servers.next(&[], at(1000));
        servers.failed(0, "refused", at(1000));
        assert_eq!(servers.next(&[], at(10)), Some(0));
    }

    proptest! {
        /// Whatever happens, a request asks each server once at most, and pauses end.
        #[test]
        fn it_neither_loops_nor_forgets(steps in proptest::collection::vec((0..3_u8, 0..90_i64), 1..60)) {
            let mut servers = servers(3);
            let mut now = 0;
            for (what, wait) in steps {
                now += wait;
                let mut asked = Vec::new();
                while let Some(index) = servers.next(&asked, at(now)) {
                    prop_assert!(!asked.contains(&index));
                    asked.push(index);
                    match what {
                        0 => drop(servers.succeeded(index, at(now))),
                        1 => drop(servers.failed(index, "no", at(now))),
                        _ => servers.given_up(index),
                    }
                }
                prop_assert!(!asked.is_empty());
            }
            prop_assert_eq!(servers.next(&[], at(now + 61)), Some(0));
        }
    }
}
