//! What borg says: its lines of `--log-json`, its JSON answers, and what its exit codes mean, in versions 1.2 and 1.4
//! (borgbackup.readthedocs.io, "internals/frontends" and "usage/general/return-codes").

use std::fmt;

use serde::Deserialize;

use super::{Progress, Stats};

/// Warnings of one command that are kept.
pub const MAX_WARNINGS: usize = 100;
/// Of one message, in characters.
const MAX_TEXT: usize = 500;

/// Of borg itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// From `borg 1.2.4`.
    pub fn read(text: &str) -> Option<Version> {
        let word = text.trim().strip_prefix("borg ")?.split_whitespace().next()?;
        let mut parts = word.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
        Some(Version { major: parts.next()??, minor: parts.next()??, patch: parts.next().flatten().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// One line of borg's standard error.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    Progress(Progress),
    /// Something went wrong, or might have.
    Message(Message),
    /// What tells nobody anything.
    Other,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// It ended the command, or will.
    pub is_error: bool,
    /// `Archive.DoesNotExist`; empty where there is none.
    pub id: String,
    pub text: String,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Spoken {
    ArchiveProgress {
        #[serde(default)]
        finished: bool,
        #[serde(default)]
        nfiles: u64,
        #[serde(default)]
        original_size: u64,
        #[serde(default)]
        compressed_size: u64,
        #[serde(default)]
        deduplicated_size: u64,
        #[serde(default)]
        path: String,
    },
    ProgressPercent {
        #[serde(default)]
        finished: bool,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        current: f64,
        #[serde(default)]
        total: f64,
    },
    LogMessage {
        #[serde(default)]
        levelname: String,
        #[serde(default)]
        message: String,
        #[serde(default)]
        msgid: Option<String>,
    },
    #[serde(other)]
    Other,
}

/// Reads a line. Whatever is no JSON (ssh's words, a traceback) is an error message without an id.
pub fn line(text: &str) -> Line {
    let text = text.trim();
    if text.is_empty() {
        return Line::Other;
    }
    let Ok(spoken) = serde_json::from_str::<Spoken>(text) else {
        return Line::Message(Message { is_error: true, id: String::new(), text: short(text) });
    };
    match spoken {
        Spoken::ArchiveProgress { finished: false, nfiles, original_size, compressed_size, deduplicated_size, path } => {
            let stats = Stats { files: nfiles, original: original_size, compressed: compressed_size, deduplicated: deduplicated_size };
            Line::Progress(Progress::Archive { stats, path: short(&path) })
        }
        Spoken::ProgressPercent { finished: false, message, current, total } if total > 0.0 => {
            Line::Progress(Progress::Percent { percent: 100.0 * current / total, text: short(&message.unwrap_or_default()) })
        }
        Spoken::LogMessage { levelname, message, msgid } => match levelname.as_str() {
            "WARNING" => Line::Message(Message { is_error: false, id: msgid.unwrap_or_default(), text: short(&message) }),
            "ERROR" | "CRITICAL" => {
                Line::Message(Message { is_error: true, id: msgid.unwrap_or_default(), text: short(essence(&message)) })
            }
            _ => Line::Other,
        },
        _ => Line::Other,
    }
}

/// Of a traceback the line that says what happened: the last one that names an exception. What follows it tells of the machine.
fn essence(text: &str) -> &str {
    if !text.contains("Traceback (most recent call last)") {
        return text;
    }
    let names_one = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        line.contains(": ") && (name.ends_with("Error") || name.ends_with("Exception")) && !name.contains(' ')
    };
    text.lines().rev().find(names_one).unwrap_or(text)
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    NoRepository,
    NoArchive,
    /// A path that is not in the archive.
    NoFile,
    WrongPassphrase,
    Locked,
    NoSpace,
    ReadOnly,
    /// The target is not there, or the connection broke.
    Unreachable,
    /// The other side does not let us do that.
    Refused,
    /// What is in the repository is damaged.
    Damaged,
    /// By somebody else, or by the kernel.
    Killed,
    /// Because we were told to stop.
    Stopped,
    Timeout,
    /// What was to be saved did not come whole: a dump failed.
    Feed,
    /// borg is not there, or is of a version that we do not know.
    NoBorg,
    Other,
}

/// A failed command: a sentence, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
    pub help: String,
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.help.is_empty() {
            true => write!(formatter, "{}", self.message),
            false => write!(formatter, "{}: {}", self.message, self.help),
        }
    }
}

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), help: help(kind).to_owned() }
    }

    /// May it go well by itself, a while later?
    pub fn may_pass(&self) -> bool {
        !matches!(self.kind, Kind::WrongPassphrase | Kind::NoArchive | Kind::NoFile | Kind::NoBorg | Kind::Damaged | Kind::Stopped)
    }
}

fn help(kind: Kind) -> &'static str {
    match kind {
        Kind::NoRepository => "is the target mounted, and its path right? A first `skep backup run --now` makes the repository",
        Kind::NoArchive => "`skep backup list` shows those that there are",
        Kind::NoFile => "`skep backup show --files` shows what is in the archive",
        Kind::WrongPassphrase => "the repository was made with another passphrase: see backup.passphrase-file",
        Kind::Locked => "somebody else works on the repository; if nobody does, run `borg break-lock` on it",
        Kind::NoSpace => "free some space at the target, or keep fewer archives",
        Kind::ReadOnly => "the target must be writable for Skep",
        Kind::Unreachable => "is the target's machine up, and does `ssh` reach it with backup.ssh-key and backup.ssh-known-hosts?",
        Kind::Refused => "does the target allow this path and this command to our key?",
        Kind::Damaged => "`skep backup check` says what is damaged; other targets may be whole",
        Kind::NoBorg => "install BorgBackup 1.2 or 1.4 (`apt-get install borgbackup`), or name it in backup.borg",
        Kind::Killed | Kind::Stopped | Kind::Timeout | Kind::Feed | Kind::Other => "",
    }
}

/// How a command ended, from its exit code (`None`: by a signal) and what it said. A check that warns has found damage.
///
/// # Errors
/// It failed.
pub fn ended(code: Option<i32>, messages: &[Message], is_check: bool) -> Result<(), Failure> {
    let last = || messages.iter().rev().find(|message| message.is_error).or(messages.last());
    match code {
        Some(1 | 100..=127) if is_check => {
            let text = messages.last().map_or("there is damage, and borg does not say where", |message| message.text.trim_end_matches('.'));
            Err(Failure::new(Kind::Damaged, text))
        }
        // 1 is a warning in every version; 1.4 has one code for each kind of warning, 100 to 127.
        Some(0 | 1 | 100..=127) => match messages.iter().find(|message| message.text.starts_with("Include pattern")) {
            Some(message) => Err(Failure::new(Kind::NoFile, message.text.replace("Include pattern", "the path"))),
            None => Ok(()),
        },
        Some(code) => {
            let kind = messages.iter().rev().find_map(kind).or_else(|| coded(code)).unwrap_or(Kind::Other);
            // Why a connection was closed is what ssh or the other side said before.
            let remote =
                messages.iter().rev().filter(|_| kind == Kind::Unreachable).find_map(|message| message.text.strip_prefix("Remote: "));
            if let Some(text) = remote {
                return Err(Failure::new(worded(text).unwrap_or(kind), text.trim_end_matches('.')));
            }
            let text = match messages.iter().rev().find(|message| self::kind(message) == Some(kind)).or_else(last) {
                Some(message) => message.text.trim_end_matches('.').to_owned(),
                None => format!("borg ended with code {code} and said nothing"),
            };
            Err(Failure::new(kind, text))
        }
        None => Err(Failure::new(Kind::Killed, "borg was killed")),
    }
}

/// A failure to reach a target, with the last thing that ssh said.
pub fn explained(failure: Failure, log: &str) -> Failure {
    let last = log.lines().map(str::trim).rfind(|line| !line.is_empty());
    match last.filter(|_| failure.kind == Kind::Unreachable) {
        Some(text) => Failure::new(worded(text).unwrap_or(Kind::Unreachable), text.trim_end_matches('.')),
        None => failure,
    }
}

/// By the message's name; by its words where it has none, which are the same in 1.2 and 1.4.
fn kind(message: &Message) -> Option<Kind> {
    let known = match message.id.as_str() {
        "Repository.DoesNotExist" | "Repository.InvalidRepository" | "Repository.ParentPathDoesNotExist" => Kind::NoRepository,
        "Archive.DoesNotExist" => Kind::NoArchive,
        "PassphraseWrong" | "PasscommandFailure" | "NoPassphraseFailure" => Kind::WrongPassphrase,
        "LockTimeout" | "LockFailed" | "LockErrorT" | "LockError" => Kind::Locked,
        "Repository.InsufficientFreeSpaceError" | "Repository.StorageQuotaExceeded" => Kind::NoSpace,
        "ConnectionClosed" | "ConnectionClosedWithHint" | "ConnectionBrokenWithHint" => Kind::Unreachable,
        "PathNotAllowed" => Kind::Refused,
        "IntegrityError" | "Repository.CheckNeeded" | "Archive.IncompatibleFilesystemEncodingError" | "DecompressionError" => Kind::Damaged,
        _ => return worded(&message.text),
    };
    // A lock that cannot be made for want of space or rights says so.
    Some(worded(&message.text).filter(|worded| matches!(worded, Kind::NoSpace | Kind::ReadOnly)).unwrap_or(known))
}

fn worded(text: &str) -> Option<Kind> {
    const WORDS: &[(&str, Kind)] = &[
        ("No space left on device", Kind::NoSpace),
        ("Disk quota exceeded", Kind::NoSpace),
        ("Read-only file system", Kind::ReadOnly),
        ("Permission denied (publickey", Kind::Refused),
        ("Host key verification failed", Kind::Refused),
        ("Permission denied", Kind::ReadOnly),
        ("Failed to create/acquire the lock", Kind::Locked),
        ("Repository path not allowed", Kind::Refused),
        ("Connection refused", Kind::Unreachable),
        ("Connection closed by remote host", Kind::Unreachable),
        ("Connection timed out", Kind::Unreachable),
        ("Could not resolve hostname", Kind::Unreachable),
        ("No route to host", Kind::Unreachable),
        ("Broken pipe", Kind::Unreachable),
        ("Data integrity error", Kind::Damaged),
        ("Finished full repository check, errors found", Kind::Damaged),
        ("errors found", Kind::Damaged),
    ];
    WORDS.iter().find(|(words, _)| text.contains(words)).map(|(_, kind)| *kind)
}

/// What 1.4 ends with where `BORG_EXIT_CODES=modern` is set.
fn coded(code: i32) -> Option<Kind> {
    Some(match code {
        13 | 15 | 16 => Kind::NoRepository,
        30 | 31 => Kind::NoArchive,
        50..=54 => Kind::WrongPassphrase,
        70..=75 => Kind::Locked,
        80..=84 => Kind::Unreachable,
        90..=96 => Kind::Damaged,
        128.. => Kind::Killed,
        _ => return None,
    })
}

/// `borg list --json`, `borg info --json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Archives {
    pub archives: Vec<Archive>,
    pub repository: RepositoryInfo,
    pub encryption: Encryption,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Archive {
    pub name: String,
    pub id: String,
    pub comment: String,
    pub start: String,
    pub hostname: String,
    pub stats: ArchiveStats,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ArchiveStats {
    pub nfiles: u64,
    pub original_size: u64,
    pub compressed_size: u64,
    pub deduplicated_size: u64,
}

impl From<ArchiveStats> for Stats {
    fn from(stats: ArchiveStats) -> Stats {
        Stats {
            files: stats.nfiles,
            original: stats.original_size,
            compressed: stats.compressed_size,
            deduplicated: stats.deduplicated_size,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RepositoryInfo {
    pub id: String,
    pub location: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Encryption {
    /// `repokey-blake2`, `none`, ...
    pub mode: String,
}

/// `borg create --json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Created {
    pub archive: Archive,
}

/// One line of `borg list --json-lines`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct FileEntry {
    /// `-` a file, `d` a directory, `l` a symbolic link, `h` a hard link, `p` a pipe ...
    #[serde(rename = "type")]
    pub kind: String,
    pub mode: String,
    pub path: String,
    pub size: u64,
    pub mtime: String,
    pub linktarget: String,
    pub user: serde_json::Value,
    pub group: serde_json::Value,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub healthy: Option<bool>,
    /// Where it was asked for.
    pub sha256: String,
}

/// One line of `borg diff --json-lines`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Change {
    pub path: String,
    pub changes: Vec<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(id: &str, text: &str) -> Message {
        Message { is_error: true, id: id.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn versions() {
        assert_eq!(Version::read("borg 1.2.4\n"), Some(Version { major: 1, minor: 2, patch: 4 }));
        assert_eq!(Version::read("borg 1.4.0b1").map(|version| version.minor), Some(4));
        assert_eq!(Version::read("borg 2.0.0b22").map(|version| version.major), Some(2));
        for other in ["", "borg", "borg x", "restic 0.1"] {
            assert_eq!(Version::read(other), None, "{other}");
        }
    }

    #[test]
    fn lines_of_a_real_run() {
        for (text, wanted) in [
            (
                r#"{"original_size": 5, "compressed_size": 48, "deduplicated_size": 48, "nfiles": 1, "path": "dump/x", "time": 1.5, "type": "archive_progress", "finished": false}"#,
                Line::Progress(Progress::Archive {
                    stats: Stats { files: 1, original: 5, compressed: 48, deduplicated: 48 },
                    path: "dump/x".to_owned(),
                }),
            ),
            (r#"{"time": 1.5, "type": "archive_progress", "finished": true}"#, Line::Other),
            (
                r#"{"message": "Saving files cache", "operation": 2, "msgid": "cache.commit", "type": "progress_message", "finished": false}"#,
                Line::Other,
            ),
            (
                r#"{"message": "Checking segments 50.0%", "current": 5, "total": 10, "info": null, "operation": 1, "msgid": "repository.check", "type": "progress_percent", "finished": false, "time": 1.5}"#,
                Line::Progress(Progress::Percent { percent: 50.0, text: "Checking segments 50.0%".to_owned() }),
            ),
            (
                r#"{"type": "log_message", "time": 1.3, "message": "Archive nope does not exist", "levelname": "ERROR", "name": "borg.archiver", "msgid": "Archive.DoesNotExist"}"#,
                Line::Message(error("Archive.DoesNotExist", "Archive nope does not exist")),
            ),
            (
                "ssh: connect to host x port 22: Connection refused",
                Line::Message(error("", "ssh: connect to host x port 22: Connection refused")),
            ),
            ("", Line::Other),
        ] {
            assert_eq!(line(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_a_code_and_its_words_mean() {
        let lock = "Failed to create/acquire the lock /r/lock.exclusive (timeout).";
        for (code, messages, wanted) in [
            (Some(0), vec![], None),
            (Some(1), vec![Message { is_error: false, id: String::new(), text: "a: file changed while we backed it up".into() }], None),
            (Some(107), vec![], None),
            (
                Some(1),
                vec![Message { is_error: false, id: String::new(), text: "Include pattern 'pp:x' never matched.".into() }],
                Some(Kind::NoFile),
            ),
            (Some(2), vec![error("Repository.DoesNotExist", "Repository /r does not exist.")], Some(Kind::NoRepository)),
            (Some(13), vec![error("Repository.DoesNotExist", "Repository /r does not exist.")], Some(Kind::NoRepository)),
            (Some(2), vec![error("PassphraseWrong", "passphrase supplied in ... is incorrect.")], Some(Kind::WrongPassphrase)),
            (Some(2), vec![error("LockTimeout", lock)], Some(Kind::Locked)),
            (
                Some(2),
                vec![error("LockFailed", "Failed to create/acquire the lock /r ([Errno 30] Read-only file system: '/r').")],
                Some(Kind::ReadOnly),
            ),
            (Some(2), vec![error("", "OSError: [Errno 28] No space left on device")], Some(Kind::NoSpace)),
            (
                Some(2),
                vec![
                    error("", "Remote: ssh: connect to host 127.0.0.1 port 1: Connection refused"),
                    error("ConnectionClosedWithHint", "Connection closed by remote host. Is borg working on the server?"),
                ],
                Some(Kind::Unreachable),
            ),
            (
                Some(2),
                vec![
                    error("", "Remote: u@h: Permission denied (publickey)."),
                    error("ConnectionClosedWithHint", "Connection closed by remote host."),
                ],
                Some(Kind::Refused),
            ),
            (
                Some(2),
                vec![error("", "Remote: sh: 1: borg: not found"), error("ConnectionClosedWithHint", "Connection closed by remote host.")],
                Some(Kind::Unreachable),
            ),
            (Some(2), vec![error("PathNotAllowed", "Repository path not allowed: /x")], Some(Kind::Refused)),
            (Some(52), vec![], Some(Kind::WrongPassphrase)),
            (Some(2), vec![], Some(Kind::Other)),
            (None, vec![], Some(Kind::Killed)),
        ] {
            assert_eq!(ended(code, &messages, false).err().map(|failure| failure.kind), wanted, "{code:?} {messages:?}");
        }
    }

    #[test]
    fn a_traceback_is_told_by_what_it_is_about() {
        let text = "Local Exception\nTraceback (most recent call last):\n  File \"x.py\", line 3, in main\n    f()\nNotADirectoryError: [Errno 20] Not a directory: '/srv/x'\n\nPlatform: Linux vm\nPID: 3  CWD: /\n";
        assert_eq!(essence(text), "NotADirectoryError: [Errno 20] Not a directory: '/srv/x'");
        assert_eq!(essence("Repository /r does not exist."), "Repository /r does not exist.");
    }

    #[test]
    fn what_ssh_says_explains_why_nobody_was_reached() {
        let closed = || Failure::new(Kind::Unreachable, "Connection closed by remote host");
        let log = "Warning: something\r\nu@h: Permission denied (publickey).\r\n\n";
        let explained = |failure, log| {
            let failure: Failure = super::explained(failure, log);
            (failure.kind, failure.message)
        };
        assert_eq!(explained(closed(), log), (Kind::Refused, "u@h: Permission denied (publickey)".to_owned()));
        assert_eq!(
            explained(closed(), "Timeout, server h not responding."),
            (Kind::Unreachable, "Timeout, server h not responding".to_owned())
        );
        assert_eq!(explained(closed(), "\n"), (Kind::Unreachable, "Connection closed by remote host".to_owned()));
        assert_eq!(explained(Failure::new(Kind::NoSpace, "full"), log).0, Kind::NoSpace);
    }

    #[test]
    fn a_check_that_warns_has_found_damage() {
        let warning = Message { is_error: false, id: String::new(), text: "ID: 86 rebuilt index: <not found>".into() };
        assert_eq!(ended(Some(1), &[warning], true).expect_err("damage").kind, Kind::Damaged);
        assert!(ended(Some(0), &[], true).is_ok());
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(text in "\\PC{0,300}", number in any::<f64>()) {
            line(&text);
            line(&format!(r#"{{"type": "progress_percent", "current": {number:e}, "total": {number:e}, "message": {text:?}}}"#));
            line(&format!(r#"{{"type": "log_message", "levelname": "ERROR", "message": {}}}"#, serde_json::Value::String(text)));
        }
    }
}
