//! When a backup is one: an exit code of 0 is not enough. The archive must be there, with something in it, and not much smaller than those
//! before it.

use super::{Series, Stats, Verdict};

/// Good runs that a new one is compared with.
const TREND: usize = 7;
/// With fewer good runs there is no trend.
const ENOUGH: usize = 3;

/// What is known of an archive that was just made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// As borg tells when it is asked for the archive again; `None`: it is not there.
    pub archive: Option<Stats>,
    /// Bytes of the dump, where there was to be one.
    pub dump: Option<u64>,
    /// What borg and the run complained about.
    pub warnings: u64,
}

/// What is to be thought of it, and why: sentences, empty when there is nothing to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
}

/// `shrink` is how much smaller than the median of the last good runs is still unsuspicious, in percent.
pub fn judge(evidence: &Evidence, before: &Series, shrink: u8) -> Judgement {
    let failed = |reason: &str| Judgement { verdict: Verdict::Failed, reasons: vec![reason.to_owned()] };
    let Some(stats) = evidence.archive else {
        return failed("borg said that it made the archive, and it is not in the repository");
    };
    if evidence.dump == Some(0) {
        return failed("the dump is empty");
    }
    let earlier = earlier(before);
    if stats.files == 0 && evidence.dump.is_none() {
        return match earlier.iter().any(|stats| stats.files > 0) {
            true => failed("the archive is empty, and earlier ones are not"),
            false => warned(vec!["the volume is empty".to_owned()]),
        };
    }
    let mut reasons = Vec::new();
    if evidence.warnings > 0 {
        let plural = if evidence.warnings == 1 { "" } else { "s" };
        reasons.push(format!("{} warning{plural}", evidence.warnings));
    }
    reasons.extend(shrunk(stats.files, &earlier, |stats| stats.files, shrink, |files| format!("{files} files")));
    reasons.extend(shrunk(stats.original, &earlier, |stats| stats.original, shrink, size));
    match reasons.is_empty() {
        true => Judgement { verdict: Verdict::Good, reasons },
        false => warned(reasons),
    }
}

fn warned(reasons: Vec<String>) -> Judgement {
    Judgement { verdict: Verdict::Warning, reasons }
}

/// Archives of the last runs that made one, the latest last.
fn earlier(before: &Series) -> Vec<Stats> {
    let made = before.runs.iter().filter(|run| run.verdict != Verdict::Failed).map(|run| run.stats);
    let mut all: Vec<Stats> = made.collect();
    if all.is_empty() {
        all.extend(before.success.as_ref().map(|run| run.stats));
    }
    all.drain(..all.len().saturating_sub(TREND));
    all
}

fn shrunk(now: u64, earlier: &[Stats], of: impl Fn(&Stats) -> u64, shrink: u8, said: impl Fn(u64) -> String) -> Option<String> {
    if earlier.len() < ENOUGH {
        return None;
    }
    let mut values: Vec<u64> = earlier.iter().map(of).collect();
    values.sort_unstable();
    let usual = values[values.len() / 2];
    let least = u128::from(usual) * u128::from(100 - shrink.min(100));
    (u128::from(now) * 100 < least).then(|| {
        let percent = 100 - u128::from(now) * 100 / u128::from(usual);
        format!("it is {percent} % smaller than usual: {} now, {} usually", said(now), said(usual))
    })
}

/// In the unit that people would take.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::backup::{Reason, Repository, Run, Task};

    fn series(stats: &[(u64, u64)]) -> Series {
        stats.iter().fold(Series::default(), |series, (files, original)| {
            series.with(Run {
                id: String::new(),
                task: Task::Save,
                volume: Some("v".into()),
                target: "t".into(),
                repository: Repository { location: "/r".into(), name: "r".into() },
                archive: None,
                began: Timestamp::UNIX_EPOCH,
                ended: Timestamp::UNIX_EPOCH,
                verdict: Verdict::Good,
                message: String::new(),
                warnings: Vec::new(),
                more_warnings: 0,
                stats: Stats { files: *files, original: *original, ..Stats::default() },
                census: None,
                reason: Reason::Scheduled,
            })
        })
    }

    fn evidence(files: u64, original: u64) -> Evidence {
        Evidence { archive: Some(Stats { files, original, ..Stats::default() }), ..Evidence::default() }
    }

    #[test]
    fn success_is_more_than_an_exit_code() {
        let usual = series(&[(100, 1000), (110, 1100), (90, 900)]);
        let cases: &[(Evidence, &Series, Verdict, &str)] = &[
            (Evidence::default(), &usual, Verdict::Failed, "not in the repository"),
            (evidence(100, 1000), &usual, Verdict::Good, ""),
            (evidence(50, 500), &usual, Verdict::Good, ""),
            (evidence(49, 1000), &usual, Verdict::Warning, "51 % smaller than usual: 49 files now, 100 files usually"),
            (evidence(100, 400), &usual, Verdict::Warning, "60 % smaller than usual: 400 B now, 1.0 KB usually"),
            (evidence(0, 0), &usual, Verdict::Failed, "is empty, and earlier ones are not"),
            (evidence(0, 0), &Series::default(), Verdict::Warning, "the volume is empty"),
            (evidence(0, 0), &series(&[(0, 0); 5]), Verdict::Warning, "the volume is empty"),
            (evidence(1, 1), &series(&[(100, 1000)]), Verdict::Good, ""),
            (Evidence { dump: Some(0), ..evidence(5, 5) }, &Series::default(), Verdict::Failed, "the dump is empty"),
            (Evidence { dump: Some(9), ..evidence(1, 9) }, &Series::default(), Verdict::Good, ""),
            (Evidence { warnings: 1, ..evidence(100, 1000) }, &usual, Verdict::Warning, "1 warning"),
        ];
        for (evidence, before, verdict, text) in cases {
            let judged = judge(evidence, before, 50);
            let said = judged.reasons.join("; ");
            assert_eq!(judged.verdict, *verdict, "{evidence:?}: {said}");
            assert!(said.contains(text) && said.is_empty() == text.is_empty(), "{evidence:?}: {said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn growing_is_never_suspicious(usual in 1..u64::MAX / 2, more in 0..u64::MAX / 2, shrink in 0..=200u8) {
            let before = series(&[(usual, usual); 4]);
            proptest::prop_assert_eq!(judge(&evidence(usual + more, usual + more), &before, shrink).verdict, Verdict::Good);
        }
    }
}
