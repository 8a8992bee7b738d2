//! What is known of one backend's health, from its requests and its checks, in a form that picking reads without a lock.
//! The decisions are [`super::ejection`]'s and [`super::check`]'s; here they are kept and published.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::check::{Checked, Verdict};
use super::ejection::{self, Change, Standing};
use super::{Check, Moment};

/// What picking wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    /// Part of its share, of [`ejection::WHOLE`]: less while it comes back.
    Fit(u64),
    /// Out until then; asked where there is nobody else.
    Ejected(Moment),
    /// Nothing is known so far; asked where nobody is known to be good.
    Unchecked,
    /// Its check fails: never asked.
    Failing,
}

/// One backend's health. What requests read is in atomics; what changes rarely is behind the lock.
#[derive(Debug, Default)]
pub struct Health {
    /// [`Standing::until`], in milliseconds.
    until: AtomicU64,
    /// [`Standing::is_troubled`].
    troubled: AtomicBool,
    /// 0: not checked at all, else the [`Verdict`].
    verdict: AtomicU8,
    ejections: AtomicU64,
    detail: Mutex<Detail>,
}

#[derive(Debug, Default)]
struct Detail {
    standing: Standing,
    checked: Option<Checked>,
}

impl Health {
    pub fn fitness(&self, now: Moment) -> Fitness {
        match self.verdict.load(Ordering::Relaxed) {
            FAILING => return Fitness::Failing,
            UNKNOWN => return Fitness::Unchecked,
            _ => {}
        }
        let until = Moment(self.until.load(Ordering::Relaxed));
        if now < until { Fitness::Ejected(until) } else { Fitness::Fit(ejection::share(until, now)) }
    }

    /// A request failed; see [`Standing::failed`].
    pub(super) fn failed(&self, now: Moment, seed: u64, may_go: impl FnOnce() -> bool) -> Option<Change> {
        self.stand(|standing| standing.failed(now, seed, may_go))
    }

    /// A request was answered well. One load, as long as nothing was wrong.
    pub(super) fn succeeded(&self, now: Moment, began: Moment) -> Option<Change> {
        if !self.troubled.load(Ordering::Relaxed) {
            return None;
        }
        self.stand(|standing| standing.succeeded(now, began))
    }

    /// Takes an answer to a check; the new verdict, where it changed.
    pub(super) fn answered(&self, answer: Result<u16, String>, check: &Check, now: Moment) -> Option<Verdict> {
        let mut detail = self.lock();
        let before = detail.checked.get_or_insert_default().verdict;
        let change = detail.checked.get_or_insert_default().on(answer, check)?;
        self.verdict.store(number(change), Ordering::Relaxed);
        if before == Verdict::Failing {
            detail.standing.welcome(now);
            self.until.store(detail.standing.until().0, Ordering::Relaxed);
        }
        Some(change)
    }

    /// From now on there are checks, or there are none any more.
    pub(super) fn expect_checks(&self, expected: bool) {
        let mut detail = self.lock();
        if expected != detail.checked.is_some() {
            detail.checked = expected.then(Checked::default);
            self.verdict.store(if expected { UNKNOWN } else { UNCHECKED }, Ordering::Relaxed);
        }
    }

    /// What the checks said so far; `None`: there are none.
    pub fn checked(&self) -> Option<Checked> {
        self.lock().checked.clone()
    }

    /// Times that it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// When it has its full share again.
    pub(super) fn recovered(&self) -> Moment {
        ejection::recovered(Moment(self.until.load(Ordering::Relaxed)))
    }

    /// Checks that do not pass: picking must look.
    pub(super) fn is_unsettled(&self) -> bool {
        matches!(self.verdict.load(Ordering::Relaxed), UNKNOWN | FAILING)
    }

    /// Why it gets no requests, in words.
    pub fn ailment(&self, now: Moment) -> Option<String> {
        let detail = self.lock();
        match (self.fitness(now), &detail.checked) {
            (Fitness::Failing, Some(checked)) => Some(format!("failing its check: {}", checked.reason)),
            (Fitness::Unchecked, Some(checked)) if !checked.reason.is_empty() => {
                Some(format!("waiting for its check to pass: {}", checked.reason))
            }
            (Fitness::Unchecked, _) => Some("waiting for its check to pass".to_owned()),
            (Fitness::Ejected(until), _) => {
                let seconds = until.0.saturating_sub(now.0).div_ceil(1000);
                Some(format!("ejected for {seconds} s after {} failures", detail.standing.after()))
            }
            _ => None,
        }
    }

    fn stand(&self, step: impl FnOnce(&mut Standing) -> Option<Change>) -> Option<Change> {
        let mut detail = self.lock();
        let change = step(&mut detail.standing);
        self.until.store(detail.standing.until().0, Ordering::Relaxed);
        self.troubled.store(detail.standing.is_troubled(), Ordering::Relaxed);
        if matches!(change, Some(Change::Ejected { .. })) {
            self.ejections.fetch_add(1, Ordering::Relaxed);
        }
        change
    }

    fn lock(&self) -> MutexGuard<'_, Detail> {
        // Whoever panicked left whole values behind.
        self.detail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const UNCHECKED: u8 = 0;
const UNKNOWN: u8 = 1;
const PASSING: u8 = 2;
const FAILING: u8 = 3;

fn number(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Unknown => UNKNOWN,
        Verdict::Passing => PASSING,
        Verdict::Failing => FAILING,
    }
}
