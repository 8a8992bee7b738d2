//! What is to be done, and when: every volume to every target on its schedule, every repository and its archives checked, every volume
//! restored on trial. A pure function of the volumes, the configuration, the runs so far and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::config::Backup;
use crate::config::backup::Target;
use crate::config::cron::Schedule;
use crate::diagnostic::Diagnostic;

pub use super::queue::ready;

use super::due::{Clock, seed};
use super::{Job, Repository, Runs, SeriesKey, Subject, Task};

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub subjects: &'a [Subject],
    pub config: &'a Backup,
    pub runs: &'a Runs,
    pub now: Timestamp,
    /// Repositories whose keys somebody has said to be kept elsewhere.
    pub confirmed: &'a BTreeSet<Repository>,
}

/// A repository for which nothing is done on schedule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    pub repository: Repository,
    pub target: String,
    /// The volumes that wait for it.
    pub volumes: Vec<String>,
    /// Why, and what to do; one sentence.
    pub why: String,
}

/// The next job of each series, what is due first; held repositories have none.
pub fn plan(scene: &Scene<'_>) -> Vec<Job> {
    let mut jobs = Planner::new(scene).all();
    jobs.retain(|job| !is_held(scene, &job.repository));
    jobs
}

/// Repositories that wait for somebody to keep their key elsewhere.
pub fn held(scene: &Scene<'_>) -> Vec<Held> {
    if !scene.config.require_key_export {
        return Vec::new();
    }
    let why = |target: &str| {
        format!(
            "nothing is saved to `{target}` on schedule until its key is kept elsewhere: run `skep backup key export`, keep what it writes, and confirm it"
        )
    };
    unconfirmed(scene).into_iter().map(|((target, repository), volumes)| Held { why: why(&target), repository, target, volumes }).collect()
}

/// What is saved all the same because `backup.require-key-export` is off, though it may be lost with this machine.
pub fn unkept(scene: &Scene<'_>) -> Vec<Diagnostic> {
    if scene.config.require_key_export {
        return Vec::new();
    }
    let finding = |repository: &Repository| {
        let text = "nobody has said that its key is kept elsewhere, and it is saved to all the same, as backup.require-key-export is off";
        Diagnostic::warning("unkept-key", format!("{}: {text}", repository.location))
            .help("if this machine is lost, nobody can open it: run `skep backup key export`, keep what it writes, and confirm it")
    };
    unconfirmed(scene).keys().map(|(_, repository)| finding(repository)).collect()
}

/// The volumes of each repository that nobody has confirmed, by target.
fn unconfirmed(scene: &Scene<'_>) -> BTreeMap<(String, Repository), Vec<String>> {
    let mut found: BTreeMap<(String, Repository), Vec<String>> = BTreeMap::new();
    for (subject, target, repository) in places(scene) {
        if !scene.confirmed.contains(&repository) {
            found.entry((target.name.clone(), repository)).or_default().push(subject.volume.name.clone());
        }
    }
    found
}

fn is_held(scene: &Scene<'_>, repository: &Repository) -> bool {
    scene.config.require_key_export && !scene.confirmed.contains(repository)
}

/// The repository below `target` for a node, or for a node's volumes of one owner. Owners' names are written so that none can be taken
/// for another one, nor for a path: `=20` stands for a space.
pub fn repository(target: &Target, node: &str, owner: Option<&str>) -> Repository {
    let node = if node.trim_matches('.').is_empty() { "node".to_owned() } else { safe(node, b"-_.") };
    let name = match owner {
        Some(owner) => format!("{node}+{}", safe(owner, b"-_")),
        None => node,
    };
    Repository { location: format!("{}/{name}", target.location.trim_end_matches('/')), name }
}

fn safe(text: &str, plain: &[u8]) -> String {
    let mut safe = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            true => safe.push(char::from(byte)),
            false => safe.push_str(&format!("={byte:02x}")),
        }
    }
    safe
}

/// Which slice of the archives a verification reads, counted from 0, and of how many.
pub fn slice(job: &Job, config: &Backup) -> (u32, u32) {
    let slices = config.verify_slices.max(1);
    let every = config.verify_data.unwrap_or(Duration::from_secs(7 * 86_400));
    let number = Turns::of(every, Task::VerifyData, &job.repository).number(job.due).rem_euclid(i64::from(slices));
    (u32::try_from(number).unwrap_or(0), slices)
}

/// Every volume with every place where it is saved.
fn places<'a>(scene: &Scene<'a>) -> impl Iterator<Item = (&'a Subject, &'a Target, Repository)> {
    let targets = &scene.config.targets;
    scene.subjects.iter().flat_map(move |subject| {
        targets.iter().map(move |target| (subject, target, repository(target, &subject.node, subject.owner.as_deref())))
    })
}

struct Planner<'a> {
    scene: &'a Scene<'a>,
    clock: Clock,
    /// At whose hours checks and drills begin.
    usual: Schedule,
    schedules: BTreeMap<&'a str, Schedule>,
}

impl<'a> Planner<'a> {
    fn new(scene: &'a Scene<'a>) -> Planner<'a> {
        let usual = Schedule::parse(&scene.config.schedule).unwrap_or_else(|_| Schedule::nightly());
        let mut schedules = BTreeMap::new();
        for subject in scene.subjects {
            let text = subject.settings.schedule.as_str();
            // Labels and the configuration were read with the same grammar.
            schedules.entry(text).or_insert_with(|| Schedule::parse(text).unwrap_or_else(|_| usual.clone()));
        }
        Planner { scene, clock: Clock::new(scene.config, scene.now), usual, schedules }
    }

    fn all(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        // When the first archive of a repository was tried for, where it has one.
        let mut begun: BTreeMap<(Repository, &str), Timestamp> = BTreeMap::new();
        for (subject, target, repository) in places(self.scene) {
            jobs.extend(self.save(subject, target, &repository));
            if let Some(since) = self.saved_since(subject, target, &repository) {
                jobs.extend(self.drill(subject, target, &repository, since));
                let first = begun.entry((repository, &target.name)).or_insert(since);
                *first = since.min(*first);
            }
        }
        for ((repository, target), since) in begun {
            jobs.extend(self.checks(&repository, target, since));
        }
        jobs.sort_by(|one, other| {
            (one.due, one.task, &one.volume, &one.target, &one.repository).cmp(&(
                other.due,
                other.task,
                &other.volume,
                &other.target,
                &other.repository,
            ))
        });
        jobs
    }

    fn save(&self, subject: &Subject, target: &Target, repository: &Repository) -> Option<Job> {
        let schedule = self.schedules.get(subject.settings.schedule.as_str()).unwrap_or(&self.usual);
        let seed = seed(&[&subject.node, &subject.volume.name]);
        let next = |after| schedule.next(after, &self.clock.zone);
        self.job(Task::Save, Some(subject), target.name.as_str(), repository, subject.volume.created, seed, &next)
    }

    /// Since when there are archives of the volume, if there are.
    fn saved_since(&self, subject: &Subject, target: &Target, repository: &Repository) -> Option<Timestamp> {
        let series = self.scene.runs.get(&SeriesKey::new(Task::Save, Some(&subject.volume.name), &target.name, repository))?;
        let success = series.success.as_ref()?;
        Some(series.since.unwrap_or(success.began).min(success.began))
    }

    fn drill(&self, subject: &Subject, target: &Target, repository: &Repository, since: Timestamp) -> Option<Job> {
        let every = self.scene.config.drill?;
        let seed = seed(&["drill", &subject.node, &subject.volume.name, &target.name]);
        let turns = Turns { every, seed };
        self.job(Task::Drill, Some(subject), target.name.as_str(), repository, Some(since), seed, &|after| self.turn(&turns, after))
    }

    fn checks(&self, repository: &Repository, target: &str, since: Timestamp) -> Vec<Job> {
        let config = self.scene.config;
        let kinds = [
            (Task::CheckRepository, config.check_repository),
            (Task::CheckArchives, config.check_archives),
            (Task::VerifyData, config.verify_data),
        ];
        let wanted = kinds.into_iter().filter_map(|(task, every)| Some((task, Turns::of(every?, task, repository))));
        wanted
            .filter_map(|(task, turns)| {
                self.job(task, None, target, repository, Some(since), turns.seed, &|after| self.turn(&turns, after))
            })
            .collect()
    }

    /// The usual hour that follows the next turn.
    fn turn(&self, turns: &Turns, after: Timestamp) -> Option<Timestamp> {
        self.usual.next(turns.next(after)?, &self.clock.zone)
    }

    #[allow(clippy::too_many_arguments)] // they are the parts of one job
    fn job(
        &self,
        task: Task,
        subject: Option<&Subject>,
        target: &str,
        repository: &Repository,
        born: Option<Timestamp>,
        seed: u64,
        next: &dyn Fn(Timestamp) -> Option<Timestamp>,
    ) -> Option<Job> {
        let volume = subject.map(|subject| subject.volume.name.as_str());
        let series = self.scene.runs.get(&SeriesKey::new(task, volume, target, repository));
        let (due, reason) = self.clock.due(series, born, seed, next)?;
        let (volume, target, repository) = (volume.map(str::to_owned), target.to_owned(), repository.clone());
        Some(Job { task, volume, target, repository, due, reason })
    }
}

/// Something that comes round after a fixed time, for each repository at another moment of it, so that not all come on one day.
struct Turns {
    every: Duration,
    seed: u64,
}

impl Turns {
    fn of(every: Duration, task: Task, repository: &Repository) -> Turns {
        let task = match task {
            Task::CheckRepository => "repository",
            Task::CheckArchives => "archives",
            _ => "data",
        };
        Turns { every, seed: seed(&[task, &repository.location]) }
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.every.as_secs()).unwrap_or(i64::MAX).max(60)
    }

    fn offset(&self) -> i64 {
        i64::try_from((u128::from(self.seconds().unsigned_abs()) * u128::from(self.seed)) >> 64).unwrap_or(0)
    }

    /// Which one `at` lies in.
    fn number(&self, at: Timestamp) -> i64 {
        at.as_second().saturating_sub(self.offset()).div_euclid(self.seconds())
    }

    /// When the one after that of `after` begins.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let begin = self.number(after).checked_add(1)?.checked_mul(self.seconds())?.checked_add(self.offset())?;
        Timestamp::from_second(begin).ok()?.checked_sub(SignedDuration::from_secs(1)).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::inventory::Volume;
    use super::super::{Keep, Mode, OnError, Reason, Run, Series, Settings, Stats, Verdict};
    use super::*;

    pub(in crate::backup) fn config(targets: &[&str]) -> Backup {
        let target = |location: &&str| Target { name: location.rsplit('/').next().unwrap().to_owned(), location: (*location).to_owned() };
        Backup { targets: targets.iter().map(target).collect(), ..Backup::default() }
    }

    pub(in crate::backup) fn subject(name: &str, schedule: &str) -> Subject {
        let settings = Settings {
            schedule: schedule.to_owned(),
            keep: Keep { daily: 7, weekly: 4, monthly: 36, ..Keep::default() },
            exclude: Vec::new(),
            mode: Mode::Hot,
            pre: None,
            post: None,
            timeout: Duration::from_secs(3600),
            on_error: OnError::Fail,
        };
        let created = Some(at("2026-01-10T10:00:00Z"));
        Subject {
            volume: Volume { name: name.to_owned(), driver: "local".to_owned(), created, ..Volume::default() },
            node: "node1".to_owned(),
            service: None,
            stack: None,
            owner: None,
            settings,
            containers: Vec::new(),
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn run(config: &Backup, task: Task, began: &str, verdict: Verdict, reason: Reason) -> Run {
        let began = at(began);
        Run {
            id: String::new(),
            task,
            volume: Some("data".to_owned()),
            target: config.targets[0].name.clone(),
            repository: repository(&config.targets[0], "node1", None),
            archive: None,
            began,
            ended: began + SignedDuration::from_mins(10),
            verdict,
            message: String::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason,
        }
    }

    /// The next save of a volume `data` by its due and its reason.
    fn next(config: &Backup, schedule: &str, runs: &[Run], now: &str) -> (String, Reason) {
        let mut series = Runs::new();
        for run in runs {
            let known: Series = series.remove(&run.key()).unwrap_or_default();
            series.insert(run.key(), known.with(run.clone()));
        }
        let subjects = [subject("data", schedule)];
        let jobs = plan(&Scene { subjects: &subjects, config, runs: &series, now: at(now), confirmed: &BTreeSet::new() });
        let job = jobs.into_iter().find(|job| job.task == Task::Save).expect("a volume has a next save");
        (job.due.to_string(), job.reason)
    }

    /// No jitter, nothing to confirm.
    fn plain() -> Backup {
        Backup { jitter: Duration::ZERO, require_key_export: false, ..config(&["/srv/backups"]) }
    }

    #[test]
    fn saves_follow_their_schedule_and_make_up_for_one_that_was_missed() {
        use Reason::{CaughtUp, Scheduled};
        let config = plain();
        let good = |began| run(&config, Task::Save, began, Verdict::Good, Scheduled);
        // runs, now, due, reason
        for (runs, now, due, reason) in [
            // Never saved, made this morning: tonight.
            (vec![], "2026-01-10T11:00:00Z", "2026-01-11T02:00:00Z", Scheduled),
            (vec![], "2026-01-11T02:00:30Z", "2026-01-11T02:00:00Z", Scheduled),
            // Never saved, there for long: now.
            (vec![], "2026-02-01T11:00:00Z", "2026-01-11T02:00:00Z", CaughtUp),
            (vec![good("2026-02-01T02:00:00Z")], "2026-02-01T02:00:00Z", "2026-02-02T02:00:00Z", Scheduled),
            (vec![good("2026-02-01T02:00:07Z")], "2026-02-01T11:00:00Z", "2026-02-02T02:00:00Z", Scheduled),
            // Asked for at noon: tonight's is not left out.
            (vec![good("2026-02-01T12:00:00Z")], "2026-02-01T13:00:00Z", "2026-02-02T02:00:00Z", Scheduled),
            // Ten nights were missed: once.
            (vec![good("2026-02-01T02:00:00Z")], "2026-02-11T11:00:00Z", "2026-02-02T02:00:00Z", CaughtUp),
            (vec![good("2026-02-01T02:00:00Z"), good("2026-02-11T11:00:00Z")], "2026-02-11T11:30:00Z", "2026-02-12T02:00:00Z", Scheduled),
        ] {
            assert_eq!(next(&config, "0 2 * * *", &runs, now), (due.to_owned(), reason), "{now}");
        }
    }

    #[test]
    fn a_failure_is_tried_again_with_longer_pauses_and_not_past_the_next_hour() {
        use Reason::{CaughtUp, Retry, Scheduled};
        let config = plain();
        let failed = |began, reason| run(&config, Task::Save, began, Verdict::Failed, reason);
        for (last, now, due, reason) in [
            (failed("2026-02-01T02:00:00Z", Scheduled), "2026-02-01T02:11:00Z", "2026-02-01T02:15:00Z", Retry(1)),
            (failed("2026-02-01T02:15:00Z", Retry(1)), "2026-02-01T02:26:00Z", "2026-02-01T02:35:00Z", Retry(2)),
            (failed("2026-02-01T02:35:00Z", Retry(2)), "2026-02-01T02:46:00Z", "2026-02-01T03:05:00Z", Retry(3)),
            (failed("2026-02-01T03:05:00Z", Retry(3)), "2026-02-01T03:16:00Z", "2026-02-02T02:00:00Z", Scheduled),
            // Switched off meanwhile: the try is still worth it, until the next hour has come.
            (failed("2026-02-01T02:00:00Z", Scheduled), "2026-02-01T20:00:00Z", "2026-02-01T02:15:00Z", Retry(1)),
            (failed("2026-02-02T01:48:00Z", Retry(1)), "2026-02-02T01:59:00Z", "2026-02-02T02:00:00Z", Scheduled),
            (failed("2026-02-01T03:05:00Z", Retry(3)), "2026-02-03T11:00:00Z", "2026-02-02T02:00:00Z", CaughtUp),
        ] {
            assert_eq!(next(&config, "0 2 * * *", &[last], now), (due.to_owned(), reason), "{now}");
        }
        let never = Backup { retries: 0, ..config.clone() };
        let last = failed("2026-02-01T02:00:00Z", Scheduled);
        assert_eq!(next(&never, "0 2 * * *", &[last], "2026-02-01T02:11:00Z"), ("2026-02-02T02:00:00Z".to_owned(), Scheduled));
    }

    #[test]
    fn runs_begin_in_the_window_only() {
        use Reason::{CaughtUp, Retry, Scheduled};
        let config = Backup { window: Some("22:00-04:00".to_owned()), ..plain() };
        let ended = |began, verdict| vec![run(&config, Task::Save, began, verdict, Scheduled)];
        for (schedule, runs, now, due, reason) in [
            ("0 2 * * *", ended("2026-02-01T02:00:00Z", Verdict::Good), "2026-02-01T12:00:00Z", "2026-02-02T02:00:00Z", Scheduled),
            ("0 12 * * *", ended("2026-02-01T22:00:00Z", Verdict::Good), "2026-02-02T11:00:00Z", "2026-02-02T22:00:00Z", Scheduled),
            ("0 2 * * *", ended("2026-02-01T02:00:00Z", Verdict::Good), "2026-02-05T12:00:00Z", "2026-02-05T22:00:00Z", CaughtUp),
            ("0 2 * * *", ended("2026-02-01T02:00:00Z", Verdict::Good), "2026-02-05T23:00:00Z", "2026-02-02T02:00:00Z", CaughtUp),
            ("0 2 * * *", ended("2026-02-01T03:48:00Z", Verdict::Failed), "2026-02-01T04:30:00Z", "2026-02-01T22:00:00Z", Retry(1)),
        ] {
            assert_eq!(next(&config, schedule, &runs, now), (due.to_owned(), reason), "{schedule} {now}");
        }
        // The jitter does not lead out of it.
        let narrow = Backup { window: Some("2-3".to_owned()), jitter: Duration::from_secs(86_400), ..plain() };
        let (due, _) = next(&narrow, "30 2 * * *", &[], "2026-01-10T11:00:00Z");
        assert!(due.starts_with("2026-01-11T02:"), "{due}");
    }

    #[test]
    fn a_clock_that_jumped_back_does_not_stop_backups() {
        use Reason::{CaughtUp, Scheduled};
        let config = plain();
        let good = |began| run(&config, Task::Save, began, Verdict::Good, Scheduled);
        for (runs, now, due, reason) in [
            // Nobody knows how long ago the runs before it were: the volume is saved at once.
            (vec![good("2027-02-01T02:00:00Z")], "2026-02-01T02:10:00Z", "2026-02-01T02:10:00Z", CaughtUp),
            (vec![good("2026-01-31T02:00:00Z"), good("2027-02-01T02:00:00Z")], "2026-01-31T03:00:00Z", "2026-01-31T03:00:00Z", CaughtUp),
            // Since then it was.
            (vec![good("2027-02-01T02:00:00Z"), good("2026-01-31T03:00:00Z")], "2026-01-31T04:00:00Z", "2026-02-01T02:00:00Z", Scheduled),
            // The clock was set by a few seconds.
            (vec![good("2026-02-01T02:00:09Z")], "2026-02-01T02:00:02Z", "2026-02-02T02:00:00Z", Scheduled),
        ] {
            assert_eq!(next(&config, "0 2 * * *", &runs, now), (due.to_owned(), reason), "{now}");
        }
    }

    #[test]
    fn each_volume_has_its_own_part_of_the_jitter() {
        let config = Backup { require_key_export: false, ..config(&["/srv/backups"]) };
        let subjects: Vec<Subject> = (0..200).map(|number| subject(&format!("shop_data{number}"), "0 2 * * *")).collect();
        let scene = |subjects| {
            plan(&Scene { subjects, config: &config, runs: &Runs::new(), now: at("2026-01-10T11:00:00Z"), confirmed: &BTreeSet::new() })
        };
        let jobs = scene(&subjects);
        assert_eq!(jobs, scene(&subjects), "the same each time");
        let minutes: Vec<i64> = jobs.iter().map(|job| job.due.duration_since(at("2026-01-11T02:00:00Z")).as_mins()).collect();
        assert!(minutes.iter().all(|minute| (0..60).contains(minute)), "{minutes:?}");
        let quarters: BTreeMap<i64, usize> = minutes.iter().fold(BTreeMap::new(), |mut quarters, minute| {
            *quarters.entry(minute / 15).or_default() += 1;
            quarters
        });
        assert!((0..4).all(|quarter| quarters.get(&quarter).is_some_and(|count| *count > 25)), "{quarters:?}");
        // Every quarter of an hour: at most half of that.
        let often: Vec<Subject> = (0..50).map(|number| subject(&format!("data{number}"), "*/15 * * * *")).collect();
        assert!(scene(&often).iter().all(|job| job.due.duration_since(at("2026-01-10T10:15:00Z")) <= SignedDuration::from_secs(450)));
    }

    #[test]
    fn nothing_is_done_on_schedule_before_the_key_is_kept_elsewhere() {
        let config = config(&["/srv/a", "/srv/b"]);
        let subjects = [subject("data", "0 2 * * *"), Subject { owner: Some("Human Resources".to_owned()), ..subject("pay", "0 2 * * *") }];
        let runs = Runs::new();
        let confirmed = BTreeSet::from([repository(&config.targets[0], "node1", None)]);
        let scene = Scene { subjects: &subjects, config: &config, runs: &runs, now: at("2026-01-10T11:00:00Z"), confirmed: &confirmed };
        assert_eq!(unkept(&scene), []);
        let planned: Vec<_> = plan(&scene).into_iter().map(|job| job.repository.location).collect();
        assert_eq!(planned, ["/srv/a/node1"]);
        let waiting: Vec<_> = held(&scene).into_iter().map(|held| (held.repository.location, held.volumes.join(","))).collect();
        let wanted = [("/srv/a/node1+Human=20Resources", "pay"), ("/srv/b/node1", "data"), ("/srv/b/node1+Human=20Resources", "pay")];
        assert_eq!(waiting, wanted.map(|(place, volume)| (place.to_owned(), volume.to_owned())));
        let open = Backup { require_key_export: false, ..config.clone() };
        let scene = Scene { config: &open, ..scene };
        assert_eq!((plan(&scene).len(), held(&scene)), (4, vec![]));
        let told: Vec<String> = unkept(&scene).into_iter().map(|finding| finding.message).collect();
        assert!(told.len() == 3 && told[0].starts_with("/srv/a/node1+Human=20Resources: nobody has said"), "{told:?}");
    }

    #[test]
    fn repositories_lie_below_their_target() {
        let target = |location: &str| Target { name: "t".to_owned(), location: location.to_owned() };
        for (location, node, owner, wanted) in [
            ("/srv/b", "node1", None, "/srv/b/node1"),
            ("ssh://u@h:23/./skep", "node1.example.com", Some("staff"), "ssh://u@h:23/./skep/node1.example.com+staff"),
            ("/srv/b/", "", Some("a.b"), "/srv/b/node+a=2eb"),
            ("/srv/b", "..", Some("../../etc"), "/srv/b/node+=2e=2e=2f=2e=2e=2fetc"),
            ("/srv/b", "a/{user}", Some("ä=b"), "/srv/b/a=2f=7buser=7d+=c3=a4=3db"),
        ] {
            assert_eq!(repository(&target(location), node, owner).location, wanted);
        }
    }

    #[test]
    fn checks_and_drills_wait_for_a_first_archive() {
        let config = plain();
        let subjects = [subject("data", "0 2 * * *")];
        let tasks = |runs: &[Run]| -> Vec<Task> {
            let mut known = Runs::new();
            for run in runs {
                known.insert(run.key(), known.get(&run.key()).cloned().unwrap_or_default().with(run.clone()));
            }
            let scene =
                Scene { subjects: &subjects, config: &config, runs: &known, now: at("2026-02-01T12:00:00Z"), confirmed: &BTreeSet::new() };
            let mut tasks: Vec<Task> = plan(&scene).into_iter().map(|job| job.task).collect();
            tasks.sort();
            tasks
        };
        let save = |verdict| run(&config, Task::Save, "2026-02-01T02:00:00Z", verdict, Reason::Scheduled);
        assert_eq!(tasks(&[save(Verdict::Failed)]), [Task::Save]);
        assert_eq!(
            tasks(&[save(Verdict::Good), save(Verdict::Failed)]),
            [Task::Save, Task::CheckRepository, Task::CheckArchives, Task::VerifyData, Task::Drill]
        );
    }
}
