//! What one service's labels claim: every feature reads its keys, and what contradicts itself within the service is settled.
//! Protection closes here: a route that may not serve still claims its place, so that no broader route answers in its stead.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::stream::{self, PortClaim};
use super::{Action, Aside, Route, authority, passthrough};
use crate::auth::{self, Access};
use crate::backup;
use crate::certificate::{self, Tls};
use crate::config::Config;
use crate::diagnostic::{Diagnostic, Place, Severity};
use crate::label::{self, Dialect, Key, RouteSpec, ServiceSpec, Value};
use crate::policy;
use crate::route::{self, HostPattern, Matching};
use crate::snapshot::{Labels, Origin, Service, Snapshot};
use crate::traffic::{self, Traffic};
use crate::upstream::{self, Check, Group, Pool, Retries, Trust};

/// One route that a service asks for.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub service: &'a Service,
    pub spec: RouteSpec,
    pub matching: Matching,
    pub route: Route,
    /// Given where the service wants to share the route with others.
    pub weight: Option<u32>,
}

impl Claim<'_> {
    /// The label that says what the route matches.
    pub fn label(&self) -> Option<&Value> {
        self.spec.get("host").or_else(|| self.spec.get("rule"))
    }

    fn at(&self, finding: Diagnostic) -> Diagnostic {
        match self.label() {
            Some(label) => finding.at(label.place()),
            None => finding,
        }
    }
}

/// What findings about a service are filed under.
pub(super) fn subject(service: &Service) -> String {
    format!("service {}", service.name)
}

/// Reads services; holds what is the same for all.
pub(super) struct Reader<'a> {
    config: &'a Config,
    snapshot: &'a Snapshot,
    keys: &'a [Key],
    guards: Vec<&'static str>,
}

/// The features' readings of one spec.
struct Features {
    matching: Option<Matching>,
    access: Access,
    traffic: Traffic,
    tls: Tls,
    upstream: upstream::Settings,
}

impl<'a> Reader<'a> {
    pub fn new(config: &'a Config, snapshot: &'a Snapshot, keys: &'a [Key]) -> Reader<'a> {
        let guards = keys.iter().filter(|key| key.guard).map(|key| key.name).collect();
        Reader { config, snapshot, keys, guards }
    }

    /// The routes that `service` asks for, native ones first; what it asks for of ports goes to `ports`. Findings are about the service.
    pub fn read(&self, service: &'a Service, ports: &mut Vec<PortClaim<'a>>, findings: &mut Vec<Diagnostic>) -> Vec<Claim<'a>> {
        let (mut spec, mut own) = label::parse(&service.labels, self.keys, self.config.labels.sismics_auth);
        self.misplaced(service, &mut spec, &mut own);
        let (owner, found) = policy::parse(&spec);
        own.extend(found);
        if spec.get("owner").is_some() && owner.0.is_none() {
            spec.close("the owner of the service could not be read");
        }
        own.extend(backup::label::parse(&spec).1);
        let mut read: Vec<(RouteSpec, Features)> = Vec::with_capacity(spec.routes.len());
        for route in std::mem::take(&mut spec.routes) {
            let features = self.features(&route, &mut own);
            read.push((route, features));
        }
        let closed = self.lost_protection(&read, &mut own).or(spec.closed);
        let claims = read.into_iter().filter_map(|(route, features)| self.claim(service, route, features, closed.as_deref(), &mut own));
        let mut claims: Vec<Claim<'a>> = claims.collect();
        ports.extend(stream::read(self.config, self.snapshot, service, spec.streams, closed.as_deref(), &mut own));
        settle(&mut claims, &mut own);
        own.extend(other_check(&claims));
        if let Some(claim) =
            claims.iter().find(|claim| claim.spec.dialect == Dialect::Haproxy && claim.spec.get("timeout-response").is_none())
        {
            own.push(shorter_timeout(claim));
        }
        let subject = subject(service);
        findings.extend(own.into_iter().map(|finding| finding.of(subject.clone())));
        claims
    }

    /// Lets every feature read its keys, whether the route can match or not, so that all mistakes are seen at once.
    fn features(&self, spec: &RouteSpec, own: &mut Vec<Diagnostic>) -> Features {
        let mut gather = |found: Vec<Diagnostic>| own.extend(found);
        let (matching, found) = route::parse(spec);
        if matching.is_none() && found.is_empty() {
            gather(vec![Diagnostic::error("no-match", "the route does not say which requests it is about").help("add a `host`")]);
        }
        gather(found);
        let (access, found) = auth::parse(spec);
        gather(found);
        let (traffic, found) = traffic::parse(spec, &self.config.defaults);
        gather(found);
        let (tls, found) = certificate::parse(spec);
        gather(found);
        let (upstream, found) = upstream::parse(spec, &self.config.defaults);
        gather(found);
        Features { matching, access, traffic, tls, upstream }
    }

    /// A route that protects but cannot match leaves what it was to protect to the service's other routes: they must not serve.
    fn lost_protection(&self, read: &[(RouteSpec, Features)], own: &mut Vec<Diagnostic>) -> Option<String> {
        let protects = |spec: &RouteSpec, features: &Features| {
            features.access.closed.is_some() || features.tls.closed.is_some() || self.guards.iter().any(|key| spec.get(key).is_some())
        };
        let (spec, _) = read.iter().find(|(spec, features)| features.matching.is_none() && protects(spec, features))?;
        let name = if spec.name.is_empty() { "the default route".to_owned() } else { format!("route `{}`", spec.name) };
        if read.len() > 1 {
            let message = format!("{name} protects something, but matches nothing: all routes of the service are closed");
            let finding = Diagnostic::error("protection-lost", message);
            let guard = self.guards.iter().find_map(|key| Some((key, spec.get(key)?)));
            let other = read.iter().find(|(other, features)| features.matching.is_some() && !other.name.is_empty());
            let help = match (guard, other) {
                (Some((key, _)), Some((other, _))) => format!("write `skep.{}.{key}`, once for each route that it protects", other.name),
                _ => "repair what the route matches, or remove its access labels".to_owned(),
            };
            own.push(guard.into_iter().fold(finding, |finding, (_, value)| finding.at(value.key_place())).help(help));
        }
        Some(format!("{name} of the service protects something, but what it matches could not be read"))
    }

    /// Labels on a service's containers do nothing in a swarm; one that was to protect closes what it does not reach.
    fn misplaced(&self, service: &Service, spec: &mut ServiceSpec, own: &mut Vec<Diagnostic>) {
        for (label, text) in &service.container_labels {
            // A stack file's count for both, as it may be served as it is and deployed as well; said twice in Docker is said.
            let counts = service.labels.get(label) == Some(text);
            if counts && service.origin != Origin::File {
                continue;
            }
            let alone = Labels::from([(label.clone(), text.clone())]);
            let (read, found) = label::parse(&alone, self.keys, self.config.labels.sismics_auth);
            if found.is_empty() && read.routes.is_empty() && read.streams.is_empty() && read.values.is_empty() {
                continue;
            }
            let (severity, message) = match counts {
                true => {
                    (Severity::Warning, format!("`{label}` is a label of the containers: it is read from this file, but not in a swarm"))
                }
                false => (Severity::Error, format!("`{label}` is a label of the containers, where nobody reads it")),
            };
            own.push(
                Diagnostic::new(severity, "label-on-container", message)
                    .at(Place::Label { key: label.clone(), value: text.clone(), span: 0..label.len(), in_key: true })
                    .help("in the stack file write it under `deploy: labels:`, not under the service's own `labels:`"),
            );
            if !counts && self.protects(&read) {
                spec.close(format!("`{label}` was meant to protect, but is a label of the containers"));
            }
        }
    }

    /// Does any label protect, or was meant to?
    fn protects(&self, spec: &ServiceSpec) -> bool {
        let routes = || spec.routes.iter().chain(&spec.streams);
        let guard = |key: &&str| spec.get(key).is_some() || routes().any(|route| route.get(key).is_some());
        spec.closed.is_some() || routes().any(|route| route.closed.is_some()) || self.guards.iter().any(guard)
    }

    /// The claim of one spec; `closed` is why no route of the service may serve.
    fn claim(
        &self,
        service: &'a Service,
        spec: RouteSpec,
        features: Features,
        closed: Option<&str>,
        own: &mut Vec<Diagnostic>,
    ) -> Option<Claim<'a>> {
        let Features { matching, mut access, traffic, tls, mut upstream } = features;
        let matching = matching?;
        let blind = passthrough::is_asked(&spec).then(|| passthrough::confine(service, &spec, &matching, &mut upstream, own)).flatten();
        let distrusted = self.authority(service, &spec, &mut upstream, own);
        access.closed = access.closed.take().or(blind).or(distrusted);
        let reason =
            access.closed.take().or_else(|| spec.closed.clone()).or_else(|| tls.closed.clone()).or_else(|| closed.map(str::to_owned));
        access.closed = reason;
        let (backends, found) = upstream::backends(service, &spec, &upstream, &self.snapshot.engine.edge, &self.snapshot.names);
        own.extend(found);
        let name: Arc<str> = Arc::from(service.name.as_str());
        let check = upstream.check.map(|check| Arc::new(Check { host: first_host(&matching), ..check }));
        let group = Group { service: Arc::clone(&name), weight: upstream.weight.unwrap_or(1), backends, check };
        let retry_on = Some(upstream.retry_on).filter(|on| !on.is_empty());
        let retries = Retries { most: upstream.retries, on: retry_on.map(Arc::from) };
        let pool = Pool { groups: vec![group], balance: upstream.balance, sticky: upstream.sticky };
        let route = Route {
            id: if spec.name.is_empty() { Arc::clone(&name) } else { Arc::from(format!("{name}/{}", spec.name)) },
            service: name,
            origin: service.origin,
            dialect: spec.dialect,
            action: Action::Forward { pool, timeouts: upstream.timeouts, retries },
            access,
            traffic,
            tls,
            aside: Aside::default(),
        };
        Some(Claim { service, spec, matching, route, weight: upstream.weight })
    }
}

impl Reader<'_> {
    /// Resolves `upstream-ca`. The reason to close a route whose tasks nobody could vouch for.
    fn authority(
        &self,
        service: &Service,
        spec: &RouteSpec,
        upstream: &mut upstream::Settings,
        own: &mut Vec<Diagnostic>,
    ) -> Option<String> {
        let value = spec.get("upstream-ca").filter(|_| upstream.scheme.is_secure())?;
        match authority::path(service, self.config, value) {
            Ok(path) => {
                upstream.trust = Trust::Authority(path);
                None
            }
            Err(finding) => {
                own.push(finding);
                Some("`upstream-ca` names no authorities that may be used".to_owned())
            }
        }
    }
}

/// A task is asked one thing; where routes of a service want to know different ones, the first route by name is heard.
fn other_check(claims: &[Claim<'_>]) -> Option<Diagnostic> {
    let mut pools: Vec<_> = claims.iter().filter_map(|claim| Some((claim, claim.route.pool()?))).collect();
    pools.sort_by(|(one, _), (other, _)| one.route.id.cmp(&other.route.id));
    let ((first, heard), rest) = pools.split_first()?;
    let (other, _) = rest.iter().find(|(_, pool)| upstream::checks_differ(heard, pool))?;
    let message = format!("route `{}` has another check of the same tasks, and that one counts", first.route.id);
    let finding = Diagnostic::warning("several-checks", message).help("give all routes of the service the same `health-` labels");
    Some(match other.spec.get("health-path") {
        Some(value) => finding.at(value.key_place()),
        None => finding,
    })
}

/// A host that the route's requests name, for those that the edge makes itself: applications refuse hosts that they do not know.
fn first_host(matching: &Matching) -> Option<String> {
    matching.alternatives.iter().flat_map(|matcher| &matcher.hosts).find_map(|host| match host {
        HostPattern::Exact(host) => Some(host.clone()),
        HostPattern::Any | HostPattern::Wildcard(_) => None,
    })
}

/// The users of this dialect are used to requests that may take an hour.
fn shorter_timeout(claim: &Claim<'_>) -> Diagnostic {
    let Action::Forward { timeouts, .. } = &claim.route.action else { unreachable!("claims forward") };
    let seconds = timeouts.response.as_secs();
    let message = format!("an answer may take {seconds} s to begin; the proxy that these labels come from allowed 60 minutes");
    let finding = Diagnostic::info("shorter-timeout", message).help("if requests take longer, add `skep.timeout-response: 60m`");
    claim.at(finding)
}

/// Where routes of one service claim the same host, path and conditions, one keeps it: native before haproxy, then the higher priority,
/// then by name. If the loser was to protect otherwise than the winner, nobody knows which was meant, and the winner closes.
fn settle(claims: &mut [Claim<'_>], own: &mut Vec<Diagnostic>) {
    let single = |claim: &Claim<'_>| matches!(claim.matching.alternatives.as_slice(), [matcher] if matcher.hosts.len() == 1);
    if claims.len() == 1 && claims.iter().all(single) {
        return;
    }
    let priority = |claim: &Claim<'_>| claim.matching.alternatives.iter().filter_map(|matcher| matcher.priority).max().unwrap_or(0);
    claims.sort_by(|a, b| {
        let order = |claim: &Claim<'_>| (claim.spec.dialect, std::cmp::Reverse(priority(claim)));
        order(a).cmp(&order(b)).then_with(|| a.spec.name.cmp(&b.spec.name))
    });
    let mut taken = HashMap::new();
    for index in 0..claims.len() {
        let mut losses = BTreeMap::new();
        for matcher in &mut claims[index].matching.alternatives {
            matcher.hosts.retain(|host| match taken.entry((host.clone(), matcher.path.clone(), matcher.conditions.clone())) {
                Entry::Vacant(entry) => {
                    entry.insert(index);
                    true
                }
                Entry::Occupied(entry) => {
                    losses.entry(*entry.get()).or_insert_with(|| super::listing::place(host, &matcher.path));
                    false
                }
            });
        }
        claims[index].matching.alternatives.retain(|matcher| !matcher.hosts.is_empty());
        for (keeper, what) in losses.into_iter().filter(|(keeper, _)| *keeper != index) {
            own.push(superseded(&claims[keeper], &claims[index], &what));
            if claims[keeper].route.access != claims[index].route.access {
                let reason = format!("another route of the service claims `{what}` with other access labels");
                claims[keeper].route.access.closed.get_or_insert(reason);
            }
        }
    }
}

/// Says that `loser` gets nothing of `what`.
fn superseded(keeper: &Claim<'_>, loser: &Claim<'_>, what: &str) -> Diagnostic {
    let finding = match keeper.spec.dialect == loser.spec.dialect {
        true => {
            Diagnostic::error("duplicate-route", format!("another route of this service claims `{what}` already: `{}`", keeper.route.id))
                .help("remove one of them, or tell them apart by path, method, header or query")
        }
        false => Diagnostic::warning("dialect-superseded", format!("`{what}` is described by `skep.` labels too, and those count"))
            .help("remove one of the two descriptions"),
    };
    loser.at(finding)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::tests::{build, codes, id, route, service};
    use super::*;
    use crate::label::Effect;

    fn closed(state: &State, url: &str) -> bool {
        route(state, url).is_some_and(|route| route.access.closed.is_some())
    }

    /// Labels that were meant to protect and cannot be understood. None of them may leave the route open.
    #[test]
    fn a_finding_on_an_access_label_closes_the_route() {
        for labels in [
            &[("skep.auth", "")][..],
            &[("skep.auth", ",")],
            &[("skep.auth", "staff")],
            &[("skep.auth", "*, staff")],
            &[("skep.atuh", "staff")],
            &[("skep.auht", "staff")],
            &[("skep.Auth", "staff")],
            &[("skpe.auth", "staff")],
            &[("skep-auth", "staff")],
            &[("skep..auth", "staff")],
            &[("skep.auth.group", "staff")],
            &[("skep.auth-groups", "staff")],
            &[("skep.api.auth", "staff")],
            &[("skep.a.b.auth", "staff")],
            &[("skep.auth", "a"), ("SKEP.auth", "b")],
            &[("skep.auth-mode", "fomr")],
            &[("skep.auth-bypass", "hook")],
            &[("skep.allow", "10.0.0.0/33")],
            &[("skep.allow", "10.0.0.0/8, office")],
            &[("skep.allow", "")],
            &[("skep.alow", "10.0.0.0/8")],
            &[("skep.whitelist", "10.0.0.0/8")],
            &[("skep.forward-auth", "not a url")],
            &[("skep.basic-auth", "bob:plain")],
            &[("skep.basicauth", "bob:plain")],
            &[("skep.client-ca", "/ca.pem")],
            &[("skep.enable", "flase")],
            &[("com.sismics.docker.auth", "staff")],
            &[("com.sismics.docker.atuh", "staff")],
        ] {
            let labels: Vec<_> = labels.iter().copied().chain([("skep.host", "a.example.com")]).collect();
            let state = build(vec![service("shop", 1, &labels), service("neighbour", 2, &[("skep.host", "b.example.com")])]);
            assert!(closed(&state, "a.example.com/"), "{labels:?}: {:?}", state.diagnostics);
            assert!(!closed(&state, "b.example.com/") && codes(&state, "neighbour").is_empty(), "{labels:?}");
            assert!(state.diagnostics.iter().any(|finding| finding.severity > Severity::Info), "{labels:?}");
        }
    }

    #[test]
    fn protection_of_a_route_that_matches_nothing_closes_its_neighbours() {
        for broken in [("skep.admin.rule", "Host(`a.example.com`) && PathPrefix(`/admin`"), ("skep.admin.path", "/admin")] {
            let labels = [("skep.host", "a.example.com"), broken, ("skep.admin.auth", "staff")];
            let state = build(vec![service("shop", 1, &labels)]);
            assert!(closed(&state, "a.example.com/admin"), "{broken:?}: {:?}", state.diagnostics);
        }
        let labels = [("skep.host", "a.example.com"), ("skep.admin.rule", "Host(`a.example.com`"), ("skep.admin.port", "81")];
        let state = build(vec![service("shop", 1, &labels)]);
        assert!(!closed(&state, "a.example.com/"), "nothing was to be protected");
        assert!(!codes(&state, "shop").is_empty(), "but the lost route is named");
    }

    #[test]
    fn labels_on_containers_are_named_and_protect_all_the_same() {
        let with = |labels: &[(&str, &str)]| {
            let mut shop = service("shop", 1, &[("skep.host", "a.example.com")]);
            shop.container_labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            build(vec![shop])
        };
        let state = with(&[("skep.port", "81"), ("skep.host", "a.example.com"), ("com.docker.stack.namespace", "x")]);
        assert_eq!(codes(&state, "shop"), ["label-on-container"]);
        assert!(!closed(&state, "a.example.com/"));
        for guard in [("skep.auth", "staff"), ("skep.atuh", "staff"), ("com.sismics.docker.auth", "staff"), ("skep.allow", "")] {
            assert!(closed(&with(&[guard]), "a.example.com/"), "{guard:?}");
        }
        let mut file = service("shop", 1, &[("skep.host", "a.example.com"), ("skep.allow", "10.0.0.0/8"), ("skep.address", "10.0.0.1:80")]);
        file.origin = Origin::File;
        file.container_labels = file.labels.clone();
        let state = build(vec![file]);
        assert_eq!(codes(&state, "shop"), ["label-on-container"; 3]);
        assert!(!closed(&state, "a.example.com/"), "a file's labels count wherever they stand");
    }

    #[test]
    fn native_labels_win_over_haproxy_ones() {
        let state = build(vec![service(
            "shop",
            1,
            &[("skep.host", "a.example.com"), ("skep.port", "81"), ("haproxy.virtual_host", "a.example.com, b.example.com")],
        )]);
        assert_eq!(codes(&state, "shop"), ["dialect-superseded"]);
        assert_eq!(route(&state, "a.example.com/").map(|route| route.dialect), Some(Dialect::Native));
        assert_eq!(route(&state, "b.example.com/").map(|route| route.dialect), Some(Dialect::Haproxy));
    }

    #[test]
    fn a_route_described_twice_counts_once() {
        let labels = [("skep.one.host", "a.example.com"), ("skep.two.host", "a.example.com, b.example.com"), ("skep.two.port", "81")];
        let state = build(vec![service("shop", 1, &labels)]);
        assert_eq!(codes(&state, "shop"), ["duplicate-route"]);
        assert_eq!((id(&state, "a.example.com/"), id(&state, "b.example.com/")), ("shop/one".into(), "shop/two".into()));
        assert!(!closed(&state, "a.example.com/"));
        let higher = [("skep.one.host", "a.example.com"), ("skep.two.host", "a.example.com"), ("skep.two.priority", "5")];
        assert_eq!(id(&build(vec![service("shop", 1, &higher)]), "a.example.com/"), "shop/two");
    }

    #[test]
    fn of_two_descriptions_that_protect_differently_neither_serves() {
        let labels = [("skep.one.host", "a.example.com"), ("skep.two.host", "a.example.com"), ("skep.two.allow", "10.0.0.0/8")];
        assert!(closed(&build(vec![service("shop", 1, &labels)]), "a.example.com/"));
    }

    /// Nothing is silent: what does nothing yet says so. A value for each such key that can be read.
    #[test]
    fn keys_of_later_features_are_said_to_do_nothing() {
        const VALUES: &[(&str, &str)] = &[
            ("health-path", "/health"),
            ("health-interval", "5s"),
            ("health-timeout", "5s"),
            ("health-status", "200"),
            ("health-unhealthy", "2"),
            ("health-healthy", "2"),
            ("retry-on", "reset"),
            ("owner", "staff"),
        ];
        let later = super::super::keys().into_iter().filter(|key| matches!(key.effect, Effect::Later(_)));
        for key in later {
            let value = VALUES.iter().find(|(name, _)| *name == key.name).unwrap_or_else(|| panic!("no value for {}", key.name)).1;
            let label = format!("skep.{}", key.name);
            let state = build(vec![service("shop", 1, &[("skep.host", "a.example.com"), ("skep.health-path", "/"), (&label, value)])]);
            let about = |finding: &&Diagnostic| matches!(&finding.place, Some(Place::Label { key, .. }) if *key == label);
            let codes: Vec<_> = state.diagnostics.iter().filter(about).map(|finding| finding.code.as_str()).collect();
            assert!(matches!(codes.as_slice(), ["not-yet"]), "{label}: {codes:?}");
        }
    }

    #[test]
    fn migrated_services_hear_of_the_shorter_timeout_once() {
        let hearing = |labels: &[(&str, &str)]| {
            let state = build(vec![service("shop", 1, labels)]);
            state.diagnostics.iter().filter(|finding| finding.code == "shorter-timeout").count()
        };
        assert_eq!(hearing(&[("haproxy.virtual_host", "a.de, b.de/x"), ("haproxy.virtual_host_secure", "c.de")]), 1);
        assert_eq!(hearing(&[("haproxy.virtual_host", "a.de"), ("skep.timeout-response", "60m")]), 0);
        assert_eq!(hearing(&[("skep.host", "a.de")]), 0);
    }

    #[test]
    fn a_disabled_service_has_no_routes() {
        let state = build(vec![service("shop", 1, &[("skep.host", "a.de"), ("skep.enable", "false")])]);
        assert!(state.routes.is_empty());
    }

    /// The labels of a first-generation stack, as they are.
    #[test]
    fn a_first_generation_stack_is_understood() {
        let labels = [
            ("haproxy.virtual_host_secure", "docs.example.com, www.docs.example.com"),
            ("haproxy.http_redirect_from", "docs.example.org"),
            ("haproxy.virtual_host_port", "8080"),
            ("backup.enable", "true"),
        ];
        let state = build(vec![service("docs", 1, &labels)]);
        assert_eq!((id(&state, "www.docs.example.com/x"), id(&state, "docs.example.org/x")), ("docs".into(), "docs/redirect-from".into()));
        assert!(state.diagnostics.iter().all(|finding| finding.severity < Severity::Error), "{:?}", state.diagnostics);
        let protected: Vec<_> = labels.into_iter().chain([("com.sismics.docker.auth", "docs")]).collect();
        let state = build(vec![service("docs", 1, &protected)]);
        assert!(closed(&state, "docs.example.com/"));
        assert!(state.diagnostics.iter().all(|finding| finding.severity < Severity::Error), "{:?}", state.diagnostics);
    }
}
