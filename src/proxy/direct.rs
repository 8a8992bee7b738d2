//! The client's side of a relay over HTTP/1.1: bytes in, bytes out, on the client's own socket.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{self, HeaderName};
use pingora_core::protocols::http::date::get_cached_date;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::answer::Rendered;
use super::client::Client;
use super::dispatch::Dispatch;
use super::exchange::Edit;
use super::pump::{Fault, Pump};
use super::side::{GATHERED, Progress, Side};
use super::wire::{self, Framing, Malformed, Request, Response};
use crate::state::Route;

/// One request of an HTTP/1.1 client.
pub(super) struct Direct<'a> {
    pub(super) client: &'a mut Client,
    request: &'a Request,
    /// Answers close their connections.
    closing: bool,
    /// Of the request's body, at its start for each attempt.
    body: Bytes,
    up: Pump,
    /// Once an answer's head came.
    down: Option<Pump>,
    keep: bool,
}

impl<'a> Direct<'a> {
    pub(super) fn new(client: &'a mut Client, request: &'a Request, closing: bool) -> Direct<'a> {
        Direct { client, request, closing, body: Bytes::new(), up: Pump::default(), down: None, keep: false }
    }
}

impl Side for Direct<'_> {
    fn be_patient(&mut self, patience: Duration) {
        self.client.be_patient(patience);
    }

    async fn gather(&mut self, pause: Duration) -> io::Result<u64> {
        let length = usize::try_from(self.request.body).unwrap_or(usize::MAX);
        if !self.is_streamed() {
            self.client.gather(length, pause).await?;
        }
        // What follows it is the next request.
        self.body = self.client.buffer.split_to(length.min(self.client.buffer.len())).freeze();
        Ok(self.body.len() as u64)
    }

    fn is_streamed(&self) -> bool {
        self.request.body > GATHERED
    }

    fn is_repeatable(&self) -> bool {
        self.up.passed <= self.body.len() as u64
    }

    fn begin(&mut self, to: &Dispatch<'_>, route: &Route) -> Result<(), Malformed> {
        let head = to.request_head(route, self.request.size.bytes, |out, kept| self.request.fields.write(out, kept));
        self.up = Pump::new(Framing::Length(self.request.body), head, &self.body)?;
        Ok(())
    }

    fn up(&self) -> Progress {
        self.up.progress()
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>> {
        self.up.poll(cx, &mut self.client.socket, upstream)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // One that shut its writing side down takes the answer as long as it comes.
        if self.down.is_some() && self.client.half_closed { Poll::Pending } else { self.client.poll_gone(cx) }
    }

    async fn announce(&mut self, head: &Response, limit: Duration) -> io::Result<()> {
        let mut out = status_line(head.status);
        // Such a head has no body; what says otherwise is not passed on (RFC 9110, 8.6; RFC 9112, 6.1).
        head.fields.write(&mut out, |name| *name != header::CONTENT_LENGTH && *name != header::TRANSFER_ENCODING);
        out.extend_from_slice(b"\r\n");
        self.client.send(&out, limit).await
    }

    fn answer(&mut self, to: &Dispatch<'_>, head: &Response, framing: Framing, first: BytesMut) -> Result<(), Malformed> {
        self.keep = !self.closing && framing != Framing::UntilClose && self.up.is_over() && !self.client.half_closed;
        self.down = Some(Pump::new(framing, answer_head(to, head, framing, self.keep), &first)?);
        Ok(())
    }

    fn down(&self) -> Progress {
        self.down.as_ref().map(Pump::progress).unwrap_or_default()
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>> {
        match &mut self.down {
            Some(down) => down.poll(cx, upstream, &mut self.client.socket),
            None => Poll::Pending,
        }
    }

    fn keeps(&self) -> bool {
        self.keep
    }

    /// As by a reset, so that half an answer never passes for a whole one.
    fn break_off(&mut self) {
        _ = SockRef::from(self.client.socket.tcp()).set_linger(Some(Duration::ZERO));
        self.client.broken = true;
    }
}

/// The answer's head as the client shall see it.
fn answer_head(to: &Dispatch<'_>, head: &Response, framing: Framing, keep: bool) -> Vec<u8> {
    let mut out = status_line(head.status);
    let edits = to.ctx.answer_edits(to.headers);
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

/// An answer of ours as it goes out.
pub(super) fn bytes_of(rendered: Rendered, close: bool) -> Vec<u8> {
    let mut out = status_line(rendered.status);
    for (name, value) in &rendered.headers {
        wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    if !rendered.headers.iter().any(|(name, _)| name == header::CONTENT_LENGTH) && rendered.status != StatusCode::NO_CONTENT {
        wire::line(&mut out, b"Content-Length", b"0");
    }
    wire::line(&mut out, b"Date", get_cached_date().as_bytes());
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(rendered.body.as_bytes());
    out
}
