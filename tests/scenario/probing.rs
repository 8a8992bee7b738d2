//! Names are asked whether they lead to us before an authority is: each way in which they do not has its own sentence.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep::certificate::challenge::Challenges;
use skep::certificate::failure::Refusal;
use skep::certificate::probe::Probe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::pebble::{Answering, Options, Pebble, free_port};

/// Listens at `port` of `address` and gives each connection to `serve`.
async fn listener<F: Future<Output = ()> + Send>(address: &str, port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static) {
    let listener = TcpListener::bind((address, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream).await;
        }
    });
}

/// Answers the one request of a connection with `head`.
async fn answer(mut stream: TcpStream, head: String) {
    let mut buffer = [0; 4096];
    let mut path = String::new();
    if let Ok(count @ 1..) = stream.read(&mut buffer).await {
        path = String::from_utf8_lossy(&buffer[..count]).split(' ').nth(1).unwrap_or_default().to_owned();
    }
    let answer = format!("HTTP/1.1 {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", head.replace("PATH", &path));
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn each_way_to_miss_us_has_its_own_sentence() {
    let pebble = Pebble::start(Options::default()).await;
    let challenges = Arc::new(Challenges::default());
    let port = pebble.http_port;
    let _answering = Answering::start(&challenges, port, pebble.tls_port).await;
    let at = async |name: &str, addresses: &[&str]| {
        pebble.change_names("add-a", serde_json::json!({"host": name, "addresses": addresses})).await;
    };
    pebble.change_names("set-servfail", serde_json::json!({"host": "broken.test"})).await;
    at("deaf.test", &["127.0.0.20"]).await;
    at("stranger.test", &["127.0.0.21"]).await;
    at("silent.test", &["127.0.0.22"]).await;
    at("moved.test", &["127.0.0.23"]).await;
    at("circle.test", &["127.0.0.24"]).await;
    at("odd-port.test", &["127.0.0.25"]).await;
    at("rude.test", &["127.0.0.26"]).await;
    pebble.change_names("set-cname", serde_json::json!({"host": "alias.test", "target": "fine.test"})).await;
    listener("127.0.0.21", port, |stream| answer(stream, "404 Not Found\r\nServer: nginx".to_owned())).await;
    listener("127.0.0.22", port, |stream| async move {
        tokio::spawn(async move {
            let _held = stream;
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
    })
    .await;
    let moved = format!("301 Moved\r\nLocation: http://fine.test:{port}PATH");
    listener("127.0.0.23", port, move |stream| answer(stream, moved.clone())).await;
    listener("127.0.0.24", port, |stream| answer(stream, "302 Found\r\nLocation: PATH".to_owned())).await;
    listener("127.0.0.25", port, |stream| answer(stream, "302 Found\r\nLocation: http://fine.test:8443/".to_owned())).await;
    listener("127.0.0.26", port, |stream| async move { drop(stream) }).await;
    let table = [
        ("fine.test", "", ""),
        ("alias.test", "", ""),
        ("moved.test", "", ""),
        ("127.0.0.1", "", ""),
        ("broken.test", "dns", "check the name servers"),
        ("deaf.test", "refused", "127.0.0.20, where nobody takes a connection"),
        ("stranger.test", "elsewhere", "somebody else answers (404, a server that calls itself nginx)"),
        ("silent.test", "connection", "no answer within"),
        ("circle.test", "redirect", "more than 10 redirects"),
        ("odd-port.test", "redirect", "80 and 443 only"),
        ("rude.test", "connection", "gives no answer"),
    ];
    let names: BTreeSet<String> = table.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let probe = Arc::new(Probe::new(Arc::clone(&challenges), &[pebble.names_address()], port).unwrap());
    let began = Instant::now();
    // It is started by a task, so that what it does must be movable to other threads.
    let told = tokio::spawn({
        let (probe, names) = (Arc::clone(&probe), names.clone());
        async move { probe.ask(&names, false).await }
    });
    let told = told.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    for (name, kind, said) in table {
        match &told[name] {
            Ok(()) => assert_eq!(kind, "", "{name}"),
            Err(Refusal { kind: found, text, tried, .. }) => {
                assert!(found == kind && text.contains(said) && !tried, "{name}: {found}: {text}");
            }
        }
    }
    let told = probe.ask(&BTreeSet::from(["fine.test".to_owned()]), true).await;
    let refused = told["fine.test"].as_ref().unwrap_err();
    assert!(refused.kind == "private-address" && refused.text.contains("127.0.0.1"), "{refused:?}");
    assert!(format!("{challenges:?}").contains("http: {}"), "{challenges:?}");
}

#[tokio::test]
async fn names_that_dns_does_not_know_are_told_apart_from_those_without_address() {
    let names = bind().await;
    let probe = Probe::new(Arc::default(), &[names], free_port()).unwrap();
    let told = probe.ask(&["no.test", "bare.test", "bad_*name..test"].map(str::to_owned).into(), false).await;
    let kinds: Vec<_> = told.values().map(|told| told.as_ref().map_err(|refusal| refusal.kind.as_str()).unwrap_err()).collect();
    assert_eq!(kinds, ["dns", "no-address", "nxdomain"], "{told:?}");
}

/// A DNS server that knows `bare.test`, without addresses, and nothing else.
async fn bind() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut question = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut question).await {
            let mut answer = question[..count].to_vec();
            let known = answer.windows(4).any(|part| part == b"bare");
            answer[2] = 0x84 | (answer[2] & 1); // an authoritative answer
            answer[3] = if known { 0x80 } else { 0x83 }; // no error, or no such name
            answer[6..12].fill(0);
            // The question alone is sent back: what comes after it is dropped.
            let end = 12 + answer[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            socket.send_to(&answer[..end], from).await.unwrap();
        }
    });
    address
}
