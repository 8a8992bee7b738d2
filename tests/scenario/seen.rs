//! What is told of requests: timings in the access log and in `Server-Timing`, and traces in a collector that reads OTLP.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use skep::config::{Config, ServerTiming, TraceTrust};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Edge, Upstream, get_path, request, send, stack};

/// A collector: it reads what it gets as OpenTelemetry's own crate does.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    token: Arc<Mutex<String>>,
    /// Answers 503 so many times.
    busy: Arc<Mutex<u32>>,
}

impl Collector {
    async fn start() -> (Collector, String) {
        let collector = Collector::default();
        let router = Router::new().route("/v1/traces", post(Collector::take)).with_state(collector.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (collector, url)
    }

    async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let mut busy = collector.busy.lock().unwrap();
        if *busy > 0 {
            *busy -= 1;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        assert_eq!(headers["content-type"], "application/json");
        *collector.token.lock().unwrap() = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        let request: ExportTraceServiceRequest = serde_json::from_slice(&body).unwrap();
        let spans = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        collector.spans.lock().unwrap().extend(spans);
        StatusCode::OK
    }

    /// The spans, once there are `count`.
    async fn spans(&self, count: usize) -> Vec<Span> {
        for _ in 0..500 {
            let spans = self.spans.lock().unwrap().clone();
            if spans.len() >= count {
                return spans;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never {count} spans: {:?}", self.spans.lock().unwrap());
    }
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn edge(upstream: &str, change: impl FnOnce(&mut Config)) -> Edge {
    Edge::with_config(&stack(&[("skep.host", "web.test"), ("skep.address", upstream)]), change).await
}

fn traced(endpoint: &str, config: &mut Config) {
    config.otlp.endpoint = Some(format!("{endpoint}/v1/traces"));
}

#[tokio::test]
async fn the_access_log_tells_where_the_time_went_and_what_was_reused() {
    let upstream = Upstream::start("web").await;
    let edge = edge(&upstream.address.to_string(), |_| {}).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for path in ["/delay/120", "/", "/"] {
        let answer = sender.send_request(request("GET", "web.test", path, &[])).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    send(edge.http, request("GET", "nobody.test", "/", &[])).await;
    let lines = edge.log_lines(4).await;
    let number = |line: &Value, field: &str| line[field].as_f64().unwrap_or_else(|| panic!("no {field}: {line}"));
    assert!(number(&lines[0], "upstream_ms") >= 120.0);
    for (place, line) in lines.iter().enumerate().take(3) {
        let head = number(line, "wait_ms") + number(line, "connect_ms") + number(line, "upstream_ms");
        // Each is rounded by itself.
        assert!(head <= number(line, "duration_ms") + 0.01, "{line}");
        assert_eq!(line["conn_requests"], place + 1);
    }
    assert_eq!((&lines[0]["reused"], &lines[2]["reused"]), (&false.into(), &true.into()));
    assert!(lines[3].get("wait_ms").is_none() && lines[3].get("reused").is_none() && lines[3]["conn_requests"] == 1);
}

/// What the edge says of itself.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_slow_answer_is_told_and_a_long_stream_is_not() {
    let said = Said::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // For all threads: the workers have their own.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let upstream = Upstream::start("web").await;
    let edge = edge(&upstream.address.to_string(), |config| config.log.slow_request = Some(Duration::from_millis(300))).await;
    let slow = send(edge.http, request("GET", "web.test", "/delay/400", &[])).await;
    // Its events take a second.
    send(edge.http, request("GET", "web.test", "/events", &[])).await;
    send(edge.http, request("GET", "web.test", "/", &[])).await;
    edge.log_lines(3).await;
    let text = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("slow request") && line.contains("web.test")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    for part in [slow.header("x-request-id"), "WARN", "/delay/400", "head_ms=4", "suppressed=0"] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
}

#[tokio::test]
async fn server_timing_is_told_to_whom_it_is_meant() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    // setting, are we a trusted network, do we ask, are we told
    let table = [
        (ServerTiming::Off, true, true, false),
        (ServerTiming::On, false, false, true),
        (ServerTiming::OnRequest, true, true, true),
        (ServerTiming::OnRequest, true, false, false),
        (ServerTiming::OnRequest, false, true, false),
    ];
    for (setting, trusted, asking, told) in table {
        let edge = edge(&address, |config| {
            config.proxy.server_timing = setting;
            config.proxy.trusted_proxies = if trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
        })
        .await;
        let headers: &[(&str, &str)] = if asking { &[("x-server-timing", "1")] } else { &[] };
        let timing = send(edge.http, request("GET", "web.test", "/", headers)).await.header("server-timing").to_owned();
        let parts: Vec<&str> = timing.split(", ").filter_map(|part| part.split_once(";dur=")).map(|(name, _)| name).collect();
        let expected: &[&str] = if told { &["edge", "connect", "upstream"] } else { &[] };
        assert_eq!(parts, expected, "{setting:?} {trusted} {asking}: {timing}");
        let own = send(edge.http, request("GET", "nobody.test", "/", headers)).await;
        assert_eq!((own.status, own.header("server-timing").starts_with("edge;dur=")), (404, told));
    }
}

#[tokio::test]
async fn untraced_requests_keep_their_trace_headers_as_they_came() {
    let upstream = Upstream::start("web").await;
    let edge = edge(&upstream.address.to_string(), |_| {}).await;
    let sent = [("traceparent", "anything at all"), ("tracestate", "a=b")];
    let seen = send(edge.http, request("GET", "web.test", "/", &sent)).await;
    assert_eq!((seen.upstream_saw("traceparent").as_str(), seen.upstream_saw("tracestate").as_str()), ("anything at all", "a=b"));
    assert!(edge.log_lines(1).await[0].get("trace_id").is_none());
}

#[tokio::test]
async fn a_trusted_trace_is_continued_and_a_stranger_s_begins_anew() {
    let upstream = Upstream::start("web").await;
    let (collector, url) = Collector::start().await;
    // trust, is the peer a trusted proxy, is the trace continued
    let table = [
        (TraceTrust::TrustedProxies, true, true),
        (TraceTrust::TrustedProxies, false, false),
        (TraceTrust::All, false, true),
        (TraceTrust::None, true, false),
    ];
    for (trust, trusted, continued) in table {
        collector.spans.lock().unwrap().clear();
        let edge = edge(&upstream.address.to_string(), |config| {
            traced(&url, config);
            config.otlp.trust = trust;
            config.proxy.trusted_proxies = if trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
        })
        .await;
        let sent = [("traceparent", PARENT), ("tracestate", "a=b")];
        let seen = send(edge.http, request("GET", "web.test", "/x?y=1", &sent)).await;
        let spans = collector.spans(2).await;
        let (server, client) = (&spans[0], &spans[1]);
        let trace = hex(&server.trace_id);
        assert_eq!(seen.upstream_saw("traceparent"), format!("00-{trace}-{}-01", hex(&client.span_id)), "{trust:?}");
        assert_eq!(seen.upstream_saw("tracestate"), if continued { "a=b" } else { "" });
        assert_eq!(trace == "4bf92f3577b34da6a3ce929d0e0e4736", continued);
        assert_eq!(hex(&server.parent_span_id), if continued { "00f067aa0ba902b7" } else { "" });
        assert_eq!((&client.parent_span_id, &client.trace_id), (&server.span_id, &server.trace_id));
        assert_eq!(edge.log_lines(1).await[0]["trace_id"], trace);
        edge.running.stop().await;
    }
}

#[tokio::test]
async fn each_try_is_a_span_and_the_end_sends_what_is_queued() {
    let upstream = Upstream::start("web").await;
    let (collector, url) = Collector::start().await;
    *collector.busy.lock().unwrap() = 1;
    let address = format!("127.0.0.1:1, {}", upstream.address);
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "authorization: Bearer s3cret\n").unwrap();
    let edge = edge(&address, |config| {
        traced(&url, config);
        config.otlp.headers_file = Some(token);
    })
    .await;
    for _ in 0..20 {
        assert_eq!(send(edge.http, request("GET", "web.test", "/", &[])).await.status, 200);
    }
    edge.running.stop().await;
    let spans = collector.spans(40).await;
    let (failed, answered): (Vec<&Span>, Vec<&Span>) =
        spans.iter().filter(|span| span.kind == 3).partition(|span| span.status.as_ref().is_some_and(|status| status.code == 2));
    assert_eq!((answered.len(), spans.iter().filter(|span| span.kind == 2).count()), (20, 20));
    assert!(!failed.is_empty(), "the first task is not there, and some were sent to it");
    assert_eq!(*collector.token.lock().unwrap(), "Bearer s3cret");
}

#[tokio::test]
async fn a_share_of_the_traces_is_sent_and_all_have_an_id() {
    let upstream = Upstream::start("web").await;
    let (collector, url) = Collector::start().await;
    let edge = edge(&upstream.address.to_string(), |config| {
        traced(&url, config);
        config.otlp.sample = 0.0;
    })
    .await;
    let seen = send(edge.http, request("GET", "web.test", "/", &[])).await.upstream_saw("traceparent");
    let id = edge.log_lines(1).await[0]["trace_id"].as_str().unwrap().to_owned();
    assert!(seen.contains(&id) && seen.ends_with("-00"), "{seen}");
    edge.running.stop().await;
    assert_eq!(collector.spans.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_collector_that_is_away_hurts_no_request_and_is_counted() {
    let upstream = Upstream::start("web").await;
    // It accepts and never answers; the queue behind it is bounded.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    for url in ["http://127.0.0.1:1", &silent_url] {
        let edge = edge(&upstream.address.to_string(), |config| traced(url, config)).await;
        let began = Instant::now();
        for _ in 0..50 {
            assert_eq!(send(edge.http, request("GET", "web.test", "/", &[])).await.status, 200);
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        if url == "http://127.0.0.1:1" {
            let mut metrics = String::new();
            for _ in 0..200 {
                metrics = get_path(edge.admin, "admin", "/metrics").await.body;
                if !metrics.contains("skep_spans_dropped_total 0\n") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(metrics.contains("skep_spans_dropped_total ") && !metrics.contains("skep_spans_dropped_total 0\n"), "{metrics}");
        }
        let began = Instant::now();
        edge.running.stop().await;
        assert!(began.elapsed() < Duration::from_secs(15), "an absent collector does not hold up the end");
    }
}
