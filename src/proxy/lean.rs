//! The lean path: plain HTTP/1.1 requests to plain HTTP/1.1 upstreams without a copy, a channel or a task of their own.
//! It serves a connection as long as its requests are plain and hands each other one to pingora, so that every request is
//! decided by the same functions and only the bytes take another way.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use http::header::HeaderMap;
use pingora_core::apps::{HttpServerApp, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::HttpProxy;
use pingora_timeout::timeout;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::Rendered;
use super::client::Client;
use super::exchange::{self, Asked, Exchange};
use super::head::Target;
use super::idle::Idle;
use super::pingora::Edge;
use super::relay::{Ended, Relay, VERSION, status_line};
use super::stream::{ClientStream, PerConnection};
use super::wire::{self, Arrived, Request};
use super::{Observer, Routed};
use crate::state::{Action, Live, Route};
use crate::upstream::{Ledger, Scheme};

/// After an early answer the rest of the request is read for so long, or the client would see a reset instead of the answer.
const DRAIN_REQUEST: Duration = Duration::from_secs(1);
/// Idle connections stay so long once the edge stops: clients need a moment to see that.
pub const POLITE: Duration = Duration::from_secs(2);
/// How often idle upstream connections are looked through.
pub const SWEEP: Duration = Duration::from_secs(5);

/// One worker's lean path.
pub struct Lean {
    proxy: Arc<HttpProxy<Edge>>,
    live: Arc<Live>,
    ledger: Arc<Ledger>,
    observer: Arc<dyn Observer>,
    idle: Idle,
    /// True once the edge is stopping: answers then close their connections.
    stopping: watch::Receiver<bool>,
}

/// What happens to the connection after a request.
enum After {
    Next,
    Close,
}

/// What a plain request turned out to be.
enum Way {
    /// Another path's: give the request back as it was.
    Pingora,
    Here(After),
}

impl Lean {
    pub fn new(
        proxy: Arc<HttpProxy<Edge>>,
        live: Arc<Live>,
        ledger: Arc<Ledger>,
        observer: Arc<dyn Observer>,
        stopping: watch::Receiver<bool>,
    ) -> Lean {
        Lean { proxy, live, ledger, observer, idle: Idle::default(), stopping }
    }

    /// Closes idle upstream connections that are of no use any more. To be called every [`SWEEP`].
    pub fn sweep(&self) {
        self.idle.sweep();
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, tcp: TcpStream, about: PerConnection) {
        let mut client = Client::new(tcp, about);
        let mut first = true;
        let mut stopping = self.stopping.clone();
        let mut stopped = pin!(async move {
            // An error means that the edge is gone.
            _ = stopping.wait_for(|stop| *stop).await;
            tokio::time::sleep(POLITE).await;
        });
        while let Some(arrived) = self.arrived(&mut client, first, stopped.as_mut()).await {
            first = false;
            // Boxed: an idle connection must not hold the room of a busy one.
            let after = match arrived {
                Arrived::Http2 => return Box::pin(self.by_http2(client)).await,
                Arrived::Plain(request) => match Box::pin(self.plain(&mut client, &request)).await {
                    Way::Here(after) => after,
                    Way::Pingora => {
                        client.buffer = request.give_back(&client.buffer);
                        match Box::pin(self.by_pingora(client)).await {
                            Some(back) => client = back,
                            None => return,
                        }
                        After::Next
                    }
                },
                Arrived::Other | Arrived::Part => match Box::pin(self.by_pingora(client)).await {
                    Some(back) => {
                        client = back;
                        After::Next
                    }
                    None => return,
                },
            };
            if matches!(after, After::Close) {
                return;
            }
        }
    }

    /// The next head; `None` when there will be none.
    async fn arrived(&self, client: &mut Client, first: bool, stopped: Pin<&mut impl Future<Output = ()>>) -> Option<Arrived> {
        let (keep_alive, header_timeout, longest) = {
            let config = &self.live.load().config.proxy;
            (config.keep_alive, config.header_timeout, config.max_header_bytes)
        };
        if client.buffer.is_empty() {
            let limit = if first { header_timeout } else { keep_alive };
            tokio::select! {
                biased;
                read = timeout(limit, client.fill()) => matches!(read, Ok(Ok(1..))).then_some(())?,
                () = stopped => return None,
            }
        }
        let mut began = None;
        loop {
            match wire::request(&mut client.buffer) {
                // Longer than may be: pingora reads it out and refuses it.
                Arrived::Part if client.buffer.len() > longest => return Some(Arrived::Other),
                Arrived::Part => {}
                arrived => return Some(arrived),
            }
            let left = header_timeout.saturating_sub(began.get_or_insert_with(Instant::now).elapsed());
            if left.is_zero() || !matches!(timeout(left, client.fill()).await, Ok(Ok(1..))) {
                return None;
            }
        }
    }

    /// One plain request, if its route is plain too.
    async fn plain(&self, client: &mut Client, request: &Request) -> Way {
        let Ok(uri) = Uri::from_maybe_shared(request.target.clone()) else { return Way::Pingora };
        let headers = request.fields.map();
        let mut ctx = Exchange::new(self.live.load());
        ctx.connection = Some(client.about.clone());
        let asked = Asked { version: VERSION, method: &request.method, headers: &headers, has_authority: false, bytes: request.size };
        let routed = ctx.decide(&asked, Target::plain(&headers, &uri), None);
        let ended = match routed {
            Routed::Answer(route, answer) => {
                ctx.route = route;
                Ended::Refused(answer)
            }
            Routed::Forward(route) if !is_plain(&route) => return Way::Pingora,
            Routed::Forward(route) => {
                let Some((target, prefix)) = upstream_target(&route, &ctx, &uri) else { return Way::Pingora };
                ctx.route = Some(route.clone());
                let closing = request.close || *self.stopping.borrow();
                let mut relay = Relay {
                    client,
                    request,
                    headers: &headers,
                    ctx: &mut ctx,
                    ledger: &self.ledger,
                    idle: &self.idle,
                    target,
                    prefix,
                    closing,
                    bytes_in: 0,
                };
                let ended = relay.run(&route).await;
                let bytes_in = relay.bytes_in;
                return Way::Here(self.finish(client, request, &headers, &uri, &mut ctx, ended, bytes_in).await);
            }
        };
        Way::Here(self.finish(client, request, &headers, &uri, &mut ctx, ended, 0).await)
    }

    /// Answers where that is left to us, and tells of the request.
    #[expect(clippy::too_many_arguments, reason = "all that is known of a request at its end")]
    async fn finish(
        &self,
        client: &mut Client,
        request: &Request,
        headers: &HeaderMap,
        uri: &Uri,
        ctx: &mut Exchange,
        ended: Ended,
        bytes_in: u64,
    ) -> After {
        let closing = request.close || *self.stopping.borrow();
        let answered = matches!(ended, Ended::Answered { .. });
        let (status, bytes_out, after) = match ended {
            Ended::Answered { status, bytes_out, keep } => (Some(status), bytes_out, if keep { After::Next } else { After::Close }),
            Ended::Broken(status, bytes_out) => (status, bytes_out, After::Close),
            Ended::Refused(answer) => {
                let status = answer.status();
                let rendered = ctx.rendered(answer, &request.method, headers);
                let body = rendered.body.len() as u64;
                let late = status == http::StatusCode::REQUEST_TIMEOUT;
                let unread = request.body.saturating_sub(bytes_in);
                let close = closing || late || unread > 0 && request.body > client.buffer.len() as u64;
                let limit = ctx.state.config.proxy.header_timeout;
                match client.send(&bytes_of(rendered, close), limit).await {
                    Ok(()) if client.discard(unread, DRAIN_REQUEST).await && !close => (Some(status), body, After::Next),
                    Ok(()) => (Some(status), body, After::Close),
                    Err(error) => {
                        tracing::debug!(%error, "the client left before the error page");
                        (None, 0, After::Close)
                    }
                }
            }
        };
        ctx.nth = client.about.phase.count();
        let ended = exchange::Ended {
            method: &request.method,
            uri,
            version: VERSION,
            headers,
            status,
            bytes_in,
            bytes_out,
            broken: status.is_none() || ctx.failure.is_some(),
        };
        self.observer.finished(&ctx.record(&ended));
        // The upstream answered before it had all of the request, or hung up first.
        let unread = if status == Some(http::StatusCode::SWITCHING_PROTOCOLS) { u64::MAX } else { request.body.saturating_sub(bytes_in) };
        if answered && unread > 0 && matches!(after, After::Close) {
            client.linger(unread, DRAIN_REQUEST).await;
        }
        after
    }

    /// One request by pingora; the connection comes back where it can carry another.
    async fn by_pingora(&self, client: Client) -> Option<Client> {
        let about = client.about.clone();
        let stream = ClientStream::resume(client.tcp, &about, client.buffer, self.live.load().config.proxy.header_timeout).ok()?;
        let mut session = ServerSession::new_http1(Box::new(stream));
        session.set_keepalive(if *self.stopping.borrow() { None } else { Some(60) });
        let (stream, _) = self.proxy.process_new_http(session, &self.stopping).await?.consume();
        let stream = stream.into_any().downcast::<ClientStream>().ok()?;
        let (tcp, buffer) = stream.into_parts();
        let mut client = Client::new(tcp, about);
        client.buffer = buffer;
        Some(client)
    }

    /// The whole connection by pingora.
    async fn by_http2(&self, client: Client) {
        let header_timeout = self.live.load().config.proxy.header_timeout;
        let Ok(stream) = ClientStream::resume(client.tcp, &client.about, client.buffer, header_timeout) else { return };
        ServerApp::process_new(&self.proxy, Box::new(stream), &self.stopping).await;
    }
}

/// Nothing of the route needs more than bytes passed on over plain HTTP/1.1.
fn is_plain(route: &Route) -> bool {
    let Action::Forward { pool, .. } = &route.action else { return false };
    pool.groups.iter().all(|group| group.backends.first().is_none_or(|backend| backend.scheme == Scheme::Http))
}

/// Path and query for the upstream, and the stripped prefix; `None` where labels make something else of it than plain ASCII.
fn upstream_target(route: &Route, ctx: &Exchange, uri: &Uri) -> Option<(String, Option<String>)> {
    let (path, prefix) = route.traffic.rewrite(&ctx.path).map_or((None, None), |(path, prefix)| (Some(path), prefix));
    let path = path.as_deref().unwrap_or(&ctx.path);
    if !path.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
        return None;
    }
    Some((uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")), prefix))
}

/// An answer of ours as it goes out.
fn bytes_of(rendered: Rendered, close: bool) -> Vec<u8> {
    let mut out = status_line(rendered.status);
    for (name, value) in &rendered.headers {
        wire::line(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    if !rendered.headers.iter().any(|(name, _)| name == http::header::CONTENT_LENGTH) && rendered.status != http::StatusCode::NO_CONTENT {
        wire::line(&mut out, b"Content-Length", b"0");
    }
    wire::line(&mut out, b"Date", pingora_core::protocols::http::date::get_cached_date().as_bytes());
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(rendered.body.as_bytes());
    out
}
