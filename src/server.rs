//! The assembly: listeners, the providers' snapshots, the state that follows them, the admin listener, and a graceful stop.
//! Everything that decides is elsewhere; this file starts tasks, connects their channels and ends them in the right order.

pub mod demo;
pub mod listener;
mod publish;
mod view;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::{Config, needs_restart};
use crate::diagnostic::{Diagnostic, render};
use crate::provider::Health;
use crate::provider::files::Stack;
use crate::proxy::Observer;
use crate::proxy::lean::{Lean, POLITE};
use crate::proxy::pingora::Edge;
use crate::state::Live;
use crate::telemetry::Record;
use crate::telemetry::admin;
use crate::telemetry::log::AccessLog;
use crate::telemetry::otlp::{self, Spans};
use crate::telemetry::prometheus::Metrics;
use crate::telemetry::slow::SlowLog;
use crate::upstream::Ledger;

use self::listener::{Acceptor, BindError};
use self::publish::{Publisher, Sources};
use self::view::View;
use self::worker::Workers;

/// Keep-alive connections to upstreams that each worker keeps; too small a pool costs more than anything else in the proxy.
const UPSTREAM_POOL: usize = 4096;

/// A mistake or an obstacle that stops the edge from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    Start(String),
    /// Half an edge that goes on with what it last knew would be silent about it.
    #[error("a part of the edge ended by itself: {0}")]
    Part(tokio::task::JoinError),
    #[error("cannot watch signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Reads the configuration again with everything that was given on the command line; findings when it is not usable.
pub type Reload = Box<dyn Fn() -> Result<Config, Vec<Diagnostic>> + Send + Sync>;

/// All that a start needs.
#[derive(Default)]
pub struct Options {
    pub config: Config,
    /// For SIGHUP; without it the configuration stays as it is.
    pub reload: Option<Reload>,
    /// Stack files whose services are served beside Docker's; watched.
    pub files: Vec<PathBuf>,
    /// The demo's stack is served, with these variables.
    pub demo: Option<BTreeMap<String, String>>,
}

/// Requests end here: one line in the access log, a few counters, where it is wanted a warning and spans.
struct Recorder {
    log: AccessLog,
    metrics: Arc<Metrics>,
    slow: Option<SlowLog>,
    spans: Option<Spans>,
}

impl Observer for Recorder {
    fn finished(&self, record: &Record<'_>) {
        self.metrics.record(record);
        self.log.write(record);
        if let Some(slow) = &self.slow {
            slow.write(record);
        }
        if let Some(spans) = &self.spans {
            spans.write(record);
        }
    }
}

/// The proxy application of one worker, on our own runtime: no pingora `Server`, so signals, sockets and the order of a stop are
/// ours. Each worker has its own, and so its own pool: a kept connection is watched by a task on the runtime that kept it, and
/// whoever takes it from another thread has to wait for that task, often in vain.
fn application(live: Arc<Live>, ledger: Arc<Ledger>, recorder: Arc<Recorder>, config: &Config) -> HttpProxy<Edge> {
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: UPSTREAM_POOL, ..ServerConf::default() };
    let mut proxy = http_proxy(&Arc::new(conf), Edge::new(live, ledger, recorder));
    let mut options = HttpServerOptions::default();
    options.h2c = config.proxy.h2c;
    options.h2_idle_timeout = Some(config.proxy.keep_alive);
    proxy.server_options = Some(options);
    proxy
}

/// Ends what flows, politely: no new connections, answers say `Connection: close`, then idle ones are closed, then
/// `drain` is waited for. Returns how many connections had to be cut.
async fn drain(proxies: &[Arc<HttpProxy<Edge>>], connections: &TaskTracker, stop: &watch::Sender<bool>, limit: Duration) -> usize {
    stop.send_replace(true);
    connections.close();
    if tokio::time::timeout(POLITE.min(limit), connections.wait()).await.is_ok() {
        return 0;
    }
    for proxy in proxies {
        ServerApp::cleanup(proxy.as_ref()).await;
    }
    match tokio::time::timeout(limit.saturating_sub(POLITE), connections.wait()).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    }
}

/// A serving edge.
pub struct Running {
    /// Where it listens, with the ports that were really given.
    pub http: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    /// One a worker.
    proxies: Vec<Arc<HttpProxy<Edge>>>,
    connections: TaskTracker,
    stop: watch::Sender<bool>,
    /// Ends the providers, once nothing flows any more.
    ended: DropGuard,
    config: watch::Sender<Arc<Config>>,
    reload: Option<Reload>,
    recorder: Arc<Recorder>,
    tasks: JoinSet<()>,
    workers: Workers,
}

/// Starts the edge: binds first, so that a taken port is said at once; then asks for the services; then serves.
///
/// # Errors
/// When an address cannot be bound or the access log cannot be opened.
pub async fn start(options: Options) -> Result<Running, Error> {
    let Options { config, reload, files, demo } = options;
    refuse_missing_authorities()?;
    let config = Arc::new(config);
    let listeners = config.http.listen.iter().map(|address| listener::bind(*address)).collect::<Result<Vec<_>, _>>()?;
    let admin = config.admin.listen.map(listener::bind).transpose()?;
    if !config.https.listen.is_empty() {
        tracing::warn!(listen = ?config.https.listen, "TLS is not built in so far: the HTTPS addresses are not listened on");
    }
    let (spans, exporter) = otlp::open(&config.otlp).map_err(Error::Start)?.unzip();
    let recorder = Arc::new(Recorder {
        log: AccessLog::open(&config.access_log).map_err(Error::Start)?,
        metrics: Arc::new(Metrics::new()),
        slow: config.log.slow_request.map(SlowLog::new),
        spans,
    });
    let (ended, health) = (CancellationToken::new(), Arc::new(Health::default()));
    let mut tasks = JoinSet::new();
    if let Some(exporter) = exporter {
        tasks.spawn(exporter.run());
    }
    let (config_sender, config_receiver) = watch::channel(config.clone());
    let sources = Sources::start(&config, stacks(files, demo), health.clone(), &ended, &mut tasks).await;
    let publisher = Publisher::new(config_receiver, sources, recorder.metrics.clone());
    let (stop, stopping) = watch::channel(false);
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(config.proxy.max_connections));
    let local = |listener: &TcpListener| listener.local_addr().map_err(|error| Error::Start(format!("a listener has no address: {error}")));
    let http = listeners.iter().map(local).collect::<Result<Vec<_>, _>>()?;
    let admin_address = admin.as_ref().map(local).transpose()?;
    let listeners = listeners.into_iter().map(TcpListener::into_std).collect::<std::io::Result<Vec<_>>>().map_err(worker_error)?;
    let (mut workers, mut proxies) = (Workers::default(), Vec::new());
    for _ in 0..workers_wanted(&config) {
        let (live, ledger) = (publisher.live.clone(), publisher.ledger.clone());
        let proxy = Arc::new(application(live.clone(), ledger.clone(), recorder.clone(), &config));
        proxies.push(proxy.clone());
        let lean = Arc::new(Lean::new(proxy, live, ledger, recorder.clone(), stopping.clone()));
        let acceptor = Acceptor { lean, places: places.clone(), connections: connections.clone(), stopping: stopping.clone() };
        workers.start(&listeners, acceptor, &ended, &mut tasks).map_err(worker_error)?;
    }
    if let Some(listener) = admin {
        let view = View {
            live: publisher.live.clone(),
            ledger: publisher.ledger.clone(),
            recorder: recorder.clone(),
            health,
            connections: connections.clone(),
            runtimes: workers.runtimes().chain([tokio::runtime::Handle::current().metrics()]).collect(),
            docker: config.docker.enabled,
        };
        tasks.spawn(admin::serve(listener, Arc::new(view.admin()), stopping.clone()));
    }
    tasks.spawn(publisher.follow());
    tracing::info!(http = ?http, admin = ?admin_address, "serving");
    let ended = ended.drop_guard();
    Ok(Running { http, admin: admin_address, proxies, connections, stop, ended, config: config_sender, reload, recorder, tasks, workers })
}

fn worker_error(error: std::io::Error) -> Error {
    Error::Start(format!("cannot start the worker threads: {error}"))
}

/// One a core, unless the configuration says otherwise.
fn workers_wanted(config: &Config) -> usize {
    match config.proxy.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

impl Running {
    /// Stops politely: nothing new is accepted, what flows is finished within `proxy.drain`. Returns how many connections were cut.
    pub async fn stop(mut self) -> usize {
        let limit = self.config.borrow().proxy.drain;
        let cut = drain(&self.proxies, &self.connections, &self.stop, limit).await;
        if let Some(spans) = &self.recorder.spans {
            spans.flush().await;
        }
        drop(self.ended);
        self.workers.join().await;
        self.tasks.shutdown().await;
        cut
    }

    /// From where [`Running::reload`] reads.
    pub fn reload_from(&mut self, reload: Reload) {
        self.reload = Some(reload);
    }

    /// Reads the configuration again and reopens the access log. An unusable file changes nothing.
    pub fn reload(&self) {
        self.recorder.log.reopen();
        let Some(reload) = &self.reload else { return };
        match reload() {
            Ok(config) => {
                let restart = needs_restart(&self.config.borrow(), &config);
                if !restart.is_empty() {
                    tracing::warn!(settings = ?restart, "these settings changed and need a restart");
                }
                self.config.send_replace(Arc::new(config));
                tracing::info!("the configuration was read again");
            }
            Err(findings) => tracing::error!("the configuration is not usable, the old one stays:\n{}", render(&findings, false)),
        }
    }
}

/// Serves until SIGTERM or SIGINT; SIGHUP reloads. `announce` is called once the edge serves.
///
/// # Errors
/// As [`start`], and when signals cannot be watched.
pub async fn run(options: Options, announce: impl FnOnce(&Running)) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let mut running = start(options).await?;
    announce(&running);
    let mut broken = None;
    while broken.is_none() {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload(),
            Some(ended) = running.tasks.join_next() => broken = ended.err(),
        }
    }
    if let Some(error) = &broken {
        tracing::error!(%error, "a part of the edge ended by itself; stopping, so that it is started again as a whole");
    }
    tracing::info!("stopping: finishing what flows; a second signal cuts it");
    let cut = tokio::select! {
        cut = running.stop() => cut,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    match cut {
        0 => tracing::info!("stopped, nothing was cut"),
        cut => tracing::warn!(cut, "stopped; connections were still busy at the end of proxy.drain"),
    }
    broken.map_or(Ok(()), |error| Err(Error::Part(error)))
}

fn stacks(files: Vec<PathBuf>, demo: Option<BTreeMap<String, String>>) -> Vec<Stack> {
    let demo = demo.map(|variables| Stack::Text(demo::STACK_PATH.to_owned(), demo::STACK.to_owned(), variables));
    files.into_iter().map(Stack::File).chain(demo).collect()
}

/// pingora panics where SSL_CERT_FILE names a file that is not there; a sentence is better.
fn refuse_missing_authorities() -> Result<(), Error> {
    match std::env::var_os("SSL_CERT_FILE").map(PathBuf::from) {
        Some(path) if !path.exists() => {
            Err(Error::Start(format!("SSL_CERT_FILE names {}, which does not exist: unset it or install ca-certificates", path.display())))
        }
        _ => Ok(()),
    }
}
