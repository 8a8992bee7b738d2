//! pingora's phases, each handed to the pure functions of `proxy`: this file reads sockets and writes them, and decides nothing.
//! One load of the state per request; the `Arc` stays in the request's context up to its log line.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Digest;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorSource, ErrorType, OrErr, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use super::answer::Answer;
use super::attempt::{Retry, Sending};
use super::authority::vouch;
use super::deadline::{Deadline, Socket};
use super::dial::announce;
use super::exchange::{Asked, Edit, Exchange, record};
use super::fetch::Fetch;
use super::head::{had_two_framings, head_size, per_connection, target};
use super::limit::Limits;
use super::peer::{UPGRADED_IDLE, apply, peer, rewrite};
use super::questions::Questions;
use super::reply::{answer_to, is_out_of_descriptors, show, write};
use super::standing::Guard;
use super::transform::page_for;
use super::{Observer, Routed, forwarded};
use crate::auth::gatekeeper::Gatekeeper;
use crate::certificate::challenge::Challenges;
use crate::state::{Action, Live};
use crate::upstream::{Failure, Ledger, Scheme};

/// The proxy application that pingora drives.
pub struct Edge {
    live: Arc<Live>,
    ledger: Arc<Ledger>,
    observer: Arc<dyn Observer>,
    limits: Arc<Limits>,
    challenges: Arc<Challenges>,
    questions: Questions,
    fetch: Arc<Fetch>,
}

impl Edge {
    pub fn new(
        live: Arc<Live>,
        ledger: Arc<Ledger>,
        observer: Arc<dyn Observer>,
        limits: Arc<Limits>,
        challenges: Arc<Challenges>,
        gatekeeper: Arc<dyn Gatekeeper>,
    ) -> Edge {
        Edge {
            live,
            ledger,
            observer,
            limits,
            challenges,
            questions: Questions { gatekeeper, authorizers: Arc::default() },
            fetch: Arc::default(),
        }
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::new(self.live.load())
    }

    /// Compression is in `transform`; pingora would otherwise add a switched-off compressor of its own to every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<()> {
        let keep_alive = ctx.state.config.proxy.keep_alive;
        // Narrow pingora's "for ever" only; a connection that must close stays so.
        if session.get_keepalive() == Some(0) {
            session.set_keepalive(Some(keep_alive.as_secs().max(1)));
        }
        // For our own answers; a route may set others.
        let limits = &ctx.state.config.proxy;
        session.set_read_timeout(Some(limits.body_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
        ctx.connection = per_connection(session);
        if let Some(connection) = &ctx.connection {
            connection.phase.done();
            ctx.nth = connection.phase.count();
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<bool> {
        let mut routed = self.decide(session, ctx);
        // Each question is asked once: its answer is kept in what was proved.
        while let Routed::Ask(route, question) = routed {
            routed = self.questions.ask(session, ctx, route, question).await;
        }
        let answer = match routed {
            Routed::Forward(route, _) => {
                if let Action::Forward { timeouts, .. } = &route.action {
                    if session.is_upgrade_req() {
                        let idle = timeouts.idle.max(UPGRADED_IDLE);
                        session.set_read_timeout(Some(idle));
                        session.set_write_timeout(Some(idle));
                    } else {
                        let limits = &ctx.state.config.proxy;
                        session.set_read_timeout(Some(ctx.silence(timeouts, limits.body_timeout)));
                        session.set_write_timeout(Some(ctx.silence(timeouts, limits.write_timeout)));
                    }
                }
                let client = ctx.origin.as_ref().map_or(std::net::IpAddr::from([0, 0, 0, 0]), |origin| origin.client);
                let admitted = self.limits.admit(&route, client, &session.req_header().headers).await;
                ctx.guard = Guard::of(ctx, &route, &self.questions.gatekeeper);
                ctx.route = Some(route);
                match admitted {
                    Ok(pass) => {
                        ctx.transform.pass = pass;
                        return Ok(false);
                    }
                    Err(answer) => answer,
                }
            }
            Routed::Answer(route, answer) => {
                ctx.route = route;
                answer
            }
            Routed::Ask(route, _) => {
                ctx.route = route;
                Answer::Closed
            }
        };
        self.respond(session, ctx, answer).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Exchange) -> Result<Box<HttpPeer>> {
        let chosen = match ctx.next_backend(&self.ledger, &session.req_header().headers) {
            Ok(chosen) => chosen,
            Err(answer) => return Error::e_explain(ErrorType::HTTPStatus(answer.status().as_u16()), "no healthy task is left to try"),
        };
        let Some((_, timeouts, _)) = ctx.forward() else {
            return Error::e_explain(ErrorType::HTTPStatus(500), "no route to forward to");
        };
        let mut peer = peer(&chosen.backend, timeouts, session);
        if let Err(why) = vouch(&mut peer, &chosen.backend, &ctx.state) {
            // The task is not to blame, and no other one would be believed either.
            ctx.failure = Some(why);
            return Error::e_explain(ErrorType::HTTPStatus(502), "nobody vouches for the tasks");
        }
        if let (Some(version), Some(origin), Some(per)) = (chosen.backend.proxy_protocol, &ctx.origin, &ctx.connection) {
            announce(&mut peer, version, origin.source(&per.connection), per.connection.local, timeouts.connect);
        }
        if chosen.fresh {
            // Kept connections are found by all that makes a peer; nobody keeps one under this number.
            peer.group_key = fastrand::u64(1..);
        }
        Ok(Box::new(peer))
    }

    fn fail_to_connect(&self, session: &mut Session, _peer: &HttpPeer, ctx: &mut Exchange, mut error: Box<Error>) -> Box<Error> {
        if is_out_of_descriptors(&error) {
            // Our own shortage: the backend is not to blame, and another one would not be reached either.
            ctx.failure = Some("connect: this edge has no file descriptor left".to_owned());
            return Error::explain(ErrorType::HTTPStatus(503), "out of file descriptors");
        }
        // Without a socket of our own, no task was asked.
        let ours = matches!(error.etype(), ErrorType::SocketError | ErrorType::BindError | ErrorType::InternalError);
        let failure = if ours { Failure::Edge } else { Failure::Connect };
        let elsewhere = ctx.attempt_failed(&self.ledger, failure, sending(session, false)) == Retry::Elsewhere;
        ctx.failure = Some(format!("connect: {}", why(&error)));
        error.set_retry(elsewhere);
        error
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        socket: RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Exchange,
    ) -> Result<()> {
        // An HTTP/2 connection carries other requests too: there the read timeout is all there is.
        let alone = ctx.backend.as_ref().is_some_and(|backend| matches!(backend.scheme, Scheme::Http | Scheme::Https));
        if let Some(guard) = ctx.guard.clone() {
            let own = if alone { Socket::of(socket) } else { None };
            ctx.watch = Some(guard.watched(move || own.iter().for_each(Socket::shut_down)));
        }
        if alone {
            ctx.arm_deadlines(socket);
            if session.is_http2() && !session.is_body_done() {
                ctx.await_body(socket);
            }
        }
        ctx.reused = Some(reused);
        ctx.connect = ctx.attempt_began.map(|began| began.elapsed());
        Ok(())
    }

    async fn upstream_request_filter(&self, session: &mut Session, request: &mut RequestHeader, ctx: &mut Exchange) -> Result<()> {
        let (Some(route), Some(origin)) = (&ctx.route, &ctx.origin) else {
            return Error::e_explain(ErrorType::HTTPStatus(500), "forwarding without a route");
        };
        let prefix = rewrite(request, route, &ctx.path, &ctx.query)?;
        // An upgrade that pingora took out of the request is none any more.
        if session.is_upgrade_req() && request.headers.contains_key(header::UPGRADE) {
            for name in super::hop_by_hop(&request.headers) {
                request.remove_header(&name);
            }
            request.insert_header(header::CONNECTION, "Upgrade")?;
        }
        let withheld: Vec<HeaderName> = request.headers.keys().filter(|name| ctx.withholds(name)).cloned().collect();
        for name in withheld {
            request.remove_header(&name);
        }
        if let Some(cookies) = ctx.other_cookies(&request.headers) {
            request.remove_header(&header::COOKIE);
            if !cookies.is_empty() {
                request
                    .insert_header(header::COOKIE, HeaderValue::from_bytes(&cookies).or_err(ErrorType::InvalidHTTPHeader, "cookies")?)?;
            }
        }
        let mut set = Ok(());
        forwarded::each(origin, prefix.as_deref(), |name, value| {
            if set.is_ok() {
                set = request.insert_header(name, value);
            }
        });
        set?;
        for (name, value) in ctx.trace_headers() {
            match value {
                Some(value) => request.insert_header(name, value)?,
                None => _ = request.remove_header(&name),
            }
        }
        apply(&route.traffic.request_headers, |name, value| match value {
            Some(value) => request.insert_header(name, value.clone()),
            None => {
                request.remove_header(name);
                Ok(())
            }
        })?;
        // Whatever labels say: who signed in is for us to say.
        for (name, value) in ctx.told() {
            request.insert_header(name, value)?;
        }
        let bodiless = session.as_mut().is_body_empty();
        ctx.transform.request_begins(route, request, bodiless, &self.fetch, &self.ledger);
        Ok(())
    }

    async fn request_body_filter(&self, session: &mut Session, body: &mut Option<Bytes>, end: bool, ctx: &mut Exchange) -> Result<()> {
        match &ctx.body_deadline {
            Some(_) if end => ctx.body_deadline = None,
            Some(deadline) => deadline.extend(),
            None => {}
        }
        if ctx.has_fallen() {
            return Err(Error::explain(ErrorType::HTTPStatus(401), "the session ended").into_down());
        }
        // What flows after a 101 is no body.
        if session.was_upgraded() {
            return Ok(());
        }
        ctx.transform.request_body(body.as_deref().unwrap_or_default(), end, &self.fetch, &self.ledger)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        if ctx.body_stalled() {
            return Error::new_down(ErrorType::ReadTimedout);
        }
        let late = ctx.out_of_time();
        let mut failed = if late { Error::new_up(ErrorType::ReadTimedout) } else { error };
        if std::mem::take(&mut ctx.elsewhere) {
            failed.set_retry(true);
            return failed;
        }
        let whole = ctx.request_deadline.as_ref().is_some_and(Deadline::fired);
        let elsewhere = match (*failed.esource() == ErrorSource::Upstream, ctx.answering) {
            (true, true) => {
                ctx.broke_off();
                false
            }
            (true, false) if !whole => {
                let sending = sending(session, !is_unsent(&failed));
                ctx.attempt_failed(&self.ledger, failure(&failed, reused), sending) == Retry::Elsewhere
            }
            _ => false,
        };
        failed.set_retry(elsewhere);
        failed
    }

    /// The last moment at which the request can go elsewhere: nothing of this answer went to the client.
    async fn upstream_response_filter(&self, session: &mut Session, response: &mut ResponseHeader, ctx: &mut Exchange) -> Result<()> {
        match ctx.head_arrived(&self.ledger, response.status, sending(session, true)) {
            Retry::GiveUp => Ok(()),
            Retry::Elsewhere => {
                ctx.elsewhere = true;
                Err(Error::new_up(ErrorType::new("another task is tried")))
            }
        }
    }

    /// A body without a length ends with its connection, so an end that we caused must not pass for a whole body.
    fn response_body_filter(&self, _: &mut Session, body: &mut Option<Bytes>, end: bool, ctx: &mut Exchange) -> Result<Option<Duration>> {
        let late = ctx.forward().and_then(|(_, timeouts, _)| timeouts.request).is_some_and(|whole| ctx.began.elapsed() > whole);
        if (end && ctx.out_of_time()) || late {
            return Err(Error::new_up(ErrorType::ReadTimedout));
        }
        if ctx.has_fallen() {
            return Err(Error::explain(ErrorType::HTTPStatus(401), "the session ended").into_down());
        }
        ctx.transform.response_body(body, end)?;
        Ok(None)
    }

    /// An encoder's last bytes must be out before the trailers are.
    async fn response_trailer_filter(&self, _: &mut Session, _: &mut HeaderMap, ctx: &mut Exchange) -> Result<Option<Bytes>> {
        let mut rest = None;
        ctx.transform.response_body(&mut rest, true)?;
        Ok(rest)
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, ctx: &mut Exchange) -> Result<()> {
        // A 101 is the last head too: what follows is the upgraded connection.
        if !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS {
            (ctx.head_deadline, ctx.body_deadline) = (None, None);
        }
        if ctx.upstream.is_none() {
            ctx.upstream = ctx.attempt_began.map(|began| began.elapsed().saturating_sub(ctx.connect.unwrap_or_default()));
        }
        if response.status.is_informational() {
            if response.status == StatusCode::SWITCHING_PROTOCOLS {
                ctx.transform.pass.answered(false);
            }
            return Ok(());
        }
        let Some(route) = ctx.route.clone() else { return Ok(()) };
        ctx.transform.answered(session, response, &route, &self.fetch, &self.ledger).await?;
        for name in super::hop_by_hop(&response.headers) {
            response.remove_header(&name);
        }
        for edit in ctx.answer_edits(&session.req_header().headers) {
            match edit {
                Edit::Set(name, value) => response.insert_header(name, value)?,
                Edit::Append(name, value) => drop(response.append_header(name, value)?),
                Edit::Remove(name) => drop(response.remove_header(&name)),
            }
        }
        ctx.transform.response_begins(session, response, &route)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Exchange) -> FailToProxy {
        if ctx.failure.is_none() {
            ctx.failure = Some(format!("{}: {}", error.esource().as_str(), error.etype().as_str()));
        }
        if let Some((head, page)) = ctx.transform.page_alone.take() {
            ctx.failure = Some("an error page in place of an answer without a body".to_owned());
            return show(session, head, page).await;
        }
        let Some(answer) = answer_to(error) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let code = answer.status().as_u16();
        if matches!(answer, Answer::BadGateway | Answer::Timeout) {
            ctx.transform.pass.answered(true);
        }
        if session.response_written().is_none_or(|head| head.status.is_informational())
            && let Err(error) = self.respond(session, ctx, answer).await
        {
            tracing::debug!(%error, "the client left before the error page");
        }
        FailToProxy { error_code: code, can_reuse_downstream: false }
    }

    /// pingora would log every failed request on its own; the access log has them all, with the reason.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Exchange, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Exchange) {
        // Streams of HTTP/2 come and go while others flow: there is no next head to wait for.
        if let Some(connection) = ctx.connection.as_ref().filter(|_| !session.is_http2()) {
            connection.phase.awaited();
        }
        let record = record(session, error, ctx);
        self.observer.finished(&record);
    }
}

impl Edge {
    /// Head in, decision out; everything that the later phases need of the head is kept.
    fn decide(&self, session: &Session, ctx: &mut Exchange) -> Routed {
        let request = session.req_header();
        let target = target(request);
        let ambiguous = Answer::Refused(StatusCode::BAD_REQUEST, "The request has both Content-Length and Transfer-Encoding.");
        let asked = Asked {
            version: request.version,
            method: &request.method,
            headers: &request.headers,
            has_authority: request.uri.authority().is_some(),
            size: head_size(request),
        };
        ctx.decide(&asked, target, had_two_framings(session).then_some(ambiguous), &self.challenges, &*self.questions.gatekeeper)
    }

    async fn respond(&self, session: &mut Session, ctx: &mut Exchange, answer: Answer) -> Result<()> {
        let request = session.req_header();
        let page = match &ctx.route {
            Some(route) if !session.is_upgrade_req() => {
                page_for(&answer, &request.headers, route, &self.limits, &self.fetch, &self.ledger).await
            }
            _ => None,
        };
        let rendered = ctx.rendered(answer, &request.method, &request.headers);
        write(session, rendered, page).await
    }
}

/// What a retry depends on of this session.
fn sending(session: &Session, sent: bool) -> Sending<'_> {
    let answered = session.response_written().is_some_and(|head| !head.status.is_informational());
    let repeatable = !answered && !session.as_ref().retry_buffer_truncated();
    Sending { method: &session.req_header().method, sent, repeatable }
}

/// How the attempt failed, in our own words. pingora's errors do not tell more of a kept connection than that it was one.
fn failure(error: &Error, reused: bool) -> Failure {
    match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError if reused => Failure::Stale,
        _ => Failure::Reset,
    }
}

/// In words. What is wrong with a certificate is known to the library only, as the last part of a long sentence.
fn why(error: &Error) -> String {
    let what = error.etype().as_str();
    match error.context.as_ref().filter(|_| *error.etype() == ErrorType::TLSHandshakeFailure) {
        Some(context) => format!("{what}: {}", context.as_str().rsplit(" cause: ").next().unwrap_or_default()),
        None => what.to_owned(),
    }
}

/// Did no whole head of the request reach the upstream? Over HTTP/2 the upstream says so itself (RFC 9113, 8.7), and pingora marks it.
fn is_unsent(error: &Error) -> bool {
    let heading = |context: &str| matches!(context, "while writing request headers" | "flushing request header");
    let broken_head = *error.etype() == ErrorType::WriteError && error.context.as_ref().is_some_and(|context| heading(context.as_str()));
    // Of invalid HTTP/2 it marks all streams, whatever the upstream did with them.
    broken_head || (error.retry == RetryType::Decided(true) && *error.etype() != ErrorType::InvalidH2)
}
