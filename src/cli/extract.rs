//! `skep backup extract`, `mount` and `umount`: files out of archives, one by one or as a directory to look around in.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::backup::contents::asked;
use crate::backup::placing::Staging;
use crate::backup::reader::Extraction;
use crate::backup::restore::losses;
use crate::backup::{Progress, Sink};

use super::archives::chosen;
use super::bar::Bar;
use super::repositories::{Chosen, Place, Repositories, said, unread};
use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep backup extract shop_data etc/app.conf                  into this directory\n  skep backup extract shop_data etc/app.conf --stdout | less\n  skep backup extract shop_data --at 2d uploads --to /tmp/then\n  skep backup extract shop_data::shop_data@node1-2026-11-23T02:00:07 . --to /tmp/all"
)]
pub(super) struct ExtractArgs {
    /// The volume, whose latest archive is meant, or one of its archives
    #[arg(value_name = "VOLUME[::ARCHIVE]")]
    what: String,
    /// Files and directories, as `skep backup show --files` has them; `.` is everything
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<String>,
    /// The volume as it was then: 2026-11-20, "2026-11-20 03:00", 2d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Put them here, each by its last name, as cp does
    #[arg(long, value_name = "DIR", default_value = ".")]
    to: PathBuf,
    /// Write one file to standard output
    #[arg(long, conflicts_with_all = ["to", "force"])]
    stdout: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "It is read with `ls`, `cp`, `diff` and taken away by `skep backup umount DIR`.")]
pub(super) struct MountArgs {
    /// The volume, whose latest archive is meant, or one of its archives
    #[arg(value_name = "VOLUME[::ARCHIVE]")]
    what: String,
    /// An empty directory
    directory: PathBuf,
    /// The volume as it was then: 2026-11-20, "2026-11-20 03:00", 2d
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// Where an archive is mounted
    directory: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn extract(args: &ExtractArgs) -> Outcome {
    let paths: Vec<String> = args.paths.iter().map(|path| asked(path)).collect::<Result<_, _>>().map_err(Failure::Said)?;
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let chosen = chosen(&repositories, &args.what, args.at.as_deref()).await?;
        match args.stdout {
            true => to_stdout(&chosen, &paths, &repositories.stop).await,
            false => to_directory(&chosen, &paths, args, &repositories).await,
        }
    })?
}

/// The bytes of one file, and nothing else.
async fn to_stdout(chosen: &Chosen<'_>, paths: &[String], stop: &CancellationToken) -> Outcome {
    let [path] = paths else { return Err(Failure::said("--stdout writes one file: name one path")) };
    let (reader, archive) = (&chosen.opened.reader, &chosen.archive.name);
    // What goes to a pipe is written nowhere: only whether the file is there matters.
    let contents = reader.contents(archive, paths, &mut |_| {}, stop).await.map_err(unread)?;
    let Some(holder) = contents.holder(path) else {
        let is_there = contents.kind(path).is_some();
        contents.check().map_err(|finding| Failure::Findings(vec![finding]))?;
        let why = if is_there { "is no file: --to writes directories" } else { "is no file" };
        return Err(Failure::Said(format!("`{}` {why}", output::harmless(path))));
    };
    let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(Failure::said)?;
    reader.file(archive, holder, &mut tokio::fs::File::from_std(out.into()), stop).await.map_err(said)?;
    Ok(Verdict::Fine)
}

async fn to_directory(chosen: &Chosen<'_>, paths: &[String], args: &ExtractArgs, repositories: &Repositories) -> Outcome {
    let moves = destinations(paths, &args.to).map_err(Failure::Said)?;
    let all = paths.iter().any(String::is_empty);
    let wanted: &[String] = if all { &[] } else { paths };
    let bar = Bar::new(None);
    let sink = bar.sink();
    let placed = place(chosen, wanted, &moves, args.force, &args.to, (&sink, &repositories.stop)).await;
    bar.clear();
    let (files, warnings) = placed?;
    let whence = chosen.archive.at.map(crate::backup::listing::clock).unwrap_or_default();
    output::print(&output::harmless(&format!(
        "{} of {}, made {whence}, to {}",
        output::count(usize::try_from(files).unwrap_or(usize::MAX), "file"),
        chosen.archive.name,
        args.to.display()
    )))?;
    Ok(verdict(&warnings))
}

/// Says what borg warned of.
pub(super) fn verdict(warnings: &[String]) -> Verdict {
    let lost = losses(warnings);
    for warning in &lost {
        output::note(&format!("not restored: {}", output::harmless(warning)));
    }
    match warnings.is_empty() {
        true => Verdict::Fine,
        false => {
            output::note(&output::count(warnings.len(), "warning of borg"));
            Verdict::Wrong
        }
    }
}

/// Extracts below `to` and moves to where it shall be. Files, and borg's warnings.
pub(super) async fn place(
    chosen: &Chosen<'_>,
    wanted: &[String],
    moves: &[(PathBuf, PathBuf)],
    force: bool,
    to: &Path,
    (sink, stop): (&Sink, &CancellationToken),
) -> Result<(u64, Vec<String>), Failure> {
    let (reader, archive) = (&chosen.opened.reader, &chosen.archive.name);
    sink(Progress::Phase { text: format!("reading the list of {archive}") });
    let contents = reader.checked(archive, wanted, stop).await.map_err(unread)?;
    let there = std::path::absolute(to).map_err(Failure::said)?.to_string_lossy().into_owned();
    let room = crate::backup::room::free(&there, contents.bytes).await;
    room.map_err(|why| Failure::Said(why.replace("backup.min-free wants", "they need")))?;
    let staging = Staging::new(to).map_err(Failure::said)?;
    sink(Progress::Phase { text: format!("extracting {archive}") });
    let what = Extraction { archive, into: staging.path(), paths: wanted, without: &[], flags: false };
    let output = reader.extract(&what, sink, stop).await.map_err(said)?;
    for (from, to) in moves {
        staging.place(from, to, force).map_err(Failure::said)?;
    }
    Ok((contents.named(), output.warnings))
}

/// Where each path goes: below `to` by its last name; everything goes into `to` itself.
fn destinations(paths: &[String], to: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let mut moves: Vec<(PathBuf, PathBuf)> = Vec::new();
    for path in paths {
        let name = path.rsplit('/').next().unwrap_or_default();
        let destination = if name.is_empty() { to.to_owned() } else { to.join(name) };
        if moves.iter().any(|(_, there)| *there == destination) {
            return Err(format!("two of the paths would both be {}: take them one by one", destination.display()));
        }
        moves.push((PathBuf::from(path), destination));
    }
    if paths.len() > 1 && paths.iter().any(String::is_empty) {
        return Err("`.` is everything: name it alone".to_owned());
    }
    Ok(moves)
}

pub(super) fn mount(args: &MountArgs) -> Outcome {
    on_all_threads(async {
        let repositories = args.place.open().await?;
        let chosen = chosen(&repositories, &args.what, args.at.as_deref()).await?;
        if !args.directory.is_dir() {
            return Err(Failure::said(format!("{} is no directory: make it first", args.directory.display())));
        }
        let directory = std::path::absolute(&args.directory).map_err(Failure::said)?;
        chosen.opened.reader.mount(&chosen.archive.name, &directory, &repositories.stop).await.map_err(|mut failure| {
            if failure.message.contains("no FUSE support") || failure.message.contains("fuse") {
                failure.help = "install python3-llfuse (or pyfuse3) and fuse; `skep backup extract` does without".to_owned();
            }
            said(failure)
        })?;
        output::print(&output::harmless(&format!("{} is at {}", chosen.archive.name, directory.display())))?;
        output::note(&format!("skep backup umount {}", args.directory.display()));
        Ok(Verdict::Fine)
    })?
}

pub(super) fn umount(args: &UmountArgs) -> Outcome {
    on_all_threads(async {
        let config = args.config.read_aloud()?;
        // FUSE's own command does all that borg's would, and needs no repository.
        let directory = std::path::absolute(&args.directory).map_err(Failure::said)?;
        let mut last = String::new();
        for (program, words) in
            [("fusermount3", &["-u"][..]), ("fusermount", &["-u"]), ("umount", &[]), (config.backup.borg.as_str(), &["umount"])]
        {
            let output =
                tokio::process::Command::new(program).args(words).arg(&directory).stdin(std::process::Stdio::null()).output().await;
            match output {
                Ok(output) if output.status.success() => return Ok(Verdict::Fine),
                Ok(output) if last.is_empty() => last = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                _ => {}
            }
        }
        Err(Failure::Said(format!("{} cannot be unmounted: {}", directory.display(), output::harmless(&last))))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_goes_to_its_last_name() {
        let moved = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            destinations(&paths, Path::new("/to"))
                .map(|moves| moves.into_iter().map(|(_, to)| to.display().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(moved(&["etc/app.conf", "b"]), Ok(vec!["/to/app.conf".to_owned(), "/to/b".to_owned()]));
        assert_eq!(moved(&[""]), Ok(vec!["/to".to_owned()]));
        assert!(moved(&["a/x", "b/x"]).is_err() && moved(&["", "x"]).is_err());
    }
}
