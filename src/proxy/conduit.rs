//! A client's connection that is carried to a task as it is: a task is picked, connected to and told of the client, and bytes go both
//! ways. For TCP routes, and for TLS that is passed through.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use jiff::Timestamp;
use nix::errno::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::attempt::say;
use super::duplex::{Duplex, Parted};
use super::stream::PerConnection;
use super::{Observer, clock, preamble};
use crate::auth::{self, Verdict};
use crate::state::{Action, Route};
use crate::telemetry::Record;
use crate::upstream::{Affinity, Backend, Failure, InFlight, Ledger, Pool, Timeouts};

/// A task that went without a word is found out after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// What all carried connections share.
#[derive(Clone)]
pub struct Conduit {
    pub ledger: Arc<Ledger>,
    pub observer: Arc<dyn Observer>,
}

/// What the log shall say of a connection.
pub(super) struct Asked<'a> {
    /// [`Record::TCP`] or [`Record::TLS`].
    pub(super) protocol: &'static str,
    /// The port or the name that was asked for.
    pub(super) place: &'a str,
}

/// How it ended, as an HTTP status says it: one scale for all that the edge serves.
enum Ended {
    Carried,
    /// The address may not connect.
    Denied,
    /// The route may not serve, or nobody serves it.
    Unavailable(Cow<'static, str>),
    Unreached(String),
    Silence(Duration),
    ClientLeft(io::Error),
    UpstreamLeft(io::Error),
}

impl Ended {
    fn status(&self) -> u16 {
        match self {
            Ended::Carried => 200,
            Ended::Denied => 403,
            Ended::ClientLeft(_) => 499,
            Ended::Unreached(_) | Ended::UpstreamLeft(_) => 502,
            Ended::Unavailable(_) => 503,
            Ended::Silence(_) => 504,
        }
    }

    fn error(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Ended::Carried => return None,
            Ended::Denied => "the client's address is not allowed".into(),
            Ended::Unavailable(why) => Cow::Borrowed(why),
            Ended::Unreached(why) => why.into(),
            Ended::Silence(idle) => format!("neither side said anything for {idle:?}").into(),
            Ended::ClientLeft(error) => format!("client: {error}").into(),
            Ended::UpstreamLeft(error) => format!("upstream: {error}").into(),
        })
    }
}

/// What is known of a connection on its way.
struct Trip {
    at: Timestamp,
    began: Instant,
    attempts: u32,
    backend: Option<Backend>,
    wait: Option<Duration>,
    connect: Option<Duration>,
    passed: (u64, u64),
}

impl Conduit {
    /// Serves one connection to `port`, which is that of the TCP route `route`, to its end.
    pub async fn carry_port(&self, tcp: TcpStream, port: u16, route: &Route, about: &PerConnection) {
        self.carry(tcp, &[], about, route, Asked { protocol: Record::TCP, place: &format!(":{port}") }).await;
    }

    /// Carries `tcp`, of which `unread` was read already, to a task of `route`, and tells of it at the end.
    pub(super) async fn carry(&self, tcp: TcpStream, unread: &[u8], about: &PerConnection, route: &Route, asked: Asked<'_>) {
        let mut trip =
            Trip { at: Timestamp::now(), began: Instant::now(), attempts: 0, backend: None, wait: None, connect: None, passed: (0, 0) };
        let ended = self.travel(tcp, unread, about, route, &mut trip).await;
        let headers = HeaderMap::new();
        let backend = trip.backend.as_ref();
        self.observer.finished(&Record {
            at: trip.at,
            request_id: "",
            trace: None,
            client: Some(about.connection.peer.ip().to_canonical()),
            secure: false,
            user: None,
            method: asked.protocol,
            host: asked.place,
            path: "",
            query: "",
            version: asked.protocol,
            status: ended.status(),
            bytes_in: trip.passed.0,
            bytes_out: trip.passed.1,
            duration: trip.began.elapsed(),
            tls: None,
            wait: trip.wait,
            connect: trip.connect,
            upstream: None,
            reused: None,
            nth: 0,
            route: Some(&route.id),
            service: Some(backend.map_or(&*route.service, |backend| &*backend.service)),
            task: backend.map(|backend| &*backend.task),
            backend: backend.map(|backend| &*backend.id),
            retries: trip.attempts.saturating_sub(1),
            headers: &headers,
            error: ended.error(),
        });
    }

    async fn travel(&self, mut tcp: TcpStream, unread: &[u8], about: &PerConnection, route: &Route, trip: &mut Trip) -> Ended {
        match auth::admit(&route.access, about.connection.peer.ip()) {
            Verdict::Pass => {}
            Verdict::Forbidden => return Ended::Denied,
            Verdict::Closed(why) => return Ended::Unavailable(format!("the route is closed: {why}").into()),
        }
        let Action::Forward { pool, timeouts, retries } = &route.action else {
            return Ended::Unavailable("there is nobody to carry it to".into());
        };
        let (mut upstream, in_flight) = match self.connect(about.connection.peer, pool, timeouts, retries.most, trip).await {
            Ok(connected) => connected,
            Err(ended) => return ended,
        };
        let head = trip.backend.as_ref().and_then(|backend| backend.proxy_protocol).map(|version| {
            let local = Some(about.connection.local).filter(|local| !local.ip().is_unspecified());
            let local = local.or_else(|| tcp.local_addr().ok()).unwrap_or(about.connection.local);
            preamble::write(version, about.connection.peer, local)
        });
        let Ok(mut both) = Duplex::new(head.unwrap_or_default(), unread) else {
            return Ended::Unavailable("what the client sent cannot be carried".into());
        };
        let ended = both.run(&mut tcp, &mut upstream, timeouts.idle).await;
        trip.passed = both.passed();
        match ended {
            Ok(()) => Ended::Carried,
            Err(Parted::Silence) => Ended::Silence(timeouts.idle),
            Err(Parted::Client(error)) => Ended::ClientLeft(error),
            Err(Parted::Upstream(error)) => {
                in_flight.broke_off();
                Ended::UpstreamLeft(error)
            }
        }
    }

    /// A connection to one of the tasks: to another one where that fails, `most` times.
    async fn connect(
        &self,
        client: SocketAddr,
        pool: &Pool,
        timeouts: &Timeouts,
        most: u32,
        trip: &mut Trip,
    ) -> Result<(TcpStream, InFlight), Ended> {
        let affinity = Affinity { client: Some(client.ip().to_canonical()), ..Affinity::default() };
        let (mut tried, mut why) = (Vec::new(), None);
        while trip.attempts <= most {
            let began = Instant::now();
            let Some(backend) = pool.pick(&self.ledger, affinity, &tried, clock::at(began), fastrand::u64(..)).cloned() else { break };
            let in_flight = self.ledger.start(&backend);
            if trip.attempts == 0 {
                in_flight.is_first(clock::at(began));
            }
            trip.attempts += 1;
            trip.wait = Some(trip.began.elapsed());
            let dialled = tokio::time::timeout(timeouts.connect, dial(backend.address)).await;
            let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            trip.backend = Some(backend.clone());
            match dialled {
                Ok(upstream) => {
                    trip.connect = Some(began.elapsed());
                    if let Some(change) = in_flight.succeeded(clock::now(), clock::at(began)) {
                        say(&backend, change, None);
                    }
                    return Ok((upstream, in_flight));
                }
                Err(error) if is_ours(&error) => {
                    return Err(Ended::Unavailable(format!("connect: the edge has no socket left: {error}").into()));
                }
                Err(error) => {
                    let now = clock::now();
                    if let Some(change) = self.ledger.failed(&in_flight, pool, Failure::Connect, now, fastrand::u64(..)) {
                        say(&backend, change, Some(Failure::Connect));
                    }
                    why = Some(format!("connect: {error}"));
                    tried.push(backend.id);
                }
            }
        }
        Err(why.map_or(Ended::Unavailable("no task can take it".into()), Ended::Unreached))
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let upstream = TcpStream::connect(address).await?;
    upstream.set_nodelay(true)?;
    SockRef::from(&upstream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE_INTERVAL))?;
    Ok(upstream)
}

/// Our own shortage: no task is to blame, and no other one would be reached.
fn is_ours(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL, Errno::ENOBUFS].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
