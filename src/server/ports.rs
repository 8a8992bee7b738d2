//! The ports of TCP routes: listened on for as long as a route has them. A connection that is accepted goes to one of the workers and
//! stays there, and lives on when its port is given up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Admitted};
use super::handover::Handover;
use super::holder;
use super::inherit::Inherited;
use super::listener::{self, REST, is_about_one_connection};
use crate::proxy::conduit::Conduit;
use crate::proxy::forwarded;
use crate::proxy::stream::PerConnection;
use crate::state::{Live, State};

/// How often a port is tried again that could not be listened on.
const AGAIN: Duration = Duration::from_millis(250);

/// What all ports share.
pub struct Ports {
    pub conduit: Conduit,
    pub live: Arc<Live>,
    /// Free places for connections, and who is notified where somebody waits for one.
    pub places: Arc<Semaphore>,
    pub crowd: Arc<Notify>,
    pub connections: TaskTracker,
    pub admission: Arc<Admission>,
    /// The workers' runtimes, and whose turn it is.
    pub workers: Vec<Handle>,
    pub turn: AtomicUsize,
    /// True once the edge is stopping.
    pub stopping: watch::Receiver<bool>,
}

/// Sockets with the addresses that the configuration and the labels give them.
pub type Listening = Vec<(SocketAddr, TcpListener)>;

/// Where the state wants TCP routes listened on.
fn wanted(state: &State) -> BTreeSet<SocketAddr> {
    state.streams.keys().map(|port| SocketAddr::new(state.config.tcp.listen, *port)).collect()
}

/// The ports of a starting edge: the running one's, or new ones. What cannot be listened on is tried again later.
pub fn first(state: &State, inherited: &mut Inherited) -> Listening {
    wanted(state).into_iter().filter_map(|address| Some((address, inherited.listener(address).ok()?))).collect()
}

impl Ports {
    /// Opens and closes ports as the state wants it, told by `claimed` of each new one, until the edge stops.
    pub async fn follow(self, first: Listening, mut claimed: watch::Receiver<()>, handover: Arc<Handover>) {
        let this = Arc::new(self);
        let (mut open, mut loops): (BTreeMap<SocketAddr, DropGuard>, _) = (BTreeMap::new(), JoinSet::new());
        let mut failing = BTreeSet::new();
        for (address, listener) in first {
            open.insert(address, this.clone().start(address, listener, &mut loops));
        }
        let mut stopping = this.stopping.clone();
        loop {
            let wanted = wanted(&this.live.load());
            open.retain(|address, _| {
                let stays = wanted.contains(address);
                if !stays {
                    handover.withdraw(*address);
                    tracing::info!(%address, "no TCP route has this port any more: it is closed, and its connections go on");
                }
                stays
            });
            failing.retain(|address| wanted.contains(address));
            for address in wanted.into_iter().filter(|address| !open.contains_key(address)).collect::<Vec<_>>() {
                match listener::bind(address) {
                    Ok(listener) => {
                        handover.offer(address, &listener);
                        tracing::info!(%address, "listening for a TCP route");
                        open.insert(address, this.clone().start(address, listener, &mut loops));
                        failing.remove(&address);
                    }
                    Err(error) if failing.insert(address) => say(&error),
                    Err(_) => {}
                }
            }
            while loops.try_join_next().is_some() {}
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop) => return,
                Ok(()) = claimed.changed() => {}
                () = tokio::time::sleep(AGAIN), if !failing.is_empty() => {}
            }
        }
    }

    fn start(self: Arc<Self>, address: SocketAddr, listener: TcpListener, loops: &mut JoinSet<()>) -> DropGuard {
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        loops.spawn(async move { _ = closed.run_until_cancelled(self.accept(address.port(), listener)).await });
        guard
    }

    /// Accepts until it is dropped. Past the connection limit new ones wait.
    async fn accept(self: Arc<Self>, port: u16, listener: TcpListener) {
        let Ok(local) = listener.local_addr() else { return };
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    let Some(place) = listener::place(&self.places, &self.crowd).await else { return };
                    self.take(tcp, PerConnection::accepted(peer, local), port, place);
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if self.admission.is_worth_saying(Instant::now()) {
                        tracing::warn!(%error, port, "accepting connections fails; trying again");
                    }
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Gives a connection to a worker, if its client may have one more.
    fn take(&self, tcp: TcpStream, about: PerConnection, port: u16, place: OwnedSemaphorePermit) {
        let state = self.live.load();
        let Some(route) = state.streams.get(&port).cloned() else { return };
        let client = about.connection.peer.ip();
        let mut admitted: Option<Admitted> = None;
        if !forwarded::is_trusted(client.to_canonical(), &state.config.proxy.trusted_proxies) {
            admitted = self.admission.admit(client);
            if admitted.is_none() {
                if self.admission.is_worth_saying(Instant::now()) {
                    tracing::warn!(%client, port, "a client has proxy.max-connections-per-client connections and further ones are closed");
                }
                return;
            }
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (Some(worker), Ok(tcp)) = (self.workers.get(turn % self.workers.len().max(1)), tcp.into_std()) else { return };
        let conduit = self.conduit.clone();
        let serving = async move {
            // On the worker, whose events drive it from now on.
            match TcpStream::from_std(tcp) {
                Ok(tcp) => conduit.carry_port(tcp, port, &route, &about).await,
                Err(error) => tracing::warn!(%error, port, "a connection cannot be served"),
            }
            drop((place, admitted));
        };
        self.connections.spawn_on(serving, worker);
    }
}

fn say(error: &listener::BindError) {
    let by = holder::of(error.address).map(|holder| format!(", in use by {} (pid {})", holder.name, holder.pid)).unwrap_or_default();
    tracing::error!(
        address = %error.address, error = %error.source,
        "the port of a TCP route cannot be listened on{by}: its connections are refused; trying again"
    );
}
