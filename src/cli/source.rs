//! Where routes are read from: stack files, a snapshot on disk, the edge that runs here, or Docker itself.
//! The state is built from the snapshot by the same code as in the edge, so what is explained is what is served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, auth};
use crate::provider::docker;
use crate::provider::files::{self, Stack};
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::traffic::LimitNow;

use super::settings::ConfigFile;
use super::{Failure, ask, on_one_thread, output};

/// For an answer of the edge on this machine, when it was asked for.
const PATIENT: Duration = Duration::from_secs(10);
/// The same where nobody asked for it: a file is checked in under a second, edge or no edge.
const QUICK: Duration = Duration::from_millis(400);
/// A snapshot of ten thousand tasks has about 10 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Where to read from.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Source {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Read this stack file (repeatable)
    #[arg(long, value_name = "STACK.yml", conflicts_with_all = ["snapshot", "live", "admin"])]
    pub file: Vec<PathBuf>,
    /// Read what `skep snapshot` wrote
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["live", "admin"])]
    pub snapshot: Option<PathBuf>,
    /// Ask Docker directly, not the running edge
    #[arg(long)]
    pub live: bool,
    /// Ask the edge whose admin listener is here [default: as the settings say; Docker when no edge answers there]
    #[arg(long, value_name = "ADDR", conflicts_with = "live")]
    pub admin: Option<SocketAddr>,
}

/// What the running edge knows of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Counters {
    pub in_flight: u32,
    pub requests: u64,
    pub failures: u64,
    /// Why it gets no requests although it is up.
    #[serde(default)]
    pub ailment: Option<String>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Facts {
    pub snapshot: Snapshot,
    pub config: Arc<Config>,
    /// Backend id to its counters; empty unless a running edge was asked.
    pub ledger: BTreeMap<String, Counters>,
    /// How the routes' limits stand; empty unless a running edge was asked.
    pub limits: Vec<LimitNow>,
}

impl Facts {
    /// The state that an edge has which knows these facts.
    pub fn state(self) -> (State, BTreeMap<String, Counters>) {
        (State::build(self.config, Arc::new(self.snapshot)), self.ledger)
    }
}

impl Source {
    /// Reads, and says on standard error where from.
    pub fn read(&self) -> Result<Facts, Failure> {
        let config = Arc::new(self.config.read_aloud()?);
        let alone = |snapshot| Facts { snapshot, config: config.clone(), ledger: BTreeMap::new(), limits: Vec::new() };
        if !self.file.is_empty() {
            return from_files(&self.file).map(alone);
        }
        if let Some(path) = &self.snapshot {
            return from_snapshot(path).map(alone);
        }
        if self.live {
            return from_docker(&config).map(alone);
        }
        let Some(address) = self.admin.or(config.admin.listen) else { return from_docker(&config).map(alone) };
        match edge(address, PATIENT) {
            Ok((snapshot, ledger)) => {
                output::note(&format!("from the edge at {address}"));
                let mut config = (*config).clone();
                // An older edge does not say.
                if let Some(facts) = told::<auth::Facts>(address, "/facts") {
                    facts.apply(&mut config);
                }
                Ok(Facts { snapshot, config: Arc::new(config), ledger, limits: told(address, "/limits").unwrap_or_default() })
            }
            // Whoever names an address means that edge and no other.
            Err(reason) if self.admin.is_some() => Err(Failure::said(format!("the edge at {address} does not answer: {reason}"))),
            Err(reason) => from_docker(&config).map(alone).map_err(|failure| match failure {
                Failure::Said(docker) => {
                    let other = "name a stack file with --file, a snapshot with --snapshot, or an edge with --admin";
                    Failure::said(format!("no edge at {address} ({reason}), and {docker}\n  {other}"))
                }
                other => other,
            }),
        }
    }
}

/// What the edge at `address` knows.
fn edge(address: SocketAddr, limit: Duration) -> Result<(Snapshot, BTreeMap<String, Counters>), String> {
    let page = |path: &str| match ask::get(address, path, limit) {
        Ok((200, body)) => Ok(body),
        Ok((status, _)) => Err(format!("{path} answers {status}")),
        Err(error) => Err(error.to_string()),
    };
    let snapshot = serde_json::from_slice(&page("/snapshot")?).map_err(|error| format!("its snapshot cannot be read: {error}"))?;
    let ledger = serde_json::from_slice(&page("/ledger")?).map_err(|error| format!("its counters cannot be read: {error}"))?;
    Ok((snapshot, ledger))
}

/// What the edge at `address` says at `path`; nothing where an older one does not say.
fn told<T: DeserializeOwned>(address: SocketAddr, path: &str) -> Option<T> {
    let (_, body) = ask::get(address, path, PATIENT).ok().filter(|(status, _)| *status == 200)?;
    serde_json::from_slice(&body).ok()
}

/// What the edge of these settings knows, if one is there and quick to answer.
pub(super) fn edge_at_hand(address: Option<SocketAddr>) -> Option<Snapshot> {
    let (snapshot, _) = edge(address?, QUICK).ok()?;
    Some(snapshot)
}

/// What Docker says now.
pub(super) fn from_docker(config: &Config) -> Result<Snapshot, Failure> {
    let asked = on_one_thread(docker::once(&config.docker))?;
    let snapshot = asked.map_err(|error| Failure::said(format!("Docker cannot be asked: {error}")))?;
    output::note(&format!("from Docker at {}", config.docker.endpoint));
    Ok(snapshot)
}

fn from_files(paths: &[PathBuf]) -> Result<Snapshot, Failure> {
    if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
        return Err(Failure::said(format!("cannot read {}: there is no such file", missing.display())));
    }
    let stacks: Vec<Stack> = paths.iter().cloned().map(Stack::File).collect();
    let (snapshot, _) = on_one_thread(files::read(&stacks))?;
    output::note(&format!(
        "from {}, as `skep run --file` serves it",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    ));
    Ok(snapshot)
}

fn from_snapshot(path: &Path) -> Result<Snapshot, Failure> {
    let unreadable = |why: String| Failure::said(format!("cannot read {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(unreadable(format!("it has {size} bytes, a snapshot at most {MAX_BYTES}")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let snapshot = serde_json::from_slice(&bytes).map_err(|error| unreadable(format!("it is not what `skep snapshot` writes: {error}")))?;
    output::note(&format!("from {}", path.display()));
    Ok(snapshot)
}
