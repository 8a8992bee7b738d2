//! Files, written whole or not at all: a crash at any moment leaves the old value or the new one.
//! What cannot be read back is reported and treated as absent, for nothing that is kept here is the only copy.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::snapshot::Snapshot;
use crate::store::{self, Unusable};

/// A snapshot of ten thousand services has about 20 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Between two writes of the snapshot.
const PAUSE: Duration = Duration::from_secs(5);

/// A directory with one file a key. Names of keys are the program's own, never a user's.
#[derive(Clone, Debug)]
pub struct Disk {
    directory: PathBuf,
}

/// Why a value could not be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not used: {source}", path.display())]
    Unusable { path: PathBuf, source: Unusable },
}

impl Disk {
    /// The store in `directory`, which is made (for this user only) if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: &Path) -> Result<Disk, Error> {
        let failed = |source| Error::Io { path: directory.to_owned(), source };
        if !directory.is_dir() {
            fs::create_dir_all(directory).map_err(failed)?;
            fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Disk { directory: directory.to_owned() })
    }

    /// Keeps `value` under `key`, readable by this user only.
    ///
    /// # Errors
    /// The disk's; the old value is then still there.
    pub fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), Error> {
        let path = self.path(key);
        let bytes = store::encode(key, value).map_err(|source| Error::Unusable { path: path.clone(), source: source.into() })?;
        self.replace(&path, &bytes).map_err(|source| Error::Io { path, source })
    }

    /// The value under `key`; `None` when there is none.
    ///
    /// # Errors
    /// The disk's, or the file is not what [`Disk::write`] wrote.
    pub fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let path = self.path(key);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => store::decode(key, &bytes).map(Some).map_err(|source| Error::Unusable { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.skep"))
    }

    /// During an upgrade two processes write: one waits for the other, where the file system can lock.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let directory = File::open(&self.directory)?;
        // Where it cannot, the worst is a file that is found to be damaged.
        _ = directory.lock();
        replace(path, bytes)
    }
}

/// The name appears with all bytes behind it, on the disk too: content first, then the name, then the directory.
/// One writer at a time, which the caller sees to.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A torn one from a crash, or none.
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    cut_here();
    let written = file.write_all(bytes).map(|()| cut_here()).and_then(|()| file.sync_all());
    cut_here();
    if let Err(error) = written.and_then(|()| fs::rename(&new, path)) {
        // Half a value is of no use to anybody and takes space where there may be none.
        _ = fs::remove_file(&new);
        return Err(error);
    }
    cut_here();
    sync_parent(path)?;
    cut_here();
    Ok(())
}

/// Names that came or went are on the disk once their directory is.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Between two things that reach the disk one after the other. The tests end the process there.
#[cfg(not(test))]
pub(super) fn cut_here() {}
#[cfg(test)]
pub(super) use super::keyed::tests::cut_here;

/// Keeps every new snapshot on disk, at most one in five seconds and off the threads that serve. Ends with `updates` or `stop`.
pub async fn keep(disk: Disk, mut updates: watch::Receiver<Option<Arc<Snapshot>>>, stop: CancellationToken) {
    let mut broken = false;
    while let Some(Ok(())) = stop.run_until_cancelled(updates.changed()).await {
        let Some(snapshot) = updates.borrow_and_update().clone() else { continue };
        let disk = disk.clone();
        let written = tokio::task::spawn_blocking(move || disk.write(store::SNAPSHOT, &*snapshot)).await;
        // Said once for each change: a full disk is not told every five seconds.
        match written {
            Ok(Ok(())) if broken => {
                tracing::info!("the last snapshot is kept on disk again");
                broken = false;
            }
            Ok(Err(error)) if !broken => {
                tracing::warn!(%error, "the last snapshot cannot be kept on disk; a start without Docker will have an old one or none");
                broken = true;
            }
            Err(error) => tracing::error!(%error, "writing the snapshot broke off"),
            Ok(_) => {}
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, Disk) {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::open(&directory.path().join("state")).expect("a store");
        (directory, disk)
    }

    #[test]
    fn a_value_is_kept_and_replaced_for_this_user_only() {
        let (_directory, disk) = disk();
        assert_eq!(disk.read::<u32>("x").expect("nothing yet"), None);
        disk.write("x", &1).expect("written");
        disk.write("x", &2).expect("written again");
        assert_eq!(disk.read::<u32>("x").expect("readable"), Some(2));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&disk.path("x")), mode(&disk.directory)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&disk.directory).expect("a directory").count(), 1);
    }

    /// What a crash leaves after each step of a write: the old value is read, and the next write succeeds.
    #[test]
    fn a_crash_at_any_step_leaves_a_whole_value() {
        let whole = store::encode("x", &2).expect("bytes");
        for torn in 0..=whole.len() {
            let (_directory, disk) = disk();
            disk.write("x", &1).expect("written");
            fs::write(disk.path("x").with_extension("new"), &whole[..torn]).expect("torn");
            assert_eq!(disk.read::<u32>("x").expect("readable"), Some(1));
            disk.write("x", &3).expect("written over what was torn");
            assert_eq!(disk.read::<u32>("x").expect("readable"), Some(3));
        }
    }

    #[test]
    fn two_writers_leave_a_whole_value() {
        let (_directory, disk) = disk();
        std::thread::scope(|scope| {
            for writer in ["a", "b"] {
                let disk = disk.clone();
                scope.spawn(move || (0..50).for_each(|_| disk.write("x", &writer.repeat(10_000)).expect("written")));
            }
        });
        let kept = disk.read::<String>("x").expect("whole").expect("there");
        assert!(kept == "a".repeat(10_000) || kept == "b".repeat(10_000));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let (_directory, disk) = disk();
        disk.write("x", &"some text").expect("written");
        let mut bytes = fs::read(disk.path("x")).expect("bytes");
        bytes.pop();
        fs::write(disk.path("x"), bytes).expect("damaged");
        let error = disk.read::<String>("x").expect_err("damaged").to_string();
        assert!(error.contains("x.skep is not used: it is damaged"), "{error}");
        disk.write("x", &"new").expect("written over the damage");
        assert_eq!(disk.read::<String>("x").expect("readable").as_deref(), Some("new"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_value() {
        let (_directory, disk) = disk();
        disk.write("x", &1).expect("written");
        // A directory in the way of the new file.
        fs::create_dir(disk.path("x").with_extension("new")).expect("in the way");
        assert!(disk.write("x", &2).is_err());
        assert_eq!(disk.read::<u32>("x").expect("readable"), Some(1));
    }

    #[tokio::test]
    async fn every_new_snapshot_is_kept() {
        let (_directory, disk) = disk();
        let (sender, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(disk.clone(), receiver, stop.clone()));
        let snapshot = Snapshot { names: [("a".to_owned(), Vec::new())].into(), ..Snapshot::default() };
        sender.send_replace(Some(Arc::new(snapshot.clone())));
        let kept = async {
            loop {
                if let Some(kept) = disk.read::<Snapshot>(store::SNAPSHOT).expect("readable") {
                    return kept;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), kept).await.expect("kept"), snapshot);
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(1), task).await.expect("it ends").expect("well");
    }
}
