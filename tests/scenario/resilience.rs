//! Tasks that fail in all the ways they do, behind the real edge: requests go elsewhere, and nothing is carried out twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// How a task misbehaves, once it has read a request's head (or not even that).
#[derive(Clone, Copy, Debug)]
enum Vice {
    ClosesAtOnce,
    ClosesAfterTheHead,
    NeverAnswers,
    BreaksInItsHead,
    Answers(u16),
    /// Answers one request on a connection, and closes it when the next one comes.
    ForgetsKeptConnections,
}

/// A task with a vice. `heads` counts the requests whose head it read.
struct Sick {
    address: SocketAddr,
    heads: Arc<AtomicUsize>,
}

impl Sick {
    async fn start(vice: Vice) -> Sick {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(misbehave(stream, vice, counted.clone()));
            }
        });
        Sick { address, heads }
    }

    fn heads(&self) -> usize {
        self.heads.load(Ordering::SeqCst)
    }
}

async fn misbehave(mut stream: TcpStream, vice: Vice, heads: Arc<AtomicUsize>) {
    if matches!(vice, Vice::ClosesAtOnce) {
        return;
    }
    let mut first = true;
    loop {
        let (mut text, mut piece) = (Vec::new(), [0_u8; 4096]);
        while !text.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut piece).await {
                Ok(1..) => text.extend_from_slice(&piece),
                _ => return,
            }
        }
        heads.fetch_add(1, Ordering::SeqCst);
        match vice {
            Vice::NeverAnswers => return std::future::pending().await,
            Vice::BreaksInItsHead => return drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await),
            Vice::Answers(status) => {
                let answer = format!("HTTP/1.1 {status} Sick\r\nX-Upstream: sick\r\nContent-Length: 4\r\n\r\nsick");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            Vice::ForgetsKeptConnections if first => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nX-Upstream: forgetful\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            Vice::ClosesAtOnce | Vice::ClosesAfterTheHead | Vice::ForgetsKeptConnections => return,
        }
        first = false;
    }
}

async fn edge_for(addresses: &[SocketAddr], labels: &[(&str, &str)]) -> Edge {
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let own = [("skep.host", "web.test"), ("skep.address", &*addresses)];
    Edge::with(&stack(&own.iter().chain(labels).copied().collect::<Vec<_>>())).await
}

async fn metric(edge: &Edge, name: &str) -> f64 {
    let text = get_path(edge.admin, "localhost", "/metrics").await.body;
    let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn idempotent_requests_go_elsewhere_and_the_sick_task_is_ejected() {
    for vice in [Vice::ClosesAtOnce, Vice::ClosesAfterTheHead, Vice::BreaksInItsHead, Vice::Answers(503), Vice::Answers(502)] {
        let (sick, well) = (Sick::start(vice).await, Upstream::start("well").await);
        let edge = edge_for(&[sick.address, well.address], &[]).await;
        for number in 0..40 {
            let method = ["GET", "PUT", "DELETE"][number % 3];
            let reply = send(edge.http, request(method, "web.test", "/", &[])).await;
            assert_eq!((reply.status, reply.header("x-upstream")), (200, "well"), "{vice:?} {method}");
        }
        assert_eq!(well.seen(), 40);
        assert!(sick.heads() <= 5, "{vice:?}: ejected after five failures, yet it saw {}", sick.heads());
        assert_eq!(metric(&edge, "skep_upstream_ejected").await, 1.0, "{vice:?}");
        assert_eq!(metric(&edge, "skep_retries_total").await, 5.0, "{vice:?}");
        let routes = get_path(edge.admin, "localhost", "/routes").await.body;
        assert!(routes.contains("ejected for") && routes.contains("after 5 failures"), "{routes}");
    }
}

#[tokio::test]
async fn people_are_told_which_task_gets_nothing_and_why() {
    let (sick, well) = (Sick::start(Vice::ClosesAtOnce).await, Upstream::start("well").await);
    let edge = edge_for(&[sick.address, well.address], &[]).await;
    for _ in 0..40 {
        get_path(edge.http, "web.test", "/").await;
    }
    let reason = format!("{} gets nothing: ejected for", sick.address);
    for (command, wanted) in [(&["routes"][..], &*reason), (&["explain", "http://web.test/"], "gets nothing: ejected for")] {
        let mut skep = std::process::Command::new(env!("CARGO_BIN_EXE_skep"));
        skep.args(command).args(["--admin", &edge.admin.to_string()]);
        // The edge is in this process and must go on meanwhile.
        let output = tokio::task::spawn_blocking(move || skep.output().unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(wanted), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_task_that_accepts_and_never_answers_is_gone_round() {
    let (sick, well) = (Sick::start(Vice::NeverAnswers).await, Upstream::start("well").await);
    let edge = edge_for(&[sick.address, well.address], &[("skep.timeout-response", "150ms")]).await;
    let began = Instant::now();
    for _ in 0..40 {
        assert_eq!(get_path(edge.http, "web.test", "/").await.header("x-upstream"), "well");
    }
    assert_eq!((well.seen(), sick.heads()), (40, 5));
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_post_is_never_sent_twice() {
    for vice in [Vice::ClosesAfterTheHead, Vice::BreaksInItsHead, Vice::Answers(503), Vice::NeverAnswers] {
        let (sick, well) = (Sick::start(vice).await, Upstream::start("well").await);
        let edge = edge_for(&[sick.address, well.address], &[("skep.timeout-response", "100ms")]).await;
        let mut failed = 0;
        for _ in 0..30 {
            let reply = send(edge.http, request("POST", "web.test", "/", &[])).await;
            failed += usize::from(reply.header("x-upstream") != "well");
        }
        assert_eq!(well.seen() + sick.heads(), 30, "{vice:?}: each was sent once");
        assert_eq!(failed, sick.heads());
        assert_eq!(failed, 5, "{vice:?}: then it is ejected");
    }
}

#[tokio::test]
async fn the_last_tasks_own_503_reaches_the_client() {
    let (one, two) = (Sick::start(Vice::Answers(503)).await, Sick::start(Vice::Answers(503)).await);
    let edge = edge_for(&[one.address, two.address], &[]).await;
    for _ in 0..20 {
        let reply = get_path(edge.http, "web.test", "/").await;
        assert_eq!((reply.status, reply.header("x-upstream"), &*reply.body), (503, "sick", "sick"));
    }
    let alone = edge_for(&[one.address], &[]).await;
    for _ in 0..20 {
        assert_eq!(get_path(alone.http, "web.test", "/").await.body, "sick");
    }
    assert_eq!(metric(&alone, "skep_upstream_ejected").await, 0.0, "the only task is never ejected");
    assert_eq!(metric(&alone, "skep_retries_total").await, 0.0);
    assert_eq!(metric(&alone, "skep_retry_budget_exhausted_total").await, 0.0, "nor is a budget spent on nobody");
}

#[tokio::test]
async fn a_stale_connection_is_replaced_even_on_the_only_task() {
    let forgetful = Sick::start(Vice::ForgetsKeptConnections).await;
    let edge = edge_for(&[forgetful.address], &[]).await;
    for _ in 0..20 {
        let reply = get_path(edge.http, "web.test", "/").await;
        assert_eq!((reply.status, &*reply.body), (200, "ok"));
    }
    assert!(metric(&edge, "skep_retries_total").await > 5.0);
    assert_eq!(metric(&edge, "skep_upstream_ejections").await, 0.0, "a kept connection may be closed at any time");
}

#[tokio::test]
async fn a_small_body_is_kept_for_the_retry_and_a_large_one_is_not() {
    let (sick, well) = (Sick::start(Vice::ClosesAfterTheHead).await, Upstream::start("well").await);
    let edge = edge_for(&[sick.address, well.address], &[]).await;
    let put = |size: usize| {
        let builder = http::Request::put("/echo-length").header("host", "web.test");
        builder.body(Full::new(Bytes::from(vec![b'x'; size]))).unwrap()
    };
    for _ in 0..40 {
        let reply = send(edge.http, put(10_000)).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.upstream_saw("content-length"), "10000");
    }
    assert_eq!((sick.heads(), well.seen()), (5, 40));
    let broken = edge_for(&[sick.address, sick.address], &[]).await;
    assert_eq!(send(broken.http, put(1_000_000)).await.status, 502);
}

#[tokio::test]
async fn an_outage_is_not_multiplied() {
    use Vice::{Answers, ClosesAfterTheHead};
    // Whose answers eject nobody, only the budget holds back; the others are held back by ejections as well.
    let table = [
        ([Answers(429), Answers(429), Answers(429)], 1.0),
        ([ClosesAfterTheHead, ClosesAfterTheHead, ClosesAfterTheHead], 0.0),
        ([ClosesAfterTheHead, Answers(503), Answers(502)], 0.0),
    ];
    for (vices, refused) in table {
        let mut tasks = Vec::new();
        for vice in vices {
            tasks.push(Sick::start(vice).await);
        }
        let addresses: Vec<SocketAddr> = tasks.iter().map(|task| task.address).collect();
        let edge = edge_for(&addresses, &[("skep.retries", "10"), ("skep.retry-on", "429, 502, 503")]).await;
        const REQUESTS: usize = 400;
        for _ in 0..REQUESTS {
            assert!(get_path(edge.http, "web.test", "/").await.status >= 429);
        }
        let seen: usize = tasks.iter().map(Sick::heads).sum();
        assert!((REQUESTS..=REQUESTS * 6 / 5 + 30).contains(&seen), "{vices:?}: {REQUESTS} requests became {seen}");
        assert!(metric(&edge, "skep_retry_budget_exhausted_total").await >= refused, "{vices:?}");
    }
}

#[tokio::test]
async fn retry_on_says_which_answers_are_not_the_last_word() {
    let (sick, well) = (Sick::start(Vice::Answers(429)).await, Upstream::start("well").await);
    let edge = edge_for(&[sick.address, well.address], &[("skep.retry-on", "429")]).await;
    for _ in 0..40 {
        assert_eq!(get_path(edge.http, "web.test", "/").await.header("x-upstream"), "well");
    }
    assert!(sick.heads() > 5, "an application's answer does not eject");
    let (sick, well) = (Sick::start(Vice::Answers(503)).await, Upstream::start("well").await);
    let edge = edge_for(&[sick.address, well.address], &[("skep.retry-on", "connect")]).await;
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..20 {
        answers.insert(get_path(edge.http, "web.test", "/").await.status);
    }
    assert!(answers.contains(&503), "{answers:?}");
}

#[tokio::test]
async fn a_task_that_fails_its_check_gets_nothing_until_it_passes() {
    let (sick, well) = (Sick::start(Vice::Answers(503)).await, Upstream::start("well").await);
    let labels = [("skep.health-path", "/status/204"), ("skep.health-interval", "100ms"), ("skep.health-unhealthy", "2")];
    let edge = edge_for(&[sick.address, well.address], &labels).await;
    let began = Instant::now();
    while !get_path(edge.admin, "localhost", "/routes").await.body.contains("failing its check: 503") {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", get_path(edge.admin, "localhost", "/routes").await.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        // Also what no other task could take: it is asked by nobody but the check.
        assert_eq!(send(edge.http, request("POST", "web.test", "/", &[])).await.header("x-upstream"), "well");
    }
    assert_eq!(metric(&edge, "skep_upstream_check_up").await, 1.0);
    // Where no task passes, nobody is asked.
    let closed = edge_for(&[sick.address], &labels).await;
    let began = Instant::now();
    loop {
        let reply = get_path(closed.http, "web.test", "/").await;
        if reply.header("x-upstream").is_empty() {
            assert_eq!((reply.status, reply.header("retry-after")), (503, "5"));
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn checks_speak_the_scheme_of_the_route() {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let known = request.uri().host() == Some("web.test");
                    let answer = http::Response::builder().status(if known { 200 } else { 421 }).body(()).unwrap();
                    respond.send_response(answer, true).unwrap();
                }
            });
        }
    });
    let labels = [("skep.health-path", "/"), ("skep.health-interval", "100ms"), ("skep.scheme", "h2c")];
    let edge = edge_for(&[address], &labels).await;
    let began = Instant::now();
    while metric(&edge, "skep_upstream_check_up").await < 1.0 {
        assert!(began.elapsed() < Duration::from_secs(10), "{}", get_path(edge.admin, "localhost", "/routes").await.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An HTTP/2 task that resets every stream for this reason, or answers.
async fn over_h2(resets: Option<h2::Reason>) -> Sick {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    match resets {
                        Some(reason) => respond.send_reset(reason),
                        None => drop(respond.send_response(http::Response::new(()), true).unwrap()),
                    }
                }
            });
        }
    });
    Sick { address, heads }
}

#[tokio::test]
async fn a_refused_stream_is_sent_elsewhere_and_a_broken_one_only_where_that_is_safe() {
    // reason, method, how many of 30 are answered well
    let table = [
        (h2::Reason::REFUSED_STREAM, "POST", 30),
        (h2::Reason::REFUSED_STREAM, "GET", 30),
        (h2::Reason::INTERNAL_ERROR, "GET", 30),
        (h2::Reason::INTERNAL_ERROR, "POST", 25),
    ];
    for (reason, method, wanted) in table {
        let (sick, well) = (over_h2(Some(reason)).await, over_h2(None).await);
        let edge = edge_for(&[sick.address, well.address], &[("skep.scheme", "h2c")]).await;
        let mut answered = 0;
        for _ in 0..30 {
            answered += usize::from(send(edge.http, request(method, "web.test", "/", &[])).await.status == 200);
        }
        assert_eq!((answered, sick.heads()), (wanted, 5), "{reason:?} {method}");
    }
}

#[tokio::test]
async fn a_body_over_http2_is_kept_for_the_retry_too() {
    let (sick, well) = (Sick::start(Vice::ClosesAfterTheHead).await, Upstream::start("well").await);
    let addresses = format!("{}, {}", sick.address, well.address);
    let labels = stack(&[("skep.host", "web.test"), ("skep.address", &addresses)]);
    let edge = Edge::with_config(&labels, |config| config.proxy.h2c = true).await;
    let stream = TcpStream::connect(edge.http).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..40 {
        let put = http::Request::put("http://web.test/").body(Full::new(Bytes::from(vec![b'x'; 20_000]))).unwrap();
        let answer = sender.send_request(put).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-upstream"], "well");
    }
    assert_eq!((sick.heads(), well.seen()), (5, 40));
}
