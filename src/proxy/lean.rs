//! The lean path: plain requests to plain HTTP/1.1 upstreams without a copy, a channel or a task of their own.
//! Of HTTP/1.1 it serves a connection as long as its requests are plain and hands each other one to pingora, so that every request is
//! decided by the same functions and only the bytes take another way.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use http::header::HeaderMap;
use http::{Uri, Version};
use pingora_core::apps::HttpServerApp;
use pingora_core::protocols::http::ServerSession;
use pingora_proxy::HttpProxy;
use pingora_timeout::timeout;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Observer;
use super::answer::Answer;
use super::client::Client;
use super::direct::{Direct, bytes_of};
use super::dispatch::Dispatch;
use super::exchange::{self, Asked, Exchange};
use super::head::Target;
use super::idle::Idle;
use super::limit::Limits;
use super::pingora::Edge;
use super::plain::Going;
use super::relay::{Ended, Relay};
use super::socket::Socket;
use super::standing::{Fallen, Guard, while_it_stands};
use super::stream::{ClientStream, HeadLimits, PerConnection};
use super::wire::{self, Arrived, Request};
use crate::auth::gatekeeper::Gatekeeper;
use crate::certificate::challenge::Challenges;
use crate::state::Live;
use crate::upstream::Ledger;

/// After an early answer the rest of the request is read for so long, or the client would see a reset instead of the answer.
pub(super) const DRAIN_REQUEST: Duration = Duration::from_secs(1);
/// A connection that is idle for less than this keeps its place even where others wait for one.
pub(super) const BRIEF: Duration = Duration::from_millis(100);
/// Over so long idle connections are closed once they shall be: a thousand in one moment would keep both sides from hearing each other.
pub(super) const SPREAD_MS: u64 = 300;
/// What the lean path speaks here.
const VERSION: Version = Version::HTTP_11;
/// How often idle upstream connections are looked through.
pub const SWEEP: Duration = Duration::from_secs(5);

/// One worker's lean path.
pub struct Lean {
    pub(super) proxy: Arc<HttpProxy<Edge>>,
    pub(super) live: Arc<Live>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) limits: Arc<Limits>,
    pub(super) challenges: Arc<Challenges>,
    pub(super) gatekeeper: Arc<dyn Gatekeeper>,
    pub(super) idle: Idle,
    /// Somebody waits for a place: idle connections make room.
    pub(super) crowd: Arc<Notify>,
    /// True once the edge is stopping: answers then close their connections.
    pub(super) stopping: watch::Receiver<bool>,
    /// Once cancelled, connections without a request are closed.
    pub(super) idle_end: CancellationToken,
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
    #[expect(clippy::too_many_arguments, reason = "an assembly of parts that others own")]
    pub fn new(
        proxy: Arc<HttpProxy<Edge>>,
        live: Arc<Live>,
        ledger: Arc<Ledger>,
        observer: Arc<dyn Observer>,
        limits: Arc<Limits>,
        challenges: Arc<Challenges>,
        gatekeeper: Arc<dyn Gatekeeper>,
        crowd: Arc<Notify>,
        stopping: watch::Receiver<bool>,
        idle_end: CancellationToken,
    ) -> Lean {
        Lean { proxy, live, ledger, observer, limits, challenges, gatekeeper, idle: Idle::default(), crowd, stopping, idle_end }
    }

    /// Closes idle upstream connections that are of no use any more. To be called every [`SWEEP`].
    pub fn sweep(&self) {
        self.idle.sweep();
    }

    /// Serves one connection to its end. `unread`: what was read of it already.
    pub async fn serve(&self, socket: Socket, about: PerConnection, unread: BytesMut) {
        let mut client = Client::new(socket, about);
        client.buffer = unread;
        if let Some(mut client) = self.requests(client).await.filter(|client| !client.broken) {
            client.socket.say_goodbye();
        }
    }

    /// One request after the other. What comes back is a connection that is to be closed now.
    async fn requests(&self, mut client: Client) -> Option<Client> {
        let mut first = true;
        let idle_end = async {
            self.idle_end.cancelled().await;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..SPREAD_MS))).await;
        };
        let mut stopped = pin!(idle_end.fuse());
        while let Some(arrived) = self.arrived(&mut client, first, stopped.as_mut()).await {
            first = false;
            // Boxed: an idle connection must not hold the room of a busy one.
            let after = match arrived {
                Arrived::Http2 => {
                    Box::pin(self.by_http2(client)).await;
                    return None;
                }
                Arrived::Plain(request) => match Box::pin(self.plain(&mut client, &request)).await {
                    Way::Here(after) => after,
                    Way::Pingora => {
                        // Pingora would drop what was sent ahead: it gets this request alone.
                        let ahead = client.buffer.split_off(client.buffer.len().min(usize::try_from(request.body).unwrap_or(usize::MAX)));
                        client.buffer = request.give_back(&client.buffer);
                        match Box::pin(self.by_pingora(client)).await {
                            Some(back) => client = back.with_before(ahead),
                            None => return None,
                        }
                        After::Next
                    }
                },
                Arrived::Other | Arrived::Part => match Box::pin(self.by_pingora(client)).await {
                    Some(back) => {
                        client = back;
                        After::Next
                    }
                    None => return None,
                },
            };
            if matches!(after, After::Close) {
                break;
            }
        }
        Some(client)
    }

    /// The next head; `None` when there will be none.
    async fn arrived(&self, client: &mut Client, first: bool, stopped: Pin<&mut impl Future<Output = ()>>) -> Option<Arrived> {
        let (keep_alive, header_timeout, longest) = {
            let config = &self.live.load().config.proxy;
            (config.keep_alive, config.header_timeout, config.max_header_bytes)
        };
        if client.buffer.is_empty() {
            // Also of memory: a connection that waits holds none.
            client.buffer = BytesMut::new();
            tokio::select! {
                biased;
                read = self.first_bytes(client, first, header_timeout, keep_alive) => read?,
                // What the kernel has and the events do not tell yet is a request that must not be lost.
                () = stopped => (client.was_spoken_to() && matches!(timeout(header_timeout, client.fill()).await, Ok(Ok(1..)))).then_some(())?,
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

    /// The first bytes of a head; `None` where they do not come, or the connection makes room for another.
    async fn first_bytes(&self, client: &mut Client, first: bool, header_timeout: Duration, keep_alive: Duration) -> Option<()> {
        if first {
            return matches!(timeout(header_timeout, client.fill()).await, Ok(Ok(1..))).then_some(());
        }
        // Who is idle for a moment only is not asked to leave, and most are.
        match timeout(BRIEF.min(keep_alive), client.fill()).await {
            Ok(read) => return matches!(read, Ok(1..)).then_some(()),
            Err(_) if keep_alive <= BRIEF => return None,
            Err(_) => {}
        }
        tokio::select! {
            biased;
            read = timeout(keep_alive - BRIEF, client.fill()) => matches!(read, Ok(Ok(1..))).then_some(()),
            () = self.crowd.notified() => None,
        }
    }

    /// One plain request, if its route is plain too.
    async fn plain(&self, client: &mut Client, request: &Request) -> Way {
        let Ok(uri) = Uri::from_maybe_shared(request.target.clone()) else { return Way::Pingora };
        let headers = request.fields.map();
        let mut ctx = Exchange::new(self.live.load());
        ctx.connection = Some(client.about.clone());
        let asked = Asked { version: VERSION, method: &request.method, headers: &headers, has_authority: false, size: request.size };
        let routed = ctx.decide(&asked, Target::plain(&headers, &uri), None, &self.challenges, &*self.gatekeeper);
        let going = match self.judge(&mut ctx, routed, &uri, &headers, false).await {
            None => return Way::Pingora,
            Some(Err(answer)) => return Way::Here(self.finish(client, request, &headers, &uri, &mut ctx, Ended::Refused(answer), 0).await),
            Some(Ok(going)) => going,
        };
        let closing = self.closing(client, request, &ctx);
        let Going { route, target, prefix } = going;
        let guard = Guard::of(&ctx, &route, &self.gatekeeper);
        let to = Dispatch {
            method: &request.method,
            headers: &headers,
            ctx: &mut ctx,
            ledger: &self.ledger,
            idle: &self.idle,
            target,
            prefix,
            upgrade: request.upgrade,
        };
        let mut relay = Relay::new(to, Direct::new(client, request, closing));
        let ended = match while_it_stands(guard.as_ref(), relay.run(&route)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(switched)) => {
                let tunnel = Box::pin(relay.tunnel(*switched));
                while_it_stands(guard.as_ref(), tunnel).await.unwrap_or_else(|Fallen| relay.fell())
            }
            Err(Fallen) => relay.fell(),
        };
        let bytes_in = relay.bytes_in;
        Way::Here(self.finish(client, request, &headers, &uri, &mut ctx, ended, bytes_in).await)
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
        let closing = self.closing(client, request, ctx);
        let answered = matches!(ended, Ended::Answered { .. });
        let (status, bytes_out, after) = match ended {
            Ended::Answered { status, bytes_out, keep } => (Some(status), bytes_out, if keep { After::Next } else { After::Close }),
            Ended::Broken(status, bytes_out) => (status, bytes_out, After::Close),
            Ended::Refused(answer) => {
                let status = answer.status();
                if matches!(answer, Answer::BadGateway | Answer::Timeout) {
                    ctx.transform.pass.answered(true);
                }
                let rendered = ctx.rendered(answer, &request.method, headers);
                let body = rendered.body.len() as u64;
                let late = status == http::StatusCode::REQUEST_TIMEOUT;
                let unread = request.body.saturating_sub(bytes_in);
                let close = closing || late || unread > 0 && request.body > client.buffer.len() as u64;
                let limit = ctx.state.config.proxy.write_timeout;
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
        let last = self.live.load().config.proxy.max_requests_per_connection.is_some_and(|most| about.phase.served() + 1 >= most);
        let mut session = ServerSession::new_http1(Box::new(self.stream(client)?));
        session.set_keepalive(if *self.stopping.borrow() { None } else { Some(60) });
        // Of pingora's count: how many more requests may follow.
        session.set_keepalive_reuses_remaining(last.then_some(0));
        let (stream, _) = self.proxy.process_new_http(session, &self.stopping).await?.consume();
        let stream = stream.into_any().downcast::<ClientStream>().ok()?;
        let (socket, buffer) = stream.into_parts();
        let mut client = Client::new(socket, about);
        client.buffer = buffer;
        Some(client)
    }

    /// The connection as pingora wants it.
    pub(super) fn stream(&self, client: Client) -> Option<ClientStream> {
        let Client { socket, buffer, mut about, .. } = client;
        if about.connection.local.ip().is_unspecified() {
            // What is told of the connection further on wants the address itself.
            about.connection.local = socket.tcp().local_addr().ok()?;
        }
        let limits = &self.live.load().config.proxy;
        let limits = HeadLimits { time: limits.header_timeout, bytes: limits.max_header_bytes, half_close: limits.half_close };
        ClientStream::resume(socket, &about, buffer, limits, self.crowd.clone()).ok()
    }

    /// Does the connection end with this request?
    fn closing(&self, client: &Client, request: &Request, ctx: &Exchange) -> bool {
        let most = ctx.state.config.proxy.max_requests_per_connection;
        // Where an upgrade was refused, nobody can tell what was sent ahead for the other protocol from a next request.
        request.close || request.upgrade || *self.stopping.borrow() || most.is_some_and(|most| client.about.phase.served() + 1 >= most)
    }
}
