//! A request as OpenTelemetry spans in OTLP's JSON (opentelemetry-proto 1.x, "JSON Protobuf Encoding"): one for the request,
//! one for each try on a task. Names and attributes are those of the semantic conventions for HTTP, ours begin with `skep.`.

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use http::header;
use serde::{Serialize, Serializer};

use super::{Attempt, LONG, Record, SHORT, SpanId, Trace, TraceId, clip};

/// Methods by which a span may be named; anybody can invent others (RFC 9110 and 5789).
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
/// `SPAN_KIND_SERVER`, `SPAN_KIND_CLIENT`, `STATUS_CODE_ERROR`.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
const ERROR: u8 = 2;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span<'a> {
    trace_id: TraceId,
    span_id: SpanId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<SpanId>,
    name: Cow<'a, str>,
    kind: u8,
    #[serde(serialize_with = "as_text")]
    start_time_unix_nano: i128,
    #[serde(serialize_with = "as_text")]
    end_time_unix_nano: i128,
    attributes: Attributes<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
}

#[derive(Serialize)]
struct Status<'a> {
    code: u8,
    message: Cow<'a, str>,
}

#[derive(Default, Serialize)]
#[serde(transparent)]
struct Attributes<'a>(Vec<Attribute<'a>>);

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Value<'a> {
    StringValue(Cow<'a, str>),
    #[serde(serialize_with = "as_text")]
    IntValue(u64),
}

/// 64-bit numbers are text in this encoding.
fn as_text<S: Serializer, T: std::fmt::Display>(number: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The spans of `record`, with commas between them; `None`: its trace is not sampled.
pub(super) fn spans(record: &Record<'_>) -> Option<String> {
    let trace = record.trace.filter(|trace| trace.sampled)?;
    let clients = trace.attempts.iter().enumerate().map(|(number, attempt)| client(record, trace, attempt, number));
    let mut bytes = Vec::with_capacity(2048);
    for span in std::iter::once(server(record, trace)).chain(clients) {
        if !bytes.is_empty() {
            bytes.push(b',');
        }
        // Texts and numbers into a Vec: it cannot fail.
        serde_json::to_writer(&mut bytes, &span).ok()?;
    }
    String::from_utf8(bytes).ok()
}

/// What a collector takes: `spans` of many requests, each as [`spans`] made it.
pub(super) fn export(service_name: &str, spans: &[String]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let text = |key: &str, text: &str| serde_json::json!({ "key": key, "value": { "stringValue": text } });
    let resource = serde_json::json!({ "attributes": [text("service.name", service_name), text("service.version", version)] });
    let scope = serde_json::json!({ "name": "skep", "version": version });
    let spans = spans.join(",");
    format!(r#"{{"resourceSpans":[{{"resource":{resource},"scopeSpans":[{{"scope":{scope},"spans":[{spans}]}}]}}]}}"#)
}

fn server<'a>(record: &'a Record<'_>, trace: &Trace) -> Span<'a> {
    let mut attributes = Attributes::default();
    let method = attributes.method(record.method);
    attributes.text("url.scheme", if record.secure { "https" } else { "http" });
    attributes.text("url.path", clip(record.path, LONG));
    attributes.text("url.query", clip(record.query, LONG));
    attributes.text("server.address", cut(record.host()));
    attributes.text("client.address", record.client.map(|client| client.to_string()).unwrap_or_default());
    attributes.text("network.protocol.version", record.version.trim_start_matches("HTTP/").trim_end_matches(".0"));
    attributes.text("user_agent.original", cut(record.header(header::USER_AGENT)));
    attributes.status(record.status);
    attributes.number("http.request.body.size", record.bytes_in);
    attributes.number("http.response.body.size", record.bytes_out);
    attributes.text("skep.request_id", clip(record.request_id, SHORT));
    attributes.text("skep.route", record.route.map_or("", |route| &**route));
    attributes.text("skep.service", record.service.unwrap_or(""));
    let failed = record.status >= 500 || record.status == 0;
    if failed {
        attributes.text("error.type", record.status.to_string());
    }
    Span {
        trace_id: trace.id,
        span_id: trace.span,
        parent_span_id: trace.parent,
        // Routes are few and named by labels: a name that can be grouped by.
        name: record.route.map_or(Cow::Borrowed(method), |route| format!("{method} {route}").into()),
        kind: SERVER,
        start_time_unix_nano: record.at.as_nanosecond(),
        end_time_unix_nano: nanoseconds(record, record.duration),
        attributes,
        status: failed.then(|| Status { code: ERROR, message: clip(record.error.as_deref().unwrap_or(""), SHORT) }),
    }
}

fn client<'a>(record: &'a Record<'_>, trace: &'a Trace, attempt: &'a Attempt, number: usize) -> Span<'a> {
    let mut attributes = Attributes::default();
    let name = attributes.method(record.method);
    attributes.text("server.address", attempt.address.ip().to_string());
    attributes.number("server.port", attempt.address.port().into());
    attributes.text("skep.task", &*attempt.task);
    attributes.text("skep.backend", &*attempt.backend);
    if number > 0 {
        attributes.number("http.request.resend_count", number as u64);
    }
    let answered = attempt.error.is_none() && record.upstream.is_some();
    if answered {
        attributes.status(record.status);
    }
    let error: Option<Cow<'_, str>> = match attempt.error {
        Some(error) => Some(error.into()),
        None if !answered => Some("no answer".into()),
        None => (record.status >= 400).then(|| record.status.to_string().into()),
    };
    attributes.text("error.type", error.clone().unwrap_or_default());
    let during: Range<Duration> = attempt.began..attempt.ended.unwrap_or(record.duration);
    Span {
        trace_id: trace.id,
        span_id: attempt.span,
        parent_span_id: Some(trace.span),
        name: name.into(),
        kind: CLIENT,
        start_time_unix_nano: nanoseconds(record, during.start),
        end_time_unix_nano: nanoseconds(record, during.end),
        attributes,
        status: error.map(|message| Status { code: ERROR, message }),
    }
}

/// In Unix time, `after` the request's head.
fn nanoseconds(record: &Record<'_>, after: Duration) -> i128 {
    record.at.as_nanosecond() + after.as_nanos().cast_signed()
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => clip(text, SHORT),
        Cow::Owned(text) => clip(&text, SHORT).into_owned().into(),
    }
}

impl<'a> Attributes<'a> {
    /// Empty texts are left out.
    fn text(&mut self, key: &'static str, text: impl Into<Cow<'a, str>>) {
        let text = text.into();
        if !text.is_empty() {
            self.0.push(Attribute { key, value: Value::StringValue(text) });
        }
    }

    fn number(&mut self, key: &'static str, number: u64) {
        self.0.push(Attribute { key, value: Value::IntValue(number) });
    }

    fn status(&mut self, status: u16) {
        if status > 0 {
            self.number("http.response.status_code", status.into());
        }
    }

    /// Returns what a span is named by.
    fn method(&mut self, method: &'a str) -> &'a str {
        if METHODS.contains(&method) {
            self.text("http.request.method", method);
            return method;
        }
        self.text("http.request.method", "_OTHER");
        self.text("http.request.method_original", clip(method, SHORT));
        "HTTP"
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, LazyLock};

    use http::{HeaderMap, HeaderValue, header};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::Span as Read;
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::Parent;

    static ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("shop_web/api"));
    static HEADERS: LazyLock<HeaderMap> =
        LazyLock::new(|| HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static("curl/8"))]));

    fn record(trace: &Trace) -> Record<'_> {
        Record {
            at: "2026-03-01T10:00:00Z".parse().unwrap(),
            request_id: "r1",
            trace: Some(trace),
            client: Some([192, 0, 2, 7].into()),
            secure: true,
            user: None,
            method: "GET",
            host: "a.test",
            path: "/a",
            query: "b=1",
            version: "HTTP/2.0",
            status: 200,
            bytes_in: 3,
            bytes_out: 4,
            duration: Duration::from_millis(20),
            tls: None,
            wait: Some(Duration::from_millis(1)),
            connect: Some(Duration::from_millis(1)),
            upstream: Some(Duration::from_millis(10)),
            reused: Some(false),
            nth: 1,
            route: Some(&ROUTE),
            service: Some("shop_web"),
            task: Some("shop_web.1"),
            backend: Some("b"),
            retries: 1,
            headers: &HEADERS,
            error: None,
        }
    }

    /// Two tries, of which the second was answered.
    fn retried() -> Trace {
        let parent = Parent { trace: TraceId::new(0xa), span: SpanId::new(0xb), sampled: true };
        let mut trace = Trace::begin(Some(parent), 1.0, 1, 0xc);
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let attempt = |span, began| Attempt {
            span: SpanId::new(span),
            began: Duration::from_millis(began),
            ended: None,
            address,
            task: "shop_web.1".into(),
            backend: "b".into(),
            error: None,
        };
        trace.attempt(attempt(0xd, 1));
        trace.failed(Duration::from_millis(3), "connect");
        trace.attempt(attempt(0xe, 4));
        trace
    }

    /// As a collector reads it.
    fn read(record: &Record<'_>) -> Vec<Read> {
        let text = export("edge", &[spans(record).expect("a sampled trace")]);
        let mut request: ExportTraceServiceRequest = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let resource = request.resource_spans.remove(0);
        assert_eq!(format!("{:?}", resource.resource.unwrap().attributes[0]).matches("edge").count(), 1);
        resource.scope_spans.into_iter().flat_map(|scope| scope.spans).collect()
    }

    fn attribute(span: &Read, key: &str) -> String {
        use opentelemetry_proto::tonic::common::v1::any_value::Value::{IntValue, StringValue};
        let found = span.attributes.iter().find(|attribute| attribute.key == key);
        match found.and_then(|found| found.value.clone()?.value) {
            Some(StringValue(text)) => text,
            Some(IntValue(number)) => number.to_string(),
            Some(other) => panic!("{other:?}"),
            None => String::new(),
        }
    }

    #[test]
    fn a_request_is_a_server_span_with_a_client_span_for_each_try() {
        let trace = retried();
        let spans = read(&record(&trace));
        let ids: Vec<(u8, u8, i32)> = spans.iter().map(|span| (span.parent_span_id[7], span.span_id[7], span.kind)).collect();
        assert_eq!(ids, [(0xb, 0xc, 2), (0xc, 0xd, 3), (0xc, 0xe, 3)]);
        assert!(spans.iter().all(|span| span.trace_id[15] == 0xa && span.trace_id.len() == 16 && span.span_id.len() == 8));
        let (server, failed, answered) = (&spans[0], &spans[1], &spans[2]);
        assert_eq!((server.name.as_str(), answered.name.as_str()), ("GET shop_web/api", "GET"));
        let second = 1_772_359_200_000_000_000;
        assert_eq!((server.start_time_unix_nano, server.end_time_unix_nano), (second, second + 20_000_000));
        assert_eq!((failed.start_time_unix_nano, failed.end_time_unix_nano), (second + 1_000_000, second + 3_000_000));
        assert_eq!((answered.start_time_unix_nano, answered.end_time_unix_nano), (second + 4_000_000, second + 20_000_000));
        // span, attribute, value
        let table = [
            (server, "http.request.method", "GET"),
            (server, "url.scheme", "https"),
            (server, "url.path", "/a"),
            (server, "url.query", "b=1"),
            (server, "server.address", "a.test"),
            (server, "client.address", "192.0.2.7"),
            (server, "network.protocol.version", "2"),
            (server, "user_agent.original", "curl/8"),
            (server, "http.response.status_code", "200"),
            (server, "skep.route", "shop_web/api"),
            (server, "error.type", ""),
            (failed, "error.type", "connect"),
            (failed, "http.response.status_code", ""),
            (answered, "http.response.status_code", "200"),
            (answered, "http.request.resend_count", "1"),
            (answered, "server.port", "80"),
            (answered, "skep.task", "shop_web.1"),
        ];
        for (span, key, value) in table {
            assert_eq!(attribute(span, key), value, "{key}");
        }
        assert!(server.status.is_none() && failed.status.as_ref().unwrap().code == 2);
    }

    #[test]
    fn failures_of_ours_are_errors_and_a_client_s_mistake_is_none() {
        let trace = Trace::begin(None, 1.0, 1, 2);
        let of = |status, error: &'static str| read(&Record { status, error: Some(error.into()), ..record(&trace) }).remove(0);
        let status = of(502, "upstream failed").status.unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "upstream failed"));
        assert!(of(404, "no route").status.is_none());
    }

    #[test]
    fn what_is_not_sampled_is_not_told() {
        let trace = Trace::begin(None, 0.0, 1, 2);
        assert_eq!(spans(&record(&trace)), None);
        assert_eq!(spans(&Record { trace: None, ..record(&trace) }), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_and_bounded(method in "\\PC{1,20}", path in "(?s).{0,60}", query in "x{0,5000}") {
            let trace = Trace::begin(None, 1.0, 1, 2);
            let span = read(&Record { method: &method, path: &path, query: &query, ..record(&trace) }).remove(0);
            prop_assert_eq!(attribute(&span, "url.path"), path);
            prop_assert!(attribute(&span, "url.query").len() <= LONG + 3);
        }
    }
}
