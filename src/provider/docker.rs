//! Snapshots from a Docker engine: listings and the event stream, in the order that the clockwork of [`provider`] asks for.
//! When the engine goes away the last snapshot stays; what is wrong is logged once for each change, not for each attempt.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bollard::models::EventMessage;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::provider::api::Task;
use crate::provider::listing::{self, Inventory, Vantage};
use crate::provider::overlay::Overlay;
use crate::provider::wire::{Client, Error, Events};
use crate::provider::{self, Clock, Event, Health, Outcome, Pace, Scope, Step};
use crate::snapshot::{Engine, Snapshot, Swarm};

/// Between two full listings while events storm, at least.
const GAP: Duration = Duration::from_millis(50);
/// One snapshot, without watching: for commands.
///
/// # Errors
/// The engine cannot be reached, or one of the listings failed.
pub async fn once(config: &config::Docker) -> Result<Snapshot, Error> {
    let client = Client::connect(config, Arc::default()).await?;
    let (inventory, tasks) = client.list(Engine::default(), vantage(config)).await?;
    Ok(inventory.snapshot(&tasks))
}

/// Publishes a snapshot in `updates` whenever it differs from the one before, until `stop`.
/// What `updates` holds at the start (a snapshot from the disk) stays until the engine has been listed.
pub async fn run(config: config::Docker, updates: watch::Sender<Option<Arc<Snapshot>>>, health: Arc<Health>, stop: CancellationToken) {
    let pace =
        Pace { debounce: config.debounce, gap: GAP, poll_busy: config.poll_busy, poll_rest: config.poll_rest, resync: config.resync };
    let seed = u64::from(std::process::id()) ^ jiff::Timestamp::now().as_nanosecond() as u64;
    let watcher = Watcher {
        vantage: vantage(&config),
        config,
        updates,
        health,
        client: None,
        events: None,
        listing: None,
        began: Instant::now(),
        inventory: Inventory::default(),
        overlay: Overlay::default(),
        trouble: None,
        engine: Engine::default(),
    };
    stop.run_until_cancelled(watcher.run(Clock::new(pace, seed, Instant::now()))).await;
}

type Answer = Result<(Option<Inventory>, Vec<Task>), Error>;

/// A listing under way.
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// The running discovery: everything that acts or waits, and no decision of when.
struct Watcher {
    config: config::Docker,
    vantage: Vantage,
    updates: watch::Sender<Option<Arc<Snapshot>>>,
    health: Arc<Health>,
    client: Option<Client>,
    events: Option<Events>,
    listing: Option<(Scope, Pending)>,
    /// When the last listing began.
    began: Instant,
    inventory: Inventory,
    overlay: Overlay,
    /// The last trouble that was logged, until it is over.
    trouble: Option<String>,
    engine: Engine,
}

impl Watcher {
    async fn run(mut self, mut clock: Clock) {
        let mut event = Event::Woke;
        loop {
            event = match clock.on(event, Instant::now()) {
                Step::Connect => self.connect().await,
                Step::List(scope) => {
                    self.list(scope);
                    self.next(None).await
                }
                Step::Wait(until) => self.next(until).await,
            };
        }
    }

    async fn connect(&mut self) -> Event {
        (self.client, self.events, self.listing) = (None, None, None);
        self.health.connected.store(false, Relaxed);
        match Client::connect(&self.config, self.health.clone()).await {
            Ok(client) => {
                self.events = Some(client.events());
                self.client = Some(client);
                self.engine = Engine::default();
                self.health.connected.store(true, Relaxed);
                Event::Connected
            }
            Err(error) => self.lost(&error.to_string()),
        }
    }

    fn list(&mut self, scope: Scope) {
        let Some(client) = self.client.clone() else { return };
        let (engine, vantage) = (self.engine.clone(), self.vantage.clone());
        self.began = Instant::now();
        let listing: Pending = match scope {
            Scope::All => Box::pin(async move { client.list(engine, vantage).await.map(|(inventory, tasks)| (Some(inventory), tasks)) }),
            Scope::Tasks => Box::pin(async move { Ok((None, client.tasks().await?)) }),
        };
        self.listing = Some((scope, listing));
    }

    /// The next thing that happens, at latest when `until` comes.
    async fn next(&mut self, until: Option<Instant>) -> Event {
        let Watcher { events, listing, .. } = self;
        let told = async {
            match events {
                Some(events) => events.next().await,
                None => std::future::pending().await,
            }
        };
        let listed = async {
            match listing {
                Some((scope, listing)) => (*scope, listing.await),
                None => std::future::pending().await,
            }
        };
        let woke = async {
            match until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An event may be a stop signal: it goes before whatever else is ready.
            biased;
            told = told => match told {
                Some(Ok(message)) => self.told(&message),
                Some(Err(error)) => self.lost(&error.to_string()),
                None => self.lost("the event stream ended"),
            },
            (scope, answer) = listed => self.listed(scope, answer),
            () = woke => Event::Woke,
        }
    }

    /// What an event says of a container holds at once; the listing that follows is for the rest.
    fn told(&mut self, message: &EventMessage) -> Event {
        self.health.events.fetch_add(1, Relaxed);
        let (action, actor) = (message.action.as_deref().unwrap_or_default(), message.actor.as_ref());
        let container = actor.and_then(|actor| actor.id.as_deref()).unwrap_or_default();
        let signal = actor.and_then(|actor| actor.attributes.as_ref()?.get("signal")).map(String::as_str);
        let now = Instant::now();
        if self.overlay.on(action, container, signal, now) {
            let published = self.updates.borrow().clone();
            if let Some(mut snapshot) = published.map(|snapshot| (*snapshot).clone()) {
                self.overlay.apply(&mut snapshot, now);
                self.publish(snapshot);
            }
        }
        Event::Changed
    }

    fn listed(&mut self, scope: Scope, answer: Answer) -> Event {
        self.listing = None;
        let (inventory, tasks) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.health.failures.fetch_add(1, Relaxed);
                // A manager may have been demoted: the next listing asks.
                self.engine = Engine::default();
                self.trouble(&error.to_string());
                return Event::Listed(Outcome::Failed);
            }
        };
        let now = Instant::now();
        let counter = if scope == Scope::All { &self.health.refreshes } else { &self.health.polls };
        counter.fetch_add(1, Relaxed);
        self.health.listed_at.store(jiff::Timestamp::now().as_millisecond(), Relaxed);
        if let Some(inventory) = inventory {
            self.overlay.settle(self.began, now);
            self.inventory = inventory;
        }
        let mut snapshot = self.inventory.snapshot(&tasks);
        self.overlay.apply(&mut snapshot, now);
        self.fine(&snapshot.engine);
        let (tasks, moving) = (snapshot.engine.swarm == Swarm::Manager, provider::moving(&snapshot));
        let changed = self.publish(snapshot);
        Event::Listed(Outcome::Good { tasks, moving, changed })
    }

    /// True when the snapshot differs from the one before.
    fn publish(&self, snapshot: Snapshot) -> bool {
        self.updates.send_if_modified(|published| {
            let differs = published.as_deref() != Some(&snapshot);
            if differs {
                *published = Some(Arc::new(snapshot));
            }
            differs
        })
    }

    fn lost(&mut self, why: &str) -> Event {
        if self.client.take().is_some() {
            self.health.reconnects.fetch_add(1, Relaxed);
        }
        (self.events, self.listing) = (None, None);
        self.health.connected.store(false, Relaxed);
        self.trouble(why);
        Event::Lost
    }

    fn trouble(&mut self, why: &str) {
        if self.trouble.is_none() {
            tracing::warn!(endpoint = self.config.endpoint, why, "Docker cannot be listed; the last state stays in force");
            self.trouble = Some(why.to_owned());
        }
    }

    fn fine(&mut self, engine: &Engine) {
        let news = self.engine != *engine;
        if self.trouble.take().is_some() || news {
            let networks = engine.edge.networks.join(", ");
            tracing::info!(version = engine.version, api = engine.api, swarm = ?engine.swarm, networks, "Docker is being watched");
        }
        if news && engine.swarm == Swarm::Worker {
            tracing::warn!("this engine is a swarm worker and knows no services; name a manager in docker.endpoint to route to them");
        }
        self.engine.clone_from(engine);
    }
}

/// What this process can tell of where it runs.
fn vantage(config: &config::Docker) -> Vantage {
    // A file that is not there says nothing, as on a host without containers.
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (hostname, mounts, groups) = (read("/proc/sys/kernel/hostname"), read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
    let host = config.endpoint.split_once("://").map_or("", |(_, host)| host);
    let local = config.endpoint.starts_with("unix:") || ["127.", "localhost", "[::1]"].iter().any(|own| host.starts_with(own));
    Vantage { containers: listing::own_containers(&hostname, &mounts, &groups), networks: config.networks.clone(), local }
}
