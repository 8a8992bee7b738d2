//! What keeps private keys in this process: nobody gets its memory as a file, and no other program of this user may read it.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// No core dump of this process, nor of what it starts; and no reading of its memory by other programs but root's. For the start of
/// everything that holds keys.
pub fn seal_memory() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let sealed: io::Result<()> =
        setrlimit(Resource::Core, none).and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable)).map_err(io::Error::from);
    if let Err(error) = sealed {
        tracing::warn!(%error, "core dumps cannot be switched off: should this process crash, one may hold private keys");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn a_sealed_process_is_not_dumped_and_still_sees_itself() {
        seal_memory();
        assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
        assert_eq!(dumpable_behavior().expect("asked"), DumpableBehavior::NotDumpable);
        // What metrics, upgrades and the look for our own networks need.
        assert!(std::fs::read_dir("/proc/self/fd").is_ok() && std::fs::read_link("/proc/self/ns/net").is_ok());
        assert!(std::env::current_exe().is_ok() && std::fs::read_to_string("/proc/self/mountinfo").is_ok());
    }
}
