//! What one node's engine has: its volumes, and the containers that use them. The survey decides what of it is saved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::snapshot::Labels;

/// All that was listed together; all listings succeeded, or there is no inventory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// The node's host name, as the engine has it.
    pub node: String,
    pub volumes: Vec<Volume>,
    /// Running or not.
    pub containers: Vec<Container>,
}

/// A named or anonymous volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    /// Where this process finds its files.
    pub path: PathBuf,
    pub labels: Labels,
    pub options: Labels,
    pub created: Option<Timestamp>,
    /// The engine made up its name.
    pub anonymous: bool,
}

/// A container on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    pub id: String,
    pub name: String,
    /// As it was asked for: `postgres:16`.
    pub image: String,
    /// What that was: `sha256:...`.
    pub digest: String,
    /// `running`, `paused`, `exited`, ... as the engine writes it.
    pub state: String,
    pub labels: Labels,
    /// The swarm service that it is a task of.
    pub service: Option<String>,
    pub stack: Option<String>,
    pub mounts: Vec<Mount>,
    /// Of its environment only what says where a database keeps its files; never its secrets.
    pub environment: BTreeMap<String, String>,
}

/// Something that a container sees at a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub kind: MountKind,
    /// A volume's name, or a path of the host.
    pub source: String,
    pub destination: PathBuf,
    pub writable: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    #[default]
    Volume,
    Bind,
    /// Memory, pipes, clusters' volumes: nothing that could be saved.
    Other,
}

impl Container {
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "running" | "paused" | "restarting")
    }

    /// Where it sees the volume.
    pub fn mount(&self, volume: &str) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.kind == MountKind::Volume && mount.source == volume)
    }
}
