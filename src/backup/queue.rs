//! Which of the jobs that are due begin now: so many at a time on a node and to a target, one for each repository and for each volume.

use jiff::Timestamp;

use crate::config::Backup;

use super::{Job, Task};

/// Of `jobs`, those that begin at `now` beside those that are `under_way`: saves before checks before drills, the longest due first.
pub fn ready(jobs: &[Job], under_way: &[Job], config: &Backup, now: Timestamp) -> Vec<Job> {
    let mut waiting: Vec<&Job> = jobs.iter().filter(|job| job.due <= now).collect();
    waiting.sort_by_key(|job| (rank(job.task), job.due));
    let mut busy: Vec<&Job> = under_way.iter().collect();
    let mut begin = Vec::new();
    for job in waiting {
        if busy.len() >= config.parallel.max(1) {
            break;
        }
        if may_begin(job, &busy, config) {
            busy.push(job);
            begin.push(job.clone());
        }
    }
    begin
}

fn may_begin(job: &Job, busy: &[&Job], config: &Backup) -> bool {
    let to_target = busy.iter().filter(|other| other.target == job.target).count();
    // A volume that is saved to two targets is not paused, stopped or dumped twice at once, nor restored on trial meanwhile.
    let in_the_way = |other: &&Job| other.repository == job.repository || (job.volume.is_some() && other.volume == job.volume);
    to_target < config.parallel_per_target.max(1) && !busy.iter().any(in_the_way)
}

fn rank(task: Task) -> u8 {
    match task {
        Task::Save => 0,
        Task::CheckRepository => 1,
        Task::CheckArchives => 2,
        Task::VerifyData => 3,
        Task::Drill => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::config;
    use super::super::{Reason, Repository};
    use super::*;

    /// `save data a 5`: task, volume (`-`: none), target, minute.
    fn job(text: &str) -> Job {
        let words: Vec<&str> = text.split(' ').collect();
        let task = match words[0] {
            "save" => Task::Save,
            "check" => Task::CheckRepository,
            _ => Task::Drill,
        };
        let repository = Repository { location: format!("/{}/n", words[2]), name: "n".to_owned() };
        let due = Timestamp::from_second(words[3].parse::<i64>().unwrap() * 60).unwrap();
        let volume = (words[1] != "-").then(|| words[1].to_owned());
        Job { task, volume, target: words[2].to_owned(), repository, due, reason: Reason::Scheduled }
    }

    #[test]
    fn jobs_begin_in_order_and_within_limits() {
        let now = Timestamp::from_second(600).unwrap();
        // parallel, to a target, due, under way, those that begin
        for (parallel, per_target, jobs, busy, wanted) in [
            (1, 1, &["save x a 9", "save y b 5", "save z c 11"][..], &[][..], &["save y b 5"][..]),
            (1, 1, &["save x a 9"], &["save y b 5"], &[]),
            (9, 9, &["save x a 1", "save y a 2", "check - b 0"], &[], &["save x a 1", "check - b 0"]),
            (9, 9, &["check - a 0", "drill x b 0", "save x a 9"], &[], &["save x a 9"]),
            (9, 9, &["save x a 1", "save x b 1"], &[], &["save x a 1"]),
            (9, 9, &["save x b 1", "drill y c 1", "check - d 1"], &["save x a 1"], &["check - d 1", "drill y c 1"]),
            (2, 1, &["check - a 0", "check - b 1", "check - c 2"], &[], &["check - a 0", "check - b 1"]),
        ] {
            let config = Backup { parallel, parallel_per_target: per_target, ..config(&[]) };
            let read = |texts: &[&str]| texts.iter().map(|text| job(text)).collect::<Vec<Job>>();
            assert_eq!(ready(&read(jobs), &read(busy), &config, now), read(wanted), "{jobs:?} {busy:?}");
        }
    }

    /// Volumes of owners lie in repositories of their own at the same target.
    #[test]
    fn a_target_takes_so_many_at_a_time() {
        let now = Timestamp::from_second(600).unwrap();
        let mut jobs: Vec<Job> = ["save x a 1", "save y a 2", "save z a 3"].into_iter().map(job).collect();
        for job in &mut jobs {
            job.repository.location = format!("{}.{}", job.repository.location, job.volume.clone().unwrap_or_default());
        }
        let config = Backup { parallel: 3, parallel_per_target: 2, ..config(&[]) };
        assert_eq!(ready(&jobs, &[], &config, now), jobs[..2]);
    }
}
