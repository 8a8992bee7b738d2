//! The haproxy dialect: the labels that a first generation of stacks carries, read as they are into the same specs as native labels.
//! Each means one or two native keys; what they cannot say is left to native labels beside them.

use std::collections::BTreeSet;

use super::{Dialect, RouteSpec, ServiceSpec, SismicsAuth, Value, backup, host, stray};
use crate::diagnostic::{Diagnostic, Place, brief, nearest};
use crate::snapshot::Labels;

const PREFIX: &str = "haproxy.";
const SISMICS: &str = "com.sismics.docker.";
pub const AUTH: &str = "com.sismics.docker.auth";
const PLAIN: &str = "haproxy.virtual_host";
const SECURE: &str = "haproxy.virtual_host_secure";
const REDIRECT: &str = "haproxy.http_redirect_from";
const PORT: &str = "haproxy.virtual_host_port";

/// The most hosts that one label may list.
const MOST_HOSTS: usize = 200;

/// What one label of this dialect means, for the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    pub label: &'static str,
    /// The native keys that say the same.
    pub native: &'static str,
    /// One sentence.
    pub about: &'static str,
}

/// Every label of this dialect.
pub const LABELS: &[Meaning] = &[
    Meaning {
        label: PLAIN,
        native: "host, tls: off",
        about: "Hosts (`host` or `host/path`, comma separated) that are served over plain HTTP.",
    },
    Meaning {
        label: SECURE,
        native: "host, tls: redirect",
        about: "Hosts (`host` or `host/path`, comma separated) that are served over HTTPS; plain HTTP redirects there.",
    },
    Meaning { label: REDIRECT, native: "redirect-from", about: "Hosts that redirect to the first secure host, path and query kept." },
    Meaning { label: PORT, native: "port", about: "The container's port." },
    Meaning {
        label: AUTH,
        native: "auth, owner",
        about: "The directory group that may enter the service's routes and that owns the service.",
    },
    Meaning { label: backup::ENABLE, native: "backup", about: "`true`: save the volume, or all named volumes of the service." },
    Meaning { label: "backup.schedule", native: "backup-schedule", about: "When, as cron has it: minute hour day month weekday." },
    Meaning { label: "backup.keep", native: "backup-keep", about: "Archives that stay: so many of the last days, weeks, months." },
    Meaning { label: "backup.exclude", native: "backup-exclude", about: "Files left out, relative to the volume's root." },
    Meaning { label: "backup.mode", native: "backup-mode", about: "What happens to the containers while the volume is read." },
    Meaning { label: "backup.dump", native: "backup-dump", about: "The database whose dump is saved in place of its files." },
    Meaning { label: "backup.pre", native: "backup-pre", about: "A command in the container before its volume is read." },
    Meaning { label: "backup.post", native: "backup-post", about: "A command in the container after that." },
    Meaning { label: "backup.on-error", native: "backup-on-error", about: "Whether the volume is saved when `backup.pre` fails." },
    Meaning { label: "backup.timeout", native: "backup-timeout", about: "For one run, everything included." },
    Meaning { label: backup::VOLUMES, native: "backup-KEY, of that volume", about: "On a service: any of these, for one of its volumes." },
];

/// Does a label (in lower case) belong to this dialect, known or not?
pub(super) fn is_ours(lower: &str) -> bool {
    [PREFIX, SISMICS, backup::PREFIX].iter().any(|prefix| lower.starts_with(prefix))
}

/// The label of this dialect that `haproxy.` + `rest` was probably meant to be.
pub(super) fn nearest_label(rest: &str) -> Option<&'static str> {
    let names = LABELS.iter().filter_map(|meaning| meaning.label.strip_prefix(PREFIX));
    let name = nearest(rest, names)?;
    LABELS.iter().map(|meaning| meaning.label).find(|label| label.strip_prefix(PREFIX) == Some(name))
}

/// Adds to `spec` what the labels of this dialect say.
pub fn parse(labels: &Labels, sismics: SismicsAuth, spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    let mut said = read(labels, spec, findings);
    let mut routes = routes(&mut said, findings);
    if let Some(sources) = &said.redirect {
        redirect(sources, &mut routes, findings);
    }
    match &said.port {
        Some(port) if routes.is_empty() => findings.push(
            Diagnostic::warning("no-host", format!("`{}` does nothing without a host", port.label))
                .at(port.key_place())
                .help(format!("add `{SECURE}: app.example.com` or remove the label")),
        ),
        Some(port) => routes.iter_mut().for_each(|route| drop(route.values.insert("port", port.clone()))),
        None => {}
    }
    spec.routes.extend(routes);
    if let Some(group) = said.auth {
        protect(group, sismics, spec, findings);
    }
    backup::parse(labels, spec, findings);
}

/// The labels of this dialect, each by its meaning.
#[derive(Default)]
struct Said {
    plain: Option<Value>,
    secure: Option<Value>,
    redirect: Option<Value>,
    port: Option<Value>,
    auth: Option<Value>,
}

fn read(labels: &Labels, spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) -> Said {
    let mut said = Said::default();
    for (label, text) in labels {
        let lower = label.to_ascii_lowercase();
        if !is_ours(&lower) || lower.starts_with(backup::PREFIX) {
            continue;
        }
        let here = Place::Label { key: label.clone(), value: text.clone(), span: 0..label.len(), in_key: true };
        let slot = match lower.as_str() {
            PLAIN => &mut said.plain,
            SECURE => &mut said.secure,
            REDIRECT => &mut said.redirect,
            PORT => &mut said.port,
            AUTH => &mut said.auth,
            _ => {
                unknown(label, &lower, here, spec, findings);
                continue;
            }
        };
        let Some(value) = Value::new(label, text) else {
            findings.push(empty(label, here));
            continue;
        };
        let Some(first) = slot else {
            *slot = Some(stray::unquoted(value, findings));
            continue;
        };
        findings.push(again(label, first, here));
        if lower == AUTH && first.text != value.text {
            spec.close(format!("`{}` contradicts another spelling of itself", brief(label)));
        }
    }
    said
}

fn unknown(label: &str, lower: &str, here: Place, spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    let near = lower.strip_prefix(PREFIX).and_then(nearest_label).or_else(|| nearest(lower, [AUTH]));
    let finding = Diagnostic::error("unknown-key", format!("`{}` is not a label that Skep reads", brief(label))).at(here);
    findings.push(finding.help(match near {
        Some(name) => format!("did you mean `{name}`?"),
        None => "`skep labels` lists every label that is read".to_owned(),
    }));
    if near == Some(AUTH) || ["auth", "allow"].iter().any(|word| lower.contains(word)) {
        spec.close(format!("`{}` could not be read, and was probably meant to protect", brief(label)));
    }
}

/// One entry of a host list: `host` or `host/path`.
struct Site {
    host: String,
    /// As the user wrote the host.
    text: Value,
    path: Option<Value>,
}

/// One route for each path, secure ones first; hosts in the order in which they are listed.
fn routes(said: &mut Said, findings: &mut Vec<Diagnostic>) -> Vec<RouteSpec> {
    let mut routes: Vec<RouteSpec> = Vec::new();
    let mut taken = BTreeSet::new();
    for (label, tls) in [(said.secure.take(), "redirect"), (said.plain.take(), "off")] {
        let Some(label) = label else { continue };
        let mut groups: Vec<(Option<Value>, Vec<Value>)> = Vec::new();
        for site in sites(&label, findings) {
            let path = site.path.as_ref().map(|path| path.text.trim_end_matches('/').to_owned());
            if !taken.insert((site.host.clone(), path.clone().unwrap_or_default())) {
                findings.push(listed_twice(&site.text));
                continue;
            }
            let same = |group: &&mut (Option<Value>, _)| group.0.as_ref().map(|path| path.text.trim_end_matches('/')) == path.as_deref();
            match groups.iter_mut().find(same) {
                Some((_, hosts)) => hosts.push(site.text),
                None => groups.push((site.path, vec![site.text])),
            }
        }
        for (path, hosts) in groups {
            let mut spec = RouteSpec::new(&name(&routes, tls, path.as_ref()), Dialect::Haproxy);
            spec.values.insert("tls", label.implied(tls));
            spec.values.insert("host", together(&label, &hosts));
            spec.values.extend(path.map(|path| ("path", path)));
            routes.push(spec);
        }
    }
    routes
}

fn listed_twice(host: &Value) -> Diagnostic {
    Diagnostic::warning(
        "host-twice",
        format!("`{}` is listed already; the first one counts, and a secure one before a plain one", brief(&host.text)),
    )
    .at(host.place())
    .help("remove it here")
}

/// The entries of a host list that can be read.
fn sites(label: &Value, findings: &mut Vec<Diagnostic>) -> Vec<Site> {
    let entries = label.list();
    if entries.is_empty() {
        findings.push(Diagnostic::error("empty-list", "no host is listed").at(label.place()).help("write it like `app.example.com`"));
    }
    if let Some(first) = entries.get(MOST_HOSTS) {
        let rest = first.offset - label.offset..label.text.len();
        findings.push(
            Diagnostic::error("too-many-hosts", format!("a label lists at most {MOST_HOSTS} hosts; the rest is not read"))
                .at(label.span(rest))
                .help("spread them over several services, or use `*.example.com`"),
        );
    }
    let mut sites = Vec::new();
    for entry in entries.into_iter().take(MOST_HOSTS) {
        let slash = if entry.text.contains("://") { None } else { entry.text.find('/') };
        let text = entry.part(0..slash.unwrap_or(entry.text.len()));
        let path = slash.map(|at| entry.part(at..entry.text.len())).filter(|path| !path.text.trim_matches('/').is_empty());
        if text.text.is_empty() {
            let finding = Diagnostic::error("bad-host", format!("`{}` names a path but no host", brief(&entry.text)));
            findings.push(finding.at(entry.place()).help("write `app.example.com/path`"));
            continue;
        }
        match host(&text) {
            Ok(host) => sites.push(Site { host, text, path }),
            Err(finding) => findings.push(finding),
        }
    }
    sites
}

/// The hosts as one value: as the user wrote it where that is possible, so that findings point at the right host.
fn together(label: &Value, hosts: &[Value]) -> Value {
    match hosts {
        [one] => one.clone(),
        _ if label.list().len() == hosts.len() && hosts.iter().zip(label.list()).all(|(host, entry)| *host == entry) => label.clone(),
        _ => label.implied(hosts.iter().map(|host| host.text.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

/// The first route has no name, further ones are named by what tells them apart: `plain`, `api`, `plain-api`.
fn name(routes: &[RouteSpec], tls: &str, path: Option<&Value>) -> String {
    if routes.is_empty() {
        return String::new();
    }
    let path = path.map_or("", |path| path.text.as_str()).to_ascii_lowercase();
    let words = path.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let words: Vec<&str> = (tls == "off").then_some("plain").into_iter().chain(words).collect();
    let base: String = if words.is_empty() { "root".to_owned() } else { words.join("-").chars().take(40).collect() };
    let taken = |name: &str| routes.iter().any(|route| route.name == name);
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base)
}

/// Hands the redirect's sources to the route of the first secure host.
fn redirect(sources: &Value, routes: &mut [RouteSpec], findings: &mut Vec<Diagnostic>) {
    let served: BTreeSet<String> =
        routes.iter().filter_map(|route| route.get("host")).flat_map(Value::list).filter_map(|one| host(&one).ok()).collect();
    let first = routes.first_mut().filter(|route| route.get("tls").is_some_and(|tls| tls.text == "redirect"));
    let Some(first) = first else {
        findings.push(
            Diagnostic::error("no-redirect-target", format!("`{}` redirects to the first secure host, and there is none", sources.label))
                .at(sources.key_place())
                .help(format!("add `{SECURE}: app.example.com`, or use `skep.host` with `skep.redirect-from`")),
        );
        return;
    };
    let mut kept = Vec::new();
    let mut seen = BTreeSet::new();
    for site in sites(sources, findings) {
        if !seen.insert(site.host.clone()) {
            findings.push(listed_twice(&site.text));
        } else if let Some(path) = site.path {
            findings.push(
                Diagnostic::error("redirect-path", "a redirect source is a host; the path is kept as it is")
                    .at(path.place())
                    .help(format!("write `{}`", brief(&site.text.text))),
            );
        } else if served.contains(&site.host) {
            findings.push(
                Diagnostic::error("redirect-loop", format!("`{}` is also served by this service, so redirecting it would loop", site.host))
                    .at(site.text.place())
                    .help(format!("remove it from `{}`, or from the hosts that are served", sources.label)),
            );
        } else {
            kept.push(site.text);
        }
    }
    if !kept.is_empty() {
        first.values.insert("redirect-from", together(sources, &kept));
    }
}

/// `com.sismics.docker.auth` protects every route of the service, native ones too, and names the owner; `sismics` narrows it.
fn protect(group: Value, sismics: SismicsAuth, spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    if sismics != SismicsAuth::Route {
        whole(spec, "owner", group.clone(), findings);
    }
    if sismics == SismicsAuth::Owner {
        return;
    }
    if spec.routes.is_empty() && sismics == SismicsAuth::Route {
        findings.push(
            Diagnostic::warning("no-route", format!("`{}` protects routes, and the service has none", group.label))
                .at(group.key_place())
                .help(format!("add `{SECURE}: app.example.com` or remove the label")),
        );
    }
    let overruled = spec.routes.iter().filter_map(|route| route.get("auth")).find(|own| own.text != group.text);
    findings.extend(overruled.map(|own| loses(&group, own)));
    for route in spec.routes.iter_mut().filter(|route| route.matches_something()) {
        route.values.entry("auth").or_insert_with(|| group.clone());
    }
}

/// The label's value says nothing.
pub(super) fn empty(label: &str, here: Place) -> Diagnostic {
    Diagnostic::warning("empty-value", format!("`{}` is empty, which means not set", brief(label)))
        .at(here)
        .help("write a value, or remove the label")
}

/// The label is there in another spelling.
pub(super) fn again(label: &str, first: &Value, here: Place) -> Diagnostic {
    Diagnostic::error("duplicate-key", format!("`{}` is there already as `{}`; that one counts", brief(label), brief(&first.label)))
        .at(here)
        .help("keep one of them: upper and lower case are the same")
}

/// Sets a key of the whole service, unless a native label has set it.
pub(super) fn whole(spec: &mut ServiceSpec, key: &'static str, value: Value, findings: &mut Vec<Diagnostic>) {
    match spec.values.get(key) {
        Some(own) if own.text != value.text => findings.push(loses(&value, own)),
        Some(_) => {}
        None => drop(spec.values.insert(key, value)),
    }
}

fn loses(value: &Value, own: &Value) -> Diagnostic {
    Diagnostic::warning("native-wins", format!("`{}` says something else, and wins", own.label))
        .at(value.place())
        .help("keep one of the two labels")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, keys, labels, read, short};
    use super::*;

    #[test]
    fn the_labels_of_the_first_stacks() {
        let (spec, findings) = read(&[
            ("haproxy.virtual_host_secure", "app.example.com, www.example.com"),
            ("haproxy.http_redirect_from", "example.com example.org"),
            ("haproxy.virtual_host_port", "8080"),
            ("com.sismics.docker.auth", "staff"),
            ("backup.enable", "true"),
        ]);
        assert_eq!(
            short(&spec),
            ["[] auth=staff host=app.example.com, www.example.com port=8080 redirect-from=example.com example.org tls=redirect"]
        );
        let whole: Vec<_> = spec.values.iter().map(|(key, value)| (*key, value.text.as_str())).collect();
        assert_eq!(whole, [("backup", "true"), ("owner", "staff")]);
        assert_eq!(findings, []);
    }

    #[test]
    fn one_route_for_each_path() {
        for (secure, plain, wanted) in [
            ("a.de", "", &["[] host=a.de tls=redirect"][..]),
            ("", "a.de", &["[] host=a.de tls=off"]),
            ("a.de/x", "", &["[] host=a.de path=/x tls=redirect"]),
            ("a.de/", "", &["[] host=a.de tls=redirect"]),
            ("a.de/x,b.de,c.de/x/", "", &["[] host=a.de, c.de path=/x tls=redirect", "[root] host=b.de tls=redirect"]),
            (
                "a.de b.de/api/v1 b.de/api.v1",
                "c.de d.de/x",
                &[
                    "[] host=a.de tls=redirect",
                    "[api-v1] host=b.de path=/api/v1 tls=redirect",
                    "[api-v1-2] host=b.de path=/api.v1 tls=redirect",
                    "[plain] host=c.de tls=off",
                    "[plain-x] host=d.de path=/x tls=off",
                ],
            ),
        ] {
            let pairs: Vec<_> = [("haproxy.virtual_host_secure", secure), ("haproxy.virtual_host", plain)]
                .into_iter()
                .filter(|pair| !pair.1.is_empty())
                .collect();
            let (spec, findings) = read(&pairs);
            assert_eq!((short(&spec), findings), (wanted.iter().map(|line| line.to_string()).collect(), Vec::new()), "{secure} {plain}");
        }
    }

    #[test]
    fn hosts_that_cannot_be_read_leave_the_others() {
        let (spec, findings) = read(&[("haproxy.virtual_host_secure", "https://a.de/x, b.de:443, c.de, /x, C.de")]);
        assert_eq!(short(&spec), ["[] host=c.de tls=redirect"]);
        assert_eq!(codes(&findings), ["bad-host", "bad-host", "bad-host", "host-twice"]);
        assert_eq!(findings[0].help.as_deref(), Some("write `a.de`"));
    }

    #[test]
    fn a_secure_host_is_not_served_plain() {
        let (spec, findings) = read(&[("haproxy.virtual_host_secure", "a.de"), ("haproxy.virtual_host", "a.de, b.de")]);
        assert_eq!(short(&spec), ["[] host=a.de tls=redirect", "[plain] host=b.de tls=off"]);
        assert_eq!(codes(&findings), ["host-twice"]);
    }

    #[test]
    fn redirects_need_a_target_and_do_not_loop() {
        for (hosts, sources, kept, found) in [
            (("haproxy.virtual_host_secure", "a.de, b.de"), "b.de, c.de", Some("c.de"), &["redirect-loop"][..]),
            (("haproxy.virtual_host_secure", "a.de"), "a.de", None, &["redirect-loop"]),
            (("haproxy.virtual_host_secure", "a.de"), "c.de/x", None, &["redirect-path"]),
            (("haproxy.virtual_host_secure", "a.de"), "c.de C.de", Some("c.de"), &["host-twice"]),
            (("haproxy.virtual_host_secure", "a.de"), "http://c.de", None, &["bad-host"]),
            (("haproxy.virtual_host", "a.de"), "c.de", None, &["no-redirect-target"]),
        ] {
            let (spec, findings) = read(&[hosts, ("haproxy.http_redirect_from", sources)]);
            assert_eq!(
                (spec.routes[0].get("redirect-from").map(|value| value.text.as_str()), codes(&findings)),
                (kept, found.to_vec()),
                "{sources}"
            );
        }
    }

    #[test]
    fn labels_that_do_nothing_say_so() {
        for (label, value, code, help) in [
            ("haproxy.virtual_host_port", "80", "no-host", "add `haproxy.virtual_host_secure: app.example.com` or remove the label"),
            ("haproxy.virtual_hosts", "a.de", "unknown-key", "did you mean `haproxy.virtual_host`?"),
            ("haproxy.virtual_host", "", "empty-value", "write a value, or remove the label"),
            ("haproxy.zzz", "1", "unknown-key", "`skep labels` lists every label that is read"),
            ("com.sismics.docker.x", "1", "unknown-key", "`skep labels` lists every label that is read"),
        ] {
            let (_, findings) = read(&[("skep.host", "a.de"), (label, value)]);
            let found: Vec<_> =
                findings.iter().map(|finding| (finding.code.as_str(), finding.help.as_deref().unwrap_or_default())).collect();
            assert_eq!(found, [(code, help)], "{label}");
        }
    }

    #[test]
    fn the_group_protects_and_owns_as_the_configuration_says() {
        for (sismics, route, owner) in [
            (SismicsAuth::Both, Some("staff"), Some("staff")),
            (SismicsAuth::Route, Some("staff"), None),
            (SismicsAuth::Owner, None, Some("staff")),
        ] {
            let pairs = labels(&[("haproxy.virtual_host", "a.de"), ("skep.api.host", "b.de"), ("com.sismics.docker.auth", "staff")]);
            let (spec, findings) = super::super::parse(&pairs, &keys(), sismics);
            let seen: Vec<_> = spec.routes.iter().map(|route| route.get("auth").map(|value| value.text.as_str())).collect();
            assert_eq!((seen, spec.get("owner").map(|value| value.text.as_str())), (vec![route, route], owner), "{sismics:?}");
            assert_eq!(findings, []);
        }
    }

    #[test]
    fn native_labels_overrule_the_group() {
        let (spec, findings) = read(&[("skep.host", "a.de"), ("skep.auth", "admins"), ("com.sismics.docker.auth", "staff")]);
        assert_eq!(short(&spec), ["[] auth=admins host=a.de"]);
        assert_eq!(codes(&findings), ["native-wins"]);
    }

    #[test]
    fn a_group_that_cannot_be_read_closes() {
        for (label, value) in [("com.sismics.docker.atuh", "staff"), ("haproxy.auth", "staff"), ("COM.sismics.docker.auth", "admins")] {
            let (spec, findings) = read(&[("haproxy.virtual_host", "a.de"), ("com.sismics.docker.auth", "staff"), (label, value)]);
            assert_eq!((findings.len(), spec.routes[0].closed.is_some()), (1, true), "{label}");
        }
    }
}
