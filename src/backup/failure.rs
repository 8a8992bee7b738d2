//! Why borg failed, told from its exit code and from what it said, in versions 1.2 and 1.4 (borgbackup.readthedocs.io,
//! "usage/general/return-codes"), and what to do about it.

use std::fmt;

use super::report::Message;

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

#[cfg(test)]
mod tests {
    use super::super::report::tests::error;
    use super::*;

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
}
