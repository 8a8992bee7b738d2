//! What bounds a route, changes its answers or copies its requests, through the real edge.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::*;

/// Far above what any of it takes, to tell waiting from not waiting.
const LONG: Duration = Duration::from_secs(5);

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// An edge in front of `web` with these labels beside its host and address.
async fn edge_of(address: SocketAddr, labels: &[(&str, &str)]) -> Edge {
    Edge::with(&web(address, labels)).await
}

fn web(address: SocketAddr, labels: &[(&str, &str)]) -> String {
    let address = address.to_string();
    stack(&[&[("skep.host", "web.test"), ("skep.address", &*address)], labels].concat())
}

impl Edge {
    async fn get(&self, path: &str) -> Reply {
        get_path(self.http, "web.test", path).await
    }

    async fn with_headers(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        send(self.http, request("GET", "web.test", path, headers)).await
    }

    /// The sample of `web` in the metrics.
    async fn metric(&self, name: &str) -> f64 {
        let metrics = get_path(self.admin, "admin", "/metrics").await.body;
        let line = metrics.lines().find(|line| line.starts_with(name) && line.contains("route=\"web\""));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    async fn until_metric(&self, name: &str, wanted: f64) {
        let reached = async {
            while self.metric(name).await != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LONG, reached).await.is_err() {
            panic!("{name} is {}, not {wanted}", self.metric(name).await);
        }
    }

    /// Replaces the stack file and waits until the table has it.
    async fn swap(&self, text: &str, sign: &str) {
        std::fs::write(self.directory.path().join("stack.yml"), text).unwrap();
        for _ in 0..250 {
            if get_path(self.admin, "admin", "/routes").await.body.contains(sign) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{sign} never came");
    }
}

#[tokio::test]
async fn who_asks_too_often_gets_429_and_when_to_come_back_across_a_swap() {
    let upstream = Upstream::start("web").await;
    let limit = ("skep.rate-limit", "2/h by header:X-Api-Key");
    let edge = edge_of(upstream.address, &[limit]).await;
    let asked = async |key: &str| edge.with_headers("/", &[("x-api-key", key)]).await;
    assert_eq!([asked("a").await.status, asked("a").await.status, asked("b").await.status], [200, 200, 200]);
    let refused = asked("a").await;
    assert_eq!((refused.status, refused.header("ratelimit-policy")), (429, "\"default\";q=2;w=3600"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");

    edge.swap(&web(upstream.address, &[limit, ("skep.compress", "on")]), "compress").await;
    assert_eq!([asked("a").await.status, asked("b").await.status, asked("b").await.status], [429, 200, 429]);
    let call = request("POST", "web.test", "/", &[("x-api-key", "a"), ("content-type", "application/grpc")]);
    let call = send(edge.http, call).await;
    assert_eq!((call.status, call.header("grpc-status")), (200, "8"));
    // Without the header, by address.
    assert_eq!([edge.get("/").await.status, edge.get("/").await.status, edge.get("/").await.status], [200, 200, 429]);
    assert_eq!(edge.metric("skep_rate_limited_total").await, 5.0);
    assert_eq!(upstream.seen(), 6);
}

#[tokio::test]
async fn requests_wait_in_turn_for_a_place_and_the_rest_gets_503() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let (open, gate) = watch::channel(false);
    let seen = order.clone();
    let router = Router::new().fallback(any(move |request: Request| {
        let (seen, mut gate) = (seen.clone(), gate.clone());
        async move {
            seen.lock().unwrap().push(request.uri().path().to_owned());
            gate.wait_for(|open| *open).await.unwrap();
            "done"
        }
    }));
    let edge = Arc::new(edge_of(serve(router).await, &[("skep.max-inflight", "1 queue 2 wait 20s")]).await);
    let mut asked = Vec::new();
    for (number, queued) in [(0, 0.0), (1, 1.0), (2, 2.0)] {
        let edge_of_task = edge.clone();
        asked.push(tokio::spawn(async move { edge_of_task.get(&format!("/{number}")).await.status }));
        while order.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        edge.until_metric("skep_inflight_queued", queued).await;
    }
    let refused = edge.get("/3").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    open.send_replace(true);
    for task in asked {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(*order.lock().unwrap(), ["/0", "/1", "/2"]);
    assert_eq!(edge.metric("skep_inflight_rejected_total").await, 1.0);
}

#[tokio::test]
async fn a_place_is_held_to_the_last_byte_by_streams_upgrades_and_no_longer_by_those_who_left() {
    let upstream = Upstream::start("web").await;
    let edge = edge_of(upstream.address, &[("skep.max-inflight", "1 queue 0")]).await;
    let free = async || {
        for _ in 0..250 {
            if edge.get("/").await.status == 200 {
                // The question itself had the place until a moment after its answer.
                tokio::time::sleep(Duration::from_millis(100)).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the place never got free");
    };
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut chunk = [0_u8; 15];
    stream.read_exact(&mut chunk).await.unwrap();
    assert_eq!(edge.get("/").await.status, 503, "the head is out, the stream is not");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("data: 2"));
    free().await;

    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.test/ws", stream).await.unwrap();
    socket.send("hello".into()).await.unwrap();
    socket.next().await.unwrap().unwrap();
    assert_eq!(edge.get("/").await.status, 503, "an upgraded connection holds its place");
    drop(socket);
    free().await;

    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /delay/60000 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(edge.get("/").await.status, 503, "a request that waits for its answer holds its place");
    // A reset: after a mere end of what it sends the client may still wait.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    free().await;
}

/// An upstream that keeps every byte it gets and never answers.
async fn recording() -> (SocketAddr, Arc<Mutex<Vec<u8>>>, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (ended, ends) = watch::channel(0);
    let kept = bytes.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut chunk = [0_u8; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                kept.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
            ended.send_modify(|ends| *ends += 1);
        }
    });
    (address, bytes, ends)
}

#[tokio::test]
async fn a_body_that_is_too_long_gets_413_and_its_upstream_never_a_whole_request() {
    let (address, bytes, mut ends) = recording().await;
    let edge = edge_of(address, &[("skep.max-body", "10KB")]).await;
    let declared = raw(edge.http, b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 10001\r\nConnection: close\r\n\r\n").await;
    assert!(declared.starts_with("HTTP/1.1 413"), "{declared}");
    assert!(bytes.lock().unwrap().is_empty(), "what is declared too long is refused before anybody is asked");

    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    for _ in 0..11 {
        stream.write_all(&[b"3e8\r\n", &[b'x'; 1000][..], b"\r\n"].concat()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut head = [0_u8; 12];
    tokio::time::timeout(LONG, stream.read_exact(&mut head)).await.expect("in time").unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
    tokio::time::timeout(LONG, ends.wait_for(|ends| *ends > 0)).await.expect("the connection is broken off").unwrap();
    let seen = bytes.lock().unwrap().clone();
    assert!(seen.starts_with(b"POST / HTTP/1.1") && !seen.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&seen));

    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let pieces =
        futures_util::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from(vec![b'x'; 1000])))));
    let upload = http::Request::post("http://web.test/").body(StreamBody::new(pieces)).unwrap();
    assert_eq!(client.send_request(upload).await.unwrap().status(), 413);
    assert_eq!(edge.metric("skep_body_too_large_total").await, 3.0);
}

#[tokio::test]
async fn an_http2_upstream_sees_no_whole_request_either() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = tokio::spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (mut request, respond) = connection.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let _open = respond;
        while let Some(piece) = request.body_mut().data().await {
            let Ok(piece) = piece else { return "broken off" };
            request.body_mut().flow_control().release_capacity(piece.len()).unwrap();
        }
        "whole"
    });
    let edge = edge_of(address, &[("skep.max-body", "10KB"), ("skep.scheme", "h2c")]).await;
    let pieces =
        futures_util::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(hyper::body::Frame::data(Bytes::from(vec![b'x'; 1000])))));
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let upload = http::Request::post("/").header("host", "web.test").body(StreamBody::new(pieces)).unwrap();
    assert_eq!(client.send_request(upload).await.unwrap().status(), 413);
    assert_eq!(tokio::time::timeout(LONG, upstream).await.expect("in time").unwrap(), "broken off");
}

#[tokio::test]
async fn the_default_of_the_configuration_bounds_bodies_unless_a_label_says_otherwise() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let text = services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*address)]),
        ("open", &[("skep.host", "open.test"), ("skep.address", &*address), ("skep.max-body", "off")]),
    ]);
    let edge = Edge::with_config(&text, |config| config.defaults.max_body = Some(1000)).await;
    let post = async |host: &str, size: usize| {
        let mut upload = request("POST", host, "/count", &[]);
        *upload.body_mut() = Full::from(vec![b'y'; size]);
        send(edge.http, upload).await.status
    };
    assert_eq!([post("web.test", 1000).await, post("web.test", 1001).await, post("open.test", 100_000).await], [200, 413, 200]);
}

#[tokio::test]
async fn a_circuit_opens_and_closes_again() {
    let upstream = Upstream::start("web").await;
    let edge = edge_of(upstream.address, &[("skep.circuit", "50% of 4 in 30s for 1s")]).await;
    for path in ["/", "/status/500", "/", "/status/502"] {
        edge.get(path).await;
    }
    let seen = upstream.seen();
    let refused = edge.get("/").await;
    assert_eq!((refused.status, refused.header("retry-after"), upstream.seen()), (503, "1", seen));
    assert_eq!(edge.metric("skep_circuit_open").await, 1.0);
    assert!(get_path(edge.admin, "admin", "/limits").await.body.contains("\"circuit\":\"open\""));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(edge.get("/status/500").await.status, 500, "one is tried");
    assert_eq!(edge.get("/").await.status, 503, "and fails");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!([edge.get("/").await.status, edge.get("/").await.status], [200, 200]);
    assert_eq!(edge.metric("skep_circuit_open").await, 0.0);
}

#[tokio::test]
async fn failed_connections_and_timeouts_open_a_circuit_too() {
    let circuit = ("skep.circuit", "100% of 1 in 30s for 30s");
    let away = edge_of("127.0.0.1:1".parse().unwrap(), &[circuit]).await;
    assert_eq!([away.get("/").await.status, away.get("/").await.status], [502, 503]);
    let upstream = Upstream::start("web").await;
    let slow = edge_of(upstream.address, &[circuit, ("skep.timeout-response", "200ms"), ("skep.timeout-idle", "200ms")]).await;
    assert_eq!([slow.get("/delay/5000").await.status, slow.get("/").await.status], [504, 503]);
}

const TEXT: &str = "All the king's horses and all the king's men couldn't put Humpty together again. ";

/// An upstream with pages worth compressing.
async fn texts() -> SocketAddr {
    let kind = |kind: &'static str, body: Body| ([("content-type", kind), ("etag", "\"v1\"")], body).into_response();
    let router = Router::new()
        .route("/page", get(move || async move { kind("text/html", TEXT.repeat(400).into()) }))
        .route("/streamed", get(move || async move { kind("text/css", big_text()) }))
        .route("/image", get(move || async move { kind("image/png", TEXT.repeat(400).into()) }))
        .route("/short", get(move || async move { kind("text/html", "short".into()) }))
        .route("/part", get(move || async move { (StatusCode::PARTIAL_CONTENT, kind("text/html", TEXT.repeat(400).into())) }))
        .route("/coded", get(|| async { ([("content-type", "text/html"), ("content-encoding", "gzip")], "x".repeat(5000)) }))
        .route("/fixed", get(|| async { ([("content-type", "text/html"), ("cache-control", "no-transform")], "x".repeat(5000)) }))
        .route("/same", get(|| async { (StatusCode::NOT_MODIFIED, [("etag", "\"v1\"")]) }));
    serve(router).await
}

/// A request over its own connection, with the body as it is.
async fn fetch(address: SocketAddr, method: &str, path: &str, accept: &str) -> (u16, HeaderMap, Vec<u8>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = request(method, "web.test", path, &[("accept-encoding", accept)]);
    let (head, body) = sender.send_request(asked).await.unwrap().into_parts();
    (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

fn decode(encoding: &str, coded: &[u8]) -> String {
    let mut plain = String::new();
    match encoding {
        "zstd" => zstd::stream::read::Decoder::new(coded).unwrap().read_to_string(&mut plain),
        "br" => brotli::Decompressor::new(coded, 4096).read_to_string(&mut plain),
        _ => flate2::read::GzDecoder::new(coded).read_to_string(&mut plain),
    }
    .unwrap();
    plain
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_accepts_them() {
    let edge = edge_of(texts().await, &[("skep.compress", "on")]).await;
    for (accept, wanted) in [("gzip, br, zstd", "zstd"), ("gzip;q=0.5, br", "br"), ("gzip", "gzip")] {
        for path in ["/page", "/streamed"] {
            let (status, headers, body) = fetch(edge.http, "GET", path, accept).await;
            assert_eq!((status, headers["content-encoding"].to_str().unwrap()), (200, wanted), "{path}");
            assert_eq!(decode(wanted, &body), TEXT.repeat(400), "{path}");
            assert!(body.len() * 5 < TEXT.len() * 400 && !headers.contains_key("content-length"), "{path}: {}", body.len());
            assert_eq!((&headers["vary"], &headers["etag"]), (&"Accept-Encoding".parse().unwrap(), &"W/\"v1\"".parse().unwrap()));
        }
        let (_, headers, body) = fetch(edge.http, "HEAD", "/page", accept).await;
        assert_eq!((headers["content-encoding"].to_str().unwrap(), headers["etag"].to_str().unwrap()), (wanted, "W/\"v1\""));
        assert!(body.is_empty() && !headers.contains_key("content-length"));
    }
    let (_, headers, body) = fetch(edge.http, "GET", "/page", "identity").await;
    assert_eq!((headers["vary"].to_str().unwrap(), headers["etag"].to_str().unwrap()), ("Accept-Encoding", "\"v1\""));
    assert_eq!((body.len(), headers["content-length"].to_str().unwrap()), (TEXT.len() * 400, "32400"));
    let (_, headers, _) = fetch(edge.http, "GET", "/same", "gzip").await;
    assert_eq!(headers["etag"], "W/\"v1\"");
    for path in ["/image", "/short", "/part", "/coded", "/fixed"] {
        let (_, headers, _) = fetch(edge.http, "GET", path, "gzip").await;
        assert!(!headers.contains_key("vary"), "{path}");
        assert_eq!(headers.contains_key("content-encoding"), path == "/coded", "{path}");
        assert!(headers.contains_key("content-length"), "{path}");
    }
    let (read, written) = (edge.metric("skep_compressed_in_bytes_total").await, edge.metric("skep_compressed_out_bytes_total").await);
    assert!(read == (TEXT.len() * 400 * 6) as f64 && written > 0.0 && written < read / 5.0, "{read} {written}");
}

#[tokio::test]
async fn compressed_events_arrive_one_by_one() {
    let upstream = Upstream::start("web").await;
    let edge = edge_of(upstream.address, &[("skep.compress", "on")]).await;
    for accept in ["zstd", "br", "gzip"] {
        let stream = TcpStream::connect(edge.http).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let asked = request("GET", "web.test", "/events", &[("accept-encoding", accept)]);
        let mut answer = sender.send_request(asked).await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], accept);
        let (mut coded, mut arrivals) = (Vec::new(), Vec::new());
        while let Some(frame) = answer.body_mut().frame().await {
            coded.extend(frame.unwrap().into_data().unwrap());
            arrivals.push((Instant::now(), readable(accept, &coded)));
        }
        let first = |number: &str| arrivals.iter().find(|(_, text)| text.contains(number)).map(|(when, _)| *when).expect(number);
        assert!(first("data: 1") - first("data: 0") > Duration::from_millis(300), "{accept}: {arrivals:?}");
        assert!(first("data: 2") - first("data: 1") > Duration::from_millis(300), "{accept}: {arrivals:?}");
        assert_eq!(decode(accept, &coded), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    }
}

/// As much as a client can read of a stream that goes on.
fn readable(encoding: &str, coded: &[u8]) -> String {
    let mut plain = Vec::new();
    let mut decoder: Box<dyn Read> = match encoding {
        "zstd" => Box::new(zstd::stream::read::Decoder::new(coded).unwrap()),
        "br" => Box::new(brotli::Decompressor::new(coded, 4096)),
        _ => Box::new(flate2::read::GzDecoder::new(coded)),
    };
    let mut byte = [0_u8; 1];
    while let Ok(1) = decoder.read(&mut byte) {
        plain.push(byte[0]);
    }
    String::from_utf8(plain).unwrap()
}

/// An HTTP/2 upstream that answers with a text, whose last frame is a trailer where `trailer` says so.
async fn http2_texts(status: u16, trailer: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = http::Response::builder().status(status).header("content-type", "text/plain").body(()).unwrap();
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(TEXT.repeat(100).into(), false).unwrap();
                    match trailer {
                        true => body.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())])).unwrap(),
                        false => body.send_data(Bytes::new(), true).unwrap(),
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn http2_on_both_sides_is_compressed_to_its_end() {
    for trailer in [false, true] {
        let edge = edge_of(http2_texts(200, trailer).await, &[("skep.compress", "on"), ("skep.scheme", "h2c")]).await;
        let (_, headers, body) = fetch(edge.http, "GET", "/", "br").await;
        assert_eq!((headers["content-encoding"].to_str().unwrap(), decode("br", &body)), ("br", TEXT.repeat(100)));
        let stream = TcpStream::connect(edge.http).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let asked = http::Request::get("http://web.test/").header("accept-encoding", "gzip").body(Full::<Bytes>::default()).unwrap();
        let (head, body) = client.send_request(asked).await.unwrap().into_parts();
        assert_eq!(head.headers["content-encoding"], "gzip");
        assert_eq!(decode("gzip", &body.collect().await.unwrap().to_bytes()), TEXT.repeat(100));
    }
}

/// Two services: `web` mirrors to `copy`.
fn mirrored(web: SocketAddr, copy: SocketAddr, mirror: &str) -> String {
    let (web, copy) = (web.to_string(), copy.to_string());
    services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*web), ("skep.mirror", mirror), ("skep.request-header", "X-Set: by edge")]),
        ("copy", &[("skep.host", "copy.test"), ("skep.address", &*copy)]),
    ])
}

#[tokio::test]
async fn a_mirror_gets_what_the_service_gets() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let seen = kept.clone();
    let router = Router::new().fallback(any(move |request: Request| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            seen.lock().unwrap().push((head, body));
            StatusCode::IM_A_TEAPOT
        }
    }));
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&mirrored(upstream.address, serve(router).await, "copy")).await;
    let mut upload = request("POST", "web.test", "/count?a=1", &[("x-mine", "1")]);
    *upload.body_mut() = Full::from(vec![b'y'; 5000]);
    assert_eq!(send(edge.http, upload).await.body, "5000");
    edge.until_metric("skep_mirrored_total{route=\"web\",result=\"sent\"}", 1.0).await;
    let (head, body) = kept.lock().unwrap().pop().unwrap();
    assert_eq!((head.method.as_str(), head.uri.to_string().as_str(), body.len()), ("POST", "/count?a=1", 5000));
    for (name, value) in
        [("host", "web.test"), ("x-mine", "1"), ("x-set", "by edge"), ("x-forwarded-for", "127.0.0.1"), ("x-skep-mirror", "1")]
    {
        assert_eq!(head.headers[name], value, "{name}");
    }
    assert_eq!(edge.get("/").await.status, 200);
    edge.until_metric("skep_mirrored_total{route=\"web\",result=\"sent\"}", 2.0).await;

    edge.with_headers("/", &[("x-skep-mirror", "1")]).await;
    let mut upload = request("POST", "web.test", "/count", &[]);
    *upload.body_mut() = Full::from(vec![b'y'; 100_000]);
    assert_eq!(send(edge.http, upload).await.body, "100000", "a long body goes to the service alone");
    assert_eq!(edge.metric("skep_mirrored_total{route=\"web\",result=\"too_large\"}").await, 1.0);
    assert_eq!(kept.lock().unwrap().len(), 1, "what was copied already and what is too large is not copied");
}

#[tokio::test]
async fn a_mirror_that_is_slow_or_away_does_not_hurt_the_service() {
    let upstream = Upstream::start("web").await;
    let slow = Router::new().fallback(any(|| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }));
    let edge = Edge::with(&mirrored(upstream.address, serve(slow).await, "copy")).await;
    let began = Instant::now();
    for _ in 0..300 {
        assert_eq!(edge.get("/").await.status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(30));
    let dropped = edge.metric("skep_mirrored_total{route=\"web\",result=\"dropped\"}").await;
    assert!((1.0..=44.0).contains(&dropped), "256 copies are held at most: {dropped}");

    let edge = Edge::with(&mirrored(upstream.address, "127.0.0.1:1".parse().unwrap(), "copy")).await;
    assert_eq!(edge.get("/").await.status, 200);
    edge.until_metric("skep_mirrored_total{route=\"web\",result=\"failed\"}", 1.0).await;
}

#[tokio::test]
async fn a_mirror_may_speak_http2() {
    let upstream = Upstream::start("web").await;
    let (web, copy) = (upstream.address.to_string(), http2_texts(200, false).await.to_string());
    let edge = Edge::with(&services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*web), ("skep.mirror", "copy")]),
        ("copy", &[("skep.host", "copy.test"), ("skep.address", &*copy), ("skep.scheme", "h2c")]),
    ]))
    .await;
    assert_eq!(edge.get("/").await.status, 200);
    edge.until_metric("skep_mirrored_total{route=\"web\",result=\"sent\"}", 1.0).await;
}

/// An upstream that fails in several ways.
async fn failing() -> SocketAddr {
    fn answer(status: u16, kind: &'static str, body: &'static str) -> Response {
        (StatusCode::from_u16(status).unwrap(), [("content-type", kind), ("etag", "\"e\"")], body).into_response()
    }
    let router = Router::new()
        .route("/html", any(|| async { answer(500, "text/html", "the service's own page") }))
        .route("/json", any(|| async { answer(500, "application/json", "{}") }))
        .route("/missing", any(|| async { answer(404, "text/html", "the service's own page") }))
        .route("/empty", any(|| async { (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "7")]) }))
        .route("/long", any(|| async { (StatusCode::BAD_GATEWAY, [("content-type", "text/html")], Body::from("x".repeat(1_000_000))) }))
        .route("/chunked", any(|| async { (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/html")], big_text()) }))
        .route("/fine", any(|| async { answer(200, "text/html", "fine") }));
    serve(router).await
}

/// Without a length.
fn big_text() -> Body {
    Body::from_stream(futures_util::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(TEXT.repeat(4)))))
}

async fn pages() -> SocketAddr {
    let page = |text: &'static str| get(move || async move { ([("content-type", "text/html; charset=utf-8")], text) });
    serve(
        Router::new()
            .route("/500.html", page("page of 500"))
            .route("/503.html", page("page of 503"))
            .route("/502.html", page("page of 502")),
    )
    .await
}

#[tokio::test]
async fn people_see_the_error_page_of_a_service_and_programs_the_error() {
    let (web, errors) = (failing().await.to_string(), pages().await.to_string());
    let edge = Edge::with(&services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*web), ("skep.error-page", "5xx errors")]),
        ("away", &[("skep.host", "away.test"), ("skep.address", "127.0.0.1:1"), ("skep.error-page", "5xx errors")]),
        ("errors", &[("skep.host", "errors.test"), ("skep.address", &*errors)]),
    ]))
    .await;
    for (path, status, body) in [
        ("/html", 500, "page of 500"),
        ("/chunked", 500, "page of 500"),
        ("/empty", 503, "page of 503"),
        ("/long", 502, "page of 502"),
        ("/json", 500, "{}"),
        ("/missing", 404, "the service's own page"),
        ("/fine", 200, "fine"),
    ] {
        let reply = edge.get(path).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{path}");
        assert_eq!(reply.header("content-length"), body.len().to_string(), "{path}");
        assert_eq!(reply.header("etag").is_empty(), body.starts_with("page of"), "{path}");
        assert!(!reply.header("x-request-id").is_empty(), "{path}");
    }
    assert_eq!(edge.get("/empty").await.header("retry-after"), "7", "what else the service says stays");
    let head = send(edge.http, request("HEAD", "web.test", "/html", &[])).await;
    assert_eq!((head.status, head.header("content-length"), head.body.as_str()), (500, "11", ""));

    // The page takes the body's place, so the connection goes on.
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (path, body) in [("/html", "page of 500"), ("/chunked", "page of 500"), ("/fine", "fine")] {
        sender.ready().await.unwrap();
        let answer = sender.send_request(request("GET", "web.test", path, &[])).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
    }

    let own = async |accept: &str| send(edge.http, request("GET", "away.test", "/", &[("accept", accept)])).await;
    let page = own("text/html").await;
    assert_eq!((page.status, page.body.as_str(), page.header("content-type")), (502, "page of 502", "text/html; charset=utf-8"));
    assert!(own("application/json").await.body.starts_with("{\"status\":502"));
}

#[tokio::test]
async fn errors_of_http2_services_have_pages_too() {
    let (web, errors) = (http2_texts(500, false).await.to_string(), pages().await.to_string());
    let edge = Edge::with(&services(&[
        ("web", &[("skep.host", "web.test"), ("skep.address", &*web), ("skep.scheme", "h2c"), ("skep.error-page", "5xx errors")]),
        ("errors", &[("skep.host", "errors.test"), ("skep.address", &*errors)]),
    ]))
    .await;
    let page = edge.get("/").await;
    assert_eq!((page.status, page.body.as_str(), page.header("content-length")), (500, "page of 500", "11"));
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = http::Request::get("http://web.test/").body(Full::<Bytes>::default()).unwrap();
    let (head, body) = client.send_request(asked).await.unwrap().into_parts();
    assert_eq!((head.status.as_u16(), body.collect().await.unwrap().to_bytes()), (500, "page of 500".into()));
}

#[tokio::test]
async fn a_page_that_does_not_come_leaves_the_answer_as_it_is() {
    let web = failing().await.to_string();
    let hanging = serve(Router::new().fallback(any(|| async { tokio::time::sleep(Duration::from_secs(60)).await }))).await.to_string();
    for address in ["127.0.0.1:1", &*hanging] {
        let edge = Edge::with(&services(&[
            ("web", &[("skep.host", "web.test"), ("skep.address", &*web), ("skep.error-page", "4xx,5xx errors")]),
            ("errors", &[("skep.host", "errors.test"), ("skep.address", address)]),
        ]))
        .await;
        let began = Instant::now();
        for path in ["/html", "/html", "/missing"] {
            assert_eq!(edge.get(path).await.body, "the service's own page");
        }
        assert!(began.elapsed() < LONG, "an error waits a second for its page, and not each time");
    }
}

#[tokio::test]
async fn a_file_of_a_stack_files_author_is_an_error_page() {
    let web = failing().await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("500.html"), "from a file").unwrap();
    let label = format!("5xx {}/{{status}}.html", directory.path().display());
    let edge = edge_of(web, &[("skep.error-page", &label)]).await;
    let (page, other) = (edge.get("/html").await, edge.get("/long").await);
    assert_eq!((page.status, page.body.as_str()), (500, "from a file"));
    assert_eq!((other.status, other.body.len()), (502, 1_000_000), "there is no file for this status");
}
