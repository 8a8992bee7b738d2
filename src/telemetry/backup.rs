//! The backups' part of the metrics: read at each scrape. Volumes are as many as labels ask for, up to a bound.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::backup::standing::{Report, Standing, State};
use crate::backup::{Task, Verdict};

/// More volumes, and more repositories, have no series of their own; volumes are counted by state all the same.
const MOST: usize = 2_000;

/// Backups at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackupsNow {
    pub report: Report,
    /// Notices since the process began that arrived, and that did not.
    pub delivered: u64,
    pub lost: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVolume {
    volume: String,
    target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySize {
    volume: String,
    target: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCheck {
    repository: String,
    target: String,
    check: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRepository {
    repository: String,
    target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

type PerVolume = Family<ByVolume, Gauge>;

/// Puts the backups into `registry`.
pub(super) fn register(registry: &mut Registry, now: &BackupsNow) {
    let states = Family::<ByState, Gauge>::default();
    for state in State::ALL {
        states.get_or_create(&ByState { state: state.word() }).set(0);
    }
    for standing in &now.report.volumes {
        states.get_or_create(&ByState { state: standing.state.word() }).inc();
    }
    registry.register("skep_backup_volumes", "Volumes to be saved, once for each target, by how they stand", states);
    let unprotected = i64::try_from(now.report.unprotected.len()).unwrap_or(i64::MAX);
    registry.register("skep_backup_unprotected_volumes", "What holds data and is not saved", ConstGauge::new(unprotected));
    let notices = Family::<ByResult, Counter>::default();
    notices.get_or_create(&ByResult { result: "delivered" }).inc_by(now.delivered);
    notices.get_or_create(&ByResult { result: "lost" }).inc_by(now.lost);
    registry.register("skep_backup_notices", "Notices and pings, by whether they arrived", notices);
    volumes(registry, now.report.volumes.iter().take(MOST));
    drills(registry, now.report.volumes.iter().take(MOST));
    repositories(registry, &now.report);
}

fn volumes<'a>(registry: &mut Registry, standings: impl Iterator<Item = &'a Standing>) {
    let (success, next, overdue) = (PerVolume::default(), PerVolume::default(), PerVolume::default());
    let (duration, files, result) = (PerVolume::default(), PerVolume::default(), PerVolume::default());
    let sizes = Family::<BySize, Gauge<f64, AtomicU64>>::default();
    for standing in standings {
        let (volume, target) = (standing.volume.clone(), standing.target.clone());
        let labels = ByVolume { volume: volume.clone(), target: target.clone() };
        overdue.get_or_create(&labels).set(i64::from(standing.overdue));
        if let Some(at) = standing.next {
            next.get_or_create(&labels).set(at.as_second());
        }
        if let Some(last) = &standing.last {
            result.get_or_create(&labels).set(i64::from(last.verdict != Verdict::Failed));
        }
        let Some(good) = &standing.success else { continue };
        success.get_or_create(&labels).set(good.at.as_second());
        duration.get_or_create(&labels).set(whole(good.seconds));
        files.get_or_create(&labels).set(whole(good.stats.files));
        let stats = [("original", good.stats.original), ("compressed", good.stats.compressed), ("deduplicated", good.stats.deduplicated)];
        for (kind, bytes) in stats {
            sizes.get_or_create(&BySize { volume: volume.clone(), target: target.clone(), kind }).set(bytes as f64);
        }
    }
    registry.register("skep_backup_last_success_timestamp_seconds", "When a volume was last saved well, in Unix time", success);
    registry.register("skep_backup_last_success_duration_seconds", "How long that took", duration);
    registry.register("skep_backup_last_success_files", "Files in that archive", files);
    registry.register("skep_backup_last_success_size_bytes", "Bytes of that archive: read, stored if it were alone, added", sizes);
    registry.register("skep_backup_result", "1 where the last run made an archive, 0 where it failed", result);
    registry.register("skep_backup_overdue", "1 while a good archive is missed", overdue);
    registry.register("skep_backup_next_run_timestamp_seconds", "When a volume is saved next, in Unix time", next);
}

fn drills<'a>(registry: &mut Registry, standings: impl Iterator<Item = &'a Standing>) {
    let (success, result) = (PerVolume::default(), PerVolume::default());
    for standing in standings {
        let Some(drill) = &standing.drill else { continue };
        let labels = ByVolume { volume: standing.volume.clone(), target: standing.target.clone() };
        if let Some(at) = drill.success {
            success.get_or_create(&labels).set(at.as_second());
        }
        if let Some(last) = &drill.last {
            result.get_or_create(&labels).set(i64::from(last.verdict != Verdict::Failed));
        }
    }
    registry.register(
        "skep_backup_drill_timestamp_seconds",
        "When a volume was last restored on trial with success, in Unix time",
        success,
    );
    registry.register("skep_backup_drill_result", "1 where the last restore on trial went well, 0 where it failed", result);
}

fn repositories(registry: &mut Registry, report: &Report) {
    let (success, result) = (Family::<ByCheck, Gauge>::default(), Family::<ByCheck, Gauge>::default());
    let [free, held, lost] = [(); 3].map(|()| Family::<ByRepository, Gauge>::default());
    for keeping in report.repositories.iter().take(MOST) {
        let (repository, target) = (keeping.repository.name.clone(), keeping.target.clone());
        let labels = ByRepository { repository: repository.clone(), target: target.clone() };
        held.get_or_create(&labels).set(i64::from(keeping.held.is_some()));
        lost.get_or_create(&labels).set(keeping.lost.as_ref().map_or(0, |lost| whole(lost.before.saturating_sub(lost.now))));
        if let Some(bytes) = keeping.free {
            free.get_or_create(&labels).set(whole(bytes));
        }
        for check in &keeping.checks {
            let labels = ByCheck { repository: repository.clone(), target: target.clone(), check: word(check.task) };
            if let Some(at) = check.success {
                success.get_or_create(&labels).set(at.as_second());
            }
            if let Some(last) = &check.last {
                result.get_or_create(&labels).set(i64::from(last.verdict != Verdict::Failed));
            }
        }
    }
    registry.register("skep_backup_check_timestamp_seconds", "When a check of a repository last ended well, in Unix time", success);
    registry.register("skep_backup_check_result", "1 where the last check went well, 0 where it failed", result);
    registry.register("skep_backup_repository_free_bytes", "Room where a repository lies", free);
    registry.register("skep_backup_repository_archives_lost", "Archives that were gone though no run of ours had deleted them", lost);
    registry.register("skep_backup_repository_held", "1 while nothing is saved there because its key is nowhere else", held);
}

fn word(task: Task) -> &'static str {
    match task {
        Task::Save => "save",
        Task::CheckRepository => "repository",
        Task::CheckArchives => "archives",
        Task::VerifyData => "data",
        Task::Drill => "drill",
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::standing::tests::{HOUR, Node, ago, held, job, run, save};
    use crate::backup::{Reason, Task};
    use crate::telemetry::prometheus::{Metrics, Now};

    #[test]
    fn volumes_and_repositories_have_their_series() {
        let mut node = Node::with(&["db", "files", "new"])
            .ran(save("db", HOUR, Verdict::Good))
            .ran(save("files", 48 * HOUR, Verdict::Good))
            .ran(save("files", HOUR, Verdict::Failed))
            .ran(run(Task::Drill, "db", HOUR, Verdict::Good, ""))
            .ran(run(Task::CheckArchives, "", HOUR, Verdict::Failed, "damage"));
        node.free.insert("offsite".into(), 12_345);
        node.jobs.push(job(Task::Save, "db", ago(0), Reason::Scheduled));
        let now = Now { backups: Some(BackupsNow { report: node.report(), delivered: 3, lost: 1 }), ..Now::default() };
        let text = Metrics::new().encode(&now);
        let (good, next) = (ago(HOUR).as_second(), ago(0).as_second());
        for line in [
            format!(r#"skep_backup_last_success_timestamp_seconds{{volume="db",target="offsite"}} {good}"#),
            format!(r#"skep_backup_next_run_timestamp_seconds{{volume="db",target="offsite"}} {next}"#),
            format!(r#"skep_backup_drill_timestamp_seconds{{volume="db",target="offsite"}} {good}"#),
            r#"skep_backup_drill_result{volume="db",target="offsite"} 1"#.to_owned(),
            r#"skep_backup_last_success_size_bytes{volume="db",target="offsite",kind="deduplicated"} 100.0"#.to_owned(),
            r#"skep_backup_last_success_files{volume="db",target="offsite"} 10"#.to_owned(),
            r#"skep_backup_last_success_duration_seconds{volume="db",target="offsite"} 60"#.to_owned(),
            r#"skep_backup_result{volume="files",target="offsite"} 0"#.to_owned(),
            r#"skep_backup_overdue{volume="files",target="offsite"} 1"#.to_owned(),
            r#"skep_backup_overdue{volume="new",target="offsite"} 0"#.to_owned(),
            r#"skep_backup_volumes{state="never"} 1"#.to_owned(),
            r#"skep_backup_volumes{state="held"} 0"#.to_owned(),
            r#"skep_backup_check_result{repository="n1",target="offsite",check="archives"} 0"#.to_owned(),
            r#"skep_backup_repository_free_bytes{repository="n1",target="offsite"} 12345"#.to_owned(),
            r#"skep_backup_repository_held{repository="n1",target="offsite"} 0"#.to_owned(),
            r#"skep_backup_notices_total{result="lost"} 1"#.to_owned(),
            "skep_backup_unprotected_volumes 0".to_owned(),
        ] {
            assert!(text.lines().any(|one| one == line), "no line {line} in\n{text}");
        }
        let alerts = include_str!("../../config/alerts.yml");
        let names = alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("skep_"));
        for name in names {
            assert!(text.lines().any(|line| line.starts_with(name)), "config/alerts.yml: there is no {name} in\n{text}");
        }
        assert!(!Metrics::new().encode(&Now::default()).contains("skep_backup"), "nothing is said where nothing is to be saved");
        node.held.push(held());
        let now = Now { backups: Some(BackupsNow { report: node.report(), ..BackupsNow::default() }), ..Now::default() };
        assert!(Metrics::new().encode(&now).contains(r#"skep_backup_volumes{state="held"} 3"#));
    }

    #[test]
    fn there_are_no_more_series_than_fit() {
        let names: Vec<String> = (0..MOST + 10).map(|number| format!("v{number}")).collect();
        let node = Node::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let now = Now { backups: Some(BackupsNow { report: node.report(), ..BackupsNow::default() }), ..Now::default() };
        let text = Metrics::new().encode(&now);
        assert_eq!(text.lines().filter(|line| line.starts_with("skep_backup_overdue{")).count(), MOST);
        assert!(text.contains(&format!("skep_backup_volumes{{state=\"never\"}} {}", MOST + 10)));
    }
}
