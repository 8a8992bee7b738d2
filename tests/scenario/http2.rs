//! HTTP/2 on the lean path beside pingora's: the same requests make the same answers, bodies flow both ways within bounds, and
//! one connection carries streams of both paths until it ends without a loss.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::*;
use crate::lean::{BY_PINGORA, by_hand, ends, labelled, scripted, told};

/// A client and its connection's end.
pub struct Client {
    sender: SendRequest<Bytes>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub async fn over(stream: TcpStream) -> Client {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        Client { sender, ended: tokio::spawn(connection) }
    }

    pub async fn to(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).await.unwrap()).await
    }

    /// Sends a request whole.
    async fn send(&self, request: Request<()>, body: &[u8]) -> Result<Reply, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        whole(response.await?).await.map(|(reply, _)| reply)
    }

    async fn get(&self, path: &str) -> Result<Reply, h2::Error> {
        self.send(get(path), b"").await
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web.test{path}")).body(()).unwrap()
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://web.test{path}")).body(()).unwrap()
}

/// An answer read to its end, with its trailers.
async fn whole(response: Response<h2::RecvStream>) -> Result<(Reply, Option<HeaderMap>), h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    let trailers = stream.trailers().await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok((Reply { status: head.status.as_u16(), headers: head.headers, body }, trailers))
}

/// What still comes before a clean end.
async fn rest(stream: &mut h2::RecvStream) -> Vec<u8> {
    let mut rest = Vec::new();
    while let Some(piece) = in_time(stream.data()).await {
        rest.extend_from_slice(&piece.unwrap());
    }
    rest
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("in time")
}

#[tokio::test]
async fn a_request_means_the_same_on_both_paths() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let all: &[(&str, &str)] = &[
        ("skep.host", "web.test"),
        ("skep.address", &address),
        ("skep.sticky", "lb"),
        ("skep.cors", "https://page.test"),
        ("skep.request-header", "X-Set: by-label\n-X-Removed\nX-Forwarded-Proto: gopher"),
        ("skep.response-header", "X-Answer: by-label\n-X-Upstream"),
        ("skep.api.host", "web.test"),
        ("skep.api.path", "/api"),
        ("skep.api.strip-prefix", "/api"),
        ("skep.api.address", &address),
        ("skep.closed.host", "web.test"),
        ("skep.closed.path", "/closed"),
        ("skep.closed.allow", "192.0.2.0/24"),
        ("skep.closed.address", &address),
    ];
    let edge = Edge::with(&stack(all)).await;
    let client = Client::to(edge.http).await;
    #[expect(clippy::type_complexity, reason = "a table")]
    let table: &[(&str, &str, &[(&str, &str)])] = &[
        ("GET", "/", &[]),
        ("GET", "/a/../b?x=1&y=%20", &[("user-agent", "test"), ("x-removed", "1"), ("x-kept", "1")]),
        ("HEAD", "/", &[]),
        ("DELETE", "/x", &[("x-forwarded-for", "6.6.6.6"), ("x_forwarded_user", "root"), ("forwarded", "for=1.1.1.1")]),
        ("GET", "/api/deep?q", &[("cookie", "lb=nonsense; other=1")]),
        ("GET", "/", &[("proxy-authorization", "Basic eA==")]),
        ("GET", "/closed", &[("accept", "application/json")]),
        ("OPTIONS", "/", &[("origin", "https://page.test"), ("access-control-request-method", "PUT")]),
        ("GET", "/", &[("origin", "https://page.test")]),
        ("GET", "/a//b", &[]),
        ("GET", "/status/204", &[]),
        ("GET", "/status/304", &[]),
        ("GET", "/status/404", &[]),
        ("GET", "/bytes/200000", &[]),
        ("GET", "/%zz", &[]),
    ];
    for (method, path, headers) in table {
        let ask = |more: &[(&str, &str)]| {
            let mut builder = Request::builder().method(*method).uri(format!("http://web.test{path}"));
            for (name, value) in headers.iter().chain(more) {
                builder = builder.header(*name, *value);
            }
            client.send(builder.body(()).unwrap(), b"")
        };
        let lean = in_time(ask(&[])).await.unwrap();
        let full = in_time(ask(&[BY_PINGORA])).await.unwrap();
        assert_eq!(told(&lean), told(&full), "{method} {path}");
        assert!(lean.headers.contains_key("date"), "{method} {path}");
    }
    for body in [0, 1, 1000, 30_000] {
        let text = vec![b'x'; body];
        let lean = in_time(client.send(post("/count"), &text)).await.unwrap();
        assert_eq!((lean.status, lean.body), (200, body.to_string()));
    }
    let lines = edge.log_lines(2 * table.len() + 4).await;
    assert!(lines.iter().all(|line| line["protocol"] == "HTTP/2.0" || line["version"] == "HTTP/2.0"), "{}", lines[0]);
}

#[tokio::test]
async fn every_shape_of_an_answer_arrives_whole() {
    let table: [(&[u8], u16, &str); 10] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, "hello"),
        (b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, "hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, ""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "ok"),
        (
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nX-Own: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
            200,
            "ok",
        ),
    ];
    for (answer, status, body) in table {
        let (address, _seen) = scripted(answer).await;
        let edge = Edge::with(&labelled(address)).await;
        let client = Client::to(edge.http).await;
        let reply = in_time(client.get("/")).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{}", String::from_utf8_lossy(answer));
        for name in ["connection", "x-own", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
            assert!(!reply.headers.contains_key(name), "{name}");
        }
        let head = Request::head("http://web.test/").body(()).unwrap();
        // Its upstream answers once a connection.
        let edge = Edge::with(&labelled(address)).await;
        let reply = in_time(Client::to(edge.http).await.send(head, b"")).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (status, ""), "HEAD {}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn trailers_of_a_chunked_answer_arrive_and_those_that_would_lie_do_not() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: abc\r\nContent-Length: 9\r\nConnection: close\r\n\r\n";
    let (address, _seen) = scripted(answer).await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    let (reply, trailers) = in_time(whole(response.await.unwrap())).await.unwrap();
    assert_eq!(reply.body, "hello");
    let trailers = trailers.expect("trailers");
    assert_eq!((trailers.len(), trailers["x-sum"].as_bytes()), (1, b"abc".as_slice()));
}

#[tokio::test]
async fn an_answer_that_could_hide_another_is_refused() {
    let table: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"",
    ];
    for answer in table {
        let (address, _seen) = scripted(answer).await;
        let edge = Edge::with(&labelled(address)).await;
        let client = Client::to(edge.http).await;
        let reply = in_time(client.get("/")).await.unwrap();
        assert_eq!(reply.status, 502, "{}", String::from_utf8_lossy(answer));
        let line = &edge.log_lines(1).await[0];
        assert!(line["error"].as_str().unwrap().starts_with("upstream failed: upstream: "), "{line}");
    }
}

/// Half an answer must never pass for a whole one, and the other streams go on.
#[tokio::test]
async fn a_broken_answer_resets_its_stream_alone() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let (address, _seen) = scripted(answer).await;
        let well = Upstream::start("well").await;
        let (address, well) = (address.to_string(), well.address.to_string());
        let edge = Edge::with(&services(&[
            ("web", &[("skep.host", "web.test"), ("skep.address", &*address), ("skep.retries", "0")]),
            ("well", &[("skep.host", "well.test"), ("skep.address", &*well)]),
        ]))
        .await;
        let client = Client::to(edge.http).await;
        let other = tokio::spawn({
            let sender = client.sender.clone();
            async move {
                let request = Request::get("http://well.test/delay/400").body(()).unwrap();
                let (response, _) = sender.ready().await.unwrap().send_request(request, true).unwrap();
                whole(response.await.unwrap()).await.unwrap().0
            }
        });
        let error = in_time(client.get("/")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
        assert_eq!(in_time(other).await.unwrap().body, "late");
        let lines = edge.log_lines(2).await;
        let broken = lines.iter().find(|line| line["host"] == "web.test").unwrap();
        assert!(broken["error"].as_str().unwrap().starts_with("upstream: "), "{broken}");
    }
}

/// An upstream that shows what it was sent: the head and as much of the body as comes at once.
async fn seen_by_upstream(request: Request<()>, pieces: &[&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = Edge::with(&labelled(listener.local_addr().unwrap())).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (_response, mut body) = sender.send_request(request, pieces.is_empty()).unwrap();
    for (number, piece) in pieces.iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        body.send_data((*piece).into(), number + 1 == pieces.len()).unwrap();
    }
    let (mut stream, _) = in_time(listener.accept()).await.unwrap();
    let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(Duration::from_millis(400), stream.read(&mut chunk)).await {
        seen.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn the_upstream_sees_a_request_of_http1() {
    let request = Request::get("http://web.test/?a=b")
        .header("cookie", "a=1")
        .header("x-one", "1")
        .header("cookie", "b=2")
        .header("cookie", "c=3")
        .header("x-one", "2")
        .body(())
        .unwrap();
    let seen = seen_by_upstream(request, &[]).await;
    assert!(seen.starts_with("GET /?a=b HTTP/1.1\r\nhost: web.test\r\n"), "{seen}");
    assert_eq!(seen.matches("\r\ncookie: ").count(), 1, "{seen}");
    for line in ["\r\ncookie: a=1; b=2; c=3\r\n", "\r\nx-one: 1\r\n", "\r\nx-one: 2\r\n", "\r\nx-forwarded-host: web.test\r\n"] {
        assert!(seen.contains(line), "{line:?}: {seen}");
    }
    assert!(seen.ends_with("\r\n\r\n") && !seen.contains("content-length") && !seen.contains("transfer-encoding"), "{seen}");
}

#[tokio::test]
async fn an_upload_is_framed_as_far_as_its_length_is_known() {
    let seen = seen_by_upstream(post("/"), &["hello"]).await;
    // It may have come with its head, or a moment later.
    let whole = seen.contains("\r\ncontent-length: 5\r\n") && seen.ends_with("\r\n\r\nhello");
    assert!(whole || seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{seen}");
    let seen = seen_by_upstream(post("/"), &["hello", " ", "world", ""]).await;
    assert!(seen.contains("\r\ntransfer-encoding: chunked\r\n") && !seen.contains("content-length"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"), "{seen}");
    let declared = Request::post("http://web.test/").header("content-length", "11").body(()).unwrap();
    let seen = seen_by_upstream(declared, &["hello", " world"]).await;
    assert!(seen.contains("\r\ncontent-length: 11\r\n") && seen.ends_with("\r\n\r\nhello world"), "{seen}");
}

#[tokio::test]
async fn a_host_that_is_said_twice_must_be_the_same() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let client = Client::to(edge.http).await;
    let with = |host: &str| Request::get("http://web.test/").header("host", host).body(()).unwrap();
    assert_eq!(in_time(client.send(with("web.test"), b"")).await.unwrap().status, 200);
    assert_eq!(in_time(client.send(with("other.test"), b"")).await.unwrap().status, 400);
    let connect = Request::builder().method("CONNECT").uri("web.test:443").body(()).unwrap();
    assert_eq!(in_time(client.send(connect, b"")).await.unwrap().status, 405);
    assert_eq!(upstream.seen(), 1);
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_for_the_upstream() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    // Before its answer, within it, and within the request.
    for answer in ["", "HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n"] {
        for finished in [true, false] {
            let mut sender = client.sender.clone().ready().await.unwrap();
            let (response, mut body) = sender.send_request(if finished { get("/") } else { post("/") }, finished).unwrap();
            let mut upstream = in_time(seen.recv()).await.unwrap();
            let mut kept = None;
            if !answer.is_empty() {
                upstream.write_all(answer.as_bytes()).await.unwrap();
                let mut answer = in_time(response).await.unwrap().into_body();
                answer.data().await.unwrap().unwrap();
                kept = Some(answer);
            }
            body.send_reset(Reason::CANCEL);
            assert!(ends(&mut upstream).await, "{answer:?} {finished}");
            drop(kept);
        }
    }
    let lines = edge.log_lines(4).await;
    let statuses: Vec<_> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [499, 499, 200, 200]);
    assert!(lines.iter().all(|line| line["error"].as_str().unwrap().starts_with("client: ")), "{lines:?}");
}

#[tokio::test]
async fn all_requests_of_a_lost_connection_end_for_their_upstreams() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    let mut upstreams = Vec::new();
    let mut responses = Vec::new();
    for _ in 0..5 {
        let mut sender = client.sender.clone().ready().await.unwrap();
        responses.push(sender.send_request(get("/"), true).unwrap());
        upstreams.push(in_time(seen.recv()).await.unwrap());
    }
    client.ended.abort();
    for mut upstream in upstreams {
        assert!(ends(&mut upstream).await);
    }
    assert!(edge.log_lines(5).await.iter().all(|line| line["status"] == 499));
}

/// The upstream answers while the request's body is still coming, and goes on reading it.
#[tokio::test]
async fn both_bodies_flow_at_once() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, mut body) = sender.send_request(post("/"), false).unwrap();
    let mut upstream = in_time(seen.recv()).await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let mut answer = in_time(response).await.unwrap().into_body();
    for number in 0..5 {
        body.send_data(format!("ping {number}").into(), false).unwrap();
        let mut got = vec![0; "6\r\nping 0\r\n".len()];
        in_time(upstream.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, format!("6\r\nping {number}\r\n").as_bytes());
        upstream.write_all(b"4\r\npong\r\n").await.unwrap();
        assert_eq!(in_time(answer.data()).await.unwrap().unwrap(), "pong");
    }
    body.send_data(Bytes::new(), true).unwrap();
    upstream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(rest(&mut answer).await, b"");
    assert_eq!(edge.log_lines(1).await[0]["bytes_in"], 30);
}

#[tokio::test]
async fn an_early_answer_to_an_upload_arrives_whole() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, mut body) = sender.send_request(post("/"), false).unwrap();
    body.send_data("begun".into(), false).unwrap();
    let mut upstream = in_time(seen.recv()).await.unwrap();
    upstream.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    upstream.write_all(&[b'x'; 100_000]).await.unwrap();
    let (reply, _) = in_time(whole(in_time(response).await.unwrap())).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (413, 100_000));
    // It is not waited for what nobody wants.
    let reason = in_time(std::future::poll_fn(|cx| body.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, Reason::NO_ERROR);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_declared_or_not() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address), ("skep.max-body", "10KB")])).await;
    let client = Client::to(edge.http).await;
    let declared = Request::post("http://web.test/count").header("content-length", "20000").body(()).unwrap();
    assert_eq!(in_time(client.send(declared, &[b'x'; 20_000])).await.unwrap().status, 413);
    assert_eq!(upstream.seen(), 0);
    assert_eq!(in_time(client.send(post("/count"), &[b'x'; 20_000])).await.unwrap().status, 413);
    assert_eq!(in_time(client.send(post("/count"), &[b'x'; 10_000])).await.unwrap().body, "10000");
    let wordy = Request::get("http://web.test/").header("x", "y".repeat(70_000)).body(()).unwrap();
    assert_eq!(in_time(client.send(wordy, b"")).await.unwrap().status, 431);
}

/// What an upstream does not take, its client cannot send: nothing of it is kept here.
#[tokio::test]
async fn an_upload_goes_no_faster_than_its_upstream_takes_it() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (_response, mut body) = sender.send_request(post("/"), false).unwrap();
    let mut upstream = in_time(seen.recv()).await.unwrap();
    let mut sent = 0;
    let mut send = async |body: &mut h2::SendStream<Bytes>| {
        body.reserve_capacity(16_384);
        let room = tokio::time::timeout(Duration::from_millis(700), std::future::poll_fn(|cx| body.poll_capacity(cx))).await;
        let room = room.ok()?.unwrap().unwrap();
        body.send_data(vec![b'x'; room].into(), false).unwrap();
        sent += room;
        Some(sent)
    };
    let mut last = 0;
    while let Some(sent) = send(&mut body).await {
        last = sent;
        assert!(sent < 50_000_000, "all of it is taken");
    }
    // The kernel's buffers on both sides of the upstream's socket are most of it.
    assert!(last < 12_000_000, "{last}");
    // A neighbour is not stopped by it.
    let quick = client.sender.clone().ready().await.unwrap().send_request(get("/"), true).unwrap();
    let mut other = in_time(seen.recv()).await.unwrap();
    other.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(in_time(whole(in_time(quick.0).await.unwrap())).await.unwrap().0.body, "ok");
    tokio::spawn(async move { while let Ok(1..) = upstream.read(&mut [0; 65_536]).await {} });
    assert!(in_time(send(&mut body)).await.is_some(), "it goes on once the upstream does");
}

#[tokio::test]
async fn a_client_that_opens_no_window_is_given_up_and_its_neighbours_are_not() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address), ("skep.timeout-idle", "500ms")])).await;
    let client = Client::to(edge.http).await;
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, _) = sender.send_request(get("/bytes/10000000"), true).unwrap();
    // Half of the connection's window, and then nothing is read.
    let mut stuck = in_time(response).await.unwrap().into_body();
    for _ in 0..3 {
        assert_eq!(in_time(client.get("/nothing")).await.map(|reply| reply.status).unwrap_or(200), 200);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if stuck.flow_control().used_capacity() > 60_000 {
            break;
        }
    }
    let mut got = 0;
    let error = loop {
        match in_time(stuck.data()).await {
            Some(Ok(piece)) => got += piece.len(),
            Some(Err(error)) => break error,
            None => panic!("an end after {got} bytes"),
        }
    };
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
    assert!(got <= 65_535);
    let lines = edge.log_lines(2).await;
    let line = lines.iter().find(|line| line["path"] == "/bytes/10000000").expect("its line");
    assert_eq!((line["status"].as_u64(), line["error"].as_str()), (Some(200), Some("client: timed out")));
}

#[tokio::test]
async fn a_long_answer_arrives_whole_through_a_small_window() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let client = Client::to(edge.http).await;
    let asked = (0..4).map(|_| client.get("/bytes/3000000"));
    for reply in in_time(futures_util::future::join_all(asked)).await {
        assert_eq!(reply.unwrap().body.len(), 3_000_000);
    }
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, mut body) = sender.send_request(post("/count"), false).unwrap();
    let mut left = 3_000_000;
    while left > 0 {
        body.reserve_capacity(left);
        let room = in_time(std::future::poll_fn(|cx| body.poll_capacity(cx))).await.unwrap().unwrap();
        left -= room;
        body.send_data(vec![b'x'; room].into(), left == 0).unwrap();
    }
    assert_eq!(in_time(whole(in_time(response).await.unwrap())).await.unwrap().0.body, "3000000");
}

/// gRPC goes its own way, beside plain requests on the same connection.
#[tokio::test]
async fn streams_of_both_paths_share_a_connection() {
    let upstream = Upstream::start("web").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut asked = request.into_body();
                        let mut answer = respond.send_response(Response::new(()), false).unwrap();
                        while let Some(Ok(piece)) = asked.data().await {
                            asked.flow_control().release_capacity(piece.len()).unwrap();
                            answer.send_data(piece, false).unwrap();
                        }
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        answer.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    let address = upstream.address.to_string();
    let edge = Edge::with(&services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*address)]),
        ("grpc", &[("skep.host", "grpc.test"), ("skep.scheme", "grpc"), ("skep.address", &*grpc)]),
        ("small", &[("skep.host", "small.test"), ("skep.address", &*address), ("skep.compress", "on")]),
    ]))
    .await;
    let client = Client::to(edge.http).await;
    let call = Request::post("http://grpc.test/Call").header("content-type", "application/grpc").header("te", "trailers");
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (response, mut body) = sender.send_request(call.body(()).unwrap(), false).unwrap();
    body.send_data("0".into(), false).unwrap();
    let mut answer = in_time(response).await.unwrap().into_body();
    assert_eq!(in_time(answer.data()).await.unwrap().unwrap(), "0");
    for number in 1..5 {
        assert_eq!(in_time(client.get("/delay/20")).await.unwrap().body, "late");
        let coded = Request::get("http://small.test/bytes/100000").header("accept-encoding", "gzip").body(()).unwrap();
        assert_eq!(in_time(client.send(coded, b"")).await.unwrap().status, 200);
        body.send_data(number.to_string().into(), false).unwrap();
        assert_eq!(in_time(answer.data()).await.unwrap().unwrap(), number.to_string());
    }
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(rest(&mut answer).await, b"");
    assert_eq!(in_time(answer.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn streams_do_not_wait_for_each_other() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let client = Client::to(edge.http).await;
    let began = Instant::now();
    let asked = (0..60).map(|_| client.get("/delay/500"));
    for reply in in_time(futures_util::future::join_all(asked)).await {
        assert_eq!(reply.unwrap().body, "late");
    }
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

/// Requests in flight are finished, the client hears that no others shall come, and the connection ends by itself.
#[tokio::test]
async fn a_stop_finishes_what_flows_and_says_goodbye() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let client = Client::to(edge.http).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    let mut sender = client.sender.clone().ready().await.unwrap();
    let (slow, _) = sender.send_request(get("/delay/1000"), true).unwrap();
    let (download, _) = sender.send_request(get("/events"), true).unwrap();
    while upstream.seen() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stopping = tokio::spawn(edge.running.stop());
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Told already, so it does not even try.
    assert!(client.sender.clone().ready().await.is_err());
    assert_eq!(in_time(whole(in_time(slow).await.unwrap())).await.unwrap().0.body, "late");
    assert!(in_time(whole(in_time(download).await.unwrap())).await.unwrap().0.body.ends_with("data: 2\n\n"));
    drop((sender, client.sender));
    in_time(client.ended).await.unwrap().unwrap();
    assert_eq!(in_time(stopping).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_ends_after_its_idle_time_and_its_requests() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&labelled(upstream.address), |config| {
        config.proxy.keep_alive = Duration::from_millis(400);
        config.proxy.max_requests_per_connection = Some(5);
    })
    .await;
    // Idle.
    let client = Client::to(edge.http).await;
    for _ in 0..2 {
        assert_eq!(client.get("/delay/700").await.unwrap().status, 200, "a request is no idle time");
    }
    let began = Instant::now();
    in_time(client.ended).await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    // Used up: what came before the client heard of it is served, too.
    let client = Client::to(edge.http).await;
    let asked = (0..8).map(|_| client.get("/delay/100"));
    for reply in in_time(futures_util::future::join_all(asked)).await {
        assert_eq!(reply.unwrap().body, "late");
    }
    in_time(client.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_connection_makes_room() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&labelled(upstream.address), |config| config.proxy.max_connections = 2).await;
    let (idle, busy) = (Client::to(edge.http).await, Client::to(edge.http).await);
    assert_eq!(idle.get("/").await.unwrap().status, 200);
    let slow = busy.get("/delay/2000");
    let third = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Client::to(edge.http).await.get("/").await.unwrap().status
    };
    let (slow, third) = in_time(async { tokio::join!(slow, third) }).await;
    assert_eq!((slow.unwrap().status, third), (200, 200));
    in_time(idle.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_upstream_connection_that_was_closed_costs_nobody_a_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut chunk = [0_u8; 4096];
                if let Ok(1..) = stream.read(&mut chunk).await {
                    // Says that it stays, and goes.
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok();
                }
            });
        }
    });
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address.to_string())])).await;
    let client = Client::to(edge.http).await;
    for _ in 0..200 {
        assert_eq!(in_time(client.get("/")).await.unwrap().body, "ok");
    }
}

/// Takes any certificate: who the edge is matters elsewhere.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn what_tls_agreed_on_is_spoken_and_told() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&labelled(upstream.address), |config| {
        config.https.listen = vec!["127.0.0.1:0".parse().unwrap()];
        // In clear it would be refused.
        config.proxy.h2c = false;
    })
    .await;
    let mut trust = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Credulous)).with_no_client_auth();
    trust.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(edge.running.https[0]).await.unwrap();
    let name = ServerName::try_from("web.test").unwrap();
    let tls = in_time(tokio_rustls::TlsConnector::from(Arc::new(trust)).connect(name, tcp)).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    let client = Client { sender, ended: tokio::spawn(connection) };
    let at = |host: &str| Request::get(format!("https://{host}/")).body(()).unwrap();
    for _ in 0..3 {
        let reply = in_time(client.send(at("web.test"), b"")).await.unwrap();
        assert_eq!((reply.status, reply.upstream_saw("x-forwarded-proto").as_str()), (200, "https"));
    }
    assert_eq!(in_time(client.get("/bytes/1000000")).await.unwrap().body.len(), 1_000_000);
    // Only the first one waited for the handshake.
    let lines = edge.log_lines(4).await;
    assert_eq!(lines.iter().filter(|line| !line["tls_ms"].is_null()).count(), 1, "{}", lines[0]);
    let refused = TcpStream::connect(edge.http).await.unwrap();
    let (sender, connection) = h2::client::handshake(refused).await.unwrap();
    let client = Client { sender, ended: tokio::spawn(connection) };
    assert!(in_time(client.get("/")).await.is_err());
}
