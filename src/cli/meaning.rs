//! What a label does, in one line for the person who wrote it: with its hosts and ports, and with what is still being built.
//! The words come from the keys' own reference wherever the value adds nothing.

use crate::backup::KEYS;
use crate::diagnostic::brief;
use crate::label::backup::native_key;
use crate::label::haproxy::LABELS;
use crate::label::{Effect, Key, SismicsAuth};
use crate::snapshot::Labels;

const ELSEWHERE: &str = "not a label of Skep: left alone";
const UNREAD: &str = "does nothing: see the finding";

/// What `label` of a service with these `labels` does.
pub(super) fn of_label(label: &str, value: &str, labels: &Labels, keys: &[Key], sismics: SismicsAuth) -> String {
    let lower = label.to_ascii_lowercase();
    let ours = ["skep.", "haproxy.", "com.sismics.docker.", "backup."].iter().any(|prefix| lower.starts_with(prefix));
    if ours && value.trim().is_empty() {
        return "empty, which means not set".to_owned();
    }
    if let Some(meaning) = LABELS.iter().find(|meaning| meaning.label == lower) {
        return of_haproxy(&lower, value, sismics).unwrap_or_else(|| plain(meaning.about));
    }
    if let Some((volume, key)) = lower.strip_prefix("backup.volume.").and_then(|rest| rest.rsplit_once('.')) {
        return of_backup(key, value, &format!("the volume {}", brief(volume))).unwrap_or_else(|| UNREAD.to_owned());
    }
    let Some(rest) = lower.strip_prefix("skep.") else {
        return if ours { UNREAD } else { ELSEWHERE }.to_owned();
    };
    if let Some((_, name)) = rest.strip_prefix("tcp.").map(|rest| rest.rsplit_once('.').unwrap_or(("", rest))) {
        let key = keys.iter().find(|key| key.name.strip_prefix("tcp.") == Some(name));
        return key.map_or_else(|| UNREAD.to_owned(), |key| of_stream(key.name, value).unwrap_or_else(|| plain(key.about)));
    }
    let (route, name) = rest.rsplit_once('.').unwrap_or(("", rest));
    match keys.iter().find(|key| key.name == name) {
        Some(key) => of_key(key, route, value, labels),
        None => UNREAD.to_owned(),
    }
}

/// What the label of a volume does.
pub(super) fn of_volume_label(label: &str, value: &str) -> String {
    let lower = label.to_ascii_lowercase();
    let key = lower.strip_prefix("backup.").or_else(|| match lower.strip_prefix("skep.backup")? {
        "" => Some("enable"),
        rest => rest.strip_prefix('-'),
    });
    if let Some(said) = key.and_then(|key| of_backup(key, value, "the volume")) {
        return said;
    }
    match lower.as_str() {
        "skep.owner" | "com.sismics.docker.auth" => {
            format!("the group `{}` owns the volume: its backups are kept apart", brief(value.trim()))
        }
        _ if ["skep.", "haproxy.", "com.sismics.docker.", "backup."].iter().any(|prefix| lower.starts_with(prefix)) => UNREAD.to_owned(),
        _ => ELSEWHERE.to_owned(),
    }
}

/// What a label about backups does for `what`.
fn of_backup(key: &str, value: &str, what: &str) -> Option<String> {
    let about = KEYS.iter().find(|own| Some(own.name) == native_key(key))?.about;
    Some(match (key, yes(value)) {
        ("enable", true) => format!("{what} is saved"),
        ("enable", false) => format!("{what} is not saved"),
        _ => format!("{what}: {}", plain(about)),
    })
}

/// What a placement constraint means to the edge.
pub(super) fn of_constraint(constraint: &str) -> String {
    let about = if constraint.contains("node.labels.") { "on nodes with this label" } else { "on such nodes" };
    format!("left to Swarm, which starts tasks only {about}; requests follow the tasks")
}

/// The value as it may be shown: behind the users' names of `basic-auth` stand password hashes.
pub(super) fn shown(label: &str, value: &str) -> String {
    if !label.to_ascii_lowercase().contains("basic") {
        return brief(value);
    }
    let users: Vec<String> = value.split(',').map(|line| format!("{}:***", line.split(':').next().unwrap_or_default().trim())).collect();
    brief(&users.join(", "))
}

fn yes(value: &str) -> bool {
    ["true", "yes", "on", "1"].contains(&value.trim().to_ascii_lowercase().as_str())
}

fn of_haproxy(label: &str, value: &str, sismics: SismicsAuth) -> Option<String> {
    let group = brief(value.trim());
    Some(match label.rsplit('.').next()? {
        "virtual_host" => format!("serves {}", urls("http", value, "")),
        "virtual_host_secure" => format!("serves {}; http leads there", urls("https", value, "")),
        "http_redirect_from" => format!("redirects {} to the first secure host, path and query kept", entries(value).join(", ")),
        "virtual_host_port" => format!("requests go to port {group} of the container"),
        "auth" => match sismics {
            SismicsAuth::Both => {
                format!("only the group `{group}` may enter, and it owns the service (ownership is being built: nothing is refused yet)")
            }
            SismicsAuth::Route => format!("only the group `{group}` may enter"),
            SismicsAuth::Owner => format!("the group `{group}` owns the service (ownership is being built: nothing is refused yet)"),
        },
        "enable" if yes(value) => "the service's volumes are saved".to_owned(),
        "enable" => "the service's volumes are not saved".to_owned(),
        _ => return None,
    })
}

fn of_key(key: &Key, route: &str, value: &str, labels: &Labels) -> String {
    let beside = |name: &str| {
        let label = if route.is_empty() { format!("skep.{name}") } else { format!("skep.{route}.{name}") };
        labels.iter().find(|(key, _)| key.eq_ignore_ascii_case(&label)).map_or("", |(_, value)| value.trim())
    };
    let words = match key.name {
        "host" => format!("serves {}", urls("http", value, beside("path"))),
        "redirect-from" => format!("redirects {} to the route's first host, path and query kept", entries(value).join(", ")),
        "port" => format!("requests go to port {} of the container", brief(value.trim())),
        _ => plain(key.about),
    };
    match key.effect {
        Effect::Now => words,
        Effect::Later(feature) => format!("{words} ({feature} is being built: no effect yet)"),
    }
}

/// The keys of TCP routes whose value says more than their reference.
fn of_stream(key: &str, value: &str) -> Option<String> {
    let value = brief(value.trim());
    match key {
        "tcp.listen" => Some(format!("connections to port {value} of the edge go to the service")),
        "tcp.port" => Some(format!("connections go to port {value} of the container")),
        _ => None,
    }
}

/// A sentence of the reference without its full stop.
fn plain(about: &str) -> String {
    about.trim_end_matches('.').to_owned()
}

fn entries(value: &str) -> Vec<String> {
    value.split([',', ' ', '\t', '\n']).filter(|entry| !entry.is_empty()).map(brief).collect()
}

fn urls(scheme: &str, value: &str, path: &str) -> String {
    let path = match (path.strip_prefix('='), path) {
        (Some(exact), _) => format!("{exact} exactly"),
        (None, "") => "/".to_owned(),
        (None, path) => path.to_owned(),
    };
    let url =
        |entry: &String| if entry.contains('/') { format!("{scheme}://{entry}") } else { format!("{scheme}://{entry}{}", brief(&path)) };
    entries(value).iter().map(url).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_has_a_line() {
        let labels = Labels::from([("skep.api.path".to_owned(), "=/v1".to_owned()), ("skep.path".to_owned(), "/x".to_owned())]);
        for (label, value, wanted) in [
            ("haproxy.virtual_host", "a.de, b.de/x", "serves http://a.de/, http://b.de/x"),
            ("haproxy.virtual_host_secure", "a.de", "serves https://a.de/; http leads there"),
            ("haproxy.http_redirect_from", "www.a.de", "redirects www.a.de to the first secure host"),
            ("haproxy.virtual_host_port", "8000", "port 8000"),
            ("com.sismics.docker.auth", "staff", "only the group `staff` may enter"),
            ("backup.enable", "true", "volumes are saved"),
            ("backup.enable", "false", "not saved"),
            ("backup.schedule", "@daily", "minute hour day month weekday"),
            ("Backup.Volume.data.enable", "false", "the volume data is not saved"),
            ("backup.volume.my.data.keep", "7d", "the volume my.data: Archives that stay"),
            ("backup.volume.data", "true", UNREAD),
            ("skep.backup-dump", "postgres", "A dump that the running container makes"),
            ("skep.host", "a.de", "serves http://a.de/x"),
            ("skep.api.host", "a.de", "serves http://a.de/v1 exactly"),
            ("SKEP.port", "80", "port 80"),
            ("skep.hosst", "a.de", UNREAD),
            ("haproxy.vhost", "a.de", UNREAD),
            ("skep.auth", "staff", "ho may enter after signing in"),
            ("skep.owner", "staff", "no effect yet"),
            ("skep.host", " ", "not set"),
            ("maintainer", "me", ELSEWHERE),
        ] {
            let line = of_label(label, value, &labels, &crate::state::keys(), SismicsAuth::Both);
            assert!(line.contains(wanted), "{label}: {line}");
        }
        for key in crate::state::keys() {
            let line = of_label(&format!("skep.{}", key.name), "x", &labels, &crate::state::keys(), SismicsAuth::Both);
            assert!(![UNREAD, ELSEWHERE].contains(&line.as_str()), "{}", key.name);
        }
    }

    #[test]
    fn labels_of_volumes_have_a_line() {
        for (label, value, wanted) in [
            ("backup.enable", "true", "the volume is saved"),
            ("skep.backup", "no", "the volume is not saved"),
            ("backup.keep", "7d", "the volume: Archives that stay"),
            ("skep.backup-keep", "7d", "the volume: Archives that stay"),
            ("skep.owner", "staff", "the group `staff` owns the volume"),
            ("backup.shedule", "@daily", UNREAD),
            ("skep.host", "a.de", UNREAD),
            ("maintainer", "me", ELSEWHERE),
        ] {
            let line = of_volume_label(label, value);
            assert!(line.contains(wanted), "{label}: {line}");
        }
    }

    #[test]
    fn password_hashes_are_not_shown() {
        assert_eq!(shown("skep.basic-auth", "bob:$2y$05$abc, eve:{SHA}x"), "bob:***, eve:***");
        assert_eq!(shown("skep.host", "a.de"), "a.de");
    }
}
