//! The assembly: listeners, the providers' snapshots, the state that follows them, the admin listener, and a graceful stop.
//! Everything that decides is elsewhere; this file starts tasks, connects their channels and ends them in the right order.

mod admission;
mod census;
mod certify;
mod credentials;
pub mod demo;
mod descriptors;
pub mod guests;
pub mod handover;
mod hello;
mod holder;
mod inherit;
mod init;
pub mod listener;
mod notify;
mod outlook;
mod places;
mod ports;
mod probes;
mod program;
mod publish;
mod saving;
pub mod secrecy;
mod signing;
mod standing;
pub mod talk;
mod terminate;
mod view;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pingora_core::apps::{HttpServerOptions, ServerApp};
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::auth::gate::Gate;
use crate::certificate;
use crate::certificate::challenge::Challenges;
use crate::config::{self, Config, DefaultCertificate, needs_restart};
use crate::diagnostic::{Diagnostic, render};
use crate::handover::stays;
use crate::provider::Health;
use crate::provider::files::Stack;
use crate::proxy::Observer;
use crate::proxy::conduit::Conduit;
use crate::proxy::lean::Lean;
use crate::proxy::limit::Limits;
use crate::proxy::pingora::Edge;
use crate::state::Live;
use crate::store::Store;
use crate::telemetry::Record;
use crate::telemetry::admin;
use crate::telemetry::log::AccessLog;
use crate::telemetry::otlp::{self, Spans};
use crate::telemetry::prometheus::Metrics;
use crate::telemetry::slow::SlowLog;
use crate::upstream::Ledger;

use self::admission::Admission;
use self::certify::Certifier;
use self::credentials::{Credentials, Files, default_entry, open_store};
use self::handover::{Handover, Successor};
use self::inherit::Inherited;
use self::listener::{Acceptor, BindError};
use self::ports::Ports;
use self::program::Program;
use self::publish::{Publisher, Sources};
use self::saving::Saving;
use self::signing::Signing;
use self::view::View;
use self::worker::Workers;

/// Keep-alive connections to upstreams that each worker keeps; too small a pool costs more than anything else in the proxy.
const UPSTREAM_POOL: usize = 4096;
/// Bytes of bodies that a client may send ahead on all its streams together; one stream may take 64 KB of it, so a stalled
/// upload does not stop its neighbours.
const H2_CONNECTION_WINDOW: u32 = 512 * 1024;
/// Bytes of answers that wait on one stream.
const H2_SEND_BUFFER: usize = 64 * 1024;
/// Streams that are remembered after a reset, and resets that are allowed for a client's mistakes.
const H2_RESET_STREAMS: usize = 50;

/// Idle connections stay so long once the edge stops: clients need a moment to see that.
const POLITE: Duration = Duration::from_secs(2);
/// And at least so long before the rest is cut, where that is possible.
const LAST_SECOND: Duration = Duration::from_secs(1);
/// A signal that comes so soon after another is the same one.
const ECHO: Duration = Duration::from_millis(500);

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
fn application(
    live: Arc<Live>,
    ledger: Arc<Ledger>,
    recorder: Arc<Recorder>,
    limits: Arc<Limits>,
    (challenges, gate): (Arc<Challenges>, Arc<Gate>),
    config: &Config,
) -> HttpProxy<Edge> {
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: UPSTREAM_POOL, ..ServerConf::default() };
    let mut proxy = http_proxy(&Arc::new(conf), Edge::new(live, ledger, recorder, limits, challenges, gate));
    let mut options = HttpServerOptions::default();
    options.h2c = config.proxy.h2c;
    options.h2_idle_timeout = Some(config.proxy.keep_alive);
    // pingora counts the requests after the first.
    options.keepalive_request_limit = config.proxy.max_requests_per_connection.map(|count| count.saturating_sub(1));
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options(&config.proxy));
    proxy
}

/// What one HTTP/2 connection may cost. Floods of frames that carry nothing are bounded in `proxy::frames`.
fn h2_options(limits: &config::Proxy) -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buffer_size(H2_SEND_BUFFER)
        .max_concurrent_reset_streams(H2_RESET_STREAMS)
        .max_local_error_reset_streams(Some(H2_RESET_STREAMS))
        .max_pending_accept_reset_streams(H2_RESET_STREAMS);
    options
}

/// A serving edge.
pub struct Running {
    /// Where it listens, with the ports that were really given.
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// PEM: of the authority of its own, where certificates come from it.
    pub internal_root: Option<String>,
    pub admin: Option<SocketAddr>,
    /// One a worker.
    proxies: Vec<Arc<HttpProxy<Edge>>>,
    connections: TaskTracker,
    stop: watch::Sender<bool>,
    /// Ends connections without a request.
    idle_end: CancellationToken,
    /// Ends the providers, once nothing flows any more.
    ended: DropGuard,
    config: watch::Sender<Arc<Config>>,
    reload: Option<Reload>,
    recorder: Arc<Recorder>,
    tasks: JoinSet<()>,
    workers: Workers,
    handover: Arc<Handover>,
    /// Its end would be taken for the service's end.
    stays: bool,
}

/// Starts the edge: binds first, or takes over from a running one, so that a taken port is said at once; then asks for the
/// services; then serves; then ends the running one.
///
/// # Errors
/// When an address cannot be bound or the access log cannot be opened; a running edge then goes on.
pub async fn start(options: Options) -> Result<Running, Error> {
    let Options { config, reload, files, demo } = options;
    refuse_missing_authorities()?;
    let (program, mut config) = (Program::of_this_process(), config);
    let mut inherited = Inherited::ask(&config).await;
    let mut bind = |addresses: &[SocketAddr]| addresses.iter().map(|address| inherited.listener(*address)).collect::<Result<Vec<_>, _>>();
    let (http, https) = (bind(&config.http.listen)?, bind(&config.https.listen)?);
    // Redirects name the port that was really given.
    if let (None, Some(Ok(given))) = (config.https.public_port, https.first().map(TcpListener::local_addr)) {
        config.https.public_port = Some(given.port());
    }
    let config = Arc::new(config);
    let admin = config.admin.listen.map(|address| inherited.listener(address)).transpose()?;
    let mut copies = handover::copies(&config, &http, &https, admin.as_ref()).map_err(worker_error)?;
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
    if inherited.is_upgrade() && !sources.have_spoken() {
        return Err(Error::Start("Docker does not say which services there are; the running edge knows, and goes on".to_owned()));
    }
    let files = given_files(&config, &mut tasks).await;
    let store = open_store(&config)?;
    let internal_root = internal_root(&config, &*store).await?;
    let signing = Signing::open(&config, store.clone(), &mut tasks).await?;
    let gate = signing.gate.clone();
    let publisher = Publisher::new(config_receiver, sources, files.clone(), signing.unknown(), recorder.metrics.clone());
    let limits = publisher.limits.clone();
    let ports = ports::first(&publisher.live.load(), &mut inherited);
    for (address, listener) in &ports {
        copies.push(handover::copy(*address, listener).map_err(worker_error)?);
    }
    let admission = Arc::new(Admission::new(config.proxy.max_connections_per_client, Instant::now()));
    let (stop, stopping) = watch::channel(false);
    let idle_end = CancellationToken::new();
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(config.proxy.max_connections));
    let crowd = Arc::new(Notify::new());
    let local = |listener: &TcpListener| listener.local_addr().map_err(|error| Error::Start(format!("a listener has no address: {error}")));
    let addresses = |listeners: &[TcpListener]| listeners.iter().map(local).collect::<Result<Vec<_>, _>>();
    let (http_addresses, https_addresses) = (addresses(&http)?, addresses(&https)?);
    let admin_address = admin.as_ref().map(local).transpose()?;
    let unbound = |listeners: Vec<TcpListener>| listeners.into_iter().map(TcpListener::into_std).collect::<std::io::Result<Vec<_>>>();
    let (http, https) = (unbound(http).map_err(worker_error)?, unbound(https).map_err(worker_error)?);
    let challenges = Arc::<Challenges>::default();
    let records = watch::Sender::<Arc<Vec<certificate::record::Record>>>::default();
    let mut credentials = Credentials::new(&config, default_entry()?, challenges.clone(), publisher.live.clone())?;
    let terminator = credentials.terminator.clone();
    let obtained = records.subscribe();
    let certifier = Certifier::open(config.clone(), store.clone(), challenges.clone(), publisher.live.clone(), files.clone(), records);
    let certifier = certifier.await.map_err(|error| Error::Start(format!("certificates cannot be read: {error}")))?;
    credentials.look(&obtained, &files);
    let saving = Saving::new(config.clone(), publisher.live.clone(), store.clone());
    let standing = saving.as_ref().map(Saving::standing);
    let conduit = Conduit { ledger: publisher.ledger.clone(), observer: recorder.clone() };
    let (mut workers, mut proxies) = (Workers::default(), Vec::new());
    for _ in 0..workers_wanted(&config) {
        let (live, ledger) = (publisher.live.clone(), publisher.ledger.clone());
        let asked = (challenges.clone(), gate.clone());
        let proxy = Arc::new(application(live.clone(), ledger.clone(), recorder.clone(), limits.clone(), asked, &config));
        proxies.push(proxy.clone());
        let lean = Lean::new(
            proxy,
            live.clone(),
            ledger,
            recorder.clone(),
            limits.clone(),
            challenges.clone(),
            gate.clone(),
            crowd.clone(),
            stopping.clone(),
            idle_end.clone(),
        );
        let acceptor = Acceptor {
            lean: Arc::new(lean),
            places: places.clone(),
            crowd: crowd.clone(),
            connections: connections.clone(),
            live,
            admission: admission.clone(),
            proxy_protocol: config.http.proxy_protocol,
            terminator: None,
            conduit: conduit.clone(),
            stopping: stopping.clone(),
        };
        let secured = Acceptor { proxy_protocol: config.https.proxy_protocol, terminator: Some(terminator.clone()), ..acceptor.clone() };
        let listeners =
            http.iter().map(|listener| (listener, acceptor.clone())).chain(https.iter().map(|listener| (listener, secured.clone())));
        workers.start(listeners, &ended, &mut tasks).map_err(worker_error)?;
    }
    if let Some(listener) = admin {
        let view = View {
            live: publisher.live.clone(),
            ledger: publisher.ledger.clone(),
            limits: limits.clone(),
            recorder: recorder.clone(),
            health,
            certificates: certifier.ledger(),
            store: store.clone(),
            gate,
            backups: Box::new(move || standing.as_ref().map(standing::Standing::now)),
            connections: connections.clone(),
            admission: admission.clone(),
            runtimes: workers.runtimes().chain([tokio::runtime::Handle::current().metrics()]).collect(),
            docker: config.docker.enabled,
        };
        tasks.spawn(admin::serve(listener, Arc::new(view.admin()), stopping.clone()));
    }
    tasks.spawn(limits.tend());
    tasks.spawn(probes::follow(publisher.live.clone(), publisher.ledger.clone(), publisher.swapped.subscribe()));
    tasks.spawn(credentials.follow(obtained, files, publisher.swapped.subscribe()));
    tasks.spawn(certifier.run(publisher.swapped.subscribe(), stopping.clone()));
    signing.start(publisher.live.clone(), publisher.swapped.subscribe(), &mut tasks);
    if let Some(saving) = saving {
        tasks.spawn(saving.run(stopping.clone()));
    }
    let claimed = publisher.swapped.subscribe();
    let streams = Ports {
        conduit,
        live: publisher.live.clone(),
        places,
        crowd,
        connections: connections.clone(),
        admission,
        workers: workers.handles(),
        turn: AtomicUsize::new(0),
        stopping,
    };
    tasks.spawn(publisher.follow());
    let stays = stays(std::process::id(), notify::is_heard(), inherited.follows_its_parent());
    let socket = inherited.ready().await?;
    let handover = Handover::start(copies, config_sender.subscribe(), socket, program, &mut tasks).map_err(worker_error)?;
    tasks.spawn(streams.follow(ports, claimed, handover.clone()));
    tracing::info!(http = ?http_addresses, https = ?https_addresses, admin = ?admin_address, "serving");
    let ended = ended.drop_guard();
    Ok(Running {
        http: http_addresses,
        https: https_addresses,
        internal_root,
        admin: admin_address,
        proxies,
        connections,
        stop,
        idle_end,
        ended,
        config: config_sender,
        reload,
        recorder,
        tasks,
        workers,
        handover,
        stays,
    })
}

/// The root that clients have to trust where all certificates come from our own authority.
async fn internal_root(config: &Config, store: &dyn Store) -> Result<Option<String>, Error> {
    if config.certificates.default != DefaultCertificate::Internal || config.https.listen.is_empty() {
        return Ok(None);
    }
    let authority = certificate::local::authority(store, Timestamp::now()).await;
    authority.map(|authority| Some(authority.root_pem().to_owned())).map_err(|error| Error::Start(error.to_string()))
}

/// The certificates that the user gives, read and watched.
async fn given_files(config: &Config, tasks: &mut JoinSet<()>) -> Files {
    let Some(directory) = config.certificates.directory.clone() else { return watch::Sender::default().subscribe() };
    let (found, stamps) = certificate::files::read(&directory).await;
    let (updates, files) = watch::channel(Arc::new(found));
    tasks.spawn(certificate::files::follow(directory, stamps, updates));
    files
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
        self.handover.close().await;
        let limit = self.config.borrow().proxy.drain;
        let cut = self.drain(limit).await;
        if let Some(spans) = &self.recorder.spans {
            spans.flush().await;
        }
        drop(self.ended);
        self.workers.join().await;
        self.tasks.shutdown().await;
        cut
    }

    /// Ends what flows: answers say `Connection: close`, then idle connections are closed, then the others are waited for. Returns
    /// how many connections had to be cut.
    async fn drain(&self, limit: Duration) -> usize {
        self.stop.send_replace(true);
        self.connections.close();
        let (polite, rest) = patience(limit, self.handover.has_successor());
        if tokio::time::timeout(polite, self.connections.wait()).await.is_ok() {
            return 0;
        }
        self.idle_end.cancel();
        for proxy in &self.proxies {
            ServerApp::cleanup(proxy.as_ref()).await;
        }
        match tokio::time::timeout(rest, self.connections.wait()).await {
            Ok(()) => 0,
            Err(_) => self.connections.len(),
        }
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

/// Serves until SIGTERM or SIGINT, or until another one took over; SIGHUP reloads, SIGUSR2 upgrades. `announce` is called once
/// the edge serves. Returns the exit code.
///
/// # Errors
/// As [`start`], and when signals cannot be watched.
pub async fn run(options: Options, announce: impl FnOnce(&Running)) -> Result<u8, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    if let Some(shortage) = descriptors::shortage(descriptors::raise(), options.config.proxy.max_connections) {
        tracing::warn!("{shortage}");
    }
    let mut upgrade = signal(SignalKind::user_defined2()).map_err(Error::Signals)?;
    let mut running = start(options).await?;
    notify::tell("READY=1");
    announce(&running);
    let handover = running.handover.clone();
    let mut broken = None;
    while broken.is_none() {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload(),
            _ = upgrade.recv() => handover.clone().start_aloud(),
            successor = handover.handed() => return hand_over(running, successor).await,
            Some(ended) = running.tasks.join_next() => broken = ended.err(),
        }
    }
    if let Some(error) = &broken {
        tracing::error!(%error, "a part of the edge ended by itself; stopping, so that it is started again as a whole");
    }
    notify::tell("STOPPING=1");
    tracing::info!("stopping: finishing what flows; a second signal cuts it");
    let cut = tokio::select! {
        cut = running.stop() => cut,
        () = again(&mut terminate, &mut interrupt) => return Ok(0),
    };
    say_stopped(cut);
    broken.map_or(Ok(0), |error| Err(Error::Part(error)))
}

/// Waits for a second signal. One at once is the first by another way: sent to the group of processes, and passed on.
async fn again(terminate: &mut Signal, interrupt: &mut Signal) {
    let began = Instant::now();
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if began.elapsed() >= ECHO {
            return;
        }
    }
}

/// The end of an edge whose sockets are served by `successor`: finishes what it has. Signals are the successor's; the limit of the
/// drain is the end of this one. Where its end would be the service's, it stays behind its child.
async fn hand_over(running: Running, successor: Successor) -> Result<u8, Error> {
    tracing::info!(pid = successor.pid, "another edge serves now: finishing what flows here");
    let stays = successor.is_child && running.stays;
    if successor.is_child && !stays {
        // Before this process ends, which else ends the service.
        notify::tell(&format!("MAINPID={}", successor.pid));
    }
    let handover = running.handover.clone();
    let drained = async { say_stopped(running.stop().await) };
    if stays {
        let staying = async {
            drained.await;
            std::future::pending().await
        };
        return tokio::select! {
            code = init::attend(successor.pid, handover.path()) => code.map_err(Error::Signals),
            () = staying => Ok(0),
        };
    }
    drained.await;
    Ok(0)
}

/// How long idle connections may stay, and how long the others after that. A client may send a request in the moment in which its
/// idle connection is closed; so where another edge serves and nobody waits for this one's end, it gets as long as there is to
/// hear of it by an answer instead.
fn patience(limit: Duration, has_successor: bool) -> (Duration, Duration) {
    let polite = if has_successor { limit.saturating_sub(LAST_SECOND).max(POLITE) } else { POLITE };
    let polite = polite.min(limit);
    (polite, limit - polite)
}

fn say_stopped(cut: usize) {
    match cut {
        0 => tracing::info!("stopped, nothing was cut"),
        cut => tracing::warn!(cut, "stopped; connections were still busy at the end of proxy.drain"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_have_longer_where_another_edge_serves() {
        // limit, with a successor, how long idle ones stay, the rest
        for (limit, has_successor, idle, rest) in
            [(30, false, 2, 28), (30, true, 29, 1), (8, true, 7, 1), (2, true, 2, 0), (1, false, 1, 0), (1, true, 1, 0), (0, true, 0, 0)]
        {
            let wanted = (Duration::from_secs(idle), Duration::from_secs(rest));
            assert_eq!(patience(Duration::from_secs(limit), has_successor), wanted, "{limit}");
        }
    }
}
