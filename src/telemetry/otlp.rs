//! Spans on their way to an OpenTelemetry collector: a bounded queue that requests put them into, and one task that sends
//! them in batches by OTLP/HTTP. A request never waits for a collector; what finds the queue full is dropped and counted.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Record;
use super::span::{export, spans};
use crate::config::Otlp;

/// Requests whose spans wait for the sender.
const QUEUE: usize = 4096;
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
/// A file of headers is not longer than this.
const LONGEST_HEADERS: u64 = 64 * 1024;

/// Where finished requests leave their spans.
pub struct Spans {
    queue: mpsc::Sender<Queued>,
    dropped: Arc<AtomicU64>,
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
    dropped: Arc<AtomicU64>,
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
    let dropped = Arc::new(AtomicU64::new(0));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service_name = settings.service_name.clone();
    let exporter = Exporter { queue, dropped: dropped.clone(), client, endpoint, headers, service_name, failing: false };
    Ok(Some((Spans { queue: sender, dropped }, exporter)))
}

impl Spans {
    /// Queues the spans of `record`, if its trace is sampled.
    pub fn write(&self, record: &Record<'_>) {
        if let Some(spans) = spans(record)
            && self.queue.try_send(Queued::Spans(spans)).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests whose spans were not delivered: the queue was full, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
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
                Some(Queued::Spans(spans)) => batch.push(spans),
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
        let mut result = Err(Failure { reason: String::new(), again: true });
        for tried in 0..TRIES {
            result = self.post(body.clone()).await;
            match &result {
                Err(failure) if failure.again && tried + 1 < TRIES => sleep(FIRST_WAIT * 2_u32.pow(tried)).await,
                _ => break,
            }
        }
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(dropped = self.dropped.load(Ordering::Relaxed), "the collector takes spans again");
            }
            Ok(()) => {}
            Err(Failure { reason, .. }) => {
                self.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
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
        let failed = |reason: String| Failure { reason, again: true };
        // The answer's body may name spans that were refused; only its status matters here, and it ends with the connection.
        let answer = timeout(ANSWER, self.client.request(request)).await.map_err(|_| failed("no answer in time".to_owned()))?;
        let status = answer.map_err(|error| failed(chain(&error)))?.status();
        let again = [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        if status.is_success() { Ok(()) } else { Err(Failure { reason: format!("it answered {status}"), again: again.contains(&status) }) }
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
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
