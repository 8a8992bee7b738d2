//! What is told of each request: the access record, and its lines for people and machines.
//! Nearly every byte of a record is chosen by a stranger, so the lines escape, bound and never trust it.

pub mod admin;
pub mod backup;
pub mod certificates;
mod limits;
pub mod log;
pub mod otlp;
pub mod process;
pub mod prometheus;
pub mod signing;
pub mod slow;
mod span;
mod tally;
mod trace;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

pub use self::trace::{Attempt, Parent, SpanId, TRACEPARENT, TRACESTATE, Trace, TraceId};

/// Longest path, query or referrer in a line, in bytes before escaping; what is cut off ends in `...`.
const LONG: usize = 2048;
/// Longest value of any other field.
const SHORT: usize = 512;

/// What is known of one finished request. The access log line and the metrics come from it and from nothing else.
/// It borrows: a request that nobody writes down costs no allocation here.
#[derive(Clone, Debug, PartialEq)]
pub struct Record<'a> {
    pub at: Timestamp,
    pub request_id: &'a str,
    /// `None`: requests are not traced.
    pub trace: Option<&'a Trace>,
    pub client: Option<IpAddr>,
    /// The client used TLS, as far as we know.
    pub secure: bool,
    /// Who signed in, where somebody has to.
    pub user: Option<&'a str>,
    pub method: &'a str,
    /// As routing read it; where it is empty, a line tells what the request's `Host` says.
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: &'static str,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    /// Of the client's TLS handshake, on the first request of a connection.
    pub tls: Option<Duration>,
    /// From the request's head until the last try on a task began: queues, sign-in, failed tries before.
    pub wait: Option<Duration>,
    /// Until an upstream connection stood.
    pub connect: Option<Duration>,
    /// From then until the response's head.
    pub upstream: Option<Duration>,
    /// The upstream connection had carried another request before.
    pub reused: Option<bool>,
    /// Which request of its client connection this is, from 1; 0: unknown.
    pub nth: u32,
    /// Route id; `None`: no route matched.
    pub route: Option<&'a Arc<str>>,
    pub service: Option<&'a str>,
    pub task: Option<&'a str>,
    pub backend: Option<&'a str>,
    pub retries: u32,
    /// The request's, for `Host`, `User-Agent` and `Referer`; looked into only when a line is written.
    pub headers: &'a HeaderMap,
    /// Why we answered ourselves or broke off, in words.
    pub error: Option<Cow<'a, str>>,
}

impl Record<'_> {
    /// Protocols of connections that are carried as they are; in place of `version` and `method`. Their statuses are HTTP's by analogy.
    pub const TCP: &'static str = "TCP";
    pub const TLS: &'static str = "TLS";

    /// Is it a whole connection, without a request that anybody saw? Its length says nothing of speed.
    pub fn is_connection(&self) -> bool {
        [Record::TCP, Record::TLS].contains(&self.version)
    }

    fn header(&self, name: HeaderName) -> Cow<'_, str> {
        self.headers.get(name).map_or(Cow::Borrowed(""), |value| String::from_utf8_lossy(value.as_bytes()))
    }

    /// From the request's head to its answer's; where a task gave none, to the end.
    pub fn to_head(&self) -> Duration {
        match (self.wait, self.connect, self.upstream) {
            (Some(wait), Some(connect), Some(upstream)) => wait + connect + upstream,
            _ => self.duration,
        }
    }

    fn host(&self) -> Cow<'_, str> {
        if self.host.is_empty() { self.header(header::HOST) } else { Cow::Borrowed(self.host) }
    }
}

/// The fields of a JSON line in their order; absent and empty ones are left out.
#[derive(Serialize)]
struct JsonLine<'a> {
    #[serde(serialize_with = "milliseconds_of_time")]
    time: Timestamp,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<TraceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Cow<'a, str>>,
    method: Cow<'a, str>,
    host: Cow<'a, str>,
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    query: Cow<'a, str>,
    version: &'static str,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reused: Option<bool>,
    #[serde(skip_serializing_if = "is_unknown")]
    conn_requests: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<Cow<'a, str>>,
    retries: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    referer: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, str>>,
}

/// One JSON object without a line break: what machines read.
pub fn json_line(record: &Record<'_>) -> String {
    let (host, user_agent, referer) = (record.host(), record.header(header::USER_AGENT), record.header(header::REFERER));
    let line = JsonLine {
        time: record.at,
        request_id: clip(record.request_id, SHORT),
        trace_id: record.trace.map(|trace| trace.id),
        client: record.client,
        user: record.user.map(|user| clip(user, SHORT)),
        method: clip(record.method, SHORT),
        host: clip(&host, SHORT),
        path: clip(record.path, LONG),
        query: clip(record.query, LONG),
        version: record.version,
        status: record.status,
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        duration_ms: milliseconds(record.duration),
        tls_ms: record.tls.map(milliseconds),
        wait_ms: record.wait.map(milliseconds),
        connect_ms: record.connect.map(milliseconds),
        upstream_ms: record.upstream.map(milliseconds),
        reused: record.reused,
        conn_requests: record.nth,
        route: optional(record.route.map(|route| &**route)),
        service: optional(record.service),
        task: optional(record.task),
        backend: optional(record.backend),
        retries: record.retries,
        user_agent: clip(&user_agent, SHORT),
        referer: clip(&referer, LONG),
        error: optional(record.error.as_deref()),
    };
    let mut bytes = Vec::with_capacity(768);
    let written = line.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Terminal));
    debug_assert!(written.is_ok(), "text, numbers and a Vec cannot fail");
    String::from_utf8(bytes).unwrap_or_default()
}

/// The combined log format with the host before it (`%v %h - - [%t] "%r" %s %b "%{Referer}" "%{User-Agent}"`): what log tools read.
pub fn common_line(record: &Record<'_>) -> String {
    let mut line = String::with_capacity(512);
    word(&mut line, &record.host());
    line.push(' ');
    match record.client {
        // Writing into a String cannot fail, here and below.
        Some(client) => _ = write!(line, "{client}"),
        None => line.push('-'),
    }
    line.push_str(" - ");
    word(&mut line, record.user.unwrap_or_default());
    _ = write!(line, " [{}] \"", record.at.strftime("%d/%b/%Y:%H:%M:%S +0000"));
    escape(&mut line, &clip(record.method, SHORT), false);
    line.push(' ');
    escape(&mut line, &clip(record.path, LONG), true);
    if !record.query.is_empty() {
        line.push('?');
        escape(&mut line, &clip(record.query, LONG), true);
    }
    _ = write!(line, " {}\" {} {} ", record.version, record.status, record.bytes_out);
    quoted(&mut line, &record.header(header::REFERER), LONG);
    line.push(' ');
    quoted(&mut line, &record.header(header::USER_AGENT), SHORT);
    line
}

/// A field without quotes around it; `-` stands for nothing.
fn word(line: &mut String, text: &str) {
    if text.is_empty() { line.push('-') } else { escape(line, &clip(text, SHORT), true) }
}

fn quoted(line: &mut String, text: &str, limit: usize) {
    line.push('"');
    if text.is_empty() {
        line.push('-')
    } else {
        escape(line, &clip(text, limit), false)
    }
    line.push('"');
}

/// Escapes as Apache and nginx do: printable ASCII stays, quotes and backslashes get one, any other byte is `\xHH`.
fn escape(line: &mut String, text: &str, spaces: bool) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => line.extend(['\\', char::from(byte)]),
            b' ' if !spaces => line.push(' '),
            b'!'..=b'~' => line.push(char::from(byte)),
            _ => _ = write!(line, "\\x{byte:02x}"),
        }
    }
}

/// At most `limit` bytes of `text`, with dots for the rest.
fn clip(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}...", &text[..end]))
}

fn optional(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.map(|text| clip(text, SHORT))
}

/// With three digits after the point: more is noise.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn is_unknown(nth: &u32) -> bool {
    *nth == 0
}

/// RFC 3339 with milliseconds: always of the same length, so that lines sort as text.
fn milliseconds_of_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

/// Compact JSON that is safe to print on a terminal: beside what JSON wants escaped, also what moves a cursor or turns text around.
struct Terminal;

impl Terminal {
    fn is_safe(letter: char) -> bool {
        let invisible = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        !letter.is_control() && !invisible
    }
}

impl Formatter for Terminal {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|letter| !Terminal::is_safe(letter)) {
            let (safe, tail) = rest.split_at(at);
            writer.write_all(safe.as_bytes())?;
            let mut letters = tail.chars();
            if let Some(letter) = letters.next() {
                write!(writer, "\\u{:04x}", u32::from(letter))?;
            }
            rest = letters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::HeaderValue;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    static ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("shop_web/api"));
    static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| headers("curl/8", "https://example.com/"));
    static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    fn headers(user_agent: &str, referer: &str) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).expect("a header's value");
        HeaderMap::from_iter([(header::USER_AGENT, value(user_agent)), (header::REFERER, value(referer))])
    }

    fn record() -> Record<'static> {
        Record {
            at: "2026-03-01T10:00:00.5Z".parse().expect("a time"),
            request_id: "r1",
            trace: None,
            client: Some(IpAddr::from([192, 0, 2, 7])),
            secure: false,
            user: None,
            method: "GET",
            host: "app.example.com",
            path: "/a",
            query: "b=1",
            version: "HTTP/1.1",
            status: 200,
            bytes_in: 3,
            bytes_out: 4,
            duration: Duration::from_nanos(12_345_678),
            tls: Some(Duration::from_micros(700)),
            wait: Some(Duration::from_micros(40)),
            connect: Some(Duration::from_millis(1)),
            upstream: Some(Duration::from_micros(10_500)),
            reused: Some(true),
            nth: 3,
            route: Some(&ROUTE),
            service: Some("shop_web"),
            task: Some("shop_web.2"),
            backend: Some("shop_web/shop_web.2@10.0.1.3:80"),
            retries: 1,
            headers: &HEADERS,
            error: Some("broke off".into()),
        }
    }

    fn bare() -> Record<'static> {
        Record {
            client: None,
            request_id: "",
            host: "",
            query: "",
            tls: None,
            wait: None,
            connect: None,
            upstream: None,
            reused: None,
            nth: 0,
            route: None,
            service: None,
            task: None,
            backend: None,
            headers: &NO_HEADERS,
            error: None,
            ..record()
        }
    }

    #[test]
    fn a_json_line_has_every_field_in_its_order() {
        assert_eq!(
            json_line(&record()),
            concat!(
                r#"{"time":"2026-03-01T10:00:00.500Z","request_id":"r1","client":"192.0.2.7","method":"GET","host":"app.example.com","#,
                r#""path":"/a","query":"b=1","version":"HTTP/1.1","status":200,"bytes_in":3,"bytes_out":4,"duration_ms":12.346,"#,
                r#""tls_ms":0.7,"wait_ms":0.04,"connect_ms":1.0,"upstream_ms":10.5,"reused":true,"conn_requests":3,"route":"shop_web/api","service":"shop_web","task":"shop_web.2","#,
                r#""backend":"shop_web/shop_web.2@10.0.1.3:80","retries":1,"user_agent":"curl/8","referer":"https://example.com/","#,
                r#""error":"broke off"}"#
            )
        );
    }

    #[test]
    fn a_traced_request_tells_its_trace() {
        let trace = Trace::begin(None, 1.0, 0xabc, 1);
        let line = json_line(&Record { trace: Some(&trace), ..record() });
        assert!(line.contains(r#""request_id":"r1","trace_id":"00000000000000000000000000000abc","client""#), "{line}");
    }

    #[test]
    fn the_time_to_the_head_ends_where_the_answer_begins() {
        assert_eq!(record().to_head(), Duration::from_micros(40 + 1_000 + 10_500));
        assert_eq!(bare().to_head(), bare().duration);
    }

    #[test]
    fn what_is_absent_is_left_out() {
        assert_eq!(
            json_line(&bare()),
            concat!(
                r#"{"time":"2026-03-01T10:00:00.500Z","method":"GET","host":"","path":"/a","version":"HTTP/1.1","status":200,"#,
                r#""bytes_in":3,"bytes_out":4,"duration_ms":12.346,"retries":1}"#
            )
        );
        assert_eq!(common_line(&bare()), r#"- - - - [01/Mar/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 4 "-" "-""#);
    }

    #[test]
    fn a_common_line_is_the_combined_format_after_the_host() {
        assert_eq!(
            common_line(&record()),
            r#"app.example.com 192.0.2.7 - - [01/Mar/2026:10:00:00 +0000] "GET /a?b=1 HTTP/1.1" 200 4 "https://example.com/" "curl/8""#
        );
    }

    #[test]
    fn strangers_cannot_forge_lines_or_drive_a_terminal() {
        let cases = [
            // text, in JSON, in the common format
            ("a\nb", r"a\nb", r"a\x0ab"),
            ("a\"b\\", r#"a\"b\\"#, r#"a\"b\\"#),
            ("\u{1b}[2J", r"\u001b[2J", r"\x1b[2J"),
            ("\u{7f}\u{9b}2J", r"\u007f\u009b2J", r"\x7f\xc2\x9b2J"),
            ("\u{202e}txt", r"\u202etxt", r"\xe2\x80\xaetxt"),
            ("grüß", "grüß", r"gr\xc3\xbc\xc3\x9f"),
        ];
        for (text, json, common) in cases {
            let record = Record { path: text, ..bare() };
            assert!(json_line(&record).contains(&format!(r#""path":"{json}""#)), "{text:?}: {}", json_line(&record));
            assert!(common_line(&record).contains(&format!(r#""GET {common} HTTP/1.1""#)), "{text:?}: {}", common_line(&record));
        }
        let record = Record { host: "a b", path: "/c d", ..bare() };
        assert_eq!(common_line(&record), r#"a\x20b - - - [01/Mar/2026:10:00:00 +0000] "GET /c\x20d HTTP/1.1" 200 4 "-" "-""#);
    }

    #[test]
    fn headers_are_told_in_any_bytes_and_host_only_where_routing_had_none() {
        let mut headers = headers("a\"b\\\tc", "ok");
        headers.insert(header::REFERER, HeaderValue::from_bytes(b"gr\xfc\xdf").expect("obs-text"));
        headers.insert(header::HOST, HeaderValue::from_static("Sent.test:80"));
        let record = Record { headers: &headers, ..bare() };
        let read: Value = serde_json::from_str(&json_line(&record)).expect("JSON");
        assert_eq!((&read["user_agent"], &read["referer"]), (&Value::from("a\"b\\\tc"), &Value::from("gr\u{fffd}\u{fffd}")));
        assert_eq!(read["host"], "Sent.test:80");
        assert!(common_line(&record).ends_with(r#" "gr\xef\xbf\xbd\xef\xbf\xbd" "a\"b\\\x09c""#), "{}", common_line(&record));
        assert!(common_line(&Record { host: "routed.test", ..record }).starts_with("routed.test "));
    }

    #[test]
    fn fields_are_bounded_and_cut_between_letters() {
        assert_eq!(clip("abc", 3), "abc");
        assert_eq!(clip("abcd", 3), "abc...");
        assert_eq!(clip("aüü", 2), "a...");
        let long = "x".repeat(100_000);
        let headers = headers(&long, &long);
        let record = Record { path: &long, query: &long, host: &long, headers: &headers, ..bare() };
        assert!(json_line(&record).len() < 10_000 && common_line(&record).len() < 10_000);
    }

    proptest! {
        #[test]
        fn any_text_makes_one_printable_line_that_reads_back(host in ".{0,40}", path in "(?s).{0,40}", agent in "\\PC{0,40}") {
            let headers = headers(&agent, "");
            let record = Record { host: &host, path: &path, headers: &headers, ..record() };
            let line = json_line(&record);
            prop_assert!(line.chars().all(Terminal::is_safe));
            let read: Value = serde_json::from_str(&line).expect("JSON");
            prop_assert_eq!(read["host"].as_str(), Some(host.as_str()));
            prop_assert_eq!(read["path"].as_str(), Some(path.as_str()));
            prop_assert_eq!(read["user_agent"].as_str().unwrap_or(""), agent);
            prop_assert!(common_line(&record).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }
}
