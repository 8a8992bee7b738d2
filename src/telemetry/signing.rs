//! The sign-ins' part of the metrics: read at each scrape. Users have no series of their own.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::auth::standing::SigningNow;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServer {
    server: String,
}

/// Puts the sign-ins into `registry`.
pub(super) fn register(registry: &mut Registry, now: &SigningNow) {
    let results = Family::<ByResult, Counter>::default();
    for (result, count) in &now.results {
        results.get_or_create(&ByResult { result }).inc_by(*count);
    }
    let (up, requests) = (Family::<ByServer, Gauge>::default(), Family::<ByServer, Counter>::default());
    let failures = Family::<ByServer, Counter>::default();
    for server in &now.servers {
        let labels = ByServer { server: server.server.clone() };
        up.get_or_create(&labels).set(i64::from(server.up));
        requests.get_or_create(&labels).inc_by(server.requests);
        failures.get_or_create(&labels).inc_by(server.failures);
    }
    registry.register("skep_sign_ins", "Sign-ins and checks of credentials, by their result", results);
    registry.register("skep_sign_in_accounts", "Users with live sessions", ConstGauge::new(now.accounts));
    registry.register("skep_sign_in_sessions", "Live sessions", ConstGauge::new(now.sessions));
    if let Some(answers) = now.directory {
        let help = "1 while whoever knows users answers; at 0 nobody can sign in";
        registry.register("skep_directory_up", help, ConstGauge::new(i64::from(answers)));
    }
    registry.register("skep_directory_server_up", "1 while a directory server is asked", up);
    registry.register("skep_directory_requests", "Requests to a directory server", requests);
    registry.register("skep_directory_failures", "Requests that a directory server did not answer as it should", failures);
}
