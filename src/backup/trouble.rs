//! Everything in a report that somebody should hear of, each with how much it weighs and what would make it new.

use crate::config::Level;

use super::notice::{About, Kind};
use super::standing::{Check, Keeping, Last, Report, Standing, State, long, place};
use super::{Task, Verdict};

/// A trouble as the report has it.
pub(super) struct Trouble {
    pub key: String,
    pub kind: Kind,
    pub level: Level,
    pub target: String,
    pub mark: String,
    pub about: About,
    /// Something graver tells it.
    pub muted: bool,
}

/// What troubles of a repository are known by.
pub(super) fn keeping_name(keeping: &Keeping) -> String {
    format!("{}/{}", keeping.target, keeping.repository.name)
}

/// Everything in a report that somebody should hear of.
pub(super) fn troubles(report: &Report) -> Vec<Trouble> {
    let volumes = report.volumes.iter().flat_map(of_volume);
    volumes.chain(report.repositories.iter().flat_map(of_repository)).collect()
}

/// What is to be said about a repository, as sentences.
pub fn complaints(keeping: &Keeping) -> Vec<String> {
    of_repository(keeping).into_iter().map(|trouble| trouble.about.message).collect()
}

fn of_volume(standing: &Standing) -> Vec<Trouble> {
    let named = place(&standing.volume, &standing.target);
    let trouble = |kind: Kind, level: Level, mark: String, message: String, muted: bool| Trouble {
        key: format!("{kind:?} {named}"),
        kind,
        level,
        target: standing.target.clone(),
        mark,
        about: About { message, ..saved(standing) },
        muted,
    };
    let mut found = Vec::new();
    let overdue = standing.state == State::Overdue;
    if overdue {
        // The end of a run that makes up for it is waited for: after a machine was off for days, all is overdue and about to be mended.
        let mending = standing.doing.as_ref().is_some_and(|doing| doing.task == Task::Save);
        found.push(trouble(Kind::Overdue, Level::Error, String::new(), standing.message.clone(), mending));
    }
    if let Some(last) = &standing.last {
        match last.verdict {
            Verdict::Failed => {
                let mut failed = trouble(Kind::Failed, weight(last), last.incident.clone(), last.message.clone(), overdue);
                failed.about.retry = last.retry;
                found.push(failed);
            }
            Verdict::Warning => found.push(trouble(Kind::Warned, Level::Warning, sort(&last.message), last.message.clone(), false)),
            Verdict::Good => {}
        }
    }
    if let Some(drill) = &standing.drill {
        let told = of_check(drill, [Kind::DrillFailed, Kind::DrillOverdue]);
        found.extend(told.map(|(kind, level, mark, message)| {
            let mut trouble = trouble(kind, level, mark, message, false);
            trouble.key = format!("{kind:?}-drill {named}");
            trouble
        }));
    }
    found
}

fn of_repository(keeping: &Keeping) -> Vec<Trouble> {
    let trouble = |what: &str, kind: Kind, level: Level, mark: String, message: String| Trouble {
        key: format!("{kind:?} {}{what}", keeping_name(keeping)),
        kind,
        level,
        target: keeping.target.clone(),
        mark,
        about: About { repository: Some(keeping.repository.location.clone()), message, ..About::default() },
        muted: false,
    };
    let mut found = Vec::new();
    if let Some(why) = &keeping.held {
        found.push(trouble("", Kind::Held, Level::Error, String::new(), why.clone()));
    }
    if keeping.low {
        let free = keeping.free.unwrap_or_default() / (1 << 20);
        found.push(trouble("", Kind::SpaceLow, Level::Warning, String::new(), format!("{free} MiB are free")));
    }
    if let Some(lost) = &keeping.lost {
        let mark = format!("{} {}", lost.before, lost.now);
        found.push(trouble("", Kind::ArchivesLost, Level::Warning, mark, lost.to_string()));
    }
    for check in &keeping.checks {
        let told = of_check(check, [Kind::CheckFailed, Kind::CheckOverdue]);
        let what = format!(" {:?}", check.task);
        found.extend(told.map(|(kind, level, mark, message)| trouble(&what, kind, level, mark, message)));
    }
    found
}

/// What a check or a trial wants told: its kind (failed, overdue, or a warning), weight, mark and message.
fn of_check(check: &Check, [failed, overdue]: [Kind; 2]) -> Option<(Kind, Level, String, String)> {
    let name = match check.task {
        Task::CheckRepository => "the check of the repository",
        Task::CheckArchives => "the check of the archives",
        Task::VerifyData => "the verification of the data",
        Task::Drill | Task::Save => "the restore on trial",
    };
    match (&check.last, check.state) {
        (Some(last), _) if last.verdict == Verdict::Failed => {
            Some((failed, weight(last), last.incident.clone(), format!("{name} failed: {}", last.message)))
        }
        (_, State::Overdue) => {
            let message = match check.age {
                Some(age) => format!("{name} last ended well {} ago", long(age)),
                None => format!("{name} has never ended well"),
            };
            Some((overdue, Level::Warning, String::new(), message))
        }
        (Some(last), _) if last.verdict == Verdict::Warning => {
            Some((Kind::Warned, Level::Warning, sort(&last.message), format!("{name}: {}", last.message)))
        }
        _ => None,
    }
}

/// What will be tried again may mend itself.
fn weight(last: &Last) -> Level {
    if last.retry.is_some() { Level::Warning } else { Level::Error }
}

/// Warnings that differ in numbers only are of one sort, which is told again after a while and not each night.
fn sort(message: &str) -> String {
    message.chars().filter(|letter| !letter.is_ascii_digit()).take(200).collect()
}

/// What is known of a volume at a target.
pub(super) fn saved(standing: &Standing) -> About {
    let success = standing.success.as_ref();
    About {
        volume: Some(standing.volume.clone()),
        repository: Some(standing.repository.location.clone()),
        message: standing.message.clone(),
        last_success: success.map(|success| success.at),
        retry: None,
        archive: success.and_then(|success| success.archive.clone()),
        stats: success.map(|success| success.stats),
    }
}
