//! The file of users on the disk: read, watched for changes, asked, and written anew. What it says is decided by `auth::users`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::directory::{Directory, Unavailable};
use super::hashing::Hashing;
use super::identity::{Identity, Password};
use super::users::{self, MAX_BYTES, Users};
use crate::diagnostic::{Diagnostic, render};

/// How often the file is looked at; one stat call.
const LOOK: Duration = Duration::from_secs(1);
/// Looks for which the file may go on changing before it is read all the same.
const SETTLE: u32 = 5;
const EVERYBODY: u32 = 0o007;

/// What a change is told by: time, its nanoseconds, size, file number and mode. `None`: no file.
type Stamp = Option<(i64, i64, u64, u64, u32)>;

/// What the file said when it was last read.
#[derive(Debug)]
pub struct Found {
    /// Or why nobody is known: a sentence.
    pub users: Result<Arc<Users>, String>,
    pub findings: Vec<Diagnostic>,
}

/// The file of users as a directory.
#[derive(Debug)]
pub struct UsersFile {
    path: PathBuf,
    found: watch::Sender<Arc<Found>>,
    hashing: Hashing,
}

impl UsersFile {
    /// Reads the file at `path`. One that cannot be read is no error: nobody can sign in until it can.
    pub async fn open(path: PathBuf, hashing: Hashing) -> (Arc<UsersFile>, Follower) {
        let (found, stamp) = look(path.clone()).await;
        tell(&path, &found);
        let file = Arc::new(UsersFile { path, found: watch::Sender::new(Arc::new(found)), hashing });
        (file.clone(), Follower { file, read: stamp })
    }

    /// What the file says, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Found>> {
        self.found.subscribe()
    }

    fn users(&self) -> Result<Arc<Users>, Unavailable> {
        self.found.borrow().users.clone().map_err(Unavailable)
    }
}

impl Directory for UsersFile {
    fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            let users = self.users()?;
            let (user, password) = (user.to_owned(), password.clone());
            self.hashing.run(move || users.verify(&user, &password)).await
        }
        .boxed()
    }

    fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        let found = self.users().map(|users| users.get(user).map(|user| user.identity.clone()));
        std::future::ready(found).boxed()
    }

    fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
        std::future::ready(self.users().map(|users| users.known(groups))).boxed()
    }
}

/// Takes up changes of the file.
#[derive(Debug)]
pub struct Follower {
    file: Arc<UsersFile>,
    read: Stamp,
}

impl Follower {
    /// Looks at the file every second, without end. A change is taken up once it is whole: when the file is the same for two looks.
    pub async fn run(mut self) {
        let (mut seen, mut unsettled) = (self.read, 0);
        loop {
            tokio::time::sleep(LOOK).await;
            let path = self.file.path.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || stamp(&path)).await else { continue };
            let settled = now == seen || unsettled >= SETTLE;
            seen = now;
            if now == self.read {
                unsettled = 0;
                continue;
            }
            if !settled {
                unsettled += 1;
                continue;
            }
            let (found, stamp) = look(self.file.path.clone()).await;
            tell(&self.file.path, &found);
            (self.read, unsettled) = (stamp, 0);
            self.file.found.send_replace(Arc::new(found));
        }
    }
}

/// One line of the log for each reading, and a warning with what is wrong with it.
fn tell(path: &Path, found: &Found) {
    match &found.users {
        Ok(users) => tracing::info!(path = %path.display(), users = users.len(), "the file of users was read"),
        Err(why) => tracing::error!(path = %path.display(), "nobody in the file of users can sign in: {why}"),
    }
    if !found.findings.is_empty() {
        tracing::warn!("the file of users:\n{}", render(&found.findings, false).trim_end());
    }
}

async fn look(path: PathBuf) -> (Found, Stamp) {
    // The stamp is of before the reading, so that no change falls between.
    let work = move || {
        let stamp = stamp(&path);
        (read(&path), stamp)
    };
    let broken = || Found { users: Err("reading it broke off".to_owned()), findings: Vec::new() };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| (broken(), None))
}

fn stamp(path: &Path) -> Stamp {
    fs::metadata(path).ok().map(|data| (data.mtime(), data.mtime_nsec(), data.size(), data.ino(), data.mode()))
}

/// What the file at `path` says now.
pub fn read(path: &Path) -> Found {
    let name = path.display().to_string();
    let text = match text_of(path) {
        Ok(text) => text,
        Err(error) => {
            let why = format!("{name} cannot be read: {error}");
            let finding = Diagnostic::error("unreadable-users", why.clone()).of("auth.users");
            return Found { users: Err(why), findings: vec![finding.help("make it with `skep user add NAME`, readable by Skep")] };
        }
    };
    let (users, mut findings) = users::parse(&name, &text);
    if let Some(mode) = fs::metadata(path).ok().map(|data| data.mode() & 0o777).filter(|mode| mode & EVERYBODY != 0) {
        let message = format!("everybody on this machine can read it or write to it (mode {mode:o}), and guess passwords at leisure");
        findings.push(Diagnostic::warning("exposed-users", message).of(name.clone()).help(format!("chmod 600 {name}")));
    }
    Found { users: Ok(Arc::new(users)), findings }
}

/// The text of the file. It holds hashes, so it is wiped when it is dropped.
///
/// # Errors
/// There is no such file, it is too large, or it is no text.
pub fn text_of(path: &Path) -> io::Result<Zeroizing<String>> {
    // Before it is opened: a pipe would wait for whoever writes.
    let data = fs::metadata(path)?;
    if !data.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(data.len().min(MAX_BYTES)).unwrap_or(0) + 64));
    let length = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => io::Error::other("it is not text in UTF-8"),
        _ => error,
    })?;
    match length as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes"))),
        false => Ok(text),
    }
}

/// Gives the text of the file at `path` (`None`: there is no file yet) to `edit` and writes what comes back, whole or not at all and for
/// its owner only; a group that could read it goes on to. Others who do the same wait. Returns whatever else `edit` gave.
///
/// # Errors
/// Of the disk, or of `edit`; the file is then as it was.
pub fn rewrite<T, E: From<io::Error>>(path: &Path, edit: impl FnOnce(Option<&str>) -> Result<(String, T), E>) -> Result<T, E> {
    // What a link points at is written, and stays where it is.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory)?;
    // Where it cannot be locked, the last of two that write at one moment counts.
    _ = directory.lock();
    let before = match fs::metadata(&path) {
        Ok(data) => Some((text_of(&path)?, data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let (text, rest) = edit(before.as_ref().map(|(text, _)| text.as_str()))?;
    let text = Zeroizing::new(text);
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("the file would be larger than {MAX_BYTES} bytes")).into());
    }
    replace(&path, &text, before.map(|(_, data)| data))?;
    directory.sync_all()?;
    Ok(rest)
}

fn replace(path: &Path, text: &str, before: Option<fs::Metadata>) -> io::Result<()> {
    const GROUP_READS: u32 = 0o040;
    let mut name = path.file_name().ok_or_else(|| io::Error::other("it has no name"))?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A torn one from a crash, or none.
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut fill = || {
        if let Some(data) = &before {
            // Whoever serves by it must go on to read it; only root can give files away, and need not where they are root's.
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (data.uid(), data.gid()) {
                fchown(&file, Some(data.uid()), Some(data.gid()))?;
            }
            file.set_permissions(Permissions::from_mode(0o600 | (data.mode() & GROUP_READS)))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    fill().inspect_err(|_| {
        // Half a file is of no use to anybody.
        _ = fs::remove_file(&new);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::htpasswd::tests::{BCRYPT, password};
    use super::*;

    const WAIT: Duration = Duration::from_secs(30);

    fn put(path: &Path, text: &str) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("set");
    }

    fn codes(found: &Found) -> Vec<&str> {
        found.findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    #[tokio::test]
    async fn changes_are_taken_up_and_an_unreadable_file_is_not_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("users");
        put(&path, &format!("ada:{BCRYPT}:staff\n"));
        let (file, follower) = UsersFile::open(path.clone(), Hashing::new(2)).await;
        let mut changes = file.subscribe();
        let task = tokio::spawn(follower.run());
        let mut next = async || {
            tokio::time::timeout(WAIT, changes.changed()).await.expect("in time").expect("running");
            changes.borrow_and_update().clone()
        };
        let ada = file.verify("Ada", &password("correct horse")).await.expect("it answers").expect("it is her");
        assert!(ada.belongs("staff"));
        assert_eq!(file.verify("ada", &password("")).await, Ok(None));
        assert_eq!(file.verify("eve", &password("correct horse")).await, Ok(None));

        put(&path, &format!("ada:{BCRYPT}:admins\nbroken"));
        assert_eq!(codes(&*next().await), ["no-hash"]);
        let ada = file.look_up("ada").await.expect("it answers").expect("a good line stays");
        assert!(ada.belongs("admins") && !ada.belongs("staff"));

        put(&path, &format!("bob:{BCRYPT}:staff\n"));
        next().await;
        assert_eq!((file.look_up("ada").await, file.verify("ada", &password("correct horse")).await), (Ok(None), Ok(None)));
        let asked = BTreeSet::from(["staff".to_owned(), "admins".to_owned()]);
        assert_eq!(file.known(&asked).await, Ok(BTreeSet::from(["staff".to_owned()])));

        fs::rename(&path, path.with_extension("away")).expect("moved");
        assert_eq!(codes(&*next().await), ["unreadable-users"]);
        assert!(file.look_up("bob").await.is_err() && file.known(&asked).await.is_err());
        assert!(file.verify("bob", &password("correct horse")).await.is_err());
        fs::rename(path.with_extension("away"), &path).expect("moved back");
        next().await;
        assert!(file.look_up("bob").await.expect("it answers").is_some());
        task.abort();
    }

    #[test]
    fn what_cannot_be_read_or_everybody_can_read_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        put(&path("large"), &"#".repeat(usize::try_from(MAX_BYTES).expect("small") + 1));
        fs::write(path("bytes"), [0xff, 0xfe]).expect("written");
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), 0o600.into()).expect("a pipe");
        for name in ["absent", "large", "bytes", "pipe", "."] {
            let found = read(&path(name));
            assert!(found.users.is_err() && codes(&found) == ["unreadable-users"], "{name}");
        }
        put(&path("open"), &format!("ada:{BCRYPT}\n"));
        fs::set_permissions(path("open"), Permissions::from_mode(0o644)).expect("set");
        let found = read(&path("open"));
        assert_eq!((found.users.map(|users| users.len()).ok(), found.findings[0].code.as_str()), (Some(1), "exposed-users"));
    }

    #[test]
    fn it_is_written_whole_or_not_at_all_and_for_its_owner() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (directory.path().join("users"), directory.path().join("link"));
        let write = |path: &Path, text: &str| {
            let text = text.to_owned();
            rewrite(path, move |before| Ok::<_, io::Error>((before.unwrap_or_default().to_owned() + &text, before.is_some())))
        };
        let mode = || fs::metadata(&path).expect("there").mode() & 0o777;
        assert!(!write(&path, "a\n").expect("written") && mode() == 0o600);
        for (before, after) in [(0o644, 0o640), (0o640, 0o640), (0o777, 0o640), (0o600, 0o600)] {
            fs::set_permissions(&path, Permissions::from_mode(before)).expect("set");
            assert!(write(&path, "b\n").expect("written"));
            assert_eq!(mode(), after, "{before:o}");
        }
        symlink("users", &link).expect("linked");
        put(&path.with_file_name("users.new"), "torn");
        assert!(write(&link, "c\n").expect("written"));
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        let refused = rewrite(&path, |_| Err::<(String, ()), _>(io::Error::other("no")));
        assert!(refused.is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "a\nb\nb\nb\nb\nc\n");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 2, "nothing else is left");
    }
}
