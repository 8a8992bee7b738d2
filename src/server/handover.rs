//! The running edge's side of an upgrade: it answers at the upgrade socket, starts new binaries, and gives its listening
//! sockets to the first that serves. Until then nothing changes for it, whatever the other side does.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex as Turn, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::program::Program;
use super::talk::{PROMPT, Talk};
use crate::config::Config;
use crate::handover::{Answer, Ask, MAX_LISTENERS, Place};

/// How long a new process may take until it serves.
pub const READY: Duration = Duration::from_secs(60);
/// Conversations at one time; more wait.
const TALKS: usize = 8;
/// How often a started process is looked at, and how long the loop rests when there are no descriptors left.
const LOOK: Duration = Duration::from_millis(50);
/// What was asked is answered before the process ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    pub pid: u32,
    /// It was started by this process.
    pub is_child: bool,
}

/// What can be handed over, and to whom it was.
pub struct Handover {
    listeners: Mutex<Vec<(SocketAddr, StdListener)>>,
    config: watch::Receiver<Arc<Config>>,
    successor: watch::Sender<Option<Successor>>,
    /// One at a time takes, one at a time is started.
    taking: Turn<()>,
    starting: Turn<()>,
    child: AtomicU32,
    closed: CancellationToken,
    talks: TaskTracker,
    socket: Option<Socket>,
    program: Program,
}

/// The upgrade socket, with what tells whether it is still ours.
struct Socket {
    path: PathBuf,
    identity: Option<(u64, u64)>,
    descriptor: OwnedFd,
}

impl Handover {
    /// Offers `listeners`, by the addresses of the configuration, and answers at `socket` from now on; without one nothing is
    /// ever handed over.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn start(
        listeners: Vec<(SocketAddr, StdListener)>,
        config: watch::Receiver<Arc<Config>>,
        socket: Option<(UnixListener, PathBuf)>,
        program: Program,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<Arc<Handover>> {
        let (answering, socket) = match socket {
            Some((answering, path)) => {
                let descriptor = answering.as_fd().try_clone_to_owned()?;
                (Some(answering), Some(Socket { identity: identity(&path), path, descriptor }))
            }
            None => (None, None),
        };
        let this = Arc::new(Handover {
            listeners: Mutex::new(listeners),
            config,
            successor: watch::Sender::new(None),
            taking: Turn::default(),
            starting: Turn::default(),
            child: AtomicU32::new(0),
            closed: CancellationToken::new(),
            talks: TaskTracker::new(),
            socket,
            program,
        });
        if let Some(answering) = answering {
            tasks.spawn(this.clone().serve(answering));
        }
        Ok(this)
    }

    /// Answers until there is a successor or the edge stops.
    async fn serve(self: Arc<Self>, socket: UnixListener) {
        let places = Arc::new(Semaphore::new(TALKS));
        loop {
            let next = async { (places.clone().acquire_owned().await.ok(), socket.accept().await) };
            let Some((place, accepted)) = self.closed.run_until_cancelled(next).await else { return };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let this = self.clone();
            self.talks.spawn(async move {
                let talked = match Talk::with(stream) {
                    Ok(talk) => this.talk(talk).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = talked {
                    tracing::warn!(%error, "a talk at the upgrade socket broke off; nothing changes");
                }
                drop(place);
            });
        }
    }

    async fn talk(&self, mut talk: Talk) -> io::Result<()> {
        let answer = match talk.hear(PROMPT).await {
            Ok(Ask::Take { listen, network }) => match self.taking.try_lock() {
                Ok(_turn) => return self.give(talk, Place { listen: &listen, network: network.as_deref() }).await,
                Err(_) => refused("another edge is taking over just now"),
            },
            Ok(Ask::Start { binary }) => match self.upgrade(binary).await {
                Ok(new) => Answer::Upgraded { old: std::process::id(), new, drain_seconds: self.drain_seconds() },
                Err(reason) => refused(reason),
            },
            Ok(Ask::Who) => Answer::Serving { pid: std::process::id() },
            Ok(Ask::Ready { .. }) => refused("nothing was taken that this could end"),
            // It only looked whether somebody is there.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => {
                talk.say(&refused(&error), &[]).await?;
                return Err(error);
            }
        };
        talk.say(&answer, &[]).await
    }

    /// Gives copies of the listening sockets, waits until they are served elsewhere, and lets go.
    async fn give(&self, mut talk: Talk, other: Place<'_>) -> io::Result<()> {
        let Some(listeners) = self.copies()? else { return talk.say(&refused("this edge is stopping"), &[]).await };
        let child = self.child.load(Ordering::Relaxed);
        let is_child = child != 0 && talk.peer() == Some(child);
        let given: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
        let (own, network) = (self.config.borrow().clone(), network());
        let listen = own.listen();
        let own = Place { listen: &listen, network: network.as_deref() };
        if let (false, Some(reason)) = (is_child, other.is_not(&own)) {
            return talk.say(&refused(reason), &[]).await;
        }
        let Some(socket) = &self.socket else { return Ok(()) };
        let descriptors: Vec<BorrowedFd<'_>> =
            std::iter::once(socket.descriptor.as_fd()).chain(listeners.iter().map(|(_, listener)| listener.as_fd())).collect();
        talk.say(&Answer::Listeners { listeners: given, pid: std::process::id() }, &descriptors).await?;
        drop(listeners);
        let pid = match talk.hear(READY).await {
            Ok(Ask::Ready { pid }) => pid,
            Ok(other) => return Err(io::Error::other(format!("{other:?} instead of being ready"))),
            Err(error) => {
                tracing::warn!(%error, "an edge took the listening sockets and did not come to serve; this one goes on");
                return Ok(());
            }
        };
        if self.closed.is_cancelled() {
            return talk.say(&refused("this edge is stopping"), &[]).await;
        }
        self.closed.cancel();
        self.successor.send_replace(Some(Successor { pid, is_child }));
        talk.say(&Answer::Released { drain_seconds: self.drain_seconds() }, &[]).await
    }

    /// From now on this socket is given too, unless the edge has been replaced already.
    pub fn offer(&self, address: SocketAddr, listener: &TcpListener) {
        let copy = listener.as_fd().try_clone_to_owned();
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match copy {
            Ok(_) if self.closed.is_cancelled() => {}
            Ok(copy) => listeners.push((address, copy.into())),
            Err(error) => tracing::warn!(%error, %address, "this socket cannot be handed over: a successor listens there anew"),
        }
    }

    /// This socket is given no more, and closes.
    pub fn withdraw(&self, address: SocketAddr) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != address);
    }

    /// `None` once there is nothing to give.
    fn copies(&self) -> io::Result<Option<Vec<(SocketAddr, StdListener)>>> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = listeners.iter().take(MAX_LISTENERS).map(|(address, listener)| Ok((*address, listener.try_clone()?)));
        let copies = copies.collect::<io::Result<Vec<_>>>()?;
        Ok((!copies.is_empty() && !self.closed.is_cancelled()).then_some(copies))
    }

    /// Starts `binary`, or this process's own path, as this process was started, and waits until it serves in its place.
    async fn upgrade(&self, binary: Option<PathBuf>) -> Result<u32, String> {
        let Ok(_turn) = self.starting.try_lock() else { return Err("another upgrade is under way".to_owned()) };
        if self.socket.is_none() {
            return Err("upgrades are switched off: set upgrade.socket, and state.directory if that is relative".to_owned());
        }
        let (binary, mut child) = self.program.spawn(binary)?;
        let pid = child.id();
        self.child.store(pid, Ordering::Relaxed);
        let (mut successor, began) = (self.successor.subscribe(), Instant::now());
        loop {
            if let Ok(Ok(served)) = tokio::time::timeout(LOOK, successor.wait_for(Option::is_some)).await {
                return Ok(served.map_or(pid, |successor| successor.pid));
            }
            let why = match child.try_wait() {
                Ok(None) if began.elapsed() < READY => continue,
                Ok(None) => format!("did not serve within {} s", READY.as_secs()),
                Ok(Some(status)) => format!("ended ({status}) before it served; the log of the edge has its reasons"),
                Err(error) => format!("cannot be watched: {error}"),
            };
            self.child.store(0, Ordering::Relaxed);
            // It may have ended already; a process that is not waited for stays in the table.
            _ = child.kill().and_then(|()| child.wait());
            return Err(format!("{} {why}", binary.display()));
        }
    }

    /// The same for a signal, whose sender looks into the log.
    pub fn start_aloud(self: Arc<Self>) {
        let this = self.clone();
        self.talks.spawn(async move {
            if let Err(reason) = this.upgrade(None).await {
                tracing::error!("no upgrade, this edge goes on: {reason}");
            }
        });
    }

    /// Waits for a successor.
    pub async fn handed(&self) -> Successor {
        let mut successor = self.successor.subscribe();
        let served = successor.wait_for(Option::is_some).await.ok().and_then(|successor| *successor);
        match served {
            Some(successor) => successor,
            // The sender is in `self`, so this does not happen.
            None => std::future::pending().await,
        }
    }

    /// Does another edge serve now?
    pub fn has_successor(&self) -> bool {
        self.successor.borrow().is_some()
    }

    /// The upgrade socket.
    pub fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(|socket| socket.path.as_path())
    }

    /// Lets the listening sockets go; with a successor they live on there. The rest of a talk is said.
    pub async fn close(&self) {
        self.closed.cancel();
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let ours = self.socket.as_ref().filter(|socket| socket.identity.is_some() && socket.identity == identity(&socket.path));
        if let (None, Some(socket)) = (*self.successor.borrow(), ours) {
            // Whoever starts next finds nobody either way.
            _ = std::fs::remove_file(&socket.path);
        }
        self.talks.close();
        if self.successor.borrow().is_some() {
            // Longer ones are with processes that came too late.
            _ = tokio::time::timeout(LAST_WORDS, self.talks.wait()).await;
        }
    }

    fn drain_seconds(&self) -> u64 {
        self.config.borrow().proxy.drain.as_secs()
    }
}

/// Copies of the listening sockets, by the addresses that were configured for them.
///
/// # Errors
/// The process is out of file descriptors.
pub fn copies(
    config: &Config,
    http: &[TcpListener],
    https: &[TcpListener],
    admin: Option<&TcpListener>,
) -> io::Result<Vec<(SocketAddr, StdListener)>> {
    let addresses = config.http.listen.iter().chain(&config.https.listen).chain(&config.admin.listen);
    let sockets = http.iter().chain(https).chain(admin);
    addresses.zip(sockets).map(|(address, socket)| copy(*address, socket)).collect()
}

/// One socket's copy.
///
/// # Errors
/// As [`copies`].
pub fn copy(address: SocketAddr, socket: &TcpListener) -> io::Result<(SocketAddr, StdListener)> {
    Ok((address, socket.as_fd().try_clone_to_owned()?.into()))
}

/// The network namespace of this process: descriptors stay in the one that they were made in.
pub fn network() -> Option<String> {
    std::fs::read_link("/proc/self/ns/net").ok()?.into_os_string().into_string().ok()
}

fn refused(reason: impl ToString) -> Answer {
    Answer::Refused { reason: reason.to_string() }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|data| (data.dev(), data.ino()))
}
