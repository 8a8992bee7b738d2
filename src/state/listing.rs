//! Routes in the words of people: what each matches, where its requests go, and why a task gets none.
//! One serialisable value for the terminal, `--json` and the console, so that the three never disagree.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Action, Listing, Route, State};
use crate::auth::{Access, Groups};
use crate::certificate::{Mode, Source, Tls};
use crate::label::Dialect;
use crate::route::{HostPattern, Matcher, PathPattern};
use crate::snapshot::{Condition, Origin, Service, Snapshot, Task};
use crate::upstream::{Backend, Balance, Group, Pool, Scheme};

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    pub id: String,
    pub service: String,
    pub origin: Origin,
    /// `native` or `haproxy`.
    pub dialect: &'static str,
    pub matches: Vec<String>,
    pub action: ActionView,
    /// `open`, or what a visitor must be or bring.
    pub access: String,
    /// Why the route answers 503 to everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
    pub tls: String,
    /// As the labels have them, each on its own; also compression, mirror and error page.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
}

/// What happens to requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ActionView {
    Forward {
        balance: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        sticky: Option<String>,
        retries: u32,
        /// Seconds; `request` only where there is a limit.
        timeouts: BTreeMap<&'static str, f64>,
        services: Vec<ShareView>,
    },
    Redirect {
        host: String,
    },
}

/// One service's part in a route.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShareView {
    pub service: String,
    pub weight: u32,
    /// What every task must answer well, `/health every 10s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    pub tasks: Vec<TaskView>,
}

/// One task, and whether it gets requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskView {
    pub task: String,
    /// The node's host name; empty outside a swarm.
    pub node: String,
    /// What is dialled, `http://10.0.1.7:8080`; `None` while the task has no address that the edge can reach.
    pub address: Option<String>,
    pub condition: Condition,
    pub usable: bool,
    /// Why it gets no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl State {
    /// All routes, by id, as far as Docker knows.
    pub fn list(&self) -> Vec<View> {
        self.list_with(&|_| None)
    }

    /// All routes, by id, with what a running edge knows.
    pub fn list_with(&self, ailment: Ailment<'_>) -> Vec<View> {
        let context = Context::new(&self.snapshot, ailment);
        self.routes.values().map(|listing| context.view(listing)).collect()
    }

    /// One route.
    pub fn view(&self, id: &str) -> Option<View> {
        self.view_with(id, &|_| None)
    }

    pub(super) fn view_with(&self, id: &str, ailment: Ailment<'_>) -> Option<View> {
        let listing = self.routes.get(id)?;
        Some(Context::new(&self.snapshot, ailment).view(listing))
    }
}

/// Why a backend that is up gets no requests, in words.
pub type Ailment<'a> = &'a dyn Fn(&Backend) -> Option<String>;

/// What names and tasks are looked up in.
struct Context<'a> {
    nodes: BTreeMap<&'a str, &'a str>,
    services: BTreeMap<&'a str, Vec<&'a Service>>,
    ailment: Ailment<'a>,
}

impl<'a> Context<'a> {
    fn new(snapshot: &'a Snapshot, ailment: Ailment<'a>) -> Context<'a> {
        let mut services: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
        for service in &snapshot.services {
            services.entry(&service.name).or_default().push(service);
        }
        Context { nodes: snapshot.nodes.iter().map(|node| (node.id.as_str(), node.hostname.as_str())).collect(), services, ailment }
    }

    fn view(&self, listing: &Listing) -> View {
        let route: &Route = &listing.route;
        let action = match &route.action {
            Action::RedirectHost(host) => ActionView::Redirect { host: host.clone() },
            Action::Forward { pool, timeouts, retries } => {
                let limits = [
                    ("connect", Some(timeouts.connect)),
                    ("response", Some(timeouts.response)),
                    ("idle", Some(timeouts.idle)),
                    ("request", timeouts.request),
                ];
                ActionView::Forward {
                    balance: balance(&pool.balance),
                    sticky: pool.sticky.clone(),
                    retries: retries.most,
                    timeouts: limits.into_iter().filter_map(|(name, limit)| Some((name, limit?.as_secs_f64()))).collect(),
                    services: self.shares(pool),
                }
            }
        };
        View {
            id: route.id.to_string(),
            service: route.service.to_string(),
            origin: route.origin,
            dialect: match route.dialect {
                Dialect::Native => "native",
                Dialect::Haproxy => "haproxy",
            },
            matches: listing.matches.clone(),
            action,
            access: access(&route.access),
            closed: route.access.closed.clone(),
            tls: tls(&route.tls),
            limits: route.traffic.limits.words(),
        }
    }

    fn shares(&self, pool: &Pool) -> Vec<ShareView> {
        let view = |group: &Group| ShareView {
            service: group.service.to_string(),
            weight: group.weight,
            check: group.check.as_ref().map(|check| format!("{} every {:?}", check.path, check.interval)),
            tasks: self.tasks(group),
        };
        pool.groups.iter().map(view).collect()
    }

    /// The group's backends, then the service's tasks that have no address on their network.
    fn tasks(&self, group: &Group) -> Vec<TaskView> {
        let known: Vec<&Task> = self.services.get(&*group.service).into_iter().flatten().flat_map(|service| &service.tasks).collect();
        let node = |id: &str| self.nodes.get(id).copied().unwrap_or(id).to_owned();
        let mut views: Vec<TaskView> = Vec::new();
        for backend in &group.backends {
            let message = known.iter().find(|task| *task.name == *backend.task).map_or("", |task| task.message.as_str());
            let why = why(backend.condition, message).or_else(|| (self.ailment)(backend));
            views.push(TaskView {
                task: backend.task.to_string(),
                node: node(&backend.node),
                address: Some(format!("{}://{}", scheme(backend.scheme), backend.address)),
                condition: backend.condition,
                usable: why.is_none(),
                why,
            });
        }
        let unreachable = known.into_iter().filter(|task| !group.backends.iter().any(|backend| *backend.task == *task.name));
        views.extend(unreachable.map(|task| TaskView {
            task: task.name.clone(),
            node: node(&task.node),
            address: None,
            condition: task.condition,
            usable: false,
            why: why(task.condition, &task.message).or_else(|| Some("it has no address that the edge can reach".to_owned())),
        }));
        views
    }
}

/// Why a task in this condition gets no requests; `None`: it does.
fn why(condition: Condition, message: &str) -> Option<String> {
    let words = match condition {
        Condition::Healthy => return None,
        Condition::Starting => "it is starting",
        Condition::Unhealthy => "its health check fails",
        Condition::Stopping => "it is being stopped",
        Condition::Down => "it is down",
    };
    Some(if message.is_empty() { words.to_owned() } else { format!("{words}: {message}") })
}

/// `app.example.com/api`, with priority and conditions in words.
pub(super) fn matches(host: &HostPattern, matcher: &Matcher) -> String {
    let mut text = place(host, &matcher.path);
    if !matcher.conditions.is_empty() {
        let conditions: Vec<_> = matcher.conditions.iter().map(ToString::to_string).collect();
        text = format!("{text} if {}", conditions.join(" && "));
    }
    match matcher.priority {
        Some(priority) => format!("{text} (priority {priority})"),
        None => text,
    }
}

/// `app.example.com/api`, `*.example.com/`, `app.example.com=/exact`.
pub(super) fn place(host: &HostPattern, path: &PathPattern) -> String {
    format!("{host}{path}")
}

/// As the `scheme` label has it.
fn scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::H2c => "h2c",
        Scheme::Https => "https",
        Scheme::Grpc => "grpc",
        Scheme::Grpcs => "grpcs",
        Scheme::Tcp => "tcp",
    }
}

/// As the `balance` label has it.
fn balance(balance: &Balance) -> String {
    match balance {
        Balance::PowerOfTwo => "p2c".to_owned(),
        Balance::RoundRobin => "round-robin".to_owned(),
        Balance::Least => "least".to_owned(),
        Balance::HashIp => "hash:ip".to_owned(),
        Balance::HashHeader(name) => format!("hash:header:{name}"),
        Balance::HashCookie(name) => format!("hash:cookie:{name}"),
    }
}

fn access(access: &Access) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    let mut parts = Vec::new();
    match &access.groups {
        Some(Groups::AnySignedIn) => parts.push("any signed-in user".to_owned()),
        Some(Groups::OneOf(groups)) => parts.push(format!("groups {}", joined(groups.values().cloned().collect()))),
        None => {}
    }
    if !access.allow.is_empty() {
        parts.push(format!("from {}", joined(access.allow.iter().map(ToString::to_string).collect())));
    }
    parts.extend(access.forward_auth.iter().map(|url| format!("asked at {url}")));
    if !access.basic_auth.is_empty() {
        // The names only: what stands behind them are password hashes.
        let users = access.basic_auth.iter().map(|line| line.user.clone());
        parts.push(format!("users {}", joined(users.collect())));
    }
    match (parts.is_empty(), &access.closed) {
        (true, Some(_)) => "closed".to_owned(),
        (true, None) => "open".to_owned(),
        (false, _) => parts.join("; "),
    }
}

fn tls(tls: &Tls) -> String {
    let mode = tls.mode.map(|mode| match mode {
        Mode::Redirect => "redirect",
        Mode::Only => "only",
        Mode::Both => "both",
        Mode::Off => "off",
        Mode::Passthrough => "passthrough",
    });
    let source = tls.source.map(|source| match source {
        Source::Acme => "cert acme",
        Source::File => "cert file",
        Source::Internal => "cert internal",
        Source::SelfSigned => "cert self",
    });
    let mut parts: Vec<String> = mode.into_iter().chain(source).map(str::to_owned).collect();
    parts.extend(tls.hsts.map(|age| format!("hsts {}s", age.as_secs())));
    parts.extend(tls.client_ca.as_ref().map(|file| format!("client-ca {}", file.display())));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{build, service};
    use super::*;
    use crate::snapshot::Node;

    fn view(labels: &[(&str, &str)]) -> View {
        let state = build(vec![service("shop", 1, labels)]);
        state.view("shop").unwrap_or_else(|| panic!("{:?}", state.diagnostics))
    }

    #[test]
    fn a_route_as_json() {
        let mut shop = service("shop", 1, &[("skep.host", "a.example.com"), ("skep.path", "/x"), ("skep.timeout-request", "90s")]);
        let mut waiting = shop.tasks[0].clone();
        waiting.name = "shop.2".into();
        waiting.condition = Condition::Down;
        waiting.message = "No such image".into();
        waiting.addresses.clear();
        shop.tasks.push(waiting);
        let state = build(vec![shop]);
        let mut snapshot = (*state.snapshot).clone();
        snapshot.nodes.push(Node { id: "n1".into(), hostname: "berlin-1".into(), ..Node::default() });
        let state = State::build(state.config.clone(), snapshot.into());
        let json = serde_json::to_value(state.list()).expect("it has string keys only");
        let wanted = serde_json::json!([{
            "id": "shop",
            "service": "shop",
            "origin": "swarm",
            "dialect": "native",
            "matches": ["a.example.com/x"],
            "action": {
                "kind": "forward",
                "balance": "p2c",
                "retries": 2,
                "timeouts": { "connect": 2.0, "idle": 60.0, "request": 90.0, "response": 60.0 },
                "services": [{
                    "service": "shop",
                    "weight": 1,
                    "tasks": [
                        { "task": "shop.1", "node": "berlin-1", "address": "http://10.0.0.1:8080", "condition": "healthy", "usable": true },
                        { "task": "shop.2", "node": "berlin-1", "address": null, "condition": "down", "usable": false, "why": "it is down: No such image" },
                    ],
                }],
            },
            "access": "open",
            "tls": "both, cert self",
        }]);
        assert_eq!(json, wanted);
    }

    #[test]
    fn what_a_route_matches_in_words() {
        for (labels, wanted) in [
            (&[("skep.host", "a.de")][..], "a.de/"),
            (&[("skep.host", "*.a.de"), ("skep.path", "=/x")], "*.a.de=/x"),
            (&[("skep.rule", "PathPrefix(`/x`)")], "*/x*"),
            (&[("skep.host", "a.de"), ("skep.priority", "-3")], "a.de/ (priority -3)"),
        ] {
            assert_eq!(view(labels).matches, [wanted]);
        }
        let conditions = view(&[("skep.host", "a.de"), ("skep.method", "GET"), ("skep.query", "beta=1")]).matches;
        assert!(
            conditions[0].starts_with("a.de/ if ") && conditions[0].contains("GET") && conditions[0].contains("beta"),
            "{conditions:?}"
        );
    }

    #[test]
    fn access_and_tls_in_words() {
        let host = ("skep.host", "a.de");
        for (label, access, closed) in [
            (("skep.port", "80"), "open", false),
            (("skep.allow", "10.0.0.0/8, 192.168.1.0/24"), "from 10.0.0.0/8, 192.168.1.0/24", false),
            (("skep.auth", "staff, admins"), "groups admins, staff", true),
            (("skep.auth", "*"), "any signed-in user", true),
            (("skep.auht", "staff"), "closed", true),
            (("skep.forward-auth", "https://auth.a.de/"), "asked at https://auth.a.de/", true),
            (("skep.basic-auth", "bob:$2y$04$TW1XwaGi59JVeDrAB0rc.u575ZQYyFeTWE2Qt2NLGqBb3bu.h4LvS"), "users bob", false),
        ] {
            let view = view(&[host, label]);
            assert_eq!((view.access.as_str(), view.closed.is_some()), (access, closed), "{label:?}");
        }
        assert_eq!(view(&[host, ("skep.tls", "only"), ("skep.cert", "self"), ("skep.hsts", "60")]).tls, "only, cert self, hsts 60s");
    }

    #[test]
    fn limits_in_words() {
        let labels = [("skep.host", "a.de"), ("skep.rate-limit", "10/s"), ("skep.circuit", "on"), ("skep.compress", "on")];
        let wanted = ["rate-limit 10/s burst 10 by ip", "circuit 50% of 20 in 10s for 15s", "compress"];
        assert_eq!(view(&labels).limits, wanted);
    }

    #[test]
    fn a_task_that_gets_nothing_says_why() {
        for (condition, words) in [
            (Condition::Healthy, ""),
            (Condition::Starting, "it is starting"),
            (Condition::Unhealthy, "its health check fails"),
            (Condition::Stopping, "it is being stopped"),
            (Condition::Down, "it is down"),
        ] {
            assert_eq!(why(condition, "").unwrap_or_default(), words);
        }
        let mut apart = service("shop", 1, &[("skep.host", "a.de")]);
        apart.networks = vec!["other".into()];
        apart.tasks[0].addresses.clear();
        let ActionView::Forward { services, .. } = build(vec![apart]).view("shop").expect("listed").action else { panic!("it forwards") };
        assert_eq!(services[0].tasks[0].why.as_deref(), Some("it has no address that the edge can reach"));
    }
}
