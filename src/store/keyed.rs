//! The store on this node's disk: a file a key, readable by this user only. Two processes may have it open, as during an upgrade: a
//! lock makes comparing and writing one step. What is damaged is said and set aside, never deleted: somebody may still mend it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::disk::{cut_here, replace, sync_parent};
use super::watch::{Seen, Watcher};
use super::{Change, Entry, Error, MAX_VALUE, Store, Unusable, Version, check_key, permission, seal, unseal};
use crate::diagnostic::Diagnostic;

/// Below the state directory, whose own name others may look into.
const FOLDER: &str = "store";
const LOCK: &str = ".lock";
const EXTENSION: &str = ".skep";
const ASIDE: &str = ".damaged-";
/// Files set aside for one key; the last name is used again.
const MAX_ASIDE: u32 = 20;
/// A value with its first line.
const MAX_FILE: u64 = MAX_VALUE as u64 + 1024;
/// A write takes milliseconds; who holds the lock longer has stopped.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Time, size and file number: what another writing changes.
pub type Stamp = (i64, i64, u64, u64);

/// The directory, and whom to wake when this process wrote.
#[derive(Clone, Debug)]
pub struct Keyed {
    directory: PathBuf,
    wrote: Arc<watch::Sender<()>>,
}

enum Found {
    Nothing,
    Whole(Entry),
    Lost(Unusable),
}

impl Keyed {
    /// The store in the directory `store` below `state`; it is made if it is missing. Blocks; for the start. What was set aside, now or
    /// earlier, and files that are no values come as findings.
    ///
    /// # Errors
    /// A file or directory that others may read, named with the command that puts it right; or the disk's.
    pub fn open(state: &Path) -> Result<(Keyed, Vec<Diagnostic>), Error> {
        let directory = state.join(FOLDER);
        make(&directory).map_err(|error| io_error(&directory, &error))?;
        permission::check_parent(state).map_err(|error| Error::Unavailable(error.to_string()))?;
        permission::check(&directory).map_err(|error| Error::Unavailable(error.to_string()))?;
        let keyed = Keyed { directory, wrote: Arc::new(watch::Sender::new(())) };
        drop(keyed.lock()?);
        // Reads every value, so that damage is known now and not when a certificate is needed.
        let seen = keyed.scan("", &BTreeMap::new())?;
        for folder in seen.folders.keys() {
            // Whoever made it may have ended before it was on the disk.
            sync_parent(folder).map_err(|error| io_error(folder, &error))?;
        }
        let mut findings = Vec::new();
        keyed.strays(&keyed.directory, &mut findings).map_err(|error| io_error(&keyed.directory, &error))?;
        Ok((keyed, findings))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}{EXTENSION}"))
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        check_key(key)?;
        match self.load(key)? {
            Found::Nothing => Ok(None),
            Found::Whole(entry) => Ok(Some(entry)),
            // Looked at again when nobody else can be exchanging or moving it.
            Found::Lost(_) => self.lock().and_then(|_lock| self.current(key)),
        }
    }

    fn write(&self, key: &str, value: &[u8], expected: Option<&Version>) -> Result<Version, Error> {
        check_key(key)?;
        if value.len() > MAX_VALUE {
            return Err(Error::TooLarge { key: key.to_owned(), bytes: value.len() });
        }
        let path = self.path(key);
        let version = unused()?;
        let bytes = seal(key, Some(&version), value).map_err(|error| Error::Unusable { key: key.to_owned(), source: error.into() })?;
        let _lock = self.lock()?;
        self.expect(key, expected)?;
        let folder = path.parent().unwrap_or(&self.directory);
        make(folder).and_then(|()| replace(&path, &bytes)).map_err(|error| io_error(&path, &error))?;
        self.wrote.send_replace(());
        Ok(version)
    }

    fn delete(&self, key: &str, expected: &Version) -> Result<(), Error> {
        check_key(key)?;
        let path = self.path(key);
        let _lock = self.lock()?;
        self.expect(key, Some(expected))?;
        let removed = fs::remove_file(&path).map(|()| cut_here()).and_then(|()| sync_parent(&path));
        removed.map_err(|error| io_error(&path, &error))?;
        self.wrote.send_replace(());
        Ok(())
    }

    /// Under the lock: is `expected` what is there?
    fn expect(&self, key: &str, expected: Option<&Version>) -> Result<(), Error> {
        match self.current(key)?.map(|entry| entry.version).as_ref() == expected {
            true => Ok(()),
            false => Err(Error::Conflict { key: key.to_owned() }),
        }
    }

    /// Under the lock: the value, after setting aside what is none.
    fn current(&self, key: &str) -> Result<Option<Entry>, Error> {
        match self.load(key)? {
            Found::Nothing => Ok(None),
            Found::Whole(entry) => Ok(Some(entry)),
            Found::Lost(why) => {
                let path = self.path(key);
                let aside = set_aside(&path).map_err(|error| io_error(&path, &error))?;
                tracing::error!(file = %path.display(), kept_as = %aside.display(), "a value of the store is not used: {why}");
                Ok(None)
            }
        }
    }

    fn load(&self, key: &str) -> Result<Found, Error> {
        let path = self.path(key);
        let bytes = match File::open(&path).and_then(read_all) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(io_error(&path, &error)),
        };
        match unseal(key, &bytes) {
            Ok((version, body)) => Ok(Found::Whole(Entry { version, value: Zeroizing::new(body.to_vec()) })),
            Err(why) if why.is_lost() => Ok(Found::Lost(why)),
            Err(source) => Err(Error::Unusable { key: key.to_owned(), source }),
        }
    }

    /// The keys that begin with `prefix`. Files with the stamp of `before` are not read again.
    pub(super) fn scan(&self, prefix: &str, before: &BTreeMap<String, (Stamp, Version)>) -> Result<Seen, Error> {
        let mut seen = Seen::default();
        let mut folders = vec![self.directory.clone()];
        while let Some(folder) = folders.pop() {
            let failed = |error: io::Error| io_error(&folder, &error);
            // Before its names are read: what comes in between is found at the next look.
            seen.folders.insert(folder.clone(), fs::metadata(&folder).and_then(|data| data.modified()).map_err(failed)?);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let Some(key) = path.strip_prefix(&self.directory).ok().and_then(Path::to_str) else { continue };
                let Ok(data) = fs::symlink_metadata(&path) else { continue };
                if data.is_dir() {
                    folders.extend(may_begin(prefix, key).then(|| path.clone()));
                    continue;
                }
                let Some(key) = key.strip_suffix(EXTENSION).filter(|key| key.starts_with(prefix) && check_key(key).is_ok()) else {
                    continue;
                };
                let stamp = (data.mtime(), data.mtime_nsec(), data.size(), data.ino());
                let version = match before.get(key).filter(|(known, _)| *known == stamp) {
                    Some((_, version)) => Some(version.clone()),
                    None => self.version(key)?,
                };
                seen.files.extend(version.map(|version| (key.to_owned(), (stamp, version))));
            }
        }
        Ok(seen)
    }

    /// The version of `key`; another Skep's value counts as none, and is said where it is asked for.
    fn version(&self, key: &str) -> Result<Option<Version>, Error> {
        match self.read(key) {
            Err(Error::Unusable { .. }) => Ok(None),
            read => Ok(read?.map(|entry| entry.version)),
        }
    }

    /// Findings about files that hold no value.
    fn strays(&self, folder: &Path, findings: &mut Vec<Diagnostic>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let subject = path.display().to_string();
            if path.is_dir() {
                self.strays(&path, findings)?;
            } else if name.contains(ASIDE) {
                findings.push(
                    Diagnostic::warning("damaged-file", "this value of the store was damaged and has been set aside")
                        .of(subject)
                        .help("what it held is obtained anew where it can be; delete the file when it is not needed any more"),
                );
            } else if name != LOCK && !name.ends_with(EXTENSION) && !name.ends_with(".new") {
                findings.push(Diagnostic::warning("stray-file", "this file is none of the store's").of(subject).help("move it elsewhere"));
            }
        }
        Ok(())
    }

    /// Held until it is dropped, by one process and one thread at a time.
    fn lock(&self) -> Result<File, Error> {
        let path = self.directory.join(LOCK);
        let failed = |error: io::Error| io_error(&path, &error);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = options.map_err(failed)?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Unavailable(format!("{}: another process has held it for {LOCK_WAIT:?}", path.display())));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}

impl Store for Keyed {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        let (keyed, key) = (self.clone(), key.to_owned());
        Box::pin(apart(move || keyed.read(&key)))
    }

    fn put<'a>(&'a self, key: &'a str, value: &'a [u8], expected: Option<&'a Version>) -> BoxFuture<'a, Result<Version, Error>> {
        let (keyed, key, value, expected) = (self.clone(), key.to_owned(), Zeroizing::new(value.to_vec()), expected.cloned());
        Box::pin(apart(move || keyed.write(&key, &value, expected.as_ref())))
    }

    fn remove<'a>(&'a self, key: &'a str, expected: &'a Version) -> BoxFuture<'a, Result<(), Error>> {
        let (keyed, key, expected) = (self.clone(), key.to_owned(), expected.clone());
        Box::pin(apart(move || keyed.delete(&key, &expected)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, Version>, Error>> {
        let (keyed, prefix) = (self.clone(), prefix.to_owned());
        Box::pin(apart(move || {
            let seen = keyed.scan(&prefix, &BTreeMap::new())?;
            Ok(seen.files.into_iter().map(|(key, (_, version))| (key, version)).collect())
        }))
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Change> {
        let watcher = Watcher::new(self.clone(), prefix, self.wrote.subscribe());
        stream::unfold(watcher, async |mut watcher| Some((watcher.next().await, watcher))).boxed()
    }
}

/// Off the threads that serve.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::Unavailable(format!("the store's work broke off: {error}"))))
}

/// A version that no value had: random, so that two processes need not agree.
fn unused() -> Result<Version, Error> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::Unavailable("there is no randomness".into()))?;
    Ok(Version::new(format!("{:016x}", u64::from_ne_bytes(bytes))))
}

/// A directory for this user only, on the disk too.
fn make(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    cut_here();
    sync_parent(directory)
}

/// May keys in `folder` begin with `prefix`?
fn may_begin(prefix: &str, folder: &str) -> bool {
    let inside = format!("{folder}/");
    inside.starts_with(prefix) || prefix.starts_with(&inside)
}

/// All bytes of a file, at most as many as a value may have: what is longer comes cut and is found to be damaged.
fn read_all(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    let size = file.metadata()?.len().min(MAX_FILE);
    // With room for the read that finds the end: what grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64));
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives a file another name, and returns it.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = |count| PathBuf::from(format!("{}{ASIDE}{count}", path.display()));
    let free = (1..MAX_ASIDE).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(MAX_ASIDE));
    fs::rename(path, &free)?;
    sync_parent(path)?;
    Ok(free)
}

fn io_error(path: &Path, error: &io::Error) -> Error {
    Error::Unavailable(format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const KEY: &str = "certificate/a";
    const WAIT: Duration = Duration::from_secs(20);

    /// Ends a writer, as the power would, at the step that its environment says.
    pub(in crate::store) fn cut_here() {
        static REACHED: AtomicU32 = AtomicU32::new(0);
        let cut = std::env::var("SKEP_TEST_CUT").ok().and_then(|text| text.parse().ok());
        if cut == Some(REACHED.fetch_add(1, Ordering::SeqCst)) {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("killed");
        }
    }

    fn store() -> (tempfile::TempDir, Keyed) {
        let directory = tempfile::tempdir().expect("a directory");
        let (keyed, findings) = Keyed::open(directory.path()).expect("a store");
        assert_eq!(findings, []);
        (directory, keyed)
    }

    fn number(keyed: &Keyed, key: &str) -> Option<(u32, Version)> {
        let entry = keyed.read(key).expect("readable")?;
        Some((serde_json::from_slice(&entry.value).expect("a number"), entry.version))
    }

    fn set(keyed: &Keyed, key: &str, value: u32, expected: Option<&Version>) -> Result<Version, Error> {
        keyed.write(key, format!("{value}{}", " ".repeat(5000)).as_bytes(), expected)
    }

    /// Runs [`writer`] in a process of its own.
    fn child(state: &Path, task: &str, cut: Option<u32>) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "store::keyed::tests::writer", "--nocapture"]).env("SKEP_TEST_STORE", state).env("SKEP_TEST_TASK", task);
        command
            .envs(cut.map(|cut| ("SKEP_TEST_CUT", cut.to_string())))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child")
    }

    fn lines(child: &mut Child) -> impl Iterator<Item = u32> + use<> {
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        lines.filter_map(|line| line.expect("text").strip_prefix("wrote ")?.parse().ok())
    }

    /// What the child said last that it had written, before it ended.
    fn acknowledged(child: &mut Child) -> Option<u32> {
        let last = lines(child).last();
        child.wait().expect("ended");
        last
    }

    /// Not a test of its own: the process that the others kill.
    #[test]
    fn writer() {
        let Some(state) = std::env::var_os("SKEP_TEST_STORE") else { return };
        let (keyed, _) = Keyed::open(Path::new(&state)).expect("a store");
        let rounds = match std::env::var("SKEP_TEST_TASK").as_deref() {
            Ok("count") => return (0..100).for_each(|_| count(&keyed)),
            Ok("few") => 3,
            _ => u32::MAX,
        };
        for _ in 0..rounds {
            let now = number(&keyed, KEY);
            let next = now.as_ref().map_or(1, |(value, _)| value + 1);
            set(&keyed, KEY, next, now.map(|now| now.1).as_ref()).expect("written");
            println!("\nwrote {next}");
            let other = set(&keyed, "tickets", next, number(&keyed, "tickets").map(|now| now.1).as_ref()).expect("written");
            keyed.delete("tickets", &other).expect("removed");
        }
    }

    fn count(keyed: &Keyed) {
        let more = || {
            let now = number(keyed, KEY);
            set(keyed, KEY, now.as_ref().map_or(1, |(value, _)| value + 1), now.map(|now| now.1).as_ref())
        };
        while let Err(error) = more() {
            assert!(matches!(error, Error::Conflict { .. }), "{error}");
        }
    }

    /// The store after a crash: opens without a finding, holds what was acknowledged or the value after it, and takes the next one.
    fn assert_sound(state: &Path, acknowledged: Option<u32>, what: &str) {
        let (keyed, findings) = Keyed::open(state).expect(what);
        assert_eq!(findings, [], "{what}");
        let now = number(&keyed, KEY);
        let value = now.as_ref().map(|(value, _)| *value);
        let least = acknowledged.unwrap_or(0);
        assert!(value.unwrap_or(0) == least || value == Some(least + 1), "{what}: {value:?} after {acknowledged:?}");
        let version = set(&keyed, KEY, least + 1, now.map(|now| now.1).as_ref()).expect(what);
        assert_eq!(number(&keyed, KEY), Some((least + 1, version)), "{what}");
        let mode = fs::metadata(keyed.path(KEY)).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_writer_killed_at_any_step_leaves_a_whole_value() {
        let mut cuts = 0;
        for cut in 0.. {
            let directory = tempfile::tempdir().expect("a directory");
            let mut child = child(directory.path(), "few", Some(cut));
            let acknowledged = acknowledged(&mut child);
            assert_sound(directory.path(), acknowledged, &format!("cut {cut}"));
            if child.wait().expect("ended").success() {
                break;
            }
            cuts = cut;
        }
        // Two folders; three times five steps for each of two values, and one of the removal.
        assert!(cuts > 30, "{cuts}");
    }

    #[test]
    fn a_writer_killed_at_random_leaves_a_whole_value() {
        let directory = tempfile::tempdir().expect("a directory");
        for round in 0..30 {
            let mut child = child(directory.path(), "endless", None);
            let mut lines = lines(&mut child);
            let first = lines.next().expect("it writes");
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..40)));
            child.kill().expect("killed");
            let last = lines.last().unwrap_or(first);
            child.wait().expect("ended");
            assert_sound(directory.path(), Some(last), &format!("round {round}"));
        }
    }

    #[test]
    fn two_processes_never_overwrite_each_other() {
        let (directory, keyed) = store();
        let children: Vec<Child> = (0..3).map(|_| child(directory.path(), "count", None)).collect();
        for mut child in children {
            acknowledged(&mut child);
            assert!(child.wait().expect("ended").success());
        }
        assert_eq!(number(&keyed, KEY).map(|now| now.0), Some(300));
    }

    #[tokio::test]
    async fn a_put_or_remove_happens_only_if_nothing_changed() {
        let (_directory, keyed) = store();
        let store: &dyn Store = &keyed;
        assert_eq!(store.get(KEY).await.expect("nothing"), None);
        let one = store.put(KEY, b"1", None).await.expect("created");
        assert!(matches!(store.put(KEY, b"2", None).await, Err(Error::Conflict { .. })), "it is there already");
        let two = store.put(KEY, b"2", Some(&one)).await.expect("replaced");
        assert!(matches!(store.put(KEY, b"3", Some(&one)).await, Err(Error::Conflict { .. })), "an old version");
        assert!(matches!(store.remove(KEY, &one).await, Err(Error::Conflict { .. })), "an old version");
        assert_eq!(*store.get(KEY).await.expect("read").expect("there").value, b"2");
        let other = crate::store::write(store, "account/x", &["text"], None).await.expect("written");
        assert_eq!(crate::store::read::<Vec<String>>(store, "account/x").await.expect("read"), Some((vec!["text".into()], other.clone())));
        assert_eq!(store.list("").await.expect("listed"), [("account/x".to_owned(), other), (KEY.to_owned(), two.clone())].into());
        assert_eq!(store.list("certificate/").await.expect("listed"), [(KEY.to_owned(), two.clone())].into());
        store.remove(KEY, &two).await.expect("removed");
        assert!(matches!(store.remove(KEY, &two).await, Err(Error::Conflict { .. })), "it is gone");
        assert_ne!(store.put(KEY, b"1", None).await.expect("created again"), one);
        let huge = vec![0; MAX_VALUE + 1];
        assert!(matches!(store.put("x", &huge, None).await, Err(Error::TooLarge { .. })));
        store.put("x", &huge[1..], None).await.expect("just small enough");
        assert_eq!(store.get("x").await.expect("read").expect("there").value.len(), MAX_VALUE);
        assert!(matches!(store.put("../x", b"1", None).await, Err(Error::Key { .. })));
    }

    #[tokio::test]
    async fn a_watcher_sees_what_is_there_and_what_anybody_changes() {
        let (directory, keyed) = store();
        let one = set(&keyed, KEY, 1, None).expect("written");
        let mut watch = keyed.watch("certificate/");
        let mut next = async || tokio::time::timeout(WAIT, watch.next()).await.expect("in time").expect("endless");
        let change = |key: &str, version: Option<&Version>| Change { key: key.to_owned(), version: version.cloned() };
        assert_eq!(next().await, change(KEY, Some(&one)));
        // As another process has it.
        let (other, _) = Keyed::open(directory.path()).expect("the same store");
        set(&other, "tickets", 1, None).expect("not asked for");
        let two = set(&other, KEY, 2, Some(&one)).expect("written");
        assert_eq!(next().await, change(KEY, Some(&two)));
        let new = set(&keyed, "certificate/b", 1, None).expect("written");
        assert_eq!(next().await, change("certificate/b", Some(&new)));
        other.delete(KEY, &two).expect("removed");
        assert_eq!(next().await, change(KEY, None));
    }

    #[test]
    fn what_others_may_read_is_refused() {
        for (name, mode, wanted) in [
            ("store", 0o750, "chmod 700"),
            ("store/certificate", 0o701, "chmod 700"),
            ("store/certificate/a.skep", 0o640, "chmod 600"),
            ("store/certificate/a.skep", 0o604, "chmod 600"),
            ("", 0o777, "chmod o-w"),
        ] {
            let (directory, keyed) = store();
            set(&keyed, KEY, 1, None).expect("written");
            let path = match name {
                "" => directory.path().to_owned(),
                _ => directory.path().join(name),
            };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            let error = Keyed::open(directory.path()).expect_err(name).to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains(&format!("{wanted} {}`", path.display())), "{error}");
        }
        let (directory, keyed) = store();
        std::os::unix::fs::symlink("/etc/hostname", keyed.path("tickets")).expect("linked");
        assert!(Keyed::open(directory.path()).expect_err("a link").to_string().contains("symbolic link"));
    }

    #[test]
    fn what_is_damaged_is_set_aside_and_said() {
        let (directory, keyed) = store();
        for round in 1..=2 {
            set(&keyed, KEY, round, None).expect("written");
            let path = keyed.path(KEY);
            let mut bytes = fs::read(&path).expect("bytes");
            bytes.pop();
            fs::write(&path, &bytes).expect("damaged");
            assert_eq!(keyed.read(KEY).expect("readable"), None);
            assert_eq!(fs::read(format!("{}.damaged-{round}", path.display())).expect("kept"), bytes);
        }
        fs::write(directory.path().join("store/notes.txt"), "").expect("written");
        fs::set_permissions(directory.path().join("store/notes.txt"), fs::Permissions::from_mode(0o600)).expect("changed");
        let (_, findings) = Keyed::open(directory.path()).expect("opens all the same");
        let mut codes: Vec<&str> = findings.iter().map(|finding| finding.code.as_str()).collect();
        codes.sort_unstable();
        assert_eq!(codes, ["damaged-file", "damaged-file", "stray-file"]);
    }

    #[test]
    fn what_a_newer_skep_wrote_stays() {
        let (directory, keyed) = store();
        set(&keyed, KEY, 1, None).expect("written");
        let newer = fs::read_to_string(keyed.path(KEY)).expect("text").replacen("\"skep\":1", "\"skep\":2", 1);
        fs::write(keyed.path(KEY), &newer).expect("written");
        let (keyed, _) = Keyed::open(directory.path()).expect("opens");
        assert!(keyed.read(KEY).expect_err("not ours").to_string().contains("written in version 2"));
        assert!(set(&keyed, KEY, 2, None).is_err());
        assert_eq!(fs::read_to_string(keyed.path(KEY)).expect("text"), newer);
    }
}
