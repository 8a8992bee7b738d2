//! Files out of an archive into a directory that has files already. They are extracted aside, into a directory of our own on the same file
//! system, and then moved: what is there is looked at before anything is moved, and no symbolic link of the destination is followed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Of those that are told.
const TOLD: usize = 5;

/// Why files were not placed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Nothing was moved.
    #[error("{} there already: {}; --force replaces them", if *count == 1 { "a file is".to_owned() } else { format!("{count} files are") },
        first.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    There { count: u64, first: Vec<PathBuf> },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// A directory beside what is to be written, removed when this goes.
#[derive(Debug)]
pub struct Staging {
    /// Nobody else's eyes and hands.
    outer: PathBuf,
    /// In there: it gets the owner and mode of a volume's root.
    path: PathBuf,
}

impl Staging {
    /// In `directory`, which is made if it is missing.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(directory: &Path) -> Result<Staging, Error> {
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let outer = directory.join(format!(".skep-{:08x}", fastrand::u32(..)));
        DirBuilder::new().mode(0o700).create(&outer).map_err(failed(&outer))?;
        let path = outer.join("x");
        let staging = Staging { outer, path };
        fs::create_dir(&staging.path).map_err(failed(&staging.path))?;
        Ok(staging)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves what was extracted: `from` (a path in here; empty: everything in here) to `to`. A directory that is there takes what is new
    /// in; a file that is there stays, unless `force`.
    ///
    /// # Errors
    /// Something is there, or the disk's.
    pub fn place(&self, from: &Path, to: &Path, force: bool) -> Result<(), Error> {
        let mut conflicts = Conflicts::default();
        let from = self.path.join(from);
        look(&from, to, &mut conflicts)?;
        if conflicts.count > 0 && !force {
            return Err(Error::There { count: conflicts.count, first: conflicts.first });
        }
        merge(&from, to)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.outer) {
            tracing::warn!("{} cannot be removed: {error}", self.outer.display());
        }
    }
}

#[derive(Default)]
struct Conflicts {
    count: u64,
    first: Vec<PathBuf>,
}

/// What is there, without following links; `None`: nothing.
fn kind(path: &Path) -> Result<Option<fs::FileType>, Error> {
    match fs::symlink_metadata(path) {
        Ok(facts) => Ok(Some(facts.file_type())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

fn children(path: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    fs::read_dir(path).and_then(Iterator::collect).map_err(failed(path))
}

fn look(from: &Path, to: &Path, conflicts: &mut Conflicts) -> Result<(), Error> {
    let Some(there) = kind(to)? else { return Ok(()) };
    if there.is_dir() && kind(from)?.is_some_and(|kind| kind.is_dir()) {
        for child in children(from)? {
            look(&child.path(), &to.join(child.file_name()), conflicts)?;
        }
        return Ok(());
    }
    conflicts.count += 1;
    if conflicts.first.len() < TOLD {
        conflicts.first.push(to.to_owned());
    }
    Ok(())
}

fn merge(from: &Path, to: &Path) -> Result<(), Error> {
    let is_directory = kind(from)?.is_some_and(|kind| kind.is_dir());
    match kind(to)? {
        Some(there) if there.is_dir() && is_directory => {
            for child in children(from)? {
                merge(&child.path(), &to.join(child.file_name()))?;
            }
            return Ok(());
        }
        Some(there) if there.is_dir() => fs::remove_dir_all(to).map_err(failed(to))?,
        Some(_) if is_directory => fs::remove_file(to).map_err(failed(to))?,
        _ => {}
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    fs::rename(from, to).map_err(failed(to))
}

/// Is nothing in the directory?
///
/// # Errors
/// The disk's.
pub fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// Deletes all that is in a directory, not the directory itself. Links are deleted, not followed; what is mounted in there is left alone.
///
/// # Errors
/// The disk's, or something is mounted in there: then nothing was deleted.
pub fn empty(directory: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(directory)?.dev();
    on_one_device(directory, device)?;
    for child in fs::read_dir(directory)? {
        let child = child?;
        match child.file_type()?.is_dir() {
            true => fs::remove_dir_all(child.path())?,
            false => fs::remove_file(child.path())?,
        }
    }
    Ok(())
}

fn on_one_device(directory: &Path, device: u64) -> io::Result<()> {
    for child in fs::read_dir(directory)? {
        let child = child?;
        if !child.file_type()?.is_dir() {
            continue;
        }
        let path = child.path();
        if fs::symlink_metadata(&path)?.dev() != device {
            return Err(io::Error::other(format!("something is mounted at {}: unmount it first", path.display())));
        }
        on_one_device(&path, device)?;
    }
    Ok(())
}

/// What was extracted, counted as the archive's list is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Regular files, by every name that they have.
    pub named: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub special: u64,
    /// Of all files, each once.
    pub bytes: u64,
}

/// Counts what is in a directory; itself is not counted.
///
/// # Errors
/// The disk's.
pub fn count(directory: &Path) -> io::Result<Count> {
    let mut count = Count::default();
    let mut linked = std::collections::HashSet::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for child in fs::read_dir(directory)? {
            let child = child?;
            let facts = fs::symlink_metadata(child.path())?;
            let kind = facts.file_type();
            if kind.is_dir() {
                count.directories += 1;
                waiting.push(child.path());
            } else if kind.is_symlink() {
                count.symlinks += 1;
            } else if kind.is_file() {
                count.named += 1;
                if facts.nlink() == 1 || linked.insert(facts.ino()) {
                    count.bytes += facts.len();
                }
            } else {
                count.special += 1;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }

    #[test]
    fn what_is_there_stays_unless_forced() {
        let home = tempfile::tempdir().unwrap();
        tree(home.path(), &["to/a/old", "to/a/both"]);
        let staging = Staging::new(&home.path().join("to")).unwrap();
        tree(staging.path(), &["a/both", "a/new", "b/c"]);
        let to = home.path().join("to");
        fs::write(to.join("a/both"), "mine").unwrap();
        let refused = staging.place(Path::new(""), &to, false).unwrap_err().to_string();
        assert!(refused.contains("a file is there already") && refused.contains("a/both"), "{refused}");
        assert!(!to.join("b").exists(), "nothing was moved");
        staging.place(Path::new(""), &to, true).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/both")).unwrap(), "a/both");
        assert!(to.join("a/old").exists() && to.join("a/new").exists() && to.join("b/c").exists());
        drop(staging);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
    }

    #[test]
    fn no_link_of_the_destination_is_followed() {
        let home = tempfile::tempdir().unwrap();
        tree(home.path(), &["outside/keep", "to/x"]);
        let to = home.path().join("to");
        symlink(home.path().join("outside"), to.join("link")).unwrap();
        let staging = Staging::new(&to).unwrap();
        tree(staging.path(), &["link/keep", "link/new"]);
        assert!(staging.place(Path::new(""), &to, false).is_err());
        staging.place(Path::new(""), &to, true).unwrap();
        assert_eq!(fs::read_to_string(home.path().join("outside/keep")).unwrap(), "outside/keep");
        assert!(!home.path().join("outside/new").exists() && to.join("link/new").exists());
    }

    #[test]
    fn emptying_stays_inside() {
        let home = tempfile::tempdir().unwrap();
        tree(home.path(), &["outside/keep", "to/a/b", "to/c"]);
        let to = home.path().join("to");
        symlink(home.path().join("outside"), to.join("link")).unwrap();
        assert_eq!(count(&to).unwrap(), Count { named: 2, directories: 1, symlinks: 1, special: 0, bytes: 10 });
        empty(&to).unwrap();
        assert!(is_empty(&to).unwrap() && home.path().join("outside/keep").exists());
    }
}
