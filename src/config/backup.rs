//! `[backup]`: where volumes are saved to, when, and what is kept. `[notify]`: who hears how that went.

use std::path::PathBuf;
use std::time::Duration;

/// The settings of backups. Labels of volumes and services outrank those that are defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// Where archives are kept, each with its own success; empty: nothing is saved.
    pub targets: Vec<Target>,
    /// The file with the repositories' passphrase; `None`: one is made at first use, below the state directory.
    pub passphrase_file: Option<PathBuf>,
    /// Does nothing run on schedule until somebody has said that the key is kept elsewhere?
    pub require_key_export: bool,
    /// Defaults of labels.
    pub schedule: String,
    pub keep: String,
    pub mode: String,
    pub exclude: Vec<String>,
    pub timeout: Duration,
    /// Of schedules and windows: an IANA name.
    pub time_zone: String,
    /// Runs begin up to so long after their hour, each volume always by the same part of it.
    pub jitter: Duration,
    /// Scheduled runs begin in these hours only, `22:00-06:00`; `None`: at any.
    pub window: Option<String>,
    /// A paused container goes on after so long, whether its volume is saved or not.
    pub pause_limit: Duration,
    /// Runs at one time on this node, and to one target.
    pub parallel: usize,
    pub parallel_per_target: usize,
    /// Niceness of borg, 0 to 19, and whether it reads disks only when nobody else does.
    pub nice: u8,
    pub io_idle: bool,
    /// Bytes a second to each target; `None`: as fast as it goes.
    pub upload_limit: Option<u64>,
    /// As borg has it: `zstd,3`.
    pub compression: String,
    /// How long a run waits for a repository that somebody else has locked.
    pub lock_wait: Duration,
    /// A failed run is tried again so often, the first time after this pause, then twice that ...
    pub retries: u32,
    pub retry_pause: Duration,
    /// How often repositories are checked, archives are, a slice of the data is; `None`: never.
    pub check_repository: Option<Duration>,
    pub check_archives: Option<Duration>,
    pub verify_data: Option<Duration>,
    /// In so many slices.
    pub verify_slices: u32,
    /// How often the newest archive of each volume is restored on trial; `None`: never.
    pub drill: Option<Duration>,
    /// Where drills extract to; `None`: below the state directory.
    pub scratch: Option<PathBuf>,
    /// A volume without a good archive is told so long after it should have had one.
    pub overdue: Duration,
    /// A new archive this much smaller than those before is told, in percent.
    pub shrink: u8,
    /// Free space that a target must have, in bytes, where it can be known.
    pub min_free: u64,
    /// Where the engine's volumes directory is for this process; `None`: where the engine says.
    pub volumes: Option<PathBuf>,
    /// The key, the known hosts and further words for ssh.
    pub ssh_key: Option<PathBuf>,
    pub ssh_known_hosts: Option<PathBuf>,
    /// The borg to run: a name on PATH, or a path.
    pub borg: String,
}

/// A place for repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In labels of metrics, messages and `--target`: given as `name=location`, or made of the location.
    pub name: String,
    /// A directory, or `ssh://user@host:port/path`; repositories lie below it.
    pub location: String,
}

/// Who hears of what needs somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// URLs that get generic JSON, in Slack's and Mattermost's form, and topics of ntfy. As they are secrets, a file may hold them:
    /// `file:/run/secrets/hook`.
    pub webhooks: Vec<String>,
    pub slack: Vec<String>,
    pub ntfy: Vec<String>,
    /// `smtps://user@host:465`, `smtp://host:25`; with STARTTLS where the server has it, always with a user.
    pub smtp: Option<String>,
    pub smtp_password_file: Option<PathBuf>,
    pub mail_from: Option<String>,
    pub mail_to: Vec<String>,
    /// Told from this on: failures only, warnings too, or successes too.
    pub level: Level,
    /// Base URLs of a healthchecks-style service: `/start`, nothing and `/fail` are added.
    pub ping: Vec<String>,
    /// What has not changed is told again so often.
    pub repeat: Duration,
}

/// From which weight on something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Success,
    Warning,
    Error,
}

impl Default for Backup {
    fn default() -> Backup {
        const HOUR: Duration = Duration::from_secs(3600);
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Backup {
            targets: Vec::new(),
            passphrase_file: None,
            require_key_export: true,
            schedule: "0 2 * * *".to_owned(),
            keep: "7d,4w,36m".to_owned(),
            mode: "hot".to_owned(),
            exclude: Vec::new(),
            timeout: 6 * HOUR,
            time_zone: "UTC".to_owned(),
            jitter: HOUR,
            window: None,
            pause_limit: Duration::from_secs(60),
            parallel: 1,
            parallel_per_target: 1,
            nice: 10,
            io_idle: true,
            upload_limit: None,
            compression: "zstd,3".to_owned(),
            lock_wait: Duration::from_secs(600),
            retries: 3,
            retry_pause: Duration::from_secs(300),
            check_repository: Some(7 * DAY),
            check_archives: Some(30 * DAY),
            verify_data: Some(7 * DAY),
            verify_slices: 12,
            drill: Some(30 * DAY),
            scratch: None,
            overdue: 12 * HOUR,
            shrink: 50,
            min_free: 1 << 30,
            volumes: None,
            ssh_key: None,
            ssh_known_hosts: None,
            borg: "borg".to_owned(),
        }
    }
}

impl Default for Notify {
    fn default() -> Notify {
        Notify {
            webhooks: Vec::new(),
            slack: Vec::new(),
            ntfy: Vec::new(),
            smtp: None,
            smtp_password_file: None,
            mail_from: None,
            mail_to: Vec::new(),
            level: Level::Warning,
            ping: Vec::new(),
            repeat: Duration::from_secs(24 * 3600),
        }
    }
}
