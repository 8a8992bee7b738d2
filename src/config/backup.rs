//! `[backup]`: where volumes are saved to, when, and what is kept.

use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::Config;
use super::cron::{Schedule, Window};
use super::given::Given;
use super::keep::Keep;
use super::settings::{is_off, names, optional_text, text};
use crate::diagnostic::{Diagnostic, brief};

type Read<T> = Result<T, Diagnostic>;

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

impl Backup {
    /// Of schedules and windows.
    pub fn zone(&self) -> TimeZone {
        super::cron::zone(&self.time_zone)
    }

    /// In which hours runs begin; `None`: in any.
    pub fn hours(&self) -> Option<Window> {
        self.window.as_deref().and_then(|window| Window::parse(window).ok())
    }
}

/// What a volume's containers may be asked to do while it is read, where no label says.
pub(super) const MODES: &[(&str, &str)] = &[("hot", "hot"), ("pause", "pause"), ("stop", "stop")];

const LONGEST_PATTERN: usize = 512;

/// A pattern of files to leave out: relative to the volume's root, in one of borg's styles.
///
/// # Errors
/// Why it cannot be one, and what to write.
pub fn pattern(text: &str) -> Result<(), (String, String)> {
    const STYLES: [&str; 5] = ["fm:", "sh:", "re:", "pp:", "pf:"];
    const EXAMPLE: &str = "write it relative to the volume's root, as `cache/*` or `sh:**/*.tmp`";
    if text.is_empty() || text.len() > LONGEST_PATTERN || text.contains(char::is_control) {
        return Err((format!("`{}` is not a pattern of files", brief(text)), EXAMPLE.to_owned()));
    }
    let (style, path) = text.split_at(STYLES.iter().find(|style| text.starts_with(**style)).map_or(0, |style| style.len()));
    if path.is_empty() {
        return Err((format!("`{}` says no files", brief(text)), EXAMPLE.to_owned()));
    }
    if style == "re:"
        && let Err(error) = regex::Regex::new(path)
    {
        let why = error.to_string();
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        return Err((format!("`{}` is no regular expression: {why}", brief(text)), EXAMPLE.to_owned()));
    }
    if path.starts_with('/') {
        let help = format!("write `{style}{}`: patterns are relative to the volume's root", brief(path.trim_start_matches('/')));
        return Err((format!("`{}` begins at the root of the machine", brief(text)), help));
    }
    match style != "re:" && path.split('/').any(|part| part == "..") {
        true => Err((format!("`{}` leads out of the volume", brief(text)), EXAMPLE.to_owned())),
        false => Ok(()),
    }
}

pub(super) fn excludes(given: &Given) -> Read<Vec<String>> {
    if is_off(given) {
        return Ok(Vec::new());
    }
    let patterns = names(given)?;
    match patterns.iter().find_map(|text| pattern(text).err()) {
        Some((why, help)) => Err(Diagnostic::error("bad-pattern", why).help(help)),
        None => Ok(patterns),
    }
}

pub(super) fn schedule(given: &Given) -> Read<String> {
    checked(text(given, "0 2 * * *")?, "bad-schedule", |text| Schedule::parse(text).map(drop))
}

pub(super) fn keep(given: &Given) -> Read<String> {
    checked(text(given, "7d,4w,36m")?, "bad-keep", |text| Keep::parse(text).map(drop))
}

pub(super) fn window(given: &Given) -> Read<Option<String>> {
    let Some(text) = optional_text(given, "22:00-06:00")? else { return Ok(None) };
    checked(text, "bad-window", |text| Window::parse(text).map(drop)).map(Some)
}

pub(super) fn time_zone(given: &Given) -> Read<String> {
    checked(text(given, "Europe/Paris")?, "bad-time-zone", |text| match TimeZone::get(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{}` is not a time zone; write \"UTC\" or a name as \"Europe/Paris\"", brief(text))),
    })
}

/// borg's compression: `lz4`, `zstd,3`, `auto,zlib,6`.
pub(super) fn compression(given: &Given) -> Read<String> {
    checked(text(given, "zstd,3")?, "bad-compression", |text| {
        let bare = text.strip_prefix("auto,").unwrap_or(text);
        let (method, level) = bare.split_once(',').map_or((bare, None), |(method, level)| (method, Some(level)));
        let levels = match method {
            "none" | "lz4" => 0..=0,
            "zstd" => 1..=22,
            "zlib" | "lzma" => 0..=9,
            _ => return Err(format!("`{}` is no compression; write \"zstd,3\", \"lz4\", \"zlib,6\", \"lzma,6\" or \"none\"", brief(text))),
        };
        let fine =
            level.is_none_or(|level| method != "none" && method != "lz4" && level.parse().is_ok_and(|level: u8| levels.contains(&level)));
        match fine {
            true => Ok(()),
            false if levels == (0..=0) => Err(format!("`{method}` has no levels; write \"{method}\"")),
            false => Err(format!("`{method}` has levels from {} to {}; write \"{method},{}\"", levels.start(), levels.end(), 3)),
        }
    })
}

/// A text that `check` has nothing to say about; what it says is a sentence, a semicolon, and what to write.
fn checked(text: String, code: &str, check: impl Fn(&str) -> Result<(), String>) -> Read<String> {
    match check(&text) {
        Ok(()) => Ok(text),
        Err(said) => {
            let (why, help) = said.split_once("; ").unwrap_or((&said, "config/skep.toml has an example"));
            Err(Diagnostic::error(code, why).help(help))
        }
    }
}

pub(super) fn program(given: &Given) -> Read<String> {
    let text = text(given, "borg")?;
    match text.starts_with('-') || text.contains(char::is_whitespace) || (text.contains('/') && !text.starts_with('/')) {
        true => Err(Diagnostic::error("bad-program", format!("`{}` is neither a name nor a path", brief(&text)))
            .help("write \"borg\", or a path as \"/usr/local/bin/borg\"")),
        false => Ok(text),
    }
}

/// A path from the root, or none.
pub(super) fn path(given: &Given) -> Read<Option<PathBuf>> {
    match optional_text(given, "/path")? {
        Some(text) if !text.starts_with('/') => Err(Diagnostic::error("bad-path", format!("`{}` is a relative path", brief(&text)))
            .help(format!("write it from the root: \"/{}\"", brief(text.trim_start_matches("./"))))),
        text => Ok(text.map(PathBuf::from)),
    }
}

/// Settings of `[backup]` that are fine alone and not together.
pub(super) fn contradictions(config: &Config) -> Vec<Diagnostic> {
    let backup = &config.backup;
    let mut findings = Vec::new();
    if backup.targets.is_empty() {
        if *backup != Backup::default() {
            let finding = Diagnostic::warning("backup-without-targets", "[backup] is set, but names no target: nothing is saved");
            findings.push(finding.help("write targets = [\"/srv/backups\"]"));
        }
        return findings;
    }
    if config.state.directory.is_none() {
        let finding = Diagnostic::error(
            "backup-without-state",
            "backups need state.directory: what was saved when, and what was paused, is kept there",
        );
        findings.push(finding.help("write directory = \"/var/lib/skep\" in [state], or leave backup.targets out"));
    }
    if !config.docker.enabled {
        let finding =
            Diagnostic::warning("backup-without-docker", "docker.enabled is off, so nothing is known of volumes: nothing is saved");
        findings.push(finding.help("write enabled = true in [docker], or leave backup.targets out"));
    }
    let inside =
        |path: &PathBuf| backup.targets.iter().find(|target| target.location.starts_with('/') && path.starts_with(&target.location));
    let places = [("backup.scratch", &backup.scratch), ("backup.volumes", &backup.volumes)];
    for (name, path) in places {
        if let Some(target) = path.as_ref().and_then(inside) {
            let finding = Diagnostic::error("backup-in-target", format!("{name} lies in the target `{}`", target.name));
            findings.push(finding.help("keep repositories in a directory of their own"));
        }
    }
    if backup.pause_limit >= backup.timeout {
        let finding = Diagnostic::error("pause-order", "backup.pause-limit is not shorter than backup.timeout");
        findings.push(finding.help("a paused container goes on after pause-limit, a run ends after timeout"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{needs_restart, parse};

    fn codes(text: &str) -> (Option<Config>, Vec<String>) {
        let (config, findings) = parse("skep.toml", &format!("[backup]\n{text}"), &[]);
        assert!(findings.iter().all(|finding| finding.help.is_some()), "{findings:?}");
        // Who hears of backups is [notify]'s.
        (config, findings.into_iter().map(|finding| finding.code).filter(|code| code != "nobody-hears").collect())
    }

    fn named(text: &str) -> Vec<(String, String)> {
        let (config, findings) = codes(&format!("targets = {text}"));
        assert_eq!(findings, [""; 0], "{text}");
        config.expect("usable").backup.targets.into_iter().map(|target| (target.name, target.location)).collect()
    }

    #[test]
    fn one_line_is_enough() {
        let targets = "[\"/srv/backups/\", \"offsite=ssh://u@h.example:23/./skep\", \"ssh://[2001:db8::7]:22/b\", \"ssh://nas/b\"]";
        let wanted = [
            ("backups", "/srv/backups"),
            ("offsite", "ssh://u@h.example:23/./skep"),
            ("2001-db8--7", "ssh://[2001:db8::7]:22/b"),
            ("nas", "ssh://nas/b"),
        ];
        assert_eq!(named(targets), wanted.map(|(name, location)| (name.to_owned(), location.to_owned())));
        assert_eq!(named("\"off\""), []);
        let variable = [("SKEP_BACKUP_TARGETS".to_owned(), "/srv/b, x=ssh://h/b".to_owned())];
        let (config, _) = parse("skep.toml", "", &variable);
        assert_eq!(config.expect("usable").backup.targets.len(), 2);
    }

    #[test]
    fn all_that_can_be_set() {
        let text = "targets = [\"/b\"]\npassphrase-file = \"/run/secrets/p\"\nrequire-key-export = false\nschedule = \"@daily\"\n\
                    keep = \"last 3\"\nmode = \"pause\"\nexclude = [\"cache/*\"]\ntimeout = \"2h\"\ntime-zone = \"Europe/Paris\"\n\
                    jitter = \"0s\"\nwindow = \"22-6\"\npause-limit = \"10s\"\nparallel = 2\nparallel-per-target = 2\nnice = 0\n\
                    io-idle = false\nupload-limit = \"10MB\"\ncompression = \"auto,zlib,6\"\nlock-wait = \"0s\"\nretries = 0\n\
                    retry-pause = \"1s\"\ncheck-repository = \"off\"\ncheck-archives = \"60d\"\nverify-data = \"off\"\nverify-slices = 1\n\
                    drill = \"off\"\nscratch = \"/scratch\"\noverdue = \"1h\"\nshrink = 90\nmin-free = \"off\"\nvolumes = \"/volumes\"\n\
                    ssh-key = \"/k\"\nssh-known-hosts = \"/h\"\nborg = \"/opt/borg\"";
        let (config, findings) = codes(text);
        assert_eq!(findings, [""; 0]);
        let config = config.expect("usable");
        let (backup, default) = (&config.backup, Backup::default());
        assert_eq!((backup.upload_limit, backup.min_free, backup.drill), (Some(10_000_000), 0, None));
        assert_eq!((backup.check_archives, backup.zone().iana_name()), (Some(Duration::from_secs(60 * 86_400)), Some("Europe/Paris")));
        assert!(backup.hours().is_some() && backup.window != default.window && backup.borg != default.borg);
        assert_eq!(needs_restart(&Config::default(), &config), ["backup"]);
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        for (text, code) in [
            ("targets = 1", "bad-type"),
            ("targets = [\"backups\"]", "bad-target"),
            ("targets = [\"./backups\"]", "bad-target"),
            ("targets = [\"/\"]", "bad-target"),
            ("targets = [\"/a/../b\"]", "bad-target"),
            ("targets = [\"/a b\"]", "bad-target"),
            ("targets = [\"/{hostname}\"]", "bad-target"),
            ("targets = [\"a:b=/x\"]", "bad-target"),
            ("targets = [\"=/x\"]", "bad-target"),
            ("targets = [\"a b=/x\"]", "bad-target"),
            ("targets = [\"u@h:backups\"]", "bad-target"),
            ("targets = [\"file:///srv/b\"]", "bad-target"),
            ("targets = [\"s3://bucket/b\"]", "bad-target"),
            ("targets = [\"ssh://h\"]", "bad-target"),
            ("targets = [\"ssh://h/\"]", "bad-target"),
            ("targets = [\"ssh://h/./\"]", "bad-target"),
            ("targets = [\"ssh://u:pw@h/b\"]", "bad-target"),
            ("targets = [\"ssh://-oProxyCommand=x/b\"]", "bad-target"),
            ("targets = [\"ssh://-u@h/b\"]", "bad-target"),
            ("targets = [\"ssh://h:0/b\"]", "bad-target"),
            ("targets = [\"ssh://h:x/b\"]", "bad-target"),
            ("targets = [\"ssh://[h]/b\"]", "bad-target"),
            ("targets = [\"/a/b\", \"/c/b\"]", "target-twice"),
            ("targets = [\"x=/a\", \"x=/b\"]", "target-twice"),
            ("targets = [\"/a\", \"b=/a/\"]", "target-twice"),
            ("schedule = \"* * * * *\"", "bad-schedule"),
            ("schedule = \"0 0 30 2 *\"", "bad-schedule"),
            ("keep = \"0d\"", "bad-keep"),
            ("mode = \"scale\"", "bad-word"),
            ("exclude = [\"/etc\"]", "bad-pattern"),
            ("exclude = [\"re:(cache\"]", "bad-pattern"),
            ("exclude = [\"../x\"]", "bad-pattern"),
            ("time-zone = \"Paris\"", "bad-time-zone"),
            ("window = \"22\"", "bad-window"),
            ("compression = \"zip\"", "bad-compression"),
            ("compression = \"zstd,23\"", "bad-compression"),
            ("compression = \"lz4,1\"", "bad-compression"),
            ("timeout = \"1s\"", "out-of-range"),
            ("jitter = \"2d\"", "out-of-range"),
            ("pause-limit = \"2h\"", "out-of-range"),
            ("parallel = 0", "out-of-range"),
            ("nice = 20", "out-of-range"),
            ("retries = 21", "out-of-range"),
            ("drill = \"1m\"", "out-of-range"),
            ("shrink = 0", "out-of-range"),
            ("shrink = \"50%\"", "bad-type"),
            ("min-free = \"much\"", "bad-size"),
            ("passphrase-file = \"p\"", "bad-path"),
            ("ssh-key = \"~/.ssh/id\"", "bad-path"),
            ("borg = \"-x\"", "bad-program"),
            ("borg = \"bin/borg\"", "bad-program"),
            ("shedule = \"@daily\"", "unknown-setting"),
        ] {
            let (config, found) = codes(text);
            assert_eq!((config.is_none(), found.first().map(String::as_str)), (true, Some(code)), "{text}");
        }
    }

    #[test]
    fn what_goes_wrong_together_is_told() {
        const FINE: &str = "targets = [\"/srv/backups\"]\n";
        for (text, code, usable) in [
            ("retries = 1", "backup-without-targets", true),
            (&format!("{FINE}[state]\ndirectory = \"off\""), "backup-without-state", false),
            (&format!("{FINE}[docker]\nenabled = false"), "backup-without-docker", true),
            (&format!("{FINE}scratch = \"/srv/backups/scratch\""), "backup-in-target", false),
            (&format!("{FINE}pause-limit = \"1m\"\ntimeout = \"1m\""), "pause-order", false),
        ] {
            let (config, found) = codes(text);
            assert_eq!((config.is_some(), found), (usable, vec![code.to_owned()]), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_pattern_stays_in_the_volume(text in "\\PC{0,20}|(sh:|fm:|pp:|pf:)?[a-z./*]{0,12}") {
            if pattern(&text).is_ok() {
                let path = text.split_once(':').map_or(text.as_str(), |(style, rest)| if style.len() == 2 { rest } else { &text });
                prop_assert!(!path.starts_with('/') && (text.starts_with("re:") || path.split('/').all(|part| part != "..")));
            }
        }
    }
}
