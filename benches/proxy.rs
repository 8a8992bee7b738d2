//! A request through the whole edge on loopback: accept loop, pingora, routing, a tiny upstream, and back, on one connection.

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use skep::config::Config;
use skep::server::{self, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";
const REQUEST: &[u8] = b"GET /path?query=1 HTTP/1.1\r\nHost: host-500.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0_u8; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    if stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn edge(directory: &std::path::Path) -> server::Running {
    let upstream = upstream().await;
    let mut stack = String::from("services:\n");
    for number in 0..1000 {
        stack.push_str(&format!("  s{number}:\n    labels:\n      skep.host: host-{number}.test\n      skep.address: {upstream}\n"));
    }
    let file = directory.join("stack.yml");
    std::fs::write(&file, stack).unwrap();
    let mut config = Config::default();
    config.http.listen = vec!["127.0.0.1:0".parse().unwrap()];
    config.https.listen = vec![];
    config.admin.listen = None;
    config.docker.enabled = false;
    config.state.directory = None;
    config.access_log.path = Some(directory.join("access.log"));
    server::start(Options { config, files: vec![file], ..Options::default() }).await.unwrap()
}

async fn exchange(stream: &mut TcpStream, buffer: &mut [u8]) -> usize {
    stream.write_all(REQUEST).await.unwrap();
    let mut length = 0;
    while !buffer[..length].ends_with(b"hello\n") {
        length += stream.read(&mut buffer[length..]).await.unwrap();
    }
    assert!(buffer.starts_with(b"HTTP/1.1 200"));
    length
}

fn keep_alive(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (running, mut stream) = runtime.block_on(async {
        let running = edge(directory.path()).await;
        let stream = TcpStream::connect(running.http[0]).await.unwrap();
        (running, stream)
    });
    let mut buffer = [0_u8; 4096];
    criterion.bench_function("a small request over keep-alive, 1,000 hosts", |bencher| {
        bencher.iter(|| black_box(runtime.block_on(exchange(&mut stream, &mut buffer))));
    });
    drop(stream);
    runtime.block_on(running.stop());
}

criterion_group!(benches, keep_alive);
criterion_main!(benches);
