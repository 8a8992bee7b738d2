//! What one request carries from phase to phase, and the record that is made of it at the end.

use std::borrow::Cow;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, Uri, Version};
use pingora_error::Error;
use pingora_proxy::Session;

use super::answer::Answer;
use super::deadline::Deadline;
use super::forwarded::Origin;
use super::stream::PerConnection;
use crate::state::{Action, Route, State};
use crate::telemetry::{Record, Trace};
use crate::upstream::{Backend, InFlight, Pool, Timeouts};

/// What one request carries from phase to phase.
pub struct Exchange {
    pub(super) began: Instant,
    pub(super) at: jiff::Timestamp,
    pub(super) connection: Option<PerConnection>,
    pub(super) state: Arc<State>,
    pub(super) origin: Option<Origin>,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) route: Option<Arc<Route>>,
    pub(super) backend: Option<Backend>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) tried: Vec<Arc<str>>,
    pub(super) attempts: u32,
    pub(super) attempt_began: Option<Instant>,
    pub(super) connect: Option<Duration>,
    /// The upstream connection had carried another request before.
    pub(super) reused: Option<bool>,
    /// Which request of its client connection this is, from 1.
    pub(super) nth: u32,
    /// `None`: requests are not traced.
    pub(super) trace: Option<Box<Trace>>,
    pub(super) upstream: Option<Duration>,
    pub(super) answered: Option<Answer>,
    pub(super) failure: Option<String>,
    /// Runs until the response's head came.
    pub(super) head_deadline: Option<Deadline>,
    /// Runs until the request is over.
    pub(super) request_deadline: Option<Deadline>,
}

impl Exchange {
    /// A request begins: the clock is read and the state is taken, once.
    pub(super) fn new(state: Arc<State>) -> Exchange {
        Exchange {
            began: Instant::now(),
            at: jiff::Timestamp::now(),
            connection: None,
            state,
            origin: None,
            host: String::new(),
            path: String::new(),
            query: String::new(),
            route: None,
            backend: None,
            in_flight: None,
            tried: Vec::new(),
            attempts: 0,
            attempt_began: None,
            connect: None,
            reused: None,
            nth: 0,
            trace: None,
            upstream: None,
            answered: None,
            failure: None,
            head_deadline: None,
            request_deadline: None,
        }
    }

    pub(super) fn forward(&self) -> Option<(&Pool, &Timeouts, u32)> {
        match &self.route.as_deref()?.action {
            Action::Forward { pool, timeouts, retries } => Some((pool, timeouts, *retries)),
            Action::RedirectHost(_) => None,
        }
    }

    /// Did a time limit end the upstream connection?
    pub(super) fn out_of_time(&self) -> bool {
        [&self.head_deadline, &self.request_deadline].iter().any(|deadline| deadline.as_ref().is_some_and(Deadline::fired))
    }

    /// Starts the limits that pingora's one read timeout cannot hold, on a connection of this request alone.
    pub(super) fn arm_deadlines(&mut self, socket: RawFd) {
        let Some(timeouts) = self.forward().map(|(_, timeouts, _)| *timeouts) else { return };
        if timeouts.response < timeouts.idle {
            self.head_deadline = Deadline::arm(socket, timeouts.response);
        }
        if let Some(whole) = timeouts.request {
            self.request_deadline = Deadline::arm(socket, whole.saturating_sub(self.began.elapsed()));
        }
    }

    pub(super) fn request_id(&self) -> &str {
        self.origin.as_ref().map_or("-", |origin| origin.request_id.as_str())
    }

    /// May another task be tried after a failed connect?
    pub(super) fn may_retry(&self) -> bool {
        self.forward().is_some_and(|(_, _, retries)| self.attempts <= retries)
    }
}

/// A client that left before any answer is logged with nginx's status for it.
const CLIENT_CLOSED: u16 = 499;

/// What the shell knows of a request that is over.
pub(super) struct Ended<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) version: Version,
    pub(super) headers: &'a HeaderMap,
    /// Of the head that was written; `None`: none was.
    pub(super) status: Option<StatusCode>,
    /// Bytes of bodies.
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// It ended in an error.
    pub(super) broken: bool,
}

impl Exchange {
    /// What is told of the request, once it is over.
    pub(super) fn record<'a>(&'a self, ended: &Ended<'a>) -> Record<'a> {
        let backend = self.backend.as_ref();
        let route = self.route.as_deref();
        Record {
            at: self.at,
            request_id: self.request_id(),
            trace: self.trace.as_deref(),
            client: self.origin.as_ref().map(|origin| origin.client),
            secure: self.origin.as_ref().is_some_and(|origin| origin.secure),
            method: ended.method.as_str(),
            host: &self.host,
            path: ended.uri.path(),
            query: ended.uri.query().unwrap_or(""),
            version: match ended.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            status: ended.status.map_or(if ended.broken { CLIENT_CLOSED } else { 0 }, |status| status.as_u16()),
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            duration: self.began.elapsed(),
            tls: None,
            wait: self.waited(),
            connect: self.connect,
            upstream: self.upstream,
            reused: self.reused,
            nth: self.nth,
            route: route.map(|route| &route.id),
            service: backend.map(|backend| &*backend.service).or(route.map(|route| &*route.service)),
            task: backend.map(|backend| &*backend.task),
            backend: backend.map(|backend| &*backend.id),
            retries: self.attempts.saturating_sub(1),
            headers: ended.headers,
            error: self.error(ended.broken),
        }
    }

    fn error(&self, broken: bool) -> Option<Cow<'_, str>> {
        let own = self.answered.as_ref().filter(|answer| answer.status().as_u16() >= 400).map(Answer::reason);
        match (&self.failure, own) {
            (Some(failure), Some(own)) => Some(format!("{own}: {failure}").into()),
            (Some(failure), None) if broken => Some(failure.as_str().into()),
            (_, own) => own.map(Cow::Borrowed),
        }
    }
}

/// The record of a request on pingora's session.
pub(super) fn record<'a>(session: &'a Session, error: Option<&Error>, ctx: &'a Exchange) -> Record<'a> {
    let request = session.req_header();
    ctx.record(&Ended {
        method: &request.method,
        uri: &request.uri,
        version: request.version,
        headers: &request.headers,
        status: session.response_written().map(|head| head.status),
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
        broken: error.is_some(),
    })
}
