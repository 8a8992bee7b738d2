//! The native dialect: `skep.<key>` for the default route, `skep.<route>.<key>` for further ones; below `skep.tcp.` the same for TCP routes.
//! Every label under `skep.` is either put into a spec or becomes a finding; a misspelt key that was meant to protect closes what it stood on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{Dialect, Key, RouteSpec, Scope, ServiceSpec, Value, stray};
use crate::diagnostic::{Diagnostic, Place, brief};
use crate::snapshot::Labels;

/// What every native label begins with.
pub(super) const PREFIX: &str = "skep.";
/// What the labels of TCP routes begin with. So no route over HTTP can be called `tcp`.
const TCP_PREFIX: &str = "skep.tcp.";
/// The longest name of a route, in bytes: it becomes part of log lines and metric labels.
const LONGEST_NAME: usize = 63;
/// The most routes that one service may describe.
const MOST_ROUTES: usize = 100;

/// Reads the labels under `skep.`. Never fails: what cannot be read is a finding.
pub fn parse(labels: &Labels, keys: &[Key], findings: &mut Vec<Diagnostic>) -> ServiceSpec {
    let (mut service, mut streams) = (ServiceSpec::default(), Vec::new());
    let mut reader =
        Reader { prefix: PREFIX, keys, others: &[], routes: BTreeMap::new(), service: &mut service, seen: BTreeMap::new(), findings };
    for (label, value) in labels {
        let lower = label.to_ascii_lowercase();
        match (lower.strip_prefix(TCP_PREFIX), lower.strip_prefix(PREFIX)) {
            (Some(_), _) => streams.push((label, value, lower)),
            (None, Some(rest)) => reader.read(label, rest, value, &lower),
            (None, None) => {}
        }
    }
    service.routes = reader.routes.into_values().collect();
    if !streams.is_empty() {
        service.streams = read_streams(&streams, keys, &mut service, findings);
    }
    service
}

/// TCP routes have the same grammar, with keys of their own.
fn read_streams(
    labels: &[(&String, &String, String)],
    all: &[Key],
    service: &mut ServiceSpec,
    findings: &mut Vec<Diagnostic>,
) -> Vec<RouteSpec> {
    let of_stream = |key: &Key| {
        (key.scope == Scope::Stream).then(|| Key { name: key.name.strip_prefix("tcp.").unwrap_or(key.name), scope: Scope::Route, ..*key })
    };
    let keys: Vec<Key> = all.iter().filter_map(of_stream).collect();
    let mut reader =
        Reader { prefix: TCP_PREFIX, keys: &keys, others: all, routes: BTreeMap::new(), service, seen: BTreeMap::new(), findings };
    for (label, value, lower) in labels {
        reader.read(label, &lower[TCP_PREFIX.len()..], value, lower);
    }
    reader.routes.into_values().collect()
}

struct Reader<'a> {
    prefix: &'static str,
    keys: &'a [Key],
    /// Of routes over HTTP, where this reads TCP routes: somebody may have meant one.
    others: &'a [Key],
    routes: BTreeMap<String, RouteSpec>,
    service: &'a mut ServiceSpec,
    /// Labels by their lower-case form, to find those that differ in case only.
    seen: BTreeMap<String, (String, String)>,
    findings: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn read(&mut self, label: &str, rest: &str, value: &str, lower: &str) {
        let here = Place::Label { key: label.to_owned(), value: value.to_owned(), span: 0..label.len(), in_key: true };
        let segments: Vec<&str> = rest.split('.').collect();
        let (route, name) = match segments.as_slice() {
            parts if parts.contains(&"") => return self.unreadable(rest, empty_part(label, self.prefix).at(here)),
            [name] => ("", *name),
            [route, name] => (*route, *name),
            _ => return self.unreadable(rest, too_deep(label, &segments, self.keys, self.prefix).at(here)),
        };
        if let Some(finding) = self.bad_route_name(route, name) {
            return self.unreadable(rest, finding.at(here));
        }
        let Some(key) = self.keys.iter().find(|key| key.name == name).copied() else {
            return self.unknown(label, route, name, here);
        };
        if key.scope == Scope::Service && !route.is_empty() {
            self.findings.push(
                Diagnostic::error("service-key-on-route", format!("`{name}` is about the whole service, not about one route"))
                    .at(here)
                    .help(format!("write `{}{name}`", self.prefix)),
            );
            return self.close(key.guard, route, label, "is about the whole service");
        }
        if let Some((first, kept)) = self.seen.get(lower).cloned() {
            self.findings.push(
                Diagnostic::error("duplicate-key", format!("`{}` is there already as `{}`; that one counts", brief(label), brief(&first)))
                    .at(here)
                    .help("keep one of them: upper and lower case are the same"),
            );
            return self.close(key.guard && kept.trim() != value.trim(), route, label, "contradicts another spelling of itself");
        }
        self.seen.insert(lower.to_owned(), (label.to_owned(), value.to_owned()));
        self.take(label, route, key, value, here);
    }

    /// Puts a value where its key belongs.
    fn take(&mut self, label: &str, route: &str, key: Key, value: &str, here: Place) {
        let Some(value) = Value::new(label, value) else {
            self.findings.push(empty(label, key.guard).at(here));
            return self.close(key.guard, route, label, "is empty");
        };
        let value = stray::unquoted(value, self.findings);
        match key.scope {
            Scope::Service => {
                self.service.values.insert(key.name, value);
            }
            // Without the prefix that makes it one, a key of TCP routes has a name that is none here.
            Scope::Route | Scope::Stream => {
                if let Some(spec) = self.route(route, here) {
                    spec.values.insert(key.name, value);
                }
            }
        }
    }

    /// The spec of the route `name`, made when it is new; `None` when the service has too many.
    fn route(&mut self, name: &str, here: Place) -> Option<&mut RouteSpec> {
        let full = self.routes.len() >= MOST_ROUTES;
        match self.routes.entry(name.to_owned()) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(_) if full => {
                let message = format!("a service has at most {MOST_ROUTES} routes; `{}` is one more", brief(name));
                self.findings.push(Diagnostic::error("too-many-routes", message).at(here).help("spread the routes over several services"));
                None
            }
            Entry::Vacant(entry) => Some(entry.insert(RouteSpec::new(name, Dialect::Native))),
        }
    }

    /// A label whose structure says nothing: if it seems to be about protection, nobody knows what it protects, so all closes.
    fn unreadable(&mut self, rest: &str, finding: Diagnostic) {
        self.findings.push(finding);
        if stray::guards(rest, self.keys) || stray::guards(rest, self.others) {
            self.service.close(format!("`{}{}` could not be read", self.prefix, brief(rest)));
        }
    }

    fn unknown(&mut self, label: &str, route: &str, name: &str, here: Place) {
        if let Some(key) = self.others.iter().find(|key| key.name == name && key.scope != Scope::Stream) {
            return self.not_of_streams(key, route, label, here);
        }
        let joined = format!("{route}-{name}");
        let joined = self.keys.iter().find(|key| key.name == joined);
        let near = stray::nearest_key(name, self.keys);
        let finding = Diagnostic::error("unknown-key", format!("`{}` is not a key of Skep", brief(name)));
        let own = self.prefix;
        let prefix = if route.is_empty() { own.to_owned() } else { format!("{own}{route}.") };
        self.findings.push(
            match (near, joined) {
                (_, Some(key)) => finding.help(format!("did you mean `{own}{}`?", key.name)),
                (None, None) if own == TCP_PREFIX => finding.help("`skep labels` lists the keys of TCP routes"),
                (None, None) if name == "tcp" && route.is_empty() => {
                    finding.help("for a TCP route write its port on the edge, `skep.tcp.listen: 5432`")
                }
                (Some(key), None) => finding.help(format!("did you mean `{prefix}{}`?", key.name)),
                (None, None) => finding.help("`skep labels` lists every key"),
            }
            .at(here),
        );
        // `skep.client.ca` is about the default route, whatever else it seems to say.
        let route = if joined.is_some() { "" } else { route };
        self.close(near.or(joined).is_some_and(|key| key.guard), route, label, "is not a key, and was probably meant to protect");
    }

    /// The key that every route has.
    fn example(&self) -> &'static str {
        if self.prefix == TCP_PREFIX { "listen" } else { "host" }
    }

    /// A key of routes over HTTP on a TCP route, or on a route that was to be called `tcp`.
    fn not_of_streams(&mut self, key: &Key, route: &str, label: &str, here: Place) {
        let message = format!("a TCP route has no `{}`: behind `{TCP_PREFIX}` there are ports and bytes, and no requests", key.name);
        let help = match route {
            "" => format!("`tcp` is reserved; give a route over HTTP another name: `{PREFIX}my-tcp.{}`", key.name),
            _ => format!("for a route over HTTP write `{PREFIX}{route}.{}`", key.name),
        };
        self.findings.push(Diagnostic::error("reserved-route-name", message).at(here).help(help));
        if key.guard {
            self.service.close(format!("`{}` protects nothing there", brief(label)));
        }
    }

    /// Why `route` cannot be the name of a route.
    fn bad_route_name(&self, route: &str, name: &str) -> Option<Diagnostic> {
        if route.is_empty() {
            return None;
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if route.len() > LONGEST_NAME || !route.chars().all(allowed) {
            let message = format!("`{}` cannot be the name of a route", brief(route));
            let help = format!("use at most {LONGEST_NAME} letters a to z, digits, `-` and `_`: `{}api.{}`", self.prefix, self.example());
            return Some(Diagnostic::error("bad-route-name", message).help(help));
        }
        let reserved = self.keys.iter().any(|key| key.name == route);
        let joined = format!("{route}-{name}");
        let help = match self.keys.iter().find(|key| key.name == joined) {
            Some(key) => format!("did you mean `{}{}`?", self.prefix, key.name),
            None => format!("give the route another name: `{}my-{route}.{}`", self.prefix, brief(name)),
        };
        reserved.then(|| Diagnostic::error("reserved-route-name", format!("`{route}` is a key, so no route can have that name")).help(help))
    }

    fn close(&mut self, guard: bool, route: &str, label: &str, why: &str) {
        if !guard {
            return;
        }
        let reason = format!("`{}` {why}", brief(label));
        if self.routes.len() >= MOST_ROUTES && !self.routes.contains_key(route) {
            return self.service.close(reason);
        }
        self.routes.entry(route.to_owned()).or_insert_with(|| RouteSpec::new(route, Dialect::Native)).close(reason);
    }
}

fn empty_part(label: &str, prefix: &str) -> Diagnostic {
    Diagnostic::error("empty-part", format!("`{}` has nothing between two dots or behind the last one", brief(label)))
        .help(format!("write `{prefix}<key>` or `{prefix}<route>.<key>`"))
}

fn too_deep(label: &str, segments: &[&str], keys: &[Key], prefix: &str) -> Diagnostic {
    let finding = Diagnostic::error("too-deep", format!("`{}` has too many parts", brief(label)));
    let joined = segments[1..].join("-");
    match keys.iter().find(|key| key.name == joined) {
        Some(key) => finding.help(format!("did you mean `{prefix}{}.{}`?", brief(segments[0]), key.name)),
        None => finding.help(format!("write `{prefix}<key>` or `{prefix}<route>.<key>`")),
    }
}

/// An empty protecting value closes: it is what an unset variable in a stack file leaves behind.
fn empty(label: &str, guard: bool) -> Diagnostic {
    match guard {
        true => Diagnostic::error("empty-guard", format!("`{}` is empty, so nobody knows whom to let in", brief(label)))
            .help("write a value, or remove the label to leave the route open"),
        false => Diagnostic::warning("empty-value", format!("`{}` is empty, which means not set", brief(label)))
            .help("write a value, or remove the label"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, read, short};

    #[test]
    fn routes_and_their_keys() {
        let (spec, findings) = read(&[
            ("skep.host", " a.de "),
            ("SKEP.Port", "80"),
            ("skep.api.host", "b.de"),
            ("skep.api.strip-prefix", "/api"),
            ("skep.owner", "staff"),
        ]);
        assert_eq!(short(&spec), ["[] host=a.de port=80", "[api] host=b.de strip-prefix=/api"]);
        assert_eq!(spec.get("owner").map(|value| value.label.as_str()), Some("skep.owner"));
        assert_eq!(findings, []);
    }

    #[test]
    fn mistakes_are_named_and_the_rest_lives() {
        for (label, value, code, help) in [
            ("skep.prot", "80", "unknown-key", "did you mean `skep.port`?"),
            ("skep.api.prot", "80", "unknown-key", "did you mean `skep.api.port`?"),
            ("skep.strip_prefix", "/a", "unknown-key", "did you mean `skep.strip-prefix`?"),
            ("skep.stripPrefix", "/a", "unknown-key", "did you mean `skep.strip-prefix`?"),
            ("skep.domain", "b.de", "unknown-key", "did you mean `skep.host`?"),
            ("skep.timeout.response", "5m", "unknown-key", "did you mean `skep.timeout-response`?"),
            ("skep.zzz", "1", "unknown-key", "`skep labels` lists every key"),
            ("skep.", "1", "empty-part", "write `skep.<key>` or `skep.<route>.<key>`"),
            ("skep..port", "80", "empty-part", "write `skep.<key>` or `skep.<route>.<key>`"),
            ("skep.a.b.port", "80", "too-deep", "write `skep.<key>` or `skep.<route>.<key>`"),
            ("skep.api.health.path", "/", "too-deep", "did you mean `skep.api.health-path`?"),
            ("skep.port.host", "b.de", "reserved-route-name", "give the route another name: `skep.my-port.host`"),
            ("skep.rate.limit.port", "80", "too-deep", "write `skep.<key>` or `skep.<route>.<key>`"),
            ("skep.größe.port", "80", "bad-route-name", "use at most 63 letters a to z, digits, `-` and `_`: `skep.api.host`"),
            ("skep.api.backup", "true", "service-key-on-route", "write `skep.backup`"),
            ("Skep.host", "b.de", "duplicate-key", "keep one of them: upper and lower case are the same"),
            ("skep.port", " ", "empty-value", "write a value, or remove the label"),
            ("skep.port", "\"80\"", "quoted-value", "write `skep.port: 80` or, as a list, `- skep.port=80`"),
        ] {
            let (spec, findings) = read(&[("skep.host", "a.de"), (label, value)]);
            let found: Vec<_> =
                findings.iter().map(|finding| (finding.code.as_str(), finding.help.as_deref().unwrap_or_default())).collect();
            assert_eq!(found, [(code, help)], "{label}");
            assert!(spec.routes.iter().all(|route| route.closed.is_none()), "{label}");
        }
    }

    #[test]
    fn what_was_meant_to_protect_closes() {
        for (label, value, code) in [
            ("skep.atuh", "staff", "unknown-key"),
            ("skep.auth-groups", "staff", "unknown-key"),
            ("skep.ip-allow", "10.0.0.0/8", "unknown-key"),
            ("skep.ipwhitelist", "10.0.0.0/8", "unknown-key"),
            ("skep.auth", "", "empty-guard"),
            ("skep.auth.mode", "form", "reserved-route-name"),
            ("skep.allow.api", "10.0.0.0/8", "reserved-route-name"),
            ("skep.a.b.auth", "staff", "too-deep"),
            ("skep..allow", "10.0.0.0/8", "empty-part"),
            ("skep.client.ca", "ca.pem", "unknown-key"),
            ("Skep.allow", "10.0.0.0/8", "duplicate-key"),
        ] {
            let (spec, findings) = read(&[("skep.host", "a.de"), ("skep.allow", "::1"), (label, value)]);
            assert_eq!(codes(&findings), [code], "{label}");
            assert!(spec.routes[0].closed.is_some(), "{label}");
        }
    }

    #[test]
    fn a_guard_of_one_route_closes_that_route_only() {
        let (spec, _) = read(&[("skep.host", "a.de"), ("skep.api.host", "b.de"), ("skep.api.atuh", "staff")]);
        assert_eq!(short(&spec), ["[] host=a.de", "closed [api] host=b.de"]);
    }

    #[test]
    fn routes_are_bounded() {
        let pairs: Vec<_> = (0..120).map(|number| (format!("skep.r{number:03}.host"), "a.de".to_owned())).collect();
        let pairs: Vec<_> = pairs.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let (spec, findings) = read(&pairs);
        assert_eq!((spec.routes.len(), findings.len()), (100, 20));
        let long = format!("skep.{}.host", "a".repeat(64));
        assert_eq!(codes(&read(&[(&long, "a.de")]).1), ["bad-route-name"]);
    }
}
