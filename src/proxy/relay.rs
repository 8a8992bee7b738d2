//! One plain request to one upstream after the other until one answers, and the answer back, on the lean path.
//! What is decided on the way is decided by the same functions as on pingora's.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName};
use http::{StatusCode, Version};
use nix::errno::Errno;
use pingora_core::protocols::http::date::get_cached_date;
use pingora_timeout::timeout;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::answer::Answer;
use super::attempt::{Chosen, Retry, Sending};
use super::client::{Client, poll_into};
use super::exchange::{Edit, Exchange};
use super::forwarded;
use super::idle::Idle;
use super::pump::{Fault, Pump};
use super::wire::{self, Framing, Malformed, Request, Response};
use crate::state::Route;
use crate::traffic::HeaderEdit;
use crate::upstream::{Failure, Ledger};

/// Bodies up to this length are read before the upstream is chosen: a slow client then holds no upstream, and the request can be
/// sent to another one.
const GATHERED: u64 = 64 * 1024;
/// Heads that may come before the answer's own: each has its time anew, so there must be an end to them.
const MOST_INTERIM: u32 = 32;
/// Longest head of an answer.
const LONGEST_HEAD: usize = 256 * 1024;

/// How a request ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The upstream's answer went out whole.
    Answered { status: StatusCode, bytes_out: u64, keep: bool },
    /// We have to answer; nothing went out.
    Refused(Answer),
    /// The client is gone, or its connection is of no use any more; `Some` where a head went out.
    Broken(Option<StatusCode>, u64),
}

/// Why an attempt came to nothing.
pub(super) enum Failed {
    /// The client did, not the upstream.
    Client(io::Error),
    /// Before the answer's head was there; how many bytes of one there were.
    Upstream(io::Error, usize),
    Late,
    Malformed(Malformed),
}

/// What one request's relay needs.
pub(super) struct Relay<'a> {
    pub(super) client: &'a mut Client,
    pub(super) request: &'a Request,
    /// The request's fields as a map.
    pub(super) headers: &'a HeaderMap,
    pub(super) ctx: &'a mut Exchange,
    pub(super) ledger: &'a Ledger,
    pub(super) idle: &'a Idle,
    /// Path and query for the upstream, and the prefix that was stripped.
    pub(super) target: String,
    pub(super) prefix: Option<String>,
    /// Answers close their connections.
    pub(super) closing: bool,
    pub(super) bytes_in: u64,
}

/// An upstream that is about to answer.
pub(super) struct Attempt {
    pub(super) tcp: TcpStream,
    address: SocketAddr,
    reused: bool,
    /// The request on its way.
    up: Pump,
    /// What was read of the answer.
    pub(super) buffer: BytesMut,
}

/// How long one step may go on without progress: at least the limit, at most twice that. The clock is only read where the first wait was in vain, or a whole request is limited.
pub(super) struct Clock {
    limit: Duration,
    moved: u64,
    since: Option<Instant>,
}

impl Clock {
    pub(super) fn start(limit: Duration) -> Clock {
        Clock { limit, moved: 0, since: None }
    }

    /// How long may still be waited: for this step, or for all of a request that began then. `None`: no longer.
    pub(super) fn left(&self, began: Instant, whole: Option<Duration>) -> Option<Duration> {
        let step = self.since.map_or(self.limit, |since| self.limit.saturating_sub(since.elapsed()));
        let left = whole.map_or(step, |whole| step.min(whole.saturating_sub(began.elapsed())));
        (!left.is_zero()).then_some(left)
    }

    /// After a wait in vain: did anything move since the last time it was asked? Then the step has its time again.
    pub(super) fn moved(&mut self, passed: u64) -> bool {
        let moved = passed != self.moved;
        (self.moved, self.since) = (passed, Some(Instant::now()));
        moved
    }
}

impl Relay<'_> {
    /// The whole way.
    pub(super) async fn run(&mut self, route: &Route) -> Ended {
        let Some(timeouts) = self.ctx.forward().map(|(_, timeouts, _)| *timeouts) else { return Ended::Refused(Answer::Unavailable) };
        self.client.be_patient(self.ctx.state.config.proxy.half_close);
        let gathered = self.request.body <= GATHERED;
        let length = usize::try_from(self.request.body).unwrap_or(usize::MAX);
        if gathered && length > 0 {
            let gathering = self.client.gather(length, self.ctx.silence(&timeouts, self.ctx.state.config.proxy.body_timeout));
            let left = timeouts.request.map(|whole| whole.saturating_sub(self.ctx.began.elapsed()));
            let gathered = match left {
                Some(left) => timeout(left, gathering).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                None => gathering.await,
            };
            if let Err(error) = gathered {
                return self.client_failed(Failed::Client(error));
            }
        }
        // At its start for each attempt; what follows it is the next request.
        let body = self.client.buffer.split_to(length.min(self.client.buffer.len())).freeze();
        self.bytes_in = body.len() as u64;
        loop {
            let mut attempt = match self.connect().await {
                Ok(attempt) => attempt,
                Err(Ok(answer)) => return Ended::Refused(answer),
                Err(Err(error)) => match self.unreached(error) {
                    None => continue,
                    Some(ended) => return ended,
                },
            };
            let head = self.upstream_head(route);
            attempt.up = match Pump::new(Framing::Length(self.request.body), head, &body) {
                Ok(up) => up,
                Err(malformed) => return Ended::Refused(bad_gateway(self.ctx, &malformed.to_string())),
            };
            let asked = self.ask(&mut attempt).await;
            self.bytes_in = self.bytes_in.max(attempt.up.passed);
            // What was read of the body is still here, unless more of it went through.
            let sending =
                Sending { method: &self.request.method, sent: attempt.up.begun, repeatable: attempt.up.passed <= body.len() as u64 };
            match asked {
                Ok(head) => match self.ctx.head_arrived(self.ledger, head.status, sending) {
                    Retry::Elsewhere => {}
                    Retry::GiveUp if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                        return Box::pin(self.tunnel(attempt, &head)).await;
                    }
                    Retry::GiveUp => return self.answer(attempt, head).await,
                },
                Err(failed) => {
                    if let Some(ended) = self.unanswered(failed, attempt.reused, sending) {
                        return ended;
                    }
                }
            }
        }
    }

    /// Picks a backend and gets a connection to it. The outer error: nothing to try (an answer), or why it could not be reached.
    async fn connect(&mut self) -> Result<Attempt, Result<Answer, io::Error>> {
        let Some(connect) = self.ctx.forward().map(|(_, timeouts, _)| timeouts.connect) else { return Err(Ok(Answer::Unavailable)) };
        let Chosen { backend, fresh } = self.ctx.next_backend(self.ledger, self.headers).map_err(Ok)?;
        let address = backend.address;
        let began = self.ctx.attempt_began.unwrap_or(self.ctx.began);
        let careful = !self.request.method.is_idempotent();
        let (tcp, reused) = match if fresh { None } else { self.idle.take(address, careful, began) } {
            Some(tcp) => {
                self.ctx.connect = Some(Duration::ZERO);
                (tcp, true)
            }
            None => {
                let connected = timeout(connect, TcpStream::connect(address)).await;
                let tcp = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(Err)?;
                tcp.set_nodelay(true).map_err(Err)?;
                self.ctx.connect = Some(began.elapsed());
                (tcp, false)
            }
        };
        self.ctx.reused = Some(reused);
        let up = Pump::new(Framing::Length(0), Vec::new(), &[]).map_err(|error| Err(io::Error::other(error)))?;
        Ok(Attempt { tcp, address, reused, up, buffer: BytesMut::new() })
    }

    /// The request's head as the upstream shall see it.
    fn upstream_head(&self, route: &Route) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.request.size.bytes + 512);
        out.extend_from_slice(self.request.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let edits = &route.traffic.request_headers;
        let edited = |name: &HeaderName| {
            edits.iter().any(|edit| match edit {
                HeaderEdit::Set(edited, _) | HeaderEdit::Remove(edited) => edited == name,
            })
        };
        let trusted = self.ctx.origin.as_ref().is_some_and(|origin| origin.trusted);
        let traced = |name: &HeaderName| self.ctx.trace_headers().any(|(ours, _)| ours == *name);
        let kept = |name: &HeaderName| !(forwarded::is_replaced(name, trusted) || edited(name) || traced(name));
        self.request.fields.write(&mut out, kept);
        if let Some(origin) = &self.ctx.origin {
            forwarded::each(origin, self.prefix.as_deref(), |name, value| {
                if !edited(&name) {
                    wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
                }
            });
        }
        for (name, value) in self.ctx.trace_headers() {
            if let (Some(value), false) = (value, edited(&name)) {
                wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        for edit in edits {
            if let HeaderEdit::Set(name, value) = edit {
                wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        if self.request.upgrade {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// Sends the request and waits for the answer's head; what comes before it (1xx) goes straight to the client.
    async fn ask(&mut self, attempt: &mut Attempt) -> Result<Response, Failed> {
        let Some((_, timeouts, _)) = self.ctx.forward() else { return Err(Failed::Late) };
        let timeouts = *timeouts;
        // What was gathered leaves in one go; a longer body has its own pauses first.
        let mut sending = self.request.body > GATHERED;
        let mut interim = 0;
        let mut step =
            Clock::start(if sending { self.ctx.silence(&timeouts, self.ctx.state.config.proxy.body_timeout) } else { timeouts.response });
        loop {
            let Some(wait) = step.left(self.ctx.began, timeouts.request) else { return Err(Failed::Late) };
            match timeout(wait, self.head_or_sent(attempt, sending)).await {
                Ok(Ok(Some(head))) if self.request.upgrade && head.status == StatusCode::SWITCHING_PROTOCOLS => return Ok(head),
                Ok(Ok(Some(head))) if head.status.is_informational() && interim < MOST_INTERIM => {
                    interim += 1;
                    self.pass_on(&head, timeouts.idle).await?;
                }
                Ok(Ok(Some(head))) if head.status.is_informational() => {
                    return Err(Failed::Malformed(Malformed("the answer does not come to its point")));
                }
                Ok(Ok(Some(head))) => return Ok(head),
                Ok(Ok(None)) => (sending, step) = (false, Clock::start(timeouts.response)),
                Ok(Err(failed)) => return Err(failed),
                Err(_) if sending && step.moved(attempt.up.passed) => {}
                // The client's body stands still, or the upstream does not take it.
                Err(_) if sending && attempt.up.is_waiting() => return Err(Failed::Client(io::ErrorKind::TimedOut.into())),
                Err(_) => return Err(Failed::Late),
            }
        }
    }

    /// The answer's head, or nothing once the request was sent whole where `sending`.
    async fn head_or_sent(&mut self, attempt: &mut Attempt, sending: bool) -> Result<Option<Response>, Failed> {
        let mut sink_failed = false;
        poll_fn(|cx| {
            if !attempt.up.is_over() && !sink_failed {
                match attempt.up.poll(cx, &mut self.client.socket, &mut attempt.tcp) {
                    Poll::Ready(Ok(())) if sending => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                    Poll::Ready(Err(Fault::Source(error))) => return Poll::Ready(Err(Failed::Client(error))),
                    // It reads no more, but may have answered before that.
                    Poll::Ready(Err(_)) => sink_failed = true,
                }
            }
            loop {
                if let Some(head) = wire::response(&mut attempt.buffer).map_err(Failed::Malformed)? {
                    return Poll::Ready(Ok(Some(head)));
                }
                if attempt.buffer.len() > LONGEST_HEAD {
                    return Poll::Ready(Err(Failed::Malformed(Malformed("the answer's head is too long"))));
                }
                match poll_into(&mut attempt.tcp, cx, &mut attempt.buffer) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(_)) => {
                        let closed = io::ErrorKind::UnexpectedEof.into();
                        return Poll::Ready(Err(Failed::Upstream(closed, attempt.buffer.len())));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Upstream(error, attempt.buffer.len()))),
                    Poll::Pending => break,
                }
            }
            if attempt.up.is_over()
                && let Poll::Ready(error) = self.client.poll_gone(cx)
            {
                return Poll::Ready(Err(Failed::Client(error)));
            }
            Poll::Pending
        })
        .await
    }

    /// 103 and its like; 100 and 101 were not asked for and stay here.
    async fn pass_on(&mut self, head: &Response, limit: Duration) -> Result<(), Failed> {
        match head.status {
            StatusCode::SWITCHING_PROTOCOLS => Err(Failed::Malformed(Malformed("the upstream switched protocols unasked"))),
            StatusCode::CONTINUE => Ok(()),
            status => {
                let mut out = status_line(status);
                // Such a head has no body; what says otherwise is not passed on (RFC 9110, 8.6; RFC 9112, 6.1).
                head.fields.write(&mut out, |name| *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING);
                out.extend_from_slice(b"\r\n");
                self.client.send(&out, limit).await.map_err(Failed::Client)
            }
        }
    }

    /// The upstream's answer on its way to the client.
    async fn answer(&mut self, mut attempt: Attempt, head: Response) -> Ended {
        let now = Instant::now();
        self.ctx.upstream =
            self.ctx.attempt_began.map(|began| now.saturating_duration_since(began).saturating_sub(self.ctx.connect.unwrap_or_default()));
        let framed = head.framing(&self.request.method).and_then(|(framing, stays)| {
            let keep = !self.closing && framing != Framing::UntilClose && attempt.up.is_over() && !self.client.half_closed;
            let out = self.client_head(&head, framing, keep);
            Pump::new(framing, out, &attempt.buffer).map(|down| (framing, stays, keep, down))
        });
        let (framing, stays, keep, mut down) = match framed {
            Ok(framed) => framed,
            Err(malformed) => {
                self.ctx.broke_off();
                return Ended::Refused(bad_gateway(self.ctx, &malformed.to_string()));
            }
        };
        self.ctx.transform.pass.answered(head.status.is_server_error());
        let result = self.copy(&mut attempt, &mut down).await;
        self.bytes_in = self.bytes_in.max(attempt.up.passed);
        match result {
            Ok(()) => {
                if stays && framing != Framing::UntilClose && !down.surplus && attempt.up.is_over() {
                    self.idle.put(attempt.address, attempt.tcp, now);
                }
                Ended::Answered { status: head.status, bytes_out: down.passed, keep }
            }
            Err(failed) if !down.begun && !matches!(failed, Failed::Client(_)) => {
                self.ctx.broke_off();
                self.ctx.failure = Some(words(&failed));
                Ended::Refused(if matches!(failed, Failed::Late) { Answer::Timeout } else { Answer::BadGateway })
            }
            Err(failed) => {
                // Closed as by a reset, so that half an answer never passes for a whole one.
                _ = SockRef::from(self.client.socket.tcp()).set_linger(Some(Duration::ZERO));
                self.client.broken = true;
                if !matches!(failed, Failed::Client(_)) {
                    self.ctx.broke_off();
                }
                self.ctx.failure = Some(words(&failed));
                Ended::Broken(Some(head.status), down.passed)
            }
        }
    }

    /// The answer's head as the client shall see it.
    fn client_head(&self, head: &Response, framing: Framing, keep: bool) -> Vec<u8> {
        let mut out = status_line(head.status);
        let edits = self.ctx.answer_edits(self.headers);
        let edited = |name: &HeaderName| edits.iter().any(|edit| matches!(edit, Edit::Set(set, _) | Edit::Remove(set) if set == name));
        let named = head.fields.named_by_connection();
        let chunked = framing == Framing::Chunked;
        head.fields.write(&mut out, |name| {
            let lost = edited(name) || named.contains(name) || (chunked && *name == header::CONTENT_LENGTH);
            !lost
        });
        for edit in &edits {
            if let Edit::Set(name, value) | Edit::Append(name, value) = edit {
                wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        if !head.fields.contains(&header::DATE) {
            wire::line(&mut out, b"Date", get_cached_date().as_bytes());
        }
        if !keep {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// Both bodies until the answer is out; what is left of the request's goes on meanwhile.
    async fn copy(&mut self, attempt: &mut Attempt, down: &mut Pump) -> Result<(), Failed> {
        let Some((_, timeouts, _)) = self.ctx.forward() else { return Err(Failed::Late) };
        let timeouts = *timeouts;
        let stalled = self.ctx.silence(&timeouts, self.ctx.state.config.proxy.write_timeout);
        let mut step = Clock::start(timeouts.idle);
        loop {
            // Either the upstream has the next word, or the client has not taken what there is.
            let waiting = down.is_waiting();
            step.limit = if waiting { timeouts.idle } else { stalled };
            let Some(wait) = step.left(self.ctx.began, timeouts.request) else { return Err(Failed::Late) };
            let both = poll_fn(|cx| {
                let up = match attempt.up.is_over() {
                    true => Poll::Pending,
                    false => attempt.up.poll(cx, &mut self.client.socket, &mut attempt.tcp),
                };
                if let Poll::Ready(result) = down.poll(cx, &mut attempt.tcp, &mut self.client.socket) {
                    return Poll::Ready(result.map_err(|fault| match fault {
                        Fault::Source(error) => Failed::Upstream(error, 0),
                        Fault::Sink(error) => Failed::Client(error),
                        Fault::Malformed(malformed) => Failed::Malformed(malformed),
                    }));
                }
                // An upstream that takes no more may still answer; a client that is gone needs no answer, and one that broke off
                // will get none that ends.
                match up {
                    Poll::Ready(Err(Fault::Source(error))) => Poll::Ready(Err(Failed::Client(error))),
                    // One that shut its writing side down takes the answer as long as it comes.
                    _ if attempt.up.is_over() && !self.client.half_closed => {
                        self.client.poll_gone(cx).map(|error| Err(Failed::Client(error)))
                    }
                    _ => Poll::Pending,
                }
            });
            match timeout(wait, both).await {
                Ok(result) => return result,
                Err(_) if step.moved(down.passed + attempt.up.passed) => {}
                // The other side's turn has come meanwhile.
                Err(_) if down.is_waiting() != waiting => step = Clock::start(timeouts.idle),
                Err(_) if waiting => return Err(Failed::Late),
                Err(_) => return Err(Failed::Client(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// No connection: on to another task, or the end.
    fn unreached(&mut self, error: io::Error) -> Option<Ended> {
        if is_out_of_descriptors(&error) {
            // Our own shortage: the backend is not to blame, and another one would not be reached either.
            self.ctx.in_flight = None;
            self.ctx.failure = Some("connect: this edge has no file descriptor left".to_owned());
            return Some(Ended::Refused(Answer::Unavailable));
        }
        let sending = Sending { method: &self.request.method, sent: false, repeatable: true };
        if self.ctx.attempt_failed(self.ledger, Failure::Connect, sending) == Retry::Elsewhere {
            return None;
        }
        let late = error.kind() == io::ErrorKind::TimedOut;
        self.ctx.failure = Some(format!("connect: {error}"));
        Some(Ended::Refused(if late { Answer::Timeout } else { Answer::BadGateway }))
    }

    /// A connection, but no answer: on to another task, or the end.
    fn unanswered(&mut self, failed: Failed, reused: bool, sending: Sending<'_>) -> Option<Ended> {
        let failure = match &failed {
            Failed::Client(_) => None,
            Failed::Late => Some(Failure::Timeout),
            Failed::Upstream(_, 0) if reused => Some(Failure::Stale),
            Failed::Upstream(..) | Failed::Malformed(_) => Some(Failure::Reset),
        };
        let Some(failure) = failure else { return Some(self.client_failed(failed)) };
        let whole = self.ctx.forward().and_then(|(_, timeouts, _)| timeouts.request);
        let in_time = whole.is_none_or(|whole| self.ctx.began.elapsed() < whole);
        if in_time && self.ctx.attempt_failed(self.ledger, failure, sending) == Retry::Elsewhere {
            return None;
        }
        self.ctx.failure = Some(words(&failed));
        Some(Ended::Refused(if failure == Failure::Timeout { Answer::Timeout } else { Answer::BadGateway }))
    }

    fn client_failed(&mut self, failed: Failed) -> Ended {
        let late = matches!(&failed, Failed::Client(error) if error.kind() == io::ErrorKind::TimedOut);
        self.ctx.failure = Some(words(&failed));
        match late {
            true => Ended::Refused(Answer::Refused(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive.")),
            false => Ended::Broken(None, 0),
        }
    }
}

/// Did a connection fail because this process may open no further file?
fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| [Errno::EMFILE as i32, Errno::ENFILE as i32].contains(&errno))
}

fn bad_gateway(ctx: &mut Exchange, why: &str) -> Answer {
    ctx.failure = Some(format!("upstream: {why}"));
    Answer::BadGateway
}

pub(super) fn words(failed: &Failed) -> String {
    match failed {
        Failed::Client(error) => format!("client: {error}"),
        Failed::Upstream(error, _) => format!("upstream: {error}"),
        Failed::Late => "upstream: too late".to_owned(),
        Failed::Malformed(malformed) => format!("upstream: {malformed}"),
    }
}

/// Room for a whole head behind it.
pub(super) fn status_line(status: StatusCode) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}

/// The version that the lean path speaks.
pub(super) const VERSION: Version = Version::HTTP_11;
