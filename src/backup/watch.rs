//! One series of runs as of now: how it stands, what ran last, when it is missed.

use std::time::Duration;

use jiff::Timestamp;

use super::standing::{Check, Facts, Last, State};
use super::{Job, Reason, Repository, Run, SKEW, Series, SeriesKey, Task, Verdict};

/// How something stands that is done every so often; `None`: it is off, and was never done.
pub(super) fn check(
    facts: &Facts<'_>,
    task: Task,
    every: Option<Duration>,
    volume: Option<&str>,
    target: &str,
    repository: &Repository,
) -> Option<Check> {
    let watch = Watch::new(facts, task, volume, target, repository);
    if every.is_none() && watch.series.is_none() {
        return None;
    }
    // Its turn comes at some moment of each period, so between two of them there may be two.
    let period = every.map_or(Duration::MAX, |every| every.saturating_mul(2));
    let judged = watch.judge(period, None);
    let success = watch.success().map(|run| run.ended);
    Some(Check { task, state: judged.state, last: judged.last, success, age: judged.age, next: watch.next().map(|job| job.due) })
}

/// One series with what is known around it.
pub(super) struct Watch<'a> {
    facts: &'a Facts<'a>,
    key: SeriesKey,
    pub series: Option<&'a Series>,
}

pub(super) struct Judged {
    pub state: State,
    pub last: Option<Last>,
    pub age: Option<u64>,
    pub overdue_at: Option<Timestamp>,
}

impl<'a> Watch<'a> {
    pub fn new(facts: &'a Facts<'a>, task: Task, volume: Option<&str>, target: &str, repository: &Repository) -> Watch<'a> {
        let key = SeriesKey::new(task, volume, target, repository);
        let series = facts.runs.get(&key);
        Watch { facts, key, series }
    }

    pub fn next(&self) -> Option<&'a Job> {
        self.facts.jobs.iter().find(|job| job.key() == self.key)
    }

    /// The latest success since the clock was last set back, that this clock can have seen: one that a wrong clock dated ahead must not hide
    /// that there is none since.
    fn success(&self) -> Option<&'a Run> {
        let series = self.series?;
        let (runs, older) = match series.since_set_back() {
            Some(runs) => (runs, None),
            None => (&series.runs[..], series.success.as_ref()),
        };
        let good = runs.iter().chain(older).filter(|run| run.verdict != Verdict::Failed);
        good.filter(|run| run.ended.duration_since(self.facts.now) <= SKEW).max_by_key(|run| run.ended)
    }

    /// A success is missed when there was none for `period` and `backup.overdue`; without any, since the series began.
    pub fn judge(&self, period: Duration, seen: Option<Timestamp>) -> Judged {
        let now = self.facts.now;
        let success = self.success().map(|run| run.ended);
        let since = match self.series.and_then(Series::since_set_back) {
            // Whatever succeeded before is older than that.
            Some(runs) => runs.first().map(|run| run.began),
            None => self.series.and_then(|series| series.since).into_iter().chain(seen).min(),
        };
        let allowed = period.saturating_add(self.facts.config.overdue);
        let overdue_at = success.or(since).and_then(|from| from.checked_add(allowed).ok());
        let last = self.series.and_then(|series| series.runs.last().or(series.success.as_ref()));
        let state = match last.map(|run| run.verdict) {
            _ if overdue_at.is_some_and(|at| at <= now) => State::Overdue,
            Some(Verdict::Failed) => State::Failed,
            Some(Verdict::Warning) => State::Warning,
            Some(Verdict::Good) => State::Good,
            None => State::Never,
        };
        let age = success.map(|at| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0));
        Judged { state, last: last.map(|run| self.last(run)), age, overdue_at }
    }

    fn last(&self, run: &Run) -> Last {
        let again = |job: &&Job| matches!(job.reason, Reason::Retry(_)) && job.key() == self.key;
        let planned = self.facts.jobs.iter().find(again);
        let begun = self.facts.under_way.iter().map(|(job, _)| job).find(again);
        let retry = planned.or(begun).filter(|_| run.verdict == Verdict::Failed).map(|job| job.due);
        Last {
            id: run.id.clone(),
            at: run.ended,
            verdict: run.verdict,
            message: run.message.clone(),
            warnings: run.more_warnings.saturating_add(run.warnings.len() as u64),
            seconds: seconds(run),
            incident: self.incident(run),
            retry,
        }
    }

    fn incident(&self, run: &Run) -> String {
        let runs = self.series.map_or(&[][..], |series| &series.runs);
        let first = runs.iter().rev().find(|run| !matches!(run.reason, Reason::Retry(_)));
        first.unwrap_or(run).id.clone()
    }
}

pub(super) fn seconds(run: &Run) -> u64 {
    u64::try_from(run.ended.duration_since(run.began).as_secs()).unwrap_or(0)
}
