//! `skep backup key`: what opens the repositories on the day when this machine is gone, as a document for another place.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::backup::borg::{Borg, quiet};
use crate::backup::engine::Engine;
use crate::backup::failure::Kind;
use crate::backup::keys;
use crate::backup::plan::repository;
use crate::backup::survey::survey;
use crate::backup::{Repository, Runs};
use crate::config::Config;
use crate::provider::docker;

use super::repositories::{chosen, known, node, said, shelf, state};
use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_all_threads, output};

/// Making a repository over a slow line.
const LIMIT: Duration = Duration::from_secs(600);
const MAX_DOCUMENT: u64 = 16 << 20;
/// The first words of each document.
const FIRST: &str = "This opens the backups in ";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep backup key export --to skep-keys.txt     carry the file to where neither the servers nor the backups are\n  skep backup key confirm /media/stick/skep-keys.txt\nUntil it is confirmed that a copy is kept elsewhere, nothing is saved on schedule."
)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    config: ConfigFile,
    /// Of this target only
    #[arg(long, value_name = "NAME", global = true)]
    target: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write keys and passphrase of this node's repositories, which are made if they are not there yet. The document is secret
    Export {
        /// A new file [default: standard output]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Say that the keys are kept elsewhere: the copy is compared
    Confirm {
        /// The copy
        file: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> Outcome {
    let config = args.config.read_aloud()?;
    on_all_threads(async {
        let state = state(&config)?;
        let borg = Borg::find(&config.backup, &state).await.map_err(said)?;
        let shelf = shelf(&config)?;
        let runs = shelf.runs().await.unwrap_or_default();
        let all = repositories(&config, args.target.as_deref(), &runs).await?;
        let passphrase = keys::passphrase(&config.backup, &state).map_err(said)?;
        match &args.what {
            What::Export { to } => {
                let mut documents = Vec::new();
                for repository in &all {
                    documents.push(exported(&borg, repository, &passphrase).await?);
                }
                let texts: Vec<&str> = documents.iter().map(|document| document.as_str()).collect();
                write(&Zeroizing::new(texts.join("\n")), to.as_deref())?;
            }
            What::Confirm { file } => {
                let text = read(file)?;
                for repository in &all {
                    let piece = piece(&text, &repository.location).ok_or_else(|| {
                        let help = "`skep backup key export --to FILE` writes all of them";
                        Failure::Said(format!("{} has nothing about {}\n  {help}", file.display(), repository.location))
                    })?;
                    confirmed(&borg, repository, &passphrase, piece, &state).await?;
                    shelf.confirm(repository).await.map_err(Failure::said)?;
                    output::print(&format!("{}: the key is kept elsewhere", output::harmless(&repository.location)))?;
                }
            }
        }
        Ok(Verdict::Fine)
    })?
}

/// Those of this node: of volumes that are to be saved, and that were.
async fn repositories(config: &Config, target: Option<&str>, runs: &Runs) -> Result<BTreeSet<Repository>, Failure> {
    let targets = chosen(&config.backup.targets, target)?;
    let node = node(config).await;
    let owners = owners(config).await;
    let mut all = BTreeSet::new();
    for target in targets {
        match &owners {
            Some(owners) if !owners.is_empty() => all.extend(owners.iter().map(|owner| repository(target, &node, owner.as_deref()))),
            _ => all.extend(known(target, &node, runs)),
        }
    }
    Ok(all)
}

/// Owners of the volumes that are to be saved; `None`: nobody can say.
async fn owners(config: &Config) -> Option<BTreeSet<Option<String>>> {
    if !config.docker.enabled {
        return None;
    }
    let engine = Engine::connect(&config.docker).await.ok()?;
    let inventory = engine.inventory(config.backup.volumes.as_deref()).await.ok()?;
    // Of a worker the swarm's services are not told: labels of volumes are.
    let services = docker::once(&config.docker).await.map(|snapshot| snapshot.services).unwrap_or_default();
    Some(survey(&inventory, &services, config).subjects.into_iter().map(|subject| subject.owner).collect())
}

async fn exported(borg: &Borg, repository: &Repository, passphrase: &Path) -> Result<Zeroizing<String>, Failure> {
    match keys::export(borg, repository, passphrase).await {
        Err(failure) if failure.kind == Kind::NoRepository => {
            // The key is made with its repository, and must be kept before anything is saved.
            let command = borg.access(repository, Some(passphrase), "key").init();
            borg.run(&command, None, &quiet(), &CancellationToken::new(), LIMIT).await.map_err(said)?;
            output::note(&format!("made the repository {}", output::harmless(&repository.location)));
            keys::export(borg, repository, passphrase).await.map_err(said)
        }
        done => done.map_err(said),
    }
}

fn write(text: &str, to: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = to else { return output::print(text) };
    let failed = |error: std::io::Error| Failure::said(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    output::note(&format!("carry {} to another place, and then: skep backup key confirm COPY", path.display()));
    Ok(())
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    use std::io::Read;
    let failed = |error: std::io::Error| Failure::said(format!("{} cannot be read: {error}", path.display()));
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path).map_err(failed)?.take(MAX_DOCUMENT).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The document of one repository among several.
fn piece<'a>(text: &'a str, location: &str) -> Option<&'a str> {
    let starts: Vec<usize> = text.match_indices(FIRST).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let line = format!("repository: {location}");
    starts.iter().zip(ends).map(|(start, end)| &text[*start..end]).find(|piece| piece.lines().any(|known| known == line))
}

/// Compares by way of a file of ours, as the document of one repository is a file.
async fn confirmed(borg: &Borg, repository: &Repository, passphrase: &Path, piece: &str, state: &Path) -> Result<(), Failure> {
    let path = state.join("backup").join(format!(".confirm-{:08x}", fastrand::u32(..)));
    let failed = |error: std::io::Error| Failure::said(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let written = file.write_all(piece.as_bytes());
    let compared = match written {
        Ok(()) => keys::confirm(borg, repository, passphrase, &path).await.map_err(said),
        Err(error) => Err(failed(error)),
    };
    std::fs::remove_file(&path).map_err(failed)?;
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repository_has_its_document() {
        let text = "This opens the backups in /a\nrepository: /a\n1\n\nThis opens the backups in /a/b\nrepository: /a/b\n2\n";
        assert!(piece(text, "/a").is_some_and(|piece| piece.contains('1') && !piece.contains('2')));
        assert!(piece(text, "/a/b").is_some_and(|piece| piece.ends_with("2\n")));
        assert_eq!(piece(text, "/b"), None);
    }
}
