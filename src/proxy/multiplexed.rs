//! One request of an HTTP/2 connection on the lean path: decided like any other, sent to a plain HTTP/1.1 upstream, answered on
//! its stream. What is not plain stays pingora's.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::HttpSession;
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::net::TcpStream;

use super::answer::Answer;
use super::dispatch::Dispatch;
use super::download::{self, Download};
use super::exchange::{self, Asked, Edit, Exchange};
use super::head::{head_size, target};
use super::lean::{DRAIN_REQUEST, Lean};
use super::plain::Going;
use super::pump::Fault;
use super::relay::{Ended, Failed, Relay};
use super::side::{Progress, Side};
use super::standing::{Fallen, Guard, while_it_stands};
use super::stream::PerConnection;
use super::upload::Upload;
use super::wire::{self, Framing, Malformed, Response};
use crate::state::Route;

impl Lean {
    /// Serves one stream to its end.
    pub(super) async fn serve_stream(&self, mut session: HttpSession, about: &PerConnection) {
        if !self.plain_stream(&mut session, about).await {
            // Boxed: most are plain, and need no room for this.
            Box::pin(self.proxy.process_new_http(ServerSession::new_http2(session), &self.stopping)).await;
        }
    }

    /// A plain request whose route is plain too; any other is left as it was.
    async fn plain_stream(&self, session: &mut HttpSession, about: &PerConnection) -> bool {
        let head = session.req_header();
        let Some(length) = plain_length(head) else { return false };
        let upload = Upload::new(length, session.is_body_done());
        let mut ctx = Exchange::new(self.live.load());
        ctx.connection = Some(about.clone());
        let size = head_size(head);
        let has_authority = head.uri.authority().is_some();
        let asked = Asked { version: Version::HTTP_2, method: &head.method, headers: &head.headers, has_authority, size };
        let routed = ctx.decide(&asked, target(head), None, &self.challenges, &*self.gatekeeper);
        let streamed = length.is_none() && upload.is_streamed();
        let Some(judged) = self.judge(&mut ctx, routed, &head.uri, &head.headers, streamed).await else { return false };
        // The session is written to while its head is looked at.
        let request = std::mem::replace(session.req_header_mut(), http::Request::new(()).into_parts().0.into());
        let (ended, bytes_in) = match judged {
            // Some send a request and take it back at once (CVE-2023-44487): no upstream is troubled for them.
            Ok(_) if let Some(error) = reset_already(session).await => {
                ctx.failure = Some(Failed::Client(error).words());
                (Ended::Broken(None, 0), 0)
            }
            Ok(going) => self.relay(session, &request, &mut ctx, going, upload).await,
            Err(answer) => (Ended::Refused(answer), 0),
        };
        self.finish_stream(session, &request, &mut ctx, ended, bytes_in).await;
        true
    }

    async fn relay(
        &self,
        session: &mut HttpSession,
        request: &RequestHeader,
        ctx: &mut Exchange,
        going: Going,
        upload: Upload,
    ) -> (Ended, u64) {
        let Going { route, target, prefix } = going;
        let guard = Guard::of(ctx, &route, &self.gatekeeper);
        let to = Dispatch {
            method: &request.method,
            headers: &request.headers,
            ctx,
            ledger: &self.ledger,
            idle: &self.idle,
            target,
            prefix,
            upgrade: false,
        };
        let mut relay = Relay::new(to, Multiplexed { session, request, upload, download: None });
        let ended = match while_it_stands(guard.as_ref(), relay.run(&route)).await {
            // Nothing switches that was not asked to.
            Ok(ended) => ended.unwrap_or(Ended::Refused(Answer::BadGateway)),
            Err(Fallen) => relay.fell(),
        };
        (ended, relay.bytes_in)
    }

    /// Answers where that is left to us, and tells of the request.
    async fn finish_stream(&self, session: &mut HttpSession, request: &RequestHeader, ctx: &mut Exchange, ended: Ended, bytes_in: u64) {
        let (status, bytes_out) = match ended {
            Ended::Answered { status, bytes_out, .. } => (Some(status), bytes_out),
            Ended::Broken(status, bytes_out) => (status, bytes_out),
            Ended::Refused(answer) => {
                if matches!(answer, Answer::BadGateway | Answer::Timeout) {
                    ctx.transform.pass.answered(true);
                }
                match self.refuse(session, request, ctx, answer).await {
                    Ok((status, bytes_out)) => (Some(status), bytes_out),
                    Err(error) => {
                        tracing::debug!(%error, "the client left before the error page");
                        (None, 0)
                    }
                }
            }
        };
        ctx.nth = ctx.connection.as_ref().map_or(0, |connection| connection.phase.count());
        let ended = exchange::Ended {
            method: &request.method,
            uri: &request.uri,
            version: Version::HTTP_2,
            headers: &request.headers,
            status,
            bytes_in,
            bytes_out,
            broken: status.is_none() || ctx.failure.is_some(),
        };
        self.observer.finished(&ctx.record(&ended));
        // The answer is out before all of the request came: many clients would not look at it if the stream was reset now.
        if status.is_some() && !session.is_body_done() {
            session.set_total_drain_timeout(Some(DRAIN_REQUEST));
            if let Err(error) = session.drain_request_body().await {
                tracing::debug!(%error, "the request's body was not read to its end");
            }
        }
    }

    /// Sends an answer of ours whole; returns its status and how long its body was.
    async fn refuse(
        &self,
        session: &mut HttpSession,
        request: &RequestHeader,
        ctx: &mut Exchange,
        answer: Answer,
    ) -> pingora_error::Result<(StatusCode, u64)> {
        let status = answer.status();
        let rendered = ctx.rendered(answer, &request.method, &request.headers);
        let mut fields = HeaderMap::with_capacity(rendered.headers.len() + 1);
        for (name, value) in rendered.headers {
            fields.append(name, value);
        }
        let body = Bytes::from(rendered.body);
        session.write_response_header(response(rendered.status, fields), body.is_empty())?;
        let length = body.len() as u64;
        if !body.is_empty() {
            session.set_write_timeout(Some(ctx.state.config.proxy.write_timeout));
            session.write_body(body, true).await?;
        }
        Ok((status, length))
    }
}

/// The declared length of a request's body, where nothing of the request's shape is special. What HTTP/1.1 says otherwise than
/// HTTP/2 was refused when the stream was accepted.
#[expect(clippy::option_option, reason = "no plain request, or one without a length")]
fn plain_length(head: &RequestHeader) -> Option<Option<u64>> {
    let special = [header::TE, header::EXPECT, header::TRAILER, header::UPGRADE, header::TRANSFER_ENCODING];
    let plain = head.method != Method::CONNECT
        && std::str::from_utf8(head.raw_path()).is_ok_and(wire::is_origin_form)
        && !special.iter().any(|name| head.headers.contains_key(name));
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if !plain || lengths.next().is_some() {
        return None;
    }
    length.map(|length| wire::decimal(length.as_bytes()).ok_or(())).transpose().ok()
}

async fn reset_already(session: &mut HttpSession) -> Option<io::Error> {
    match poll_fn(|cx| Poll::Ready(download::poll_reset(session, cx))).await {
        Poll::Ready(error) => Some(error),
        Poll::Pending => None,
    }
}

fn response(status: StatusCode, fields: HeaderMap) -> Box<ResponseHeader> {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.headers) = (status, fields);
    Box::new(parts.into())
}

/// One request of an HTTP/2 client.
struct Multiplexed<'a> {
    session: &'a mut HttpSession,
    request: &'a RequestHeader,
    upload: Upload,
    /// Once an answer's head came.
    download: Option<Download>,
}

impl Side for Multiplexed<'_> {
    /// A stream has two ends of its own: no need to guess whether the client is still there.
    fn be_patient(&mut self, _patience: Duration) {}

    async fn gather(&mut self, pause: Duration) -> io::Result<u64> {
        self.upload.gather(self.session, pause).await
    }

    fn is_streamed(&self) -> bool {
        self.upload.is_streamed()
    }

    fn is_repeatable(&self) -> bool {
        self.upload.is_repeatable()
    }

    fn begin(&mut self, to: &Dispatch<'_>, route: &Route) -> Result<(), Malformed> {
        let head = to.request_head(route, head_size(self.request).bytes, |out, kept| {
            write_fields(out, self.request, kept);
            self.upload.write_framing(out);
        });
        self.upload.begin(head);
        Ok(())
    }

    fn up(&self) -> Progress {
        self.upload.progress()
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>> {
        self.upload.poll(cx, self.session, upstream)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.download {
            Some(download) => download.poll_reset(cx, self.session),
            None => download::poll_reset(self.session, cx),
        }
    }

    /// Nothing can be sent before the answer's own head (hyperium/h2#167 had it so, and pingora's session still has).
    async fn announce(&mut self, _head: &Response, _limit: Duration) -> io::Result<()> {
        Ok(())
    }

    fn answer(&mut self, to: &Dispatch<'_>, head: &Response, framing: Framing, first: BytesMut) -> Result<(), Malformed> {
        self.download = Some(Download::new(response(head.status, answer_fields(to, head, framing)), framing, first)?);
        Ok(())
    }

    fn down(&self) -> Progress {
        self.download.as_ref().map(Download::progress).unwrap_or_default()
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>> {
        match &mut self.download {
            Some(download) => download.poll(cx, self.session, upstream),
            None => Poll::Pending,
        }
    }

    fn keeps(&self) -> bool {
        true
    }

    fn break_off(&mut self) {
        if let Some(download) = &mut self.download {
            download.break_off(self.session);
        }
    }
}

/// The client's fields for HTTP/1.1: the host as a field (RFC 9113, 8.3.1), cookies as one field (8.2.3), nothing that is a
/// connection's own.
fn write_fields(out: &mut Vec<u8>, request: &RequestHeader, kept: &dyn Fn(&HeaderName) -> bool) {
    let authority = request.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = authority.or_else(|| request.headers.get(header::HOST).map(HeaderValue::as_bytes));
    if let Some(host) = host.filter(|_| kept(&header::HOST)) {
        wire::line(out, b"host", host);
    }
    for (name, value) in &request.headers {
        let ours = *name == header::HOST || *name == header::CONTENT_LENGTH || *name == header::COOKIE || wire::is_hop_by_hop(name);
        if !ours && kept(name) {
            wire::line(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let mut crumbs = request.headers.get_all(header::COOKIE).iter();
    if let Some(first) = crumbs.next().filter(|_| kept(&header::COOKIE)) {
        let mut cookie = first.as_bytes().to_vec();
        for crumb in crumbs {
            cookie.extend_from_slice(b"; ");
            cookie.extend_from_slice(crumb.as_bytes());
        }
        wire::line(out, header::COOKIE.as_str().as_bytes(), &cookie);
    }
}

/// The answer's fields as the client shall see them.
fn answer_fields(to: &Dispatch<'_>, head: &Response, framing: Framing) -> HeaderMap {
    let edits = to.ctx.answer_edits(to.headers);
    let named = head.fields.named_by_connection();
    let chunked = framing == Framing::Chunked;
    // Room for the date, too.
    let mut fields = head.fields.map_of(edits.len() + 1, |name| {
        !(named.contains(name) || *name == header::TRANSFER_ENCODING || (chunked && *name == header::CONTENT_LENGTH))
    });
    for edit in edits {
        match edit {
            Edit::Set(name, value) => _ = fields.insert(name, value),
            Edit::Append(name, value) => _ = fields.append(name, value),
            Edit::Remove(name) => _ = fields.remove(name),
        }
    }
    fields
}
