//! The certificates' part of the metrics: read at each scrape. Names are as many as labels name, up to a bound.

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::certificate::standing::{Standing, State};

/// More names have no series of their own; they are counted by state all the same.
const MOST_NAMES: usize = 2_000;

/// Certificates at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CertificatesNow {
    pub names: Vec<Standing>,
    /// Issuer, result, orders since the process began.
    pub orders: Vec<(String, &'static str, u64)>,
    /// When an order last came to nothing.
    pub failed: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByName {
    name: String,
    issuer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    issuer: String,
    result: &'static str,
}

/// Puts the certificates into `registry`.
pub(super) fn register(registry: &mut Registry, now: &CertificatesNow) {
    let (expiry, next) = (Family::<ByName, Gauge>::default(), Family::<ByName, Gauge>::default());
    let states = Family::<ByState, Gauge>::default();
    for state in [State::Valid, State::Expiring, State::Waiting, State::Refused] {
        states.get_or_create(&ByState { state: state.word() }).set(0);
    }
    for standing in &now.names {
        states.get_or_create(&ByState { state: standing.state.word() }).inc();
    }
    for standing in now.names.iter().take(MOST_NAMES) {
        let issuer = standing.issuer.clone().unwrap_or_else(|| standing.source.word().to_owned());
        let labels = ByName { name: standing.name.clone(), issuer };
        if let Some(expires) = standing.expires {
            expiry.get_or_create(&labels).set(expires.as_second());
        }
        if let Some(at) = standing.next {
            next.get_or_create(&labels).set(at.as_second());
        }
    }
    let orders = Family::<ByResult, Counter>::default();
    for (issuer, result, count) in &now.orders {
        orders.get_or_create(&ByResult { issuer: issuer.clone(), result }).inc_by(*count);
    }
    registry.register("skep_certificate_names", "Names that want a certificate, by how they stand", states);
    registry.register("skep_certificate_expiry_timestamp_seconds", "When a name's certificate expires, in Unix time", expiry);
    registry.register("skep_certificate_next_timestamp_seconds", "When something is done for a name next, in Unix time", next);
    registry.register("skep_certificate_orders", "Orders of certificates that ended, by their result", orders);
    if let Some(failed) = now.failed {
        let help = "When an order last came to nothing, in Unix time";
        registry.register("skep_certificate_order_failed_timestamp_seconds", help, ConstGauge::new(failed.as_second()));
    }
}
