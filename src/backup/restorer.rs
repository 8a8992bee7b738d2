//! Carries out what a restore's plan says. Containers are written down, guarded and only then stopped, as for a run, so that they come back
//! whatever happens; and who fails half way says where the volume's old content is.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::archive::Comment;
use super::dump::{self, Passing};
use super::engine::Engine;
use super::inventory::Container;
use super::journal::Entry;
use super::placing;
use super::quiet::{Quieted, quiesce};
use super::reader::{Extraction, Reader};
use super::restore::{Step, losses, subject};
use super::runner::Runner;
use super::shelf::Journal;
use super::step::{Named, is_local};
use super::{Database, Job, Mode, Progress, Reason, Repository, Run, Sink, Task, Verdict, room};

/// A database that begins with an empty directory makes its files first.
const STARTING: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(500);
/// Of what a command in a container writes.
const MAX_OUTPUT: usize = 64 << 10;
/// Of a dump on its way from borg to the database.
const PIPE: usize = 256 << 10;
/// A volume with files needs more room than their bytes.
const SPARE: u64 = 16 << 20;

/// All that a restore needs.
pub struct Restorer<'a> {
    pub runner: &'a Runner,
    pub engine: &'a Engine,
    pub reader: &'a Reader,
    /// Where a safety archive goes: target and repository.
    pub safety: Option<(&'a str, &'a Repository)>,
    pub comment: Option<&'a Comment>,
    /// As the engine calls it.
    pub node: &'a str,
    /// The volume that is written.
    pub volume: &'a str,
    /// Those that mount it.
    pub containers: &'a [Container],
    pub sink: &'a Sink,
    pub stop: &'a CancellationToken,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub safety: Option<String>,
    pub warnings: Vec<String>,
    pub more_warnings: u64,
    /// What is left for somebody to do, or should be known.
    pub said: Vec<String>,
}

/// Why it was not, and how the volume is now.
#[derive(Debug, thiserror::Error)]
#[error("{why}{}", self.way_back())]
pub struct Failed {
    pub why: String,
    volume: String,
    /// Something of the volume was deleted or written.
    touched: bool,
    safety: Option<String>,
}

impl Failed {
    fn way_back(&self) -> String {
        match (&self.safety, self.touched) {
            (_, false) => "\n  nothing in the volume was changed".to_owned(),
            (Some(safety), true) => {
                format!("\n  the volume is restored in part; as it was before: skep backup restore '{}::{safety}' --no-safety", self.volume)
            }
            (None, true) => "\n  the volume is restored in part".to_owned(),
        }
    }
}

/// How far it is.
#[derive(Default)]
struct Progressed {
    journal: Option<Journal>,
    quieted: Option<Quieted>,
    path: Option<PathBuf>,
    touched: bool,
    done: Done,
}

impl Restorer<'_> {
    /// Carries out `steps`.
    ///
    /// # Errors
    /// The first that fails; its containers run again, unless that is said too.
    pub async fn carry_out(&self, steps: &[Step]) -> Result<Done, Failed> {
        let mut at = Progressed::default();
        let mut ended = Ok(());
        for step in steps {
            if self.stop.is_cancelled() {
                ended = Err("it was told to stop".to_owned());
            } else {
                self.phase(step);
                ended = self.step(step, &mut at).await;
            }
            if ended.is_err() {
                break;
            }
        }
        // Whatever happened; after the last step there is nothing left to bring back.
        let back = self.bring_back(&mut at).await;
        let why = match (ended, back) {
            (Ok(()), Ok(())) => return Ok(at.done),
            (Err(why), Ok(())) | (Ok(()), Err(why)) => why,
            (Err(why), Err(back)) => format!("{why}; {back}"),
        };
        Err(Failed { why, volume: self.volume.to_owned(), touched: at.touched, safety: at.done.safety })
    }

    fn phase(&self, step: &Step) {
        if !matches!(step, Step::Say(_)) {
            (self.sink)(Progress::Phase { text: step.to_string() });
        }
    }

    async fn step(&self, step: &Step, at: &mut Progressed) -> Result<(), String> {
        match step {
            Step::MakeVolume { name, driver, options, labels } => {
                self.engine.create_volume(name, driver, options, labels).await.map_err(|error| error.to_string())
            }
            Step::Stop(quiet) => {
                self.begin(at, "before anything was changed").await?;
                let Some(journal) = &mut at.journal else { return Err("there is no journal".to_owned()) };
                at.quieted = Some(quiesce(self.engine, &self.runner.docker, &self.runner.program, journal, quiet).await?);
                Ok(())
            }
            Step::Safety { mode, .. } => self.save(mode, at).await,
            Step::Empty { volume } => {
                let path = self.path(at).await?;
                let says =
                    at.done.safety.as_ref().map_or_else(String::new, |safety| format!("; as it was before, {volume} is in {safety}"));
                self.note(at, &format!("emptying the volume{says}")).await?;
                at.touched = true;
                apart(move || placing::empty(&path)).await?.map_err(|error| format!("{volume} cannot be emptied: {error}"))
            }
            Step::Extract { archive, without, bytes, .. } => self.extract(archive, without, *bytes, at).await,
            Step::Place { archive, from, to } => self.place(archive, from, to, at).await,
            Step::Start(_) => self.bring_back(at).await,
            Step::Load { archive, file, database, container } => self.load(archive, file, database, container, at).await,
            Step::Say(text) => {
                at.done.said.push(text.clone());
                Ok(())
            }
        }
    }

    /// Writes down what is begun, if that has not been done.
    async fn begin(&self, at: &mut Progressed, step: &str) -> Result<(), String> {
        if at.journal.is_some() {
            return Ok(());
        }
        let began = Timestamp::now();
        let run = Run::id(began, fastrand::u32(..));
        let target = self.safety.map(|(target, _)| target).unwrap_or_default();
        let entry = Entry::new(&run, began, Task::Save, Some(self.volume), target, &self.reader.repository);
        let entry = Entry { step: format!("restore, {step}"), ..entry };
        at.journal = Some(self.runner.shelf.occupy(entry, None).await?);
        Ok(())
    }

    async fn note(&self, at: &mut Progressed, step: &str) -> Result<(), String> {
        self.begin(at, step).await?;
        let Some(journal) = &mut at.journal else { return Ok(()) };
        let step = format!("restore, {step}");
        journal.change(|entry| entry.step = step).await.map_err(|error| format!("it could not be written down first: {error}"))
    }

    /// Containers run again, the journal goes.
    async fn bring_back(&self, at: &mut Progressed) -> Result<(), String> {
        let (Some(mut journal), quieted) = (at.journal.take(), at.quieted.take()) else { return Ok(()) };
        if let Some(quieted) = quieted {
            // When that fails the journal stays, and with it whoever looks for what is left to be undone.
            quieted.resume(self.engine, &mut journal, true).await?;
        }
        journal.end().await.map_err(|error| format!("the journal cannot be removed: {error}"))
    }

    async fn save(&self, mode: &Mode, at: &mut Progressed) -> Result<(), String> {
        let Some((target, repository)) = self.safety else {
            return Err("no target is configured for a safety archive: name one in backup.targets, or say --no-safety".to_owned());
        };
        let volume = self.engine.volume(self.volume, self.runner.config.volumes.as_deref()).await.map_err(|error| error.to_string())?;
        let volume = volume.ok_or_else(|| format!("the volume {} is gone", self.volume))?;
        let subject = subject(&volume, self.node, self.containers, self.comment, mode.clone(), self.runner.config.timeout);
        let job = Job {
            task: Task::Save,
            volume: Some(self.volume.to_owned()),
            target: target.to_owned(),
            repository: repository.clone(),
            due: Timestamp::now(),
            reason: Reason::Asked,
        };
        let within = at.journal.as_ref().and_then(|journal| journal.entry()).map(|entry| entry.run.clone()).unwrap_or_default();
        let run = self.runner.save_within(&within, &job, &subject, self.sink, self.stop).await;
        match (run.verdict, run.archive) {
            (Verdict::Good | Verdict::Warning, Some(archive)) => {
                at.done.safety = Some(archive);
                Ok(())
            }
            (_, _) => Err(format!("the safety archive could not be made: {}", run.message)),
        }
    }

    /// Where the files of the volume are.
    async fn path(&self, at: &mut Progressed) -> Result<PathBuf, String> {
        if let Some(path) = &at.path {
            return Ok(path.clone());
        }
        let volume = self.engine.volume(self.volume, self.runner.config.volumes.as_deref()).await.map_err(|error| error.to_string())?;
        let path = volume.ok_or_else(|| format!("the volume {} is gone", self.volume))?.path;
        if !path.is_dir() {
            return Err(format!(
                "the files of {} are not at {}; in a container, mount the engine's volumes directory and say where by backup.volumes",
                self.volume,
                path.display()
            ));
        }
        at.path = Some(path.clone());
        Ok(path)
    }

    async fn extract(&self, archive: &str, without: &[String], bytes: u64, at: &mut Progressed) -> Result<(), String> {
        let path = self.path(at).await?;
        let own = path.clone();
        if !apart(move || placing::is_empty(&own)).await?.map_err(|error| format!("{}: {error}", path.display()))? {
            return Err(format!("{} is not empty: somebody writes to it", path.display()));
        }
        let there = path.to_string_lossy().into_owned();
        if is_local(&there) {
            room::free(&there, bytes.saturating_add(SPARE))
                .await
                .map_err(|why| why.replace("backup.min-free wants", "the archive needs"))?;
        }
        at.touched = true;
        let what = Extraction { archive, into: &path, paths: &[], without, flags: true };
        let output = self.reader.extract(&what, self.sink, self.stop).await.map_err(|failure| failure.to_string())?;
        let lost = losses(&output.warnings).join("; ");
        at.done.warnings.extend(output.warnings);
        at.done.more_warnings += output.more_warnings;
        if lost.is_empty() { Ok(()) } else { Err(format!("not everything could be restored: {lost}")) }
    }

    /// One file of the archive to a place in the volume, as the volume's owner has it.
    async fn place(&self, archive: &str, from: &str, to: &str, at: &mut Progressed) -> Result<(), String> {
        let directory = self.path(at).await?;
        let path = directory.join(to);
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut file = tokio::fs::File::create_new(&path).await.map_err(failed)?;
        self.reader.file(archive, from, &mut file, self.stop).await.map_err(|failure| failure.to_string())?;
        file.sync_all().await.map_err(failed)?;
        let facts = std::fs::metadata(&directory).map_err(failed)?;
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::chown(&path, Some(facts.uid()), Some(facts.gid())).map_err(failed)
    }

    async fn load(&self, archive: &str, file: &str, database: &Database, container: &Named, at: &mut Progressed) -> Result<(), String> {
        let known = self.containers.iter().find(|known| known.id == container.id);
        let environment = known.map(|known| known.environment.clone()).unwrap_or_default();
        let load = dump::load(database, &environment).ok_or("nobody knows how it is loaded")?;
        self.ready(container, &load.ready).await?;
        let loader = Loader { engine: self.engine, reader: self.reader, stop: self.stop };
        let (bytes, complaint) = loader.pour(archive, file, database, &container.id, &load.load).await?;
        let (said, ended) = self.run(&container.id, &load.count).await?;
        let count: u64 = said.trim().parse().unwrap_or(0);
        if ended != 0 || count == 0 {
            return Err(format!("{file} was loaded, and nothing is in the database: {complaint}"));
        }
        at.done.said.push(format!("{count} tables or collections are in {} now, of {}", container.name, super::judge::size(bytes)));
        Ok(())
    }

    async fn ready(&self, container: &Named, command: &[String]) -> Result<(), String> {
        let until = tokio::time::Instant::now() + STARTING;
        loop {
            let last = match self.run(&container.id, command).await {
                Ok((_, 0)) => return Ok(()),
                Ok((said, code)) => format!("exit code {code} {said}"),
                Err(error) => error,
            };
            if self.stop.is_cancelled() {
                return Err("it was told to stop".to_owned());
            }
            if tokio::time::Instant::now() > until {
                return Err(format!("the database in {} does not answer: {}", container.name, last.trim()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn run(&self, container: &str, command: &[String]) -> Result<(String, i64), String> {
        let exec = self.engine.exec(container, command, None).await.map_err(|error| error.to_string())?;
        let (output, ended) = exec.collect(MAX_OUTPUT).await.map_err(|error| error.to_string())?;
        Ok((String::from_utf8_lossy(&output).into_owned(), ended.code))
    }
}

/// Streams a dump from an archive into a command in a container.
pub struct Loader<'a> {
    pub engine: &'a Engine,
    pub reader: &'a Reader,
    pub stop: &'a CancellationToken,
}

impl Loader<'_> {
    /// The dump's bytes, and the end of what the command complained of.
    ///
    /// # Errors
    /// borg's or the engine's, the command failed, or it was no whole dump.
    pub async fn pour(
        &self,
        archive: &str,
        file: &str,
        database: &Database,
        container: &str,
        command: &[String],
    ) -> Result<(u64, String), String> {
        let (borg, mut ours) = tokio::io::duplex(PIPE);
        let (theirs, fed) = tokio::io::duplex(PIPE);
        let exec = self.engine.exec_fed(container, command, None, theirs).await.map_err(|error| error.to_string())?;
        let passing = async move {
            let (mut fed, mut passing, mut chunk) = (fed, Passing::new(database), vec![0; PIPE]);
            loop {
                match ours.read(&mut chunk).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => {
                        // An end mark that Redis adds cannot be in a file that was saved: all of it is passed on.
                        _ = passing.push(Bytes::copy_from_slice(&chunk[..length]));
                        // Who reads no more says why by its exit code.
                        _ = tokio::io::AsyncWriteExt::write_all(&mut fed, &chunk[..length]).await;
                    }
                }
            }
            passing
        };
        let reading = async move {
            let mut borg = borg;
            self.reader.file(archive, file, &mut borg, self.stop).await
        };
        let (read, mut passing, ended) = tokio::join!(reading, passing, exec.collect(MAX_OUTPUT));
        read.map_err(|failure| failure.to_string())?;
        passing.finish()?;
        let (_, ended) = ended.map_err(|error| error.to_string())?;
        match ended.code {
            0 => Ok((passing.bytes(), ended.complaint)),
            code => Err(format!("{file} could not be loaded (exit code {code}): {}", ended.complaint)),
        }
    }
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("the work broke off: {error}"))
}
