//! What labels say of backups: `backup.*` of a volume, `backup.*` and `backup.volume.NAME.*` of a service, or the same under `skep.`.
//! What cannot be read counts as not said, and the volume is saved all the same: a backup too many is better than one that is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Database, Keep, Mode, OnError};
use crate::config::backup::pattern;
use crate::config::cron::Schedule;
use crate::diagnostic::{Diagnostic, Place, Severity, brief, nearest};
use crate::label::{self, Key, SismicsAuth, Value, boolean, duration};
use crate::snapshot::Labels;

/// The keys of this feature.
pub const KEYS: &[Key] = &[
    Key::route("backup", "true or false", "false", "`true` saves the named volumes of the service.").of_service(),
    Key::route("backup-schedule", "cron, or @daily", "[backup] schedule", "When: minute hour day month weekday.").of_service(),
    Key::route("backup-keep", "7d,4w,36m", "[backup] keep", "Archives that stay: so many of the last days, weeks, months.").of_service(),
    Key::route("backup-exclude", "patterns, by line or comma", "[backup] exclude", "Files left out, relative to the volume's root.")
        .of_service(),
    Key::route("backup-mode", "hot, pause or stop", "[backup] mode", "What happens to the containers while the volume is read.")
        .of_service(),
    Key::route(
        "backup-dump",
        "postgres, mysql, mariadb, mongodb, redis, sqlite:FILE or custom:COMMAND",
        "none",
        "A dump that the running container makes is saved, and not the database's own files.",
    )
    .of_service(),
    Key::route("backup-pre", "a command", "none", "Run by `sh -c` in the container before its volume is read.").of_service(),
    Key::route("backup-post", "a command", "none", "Run by `sh -c` in the container after that.").of_service(),
    Key::route("backup-on-error", "fail or continue", "fail", "Whether the volume is saved when `backup-pre` fails.").of_service(),
    Key::route("backup-timeout", "duration", "[backup] timeout", "For one run, everything included.").of_service(),
];

/// What a volume has beside them: whose it is.
const OWNER: Key = Key::route("owner", "one directory group", "none", "The directory group that owns the volume.").of_service();

const LONGEST_COMMAND: usize = 8192;
const MOST_PATTERNS: usize = 200;

/// What some labels say of one volume; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    pub enable: Option<bool>,
    pub schedule: Option<String>,
    pub keep: Option<Keep>,
    pub exclude: Option<Vec<String>>,
    pub mode: Option<Mode>,
    pub pre: Option<String>,
    pub post: Option<String>,
    pub timeout: Option<Duration>,
    pub on_error: Option<OnError>,
}

impl Wishes {
    /// The same, and what it leaves open as `weaker` has it.
    pub fn over(self, weaker: Wishes) -> Wishes {
        Wishes {
            enable: self.enable.or(weaker.enable),
            schedule: self.schedule.or(weaker.schedule),
            keep: self.keep.or(weaker.keep),
            exclude: self.exclude.or(weaker.exclude),
            mode: self.mode.or(weaker.mode),
            pre: self.pre.or(weaker.pre),
            post: self.post.or(weaker.post),
            timeout: self.timeout.or(weaker.timeout),
            on_error: self.on_error.or(weaker.on_error),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Wishes::default()
    }
}

/// What the labels of a service (or a plain container) say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceWishes {
    /// Of all its named volumes.
    pub all: Wishes,
    /// By the name in `backup.volume.NAME.*`: the volume's own, or that without the stack's prefix.
    pub volumes: BTreeMap<String, Wishes>,
    pub owner: Option<String>,
}

/// Reads what a service says of backups.
pub fn parse(spec: &label::ServiceSpec) -> (ServiceWishes, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let all = wishes(&spec.values, &mut findings);
    let volumes = spec.volumes.iter().map(|(name, values)| (name.clone(), wishes(values, &mut findings))).collect();
    (ServiceWishes { all, volumes, owner: owner(spec) }, findings)
}

/// What the labels of a service say of backups, other features' left aside: their findings are told elsewhere.
pub fn of_service(labels: &Labels, sismics: SismicsAuth) -> (ServiceWishes, Vec<Diagnostic>) {
    let keys = [KEYS, &[OWNER]].concat();
    let ours = labels.iter().filter(|(label, _)| is_about_backups(label));
    let ours: Labels = ours.map(|(label, value)| (label.clone(), value.clone())).collect();
    let (spec, mut findings) = label::parse(&ours, &keys, sismics);
    findings.retain(|finding| matches!(&finding.place, Some(Place::Label { key, .. }) if names_backups(key)));
    let (wishes, found) = parse(&spec);
    findings.extend(found);
    (wishes, findings)
}

/// What the labels of a volume say, and who owns it. Whatever else is ours does nothing there, and is told.
pub fn of_volume(labels: &Labels) -> (Wishes, Option<String>, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    for (label, value) in labels {
        let lower = label.to_ascii_lowercase();
        let ours = ["skep.", "haproxy.", "com.sismics.docker."].iter().any(|prefix| lower.starts_with(prefix));
        if lower.starts_with("backup.volume.") || (ours && !is_about_backups(label)) {
            findings.push(not_of_volumes(label, &lower, value));
        }
    }
    let ours = labels.iter().filter(|(label, _)| is_about_backups(label) && !label.to_ascii_lowercase().starts_with("backup.volume."));
    let ours: Labels = ours.map(|(label, value)| (label.clone(), value.clone())).collect();
    // On a volume the group owns, whatever it means on services: there are no routes here.
    let (spec, found) = label::parse(&ours, &[KEYS, &[OWNER]].concat(), SismicsAuth::Owner);
    findings.extend(found);
    let wishes = wishes(&spec.values, &mut findings);
    (wishes, owner(&spec), findings)
}

/// Does a label, well spelt or not, say something of backups or of an owner?
fn is_about_backups(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    let native = lower.strip_prefix("skep.").is_some_and(|rest| rest == "owner" || rest.starts_with("backup"));
    let others = ["traefik.", "skep.", "haproxy.", "com.sismics.docker."].iter().any(|prefix| lower.starts_with(prefix));
    native || lower == label::haproxy::AUTH || !others
}

fn names_backups(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    lower.starts_with("backup.") || lower.starts_with("skep.backup")
}

fn not_of_volumes(label: &str, lower: &str, value: &str) -> Diagnostic {
    let place = Place::Label { key: label.to_owned(), value: value.to_owned(), span: 0..label.len(), in_key: true };
    let finding = Diagnostic::warning("not-of-volumes", format!("`{}` means nothing on a volume", brief(label))).at(place);
    if let Some(key) = lower.strip_prefix("backup.volume.").and_then(|rest| rest.rsplit('.').next()) {
        return finding.help(format!("the volume is this one: write `backup.{}`", brief(key)));
    }
    let names = KEYS.iter().map(|key| key.name).chain(["owner"]);
    match lower.strip_prefix("skep.").and_then(|name| nearest(name, names)) {
        Some(near) => finding.help(format!("did you mean `skep.{near}`?")),
        None => finding.help("a volume has `backup.enable`, `backup.schedule`, ... and `skep.owner`; put others on the service"),
    }
}

fn owner(spec: &label::ServiceSpec) -> Option<String> {
    spec.get("owner").map(|value| value.text.clone())
}

/// What `values` say; what cannot be read is told, and not said.
fn wishes(values: &BTreeMap<&'static str, Value>, findings: &mut Vec<Diagnostic>) -> Wishes {
    let mut reader = Reader { values, findings };
    let mut wishes = Wishes {
        enable: reader.enable(),
        schedule: reader.read("backup-schedule", |value| {
            Schedule::parse(&value.text).map(|_| value.text.clone()).map_err(|said| sentence("bad-schedule", value, &said))
        }),
        keep: reader.read("backup-keep", |value| Keep::parse(&value.text).map_err(|said| sentence("bad-keep", value, &said))),
        exclude: reader.read("backup-exclude", patterns),
        mode: reader.read("backup-mode", mode),
        pre: reader.read("backup-pre", command),
        post: reader.read("backup-post", command),
        timeout: reader.read("backup-timeout", timeout),
        on_error: reader.read("backup-on-error", on_error),
    };
    if let Some(value) = values.get("backup-dump") {
        match database(value) {
            Ok(database) => {
                if wishes.mode.as_ref().is_some_and(|mode| *mode != Mode::Hot) {
                    let message = format!("`{}` is saved by a dump, for which its container must run", brief(&value.text));
                    reader.findings.push(Diagnostic::warning("mode-beside-dump", message).at(value.place()).help("leave the mode out"));
                }
                wishes.mode = Some(Mode::Dump(database));
            }
            Err(finding) => {
                reader.findings.push(finding);
                wishes.mode = Some(Mode::Hot);
            }
        }
    }
    wishes
}

struct Reader<'a> {
    values: &'a BTreeMap<&'static str, Value>,
    findings: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn read<T>(&mut self, key: &str, read: impl Fn(&Value) -> Result<T, Diagnostic>) -> Option<T> {
        match read(self.values.get(key)?) {
            Ok(read) => Some(read),
            Err(finding) => {
                self.findings.push(finding);
                None
            }
        }
    }

    /// Whoever writes something there that is neither yes nor no wants a backup rather than none.
    fn enable(&mut self) -> Option<bool> {
        let value = self.values.get("backup")?;
        match boolean(value) {
            Ok(enable) => Some(enable),
            Err(finding) => {
                let message = format!("{}; the volume is saved", finding.message);
                self.findings.push(Diagnostic { severity: Severity::Warning, message, ..finding });
                Some(true)
            }
        }
    }
}

/// A finding from a sentence that says what is wrong; behind a semicolon, what to write.
fn sentence(code: &str, value: &Value, said: &str) -> Diagnostic {
    let (why, help) = said.split_once("; ").unwrap_or((said, "`skep labels` shows what it looks like"));
    Diagnostic::error(code, why).at(value.place()).help(help)
}

fn patterns(value: &Value) -> Result<Vec<String>, Diagnostic> {
    let mut patterns = Vec::new();
    for line in value.lines() {
        let mut start = 0;
        for item in line.text.split(',') {
            let from = start + item.len() - item.trim_start().len();
            let part = line.part(from..from + item.trim().len());
            start += item.len() + 1;
            if part.text.is_empty() {
                continue;
            }
            pattern(&part.text).map_err(|(why, help)| Diagnostic::error("bad-pattern", why).at(part.place()).help(help))?;
            patterns.push(part.text);
        }
    }
    match patterns.len() {
        0 => Err(Diagnostic::error("bad-pattern", "no pattern is listed").at(value.place()).help("write it like `cache/*`")),
        1..=MOST_PATTERNS => Ok(patterns),
        _ => Err(Diagnostic::error("bad-pattern", format!("there are more than {MOST_PATTERNS} patterns"))
            .at(value.place())
            .help("leave out whole directories: `cache`")),
    }
}

fn mode(value: &Value) -> Result<Mode, Diagnostic> {
    let bad = |message: String| Diagnostic::error("bad-mode", message).at(value.place());
    let word = value.text.to_ascii_lowercase();
    match word.as_str() {
        "hot" => Ok(Mode::Hot),
        "pause" => Ok(Mode::Pause),
        "stop" => Ok(Mode::Stop),
        "scale" => Err(bad("services cannot be scaled to zero for a backup yet: that comes with backups across nodes".to_owned())
            .help("write `pause`, or have the database say itself what is in it: `backup.dump: postgres`")),
        "dump" => Err(bad("a dump has a label of its own".to_owned()).help("write `backup.dump: postgres` and leave the mode out")),
        _ => Err(bad(format!("`{}` is not a mode", brief(&value.text))).help(match nearest(&word, ["hot", "pause", "stop"]) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write `hot`, `pause` or `stop`".to_owned(),
        })),
    }
}

fn command(value: &Value) -> Result<String, Diagnostic> {
    match value.text.len() <= LONGEST_COMMAND && !value.text.contains('\0') {
        true => Ok(value.text.clone()),
        false => Err(Diagnostic::error("bad-command", "this is not a command for a shell")
            .at(value.place())
            .help("put a script into the image, and write its path")),
    }
}

fn timeout(value: &Value) -> Result<Duration, Diagnostic> {
    const RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(7 * 86_400);
    let read = duration(value)?;
    match RANGE.contains(&read) {
        true => Ok(read),
        false => {
            Err(Diagnostic::error("bad-duration", "a run has from one minute to seven days").at(value.place()).help("write it like `2h`"))
        }
    }
}

fn on_error(value: &Value) -> Result<OnError, Diagnostic> {
    match value.text.to_ascii_lowercase().as_str() {
        "fail" => Ok(OnError::Fail),
        "continue" => Ok(OnError::Continue),
        _ => Err(Diagnostic::error("bad-word", format!("`{}` means nothing here", brief(&value.text)))
            .at(value.place())
            .help("write `fail`, or `continue` to save the volume although its command failed")),
    }
}

fn database(value: &Value) -> Result<Database, Diagnostic> {
    const ALL: &str = "write one of postgres, mysql, mariadb, mongodb, redis, `sqlite:FILE`, `custom:COMMAND`";
    let bad = |message: String| Diagnostic::error("bad-dump", format!("{message}; the volume is saved as its files are")).at(value.place());
    let (word, rest) = value.text.split_once(':').map_or((value.text.as_str(), None), |(word, rest)| (word.trim(), Some(rest.trim())));
    let word = word.to_ascii_lowercase();
    let database = match word.as_str() {
        "postgres" | "postgresql" => Database::Postgres,
        "mysql" => Database::Mysql,
        "mariadb" => Database::Mariadb,
        "mongodb" | "mongo" => Database::Mongodb,
        "redis" => Database::Redis,
        "sqlite" => {
            let file = rest.unwrap_or_default();
            return match !file.is_empty()
                && !file.starts_with(['/', '-'])
                && file.split('/').all(|part| part != "..")
                && !file.contains('\0')
            {
                true => Ok(Database::Sqlite(file.to_owned())),
                false => Err(bad("the file of the database is missing, or not one of the volume".to_owned())
                    .help("write it relative to the volume's root: `sqlite:data/app.db`")),
            };
        }
        "custom" => {
            return match rest.unwrap_or_default() {
                "" => Err(bad("there is no command".to_owned()).help("write it behind the colon: `custom:my-dump --all`")),
                command if command.len() <= LONGEST_COMMAND && !command.contains('\0') => Ok(Database::Custom(command.to_owned())),
                _ => Err(bad("this is not a command for a shell".to_owned()).help("put a script into the image, and write its path")),
            };
        }
        _ => {
            let finding = bad(format!("`{}` is not a database that can be dumped", brief(&value.text)));
            return Err(match nearest(&word, ["postgres", "mysql", "mariadb", "mongodb", "redis", "sqlite", "custom"]) {
                Some(near) => finding.help(format!("did you mean `{near}`?")),
                None => finding.help(ALL),
            });
        }
    };
    match rest {
        None => Ok(database),
        Some(_) => Err(bad(format!("`{word}` has nothing behind it")).help(format!("write `{word}`"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect()
    }

    fn codes(findings: &[Diagnostic]) -> Vec<&str> {
        assert!(findings.iter().all(|finding| finding.help.is_some() && finding.place.is_some()), "{findings:?}");
        findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    #[test]
    fn all_that_a_volume_can_say() {
        let written = labels(&[
            ("backup.enable", "true"),
            ("backup.schedule", "30 3 * * mon"),
            ("backup.keep", "last 3, 7d"),
            ("backup.exclude", "cache/*, sh:**/*.tmp\nlogs\n"),
            ("backup.mode", "Pause"),
            ("backup.pre", "sync"),
            ("backup.post", "echo done"),
            ("backup.timeout", "2h"),
            ("backup.on-error", "continue"),
            ("com.sismics.docker.auth", "staff"),
            ("maintainer", "me"),
        ]);
        let (wishes, owner, findings) = of_volume(&written);
        assert_eq!(codes(&findings), [""; 0]);
        let exclude = ["cache/*", "sh:**/*.tmp", "logs"].map(str::to_owned).to_vec();
        assert_eq!(
            (wishes, owner.as_deref()),
            (
                Wishes {
                    enable: Some(true),
                    schedule: Some("30 3 * * mon".to_owned()),
                    keep: Some(Keep { last: 3, daily: 7, ..Keep::default() }),
                    exclude: Some(exclude),
                    mode: Some(Mode::Pause),
                    pre: Some("sync".to_owned()),
                    post: Some("echo done".to_owned()),
                    timeout: Some(Duration::from_secs(7200)),
                    on_error: Some(OnError::Continue),
                },
                Some("staff")
            )
        );
    }

    #[test]
    fn databases() {
        let read = |text: &str| of_volume(&labels(&[("backup.dump", text)]));
        for (text, database) in [
            ("postgres", Database::Postgres),
            ("PostgreSQL", Database::Postgres),
            ("mysql", Database::Mysql),
            ("mariadb", Database::Mariadb),
            ("mongodb", Database::Mongodb),
            ("redis", Database::Redis),
            ("sqlite: data/app.db", Database::Sqlite("data/app.db".to_owned())),
            ("custom:dump --all | head -c 5", Database::Custom("dump --all | head -c 5".to_owned())),
        ] {
            let (wishes, _, findings) = read(text);
            assert_eq!((wishes.mode, codes(&findings)), (Some(Mode::Dump(database)), vec![]), "{text}");
        }
        for text in ["postgre", "oracle", "sqlite", "sqlite:/etc/passwd", "sqlite:../x", "sqlite:-x", "custom:", "redis:6379", ":"] {
            let (wishes, _, findings) = read(text);
            assert_eq!((wishes.mode, codes(&findings)), (Some(Mode::Hot), vec!["bad-dump"]), "{text}");
        }
        let (wishes, _, findings) = of_volume(&labels(&[("backup.dump", "redis"), ("backup.mode", "stop")]));
        assert_eq!((wishes.mode, codes(&findings)), (Some(Mode::Dump(Database::Redis)), vec!["mode-beside-dump"]));
    }

    #[test]
    fn what_cannot_be_read_is_told_and_not_said() {
        for (label, value, code) in [
            ("backup.schedule", "daily", "bad-schedule"),
            ("backup.schedule", "0 0 30 2 *", "bad-schedule"),
            ("backup.keep", "forever", "bad-keep"),
            ("backup.exclude", "/etc", "bad-pattern"),
            ("backup.exclude", "a\n../b", "bad-pattern"),
            ("backup.exclude", ",", "bad-pattern"),
            ("backup.exclude", "re:cache(", "bad-pattern"),
            ("backup.mode", "scale", "bad-mode"),
            ("backup.mode", "dump", "bad-mode"),
            ("backup.mode", "puase", "bad-mode"),
            ("backup.timeout", "5", "bad-duration"),
            ("backup.timeout", "1s", "bad-duration"),
            ("backup.on-error", "ignore", "bad-word"),
            ("backup.shedule", "@daily", "unknown-key"),
            ("skep.backup-kep", "7d", "unknown-key"),
            ("skep.host", "a.de", "not-of-volumes"),
            ("haproxy.virtual_host", "a.de", "not-of-volumes"),
            ("backup.volume.data.keep", "7d", "not-of-volumes"),
            ("bakup.enable", "true", "misspelt-prefix"),
        ] {
            let (wishes, _, findings) = of_volume(&labels(&[("backup.enable", "true"), (label, value)]));
            assert_eq!((wishes, codes(&findings)), (Wishes { enable: Some(true), ..Wishes::default() }, vec![code]), "{label}");
        }
    }

    #[test]
    fn whoever_says_neither_yes_nor_no_is_saved() {
        let (wishes, _, findings) = of_volume(&labels(&[("backup.enable", "daily")]));
        assert_eq!((wishes.enable, codes(&findings), findings[0].severity), (Some(true), vec!["bad-boolean"], Severity::Warning));
    }

    #[test]
    fn a_service_speaks_for_all_its_volumes_and_for_one() {
        let written = labels(&[
            ("skep.backup", "true"),
            ("skep.backup-keep", "7d"),
            ("backup.volume.db.keep", "30d"),
            ("backup.volume.db.dump", "postgres"),
            ("backup.volume.cache.enable", "false"),
            ("skep.host", "a.de"),
            ("skpe.auth", "x"),
            ("com.sismics.docker.auth", "staff"),
        ]);
        for (sismics, owner) in [(SismicsAuth::Both, Some("staff")), (SismicsAuth::Route, None)] {
            let (wishes, findings) = of_service(&written, sismics);
            assert_eq!((codes(&findings), wishes.owner.as_deref()), (vec![], owner));
            assert_eq!(wishes.volumes["cache"].enable, Some(false));
            let database = wishes.volumes["db"].clone().over(wishes.all);
            assert_eq!((database.enable, database.keep.map(|keep| keep.daily)), (Some(true), Some(30)));
            assert_eq!(database.mode, Some(Mode::Dump(Database::Postgres)));
        }
    }

    proptest! {
        #[test]
        fn any_labels_are_survived_and_findings_point_at_them(
            written in proptest::collection::btree_map(
                prop_oneof![
                    proptest::sample::select(KEYS).prop_map(|key| format!("skep.{}", key.name)),
                    proptest::sample::select(vec!["enable", "schedule", "keep", "exclude", "mode", "dump", "timeout", "on-error"])
                        .prop_map(|key| format!("backup.{key}")),
                    "backup\\.(volume\\.)?\\PC{0,10}",
                ],
                prop_oneof![Just("true".to_owned()), "[a-z0-9,:*/ .\n-]{0,16}", "\\PC{0,20}"],
                0..6,
            )
        ) {
            let (_, _, findings) = of_volume(&written);
            let (_, more) = of_service(&written, SismicsAuth::Both);
            for finding in findings.iter().chain(&more) {
                let Some(Place::Label { key, value, span, in_key }) = &finding.place else { panic!("{finding:?}") };
                prop_assert_eq!(written.get(key), Some(value));
                let text = if *in_key { key } else { value };
                prop_assert!(text.get(span.clone()).is_some());
            }
        }
    }
}
