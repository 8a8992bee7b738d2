//! borg as a process: started, listened to, fed, and ended. What it is asked is decided elsewhere, what it said is read elsewhere.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use super::pipes::{Feed, Output};

use super::command::{Access, Command, quoted};
use super::failure::{Failure, Kind};
use super::pipes::{Log, drive, next_line, no_pipes};
use super::report::{Created, Version};
use super::{Progress, Repository, Sink};
use crate::config;

/// Of an answer that is read as a whole. A thousand archives with comments have about a megabyte.
const MAX_ANSWER: usize = 64 << 20;
/// For `borg --version`, on a busy machine.
const ASKING: Duration = Duration::from_secs(60);
/// Of our own environment, what borg needs as any program does.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "SSH_AUTH_SOCK", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "BORG_REMOTE_PATH"];

/// This very program, even after an upgrade has put another one into its place on the disk.
pub const OURSELVES: &str = "/proc/self/exe";

/// A borg that was found, and what all its commands have in common.
#[derive(Clone, Debug)]
pub struct Borg {
    pub version: Version,
    config: config::Backup,
    base: PathBuf,
    priority: Vec<String>,
    /// Our own program, by which borg dies when we do; `None`: it does not.
    tether: Option<PathBuf>,
}

impl Borg {
    /// Looks for borg and asks for its version. What it remembers lies below `state`.
    ///
    /// # Errors
    /// It is not there, or is neither 1.2 nor 1.4, or `state` cannot be written.
    pub async fn find(config: &config::Backup, state: &Path) -> Result<Borg, Failure> {
        let base = state.join("backup").join("borg");
        std::fs::create_dir_all(base.join("tmp"))
            .map_err(|error| Failure::new(Kind::Other, format!("{} cannot be made: {error}", base.display())))?;
        let version = version(&config.borg).await?;
        let supported = version.major == 1 && version.minor >= 2;
        if !supported {
            return Err(Failure::new(Kind::NoBorg, format!("{} is borg {version}", config.borg)));
        }
        let priority = priority(config);
        let tether = std::env::current_exe().ok().filter(|path| is_skep(path)).map(|_| PathBuf::from(OURSELVES));
        Ok(Borg { version, config: config.clone(), base, priority, tether })
    }

    /// The same, with `program backup tether` in front of borg.
    pub fn with_tether(self, program: &Path) -> Borg {
        Borg { tether: Some(program.to_owned()), ..self }
    }

    /// What borg keeps: caches, and what it knows of repositories.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// How `repository` is reached on behalf of `run`.
    pub fn access<'a>(&'a self, repository: &'a Repository, passphrase: Option<&'a Path>, run: &'a str) -> Access<'a> {
        Access {
            repository,
            passphrase,
            config: &self.config,
            base: &self.base,
            run,
            version: self.version,
            priority: &self.priority,
            foreign: false,
        }
    }

    /// Runs `command` to its end and returns what it answered. Somebody else's lock is waited for.
    ///
    /// # Errors
    /// It failed, took longer than `limit`, was told to stop, or its answer has no bound.
    pub async fn run(
        &self,
        command: &Command,
        mut feed: Option<Feed>,
        sink: &Sink,
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let is_fed = feed.is_some();
        let mut patience = Patience::new(&self.config, limit);
        loop {
            match self.once(command, feed.take(), sink, stop, patience.left()).await {
                // What was streamed into it is gone; it has waited long itself.
                Err(failure) if !is_fed && patience.lasts(&failure, sink) => {}
                done => return done,
            }
        }
    }

    async fn once(
        &self,
        command: &Command,
        feed: Option<Feed>,
        sink: &Sink,
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let mut stdout = Vec::new();
        let mut output = {
            let (child, from, log) = self.spawn(command)?;
            let answer = &mut stdout;
            let reading = async move {
                let read = from.take(MAX_ANSWER as u64 + 1).read_to_end(answer).await;
                match read {
                    Ok(length) if length > MAX_ANSWER => Err(format!("borg's answer has more than {MAX_ANSWER} bytes")),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            };
            let ended = drive((child, command.is_check), feed, reading, sink, stop, limit).await;
            log.explain(ended)?
        };
        if let Ok(created) = serde_json::from_slice::<Created>(&stdout) {
            output.stats = created.archive.stats.into();
        }
        output.stdout = stdout;
        Ok(output)
    }

    /// Hands each line of the answer to `each`, until that says `false`: then the command is ended, and that is no failure.
    ///
    /// # Errors
    /// As [`Borg::run`].
    pub async fn lines(
        &self,
        command: &Command,
        each: &mut (dyn FnMut(&str) -> bool + Send),
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let mut patience = Patience::new(&self.config, limit);
        loop {
            match self.lines_once(command, each, stop, patience.left()).await {
                Err(failure) if patience.lasts(&failure, &quiet()) => {}
                done => return done,
            }
        }
    }

    async fn lines_once(
        &self,
        command: &Command,
        each: &mut (dyn FnMut(&str) -> bool + Send),
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let enough = stop.child_token();
        let mut satisfied = false;
        let (child, from, log) = self.spawn(command)?;
        let (enough_said, satisfied_too) = (enough.clone(), &mut satisfied);
        let reading = async move {
            let mut from = BufReader::new(from);
            while let Some(line) = next_line(&mut from).await.map_err(|error| error.to_string())? {
                if !each(&line) {
                    *satisfied_too = true;
                    enough_said.cancel();
                    return Ok(());
                }
            }
            Ok(())
        };
        match drive((child, command.is_check), None, reading, &quiet(), &enough, limit).await {
            Err(failure) if satisfied && failure.kind == Kind::Stopped => Ok(Output::default()),
            ended => log.explain(ended),
        }
    }

    /// Writes the answer to `to`.
    ///
    /// # Errors
    /// As [`Borg::run`], or `to` takes no more.
    pub async fn copy(
        &self,
        command: &Command,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let mut patience = Patience::new(&self.config, limit);
        loop {
            match self.copy_once(command, to, stop, patience.left()).await {
                Err(failure) if patience.lasts(&failure, &quiet()) => {}
                done => return done,
            }
        }
    }

    async fn copy_once(
        &self,
        command: &Command,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        stop: &CancellationToken,
        limit: Duration,
    ) -> Result<Output, Failure> {
        let (child, mut from, log) = self.spawn(command)?;
        let reading = async move {
            let copied = async {
                tokio::io::copy(&mut from, to).await?;
                to.flush().await
            };
            copied.await.map_err(|error| error.to_string())
        };
        log.explain(drive((child, command.is_check), None, reading, &quiet(), stop, limit).await)
    }

    /// Starts the command; its standard output lives as long as whoever reads it wants.
    fn spawn(&self, command: &Command) -> Result<(Child, ChildStdout, Log), Failure> {
        let words = match &self.tether {
            Some(program) => {
                let front = [program.to_string_lossy().into_owned(), "backup".to_owned(), "tether".to_owned(), "--".to_owned()];
                front.iter().chain(&command.words).cloned().collect()
            }
            None => command.words.clone(),
        };
        let mut process = tokio::process::Command::new(&words[0]);
        process.args(&words[1..]).env_clear().envs(&command.env);
        let log = Log::new(&self.base);
        if let Some(rsh) = command.env.get("BORG_RSH") {
            process.env("BORG_RSH", format!("{rsh} -E {}", quoted(&log.path().to_string_lossy())));
        }
        process.envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        if let Some(directory) = &command.directory {
            process.current_dir(directory);
        }
        let stdin = if command.input { Stdio::piped() } else { Stdio::null() };
        // A group of its own: an interrupt from the terminal is ours to pass on.
        process.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let child = process.spawn().map_err(|error| match (&command.directory, error.kind()) {
            (Some(directory), std::io::ErrorKind::NotFound) if !directory.is_dir() => {
                let message = format!("{} is not there", directory.display());
                let help = "in a container, the engine's volumes directory must be mounted at the same path, or named in backup.volumes";
                Failure { kind: Kind::Other, message, help: help.to_owned() }
            }
            _ => Failure::new(Kind::NoBorg, format!("{} cannot be started: {error}", words[0])),
        });
        let mut child = child?;
        let stdout = child.stdout.take().ok_or_else(no_pipes)?;
        Ok((child, stdout, log))
    }
}

/// How long somebody else's lock is waited for: borg looks again after a tenth of the time that it is given, so it is given little, and
/// asked again.
struct Patience {
    began: Instant,
    lock: Duration,
    limit: Duration,
    is_told: bool,
}

impl Patience {
    fn new(config: &config::Backup, limit: Duration) -> Patience {
        Patience { began: Instant::now(), lock: config.lock_wait, limit, is_told: false }
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.began.elapsed())
    }

    fn lasts(&mut self, failure: &Failure, sink: &Sink) -> bool {
        let lasts = failure.kind == Kind::Locked && self.began.elapsed() < self.lock.min(self.limit);
        if lasts && !std::mem::replace(&mut self.is_told, true) {
            sink(Progress::Phase { text: "wait for the lock of somebody else on the repository".to_owned() });
        }
        lasts
    }
}

/// Tests are programs of their own. One that was replaced on the disk is shown with ` (deleted)` behind it.
fn is_skep(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "skep" || name == "skep (deleted)")
}

/// For commands whose progress nobody watches.
pub fn quiet() -> Sink {
    std::sync::Arc::new(|_| {})
}

async fn version(program: &str) -> Result<Version, Failure> {
    let missing = |why: String| Failure::new(Kind::NoBorg, format!("{program} cannot be used: {why}"));
    let asked = tokio::process::Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(ASKING, asked).await.map_err(|_| missing("it does not answer".to_owned()))?;
    let output = output.map_err(|error| missing(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::read(&text).ok_or_else(|| missing(format!("it says `{}`, which is no version", crate::diagnostic::brief(text.trim()))))
}

/// `nice` and `ionice`, as far as this machine has them.
fn priority(config: &config::Backup) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let mut words = Vec::new();
    if config.nice > 0 && there("nice") {
        words.extend(["nice".to_owned(), "-n".to_owned(), config.nice.to_string()]);
    }
    if config.io_idle && there("ionice") {
        words.extend(["ionice".to_owned(), "-c".to_owned(), "3".to_owned()]);
    }
    words
}
