//! `tls: passthrough`: hosts whose TLS belongs to the service. The edge sees a name and ciphertext, so whatever needs a request is
//! refused, and a host is either all passed through or all served here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::claim::{Claim, subject};
use super::{Route, Told};
use crate::certificate::Mode;
use crate::diagnostic::Diagnostic;
use crate::label::{RouteSpec, Value};
use crate::route::{HostPattern, Matching, PathPattern};
use crate::snapshot::Service;
use crate::upstream::{SILENCE, Scheme, Settings};

/// What such a route's service listens on, where nothing says so.
const USUAL_PORT: u16 = 443;

/// Keys that mean the same as on other routes.
const KEPT: &[&str] = &[
    "host",
    "rule",
    "priority",
    "redirect-from",
    "tls",
    "port",
    "address",
    "network",
    "balance",
    "proxy-protocol",
    "retries",
    "timeout-connect",
    "timeout-idle",
    "weight",
    "allow",
];
/// Keys that do nothing, and without which nobody is served otherwise than was meant.
const IDLE: &[&str] = &[
    "cert",
    "hsts",
    "compress",
    "scheme",
    "sticky",
    "retry-on",
    "timeout-response",
    "timeout-request",
    "health-path",
    "health-interval",
    "health-timeout",
    "health-status",
    "health-unhealthy",
    "health-healthy",
    "upstream-ca",
    "upstream-sni",
    "upstream-verify",
];

/// Does the route leave TLS to its service?
pub(super) fn is_asked(spec: &RouteSpec) -> bool {
    spec.get("tls").is_some_and(|value| value.text.eq_ignore_ascii_case("passthrough"))
}

/// Fits the settings of such a route to what it does. What needs a request is a finding, and the reason to close the route.
pub(super) fn confine(
    service: &Service,
    spec: &RouteSpec,
    matching: &Matching,
    settings: &mut Settings,
    own: &mut Vec<Diagnostic>,
) -> Option<String> {
    let mut closed = None;
    let mut refuse = |finding: Diagnostic| {
        closed.get_or_insert_with(|| "`tls: passthrough` leaves the request encrypted, and another label needs it".to_owned());
        own.push(finding.help("remove it, or let the edge terminate TLS: `tls: redirect`"));
    };
    for (key, value) in spec.values.iter().filter(|(key, _)| !KEPT.contains(key)) {
        match IDLE.contains(key) {
            true => {}
            false => refuse(
                Diagnostic::error("passthrough-blind", format!("`{key}` needs the request, which `tls: passthrough` leaves encrypted"))
                    .at(value.key_place()),
            ),
        }
    }
    let narrow = |value: &Value| {
        Diagnostic::error("passthrough-blind", "a route that passes TLS through is chosen by its host alone").at(value.place())
    };
    let whole = |path: &PathPattern| matches!(path, PathPattern::Prefix(text) if text == "/");
    let alternatives = &matching.alternatives;
    if alternatives
        .iter()
        .any(|matcher| !whole(&matcher.path) || !matcher.conditions.is_empty() || matcher.hosts.contains(&HostPattern::Any))
        && let Some(value) = spec.get("rule")
    {
        refuse(narrow(value));
    }
    if settings.balance.needs_a_request()
        && let Some(value) = spec.get("balance")
    {
        refuse(narrow(value).at(value.place()));
    }
    for (key, value) in spec.values.iter().filter(|(key, _)| IDLE.contains(key)) {
        let finding =
            Diagnostic::warning("passthrough-idle", format!("`{key}` does nothing where TLS is passed through")).at(value.key_place());
        own.push(finding.help("remove it; the service itself does all of HTTP and TLS"));
    }
    (settings.scheme, settings.check, settings.sticky) = (Scheme::Tcp, None, None);
    if spec.get("timeout-idle").is_none() {
        settings.timeouts.idle = SILENCE;
    }
    if spec.get("port").is_none() && service.ports.is_empty() {
        settings.port = Some(USUAL_PORT);
    }
    closed
}

/// A host is all passed through or all served here, as the oldest service that has it wants it; others of the other kind lose it.
pub(super) fn divide(claims: &mut [Claim<'_>], findings: &mut Vec<Diagnostic>) {
    if !claims.iter().any(|claim| claim.route.is_passthrough()) {
        return;
    }
    let mut owners: HashMap<HostPattern, usize> = HashMap::new();
    for index in 0..claims.len() {
        let mut lost = BTreeMap::new();
        let (before, rest) = claims.split_at_mut(index);
        let claim = &mut rest[0];
        let passes = claim.route.is_passthrough();
        for matcher in &mut claim.matching.alternatives {
            matcher.hosts.retain(|host| match owners.get(host) {
                Some(owner) if *owner != index && before[*owner].route.is_passthrough() != passes => {
                    lost.insert(host.clone(), *owner);
                    false
                }
                Some(_) => true,
                None => {
                    owners.insert(host.clone(), index);
                    true
                }
            });
        }
        claim.matching.alternatives.retain(|matcher| !matcher.hosts.is_empty());
        for (host, owner) in lost {
            contested(&mut before[owner], &rest[0], &host, findings);
        }
    }
}

fn contested(keeper: &mut Claim<'_>, loser: &Claim<'_>, host: &HostPattern, findings: &mut Vec<Diagnostic>) {
    let (has, how) = match keeper.route.is_passthrough() {
        true => ("has the TLS of", "passed through to it"),
        false => ("has", "served by the edge"),
    };
    let at = |claim: &Claim<'_>, finding: Diagnostic| {
        claim.label().map(Value::place).into_iter().fold(finding, Diagnostic::at).of(subject(claim.service))
    };
    let message = format!("service `{}` {has} `{host}` {how}, and keeps the host as a whole", keeper.service.name);
    let help = "use another host: what is in a connection is either all seen or not at all";
    findings.push(at(loser, Diagnostic::error("passthrough-taken", message).help(help)));
    if std::ptr::eq(keeper.service, loser.service) {
        if keeper.route.access != loser.route.access {
            let reason = format!("another route of the service wants `{host}` with other access labels");
            keeper.route.access.closed.get_or_insert(reason);
        }
        return;
    }
    let message = format!("service `{}` wants `{host}` too, with TLS treated otherwise, and gets nothing of it", loser.service.name);
    findings.push(at(keeper, Diagnostic::warning("passthrough-contested", message).help("nothing to do here")));
}

/// Whose TLS is passed through, by the name that a client asks for.
#[derive(Debug, Default)]
pub struct Passthrough {
    exact: HashMap<String, Arc<Route>>,
    /// By the part behind `*.`.
    wildcard: HashMap<String, Arc<Route>>,
    /// Hosts under those wildcards that are served here.
    served: BTreeSet<String>,
}

impl Passthrough {
    pub(super) fn new<'a>(kept: impl Iterator<Item = (&'a HostPattern, &'a Arc<Route>)> + Clone) -> Passthrough {
        let mut all = Passthrough::default();
        let (passed, served): (Vec<_>, Vec<_>) = kept.partition(|(_, route)| route.is_passthrough());
        for (host, route) in passed {
            match host {
                HostPattern::Exact(name) => drop(all.exact.entry(name.clone()).or_insert_with(|| Arc::clone(route))),
                HostPattern::Wildcard(suffix) => drop(all.wildcard.entry(suffix.clone()).or_insert_with(|| Arc::clone(route))),
                HostPattern::Any => {}
            }
        }
        let under = |name: &&String| parent(name).is_some_and(|suffix| all.wildcard.contains_key(suffix));
        let names = served.iter().filter_map(|(host, _)| match host {
            HostPattern::Exact(name) => Some(name),
            HostPattern::Wildcard(_) | HostPattern::Any => None,
        });
        all.served = names.filter(under).cloned().collect();
        all
    }

    /// No host is passed through: then no listener needs to look.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }

    /// The route whose service terminates the TLS of `sni` (in any case, RFC 6066 section 3); exact names before wildcards.
    pub fn find(&self, sni: &str) -> Option<&Arc<Route>> {
        if self.is_empty() {
            return None;
        }
        let name = sni.strip_suffix('.').unwrap_or(sni).to_ascii_lowercase();
        if let Some(route) = self.exact.get(&name) {
            return Some(route);
        }
        if self.served.contains(&name) {
            return None;
        }
        self.wildcard.get(parent(&name)?)
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

/// The hosts that a table has, each with the route that has it.
pub(super) fn index(rows: &[Told], lost: &std::collections::HashSet<(usize, &HostPattern)>) -> Passthrough {
    let kept = rows.iter().enumerate().flat_map(|(index, told)| told.matches.iter().map(move |(host, _)| (index, host, &told.route)));
    let kept: Vec<_> = kept.filter(|(index, host, _)| !lost.contains(&(*index, *host))).map(|(_, host, route)| (host, route)).collect();
    Passthrough::new(kept.iter().copied())
}

impl Route {
    /// Is the TLS of its hosts left to the service?
    pub fn is_passthrough(&self) -> bool {
        self.tls.mode == Some(Mode::Passthrough) && matches!(self.action, super::Action::Forward { .. })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::State;
    use super::super::tests::{build, codes, id, pool, route, service};
    use super::*;

    fn found(state: &State, sni: &str) -> String {
        state.passthrough.find(sni).map_or("-".to_owned(), |route| route.id.to_string())
    }

    #[test]
    fn names_are_looked_up_exact_before_wildcard() {
        let state = build(vec![
            service("vault", 1, &[("skep.host", "vault.example.com"), ("skep.tls", "passthrough")]),
            service("wild", 2, &[("skep.host", "*.example.com"), ("skep.tls", "Passthrough")]),
            service("shop", 3, &[("skep.host", "shop.example.com")]),
        ]);
        for (sni, wanted) in [
            ("vault.example.com", "vault"),
            ("VAULT.example.com.", "vault"),
            ("other.example.com", "wild"),
            ("shop.example.com", "-"),
            ("a.b.example.com", "-"),
            ("example.com", "-"),
            ("", "-"),
        ] {
            assert_eq!(found(&state, sni), wanted, "{sni}");
        }
        assert_eq!(id(&state, "vault.example.com/"), "vault", "over HTTP there is a redirect");
        assert_eq!(pool(state.passthrough.find("vault.example.com").expect("passed")).groups[0].backends[0].scheme, Scheme::Tcp);
        assert!(build(vec![]).passthrough.is_empty());
    }

    #[test]
    fn what_needs_a_request_closes_the_route() {
        for (label, text, closed, code) in [
            ("skep.path", "/api", true, "passthrough-blind"),
            ("skep.method", "GET", true, "passthrough-blind"),
            ("skep.header", "X-Beta=1", true, "passthrough-blind"),
            ("skep.rule", "PathPrefix(`/x`)", true, "passthrough-blind"),
            ("skep.strip-prefix", "/api", true, "passthrough-blind"),
            ("skep.request-header", "X-A: b", true, "passthrough-blind"),
            ("skep.rate-limit", "10/s", true, "passthrough-blind"),
            ("skep.balance", "hash:cookie:lb", true, "passthrough-blind"),
            ("skep.compress", "on", false, "passthrough-idle"),
            ("skep.health-path", "/", false, "passthrough-idle"),
        ] {
            let state = build(vec![service("v", 1, &[("skep.host", "a.de"), ("skep.tls", "passthrough"), (label, text)])]);
            let route = state.passthrough.find("a.de").expect("it keeps its place");
            assert_eq!(route.access.closed.is_some(), closed, "{label}");
            assert!(codes(&state, "v").contains(&code.to_owned()), "{label}: {:?}", state.diagnostics);
        }
        let auth = build(vec![service("v", 1, &[("skep.host", "a.de"), ("skep.tls", "passthrough"), ("skep.auth", "staff")])]);
        assert!(auth.passthrough.find("a.de").expect("it keeps its place").access.closed.is_some());
        let allow = build(vec![service("v", 1, &[("skep.host", "a.de"), ("skep.tls", "passthrough"), ("skep.allow", "10.0.0.0/8")])]);
        assert_eq!((allow.passthrough.find("a.de").expect("passed").access.closed.clone(), codes(&allow, "v")), (None, vec![]));
    }

    #[test]
    fn a_host_is_passed_through_as_a_whole() {
        let passing = |age| service("vault", age, &[("skep.host", "a.de"), ("skep.tls", "passthrough")]);
        let served = |age| service("shop", age, &[("skep.host", "a.de"), ("skep.path", "/shop")]);
        let state = build(vec![passing(1), served(2)]);
        assert_eq!((found(&state, "a.de"), id(&state, "a.de/shop")), ("vault".into(), "vault".into()));
        assert_eq!(
            (codes(&state, "shop"), codes(&state, "vault")),
            (vec!["passthrough-taken".to_owned()], vec!["passthrough-contested".to_owned()])
        );
        let state = build(vec![passing(2), served(1)]);
        assert_eq!((found(&state, "a.de"), id(&state, "a.de/shop")), ("-".into(), "shop".into()));
        assert!(route(&state, "a.de/other").is_none());
    }

    #[test]
    fn the_usual_port_is_that_of_tls() {
        let mut bare = service("v", 1, &[("skep.host", "a.de"), ("skep.tls", "passthrough")]);
        bare.ports.clear();
        let state = build(vec![bare]);
        assert_eq!(pool(state.passthrough.find("a.de").expect("passed")).groups[0].backends[0].address.port(), 443);
        assert_eq!(codes(&state, "v"), [] as [&str; 0]);
    }

    proptest! {
        #[test]
        fn any_name_is_survived(name in "\\PC{0,40}") {
            let state = build(vec![service("wild", 2, &[("skep.host", "*.example.com"), ("skep.tls", "passthrough")])]);
            let _ = state.passthrough.find(&name);
        }
    }
}
