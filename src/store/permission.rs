//! Who may read what lies in the store: this user, nobody else. Private keys that others could read are no longer private, and whoever
//! runs the edge has to know before it goes on with them.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bits by which group and others may do anything.
const OTHERS: u32 = 0o077;
/// Bits by which others may put something else in a file's place, and the one that keeps them from it.
const WRITABLE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why the store must not be used as it lies there.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    #[error(
        "{} may be read by others (mode {mode:04o}), and private keys are kept there: \
         run `chmod {wanted} {}`, and replace keys that somebody may have copied",
        path.display(), path.display()
    )]
    Readable { path: PathBuf, mode: u32, wanted: &'static str },
    #[error("{} may be changed by everybody (mode {mode:04o}), and private keys are kept below it: run `chmod o-w {}`", path.display(), path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} is a symbolic link; the store holds plain files only: put the file itself there", path.display())]
    Link { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Looks at `directory` and everything in it.
///
/// # Errors
/// The first thing that others may read, or that cannot be looked at.
pub fn check(directory: &Path) -> Result<(), Exposed> {
    let data = look(directory)?;
    of(directory, &data)?;
    if !data.is_dir() {
        return Ok(());
    }
    let failed = |source| Exposed::Io { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(failed)? {
        check(&entry.map_err(failed)?.path())?;
    }
    Ok(())
}

/// Looks at the directory that the store lies in: others may read its names, but not exchange what they stand for.
///
/// # Errors
/// Everybody may write there.
pub fn check_parent(directory: &Path) -> Result<(), Exposed> {
    let data = fs::metadata(directory).map_err(|source| Exposed::Io { path: directory.to_owned(), source })?;
    let mode = data.permissions().mode();
    match mode & WRITABLE != 0 && mode & STICKY == 0 {
        true => Err(Exposed::Writable { path: directory.to_owned(), mode: mode & 0o7777 }),
        false => Ok(()),
    }
}

fn look(path: &Path) -> Result<Metadata, Exposed> {
    fs::symlink_metadata(path).map_err(|source| Exposed::Io { path: path.to_owned(), source })
}

fn of(path: &Path, data: &Metadata) -> Result<(), Exposed> {
    let mode = data.permissions().mode() & 0o7777;
    if data.is_symlink() {
        return Err(Exposed::Link { path: path.to_owned() });
    }
    let wanted = if data.is_dir() { "700" } else { "600" };
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(Exposed::Readable { path: path.to_owned(), mode, wanted }),
    }
}
