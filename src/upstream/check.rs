//! What the answers to `health-path` say of a task: how many good or bad ones in a row make it usable or not.
//! A pure state machine; `upstream/probe.rs` asks, `ledger` keeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Check, Pool};
use crate::snapshot::Condition;

/// Until something is known of a task it is asked at least so often: it may be waited for.
const EAGER: Duration = Duration::from_secs(1);

/// What is known by checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough answers so far: it gets requests only where no other task is known to be good.
    #[default]
    Unknown,
    Passing,
    /// It gets no requests, even where it is the only one.
    Failing,
}

/// The answers of one task so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub verdict: Verdict,
    /// In a row.
    good: u32,
    bad: u32,
    /// What was wrong with the last bad answer: `503`, `no connection`.
    pub reason: String,
}

impl Checked {
    /// Takes an answer's status, or why there was none, and returns the new verdict where it changed.
    pub fn on(&mut self, answer: Result<u16, String>, check: &Check) -> Option<Verdict> {
        let wrong = match answer {
            Ok(status) if check.status.iter().any(|good| good.contains(&status)) => None,
            Ok(status) => Some(status.to_string()),
            Err(reason) => Some(reason),
        };
        let verdict = match wrong {
            None => {
                (self.good, self.bad) = (self.good.saturating_add(1), 0);
                if self.good >= check.healthy { Verdict::Passing } else { self.verdict }
            }
            Some(reason) => {
                (self.good, self.bad, self.reason) = (0, self.bad.saturating_add(1), reason);
                if self.bad >= check.unhealthy { Verdict::Failing } else { self.verdict }
            }
        };
        (std::mem::replace(&mut self.verdict, verdict) != verdict).then_some(verdict)
    }

    /// How long until the next question; `seed` spreads the questions of many tasks over their interval.
    pub fn pause(&self, check: &Check, seed: u64) -> Duration {
        let pause = if self.verdict == Verdict::Unknown { check.interval.min(EAGER) } else { check.interval };
        pause.mul_f64(0.9 + (seed % 1000) as f64 / 5000.0)
    }
}

/// Which tasks are to be asked what, by the backend's id; where routes disagree about one task, the first route's check counts.
pub fn checks<'a>(pools: impl IntoIterator<Item = &'a Pool>) -> BTreeMap<Arc<str>, (Backend, Arc<Check>)> {
    let mut checks = BTreeMap::new();
    for group in pools.into_iter().flat_map(|pool| &pool.groups) {
        let Some(check) = &group.check else { continue };
        for backend in group.backends.iter().filter(|backend| backend.condition == Condition::Healthy) {
            checks.entry(Arc::clone(&backend.id)).or_insert_with(|| (backend.clone(), Arc::clone(check)));
        }
    }
    checks
}

/// Do two pools want to ask one task different things? Only one of the two can be asked.
pub fn checks_differ(one: &Pool, other: &Pool) -> bool {
    let asked = |pool| checks([pool]);
    let (one, other) = (asked(one), asked(other));
    // Which host is asked for follows from the route and is nobody's wish.
    let same = |one: &Check, other: &Check| Check { host: None, ..one.clone() } == Check { host: None, ..other.clone() };
    one.iter().any(|(id, (_, check))| other.get(id).is_some_and(|(_, other)| !same(check, other)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(unhealthy: u32, healthy: u32) -> Check {
        let (interval, timeout) = (Duration::from_secs(10), Duration::from_secs(2));
        Check { path: "/health".into(), host: None, interval, timeout, status: vec![200..=399], unhealthy, healthy }
    }

    #[test]
    fn verdicts_need_answers_in_a_row() {
        let check = check(3, 2);
        let mut checked = Checked::default();
        let down = Some(Verdict::Failing);
        for (answer, change) in [
            (Ok(200), None),
            (Ok(204), Some(Verdict::Passing)),
            (Ok(503), None),
            (Err("no connection"), None),
            (Ok(302), None),
            (Ok(503), None),
            (Ok(500), None),
            (Err("no connection"), down),
            (Ok(503), None),
            (Ok(200), None),
            (Ok(200), Some(Verdict::Passing)),
        ] {
            assert_eq!(checked.on(answer.map_err(str::to_owned), &check), change, "{answer:?}: {checked:?}");
        }
        assert_eq!(checked.reason, "503");
    }

    #[test]
    fn nobody_waits_long_for_the_first_verdict() {
        let check = check(3, 1);
        let mut checked = Checked::default();
        assert!(checked.pause(&check, 999) <= Duration::from_millis(1100));
        checked.on(Ok(200), &check);
        for seed in 0..1000 {
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&checked.pause(&check, seed)));
        }
    }

    proptest! {
        /// The verdict is what the last answers in a row say.
        #[test]
        fn the_last_answers_count(answers in proptest::collection::vec(any::<bool>(), 1..60), unhealthy in 1u32..5, healthy in 1u32..5) {
            let check = check(unhealthy, healthy);
            let mut checked = Checked::default();
            answers.iter().for_each(|good| _ = checked.on(Ok(if *good { 200 } else { 503 }), &check));
            let ends = |good: bool, count: u32| answers.iter().rev().take_while(|one| **one == good).count() >= count as usize;
            if ends(true, healthy) {
                prop_assert_eq!(checked.verdict, Verdict::Passing);
            }
            if ends(false, unhealthy) {
                prop_assert_eq!(checked.verdict, Verdict::Failing);
            }
        }
    }
}
