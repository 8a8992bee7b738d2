//! The restore drill: the newest archive of a volume is extracted to a scratch place, compared with its own list, and its dump loaded into a
//! container that lives for it. All of it goes again, also what an earlier drill left that died.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use tokio_util::sync::CancellationToken;

use super::archive::Comment;
use super::drill::{Evidence, Found, Hashed, Load, Loaded, Sample, judge};
use super::dump::{self, Passing};
use super::engine::{Engine, Throwaway};
use super::journal::Entry;
use super::listing::{self, Choice};
use super::reader::{Extraction, Reader};
use super::runner::Runner;
use super::{Database, Job, MAX_WARNINGS, Progress, Run, Sink, Stats, Verdict, keys, placing, room};

/// What a scratch directory needs beside the files' bytes.
const SPARE: u64 = 64 << 20;
const PREFIX: &str = "drill-";
const LOCK: &str = "drill.lock";
const CHUNK: usize = 256 << 10;
/// Until a database in a fresh container answers.
const STARTING: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);
const MAX_OUTPUT: usize = 64 << 10;

/// Restores the newest archive of the job's volume on trial, and remembers how that went. Without an engine no dump is loaded.
pub async fn drill(runner: &Runner, engine: Option<&Engine>, job: &Job, node: &str, sink: &Sink, stop: &CancellationToken) -> Run {
    let mut run = runner.begun(job).await;
    let id = run.id.clone();
    let trial = Trial { runner, engine, job, node, sink, stop };
    let limited = tokio::time::timeout(runner.config.timeout, trial.carry_out(&id, &mut run)).await;
    let ended = limited.unwrap_or_else(|_| Err(format!("it took longer than {} s", runner.config.timeout.as_secs())));
    if let Err(why) = ended {
        (run.verdict, run.message) = (Verdict::Failed, why);
    }
    runner.ended(run, stop).await
}

struct Trial<'a> {
    runner: &'a Runner,
    engine: Option<&'a Engine>,
    job: &'a Job,
    node: &'a str,
    sink: &'a Sink,
    stop: &'a CancellationToken,
}

impl Trial<'_> {
    async fn carry_out(&self, id: &str, run: &mut Run) -> Result<(), String> {
        let volume = self.job.volume.as_deref().ok_or("a drill is of one volume")?;
        let passphrase = keys::passphrase(&self.runner.config, &self.runner.state).map_err(|failure| failure.to_string())?;
        let reader = Reader::new(self.runner.borg.clone(), self.job.repository.clone(), Some(passphrase), id.to_owned());
        let root = self.runner.config.scratch.clone().unwrap_or_else(|| self.runner.state.join("backup").join("scratch"));
        let scratch = apart(move || Scratch::make(&root)).await??;
        self.sweep().await;
        let job = self.job;
        let entry = Entry::new(id, run.began, job.task, Some(volume), &job.target, &job.repository);
        let entry = Entry { step: "drill".to_owned(), ..entry };
        let journal = self.runner.shelf.begin(entry).await.map_err(|error| format!("it could not be written down: {error}"))?;
        let ended = self.compare(volume, &reader, &scratch, run).await;
        let removed = apart(move || scratch.remove()).await?;
        if let Err(error) = journal.end().await {
            tracing::warn!("the journal of a drill cannot be removed: {error}");
        }
        ended?;
        removed.map_err(|error| format!("the restored files cannot be removed: {error}"))
    }

    async fn compare(&self, volume: &str, reader: &Reader, scratch: &Scratch, run: &mut Run) -> Result<(), String> {
        self.phase(format!("looking for the newest archive of {volume}"));
        let archives = reader.archives(self.stop).await.map_err(|failure| failure.to_string())?;
        let (written, node) = listing::written(volume, self.node);
        let own: Vec<_> = archives.into_iter().filter(|archive| archive.node.as_ref() == Some(&node)).collect();
        let archive = listing::choose(&own, Some(&written), &Choice::Latest).map_err(|finding| finding.message)?.name.clone();
        run.archive = Some(archive.clone());

        self.phase(format!("reading the list of {archive}"));
        let mut sample = Sample::new(fastrand::u64(..));
        let mut dumps = Vec::new();
        let mut each = |entry: &super::report::FileEntry| {
            if entry.kind == "-" && !entry.mode.starts_with('h') {
                sample.push(&entry.path, entry.size);
            }
            if entry.path.starts_with("dump/") {
                dumps.push(entry.path.clone());
                dumps.truncate(16);
            }
        };
        let contents = reader.contents(&archive, &[], &mut each, self.stop).await.map_err(|error| error.to_string())?;
        contents.check().map_err(|finding| finding.message)?;
        let comment = reader.comment(&archive, self.stop).await.map_err(|failure| failure.to_string())?;
        let place = scratch.place.to_string_lossy().into_owned();
        let needed = contents.bytes.saturating_add(SPARE);
        room::free(&place, needed).await.map_err(|why| why.replace("backup.min-free wants", "the archive needs"))?;

        self.phase(format!("extracting {archive} on trial"));
        let what = Extraction { archive: &archive, into: &scratch.place, paths: &[], without: &[], flags: false };
        let output = reader.extract(&what, self.sink, self.stop).await.map_err(|failure| failure.to_string())?;
        let directory = scratch.place.clone();
        let count = apart(move || placing::count(&directory)).await?.map_err(|error| format!("{place}: {error}"))?;

        self.phase(format!("comparing {} files of {archive}", sample.paths.len()));
        let database =
            comment.as_ref().and_then(Comment::database).filter(|database| dumps.iter().any(|path| path == dump::name(database)));
        let evidence = Evidence {
            found: Found { named: count.named, symlinks: count.symlinks, bytes: count.bytes },
            hashed: self.hashed(reader, &archive, sample, &scratch.place).await?,
            dump: match (database, &comment) {
                (Some(database), Some(comment)) => Some(self.dump(database, comment, &scratch.place).await?),
                _ => None,
            },
            warnings: output.warnings,
        };
        (run.verdict, run.message) = judge(&contents, &evidence);
        run.stats = Stats { files: count.named, original: count.bytes, ..Stats::default() };
        run.warnings = evidence.warnings;
        run.warnings.truncate(MAX_WARNINGS);
        run.more_warnings = output.more_warnings;
        Ok(())
    }

    fn phase(&self, text: String) {
        (self.sink)(Progress::Phase { text });
    }

    /// Containers that an earlier drill left. Nobody else drills: we hold the lock.
    async fn sweep(&self) {
        let Some(engine) = self.engine else { return };
        match engine.throwaways().await {
            Ok(left) => {
                for container in left {
                    if let Err(error) = engine.remove(&container).await {
                        tracing::warn!("a container of an earlier drill is left: {error}");
                    }
                }
            }
            Err(error) => tracing::warn!("containers of earlier drills cannot be looked for: {error}"),
        }
    }

    async fn hashed(&self, reader: &Reader, archive: &str, sample: Sample, place: &Path) -> Result<Vec<Hashed>, String> {
        if sample.paths.is_empty() {
            return Ok(Vec::new());
        }
        let archived = reader.hashes(archive, &sample.paths, self.stop).await.map_err(|failure| failure.to_string())?;
        let archived: std::collections::BTreeMap<String, String> =
            archived.into_iter().filter(|entry| !entry.sha256.is_empty()).map(|entry| (entry.path, entry.sha256)).collect();
        let place = place.to_owned();
        apart(move || {
            let hashed = sample.paths.into_iter().map(|path| {
                let extracted = sha256(&place.join(&path)).ok();
                Hashed { archived: archived.get(&path).cloned(), extracted, path }
            });
            hashed.collect()
        })
        .await
    }

    async fn dump(&self, database: &Database, comment: &Comment, place: &Path) -> Result<Loaded, String> {
        let path = place.join(dump::name(database));
        let (own, file) = (database.clone(), path.clone());
        let whole = apart(move || whole(&own, &file)).await?;
        let load = match &whole {
            Ok(_) => self.load(database, comment, &path).await,
            Err(_) => Load::Not("it is not whole".to_owned()),
        };
        Ok(Loaded { database: database.clone(), whole, load })
    }

    async fn load(&self, database: &Database, comment: &Comment, path: &Path) -> Load {
        let Some(how) = dump::load(database, &Default::default()) else {
            return Load::Not("only its owner knows how".to_owned());
        };
        let Some(engine) = self.engine else { return Load::Not("there is no engine".to_owned()) };
        let image = match image(engine, database, comment).await {
            Ok(Some(image)) => image,
            Ok(None) => return Load::Not("its image is not on this node".to_owned()),
            Err(error) => return Load::Not(error),
        };
        self.phase(format!("loading the {} dump into a container of {image}", dump::title(database)));
        let wanted = Throwaway { image, environment: how.environment.clone(), ..Throwaway::default() };
        let container = match engine.throwaway(&wanted).await {
            Ok(container) => container,
            Err(error) => return Load::Not(error.to_string()),
        };
        let loaded = loaded(engine, &container, &how, path, self.stop).await;
        if let Err(error) = engine.remove(&container).await {
            tracing::warn!("the container of a drill cannot be removed: {error}");
        }
        loaded
    }
}

/// The first image of the volume's containers that is here; of several the one that sounds like the database.
async fn image(engine: &Engine, database: &Database, comment: &Comment) -> Result<Option<String>, String> {
    let title = dump::title(database).to_lowercase();
    let mut names: Vec<&String> = comment.images.keys().chain(comment.tags.keys()).collect();
    names.dedup();
    let sounds = |name: &&String| comment.tags.get(*name).is_some_and(|tag| tag.to_lowercase().contains(title.trim_end_matches("ql")));
    names.sort_by_key(|name| !sounds(name));
    for name in names {
        for image in comment.images.get(name).into_iter().chain(comment.tags.get(name)).filter(|image| !image.is_empty()) {
            if engine.has_image(image).await.map_err(|error| error.to_string())? {
                return Ok(Some(image.clone()));
            }
        }
    }
    Ok(None)
}

async fn loaded(engine: &Engine, container: &str, how: &dump::Load, path: &Path, stop: &CancellationToken) -> Load {
    let until = tokio::time::Instant::now() + STARTING;
    loop {
        let ended = run(engine, container, &how.ready).await;
        if matches!(ended, Ok((_, 0))) {
            break;
        }
        if stop.is_cancelled()
            || tokio::time::Instant::now() > until
            || !matches!(engine.state(container).await, Ok(Some(state)) if state == "running")
        {
            let log = engine.logs(container, 5).await.unwrap_or_default();
            return Load::Failed(format!("the database does not answer in a fresh container: {}", log.trim()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) => return Load::Failed(error.to_string()),
    };
    let poured = async {
        let exec = engine.exec_fed(container, &how.load, None, file).await?;
        exec.collect(MAX_OUTPUT).await
    };
    match poured.await {
        Ok((_, ended)) if ended.code == 0 => {}
        Ok((_, ended)) => return Load::Failed(format!("exit code {}: {}", ended.code, ended.complaint)),
        Err(error) => return Load::Failed(error.to_string()),
    }
    match run(engine, container, &how.count).await {
        Ok((text, 0)) => text.trim().parse().map_or_else(|_| Load::Failed("nobody can say what is in it".to_owned()), Load::Counted),
        Ok((text, code)) => Load::Failed(format!("it cannot be asked: exit code {code} {}", text.trim())),
        Err(error) => Load::Failed(error),
    }
}

async fn run(engine: &Engine, container: &str, command: &[String]) -> Result<(String, i64), String> {
    let exec = engine.exec(container, command, None).await.map_err(|error| error.to_string())?;
    let (output, ended) = exec.collect(MAX_OUTPUT).await.map_err(|error| error.to_string())?;
    Ok((String::from_utf8_lossy(&output).into_owned(), ended.code))
}

/// Is it a whole dump? Its bytes.
fn whole(database: &Database, path: &Path) -> Result<u64, String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let (mut passing, mut chunk) = (Passing::new(database), vec![0; CHUNK]);
    loop {
        match file.read(&mut chunk).map_err(failed)? {
            0 => break,
            length => _ = passing.push(Bytes::copy_from_slice(&chunk[..length])),
        }
    }
    passing.finish()?;
    Ok(passing.bytes())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()).open(path)?;
    let (mut context, mut chunk) = (digest::Context::new(&digest::SHA256), vec![0; CHUNK]);
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            length => context.update(&chunk[..length]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A directory for one drill, and the right to be the only one.
struct Scratch {
    /// What is extracted lies here.
    place: PathBuf,
    outer: PathBuf,
    _lock: File,
}

impl Scratch {
    fn make(root: &Path) -> Result<Scratch, String> {
        let failed = |error: io::Error| format!("the scratch place {} cannot be used: {error}", root.display());
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(root.join(LOCK)).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| "another drill goes on".to_owned())?;
        for left in fs::read_dir(root).map_err(failed)? {
            let left = left.map_err(failed)?;
            if left.file_name().to_string_lossy().starts_with(PREFIX) && left.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir_all(left.path()).map_err(failed)?;
            }
        }
        // Nobody else looks into what is restored, whatever modes it has.
        let outer = root.join(format!("{PREFIX}{:08x}", fastrand::u32(..)));
        DirBuilder::new().mode(0o700).create(&outer).map_err(failed)?;
        let place = outer.join("x");
        DirBuilder::new().mode(0o700).create(&place).map_err(failed)?;
        Ok(Scratch { place, outer, _lock: lock })
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.outer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!("{} is left of a drill: {error}", self.outer.display());
        }
    }
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| format!("the work broke off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_alone_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("drill-dead/x/y")).unwrap();
        fs::write(root.path().join("mine"), "").unwrap();
        let scratch = Scratch::make(root.path()).unwrap();
        assert!(!root.path().join("drill-dead").exists() && root.path().join("mine").exists());
        assert_eq!(Scratch::make(root.path()).err().as_deref(), Some("another drill goes on"));
        fs::write(scratch.place.join("file"), "hello").unwrap();
        assert_eq!(sha256(&scratch.place.join("file")).unwrap(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        drop(scratch);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "the lock and what is not ours");
        drop(Scratch::make(root.path()).unwrap());
    }

    #[test]
    fn a_dump_that_breaks_off_is_seen() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("dump");
        fs::write(&path, "CREATE TABLE a();\n-- PostgreSQL database cluster dump complete\n").unwrap();
        assert!(whole(&Database::Postgres, &path).is_ok());
        fs::write(&path, "CREATE TABLE a();\n").unwrap();
        assert!(whole(&Database::Postgres, &path).unwrap_err().contains("breaks off"));
    }
}
