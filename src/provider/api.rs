//! What the engine's list calls answer.
//! The types name only what is used and take states as text, so an engine that is newer than this code is still understood.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use crate::snapshot::Labels;

/// All answers of one full refresh. Outside a swarm manager the first three are empty.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    pub services: Vec<Service>,
    pub tasks: Vec<Task>,
    pub nodes: Vec<Node>,
    pub networks: Vec<Network>,
    pub containers: Vec<Container>,
}

/// What the engine says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    #[serde(rename = "ID")]
    pub id: String,
    pub server_version: String,
    pub swarm: SwarmInfo,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub local_node_state: String,
    pub control_available: bool,
}

/// The engine writes `null` where a list or a map is empty.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Types that are read from the API: every field may be missing or null.
macro_rules! answers {
    ($($(#[$about:meta])* $name:ident { $($(#[$note:meta])* $field:ident $($key:literal)? : $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        pub struct $name {
            $($(#[$note])* $(#[serde(rename = $key)])? #[serde(deserialize_with = "nullable")] pub $field: $kind,)*
        }
    )*};
}

answers! {
    Service { id "ID": String, created_at: Option<Timestamp>, spec: ServiceSpec, endpoint: Endpoint, update_status: UpdateStatus, }
    ServiceSpec {
        name: String, labels: Labels, task_template: TaskTemplate, mode: Mode,
        /// Where engines before 1.25 kept what the template has now.
        networks: Vec<Target>,
    }
    TaskTemplate { container_spec: ContainerSpec, placement: Placement, networks: Vec<Target>, }
    ContainerSpec { image: String, labels: Labels, mounts: Vec<Mount>, }
    /// A mount of a service (`Source`) or of a container (`Name`).
    Mount { kind "Type": String, source: String, name: String, }
    Placement { constraints: Vec<String>, }
    Target { target: String, }
    Mode { replicated: Option<Replicated>, }
    Replicated { replicas: u64, }
    Endpoint { ports: Vec<EndpointPort>, }
    EndpointPort { protocol: String, target_port: u16, }
    UpdateStatus { state: String, }
    Task {
        id "ID": String, service_id "ServiceID": String, node_id "NodeID": String, slot: u64, status: TaskStatus,
        desired_state: String, networks_attachments: Vec<Attachment>,
    }
    TaskStatus { state: String, message: String, err: String, container_status: ContainerStatus, }
    ContainerStatus { container_id "ContainerID": String, }
    Attachment { network: AttachedNetwork, addresses: Vec<String>, }
    AttachedNetwork { spec: NetworkSpec, }
    NetworkSpec { name: String, ingress: bool, }
    Node {
        id "ID": String, spec: NodeSpec, description: NodeDescription, status: NodeStatus, manager_status: ManagerStatus,
    }
    NodeSpec { labels: Labels, role: String, availability: String, }
    NodeDescription { hostname: String, }
    NodeStatus { state: String, addr: String, }
    ManagerStatus { leader: bool, }
    Network { id "Id": String, name: String, scope: String, driver: String, ingress: bool, }
    Container {
        id "Id": String, names: Vec<String>, image: String, created: i64, ports: Vec<Port>, labels: Labels, state: String,
        status: String, host_config: HostConfig, network_settings: NetworkSettings, mounts: Vec<Mount>,
    }
    Port { private_port: u16, kind "Type": String, }
    HostConfig { network_mode: String, }
    NetworkSettings { networks: HashMap<String, EndpointSettings>, }
    EndpointSettings { ip_address "IPAddress": String, global_ipv6_address "GlobalIPv6Address": String, }
}
