//! The limits' part of the metrics: read at each scrape, one series a route that has limits.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::traffic::LimitNow;
use crate::traffic::circuit::Standing;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    route: Arc<str>,
    result: &'static str,
}

/// Puts the limits of all routes into `registry`.
pub(super) fn register(registry: &mut Registry, limits: &[LimitNow]) {
    type Read = fn(&LimitNow) -> u64;
    let counters: [(&str, &str, Read); 6] = [
        ("skep_rate_limited", "Requests answered 429", |now| now.rate_limited),
        ("skep_inflight_rejected", "Requests that found no place of max-inflight", |now| now.rejected),
        ("skep_body_too_large", "Requests answered 413", |now| now.body_too_large),
        ("skep_circuit_refused", "Requests answered 503 while the circuit was open", |now| now.short_circuited),
        ("skep_compressed_in_bytes", "Bytes of answers that were compressed", |now| now.compressed_in),
        ("skep_compressed_out_bytes", "Bytes that became of them", |now| now.compressed_out),
    ];
    for (name, help, read) in counters {
        let family = Family::<ByRoute, Counter>::default();
        for now in limits {
            family.get_or_create(&by_route(now)).inc_by(read(now));
        }
        registry.register(name, help, family);
    }
    let queued = Family::<ByRoute, Gauge>::default();
    let open = Family::<ByRoute, Gauge>::default();
    let mirrored = Family::<ByResult, Counter>::default();
    for now in limits {
        queued.get_or_create(&by_route(now)).set(i64::from(now.queued));
        if let Some(standing) = now.circuit {
            open.get_or_create(&by_route(now)).set(i64::from(standing == Standing::Open));
        }
        let results =
            [("sent", now.mirrored), ("failed", now.mirror_failed), ("too_large", now.mirror_too_large), ("dropped", now.mirror_dropped)];
        for (result, count) in results.into_iter().filter(|(_, count)| *count > 0) {
            mirrored.get_or_create(&ByResult { route: now.route.clone(), result }).inc_by(count);
        }
    }
    registry.register("skep_inflight_queued", "Requests that wait for a place of max-inflight", queued);
    registry.register("skep_circuit_open", "1 where a route's circuit is open", open);
    registry.register("skep_mirrored", "Copies of requests: answered, not answered, too large, or no place for them", mirrored);
}

fn by_route(now: &LimitNow) -> ByRoute {
    ByRoute { route: now.route.clone() }
}
