//! TCP routes: which service has which port of the edge. The operator says which ports labels may claim at all, and the older
//! service keeps a port that two of them want.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::aside::Aside;
use super::claim::subject;
use super::{Action, Listing, Route};
use crate::auth;
use crate::certificate::Tls;
use crate::config::Config;
use crate::diagnostic::Diagnostic;
use crate::label::{RouteSpec, Value};
use crate::snapshot::{Service, Snapshot};
use crate::traffic::Traffic;
use crate::upstream::{self, Group, Pool, Retries};

/// One port that a service asks for.
#[derive(Debug)]
pub(super) struct PortClaim<'a> {
    service: &'a Service,
    port: u16,
    /// The label that names it.
    label: Value,
    route: Route,
}

/// The ports that the TCP routes of `service` ask for; `closed` is why none of its routes may serve. Findings are about the service.
pub(super) fn read<'a>(
    config: &Config,
    snapshot: &Snapshot,
    service: &'a Service,
    specs: Vec<RouteSpec>,
    closed: Option<&str>,
    own: &mut Vec<Diagnostic>,
) -> Vec<PortClaim<'a>> {
    let lost = specs.iter().any(|spec| spec.get("listen").is_none() && (spec.closed.is_some() || spec.get("allow").is_some()));
    let lost = lost.then_some("a TCP route of the service protects something, but has no port");
    specs.into_iter().filter_map(|spec| claim(config, snapshot, service, spec, closed.or(lost), own)).collect()
}

fn claim<'a>(
    config: &Config,
    snapshot: &Snapshot,
    service: &'a Service,
    spec: RouteSpec,
    closed: Option<&str>,
    own: &mut Vec<Diagnostic>,
) -> Option<PortClaim<'a>> {
    let (mut access, found) = auth::parse(&spec);
    own.extend(found);
    access.closed = access.closed.or_else(|| closed.map(str::to_owned));
    let (port, settings, found) = upstream::parse_stream(&spec, &config.defaults);
    own.extend(found);
    let (backends, found) = upstream::backends(service, &spec, &settings, &snapshot.engine.edge, &snapshot.names);
    own.extend(found.into_iter().map(|finding| in_words_of_streams(finding, &spec.name)));
    let (port, label) = (port?, spec.get("listen")?.clone());
    if let Some(finding) = refused(config, port) {
        own.push(finding.at(label.place()));
        return None;
    }
    let name: Arc<str> = Arc::from(service.name.as_str());
    let group = Group { service: Arc::clone(&name), weight: 1, backends, check: None };
    let route = Route {
        id: Arc::from(if spec.name.is_empty() { format!("{name}/tcp") } else { format!("{name}/tcp/{}", spec.name) }),
        service: name,
        origin: service.origin,
        dialect: spec.dialect,
        action: Action::Forward {
            pool: Pool { groups: vec![group], balance: settings.balance, sticky: None },
            timeouts: settings.timeouts,
            retries: Retries { most: settings.retries, on: None },
        },
        access,
        traffic: Traffic::default(),
        tls: Tls::default(),
        aside: Aside::default(),
    };
    Some(PortClaim { service, port, label, route })
}

/// Findings about addresses speak of the keys of routes over HTTP, and of their answers.
fn in_words_of_streams(finding: Diagnostic, name: &str) -> Diagnostic {
    let prefix = format!("`{}", upstream::stream_prefix(name));
    let message = finding.message.replace("the route answers 503", "connections are closed at once");
    Diagnostic { message, help: finding.help.map(|help| help.replace("`skep.", &prefix)), ..finding }
}

/// Why no label may have this port.
fn refused(config: &Config, port: u16) -> Option<Diagnostic> {
    let listening = [("http.listen", &config.http.listen), ("https.listen", &config.https.listen)];
    let own = listening.iter().find(|(_, addresses)| addresses.iter().any(|address| address.port() == port)).map(|(name, _)| *name);
    let own = own.or_else(|| config.admin.listen.filter(|address| address.port() == port).map(|_| "admin.listen"));
    if let Some(name) = own {
        let finding = Diagnostic::error("port-of-the-edge", format!("the edge itself listens on port {port} (`{name}`)"));
        return Some(finding.help("choose another port, or describe a route over HTTP with `skep.host`"));
    }
    let allowed = config.tcp.ports.iter().any(|range| range.contains(&port));
    (!allowed).then(|| {
        let mut ports: Vec<String> = config.tcp.ports.iter().map(crate::config::port_range).collect();
        ports.push(port.to_string());
        let list = ports.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ");
        Diagnostic::error("port-not-allowed", format!("the configuration does not let labels have port {port}"))
            .help(format!("write `ports = [{list}]` under `[tcp]` in skep.toml, or set SKEP_TCP_PORTS={}", ports.join(",")))
    })
}

/// Gives each port to the first of its claimants, who come oldest first.
pub(super) fn settle(claims: Vec<PortClaim<'_>>, findings: &mut Vec<Diagnostic>) -> (BTreeMap<u16, Arc<Route>>, BTreeMap<String, Listing>) {
    let mut kept: BTreeMap<u16, PortClaim<'_>> = BTreeMap::new();
    for claim in claims {
        match kept.get_mut(&claim.port) {
            None => drop(kept.insert(claim.port, claim)),
            Some(keeper) => contested(keeper, &claim, findings),
        }
    }
    let mut names = BTreeSet::new();
    let (mut streams, mut listings) = (BTreeMap::new(), BTreeMap::new());
    for (port, mut claim) in kept {
        let id = Arc::clone(&claim.route.id);
        let mut number = 2;
        while !names.insert(Arc::clone(&claim.route.id)) {
            claim.route.id = Arc::from(format!("{id}~{number}"));
            number += 1;
        }
        let route = Arc::new(claim.route);
        listings.insert(route.id.to_string(), Listing { route: Arc::clone(&route), matches: vec![format!("tcp port {port}")] });
        streams.insert(port, route);
    }
    (streams, listings)
}

/// Findings on both sides. If one service asks twice, and not with the same protection, nobody knows which was meant.
fn contested(keeper: &mut PortClaim<'_>, loser: &PortClaim<'_>, findings: &mut Vec<Diagnostic>) {
    let port = loser.port;
    if std::ptr::eq(keeper.service, loser.service) {
        let finding = Diagnostic::error(
            "duplicate-port",
            format!("another TCP route of this service has port {port} already: `{}`", keeper.route.id),
        );
        findings.push(finding.at(loser.label.place()).help("give each its own port").of(subject(loser.service)));
        if keeper.route.access != loser.route.access {
            let reason = format!("another TCP route of the service has port {port} with other access labels");
            keeper.route.access.closed.get_or_insert(reason);
        }
        return;
    }
    let why = if keeper.service.created == loser.service.created { "comes first by its name" } else { "is older" };
    let finding = Diagnostic::error("port-taken", format!("port {port} belongs to service `{}`, which {why}", keeper.service.name));
    findings.push(finding.at(loser.label.place()).help("use another port of `tcp.ports`").of(subject(loser.service)));
    let message = format!("service `{}` wants port {port} too and does not get it", loser.service.name);
    let help = format!("nothing to do here, unless `{}` is meant to replace this service: then remove this route", loser.service.name);
    findings.push(Diagnostic::warning("port-contested", message).at(keeper.label.place()).help(help).of(subject(keeper.service)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::State;
    use super::super::tests::{codes, pool, service};
    use super::*;
    use crate::snapshot::{Edge, Engine, Swarm};

    fn build(services: Vec<Service>) -> State {
        let mut config = Config::default();
        config.tcp.ports = vec![5432..=5432, 20000..=20010, 80..=80];
        let edge = Edge { container: Some("skep".into()), networks: vec!["edge".into()] };
        let engine = Engine { id: "e".into(), swarm: Swarm::Manager, edge, ..Engine::default() };
        State::build(Arc::new(config), Arc::new(Snapshot { engine, services, ..Snapshot::default() }))
    }

    #[test]
    fn a_port_goes_to_the_tasks_of_its_service() {
        let state =
            build(vec![service("db", 1, &[("skep.tcp.listen", "5432"), ("skep.tcp.mail.listen", "20001"), ("skep.tcp.mail.port", "25")])]);
        let addresses: Vec<_> =
            state.streams.iter().map(|(port, route)| (*port, &*route.id, pool(route).groups[0].backends[0].address.to_string())).collect();
        assert_eq!(addresses, [(5432, "db/tcp", "10.0.0.1:5432".to_owned()), (20001, "db/tcp/mail", "10.0.0.1:25".to_owned())]);
        assert_eq!(state.routes["db/tcp"].matches, ["tcp port 5432"]);
        assert_eq!((codes(&state, "db"), state.pools().count()), (Vec::new(), 2));
    }

    #[test]
    fn ports_are_the_operators_to_give() {
        for (port, code) in
            [("5433", "port-not-allowed"), ("80", "port-of-the-edge"), ("443", "port-of-the-edge"), ("9180", "port-of-the-edge")]
        {
            let state = build(vec![service("db", 1, &[("skep.tcp.listen", port)])]);
            assert_eq!((state.streams.len(), codes(&state, "db")), (0, vec![code.to_owned()]), "{port}");
        }
        let state = build(vec![service("db", 1, &[("skep.tcp.listen", "5433")])]);
        let help = state.diagnostics[0].help.as_deref().expect("it says what to write");
        assert!(help.contains(r#"ports = ["5432", "20000-20010", "80", "5433"]"#), "{help}");
    }

    #[test]
    fn the_older_service_keeps_a_port() {
        let state = build(vec![service("new", 2, &[("skep.tcp.listen", "5432")]), service("old", 1, &[("skep.tcp.listen", "5432")])]);
        assert_eq!(&*state.streams[&5432].service, "old");
        assert_eq!((codes(&state, "new"), codes(&state, "old")), (vec!["port-taken".to_owned()], vec!["port-contested".to_owned()]));
    }

    #[test]
    fn what_was_to_protect_closes() {
        let open = [("skep.tcp.listen", "5432"), ("skep.tcp.allow", "10.0.0.0/8")];
        assert_eq!(build(vec![service("db", 1, &open)]).streams[&5432].access.closed, None);
        for (label, text) in [
            ("skep.tcp.allow", "10.0.0.0/99"),
            ("skep.tcp.allow", ""),
            ("skep.tcp.alow", "10.0.0.0/8"),
            ("skep.tcp.auth", "staff"),
            ("skep.tcp.x.y.allow", "10.0.0.0/8"),
            ("skep.tcp.other.allow", "10.0.0.0/8"),
            ("skep.allow", "10.0.0.0/8"),
            ("skep.owner", ","),
            ("skpe.tcp.allow", "10.0.0.0/8"),
        ] {
            let state = build(vec![service("db", 1, &[("skep.tcp.listen", "5432"), (label, text)])]);
            assert!(state.streams[&5432].access.closed.is_some(), "{label}: {text}");
            assert!(!codes(&state, "db").is_empty(), "{label}: {text}");
        }
        let twice = [("skep.tcp.listen", "5432"), ("skep.tcp.b.listen", "5432"), ("skep.tcp.b.allow", "10.0.0.0/8")];
        let state = build(vec![service("db", 1, &twice)]);
        assert!(state.streams[&5432].access.closed.is_some() && codes(&state, "db") == ["duplicate-port"]);
    }

    proptest! {
        /// Whatever a newer service writes, an older one's port is as before, and no port outside `tcp.ports` is ever opened.
        #[test]
        fn no_label_takes_a_port_away(key in "(listen|port|allow|x\\.listen|[a-z.]{0,8})", text in "(5432|443|[0-9]{1,6}|\\PC{0,8})") {
            let old = service("old", 1, &[("skep.tcp.listen", "5432")]);
            let state = build(vec![old, service("new", 2, &[(&format!("skep.tcp.{key}"), &text)])]);
            prop_assert_eq!(&*state.streams[&5432].service, "old");
            prop_assert!(state.streams[&5432].access.closed.is_none());
            prop_assert!(state.streams.keys().all(|port| *port == 5432 || (20000..=20010).contains(port)));
        }
    }
}
