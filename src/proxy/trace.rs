//! Where a request's time went, as its client and its upstream are told: `Server-Timing`, and W3C Trace Context where
//! requests are traced. Off, each costs a look at the configuration.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::exchange::Exchange;
use super::forwarded;
use crate::config::{ServerTiming, TraceTrust};
use crate::telemetry::{Attempt, Parent, SpanId, TRACEPARENT, TRACESTATE, Trace};

pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// By which a client asks for [`SERVER_TIMING`].
const X_SERVER_TIMING: HeaderName = HeaderName::from_static("x-server-timing");

impl Exchange {
    /// Finds out which trace the request belongs to, once its origin is known.
    pub(super) fn begin_trace(&mut self, headers: &HeaderMap) {
        let otlp = &self.state.config.otlp;
        if otlp.endpoint.is_none() {
            return;
        }
        let trusted = match otlp.trust {
            TraceTrust::All => true,
            TraceTrust::None => false,
            TraceTrust::TrustedProxies => self.origin.as_ref().is_some_and(|origin| origin.trusted),
        };
        let parent = trusted.then(|| Parent::of(headers)).flatten();
        self.trace = Some(Box::new(Trace::begin(parent, otlp.sample, fastrand::u128(..), fastrand::u64(..))));
    }

    /// A try on the chosen task begins.
    pub(super) fn begin_attempt(&mut self, now: Instant) {
        self.attempts += 1;
        self.attempt_began = Some(now);
        self.reused = None;
        if let (Some(trace), Some(backend)) = (&mut self.trace, &self.backend) {
            trace.attempt(Attempt {
                span: SpanId::new(fastrand::u64(..)),
                began: now.saturating_duration_since(self.began),
                ended: None,
                address: backend.address,
                task: backend.task.clone(),
                backend: backend.id.clone(),
                error: None,
            });
        }
    }

    /// The present try failed before anything of the request left us.
    pub(super) fn connect_failed(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.failed(self.began.elapsed(), "connect");
        }
    }

    /// What the upstream's request must say of its trace; a name without a value is to be removed. Nothing where requests
    /// are not traced: then those headers pass as they came.
    pub(super) fn trace_headers(&self) -> impl Iterator<Item = (HeaderName, Option<HeaderValue>)> {
        let trace = self.trace.as_deref();
        let parent = trace.map(|trace| (TRACEPARENT, trace.traceparent()));
        parent.into_iter().chain(trace.filter(|trace| !trace.keeps_state()).map(|_| (TRACESTATE, None)))
    }

    /// From the request's head until the last try on a task began.
    pub(super) fn waited(&self) -> Option<Duration> {
        self.attempt_began.map(|began| began.saturating_duration_since(self.began))
    }

    /// `Server-Timing` (W3C) for the answer to `request`, where it is to be told.
    pub(super) fn server_timing(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let config = &self.state.config.proxy;
        let asked = || {
            let known = self.origin.as_ref().is_some_and(|origin| forwarded::is_trusted(origin.client, &config.trusted_proxies));
            known && request.contains_key(X_SERVER_TIMING)
        };
        let told = match config.server_timing {
            ServerTiming::Off => false,
            ServerTiming::On => true,
            ServerTiming::OnRequest => asked(),
        };
        if !told {
            return None;
        }
        HeaderValue::try_from(timing(self.waited().unwrap_or_else(|| self.began.elapsed()), self.connect, self.upstream)).ok()
    }
}

/// Milliseconds with three digits; what there was not is left out.
fn timing(edge: Duration, connect: Option<Duration>, upstream: Option<Duration>) -> String {
    let parts = [("edge", Some(edge)), ("connect", connect), ("upstream", upstream)];
    let part =
        |(name, duration): (&str, Option<Duration>)| duration.map(|duration| format!("{name};dur={:.3}", duration.as_secs_f64() * 1e3));
    parts.into_iter().filter_map(part).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_way_are_told_in_milliseconds() {
        let some = |microseconds| Some(Duration::from_micros(microseconds));
        assert_eq!(timing(Duration::from_micros(100), some(1_500), some(20_000)), "edge;dur=0.100, connect;dur=1.500, upstream;dur=20.000");
        assert_eq!(timing(Duration::from_micros(7), None, None), "edge;dur=0.007");
    }
}
