//! W3C Trace Context (Recommendation of 2021-11-23): what a `traceparent` says, which trace a request belongs to, and what
//! its upstream is told. Pure: ids come from the caller.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a version 00 `traceparent`.
const LENGTH: usize = 55;
/// Attempts of one request that are remembered; retries are bounded by labels below this.
const MOST_ATTEMPTS: usize = 16;

/// 128 bits, never all zero; printed as 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

/// 64 bits, never all zero; printed as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(u64);

impl TraceId {
    /// From random bits. Zero means "invalid" and becomes one.
    pub fn new(seed: u128) -> TraceId {
        TraceId(seed.max(1))
    }
}

impl SpanId {
    /// From random bits. Zero means "invalid" and becomes one.
    pub fn new(seed: u64) -> SpanId {
        SpanId(seed.max(1))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a caller says of the span that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
}

impl Parent {
    /// Reads `traceparent` (section 3.2): version, trace id, parent id and flags in lower-case hex. Later versions may append
    /// fields. Two headers are none.
    pub fn of(headers: &HeaderMap) -> Option<Parent> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let line = lines.next().filter(|_| lines.next().is_none())?;
        Parent::parse(line.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Parent> {
        let (fixed, rest) = text.split_at_checked(LENGTH)?;
        let mut parts = fixed.split('-');
        let version = hex(parts.next()?, 2)?;
        let (trace, span, flags) = (hex(parts.next()?, 32)?, hex(parts.next()?, 16)?, hex(parts.next()?, 2)?);
        let later = version > 0 && rest.starts_with('-');
        let whole = parts.next().is_none() && version != 0xff && (rest.is_empty() || later);
        let span = u64::try_from(span).ok()?;
        (whole && trace != 0 && span != 0).then_some(Parent { trace: TraceId(trace), span: SpanId(span), sampled: flags & 1 == 1 })
    }
}

/// `length` lower-case hex digits.
fn hex(text: &str, length: usize) -> Option<u128> {
    let fine = text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fine.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// The trace that a request belongs to, and the spans of its attempts on tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub id: TraceId,
    /// Of the request itself.
    pub span: SpanId,
    /// The caller's, where we continue its trace.
    pub parent: Option<SpanId>,
    pub sampled: bool,
    pub attempts: Vec<Attempt>,
}

/// One try on one task. Times count from the request's head.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    pub span: SpanId,
    pub began: Duration,
    /// `None`: it lasted as long as the request.
    pub ended: Option<Duration>,
    pub address: SocketAddr,
    pub task: Arc<str>,
    pub backend: Arc<str>,
    /// Why it failed, where it did: `connect`.
    pub error: Option<&'static str>,
}

impl Trace {
    /// Continues `parent`'s trace, with its word on sampling, or begins one that is sampled with probability `ratio`.
    pub fn begin(parent: Option<Parent>, ratio: f64, seed: u128, span: u64) -> Trace {
        let span = SpanId::new(span);
        match parent {
            Some(parent) => Trace { id: parent.trace, span, parent: Some(parent.span), sampled: parent.sampled, attempts: Vec::new() },
            None => {
                let id = TraceId::new(seed);
                Trace { id, span, parent: None, sampled: is_sampled(id, ratio), attempts: Vec::new() }
            }
        }
    }

    /// A try begins: the one before it, if any, is over.
    pub fn attempt(&mut self, attempt: Attempt) {
        if !self.sampled || self.attempts.len() >= MOST_ATTEMPTS {
            return;
        }
        if let Some(last) = self.attempts.last_mut().filter(|last| last.ended.is_none()) {
            last.ended = Some(attempt.began);
            last.error = last.error.or(Some("retried"));
        }
        self.attempts.push(attempt);
    }

    /// The present try failed.
    pub fn failed(&mut self, at: Duration, error: &'static str) {
        if let Some(last) = self.attempts.last_mut() {
            (last.ended, last.error) = (Some(at), Some(error));
        }
    }

    /// The `traceparent` for the upstream: its parent is the present try.
    pub fn traceparent(&self) -> Option<HeaderValue> {
        let span = self.attempts.last().map_or(self.span, |attempt| attempt.span);
        HeaderValue::from_str(&format!("00-{}-{span}-{:02x}", self.id, u8::from(self.sampled))).ok()
    }

    /// A `tracestate` belongs to its trace: it goes on only where we continue that.
    pub fn keeps_state(&self) -> bool {
        self.parent.is_some()
    }
}

/// Everybody who looks at the same trace id with the same ratio decides the same: OpenTelemetry's ratio sampler looks at the
/// last 56 bits, of which the upper 53 are what a float holds exactly.
fn is_sampled(id: TraceId, ratio: f64) -> bool {
    const RANGE: u64 = 1 << 53;
    let place = ((id.0 >> 3) & u128::from(RANGE - 1)) as u64;
    (place as f64) < ratio * RANGE as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attempt(span: u64, began: u64) -> Attempt {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let began = Duration::from_millis(began);
        Attempt { span: SpanId::new(span), began, ended: None, address, task: "t".into(), backend: "b".into(), error: None }
    }

    #[test]
    fn only_whole_traceparents_are_read() {
        let whole = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = Parent::parse(whole).unwrap();
        assert_eq!(read.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((read.span.to_string().as_str(), read.sampled), ("00f067aa0ba902b7", true));
        // text, is it read
        let table = [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-will-be", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", false),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01", false),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00 4bf92f3577b34da6a3ce929d0e0e4736 00f067aa0ba902b7 01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", false),
            ("", false),
        ];
        for (text, fine) in table {
            assert_eq!(Parent::parse(text).is_some(), fine, "{text}");
        }
    }

    #[test]
    fn two_traceparents_are_none() {
        let value = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, value.clone())]);
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert!(Parent::of(&headers).is_none());
    }

    #[test]
    fn the_caller_decides_on_sampling_where_we_continue_its_trace() {
        let parent = |sampled| Parent { trace: TraceId::new(7), span: SpanId::new(8), sampled };
        assert!(Trace::begin(Some(parent(true)), 0.0, 1, 2).sampled);
        assert!(!Trace::begin(Some(parent(false)), 1.0, 1, 2).sampled);
        assert!(Trace::begin(None, 1.0, u128::MAX, 2).sampled && !Trace::begin(None, 0.0, 0, 2).sampled);
        let continued = Trace::begin(Some(parent(true)), 0.0, 1, 2);
        assert_eq!((continued.id, continued.parent, continued.keeps_state()), (TraceId::new(7), Some(SpanId::new(8)), true));
        assert!(!Trace::begin(None, 1.0, 1, 2).keeps_state());
    }

    #[test]
    fn an_upstream_is_told_of_the_present_try() {
        let mut trace = Trace::begin(None, 1.0, 0xab, 0xcd);
        assert_eq!(trace.traceparent().unwrap(), "00-000000000000000000000000000000ab-00000000000000cd-01");
        trace.attempt(attempt(1, 5));
        trace.attempt(attempt(2, 9));
        assert_eq!(trace.traceparent().unwrap(), "00-000000000000000000000000000000ab-0000000000000002-01");
        assert_eq!((trace.attempts[0].ended, trace.attempts[0].error), (Some(Duration::from_millis(9)), Some("retried")));
        trace.failed(Duration::from_millis(11), "connect");
        assert_eq!((trace.attempts[1].ended, trace.attempts[1].error), (Some(Duration::from_millis(11)), Some("connect")));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}", hexish in "[0-9a-f-]{50,60}") {
            let _ = Parent::parse(&text);
            let _ = Parent::parse(&hexish);
        }

        #[test]
        fn what_is_told_is_read_back(seed: u128, span: u64, ratio in 0.0..=1.0) {
            let trace = Trace::begin(None, ratio, seed, span);
            let headers = HeaderMap::from_iter([(TRACEPARENT, trace.traceparent().unwrap())]);
            let parent = Parent { trace: trace.id, span: trace.span, sampled: trace.sampled };
            prop_assert_eq!(Parent::of(&headers), Some(parent));
        }

        #[test]
        fn a_larger_ratio_samples_no_less(seed: u128, one in 0.0..=1.0, other in 0.0..=1.0) {
            let (less, more) = if one < other { (one, other) } else { (other, one) };
            prop_assert!(!Trace::begin(None, less, seed, 1).sampled || Trace::begin(None, more, seed, 1).sampled);
        }
    }
}
