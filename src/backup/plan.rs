//! What is to be done, and when: every volume to every target on its schedule, every repository and its archives checked, every volume
//! restored on trial. A pure function of the volumes, the configuration, the runs so far and the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::config::Backup;
use crate::config::backup::Target;
use crate::config::cron::Schedule;

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
    let mut held: BTreeMap<(String, Repository), Vec<String>> = BTreeMap::new();
    for (subject, target, repository) in places(scene) {
        if is_held(scene, &repository) {
            held.entry((target.name.clone(), repository)).or_default().push(subject.volume.name.clone());
        }
    }
    let why = |target: &str| {
        format!(
            "nothing is saved to `{target}` on schedule until its key is kept elsewhere: run `skep backup key export`, keep what it writes, and confirm it"
        )
    };
    held.into_iter().map(|((target, repository), volumes)| Held { why: why(&target), repository, target, volumes }).collect()
}

fn is_held(scene: &Scene<'_>, repository: &Repository) -> bool {
    scene.config.require_key_export && !scene.confirmed.contains(repository)
}

/// The repository below `target` for a node, or for a node's volumes of one owner. Owners' names are written so that none can be taken
/// for another one, nor for a path: `=20` stands for a space.
pub fn repository(target: &Target, node: &str, owner: Option<&str>) -> Repository {
    let node = if node.trim_matches('.').is_empty() { "node".to_owned() } else { safe(node, b"-_.") };
    let name = match owner {
        Some(owner) => format!("{node}.{}", safe(owner, b"-_")),
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
