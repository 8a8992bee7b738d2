//! How this process was started, so that another one can be started in the same way.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// How this process was started.
pub struct Program {
    binary: io::Result<PathBuf>,
    arguments: Vec<OsString>,
}

impl Program {
    /// Of this process. To be called early: once the file is replaced, the kernel tells its name no more.
    pub fn of_this_process() -> Program {
        let mut arguments = std::env::args_os();
        let named = arguments.next().map(PathBuf::from);
        let binary = std::env::current_exe().map(|real| {
            // The name that was called, so that a link that is turned to a new version is followed.
            let called = named.filter(|path| path.components().count() > 1).and_then(|path| std::path::absolute(path).ok());
            called.filter(|path| path.canonicalize().is_ok_and(|path| path == real)).unwrap_or(real)
        });
        Program { binary, arguments: arguments.collect() }
    }

    /// Starts `binary`, or this process's own path, as this process was started.
    ///
    /// # Errors
    /// In words: there is no such program.
    pub fn spawn(&self, binary: Option<PathBuf>) -> Result<(PathBuf, Child), String> {
        let binary = match (binary, &self.binary) {
            (Some(binary), _) => binary,
            (None, Ok(binary)) => binary.clone(),
            (None, Err(error)) => return Err(format!("the own path is not known ({error}): give --binary")),
        };
        tracing::info!(binary = %binary.display(), "upgrading: starting the new edge");
        let spawned = Command::new(&binary).args(&self.arguments).stdin(Stdio::null()).spawn();
        spawned.map_err(|error| format!("{} does not start: {error}", binary.display())).map(|child| (binary, child))
    }
}
