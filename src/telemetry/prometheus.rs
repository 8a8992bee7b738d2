//! Counters and histograms of what the edge did, and their text for Prometheus.
//! Every label is bounded: routes by the table (see [`Metrics::keep_routes`]), methods by a list, the rest by what is scraped.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::backup::{self, BackupsNow};
use super::certificates::{self, CertificatesNow};
use super::process::Process;
use super::signing;
use super::tally::{Series, Tally, Timing, Totals};
use super::{Record, limits};
use crate::auth::standing::SigningNow;
use crate::traffic::LimitNow;

/// How [`Metrics::encode`]'s text is to be announced.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is read at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Now {
    /// Seconds since the last good listing; `None`: there was none yet.
    pub snapshot_age: Option<f64>,
    /// The engine's event stream stands.
    pub docker_connected: bool,
    pub docker_calls: u64,
    pub docker_listings: u64,
    pub docker_reconnects: u64,
    pub access_log_dropped: u64,
    /// Requests whose spans reached no collector; `None`: requests are not traced.
    pub spans_dropped: Option<u64>,
    /// Client connections that are open.
    pub connections: u64,
    /// Closed at once because their client had too many.
    pub connections_refused: u64,
    /// Tasks of all runtimes that are not over.
    pub tasks: u64,
    pub process: Process,
    /// Backends of the present table; one that several routes share may be named repeatedly.
    pub upstreams: Vec<UpstreamNow>,
    /// Routes with limits.
    pub limits: Vec<LimitNow>,
    /// By service.
    pub refused_retries: Vec<(Arc<str>, u64)>,
    pub certificates: CertificatesNow,
    pub signing: SigningNow,
    /// `None`: nothing is configured to be saved.
    pub backups: Option<BackupsNow>,
}

/// One backend at the moment of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamNow {
    pub service: Arc<str>,
    pub task: Arc<str>,
    /// Id of the backend.
    pub backend: Arc<str>,
    pub healthy: bool,
    pub in_flight: u32,
    /// Requests that were ever begun on it.
    pub requests: u64,
    /// Requests that it failed.
    pub failures: u64,
    pub ejected: bool,
    pub ejections: u64,
    /// Its active check passes; `None`: it has none.
    pub check: Option<bool>,
    /// Why it gets no requests, in words.
    pub ailment: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    route: Arc<str>,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByService {
    service: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBackend {
    service: Arc<str>,
    task: Arc<str>,
    backend: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySeverity {
    severity: &'static str,
}

/// Counters that were added up for one scrape.
#[derive(Debug)]
struct Counts<Labels>(Vec<(Labels, u64)>);

impl<Labels: EncodeLabelSet + Debug + Send + Sync + 'static> EncodeMetric for Counts<Labels> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(labels, count)| encoder.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(count, None))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Histograms of one scrape.
#[derive(Debug)]
struct Timings<const BOUNDS: usize>(Vec<(ByRoute, Timing<BOUNDS>)>);

impl<const BOUNDS: usize> EncodeMetric for Timings<BOUNDS> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(labels, timing)| timing.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const BOUNDS: usize> EncodeMetric for Timing<BOUNDS> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum(), self.count(), &self.buckets(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Everything that is counted while the edge runs.
pub struct Metrics {
    registry: Registry,
    tally: Tally,
    swaps: Counter,
    diagnostics: Family<BySeverity, Gauge>,
}

impl Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero; the process counts as started now.
    pub fn new() -> Metrics {
        let mut metrics =
            Metrics { registry: Registry::default(), tally: Tally::new(), swaps: Counter::default(), diagnostics: Family::default() };
        metrics.register();
        metrics.set_diagnostics(0, 0, 0);
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("skep_swaps", "Routing tables that replaced another", self.swaps.clone());
        registry.register("skep_diagnostics", "Findings about labels and configuration", self.diagnostics.clone());
        registry.register("skep_build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.register("process_start_time_seconds", "When the process started, in Unix time", ConstGauge::new(started));
    }

    /// Counts a finished request.
    pub fn record(&self, record: &Record<'_>) {
        self.tally.record(record);
    }

    /// A new table replaced the old one.
    pub fn swapped(&self) {
        self.swaps.inc();
    }

    /// How many findings of each severity the present table has.
    pub fn set_diagnostics(&self, errors: usize, warnings: usize, infos: usize) {
        for (severity, count) in [("error", errors), ("warning", warnings), ("info", infos)] {
            self.diagnostics.get_or_create(&BySeverity { severity }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Forgets the series of all other routes. To be called after each swap.
    pub fn keep_routes<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let kept: HashSet<&str> = ids.collect();
        self.tally.retain(|route| kept.contains(route));
    }

    /// The text of everything, as [`CONTENT_TYPE`].
    pub fn encode(&self, now: &Now) -> String {
        let mut text = String::with_capacity(16 * 1024);
        let written = encode_registry(&mut text, &finished(&self.tally.totals()))
            .and_then(|()| encode_registry(&mut text, &self.registry))
            .and_then(|()| encode_registry(&mut text, &scraped(now)))
            .and_then(|()| encode_eof(&mut text));
        debug_assert!(written.is_ok(), "writing into a String cannot fail");
        text
    }
}

/// A registry of the requests that were counted, for one scrape.
fn finished(totals: &Totals) -> Registry {
    let label = |route: &Arc<str>| ByRoute { route: Arc::clone(route) };
    let counts = |count: fn(&Series) -> u64| Counts(totals.routes.iter().map(|(route, series)| (label(route), count(series))).collect());
    let answers = totals.routes.iter().flat_map(|(route, series)| {
        series.answers().map(|(method, status, count)| (ByAnswer { route: Arc::clone(route), method, status }, count))
    });
    let mut registry = Registry::default();
    registry.register(
        "skep_requests",
        "Finished requests, and connections that were carried (method TCP or TLS); an empty route: none matched",
        Counts(answers.collect()),
    );
    let help = "From a request's head to its answer's last byte; upgraded connections are left out";
    let durations = totals.routes.iter().map(|(route, series)| (label(route), series.duration));
    registry.register("skep_request_duration_seconds", help, Timings(durations.collect()));
    registry.register("skep_request_bytes", "Bytes of request bodies", counts(|series| series.bytes_in));
    registry.register("skep_response_bytes", "Bytes of response bodies", counts(|series| series.bytes_out));
    registry.register("skep_retries", "Attempts on another task after the first", counts(|series| series.retries));
    registry.register("skep_upstream_connect_seconds", "Until a connection to a task stood", totals.connect);
    registry.register("skep_upstream_response_seconds", "From then until the answer's head", totals.response);
    registry
}

/// A registry of what `now` says, for one scrape.
fn scraped(now: &Now) -> Registry {
    let mut registry = Registry::default();
    if let Some(age) = now.snapshot_age {
        registry.register("skep_snapshot_age_seconds", "Since Docker was listed with success", ConstGauge::new(age));
    }
    registry.register("skep_docker_connected", "1 while the engine's events arrive", ConstGauge::new(i64::from(now.docker_connected)));
    registry.register("skep_docker_calls", "Requests to the engine", ConstCounter::new(now.docker_calls));
    registry.register("skep_docker_listings", "Listings of the engine", ConstCounter::new(now.docker_listings));
    registry.register("skep_docker_reconnects", "Times the engine had to be reached again", ConstCounter::new(now.docker_reconnects));
    let help = "Access log lines that were not written";
    registry.register("skep_access_log_dropped", help, ConstCounter::new(now.access_log_dropped));
    if let Some(dropped) = now.spans_dropped {
        registry.register("skep_spans_dropped", "Requests whose spans reached no collector", ConstCounter::new(dropped));
    }
    let connections: Gauge<f64, AtomicU64> = Gauge::default();
    connections.set(now.connections as f64);
    registry.register("skep_connections", "Open client connections", connections);
    let help = "Connections of clients that had too many, closed at once";
    registry.register("skep_connections_refused", help, ConstCounter::new(now.connections_refused));
    registry.register("skep_tasks", "Tasks in the runtimes of all threads that are not over", whole(now.tasks));
    let help = "Resident memory size in bytes";
    now.process.resident.into_iter().for_each(|bytes| registry.register("process_resident_memory_bytes", help, whole(bytes)));
    let help = "Number of open file descriptors";
    now.process.open_fds.into_iter().for_each(|count| registry.register("process_open_fds", help, whole(count)));
    upstreams(&mut registry, &now.upstreams);
    limits::register(&mut registry, &now.limits);
    certificates::register(&mut registry, &now.certificates);
    signing::register(&mut registry, &now.signing);
    now.backups.iter().for_each(|backups| backup::register(&mut registry, backups));
    let refused = Family::<ByService, Counter>::default();
    for (service, count) in &now.refused_retries {
        refused.get_or_create(&ByService { service: Arc::clone(service) }).inc_by(*count);
    }
    registry.register("skep_retry_budget_exhausted", "Retries that were refused because there were too many of late", refused);
    registry
}

fn whole(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn upstreams(registry: &mut Registry, upstreams: &[UpstreamNow]) {
    let by_service = Family::<ByService, Gauge>::default();
    let (healthy, in_flight) = (Family::<ByBackend, Gauge>::default(), Family::<ByBackend, Gauge>::default());
    let (requests, failures) = (Family::<ByBackend, Counter>::default(), Family::<ByBackend, Counter>::default());
    let (ejected, check) = (Family::<ByBackend, Gauge>::default(), Family::<ByBackend, Gauge>::default());
    let ejections = Family::<ByBackend, Counter>::default();
    let mut seen = HashSet::new();
    for upstream in upstreams.iter().filter(|upstream| seen.insert(&*upstream.backend)) {
        let UpstreamNow { service, task, backend, .. } = upstream.clone();
        by_service.get_or_create(&ByService { service: Arc::clone(&service) }).inc_by(i64::from(upstream.in_flight));
        let labels = ByBackend { service, task, backend };
        healthy.get_or_create(&labels).set(i64::from(upstream.healthy));
        in_flight.get_or_create(&labels).set(i64::from(upstream.in_flight));
        requests.get_or_create(&labels).inc_by(upstream.requests);
        failures.get_or_create(&labels).inc_by(upstream.failures);
        ejected.get_or_create(&labels).set(i64::from(upstream.ejected));
        ejections.get_or_create(&labels).inc_by(upstream.ejections);
        if let Some(up) = upstream.check {
            check.get_or_create(&labels).set(i64::from(up));
        }
    }
    registry.register("skep_requests_in_flight", "Requests that a service is at work on", by_service);
    registry.register("skep_upstream_healthy", "1 where a task may get traffic", healthy);
    registry.register("skep_upstream_in_flight", "Requests that a task is at work on", in_flight);
    registry.register("skep_upstream_requests", "Requests begun on a task", requests);
    registry.register("skep_upstream_failures", "Requests that a task failed: no connection, broken off, too late", failures);
    registry.register("skep_upstream_ejected", "1 while a task gets no requests because of failures in a row", ejected);
    registry.register("skep_upstream_ejections", "Times that a task was ejected", ejections);
    registry.register("skep_upstream_check_up", "1 where a task's active check passes", check);
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use http::HeaderMap;

    use super::*;
    use crate::traffic::circuit::Standing;

    static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    fn record<'a>(route: Option<&'a Arc<str>>, method: &'a str, status: u16) -> Record<'a> {
        Record {
            at: jiff::Timestamp::UNIX_EPOCH,
            request_id: "",
            trace: None,
            client: None,
            secure: false,
            user: None,
            method,
            host: "",
            path: "",
            query: "",
            version: "HTTP/1.1",
            status,
            bytes_in: 10,
            bytes_out: 100,
            duration: Duration::from_millis(20),
            tls: None,
            wait: None,
            connect: Some(Duration::from_micros(300)),
            upstream: None,
            reused: None,
            nth: 0,
            route,
            service: None,
            task: None,
            backend: None,
            retries: 1,
            headers: &NO_HEADERS,
            error: None,
        }
    }

    fn count(metrics: &Metrics, route: Option<&str>, method: &str, status: u16) {
        metrics.record(&record(route.map(Arc::from).as_ref(), method, status));
    }

    fn upstream(task: &str, healthy: bool, in_flight: u32) -> UpstreamNow {
        let backend = format!("shop/{task}@10.0.0.1:80");
        UpstreamNow {
            service: "shop".into(),
            task: task.into(),
            backend: backend.into(),
            healthy,
            in_flight,
            requests: 7,
            failures: 1,
            ejected: !healthy,
            ejections: 2,
            check: healthy.then_some(true),
            ailment: None,
        }
    }

    fn now() -> Now {
        Now { snapshot_age: Some(1.5), docker_connected: true, docker_calls: 12, connections: 3, tasks: 9, ..Now::default() }
    }

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|one| one == line), "no line {line} in\n{text}");
    }

    #[test]
    fn requests_are_counted_by_route_method_and_status() {
        let metrics = Metrics::new();
        count(&metrics, Some("shop"), "GET", 200);
        count(&metrics, Some("shop"), "GET", 200);
        count(&metrics, Some("shop"), "BREW", 999);
        count(&metrics, None, "get", 404);
        let text = metrics.encode(&now());
        for line in [
            r#"skep_requests_total{route="shop",method="GET",status="200"} 2"#,
            r#"skep_requests_total{route="shop",method="OTHER",status="0"} 1"#,
            r#"skep_requests_total{route="",method="OTHER",status="404"} 1"#,
            r#"skep_request_bytes_total{route="shop"} 30"#,
            r#"skep_response_bytes_total{route="shop"} 300"#,
            r#"skep_retries_total{route="shop"} 3"#,
            r#"skep_request_duration_seconds_count{route="shop"} 3"#,
            r#"skep_request_duration_seconds_bucket{le="0.01",route="shop"} 0"#,
            r#"skep_request_duration_seconds_bucket{le="0.025",route="shop"} 3"#,
            "skep_upstream_connect_seconds_count 4",
            "skep_upstream_response_seconds_count 0",
        ] {
            has(&text, line);
        }
    }

    #[test]
    fn upgraded_connections_are_counted_but_not_timed() {
        let metrics = Metrics::new();
        count(&metrics, Some("chat"), "GET", 101);
        let text = metrics.encode(&now());
        has(&text, r#"skep_requests_total{route="chat",method="GET",status="101"} 1"#);
        has(&text, r#"skep_request_duration_seconds_count{route="chat"} 0"#);
    }

    #[test]
    fn what_is_read_at_the_scrape_is_told_once_for_each_backend() {
        let metrics = Metrics::new();
        metrics.swapped();
        metrics.set_diagnostics(1, 2, 3);
        let upstreams = vec![upstream("shop.1", true, 2), upstream("shop.2", false, 1), upstream("shop.1", true, 2)];
        let process = Process { resident: Some(4096), open_fds: Some(12) };
        let text = metrics.encode(&Now { upstreams, process, refused_retries: vec![("shop".into(), 5)], ..now() });
        for line in [
            "skep_snapshot_age_seconds 1.5",
            "skep_docker_connected 1",
            "skep_docker_calls_total 12",
            "skep_docker_listings_total 0",
            "skep_docker_reconnects_total 0",
            "skep_access_log_dropped_total 0",
            "skep_connections 3.0",
            "skep_tasks 9",
            "process_resident_memory_bytes 4096",
            "process_open_fds 12",
            "skep_swaps_total 1",
            r#"skep_diagnostics{severity="error"} 1"#,
            r#"skep_diagnostics{severity="info"} 3"#,
            r#"skep_requests_in_flight{service="shop"} 3"#,
            r#"skep_upstream_healthy{service="shop",task="shop.2",backend="shop/shop.2@10.0.0.1:80"} 0"#,
            r#"skep_upstream_in_flight{service="shop",task="shop.1",backend="shop/shop.1@10.0.0.1:80"} 2"#,
            r#"skep_upstream_requests_total{service="shop",task="shop.1",backend="shop/shop.1@10.0.0.1:80"} 7"#,
            r#"skep_upstream_ejected{service="shop",task="shop.2",backend="shop/shop.2@10.0.0.1:80"} 1"#,
            r#"skep_upstream_ejections_total{service="shop",task="shop.2",backend="shop/shop.2@10.0.0.1:80"} 2"#,
            r#"skep_upstream_check_up{service="shop",task="shop.1",backend="shop/shop.1@10.0.0.1:80"} 1"#,
            r#"skep_retry_budget_exhausted_total{service="shop"} 5"#,
            concat!("skep_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            has(&text, line);
        }
        assert!(!metrics.encode(&Now::default()).contains("skep_snapshot_age_seconds"), "no age before the first snapshot");
    }

    #[test]
    fn vanished_routes_take_their_series_along_and_may_return() {
        let metrics = Metrics::new();
        for route in [Some("old"), Some("shop"), None] {
            count(&metrics, route, "GET", 200);
        }
        metrics.keep_routes(["shop"].into_iter());
        let text = metrics.encode(&now());
        assert!(!text.contains("old"), "{text}");
        has(&text, r#"skep_requests_total{route="shop",method="GET",status="200"} 1"#);
        has(&text, r#"skep_requests_total{route="",method="GET",status="200"} 1"#);
        count(&metrics, Some("old"), "GET", 200);
        let text = metrics.encode(&now());
        has(&text, r#"skep_requests_total{route="old",method="GET",status="200"} 1"#);
        has(&text, r#"skep_request_duration_seconds_count{route="old"} 1"#);
    }

    #[test]
    fn recording_and_pruning_at_once_lose_no_later_request() {
        let metrics = Metrics::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..2000).for_each(|_| count(&metrics, Some("shop"), "GET", 200)));
            }
            scope.spawn(|| (0..500).for_each(|_| metrics.keep_routes(std::iter::empty())));
        });
        metrics.keep_routes(std::iter::empty());
        count(&metrics, Some("shop"), "GET", 200);
        has(&metrics.encode(&now()), r#"skep_requests_total{route="shop",method="GET",status="200"} 1"#);
    }

    /// The grammar of the text, as far as it is used: families are announced once, samples belong to the last announced one.
    #[test]
    fn the_text_is_valid() {
        let metrics = Metrics::new();
        count(&metrics, Some("a\"b\\c\nd"), "GET", 200);
        let limits =
            vec![LimitNow { route: "shop".into(), rate_limited: 3, circuit: Some(Standing::Open), mirrored: 2, ..LimitNow::default() }];
        let text = metrics.encode(&Now { upstreams: vec![upstream("shop.1", true, 2)], limits, ..now() });
        has(&text, r#"skep_rate_limited_total{route="shop"} 3"#);
        has(&text, r#"skep_circuit_open{route="shop"} 1"#);
        has(&text, r#"skep_mirrored_total{route="shop",result="sent"} 2"#);
        assert!(text.ends_with("# EOF\n"));
        let (mut announced, mut family, mut kind) = (HashSet::new(), String::new(), String::new());
        let sample = regex::Regex::new(r#"^([a-z_]+)(\{([a-z]+="([^"\\\n]|\\["\\n])*",?)*\})? [0-9.e+-]+$"#).unwrap();
        for line in text.lines().filter(|line| !line.starts_with("# HELP") && *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, type_) = rest.split_once(' ').unwrap();
                assert!(announced.insert(name.to_owned()), "{name} is announced twice");
                (family, kind) = (name.to_owned(), type_.to_owned());
                continue;
            }
            let name = &sample.captures(line).unwrap_or_else(|| panic!("not a sample: {line}"))[1];
            let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let allowed: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                other => panic!("unknown type {other}"),
            };
            assert!(allowed.contains(&suffix), "{line} of {family}, a {kind}");
            assert!(!family.ends_with("_total"), "{family} would end in _total twice");
        }
    }
}
