//! What the admin listener shows: the state, and counters read from where they live at the moment of asking.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::runtime::RuntimeMetrics;
use tokio_util::task::TaskTracker;

use super::Recorder;
use crate::provider::Health;
use crate::snapshot::Condition;
use crate::state::Live;
use crate::telemetry::admin::Admin;
use crate::telemetry::otlp::Spans;
use crate::telemetry::process::Process;
use crate::telemetry::prometheus::{Now, UpstreamNow};
use crate::upstream::Ledger;

/// The places that are looked at.
pub struct View {
    pub live: Arc<Live>,
    pub ledger: Arc<Ledger>,
    pub recorder: Arc<Recorder>,
    pub health: Arc<Health>,
    pub connections: TaskTracker,
    /// Of the main runtime and of the workers'.
    pub runtimes: Vec<RuntimeMetrics>,
    /// Without an engine, the stack files are all there is to know, and they are always read.
    pub docker: bool,
}

impl View {
    /// The view as the admin listener wants it.
    pub fn admin(self) -> Admin {
        let (live, metrics, view) = (self.live.clone(), self.recorder.metrics.clone(), Arc::new(self));
        let now = view.clone();
        Admin { live, metrics, now: Box::new(move || now.now()), ledger: Box::new(move || view.ledger()) }
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
            tasks: self.runtimes.iter().map(|runtime| runtime.num_alive_tasks() as u64).sum(),
            process: Process::now(),
            upstreams: self.upstreams(),
        }
    }

    fn upstreams(&self) -> Vec<UpstreamNow> {
        let state = self.live.load();
        let backends = state.pools().flat_map(|pool| &pool.groups).flat_map(|group| &group.backends);
        backends
            .map(|backend| {
                let stats = self.ledger.stats(&backend.id);
                UpstreamNow {
                    service: backend.service.clone(),
                    task: backend.task.clone(),
                    backend: backend.id.clone(),
                    healthy: backend.condition == Condition::Healthy,
                    in_flight: stats.as_ref().map_or(0, |stats| stats.in_flight()),
                    requests: stats.as_ref().map_or(0, |stats| stats.requests()),
                    failures: stats.as_ref().map_or(0, |stats| stats.failures()),
                }
            })
            .collect()
    }

    /// Backend id to its counters, for `skep explain`.
    fn ledger(&self) -> serde_json::Value {
        let counters = |upstream: UpstreamNow| {
            let value = serde_json::json!({
                "in_flight": upstream.in_flight, "requests": upstream.requests, "failures": upstream.failures,
            });
            (upstream.backend.to_string(), value)
        };
        serde_json::Value::Object(self.upstreams().into_iter().map(counters).collect())
    }
}
