//! A WebSocket on the lean path: once both sides have switched, bytes go both ways until one side ends.
//! pingora's own way loses a connection whose upstream switches before pingora has noted the end of the request.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use http::StatusCode;
use http::header;
use pingora_timeout::timeout;
use tokio::io::AsyncWrite;

use super::answer::Answer;
use super::direct::{Direct, status_line};
use super::dispatch::Attempt;
use super::peer::UPGRADED_IDLE;
use super::pump::{Fault, Pump};
use super::relay::{Clock, Ended, Failed, Relay, Switched};
use super::wire::{Framing, Malformed, Response};

impl Relay<'_, Direct<'_>> {
    /// The upstream's 101 and all that follows it.
    pub(super) async fn tunnel(&mut self, switched: Switched) -> Ended {
        let Switched { mut attempt, head } = switched;
        self.to.ctx.upstream =
            self.to.ctx.attempt_began.map(|began| began.elapsed().saturating_sub(self.to.ctx.connect.unwrap_or_default()));
        let switched = switched_head(&head).and_then(|out| {
            let down = Pump::new(Framing::UntilClose, out, &attempt.buffer)?;
            // What the client sent ahead of the switch.
            let up = Pump::new(Framing::UntilClose, Vec::new(), &self.side.client.buffer.split())?;
            Ok((up, down))
        });
        let (mut up, mut down) = match switched {
            Ok(pumps) => pumps,
            Err(malformed) => {
                self.to.ctx.broke_off();
                self.to.ctx.failure = Some(format!("upstream: {malformed}"));
                return Ended::Refused(Answer::BadGateway);
            }
        };
        self.to.ctx.transform.pass.answered(false);
        self.status = Some(head.status);
        let result = self.both_ways(&mut attempt, &mut up, &mut down).await;
        self.bytes_in = up.passed;
        match result {
            Ok(()) => Ended::Answered { status: head.status, bytes_out: down.passed, keep: false },
            Err(failed) => {
                self.to.ctx.failure = Some(failed.words());
                Ended::Broken(Some(head.status), down.passed)
            }
        }
    }

    /// Until the upstream ends. The client's end alone is passed on: the upstream may have a last word.
    async fn both_ways(&mut self, attempt: &mut Attempt, up: &mut Pump, down: &mut Pump) -> Result<(), Failed> {
        let Some((_, timeouts, _)) = self.to.ctx.forward() else { return Err(Failed::Late) };
        let timeouts = *timeouts;
        let mut step = Clock::start(timeouts.idle.max(UPGRADED_IDLE));
        let mut ended = false;
        loop {
            let Some(wait) = step.left(self.to.ctx.began, timeouts.request) else { return Err(Failed::Late) };
            let was_ended = ended;
            let both = poll_fn(|cx| {
                if !ended {
                    match up.poll(cx, &mut self.side.client.socket, &mut attempt.tcp) {
                        Poll::Ready(Ok(())) => ended = true,
                        Poll::Ready(Err(fault)) => return Poll::Ready(Err(failed(fault, true))),
                        Poll::Pending => {}
                    }
                }
                if ended && !was_ended {
                    // Failing or not: the upstream's own end is what is waited for.
                    _ = Pin::new(&mut attempt.tcp).poll_shutdown(cx);
                }
                match down.poll(cx, &mut attempt.tcp, &mut self.side.client.socket) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(true)),
                    Poll::Ready(Err(fault)) => Poll::Ready(Err(failed(fault, false))),
                    // Back to the clock: the rest has less time.
                    Poll::Pending if ended && !was_ended => Poll::Ready(Ok(false)),
                    Poll::Pending => Poll::Pending,
                }
            });
            match timeout(wait, both).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => step = Clock::start(timeouts.idle),
                Ok(Err(failed)) => return Err(failed),
                Err(_) if step.moved(up.passed + down.passed) => {}
                Err(_) => return Err(Failed::Late),
            }
        }
    }
}

/// Whose fault it was: a source of one direction is the sink of the other.
fn failed(fault: Fault, upwards: bool) -> Failed {
    let by_upstream = |error: io::Error, upstream: bool| if upstream { Failed::Upstream(error, 0) } else { Failed::Client(error) };
    match fault {
        Fault::Source(error) => by_upstream(error, !upwards),
        Fault::Sink(error) => by_upstream(error, upwards),
        Fault::Malformed(malformed) => Failed::Malformed(malformed),
    }
}

/// The 101 as the client shall see it.
///
/// # Errors
/// When the upstream switched to something else than was asked for.
fn switched_head(head: &Response) -> Result<Vec<u8>, Malformed> {
    if !is_websocket(head) {
        return Err(Malformed("the upstream switched to another protocol than WebSocket"));
    }
    let mut out = status_line(StatusCode::SWITCHING_PROTOCOLS);
    head.fields.write(&mut out, |name| *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING);
    out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    Ok(out)
}

fn is_websocket(head: &Response) -> bool {
    let mut values = head.fields.all(&header::UPGRADE);
    values.next().is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) && values.next().is_none()
}
