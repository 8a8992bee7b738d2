//! What one request carries from phase to phase, and the record that is made of it at the end.

use std::borrow::Cow;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version};
use pingora_error::Error;
use pingora_proxy::Session;

use super::answer::{self, Answer, Rendered};
use super::deadline::Deadline;
use super::forwarded::{self, Origin};
use super::handshake::Handshake;
use super::head::{Target, unknown_connection};
use super::standing::{Guard, Watch};
use super::stream::PerConnection;
use super::trace::SERVER_TIMING;
use super::transform::Transform;
use super::{HeadSize, Routed, Seen};
use crate::auth::cookie::{has_ours, without_ours};
use crate::auth::entrance;
use crate::auth::entrant::Entrant;
use crate::auth::gatekeeper::{Caller, Gatekeeper};
use crate::auth::passage::Proved;
use crate::certificate::challenge::Challenges;
use crate::route::Head;
use crate::state::{Action, Route, State};
use crate::telemetry::{Record, Trace};
use crate::traffic::HeaderEdit;
use crate::upstream::{Backend, InFlight, Pool, Retries, Timeouts};

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
    pub(super) size: HeadSize,
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
    /// Who signed in.
    pub(super) entrant: Option<Arc<Entrant>>,
    /// What was found out of the request since its head was looked at.
    pub(super) proved: Proved,
    /// Cookies of the route's authorizer for the client.
    pub(super) cookies: Vec<HeaderValue>,
    /// The right by which it goes on, where that can be lost,
    pub(super) guard: Option<Guard>,
    /// and whoever watches over it.
    pub(super) watch: Option<Watch>,
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
    /// Runs while the body of an HTTP/2 request is awaited, and begins again with each piece of it.
    pub(super) body_deadline: Option<Deadline>,
    /// Runs until the request is over.
    pub(super) request_deadline: Option<Deadline>,
    /// What the route's limits and transformations keep of the request.
    pub(super) transform: Transform,
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
            entrant: None,
            proved: Proved::default(),
            cookies: Vec::new(),
            guard: None,
            watch: None,
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
            reused: None,
            nth: 0,
            trace: None,
            upstream: None,
            answered: None,
            failure: None,
            head_deadline: None,
            body_deadline: None,
            request_deadline: None,
            transform: Transform::default(),
        }
    }

    /// Head in, decision out; everything that the later phases need of the head is kept. `refused`: the shell found the
    /// request's framing to be at fault.
    pub(super) fn decide(
        &mut self,
        asked: &Asked<'_>,
        target: Result<Target, Answer>,
        refused: Option<Answer>,
        challenges: &Challenges,
        gatekeeper: &dyn Gatekeeper,
    ) -> Routed {
        let connection = self.connection.as_ref().map_or_else(unknown_connection, |per| per.connection);
        let config = &self.state.config.proxy;
        let id = forwarded::request_id(fastrand::u128(..));
        let host = target.as_ref().map_or("", |target| target.host.as_str());
        let mut origin = forwarded::origin(&connection, asked.headers, &config.trusted_proxies, host, id);
        origin.certificate = self.handshake().and_then(|handshake| handshake.client.clone());
        let refused = super::refuse(asked.version, asked.headers, asked.has_authority, asked.size, config).or(refused);
        self.origin = Some(origin);
        self.begin_trace(asked.headers);
        let target = match (target, refused) {
            (_, Some(answer)) | (Err(answer), None) => return Routed::Answer(None, answer),
            (Ok(target), None) => target,
        };
        (self.host, self.path, self.query) = (target.host, target.path, target.query);
        match challenges.http(&self.path) {
            // Asked before any route: the name's certificate must not depend on what is served under it.
            Some(answer) => Routed::Answer(None, Answer::Challenge(answer)),
            None => self.route(asked.method, asked.headers, gatekeeper),
        }
    }

    /// The decision by what is known now, on the state that the request began with.
    pub(super) fn route(&mut self, method: &Method, headers: &HeaderMap, gatekeeper: &dyn Gatekeeper) -> Routed {
        let Some(origin) = &self.origin else { return Routed::Answer(None, Answer::NotFound) };
        let head = Head { host: &self.host, path: &self.path, query: &self.query, method, headers, client: origin.client };
        let (client, secure, auth) = (origin.client, origin.secure, &self.state.config.auth);
        let caller = Caller { client, host: &self.host, secure, headers, now: self.at, auth };
        let who = |route: &Route| gatekeeper.who(&caller, &route.access);
        let seen = Seen { head: &head, origin, handshake: self.handshake(), now: self.at };
        let routed = super::route(&self.state, &seen, &self.proved, who);
        if let Routed::Forward(_, entrant) = &routed {
            self.entrant = entrant.clone();
        }
        routed
    }

    pub(super) fn handshake(&self) -> Option<&Handshake> {
        self.connection.as_ref().and_then(|per| per.handshake.as_deref())
    }

    /// Which of the client's fields do not go on to the upstream: what only we may say, and what was meant for us.
    pub(super) fn withholds(&self, name: &HeaderName) -> bool {
        let trusted = self.origin.as_ref().is_some_and(|origin| origin.trusted);
        let ours = || self.entrant.as_ref().is_some_and(|entrant| entrant.by_credentials());
        forwarded::is_replaced(name, trusted, &self.state.config.auth) || (*name == header::AUTHORIZATION && ours())
    }

    /// What the upstream is told of whoever signed in.
    pub(super) fn told(&self) -> &[(HeaderName, HeaderValue)] {
        self.entrant.as_ref().map_or(&[], |entrant| &entrant.visitor.fields)
    }

    /// The cookies for the upstream where some of the request's are for us; `None`: all may go as they are.
    pub(super) fn other_cookies(&self, request: &HeaderMap) -> Option<Vec<u8>> {
        let lines = || request.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes);
        if !lines().any(has_ours) {
            return None;
        }
        let left: Vec<_> = lines().filter_map(without_ours).collect();
        Some(left.join(&b"; "[..]))
    }

    /// What the answer's head gets on its way to the client, beside the loss of hop-by-hop fields. `request`: the client's fields.
    pub(super) fn answer_edits(&self, request: &HeaderMap) -> Vec<Edit> {
        let Some(route) = &self.route else { return Vec::new() };
        let mut edits = Vec::with_capacity(4);
        edits.extend(self.strict_transport().map(|value| Edit::Set(header::STRICT_TRANSPORT_SECURITY, value)));
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
        let renewal = self.entrant.as_ref().and_then(|entrant| entrant.renewal.clone());
        // Somebody's session belongs in nobody else's browser, whatever a cache between us and them would make of this answer.
        edits.extend(renewal.is_some().then(|| Edit::Append(header::CACHE_CONTROL, HeaderValue::from_static("private"))));
        edits.extend(renewal.into_iter().chain(self.cookies.iter().cloned()).map(|cookie| Edit::Append(header::SET_COOKIE, cookie)));
        if let Ok(id) = HeaderValue::from_str(self.request_id()) {
            edits.push(Edit::Set(forwarded::X_REQUEST_ID, id));
        }
        edits.extend(self.server_timing(request).map(|timing| Edit::Append(SERVER_TIMING, timing)));
        edits.extend(route.traffic.response_headers.iter().cloned().map(|edit| match edit {
            HeaderEdit::Set(name, value) => Edit::Set(name, value),
            HeaderEdit::Remove(name) => Edit::Remove(name),
        }));
        edits
    }

    /// An answer of ours, ready to be sent.
    pub(super) fn rendered(&mut self, answer: Answer, method: &Method, request: &HeaderMap) -> Rendered {
        let mut rendered = answer::render(&answer, method, request, self.request_id());
        if let Some(cors) = self.route.as_ref().and_then(|route| route.traffic.cors.as_ref()) {
            rendered.headers.extend(super::cors_headers(cors, request, answer == Answer::Preflight));
        }
        rendered.headers.extend(self.server_timing(request).map(|timing| (SERVER_TIMING, timing)));
        rendered.headers.extend(self.strict_transport().map(|value| (header::STRICT_TRANSPORT_SECURITY, value)));
        self.answered = Some(answer);
        rendered
    }

    /// HSTS (RFC 6797): over HTTPS only, and where the route wants it.
    fn strict_transport(&self) -> Option<HeaderValue> {
        let age = self.route.as_ref()?.tls.hsts?;
        let secure = self.origin.as_ref().is_some_and(|origin| origin.secure);
        secure.then(|| HeaderValue::from_str(&format!("max-age={}", age.as_secs())).ok())?
    }

    pub(super) fn forward(&self) -> Option<(&Pool, &Timeouts, &Retries)> {
        match &self.route.as_deref()?.action {
            Action::Forward { pool, timeouts, retries } => Some((pool, timeouts, retries)),
            Action::RedirectHost(_) => None,
        }
    }

    /// Did whoever sent it lose the right to go on?
    pub(super) fn has_fallen(&mut self) -> bool {
        let fallen = self.watch.as_ref().is_some_and(Watch::has_fallen);
        if fallen {
            self.failure = Some("the session ended".to_owned());
        }
        fallen
    }

    /// Did a time limit end the upstream connection?
    pub(super) fn out_of_time(&self) -> bool {
        [&self.head_deadline, &self.request_deadline].iter().any(|deadline| deadline.as_ref().is_some_and(Deadline::fired))
    }

    /// Did the client stop sending its body?
    pub(super) fn body_stalled(&self) -> bool {
        self.body_deadline.as_ref().is_some_and(Deadline::fired)
    }

    /// How long a body may be silent: as long as the route says, or else as is `usual` for all.
    pub(super) fn silence(&self, timeouts: &Timeouts, usual: Duration) -> Duration {
        if timeouts.idle == self.state.config.defaults.timeout_idle { usual } else { timeouts.idle }
    }

    /// pingora has no time limit on the body of an HTTP/2 request.
    pub(super) fn await_body(&mut self, socket: RawFd) {
        let Some((_, timeouts, _)) = self.forward() else { return };
        let silence = self.silence(timeouts, self.state.config.proxy.body_timeout);
        self.body_deadline = Deadline::arm(socket, silence);
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
            user: self.user(),
            method: ended.method.as_str(),
            host: &self.host,
            path: ended.uri.path(),
            // What the edge's own addresses are asked with proves who somebody is.
            query: if self.path.starts_with(entrance::PATH) { "" } else { ended.uri.query().unwrap_or("") },
            version: match ended.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            status: ended.status.map_or(if ended.broken { CLIENT_CLOSED } else { 0 }, |status| status.as_u16()),
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            duration: self.began.elapsed(),
            // Told of the first request only: the others did not wait for it.
            tls: self.connection.as_ref().filter(|_| self.nth == 1).and_then(|per| per.handshake.as_ref()).map(|handshake| handshake.took),
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

    /// Who signed in, be it in vain.
    fn user(&self) -> Option<&str> {
        match (&self.entrant, &self.answered) {
            (Some(entrant), _) => Some(&entrant.visitor.identity.user),
            (None, Some(Answer::Outside { identity, .. })) => Some(&identity.user),
            _ => None,
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
