//! From what the providers say to what requests see: one task builds the state whenever a source changes, and publishes it.
//! It is the one writer of the swap.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::census::Unknown;
use super::credentials::Files;
use crate::config::Config;
use crate::diagnostic::{Diagnostic, Severity, render};
use crate::provider::Health;
use crate::provider::docker;
use crate::provider::files::{self, Stack};
use crate::proxy::authority::{self, Stamps};
use crate::proxy::limit::Limits;
use crate::snapshot::{Snapshot, merge};
use crate::state::{Difference, Live, State};
use crate::store::SNAPSHOT;
use crate::store::disk::{self, Disk};
use crate::telemetry::prometheus::Metrics;
use crate::upstream::Ledger;

/// How long a start waits for Docker's first answer before it serves from what it kept.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(3);

/// Senders of sources that have nothing to say.
type Silent = (Option<watch::Sender<Option<Arc<Snapshot>>>>, Option<watch::Sender<Arc<Snapshot>>>);

/// Where services come from, each with its latest word. The senders are held where no task does, so that no word is not an end.
pub struct Sources {
    docker: watch::Receiver<Option<Arc<Snapshot>>>,
    stacks: watch::Receiver<Arc<Snapshot>>,
    /// What was kept of an earlier run, until Docker answers.
    kept: Option<Arc<Snapshot>>,
    _silent: Silent,
}

impl Sources {
    /// Starts watching Docker and the stack files, and waits for their first words.
    pub async fn start(
        config: &Config,
        stacks: Vec<Stack>,
        health: Arc<Health>,
        stop: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Sources {
        let (first, stamps) = files::read(&stacks).await;
        let (stack_sender, stack_receiver) = watch::channel(Arc::new(first));
        let (docker_sender, docker_receiver) = watch::channel(None);
        let mut silent: Silent = (None, None);
        match stacks.is_empty() {
            true => silent.1 = Some(stack_sender),
            false => drop(tasks.spawn(files::follow(stacks, stamps, stack_sender))),
        }
        let mut sources = Sources { docker: docker_receiver, stacks: stack_receiver, kept: None, _silent: (None, None) };
        if config.docker.enabled {
            tasks.spawn(docker::run(config.docker.clone(), docker_sender, health, stop.clone()));
            let disk = config.state.directory.as_deref().and_then(open);
            // Before the first word is taken, so that it is kept too.
            let unread = sources.docker.clone();
            sources.wait(disk.as_ref()).await;
            if let Some(disk) = disk {
                tasks.spawn(disk::keep(disk, unread, stop.clone()));
            }
        } else {
            silent.0 = Some(docker_sender);
        }
        sources._silent = silent;
        sources
    }

    /// Docker's first snapshot, or what was kept when it does not come in time.
    async fn wait(&mut self, disk: Option<&Disk>) {
        if tokio::time::timeout(FIRST_SNAPSHOT, self.docker.wait_for(Option::is_some)).await.is_ok() {
            return;
        }
        match disk.map(|disk| disk.read::<Snapshot>(SNAPSHOT)) {
            Some(Ok(Some(snapshot))) => {
                tracing::warn!("Docker does not answer; serving what it said last, as kept on disk");
                self.kept = Some(Arc::new(snapshot));
            }
            Some(Ok(None)) | None => tracing::warn!("Docker does not answer, and nothing was kept of an earlier run; trying on"),
            Some(Err(error)) => tracing::error!(%error, "Docker does not answer, and what was kept cannot be used; trying on"),
        }
    }

    /// Is there a word on which services there are, be it an earlier run's?
    pub fn have_spoken(&self) -> bool {
        self._silent.0.is_some() || self.kept.is_some() || self.docker.borrow().is_some()
    }

    fn snapshot(&mut self) -> Snapshot {
        let docker = self.docker.borrow_and_update().clone();
        if docker.is_some() {
            self.kept = None;
        }
        merge(docker.or_else(|| self.kept.clone()).as_deref(), Some(&self.stacks.borrow_and_update()))
    }

    /// Waits until one of the sources has a new word; `false` when none ever will.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            word = self.docker.changed() => word.is_ok(),
            word = self.stacks.changed() => word.is_ok(),
        }
    }
}

/// A directory for the state; without one the edge serves all the same, but says so.
fn open(directory: &Path) -> Option<Disk> {
    Disk::open(directory)
        .inspect_err(
            |error| tracing::warn!(%error, "the last snapshot will not be kept: set state.directory to a place that can be written"),
        )
        .ok()
}

/// The one writer of the state.
pub struct Publisher {
    config: watch::Receiver<Arc<Config>>,
    sources: Sources,
    files: Files,
    unknown: Unknown,
    pub live: Arc<Live>,
    pub ledger: Arc<Ledger>,
    pub limits: Arc<Limits>,
    /// Told of each new state.
    pub swapped: watch::Sender<()>,
    stamps: Stamps,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// Publishes the first state.
    pub fn new(config: watch::Receiver<Arc<Config>>, sources: Sources, files: Files, unknown: Unknown, metrics: Arc<Metrics>) -> Publisher {
        let empty = State::build(config.borrow().clone(), Arc::new(Snapshot::default()));
        let live = Arc::new(Live::new(empty));
        let (ledger, limits, swapped) = (Arc::default(), Arc::default(), watch::Sender::default());
        let mut publisher =
            Publisher { config, sources, files, unknown, live, ledger, limits, swapped, stamps: Stamps::default(), metrics };
        publisher.publish();
        publisher
    }

    /// Publishes again whenever a source or the configuration changes, until all of them are gone.
    pub async fn follow(mut self) {
        loop {
            let more = tokio::select! {
                more = self.sources.changed() => more,
                word = self.config.changed() => word.is_ok(),
                () = self.stamps.changed() => true,
                // Where no directory is given there is nobody who would say more.
                Ok(()) = self.files.changed() => true,
                Ok(()) = self.unknown.changed() => true,
            };
            if !more {
                return;
            }
            self.publish();
        }
    }

    fn publish(&mut self) {
        let config = self.config.borrow_and_update().clone();
        let snapshot = Arc::new(self.sources.snapshot());
        let state = State::build(config, snapshot);
        // Before they are read: what changes in between is read again.
        self.stamps.keep(state.authorities.keys());
        let state = state.with_authorities(authority::read).with_files(&self.files.borrow_and_update().clone());
        let state = state.with_unknown_groups(&self.unknown.borrow_and_update().clone());
        self.ledger.admit(state.pools());
        let Some(difference) = self.live.publish(state) else { return };
        let state = self.live.load();
        self.ledger.prune(state.pools());
        self.limits.keep(&state);
        self.swapped.send_replace(());
        self.metrics.keep_routes(state.routes.keys().map(String::as_str));
        let count = |severity| state.diagnostics.iter().filter(|finding| finding.severity == severity).count();
        self.metrics.set_diagnostics(count(Severity::Error), count(Severity::Warning), count(Severity::Info));
        if !difference.is_empty() {
            self.metrics.swapped();
            say(&difference);
        }
    }
}

/// Once for each change, not for each poll.
fn say(difference: &Difference) {
    let Difference { added, removed, changed, findings, resolved } = difference;
    if !(added.is_empty() && removed.is_empty() && changed.is_empty()) {
        tracing::info!(?added, ?removed, ?changed, "routes");
    }
    for finding in findings {
        let text = render(std::slice::from_ref(finding), false);
        match finding.severity {
            Severity::Error => tracing::error!("{}", text.trim_end()),
            Severity::Warning => tracing::warn!("{}", text.trim_end()),
            Severity::Info => tracing::info!("{}", one_line(finding)),
        }
    }
    for finding in resolved.iter().filter(|finding| finding.severity > Severity::Info) {
        tracing::info!("settled: {}", one_line(finding));
    }
}

fn one_line(finding: &Diagnostic) -> String {
    format!("[{}] {}: {}", finding.code, finding.subject, finding.message)
}
