//! Which addresses a service's tasks have for the edge: the network that both are on, and the port.
//! Never a Swarm VIP: some kernels have no IPVS, and behind a VIP nobody could retry, eject or count single tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Backend, Settings, pick};
use crate::diagnostic::{Diagnostic, nearest};
use crate::label::RouteSpec;
use crate::snapshot::{Condition, Edge, Origin, Service};

/// Swarm's network for published ports. Every service that publishes one is on it, but nobody is meant to dial there.
const INGRESS: &str = "ingress";
/// Where nothing says which port: what most web servers listen on.
const USUAL_PORT: u16 = 80;
/// As many characters of an id as Docker shows.
const SHORT_ID: usize = 12;

/// Addresses of a service's tasks as the edge can dial them, whatever their condition. Never a Swarm VIP.
/// `spec` is where findings point, `names` what the host names of `address` resolved to.
/// None, with an error among the findings, where it is not clear where to dial: better no answer than a stranger's.
pub fn backends(
    service: &Service,
    spec: &RouteSpec,
    settings: &Settings,
    edge: &Edge,
    names: &BTreeMap<String, Vec<IpAddr>>,
) -> (Vec<Backend>, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let backends = match (service.origin, spec.get("address")) {
        (Origin::File, Some(_)) => named(service, spec, settings, names, &mut findings),
        (Origin::File, None) => {
            findings.extend(choose_port(service, spec, settings).err());
            findings.extend(unlisted_network(service, spec, settings));
            findings.push(
                Diagnostic::info("no-address", "read from a file, so there are no tasks: the route answers 503")
                    .help("name what answers with `skep.address: host:port`, or deploy the file and let the edge watch Docker"),
            );
            Vec::new()
        }
        (Origin::Swarm | Origin::Container, Some(value)) => {
            findings.push(
                Diagnostic::error("address-refused", "`address` is not taken from Docker: any service could point the edge anywhere")
                    .at(value.key_place())
                    .help("remove it to forward to the service's own tasks, or move it to a stack file that is given with --file"),
            );
            Vec::new()
        }
        (Origin::Swarm | Origin::Container, None) => tasks(service, spec, settings, edge, &mut findings),
    };
    (backends, findings)
}

/// The addresses that a stack file names.
fn named(
    service: &Service,
    spec: &RouteSpec,
    settings: &Settings,
    names: &BTreeMap<String, Vec<IpAddr>>,
    findings: &mut Vec<Diagnostic>,
) -> Vec<Backend> {
    let maker = Maker::new(service, settings);
    let mut backends = Vec::new();
    for (host, port) in &settings.address {
        let task = format!("{host}:{port}");
        if let Ok(ip) = host.parse::<IpAddr>() {
            backends.push(maker.backend(&task, &task, SocketAddr::new(ip, *port)));
            continue;
        }
        let known = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(host)).map(|(_, addresses)| addresses);
        for ip in known.into_iter().flatten() {
            let backend = maker.backend(&task, &task, SocketAddr::new(*ip, *port));
            let sni = settings.sni.as_deref().unwrap_or(host);
            backends.push(Backend { sni: Arc::from(sni), ..backend });
        }
        // Without any names nobody has asked yet, as when a file is only checked.
        if known.map_or(!names.is_empty(), Vec::is_empty) {
            let finding = Diagnostic::warning("unresolved-address", format!("`{host}` does not resolve to an address"));
            let finding = match spec.get("address") {
                Some(value) => finding.at(value.place()),
                None => finding,
            };
            findings.push(finding.help("check the name and the resolver of the machine that the edge runs on, or write the address"));
        }
    }
    backends
}

/// The service's own tasks, on the network that the edge shares with it.
fn tasks(service: &Service, spec: &RouteSpec, settings: &Settings, edge: &Edge, findings: &mut Vec<Diagnostic>) -> Vec<Backend> {
    let port = match choose_port(service, spec, settings) {
        Ok((port, finding)) => {
            findings.extend(finding);
            Some(port)
        }
        Err(finding) => {
            findings.push(finding);
            None
        }
    };
    let network = choose_network(service, spec, settings, edge).map_err(|finding| findings.push(finding)).ok();
    let (Some(port), Some(network)) = (port, network) else { return Vec::new() };
    let maker = Maker::new(service, settings);
    let mut backends = Vec::new();
    for task in &service.tasks {
        match task.addresses.get(network) {
            Some(ip) => {
                let backend = maker.backend(short(&task.id), &task.name, SocketAddr::new(*ip, port));
                backends.push(Backend { node: Arc::from(task.node.as_str()), condition: task.condition, ..backend });
            }
            None if task.condition == Condition::Healthy => findings.push(
                Diagnostic::warning("task-without-address", format!("task `{}` has no address on network `{network}`", task.name))
                    .help("it gets no traffic; its address should appear within seconds, else look at `docker inspect` of its container"),
            ),
            // On its way up or down: without an address yet, or any more.
            None => {}
        }
    }
    backends
}

/// The label's port, else the only exposed one, else 80 with a finding.
fn choose_port(service: &Service, spec: &RouteSpec, settings: &Settings) -> Result<(u16, Option<Diagnostic>), Diagnostic> {
    match (settings.port, service.ports.as_slice()) {
        (Some(port), _) | (None, &[port]) => Ok((port, None)),
        // The label is there and could not be read, or a stack file does not show what the image exposes: nothing new to say.
        (None, []) if spec.get("port").is_some() || service.origin == Origin::File => Ok((USUAL_PORT, None)),
        (None, []) => {
            let finding =
                Diagnostic::warning("no-port", format!("the image exposes no port and no label names one: port {USUAL_PORT} is tried"));
            Ok((USUAL_PORT, Some(finding.help("say which port the container listens on, e.g. `skep.port: 8080`"))))
        }
        (None, ports) => {
            let listed = list(ports.iter());
            let finding =
                Diagnostic::error("several-ports", format!("the container exposes the ports {listed}, and no label says which one to use"));
            Err(finding.help(format!("add `skep.port: {}` or the other one that speaks HTTP", ports[0])))
        }
    }
}

/// The network on which the edge dials the service.
fn choose_network<'a>(service: &'a Service, spec: &RouteSpec, settings: &Settings, edge: &Edge) -> Result<&'a str, Diagnostic> {
    let of_tasks = service.tasks.iter().flat_map(|task| task.addresses.keys());
    let theirs: BTreeSet<&str> = service.networks.iter().chain(of_tasks).map(String::as_str).filter(|name| *name != INGRESS).collect();
    let ours: BTreeSet<&str> = edge.networks.iter().map(String::as_str).filter(|name| *name != INGRESS).collect();
    if let Some(wanted) = &settings.network {
        return labelled_network(service, spec, wanted, &theirs, &ours);
    }
    let shared: Vec<&str> = theirs.iter().copied().filter(|name| ours.contains(name)).collect();
    match shared.as_slice() {
        [network] => Ok(network),
        [] => Err(none_shared(&theirs, &ours, edge)),
        several => Err(Diagnostic::error(
            "several-networks",
            format!("the service shares the networks {} with the edge, and no label says which one to use", list(several.iter())),
        )
        .help(format!("add `skep.network: {}` or another of them", several[0]))),
    }
}

/// A stack file lists its networks by their short names; deployed, they have the stack's name before it.
fn unlisted_network(service: &Service, spec: &RouteSpec, settings: &Settings) -> Option<Diagnostic> {
    let wanted = settings.network.as_deref()?;
    let same = |name: &String| wanted == name || wanted.strip_suffix(name.as_str()).is_some_and(|stack| stack.ends_with('_'));
    let listed = service.networks.is_empty() || service.networks.iter().any(same);
    (!listed).then(|| unknown_network(spec, wanted, &service.networks.iter().map(String::as_str).collect()))
}

fn unknown_network(spec: &RouteSpec, wanted: &str, theirs: &BTreeSet<&str>) -> Diagnostic {
    let message = format!("the service is not on a network `{wanted}`, it is on {}", list(theirs.iter()));
    let finding = Diagnostic::error("unknown-network", message);
    let finding = match spec.get("network") {
        Some(value) => finding.at(value.place()),
        None => finding,
    };
    match nearest(wanted, theirs.iter().copied()) {
        Some(near) => finding.help(format!("did you mean `{near}`?")),
        None => finding.help("name one of the service's networks, or attach it to this one under `networks:`"),
    }
}

/// The network that the `network` label names, in full or without its stack.
fn labelled_network<'a>(
    service: &Service,
    spec: &RouteSpec,
    wanted: &str,
    theirs: &BTreeSet<&'a str>,
    ours: &BTreeSet<&str>,
) -> Result<&'a str, Diagnostic> {
    let in_stack = service.stack.as_ref().map(|stack| format!("{stack}_{wanted}"));
    let found = theirs.get(wanted).or_else(|| theirs.get(in_stack.as_deref()?));
    let network = found.ok_or_else(|| unknown_network(spec, wanted, theirs))?;
    if ours.contains(network) {
        return Ok(network);
    }
    let finding =
        Diagnostic::error("no-shared-network", format!("the edge is not on the network `{network}`, it is on {}", list(ours.iter())))
            .help(format!("attach the edge to `{network}`, or name a network that both are on"));
    Err(match spec.get("network") {
        Some(value) => finding.at(value.place()),
        None => finding,
    })
}

fn none_shared(theirs: &BTreeSet<&str>, ours: &BTreeSet<&str>, edge: &Edge) -> Diagnostic {
    let message =
        format!("the edge cannot reach the service: the service is on {}, the edge on {}", list(theirs.iter()), list(ours.iter()));
    let help = match (theirs.first(), ours.first(), &edge.container) {
        (_, Some(our), _) => format!("attach the service to the edge's network `{our}` under `networks:`"),
        (Some(their), None, Some(_)) => format!("attach the edge to `{their}`"),
        (Some(their), None, None) => {
            format!("run the edge in a container on `{their}`, or name the networks that it reaches under `docker.networks`")
        }
        (None, None, _) => "create an overlay network and attach both to it".to_owned(),
    };
    Diagnostic::error("no-shared-network", message).help(help)
}

/// `a`, `b`; `none` where there is nothing.
fn list<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<_> = items.map(|item| format!("`{item}`")).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// An id as Docker shows it.
fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

/// Makes backends of one service that share its texts.
struct Maker<'a> {
    service: Arc<str>,
    empty: Arc<str>,
    settings: &'a Settings,
}

impl<'a> Maker<'a> {
    fn new(service: &Service, settings: &'a Settings) -> Maker<'a> {
        Maker { service: Arc::from(service.name.as_str()), empty: Arc::from(""), settings }
    }

    /// A healthy backend. `id` tells a task from its successor in the same slot, so that a new task begins with clean counters.
    fn backend(&self, id: &str, task: &str, address: SocketAddr) -> Backend {
        let id = format!("{}/{id}@{address}", self.service);
        Backend {
            token: Arc::from(format!("{:016x}", pick::hash(id.as_bytes()))),
            id: Arc::from(id),
            service: Arc::clone(&self.service),
            task: Arc::from(task),
            node: Arc::clone(&self.empty),
            address,
            scheme: self.settings.scheme,
            sni: self.settings.sni.as_deref().map_or_else(|| Arc::clone(&self.empty), Arc::from),
            trust: self.settings.trust.clone(),
            proxy_protocol: self.settings.proxy_protocol,
            condition: Condition::Healthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Defaults;
    use crate::label::{Dialect, Value};
    use crate::snapshot::Task;
    use crate::upstream::Scheme;

    fn spec(labels: &[(&'static str, &str)]) -> RouteSpec {
        let values = labels.iter().filter_map(|(key, text)| Some((*key, Value::new(&format!("skep.{key}"), text)?))).collect();
        RouteSpec { values, ..RouteSpec::new("", Dialect::Native) }
    }

    fn task(number: u8, condition: Condition, addresses: &[(&str, [u8; 4])]) -> Task {
        Task {
            id: format!("task{number}of25characters0000"),
            name: format!("shop_web.{number}"),
            node: "n1".into(),
            condition,
            addresses: addresses.iter().map(|(network, ip)| ((*network).to_owned(), IpAddr::from(*ip))).collect(),
            ..Task::default()
        }
    }

    fn service(networks: &[&str]) -> Service {
        Service {
            name: "shop_web".into(),
            stack: Some("shop".into()),
            networks: networks.iter().map(|name| (*name).to_owned()).collect(),
            ports: vec![8080],
            tasks: vec![
                task(1, Condition::Healthy, &[("ingress", [10, 0, 0, 1]), ("edge", [10, 1, 0, 1]), ("shop_backend", [10, 2, 0, 1])]),
                task(2, Condition::Starting, &[("ingress", [10, 0, 0, 2]), ("edge", [10, 1, 0, 2]), ("shop_backend", [10, 2, 0, 2])]),
                task(3, Condition::Down, &[]),
            ]
            .into_iter()
            .map(|mut task| {
                task.addresses.retain(|network, _| network == "ingress" || networks.contains(&network.as_str()));
                task
            })
            .collect(),
            ..Service::default()
        }
    }

    fn edge(networks: &[&str]) -> Edge {
        Edge { container: Some("e".into()), networks: networks.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn defaults() -> Defaults {
        let second = std::time::Duration::from_secs(1);
        Defaults {
            timeout_connect: second,
            timeout_response: second,
            timeout_idle: second,
            timeout_request: None,
            retries: 2,
            max_body: None,
        }
    }

    /// Addresses with conditions, and finding codes.
    fn dial(service: &Service, edge: &Edge, labels: &[(&'static str, &str)]) -> (Vec<String>, Vec<Diagnostic>) {
        let spec = spec(labels);
        let (settings, _) = super::super::parse(&spec, &defaults());
        let names = BTreeMap::from([("legacy.lan".to_owned(), vec![IpAddr::from([192, 168, 0, 9])]), ("gone.lan".to_owned(), vec![])]);
        let (backends, findings) = backends(service, &spec, &settings, edge, &names);
        (backends.iter().map(|backend| backend.address.to_string()).collect(), findings)
    }

    #[test]
    fn the_shared_network_is_dialled() {
        let on_edge = ["10.1.0.1:8080", "10.1.0.2:8080"];
        let on_backend = ["10.2.0.1:8080", "10.2.0.2:8080"];
        for (theirs, ours, label, wanted) in [
            (&["edge"][..], &["edge", "other"][..], None, Ok(on_edge)),
            (&["edge", "shop_backend"], &["edge"], None, Ok(on_edge)),
            (&["edge", "shop_backend"], &["shop_backend", "ingress"], None, Ok(on_backend)),
            (&["edge", "shop_backend"], &["edge", "shop_backend"], None, Err(("several-networks", "`edge`, `shop_backend`"))),
            (&["edge", "shop_backend"], &["edge", "shop_backend"], Some("shop_backend"), Ok(on_backend)),
            (&["edge", "shop_backend"], &["edge", "shop_backend"], Some("backend"), Ok(on_backend)),
            (&["edge", "shop_backend"], &["edge"], Some("backend"), Err(("no-shared-network", "`shop_backend`, it is on `edge`"))),
            (&["edge"], &["edge"], Some("egde"), Err(("unknown-network", "`egde`, it is on `edge`"))),
            (&["shop_backend"], &["edge", "front"], None, Err(("no-shared-network", "on `shop_backend`, the edge on `edge`, `front`"))),
            (&[], &["edge"], None, Err(("no-shared-network", "the service is on none, the edge on `edge`"))),
            (&["shop_backend"], &[], None, Err(("no-shared-network", "on `shop_backend`, the edge on none"))),
            (&["ingress"], &["ingress"], None, Err(("no-shared-network", "on none"))),
        ] {
            let labels: Vec<_> = label.map(|name| ("network", name)).into_iter().collect();
            let (addresses, findings) = dial(&service(theirs), &edge(ours), &labels);
            match wanted {
                Ok(wanted) => assert_eq!((addresses, findings.len()), (wanted.map(str::to_owned).to_vec(), 0), "{theirs:?} {ours:?}"),
                Err((code, words)) => {
                    assert!(addresses.is_empty());
                    assert_eq!(findings[0].code, code);
                    assert!(findings[0].message.contains(words), "{}", findings[0].message);
                    assert!(findings[0].help.is_some());
                }
            }
        }
    }

    #[test]
    fn the_port_is_labelled_or_the_only_one_or_80() {
        for (ports, label, wanted, codes) in [
            (&[8080][..], None, "10.1.0.1:8080", &[][..]),
            (&[8080], Some("9000"), "10.1.0.1:9000", &[]),
            (&[80, 443], Some("443"), "10.1.0.1:443", &[]),
            (&[80, 443], None, "", &["several-ports"]),
            (&[], None, "10.1.0.1:80", &["no-port"]),
            (&[], Some("eighty"), "10.1.0.1:80", &[]),
        ] {
            let service = Service { ports: ports.to_vec(), ..service(&["edge"]) };
            let labels: Vec<_> = label.map(|port| ("port", port)).into_iter().collect();
            let (addresses, findings) = dial(&service, &edge(&["edge"]), &labels);
            assert_eq!(addresses.first().map(String::as_str).unwrap_or_default(), wanted, "{ports:?} {label:?}");
            assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), codes);
        }
        let (_, findings) = dial(&Service { ports: vec![80, 443], ..service(&["edge"]) }, &edge(&["edge"]), &[]);
        assert!(findings[0].message.contains("`80`, `443`"));
    }

    #[test]
    fn addresses_come_from_files_only() {
        let docker = service(&["edge"]);
        let (addresses, findings) = dial(&docker, &edge(&["edge"]), &[("address", "10.0.0.1:80")]);
        assert_eq!((addresses.len(), findings[0].code.as_str()), (0, "address-refused"));
        let file = Service { name: "legacy".into(), origin: Origin::File, ..Service::default() };
        let (addresses, findings) = dial(&file, &edge(&[]), &[("address", "10.0.0.1:80, Legacy.lan:81, gone.lan:82, unasked.lan:83")]);
        assert_eq!(addresses, ["10.0.0.1:80", "192.168.0.9:81"]);
        assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["unresolved-address"; 2]);
        let (_, findings) = dial(&file, &edge(&[]), &[]);
        assert_eq!(findings[0].code, "no-address");
        let file = Service { networks: vec!["backend".into()], ..file };
        for (network, count) in [("backend", 1), ("shop_backend", 1), ("bakcend", 2)] {
            assert_eq!(dial(&file, &edge(&[]), &[("network", network)]).1.len(), count, "{network}");
        }
    }

    #[test]
    fn backends_say_who_they_are() {
        let spec = spec(&[("scheme", "https"), ("address", "legacy.lan:443")]);
        let (settings, _) = super::super::parse(&spec, &defaults());
        let file = Service { name: "legacy".into(), origin: Origin::File, ..Service::default() };
        let names = BTreeMap::from([("legacy.lan".to_owned(), vec![IpAddr::from([192, 168, 0, 9])])]);
        let (found, _) = backends(&file, &spec, &settings, &Edge::default(), &names);
        assert_eq!(
            (&*found[0].id, &*found[0].sni, found[0].scheme),
            ("legacy/legacy.lan:443@192.168.0.9:443", "legacy.lan", Scheme::Https)
        );
        let spec = self::spec(&[]);
        let (settings, _) = super::super::parse(&spec, &defaults());
        let (found, _) = backends(&service(&["edge"]), &spec, &settings, &edge(&["edge"]), &names);
        assert_eq!((&*found[0].id, &*found[0].task, &*found[0].node), ("shop_web/task1of25cha@10.1.0.1:8080", "shop_web.1", "n1"));
        assert_eq!(found[1].condition, Condition::Starting);
        assert_eq!(found[0].token.len(), 16);
        assert!(found[0].token != found[1].token && !found[0].token.contains("shop"));
    }

    #[test]
    fn a_healthy_task_without_an_address_is_named() {
        let mut service = service(&["edge"]);
        service.tasks[0].addresses.clear();
        let (addresses, findings) = dial(&service, &edge(&["edge"]), &[]);
        assert_eq!((addresses.len(), findings[0].code.as_str()), (1, "task-without-address"));
    }
}
