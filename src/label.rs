//! The label grammar: from a service's labels to route specs that no longer show which dialect they came from.
//! Values stay text here, with their origin; each feature reads its own keys out of a spec and points its findings at the user's own label.

pub mod backup;
pub mod haproxy;
mod name;
pub mod native;
mod stray;
mod value;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::diagnostic::Diagnostic;
use crate::snapshot::Labels;

pub use name::host;
pub use value::{Value, boolean, bytes, duration, network, not_yet, path};

/// Who wrote a route: native wins over haproxy for the same host and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dialect {
    Native,
    Haproxy,
}

/// Where a key may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `skep.<key>` and `skep.<route>.<key>`.
    Route,
    /// `skep.<key>` only: about the whole service.
    Service,
    /// `skep.tcp.<key>` and `skep.tcp.<route>.<key>`: about a TCP route. The name has the `tcp.` too.
    Stream,
}

/// Since when a key does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Now,
    /// Understood and checked; does nothing yet. The text names the feature that will bring it.
    Later(&'static str),
}

impl Key {
    /// A key of a route that has its effect now and protects nothing.
    pub const fn route(name: &'static str, value: &'static str, default: &'static str, about: &'static str) -> Key {
        Key { name, scope: Scope::Route, effect: Effect::Now, guard: false, value, default, about }
    }

    /// A key of a TCP route, as [`Key::route`].
    pub const fn stream(name: &'static str, value: &'static str, default: &'static str, about: &'static str) -> Key {
        Key { scope: Scope::Stream, ..Key::route(name, value, default, about) }
    }

    /// The same key, about the whole service.
    pub const fn of_service(self) -> Key {
        Key { scope: Scope::Service, ..self }
    }

    /// The same key, which protects: see [`Key::guard`].
    pub const fn guarding(self) -> Key {
        Key { guard: true, ..self }
    }

    /// The same key, whose feature is still to come.
    pub const fn later(self, feature: &'static str) -> Key {
        Key { effect: Effect::Later(feature), ..self }
    }
}

/// One key that some feature understands. The reference table, the unknown-key warning and its suggestion come from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    pub scope: Scope,
    pub effect: Effect,
    /// The key protects its route: a finding on it, or on a misspelling of it, closes the route.
    pub guard: bool,
    /// What a value looks like, for the reference.
    pub value: &'static str,
    pub default: &'static str,
    /// One sentence.
    pub about: &'static str,
}

/// One route as some dialect described it: native keys (without prefix) to values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Empty for the default route.
    pub name: String,
    pub dialect: Dialect,
    pub values: BTreeMap<&'static str, Value>,
    /// A label that was meant to protect this route could not be understood; says which and why. The route answers 503.
    pub closed: Option<String>,
}

impl RouteSpec {
    /// A route about which nothing is known yet.
    pub fn new(name: &str, dialect: Dialect) -> RouteSpec {
        RouteSpec { name: name.to_owned(), dialect, values: BTreeMap::new(), closed: None }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Closes the route; the first reason stays.
    pub fn close(&mut self, reason: impl Into<String>) {
        self.closed.get_or_insert_with(|| reason.into());
    }

    /// Do these labels say which requests they are about?
    fn matches_something(&self) -> bool {
        ["host", "rule"].iter().any(|key| self.values.contains_key(key))
    }
}

/// All that a service's labels say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    pub routes: Vec<RouteSpec>,
    /// TCP routes by port: keys of [`Scope::Stream`] without their `tcp.`.
    pub streams: Vec<RouteSpec>,
    /// Keys of [`Scope::Service`].
    pub values: BTreeMap<&'static str, Value>,
    /// The same keys about one of its volumes, by the volume's name as it was written: `backup.volume.NAME.*`.
    pub volumes: BTreeMap<String, BTreeMap<&'static str, Value>>,
    /// As [`RouteSpec::closed`], for all of the service's routes.
    pub closed: Option<String>,
}

impl ServiceSpec {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Closes all routes of the service; the first reason stays.
    pub fn close(&mut self, reason: impl Into<String>) {
        self.closed.get_or_insert_with(|| reason.into());
    }
}

/// What `com.sismics.docker.auth` on a service means (`labels.sismics_auth` in the config).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SismicsAuth {
    #[default]
    Both,
    Route,
    Owner,
}

/// The keys of the grammar itself.
pub const KEYS: &[Key] =
    &[Key::route("enable", "true or false", "true", "`false` switches all routes of the service off.").of_service().guarding()];

/// Reads a service's labels in every dialect. `keys` is the union of all features' keys.
/// Never fails: what cannot be read is a finding, and the rest lives.
pub fn parse(labels: &Labels, keys: &[Key], sismics: SismicsAuth) -> (ServiceSpec, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let known = |own: &Key| keys.iter().any(|key| key.name == own.name);
    let keys = if KEYS.iter().all(known) { Cow::Borrowed(keys) } else { Cow::Owned([KEYS, keys].concat()) };
    let mut spec = native::parse(labels, &keys, &mut findings);
    haproxy::parse(labels, sismics, &mut spec, &mut findings);
    stray::parse(labels, &keys, &mut spec, &mut findings);
    complete(&mut spec);
    enable(&mut spec, &mut findings);
    if let Some(reason) = spec.closed.clone() {
        spec.routes.iter_mut().chain(&mut spec.streams).for_each(|route| route.close(reason.clone()));
    }
    (spec, findings)
}

/// Native keys without a host are about the routes that the haproxy labels describe, so that `skep.timeout-response` can stand beside
/// `haproxy.virtual_host_secure`. Native wins.
fn complete(spec: &mut ServiceSpec) {
    let says_no_place = |route: &RouteSpec| {
        route.dialect == Dialect::Native && route.name.is_empty() && !route.matches_something() && !route.values.contains_key("path")
    };
    if !spec.routes.iter().any(|route| route.dialect == Dialect::Haproxy) {
        return;
    }
    let Some(at) = spec.routes.iter().position(says_no_place) else { return };
    let extra = spec.routes.remove(at);
    for route in &mut spec.routes {
        if route.dialect == Dialect::Haproxy {
            route.values.extend(extra.values.clone());
            route.closed = extra.closed.clone().or(route.closed.take());
        }
    }
}

fn enable(spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    let Some(value) = spec.values.get("enable") else { return };
    match boolean(value) {
        Ok(true) => {}
        Ok(false) => {
            findings.push(Diagnostic::info("disabled", "all routes of the service are switched off").at(value.place()));
            spec.routes.clear();
            spec.streams.clear();
        }
        Err(finding) => {
            let reason = format!("`{}` could not be read", value.label);
            findings.push(finding);
            spec.close(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::{Place, render};

    /// Keys as the features declare them, and some that only other files know.
    pub(super) fn keys() -> Vec<Key> {
        let more = ["host", "path", "rule", "port", "redirect-from", "timeout-response", "health-path"];
        let more = more.into_iter().map(|name| Key::route(name, "", "", ""));
        let streams = crate::upstream::STREAM_KEYS;
        let features =
            [crate::auth::KEYS, crate::certificate::KEYS, crate::traffic::KEYS, crate::policy::KEYS, crate::backup::KEYS, streams];
        more.chain(features.into_iter().flatten().copied()).collect()
    }

    pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect()
    }

    pub(super) fn read(pairs: &[(&str, &str)]) -> (ServiceSpec, Vec<Diagnostic>) {
        parse(&labels(pairs), &keys(), SismicsAuth::Both)
    }

    pub(super) fn codes(findings: &[Diagnostic]) -> Vec<&str> {
        findings.iter().map(|finding| finding.code.as_str()).collect()
    }

    /// A route in short: name, its keys with values, and `closed`.
    pub(super) fn short(spec: &ServiceSpec) -> Vec<String> {
        let value = |(key, value): (&&str, &Value)| format!("{key}={}", value.text);
        let closed = |route: &RouteSpec| if route.closed.is_some() { "closed " } else { "" };
        let line = |route: &RouteSpec| {
            format!("{}[{}] {}", closed(route), route.name, route.values.iter().map(value).collect::<Vec<_>>().join(" ")).trim().to_owned()
        };
        spec.routes.iter().map(line).collect()
    }

    #[test]
    fn enable_switches_all_routes_of_the_service() {
        for (text, routes, code) in [
            ("true", &["[] host=a.de"][..], None),
            ("false", &[], Some("disabled")),
            ("flase", &["closed [] host=a.de"], Some("bad-boolean")),
        ] {
            let (spec, findings) = read(&[("skep.host", "a.de"), ("skep.enable", text)]);
            assert_eq!(
                (short(&spec), codes(&findings)),
                (routes.iter().map(|r| r.to_string()).collect(), code.into_iter().collect()),
                "{text}"
            );
        }
        let (spec, _) = read(&[("haproxy.virtual_host", "a.de"), ("skep.enable", "no")]);
        assert_eq!(spec.routes, []);
    }

    #[test]
    fn native_keys_without_a_host_complete_haproxy_routes() {
        let (spec, findings) = read(&[
            ("haproxy.virtual_host_secure", "a.de"),
            ("haproxy.virtual_host_port", "80"),
            ("skep.port", "8080"),
            ("skep.allow", "10.0.0.0/8"),
        ]);
        assert_eq!(short(&spec), ["[] allow=10.0.0.0/8 host=a.de port=8080 tls=redirect"]);
        assert_eq!(findings, []);
        let (spec, _) = read(&[("haproxy.virtual_host", "a.de"), ("skep.atuh", "staff")]);
        assert_eq!(short(&spec), ["closed [] host=a.de tls=off"]);
    }

    #[test]
    fn a_service_may_speak_both_dialects() {
        let (spec, findings) = read(&[("haproxy.virtual_host", "a.de"), ("skep.host", "a.de"), ("skep.api.host", "b.de")]);
        let seen: Vec<_> = spec.routes.iter().map(|route| (route.dialect, route.name.as_str())).collect();
        assert_eq!(seen, [(Dialect::Native, ""), (Dialect::Native, "api"), (Dialect::Haproxy, "")]);
        assert_eq!(findings, []);
    }

    /// Labels that are ours, nearly ours, or anything; values that some grammar reads, nearly, or anything.
    fn any_labels() -> impl Strategy<Value = Labels> {
        let names: Vec<&'static str> = keys().iter().map(|key| key.name).collect();
        let key = prop_oneof![proptest::sample::select(names), proptest::sample::select(vec!["atuh", "hots", "x", "", "PORT"])];
        let native = (proptest::sample::select(vec!["skep.", "SKEP.", "skep.api.", "skep..", "skep.port.", "skpe.", "skep_"]), key)
            .prop_map(|(prefix, key)| format!("{prefix}{key}"));
        let other = proptest::sample::select(vec![
            "haproxy.virtual_host",
            "haproxy.virtual_host_secure",
            "Haproxy.virtual_host",
            "haproxy.virtual_host_port",
            "haproxy.http_redirect_from",
            "haproxy.vhost",
            "com.sismics.docker.auth",
            "com.sismics.docker.x",
            "backup.enable",
            "backup.volume.data.keep",
            "backup.volume.my.data.schedule",
            "Backup.exclude",
            "backup.volume.",
            "traefik.enable",
            "maintainer",
        ]);
        let label = prop_oneof![4 => native, 3 => other.prop_map(str::to_owned), 1 => "skep[.]\\PC{0,12}", 1 => "\\PC{0,20}"];
        let value = prop_oneof![
            proptest::sample::select(vec![
                "a.de",
                "a.de, b.de/x c.de/x/",
                "https://a.de",
                "\"a.de\"",
                "80",
                "true",
                "flase",
                "",
                " ",
                "10.0.0.0/8"
            ])
            .prop_map(str::to_owned),
            "[a-z.,/ *:]{0,20}",
            "\\PC{0,30}",
        ];
        proptest::collection::btree_map(label, value, 0..8)
    }

    /// The labels that some value of the spec stands in.
    fn used(spec: &ServiceSpec) -> Vec<&str> {
        let values = spec
            .values
            .values()
            .chain(spec.volumes.values().flat_map(BTreeMap::values))
            .chain(spec.routes.iter().chain(&spec.streams).flat_map(|route| route.values.values()));
        values.map(|value| value.label.as_str()).collect()
    }

    fn ours(label: &str) -> bool {
        let lower = label.to_ascii_lowercase();
        lower.starts_with("skep.") || haproxy::is_ours(&lower)
    }

    proptest! {
        #[test]
        fn nothing_is_silent_and_every_finding_points_at_a_label(labels in any_labels()) {
            let (spec, findings) = parse(&labels, &keys(), SismicsAuth::Both);
            let mut pointed = Vec::new();
            for finding in &findings {
                let Some(Place::Label { key, value, span, in_key }) = &finding.place else { panic!("{finding:?}") };
                prop_assert_eq!(labels.get(key), Some(value));
                prop_assert!((if *in_key { key } else { value }).get(span.clone()).is_some(), "{:?}", finding);
                prop_assert!(finding.help.is_some() || finding.code == "disabled" || finding.code == "bad-host", "{:?}", finding);
                pointed.push(key.as_str());
            }
            let disabled = findings.iter().any(|finding| finding.code == "disabled");
            let used = used(&spec);
            for label in labels.keys().filter(|label| ours(label) && !disabled) {
                let overruled = spec.routes.iter().any(|route| route.dialect == Dialect::Native) || spec.values.contains_key("owner");
                let same = overruled && ["com.sismics.docker.auth", "haproxy.virtual_host_port", "backup.enable"].contains(&label.to_ascii_lowercase().as_str());
                prop_assert!(used.contains(&label.as_str()) || pointed.contains(&label.as_str()) || same || spec.routes.iter().any(|r| r.dialect == Dialect::Haproxy), "{label}");
            }
            render(&findings, true);
        }

        #[test]
        fn a_misspelt_guard_never_leaves_a_route_open(
            guard in proptest::sample::select(keys().into_iter().filter(|key| key.guard && key.scope == Scope::Route).collect::<Vec<_>>()),
            route in proptest::sample::select(vec!["", "api."]),
            at in 0usize..9,
        ) {
            let at = at % (guard.name.len() - 1);
            let mut letters: Vec<char> = guard.name.chars().collect();
            letters.swap(at, at + 1);
            let label = format!("skep.{route}{}", letters.into_iter().collect::<String>());
            let (spec, _) = read(&[("skep.host", "a.de"), ("skep.api.host", "b.de"), (&label, "10.0.0.0/8")]);
            let name = route.trim_end_matches('.');
            let meant = spec.routes.iter().find(|spec| spec.name == name).expect("the route is there");
            prop_assert!(meant.closed.is_some() || meant.get(guard.name).is_some(), "{label}");
        }
    }
}
