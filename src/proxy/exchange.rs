//! What one request carries from phase to phase, and the record that is made of it at the end.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;
use http::header::{self, HeaderName};
use pingora_error::Error;
use pingora_proxy::Session;

use super::answer::Answer;
use super::deadline::Deadline;
use super::forwarded::Origin;
use super::stream::PerConnection;
use crate::state::{Action, Route, State};
use crate::telemetry::Record;
use crate::upstream::{Backend, InFlight, Pool, Retries, Timeouts};

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
    /// Attempts that ended in a timeout.
    pub(super) timeouts: u32,
    /// The next attempt needs a new connection to the same task.
    pub(super) fresh: bool,
    /// A final answer's head came and is for the client.
    pub(super) answering: bool,
    /// This answer is dropped, and another task is tried.
    pub(super) elsewhere: bool,
    pub(super) attempt_began: Option<Instant>,
    pub(super) connect: Option<Duration>,
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
            timeouts: 0,
            fresh: false,
            answering: false,
            elsewhere: false,
            attempt_began: None,
            connect: None,
            upstream: None,
            answered: None,
            failure: None,
            head_deadline: None,
            request_deadline: None,
        }
    }

    pub(super) fn forward(&self) -> Option<(&Pool, &Timeouts, &Retries)> {
        match &self.route.as_deref()?.action {
            Action::Forward { pool, timeouts, retries } => Some((pool, timeouts, retries)),
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
}

/// A client that left before any answer is logged with nginx's status for it.
const CLIENT_CLOSED: u16 = 499;

/// What is told of the request, once it is over.
pub(super) fn record(session: &Session, error: Option<&Error>, ctx: &Exchange) -> Record {
    let request = session.req_header();
    let text = |name: HeaderName| {
        request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    let status = session.response_written().map(|head| head.status.as_u16()).unwrap_or(match error {
        Some(_) => CLIENT_CLOSED,
        None => 0,
    });
    let own = ctx.answered.as_ref().filter(|answer| answer.status().as_u16() >= 400).map(|answer| answer.reason().to_owned());
    let failure = match (&ctx.failure, own) {
        (Some(failure), Some(own)) => Some(format!("{own}: {failure}")),
        (Some(failure), None) if error.is_some() => Some(failure.clone()),
        (_, own) => own,
    };
    Record {
        at: ctx.at,
        request_id: ctx.request_id().to_owned(),
        client: ctx.origin.as_ref().map(|origin| origin.client),
        method: request.method.as_str().to_owned(),
        host: if ctx.host.is_empty() { text(header::HOST) } else { ctx.host.clone() },
        path: request.uri.path().to_owned(),
        query: request.uri.query().unwrap_or("").to_owned(),
        version: match request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        },
        status,
        bytes_in: session.body_bytes_read() as u64,
        bytes_out: session.body_bytes_sent() as u64,
        duration: ctx.began.elapsed(),
        connect: ctx.connect,
        upstream: ctx.upstream,
        route: ctx.route.as_ref().map(|route| route.id.clone()),
        service: ctx
            .backend
            .as_ref()
            .map(|backend| backend.service.clone())
            .or_else(|| ctx.route.as_ref().map(|route| route.service.clone())),
        task: ctx.backend.as_ref().map(|backend| backend.task.clone()),
        backend: ctx.backend.as_ref().map(|backend| backend.id.clone()),
        retries: ctx.attempts.saturating_sub(1),
        user_agent: text(header::USER_AGENT),
        referer: text(header::REFERER),
        error: failure,
    }
}
