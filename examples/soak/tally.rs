//! What came of the requests and of the edge, and the verdict on both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::edge::{Log, Sample};

/// Failures that are told of in full.
const TOLD: usize = 40;

/// One request that went wrong.
pub struct Failure {
    kind: &'static str,
    at: jiff::Timestamp,
    mark: usize,
    what: String,
}

impl Failure {
    pub fn now(kind: &'static str, mark: usize, what: String) -> Failure {
        Failure { kind, at: jiff::Timestamp::now(), mark, what }
    }

    /// With what the edge says of it.
    pub fn words(&self, log: &Log) -> String {
        let line = log.find(&self.mark.to_string()).unwrap_or_else(|| "no line in the access log".to_owned());
        let id = line.split_once("\"request_id\":\"").and_then(|(_, rest)| rest.split('"').next()).unwrap_or("-");
        format!("{:.3} {} (mark {}, request id {id}): {}\n    {line}", self.at, self.kind, self.mark, self.what)
    }
}

#[derive(Default)]
struct Counts {
    kinds: BTreeMap<&'static str, (u64, u64)>,
    failures: Vec<Failure>,
}

/// Requests by kind, and the failures.
#[derive(Default)]
pub struct Tally(Mutex<Counts>);

impl Tally {
    pub fn count(&self, kind: &'static str, failure: Option<Failure>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, failed) = counts.kinds.entry(kind).or_default();
        (*all, *failed) = (*all + 1, *failed + u64::from(failure.is_some()));
        if counts.failures.len() < TOLD {
            counts.failures.extend(failure);
        }
    }

    /// All requests, and how many of them failed.
    pub fn sums(&self) -> (u64, u64) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.kinds.values().fold((0, 0), |(all, failed), one| (all + one.0, failed + one.1))
    }

    /// By kind, in one line.
    pub fn line(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = counts.kinds.iter().map(|(kind, (all, failed))| match failed {
            0 => format!("{kind} {all}"),
            failed => format!("{kind} {all} (FAILED {failed})"),
        });
        kinds.collect::<Vec<_>>().join(", ")
    }

    /// The failures that have not been told yet.
    pub fn told(&self, from: usize, log: &Log) -> Vec<String> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.failures.iter().skip(from).map(|failure| failure.words(log)).collect()
    }
}

/// What must not grow: its name, how it is read, how it is shown, and how much more than a tenth is still no growth.
type Measure = (&'static str, fn(&Sample) -> f64, f64, f64);
const MEASURES: [Measure; 4] = [
    ("memory (MB)", |sample| sample.resident, 1e6, 8e6),
    ("open files", |sample| sample.fds, 1.0, 25.0),
    ("tasks", |sample| sample.tasks, 1.0, 25.0),
    ("connections", |sample| sample.connections, 1.0, 15.0),
];

/// Compares the second minute with the last, or the second quarter with the last of a short run. True: nothing grew.
pub fn growth(samples: &[Sample], minute: usize) -> (String, bool) {
    let window = minute.min(samples.len() / 4).max(1);
    let (early, late) = (samples.iter().skip(window).take(window), samples.iter().rev().take(window));
    let (mut text, mut flat) = (String::new(), true);
    for (name, read, unit, constant) in MEASURES {
        let (early, late) = (median(early.clone().map(read)), median(late.clone().map(read)));
        let grew = late > early * 1.1 + constant;
        flat &= !grew;
        let verdict = if grew { "GREW" } else { "flat" };
        let line = sparkline(&samples.iter().map(read).collect::<Vec<_>>());
        // Writing into a String cannot fail.
        _ = writeln!(text, "{name:12} {line}  {:.1} -> {:.1}  {verdict}", early / unit, late / unit);
    }
    (text, flat)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Values over time as 60 blocks between nothing and the largest.
fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let block = |piece: &[f64]| BLOCKS[((median(piece.iter().copied()) / largest * 7.0).round() as usize).min(7)];
    values.chunks(values.len().div_ceil(60).max(1)).map(block).collect()
}

/// One line of progress.
pub fn progress(elapsed: Duration, tally: &Tally, log: &Log, before: &Sample, sample: &Sample, seconds: f64) -> String {
    let (all, failed) = tally.sums();
    format!(
        "{:4} s  {all} requests, {failed} failed, {} x 5xx | {:.1} MB, {} files, {} threads, {} tasks, {} connections, \
         {} swaps, CPU {:.0} %",
        elapsed.as_secs(),
        log.faults(),
        sample.resident / 1e6,
        sample.fds,
        sample.threads,
        sample.tasks,
        sample.connections,
        sample.swaps,
        (sample.cpu - before.cpu) / seconds * 100.0,
    )
}
