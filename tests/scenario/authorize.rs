//! `forward-auth`: somebody else is asked about each request, and nothing but a clear yes opens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tokio::net::TcpListener;

use crate::harness::*;

/// An authorizer that lets in who has the cookie `in=yes`, and does strange things on other paths.
struct Authorizer {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

async fn answer(headers: http::HeaderMap) -> Response {
    let field = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let uri = field("x-forwarded-uri");
    match uri.split('?').next().unwrap() {
        "/error" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            StatusCode::OK.into_response()
        }
        "/long" => (StatusCode::FORBIDDEN, "x".repeat(100_000)).into_response(),
        "/forbidden" => (StatusCode::FORBIDDEN, [("x-why", "no")], "not you").into_response(),
        "/echo" => {
            let all: Vec<String> = headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap_or("?"))).collect();
            (StatusCode::FORBIDDEN, all.join("\n")).into_response()
        }
        _ if field("cookie").contains("in=yes") => {
            let said = [("x-forwarded-user", "zoe"), ("x-forwarded-groups", "a,b"), ("set-cookie", "seen=1; Path=/"), ("x-other", "1")];
            (StatusCode::NO_CONTENT, said).into_response()
        }
        _ => (StatusCode::FOUND, [("location", "https://login.test/?back=1"), ("set-cookie", "state=1")], "sign in there").into_response(),
    }
}

impl Authorizer {
    async fn start() -> Authorizer {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let count = move |request: Request, next: axum::middleware::Next| {
            counted.fetch_add(1, Ordering::SeqCst);
            next.run(request)
        };
        let router = Router::new().fallback(answer).layer(axum::middleware::from_fn(count));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Authorizer { address, asked }
    }
}

async fn edge(upstream: &Upstream, url: &str) -> Edge {
    let stack = format!(
        "services:\n  web:\n    labels:\n      skep.host: web.test\n      skep.address: {}\n      skep.forward-auth: {url}\n      skep.auth-bypass: /open\n      skep.cors: https://other.test\n",
        upstream.address
    );
    Edge::with(&stack).await
}

#[tokio::test]
async fn only_a_clear_yes_opens() {
    let (upstream, authorizer) = (Upstream::start("web").await, Authorizer::start().await);
    let edge = edge(&upstream, &format!("http://{}/verify", authorizer.address)).await;
    let ask = |path: &'static str, cookie: &'static str| {
        let edge = edge.http;
        async move { send(edge, request("GET", "web.test", path, &[("cookie", cookie), ("accept", "*/*")])).await }
    };
    let reply = ask("/x?y=1", "in=yes; skep=secret").await;
    assert_eq!(reply.status, 200);
    assert_eq!((reply.upstream_saw("x-forwarded-user"), reply.upstream_saw("x-forwarded-groups")), ("zoe".into(), "a,b".into()));
    assert_eq!((reply.upstream_saw("x-other"), reply.upstream_saw("cookie")), (String::new(), "in=yes".into()));
    assert_eq!(reply.header("set-cookie"), "seen=1; Path=/");

    let reply = ask("/x", "").await;
    assert_eq!((reply.status, reply.header("location"), reply.header("set-cookie")), (302, "https://login.test/?back=1", "state=1"));
    assert_eq!(reply.body, "sign in there");
    let reply = ask("/forbidden", "in=yes").await;
    assert_eq!((reply.status, reply.header("x-why"), reply.body.as_str()), (403, "no", "not you"));
    for path in ["/error", "/long"] {
        let reply = ask(path, "in=yes").await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, "5"), "{path}");
    }
    assert_eq!(upstream.seen(), 1, "nobody else got through");

    let before = authorizer.asked.load(Ordering::SeqCst);
    assert_eq!(ask("/open/hook", "").await.status, 200);
    let preflight = [("origin", "https://other.test"), ("access-control-request-method", "PUT")];
    assert_eq!(send(edge.http, request("OPTIONS", "web.test", "/x", &preflight)).await.status, 204);
    assert_eq!(authorizer.asked.load(Ordering::SeqCst), before, "what stays open is nobody's question");
}

#[tokio::test]
async fn it_is_told_what_really_is_asked() {
    let (upstream, authorizer) = (Upstream::start("web").await, Authorizer::start().await);
    let edge = edge(&upstream, &format!("http://{}/verify?mode=x", authorizer.address)).await;
    let sent = [
        ("x-forwarded-uri", "/open"),
        ("x_forwarded_uri", "/open"),
        ("x-original-url", "http://web.test/open"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x_forwarded_user", "root"),
        ("authorization", "Bearer token"),
        ("cookie", "a=1; __Host-skep-browser=secret"),
    ];
    let reply = send(edge.http, request("DELETE", "web.test", "/echo?a=%20b&c=%2F", &sent)).await;
    assert_eq!(reply.status, 403);
    let told: Vec<&str> = reply.body.lines().collect();
    for line in [
        "x-forwarded-method=DELETE",
        "x-forwarded-uri=/echo?a=%20b&c=%2F",
        "x-forwarded-host=web.test",
        "x-forwarded-proto=http",
        "x-forwarded-for=127.0.0.1",
        "x-original-url=http://web.test/echo?a=%20b&c=%2F",
        "authorization=Bearer token",
        "cookie=a=1",
    ] {
        assert!(told.contains(&line), "{line}: {told:?}");
    }
    assert!(!reply.body.contains("6.6.6.6") && !reply.body.contains("root") && !reply.body.contains("x_forwarded"), "{told:?}");
}

#[tokio::test]
async fn a_body_still_arrives_whole_and_a_websocket_is_asked_about_too() {
    let (upstream, authorizer) = (Upstream::start("web").await, Authorizer::start().await);
    let edge = edge(&upstream, &format!("http://{}/", authorizer.address)).await;
    let body = vec![b'x'; 300_000];
    let request = http::Request::post("/count").header("host", "web.test").header("cookie", "in=yes");
    let reply = send(edge.http, request.body(http_body_util::Full::from(body)).unwrap()).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "300000"));
    let switch = "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let (out, within) = (format!("{switch}Connection: close\r\n\r\n"), format!("{switch}Cookie: in=yes\r\n\r\n"));
    assert!(raw(edge.http, out.as_bytes()).await.starts_with("HTTP/1.1 302"), "asked about");
    let mut stream = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, within.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 101");
}

#[tokio::test]
async fn one_that_is_away_or_too_slow_closes_and_holds_nobody_else_up() {
    let (upstream, authorizer) = (Upstream::start("web").await, Authorizer::start().await);
    let slow = edge(&upstream, &format!("http://{}/", authorizer.address)).await;
    let asking = tokio::spawn(send(slow.http, request("GET", "web.test", "/slow", &[("cookie", "in=yes")])));
    assert_eq!(send(slow.http, request("GET", "web.test", "/x", &[("cookie", "in=yes")])).await.status, 200);
    let away = edge(&upstream, &format!("http://127.0.0.1:{}/", free_port())).await;
    assert_eq!(send(away.http, request("GET", "web.test", "/x", &[("cookie", "in=yes")])).await.status, 503);
    assert_eq!(asking.await.unwrap().status, 503, "it had its time");
    let lines = away.log_lines(1).await;
    assert!(lines[0]["error"].as_str().unwrap().contains("authorizer"), "{lines:?}");
}
