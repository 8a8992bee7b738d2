//! Years in which machines are switched off, targets fail and clocks jump, run through in seconds: what the plan promises holds
//! whatever happens. Only tests have this file.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::plan::tests::{config, subject};
use super::plan::{Scene, plan, ready};
use super::{Job, Reason, Run, Runs, SeriesKey, Stats, Subject, Task, Verdict};
use crate::config::Backup;
use crate::config::cron::{Schedule, Window};

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// What a year brings.
#[derive(Clone, Debug)]
struct Fate {
    seed: u64,
    days: i64,
    /// Of 100 runs, so many fail.
    failing: u64,
    /// Switched off so often (days between), for at most so many hours; 0: never.
    off_every: i64,
    off_hours: i64,
    /// The clock jumps so often (days between), back and forth; 0: never.
    jumps_every: i64,
}

/// A start that the plan led to.
#[derive(Clone, Debug)]
struct Start {
    job: Job,
    /// By the clock, and since the last jump of it.
    at: Timestamp,
    era: usize,
    verdict: Option<Verdict>,
}

/// The machine, its clock, and what was done.
struct World<'a> {
    config: &'a Backup,
    subjects: &'a [Subject],
    fate: &'a Fate,
    random: u64,
    /// True seconds, and what the clock adds to them.
    time: i64,
    ahead: i64,
    era: usize,
    runs: Runs,
    under_way: Vec<(usize, i64)>,
    starts: Vec<Start>,
    /// When it was on, by the clock, in each era.
    on: Vec<(usize, Timestamp, Timestamp)>,
    confirmed: BTreeSet<super::Repository>,
}

impl World<'_> {
    fn random(&mut self, below: i64) -> i64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below.max(1).unsigned_abs()).cast_signed()
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.time + self.ahead).expect("in range")
    }

    fn live(&mut self) {
        let end = self.time + self.fate.days * DAY;
        let soon = |every: i64, random: i64| if every == 0 { i64::MAX } else { random };
        let mut off = soon(self.fate.off_every, self.time + self.random(2 * self.fate.off_every * DAY));
        let mut jump = soon(self.fate.jumps_every, self.time + self.random(2 * self.fate.jumps_every * DAY));
        let mut on_since = self.now();
        while self.time < end {
            let next = self.turn();
            self.time = next.min(off).min(jump).min(end);
            if self.time == off || self.time == jump {
                self.on.push((self.era, on_since, self.now()));
                if self.time == off {
                    // What runs is lost, and nobody has noted it.
                    self.under_way.clear();
                    self.time += MINUTE + self.random(self.fate.off_hours * HOUR);
                    off = self.time + HOUR + self.random(2 * self.fate.off_every * DAY);
                    jump = jump.max(self.time + 1);
                } else {
                    self.era += 1;
                    self.ahead = match self.random(4) {
                        0 => self.random(60) - 30,
                        1 => self.random(400 * DAY),
                        2 => -self.random(400 * DAY),
                        _ => self.random(6 * HOUR) - 3 * HOUR,
                    };
                    jump = self.time + HOUR + self.random(2 * self.fate.jumps_every * DAY);
                }
                on_since = self.now();
            }
        }
        self.on.push((self.era, on_since, self.now()));
    }

    /// Ends what has ended, begins what may begin; says when something happens next.
    fn turn(&mut self) -> i64 {
        let over: Vec<usize> = self.under_way.iter().filter(|(_, ends)| *ends <= self.time).map(|(start, _)| *start).collect();
        self.under_way.retain(|(_, ends)| *ends > self.time);
        over.into_iter().for_each(|start| self.end(start));
        let now = self.now();
        let scene = Scene { subjects: self.subjects, config: self.config, runs: &self.runs, now, confirmed: &self.confirmed };
        let jobs = plan(&scene);
        let busy: Vec<Job> = self.under_way.iter().map(|(start, _)| self.starts[*start].job.clone()).collect();
        for job in ready(&jobs, &busy, self.config, now) {
            assert!(job.due <= now);
            let ends = self.time + MINUTE + self.random(2 * MINUTE);
            self.under_way.push((self.starts.len(), ends));
            self.starts.push(Start { job, at: now, era: self.era, verdict: None });
        }
        self.limits();
        let begins = jobs.iter().map(|job| job.due.as_second() - self.ahead).filter(|due| *due > self.time).min();
        let ends = self.under_way.iter().map(|(_, ends)| *ends).min();
        // Somebody looks every minute at most, and once a day at least.
        let next = begins.into_iter().chain(ends).min().unwrap_or(i64::MAX).min(self.time + DAY);
        (next + MINUTE - 1).div_euclid(MINUTE) * MINUTE
    }

    fn end(&mut self, start: usize) {
        let failed = self.random(100).unsigned_abs() < self.fate.failing;
        let verdict = if failed { Verdict::Failed } else { Verdict::Good };
        let ended = self.now();
        let Start { job, at, verdict: noted, .. } = &mut self.starts[start];
        *noted = Some(verdict);
        let run = Run {
            id: start.to_string(),
            task: job.task,
            volume: job.volume.clone(),
            target: job.target.clone(),
            repository: job.repository.clone(),
            archive: None,
            began: *at,
            ended,
            verdict,
            message: String::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason: job.reason,
        };
        let series = self.runs.remove(&run.key()).unwrap_or_default();
        self.runs.insert(run.key(), series.with(run));
    }

    /// What never happens, whatever happens.
    fn limits(&self) {
        let busy: Vec<&Job> = self.under_way.iter().map(|(start, _)| &self.starts[*start].job).collect();
        assert!(busy.len() <= self.config.parallel);
        for job in &busy {
            assert!(busy.iter().filter(|other| other.target == job.target).count() <= self.config.parallel_per_target);
            assert_eq!(busy.iter().filter(|other| other.repository == job.repository).count(), 1);
            assert!(job.volume.is_none() || busy.iter().filter(|other| other.volume == job.volume).count() == 1);
        }
    }
}

fn live<'a>(config: &'a Backup, subjects: &'a [Subject], fate: &'a Fate) -> World<'a> {
    let begin: Timestamp = "2026-01-10T11:00:00Z".parse().expect("a time");
    let mut world = World {
        config,
        subjects,
        fate,
        random: fate.seed,
        time: begin.as_second(),
        ahead: 0,
        era: 0,
        runs: Runs::new(),
        under_way: Vec::new(),
        starts: Vec::new(),
        on: Vec::new(),
        confirmed: BTreeSet::new(),
    };
    world.live();
    world
}

/// The saves of one series, by their starts.
fn saves<'a>(world: &'a World<'_>) -> BTreeMap<SeriesKey, Vec<&'a Start>> {
    let mut saves: BTreeMap<SeriesKey, Vec<&Start>> = BTreeMap::new();
    for start in world.starts.iter().filter(|start| start.job.task == Task::Save) {
        saves.entry(start.job.key()).or_default().push(start);
    }
    saves
}

/// Every occurrence during which the machine was on had a start, soon enough that no archive is older than its schedule plus one
/// period; and where nothing failed, it had one only.
fn judge(world: &World<'_>, schedules: &BTreeMap<String, Schedule>, zone: &TimeZone, window: Option<Window>) -> Result<(), TestCaseError> {
    if let Some(window) = window {
        for start in &world.starts {
            prop_assert!(window.contains(start.at, zone), "{start:?}");
        }
    }
    let tries = world.config.retries as usize + 1;
    let saves = saves(world);
    for subject in world.subjects {
        let schedule = &schedules[&subject.volume.name];
        for target in &world.config.targets {
            let key = SeriesKey { task: Task::Save, volume: subject.volume.name.clone(), target: target.name.clone() };
            let starts = saves.get(&key).map(Vec::as_slice).unwrap_or_default();
            for (era, from, to) in &world.on {
                // Runs that a clock was ahead for by less than ten minutes count as of now.
                let mut occurrence = schedule.next(*from + SignedDuration::from_mins(11), zone);
                while let Some(at) = occurrence {
                    let following = schedule.next(at, zone).expect("it comes round");
                    let within = following.duration_since(at).max(SignedDuration::from_hours(if window.is_some() { 48 } else { 0 }));
                    if at + within > *to {
                        break;
                    }
                    let served = starts.iter().filter(|start| start.era == *era && at <= start.at && start.at <= at + within);
                    prop_assert!(served.clone().next().is_some(), "{key:?}: nothing in {within:?} after {at}");
                    prop_assert!(window.is_some() || served.count() <= 2 * tries, "{key:?} after {at}");
                    occurrence = Some(following);
                }
            }
            for pair in starts.windows(2).filter(|pair| pair[0].era == pair[1].era) {
                let [one, other] = pair else { unreachable!() };
                if one.verdict == Some(Verdict::Good) {
                    let between = schedule.next(one.at, zone).is_some_and(|next| next <= other.at);
                    prop_assert!(between, "{key:?}: {} and {} in one period", one.at, other.at);
                }
                if let Reason::Retry(number) = other.job.reason {
                    prop_assert!(number <= world.config.retries && one.verdict != Some(Verdict::Good));
                }
            }
        }
    }
    Ok(())
}

/// What stays of a volume's archives when each success is followed by a prune: an archive of each of the last days that had one.
fn pruned(world: &World<'_>) -> Result<(), TestCaseError> {
    for subject in world.subjects {
        let keep = subject.settings.keep;
        let good = |start: &&Start| start.verdict == Some(Verdict::Good) && start.job.volume.as_ref() == Some(&subject.volume.name);
        let made: Vec<Timestamp> =
            world.starts.iter().filter(|start| start.job.task == Task::Save).filter(good).map(|start| start.at).collect();
        let mut held: Vec<Timestamp> = Vec::new();
        for at in &made {
            held.push(*at);
            let kept = keep.kept(&held);
            held = held.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(at, _)| at).collect();
        }
        let day = |at: &Timestamp| at.as_second().div_euclid(DAY);
        let days: BTreeSet<i64> = made.iter().map(day).collect();
        let held_days: BTreeSet<i64> = held.iter().map(day).collect();
        prop_assert!(days.iter().rev().take(keep.daily as usize).all(|day| held_days.contains(day)), "{held:?}");
    }
    Ok(())
}

const SCHEDULES: [&str; 7] = ["0 2 * * *", "30 2 * * *", "0 */6 * * *", "30 1,13 * * *", "0 3 * * 1-5", "0 4 * * sun", "0 5 1,15 * *"];

prop_compose! {
    fn any_fate()(
        seed in any::<u64>(),
        days in 15i64..45,
        failing in prop_oneof![2 => Just(0u64), 1 => 1u64..70],
        off_every in prop_oneof![Just(0i64), 2i64..12],
        off_hours in 1i64..120,
        jumps_every in prop_oneof![2 => Just(0i64), 1 => 4i64..20],
    ) -> Fate {
        Fate { seed, days, failing, off_every, off_hours, jumps_every }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 14, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_volumes_are_saved_when_they_can_be(
        fate in any_fate(),
        picks in proptest::collection::vec(0..SCHEDULES.len(), 1..4),
        targets in 1usize..3,
        parallel in 1usize..4,
        per_target in 1usize..3,
        jitter_minutes in prop_oneof![Just(0u64), 1u64..600],
        checked in any::<bool>(),
        window in proptest::option::of(proptest::sample::select(vec!["22:00-06:00", "1-5", "12:30-16:45"])),
        zone in proptest::sample::select(vec!["UTC", "Europe/Paris"]),
    ) {
        let mut config = config(&["/srv/a", "/srv/b"][..targets]);
        (config.parallel, config.parallel_per_target) = (parallel, per_target);
        config.jitter = std::time::Duration::from_secs(jitter_minutes * 60);
        config.window = window.map(str::to_owned);
        config.time_zone = zone.to_owned();
        config.require_key_export = false;
        if !checked {
            (config.check_repository, config.check_archives, config.verify_data, config.drill) = (None, None, None, None);
        }
        let subjects: Vec<Subject> =
            picks.iter().enumerate().map(|(number, pick)| subject(&format!("volume{number}"), SCHEDULES[*pick])).collect();
        let schedules = subjects
            .iter()
            .map(|subject| (subject.volume.name.clone(), Schedule::parse(&subject.settings.schedule).expect("a schedule")))
            .collect();
        let world = live(&config, &subjects, &fate);
        judge(&world, &schedules, &config.zone(), config.hours())?;
        if fate.jumps_every == 0 && targets == 1 {
            pruned(&world)?;
        }
    }
}

#[test]
fn two_quiet_years_have_their_saves_checks_and_drills() {
    let config = config(&["/srv/a"]);
    let config = Backup { require_key_export: false, ..config };
    let subjects = [subject("data", "0 2 * * *")];
    let fate = Fate { seed: 1, days: 731, failing: 0, off_every: 0, off_hours: 0, jumps_every: 0 };
    let world = live(&config, &subjects, &fate);
    let of = |task: Task| world.starts.iter().filter(|start| start.job.task == task).collect::<Vec<_>>();
    assert_eq!(of(Task::Save).len(), 731);
    for (task, wanted) in [(Task::CheckRepository, 104), (Task::CheckArchives, 24), (Task::VerifyData, 104), (Task::Drill, 24)] {
        let count = of(task).len();
        assert!(count.abs_diff(wanted) <= 1, "{task:?}: {count}");
        let days: Vec<i64> = of(task).windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_hours() / 24).collect();
        let (least, most) = (days.iter().min().unwrap(), days.iter().max().unwrap());
        assert!(most - least <= 2, "{task:?}: {days:?}");
    }
    // All slices have their turn, one after the other.
    let slices: Vec<u32> = of(Task::VerifyData).iter().map(|start| super::plan::slice(&start.job, &config).0).collect();
    assert!(slices.windows(2).all(|pair| pair[1] == (pair[0] + 1) % config.verify_slices), "{slices:?}");
}

/// Runs of a clock that was ahead once stood for those that the clock, set back by less than their distance, came to again.
#[test]
fn a_clock_that_is_set_back_a_little_does_not_take_its_old_runs_for_new_ones() {
    let hours = Some("22:00-06:00".to_owned());
    let config = Backup { require_key_export: false, window: hours, time_zone: "Europe/Paris".to_owned(), ..config(&["/srv/a"]) };
    let config = Backup { jitter: std::time::Duration::ZERO, ..config };
    let subjects = [subject("volume0", "0 3 * * 1-5")];
    let fate = Fate { seed: 2_662_576_735_942_197_975, days: 29, failing: 0, off_every: 0, off_hours: 62, jumps_every: 7 };
    let world = live(&config, &subjects, &fate);
    assert!(world.on.windows(2).any(|eras| (0..48).contains(&eras[0].2.duration_since(eras[1].1).as_hours())), "{:?}", world.on);
    let schedules = BTreeMap::from([("volume0".to_owned(), Schedule::parse("0 3 * * 1-5").expect("a schedule"))]);
    judge(&world, &schedules, &config.zone(), config.hours()).expect("all is saved");
}
