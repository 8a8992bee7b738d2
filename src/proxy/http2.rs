//! An HTTP/2 connection on the lean path: its streams are served within its own task, each as far as it comes, without a task or
//! a channel of its own. The streams are pingora's sessions, so that each of them can become pingora's.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::Connection;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::http::v2::server::{H2Accept, HttpSession, handshake};
use pingora_core::protocols::{Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Stream};

use super::bell::Bell;
use super::client::Client;
use super::lean::{Lean, SPREAD_MS};
use super::rest::Rest;
use super::stream::PerConnection;

/// So many streams that are no requests end their connection: each costs work, and honest clients have none.
const MOST_MALFORMED: u32 = 32;
/// So many requests are taken in before they are looked at.
const AT_ONCE: u32 = 32;
/// A client that was told that its idle connection ends has so long to agree.
const GOODBYE: Duration = Duration::from_secs(2);

impl Lean {
    /// The whole connection. What was read of it begins with the preface.
    pub(super) async fn by_http2(&self, client: Client) {
        let about = client.about.clone();
        let welcome = client.socket.agreed_on_http2() || self.proxy.server_options.as_ref().is_some_and(|options| options.h2c);
        let Some(stream) = self.stream(client) else { return };
        if !welcome {
            // It says so.
            ServerApp::process_new(&self.proxy, Box::new(stream), &self.stopping).await;
            return;
        }
        let digest = Digest {
            ssl_digest: None,
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        };
        match handshake(Box::new(stream), self.proxy.h2_options.clone()).await {
            Ok(connection) => self.streams(connection, Arc::new(digest), &about).await,
            Err(error) => tracing::debug!(%error, "no HTTP/2 with a client"),
        }
    }

    /// Serves all streams, until the connection has ended and the last of them has noticed.
    async fn streams(&self, mut connection: Connection<Stream, Bytes>, digest: Arc<Digest>, about: &PerConnection) {
        let mut served = FuturesUnordered::new();
        let mut ending = Ending::new(self);
        let mut requests = Requests { digest, most: self.live.load().config.proxy.max_requests_per_connection, begun: 0, malformed: 0 };
        let mut stopping = self.stopping.clone();
        let mut stopped = pin!(stopping.wait_for(|stop| *stop));
        let mut idle_end = pin!(self.idle_end.cancelled());
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(bell.clone());
        poll_fn(|cx| {
            bell.mute(cx);
            if !ending.is_announced && stopped.as_mut().poll(cx).is_ready() {
                ending.announce(&mut connection);
            }
            loop {
                // Answers first: what they send leaves with what the connection has to send.
                while let Poll::Ready(Some(())) = served.poll_next_unpin(cx) {}
                bell.forget();
                let begun = requests.begun;
                while requests.begun < begun + AT_ONCE
                    && let Poll::Ready(session) = requests.poll(&mut Context::from_waker(&waker), &mut connection)
                {
                    match session {
                        Some(session) => served.push(self.serve_stream(session, about)),
                        None => return Poll::Ready(()),
                    }
                }
                if requests.are_all() && !ending.is_announced {
                    ending.announce(&mut connection);
                } else if requests.begun == begun {
                    break;
                }
            }
            bell.unmute();
            if !served.is_empty() {
                ending.rest.end();
                return Poll::Pending;
            }
            if ending.leaves.is_none() && ending.is_announced && idle_end.as_mut().poll(cx).is_ready() {
                ending.leave();
            }
            ending.poll(cx, &mut connection)
        })
        .await;
        drop(connection);
        while served.next().await.is_some() {}
    }
}

/// The requests of one connection as they come.
struct Requests {
    digest: Arc<Digest>,
    most: Option<u32>,
    begun: u32,
    malformed: u32,
}

impl Requests {
    /// Drives the connection. The next request; `None` once there will be none.
    fn poll(&mut self, cx: &mut Context<'_>, connection: &mut Connection<Stream, Bytes>) -> Poll<Option<HttpSession>> {
        loop {
            let accepted = pin!(HttpSession::from_h2_conn(connection, self.digest.clone())).poll(cx);
            match accepted {
                Poll::Ready(Ok(Some(H2Accept::Session(session)))) => {
                    self.begun += 1;
                    return Poll::Ready(Some(session));
                }
                Poll::Ready(Ok(Some(H2Accept::Rejected))) => {
                    self.malformed += 1;
                    if self.malformed >= MOST_MALFORMED {
                        tracing::debug!("too many streams that are no requests: the connection is closed");
                        return Poll::Ready(None);
                    }
                }
                Poll::Ready(Ok(None)) => return Poll::Ready(None),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a client's HTTP/2 connection ended");
                    return Poll::Ready(None);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The connection has carried as many as it may.
    fn are_all(&self) -> bool {
        self.most.is_some_and(|most| self.begun >= most)
    }
}

/// The end of one connection: announced (GOAWAY, RFC 9113, 6.8), so that no request is lost, and then waited for.
struct Ending {
    is_announced: bool,
    /// Without a request it is closed after so long.
    leaves: Option<Duration>,
    rest: Rest,
    /// Some of the last answers was not out when it was looked at last.
    flushes: bool,
    /// Its idle time.
    keep_alive: Duration,
    /// For how long a client may take nothing of what is still to be sent.
    write_timeout: Duration,
}

impl Ending {
    fn new(lean: &Lean) -> Ending {
        let config = &lean.live.load().config.proxy;
        let rest = Rest::new(lean.crowd.clone());
        Ending {
            is_announced: false,
            leaves: None,
            rest,
            flushes: false,
            keep_alive: config.keep_alive,
            write_timeout: config.write_timeout,
        }
    }

    fn announce(&mut self, connection: &mut Connection<Stream, Bytes>) {
        self.is_announced = true;
        self.rest.begin_anew();
        connection.graceful_shutdown();
    }

    fn leave(&mut self) {
        self.leaves = Some(Duration::from_millis(fastrand::u64(0..SPREAD_MS)));
        self.rest.begin_anew();
    }

    /// No request is served. Ready once the connection is to be closed.
    fn poll(&mut self, cx: &mut Context<'_>, connection: &mut Connection<Stream, Bytes>) -> Poll<()> {
        let flushes = connection.has_streams();
        if std::mem::replace(&mut self.flushes, flushes) && !flushes {
            self.rest.begin_anew();
        }
        let limit = match (self.is_announced, flushes) {
            (false, _) => self.keep_alive,
            (true, true) => self.write_timeout,
            (true, false) => self.leaves.unwrap_or(GOODBYE),
        };
        if self.rest.poll(cx, limit).is_pending() {
            return Poll::Pending;
        }
        if self.is_announced {
            return Poll::Ready(());
        }
        self.announce(connection);
        // To be sent, and to be waited for.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
