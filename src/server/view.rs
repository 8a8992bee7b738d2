//! What the admin listener shows: the state, and counters read from where they live at the moment of asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::runtime::RuntimeMetrics;
use tokio_util::task::TaskTracker;

use super::Recorder;
use super::admission::Admission;
use super::outlook;
use crate::auth::gate::Gate;
use crate::certificate::local;
use crate::provider;
use crate::proxy::clock;
use crate::proxy::limit::Limits;
use crate::snapshot::Condition;
use crate::state::Live;
use crate::store::Store;
use crate::telemetry::admin::Admin;
use crate::telemetry::backup::BackupsNow;
use crate::telemetry::otlp::Spans;
use crate::telemetry::process::Process;
use crate::telemetry::prometheus::{Now, UpstreamNow};
use crate::upstream::{Fitness, Health, Ledger, Verdict};

/// The places that are looked at.
pub struct View {
    pub live: Arc<Live>,
    pub ledger: Arc<Ledger>,
    pub limits: Arc<Limits>,
    pub recorder: Arc<Recorder>,
    pub health: Arc<provider::Health>,
    pub connections: TaskTracker,
    pub admission: Arc<Admission>,
    pub certificates: Arc<outlook::Ledger>,
    pub store: Arc<dyn Store>,
    pub gate: Arc<Gate>,
    /// How volumes stand that are to be saved; `None`: nothing is configured to be.
    pub backups: Box<dyn Fn() -> Option<BackupsNow> + Send + Sync>,
    /// Of the main runtime and of the workers'.
    pub runtimes: Vec<RuntimeMetrics>,
    /// Without an engine, the stack files are all there is to know, and they are always read.
    pub docker: bool,
}

/// The root of the internal authority, which is made where there was none so far.
async fn root(store: Arc<dyn Store>) -> Result<String, String> {
    let authority = local::authority(&*store, Timestamp::now()).await.map_err(|error| error.to_string())?;
    Ok(authority.root_pem().to_owned())
}

impl View {
    /// The view as the admin listener wants it.
    pub fn admin(self) -> Admin {
        let (live, metrics, view) = (self.live.clone(), self.recorder.metrics.clone(), Arc::new(self));
        let (now, ledger, limits) = (view.clone(), view.ledger.clone(), view.limits.clone());
        let (certificates, store, backups) = (view.certificates.clone(), view.store.clone(), view.clone());
        Admin {
            live,
            metrics,
            now: Box::new(move || now.now()),
            ledger: Box::new(move || view.ledger()),
            limits: Box::new(move || limits.now()),
            certificates: Box::new(move || certificates.report()),
            backups: Box::new(move || (backups.backups)().unwrap_or_default().report),
            root: Box::new(move || Box::pin(root(store.clone()))),
            ailment: Box::new(move |backend| ledger.ailment(&backend.id, clock::now())),
        }
    }

    fn now(&self) -> Now {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let listed = self.health.listed_at.load(Ordering::Relaxed);
        Now {
            snapshot_age: match self.docker {
                true => (listed > 0).then(|| (Timestamp::now().as_millisecond() - listed) as f64 / 1000.0),
                false => Some(0.0),
            },
            docker_connected: self.health.connected.load(Ordering::Relaxed),
            docker_calls: count(&self.health.calls),
            docker_listings: count(&self.health.refreshes) + count(&self.health.polls),
            docker_reconnects: count(&self.health.reconnects),
            access_log_dropped: self.recorder.log.dropped(),
            spans_dropped: self.recorder.spans.as_ref().map(Spans::dropped),
            connections: self.connections.len() as u64,
            connections_refused: self.admission.refused(),
            tasks: self.runtimes.iter().map(|runtime| runtime.num_alive_tasks() as u64).sum(),
            process: Process::now(),
            upstreams: self.upstreams(),
            limits: self.limits.now(),
            refused_retries: self.ledger.refused_retries(),
            certificates: self.certificates.now(),
            signing: self.gate.now(),
            backups: (self.backups)(),
        }
    }

    fn upstreams(&self) -> Vec<UpstreamNow> {
        let (state, now) = (self.live.load(), clock::now());
        let backends = state.pools().flat_map(|pool| &pool.groups).flat_map(|group| &group.backends);
        backends
            .map(|backend| {
                let stats = self.ledger.stats(&backend.id);
                let health = stats.as_ref().map(|stats| stats.health());
                let fitness = health.map(|health| health.fitness(now));
                let ailment = health.and_then(|health| health.ailment(now));
                UpstreamNow {
                    service: backend.service.clone(),
                    task: backend.task.clone(),
                    backend: backend.id.clone(),
                    healthy: backend.condition == Condition::Healthy && ailment.is_none(),
                    in_flight: stats.as_ref().map_or(0, |stats| stats.in_flight()),
                    requests: stats.as_ref().map_or(0, |stats| stats.requests()),
                    failures: stats.as_ref().map_or(0, |stats| stats.failures()),
                    ejected: matches!(fitness, Some(Fitness::Ejected(_))),
                    ejections: health.map_or(0, Health::ejections),
                    check: health.and_then(Health::checked).map(|checked| checked.verdict == Verdict::Passing),
                    ailment,
                }
            })
            .collect()
    }

    /// Backend id to its counters, for `skep explain`.
    fn ledger(&self) -> serde_json::Value {
        let counters = |upstream: UpstreamNow| {
            let value = serde_json::json!({
                "in_flight": upstream.in_flight, "requests": upstream.requests, "failures": upstream.failures,
                "ejections": upstream.ejections, "ailment": upstream.ailment,
            });
            (upstream.backend.to_string(), value)
        };
        serde_json::Value::Object(self.upstreams().into_iter().map(counters).collect())
    }
}
