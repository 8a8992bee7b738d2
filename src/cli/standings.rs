//! `skep backup status`: how each volume stands at each target, and each repository.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};

use crate::backup::standing::{Check, Facts, Keeping, Report, Standing, State, long, standing};
use crate::backup::trouble::complaints;
use crate::backup::{Progress, Task, room};
use crate::config::notify;
use crate::diagnostic::{Severity, render};

use super::desk::Desk;
use super::saving::{tell_findings, word};
use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, ask, on_one_thread, output};

const QUICK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask the edge whose admin listener is here [default: as the settings say; without an edge, Docker and what is kept]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let config = args.config.read_aloud()?;
    let unheard = notify::unheard(&config);
    let edge = args.admin.or(config.admin.listen);
    let told = edge.and_then(|address| ask::get(address, "/backups", QUICK).ok()).filter(|(status, _)| *status == 200);
    let told = told.and_then(|(_, body)| serde_json::from_slice::<Report>(&body).ok()).filter(|report| report.at.is_some());
    let report = match told {
        Some(report) => report,
        None if args.admin.is_some() => return Err(Failure::said("no edge answers there")),
        None => on_one_thread(own(config))??,
    };
    match args.json {
        true => output::json(&report)?,
        false => output::print(&table(&report))?,
    }
    if let Some(finding) = unheard {
        output::note(render(&[finding], output::color_on_stderr()).trim_end());
    }
    Ok(if bad(&report) > 0 || report.summary.repositories > 0 { Verdict::Wrong } else { Verdict::Fine })
}

/// The same without an edge to ask.
async fn own(config: crate::config::Config) -> Result<Report, Failure> {
    let desk = Desk::open(config).await?;
    let outlook = desk.plan().await?;
    tell_findings(&outlook.findings, Severity::Warning);
    Ok(standing(&Facts {
        node: &desk.node,
        subjects: &desk.survey.subjects,
        unprotected: &desk.survey.unprotected,
        config: &desk.config.backup,
        runs: &desk.runs,
        jobs: &outlook.jobs,
        under_way: &[],
        held: &outlook.held,
        free: &room::of_targets(&desk.config.backup).await,
        seen: &BTreeMap::new(),
        now: desk.now,
    }))
}

/// Volumes that need somebody.
fn bad(report: &Report) -> usize {
    let is_bad = |standing: &&Standing| standing.overdue || matches!(standing.state, State::Failed | State::Overdue | State::Held);
    report.volumes.iter().filter(is_bad).count()
}

fn table(report: &Report) -> String {
    let bad = bad(report);
    let unprotected = match report.unprotected.len() {
        0 => String::new(),
        count => format!(", {count} not protected (`skep backup plan` says why)"),
    };
    let count = output::count(report.volumes.len(), "backup");
    format!("{}{}{count}, {bad} in need of somebody{unprotected}\n", volumes(&report.volumes), repositories(&report.repositories))
}

fn volumes(volumes: &[Standing]) -> String {
    let head = ["VOLUME", "TARGET", "STATE", "LAST GOOD", "SIZE", "FILES", "NEXT (UTC)", "DRILL", "MESSAGE"].map(str::to_owned).to_vec();
    let row = |standing: &Standing| {
        let success = standing.success.as_ref();
        let dash = || "-".to_owned();
        vec![
            standing.volume.clone(),
            standing.target.clone(),
            standing.state.word().to_owned(),
            success.map_or_else(dash, |_| ago(standing.age)),
            success.map_or_else(dash, |success| HumanBytes(success.stats.original).to_string()),
            success.map_or_else(dash, |success| HumanCount(success.stats.files).to_string()),
            standing.next.map_or_else(dash, |at| at.strftime("%Y-%m-%d %H:%M").to_string()),
            standing.drill.as_ref().filter(|drill| drill.last.is_some()).map_or_else(dash, when),
            [doing(standing), standing.message.clone()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(volumes.iter().map(row)).collect();
    if volumes.is_empty() { String::new() } else { output::aligned(&rows, 0) + "\n" }
}

/// What goes on with it now.
fn doing(standing: &Standing) -> String {
    let Some(doing) = &standing.doing else { return String::new() };
    let so_far = match &doing.progress {
        Some(Progress::Phase { text }) => format!(": {text}"),
        Some(Progress::Archive { stats, .. }) => format!(": {} files, {} read", HumanCount(stats.files), HumanBytes(stats.original)),
        Some(Progress::Percent { percent, text }) => format!(": {percent:.0} % {text}"),
        Some(Progress::Warning { .. }) | None => String::new(),
    };
    format!("{} now{so_far}", word(doing.task))
}

fn repositories(repositories: &[Keeping]) -> String {
    let head = ["REPOSITORY", "TARGET", "FREE", "CHECKED", "ARCHIVES CHECKED", "DATA READ"].map(str::to_owned).to_vec();
    let row = |keeping: &Keeping| {
        let free = keeping.free.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string());
        let checks = [Task::CheckRepository, Task::CheckArchives, Task::VerifyData].map(|task| {
            let check = keeping.checks.iter().find(|check| check.task == task);
            check.map_or_else(|| "off".to_owned(), when)
        });
        [keeping.repository.location.clone(), keeping.target.clone(), free].into_iter().chain(checks).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(repositories.iter().map(row)).collect();
    let mut text = if repositories.is_empty() { String::new() } else { output::aligned(&rows, 0) };
    for keeping in repositories {
        for complaint in complaints(keeping) {
            text.push_str(&output::harmless_lines(&format!("  {}: {complaint}\n", keeping.repository.location)));
        }
    }
    if text.is_empty() { text } else { text + "\n" }
}

/// `3 days ago`, or that it went wrong.
fn when(check: &Check) -> String {
    match check.state {
        State::Failed => "FAILED".to_owned(),
        _ if check.last.is_none() => "not yet".to_owned(),
        _ => ago(check.age),
    }
}

fn ago(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{} ago", long(seconds)))
}
