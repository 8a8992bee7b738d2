//! The repositories that a command about archives reads: those of this node, as the configuration says, or one that somebody names, which
//! needs neither Docker nor a state directory nor a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio_util::sync::CancellationToken;

use crate::backup::borg::Borg;
use crate::backup::engine::Engine;
use crate::backup::failure::{self, Kind};
use crate::backup::listing::{self, Archive, Choice, choose};
use crate::backup::plan::repository;
use crate::backup::reader::{Error, Reader};
use crate::backup::shelf::Shelf;
use crate::backup::step::is_local;
use crate::backup::{Repository, Run, Runs, keys};
use crate::config::Config;
use crate::config::backup::Target;
use crate::diagnostic::Diagnostic;

use super::settings::ConfigFile;
use super::{Failure, desk, output};

/// The name of a repository that somebody named by hand, where targets have theirs.
const NAMED: &str = "-";

/// Which repositories.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Place {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Look at this target only [default: all, as the configuration orders them]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// Read this repository, as borg calls it (a path, ssh://user@host/path), without Docker, state or configuration
    #[arg(long, value_name = "LOCATION", conflicts_with_all = ["target", "node"])]
    pub repository: Option<String>,
    /// The file with the repository's passphrase [default: as the configuration says]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The repository is not encrypted
    #[arg(long, requires = "repository", conflicts_with = "passphrase_file")]
    pub unencrypted: bool,
    /// Read the repositories of this node [default: this one]
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

/// What was opened.
pub(super) struct Repositories {
    pub config: Config,
    pub state: PathBuf,
    /// Goes with this, where there is no state directory.
    _temporary: Option<Temporary>,
    pub borg: Borg,
    pub node: String,
    /// By target, in the configuration's order.
    pub all: Vec<Opened>,
    pub stop: CancellationToken,
}

#[derive(Clone)]
pub(super) struct Opened {
    pub target: String,
    pub reader: Reader,
}

/// An archive, and where it is.
pub(super) struct Chosen<'a> {
    pub opened: &'a Opened,
    pub archive: Archive,
}

/// A directory that goes when this does.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // A mounted archive may still use it; then the system's own cleaning takes it.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Place {
    /// Opens what the arguments name. borg is looked for; no repository is asked yet.
    pub async fn open(&self) -> Result<Repositories, Failure> {
        let mut config = self.config.read_aloud()?;
        if let Some(path) = &self.passphrase_file {
            config.backup.passphrase_file = Some(std::path::absolute(path).map_err(Failure::said)?);
        }
        let stop = CancellationToken::new();
        interrupted(stop.clone());
        let run = Run::id(Timestamp::now(), fastrand::u32(..));
        match &self.repository {
            Some(location) => self.named(config, location, stop, run).await,
            None => self.configured(config, stop, run).await,
        }
    }

    async fn named(&self, config: Config, location: &str, stop: CancellationToken, run: String) -> Result<Repositories, Failure> {
        let temporary = Temporary(std::env::temp_dir().join(format!("skep-backup-{run}")));
        let made = DirBuilder::new().mode(0o700).create(&temporary.0);
        made.map_err(|error| Failure::said(format!("{} cannot be made: {error}", temporary.0.display())))?;
        let borg = Borg::find(&config.backup, &temporary.0).await.map_err(said)?;
        let own = config.state.directory.as_ref().map(|state| state.join("backup").join("passphrase"));
        let passphrase = match (&config.backup.passphrase_file, own) {
            _ if self.unencrypted => None,
            (Some(path), _) => Some(path.clone()),
            (None, Some(path)) if path.exists() => Some(path),
            (None, _) => {
                return Err(Failure::said(
                    "say where the passphrase is, with --passphrase-file, or that there is none, with --unencrypted",
                ));
            }
        };
        if let Some(path) = &passphrase {
            keys::check(path).map_err(|why| Failure::said(format!("the passphrase file {} {why}", path.display())))?;
        }
        let location = if is_local(location) || location.contains("://") || location.contains(':') {
            location.to_owned()
        } else {
            std::path::absolute(location).map_err(Failure::said)?.to_string_lossy().into_owned()
        };
        let name = location.trim_end_matches('/').rsplit('/').next().unwrap_or(&location).to_owned();
        let reader = Reader::new(borg.clone(), Repository { location, name }, passphrase, run.clone()).foreign();
        let state = config.state.directory.clone().unwrap_or_else(|| temporary.0.clone());
        let all = vec![Opened { target: NAMED.to_owned(), reader }];
        Ok(Repositories { config, state, _temporary: Some(temporary), borg, node: host(), all, stop })
    }

    async fn configured(&self, config: Config, stop: CancellationToken, run: String) -> Result<Repositories, Failure> {
        let targets = chosen(&config.backup.targets, self.target.as_deref())?;
        let state = state(&config)?;
        let passphrase = keys::place(&config.backup, &state);
        if !passphrase.exists() {
            let help = "nothing was saved from here yet, or name the file with --passphrase-file";
            return Err(Failure::said(format!("there is no passphrase at {}\n  {help}", passphrase.display())));
        }
        keys::check(&passphrase).map_err(|why| Failure::said(format!("the passphrase file {} {why}", passphrase.display())))?;
        let borg = Borg::find(&config.backup, &state).await.map_err(said)?;
        let node = match &self.node {
            Some(node) => node.clone(),
            None => node(&config).await,
        };
        let runs = runs(&config).await;
        let mut all = Vec::new();
        for target in targets {
            for repository in known(target, &node, &runs) {
                let reader = Reader::new(borg.clone(), repository, Some(passphrase.clone()), run.clone());
                all.push(Opened { target: target.name.clone(), reader });
            }
        }
        Ok(Repositories { config, state, _temporary: None, borg, node, all, stop })
    }
}

impl Repositories {
    /// All archives of each repository; what cannot be read is said. The second part: could all be?
    pub async fn archives(&self) -> Result<(Vec<(&Opened, Vec<Archive>)>, bool), Failure> {
        let (mut found, mut first, mut complete) = (Vec::new(), None, true);
        for opened in &self.all {
            match opened.reader.archives(&self.stop).await {
                Ok(archives) => found.push((opened, archives)),
                Err(failure) => {
                    complete = false;
                    if self.all.len() > 1 {
                        output::note(&format!("{}: {failure}", opened.reader.repository.location));
                    }
                    first = Some(first.unwrap_or(failure));
                }
            }
        }
        match (found.is_empty(), first) {
            (true, Some(failure)) => Err(said(failure)),
            _ => Ok((found, complete)),
        }
    }

    /// The archive that is meant, in the first repository that has it.
    pub async fn choose(&self, volume: Option<&str>, choice: &Choice) -> Result<Chosen<'_>, Failure> {
        let volume = volume.map(|volume| listing::written(volume, &self.node).0);
        let mut missing: Option<Diagnostic> = None;
        let mut failed: Option<failure::Failure> = None;
        for opened in &self.all {
            match opened.reader.archives(&self.stop).await {
                Ok(archives) => match choose(&archives, volume.as_deref(), choice) {
                    Ok(archive) => return Ok(Chosen { opened, archive: archive.clone() }),
                    Err(finding) => missing = Some(missing.unwrap_or(finding)),
                },
                Err(failure) if failure.kind == Kind::Stopped => return Err(said(failure)),
                Err(failure) => {
                    if self.all.len() > 1 {
                        output::note(&format!("{}: {failure}", opened.reader.repository.location));
                    }
                    failed = Some(failed.unwrap_or(failure));
                }
            }
        }
        Err(match (missing, failed) {
            (Some(finding), _) => Failure::Findings(vec![finding]),
            (None, Some(failure)) => said(failure),
            (None, None) => Failure::said("there is no repository to read"),
        })
    }

    /// When a time was meant that a person wrote.
    pub fn choice(&self, archive: Option<&str>, at: Option<&str>) -> Result<Choice, Failure> {
        match (archive, at) {
            (Some(_), Some(_)) => Err(Failure::said("an archive has its time: leave --at or the archive out")),
            (Some(name), None) => Ok(Choice::Named(name.to_owned())),
            (None, None) => Ok(Choice::Latest),
            (None, Some(text)) => {
                let zone = TimeZone::get(&self.config.backup.time_zone).unwrap_or(TimeZone::UTC);
                listing::moment(text, Timestamp::now(), &zone).map(Choice::At).map_err(Failure::Said)
            }
        }
    }

    /// How runs went, where that is known.
    pub async fn runs(&self) -> Runs {
        if self._temporary.is_some() { Runs::new() } else { runs(&self.config).await }
    }

    /// Was the repository named by hand?
    pub fn is_named(&self) -> bool {
        self._temporary.is_some()
    }
}

/// borg's failure, with what to do about it on a line of its own.
pub(super) fn said(failure: failure::Failure) -> Failure {
    match failure.help.is_empty() {
        true => Failure::Said(output::harmless(&failure.message)),
        false => Failure::Said(format!("{}\n  {}", output::harmless(&failure.message), failure.help)),
    }
}

/// A reader's failure.
pub(super) fn unread(error: Error) -> Failure {
    match error {
        Error::Borg(failure) => said(failure),
        Error::Finding(finding) => Failure::Findings(vec![finding]),
        Error::Said(text) => Failure::Said(text),
    }
}

/// The first interrupt ends in order what is under way, the next is the terminal's own.
fn interrupted(stop: CancellationToken) {
    tokio::spawn(async move {
        let terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        let Ok(mut terminated) = terminated else { return };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        output::note("stopping ...");
        stop.cancel();
    });
}

pub(super) fn chosen<'a>(all: &'a [Target], name: Option<&str>) -> Result<Vec<&'a Target>, Failure> {
    if all.is_empty() {
        let help = "write targets = [\"/srv/backups\"] in [backup], or name a repository with --repository";
        return Err(Failure::said(format!("no place for backups is configured\n  {help}")));
    }
    let Some(name) = name else { return Ok(all.iter().collect()) };
    match all.iter().find(|target| target.name == name) {
        Some(target) => Ok(vec![target]),
        None => {
            let names = all.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::said(format!("there is no target `{}`: it is one of {names}", crate::diagnostic::brief(name))))
        }
    }
}

pub(super) fn state(config: &Config) -> Result<PathBuf, Failure> {
    let missing = "state.directory is off: what is known of backups lies there (name a repository with --repository to do without)";
    config.state.directory.clone().ok_or_else(|| Failure::said(missing))
}

/// What is remembered of backups.
pub(super) fn shelf(config: &Config) -> Result<Shelf, Failure> {
    desk::shelf(config).map(|(_, shelf)| shelf)
}

/// Nothing where nothing is remembered, or cannot be read: archives are there all the same.
async fn runs(config: &Config) -> Runs {
    let Ok(shelf) = shelf(config) else { return Runs::new() };
    shelf.runs().await.unwrap_or_default()
}

/// As the engine calls this node, else as it calls itself.
pub(super) async fn node(config: &Config) -> String {
    let asked = async {
        let engine = Engine::connect(&config.docker).await.ok()?;
        engine.inventory(config.backup.volumes.as_deref()).await.ok().map(|inventory| inventory.node)
    };
    match config.docker.enabled {
        true => asked.await.filter(|node| !node.is_empty()).unwrap_or_else(host),
        false => host(),
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// Repositories of a node at a target: its own, and those of owners, as far as the disk or earlier runs tell.
pub(super) fn known(target: &Target, node: &str, runs: &Runs) -> Vec<Repository> {
    let own = repository(target, node, None);
    let prefix = format!("{}.", own.name);
    let mut found = BTreeMap::from([(own.name.clone(), own.clone())]);
    let remembered: BTreeSet<&Repository> = runs
        .iter()
        .filter(|(key, _)| key.target == target.name)
        .flat_map(|(_, series)| series.runs.iter().map(|run| &run.repository))
        .collect();
    let of_target = |repository: &&&Repository| repository.location.starts_with(target.location.trim_end_matches('/'));
    for repository in remembered.iter().filter(of_target).filter(|repository| repository.name.starts_with(&prefix)) {
        found.insert(repository.name.clone(), (*repository).clone());
    }
    if is_local(&target.location) {
        let root = Path::new(target.location.trim_start_matches("file://"));
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && entry.path().join("config").is_file() {
                let location = format!("{}/{name}", target.location.trim_end_matches('/'));
                found.insert(name.clone(), Repository { location, name });
            }
        }
    }
    // Its own first.
    let own_name = own.name;
    let (first, rest): (Vec<_>, Vec<_>) = found.into_values().partition(|repository| repository.name == own_name);
    [first, rest].concat()
}
