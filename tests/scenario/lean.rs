//! The lean path beside pingora's: the same requests make the same answers, and every shape of an upstream's answer arrives whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// An upstream that answers each connection's first request with these bytes and closes; what it was sent comes back by the channel.
pub async fn scripted(answer: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut chunk = [0_u8; 4096];
                while !seen.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    match stream.read(&mut chunk).await {
                        Ok(count @ 1..) => seen.extend_from_slice(&chunk[..count]),
                        _ => return,
                    }
                }
                sender.send(String::from_utf8_lossy(&seen).into_owned()).unwrap();
                stream.write_all(answer).await.ok();
                // Long enough for what was sent to be on its way before the end is seen.
                tokio::time::sleep(Duration::from_millis(100)).await;
            });
        }
    });
    (address, receiver)
}

pub fn labelled(address: SocketAddr) -> String {
    stack(&[("skep.host", "web.test"), ("skep.address", &address.to_string()), ("skep.retries", "0")])
}

/// A header that has no meaning here, and that only pingora's path takes.
pub const BY_PINGORA: (&str, &str) = ("te", "trailers");

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
        ("skep.moved.host", "web.test"),
        ("skep.moved.path", "/moved"),
        ("skep.moved.redirect-regex", "^http://web.test[^/]*/moved(.*) https://new.test$1"),
        ("skep.moved.address", &address),
        ("skep.closed.host", "web.test"),
        ("skep.closed.path", "/closed"),
        ("skep.closed.allow", "192.0.2.0/24"),
        ("skep.closed.address", &address),
    ];
    let edge = Edge::with(&stack(all)).await;
    #[expect(clippy::type_complexity, reason = "a table")]
    let table: &[(&str, &str, &[(&str, &str)])] = &[
        ("GET", "/", &[]),
        ("GET", "/a/../b?x=1&y=%20", &[("user-agent", "test"), ("x-removed", "1"), ("x-kept", "1")]),
        ("HEAD", "/", &[]),
        ("DELETE", "/x", &[("x-forwarded-for", "6.6.6.6"), ("x_forwarded_user", "root"), ("forwarded", "for=1.1.1.1")]),
        ("GET", "/api/deep?q", &[("cookie", "lb=nonsense; other=1")]),
        ("GET", "/api", &[("keep-alive", "timeout=5"), ("proxy-authorization", "Basic eA==")]),
        ("GET", "/moved/here?q=1", &[]),
        ("POST", "/moved/here", &[]),
        ("GET", "/closed", &[("accept", "application/json")]),
        ("OPTIONS", "/", &[("origin", "https://page.test"), ("access-control-request-method", "PUT")]),
        ("GET", "/", &[("origin", "https://page.test")]),
        ("GET", "/a//b", &[]),
        ("GET", "/status/404", &[]),
        ("GET", "/status/304", &[]),
        ("GET", "/bytes/200000", &[]),
        ("GET", "/%zz", &[]),
    ];
    for (method, path, headers) in table {
        let lean = send(edge.http, request(method, "web.test", path, headers)).await;
        let more: Vec<_> = headers.iter().copied().chain([BY_PINGORA]).collect();
        let full = send(edge.http, request(method, "web.test", path, &more)).await;
        assert_eq!(told(&lean), told(&full), "{method} {path}");
    }
}

/// Everything of an answer that is not different each time.
pub fn told(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let variable = ["date", "x-request-id", "connection"];
    let mut headers: Vec<_> = reply
        .headers
        .iter()
        .filter(|(name, _)| !variable.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    headers.sort();
    let id = reply.header("x-request-id").to_owned();
    let mut body = reply.body.replace(&id, "ID");
    if let Ok(serde_json::Value::Object(seen)) = serde_json::from_str(&body)
        && let Some(upstream) = seen.get("headers").and_then(|headers| headers.as_object())
    {
        // What the upstream saw, in any order, and not as long with the one header that makes the difference.
        let upstream: BTreeMap<_, _> = upstream.iter().filter(|(name, _)| *name != "te").collect();
        body = format!("{} {} {upstream:?}", seen["method"], seen["uri"]);
        headers.retain(|(name, _)| name != "content-length");
    }
    (reply.status, headers, body)
}

#[tokio::test]
async fn every_shape_of_an_answer_arrives_whole() {
    let table: [(&[u8], &str, &str); 8] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "200 OK", "\r\n\r\nhello"),
        (b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "200 OK", "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "200 OK", "\r\n\r\nhello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", "200 OK", "\r\n\r\nhello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "204 No Content", "\r\n\r\n"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 Not Modified", "\r\n\r\n"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "103 Early Hints", "\r\n\r\nok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "200 OK", "\r\n\r\nok"),
    ];
    for (answer, status, end) in table {
        let (address, _seen) = scripted(answer).await;
        let edge = Edge::with(&labelled(address)).await;
        let got = raw(edge.http, b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{got}");
        assert!(got.ends_with(end), "{answer:?}: {got}");
    }
}

#[tokio::test]
async fn an_answer_that_could_hide_another_is_refused() {
    let table: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"",
    ];
    for answer in table {
        let (address, _seen) = scripted(answer).await;
        let edge = Edge::with(&labelled(address)).await;
        let reply = get_path(edge.http, "web.test", "/").await;
        assert_eq!(reply.status, 502, "{}", String::from_utf8_lossy(answer));
        let line = &edge.log_lines(1).await[0];
        assert!(line["error"].as_str().unwrap().starts_with("upstream failed: upstream: "), "{line}");
    }
}

#[tokio::test]
async fn an_upstream_that_only_announces_its_answer_is_given_up() {
    let announcements = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(40);
    let (address, _seen) = scripted(announcements.leak().as_bytes()).await;
    let edge = Edge::with(&labelled(address)).await;
    let got = raw(edge.http, b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(got.matches("HTTP/1.1 103 ").count(), 32);
    assert_eq!(got.matches("HTTP/1.1 502 ").count(), 1, "{got}");
}

/// What an upload that failed had sent is told, and what follows it is not taken for a request.
#[tokio::test]
async fn an_upload_to_nobody_ends_its_connection() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let edge = Edge::with(&labelled(nobody)).await;
    let mut sent = b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 70000\r\n\r\n".to_vec();
    sent.extend_from_slice(&[b'x'; 70_000]);
    sent.extend_from_slice(b"GET /second HTTP/1.1\r\nHost: web.test\r\n\r\n");
    let got = raw(edge.http, &sent).await;
    assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("\r\nConnection: close\r\n"), "{got}");
    assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{got}");
}

/// Half an answer must never pass for a whole one: the connection ends as by a reset.
#[tokio::test]
async fn a_broken_answer_breaks_the_connection() {
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello".as_slice(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let (address, _seen) = scripted(answer).await;
        let edge = Edge::with(&labelled(address)).await;
        let mut stream = TcpStream::connect(edge.http).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
        let mut got = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut got)).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{}", String::from_utf8_lossy(&got));
    }
}

#[tokio::test]
async fn requests_that_arrive_together_are_answered_in_their_order() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let mut sent = String::new();
    for number in 0..20 {
        // Every third is pingora's: the connection goes over and comes back.
        let special = if number % 3 == 2 { "Te: trailers\r\n" } else { "" };
        sent.push_str(&format!(
            "POST /count HTTP/1.1\r\nHost: web.test\r\n{special}Content-Length: {number}\r\n\r\n{}",
            "x".repeat(number)
        ));
        if number % 3 == 2 {
            let got = raw_keep(&mut TcpStream::connect(edge.http).await.unwrap(), &sent, 3).await;
            let counts: Vec<_> = got.iter().map(String::as_str).collect();
            let wanted: Vec<_> = (number - 2..=number).map(|count| count.to_string()).collect();
            assert_eq!(counts, wanted);
            sent.clear();
        }
    }
}

/// A route that compresses is pingora's, request by request; what was sent ahead waits for its turn.
#[tokio::test]
async fn requests_that_arrive_together_on_a_route_of_pingora_are_all_answered() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address), ("skep.compress", "on")])).await;
    let sent: String = (0..5)
        .map(|number| format!("POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: {number}\r\n\r\n{}", "x".repeat(number)))
        .collect();
    let got = raw_keep(&mut TcpStream::connect(edge.http).await.unwrap(), &sent, 5).await;
    assert_eq!(got, ["0", "1", "2", "3", "4"]);
}

/// Sends text and reads `count` answers with their lengths.
async fn raw_keep(stream: &mut TcpStream, text: &str, count: usize) -> Vec<String> {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bodies = Vec::new();
    let mut buffer = Vec::new();
    let mut chunk = [0_u8; 4096];
    while bodies.len() < count {
        let text = String::from_utf8_lossy(&buffer).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            let length: usize = length.unwrap_or_else(|| panic!("{head}")).parse().unwrap();
            if rest.len() >= length {
                bodies.push(rest[..length].to_owned());
                buffer.drain(..head.len() + 4 + length);
                continue;
            }
        }
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut chunk)).await.expect("in time").unwrap();
        assert_ne!(read, 0, "closed after {bodies:?}, {buffer:?}");
        buffer.extend_from_slice(&chunk[..read]);
    }
    bodies
}

#[tokio::test]
async fn a_connection_serves_many_requests_over_both_paths() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    for number in 0..12 {
        let special = if number % 2 == 1 { "Te: trailers\r\n" } else { "" };
        let body = "x".repeat(number * 1000);
        let text = format!("POST /count HTTP/1.1\r\nHost: web.test\r\n{special}Content-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(raw_keep(&mut stream, &text, 1).await, [body.len().to_string()]);
    }
}

/// The upstream answers while the request's body is still coming, and goes on reading it.
#[tokio::test]
async fn both_bodies_flow_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut chunk = vec![0_u8; 65536];
        let mut head = Vec::new();
        while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let count = stream.read(&mut chunk).await.unwrap();
            head.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        let start = head.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        stream.write_all(&head[start..]).await.unwrap();
        loop {
            let count = stream.read(&mut chunk).await.unwrap();
            if count == 0 {
                return;
            }
            stream.write_all(&chunk[..count]).await.unwrap();
        }
    });
    let edge = Edge::with(&labelled(address)).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = tokio::spawn(async move {
        writer.write_all(b"POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
        for _ in 0..100 {
            writer.write_all(&[b'x'; 10_000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        writer
    });
    let mut got = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), reader.read_to_end(&mut got)).await.expect("in time").unwrap();
    sending.await.unwrap();
    assert!(got.ends_with(&[b'x'; 1_000_000]));
}

#[tokio::test]
async fn a_client_that_sends_no_more_still_gets_its_answer() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&labelled(upstream.address)).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /delay/700 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = String::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut got)).await.unwrap().unwrap();
    assert!(got.ends_with("late"), "{got}");
}

/// The upstream closes idle connections at any time; a request that meets such an end is sent again.
#[tokio::test]
async fn an_idle_connection_that_was_closed_costs_nobody_a_request() {
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
    let edge = Edge::with(&labelled(address)).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    for _ in 0..200 {
        assert_eq!(raw_keep(&mut stream, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n", 1).await, ["ok"]);
    }
}

#[tokio::test]
async fn a_slow_body_is_cut_and_said_so() {
    let upstream = Upstream::start("web").await;
    let text = upstream.address.to_string();
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &text), ("skep.timeout-idle", "300ms")])).await;
    let got = raw(edge.http, b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 10\r\n\r\nabc").await;
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    assert_eq!(upstream.seen(), 0, "a small body is read before the upstream is asked");
}

/// An upstream that hands each connection to the test once it carried a request's head.
pub async fn by_hand() -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                sender.send(stream).ok();
            });
        }
    });
    (address, receiver)
}

/// True if the other side ends the connection, one way or the other, long before any timeout would.
pub async fn ends(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.is_ok()
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn an_upstream_between_two_events_is_told_that_the_client_was_cut_off() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let mut client = TcpStream::connect(edge.http).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let mut upstream = seen.recv().await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n").await.unwrap();
    client.read_exact(&mut [0; 40]).await.unwrap();
    reset(client);
    assert!(ends(&mut upstream).await);
}

#[tokio::test]
async fn an_upload_that_breaks_off_under_its_answer_ends_for_the_upstream() {
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let mut client = TcpStream::connect(edge.http).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 100000\r\n\r\nabc").await.unwrap();
    let mut upstream = seen.recv().await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\nso far 3").await.unwrap();
    client.read_exact(&mut [0; 40]).await.unwrap();
    drop(client);
    assert!(ends(&mut upstream).await);
    let error = edge.log_lines(1).await.remove(0)["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("client: "), "{error}");
}

#[tokio::test]
async fn an_early_answer_to_an_upload_arrives_whole() {
    const LENGTH: usize = 500_000;
    let (address, mut seen) = by_hand().await;
    let edge = Edge::with(&labelled(address)).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // So that most of the answer still waits at the edge's side when the edge is done with it.
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let mut client = socket.connect(edge.http).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 900000000000\r\n\r\n").await.unwrap();
    let mut upstream = seen.recv().await.unwrap();
    // What it has not read makes a reset of its end, so it reads a while.
    tokio::spawn(async move {
        upstream.write_all(format!("HTTP/1.1 413 Payload Too Large\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes()).await.unwrap();
        upstream.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
    });
    let (mut reading, mut writing) = client.into_split();
    // The client does not see that it need not send on.
    tokio::spawn(async move { while writing.write_all(&[b'y'; 100_000]).await.is_ok() {} });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(reading.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 413 "));
    reading.read_exact(&mut vec![0; LENGTH]).await.expect("no reset before the answer is read");
}

#[tokio::test]
async fn a_client_that_reads_no_more_is_not_its_upstreams_fault() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let labels = [("skep.host", "web.test"), ("skep.address", &*address), ("skep.timeout-idle", "300ms")];
    let edge = Edge::with(&stack(&labels)).await;
    let mut client = TcpStream::connect(edge.http).await.unwrap();
    client.write_all(b"GET /bytes/60000000 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let line = edge.log_lines(1).await.remove(0);
    assert_eq!((line["status"].as_u64(), line["error"].as_str()), (Some(200), Some("client: timed out")));
    let metrics = get_path(edge.admin, "localhost", "/metrics").await.body;
    let failures: Vec<_> = metrics.lines().filter(|line| line.starts_with("skep_upstream_failures_total{")).collect();
    assert!(failures.len() == 1 && failures[0].ends_with(" 0"), "{failures:?}");
}

#[tokio::test]
async fn a_trickling_body_is_cut_by_the_limit_for_the_whole_request() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let labels = [("skep.host", "web.test"), ("skep.address", &*address), ("skep.timeout-request", "600ms")];
    let edge = Edge::with(&stack(&labels)).await;
    let mut client = TcpStream::connect(edge.http).await.unwrap();
    client.write_all(b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let (mut reading, mut writing) = client.split();
    let trickle = async {
        while writing.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut head = [0; 20];
    tokio::select! {
        result = tokio::time::timeout(Duration::from_secs(10), reading.read_exact(&mut head)) => drop(result.expect("in time").unwrap()),
        () = trickle => panic!("no answer"),
    }
    assert!(head.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&head));
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn an_answer_may_have_many_fields() {
    let fields: String = (0..200).map(|number| format!("X-{number}: {number}\r\n")).collect();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok");
    let (address, _seen) = scripted(answer.leak().as_bytes()).await;
    let edge = Edge::with(&labelled(address)).await;
    let got = raw(edge.http, b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("\r\nX-199: 199\r\n"), "{got}");
}
