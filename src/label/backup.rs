//! Labels about backups as the first stacks write them: `backup.enable` and its like on a service or a volume, and
//! `backup.volume.NAME.*` on a service, about one of its volumes. They become the native keys `backup`, `backup-schedule`, ...

use super::{ServiceSpec, Value, haproxy, stray};
use crate::diagnostic::{Diagnostic, Place, brief, nearest};
use crate::snapshot::Labels;

/// What every label about backups begins with.
pub(super) const PREFIX: &str = "backup.";
/// Behind it a volume's name and, behind its last dot, a key.
const VOLUME: &str = "backup.volume.";
/// The same, for the reference.
pub const VOLUMES: &str = "backup.volume.NAME.KEY";
pub(super) const ENABLE: &str = "backup.enable";

/// What stands behind the prefix, and the native keys that say the same.
const KEYS: [(&str, &str); 10] = [
    ("enable", "backup"),
    ("schedule", "backup-schedule"),
    ("keep", "backup-keep"),
    ("exclude", "backup-exclude"),
    ("mode", "backup-mode"),
    ("dump", "backup-dump"),
    ("pre", "backup-pre"),
    ("post", "backup-post"),
    ("on-error", "backup-on-error"),
    ("timeout", "backup-timeout"),
];

/// Words that other tools, or common sense, use for these keys.
const SYNONYMS: [(&str, &str); 12] = [
    ("enabled", "enable"),
    ("cron", "schedule"),
    ("retention", "keep"),
    ("prune", "keep"),
    ("ignore", "exclude"),
    ("excludes", "exclude"),
    ("database", "dump"),
    ("before", "pre"),
    ("after", "post"),
    ("stop", "mode"),
    ("pause", "mode"),
    ("on_error", "on-error"),
];

/// The most volumes that one service may have its own words for.
const MOST_VOLUMES: usize = 200;

/// The native key of what stands behind the prefix.
pub fn native_key(name: &str) -> Option<&'static str> {
    KEYS.iter().find(|(own, _)| *own == name).map(|(_, native)| *native)
}

/// Reads the labels under `backup.` into `spec`, where native labels win.
pub(super) fn parse(labels: &Labels, spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    let mut said: Vec<(&'static str, Value)> = Vec::new();
    for (label, text) in labels {
        let lower = label.to_ascii_lowercase();
        let Some(rest) = lower.strip_prefix(PREFIX) else { continue };
        let here = Place::Label { key: label.clone(), value: text.clone(), span: 0..label.len(), in_key: true };
        // The volume's name keeps its case; the key is behind the last dot, as names may have dots.
        let volume = label.get(VOLUME.len()..).filter(|_| lower.starts_with(VOLUME));
        let (volume, name) = match volume.map(|rest| rest.rsplit_once('.').unwrap_or((rest, ""))) {
            Some((volume, name)) => (Some(volume), name.to_ascii_lowercase()),
            None => (None, rest.to_owned()),
        };
        let Some(key) = native_key(&name).filter(|_| volume != Some("")) else {
            findings.push(unknown(label, volume, &name).at(here));
            continue;
        };
        let Some(value) = Value::new(label, text) else {
            findings.push(haproxy::empty(label, here));
            continue;
        };
        let first = match volume {
            Some(volume) => spec.volumes.get(volume).and_then(|values| values.get(key)),
            None => said.iter().find(|(other, _)| *other == key).map(|(_, value)| value),
        };
        if let Some(first) = first {
            findings.push(haproxy::again(label, first, here));
            continue;
        }
        if volume.is_some_and(|volume| spec.volumes.len() >= MOST_VOLUMES && !spec.volumes.contains_key(volume)) {
            let message = format!("a service has its own words for at most {MOST_VOLUMES} volumes");
            findings.push(Diagnostic::error("too-many-volumes", message).at(here).help("label the volumes themselves"));
            continue;
        }
        let value = stray::unquoted(value, findings);
        match volume {
            Some(volume) => drop(spec.volumes.entry(volume.to_owned()).or_default().insert(key, value)),
            None => said.push((key, value)),
        }
    }
    for (key, value) in said {
        haproxy::whole(spec, key, value, findings);
    }
}

/// The label that `backup.` + `rest` was probably meant to be.
pub(super) fn nearest_label(rest: &str) -> Option<String> {
    nearest_key(rest).map(|name| format!("{PREFIX}{name}"))
}

fn nearest_key(name: &str) -> Option<&'static str> {
    let find = |name: &str| KEYS.iter().map(|(own, _)| *own).find(|own| *own == name);
    find(name)
        .or_else(|| SYNONYMS.iter().find(|(synonym, _)| *synonym == name).and_then(|(_, own)| find(own)))
        .or_else(|| nearest(name, KEYS.iter().map(|(own, _)| *own)))
}

fn unknown(label: &str, volume: Option<&str>, name: &str) -> Diagnostic {
    let finding = Diagnostic::error("unknown-key", format!("`{}` is not a label that Skep reads", brief(label)));
    let prefix = match volume {
        Some(volume) if name.is_empty() || volume.is_empty() => {
            let volume = if volume.is_empty() { "NAME" } else { volume };
            return finding.help(format!("write the volume's name and a key: `{VOLUME}{}.enable`", brief(volume)));
        }
        Some(volume) => format!("{VOLUME}{}.", brief(volume)),
        None => PREFIX.to_owned(),
    };
    match nearest_key(name) {
        Some(near) => finding.help(format!("did you mean `{prefix}{near}`?")),
        None => finding.help("`skep labels` lists every label that is read"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, read};

    #[test]
    fn each_says_what_its_native_key_says() {
        for (name, native) in super::KEYS {
            let (spec, findings) = read(&[(&format!("backup.{name}"), "x")]);
            assert_eq!((spec.get(native).map(|value| value.text.as_str()), codes(&findings)), (Some("x"), vec![]), "{name}");
            let (spec, findings) = read(&[(&format!("backup.volume.Shop_data.v2.{name}"), "x")]);
            assert_eq!(spec.volumes["Shop_data.v2"][native].text, "x", "{name}");
            assert_eq!(findings, []);
        }
    }

    #[test]
    fn mistakes_are_named_and_nothing_is_closed() {
        for (label, value, code, help) in [
            ("backup.enabled", "true", "unknown-key", "did you mean `backup.enable`?"),
            ("backup.shedule", "@daily", "unknown-key", "did you mean `backup.schedule`?"),
            ("backup.retention", "7d", "unknown-key", "did you mean `backup.keep`?"),
            ("backup.auth", "staff", "unknown-key", "`skep labels` lists every label that is read"),
            ("backup.volume.data", "true", "unknown-key", "write the volume's name and a key: `backup.volume.data.enable`"),
            ("backup.volume..keep", "7d", "unknown-key", "write the volume's name and a key: `backup.volume.NAME.enable`"),
            ("backup.volume.auth.kep", "7d", "unknown-key", "did you mean `backup.volume.auth.keep`?"),
            ("backup.keep", " ", "empty-value", "write a value, or remove the label"),
            ("Backup.Enable", "true", "duplicate-key", "keep one of them: upper and lower case are the same"),
            ("skep.backup", "false", "native-wins", "keep one of the two labels"),
        ] {
            let (spec, findings) = read(&[("skep.host", "a.de"), ("backup.enable", "true"), (label, value)]);
            let found: Vec<_> =
                findings.iter().map(|finding| (finding.code.as_str(), finding.help.as_deref().unwrap_or_default())).collect();
            assert_eq!(found, [(code, help)], "{label}");
            assert!(spec.closed.is_none() && spec.routes[0].closed.is_none(), "{label}");
        }
    }

    #[test]
    fn volumes_are_bounded() {
        let pairs: Vec<_> = (0..220).map(|number| (format!("backup.volume.v{number:03}.keep"), "7d".to_owned())).collect();
        let pairs: Vec<_> = pairs.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let (spec, findings) = read(&pairs);
        assert_eq!((spec.volumes.len(), findings.len()), (200, 20));
    }
}
