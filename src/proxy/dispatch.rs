//! From a request to a task that takes it, on the lean paths: which one, over which connection, with which head, and what
//! becomes of the request when one fails. All of it is decided by the same functions as on pingora's path.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use nix::errno::Errno;
use pingora_timeout::timeout;
use tokio::net::TcpStream;

use super::answer::Answer;
use super::attempt::{Chosen, Retry, Sending};
use super::exchange::Exchange;
use super::forwarded;
use super::idle::Idle;
use super::relay::{Ended, Failed};
use super::wire;
use crate::state::Route;
use crate::traffic::HeaderEdit;
use crate::upstream::{Failure, Ledger};

/// One request on its way to an upstream.
pub(super) struct Dispatch<'a> {
    pub(super) method: &'a Method,
    /// The request's fields as a map.
    pub(super) headers: &'a HeaderMap,
    pub(super) ctx: &'a mut Exchange,
    pub(super) ledger: &'a Ledger,
    pub(super) idle: &'a Idle,
    /// Path and query for the upstream, and the prefix that was stripped.
    pub(super) target: String,
    pub(super) prefix: Option<String>,
    /// It asks to switch to WebSocket.
    pub(super) upgrade: bool,
}

/// A connection to an upstream that is about to answer.
pub(super) struct Attempt {
    pub(super) tcp: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) reused: bool,
    /// What was read of the answer.
    pub(super) buffer: BytesMut,
}

impl Dispatch<'_> {
    /// Picks a backend and gets a connection to it. The outer error: nothing to try (an answer), or why it could not be reached.
    pub(super) async fn connect(&mut self) -> Result<Attempt, Result<Answer, io::Error>> {
        let Some(connect) = self.ctx.forward().map(|(_, timeouts, _)| timeouts.connect) else { return Err(Ok(Answer::Unavailable)) };
        let Chosen { backend, fresh } = self.ctx.next_backend(self.ledger, self.headers).map_err(Ok)?;
        let address = backend.address;
        let began = self.ctx.attempt_began.unwrap_or(self.ctx.began);
        let careful = !self.method.is_idempotent();
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
        Ok(Attempt { tcp, address, reused, buffer: BytesMut::new() })
    }

    /// The request's head as the upstream shall see it, in about `size` bytes. `write` writes those of the client's fields that it
    /// is told to keep, and what belongs to the framing.
    pub(super) fn request_head(
        &self,
        route: &Route,
        size: usize,
        write: impl FnOnce(&mut Vec<u8>, &dyn Fn(&HeaderName) -> bool),
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(size + 512);
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let edits = &route.traffic.request_headers;
        let edited = |name: &HeaderName| {
            edits.iter().any(|edit| match edit {
                HeaderEdit::Set(edited, _) | HeaderEdit::Remove(edited) => edited == name,
            })
        };
        let traced = |name: &HeaderName| self.ctx.trace_headers().any(|(ours, _)| ours == *name);
        let cookies = self.ctx.other_cookies(self.headers);
        let cookie = |name: &HeaderName| cookies.is_some() && *name == header::COOKIE;
        let kept = |name: &HeaderName| !(self.ctx.withholds(name) || edited(name) || traced(name) || cookie(name));
        write(&mut out, &kept);
        if let Some(cookies) = cookies.as_ref().filter(|cookies| !cookies.is_empty() && !edited(&header::COOKIE)) {
            wire::line(&mut out, b"cookie", cookies);
        }
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
        let told = self.ctx.told();
        for edit in edits {
            if let HeaderEdit::Set(name, value) = edit
                && told.iter().all(|(said, _)| said != name)
            {
                wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        for (name, value) in told {
            wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
        }
        if self.upgrade {
            out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// No connection: on to another task, or the end.
    pub(super) fn unreached(&mut self, error: io::Error) -> Option<Ended> {
        if is_out_of_descriptors(&error) {
            // Our own shortage: the backend is not to blame, and another one would not be reached either.
            self.ctx.in_flight = None;
            self.ctx.failure = Some("connect: this edge has no file descriptor left".to_owned());
            return Some(Ended::Refused(Answer::Unavailable));
        }
        let sending = Sending { method: self.method, sent: false, repeatable: true };
        if self.ctx.attempt_failed(self.ledger, Failure::Connect, sending) == Retry::Elsewhere {
            return None;
        }
        let late = error.kind() == io::ErrorKind::TimedOut;
        self.ctx.failure = Some(format!("connect: {error}"));
        Some(Ended::Refused(if late { Answer::Timeout } else { Answer::BadGateway }))
    }

    /// A connection, but no answer: on to another task, or the end.
    pub(super) fn unanswered(&mut self, failed: Failed, reused: bool, sending: Sending<'_>) -> Option<Ended> {
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
        self.ctx.failure = Some(failed.words());
        Some(Ended::Refused(if failure == Failure::Timeout { Answer::Timeout } else { Answer::BadGateway }))
    }

    pub(super) fn client_failed(&mut self, failed: Failed) -> Ended {
        let late = matches!(&failed, Failed::Client(error) if error.kind() == io::ErrorKind::TimedOut);
        self.ctx.failure = Some(failed.words());
        match late {
            true => Ended::Refused(Answer::Refused(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive.")),
            false => Ended::Broken(None, 0),
        }
    }

    /// The upstream's answer is none.
    pub(super) fn bad_gateway(&mut self, why: &str) -> Ended {
        self.ctx.failure = Some(format!("upstream: {why}"));
        Ended::Refused(Answer::BadGateway)
    }
}

/// Did a connection fail because this process may open no further file?
fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| [Errno::EMFILE as i32, Errno::ENFILE as i32].contains(&errno))
}
