//! The duty to save the volumes of a node: of all processes that share a state directory one has it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Ours as long as this lives.
#[derive(Debug)]
pub struct Duty {
    _file: File,
}

impl Duty {
    /// `None`: another process has it.
    ///
    /// # Errors
    /// The disk's.
    pub fn take(state: &Path) -> io::Result<Option<Duty>> {
        let directory = state.join("backup");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(directory.join("duty"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Duty { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it() {
        let state = tempfile::tempdir().unwrap();
        let first = Duty::take(state.path()).unwrap();
        assert!(first.is_some() && Duty::take(state.path()).unwrap().is_none());
        drop(first);
        assert!(Duty::take(state.path()).unwrap().is_some());
        assert!(Duty::take(&state.path().join("backup/duty")).is_err());
    }
}
