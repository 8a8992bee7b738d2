//! What borg says: its lines of `--log-json` and its JSON answers, in versions 1.2 and 1.4 (borgbackup.readthedocs.io,
//! "internals/frontends").

use std::fmt;

use serde::Deserialize;

use super::{Progress, Stats};

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
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn error(id: &str, text: &str) -> Message {
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
    fn a_traceback_is_told_by_what_it_is_about() {
        let text = "Local Exception\nTraceback (most recent call last):\n  File \"x.py\", line 3, in main\n    f()\nNotADirectoryError: [Errno 20] Not a directory: '/srv/x'\n\nPlatform: Linux vm\nPID: 3  CWD: /\n";
        assert_eq!(essence(text), "NotADirectoryError: [Errno 20] Not a directory: '/srv/x'");
        assert_eq!(essence("Repository /r does not exist."), "Repository /r does not exist.");
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
