//! Which volumes are saved, when, with which command, and whether that went well. The words that all parts of it share;
//! `backup/plan.rs` decides what is to be done, `backup/borg.rs` and `backup/engine.rs` act.

pub mod answer;
pub mod archive;
pub mod borg;
pub mod command;
pub mod contents;
pub mod courier;
pub mod drill;
pub mod due;
pub mod dump;
pub mod duty;
pub mod engine;
pub mod exec;
pub mod execution;
pub mod failure;
pub mod feed;
pub mod guard;
pub mod inventory;
pub mod journal;
pub mod judge;
pub mod keys;
pub mod label;
pub mod listing;
pub mod lock;
pub mod notice;
pub mod payload;
pub mod pipes;
pub mod placing;
pub mod plan;
pub mod queue;
pub mod quiet;
pub mod reader;
pub mod report;
pub mod restore;
pub mod restorer;
pub mod room;
pub mod runner;
pub mod shelf;
mod smtp;
pub mod standing;
pub mod step;
pub mod survey;
pub mod trial;
pub mod trouble;
pub mod unlock;
mod user;
pub mod vault;
mod watch;
mod webhook;
mod wording;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use crate::config::keep::Keep;

use self::inventory::{Container, Volume};
pub use self::label::KEYS;

/// A volume of this node that is to be saved, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    pub volume: Volume,
    /// The node's host name: part of archive names.
    pub node: String,
    /// The service (or plain container) that mounts it; the first by name, where there are several.
    pub service: Option<String>,
    pub stack: Option<String>,
    /// The directory group that owns it; such volumes have a repository of their own.
    pub owner: Option<String>,
    pub settings: Settings,
    /// Containers of this node that mount it.
    pub containers: Vec<Container>,
}

/// How one volume is saved: the labels of its service, over its own, over the configuration's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Cron, five fields, as it was written; read by `config::cron`.
    pub schedule: String,
    pub keep: Keep,
    /// Patterns relative to the volume's root.
    pub exclude: Vec<String>,
    pub mode: Mode,
    /// Commands that are run by `sh -c` in the first running container that mounts the volume, as its user.
    pub pre: Option<String>,
    pub post: Option<String>,
    /// For one run, everything included.
    pub timeout: Duration,
    /// What a failing `pre` command means for the run.
    pub on_error: OnError,
}

/// What happens to the application while its volume is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing.
    Hot,
    /// Its containers on this node are frozen, up to a deadline.
    Pause,
    /// Its containers on this node are stopped and started again; plain containers only.
    Stop,
    /// The database says itself what is in it, in a container that runs; its own files are left out.
    Dump(Database),
}

/// Whose dump it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Database {
    Postgres,
    Mysql,
    Mariadb,
    Mongodb,
    Redis,
    /// The file, relative to the volume's root.
    Sqlite(String),
    /// A command for `sh -c` whose output is the dump; the volume's files are saved beside it.
    Custom(String),
}

/// What a failing hook means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    #[default]
    Fail,
    Continue,
}

/// One thing to do with one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub task: Task,
    /// `None`: it is about the repository as a whole.
    pub volume: Option<String>,
    /// Name of the target.
    pub target: String,
    pub repository: Repository,
    /// When it is (or was) to begin.
    pub due: Timestamp,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Create an archive, prune the volume's older ones, compact.
    Save,
    CheckRepository,
    CheckArchives,
    /// Read all data of a slice of the archives.
    VerifyData,
    /// Restore the newest archive of the volume on trial.
    Drill,
}

/// Why a job is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Scheduled,
    /// Its hour passed while nobody was there.
    CaughtUp,
    /// The run before failed; this is the try with that number, the first retry is 1.
    Retry(u32),
    /// Somebody asked for it.
    Asked,
}

/// A borg repository below a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Repository {
    /// What borg calls it: a path, or an ssh URL.
    pub location: String,
    /// `node1`, or `node1+staff` for volumes of an owner: the last part of its location.
    pub name: String,
}

/// Warnings that are kept of one run.
pub const MAX_WARNINGS: usize = 100;

/// How a job went: kept, shown, judged by the next plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Unique: the moment and a random part.
    pub id: String,
    pub task: Task,
    pub volume: Option<String>,
    pub target: String,
    pub repository: Repository,
    /// For [`Task::Save`] its archive, for a drill the one that was restored.
    pub archive: Option<String>,
    pub began: Timestamp,
    pub ended: Timestamp,
    pub verdict: Verdict,
    /// Why it failed, or what was done; one sentence.
    pub message: String,
    /// At most [`MAX_WARNINGS`] are kept; `more_warnings` counts the rest.
    pub warnings: Vec<String>,
    pub more_warnings: u64,
    pub stats: Stats,
    /// `None`: it did not get as far as counting.
    #[serde(default)]
    pub census: Option<Census>,
    pub reason: Reason,
}

/// How many archives a volume has in a repository: those that go without our doing are missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Census {
    /// What the last run that counted at its end had left; `None`: there was none.
    pub expected: Option<u64>,
    /// Before anything was done.
    pub found: u64,
    /// At the end, after pruning; `None`: it did not get there.
    pub left: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// It is there, and something is to be said about it.
    Warning,
    Failed,
}

/// Of one archive, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub files: u64,
    pub original: u64,
    pub compressed: u64,
    pub deduplicated: u64,
}

/// What is known of one (task, volume, target).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// The latest ones, oldest first.
    pub runs: Vec<Run>,
    /// The last that was not [`Verdict::Failed`], even if it is no longer among `runs`.
    pub success: Option<Run>,
    /// When this series was first known of: what never succeeded is as old as that.
    pub since: Option<Timestamp>,
}

/// All series of a node by [`key`].
pub type Runs = BTreeMap<SeriesKey, Series>;

/// Which series a run belongs to. Checks belong to repositories: there `volume` is the repository's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    pub task: Task,
    pub volume: String,
    pub target: String,
}

impl SeriesKey {
    pub fn new(task: Task, volume: Option<&str>, target: &str, repository: &Repository) -> SeriesKey {
        SeriesKey { task, volume: volume.unwrap_or(&repository.name).to_owned(), target: target.to_owned() }
    }
}

impl Job {
    pub fn key(&self) -> SeriesKey {
        SeriesKey::new(self.task, self.volume.as_deref(), &self.target, &self.repository)
    }
}

impl Run {
    /// What is called by its moment, and by a number that nothing else of that moment has.
    pub fn id(at: Timestamp, random: u32) -> String {
        format!("{}-{random:08x}", at.strftime("%Y%m%dT%H%M%S"))
    }

    /// What has only just begun: whatever ends it before it says otherwise has failed.
    pub fn begun(job: &Job, at: Timestamp, random: u32) -> Run {
        Run {
            id: Run::id(at, random),
            task: job.task,
            volume: job.volume.clone(),
            target: job.target.clone(),
            repository: job.repository.clone(),
            archive: None,
            began: at,
            ended: at,
            verdict: Verdict::Failed,
            message: String::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason: job.reason,
        }
    }

    /// The volume, or the repository.
    pub fn what(&self) -> &str {
        self.volume.as_deref().unwrap_or(&self.repository.name)
    }

    /// What never got as far as being carried out.
    pub fn failed(job: &Job, at: Timestamp, message: String) -> Run {
        Run { message, ..Run::begun(job, at, 0) }
    }

    pub fn key(&self) -> SeriesKey {
        SeriesKey::new(self.task, self.volume.as_deref(), &self.target, &self.repository)
    }
}

/// A clock may be set by so much without anybody taking notice.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_hours(1);
/// Runs that one series remembers.
pub const REMEMBERED: usize = 50;

impl Series {
    /// How many archives the last run that counted left in a repository.
    pub fn left(&self, repository: &Repository) -> Option<u64> {
        let latest_first = self.runs.iter().rev().chain(&self.success).filter(|run| run.repository == *repository);
        latest_first.filter_map(|run| run.census?.left).next()
    }

    /// What the last run that counted before it began missed: how many there were to be, and how many there were.
    pub fn missed(&self, repository: &Repository) -> Option<(u64, u64)> {
        let latest_first = self.runs.iter().rev().filter(|run| run.repository == *repository);
        let census = latest_first.filter_map(|run| run.census).next()?;
        census.expected.map(|expected| (expected, census.found))
    }

    /// The same with `run` as its latest.
    pub fn with(mut self, run: Run) -> Series {
        self.since.get_or_insert(run.began);
        if run.verdict != Verdict::Failed {
            self.success = Some(run.clone());
        }
        self.runs.push(run);
        let surplus = self.runs.len().saturating_sub(REMEMBERED);
        self.runs.drain(..surplus);
        self
    }

    /// Runs since the clock was last set back, as far as they show it themselves: nobody knows how long ago those before them were.
    pub fn since_set_back(&self) -> Option<&[Run]> {
        let is_back = |pair: &[Run]| pair[0].began.duration_since(pair[1].began) > SKEW;
        let last_before = self.runs.windows(2).rposition(is_back)?;
        self.runs.get(last_before + 1..)
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        let failed = self.runs.iter().rev().take_while(|run| run.verdict == Verdict::Failed).count();
        u32::try_from(failed).unwrap_or(u32::MAX)
    }
}

/// What can be watched while borg works, for a bar in a terminal and the console.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Progress {
    /// Something began: `saving shop_data to offsite`, `pruning`, `compacting`.
    Phase {
        text: String,
    },
    Archive {
        stats: Stats,
        path: String,
    },
    /// Of checks, compactions: how far, 0 to 100.
    Percent {
        percent: f64,
        text: String,
    },
    Warning {
        text: String,
    },
}

/// Where [`Progress`] goes.
pub type Sink = std::sync::Arc<dyn Fn(Progress) + Send + Sync>;

#[cfg(test)]
mod years;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_remembers_its_last_success_and_counts_failures_since() {
        let repository = Repository { location: "/srv/b/n".into(), name: "n".into() };
        let run = |verdict| Run {
            id: String::new(),
            task: Task::Save,
            volume: Some("v".into()),
            target: "t".into(),
            repository: repository.clone(),
            archive: None,
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            verdict,
            message: String::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason: Reason::Scheduled,
        };
        let mut series = Series::default().with(run(Verdict::Good));
        for _ in 0..REMEMBERED + 3 {
            series = series.with(run(Verdict::Failed));
        }
        assert_eq!((series.runs.len(), series.failures()), (REMEMBERED, REMEMBERED as u32));
        assert_eq!(series.success.as_ref().map(|run| run.verdict), Some(Verdict::Good));
        assert_eq!(series.with(run(Verdict::Warning)).failures(), 0);
    }
}
