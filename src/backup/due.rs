//! When the next run of a series is due: its schedule, its own part of the jitter, the hours in which runs may begin, what was missed
//! while nobody was there, and tries after a failure.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::Backup;
use crate::config::cron::Window;

use super::{Reason, Run, Series, Verdict};

/// What holds for all series of one plan.
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
    window: Option<Window>,
    jitter: Duration,
    retries: u32,
    retry_pause: Duration,
}

/// What is later than this was missed while nobody was there, and not only held up by others.
const LATE: SignedDuration = SignedDuration::from_hours(1);
/// Runs that lie so far ahead of the clock are taken as of now; those further ahead were made by a clock that was wrong.
const SKEW: SignedDuration = SignedDuration::from_mins(10);
/// The longest pause before another try.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

impl Clock {
    pub fn new(config: &Backup, now: Timestamp) -> Clock {
        Clock {
            now,
            zone: config.zone(),
            window: config.hours(),
            jitter: config.jitter,
            retries: config.retries,
            retry_pause: config.retry_pause,
        }
    }

    /// When a series is due, and why. `next` is its schedule's first occurrence after a moment; `born` is when it could first have been
    /// run, where no run of it is known: what is older than its first occurrence after that is due now. `None`: never again.
    pub fn due(
        &self,
        series: Option<&Series>,
        born: Option<Timestamp>,
        seed: u64,
        next: &dyn Fn(Timestamp) -> Option<Timestamp>,
    ) -> Option<(Timestamp, Reason)> {
        let last = series.and_then(|series| self.last(series));
        let is_set_back = last.is_none() && series.is_some_and(|series| !series.runs.is_empty());
        let since = series.and_then(|series| series.since).filter(|since| self.may_be(*since));
        let anchor = last.map(|run| run.began).or(since).or(born.filter(|born| self.may_be(*born)));
        let Some(anchor) = anchor.filter(|_| !is_set_back) else { return Some(self.late(self.now, Reason::CaughtUp)) };
        let occurrence = next(anchor.min(self.now))?;
        let due = self.spread(occurrence, next(occurrence), seed);
        if let Some(again) = last.and_then(|run| self.again(run)).filter(|(at, _)| *at < due) {
            return Some(again);
        }
        Some(match self.now.duration_since(due) {
            early if early < SignedDuration::ZERO => (due, Reason::Scheduled),
            late if late <= LATE => self.late(due, Reason::Scheduled),
            _ => self.late(due, Reason::CaughtUp),
        })
    }

    /// The latest run, if this clock can have seen it. One from the future says that the clock was set back since: then nobody knows how
    /// long ago the runs before it were, and none of them may stand for one that is to come.
    fn last<'a>(&self, series: &'a Series) -> Option<&'a Run> {
        series.runs.last().or(series.success.as_ref()).filter(|run| self.may_be(run.began))
    }

    fn may_be(&self, at: Timestamp) -> bool {
        at.duration_since(self.now) <= SKEW
    }

    /// Another try after a failure.
    fn again(&self, run: &Run) -> Option<(Timestamp, Reason)> {
        if run.verdict != Verdict::Failed {
            return None;
        }
        let number = if let Reason::Retry(number) = run.reason { number.saturating_add(1) } else { 1 };
        if number > self.retries {
            return None;
        }
        let ended = if self.may_be(run.ended) { run.ended.max(run.began) } else { run.began };
        let doubled = 1u32.checked_shl(number - 1).unwrap_or(u32::MAX);
        let pause = self.retry_pause.saturating_mul(doubled).min(LONGEST_PAUSE);
        let at = self.opened(later(ended.min(self.now), pause));
        Some(self.late(at, Reason::Retry(number)))
    }

    /// What is due already waits until runs may begin, and otherwise goes before all that is due later.
    fn late(&self, due: Timestamp, reason: Reason) -> (Timestamp, Reason) {
        let opens = self.opened(self.now);
        (if due <= self.now && opens > self.now { opens } else { due }, reason)
    }

    fn opened(&self, at: Timestamp) -> Timestamp {
        self.window.map_or(at, |window| window.moved(at, &self.zone))
    }

    /// An occurrence moved into the window, and from there by the series' part of the jitter: at most by half of the way to the
    /// `following` occurrence, and not out of the window.
    fn spread(&self, occurrence: Timestamp, following: Option<Timestamp>, seed: u64) -> Timestamp {
        let begin = self.opened(occurrence);
        let half = following.map_or(Duration::MAX, |following| following.duration_since(occurrence).unsigned_abs() / 2);
        let open = self.window.map_or(Duration::MAX, |window| window.end(begin, &self.zone).duration_since(begin).unsigned_abs());
        let room = self.jitter.min(half).min(open).as_secs();
        let part = (u128::from(room) * u128::from(seed)) >> 64;
        later(begin, Duration::from_secs(u64::try_from(part).unwrap_or(0)))
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.saturating_add(by).unwrap_or(at)
}

/// The same number for the same words, evenly spread over all numbers: FNV-1a, mixed once more as it leaves the upper bits of short
/// words alike.
pub fn seed(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}
