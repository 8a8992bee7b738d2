//! What backups remember: how runs went (in the store, for everybody), and what is being done right now (journals, files of this node that
//! a lock tells living from dead).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::journal::{Entry, Found, in_the_way, line, read};
use super::{MAX_WARNINGS, Repository, Run, Runs, Series, SeriesKey};
use crate::store::{self, Store, Version};

const RUNS: &str = "backup/runs/";
const CONFIRMED: &str = "backup/confirmed";
const EXTENSION: &str = "journal";
/// A journal that was being made when its process died.
const NEW: &str = "new";
const DAMAGED: &str = "damaged";
/// A journal has a line for each of a handful of steps.
const MAX_JOURNAL: u64 = 1 << 20;
/// A new journal that is older than this has nobody who makes it.
const MAKING: Duration = Duration::from_secs(3600);
/// Tries to note something while others do too.
const TRIES: u32 = 20;
/// Runs that keep all their warnings; older ones keep a few, so that a series has an end.
const TALKATIVE: usize = 5;
const FEW: usize = 3;
const MAX_TEXT: usize = 500;

/// Why something could not be remembered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the journal has no text: {0}")]
    Text(#[from] serde_json::Error),
    #[error("the work broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// The state directory's part of it, and the store.
#[derive(Clone, Debug)]
pub struct Shelf {
    directory: PathBuf,
    store: Arc<dyn Store>,
}

/// The journal of one run, ours as long as this lives.
#[derive(Debug)]
pub struct Journal {
    file: Arc<File>,
    path: PathBuf,
    /// Of whole lines.
    length: u64,
    entry: Option<Entry>,
}

/// The journal of a run whose process is dead. Nobody else undoes it as long as this lives.
#[derive(Debug)]
pub struct Dead {
    pub found: Found,
    /// Since it was written.
    pub age: Duration,
    journal: Journal,
}

/// What was found where journals are.
#[derive(Debug, Default)]
pub struct Journals {
    pub dead: Vec<Dead>,
    /// Of runs that go on, in this process or another.
    pub living: Vec<Entry>,
    /// What could not be read, as sentences.
    pub findings: Vec<String>,
}

impl Shelf {
    /// Makes the directories below `state` that are missing.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(state: &Path, store: Arc<dyn Store>) -> Result<Shelf, Error> {
        let directory = state.join("backup").join("journal");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.and_then(|()| sync_parent(&directory)).map_err(|source| Error::Io { path: directory.clone(), source })?;
        Ok(Shelf { directory, store })
    }

    /// All that is remembered of how runs went. What cannot be read is said, and counts as never run.
    ///
    /// # Errors
    /// The store's.
    pub async fn runs(&self) -> Result<Runs, Error> {
        let mut runs = Runs::new();
        for key in self.store.list(RUNS).await?.into_keys() {
            match store::read::<(SeriesKey, Series)>(&*self.store, &key).await {
                Ok(Some(((key, series), _))) => _ = runs.insert(key, series),
                Ok(None) => {}
                Err(store::Error::Unusable { key, source }) => {
                    tracing::error!(key, "what is remembered of some backups is not used: {source}")
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(runs)
    }

    /// Begins a journal, unless another run works on the same volume. It is written before that is looked at, so that of two which begin
    /// at once the later one sees the other. `within` is the restore that the run is a part of.
    ///
    /// # Errors
    /// Nothing may be done; a sentence.
    pub async fn occupy(&self, entry: Entry, within: Option<&str>) -> Result<Journal, String> {
        let nothing = |error: Error| format!("nothing was done, as it could not be written down first: {error}");
        let own = entry.clone();
        let journal = self.begin(entry).await.map_err(nothing)?;
        let living = self.journals().await.map_err(nothing)?.living;
        let Some(other) = in_the_way(&own, &living, within) else { return Ok(journal) };
        let why = format!(
            "nothing was done: the run {} works on the same volume since {}",
            other.run,
            other.began.strftime("%Y-%m-%d %H:%M:%S UTC")
        );
        journal.end().await.map_err(nothing)?;
        Err(why)
    }

    /// Remembers how a run went.
    ///
    /// # Errors
    /// The store's.
    pub async fn note(&self, run: Run) -> Result<(), Error> {
        let own = run.key();
        let name = name(&own)?;
        for _ in 0..TRIES {
            let known: Option<((SeriesKey, Series), Version)> = store::read(&*self.store, &name).await?;
            let (series, version) = known.map_or_else(Default::default, |((_, series), version)| (series, Some(version)));
            let series = slim(series.with(run.clone()));
            match store::write(&*self.store, &name, &(&own, &series), version.as_ref()).await {
                Err(store::Error::Conflict { .. }) => {}
                done => return done.map(drop).map_err(Error::from),
            }
        }
        Err(store::Error::Conflict { key: name }.into())
    }

    /// The repositories whose key somebody said they keep elsewhere.
    ///
    /// # Errors
    /// The store's.
    pub async fn confirmed(&self) -> Result<BTreeSet<Repository>, Error> {
        let known: Option<(BTreeSet<Repository>, _)> = store::read(&*self.store, CONFIRMED).await?;
        Ok(known.map(|(all, _)| all).unwrap_or_default())
    }

    /// Somebody keeps the key of `repository` elsewhere.
    ///
    /// # Errors
    /// The store's.
    pub async fn confirm(&self, repository: &Repository) -> Result<(), Error> {
        for _ in 0..TRIES {
            let known: Option<(BTreeSet<Repository>, Version)> = store::read(&*self.store, CONFIRMED).await?;
            let (mut all, version) = known.map_or_else(Default::default, |(all, version)| (all, Some(version)));
            if !all.insert(repository.clone()) {
                return Ok(());
            }
            match store::write(&*self.store, CONFIRMED, &all, version.as_ref()).await {
                Err(store::Error::Conflict { .. }) => {}
                done => return done.map(drop).map_err(Error::from),
            }
        }
        Err(store::Error::Conflict { key: CONFIRMED.into() }.into())
    }

    /// Writes down that a run begins. Once this returns, the entry survives a crash, and [`Shelf::journals`] knows the run to live as long
    /// as the journal does.
    ///
    /// # Errors
    /// The disk's: nothing may be done to a container then.
    pub async fn begin(&self, entry: Entry) -> Result<Journal, Error> {
        let directory = self.directory.clone();
        apart(move || begin(&directory, entry)).await
    }

    /// All journals of this node: whose holders live, and whose are dead.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn journals(&self) -> Result<Journals, Error> {
        let directory = self.directory.clone();
        apart(move || journals(&directory)).await
    }

    /// Journals whose runs are dead.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn dead(&self) -> Result<Vec<Dead>, Error> {
        Ok(self.journals().await?.dead)
    }
}

impl Journal {
    /// What stands in it; `None` only for one of a dead run that cannot be read.
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// Writes down what changed. Once this returns it survives a crash; until then the old entry does.
    ///
    /// # Errors
    /// The disk's: what was to be done must not be done then.
    pub async fn change(&mut self, change: impl FnOnce(&mut Entry)) -> Result<(), Error> {
        let Some(mut entry) = self.entry.clone() else { return Ok(()) };
        change(&mut entry);
        let text = line(&entry)?;
        let (file, path, at, length) = (self.file.clone(), self.path.clone(), self.length, text.len() as u64);
        apart(move || {
            let written = file.write_all_at(&text, at).and_then(|()| file.sync_data());
            if written.is_err() {
                // Half a line would spoil the next one.
                _ = file.set_len(at);
            }
            written.map_err(|source| Error::Io { path, source })
        })
        .await?;
        self.length += length;
        self.entry = Some(entry);
        Ok(())
    }

    /// Everything is as it was: the journal goes.
    ///
    /// # Errors
    /// The disk's.
    pub async fn end(self) -> Result<(), Error> {
        apart(move || {
            let removed = fs::remove_file(&self.path).and_then(|()| sync_parent(&self.path));
            removed.map_err(|source| Error::Io { path: self.path.clone(), source })
        })
        .await
    }
}

impl Dead {
    /// All is undone. A damaged journal is kept under another name.
    ///
    /// # Errors
    /// The disk's.
    pub async fn forget(self) -> Result<(), Error> {
        if !self.found.is_damaged {
            return self.journal.end().await;
        }
        apart(move || {
            let path = &self.journal.path;
            let moved = fs::rename(path, path.with_extension(DAMAGED)).and_then(|()| sync_parent(path));
            moved.map_err(|source| Error::Io { path: path.clone(), source })
        })
        .await
    }

    /// The containers are back; something else is left to be undone later.
    ///
    /// # Errors
    /// The disk's.
    pub async fn brought_back(&mut self) -> Result<(), Error> {
        let change = |entry: &mut Entry| {
            entry.paused.clear();
            entry.stopped.clear();
        };
        if let Some(entry) = &mut self.found.entry {
            change(entry);
        }
        self.journal.change(change).await
    }
}

fn begin(directory: &Path, entry: Entry) -> Result<Journal, Error> {
    let path = directory.join(format!("{}.{EXTENSION}", entry.run));
    let new = path.with_extension(NEW);
    let text = line(&entry)?;
    let made = || {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        // Held before the file has the name by which others look for it.
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_parent(&path)?;
        Ok(file)
    };
    match made() {
        Ok(file) => Ok(Journal { file: Arc::new(file), path, length: text.len() as u64, entry: Some(entry) }),
        Err(source) => {
            _ = fs::remove_file(&new);
            Err(Error::Io { path, source })
        }
    }
}

fn journals(directory: &Path) -> Result<Journals, Error> {
    let failed = |source| Error::Io { path: directory.to_owned(), source };
    let mut all = Journals::default();
    for listed in fs::read_dir(directory).map_err(failed)? {
        let path = listed.map_err(failed)?.path();
        let looked = match path.extension().and_then(|extension| extension.to_str()) {
            Some(EXTENSION) => look(&path, &mut all),
            Some(NEW) => sweep(&path),
            _ => Ok(()),
        };
        match looked {
            // Its run ended between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => all.findings.push(format!("the journal {} cannot be read: {error}", path.display())),
            Ok(()) => {}
        }
    }
    all.dead.sort_by(|one, other| one.journal.path.cmp(&other.journal.path));
    Ok(all)
}

fn look(path: &Path, all: &mut Journals) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let is_dead = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(error) => return Err(error.into()),
    };
    if file.metadata()?.nlink() == 0 {
        return Ok(()); // its run ended, or somebody else undid it, before we had the lock
    }
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    let mut bytes = Vec::new();
    (&file).take(MAX_JOURNAL).read_to_end(&mut bytes)?;
    let found = read(&bytes);
    if !is_dead {
        all.living.extend(found.entry);
        return Ok(());
    }
    if found.is_damaged {
        let kept = path.with_extension(DAMAGED);
        all.findings.push(format!(
            "the journal {} is damaged; containers that it names are looked after, then it is kept as {}",
            path.display(),
            kept.display()
        ));
    }
    // What comes after the last whole line is none.
    let length = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place as u64 + 1);
    file.set_len(if found.is_damaged { bytes.len() as u64 } else { length })?;
    let journal = Journal { file: Arc::new(file), path: path.to_owned(), length, entry: found.entry.clone() };
    all.dead.push(Dead { found, age, journal });
    Ok(())
}

/// A journal that never got its name: nothing was done in it.
fn sweep(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    if age > MAKING && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Keys have no room for names of volumes.
fn name(key: &SeriesKey) -> Result<String, Error> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &serde_json::to_vec(key)?);
    Ok(digest.as_ref()[..16].iter().fold(RUNS.to_owned(), |name, byte| format!("{name}{byte:02x}")))
}

/// Within what a value of the store may have.
fn slim(mut series: Series) -> Series {
    let talkative = series.runs.len().saturating_sub(TALKATIVE);
    for (index, run) in series.runs.iter_mut().enumerate() {
        shorten(run, if index < talkative { FEW } else { MAX_WARNINGS });
    }
    if let Some(run) = &mut series.success {
        shorten(run, FEW);
    }
    series
}

fn shorten(run: &mut Run, warnings: usize) {
    let surplus = run.warnings.len().saturating_sub(warnings);
    run.more_warnings += surplus as u64;
    run.warnings.truncate(warnings);
    run.warnings.iter_mut().for_each(|text| cut(text, MAX_TEXT));
    cut(&mut run.message, 4 * MAX_TEXT);
}

fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(" ...");
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Off the threads that serve.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::journal::tests::entry;
    use super::*;
    use crate::backup::{Reason, Stats, Task, Verdict};
    use crate::store::keyed::Keyed;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let (keyed, _) = Keyed::open(directory.path()).unwrap();
        let shelf = Shelf::open(directory.path(), Arc::new(keyed)).unwrap();
        (directory, shelf)
    }

    fn run(volume: &str, warnings: usize) -> Run {
        let repository = Repository { location: "/srv/b/n".into(), name: "n".into() };
        Run {
            id: String::new(),
            task: Task::Save,
            volume: Some(volume.into()),
            target: "t".into(),
            repository,
            archive: None,
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            verdict: Verdict::Good,
            message: String::new(),
            warnings: vec!["ü".repeat(2000); warnings],
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason: Reason::Asked,
        }
    }

    #[tokio::test]
    async fn runs_are_remembered_by_volume_and_bounded() {
        let (_directory, shelf) = shelf();
        for _ in 0..60 {
            shelf.note(run("Shop Däta", 100)).await.unwrap();
        }
        shelf.note(run("other", 0)).await.unwrap();
        let runs = shelf.runs().await.unwrap();
        assert_eq!(runs.len(), 2);
        let series = &runs[&run("Shop Däta", 0).key()];
        assert_eq!((series.runs.len(), series.runs[0].warnings.len(), series.runs[0].more_warnings), (50, 3, 97));
        assert_eq!(series.runs[49].warnings.len(), 100);
    }

    #[tokio::test]
    async fn two_that_note_at_once_both_are_remembered() {
        let (_directory, shelf) = shelf();
        let noted = futures_util::future::join_all((0..8).map(|_| shelf.note(run("v", 0)))).await;
        assert!(noted.iter().all(Result::is_ok), "{noted:?}");
        assert_eq!(shelf.runs().await.unwrap()[&run("v", 0).key()].runs.len(), 8);
    }

    #[tokio::test]
    async fn confirmations_stay() {
        let (_directory, shelf) = shelf();
        let repository = run("v", 0).repository;
        shelf.confirm(&repository).await.unwrap();
        shelf.confirm(&repository).await.unwrap();
        assert_eq!(shelf.confirmed().await.unwrap(), BTreeSet::from([repository]));
    }

    #[tokio::test]
    async fn a_journal_tells_the_living_from_the_dead() {
        let (_directory, shelf) = shelf();
        let mut journal = shelf.begin(entry("1")).await.unwrap();
        journal.change(|entry| entry.paused = vec!["c".into()]).await.unwrap();
        let all = shelf.journals().await.unwrap();
        assert_eq!((all.dead.len(), all.living[0].paused.len(), all.findings.len()), (0, 1, 0));
        // What a process leaves that is killed.
        drop(journal);
        let mut dead = shelf.dead().await.unwrap();
        assert_eq!(dead[0].found.entry.as_ref().unwrap().paused, ["c"]);
        assert!(shelf.dead().await.unwrap().is_empty(), "somebody undoes it");
        dead[0].brought_back().await.unwrap();
        drop(dead);
        let dead = shelf.dead().await.unwrap().remove(0);
        assert!(dead.found.entry.as_ref().unwrap().paused.is_empty() && !dead.found.is_damaged);
        dead.forget().await.unwrap();
        assert!(shelf.dead().await.unwrap().is_empty());
        assert_eq!(fs::read_dir(&shelf.directory).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_damaged_journal_is_said_and_kept() {
        let (_directory, shelf) = shelf();
        let container = "a".repeat(64);
        fs::write(shelf.directory.join("1.journal"), format!("what {container} is this\n")).unwrap();
        let mut all = shelf.journals().await.unwrap();
        assert!(all.findings[0].contains("is damaged"), "{all:?}");
        let dead = all.dead.remove(0);
        assert!(dead.found.named.contains(&container));
        dead.forget().await.unwrap();
        assert!(shelf.directory.join("1.damaged").exists());
        assert!(shelf.journals().await.unwrap().findings.is_empty());
    }

    #[tokio::test]
    async fn a_torn_end_does_not_spoil_what_is_written_after_it() {
        let (_directory, shelf) = shelf();
        drop(shelf.begin(entry("1")).await.unwrap());
        let path = shelf.directory.join("1.journal");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"0123 {\"run").unwrap();
        let mut dead = shelf.dead().await.unwrap().remove(0);
        dead.brought_back().await.unwrap();
        drop(dead);
        assert!(!shelf.dead().await.unwrap()[0].found.is_damaged);
    }
}
