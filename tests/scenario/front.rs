//! Connections before their first request: the PROXY header on both sides, how many there may be, and what happens when the
//! process has no room for more.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep::config::ProxyProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;
use crate::siege::{Bystander, Process};

fn v2(source: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(source);
    header.extend([10, 0, 0, 1]);
    header.extend(port.to_be_bytes());
    header.extend(443_u16.to_be_bytes());
    header
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_proxy_header_names_the_client_where_the_proxy_is_trusted() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    let start = async |mode: ProxyProtocol, trusted: &str| {
        Edge::with_config(&stack, |config| {
            config.http.proxy_protocol = mode;
            config.proxy.trusted_proxies = vec![trusted.parse().unwrap()];
            config.proxy.header_timeout = Duration::from_millis(500);
        })
        .await
    };
    let v1 = b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 8443\r\n".to_vec();
    let itself = b"PROXY UNKNOWN\r\n".to_vec();
    let broken = b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 99999\r\n".to_vec();
    let nothing = Vec::new();
    let (here, elsewhere) = ("127.0.0.0/8", "192.0.2.0/24");
    use ProxyProtocol::{Off, On, Optional};
    // mode, whom it trusts, header, what the answer says of the client
    let table = [
        (On, here, &v1, "\"x-forwarded-for\":\"198.51.100.7\""),
        (On, here, &v2([203, 0, 113, 9], 5), "\"x-forwarded-for\":\"203.0.113.9\""),
        (On, here, &itself, "\"x-forwarded-for\":\"127.0.0.1\""),
        (On, here, &nothing, ""),
        (On, here, &broken, ""),
        (Optional, here, &v1, "\"x-forwarded-for\":\"198.51.100.7\""),
        (Optional, here, &nothing, "\"x-forwarded-for\":\"127.0.0.1\""),
        (Off, here, &v1, "400 Bad Request"),
        (On, elsewhere, &v1, "400 Bad Request"),
        (On, elsewhere, &v2([203, 0, 113, 9], 5), "400 Bad Request"),
        (On, elsewhere, &nothing, "\"x-forwarded-for\":\"127.0.0.1\""),
    ];
    for (mode, trusted, header, says) in table {
        let edge = start(mode, trusted).await;
        let answer = raw(edge.http, &[header, GET].concat()).await;
        let fine = if says.is_empty() { answer.is_empty() } else { answer.contains(says) };
        assert!(fine, "{mode:?} {trusted} {:?}: {answer:?}", String::from_utf8_lossy(header));
    }

    // It may come a byte at a time, with HTTP/2 behind it; and it does not come for ever.
    let edge = start(On, here).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    for byte in &v1 {
        stream.write_all(&[*byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let (answer, _) = client.send_request(http::Request::get("http://web.test/").body(()).unwrap(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let text = body.data().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&text).contains("\"x-forwarded-port\":\"8443\""), "{text:?}");

    let began = Instant::now();
    assert_eq!(raw(edge.http, b"PROXY TCP4 1.2").await, "");
    assert!(began.elapsed() < Duration::from_secs(4));
}

/// What an upstream that expects PROXY headers read before each head, and how many heads came behind it.
type Read = Arc<Mutex<Vec<(Vec<u8>, usize)>>>;

async fn expecting_upstream() -> (std::net::SocketAddr, Read) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read: Read = Arc::default();
    let kept = read.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut header = vec![stream.read_u8().await.unwrap()];
                let whole = |header: &[u8]| match header[0] {
                    b'P' => header.ends_with(b"\r\n"),
                    _ => header.len() > 16 && header.len() == 16 + usize::from(u16::from_be_bytes([header[14], header[15]])),
                };
                while !whole(&header) {
                    header.push(stream.read_u8().await.unwrap());
                }
                let place = {
                    let mut all = kept.lock().unwrap();
                    all.push((header, 0));
                    all.len() - 1
                };
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if head.ends_with(b"\r\n\r\n") {
                        kept.lock().unwrap()[place].1 += 1;
                        head.clear();
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                    }
                }
            });
        }
    });
    (address, read)
}

#[tokio::test]
async fn an_upstream_is_told_the_client_in_front_of_its_connection() {
    for (version, told) in [("v1", b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 8443\r\n".to_vec()), ("v2", v2([198, 51, 100, 7], 4711))] {
        let (address, read) = expecting_upstream().await;
        let labels = [("skep.host", "web.test"), ("skep.address", &*address.to_string()), ("skep.proxy-protocol", version)];
        let edge = Edge::with_config(&stack(&labels), |config| {
            config.http.proxy_protocol = ProxyProtocol::Optional;
            config.proxy.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
        let header: &[u8] = if version == "v1" { &told } else { b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\n" };
        // Two requests on each of two connections: of one client, and of another.
        for header in [header, b"PROXY TCP4 198.51.100.8 10.0.0.1 4712 443\r\n"] {
            let mut stream = TcpStream::connect(edge.http).await.unwrap();
            stream.write_all(header).await.unwrap();
            for _ in 0..2 {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"\r\n\r\nok") {
                    answer.push(stream.read_u8().await.unwrap());
                }
                // The upstream connection is back in the pool a moment after its answer.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        let read = read.lock().unwrap();
        assert_eq!(
            read.iter().map(|(_, heads)| *heads).collect::<Vec<_>>(),
            [2, 2],
            "a connection is for one client, and for all its requests"
        );
        assert_eq!(read[0].0, told, "{}", String::from_utf8_lossy(&read[0].0));
        assert_ne!(read[0].0, read[1].0);
    }
}

#[tokio::test]
async fn one_client_has_so_many_connections_and_no_more() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    let edge = Edge::with_config(&stack, |config| config.proxy.max_connections_per_client = 5).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(TcpStream::connect(edge.http).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(raw(edge.http, b"").await, "", "the sixth is closed at once");
    let metrics = get_path(edge.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("skep_connections_refused_total 1"), "{metrics}");
    drop(held);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(get_path(edge.http, "web.test", "/").await.status, 200);

    let trusting = Edge::with_config(&stack, |config| {
        config.proxy.max_connections_per_client = 1;
        config.proxy.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let _held = TcpStream::connect(trusting.http).await.unwrap();
    assert_eq!(get_path(trusting.http, "web.test", "/").await.status, 200, "a proxy in front has all clients' connections");
}

#[tokio::test]
async fn a_connection_serves_so_many_requests() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    let edge = Edge::with_config(&stack, |config| config.proxy.max_requests_per_connection = Some(3)).await;
    let mut stream = TcpStream::connect(edge.http).await.unwrap();
    let mut answers = String::new();
    while stream.write_all(b"GET /status/204 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.is_ok() {
        let mut chunk = [0_u8; 4096];
        match stream.read(&mut chunk).await {
            Ok(count @ 1..) => answers.push_str(&String::from_utf8_lossy(&chunk[..count])),
            _ => break,
        }
    }
    assert_eq!(answers.matches("HTTP/1.1 204").count(), 3, "{answers}");
}

#[tokio::test]
async fn at_the_limit_idle_connections_make_room_and_busy_ones_stay() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    let edge = Edge::with_config(&stack, |config| config.proxy.max_connections = 4).await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: web.test\r\n\r\n").into_bytes();
    let mut busy = TcpStream::connect(edge.http).await.unwrap();
    busy.write_all(&request("/delay/1500")).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(edge.http).await.unwrap();
        stream.write_all(&request("/status/204")).await.unwrap();
        assert!(stream.read(&mut [0_u8; 1000]).await.unwrap() > 0);
        idle.push(stream);
        // Long enough for who was first to be known.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(get_path(edge.http, "web.test", "/").await.status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "the idle ones did not make room");
    // The one that was idle for longest went first, and one was enough.
    let ended = async |stream: &mut TcpStream| tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0_u8; 10])).await.is_ok();
    assert_eq!([ended(&mut idle[0]).await, ended(&mut idle[2]).await], [true, false]);
    let mut answer = [0_u8; 12];
    busy.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// Idle connections, half of them after a request.
async fn idle(process: &Process, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for number in 0..count {
        let Ok(mut stream) = TcpStream::connect(process.http).await else { break };
        if number % 2 == 0 {
            stream.write_all(b"GET /status/204 HTTP/1.1\r\nHost: web.test\r\n\r\n").await.unwrap();
        }
        held.push(stream);
    }
    held
}

async fn status(process: &Process) -> u16 {
    let asked = tokio::time::timeout(Duration::from_secs(5), raw(process.http, GET)).await.unwrap_or_default();
    asked.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_stop_nobody() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    // A timer is remembered until its time has come, so the times are short.
    let settings =
        [("SKEP_PROXY_MAX_CONNECTIONS_PER_CLIENT", "20000"), ("SKEP_PROXY_KEEP_ALIVE", "6s"), ("SKEP_PROXY_HEADER_TIMEOUT", "6s")];
    let edge = Process::start(&stack, &settings, None);
    let before = edge.resident();
    let bystander = Bystander::start(edge.http);
    // The allocator keeps what it had at the peak or gives it back, as it likes. So what ended is told from what leaks by the peaks: they
    // stay where those of the first rounds were.
    let mut peaks = Vec::new();
    for _ in 0..5 {
        let held = idle(&edge, 9_900).await;
        peaks.push(edge.resident());
        assert_eq!(held.len(), 9_900);
        drop(held);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (served, failures) = bystander.ends().await;
    eprintln!("{before} KB before, peaks {peaks:?} KB, {} KB after, {served} served", edge.resident());
    assert!(failures.is_empty() && served > 2, "{served} served, {failures:?}");
    let each = peaks[0].saturating_sub(before) / 9_900;
    assert!(each < 100, "{each} KB for an idle connection");
    // A thousand bytes left behind by each of the later 30,000 would be twice this.
    let warm = peaks[0].max(peaks[1]);
    assert!(peaks[3].min(peaks[4]) < warm + 16 * 1024, "{peaks:?} KB with as many connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_file_descriptors_it_sheds_and_recovers() {
    let upstream = Upstream::start("web").await;
    let stack = stack(&[("skep.host", "web.test"), ("skep.address", &upstream.address.to_string())]);
    let edge = Process::start(&stack, &[], Some(100));
    assert!(edge.said().contains("only 100 files may be open"), "{}", edge.said());
    let mut first = TcpStream::connect(edge.http).await.unwrap();
    let held = {
        let mut held = Vec::new();
        for _ in 0..150 {
            held.push(TcpStream::connect(edge.http).await.unwrap());
        }
        held
    };
    let began = Instant::now();
    while !edge.said().contains("accepting connections fails") {
        assert!(began.elapsed() < Duration::from_secs(5), "it never ran out: {}", edge.said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Who is in and needs an upstream is told at once that there is none to be had now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut answer = [0_u8; 12];
    first.write_all(GET).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), first.read_exact(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert_eq!(answer, "HTTP/1.1 503");
    drop(held);
    let began = Instant::now();
    while status(&edge).await != 200 {
        assert!(began.elapsed() < Duration::from_secs(10), "it never recovered");
    }
}

#[tokio::test]
async fn a_taken_address_is_told_with_its_holder() {
    let holder = Process::start(&stack(&[("skep.host", "web.test"), ("skep.address", "127.0.0.1:1")]), &[], None);
    let taken = skep::server::listener::bind(holder.http).unwrap_err().to_string();
    assert!(taken.contains(&format!("in use by skep (pid {})", holder.id())), "{taken}");
}
