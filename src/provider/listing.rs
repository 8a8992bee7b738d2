//! From what the engine answered to a snapshot: whose container is whose, which address, which condition.
//! Pure, so that the answers of a real engine are its test cases.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use jiff::Timestamp;

use crate::provider::api::{Container, Info, Listing, Node, Service, Task};
use crate::snapshot::{self, Condition, Edge, Engine, Origin, Snapshot, Swarm};

/// What the edge's own process knows about where it runs; the listing says whether it is true.
#[derive(Clone, Debug, Default)]
pub struct Vantage {
    /// Ids, or beginnings of ids, of the container that the process may run in.
    pub containers: Vec<String>,
    /// Networks that the configuration names.
    pub networks: Vec<String>,
    /// The engine runs on this machine, so a process outside containers reaches its bridges.
    pub local: bool,
}

/// Ids of the container that a process may run in, from what it can read of itself: its host name, the mount that Docker
/// puts over `/etc/hostname` (other mounts of a host are those of its containers), its control groups.
/// Other ids may stand there too: only one that the engine lists is believed.
pub fn own_containers(hostname: &str, mounts: &str, groups: &str) -> Vec<String> {
    let named = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/etc/hostname"));
    let words = [hostname, groups].into_iter().chain(named).flat_map(|text| text.split(|letter: char| !letter.is_ascii_alphanumeric()));
    let is_id = |word: &&str| matches!(word.len(), 12 | 64) && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut containers: Vec<String> = words.filter(is_id).map(str::to_owned).collect();
    containers.sort();
    containers.dedup();
    containers
}

/// A full refresh without the tasks of Swarm services, which are polled more often than the rest.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    base: Snapshot,
    /// Position in `base.services` of each Swarm service.
    services: HashMap<String, usize>,
    /// The tasks' containers on this engine: they know of health and death before the manager does.
    local: HashMap<String, (Condition, String)>,
    /// Ids of nodes that Swarm gave up: what it says of their tasks is no longer true.
    lost: HashSet<String>,
}

impl Inventory {
    pub fn new(engine: Engine, listing: &Listing, vantage: &Vantage) -> Inventory {
        let mut base = Snapshot { engine, nodes: listing.nodes.iter().map(node).collect(), ..Snapshot::default() };
        base.nodes.sort_by(|a, b| (&a.hostname, &a.id).cmp(&(&b.hostname, &b.id)));
        base.engine.edge = edge(vantage, listing);
        base.services = listing.services.iter().map(|service| swarm_service(service, listing)).collect();
        base.services.extend(plain_services(&listing.containers));
        base.services.sort_by(|a, b| (a.created, &a.name, &a.id).cmp(&(b.created, &b.name, &b.id)));
        let position = |(index, service): (usize, &snapshot::Service)| (service.id.clone(), index);
        let services = base.services.iter().enumerate().filter(|(_, service)| service.origin == Origin::Swarm).map(position).collect();
        let of_tasks = listing.containers.iter().filter(|container| container.labels.contains_key(SWARM_SERVICE));
        let local = of_tasks.map(|container| (container.id.clone(), (container.condition(), container.message()))).collect();
        let lost = listing.nodes.iter().filter(|node| node.status.state == "down").map(|node| node.id.clone()).collect();
        Inventory { base, services, local, lost }
    }

    /// The whole snapshot with these tasks. A task of an unknown service waits for the next full refresh.
    pub fn snapshot(&self, tasks: &[Task]) -> Snapshot {
        let mut snapshot = self.base.clone();
        for task in tasks {
            if let Some(&index) = self.services.get(&task.service_id) {
                let service = &self.base.services[index];
                snapshot.services[index].tasks.push(self.task(task, service));
            }
        }
        for service in &mut snapshot.services {
            service.tasks.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        }
        snapshot
    }

    fn task(&self, task: &Task, service: &snapshot::Service) -> snapshot::Task {
        let node = self.base.nodes.iter().find(|node| node.id == task.node_id);
        let container = Some(task.status.container_status.container_id.clone()).filter(|id| !id.is_empty());
        let local = container.as_ref().and_then(|id| self.local.get(id));
        let mut condition = task.condition();
        let mut message = if task.status.err.is_empty() { &task.status.message } else { &task.status.err }.clone();
        if let (Condition::Starting | Condition::Healthy, Some((seen, status)), "starting" | "running") =
            (condition, local, task.status.state.as_str())
        {
            (condition, message) = (*seen, status.clone());
        }
        if condition == Condition::Healthy && self.lost.contains(&task.node_id) {
            (condition, message) = (Condition::Down, "its node is down".to_owned());
        }
        let place = if task.slot > 0 { task.slot.to_string() } else { node.map_or(&task.node_id, |node| &node.hostname).clone() };
        snapshot::Task {
            id: task.id.clone(),
            name: format!("{}.{place}", service.name),
            node: task.node_id.clone(),
            container,
            condition,
            message: if condition == Condition::Healthy { String::new() } else { message },
            addresses: task.addresses(),
        }
    }
}

/// The label that a task's container carries, set by the engine.
const SWARM_SERVICE: &str = "com.docker.swarm.service.id";
const STACK: &str = "com.docker.stack.namespace";
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// `docker compose run`: a copy of a service for one command, with all its labels.
const COMPOSE_ONEOFF: &str = "com.docker.compose.oneoff";
/// Joins every task to its host; no route ever goes through it.
const GATEWAY_BRIDGE: &str = "docker_gwbridge";

fn swarm_service(service: &Service, listing: &Listing) -> snapshot::Service {
    let spec = &service.spec;
    let template = &spec.task_template;
    let published = service.endpoint.ports.iter().filter(|port| port.protocol != "udp" && port.protocol != "sctp");
    let own = listing.containers.iter().filter(|container| container.labels.get(SWARM_SERVICE) == Some(&service.id));
    let mut ports: Vec<u16> = published.map(|port| port.target_port).chain(own.flat_map(Container::tcp_ports)).collect();
    ports.sort_unstable();
    ports.dedup();
    let known = |target: &str| listing.networks.iter().find(|network| network.id == target || network.name == target);
    let attached = template.networks.iter().chain(&spec.networks).map(|network| network.target.as_str());
    let mut networks: Vec<String> =
        attached.map(|target| known(target).map_or(target, |network| network.name.as_str()).to_owned()).collect();
    networks.sort();
    networks.dedup();
    let named = template.container_spec.mounts.iter().filter(|mount| mount.kind == "volume" && !mount.source.is_empty());
    snapshot::Service {
        id: service.id.clone(),
        name: spec.name.clone(),
        origin: Origin::Swarm,
        stack: spec.labels.get(STACK).cloned(),
        created: service.created_at.unwrap_or_default(),
        image: template.container_spec.image.clone(),
        labels: spec.labels.clone(),
        container_labels: template.container_spec.labels.clone(),
        networks,
        ports,
        replicas: spec.mode.replicated.as_ref().map(|mode| mode.replicas),
        constraints: template.placement.constraints.clone(),
        updating: matches!(service.update_status.state.as_str(), "updating" | "rollback_started"),
        volumes: named.map(|mount| mount.source.clone()).collect(),
        tasks: Vec::new(),
    }
}

/// Containers that belong to no Swarm service. Those of one compose service are one service with several tasks.
fn plain_services(containers: &[Container]) -> Vec<snapshot::Service> {
    let mut services: BTreeMap<String, Vec<&Container>> = BTreeMap::new();
    let plain = containers.iter().filter(|container| {
        !container.labels.contains_key(SWARM_SERVICE) && container.labels.get(COMPOSE_ONEOFF).map(String::as_str) != Some("True")
    });
    for container in plain {
        let name = match (container.labels.get(COMPOSE_PROJECT), container.labels.get(COMPOSE_SERVICE)) {
            (Some(project), Some(service)) => format!("{project}-{service}"),
            _ => container.name().to_owned(),
        };
        services.entry(name).or_default().push(container);
    }
    services.into_iter().map(|(name, members)| plain_service(name, &members, containers)).collect()
}

fn plain_service(name: String, members: &[&Container], containers: &[Container]) -> snapshot::Service {
    // The newest one's word counts: while compose replaces containers one by one, the old ones keep old labels.
    let newest = members.iter().max_by_key(|container| (container.created, &container.id));
    let oldest = members.iter().map(|container| container.created).min().unwrap_or_default();
    let mut ports: Vec<u16> = members.iter().flat_map(|container| container.tcp_ports()).collect();
    ports.sort_unstable();
    ports.dedup();
    let tasks = members.iter().map(|container| {
        let condition = container.condition();
        snapshot::Task {
            id: container.id.clone(),
            name: container.name().to_owned(),
            node: String::new(),
            container: Some(container.id.clone()),
            condition,
            message: container.message(),
            addresses: container.namespace(containers).addresses(),
        }
    });
    let mut service = snapshot::Service {
        name,
        origin: Origin::Container,
        created: Timestamp::from_second(oldest).unwrap_or_default(),
        replicas: Some(members.len() as u64),
        ports,
        tasks: tasks.collect(),
        ..snapshot::Service::default()
    };
    if let Some(container) = newest {
        service.id.clone_from(&container.id);
        service.image.clone_from(&container.image);
        service.labels.clone_from(&container.labels);
        service.stack = container.labels.get(COMPOSE_PROJECT).cloned();
        service.networks = container.namespace(containers).networks();
        let volumes = container.mounts.iter().filter(|mount| mount.kind == "volume" && !mount.name.is_empty());
        service.volumes = volumes.map(|mount| mount.name.clone()).collect();
    }
    service
}

fn node(node: &Node) -> snapshot::Node {
    snapshot::Node {
        id: node.id.clone(),
        hostname: node.description.hostname.clone(),
        address: node.status.addr.clone(),
        labels: node.spec.labels.clone(),
        ready: node.status.state == "ready",
        manager: node.spec.role == "manager",
        leader: node.manager_status.leader,
        availability: node.spec.availability.clone(),
    }
}

/// Where the edge stands: in one of the listed containers, or on the host, from where the engine's bridges can be reached.
fn edge(vantage: &Vantage, listing: &Listing) -> Edge {
    let own = listing.containers.iter().find(|container| {
        // Twelve digits are what Docker itself takes for a host name.
        vantage.containers.iter().any(|id| id.len() >= 12 && container.id.starts_with(id.as_str()))
    });
    let own = own.map(|container| (container, container.namespace(&listing.containers)));
    let mut networks: Vec<String> = match own {
        Some((_, namespace)) if namespace.host_config.network_mode != "host" => namespace.networks(),
        _ if vantage.local => {
            let bridges = listing.networks.iter().filter(|network| network.driver == "bridge" && network.scope == "local");
            bridges.map(|network| network.name.clone()).collect()
        }
        _ => Vec::new(),
    };
    networks.extend(vantage.networks.iter().cloned());
    let ingress = |name: &str| listing.networks.iter().any(|network| network.ingress && network.name == name);
    networks.retain(|name| name != GATEWAY_BRIDGE && !ingress(name));
    networks.sort();
    networks.dedup();
    Edge { container: own.map(|(container, _)| container.id.clone()), networks }
}

impl Task {
    fn condition(&self) -> Condition {
        match (self.desired_state.as_str(), self.status.state.as_str()) {
            (_, "complete" | "shutdown" | "failed" | "rejected" | "remove" | "orphaned") => Condition::Down,
            ("shutdown" | "remove", _) => Condition::Stopping,
            ("running", "running") => Condition::Healthy,
            _ => Condition::Starting,
        }
    }

    /// Without the ingress network: its members answer there, but for the mesh, not for us.
    fn addresses(&self) -> BTreeMap<String, IpAddr> {
        let attached = self.networks_attachments.iter().filter(|attachment| !attachment.network.spec.ingress);
        let dialled = attached.filter_map(|attachment| {
            let addresses = attachment.addresses.iter().filter_map(|cidr| cidr.split('/').next()?.parse::<IpAddr>().ok());
            // Version 4 first, as the other networks of most hosts are.
            Some((attachment.network.spec.name.clone(), addresses.min_by_key(IpAddr::is_ipv6)?))
        });
        dialled.collect()
    }
}

impl Container {
    /// The first of its names; names with more slashes are legacy links.
    fn name(&self) -> &str {
        let mut names = self.names.iter().map(|name| name.trim_start_matches('/'));
        names.find(|name| !name.contains('/')).unwrap_or(&self.id)
    }

    /// The container whose network this one uses: its own, or with `network_mode: service:x` another's.
    fn namespace<'a>(&'a self, containers: &'a [Container]) -> &'a Container {
        let other = self.host_config.network_mode.strip_prefix("container:");
        other.and_then(|id| containers.iter().find(|container| container.id == id)).unwrap_or(self)
    }

    fn networks(&self) -> Vec<String> {
        let mut networks: Vec<String> = self.network_settings.networks.keys().cloned().collect();
        networks.sort();
        networks
    }

    fn addresses(&self) -> BTreeMap<String, IpAddr> {
        let attached = self.network_settings.networks.iter();
        let dialled = attached.filter_map(|(name, endpoint)| {
            let address = endpoint.ip_address.parse().or_else(|_| endpoint.global_ipv6_address.parse()).ok()?;
            Some((name.clone(), address))
        });
        dialled.collect()
    }

    fn tcp_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().filter(|port| port.kind == "tcp").map(|port| port.private_port)
    }

    /// Why it gets no traffic. Without the times that the engine's own words have: they would make every listing differ.
    fn message(&self) -> String {
        match (self.state.as_str(), self.condition()) {
            (_, Condition::Healthy) => String::new(),
            ("running", Condition::Unhealthy) => "its health check fails".to_owned(),
            ("running", _) => "its health check has not passed yet".to_owned(),
            ("exited", _) => {
                let code = self.status.strip_prefix("Exited (").and_then(|rest| rest.split(')').next());
                code.map_or_else(|| "exited".to_owned(), |code| format!("exited with code {code}"))
            }
            (state, _) => state.to_owned(),
        }
    }

    fn condition(&self) -> Condition {
        match self.state.as_str() {
            "running" if self.status.contains("(unhealthy)") => Condition::Unhealthy,
            "running" if self.status.contains("(health: starting)") => Condition::Starting,
            "running" => Condition::Healthy,
            "created" => Condition::Starting,
            "paused" => Condition::Unhealthy,
            "stopping" => Condition::Stopping,
            _ => Condition::Down,
        }
    }
}

impl Info {
    /// `api` is the version that the calls are made with.
    pub fn engine(&self, api: String) -> Engine {
        let swarm = match self.swarm.local_node_state.as_str() {
            "active" if self.swarm.control_available => Swarm::Manager,
            "active" => Swarm::Worker,
            _ => Swarm::Off,
        };
        Engine {
            id: self.id.clone(),
            version: self.server_version.clone(),
            api,
            swarm,
            node: self.swarm.node_id.clone(),
            edge: Edge::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::api::TaskStatus;

    /// What an engine 20.10 answered, see `tests/fixtures/engine-20.10`.
    macro_rules! answer {
        ($name:literal) => {
            serde_json::from_str(include_str!(concat!("../../tests/fixtures/engine-20.10/", $name, ".json"))).expect($name)
        };
    }

    fn listing() -> Listing {
        Listing {
            services: answer!("services"),
            tasks: answer!("tasks"),
            nodes: answer!("nodes"),
            networks: answer!("networks"),
            containers: answer!("containers"),
        }
    }

    fn translate(listing: &Listing, vantage: &Vantage) -> Snapshot {
        let info: Info = answer!("info");
        Inventory::new(info.engine("1.41".to_owned()), listing, vantage).snapshot(&listing.tasks)
    }

    fn service<'a>(snapshot: &'a Snapshot, name: &str) -> &'a snapshot::Service {
        snapshot.services.iter().find(|service| service.name == name).expect(name)
    }

    #[test]
    fn a_swarm_service_as_the_engine_tells_it() {
        let snapshot = translate(&listing(), &Vantage::default());
        let shop = service(&snapshot, "shop_web");
        assert_eq!((shop.origin, shop.stack.as_deref(), shop.replicas), (Origin::Swarm, Some("shop"), Some(2)));
        assert_eq!(shop.labels["skep.host"], "shop.example");
        assert_eq!(
            (&shop.networks[..], &shop.ports[..], &shop.volumes[..]),
            (&["edge".to_owned()][..], &[80][..], &["data".to_owned()][..])
        );
        assert_eq!(shop.constraints, ["node.role==manager"]);
        assert_eq!(shop.created.to_string(), "2026-11-22T21:55:45.210060527Z");
        let tasks: Vec<_> = shop.tasks.iter().map(|task| (task.name.as_str(), task.condition, &task.addresses)).collect();
        let at = |last| BTreeMap::from([("edge".to_owned(), IpAddr::from([10, 0, 1, last]))]);
        assert_eq!(tasks, [("shop_web.1", Condition::Healthy, &at(3)), ("shop_web.2", Condition::Healthy, &at(4))]);
        assert_eq!(service(&snapshot, "misplaced").container_labels["skep.host"], "misplaced.example");
        assert_eq!(service(&snapshot, "g").replicas, None);
        assert_eq!(service(&snapshot, "g").tasks[0].name, "g.skep-210408971");
        assert_eq!(service(&snapshot, "g").ports, [80, 81]);
    }

    #[test]
    fn a_task_that_finds_no_node_says_so() {
        let snapshot = translate(&listing(), &Vantage::default());
        let task = &service(&snapshot, "nowhere").tasks[0];
        assert_eq!((task.condition, task.container.as_deref()), (Condition::Starting, None));
        assert!(task.message.contains("no suitable node"), "{}", task.message);
    }

    #[test]
    fn plain_containers_stand_beside_the_swarm() {
        let snapshot = translate(&listing(), &Vantage::default());
        let conditions: Vec<_> = snapshot
            .services
            .iter()
            .filter(|service| service.origin == Origin::Container)
            .map(|service| (service.name.as_str(), service.tasks.iter().map(|task| task.condition).collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            conditions,
            [
                ("plain", vec![Condition::Healthy]),
                ("shop-api", vec![Condition::Healthy, Condition::Healthy]),
                ("asleep", vec![Condition::Unhealthy]),
                ("sidecar", vec![Condition::Healthy]),
                ("unwell", vec![Condition::Unhealthy]),
                ("anchor-edge", vec![Condition::Healthy]),
                ("gone", vec![Condition::Starting]),
            ]
        );
        let api = service(&snapshot, "shop-api");
        assert_eq!((api.stack.as_deref(), &api.ports[..], &api.volumes[..]), (Some("shop"), &[80, 81][..], &["apidata".to_owned()][..]));
        let plain = service(&snapshot, "plain");
        assert_eq!(plain.networks, ["bridge"]);
        assert_eq!(service(&snapshot, "sidecar").tasks[0].addresses, plain.tasks[0].addresses);
    }

    #[test]
    fn where_the_edge_stands() {
        let listing = listing();
        let anchor = listing.containers.iter().find(|container| container.name() == "anchor-edge").expect("an anchor");
        let sidecar = listing.containers.iter().find(|container| container.name() == "sidecar").expect("a sidecar");
        let own = |id: &str| Vantage { containers: vec![id.to_owned()], local: true, ..Vantage::default() };
        for (vantage, container, networks) in [
            (own(&anchor.id), Some(&anchor.id), vec!["edge"]),
            (own(&anchor.id[..12]), Some(&anchor.id), vec!["edge"]),
            (own(&sidecar.id[..12]), Some(&sidecar.id), vec!["bridge"]),
            (own(""), None, vec!["bridge"]),
            (own("skep-210408971"), None, vec!["bridge"]),
            (Vantage { local: false, ..own("x") }, None, vec![]),
            (Vantage { networks: vec!["x".to_owned()], ..own("") }, None, vec!["bridge", "x"]),
        ] {
            let edge = edge(&vantage, &listing);
            assert_eq!((edge.container.as_ref(), edge.networks), (container, networks.into_iter().map(str::to_owned).collect()));
        }
    }

    #[test]
    fn a_process_finds_ids_in_what_it_can_read_of_itself() {
        let id = "0123456789abcdef".repeat(4);
        let mount = |point: &str| format!("9 1 0:1 /var/lib/docker/containers/{id}/file {point} rw - ext4 /dev/vda1 rw\n");
        for (hostname, mounts, groups, found) in [
            (format!("{}\n", &id[..12]), String::new(), String::new(), vec![&id[..12]]),
            ("server-1\n".to_owned(), mount("/etc/hostname"), String::new(), vec![&id[..]]),
            ("server-1\n".to_owned(), mount("/var/lib/docker/containers/x/mounts/shm"), String::new(), vec![]),
            ("a".to_owned(), String::new(), format!("0::/docker/{id}\n1:x:/system.slice/docker-{id}.scope"), vec![&id[..]]),
        ] {
            assert_eq!(own_containers(&hostname, &mounts, &groups), found, "{hostname} {mounts} {groups}");
        }
    }

    #[test]
    fn messages_do_not_change_with_time() {
        for (state, status, message) in [
            ("running", "Up 3 seconds", ""),
            ("running", "Up 3 seconds (unhealthy)", "its health check fails"),
            ("running", "Up 3 seconds (health: starting)", "its health check has not passed yet"),
            ("exited", "Exited (137) 2 hours ago", "exited with code 137"),
            ("restarting", "Restarting (1) 3 seconds ago", "restarting"),
        ] {
            let container = Container { state: state.to_owned(), status: status.to_owned(), ..Container::default() };
            assert_eq!(container.message(), message, "{status}");
        }
    }

    #[test]
    fn a_local_container_knows_better_than_the_manager_and_a_lost_node_knows_nothing() {
        let conditions = |listing: &Listing| {
            let snapshot = translate(listing, &Vantage::default());
            service(&snapshot, "shop_web").tasks.iter().map(|task| task.condition).collect::<Vec<_>>()
        };
        for (state, status, condition) in [
            ("running", "Up 3 seconds (health: starting)", Condition::Starting),
            ("running", "Up 3 seconds (unhealthy)", Condition::Unhealthy),
            ("running", "Up 3 seconds (healthy)", Condition::Healthy),
            ("paused", "Up 3 seconds (Paused)", Condition::Unhealthy),
            ("exited", "Exited (1) 3 seconds ago", Condition::Down),
            ("some-new-word", "", Condition::Down),
        ] {
            let mut listing = listing();
            for container in &mut listing.containers {
                if container.name().starts_with("shop_web.1.") {
                    (container.state, container.status) = (state.to_owned(), status.to_owned());
                }
            }
            assert_eq!(conditions(&listing), [condition, Condition::Healthy], "{state} {status}");
        }
        let mut lost = listing();
        lost.nodes[0].status.state = "down".to_owned();
        assert_eq!(conditions(&lost), [Condition::Down; 2]);
        // A manager that has just been elected knows no node's state yet.
        lost.nodes[0].status.state = "unknown".to_owned();
        assert_eq!(conditions(&lost), [Condition::Healthy; 2]);
    }

    #[test]
    fn what_a_task_may_get() {
        for (desired, state, condition) in [
            ("running", "running", Condition::Healthy),
            ("running", "starting", Condition::Starting),
            ("running", "preparing", Condition::Starting),
            ("ready", "ready", Condition::Starting),
            ("shutdown", "running", Condition::Stopping),
            ("remove", "running", Condition::Stopping),
            ("shutdown", "shutdown", Condition::Down),
            ("running", "failed", Condition::Down),
            ("running", "rejected", Condition::Down),
        ] {
            let status = TaskStatus { state: state.to_owned(), ..TaskStatus::default() };
            let task = Task { desired_state: desired.to_owned(), status, ..Task::default() };
            assert_eq!(task.condition(), condition, "{desired} {state}");
        }
    }

    #[test]
    fn nulls_and_absent_fields_are_empty() {
        let container: Container =
            serde_json::from_str(r#"{"Id":"x","Names":null,"Labels":null,"Ports":null,"NetworkSettings":null}"#).expect("a container");
        assert_eq!(container.name(), "x");
        assert!(serde_json::from_str::<Vec<Service>>("{}").is_err());
    }
}
