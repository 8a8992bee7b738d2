//! What Docker (or a stack file) said at one instant, in our own words.
//! The routing table is a function of this value, so it is also the bug report, the fixture and what is kept on disk.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;

/// Label or attribute maps are ordered, so that whatever is printed from them is too.
pub type Labels = BTreeMap<String, String>;

/// Everything that was listed together. All listings succeeded, or there is no snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    pub engine: Engine,
    pub services: Vec<Service>,
    pub nodes: Vec<Node>,
    /// Host names from `address` labels of stack files and what they resolved to (empty: did not resolve).
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// What is wrong with the stack files themselves; labels are judged later.
    pub findings: Vec<Diagnostic>,
}

/// What a Docker engine and what a stack file say, as one snapshot.
pub fn merge(docker: Option<&Snapshot>, file: Option<&Snapshot>) -> Snapshot {
    let mut merged = docker.cloned().unwrap_or_default();
    if let Some(file) = file {
        merged.services.extend(file.services.iter().cloned());
        merged.findings.extend(file.findings.iter().cloned());
        merged.names.extend(file.names.iter().map(|(name, addresses)| (name.clone(), addresses.clone())));
    }
    merged
}

/// The engine that was asked, and where the edge itself stands in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Engine {
    /// Empty when no engine was asked (stack files only).
    pub id: String,
    pub version: String,
    pub api: String,
    pub swarm: Swarm,
    /// This engine's node id in the swarm; empty outside one.
    pub node: String,
    pub edge: Edge,
}

/// What the engine is in a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Swarm {
    #[default]
    Off,
    Worker,
    Manager,
}

/// Where the edge stands: which networks' addresses it can dial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edge {
    /// The edge's own container; `None` when it runs on the host itself.
    pub container: Option<String>,
    /// Names of the networks that the edge is attached to (on the host: the engine's bridge networks).
    pub networks: Vec<String>,
}

/// Where a service was declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    #[default]
    Swarm,
    Container,
    File,
}

/// A Swarm service, a plain container, or a service of a stack file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    pub id: String,
    /// As the user knows it: `shop_web`, a container's name, a stack file's service key.
    pub name: String,
    pub origin: Origin,
    pub stack: Option<String>,
    pub created: Timestamp,
    pub image: String,
    /// The labels that count: `deploy.labels`, a plain container's labels, a stack file's service labels.
    pub labels: Labels,
    /// A Swarm service's labels on its containers; ours do nothing there, which is worth a finding.
    pub container_labels: Labels,
    /// Names of all attached networks.
    pub networks: Vec<String>,
    /// Container ports known from EXPOSE or published ports, ascending.
    pub ports: Vec<u16>,
    /// Wanted tasks; `None` for global services.
    pub replicas: Option<u64>,
    /// Placement constraints, as written.
    pub constraints: Vec<String>,
    /// A rolling update or roll-back is under way.
    pub updating: bool,
    /// Volumes that the service mounts by name.
    pub volumes: Vec<String>,
    pub tasks: Vec<Task>,
}

/// One running (or failing) instance of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    pub id: String,
    /// `shop_web.2`, or the container's name.
    pub name: String,
    /// Node id; empty outside a swarm.
    pub node: String,
    pub container: Option<String>,
    pub condition: Condition,
    /// Docker's words on why it is not running.
    pub message: String,
    /// Network name -> address on it.
    pub addresses: BTreeMap<String, IpAddr>,
}

/// May this task get traffic, and if not, why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Running, and its health check (if any) passes.
    Healthy,
    /// On its way up, or its health check is still `starting`.
    #[default]
    Starting,
    Unhealthy,
    /// Got `kill` or is meant to shut down.
    Stopping,
    /// Exited, failed, rejected, orphaned.
    Down,
}

/// A server of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    pub id: String,
    pub hostname: String,
    pub address: String,
    pub labels: Labels,
    pub ready: bool,
    pub manager: bool,
    pub leader: bool,
    /// `active`, `pause` or `drain`.
    pub availability: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_takes_the_engine_from_docker_and_the_services_from_both() {
        let service = |name: &str| Service { name: name.to_owned(), ..Service::default() };
        let docker = Snapshot {
            engine: Engine { id: "e".to_owned(), ..Engine::default() },
            services: vec![service("a")],
            nodes: vec![Node::default()],
            ..Snapshot::default()
        };
        let names = BTreeMap::from([("x.lan".to_owned(), vec![IpAddr::from([10, 0, 0, 1])])]);
        let file = Snapshot { services: vec![service("b")], names: names.clone(), ..Snapshot::default() };
        let both = merge(Some(&docker), Some(&file));
        assert_eq!((both.engine.id.as_str(), both.nodes.len(), &both.names), ("e", 1, &names));
        assert_eq!(both.services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(merge(Some(&docker), None), docker);
        assert_eq!(merge(None, Some(&file)), file);
        assert_eq!(merge(None, None), Snapshot::default());
    }

    #[test]
    fn a_snapshot_written_as_json_reads_back_and_missing_fields_have_defaults() {
        let snapshot = Snapshot { services: vec![Service { tasks: vec![Task::default()], ..Service::default() }], ..Snapshot::default() };
        let text = serde_json::to_string(&snapshot).expect("json");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).expect("a snapshot"), snapshot);
        assert_eq!(serde_json::from_str::<Snapshot>("{}").expect("a snapshot"), Snapshot::default());
    }
}
