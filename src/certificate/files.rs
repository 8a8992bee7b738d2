//! The directory of certificates that the user keeps: read, and watched for changes.
//! What its files mean is decided by `certificate::pairs`; this file lists, opens and waits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::pairs::{self, FilesFound, Listed};
use super::record::Secret;
use crate::diagnostic::Diagnostic;

/// How often the directory is looked at; a stat call for each file.
const LOOK: Duration = Duration::from_secs(1);
/// Looks for which files may go on changing before they are read all the same: a certificate and its key come one after the other.
const SETTLE: u32 = 5;
/// How often everything is read again, for what only the clock changes.
const AGAIN: Duration = Duration::from_secs(3600);
/// A certificate with a hundred names and its chain has 20 KB.
const MAX_BYTES: u64 = 1 << 20;
const MAX_FILES: usize = 20_000;
/// `live/NAME/fullchain.pem` is the deepest that is looked for.
const MAX_DEPTH: usize = 3;
/// What certbot keeps beside `live`, which links to it.
const CERTBOT_STORE: [&str; 6] = ["accounts", "archive", "csr", "keys", "renewal", "renewal-hooks"];

/// Time, size and file number of each file: what a change is told by.
pub type Stamps = BTreeMap<PathBuf, (i64, i64, u64, u64)>;

/// What is in `directory` now. The stamps are of before the reading, so that no change falls between.
pub async fn read(directory: &Path) -> (FilesFound, Stamps) {
    look(directory.to_owned(), FilesFound::default()).await.unwrap_or_default()
}

/// Sends what the directory holds whenever it changes, until nobody listens.
pub async fn follow(directory: PathBuf, mut read: Stamps, updates: watch::Sender<Arc<FilesFound>>) {
    let mut seen = read.clone();
    let mut when = Instant::now();
    let mut unsettled = 0;
    loop {
        tokio::select! {
            () = updates.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(now) = tokio::task::spawn_blocking({
            let directory = directory.clone();
            move || list(&directory).map(|files| stamps(&files)).unwrap_or_default()
        })
        .await
        else {
            continue;
        };
        let settled = now == seen || unsettled >= SETTLE;
        seen.clone_from(&now);
        if now == read && when.elapsed() < AGAIN {
            unsettled = 0;
            continue;
        }
        if !settled {
            unsettled += 1;
            continue;
        }
        let before = updates.borrow().as_ref().clone();
        let Some((found, stamps)) = look(directory.clone(), before).await else { continue };
        (read, when, unsettled) = (stamps, Instant::now(), 0);
        updates.send_if_modified(|last| {
            let differs = **last != found;
            *last = Arc::new(found);
            differs
        });
    }
}

/// Reads the directory; `None` if that broke off, which was said.
async fn look(directory: PathBuf, before: FilesFound) -> Option<(FilesFound, Stamps)> {
    let work = move || match list(&directory) {
        Ok(files) => {
            let stamps = stamps(&files);
            let listed: Vec<Listed> = files.iter().map(|path| open(&directory, path)).collect();
            (pairs::read(&listed, &before.records, Timestamp::now()), stamps)
        }
        Err(why) => {
            let finding = Diagnostic::error("unreadable-directory", why).of("certificates.directory");
            (FilesFound { findings: vec![finding], ..before }, Stamps::new())
        }
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "reading the directory of certificates broke off")).ok()
}

/// The files that may be certificates or keys, links followed.
fn list(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![(directory.to_owned(), 1)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = |error: io::Error| format!("cannot read {}: {error}", folder.display());
        let entries = fs::read_dir(&folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let certbot = entries.iter().any(|entry| entry.file_name() == "live");
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let skipped = name.starts_with('.') || (certbot && CERTBOT_STORE.contains(&name.as_str()));
            if path.is_dir() {
                folders.extend((!skipped && depth < MAX_DEPTH).then(|| (path, depth + 1)));
            } else if pairs::is_ours(&name) {
                found.push(path);
            }
            if found.len() > MAX_FILES {
                return Err(format!("{} has more than {MAX_FILES} files", directory.display()));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn stamps(files: &[PathBuf]) -> Stamps {
    // One that is gone by now, or a link to nothing, is told by its absence.
    let stamp = |path: &PathBuf| fs::metadata(path).ok().map(|data| (data.mtime(), data.mtime_nsec(), data.size(), data.ino()));
    files.iter().filter_map(|path| Some((path.clone(), stamp(path)?))).collect()
}

fn open(directory: &Path, path: &Path) -> Listed {
    const EVERYBODY: u32 = 0o007;
    let mode = fs::metadata(path).map_or(0, |data| data.mode() & 0o777);
    Listed {
        path: path.strip_prefix(directory).unwrap_or(path).to_string_lossy().into_owned(),
        text: text_of(path).map_err(|error| format!("cannot read it: {error}")),
        exposed: (mode & EVERYBODY != 0).then_some(mode),
    }
}

fn text_of(path: &Path) -> io::Result<Secret> {
    // Before it is opened: a pipe would wait for whoever writes.
    let data = fs::metadata(path)?;
    if !data.is_file() || data.len() > MAX_BYTES {
        return Err(io::Error::other(format!("it is no file of at most {MAX_BYTES} bytes")));
    }
    // With room for the read that finds the end: what grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(data.len()).unwrap_or(0) + 64));
    match File::open(path)?.take(MAX_BYTES).read_to_string(&mut text) {
        Ok(_) => Ok(Secret::new(std::mem::take(&mut *text))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(io::Error::other("it is not text; `openssl x509 -inform der -in FILE -out NEW.crt` makes PEM of DER"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::certificate::local::self_signed;
    use crate::certificate::record::Record;

    const WAIT: Duration = Duration::from_secs(30);

    fn put(directory: &Path, name: &str, key_name: &str) -> Record {
        let record = self_signed("", &["a.test".to_owned()].into(), Timestamp::now()).expect("made");
        for (name, text, mode) in [(name, record.chain.as_str(), 0o644), (key_name, record.key.reveal(), 0o600)] {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        record
    }

    fn codes(found: &FilesFound) -> Vec<&str> {
        found.findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    #[tokio::test]
    async fn changes_are_taken_up_and_a_broken_one_leaves_the_old_certificate() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let first = put(&path, "a.crt", "a.key");
        let (found, stamps) = read(&path).await;
        assert_eq!((found.records["a.crt"].chain.clone(), codes(&found)), (first.chain, vec![]));
        let (sender, mut receiver) = watch::channel(Arc::new(found));
        let task = tokio::spawn(follow(path.clone(), stamps, sender));
        let mut next = async || {
            tokio::time::timeout(WAIT, receiver.changed()).await.expect("in time").expect("running");
            receiver.borrow_and_update().clone()
        };
        let second = put(&path, "a.crt", "a.key");
        assert_eq!(next().await.records["a.crt"].chain, second.chain);
        fs::write(path.join("a.crt"), "half a cert").expect("written");
        let broken = next().await;
        assert_eq!((broken.records["a.crt"].chain.clone(), codes(&broken)), (second.chain, vec!["bad-certificate", "old-certificate"]));
        let third = put(&path, "a.crt", "a.key");
        assert_eq!(next().await.records["a.crt"].chain, third.chain);
        fs::rename(&path, path.with_extension("away")).expect("moved");
        let away = next().await;
        assert_eq!((away.records.len(), codes(&away)), (1, vec!["unreadable-directory"]));
        fs::rename(path.with_extension("away"), &path).expect("moved back");
        assert_eq!(codes(&*next().await), Vec::<&str>::new());
        fs::remove_file(path.join("a.crt")).expect("removed");
        fs::remove_file(path.join("a.key")).expect("removed");
        assert_eq!(next().await.records.len(), 0);
        drop(receiver);
        tokio::time::timeout(WAIT, task).await.expect("it ends").expect("well");
    }

    #[tokio::test]
    async fn what_certbot_lays_out_is_found_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, live) = (directory.path(), directory.path().join("live/a.test"));
        put(path, "archive/a.test/fullchain1.pem", "archive/a.test/privkey1.pem");
        fs::create_dir_all(&live).expect("made");
        for name in ["fullchain", "privkey"] {
            symlink(format!("../../archive/a.test/{name}1.pem"), live.join(format!("{name}.pem"))).expect("linked");
        }
        for directory in [path, &path.join("live"), &live] {
            let (found, _) = read(directory).await;
            assert_eq!((found.records.len(), codes(&found)), (1, vec![]), "{}", directory.display());
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        put(path, "a.crt", "a.key");
        fs::set_permissions(path.join("a.key"), fs::Permissions::from_mode(0o644)).expect("set");
        fs::write(path.join("b.cer"), [0x30, 0x82, 0xff]).expect("written");
        fs::write(path.join("c.pem"), vec![b'x'; 2 << 20]).expect("written");
        symlink("nowhere", path.join("d.pem")).expect("linked");
        rustix::fs::mkfifoat(rustix::fs::CWD, path.join("e.pem"), 0o600.into()).expect("a pipe");
        let (found, _) = tokio::time::timeout(WAIT, read(path)).await.expect("it does not wait for a pipe");
        assert_eq!(codes(&found), ["exposed-key", "unreadable-file", "unreadable-file", "unreadable-file", "unreadable-file"]);
        assert_eq!(found.records.len(), 1);
    }
}
