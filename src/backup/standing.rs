//! How each volume stands at each target, and each repository: one report for `skep backup status`, the admin listener, the metrics and the
//! notices, so that no view can tell another story. What is missing is told as what failed is.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Backup;
use crate::config::backup::Target;
use crate::config::cron::Schedule;

use super::plan::{Held, repository};
use super::survey::Unprotected;
use super::watch::{Watch, check, seconds};
use super::{Job, Progress, Repository, Runs, Series, Stats, Subject, Task, Verdict};

/// All that a report depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub node: &'a str,
    pub subjects: &'a [Subject],
    pub unprotected: &'a [Unprotected],
    pub runs: &'a Runs,
    /// The plan: the next job of each series.
    pub jobs: &'a [Job],
    pub under_way: &'a [(Job, Option<Progress>)],
    /// Repositories whose keys are nowhere else.
    pub held: &'a [Held],
    /// Free bytes by the name of the target, where they can be known.
    pub free: &'a BTreeMap<String, u64>,
    /// Since when a volume is to be saved to a target, by [`place`]: kept by `Told`, as a volume that was never saved has no run.
    pub seen: &'a BTreeMap<String, Timestamp>,
    pub config: &'a Backup,
    pub now: Timestamp,
}

/// How everything stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub node: String,
    pub at: Option<Timestamp>,
    pub summary: Summary,
    /// By volume, then in the order of the targets.
    pub volumes: Vec<Standing>,
    pub repositories: Vec<Keeping>,
    pub unprotected: Vec<Unprotected>,
}

/// Volumes by state; one that is saved to two targets counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    pub good: usize,
    pub warning: usize,
    pub failed: usize,
    pub overdue: usize,
    pub never: usize,
    pub held: usize,
    pub running: usize,
    /// Not saved at all.
    pub unprotected: usize,
    /// Repositories with something to say about them.
    pub repositories: usize,
}

/// One volume at one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub volume: String,
    pub target: String,
    pub repository: Repository,
    pub service: Option<String>,
    pub stack: Option<String>,
    pub owner: Option<String>,
    pub state: State,
    /// Why it stands so; one sentence, empty where nothing is to be said.
    pub message: String,
    pub success: Option<Success>,
    /// The latest run, whatever became of it.
    pub last: Option<Last>,
    /// Failed runs since the last success.
    pub failures: u32,
    /// Seconds since the last success; `None`: there was none.
    pub age: Option<u64>,
    /// From when on a success is missed, and whether it is.
    pub overdue_at: Option<Timestamp>,
    pub overdue: bool,
    pub next: Option<Timestamp>,
    /// What goes on with it now.
    pub doing: Option<Doing>,
    /// `None`: trials are off, and there was none.
    pub drill: Option<Check>,
}

/// In the order of how much it matters, the most last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Good,
    /// All is well, and a run is under way; what is not well says so even then.
    Running,
    /// There was no run yet, and none is missed.
    Never,
    /// The last run made an archive, and something is to be said about it.
    Warning,
    /// The last run failed.
    Failed,
    /// There was no success for too long.
    Overdue,
    /// Nothing is done on schedule before somebody keeps the repository's key elsewhere.
    Held,
}

impl State {
    pub const ALL: [State; 7] = [State::Good, State::Running, State::Never, State::Warning, State::Failed, State::Overdue, State::Held];

    pub fn word(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Running => "running",
            State::Never => "never",
            State::Warning => "warning",
            State::Failed => "failed",
            State::Overdue => "overdue",
            State::Held => "held",
        }
    }
}

/// The last run that made a good archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Success {
    pub at: Timestamp,
    pub archive: Option<String>,
    pub stats: Stats,
    /// Of the run.
    pub seconds: u64,
}

/// The latest run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Last {
    pub id: String,
    pub at: Timestamp,
    pub verdict: Verdict,
    pub message: String,
    pub warnings: u64,
    pub seconds: u64,
    /// The first of the failed runs that this one is a try of: what belongs together has one.
    pub incident: String,
    /// When it is tried again, for a failed one; `None`: not before its next hour.
    pub retry: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Doing {
    pub task: Task,
    pub progress: Option<Progress>,
}

/// A check of a repository, or a trial of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub task: Task,
    pub state: State,
    pub last: Option<Last>,
    /// When it last ended well, and how many seconds ago.
    pub success: Option<Timestamp>,
    pub age: Option<u64>,
    pub next: Option<Timestamp>,
}

/// One repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Keeping {
    pub target: String,
    pub repository: Repository,
    /// Why nothing is done with it on schedule.
    pub held: Option<String>,
    /// Free bytes where it lies, and whether that is less than there must be.
    pub free: Option<u64>,
    pub low: bool,
    /// More archives are gone than pruning explains.
    pub lost: Option<Lost>,
    pub checks: Vec<Check>,
}

/// Archives that were there when the last run of their volume ended, and those that the next run found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub before: u64,
    pub now: u64,
    pub volumes: Vec<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.volumes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = self.volumes.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        write!(f, "there were {} archives of {named}{more}, and {} are left, though none of our runs deleted them", self.before, self.now)
    }
}

/// What [`Facts::seen`] calls a volume at a target; neither name holds a space.
pub fn place(volume: &str, target: &str) -> String {
    format!("{volume} {target}")
}

/// The report as of now.
pub fn standing(facts: &Facts<'_>) -> Report {
    let zone = facts.config.zone();
    let volumes: Vec<Standing> = facts
        .subjects
        .iter()
        .flat_map(|subject| {
            let schedule = Schedule::parse(&subject.settings.schedule).unwrap_or_else(|_| Schedule::nightly());
            let period = schedule.period(facts.now, &zone);
            facts.config.targets.iter().map(move |target| volume(facts, subject, target, period))
        })
        .collect();
    let mut keepings: BTreeMap<(&str, &Repository), Keeping> = BTreeMap::new();
    for standing in &volumes {
        let key = (standing.target.as_str(), &standing.repository);
        keepings.entry(key).or_insert_with(|| keeping(facts, &standing.target, &standing.repository));
    }
    let repositories: Vec<Keeping> = keepings.into_values().collect();
    let mut unprotected = facts.unprotected.to_vec();
    if facts.config.targets.is_empty() {
        unprotected.extend(facts.subjects.iter().map(|subject| Unprotected {
            what: format!("volume {}", subject.volume.name),
            why: "its labels ask for it, but no target is configured: set backup.targets".to_owned(),
        }));
    }
    let summary = summary(&volumes, &repositories, unprotected.len());
    Report { node: facts.node.to_owned(), at: Some(facts.now), summary, volumes, repositories, unprotected }
}

fn summary(volumes: &[Standing], repositories: &[Keeping], unprotected: usize) -> Summary {
    let mut summary = Summary { unprotected, ..Summary::default() };
    for standing in volumes {
        *match standing.state {
            State::Good => &mut summary.good,
            State::Running => &mut summary.running,
            State::Never => &mut summary.never,
            State::Warning => &mut summary.warning,
            State::Failed => &mut summary.failed,
            State::Overdue => &mut summary.overdue,
            State::Held => &mut summary.held,
        } += 1;
    }
    summary.repositories = repositories.iter().filter(|keeping| keeping.is_ailing()).count();
    summary
}

impl Keeping {
    /// Is something to be said about it?
    pub fn is_ailing(&self) -> bool {
        self.held.is_some() || self.low || self.lost.is_some() || self.checks.iter().any(|check| check.state >= State::Warning)
    }
}

/// Volumes that are called by their names where many are meant.
const NAMED: usize = 5;
/// Fewer archives than these can be gone by other means than an accident.
const FEW: u64 = 4;

fn volume(facts: &Facts<'_>, subject: &Subject, target: &Target, period: Duration) -> Standing {
    let name = &subject.volume.name;
    let repository = repository(target, &subject.node, subject.owner.as_deref());
    let watch = Watch::new(facts, Task::Save, Some(name), &target.name, &repository);
    let seen = facts.seen.get(&place(name, &target.name)).copied();
    let judged = watch.judge(period, seen);
    let held = facts.held.iter().find(|held| held.repository == repository && held.target == target.name);
    let doing = facts.under_way.iter().find(|(job, _)| job.volume.as_ref() == Some(name) && job.target == target.name);
    let state = match judged.state {
        _ if held.is_some() => State::Held,
        State::Good | State::Never if doing.is_some() => State::Running,
        state => state,
    };
    let message = match (state, held, &judged.last) {
        (State::Held, Some(held), _) => held.why.clone(),
        (State::Overdue, ..) => late(judged.age, judged.last.as_ref()),
        (State::Failed | State::Warning, _, Some(last)) => last.message.clone(),
        _ => String::new(),
    };
    Standing {
        volume: name.clone(),
        target: target.name.clone(),
        service: subject.service.clone(),
        stack: subject.stack.clone(),
        owner: subject.owner.clone(),
        state,
        message,
        success: watch.series.and_then(|series| series.success.as_ref()).map(|run| Success {
            at: run.ended,
            archive: run.archive.clone(),
            stats: run.stats,
            seconds: seconds(run),
        }),
        failures: watch.series.map_or(0, Series::failures),
        age: judged.age,
        overdue_at: judged.overdue_at,
        overdue: judged.state == State::Overdue,
        next: watch.next().map(|job| job.due),
        doing: doing.map(|(job, progress)| Doing { task: job.task, progress: progress.clone() }),
        drill: check(facts, Task::Drill, facts.config.drill, Some(name), &target.name, &repository),
        last: judged.last,
        repository,
    }
}

fn late(age: Option<u64>, last: Option<&Last>) -> String {
    let since = match age {
        Some(age) => format!("the last good archive is {} old", long(age)),
        None => "there is no good archive yet".to_owned(),
    };
    match last.filter(|last| last.verdict == Verdict::Failed) {
        Some(last) => format!("{since}; the last run failed: {}", last.message),
        None => format!("{since}, and no run has ended since"),
    }
}

/// A time as people say it: `3 days`, `26 hours`, `5 minutes`.
pub fn long(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

fn keeping(facts: &Facts<'_>, target: &str, repository: &Repository) -> Keeping {
    let config = facts.config;
    let kinds = [
        (Task::CheckRepository, config.check_repository),
        (Task::CheckArchives, config.check_archives),
        (Task::VerifyData, config.verify_data),
    ];
    let held = facts.held.iter().find(|held| held.repository == *repository && held.target == target);
    let free = facts.free.get(target).copied();
    Keeping {
        target: target.to_owned(),
        repository: repository.clone(),
        held: held.map(|held| held.why.clone()),
        free,
        low: free.is_some_and(|free| free < config.min_free),
        lost: lost(facts, target, repository),
        checks: kinds.into_iter().filter_map(|(task, every)| check(facts, task, every, None, target, repository)).collect(),
    }
}

/// Volumes of which at least half of the archives went without a run of ours.
fn lost(facts: &Facts<'_>, target: &str, repository: &Repository) -> Option<Lost> {
    let of_ours = facts.runs.iter().filter(|(key, _)| key.task == Task::Save && key.target == target);
    let mut lost = None::<Lost>;
    for (key, series) in of_ours {
        let Some((before, now)) = series.missed(repository) else { continue };
        if before.saturating_sub(now) >= FEW && now * 2 <= before {
            let lost = lost.get_or_insert_default();
            (lost.before, lost.now) = (lost.before + before, lost.now + now);
            lost.volumes.push(key.volume.clone());
        }
    }
    lost
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::backup::inventory::Volume;
    use crate::backup::{Census, Keep, Mode, OnError, Reason, Run, Settings};

    pub const HOUR: u64 = 3600;
    pub const DAY: u64 = 24 * HOUR;
    const FAR: Duration = Duration::from_secs(400 * DAY);

    /// 2026-11-23, noon.
    pub fn noon() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    pub fn ago(seconds: u64) -> Timestamp {
        noon().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    /// A node with a target and volumes that are saved every night at two; things are changed from there.
    #[derive(Clone)]
    pub struct Node {
        pub subjects: Vec<Subject>,
        pub unprotected: Vec<Unprotected>,
        pub runs: Runs,
        pub jobs: Vec<Job>,
        pub under_way: Vec<(Job, Option<Progress>)>,
        pub held: Vec<Held>,
        pub free: BTreeMap<String, u64>,
        pub seen: BTreeMap<String, Timestamp>,
        pub config: Backup,
        pub now: Timestamp,
    }

    impl Node {
        pub fn with(volumes: &[&str]) -> Node {
            let target = Target { name: "offsite".into(), location: "/srv/b".into() };
            let config = Backup {
                targets: vec![target],
                check_repository: None,
                check_archives: None,
                verify_data: None,
                drill: None,
                ..Backup::default()
            };
            Node {
                subjects: volumes.iter().map(|name| subject(name)).collect(),
                unprotected: Vec::new(),
                runs: Runs::new(),
                jobs: Vec::new(),
                under_way: Vec::new(),
                held: Vec::new(),
                free: BTreeMap::new(),
                seen: BTreeMap::new(),
                config,
                now: noon(),
            }
        }

        pub fn ran(mut self, run: Run) -> Node {
            let series = self.runs.remove(&run.key()).unwrap_or_default();
            self.runs.insert(run.key(), series.with(run));
            self
        }

        pub fn report(&self) -> Report {
            standing(&Facts {
                node: "n1",
                subjects: &self.subjects,
                unprotected: &self.unprotected,
                runs: &self.runs,
                jobs: &self.jobs,
                under_way: &self.under_way,
                held: &self.held,
                free: &self.free,
                seen: &self.seen,
                config: &self.config,
                now: self.now,
            })
        }
    }

    fn subject(name: &str) -> Subject {
        let settings = Settings {
            schedule: "0 2 * * *".into(),
            keep: Keep::default(),
            exclude: Vec::new(),
            mode: Mode::Hot,
            pre: None,
            post: None,
            timeout: Duration::from_secs(HOUR),
            on_error: OnError::Fail,
        };
        let volume = Volume { name: name.into(), path: PathBuf::from("/v"), ..Volume::default() };
        let service = Some("shop_db".into());
        Subject { volume, node: "n1".into(), service, stack: None, owner: None, settings, containers: Vec::new() }
    }

    pub fn location() -> Repository {
        Repository { location: "/srv/b/n1".into(), name: "n1".into() }
    }

    /// A run that ended so many seconds ago, after a minute.
    pub fn run(task: Task, volume: &str, seconds: u64, verdict: Verdict, message: &str) -> Run {
        Run {
            id: format!("{volume}-{task:?}-{seconds}"),
            task,
            volume: matches!(task, Task::Save | Task::Drill).then(|| volume.to_owned()),
            target: "offsite".into(),
            repository: location(),
            archive: (verdict != Verdict::Failed).then(|| format!("{volume}@n1-x")),
            began: ago(seconds + 60),
            ended: ago(seconds),
            verdict,
            message: message.into(),
            warnings: if verdict == Verdict::Warning { vec!["file changed".into()] } else { Vec::new() },
            more_warnings: 0,
            stats: Stats { files: 10, original: 1000, compressed: 500, deduplicated: 100 },
            census: None,
            reason: Reason::Scheduled,
        }
    }

    /// A good run that found so many archives and not so many.
    pub fn missed(volume: &str, before: u64, now: u64) -> Run {
        let census = Some(Census { expected: Some(before), found: now, left: Some(now + 1) });
        Run { census, ..save(volume, 0, Verdict::Good) }
    }

    pub fn save(volume: &str, seconds: u64, verdict: Verdict) -> Run {
        let message = match verdict {
            Verdict::Good => "",
            Verdict::Warning => "1 warning",
            Verdict::Failed => "the disk is full",
        };
        run(Task::Save, volume, seconds, verdict, message)
    }

    pub fn job(task: Task, volume: &str, due: Timestamp, reason: Reason) -> Job {
        let volume = matches!(task, Task::Save | Task::Drill).then(|| volume.to_owned());
        Job { task, volume, target: "offsite".into(), repository: location(), due, reason }
    }

    pub fn held() -> Held {
        Held { repository: location(), target: "offsite".into(), volumes: vec!["db".into()], why: "its key is here alone".into() }
    }

    #[test]
    fn a_volume_stands_as_its_runs_and_the_clock_say() {
        use Verdict::{Failed, Good, Warning};
        let runs =
            |runs: &[(u64, Verdict)]| runs.iter().fold(Node::with(&["db"]), |node, (at, verdict)| node.ran(save("db", *at, *verdict)));
        let seen = |seconds| {
            let mut node = Node::with(&["db"]);
            node.seen.insert(place("db", "offsite"), ago(seconds));
            node
        };
        let change = |mut node: Node, change: fn(&mut Node)| {
            change(&mut node);
            node
        };
        // what is known, its state, what the message holds. The period is a day, and half a day more is allowed.
        let table = [
            (Node::with(&["db"]), State::Never, ""),
            (seen(36 * HOUR - 1), State::Never, ""),
            (seen(36 * HOUR), State::Overdue, "no good archive yet, and no run has ended"),
            (runs(&[(10 * HOUR, Good)]), State::Good, ""),
            (runs(&[(10 * HOUR, Warning)]), State::Warning, "1 warning"),
            (runs(&[(34 * HOUR, Good), (10 * HOUR, Failed)]), State::Failed, "the disk is full"),
            (runs(&[(36 * HOUR, Good), (10 * HOUR, Failed)]), State::Overdue, "36 hours old; the last run failed: the disk is full"),
            (runs(&[(3 * DAY, Good)]), State::Overdue, "3 days old"),
            (runs(&[(10 * HOUR, Failed)]), State::Failed, "the disk is full"),
            (runs(&[(36 * HOUR, Failed), (HOUR, Failed)]), State::Overdue, "no good archive yet; the last run failed"),
            (change(runs(&[(10 * HOUR, Good)]), |node| node.held.push(held())), State::Held, "its key is here alone"),
            (change(runs(&[(10 * HOUR, Good)]), begin), State::Running, ""),
            (change(Node::with(&["db"]), begin), State::Running, ""),
            (change(runs(&[(10 * HOUR, Failed)]), begin), State::Failed, "the disk is full"),
            (change(runs(&[(3 * DAY, Good)]), begin), State::Overdue, "3 days old"),
        ];
        for (index, (node, state, message)) in table.into_iter().enumerate() {
            let report = node.report();
            let standing = &report.volumes[0];
            assert_eq!(standing.state, state, "{index}: {standing:?}");
            assert!(standing.message.contains(message) && standing.message.is_empty() == message.is_empty(), "{index}: {standing:?}");
            assert_eq!(standing.overdue, state == State::Overdue, "{index}");
        }
    }

    fn begin(node: &mut Node) {
        node.under_way.push((job(Task::Save, "db", noon(), Reason::Scheduled), None));
    }

    #[test]
    fn what_a_wrong_clock_dated_ahead_does_not_hide_that_nothing_came_since() {
        let mut ahead = save("db", 0, Verdict::Good);
        (ahead.began, ahead.ended) = (noon().checked_add(FAR).unwrap(), noon().checked_add(FAR).unwrap());
        let node = Node::with(&["db"]).ran(save("db", 2 * DAY, Verdict::Good)).ran(ahead);
        assert_eq!(node.report().volumes[0].state, State::Overdue);
        let back = Node { now: ago(30 * 60), ..Node::with(&["db"]).ran(save("db", 0, Verdict::Good)) };
        assert_eq!((back.report().volumes[0].state, back.report().volumes[0].age), (State::Good, Some(0)));
    }

    #[test]
    fn each_target_has_its_own_success() {
        let mut node = Node::with(&["db", "files"]).ran(save("db", HOUR, Verdict::Good)).ran(save("files", HOUR, Verdict::Warning));
        node.config.targets.push(Target { name: "near".into(), location: "/near".into() });
        let report = node.report();
        let states: Vec<_> = report.volumes.iter().map(|one| (one.volume.as_str(), one.target.as_str(), one.state)).collect();
        let wanted = [
            ("db", "offsite", State::Good),
            ("db", "near", State::Never),
            ("files", "offsite", State::Warning),
            ("files", "near", State::Never),
        ];
        assert_eq!(states, wanted);
        assert_eq!((report.summary.good, report.summary.warning, report.summary.never), (1, 1, 2));
        assert_eq!(report.repositories.len(), 2);
        assert_eq!(report.volumes[2].last.as_ref().unwrap().warnings, 1);
        let success = report.volumes[0].success.as_ref().unwrap();
        assert_eq!((success.at, success.seconds, success.stats.files, success.archive.as_deref()), (ago(HOUR), 60, 10, Some("db@n1-x")));
    }

    #[test]
    fn tries_of_one_failure_belong_together() {
        let retry = |number, seconds| Run { reason: Reason::Retry(number), ..save("db", seconds, Verdict::Failed) };
        let mut node = Node::with(&["db"]).ran(save("db", DAY, Verdict::Failed)).ran(save("db", 900, Verdict::Failed)).ran(retry(1, 600));
        node.jobs.push(job(Task::Save, "db", noon(), Reason::Retry(2)));
        let report = node.report();
        let last = report.volumes[0].last.clone().unwrap();
        assert_eq!((last.incident.as_str(), last.retry, report.volumes[0].failures), ("db-Save-900", Some(noon()), 3));
        node.jobs = vec![job(Task::Save, "db", noon(), Reason::Scheduled)];
        let report = node.report();
        assert_eq!((report.volumes[0].last.as_ref().unwrap().retry, report.volumes[0].next), (None, Some(noon())));
    }

    #[test]
    fn checks_trials_room_and_lost_archives_are_told() {
        let mut node = Node::with(&["db"]).ran(save("db", HOUR, Verdict::Good));
        assert_eq!((node.report().repositories[0].checks.len(), &node.report().volumes[0].drill), (0, &None), "they are off");
        node.config = Backup { targets: node.config.targets, ..Backup::default() };
        node.free.insert("offsite".into(), 5 << 20);
        node = node
            .ran(missed("db", 20, 10))
            .ran(run(Task::CheckRepository, "", 8 * DAY, Verdict::Good, ""))
            .ran(run(Task::CheckArchives, "", 61 * DAY, Verdict::Good, ""))
            .ran(run(Task::VerifyData, "", DAY, Verdict::Failed, "damage"))
            .ran(run(Task::Drill, "db", DAY, Verdict::Failed, "3 files differ"));
        let report = node.report();
        let keeping = &report.repositories[0];
        let states: Vec<_> = keeping.checks.iter().map(|check| (check.task, check.state)).collect();
        let wanted = [(Task::CheckRepository, State::Good), (Task::CheckArchives, State::Overdue), (Task::VerifyData, State::Failed)];
        assert_eq!(states, wanted);
        assert_eq!(
            (keeping.low, keeping.lost.as_ref(), report.summary.repositories),
            (true, Some(&Lost { before: 20, now: 10, volumes: vec!["db".into()] }), 1)
        );
        let drill = report.volumes[0].drill.clone().unwrap();
        assert_eq!((drill.state, drill.last.unwrap().message.as_str()), (State::Failed, "3 files differ"));
        for (before, now, lost) in [(20, 11, false), (3, 0, false), (4, 0, true), (5, 20, false)] {
            let node = node.clone().ran(missed("db", before, now));
            assert_eq!(node.report().repositories[0].lost.is_some(), lost, "{before} {now}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_hides_no_missing_success() {
        let day = |days| days * DAY;
        let state = |runs: &[(u64, Verdict)]| {
            let node = runs.iter().fold(Node::with(&["db"]), |node, (seconds, verdict)| node.ran(save("db", *seconds, *verdict)));
            let standing = node.report().volumes.remove(0);
            (standing.state, standing.age.map(|age| age / DAY))
        };
        let (good, failed) = (Verdict::Good, Verdict::Failed);
        assert_eq!(state(&[(day(1), good), (HOUR, failed)]), (State::Failed, Some(1)));
        // The run that failed came after the good one, on a clock that was set back by two days: the good one is older than it says.
        assert_eq!(state(&[(day(1), good), (day(3), failed), (HOUR, failed)]), (State::Overdue, None));
        assert_eq!(state(&[(day(1), good), (HOUR, good), (HOUR * 5, failed)]), (State::Failed, None));
        assert_eq!(state(&[(day(1), good), (day(3), failed), (HOUR, good)]), (State::Good, Some(0)));
        // A few minutes are no matter.
        assert_eq!(state(&[(day(1), good), (day(1) + 600, failed)]), (State::Failed, Some(1)));
    }

    #[test]
    fn without_a_target_what_labels_ask_for_is_unprotected() {
        let mut node = Node::with(&["db"]);
        node.config.targets.clear();
        let report = node.report();
        assert_eq!((report.volumes.len(), report.summary.unprotected), (0, 1));
        assert!(report.unprotected[0].why.contains("backup.targets"));
    }

    #[test]
    fn a_report_survives_its_way_through_json() {
        let mut node = Node::with(&["db"]).ran(save("db", HOUR, Verdict::Warning)).ran(run(Task::Drill, "db", DAY, Verdict::Good, ""));
        begin(&mut node);
        node.held.push(held());
        let report = node.report();
        assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    }
}
