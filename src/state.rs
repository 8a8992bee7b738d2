//! Snapshot + Config -> State, the one value that a request is decided by, and its swap.
//! The build never fails and knows no clock: a restart behaves like a reload.

mod access;
mod aside;
mod authority;
mod claim;
mod explain;
mod listing;
mod passthrough;
mod redirect;
mod secured;
mod share;
mod stream;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::auth::{self, Access};
use crate::backup;
use crate::certificate::wanted::Wish;
use crate::certificate::{self, Tls};
use crate::config::Config;
use crate::diagnostic::{Diagnostic, Place};
use crate::label::{self, Dialect, Key, Value};
use crate::policy;
use crate::route::{self, Conflict, Entry, HostPattern, Matcher, Table};
use crate::snapshot::{Origin, Service, Snapshot};
use crate::traffic::{self, Traffic};
use crate::upstream::{self, Pool, Retries, Timeouts};

pub use access::{SignIns, Wanted};
pub use aside::{Aside, Pages};
pub use authority::{Authorities, Authority, Certificates};
use claim::Claim;
pub use explain::{Considered, Explanation};
pub use listing::{ActionView, Ailment, ShareView, TaskView, View};
pub use passthrough::Passthrough;
pub use secured::ClientAuthorities;

/// What the table yields for a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// `shop_web` for the default route, `shop_web/api` for a named one: the name in logs and metrics.
    pub id: Arc<str>,
    /// The service that owns the route (the oldest, where several share it by weight).
    pub service: Arc<str>,
    pub origin: Origin,
    pub dialect: Dialect,
    pub action: Action,
    pub access: Access,
    pub traffic: Traffic,
    pub tls: Tls,
    /// Other services and files that the route makes use of.
    pub aside: Aside,
}

/// What happens to an admitted request.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Forward {
        pool: Pool,
        timeouts: Timeouts,
        retries: Retries,
    },
    /// `redirect-from`: 301/308 to the same path and query on this host.
    RedirectHost(String),
}

/// Everything that one request is decided by.
#[derive(Debug)]
pub struct State {
    pub table: Table<Arc<Route>>,
    /// TCP routes by their port of the edge.
    pub streams: BTreeMap<u16, Arc<Route>>,
    /// Routes by SNI whose TLS is the service's own.
    pub passthrough: Passthrough,
    /// Files that routes trust; see [`State::with_authorities`].
    pub authorities: Authorities,
    /// All routes by id and what they match, for people and for comparison.
    pub routes: BTreeMap<String, Listing>,
    pub diagnostics: Vec<Diagnostic>,
    /// Names that want certificates.
    pub wishes: Vec<Wish>,
    /// Groups that labels name.
    groups: Vec<Wanted>,
    /// Hosts at which people sign in.
    pub sign_ins: SignIns,
    /// Hosts whose certificates the user gives.
    by_file: Vec<secured::ByFile>,
    /// Hosts that ask their clients for certificates.
    pub client_authorities: ClientAuthorities,
    pub config: Arc<Config>,
    pub snapshot: Arc<Snapshot>,
}

/// One route for people: `skep routes`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    pub route: Arc<Route>,
    /// `app.example.com/api`, `*.example.com/`, with conditions in words.
    pub matches: Vec<String>,
}

/// The union of all features' keys.
pub fn keys() -> Vec<Key> {
    [
        label::KEYS,
        route::KEYS,
        upstream::KEYS,
        upstream::STREAM_KEYS,
        certificate::KEYS,
        auth::KEYS,
        traffic::KEYS,
        policy::KEYS,
        backup::KEYS,
    ]
    .concat()
}

impl State {
    /// The whole way from what Docker said to a table. Never fails; findings are in the state.
    pub fn build(config: Arc<Config>, snapshot: Arc<Snapshot>) -> State {
        let mut services: Vec<&Service> = snapshot.services.iter().collect();
        services.sort_by(|a, b| (a.created, &a.name, &a.id).cmp(&(b.created, &b.name, &b.id)));
        let keys = keys();
        let reader = claim::Reader::new(&config, &snapshot, &keys);
        let mut findings = snapshot.findings.clone();
        let mut claims: Vec<Claim<'_>> = Vec::with_capacity(services.len());
        let mut ports = Vec::new();
        services.into_iter().for_each(|service| claims.extend(reader.read(service, &mut ports, &mut findings)));
        name_apart(&mut claims);
        passthrough::divide(&mut claims, &mut findings);
        aside::resolve(&mut claims, &config, &snapshot, &mut findings);
        secured::settle(&mut claims, &config, &mut findings);
        access::settle(&mut claims, &config, &mut findings);
        let (groups, sign_ins) = (access::groups(&claims), access::hosts(&claims, &config));
        let client_authorities = secured::authorities(&mut claims, &mut findings);
        let authorities = authority::wanted(&claims, &config);
        let by_file = secured::by_file(&claims, &config);
        let rows = rows(claims, &mut findings);
        let (entries, rows): (Vec<_>, Vec<_>) = rows.into_iter().map(Row::split).unzip();
        let (table, conflicts) = Table::build(entries);
        contested(&rows, &conflicts, &mut findings);
        let lost: HashSet<_> = conflicts.iter().map(|conflict| (conflict.refused, &conflict.host)).collect();
        let passthrough = passthrough::index(&rows, &lost);
        let wishes = secured::wishes(kept(&rows, &conflicts), &config);
        let mut routes = list(rows, &conflicts);
        let (streams, listings) = stream::settle(ports, &mut findings);
        routes.extend(listings);
        tidy(&mut findings);
        State {
            table,
            streams,
            passthrough,
            authorities,
            client_authorities,
            wishes,
            groups,
            sign_ins,
            by_file,
            routes,
            diagnostics: findings,
            config,
            snapshot,
        }
    }

    /// By which authority's word clients of `name` may prove who they are.
    pub fn client_authority(&self, name: &str) -> Option<&Arc<Path>> {
        self.client_authorities.find(name)
    }

    /// The pools of all routes: what the ledger is pruned by.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.routes.values().filter_map(|listing| listing.route.pool())
    }
}

impl Route {
    /// Where its requests go; `None`: to nobody.
    pub fn pool(&self) -> Option<&Pool> {
        match &self.action {
            Action::Forward { pool, .. } => Some(pool),
            Action::RedirectHost(_) => None,
        }
    }
}

/// One row on its way into the table, with the label that claims it.
struct Row {
    entry: Entry<Arc<Route>>,
    label: Option<Value>,
}

/// What is told of a row once it is in the table.
struct Told {
    route: Arc<Route>,
    created: Timestamp,
    label: Option<Value>,
    /// Each host, and what the row matches there in words.
    matches: Vec<(HostPattern, String)>,
}

impl Row {
    fn new(service: &Service, matcher: Matcher, route: &Arc<Route>, label: Option<Value>) -> Row {
        Row { entry: Entry { matcher, created: service.created, owner: service.name.clone(), payload: Arc::clone(route) }, label }
    }

    fn split(self) -> (Entry<Arc<Route>>, Told) {
        let Row { entry, label } = self;
        let matches = entry.matcher.hosts.iter().map(|host| (host.clone(), listing::matches(host, &entry.matcher))).collect();
        let told = Told { route: Arc::clone(&entry.payload), created: entry.created, label, matches };
        (entry, told)
    }
}

impl Told {
    fn at(&self, finding: Diagnostic) -> Diagnostic {
        match &self.label {
            Some(label) => finding.at(label.place()),
            None => finding,
        }
    }
}

/// A service and a container, or two dialects, may use one name; logs and metrics must not mix their routes.
fn name_apart(claims: &mut [Claim<'_>]) {
    let mut taken = HashSet::new();
    for claim in claims {
        let id = Arc::clone(&claim.route.id);
        let mut number = 2;
        while !taken.insert(Arc::clone(&claim.route.id)) {
            claim.route.id = Arc::from(format!("{id}~{number}"));
            number += 1;
        }
    }
}

/// Everything that goes into the table: routes, routes that several services share, and redirects to a route's first host.
fn rows(mut claims: Vec<Claim<'_>>, findings: &mut Vec<Diagnostic>) -> Vec<Row> {
    let mut rows = redirect::rows(&claims, findings);
    share::merge(&mut claims, &mut rows, findings);
    for claim in claims {
        let label = claim.label().cloned();
        let Claim { service, matching, route, .. } = claim;
        let route = Arc::new(route);
        rows.extend(matching.alternatives.into_iter().map(|matcher| Row::new(service, matcher, &route, label.clone())));
    }
    rows
}

/// Each row with the hosts that it kept.
fn kept<'a>(rows: &'a [Told], conflicts: &'a [Conflict]) -> impl Iterator<Item = (&'a Told, &'a HostPattern)> {
    let lost: HashSet<_> = conflicts.iter().map(|conflict| (conflict.refused, &conflict.host)).collect();
    let hosts = rows.iter().enumerate().flat_map(|(index, told)| told.matches.iter().map(move |(host, _)| (index, told, host)));
    hosts.filter(move |(index, _, host)| !lost.contains(&(*index, *host))).map(|(_, told, host)| (told, host))
}

/// The routes for people, without what they lost to older services.
fn list(rows: Vec<Told>, conflicts: &[Conflict]) -> BTreeMap<String, Listing> {
    let lost: HashSet<_> = conflicts.iter().map(|conflict| (conflict.refused, &conflict.host)).collect();
    let mut routes = BTreeMap::new();
    for (index, Told { route, matches, .. }) in rows.into_iter().enumerate() {
        let mut kept = matches.into_iter().filter(|(host, _)| !lost.contains(&(index, host))).map(|(_, text)| text).peekable();
        if kept.peek().is_some() {
            let listing = routes.entry(route.id.to_string()).or_insert_with(|| Listing { route, matches: Vec::new() });
            listing.matches.extend(kept);
        }
    }
    routes
}

/// Findings on both sides where two services claim the same.
fn contested(rows: &[Told], conflicts: &[Conflict], findings: &mut Vec<Diagnostic>) {
    for Conflict { kept, refused, host, path } in conflicts {
        let (kept, refused) = (&rows[*kept], &rows[*refused]);
        let (winner, loser) = (&kept.route, &refused.route);
        let words = refused.matches.iter().find(|(one, _)| one == host).map(|(_, text)| text.clone());
        let what = words.unwrap_or_else(|| listing::place(host, path));
        let (has, help) = match winner.action {
            Action::Forward { .. } => {
                ("belongs to", "use another host or path; to share the traffic give both routes a `weight` and the same access labels")
            }
            Action::RedirectHost(_) => ("is redirected by", "use another host, or take it out of the other service's `redirect-from`"),
        };
        let why = if kept.created == refused.created { "comes first by its name" } else { "is older" };
        let finding = Diagnostic::error("route-taken", format!("`{what}` {has} service `{}`, which {why}", winner.service));
        findings.push(refused.at(finding.help(help).of(format!("service {}", loser.service))));
        let finding =
            Diagnostic::warning("route-contested", format!("service `{}` claims `{what}` too and gets nothing of it", loser.service))
                .help(format!("nothing to do here, unless `{}` is meant to replace this service: then remove this route", loser.service));
        findings.push(kept.at(finding.of(format!("service {}", winner.service))));
    }
}

/// Sorted and without repetitions, so that the same snapshot always says the same.
fn tidy(findings: &mut Vec<Diagnostic>) {
    let place = |finding: &Diagnostic| match &finding.place {
        None => (String::new(), 0),
        Some(Place::Label { key, span, .. }) => (key.clone(), span.start),
        Some(Place::File { path, span, .. }) => (path.clone(), span.start),
    };
    findings.sort_by_cached_key(|finding| {
        let help = finding.help.clone().unwrap_or_default();
        (finding.subject.clone(), place(finding), finding.code.clone(), finding.message.clone(), help)
    });
    findings.dedup();
}

/// The state that requests load, and its one writer's handle.
#[derive(Debug)]
pub struct Live(ArcSwap<State>);

/// What a swap changed, for the log: route ids and new findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
    pub findings: Vec<Diagnostic>,
    pub resolved: Vec<Diagnostic>,
}

impl Difference {
    /// What changes from `old` to `new`.
    fn between(old: &State, new: &State) -> Difference {
        let only = |a: &State, b: &State| a.routes.keys().filter(|id| !b.routes.contains_key(*id)).cloned().collect();
        let changed = |(id, listing): (&String, &Listing)| {
            let before = old.routes.get(id)?;
            (before != listing).then(|| id.clone())
        };
        let fresh = |a: &State, b: &State| {
            let known: HashSet<_> = b.diagnostics.iter().collect();
            a.diagnostics.iter().filter(|finding| !known.contains(finding)).cloned().collect()
        };
        Difference {
            added: only(new, old),
            removed: only(old, new),
            changed: new.routes.iter().filter_map(changed).collect(),
            findings: fresh(new, old),
            resolved: fresh(old, new),
        }
    }

    /// Neither a route nor a finding changed; the snapshot or the configuration did, in what requests do not see.
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }
}

impl Live {
    pub fn new(state: State) -> Live {
        Live(ArcSwap::from_pointee(state))
    }

    /// One load per request.
    pub fn load(&self) -> Arc<State> {
        self.0.load_full()
    }

    /// Stores `state` if it differs from the present one and says how; only ever called by the one writer.
    /// An empty difference means that it was stored for what it says of the snapshot only.
    pub fn publish(&self, state: State) -> Option<Difference> {
        let present = self.load();
        let difference = Difference::between(&present, &state);
        let same = difference.is_empty()
            && present.snapshot == state.snapshot
            && present.config == state.config
            && present.authorities == state.authorities;
        (!same).then(|| {
            self.0.store(Arc::new(state));
            difference
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::route::Head;
    use crate::snapshot::{Condition, Edge, Engine, Swarm, Task};

    /// A service of the swarm with one healthy task on the edge's network. `age`: the smaller, the older.
    pub(super) fn service(name: &str, age: u8, labels: &[(&str, &str)]) -> Service {
        let task = Task {
            id: format!("{name}task"),
            name: format!("{name}.1"),
            node: "n1".into(),
            condition: Condition::Healthy,
            addresses: BTreeMap::from([("edge".to_owned(), IpAddr::from([10, 0, 0, age]))]),
            ..Task::default()
        };
        Service {
            id: format!("id-{name}"),
            name: name.to_owned(),
            created: Timestamp::from_second(1_000_000 + i64::from(age)).expect("in range"),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            networks: vec!["edge".into()],
            ports: vec![8080],
            tasks: vec![task],
            ..Service::default()
        }
    }

    pub(super) fn build(services: Vec<Service>) -> State {
        let edge = Edge { container: Some("skep".into()), networks: vec!["edge".into()] };
        let engine = Engine { id: "e".into(), swarm: Swarm::Manager, edge, ..Engine::default() };
        State::build(Arc::new(Config::default()), Arc::new(Snapshot { engine, services, ..Snapshot::default() }))
    }

    /// Calls `with` for a GET of `host/path`.
    pub(super) fn get<T>(url: &str, with: impl FnOnce(&Head<'_>) -> T) -> T {
        let (host, path) = url.split_at(url.find('/').expect("host/path"));
        let headers = http::HeaderMap::new();
        with(&Head { host, path, query: "", method: &http::Method::GET, headers: &headers, client: IpAddr::from([192, 0, 2, 1]) })
    }

    /// The route that serves `host/path`.
    pub(super) fn route(state: &State, url: &str) -> Option<Arc<Route>> {
        get(url, |head| state.table.find(head).cloned())
    }

    pub(super) fn id(state: &State, url: &str) -> String {
        route(state, url).map_or("404".to_owned(), |route| route.id.to_string())
    }

    /// Codes of a service's findings that are more than information.
    pub(super) fn codes(state: &State, name: &str) -> Vec<String> {
        let subject = format!("service {name}");
        let wrong = |finding: &&Diagnostic| finding.subject == subject && finding.severity > crate::diagnostic::Severity::Info;
        state.diagnostics.iter().filter(wrong).map(|finding| finding.code.clone()).collect()
    }

    pub(super) fn pool(route: &Route) -> &Pool {
        match &route.action {
            Action::Forward { pool, .. } => pool,
            Action::RedirectHost(_) => panic!("{} redirects", route.id),
        }
    }

    #[test]
    fn labels_become_routes_to_tasks() {
        let state = build(vec![
            service("shop_web", 1, &[("skep.host", "shop.example.com"), ("skep.api.host", "shop.example.com"), ("skep.api.path", "/api")]),
            service("blog", 2, &[("haproxy.virtual_host", "blog.example.com")]),
            service("db", 3, &[("com.example.tier", "data")]),
        ]);
        for (url, wanted) in [
            ("shop.example.com/", "shop_web"),
            ("shop.example.com/api/x", "shop_web/api"),
            ("blog.example.com/", "blog"),
            ("db.example.com/", "404"),
        ] {
            assert_eq!(id(&state, url), wanted, "{url}");
        }
        let route = route(&state, "shop.example.com/").expect("served");
        assert_eq!(pool(&route).groups[0].backends[0].address.to_string(), "10.0.0.1:8080");
        assert_eq!(state.routes["shop_web/api"].matches, ["shop.example.com/api"]);
        assert_eq!(state.pools().count(), 3);
        assert_eq!(codes(&state, "shop_web"), [] as [&str; 0]);
    }

    #[test]
    fn the_older_service_keeps_what_both_claim() {
        let state = build(vec![
            service("new", 2, &[("skep.host", "a.example.com, b.example.com")]),
            service("old", 1, &[("skep.host", "a.example.com")]),
        ]);
        assert_eq!((id(&state, "a.example.com/"), id(&state, "b.example.com/")), ("old".into(), "new".into()));
        assert_eq!((codes(&state, "new"), codes(&state, "old")), (vec!["route-taken".to_owned()], vec!["route-contested".to_owned()]));
        assert_eq!(state.routes["new"].matches, ["b.example.com/"]);
        let refused = build(vec![service("new", 2, &[("skep.host", "a.de")]), service("old", 1, &[("skep.host", "a.de")])]);
        assert!(!refused.routes.contains_key("new"));
    }

    #[test]
    fn a_service_without_healthy_tasks_keeps_its_routes() {
        let mut down = service("shop", 1, &[("skep.host", "a.example.com")]);
        down.tasks[0].condition = Condition::Unhealthy;
        let mut gone = service("gone", 2, &[("skep.host", "b.example.com")]);
        gone.tasks.clear();
        let state = build(vec![down, gone]);
        assert_eq!(pool(&route(&state, "a.example.com/").expect("served")).groups[0].backends[0].condition, Condition::Unhealthy);
        assert!(pool(&route(&state, "b.example.com/").expect("served")).groups[0].backends.is_empty());
        assert!(state.diagnostics.is_empty(), "{:?}", state.diagnostics);
    }

    #[test]
    fn services_of_one_name_keep_apart() {
        let mut container = service("web", 2, &[("skep.host", "b.example.com")]);
        container.origin = Origin::Container;
        let state = build(vec![service("web", 1, &[("skep.host", "a.example.com")]), container]);
        assert_eq!(state.routes.keys().collect::<Vec<_>>(), ["web", "web~2"]);
    }

    #[test]
    fn every_key_has_one_meaning() {
        let mut names: Vec<_> = keys().iter().map(|key| key.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(keys().iter().all(|key| !key.about.is_empty() && !key.value.is_empty()));
    }

    #[test]
    fn a_swap_says_what_changed() {
        let shop = |tasks: Condition, host: &str| {
            let mut shop = service("shop", 1, &[("skep.host", host)]);
            shop.tasks[0].condition = tasks;
            shop
        };
        let live = Live::new(build(vec![shop(Condition::Healthy, "a.de")]));
        assert_eq!(live.publish(build(vec![shop(Condition::Healthy, "a.de")])), None, "the same again");
        let changed = |ids: &[&str]| Difference { changed: ids.iter().map(|id| (*id).to_owned()).collect(), ..Difference::default() };
        assert_eq!(live.publish(build(vec![shop(Condition::Stopping, "a.de")])), Some(changed(&["shop"])), "a task's condition");
        assert_eq!(pool(&live.load().routes["shop"].route).groups[0].backends[0].condition, Condition::Stopping);
        assert_eq!(live.publish(build(vec![shop(Condition::Stopping, "b.de")])), Some(changed(&["shop"])), "another host");
        let added = live.publish(build(vec![shop(Condition::Stopping, "b.de"), service("blog", 2, &[("skep.host", "b.de, c.de")])]));
        let added = added.expect("a new service");
        assert_eq!((added.added.as_slice(), added.removed.len(), added.changed.len()), (&["blog".to_owned()][..], 0, 0));
        assert_eq!(added.findings.len(), 2);
        let removed = live.publish(build(vec![shop(Condition::Stopping, "b.de")])).expect("a service less");
        assert_eq!((removed.removed.as_slice(), removed.resolved.len()), (&["blog".to_owned()][..], 2));
        let mut updating = shop(Condition::Stopping, "b.de");
        updating.updating = true;
        assert!(live.publish(build(vec![updating])).is_some_and(|difference| difference.is_empty()), "stored for the snapshot's sake");
    }

    /// Texts that are near what is read, so that random labels get far.
    fn any_labels() -> impl Strategy<Value = Vec<(String, String)>> {
        let keys: Vec<String> = keys().iter().map(|key| key.name.to_owned()).collect();
        let key = prop_oneof![proptest::sample::select(keys), "[a-z-]{1,8}"];
        let prefix = proptest::sample::select(vec!["skep.", "skep.api.", "skepp.", "skep..", "haproxy."]);
        let native = (prefix, key).prop_map(|(prefix, key)| format!("{prefix}{key}"));
        let other = proptest::sample::select(vec!["haproxy.virtual_host_secure", "haproxy.http_redirect_from", "com.sismics.docker.auth"]);
        let label = prop_oneof![4 => native, 1 => other.prop_map(str::to_owned)];
        let hosts = proptest::sample::select(vec!["a.example.com", "b.example.com", "*.example.com", "a.example.com, b.example.com"]);
        let texts = proptest::sample::select(vec![
            "true",
            "false",
            "on",
            "/",
            "/x",
            "5s",
            "10",
            "*",
            "staff",
            "10.0.0.0/8",
            "Host(`a.example.com`)",
        ]);
        let text = prop_oneof![hosts.prop_map(str::to_owned), texts.prop_map(str::to_owned), "\\PC{0,12}"];
        proptest::collection::vec((label, text), 0..8)
    }

    fn labelled(name: &str, age: u8, labels: &[(String, String)]) -> Service {
        let labels: Vec<_> = labels.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
        service(name, age, &labels)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever a newer service's labels say, an older neighbour serves as before.
        #[test]
        fn no_label_takes_a_neighbour_down(labels in any_labels()) {
            let neighbour = service("neighbour", 1, &[("skep.host", "a.example.com"), ("skep.redirect-from", "old.example.com")]);
            let alone = build(vec![neighbour.clone()]);
            let both = build(vec![neighbour, labelled("odd", 2, &labels)]);
            for (id, listing) in &alone.routes {
                prop_assert_eq!(listing, &both.routes[id]);
            }
            let served = |state: &State| route(state, "a.example.com/").map(|route| (route.service.clone(), route.access.clone()));
            let reserved = labels.iter().any(|(label, text)| label.ends_with("priority") || label.ends_with("rule") || text.contains("/x"));
            // A higher priority, a rule's condition or a longer path may claim a part of the neighbour's host; nothing else may.
            if !reserved {
                prop_assert_eq!(served(&alone), served(&both));
            }
        }

        /// The state is a function of what the snapshot says, not of the order in which it says it.
        #[test]
        fn order_does_not_matter(one in any_labels(), two in any_labels(), three in any_labels()) {
            let services = vec![labelled("one", 1, &one), labelled("two", 1, &two), labelled("three", 2, &three)];
            let mut turned = services.clone();
            turned.reverse();
            let (straight, turned) = (build(services), build(turned));
            prop_assert_eq!(&straight.routes, &turned.routes);
            prop_assert_eq!(&straight.diagnostics, &turned.diagnostics);
        }
    }
}
