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
