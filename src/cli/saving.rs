//! `skep backup run` and `plan`: what is saved now, what will be and when.

use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::backup::command::Command;
use crate::backup::plan::repository;
use crate::backup::runner::Runner;
use crate::backup::{Job, Reason, Run, Stats, Subject, Task, Verdict as Ended};
use crate::diagnostic::{Diagnostic, Severity, render};

use super::bar::Bar;
use super::desk::{Desk, Outlook};
use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, on_one_thread, output};

/// Where nothing is known of a volume's size, it is counted for at most so long.
const COUNTING: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep backup run --now                  save every labelled volume of this node\n  skep backup run --now shop_data        this one only\n  skep backup run --now --dry-run        what would be done, with the exact borg commands"
)]
pub(super) struct RunArgs {
    /// Volumes, as Docker names them [default: all that are to be saved]
    #[arg(value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Save them now, whatever the schedule says; without it only what is due
    #[arg(long)]
    now: bool,
    /// To this target only
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Debug, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Outcome {
    let config = args.config.read_aloud()?;
    on_all_threads(async {
        let desk = Desk::open(config).await?;
        tell_findings(&desk.survey.findings, Severity::Warning);
        let jobs = jobs(&desk, args).await?;
        if jobs.is_empty() {
            return nothing(&desk, args);
        }
        let runner = desk.runner().await?;
        if args.dry_run {
            return dry(&desk, &runner, &jobs);
        }
        let stop = CancellationToken::new();
        interrupt(stop.clone());
        let mut verdict = Verdict::Fine;
        for job in &jobs {
            if stop.is_cancelled() {
                return Err(Failure::said("stopped; what was under way was ended, and its application goes on"));
            }
            let run = one(&desk, &runner, job, &stop).await;
            output::print(&ended(&run))?;
            if run.verdict == Ended::Failed {
                verdict = Verdict::Wrong;
            }
        }
        remind(&desk).await?;
        Ok(verdict)
    })?
}

/// The first interrupt ends what is under way in order; the second is the terminal's own.
fn interrupt(stop: CancellationToken) {
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            output::note("stopping: borg is told to end, and applications are brought back ...");
            stop.cancel();
        }
    });
}

/// What is to be done now.
async fn jobs(desk: &Desk, args: &RunArgs) -> Result<Vec<Job>, Failure> {
    let (subjects, targets) = (desk.subjects(&args.volumes)?, desk.targets(args.target.as_deref())?);
    if !args.now {
        let jobs = desk.plan().await?.jobs;
        let wanted = |job: &Job| {
            let of_volume = job.volume.as_ref().is_none_or(|volume| subjects.iter().any(|subject| subject.volume.name == *volume));
            job.due <= desk.now && of_volume && targets.iter().any(|target| target.name == job.target)
        };
        return Ok(jobs.into_iter().filter(wanted).collect());
    }
    let job = |subject: &&Subject, target: &crate::config::backup::Target| Job {
        task: Task::Save,
        volume: Some(subject.volume.name.clone()),
        target: target.name.clone(),
        repository: repository(target, &subject.node, subject.owner.as_deref()),
        due: desk.now,
        reason: Reason::Asked,
    };
    Ok(subjects.iter().flat_map(|subject| targets.iter().map(move |target| job(subject, target))).collect())
}

fn nothing(desk: &Desk, args: &RunArgs) -> Outcome {
    if args.now || desk.survey.subjects.is_empty() {
        output::note("no volume of this node is to be saved: label a service or a volume with `backup.enable: true`");
        return Ok(Verdict::Wrong);
    }
    output::note("nothing is due; `skep backup plan` says when, and --now saves at once");
    Ok(Verdict::Fine)
}

async fn one(desk: &Desk, runner: &Runner, job: &Job, stop: &CancellationToken) -> Run {
    let subject = job.volume.as_ref().and_then(|name| desk.survey.subjects.iter().find(|subject| subject.volume.name == *name));
    let known = desk.runs.get(&job.key()).and_then(|series| series.success.as_ref()).map(|run| run.stats);
    let bar = Bar::new(known);
    let sink = bar.sink();
    if let (None, Some(subject), Task::Save) = (known, subject, job.task) {
        let (bar, path) = (bar.clone(), subject.volume.path.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(stats) = count(&path) {
                bar.expect(stats);
            }
        });
    }
    let run = runner.carry_out(job, subject, &sink, stop).await;
    bar.clear();
    run
}

/// Files and bytes below a directory, if they can be counted in a moment.
fn count(root: &Path) -> Option<Stats> {
    let (began, mut stats) = (Instant::now(), Stats::default());
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).ok()?.flatten() {
            let Ok(data) = entry.metadata() else { continue };
            if data.is_dir() {
                directories.push(entry.path());
            } else if data.is_file() {
                stats.files += 1;
                stats.original += data.len();
            }
        }
        if began.elapsed() > COUNTING {
            return None;
        }
    }
    Some(stats)
}

/// `shop_data -> local: saved as ...: 1,204 files, 3.1 GiB, 12 MiB of them new, in 12 seconds`
fn ended(run: &Run) -> String {
    let what = run.volume.as_deref().unwrap_or(&run.repository.location);
    let seconds = Duration::from_secs_f64(run.ended.duration_since(run.began).as_secs_f64().max(0.0));
    let warnings = run.warnings.len() as u64 + run.more_warnings;
    let head = format!("{what} -> {}: ", run.target);
    let told = match (run.verdict, run.task, &run.archive) {
        (Ended::Failed, ..) => format!("FAILED: {}", run.message),
        (verdict, Task::Save, Some(archive)) => {
            let size = format!(
                "{} files, {}, {} of them new, in {}",
                HumanCount(run.stats.files),
                HumanBytes(run.stats.original),
                HumanBytes(run.stats.deduplicated),
                HumanDuration(seconds)
            );
            let note = if verdict == Ended::Warning { format!("\n  warning: {}", run.message) } else { String::new() };
            format!("saved as {archive}: {size}{note}")
        }
        _ => format!("{} in {}", run.message, HumanDuration(seconds)),
    };
    let more =
        if warnings > 0 { format!("\n  {} in the log of the run", output::count(warnings as usize, "warning")) } else { String::new() };
    output::harmless_lines(&format!("{head}{told}{more}"))
}

/// Whoever loses the key has no backups: said as long as nobody has said that it is kept.
async fn remind(desk: &Desk) -> Result<(), Failure> {
    let outlook = desk.plan().await?;
    for held in &outlook.held {
        output::note(&format!("\nnote: {}", held.why));
    }
    // Those of the labels were told before.
    let unkept = outlook.findings.get(desk.survey.findings.len()..).unwrap_or_default();
    tell_findings(unkept, Severity::Warning);
    Ok(())
}

fn dry(desk: &Desk, runner: &Runner, jobs: &[Job]) -> Outcome {
    let mut text = String::new();
    for job in jobs {
        let subject = job.volume.as_ref().and_then(|name| desk.survey.subjects.iter().find(|subject| subject.volume.name == *name));
        let what = job.volume.as_deref().unwrap_or(&job.repository.location);
        text.push_str(&format!("{}: {what} -> {}\n", word(job.task), job.target));
        let outline = runner.outline(job, subject);
        let environment = outline.iter().find_map(|(_, command)| command.as_ref()).map(Command::environment);
        for line in environment.unwrap_or_default() {
            text.push_str(&format!("      {line}\n"));
        }
        for (step, command) in outline {
            text.push_str(&format!("  {step}\n"));
            if let Some(command) = command {
                text.push_str(&format!("      {command}\n"));
            }
        }
    }
    output::print(&output::harmless_lines(&text))?;
    output::note("nothing was done. The passphrase is in the file that BORG_PASSCOMMAND names, and nowhere else");
    Ok(Verdict::Fine)
}

pub(super) fn plan(args: &PlanArgs) -> Outcome {
    let config = args.config.read_aloud()?;
    on_one_thread(async {
        let desk = Desk::open(config).await?;
        let Outlook { jobs, held, findings } = desk.plan().await?;
        if args.json {
            let told = serde_json::json!({ "jobs": jobs, "held": held, "unprotected": desk.survey.unprotected, "findings": findings });
            return output::json(&told).map(|()| Verdict::Fine);
        }
        output::print(&planned(&jobs, desk.now))?;
        for held in &held {
            output::print(&output::harmless_lines(&format!("\nheld: {}\n      {}", held.volumes.join(", "), held.why)))?;
        }
        if !desk.survey.unprotected.is_empty() {
            let rows: Vec<Vec<String>> = desk.survey.unprotected.iter().map(|entry| vec![entry.what.clone(), entry.why.clone()]).collect();
            output::print(&format!("\nnot protected:\n{}", output::aligned(&rows, 2)))?;
        }
        tell_findings(&findings, Severity::Info);
        Ok(Verdict::Fine)
    })?
}

fn planned(jobs: &[Job], now: Timestamp) -> String {
    if jobs.is_empty() {
        return "nothing is planned\n".to_owned();
    }
    let head = ["WHEN (UTC)", "WHAT", "OF", "TARGET", "WHY"].map(str::to_owned).to_vec();
    let row = |job: &Job| {
        let when = if job.due <= now { "now".to_owned() } else { job.due.strftime("%Y-%m-%d %H:%M").to_string() };
        let why = match job.reason {
            Reason::Scheduled => "schedule".to_owned(),
            Reason::CaughtUp => "its hour was missed".to_owned(),
            Reason::Retry(number) => format!("retry {number}"),
            Reason::Asked => "asked for".to_owned(),
        };
        let of = job.volume.clone().unwrap_or_else(|| job.repository.location.clone());
        vec![when, word(job.task).to_owned(), of, job.target.clone(), why]
    };
    output::aligned(&std::iter::once(head).chain(jobs.iter().map(row)).collect::<Vec<_>>(), 0)
}

pub(super) fn word(task: Task) -> &'static str {
    match task {
        Task::Save => "save",
        Task::CheckRepository => "check repository",
        Task::CheckArchives => "check archives",
        Task::VerifyData => "verify data",
        Task::Drill => "restore drill",
    }
}

/// What is wrong from this weight on.
pub(super) fn tell_findings(findings: &[Diagnostic], least: Severity) {
    let findings: Vec<Diagnostic> = findings.iter().filter(|finding| finding.severity >= least).cloned().collect();
    if !findings.is_empty() {
        output::note(render(&findings, output::color_on_stderr()).trim_end());
    }
}
