//! `skep backup restore`: a volume as it was, in place, as a new one, or into a directory.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use crate::backup::archive::Comment;
use crate::backup::borg::OURSELVES;
use crate::backup::dump;
use crate::backup::engine::Engine;
use crate::backup::inventory::{Container, Volume};
use crate::backup::listing::clock;
use crate::backup::placing;
use crate::backup::plan::repository;
use crate::backup::reader::Extraction;
use crate::backup::report::FileEntry;
use crate::backup::restore::{Request, Scene, Step, plan};
use crate::backup::restorer::Restorer;
use crate::backup::runner::Runner;
use crate::backup::{Database, Progress, Repository};

use super::archives::chosen;
use super::bar::Bar;
use super::repositories::{Chosen, Place, Repositories, said, shelf, unread};
use super::{Failure, Outcome, Verdict, extract, on_all_threads, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  skep backup restore shop_data                        in place, or as it was if it is gone
  skep backup restore shop_data --at \"2026-11-20 03:00\"
  skep backup restore shop_data --into shop_then       beside it, to look into
  skep backup restore shop_data --dry-run              say what would be done
  skep backup restore db_data --load                   a database: empty, start, load the dump
On an empty machine, without Docker:
  skep backup restore --repository ssh://backup@host/./skep/node1 --passphrase-file key.txt \\
    --archive shop_data@node1-2026-11-23T02:00:07 --into-directory /srv/shop_data

In place, its containers are stopped, the volume is saved as it is now, emptied, filled, and the containers started again. Dumps of databases
stay out of volumes: --load loads them, and without it the command that does is printed.")]
pub(super) struct Args {
    /// The volume, whose latest archive is meant, or one of its archives
    #[arg(value_name = "VOLUME[::ARCHIVE]", required_unless_present = "archive")]
    what: Option<String>,
    /// This archive
    #[arg(long, value_name = "NAME", conflicts_with = "at")]
    archive: Option<String>,
    /// The volume as it was then: 2026-11-20, "2026-11-20 03:00", 2d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Make a new volume of this name, with driver and labels as they were, but not those by which it would be saved
    #[arg(long, value_name = "NEWNAME", conflicts_with = "into_directory")]
    into: Option<String>,
    /// Extract into this directory, without Docker
    #[arg(long, value_name = "DIR")]
    into_directory: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not save the volume as it is now before it is emptied
    #[arg(long, conflicts_with = "into")]
    no_safety: bool,
    /// Restore although containers that use the volume run on, as those of a service do
    #[arg(long)]
    force_running: bool,
    /// With --into-directory: replace files that are there
    #[arg(long, requires = "into_directory")]
    force: bool,
    /// Load the dump of a database, in its container
    #[arg(long, conflicts_with = "into_directory")]
    load: bool,
    /// With --into: keep the labels by which the new volume is saved, too
    #[arg(long, requires = "into")]
    keep_labels: bool,
    /// Do not ask before a volume is emptied
    #[arg(long, short = 'y')]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let chosen = match (&args.archive, &args.what) {
            (Some(name), _) => repositories.choose(None, &repositories.choice(Some(name), None)?).await?,
            (None, what) => chosen(&repositories, what.as_deref().unwrap_or_default(), args.at.as_deref()).await?,
        };
        match &args.into_directory {
            Some(directory) => into_directory(args, &repositories, &chosen, directory).await,
            None => into_volume(args, &repositories, &chosen).await,
        }
    })?
}

async fn into_directory(args: &Args, repositories: &Repositories, chosen: &Chosen<'_>, directory: &Path) -> Outcome {
    let directory = std::path::absolute(directory).map_err(Failure::said)?;
    let (reader, archive) = (&chosen.opened.reader, &chosen.archive.name);
    if args.dry_run {
        let what = Extraction { archive, into: &directory, paths: &[], without: &[], flags: true };
        return output::print(&format!("{}\n", reader.extraction(&what))).map(|()| Verdict::Fine);
    }
    let bar = Bar::new(None);
    let sink = bar.sink();
    let is_new = !directory.exists() || placing::is_empty(&directory).map_err(Failure::said)?;
    let extracted = match is_new {
        // Nobody else's files, so no links to follow: no way around.
        true => straight(chosen, &directory, &sink, repositories).await,
        false if args.force => {
            let moves = [(PathBuf::new(), directory.clone())];
            extract::place(chosen, &[], &moves, true, &directory, (&sink, &repositories.stop)).await
        }
        false => Err(Failure::said(format!("{} is not empty: name another directory, or --force", directory.display()))),
    };
    bar.clear();
    let (files, warnings) = extracted?;
    let made = chosen.archive.at.map(clock).unwrap_or_default();
    output::print(&output::harmless(&format!(
        "{} of {archive}, made {made}, in {}",
        output::count(usize::try_from(files).unwrap_or(usize::MAX), "file"),
        directory.display()
    )))?;
    Ok(extract::verdict(&warnings))
}

async fn straight(
    chosen: &Chosen<'_>,
    directory: &Path,
    sink: &crate::backup::Sink,
    repositories: &Repositories,
) -> Result<(u64, Vec<String>), Failure> {
    let (reader, archive) = (&chosen.opened.reader, &chosen.archive.name);
    sink(Progress::Phase { text: format!("reading the list of {archive}") });
    let contents = reader.checked(archive, &[], &repositories.stop).await.map_err(unread)?;
    let room = crate::backup::room::free(&directory.to_string_lossy(), contents.bytes).await;
    room.map_err(|why| Failure::Said(why.replace("backup.min-free wants", "they need")))?;
    std::fs::create_dir_all(directory).map_err(|error| Failure::said(format!("{}: {error}", directory.display())))?;
    sink(Progress::Phase { text: format!("extracting {archive}") });
    let what = Extraction { archive, into: directory, paths: &[], without: &[], flags: true };
    let output = reader.extract(&what, sink, &repositories.stop).await.map_err(said)?;
    Ok((contents.named(), output.warnings))
}

/// What there is now of the volume that is written.
struct Now {
    engine: Engine,
    node: String,
    volume: Option<Volume>,
    containers: Vec<Container>,
    is_empty: bool,
}

impl Now {
    async fn look(repositories: &Repositories, name: &str) -> Result<Now, Failure> {
        let docker = |error: &dyn std::fmt::Display| {
            Failure::Said(format!("Docker cannot be asked: {error}\n  --into-directory restores without Docker"))
        };
        let engine = Engine::connect(&repositories.config.docker).await.map_err(|error| docker(&error))?;
        let inventory = engine.inventory(repositories.config.backup.volumes.as_deref()).await.map_err(|error| docker(&error))?;
        let volume = inventory.volumes.into_iter().find(|volume| volume.name == name);
        let is_empty = match &volume {
            Some(volume) => placing::is_empty(&volume.path).map_err(|error| {
                let path = volume.path.display();
                Failure::Said(format!(
                    "{path} cannot be read: {error}\n  in a container, mount the engine's volumes directory and say where by backup.volumes"
                ))
            })?,
            None => false,
        };
        let containers = engine.containers(Some(name)).await.map_err(|error| docker(&error))?;
        Ok(Now { engine, node: inventory.node, volume, containers, is_empty })
    }
}

async fn into_volume(args: &Args, repositories: &Repositories, chosen: &Chosen<'_>) -> Outcome {
    let (reader, archive) = (&chosen.opened.reader, &chosen.archive.name);
    let comment = reader.comment(archive, &repositories.stop).await.map_err(said)?;
    let volume = volume(args, chosen, comment.as_ref())?;
    let now = Now::look(repositories, &volume).await?;
    let bar = Bar::new(None);
    let sink = bar.sink();
    sink(Progress::Phase { text: format!("reading the list of {archive}") });
    let mut names = Vec::new();
    let mut each = |entry: &FileEntry| {
        if entry.path.starts_with("dump/") && names.len() < 16 {
            names.push(entry.path.clone());
        }
    };
    let contents = reader.contents(archive, &[], &mut each, &repositories.stop).await;
    bar.clear();
    let contents = contents.map_err(unread)?;
    contents.check().map_err(|finding| Failure::Findings(vec![finding]))?;
    let dumped = |database: &&Database| names.iter().any(|name| name == dump::name(database));
    let request = Request {
        archive,
        volume: &volume,
        is_copy: args.into.is_some(),
        comment: comment.as_ref(),
        dump: comment.as_ref().and_then(Comment::database).filter(dumped),
        bytes: contents.bytes,
        safety: !args.no_safety,
        force_running: args.force_running,
        load: args.load,
        keep_labels: args.keep_labels,
    };
    let scene = Scene { volume: now.volume.as_ref(), containers: &now.containers, is_empty: now.is_empty };
    let steps = plan(&request, &scene).map_err(|finding| Failure::Findings(vec![finding]))?;
    if args.dry_run {
        let lines: Vec<String> =
            steps.iter().enumerate().map(|(at, step)| format!("{}. {}", at + 1, output::harmless(&step.to_string()))).collect();
        output::print(&lines.join("\n"))?;
        output::note("nothing was done");
        return Ok(Verdict::Fine);
    }
    if steps.iter().any(|step| matches!(step, Step::Empty { .. })) {
        confirmed(args, &volume, chosen)?;
    }
    carry_out(repositories, chosen, comment.as_ref(), &volume, &now, &steps).await
}

/// The volume that is written.
fn volume(args: &Args, chosen: &Chosen<'_>, comment: Option<&Comment>) -> Result<String, Failure> {
    let asked = args.what.as_deref().and_then(|what| crate::backup::listing::split(what).0).filter(|name| *name != chosen.archive.name);
    let asked = asked.filter(|name| crate::backup::archive::parse(name).is_none()).map(str::to_owned);
    let known = comment.map(|comment| comment.volume.clone()).or_else(|| chosen.archive.volume.clone());
    let name = args.into.clone().or(asked).or(known).filter(|name| !name.is_empty());
    name.ok_or_else(|| Failure::said("the archive does not say of which volume it is: name a new one with --into, or --into-directory"))
}

fn confirmed(args: &Args, volume: &str, chosen: &Chosen<'_>) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::said(format!(
            "everything in {volume} would be deleted and restored: say so with --yes (--dry-run shows the steps)"
        )));
    }
    let made = chosen.archive.at.map(clock).unwrap_or_default();
    let safety = if args.no_safety { "" } else { " (it is saved first)" };
    output::note(&output::harmless(&format!("Everything in {volume} is replaced{safety} by what it was {made}. Continue? [y/N] ")));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(Failure::said)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::said("nothing was done")),
    }
}

async fn carry_out(
    repositories: &Repositories,
    chosen: &Chosen<'_>,
    comment: Option<&Comment>,
    volume: &str,
    now: &Now,
    steps: &[Step],
) -> Outcome {
    let runner = Runner {
        config: repositories.config.backup.clone(),
        docker: repositories.config.docker.clone(),
        state: repositories.state.clone(),
        shelf: shelf(&repositories.config)?,
        borg: repositories.borg.clone(),
        program: PathBuf::from(OURSELVES),
    };
    runner.recover().await;
    let target = repositories.config.backup.targets.iter().find(|target| target.name == chosen.opened.target);
    let target = target.or(repositories.config.backup.targets.first());
    let owner = comment.and_then(|comment| comment.owner.as_deref());
    let own: Option<(&str, Repository)> = target.map(|target| (target.name.as_str(), repository(target, &now.node, owner)));
    let bar = Bar::new(None);
    let sink = bar.sink();
    let restorer = Restorer {
        runner: &runner,
        engine: &now.engine,
        reader: &chosen.opened.reader,
        safety: own.as_ref().map(|(target, repository)| (*target, repository)),
        comment,
        node: &now.node,
        volume,
        containers: &now.containers,
        sink: &sink,
        stop: &repositories.stop,
    };
    let done = restorer.carry_out(steps).await;
    bar.clear();
    let done = done.map_err(Failure::said)?;
    let made = chosen.archive.at.map(clock).unwrap_or_default();
    let mut text = format!("{volume} is as it was {made}: {}", chosen.archive.name);
    if let Some(safety) = &done.safety {
        text.push_str(&format!("\nas it was before this: {safety}"));
    }
    for said in &done.said {
        text.push_str(&format!("\n{said}"));
    }
    let lines: Vec<String> = text.lines().map(output::harmless).collect();
    output::print(&lines.join("\n"))?;
    Ok(extract::verdict(&done.warnings))
}
