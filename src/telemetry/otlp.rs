//! Spans on their way to an OpenTelemetry collector: a bounded queue that requests put them into, and one task that sends
//! them in batches by OTLP/HTTP. A request never waits for a collector; what finds the queue full is dropped and counted.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Record;
use super::span::{export, spans};
use crate::config::Otlp;
use crate::outbound::causes;

/// Requests whose spans wait for the sender.
const QUEUE: usize = 4096;
/// Their bytes, at most: strangers choose the length of their paths.
const QUEUED_BYTES: usize = 16 * 1024 * 1024;
/// Requests that are sent together, at most.
const BATCH: usize = 512;
/// How long a batch is gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Tries of one batch; the wait between them doubles.
const TRIES: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long the end of the process waits for the last batch.
const LAST_BATCH: Duration = Duration::from_secs(2);
/// So much of a collector's answer is read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Letters of what it says of refused spans.
const LONGEST_WORDS: usize = 200;
/// A file of headers is not longer than this.
const LONGEST_HEADERS: u64 = 64 * 1024;

/// Where finished requests leave their spans.
pub struct Spans {
    queue: mpsc::Sender<Queued>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    dropped: AtomicU64,
    queued_bytes: AtomicUsize,
}

enum Queued {
    /// Those of one request.
    Spans(String),
    /// To be told when everything before it was sent.
    Flush(oneshot::Sender<()>),
}

/// The sending half: to be spawned.
pub struct Exporter {
    queue: mpsc::Receiver<Queued>,
    counts: Arc<Counts>,
    client: Client<HttpConnector, Full<Bytes>>,
    endpoint: Uri,
    headers: HeaderMap,
    service_name: String,
    /// The last batch was lost; said once, not once a batch.
    failing: bool,
}

/// A queue and its exporter; `None`: requests are not traced.
///
/// # Errors
/// In words: the headers' file cannot be read or is not made of headers. Nothing of its content is told.
pub fn open(settings: &Otlp) -> Result<Option<(Spans, Exporter)>, String> {
    let Some(endpoint) = &settings.endpoint else { return Ok(None) };
    let endpoint = endpoint.parse().map_err(|error| format!("otlp.endpoint is not a URL: {error}"))?;
    let mut headers = settings.headers_file.as_deref().map_or_else(|| Ok(HeaderMap::new()), read_headers)?;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (sender, queue) = mpsc::channel(QUEUE);
    let counts = Arc::new(Counts::default());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service_name = settings.service_name.clone();
    let exporter = Exporter { queue, counts: counts.clone(), client, endpoint, headers, service_name, failing: false };
    Ok(Some((Spans { queue: sender, counts }, exporter)))
}

impl Spans {
    /// Queues the spans of `record`, if its trace is sampled.
    pub fn write(&self, record: &Record<'_>) {
        let Some(spans) = spans(record) else { return };
        let length = spans.len();
        let queued = self.counts.queued_bytes.fetch_add(length, Ordering::Relaxed);
        if queued > QUEUED_BYTES || self.queue.try_send(Queued::Spans(spans)).is_err() {
            self.counts.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests whose spans were not delivered: the queue was full, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what is queued was sent, for a moment at most.
    pub async fn flush(&self) {
        let (sent, done) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Queued::Flush(sent)).await.is_ok() {
                // An error means that the exporter has ended: there is nothing to wait for.
                _ = done.await;
            }
        };
        if timeout(LAST_BATCH, flushed).await.is_err() {
            tracing::warn!("the last spans were not sent: the collector does not answer");
        }
    }
}

impl Exporter {
    /// Sends until every [`Spans`] is gone.
    pub async fn run(mut self) {
        while let Some((batch, waiting)) = self.gather().await {
            if !batch.is_empty() {
                self.send(&batch).await;
            }
            for flush in waiting {
                // Who asked may have stopped waiting.
                _ = flush.send(());
            }
        }
    }

    /// What came within [`GATHER`] of the first one; `None`: nothing will come any more.
    async fn gather(&mut self) -> Option<(Vec<String>, Vec<oneshot::Sender<()>>)> {
        let (mut batch, mut waiting) = (Vec::new(), Vec::new());
        let mut next = Some(self.queue.recv().await?);
        let end = Instant::now() + GATHER;
        loop {
            match next {
                Some(Queued::Spans(spans)) => {
                    self.counts.queued_bytes.fetch_sub(spans.len(), Ordering::Relaxed);
                    batch.push(spans);
                }
                Some(Queued::Flush(flush)) => waiting.push(flush),
                None => break,
            }
            if batch.len() >= BATCH || !waiting.is_empty() {
                break;
            }
            next = timeout_at(end, self.queue.recv()).await.ok().flatten();
        }
        Some((batch, waiting))
    }

    async fn send(&mut self, batch: &[String]) {
        let body = Bytes::from(export(&self.service_name, batch));
        let mut result = self.post(body.clone()).await;
        for tried in 1..TRIES {
            if !result.as_ref().is_err_and(|failure| failure.again) {
                break;
            }
            sleep(FIRST_WAIT * 2_u32.pow(tried - 1)).await;
            result = self.post(body.clone()).await;
        }
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(dropped = self.counts.dropped.load(Ordering::Relaxed), "the collector takes spans again");
            }
            Ok(()) => {}
            Err(Failure { reason, lost, .. }) => {
                let lost = lost.unwrap_or(u64::MAX).min(batch.len() as u64);
                self.counts.dropped.fetch_add(lost, Ordering::Relaxed);
                if !self.failing {
                    tracing::error!("cannot send spans to {}: {reason}; they are dropped and counted until that works again", self.place());
                }
                self.failing = true;
            }
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Failure> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, self.endpoint.clone(), self.headers.clone());
        let answer = timeout(ANSWER, self.answer(request)).await;
        let (status, body) = answer.map_err(|_| Failure::passing("no answer in time"))?.map_err(|error| Failure::passing(&error))?;
        if status.is_success() {
            return refused(&body).map_or(Ok(()), Err);
        }
        let passing =
            [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        Err(Failure { reason: format!("it answered {status}"), again: passing.contains(&status), lost: None })
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let (head, body) = self.client.request(request).await.map_err(|error| causes(&error))?.into_parts();
        // Read to its end, or the connection could not be used again.
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| causes(&*error))?;
        Ok((head.status, body.to_bytes()))
    }

    /// The collector without a query or user that may be secret.
    fn place(&self) -> &str {
        self.endpoint.host().unwrap_or("the collector")
    }
}

struct Failure {
    reason: String,
    /// It may work when tried again (OTLP/HTTP, "Retryable Response Codes").
    again: bool,
    /// How many spans; `None`: all.
    lost: Option<u64>,
}

impl Failure {
    fn passing(reason: &str) -> Failure {
        Failure { reason: reason.to_owned(), again: true, lost: None }
    }
}

/// What a collector that took a batch says of spans that it did not take (OTLP/HTTP, "Partial Success").
fn refused(answer: &[u8]) -> Option<Failure> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let partial = &answer["partialSuccess"];
    let count = &partial["rejectedSpans"];
    // 64-bit numbers are text in this encoding, and some write them as numbers.
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).filter(|count| *count > 0)?;
    let said: String = partial["errorMessage"].as_str().unwrap_or("").chars().take(LONGEST_WORDS).collect();
    Some(Failure { reason: format!("it refused {count} spans: {said:?}"), again: false, lost: Some(count) })
}

fn read_headers(path: &Path) -> Result<HeaderMap, String> {
    let place = path.display();
    let size = fs::metadata(path).map_err(|error| format!("cannot read otlp.headers-file {place}: {error}"))?.len();
    if size > LONGEST_HEADERS {
        return Err(format!("otlp.headers-file {place} is too long: {size} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read otlp.headers-file {place}: {error}"))?;
    parse_headers(&text).map_err(|line| format!("line {line} of otlp.headers-file {place} is not `name: value`"))
}

/// `name: value` lines; empty ones and those after `#` are left out. The error is the number of the line.
fn parse_headers(text: &str) -> Result<HeaderMap, usize> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
        let header = line.split_once(':').and_then(|(name, value)| {
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
        });
        let (name, value) = header.ok_or(number + 1)?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_lines_of_name_and_value_and_their_values_are_never_shown() {
        let headers = parse_headers("# a token\n\nAuthorization: Bearer s3cret\nx-scope: a:b\n").unwrap();
        assert_eq!((headers["authorization"].as_bytes(), headers["x-scope"].as_bytes()), (&b"Bearer s3cret"[..], &b"a:b"[..]));
        assert!(!format!("{headers:?}").contains("s3cret"));
        assert_eq!(parse_headers("a: 1\nno colon\n"), Err(2));
        assert_eq!(parse_headers("bad name: 1"), Err(1));
    }

    #[test]
    fn refused_spans_are_counted() {
        // answer, spans that were refused
        let table = [
            ("{}", None),
            ("", None),
            (r#"{"partialSuccess":{}}"#, None),
            (r#"{"partialSuccess":{"rejectedSpans":"0"}}"#, None),
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"old"}}"#, Some(3)),
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, Some(3)),
        ];
        for (answer, lost) in table {
            assert_eq!(refused(answer.as_bytes()).and_then(|failure| failure.lost), lost, "{answer}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let message = read_headers(Path::new("/nowhere/headers")).unwrap_err();
        assert!(message.starts_with("cannot read otlp.headers-file /nowhere/headers: No such file"), "{message}");
    }

    proptest! {
        #[test]
        fn any_text_of_headers_is_survived(text in "\\PC{0,60}\n\\PC{0,60}") {
            let _ = parse_headers(&text);
        }
    }
}
