//! What the kernel says of this process, for the metrics that every exporter has under the same names.

use std::fs;

/// The process at the moment of a scrape; `None` where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Bytes of memory that are in use.
    pub resident: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
}

impl Process {
    /// Reads `/proc/self`.
    pub fn now() -> Process {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        // The directory that is being listed is one of them.
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1));
        Process { resident: resident(&status), open_fds }
    }
}

/// `VmRSS` of a `/proc/PID/status` (proc_pid_status(5)), in bytes. The same number in `statm` is in pages of unknown size.
fn resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resident_memory_is_read_or_left_out() {
        assert_eq!(resident("Name:\tskep\nVmHWM:\t   99 kB\nVmRSS:\t   4080 kB\nThreads:\t3\n"), Some(4080 * 1024));
        for none in ["", "VmRSS:", "VmRSS:\t kB", "VmRSS:\t-1 kB", "VmRSS:\t5 MB", "VmRSS:\t18446744073709551615 kB", "Name:\tVmRSS: 1 kB"]
        {
            assert_eq!(resident(none), None, "{none:?}");
        }
    }

    #[test]
    fn this_process_is_seen() {
        let now = Process::now();
        assert!(now.resident.unwrap() > 100_000);
        let held: Vec<_> = (0..50).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        // Other tests of this process open and close files too.
        assert!(Process::now().open_fds.unwrap() >= 50);
        drop(held);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(VmRSS:)?\\PC{0,40}") {
            _ = resident(&text);
        }
    }
}
