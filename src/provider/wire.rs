//! One engine's API: calls that are counted, bounded in time and size, and decoded.
//! The connection (socket, TCP, TLS, version) is bollard's; what to ask and when is decided elsewhere.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, TryStreamExt};
use serde::de::DeserializeOwned;

use crate::config;
use crate::config::docker::{Dial, NoWay};
use crate::provider::Health;
use crate::provider::api::{Info, Listing, Task};
use crate::provider::listing::{Inventory, Vantage};
use crate::snapshot::{Engine, Swarm};

/// For one call, body included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of one answer. Ten thousand tasks have about 30 MB.
const MAX_ANSWER: usize = 128 << 20;
/// Larger answers are decoded off the threads that serve.
const LARGE_ANSWER: usize = 256 << 10;
/// Events from shortly before the connection are heard too, so that none falls between stream and listing.
const OVERLAP: i64 = 3;
/// Types and actions that change what can be reached. Health checks make an `exec` event each: those stay out.
const TYPES: [&str; 4] = ["container", "service", "node", "network"];
const ACTIONS: [&str; 17] = [
    "create",
    "update",
    "remove",
    "destroy",
    "start",
    "restart",
    "kill",
    "stop",
    "die",
    "oom",
    "health_status",
    "pause",
    "unpause",
    "rename",
    "connect",
    "disconnect",
    "promote",
];

/// Why the engine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    NoWay(#[from] NoWay),
    #[error("{endpoint}: {source}")]
    Connect { endpoint: String, source: bollard::errors::Error },
    #[error("{call}: {source}")]
    Call { call: String, source: bollard::errors::Error },
    #[error("{call}: no answer within {} s", TIMEOUT.as_secs())]
    Timeout { call: String },
    #[error("{call}: the answer has more than {MAX_ANSWER} bytes")]
    TooLarge { call: String },
    #[error("{call}: the answer is not understood: {source}")]
    Answer { call: String, source: serde_json::Error },
}

/// The engine's event stream.
pub type Events = Pin<Box<dyn Stream<Item = Result<EventMessage, bollard::errors::Error>> + Send>>;

/// A connected engine.
#[derive(Clone)]
pub struct Client {
    docker: Docker,
    health: Arc<Health>,
}

impl Client {
    /// Connects and agrees on an API version.
    ///
    /// # Errors
    /// The address is none, nobody answers there, or keys and certificates do not fit.
    pub async fn connect(config: &config::Docker, health: Arc<Health>) -> Result<Client, Error> {
        let endpoint = &config.endpoint;
        let failed = |source| Error::Connect { endpoint: endpoint.clone(), source };
        let seconds = TIMEOUT.as_secs();
        let docker = match config.dial()? {
            Dial::Socket(path) => Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION),
            Dial::Tls { key, certificate, authority } => {
                Docker::connect_with_ssl(endpoint, &key, &certificate, &authority, seconds, API_DEFAULT_VERSION)
            }
            Dial::Plain => Docker::connect_with_http(endpoint, seconds, API_DEFAULT_VERSION),
        };
        let docker = docker.map_err(failed)?;
        health.calls.fetch_add(1, Relaxed);
        let negotiated = tokio::time::timeout(TIMEOUT, docker.negotiate_version()).await;
        let docker = negotiated.map_err(|_| Error::Timeout { call: endpoint.clone() })?.map_err(failed)?;
        Ok(Client { docker, health })
    }

    /// All listings, at most five calls: on a manager what a swarm has, elsewhere what the engine says of itself
    /// (it may join a swarm, and has no event for that). `known` is what an earlier listing found the engine to be.
    ///
    /// # Errors
    /// One of the calls failed: there is no half listing.
    pub async fn list(&self, known: Engine, vantage: Vantage) -> Result<(Inventory, Vec<Task>), Error> {
        let engine = match known.swarm {
            Swarm::Manager => known,
            _ => self.get::<Info>("/info").await?.engine(self.docker.client_version().to_string()),
        };
        let networks = self.get("/networks");
        let containers = self.get("/containers/json?all=true");
        let listing = if engine.swarm == Swarm::Manager {
            let (services, tasks, nodes) = (self.get("/services"), self.tasks(), self.get("/nodes"));
            let (services, tasks, nodes, networks, containers) = tokio::try_join!(services, tasks, nodes, networks, containers)?;
            Listing { services, tasks, nodes, networks, containers }
        } else {
            let (networks, containers) = tokio::try_join!(networks, containers)?;
            Listing { networks, containers, ..Listing::default() }
        };
        Ok((Inventory::new(engine, &listing, &vantage), listing.tasks))
    }

    /// Without the tasks of the past, of which there are five for each present one.
    ///
    /// # Errors
    /// The call failed.
    pub async fn tasks(&self) -> Result<Vec<Task>, Error> {
        self.get(&format!("/tasks?filters={}", encoded(r#"{"desired-state":["running"]}"#))).await
    }

    /// One GET. The models of bollard leave out the addresses of tasks and fail at states that they do not know, so its
    /// connection is used, with our own path, and the bytes of the answer are read here.
    async fn get<T: DeserializeOwned + Send + 'static>(&self, call: &str) -> Result<T, Error> {
        self.health.calls.fetch_add(1, Relaxed);
        let target = format!("/v{}{call}", self.docker.client_version());
        let docker = self.docker.clone().with_request_modifier(move |mut request| {
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = target.parse().ok();
            // The rest is from a valid address, and every target of this file is a valid path.
            if let Ok(uri) = http::Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
            request
        });
        let read = async {
            let mut chunks = std::pin::pin!(docker.export_container("any"));
            let mut body = Vec::new();
            while let Some(chunk) = chunks.try_next().await.map_err(|source| Error::Call { call: call.to_owned(), source })? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(Error::TooLarge { call: call.to_owned() });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        let body = tokio::time::timeout(TIMEOUT, read).await.map_err(|_| Error::Timeout { call: call.to_owned() })??;
        let decoded = if body.len() > LARGE_ANSWER {
            let decode = tokio::task::spawn_blocking(move || serde_json::from_slice(&body));
            decode.await.unwrap_or_else(|error| Err(serde::de::Error::custom(error)))
        } else {
            serde_json::from_slice(&body)
        };
        decoded.map_err(|source| Error::Answer { call: call.to_owned(), source })
    }

    /// What happens from now on, and shortly before. An engine that cannot be reached is the stream's first item.
    pub fn events(&self) -> Events {
        self.health.calls.fetch_add(1, Relaxed);
        let since = (jiff::Timestamp::now().as_second() - OVERLAP).to_string();
        let filters = [("type", TYPES.to_vec()), ("event", ACTIONS.to_vec())].into();
        Box::pin(self.docker.events(Some(EventsOptionsBuilder::new().since(&since).filters(&filters).build())))
    }
}

fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}
