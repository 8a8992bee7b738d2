//! Upgrades whose upstream is quicker than the edge, or slower, or refuses.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::*;

const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const ASKED: &[u8] = b"GET /socket HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// An upstream that switches protocols before it has read a byte, greets, then echoes.
async fn hasty() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(SWITCHED).await.ok();
                let mut chunk = [0_u8; 4096];
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut chunk).await {
                        Ok(count @ 1..) => seen.extend_from_slice(&chunk[..count]),
                        _ => return,
                    }
                }
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    if stream.write_all(&chunk[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_upgrade_survives_an_upstream_that_answers_at_once() {
    let address = hasty().await.to_string();
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address)])).await;
    for round in 0..30 {
        let mut stream = tokio::net::TcpStream::connect(edge.http).await.unwrap();
        stream.write_all(ASKED).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(stream.read_buf(&mut head).await.unwrap().min(1), 1, "round {round}: {}", String::from_utf8_lossy(&head));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        stream.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&echo, b"hello");
    }
}

/// What the upstream that is scripted with `answer` and the client's `rest` make of an upgrade, up to the end.
async fn upgraded(answer: &'static [u8], rest: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.ok();
        stream.write_all(format!("you said {said}").as_bytes()).await.ok();
    });
    let edge = Edge::with(&stack(&[("skep.host", "web.test"), ("skep.address", &address)])).await;
    let mut client = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    client.write_all(&[ASKED, rest].concat()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = String::new();
    tokio::time::timeout(Duration::from_secs(5), client.read_to_string(&mut got)).await.expect("an end").unwrap();
    got
}

#[tokio::test]
async fn what_is_sent_ahead_of_a_switch_and_the_last_word_after_it_arrive() {
    let got = upgraded(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nfirst, ",
        b"this",
    )
    .await;
    assert!(got.starts_with("HTTP/1.1 101 Switching Protocols\r\n") && got.contains("\r\nSec-WebSocket-Accept: x\r\n"), "{got}");
    assert!(got.ends_with("\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst, you said this"), "{got}");
}

#[tokio::test]
async fn an_upgrade_to_something_else_or_a_refusal_is_told() {
    let got = upgraded(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"").await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    let got = upgraded(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", b"").await;
    assert!(got.starts_with("HTTP/1.1 403 Forbidden\r\n") && got.ends_with("\r\n\r\nno"), "{got}");
}
