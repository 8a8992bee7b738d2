//! The exact command lines of borg 1.2 and 1.4, as values: what `--dry-run` prints is what is run. No shell is between.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::report::Version;
use super::{Keep, Repository, archive};
use crate::config;

/// Seconds for which borg waits for a lock before it is asked again.
const LOCK_TURN: u64 = 10;

/// A command, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program first.
    pub words: Vec<String>,
    /// The whole environment, but for what every program of this machine gets (PATH, HOME ...). No secret is in it: the passphrase
    /// is named by a file.
    pub env: BTreeMap<String, String>,
    pub directory: Option<PathBuf>,
    /// Something is streamed into it.
    pub input: bool,
    /// It looks for damage: borg ends with a mere warning when it has found some.
    pub is_check: bool,
}

/// As a line for a shell, to be tried by hand in [`Command::environment`].
impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(directory) = &self.directory {
            write!(formatter, "cd {} && ", quoted(&directory.to_string_lossy()))?;
        }
        let words: Vec<String> = self.words.iter().map(|word| quoted(word)).collect();
        write!(formatter, "{}{}", words.join(" "), if self.input { " < DUMP" } else { "" })
    }
}

impl Command {
    /// Its environment, a line for a shell each.
    pub fn environment(&self) -> Vec<String> {
        self.env.iter().map(|(name, value)| format!("export {name}={}", quoted(value))).collect()
    }
}

pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// How a repository is reached.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub repository: &'a Repository,
    /// The file that holds its passphrase; `None`: it has none.
    pub passphrase: Option<&'a Path>,
    pub config: &'a config::Backup,
    /// Where borg keeps what it knows: caches, keys, what it has seen.
    pub base: &'a Path,
    /// Id of the run on whose behalf it is asked: the holder of its locks.
    pub run: &'a str,
    pub version: Version,
    /// Words before borg's own: `nice`, `ionice`.
    pub priority: &'a [String],
    /// Somebody else's repository, which somebody named: it may be unencrypted, and unknown here.
    pub foreign: bool,
}

/// What becomes an archive.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The volume's root.
    pub directory: &'a Path,
    /// Its files; otherwise the dump is all.
    pub files: bool,
    /// Patterns as labels have them, or with borg's own style in front (`pp:data`).
    pub exclude: &'a [String],
    /// By what name a dump is kept that is streamed into it.
    pub stdin_name: Option<&'a str>,
}

/// By what name borg's locks know a run.
pub fn holder(run: &str) -> String {
    format!("skep-{run}")
}

impl Access<'_> {
    /// Makes the repository.
    pub fn init(&self) -> Command {
        // Its advice about ancient versions and about the key is ours to give.
        self.command("init", &["--error", "--encryption=repokey-blake2", "--make-parent-dirs"], [self.repository.location.clone()])
    }

    /// Makes an archive of `source`.
    pub fn create(&self, name: &str, at: Timestamp, comment: &str, source: &Source<'_>) -> Command {
        let mut words: Vec<String> = ["--json", "--numeric-ids", "--one-file-system", "--exclude-caches"].map(str::to_owned).into();
        words.extend(["--exclude-if-present=.nobackup", "--keep-exclude-tags", "--files-cache=ctime,size,inode"].map(str::to_owned));
        words.push(format!("--compression={}", self.config.compression));
        words.push(format!("--timestamp={}", archive::time(at)));
        // borg puts values in the place of {names} in comments.
        words.push(format!("--comment={}", comment.replace('{', "{{").replace('}', "}}")));
        words.extend(source.exclude.iter().map(|pattern| format!("--exclude={}", style(pattern))));
        words.extend(source.stdin_name.map(|name| format!("--stdin-name={name}")));
        words.extend(self.rate());
        let paths = source.stdin_name.map(|_| "-").into_iter().chain(source.files.then_some("."));
        let rest: Vec<String> = [self.archive(name)].into_iter().chain(paths.map(str::to_owned)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let command = self.command("create", &words, rest);
        Command { directory: Some(source.directory.to_owned()), input: source.stdin_name.is_some(), ..command }
    }

    pub fn rename(&self, from: &str, to: &str) -> Command {
        self.command("rename", &[], [self.archive(from), to.to_owned()])
    }

    /// Removes archives of one volume beyond `keep`; `glob` is exactly theirs.
    pub fn prune(&self, glob: &str, keep: &Keep) -> Command {
        let rules = [
            ("last", keep.last),
            ("hourly", keep.hourly),
            ("daily", keep.daily),
            ("weekly", keep.weekly),
            ("monthly", keep.monthly),
            ("yearly", keep.yearly),
        ];
        let mut words: Vec<String> =
            rules.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("--keep-{name}={count}")).collect();
        words.push(format!("--glob-archives={glob}"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.command("prune", &words, [self.repository.location.clone()])
    }

    /// Removes archives by their glob: those that never got their final name.
    pub fn delete(&self, glob: &str) -> Command {
        self.command("delete", &[&format!("--glob-archives={glob}")], [self.repository.location.clone()])
    }

    /// Frees the space of what was removed.
    pub fn compact(&self) -> Command {
        self.command("compact", &[], [self.repository.location.clone()])
    }

    pub fn check_repository(&self) -> Command {
        Command { is_check: true, ..self.command("check", &["--repository-only"], [self.repository.location.clone()]) }
    }

    pub fn check_archives(&self) -> Command {
        Command { is_check: true, ..self.command("check", &["--archives-only"], [self.repository.location.clone()]) }
    }

    /// Reads, decrypts and authenticates everything in one archive. `check --verify-data` would do that with the whole repository.
    pub fn verify(&self, name: &str) -> Command {
        Command { is_check: true, ..self.command("extract", &["--dry-run"], [self.archive(name)]) }
    }

    /// All archives, or those of a glob, as JSON.
    pub fn list_archives(&self, glob: Option<&str>) -> Command {
        let glob = glob.map(|glob| format!("--glob-archives={glob}"));
        let words: Vec<&str> = ["--json", "--format={comment}{hostname}{start}", "--consider-checkpoints"]
            .into_iter()
            .filter(|word| !word.starts_with("--consider") || self.version.minor >= 4)
            .chain(glob.as_deref())
            .collect();
        self.command("list", &words, [self.repository.location.clone()])
    }

    /// The files of an archive, a line of JSON each.
    pub fn list_files(&self, name: &str, hashes: bool, paths: &[String]) -> Command {
        let format = format!("--format={{type}}{{size}}{{mtime}}{{linktarget}}{}", if hashes { "{sha256}" } else { "" });
        self.command("list", &["--json-lines", &format], [vec![self.archive(name)], exactly(paths)].concat())
    }

    pub fn info(&self, name: &str) -> Command {
        self.command("info", &["--json"], [self.archive(name)])
    }

    pub fn diff(&self, one: &str, other: &str) -> Command {
        self.command("diff", &["--json-lines", "--sort"], [self.archive(one), other.to_owned()])
    }

    /// Extracts into `directory`: all of an archive, or what lies below `paths`.
    pub fn extract(&self, name: &str, directory: &Path, paths: &[String]) -> Command {
        let command = self.command("extract", &["--numeric-ids", "--sparse"], [vec![self.archive(name)], exactly(paths)].concat());
        Command { directory: Some(directory.to_owned()), ..command }
    }

    /// One file to standard output.
    pub fn extract_stdout(&self, name: &str, path: &str) -> Command {
        self.command("extract", &["--stdout"], [vec![self.archive(name)], exactly(&[path.to_owned()])].concat())
    }

    /// An archive as a directory, until it is unmounted.
    pub fn mount(&self, name: &str, directory: &Path) -> Command {
        self.command("mount", &[], [self.archive(name), directory.to_string_lossy().into_owned()])
    }

    pub fn umount(&self, directory: &Path) -> Command {
        self.command("umount", &[], [directory.to_string_lossy().into_owned()])
    }

    /// The repository's key, to standard output.
    pub fn key_export(&self) -> Command {
        self.command("key", &["export"], [self.repository.location.clone()])
    }

    /// Only for what the journal proves to be held by a dead run.
    pub fn break_lock(&self) -> Command {
        self.command("break-lock", &[], [self.repository.location.clone()])
    }

    fn archive(&self, name: &str) -> String {
        format!("{}::{name}", self.repository.location)
    }

    /// Of borg's units, 1000 bytes a second.
    fn rate(&self) -> Option<String> {
        self.config.upload_limit.map(|bytes| format!("--upload-ratelimit={}", (bytes / 1000).max(1)))
    }

    fn command(&self, what: &str, words: &[&str], rest: impl IntoIterator<Item = String>) -> Command {
        // mount and umount know no --log-json of their own; what they say is text.
        let common = ["--log-json".to_owned(), "--progress".to_owned(), format!("--lock-wait={}", self.lock_wait(words))];
        let common = if what == "umount" { &common[..1] } else { &common[..] };
        let mut all: Vec<String> = self.priority.to_vec();
        all.push(self.config.borg.clone());
        all.extend(common.iter().cloned());
        all.push(what.to_owned());
        all.extend(words.iter().map(|word| (*word).to_owned()));
        // Names and paths are others' words: none is taken for an option.
        all.push("--".to_owned());
        all.extend(rest);
        // `key export` is a command of a command: its options come after it.
        Command { words: all, env: self.env(), directory: None, input: false, is_check: false }
    }

    /// borg looks for a lock again after a tenth of this. Only what is fed by a stream cannot be asked again.
    fn lock_wait(&self, words: &[&str]) -> u64 {
        let longest = self.config.lock_wait.as_secs().max(1);
        let is_fed = words.iter().any(|word| word.starts_with("--stdin-name="));
        if is_fed { longest } else { longest.min(LOCK_TURN) }
    }

    fn env(&self) -> BTreeMap<String, String> {
        let base = self.base.to_string_lossy();
        let mut env: BTreeMap<String, String> = [
            ("BORG_BASE_DIR", base.to_string()),
            // The system's may be read-only, or small.
            ("TMPDIR", format!("{base}/tmp")),
            ("BORG_EXIT_CODES", "modern".to_owned()),
            // Locks are broken by our journal's proof, never by a process id, which means nothing across containers.
            ("BORG_HOSTNAME_IS_UNIQUE", "no".to_owned()),
            ("BORG_HOST_ID", holder(self.run)),
            // A target may be mounted elsewhere one day; that it is the same repository is known by its key.
            ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes".to_owned()),
            ("BORG_DISPLAY_PASSPHRASE", "no".to_owned()),
            // Days of `keep` are days of UTC, as the archives' names are.
            ("TZ", "UTC".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if let Some(file) = self.passphrase {
            env.insert("BORG_PASSCOMMAND".to_owned(), format!("cat {}", quoted(&file.to_string_lossy())));
        }
        if self.foreign {
            env.insert("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK".to_owned(), "yes".to_owned());
        }
        if self.repository.location.starts_with("ssh://") {
            env.insert("BORG_RSH".to_owned(), self.rsh());
        }
        env
    }

    fn rsh(&self) -> String {
        let mut words = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=10 -o ServerAliveCountMax=3".to_owned();
        if let Some(key) = &self.config.ssh_key {
            words.push_str(&format!(" -o IdentitiesOnly=yes -i {}", quoted(&key.to_string_lossy())));
        }
        if let Some(hosts) = &self.config.ssh_known_hosts {
            words.push_str(&format!(" -o StrictHostKeyChecking=yes -o UserKnownHostsFile={}", quoted(&hosts.to_string_lossy())));
        }
        words
    }
}

/// Paths as they are, not as patterns: `re:x` may be the name of a file.
fn exactly(paths: &[String]) -> Vec<String> {
    paths.iter().map(|path| format!("pp:{path}")).collect()
}

/// A label's pattern in borg's words, as people know them from .gitignore: without a slash it is meant at any depth, with one from the
/// volume's root. Borg leaves out what is below a directory that is left out.
pub fn style(pattern: &str) -> String {
    const STYLES: [&str; 5] = ["fm:", "sh:", "re:", "pp:", "pf:"];
    if STYLES.iter().any(|style| pattern.starts_with(style)) {
        return pattern.to_owned();
    }
    let bare = pattern.trim_start_matches("./").trim_end_matches('/');
    match bare.strip_prefix('/').or_else(|| bare.contains('/').then_some(bare)) {
        Some(anchored) => format!("sh:{anchored}"),
        None => format!("sh:**/{bare}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(look: impl FnOnce(Access<'_>) -> T) -> T {
        let repository = Repository { location: "/srv/b ckups/n1".into(), name: "n1".into() };
        let config = config::Backup { upload_limit: Some(2_000_000), ..config::Backup::default() };
        look(Access {
            repository: &repository,
            passphrase: Some(Path::new("/run/secrets/it's")),
            config: &config,
            base: Path::new("/var/lib/skep/backup/borg"),
            run: "r1",
            version: Version { major: 1, minor: 2, patch: 4 },
            priority: &["nice".into(), "-n".into(), "10".into()],
            foreign: false,
        })
    }

    #[test]
    fn a_dump_beside_the_files() {
        with(|access| {
            let at = "2026-11-23T02:00:07Z".parse().expect("a time");
            let exclude = ["pp:data".to_owned(), "*.log".to_owned(), "cache/".to_owned(), "/a/b".to_owned()];
            let source = Source { directory: Path::new("/v/_data"), files: true, exclude: &exclude, stdin_name: Some("dump/postgres.sql") };
            let command = access.create("v@n1-2026-11-23T02:00:07.unproven", at, r#"{"skep":1}"#, &source);
            assert!(command.input && command.directory.as_deref() == Some(Path::new("/v/_data")));
            let line = format!("{}\n{command}", command.environment().join("\n"));
            for part in [
                "cd /v/_data && ",
                "BORG_PASSCOMMAND='cat '\\''/run/secrets/it'\\''\\'\\'''\\''s'\\'''",
                " nice -n 10 borg --log-json --progress --lock-wait=600 create --json ",
                " '--comment={{\"skep\":1}}' --exclude=pp:data '--exclude=sh:**/*.log' '--exclude=sh:**/cache' --exclude=sh:a/b --stdin-name=dump/postgres.sql ",
                " --upload-ratelimit=2000 -- '/srv/b ckups/n1::v@n1-2026-11-23T02:00:07.unproven' - . < DUMP",
            ] {
                assert!(line.contains(part), "{part}\n{line}");
            }
        });
    }

    #[test]
    fn keep_and_paths_are_exact() {
        with(|access| {
            let keep = Keep { daily: 7, monthly: 36, ..Keep::default() };
            let line = access.prune("v@n1-[0-9]*", &keep).to_string();
            assert!(line.ends_with("prune --keep-daily=7 --keep-monthly=36 '--glob-archives=v@n1-[0-9]*' -- '/srv/b ckups/n1'"), "{line}");
            let command = access.extract("a", Path::new("/to"), &["re:x".to_owned()]);
            assert_eq!(command.words.last().map(String::as_str), Some("pp:re:x"));
        });
    }
}
