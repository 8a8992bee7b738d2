//! The threads that serve connections: each has a runtime of its own, accepts from the same sockets and keeps its connections, so that
//! nothing of a request crosses from one core to another.

use std::future::Future;
use std::io;
use std::net::TcpListener as StdListener;
use std::thread::{self, JoinHandle};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, RuntimeMetrics};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a worker does with the sockets once it runs.
pub trait Serve: Clone + Send + 'static {
    /// Accepts from `listener` until the edge stops.
    fn accept(self, listener: TcpListener) -> impl Future<Output = ()> + Send;
    /// Housekeeping of the worker, for as long as it runs.
    fn keep_house(self) -> impl Future<Output = ()> + Send;
}

/// The running threads.
#[derive(Default)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    runtimes: Vec<Handle>,
}

impl Workers {
    /// Starts one thread that accepts from its own copies of `listeners`, each served as it says, and lives until `ended`. A thread that ends before that
    /// panics in `watch`, where the assembly notices.
    ///
    /// # Errors
    /// When a socket cannot be copied or a thread cannot be started.
    pub fn start<'a, S: Serve>(
        &mut self,
        listeners: impl IntoIterator<Item = (&'a StdListener, S)>,
        ended: &CancellationToken,
        watch: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let listeners = listeners.into_iter().map(|(listener, serve)| Ok((listener.try_clone()?, serve)));
        let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        self.runtimes.push(runtime.handle().clone());
        let (alive, gone) = oneshot::channel::<()>();
        let token = ended.clone();
        let body = move || {
            runtime.block_on(work(listeners, token));
            drop(alive);
        };
        self.threads.push(thread::Builder::new().name(format!("worker-{}", self.threads.len())).spawn(body)?);
        let ended = ended.clone();
        watch.spawn(async move {
            // Nothing is ever sent: it ends when the thread does.
            _ = gone.await;
            assert!(ended.is_cancelled(), "a worker thread ended by itself");
        });
        Ok(())
    }

    /// What the threads' runtimes tell of themselves.
    pub fn runtimes(&self) -> impl Iterator<Item = RuntimeMetrics> {
        self.runtimes.iter().map(Handle::metrics)
    }

    /// The threads' runtimes, to give them what was accepted elsewhere.
    pub fn handles(&self) -> Vec<Handle> {
        self.runtimes.clone()
    }

    /// Waits for the threads; they end soon after `ended`.
    pub async fn join(self) {
        let joined = tokio::task::spawn_blocking(move || self.threads.into_iter().filter_map(|thread| thread.join().err()).count()).await;
        if !matches!(joined, Ok(0)) {
            tracing::error!("a worker thread panicked");
        }
    }
}

async fn work(listeners: Vec<(StdListener, impl Serve)>, ended: CancellationToken) {
    let mut accepting = JoinSet::new();
    // The listeners of a worker share its house.
    let house = listeners.first().map(|(_, serve)| serve.clone());
    for (listener, serve) in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => drop(accepting.spawn(serve.accept(listener))),
            Err(error) => {
                tracing::error!(%error, "a worker cannot accept");
                return;
            }
        }
    }
    if let Some(house) = house {
        accepting.spawn(house.keep_house());
    }
    tokio::select! {
        () = ended.cancelled() => {}
        Some(Err(error)) = accepting.join_next() => tracing::error!(%error, "an accept loop ended by itself"),
        else => ended.cancelled().await,
    }
}
