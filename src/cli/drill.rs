//! `skep backup drill` and `check`: whether what was saved can be had again, and whether the repositories are whole.

use std::path::PathBuf;

use crate::backup::borg::OURSELVES;
use crate::backup::engine::Engine;
use crate::backup::listing::of_volume;
use crate::backup::runner::Runner;
use crate::backup::{Job, Reason, Run, Task, Verdict as Ended, trial};
use jiff::Timestamp;

use super::bar::Bar;
use super::repositories::{Opened, Place, Repositories, shelf};
use super::{Failure, Outcome, Verdict, on_all_threads, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The newest archive of each volume is extracted to a scratch place, counted, compared by samples with the archive's own list, and its dump \
loaded into a container that lives for it, when its image is on this node. Nothing of the live volume is touched."
)]
pub(super) struct DrillArgs {
    /// Of this volume only
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Read all data of the archives, too: slow
    #[arg(long)]
    verify_data: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn drill(args: &DrillArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let runner = runner(&repositories)?;
        let engine = match repositories.config.docker.enabled {
            true => Engine::connect(&repositories.config.docker).await,
            false => Err(crate::backup::engine::Error::Gone("engine: docker.enabled is false".into())),
        };
        let engine = engine.inspect_err(|error| output::note(&format!("no dump is loaded: {error}"))).ok();
        let mut runs = Vec::new();
        for (opened, volume) in volumes(&repositories, args.volume.as_deref()).await? {
            if repositories.stop.is_cancelled() {
                break;
            }
            let job = job(Task::Drill, Some(volume), opened);
            let bar = Bar::new(None);
            let run = trial::drill(&runner, engine.as_ref(), &job, &repositories.node, &bar.sink(), &repositories.stop).await;
            bar.clear();
            if !args.json {
                output::print(&line(&run))?;
            }
            runs.push(run);
        }
        told(&runs, args.json)
    })?
}

/// Every volume that has an archive of this node, with its repository.
async fn volumes<'a>(repositories: &'a Repositories, volume: Option<&str>) -> Result<Vec<(&'a Opened, String)>, Failure> {
    let (found, _) = repositories.archives().await?;
    let mut all = Vec::new();
    for (opened, archives) in &found {
        let mut names: Vec<String> = of_volume(archives, volume).into_iter().filter_map(|archive| archive.volume.clone()).collect();
        names.sort();
        names.dedup();
        all.extend(names.into_iter().map(|name| (*opened, name)));
    }
    if all.is_empty() {
        let archives: Vec<_> = found.into_iter().flat_map(|(_, archives)| archives).collect();
        let finding = crate::backup::listing::choose(&archives, volume, &crate::backup::listing::Choice::Latest);
        let nothing = Failure::said("there is no archive of Skep's to restore on trial");
        return Err(finding.err().map_or(nothing, |finding| Failure::Findings(vec![finding])));
    }
    Ok(all)
}

pub(super) fn check(args: &CheckArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let mut runner = runner(&repositories)?;
        // By hand all of it is read, not a slice.
        runner.config.verify_slices = 1;
        let tasks = [Some(Task::CheckRepository), Some(Task::CheckArchives), args.verify_data.then_some(Task::VerifyData)];
        let mut runs = Vec::new();
        for opened in &repositories.all {
            for task in tasks.into_iter().flatten() {
                if repositories.stop.is_cancelled() {
                    break;
                }
                let bar = Bar::new(None);
                let run = runner.check(&job(task, None, opened), &bar.sink(), &repositories.stop).await;
                bar.clear();
                if !args.json {
                    output::print(&line(&run))?;
                }
                runs.push(run);
            }
        }
        told(&runs, args.json)
    })?
}

fn told(runs: &[Run], json: bool) -> Outcome {
    if json {
        output::json(&runs)?;
    }
    let wrong = runs.iter().any(|run| run.verdict == Ended::Failed);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

/// `drill of shop_data@...: good: 12 files, 1.2 MB, 12 of them compared`
fn line(run: &Run) -> String {
    let what = match run.task {
        Task::Drill => format!("drill of {}", run.archive.as_deref().or(run.volume.as_deref()).unwrap_or_default()),
        Task::CheckArchives => format!("archives of {}", run.repository.location),
        Task::VerifyData => format!("data of {}", run.repository.location),
        Task::CheckRepository | Task::Save => run.repository.location.clone(),
    };
    let verdict = match run.verdict {
        Ended::Good => "good",
        Ended::Warning => "warning",
        Ended::Failed => "FAILED",
    };
    let message = if run.message.is_empty() { String::new() } else { format!(": {}", run.message) };
    output::harmless(&format!("{what}: {verdict}{message}"))
}

fn job(task: Task, volume: Option<String>, opened: &Opened) -> Job {
    Job {
        task,
        volume,
        target: opened.target.clone(),
        repository: opened.reader.repository.clone(),
        due: Timestamp::now(),
        reason: Reason::Asked,
    }
}

fn runner(repositories: &Repositories) -> Result<Runner, Failure> {
    if repositories.is_named() {
        return Err(Failure::said("this is for the repositories of the configuration: leave --repository out"));
    }
    Ok(Runner {
        config: repositories.config.backup.clone(),
        docker: repositories.config.docker.clone(),
        state: repositories.state.clone(),
        shelf: shelf(&repositories.config)?,
        borg: repositories.borg.clone(),
        program: PathBuf::from(OURSELVES),
    })
}
