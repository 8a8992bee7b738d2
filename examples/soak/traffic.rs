//! The kinds of requests, each of which knows what must come of it. A request bears a mark in its query, by which the access
//! log tells of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

use super::stack::{Hosts, LASTING};
use super::tally::{Failure, Tally};
use super::upstreams::{EVENTS, LARGE};
use super::wire::{Fault, Wire};

/// No request takes so long, unless it hangs.
const HANGS: Duration = Duration::from_secs(20);
/// Requests that one connection carries before the client opens another.
const PER_CONNECTION: usize = 40;

/// What goes over a connection that is kept.
const PLAIN: [&str; 9] = ["get", "large", "post", "chunked", "pair", "404", "head", "304", "continue"];
/// What has a connection of its own, and how many clients do it all the time.
const OWN: [(&str, usize); 8] =
    [("close", 2), ("http/1.0", 1), ("events", 8), ("websocket", 6), ("h2c", 3), ("slow", 6), ("abort", 6), ("half-close", 1)];
/// Clients of kept connections.
const KEEPERS: usize = 10;

/// What each client needs to know.
#[derive(Clone)]
pub struct Traffic {
    pub edge: SocketAddr,
    pub hosts: Arc<Hosts>,
    pub tally: Arc<Tally>,
    pub stop: CancellationToken,
    numbers: Arc<AtomicUsize>,
    /// What the present request of this client is called.
    now: Arc<Mutex<(usize, &'static str)>>,
}

impl Traffic {
    pub fn new(edge: SocketAddr, tally: Arc<Tally>) -> Traffic {
        let (hosts, stop) = (Arc::default(), CancellationToken::new());
        Traffic { edge, hosts, tally, stop, numbers: Arc::default(), now: Arc::default() }
    }

    /// Starts all clients.
    pub fn start(&self, clients: &mut tokio::task::JoinSet<()>) {
        for _ in 0..KEEPERS {
            let own = Traffic { now: Arc::default(), ..self.clone() };
            clients.spawn(async move { own.keep().await });
        }
        for (kind, count) in OWN {
            for _ in 0..count {
                let own = Traffic { now: Arc::default(), ..self.clone() };
                clients.spawn(async move {
                    while !own.stop.is_cancelled() {
                        own.told(own.own(kind)).await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
            }
        }
    }

    /// A request begins.
    fn begin(&self, kind: &'static str) -> usize {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = (number, kind);
        number
    }

    /// Runs one request, within its time, and counts how it ended.
    async fn told<T>(&self, request: impl Future<Output = Result<T, Fault>>) -> Option<T> {
        let result = tokio::time::timeout(HANGS, request).await.unwrap_or_else(|_| Err(format!("no end after {HANGS:?}")));
        let (number, kind) = *self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.tally.count(kind, result.as_ref().err().map(|what| Failure::now(kind, number, what.clone())));
        result.ok()
    }

    /// One connection after the other, each with many requests.
    async fn keep(&self) {
        while !self.stop.is_cancelled() {
            self.begin("connect");
            let Some(mut wire) = self.told(Wire::connect(self.edge)).await else { continue };
            for _ in 0..PER_CONNECTION {
                let kind = PLAIN[fastrand::usize(..PLAIN.len())];
                let number = self.begin(kind);
                if self.stop.is_cancelled() || self.told(self.plain(&mut wire, kind, number)).await != Some(true) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..40))).await;
            }
        }
    }

    /// The head of a request up to its last field's line.
    fn head(&self, method: &str, path: &str, number: usize) -> String {
        format!("{method} {path}?mark={number} HTTP/1.1\r\nHost: {}\r\n", self.hosts.any(number))
    }

    /// One request over a connection that is kept. True: it may carry another.
    async fn plain(&self, wire: &mut Wire, kind: &str, number: usize) -> Result<bool, Fault> {
        let length = fastrand::usize(..200_000);
        let count = length.to_string();
        match kind {
            "get" => {
                wire.send(format!("{}\r\n", self.head("GET", "/small", number))).await?;
                wire.expect("GET", 200, b"hello").await
            }
            "large" => {
                wire.send(format!("{}\r\n", self.head("GET", "/large", number))).await?;
                wire.expect("GET", 200, &[b'x'; LARGE]).await
            }
            "post" => {
                wire.send(format!("{}Content-Length: {length}\r\n\r\n", self.head("POST", "/count", number))).await?;
                wire.send(vec![b'y'; length]).await?;
                wire.expect("POST", 200, count.as_bytes()).await
            }
            "chunked" => {
                wire.send(format!("{}Transfer-Encoding: chunked\r\n\r\n", self.head("POST", "/count", number))).await?;
                for piece in vec![b'z'; length].chunks(30_000) {
                    wire.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await?;
                }
                wire.send("0\r\n\r\n").await?;
                wire.expect("POST", 200, count.as_bytes()).await
            }
            "pair" => {
                let (get, post) = (self.head("GET", "/small", number), self.head("POST", "/count", number));
                wire.send(format!("{post}Content-Length: 3\r\n\r\nabc{get}\r\n")).await?;
                // An end that was announced before the second answer takes that away rightly.
                Ok(wire.expect("POST", 200, b"3").await? && wire.expect("GET", 200, b"hello").await?)
            }
            "404" => {
                wire.send(format!("GET /?mark={number} HTTP/1.1\r\nHost: nobody.test\r\n\r\n")).await?;
                let answer = wire.answer("GET").await?;
                if answer.status == 404 { Ok(!answer.closes) } else { Err(format!("status {} instead of 404", answer.status)) }
            }
            "head" => {
                wire.send(format!("{}\r\n", self.head("HEAD", "/large", number))).await?;
                wire.expect("HEAD", 200, b"").await
            }
            "304" => {
                wire.send(format!("{}If-None-Match: \"v1\"\r\n\r\n", self.head("GET", "/page", number))).await?;
                wire.expect("GET", 304, b"").await
            }
            _ => {
                let head = self.head("POST", "/count", number);
                wire.send(format!("{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n")).await?;
                match wire.head().await?.0 {
                    100 => {}
                    status => return Err(format!("status {status} instead of 100")),
                }
                wire.send(vec![b'w'; length]).await?;
                wire.expect("POST", 200, count.as_bytes()).await
            }
        }
    }

    /// One request, or a few, over a connection of its own.
    async fn own(&self, kind: &'static str) -> Result<(), Fault> {
        let number = self.begin(kind);
        match kind {
            "websocket" => return self.websocket(number).await,
            "h2c" => return self.h2c(number).await,
            _ => {}
        }
        let mut wire = Wire::connect(self.edge).await?;
        match kind {
            "close" => {
                wire.send(format!("{}Connection: close\r\n\r\n", self.head("GET", "/large", number))).await?;
                match wire.expect("GET", 200, &[b'x'; LARGE]).await? {
                    true => Err("no Connection: close in the answer".to_owned()),
                    false => wire.expect_end().await,
                }
            }
            "http/1.0" => {
                wire.send(format!("GET /small?mark={number} HTTP/1.0\r\nHost: {}\r\n\r\n", self.hosts.any(number))).await?;
                wire.expect("GET", 200, b"hello").await?;
                wire.expect_end().await
            }
            "events" => {
                wire.send(format!("{}\r\n", self.head("GET", "/events", number))).await?;
                let all: String = (0..EVENTS).map(|event| format!("data: {event}\n\n")).collect();
                wire.expect("GET", 200, all.as_bytes()).await.map(drop)
            }
            "half-close" => {
                wire.send(format!("{}\r\n", self.head("GET", "/large", number))).await?;
                // The client says no more, and still wants its answer.
                SockRef::from(wire.0.get_ref()).shutdown(std::net::Shutdown::Write).map_err(|error| error.to_string())?;
                wire.expect("GET", 200, &[b'x'; LARGE]).await.map(drop)
            }
            "slow" => self.slow(wire, number).await,
            _ => self.abort(wire, number).await,
        }
    }

    /// Head, body or reading slow.
    async fn slow(&self, mut wire: Wire, number: usize) -> Result<(), Fault> {
        let pause = Duration::from_millis(150);
        match number % 3 {
            0 => {
                // To a host that is still there once the head is.
                let head = format!("GET /small?mark={number} HTTP/1.1\r\nHost: {LASTING}\r\n\r\n");
                wire.drip(head.as_bytes(), 8, pause).await?;
                wire.expect("GET", 200, b"hello").await.map(drop)
            }
            1 => {
                let length = if number.is_multiple_of(2) { 3_000 } else { 150_000 };
                let head = format!("POST /count?mark={number} HTTP/1.1\r\nHost: {LASTING}\r\n");
                wire.send(format!("{head}Content-Length: {length}\r\n\r\n")).await?;
                wire.drip(&vec![b'y'; length], 8, pause).await?;
                wire.expect("POST", 200, length.to_string().as_bytes()).await.map(drop)
            }
            _ => {
                wire.send(format!("{}Connection: close\r\n\r\n", self.head("GET", "/slow", number))).await?;
                let (mut all, mut piece) = (0, vec![0; 128 * 1024]);
                while let count @ 1.. = wire.0.get_mut().read(&mut piece).await.map_err(|error| format!("reading slowly: {error}"))? {
                    all += count;
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
                if all > 50 * 64 * 1024 { Ok(()) } else { Err(format!("only {all} bytes of a large answer")) }
            }
        }
    }

    /// Leaves in the middle of a head, a body, or an answer; politely or by a reset.
    async fn abort(&self, mut wire: Wire, number: usize) -> Result<(), Fault> {
        match number % 5 {
            0 => wire.send("GET /small HTTP/1.1\r\nHo").await?,
            1 => wire.send(format!("{}Content-Length: 150000\r\n\r\nonly so much", self.head("POST", "/count", number))).await?,
            2 => wire.send(format!("{}Transfer-Encoding: chunked\r\n\r\n5\r\nab", self.head("POST", "/count", number))).await?,
            3 => wire.send(format!("{}\r\n", self.head("GET", "/slow", number))).await?,
            _ => {
                wire.send(format!("{}\r\n", self.head("GET", "/slow", number))).await?;
                wire.0.get_mut().read_exact(&mut [0; 100_000]).await.map_err(|error| format!("reading: {error}"))?;
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..100))).await;
        if fastrand::bool() {
            SockRef::from(wire.0.get_ref()).set_linger(Some(Duration::ZERO)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn websocket(&self, number: usize) -> Result<(), Fault> {
        let url = format!("ws://{}/socket?mark={number}", self.hosts.any(number));
        let request = url.into_client_request().map_err(|error| error.to_string())?;
        let stream = TcpStream::connect(self.edge).await.map_err(|error| format!("connecting: {error}"))?;
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(|error| format!("upgrading: {error}"))?;
        for round in 0..6 {
            let text = "m".repeat(1 + round * 700);
            socket.send(Message::text(text.clone())).await.map_err(|error| format!("sending a message: {error}"))?;
            match socket.next().await {
                Some(Ok(Message::Text(got))) if got.as_str() == text => {}
                other => return Err(format!("instead of message {round}: {other:?}")),
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        socket.close(None).await.map_err(|error| format!("closing: {error}"))
    }

    /// Several requests at once over HTTP/2.
    async fn h2c(&self, number: usize) -> Result<(), Fault> {
        let stream = TcpStream::connect(self.edge).await.map_err(|error| format!("connecting: {error}"))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| format!("handshake: {error}"))?;
        let connection = tokio::spawn(connection);
        let one = |path: &'static str, body: Bytes, wanted: Vec<u8>| {
            let mut sender = sender.clone();
            let uri = format!("http://{}{path}?mark={number}", self.hosts.any(number));
            async move {
                let method = if body.is_empty() { "GET" } else { "POST" };
                let request = http::Request::builder().method(method).uri(uri).body(Full::new(body)).map_err(|error| error.to_string())?;
                let answer = sender.send_request(request).await.map_err(|error| format!("sending: {error:?}"))?;
                let status = answer.status();
                let got = answer.into_body().collect().await.map_err(|error| format!("reading: {error:?}"))?.to_bytes();
                if status == 200 && got == wanted { Ok(()) } else { Err(format!("{path}: status {status} and {} bytes", got.len())) }
            }
        };
        let result = tokio::try_join!(
            one("/small", Bytes::new(), b"hello".to_vec()),
            one("/large", Bytes::new(), vec![b'x'; LARGE]),
            one("/count", Bytes::from(vec![b'y'; 70_000]), b"70000".to_vec()),
            one("/small", Bytes::new(), b"hello".to_vec()),
        );
        drop(sender);
        connection.abort();
        result.map(drop)
    }
}
