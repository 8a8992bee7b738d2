//! One plain request to one upstream after the other until one answers, and the answer back, on the lean paths.
//! What the client speaks is its [`Side`]'s to know; what is decided on the way is decided by the same functions as on pingora's.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::StatusCode;
use pingora_timeout::timeout;
use tokio::net::TcpStream;

use super::answer::Answer;
use super::attempt::{Retry, Sending};
use super::client::poll_into;
use super::dispatch::{Attempt, Dispatch};
use super::exchange::Exchange;
use super::pump::Fault;
use super::side::Side;
use super::wire::{self, Framing, Malformed, Response};
use crate::auth::passage::Manner;
use crate::state::Route;
use crate::upstream::Timeouts;

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

/// The upstream switched to another protocol, as it was asked to.
pub(super) struct Switched {
    pub(super) attempt: Attempt,
    pub(super) head: Response,
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

impl Failed {
    /// As the access log tells it.
    pub(super) fn words(&self) -> String {
        match self {
            Failed::Client(error) => format!("client: {error}"),
            Failed::Upstream(error, _) => format!("upstream: {error}"),
            Failed::Late => "upstream: too late".to_owned(),
            Failed::Malformed(malformed) => format!("upstream: {malformed}"),
        }
    }
}

/// What one request's relay needs.
pub(super) struct Relay<'a, S> {
    pub(super) to: Dispatch<'a>,
    pub(super) side: S,
    pub(super) bytes_in: u64,
    /// Of the answer whose head was handed to the client's side.
    pub(super) status: Option<StatusCode>,
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

impl<'a, S: Side> Relay<'a, S> {
    pub(super) fn new(to: Dispatch<'a>, side: S) -> Relay<'a, S> {
        Relay { to, side, bytes_in: 0, status: None }
    }

    /// Whoever sent the request may not go on with it.
    pub(super) fn fell(&mut self) -> Ended {
        self.to.ctx.failure = Some("the session ended".to_owned());
        match self.status {
            None => Ended::Refused(Answer::Unauthorized(Manner::Script, self.to.ctx.host.clone())),
            Some(status) => {
                self.side.break_off();
                Ended::Broken(Some(status), self.side.down().passed)
            }
        }
    }

    /// The whole way.
    ///
    /// # Errors
    /// The upstream switched protocols: what follows is no answer.
    pub(super) async fn run(&mut self, route: &Route) -> Result<Ended, Box<Switched>> {
        let Some(timeouts) = self.to.ctx.forward().map(|(_, timeouts, _)| *timeouts) else {
            return Ok(Ended::Refused(Answer::Unavailable));
        };
        self.side.be_patient(self.to.ctx.state.config.proxy.half_close);
        let gathering = self.side.gather(body_pause(self.to.ctx, &timeouts));
        let left = timeouts.request.map(|whole| whole.saturating_sub(self.to.ctx.began.elapsed()));
        let gathered = match left {
            Some(left) => timeout(left, gathering).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            None => gathering.await,
        };
        match gathered {
            Ok(gathered) => self.bytes_in = gathered,
            Err(error) => return Ok(self.to.client_failed(Failed::Client(error))),
        }
        loop {
            let mut attempt = match self.to.connect().await {
                Ok(attempt) => attempt,
                Err(Ok(answer)) => return Ok(Ended::Refused(answer)),
                Err(Err(error)) => match self.to.unreached(error) {
                    None => continue,
                    Some(ended) => return Ok(ended),
                },
            };
            if let Err(malformed) = self.side.begin(&self.to, route) {
                return Ok(self.to.bad_gateway(&malformed.to_string()));
            }
            let asked = self.ask(&mut attempt).await;
            let up = self.side.up();
            self.bytes_in = self.bytes_in.max(up.passed);
            let sending = Sending { method: self.to.method, sent: up.begun, repeatable: self.side.is_repeatable() };
            match asked {
                Ok(head) => match self.to.ctx.head_arrived(self.to.ledger, head.status, sending) {
                    Retry::Elsewhere => {}
                    Retry::GiveUp if head.status == StatusCode::SWITCHING_PROTOCOLS => return Err(Box::new(Switched { attempt, head })),
                    Retry::GiveUp => return Ok(self.answer(attempt, head).await),
                },
                Err(failed) => {
                    if let Some(ended) = self.to.unanswered(failed, attempt.reused, sending) {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Sends the request and waits for the answer's head; what comes before it (1xx) goes straight to the client.
    async fn ask(&mut self, attempt: &mut Attempt) -> Result<Response, Failed> {
        let Some((_, timeouts, _)) = self.to.ctx.forward() else { return Err(Failed::Late) };
        let timeouts = *timeouts;
        // What was gathered leaves in one go; a longer body has its own pauses first.
        let mut sending = self.side.is_streamed();
        let mut interim = 0;
        let mut step = Clock::start(if sending { body_pause(self.to.ctx, &timeouts) } else { timeouts.response });
        loop {
            let Some(wait) = step.left(self.to.ctx.began, timeouts.request) else { return Err(Failed::Late) };
            match timeout(wait, self.head_or_sent(attempt, sending)).await {
                Ok(Ok(Some(head))) if self.to.upgrade && head.status == StatusCode::SWITCHING_PROTOCOLS => return Ok(head),
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
                Err(_) if sending && step.moved(self.side.up().passed) => {}
                // The client's body stands still, or the upstream does not take it.
                Err(_) if sending && self.side.up().waiting => return Err(Failed::Client(io::ErrorKind::TimedOut.into())),
                Err(_) => return Err(Failed::Late),
            }
        }
    }

    /// The answer's head, or nothing once the request was sent whole where `sending`.
    async fn head_or_sent(&mut self, attempt: &mut Attempt, sending: bool) -> Result<Option<Response>, Failed> {
        let mut sink_failed = false;
        poll_fn(|cx| {
            if !self.side.up().over && !sink_failed {
                match self.side.poll_up(cx, &mut attempt.tcp) {
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
            if self.side.up().over
                && let Poll::Ready(error) = self.side.poll_gone(cx)
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
            _ => self.side.announce(head, limit).await.map_err(Failed::Client),
        }
    }

    /// The upstream's answer on its way to the client.
    async fn answer(&mut self, mut attempt: Attempt, head: Response) -> Ended {
        let now = Instant::now();
        let ctx = &mut *self.to.ctx;
        ctx.upstream = ctx.attempt_began.map(|began| now.saturating_duration_since(began).saturating_sub(ctx.connect.unwrap_or_default()));
        let framed = head.framing(self.to.method).and_then(|framed| {
            self.side.answer(&self.to, &head, framed.0, std::mem::take(&mut attempt.buffer))?;
            Ok(framed)
        });
        let (framing, stays) = match framed {
            Ok(framed) => framed,
            Err(malformed) => {
                self.to.ctx.broke_off();
                return self.to.bad_gateway(&malformed.to_string());
            }
        };
        self.to.ctx.transform.pass.answered(head.status.is_server_error());
        self.status = Some(head.status);
        let result = self.copy(&mut attempt).await;
        let (up, down) = (self.side.up(), self.side.down());
        self.bytes_in = self.bytes_in.max(up.passed);
        match result {
            Ok(()) => {
                if stays && framing != Framing::UntilClose && !down.surplus && up.over {
                    self.to.idle.put(attempt.address, attempt.tcp, now);
                }
                Ended::Answered { status: head.status, bytes_out: down.passed, keep: self.side.keeps() }
            }
            Err(failed) if !down.begun && !matches!(failed, Failed::Client(_)) => {
                self.to.ctx.broke_off();
                self.to.ctx.failure = Some(failed.words());
                Ended::Refused(if matches!(failed, Failed::Late) { Answer::Timeout } else { Answer::BadGateway })
            }
            Err(failed) => {
                self.side.break_off();
                if !matches!(failed, Failed::Client(_)) {
                    self.to.ctx.broke_off();
                }
                self.to.ctx.failure = Some(failed.words());
                Ended::Broken(Some(head.status), down.passed)
            }
        }
    }

    /// Both bodies until the answer is out; what is left of the request's goes on meanwhile.
    async fn copy(&mut self, attempt: &mut Attempt) -> Result<(), Failed> {
        let Some((_, timeouts, _)) = self.to.ctx.forward() else { return Err(Failed::Late) };
        let timeouts = *timeouts;
        let stalled = self.to.ctx.silence(&timeouts, self.to.ctx.state.config.proxy.write_timeout);
        let mut step = Clock::start(timeouts.idle);
        loop {
            // Either the upstream has the next word, or the client has not taken what there is.
            let waiting = self.side.down().waiting;
            step.limit = if waiting { timeouts.idle } else { stalled };
            let Some(wait) = step.left(self.to.ctx.began, timeouts.request) else { return Err(Failed::Late) };
            match timeout(wait, poll_fn(|cx| self.poll_both(cx, &mut attempt.tcp))).await {
                Ok(result) => return result,
                Err(_) if step.moved(self.side.down().passed + self.side.up().passed) => {}
                // The other side's turn has come meanwhile.
                Err(_) if self.side.down().waiting != waiting => step = Clock::start(timeouts.idle),
                Err(_) if waiting => return Err(Failed::Late),
                Err(_) => return Err(Failed::Client(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Failed>> {
        let up = match self.side.up().over {
            true => Poll::Pending,
            false => self.side.poll_up(cx, upstream),
        };
        if let Poll::Ready(result) = self.side.poll_down(cx, upstream) {
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
            _ if self.side.up().over => self.side.poll_gone(cx).map(|error| Err(Failed::Client(error))),
            _ => Poll::Pending,
        }
    }
}

/// How long a request's body may pause.
fn body_pause(ctx: &Exchange, timeouts: &Timeouts) -> Duration {
    ctx.silence(timeouts, ctx.state.config.proxy.body_timeout)
}
