//! The node's Docker engine, as far as backups need it: what it has, and containers that are frozen, stopped, asked and brought back.
//! Every call has an end: an engine that hangs must not hold a backup, nor keep an application stopped.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;

use super::answer::{Exec, Info, Inspected, Listed, Volumes};
use super::inventory::{Container, Inventory, Volume};
use crate::config;
use crate::config::docker::{Dial, NoWay};
use crate::snapshot::Labels;

/// For one call that does not wait for a container.
const LIMIT: Duration = Duration::from_secs(30);
/// What bollard itself waits for the head of an answer. Ours are shorter; waiting for a container's end is as long as its caller says.
const OUTER: u64 = 7 * 24 * 3600;
/// Of one answer.
const MAX_ANSWER: usize = 64 << 20;
/// Containers that are looked at in detail at one time.
const AT_ONCE: usize = 8;
/// Of a throw-away container's words.
const MAX_LOG: usize = 64 << 10;

/// Why the engine did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    NoWay(#[from] NoWay),
    #[error("{endpoint}: {source}")]
    Connect { endpoint: String, source: bollard::errors::Error },
    #[error("the engine does not {call}: {source}")]
    Call { call: String, source: bollard::errors::Error },
    #[error("the engine did not {call} within {} s", after.as_secs())]
    Timeout { call: String, after: Duration },
    #[error("the engine's answer is not understood ({call}): {source}")]
    Answer { call: String, source: serde_json::Error },
    #[error("the engine's answer has more than {MAX_ANSWER} bytes ({0})")]
    TooLarge(String),
    /// A container, volume or image that is not there (any more).
    #[error("the engine has no {0}")]
    Gone(String),
    #[error("the output of a command broke off: {0}")]
    Broken(String),
}

/// A connected engine.
#[derive(Clone)]
pub struct Engine {
    pub(super) docker: Docker,
}

/// A container that lives for one trial: without a network, from an image that is there already.
#[derive(Clone, Debug, Default)]
pub struct Throwaway {
    pub image: String,
    /// Empty: the image's own.
    pub command: Vec<String>,
    /// In place of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// `volume-or-path:/where[:ro]`.
    pub binds: Vec<String>,
    pub user: Option<String>,
    /// In bytes; `None`: no limit.
    pub memory: Option<i64>,
}

/// On every throw-away container and volume, so that what a crash left is found.
pub const THROWAWAY: &str = "skep.backup.throwaway";

impl Engine {
    /// Connects and agrees on an API version.
    ///
    /// # Errors
    /// The address is none, nobody answers there, or keys and certificates do not fit.
    pub async fn connect(config: &config::Docker) -> Result<Engine, Error> {
        let endpoint = &config.endpoint;
        let failed = |source| Error::Connect { endpoint: endpoint.clone(), source };
        let docker = match config.dial()? {
            Dial::Socket(path) => Docker::connect_with_unix(path, OUTER, API_DEFAULT_VERSION),
            Dial::Tls { key, certificate, authority } => {
                Docker::connect_with_ssl(endpoint, &key, &certificate, &authority, OUTER, API_DEFAULT_VERSION)
            }
            Dial::Plain => Docker::connect_with_http(endpoint, OUTER, API_DEFAULT_VERSION),
        };
        let docker = docker.map_err(failed)?;
        let negotiated = tokio::time::timeout(LIMIT, docker.negotiate_version()).await;
        let docker = negotiated.map_err(|_| Error::Timeout { call: "answer".into(), after: LIMIT })?.map_err(failed)?;
        Ok(Engine { docker })
    }

    /// All volumes and containers of this node. `volumes` is where this process finds the engine's volumes directory; `None`: where the
    /// engine says.
    ///
    /// # Errors
    /// One of the calls failed: there is no half inventory.
    pub async fn inventory(&self, volumes: Option<&Path>) -> Result<Inventory, Error> {
        let info: Info = self.get("/info").await?;
        let listed: Volumes = self.get("/volumes").await?;
        let root = info.volumes();
        Ok(Inventory {
            volumes: listed.volumes.into_iter().map(|volume| volume.known(&root, volumes)).collect(),
            containers: self.containers(None).await?,
            node: info.name,
        })
    }

    /// The containers, running or not; with `volume` only those that mount it.
    ///
    /// # Errors
    /// The engine's.
    pub async fn containers(&self, volume: Option<&str>) -> Result<Vec<Container>, Error> {
        let filters = volume.map(|name| serde_json::json!({ "volume": [name] }).to_string());
        let filters = filters.map(|text| format!("&filters={}", encoded(&text))).unwrap_or_default();
        let listed: Vec<Listed> = self.get(&format!("/containers/json?all=true{filters}")).await?;
        let wanted = |container: &Container| volume.is_none_or(|name| container.mount(name).is_some());
        let known = listed.into_iter().map(Listed::known).filter(wanted);
        stream::iter(known.map(|container| self.detailed(container)))
            .buffered(AT_ONCE)
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await
    }

    /// With its environment, where that may matter; `None`: it is gone since it was listed.
    async fn detailed(&self, container: Container) -> Result<Option<Container>, Error> {
        if !container.is_running() || container.mounts.is_empty() {
            return Ok(Some(container));
        }
        match self.inspect(&container.id).await {
            Ok(inspected) => Ok(Some(Container { environment: inspected.config.environment(), ..container })),
            Err(Error::Gone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the engine says of one container.
    ///
    /// # Errors
    /// There is none of that id, or the engine's.
    pub async fn inspect(&self, container: &str) -> Result<Inspected, Error> {
        self.get(&format!("/containers/{}/json", encoded(container))).await
    }

    /// `running`, `paused`, `exited`, ...; `None`: there is no such container.
    ///
    /// # Errors
    /// The engine's.
    pub async fn state(&self, container: &str) -> Result<Option<String>, Error> {
        match self.inspect(container).await {
            Ok(inspected) => Ok(Some(inspected.state.status)),
            Err(Error::Gone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Freezes all processes of a running container.
    ///
    /// # Errors
    /// The engine's; the container may be frozen all the same.
    pub async fn pause(&self, container: &str) -> Result<(), Error> {
        bounded(LIMIT, &format!("pause {container}"), self.docker.pause_container(container)).await
    }

    /// Lets a frozen container go on. One that is not frozen, or gone, is fine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn unpause(&self, container: &str) -> Result<(), Error> {
        let done = bounded(LIMIT, &format!("unpause {container}"), self.docker.unpause_container(container)).await;
        match done {
            Err(error) => match self.state(container).await?.as_deref() {
                Some("paused") => Err(error),
                _ => Ok(()),
            },
            done => done,
        }
    }

    /// Stops a container, by force after `grace`. One that does not run is fine.
    ///
    /// # Errors
    /// The engine's; the container may have stopped all the same.
    pub async fn stop(&self, container: &str, grace: Duration) -> Result<(), Error> {
        let options = StopContainerOptionsBuilder::new().t(i32::try_from(grace.as_secs()).unwrap_or(i32::MAX)).build();
        bounded(grace + LIMIT, &format!("stop {container}"), self.docker.stop_container(container, Some(options))).await
    }

    /// Starts a container. One that runs is fine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn start(&self, container: &str) -> Result<(), Error> {
        bounded(LIMIT, &format!("start {container}"), self.docker.start_container(container, None::<StartContainerOptions>)).await
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// The engine's.
    pub async fn volume(&self, name: &str, volumes: Option<&Path>) -> Result<Option<Volume>, Error> {
        let root = self.get::<Info>("/info").await?.volumes();
        match self.get::<super::answer::Volume>(&format!("/volumes/{}", encoded(name))).await {
            Ok(volume) => Ok(Some(volume.known(&root, volumes))),
            Err(Error::Gone(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a volume; one that is there already stays as it is, whatever its options: ask [`Engine::volume`] first.
    ///
    /// # Errors
    /// The engine's.
    pub async fn create_volume(&self, name: &str, driver: &str, options: &Labels, labels: &Labels) -> Result<(), Error> {
        let map = |pairs: &Labels| Some(pairs.clone().into_iter().collect::<HashMap<_, _>>());
        let driver = Some(driver.to_owned()).filter(|driver| !driver.is_empty());
        let wanted = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver,
            driver_opts: map(options),
            labels: map(labels),
            ..VolumeCreateRequest::default()
        };
        let call = format!("create the volume {name}");
        let made = bounded(LIMIT, &call, async {
            match self.docker.create_volume(wanted).await {
                // Its description of the volume may hold what this version of bollard does not know.
                Ok(_) | Err(bollard::errors::Error::JsonDataError { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        });
        made.await?;
        self.get::<serde::de::IgnoredAny>(&format!("/volumes/{}", encoded(name))).await.map(drop)
    }

    /// Removes a volume that no container uses. None of that name is fine.
    ///
    /// # Errors
    /// It is in use, or the engine's.
    pub async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let call = format!("remove the volume {name}");
        match bounded(LIMIT, &call, self.docker.remove_volume(name, None::<RemoveVolumeOptions>)).await {
            Err(Error::Gone(_)) => Ok(()),
            done => done,
        }
    }

    /// Is the image on this node? Nothing is ever pulled.
    ///
    /// # Errors
    /// The engine's.
    pub async fn has_image(&self, image: &str) -> Result<bool, Error> {
        // References have `/` and `:`, which the engine wants as they are.
        let path = image.split('/').map(|part| encoded(part).to_string()).collect::<Vec<_>>().join("/");
        match self.get::<serde::de::IgnoredAny>(&format!("/images/{path}/json")).await {
            Ok(_) => Ok(true),
            Err(Error::Gone(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes and starts a container for a trial; its id. Whoever asks removes it.
    ///
    /// # Errors
    /// The image is not there, or the engine's; then nothing is left.
    pub async fn throwaway(&self, wanted: &Throwaway) -> Result<String, Error> {
        let host = HostConfig {
            binds: Some(wanted.binds.clone()),
            network_mode: Some("none".to_owned()),
            memory: wanted.memory,
            ..HostConfig::default()
        };
        let body = ContainerCreateBody {
            image: Some(wanted.image.clone()),
            cmd: Some(wanted.command.clone()).filter(|command| !command.is_empty()),
            entrypoint: wanted.entrypoint.clone(),
            env: Some(wanted.environment.clone()),
            user: wanted.user.clone(),
            labels: Some(HashMap::from([(THROWAWAY.to_owned(), "true".to_owned())])),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let call = format!("make a container of {}", wanted.image);
        let id = bounded(LIMIT, &call, self.docker.create_container(None::<CreateContainerOptions>, body)).await?.id;
        if let Err(error) = self.start(&id).await {
            self.remove(&id).await?;
            return Err(error);
        }
        Ok(id)
    }

    /// Waits for a container's end; its exit code.
    ///
    /// # Errors
    /// It runs longer than `limit`, or the engine's.
    pub async fn wait(&self, container: &str, limit: Duration) -> Result<i64, Error> {
        let call = format!("see the end of {container}");
        // Whatever it says: the exit code is asked for.
        let ended = bounded(limit, &call, async {
            std::pin::pin!(self.docker.wait_container(container, None)).next().await;
            Ok(())
        });
        ended.await?;
        let state = self.inspect(container).await?.state;
        match state.status.as_str() {
            "running" | "paused" | "restarting" => Err(Error::Timeout { call, after: limit }),
            _ => Ok(state.exit_code),
        }
    }

    /// The last lines that a container wrote.
    ///
    /// # Errors
    /// The engine's.
    pub async fn logs(&self, container: &str, lines: u32) -> Result<String, Error> {
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let mut text = String::new();
        let read = async {
            let mut lines = std::pin::pin!(self.docker.logs(container, Some(options)));
            while let Some(line) = lines.try_next().await? {
                if text.len() < MAX_LOG {
                    text.push_str(&line.to_string());
                }
            }
            Ok(())
        };
        bounded(LIMIT, &format!("show what {container} wrote"), read).await?;
        Ok(text)
    }

    /// Removes a container with its anonymous volumes, running or not. None of that name is fine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn remove(&self, container: &str) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match bounded(LIMIT, &format!("remove {container}"), self.docker.remove_container(container, Some(options))).await {
            Err(Error::Gone(_)) => Ok(()),
            done => done,
        }
    }

    /// Ids of throw-away containers, also of those that a crash left.
    ///
    /// # Errors
    /// The engine's.
    pub async fn throwaways(&self) -> Result<Vec<String>, Error> {
        let filters = serde_json::json!({ "label": [THROWAWAY] }).to_string();
        let listed: Vec<Listed> = self.get(&format!("/containers/json?all=true&filters={}", encoded(&filters))).await?;
        Ok(listed.into_iter().map(|container| container.id).collect())
    }

    pub(super) async fn exec_state(&self, exec: &str) -> Result<Exec, Error> {
        self.get(&format!("/exec/{exec}/json")).await
    }

    /// One GET. The models of bollard fail at states that they do not know, so its connection is used, with our own path, and the bytes
    /// of the answer are read here.
    async fn get<T: DeserializeOwned>(&self, call: &str) -> Result<T, Error> {
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
        let asked = format!("answer {call}");
        let body = bounded(LIMIT, &asked, async {
            let mut chunks = std::pin::pin!(docker.export_container("any"));
            let mut body = Vec::new();
            while let Some(chunk) = chunks.try_next().await? {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_ANSWER {
                    break;
                }
            }
            Ok(body)
        });
        let body = body.await?;
        if body.len() > MAX_ANSWER {
            return Err(Error::TooLarge(call.to_owned()));
        }
        serde_json::from_slice(&body).map_err(|source| Error::Answer { call: call.to_owned(), source })
    }
}

/// `call` with an end, and its failure as a sentence.
pub(super) async fn bounded<T>(
    limit: Duration,
    call: &str,
    work: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, message })) => {
            Err(Error::Gone(format!("{message} ({call})")))
        }
        Ok(Err(source)) => Err(Error::Call { call: call.to_owned(), source }),
        Err(_) => Err(Error::Timeout { call: call.to_owned(), after: limit }),
    }
}

/// As a part of a path or a query.
fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}
