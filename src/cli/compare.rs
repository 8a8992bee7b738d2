//! What a deployment would change: the table of what runs, once as it is and once with the files' services in it.
//! Both tables are built by the edge's own code, so precedence and conflicts are decided here as they will be there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::config::Config;
use crate::diagnostic::Diagnostic;
use crate::route::Head;
use crate::snapshot::{Origin, Service, Snapshot};
use crate::state::{Action, Listing, Route, State, View};

use super::file::StackFile;

/// Findings that a file cannot answer: they are about the image's ports and the edge's networks.
const OPEN_QUESTIONS: [&str; 2] = ["no-port", "no-address"];
/// The same as long as it is not known where the edge stands.
const QUESTIONS_OF_PLACE: [&str; 2] = ["no-shared-network", "several-networks"];

/// Findings about those that something would be taken from, or tried to.
const CONTESTED: [&str; 3] = ["route-contested", "port-contested", "passthrough-contested"];

/// What happens to one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub(super) enum Change {
    Adds {
        route: String,
        matches: Vec<String>,
    },
    Changes {
        route: String,
        before: Vec<String>,
        after: Vec<String>,
    },
    Removes {
        route: String,
        matches: Vec<String>,
    },
    /// Requests for `place` go to another service now.
    Takes {
        route: String,
        place: String,
        from: String,
        stack: Option<String>,
    },
}

impl Change {
    /// For a table: what, which route, where.
    pub fn row(&self) -> Vec<String> {
        let (verb, route, rest) = match self {
            Change::Adds { route, matches } => ("adds", route, matches.join(", ")),
            Change::Changes { route, before, after } if before == after => ("changes", route, format!("{} (same place)", after.join(", "))),
            Change::Changes { route, before, after } => ("changes", route, format!("{} (was {})", after.join(", "), before.join(", "))),
            Change::Removes { route, matches } => ("removes", route, matches.join(", ")),
            Change::Takes { route, place, from, stack } => {
                let stack = stack.as_ref().map(|stack| format!(" of stack {stack}")).unwrap_or_default();
                ("takes", route, format!("{place} from service {from}{stack}"))
            }
        };
        vec![verb.to_owned(), route.clone(), rest]
    }
}

/// What the files would do.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// The routes of the files' services.
    pub routes: Vec<View>,
    pub changes: Vec<Change>,
    /// About the files' services, and about those that they take something from.
    pub findings: Vec<Diagnostic>,
    /// With what was compared.
    pub against: Option<String>,
}

/// The files beside what runs (`None`: nothing is known of it).
pub(super) fn compare(files: Vec<StackFile>, running: Option<Snapshot>, config: Arc<Config>) -> Comparison {
    let located = running.as_ref().is_some_and(|snapshot| !snapshot.engine.edge.networks.is_empty());
    let against = running.as_ref().map(|_| "compared with what runs".to_owned());
    let before = running.unwrap_or_default();
    let mut after = Snapshot { findings: Vec::new(), ..before.clone() };
    let newest = before.services.iter().map(|service| service.created).max().unwrap_or_default();
    let (mut ours, mut replaced) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        let stack = file.stack.clone().or_else(|| deployed_as(&file.services, &before.services));
        let old = |service: &Service| stack.is_some() && service.stack == stack && service.origin == Origin::Swarm;
        replaced.extend(before.services.iter().filter(|service| old(service)).map(|service| service.name.clone()));
        for service in file.services {
            let service = placed(service, stack.as_deref(), &before, newest, located);
            ours.insert(service.name.clone());
            after.services.retain(|other| other.name != service.name);
            after.services.push(service);
        }
    }
    after.services.retain(|service| ours.contains(&service.name) || !replaced.contains(&service.name));
    replaced.extend(before.services.iter().map(|service| service.name.clone()).filter(|name| ours.contains(name)));
    if !located {
        after.engine.edge.networks = after.services.iter().flat_map(|service| service.networks.clone()).collect();
    }
    let before = State::build(config.clone(), Arc::new(before));
    let after = State::build(config, Arc::new(after));
    Comparison {
        routes: after.routes.iter().filter(|(_, listing)| serves(&listing.route, &ours)).filter_map(|(id, _)| after.view(id)).collect(),
        changes: changes(&before, &after, &ours, &replaced),
        findings: findings(&before, &after, &ours, located),
        against,
    }
}

/// The running stack that consists of these services, or most of it, if there is exactly one.
fn deployed_as(services: &[Service], running: &[Service]) -> Option<String> {
    let names: BTreeSet<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let mut stacks: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for service in running.iter().filter(|service| service.origin == Origin::Swarm) {
        let Some(stack) = &service.stack else { continue };
        let short = service.name.strip_prefix(stack.as_str()).and_then(|rest| rest.strip_prefix('_')).unwrap_or(&service.name);
        stacks.entry(stack).or_default().insert(short);
    }
    let mut alike = stacks.iter().filter(|(_, theirs)| theirs.is_subset(&names) || names.is_subset(theirs));
    match (alike.next(), alike.next()) {
        (Some((stack, _)), None) => Some((*stack).to_owned()),
        _ => None,
    }
}

/// The service under the name, the age and the networks that it will have.
fn placed(mut service: Service, stack: Option<&str>, before: &Snapshot, newest: Timestamp, located: bool) -> Service {
    if let (Some(stack), Origin::Swarm) = (stack, service.origin) {
        service.name = format!("{stack}_{}", service.name);
        service.stack = Some(stack.to_owned());
    }
    service.id.clone_from(&service.name);
    let same = before.services.iter().find(|other| other.name == service.name);
    // New services are younger than all that run; in a world where nothing runs all are of one age.
    let later = || if before.services.is_empty() { newest } else { newest.saturating_add(SignedDuration::from_secs(1)).unwrap_or(newest) };
    service.created = same.map_or_else(later, |other| other.created);
    if located {
        // Only networks that are external or have a name of their own are called as in the file.
        let edge = &before.engine.edge.networks;
        for network in service.networks.iter_mut().filter(|network| !edge.contains(network)) {
            let called = edge.iter().find(|name| name.ends_with(&format!("_{network}")));
            *network = called.unwrap_or(network).clone();
        }
    }
    service
}

/// Does one of these services answer on the route?
fn serves(route: &Route, services: &BTreeSet<String>) -> bool {
    let pooled = match &route.action {
        Action::Forward { pool, .. } => pool.groups.iter().any(|group| services.contains(&*group.service)),
        Action::RedirectHost(_) => false,
    };
    pooled || services.contains(&*route.service)
}

fn changes(before: &State, after: &State, ours: &BTreeSet<String>, replaced: &BTreeSet<String>) -> Vec<Change> {
    let mut changes = Vec::new();
    for (id, listing) in after.routes.iter().filter(|(_, listing)| serves(&listing.route, ours)) {
        match before.routes.get(id) {
            None => changes.push(Change::Adds { route: id.clone(), matches: listing.matches.clone() }),
            Some(old) if same(old, listing) => {}
            Some(old) => changes.push(Change::Changes { route: id.clone(), before: old.matches.clone(), after: listing.matches.clone() }),
        }
        changes.extend(listing.matches.iter().filter_map(|place| taken(before, after, place, ours, replaced)));
    }
    let gone = before.routes.iter().filter(|(id, listing)| serves(&listing.route, replaced) && !after.routes.contains_key(*id));
    changes.extend(gone.map(|(id, listing)| Change::Removes { route: id.clone(), matches: listing.matches.clone() }));
    changes
}

/// Is a route what it was? Its tasks do not count: a file has none.
fn same(old: &Listing, new: &Listing) -> bool {
    let settings = |route: &Route| match &route.action {
        Action::Forward { pool, timeouts, retries } => {
            let groups: Vec<_> = pool.groups.iter().map(|group| (group.service.clone(), group.weight)).collect();
            (String::new(), Some((groups, pool.balance.clone(), pool.sticky.clone(), *timeouts, retries.clone())))
        }
        Action::RedirectHost(host) => (host.clone(), None),
    };
    let (one, two) = (&old.route, &new.route);
    old.matches == new.matches
        && settings(one) == settings(two)
        && one.access == two.access
        && one.traffic == two.traffic
        && one.tls == two.tls
}

/// Who loses `place` to the files' services.
fn taken(before: &State, after: &State, place: &str, ours: &BTreeSet<String>, replaced: &BTreeSet<String>) -> Option<Change> {
    let spot = place.split(" if ").next().unwrap_or(place).split(" (priority").next()?;
    let at = spot.find(['/', '='])?;
    let (host, path) = (spot[..at].replace('*', "any"), spot[at..].trim_start_matches('=').trim_end_matches('*'));
    let headers = http::HeaderMap::new();
    let head =
        Head { host: &host, path, query: "", method: &http::Method::GET, headers: &headers, client: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    let old = before.table.find(&head).filter(|route| !replaced.contains(&*route.service) && !serves(route, ours))?;
    let new = after.table.find(&head).filter(|route| serves(route, ours) && !serves(route, &BTreeSet::from([old.service.to_string()])))?;
    let stack = before.snapshot.services.iter().find(|service| service.name == *old.service).and_then(|service| service.stack.clone());
    Some(Change::Takes { route: new.id.to_string(), place: spot.to_owned(), from: old.service.to_string(), stack })
}

/// What is to be said of the files' services, and what is new about the others.
fn findings(before: &State, after: &State, ours: &BTreeSet<String>, located: bool) -> Vec<Diagnostic> {
    let answerable = |finding: &&Diagnostic| {
        let code = finding.code.as_str();
        !OPEN_QUESTIONS.contains(&code) && (located || !QUESTIONS_OF_PLACE.contains(&code))
    };
    let about = |finding: &&Diagnostic| {
        let own = finding.subject.strip_prefix("service ").is_some_and(|name| ours.contains(name));
        own || (!before.diagnostics.contains(finding) && CONTESTED.contains(&finding.code.as_str()))
    };
    after.diagnostics.iter().filter(about).filter(answerable).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Edge, Engine};

    fn service(name: &str, stack: Option<&str>, age: i64, labels: &[(&str, &str)]) -> Service {
        Service {
            id: name.to_owned(),
            name: name.to_owned(),
            stack: stack.map(str::to_owned),
            created: Timestamp::from_second(1_000 + age).unwrap(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            networks: vec!["edge".to_owned()],
            ports: vec![80],
            ..Service::default()
        }
    }

    fn running() -> Snapshot {
        let services = vec![
            service("shop_web", Some("shop"), 1, &[("skep.host", "shop.test")]),
            service("shop_api", Some("shop"), 2, &[("skep.host", "shop.test"), ("skep.path", "/api")]),
            service("wild", None, 3, &[("skep.host", "*.test")]),
        ];
        let edge = Edge { container: None, networks: vec!["edge".to_owned()] };
        Snapshot { services, engine: Engine { edge, ..Engine::default() }, ..Snapshot::default() }
    }

    fn compared(stack: Option<&str>, services: Vec<Service>, running: Option<Snapshot>) -> Comparison {
        let file = StackFile { stack: stack.map(str::to_owned), services, ..StackFile::default() };
        compare(vec![file], running, Arc::new(Config::default()))
    }

    fn told(comparison: &Comparison) -> Vec<String> {
        comparison.changes.iter().map(|change| change.row().join(" ")).collect()
    }

    #[test]
    fn without_anything_running_all_routes_are_new() {
        let comparison = compared(None, vec![service("web", None, 0, &[("skep.host", "a.test")])], None);
        assert_eq!(told(&comparison), ["adds web a.test/"]);
        assert_eq!(comparison.findings, []);
    }

    #[test]
    fn a_stack_is_compared_with_itself() {
        let web = || service("web", None, 0, &[("skep.host", "shop.test")]);
        for stack in [Some("shop"), None] {
            let comparison = compared(stack, vec![web()], Some(running()));
            assert_eq!(told(&comparison), ["removes shop_api shop.test/api"], "{stack:?}");
            let moved = service("web", None, 0, &[("skep.host", "new.shop.test")]);
            let comparison = compared(stack, vec![moved], Some(running()));
            let wanted = ["changes shop_web new.shop.test/ (was shop.test/)", "removes shop_api shop.test/api"];
            assert_eq!(told(&comparison), wanted, "{stack:?}");
        }
    }

    #[test]
    fn what_is_taken_from_others_is_said_and_what_is_not_had_too() {
        let blog = |labels: &[(&str, &str)]| compared(Some("blog"), vec![service("blog", None, 0, labels)], Some(running()));
        let comparison = blog(&[("skep.host", "blog.test")]);
        assert_eq!(told(&comparison), ["adds blog_blog blog.test/", "takes blog_blog blog.test/ from service wild"]);
        let comparison = blog(&[("skep.host", "shop.test"), ("skep.path", "/api/v2")]);
        assert_eq!(told(&comparison)[1], "takes blog_blog shop.test/api/v2 from service shop_api of stack shop");
        let comparison = blog(&[("skep.host", "shop.test")]);
        assert_eq!(told(&comparison), Vec::<String>::new());
        let codes: Vec<_> = comparison.findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(codes, ["route-taken", "route-contested"]);
    }

    #[test]
    fn a_known_edge_says_whether_it_reaches_the_service() {
        let mut apart = service("blog", None, 0, &[("skep.host", "blog.test")]);
        apart.networks = vec!["default".to_owned()];
        let codes = |running| -> Vec<String> {
            compared(Some("blog"), vec![apart.clone()], running).findings.into_iter().map(|finding| finding.code).collect()
        };
        assert_eq!(codes(Some(running())), ["no-shared-network"]);
        assert_eq!(codes(None), Vec::<String>::new());
    }
}
