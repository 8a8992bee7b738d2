//! What one request carries from phase to phase, and the record that is made of it at the end.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Version};
use pingora_error::Error;
use pingora_proxy::Session;

use super::Routed;
use super::answer::Answer;
use super::deadline::Deadline;
use super::forwarded::{self, Origin};
use super::head::{Target, unknown_connection};
use super::stream::PerConnection;
use crate::route::Head;
use crate::state::{Action, Route, State};
use crate::telemetry::Record;
use crate::traffic::HeaderEdit;
use crate::upstream::{Backend, InFlight, Pool, Timeouts};

/// One change of a head's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// In place of all fields of that name.
    Set(HeaderName, HeaderValue),
    /// Beside those that are there.
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// Of a request's head, what is decided by and not kept.
pub(super) struct Asked<'a> {
    pub(super) version: Version,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    /// The target names the host itself.
    pub(super) has_authority: bool,
    /// Size of target and fields.
    pub(super) bytes: usize,
}

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
            upstream: None,
            answered: None,
            failure: None,
            head_deadline: None,
            request_deadline: None,
        }
    }

    /// Head in, decision out; everything that the later phases need of the head is kept. `refused`: the shell found the
    /// request's framing to be at fault.
    pub(super) fn decide(&mut self, asked: &Asked<'_>, target: Result<Target, Answer>, refused: Option<Answer>) -> Routed {
        let connection = self.connection.as_ref().map_or_else(unknown_connection, |per| per.connection);
        let config = &self.state.config.proxy;
        let id = forwarded::request_id(fastrand::u128(..));
        let host = target.as_ref().map_or("", |target| target.host.as_str());
        let origin = forwarded::origin(&connection, asked.headers, &config.trusted_proxies, host, id);
        let refused = super::refuse(asked.version, asked.headers, asked.has_authority, asked.bytes, config.max_header_bytes).or(refused);
        let client = origin.client;
        self.origin = Some(origin);
        let target = match (target, refused) {
            (_, Some(answer)) | (Err(answer), None) => return Routed::Answer(None, answer),
            (Ok(target), None) => target,
        };
        (self.host, self.path, self.query) = (target.host, target.path, target.query);
        let head = Head { host: &self.host, path: &self.path, query: &self.query, method: asked.method, headers: asked.headers, client };
        match &self.origin {
            Some(origin) => super::route(&self.state, &head, origin, self.at),
            None => Routed::Answer(None, Answer::NotFound),
        }
    }

    /// What the answer's head gets on its way to the client, beside the loss of hop-by-hop fields. `request`: the client's fields.
    pub(super) fn answer_edits(&self, request: &HeaderMap) -> Vec<Edit> {
        let Some(route) = &self.route else { return Vec::new() };
        let mut edits = Vec::with_capacity(4);
        for (name, value) in route.traffic.cors.iter().flat_map(|cors| super::cors_headers(cors, request, false)) {
            edits.push(if name == header::VARY { Edit::Append(name, value) } else { Edit::Set(name, value) });
        }
        if let (Action::Forward { pool, .. }, Some(backend), Some(origin)) = (&route.action, &self.backend, &self.origin)
            && let Some(name) = &pool.sticky
            && super::cookie(request, name) != Some(&*backend.token)
            && let Some(cookie) = super::sticky_cookie(name, &backend.token, origin.secure)
        {
            edits.push(Edit::Append(header::SET_COOKIE, cookie));
        }
        if let Ok(id) = HeaderValue::from_str(self.request_id()) {
            edits.push(Edit::Set(forwarded::X_REQUEST_ID, id));
        }
        edits.extend(route.traffic.response_headers.iter().cloned().map(|edit| match edit {
            HeaderEdit::Set(name, value) => Edit::Set(name, value),
            HeaderEdit::Remove(name) => Edit::Remove(name),
        }));
        edits
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
