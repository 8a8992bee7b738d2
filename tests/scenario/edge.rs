//! Requests through the real proxy to real upstreams, no Docker: what goes in, what comes out.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::*;

#[tokio::test]
async fn a_request_reaches_the_service_of_its_host() {
    let one = Upstream::start("one").await;
    let two = Upstream::start("two").await;
    let edge = Edge::with(&services(&[
        ("one", &[("skep.host", "one.test"), ("skep.address", &one.address.to_string())]),
        ("two", &[("skep.host", "two.test"), ("skep.path", "/api"), ("skep.address", &two.address.to_string())]),
    ]))
    .await;
    // host, path, status, upstream
    let table = [
        ("one.test", "/", 200, "one"),
        ("ONE.test:80", "/any/path?q=1", 200, "one"),
        ("one.test.", "/", 200, "one"),
        ("two.test", "/api", 200, "two"),
        ("two.test", "/api/x", 200, "two"),
        ("two.test", "/apix", 404, ""),
        ("two.test", "/", 404, ""),
        ("three.test", "/", 404, ""),
    ];
    for (host, path, status, name) in table {
        let reply = get_path(edge.http, host, path).await;
        assert_eq!((reply.status, reply.header("x-upstream")), (status, name), "{host}{path}");
        assert!(!reply.header("x-request-id").is_empty());
    }
}

#[tokio::test]
async fn the_upstream_is_told_who_asks_and_strangers_are_not_believed() {
    let upstream = Upstream::start("web").await;
    let labels = [("skep.host", "web.test"), ("skep.address", &*upstream.address.to_string())];
    let lies = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.test"),
        ("forwarded", "for=6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("x-request-id", "mine"),
        ("x_forwarded_for", "6.6.6.6"),
        ("x-forwarded-user", "admin"),
        ("connection", "keep-alive, x-secret"),
        ("x-secret", "hop"),
        ("proxy-authorization", "Basic x"),
    ];
    let edge = Edge::with(&stack(&labels)).await;
    let reply = send(edge.http, request("GET", "web.test", "/", &lies)).await;
    let expected = [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "web.test"),
        ("x-forwarded-port", &*edge.http.port().to_string()),
        ("forwarded", "for=127.0.0.1;host=\"web.test\";proto=http"),
        ("x_forwarded_for", ""),
        ("x-forwarded-user", ""),
        ("x-secret", ""),
        ("proxy-authorization", ""),
        ("host", "web.test"),
    ];
    for (name, value) in expected {
        assert_eq!(reply.upstream_saw(name), value, "{name}");
    }
    assert_eq!(reply.upstream_saw("x-request-id"), reply.header("x-request-id"));
    assert_ne!(reply.header("x-request-id"), "mine");
    assert_eq!(reply.header("keep-alive"), "", "hop-by-hop headers of the upstream stay behind");

    let trusting = Edge::with_config(&stack(&labels), |config| config.proxy.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let reply = send(trusting.http, request("GET", "web.test", "/", &lies)).await;
    assert_eq!(reply.upstream_saw("x-forwarded-for"), "6.6.6.6, 127.0.0.1");
    assert_eq!(reply.upstream_saw("x-forwarded-proto"), "https");
    assert_eq!(reply.header("x-request-id"), "mine");
}

#[tokio::test]
async fn our_own_answers_fit_the_client_and_carry_the_request_id() {
    let edge = Edge::with(&stack(&[("skep.host", "away.test"), ("skep.address", "127.0.0.1:1")])).await;
    let table = [("text/html", "<!DOCTYPE html>"), ("application/json", "{\"status\":"), ("*/*", "502 Bad Gateway")];
    for (accept, begins) in table {
        let reply = send(edge.http, request("GET", "away.test", "/", &[("accept", accept)])).await;
        assert_eq!(reply.status, 502);
        assert!(reply.body.starts_with(begins), "{accept}: {}", reply.body);
        assert!(reply.body.contains(reply.header("x-request-id")), "{accept}");
    }
    let line = &edge.log_lines(3).await[0];
    assert!(line["error"].as_str().unwrap().contains("connect"), "{line}");
}

#[tokio::test]
async fn a_failed_connect_is_tried_on_another_task() {
    let upstream = Upstream::start("alive").await;
    let address = format!("127.0.0.1:1, {}, 127.0.0.1:2", upstream.address);
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address)])).await;
    for number in 0..40 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        assert_eq!(send(edge.http, request(method, "web.test", "/", &[])).await.status, 200);
    }
    assert_eq!(upstream.seen(), 40);
}

#[tokio::test]
async fn slow_upstreams_answer_504_and_fast_ones_are_not_hurt() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &address),
        ("skep.timeout-response", "300ms"),
        ("skep.timeout-idle", "300ms"),
    ]))
    .await;
    let began = Instant::now();
    let (slow, fast) = tokio::join!(get_path(edge.http, "web.test", "/delay/3000"), get_path(edge.http, "web.test", "/delay/1"));
    assert_eq!((slow.status, fast.status), (504, 200));
    assert!(began.elapsed() < Duration::from_millis(2500));
}

#[tokio::test]
async fn a_response_timeout_shorter_than_the_idle_time_holds() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &upstream.address.to_string()),
        ("skep.timeout-response", "300ms"),
        ("skep.timeout-idle", "30s"),
    ]))
    .await;
    assert_eq!(get_path(edge.http, "web.test", "/delay/3000").await.status, 504);
    // Events half a second apart are a matter of the idle time, not of the response time.
    let reply = get_path(edge.http, "web.test", "/events").await;
    assert_eq!(reply.body, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
}

#[tokio::test]
async fn a_request_timeout_bounds_the_whole_request() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &upstream.address.to_string()),
        ("skep.timeout-request", "700ms"),
    ]))
    .await;
    assert_eq!(get_path(edge.http, "web.test", "/delay/3000").await.status, 504);
    let answer = raw(edge.http, b"GET /events HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert!(answer.contains("data: 1") && !answer.contains("data: 2"), "{answer}");
}

#[tokio::test]
async fn uploads_and_downloads_stream_whole() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let size = 50 * 1024 * 1024;
    let mut upload = request("POST", "web.test", "/count", &[]);
    *upload.body_mut() = Full::from(vec![b'y'; size]);
    assert_eq!(send(edge.http, upload).await.body, size.to_string());
    assert_eq!(get_path(edge.http, "web.test", &format!("/bytes/{size}")).await.body.len(), size);
}

#[tokio::test]
async fn server_sent_events_are_not_held_back() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    let began = Instant::now();
    let mut seen = String::new();
    let mut chunk = [0_u8; 1024];
    while !seen.contains("data: 0") {
        let count = stream.read(&mut chunk).await.unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    assert!(began.elapsed() < Duration::from_millis(450) && !seen.contains("data: 1"), "{seen}");
}

#[tokio::test]
async fn websockets_pass_both_ways() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.test/ws", stream).await.unwrap();
    for size in [5, 100_000] {
        let sent = "w".repeat(size);
        socket.send(sent.clone().into()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), sent);
    }
    socket.close(None).await.unwrap();
}

/// Speaks a made-up protocol after its 101.
async fn switching_upstream() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                if !head.contains("upgrade: tunnel/1") {
                    let body = if head.contains("upgrade") { "upgrade seen" } else { "no upgrade" };
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    return stream.write_all(answer.as_bytes()).await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tunnel/1\r\n\r\n").await.unwrap();
                let mut chunk = [0_u8; 100];
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    stream.write_all(&chunk[..count]).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn other_upgrades_pass_but_not_to_http_itself() {
    let address = switching_upstream().await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: tunnel/1\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"through the tunnel").await.unwrap();
    let mut echoed = [0_u8; 18];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"through the tunnel");

    let smuggle =
        b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n";
    let answer = raw(edge.http, smuggle).await;
    assert!(answer.ends_with("no upgrade"), "{answer}");
}

/// An h2c upstream that answers a gRPC call with trailers.
async fn grpc_upstream() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((mut request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        assert_eq!(request.headers()["te"], "trailers");
                        let mut got = Vec::new();
                        while let Some(Ok(chunk)) = request.body_mut().data().await {
                            got.extend_from_slice(&chunk);
                        }
                        let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut body = respond.send_response(response, false).unwrap();
                        body.send_data(got.into(), false).unwrap();
                        let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                        body.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn grpc_keeps_its_trailers_over_cleartext_http2() {
    let upstream = grpc_upstream().await;
    let edge = Edge::with(&stack(&[("skep.host", "grpc.test"), ("skep.scheme", "grpc"), ("skep.address", &upstream.to_string())])).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::post("http://grpc.test/pkg.Service/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data("\0\0\0\0\x05hello".into(), true).unwrap();
        let mut response = response.await.unwrap();
        let mut got = Vec::new();
        while let Some(chunk) = response.body_mut().data().await {
            got.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(got, b"\0\0\0\0\x05hello");
        assert_eq!(response.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn cleartext_http2_and_http1_share_the_port() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let (response, _) = client.send_request(http::Request::get("http://web.test/x").body(()).unwrap(), true).unwrap();
    assert_eq!(response.await.unwrap().headers()["x-upstream"], "web");
    // Shorter than the preface of HTTP/2: must not wait for more.
    assert!(raw(edge.http, b"GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1."));
}

#[tokio::test]
async fn expect_continue_is_answered_and_the_body_arrives() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream
        .write_all(b"POST /count HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0_u8; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100");
    stream.write_all(b"12345").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("200 OK") && rest.contains('5'), "{rest}");
}

#[tokio::test]
async fn malformed_requests_are_refused_and_reach_nobody() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]), |config| {
        config.proxy.max_header_bytes = 8192
    })
    .await;
    let huge = format!("GET / HTTP/1.1\r\nHost: web.test\r\nX-Big: {}\r\n\r\n", "b".repeat(9000));
    let table: [(&str, &[u8], &str); 9] = [
        ("no host", b"GET / HTTP/1.1\r\n\r\n", "400"),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: web.test\r\nHost: b.test\r\n\r\n", "400"),
        ("both framings", b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"),
        ("odd encoding", b"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: identity\r\n\r\n", "400"),
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
        ("a host that is none", b"GET / HTTP/1.1\r\nHost: web.test/../x\r\n\r\n", "400"),
        ("a huge header", huge.as_bytes(), "431"),
        ("connect", b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n", "405"),
    ];
    for (what, bytes, status) in table {
        let answer = raw(edge.http, bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
    }
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn a_slow_head_is_cut_and_keep_alive_is_not_mistaken_for_one() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]), |config| {
        config.proxy.header_timeout = Duration::from_millis(600)
    })
    .await;
    let mut slow = TcpStream::connect(edge.http).await.unwrap();
    let began = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nHost: web.test\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
        if slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert!(began.elapsed() < Duration::from_secs(6));
    assert_eq!(upstream.seen(), 0);

    let mut patient = TcpStream::connect(edge.http).await.unwrap();
    for _ in 0..3 {
        patient.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
        let mut chunk = [0_u8; 4096];
        let count = patient.read(&mut chunk).await.unwrap();
        assert!(chunk[..count].starts_with(b"HTTP/1.1 200"));
        // Longer than the head's limit, but no head has begun.
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
}

#[tokio::test]
async fn paths_are_worked_on_as_labelled() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&services(&[
        ("strip", &[("skep.host", "strip.test"), ("skep.path", "/app"), ("skep.strip-prefix", "/app"), ("skep.address", &address)]),
        ("add", &[("skep.host", "add.test"), ("skep.add-prefix", "/v1"), ("skep.address", &address)]),
        ("both", &[("skep.host", "both.test"), ("skep.strip-prefix", "/old"), ("skep.add-prefix", "/new"), ("skep.address", &address)]),
        ("replace", &[("skep.host", "replace.test"), ("skep.replace-path", "/only"), ("skep.address", &address)]),
    ]))
    .await;
    let table = [
        ("strip.test", "/app/a?b=c", "/a?b=c", "/app"),
        ("strip.test", "/app", "/", "/app"),
        ("add.test", "/x", "/v1/x", ""),
        ("both.test", "/old/x", "/new/x", "/old"),
        ("replace.test", "/anything?q=1", "/only?q=1", ""),
    ];
    for (host, path, seen, prefix) in table {
        let reply = get_path(edge.http, host, path).await;
        assert_eq!(reply.json()["uri"], seen, "{host}{path}");
        assert_eq!(reply.upstream_saw("x-forwarded-prefix"), prefix, "{host}{path}");
    }
}

#[tokio::test]
async fn redirects_keep_path_and_query() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "www.test"),
        ("skep.redirect-from", "old.test, older.test"),
        ("skep.address", &upstream.address.to_string()),
    ]))
    .await;
    let port = edge.http.port();
    for (method, status) in [("GET", 301), ("HEAD", 301), ("POST", 308)] {
        let reply = send(edge.http, request(method, "older.test", "/a/b?c=d", &[])).await;
        assert_eq!((reply.status, reply.header("location")), (status, &*format!("http://www.test:{port}/a/b?c=d")), "{method}");
    }
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn headers_cors_and_sticky_sessions() {
    let one = Upstream::start("one").await;
    let two = Upstream::start("two").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &format!("{}, {}", one.address, two.address)),
        ("skep.request-header", "X-Added: yes\n-X-Unwanted"),
        ("skep.response-header", "X-Frame-Options: DENY\n-Server"),
        ("skep.cors", "https://app.test"),
        ("skep.sticky", "stick"),
    ]))
    .await;
    let reply = send(edge.http, request("GET", "web.test", "/", &[("x-unwanted", "1"), ("origin", "https://app.test")])).await;
    assert_eq!((reply.upstream_saw("x-added").as_str(), reply.upstream_saw("x-unwanted").as_str()), ("yes", ""));
    assert_eq!((reply.header("x-frame-options"), reply.header("server")), ("DENY", ""));
    assert_eq!(reply.header("access-control-allow-origin"), "https://app.test");
    let cookie = reply.header("set-cookie").split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("stick=") && reply.header("set-cookie").contains("HttpOnly"));
    let name = reply.header("x-upstream").to_owned();
    for _ in 0..20 {
        let reply = send(edge.http, request("GET", "web.test", "/", &[("cookie", &cookie)])).await;
        assert_eq!(reply.header("x-upstream"), name);
        assert_eq!(reply.header("set-cookie"), "");
    }
    let preflight = [("origin", "https://app.test"), ("access-control-request-method", "PUT")];
    let reply = send(edge.http, request("OPTIONS", "web.test", "/", &preflight)).await;
    assert_eq!((reply.status, reply.header("access-control-allow-methods")), (204, "PUT"));
}

#[tokio::test]
async fn a_canary_gets_its_share() {
    let old = Upstream::start("old").await;
    let new = Upstream::start("new").await;
    let edge = Edge::with(&services(&[
        ("old", &[("skep.host", "web.test"), ("skep.weight", "3"), ("skep.address", &old.address.to_string())]),
        ("new", &[("skep.host", "web.test"), ("skep.weight", "1"), ("skep.address", &new.address.to_string())]),
    ]))
    .await;
    for _ in 0..200 {
        get_path(edge.http, "web.test", "/").await;
    }
    // 50 expected, standard deviation 6.
    assert!((20..=80).contains(&new.seen()), "{} of 200", new.seen());
    assert_eq!(old.seen() + new.seen(), 200);
}

#[tokio::test]
async fn what_protects_fails_closed() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&services(&[
        ("group", &[("com.sismics.docker.auth", "teedy"), ("skep.host", "group.test"), ("skep.address", &address)]),
        ("typo", &[("skep.auht", "teedy"), ("skep.host", "typo.test"), ("skep.address", &address)]),
        ("cidr", &[("skep.allow", "10.0.0.0/99"), ("skep.host", "cidr.test"), ("skep.address", &address)]),
        ("allow", &[("skep.allow", "10.0.0.0/8"), ("skep.host", "allow.test"), ("skep.address", &address)]),
        ("open", &[("skep.host", "open.test"), ("skep.address", &address)]),
    ]))
    .await;
    let table = [("group.test", 503), ("typo.test", 503), ("cidr.test", 503), ("allow.test", 403), ("open.test", 200)];
    for (host, status) in table {
        assert_eq!(get_path(edge.http, host, "/").await.status, status, "{host}");
    }
    assert_eq!(upstream.seen(), 1);
}

#[tokio::test]
async fn maintenance_answers_503_until_it_ends() {
    let upstream = Upstream::start("web").await;
    let address = upstream.address.to_string();
    let edge = Edge::with(&services(&[
        ("on", &[("skep.host", "on.test"), ("skep.maintenance", "on"), ("skep.address", &address)]),
        ("later", &[("skep.host", "later.test"), ("skep.maintenance", "2999-01-01T00:00:00Z"), ("skep.address", &address)]),
        ("over", &[("skep.host", "over.test"), ("skep.maintenance", "2001-01-01T00:00:00Z"), ("skep.address", &address)]),
    ]))
    .await;
    for (host, status) in [("on.test", 503), ("later.test", 503), ("over.test", 200)] {
        assert_eq!(get_path(edge.http, host, "/").await.status, status, "{host}");
    }
}

#[tokio::test]
async fn a_stop_finishes_what_flows_and_accepts_nothing_new() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let address = edge.http;
    let flowing = tokio::spawn(async move { get_path(address, "web.test", "/delay/1500").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cut = edge.running.stop().await;
    let reply = flowing.await.unwrap();
    assert_eq!((reply.status, reply.body.as_str(), cut), (200, "late", 0));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_changed_stack_file_changes_the_routes_while_requests_flow() {
    let one = Upstream::start("one").await;
    let two = Upstream::start("two").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &one.address.to_string())])).await;
    let address = edge.http;
    let flow = tokio::spawn(async move {
        let mut failed = 0;
        for _ in 0..300 {
            failed += usize::from(get_path(address, "web.test", "/").await.status != 200);
        }
        failed
    });
    let file = edge.directory.path().join("stack.yml");
    std::fs::write(&file, stack(&[("skep.host", "web.test"), ("skep.address", &two.address.to_string())])).unwrap();
    let began = Instant::now();
    while get_path(edge.http, "web.test", "/").await.header("x-upstream") != "two" {
        assert!(began.elapsed() < Duration::from_secs(10), "the new file was never seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(flow.await.unwrap(), 0);
}

#[tokio::test]
async fn metrics_and_routes_tell_what_happened() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    for _ in 0..5 {
        get_path(edge.http, "web.test", "/status/418").await;
    }
    edge.log_lines(5).await;
    let metrics = get_path(edge.admin, "admin", "/metrics").await.body;
    let counted = metrics
        .lines()
        .any(|line| line.starts_with("skep_requests_total{") && line.contains("\"web\"") && line.contains("418") && line.ends_with(" 5"));
    assert!(counted, "{metrics}");
    assert_eq!(get_path(edge.admin, "admin", "/health").await.status, 200);
    assert!(get_path(edge.admin, "admin", "/routes").await.body.contains("web.test"));
}

#[tokio::test]
async fn the_client_that_leaves_is_logged_as_such() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /delay/5000 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // A reset: a mere end of what it sends would leave a client waiting for its answer.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(edge.log_lines(1).await[0]["status"], 499);
}

/// Flat memory is a matter of back-pressure: a reader that does not read must stop the upstream, not fill us.
#[tokio::test]
async fn a_client_that_does_not_read_stops_the_upstream() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"GET /bytes/200000000 HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let before = resident();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 60 * 1024 * 1024, "{grown} bytes held for a client that does not read");
    let mut total = 0_usize;
    let mut chunk = vec![0_u8; 1 << 16];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        total += count;
    }
    assert!(total >= 200_000_000);
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_body_collects_through_http2_too() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = Full::<axum::body::Bytes>::from(vec![b'z'; 3_000_000]);
    let upload = http::Request::post("http://web.test/count").body(body).unwrap();
    let reply = sender.send_request(upload).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "3000000");
}

#[tokio::test]
async fn a_reload_takes_effect_and_an_unusable_one_changes_nothing() {
    let upstream = Upstream::start("web").await;
    let mut edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())])).await;
    let believed = async |edge: &Edge| {
        let sent = request("GET", "web.test", "/", &[("x-forwarded-proto", "https")]);
        send(edge.http, sent).await.upstream_saw("x-forwarded-proto") == "https"
    };
    assert!(!believed(&edge).await);
    let text = std::sync::Arc::new(std::sync::Mutex::new("[proxy]\ntrusted-proxies = [\"127.0.0.0/8\"]\n"));
    let read = text.clone();
    edge.running.reload_from(Box::new(move || {
        let (config, findings) = skep::config::parse("skep.toml", *read.lock().unwrap(), &[]);
        config.ok_or(findings)
    }));
    edge.running.reload();
    let began = Instant::now();
    while !believed(&edge).await {
        assert!(began.elapsed() < Duration::from_secs(5), "the new configuration never took effect");
    }
    *text.lock().unwrap() = "[proxy]\ntrusted-proxys = []\n";
    edge.running.reload();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(believed(&edge).await, "an unusable configuration must change nothing");
}

#[tokio::test]
async fn an_upgraded_connection_outlives_the_response_timeout() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &upstream.address.to_string()),
        ("skep.timeout-response", "300ms"),
    ]))
    .await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.test/ws", stream).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    socket.send("still here".into()).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap(), "still here");
}

#[tokio::test]
async fn a_slow_answer_outlives_the_idle_time_when_labelled_so() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with(&stack(&[
        ("skep.host", "web.test"),
        ("skep.address", &upstream.address.to_string()),
        ("skep.timeout-response", "60m"),
        ("skep.timeout-idle", "300ms"),
    ]))
    .await;
    assert_eq!(get_path(edge.http, "web.test", "/delay/1200").await.status, 200);
}

#[tokio::test]
async fn the_head_limit_is_not_for_http2_streams_that_flow() {
    let upstream = Upstream::start("web").await;
    let edge = Edge::with_config(&stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]), |config| {
        config.proxy.header_timeout = Duration::from_millis(300);
    })
    .await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    let get = |path: &str| http::Request::get(format!("http://web.test{path}")).body(()).unwrap();
    let (slow, _) = client.send_request(get("/delay/1500"), true).unwrap();
    let (quick, _) = client.send_request(get("/"), true).unwrap();
    assert_eq!(quick.await.unwrap().status(), 200);
    // Bytes that are no head, after a request has ended and while another flows.
    pings.ping(h2::Ping::opaque()).await.unwrap();
    assert_eq!(slow.await.unwrap().status(), 200);
}
