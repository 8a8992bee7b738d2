//! Connections that are carried as they are: TCP routes by port, and TLS that is passed through by name.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Edge, free_port, get_path, request, send, services};

/// Detects what hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address that refuses connections.
fn nobody() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Says its name, then what it hears to the end of it, then `bye`.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await?;
                writer.write_all(b"bye").await
            });
        }
    });
    address
}

async fn edge(stack: &str, ports: &[u16]) -> Edge {
    let ports: Vec<_> = ports.iter().map(|port| *port..=*port).collect();
    Edge::with_config(stack, |config| {
        config.tcp.ports = ports;
        config.tcp.listen = "127.0.0.1".parse().unwrap();
    })
    .await
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// What comes back for `words` once the client has ended its side. Empty where the edge closed at once.
async fn talk(port: u16, words: &[u8]) -> String {
    let mut stream = TcpStream::connect(at(port)).await.unwrap();
    // The edge may have closed already.
    _ = stream.write_all(words).await;
    _ = stream.shutdown().await;
    let mut heard = Vec::new();
    _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("it ends");
    String::from_utf8(heard).unwrap()
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_connection_is_carried_and_told_of() {
    let (upstream, port) = (echo("db ").await, free_port());
    let listen = port.to_string();
    let stack = services(&[("db", &[("skep.tcp.listen", &listen), ("skep.tcp.address", &upstream.to_string())])]);
    let edge = edge(&stack, &[port]).await;
    let big = "x".repeat(3_000_000);
    assert_eq!(talk(port, b"hello ").await, "db hello bye", "the client ends first and hears the rest");
    assert_eq!(talk(port, big.as_bytes()).await.len(), big.len() + 6);
    let lines = edge.log_lines(2).await;
    let line = &lines[0];
    assert_eq!(
        (line["method"].as_str(), line["version"].as_str(), line["host"].as_str(), line["route"].as_str()),
        (Some("TCP"), Some("TCP"), Some(format!(":{port}").as_str()), Some("db/tcp"))
    );
    assert_eq!((&line["status"], &line["bytes_in"], &line["bytes_out"]), (&200.into(), &6.into(), &12.into()));
    assert_eq!(line["client"], "127.0.0.1");
    assert!(line["connect_ms"].is_number() && line["backend"].is_string() && line["error"].is_null(), "{line}");
    let metrics = get_path(edge.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains(r#"skep_requests_total{route="db/tcp",method="TCP",status="200"} 2"#), "{metrics}");
    assert!(metrics.contains(r#"skep_upstream_in_flight{service="db""#), "{metrics}");
    assert!(!metrics.contains(r#"skep_request_duration_seconds_count{route="db/tcp"} 2"#), "a connection's length is no speed");
    assert_eq!(edge.running.stop().await, 0);
}

#[tokio::test]
async fn who_may_not_or_cannot_be_served_is_closed_at_once_and_told_of() {
    let upstream = echo("db ").await.to_string();
    let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
    let listen: Vec<String> = ports.iter().map(u16::to_string).collect();
    let (dead, other) = (nobody(), nobody());
    let both = format!("{dead}, {other}, {upstream}");
    let stack = services(&[
        ("denied", &[("skep.tcp.listen", &listen[0]), ("skep.tcp.address", &upstream), ("skep.tcp.allow", "10.0.0.0/8")]),
        ("closed", &[("skep.tcp.listen", &listen[1]), ("skep.tcp.address", &upstream), ("skep.tcp.allow", "10.0.0.0/99")]),
        ("empty", &[("skep.tcp.listen", &listen[2])]),
        ("dead", &[("skep.tcp.listen", &listen[3]), ("skep.tcp.address", &dead)]),
        ("half", &[("skep.tcp.listen", &listen[4]), ("skep.tcp.address", &both), ("skep.tcp.balance", "round-robin")]),
    ]);
    let edge = edge(&stack, &ports).await;
    for (index, status, error) in [
        (0, 403, "the client's address is not allowed"),
        (1, 503, "the route is closed: `skep.tcp.allow` could not be read"),
        (2, 503, "no task can take it"),
        (3, 502, "connect: "),
    ] {
        assert_eq!(talk(ports[index], b"").await, "", "{status}");
        let line = edge.log_lines(index + 1).await.remove(index);
        assert_eq!(line["status"], status, "{line}");
        assert!(line["error"].as_str().is_some_and(|text| text.starts_with(error)), "{line}");
    }
    for _ in 0..10 {
        assert_eq!(talk(ports[4], b"x").await, "db xbye", "another task is tried where one cannot be reached");
    }
    let retries: i64 = edge.log_lines(14).await.iter().map(|line| line["retries"].as_i64().unwrap()).sum();
    assert!(retries > 0);
    let routes = get_path(edge.admin, "admin", "/metrics").await.body;
    assert!(routes.contains(r#"skep_requests_total{route="empty/tcp",method="TCP",status="503"} 1"#), "{routes}");
}

#[tokio::test]
async fn the_task_is_told_of_the_client_where_that_is_asked_for() {
    let upstream = echo("").await.to_string();
    let (text, binary) = (free_port(), free_port());
    let (one, two) = (text.to_string(), binary.to_string());
    let stack = services(&[
        ("one", &[("skep.tcp.listen", &one), ("skep.tcp.address", &upstream), ("skep.tcp.proxy-protocol", "v1")]),
        ("two", &[("skep.tcp.listen", &two), ("skep.tcp.address", &upstream), ("skep.tcp.proxy-protocol", "v2")]),
    ]);
    let _edge = edge(&stack, &[text, binary]).await;
    let heard = talk(text, b"hello").await;
    assert!(heard.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 ") && heard.ends_with(&format!(" {text}\r\nhellobye")), "{heard}");
    let mut stream = TcpStream::connect(at(binary)).await.unwrap();
    let mut header = [0; 12];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(&header, b"\r\n\r\n\0\r\nQUIT\n", "also where the client waits for the server to begin");
}

#[tokio::test]
async fn silence_and_too_many_connections_end() {
    let upstream = echo("hello").await.to_string();
    let port = free_port();
    let listen = port.to_string();
    let stack = services(&[("db", &[("skep.tcp.listen", &listen), ("skep.tcp.address", &upstream), ("skep.tcp.timeout-idle", "300ms")])]);
    let edge = Edge::with_config(&stack, |config| {
        config.tcp.ports = vec![port..=port];
        config.tcp.listen = "127.0.0.1".parse().unwrap();
        config.proxy.max_connections_per_client = 2;
    })
    .await;
    let (mut first, mut second) = (TcpStream::connect(at(port)).await.unwrap(), TcpStream::connect(at(port)).await.unwrap());
    let mut hello = [0; 5];
    first.read_exact(&mut hello).await.unwrap();
    second.read_exact(&mut hello).await.unwrap();
    let mut third = TcpStream::connect(at(port)).await.unwrap();
    let mut heard = Vec::new();
    _ = tokio::time::timeout(PATIENCE, third.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"", "one too many");
    let ended = tokio::time::timeout(PATIENCE, first.read_to_end(&mut heard)).await.expect("silence ends it");
    assert!(matches!(ended, Ok(0) | Err(_)));
    let line = edge.log_lines(1).await.remove(0);
    assert_eq!((&line["status"], line["error"].as_str()), (&504.into(), Some("neither side said anything for 300ms")));
}

#[tokio::test]
async fn ports_follow_the_labels_and_connections_outlive_them() {
    let upstream = echo("db ").await.to_string();
    let (old, new, refused) = (free_port(), free_port(), free_port());
    let stack = |port: u16| services(&[("db", &[("skep.tcp.listen", port.to_string().as_str()), ("skep.tcp.address", &upstream)])]);
    let edge = edge(&stack(old), &[old, new]).await;
    let mut open = TcpStream::connect(at(old)).await.unwrap();
    let mut name = [0; 3];
    open.read_exact(&mut name).await.unwrap();
    std::fs::write(edge.directory.path().join("stack.yml"), stack(new)).unwrap();
    until("the new port is open", || async { TcpStream::connect(at(new)).await.is_ok() }).await;
    until("the old port is closed", || async { TcpStream::connect(at(old)).await.is_err() }).await;
    assert_eq!(talk(new, b"x").await, "db xbye");
    open.write_all(b"still").await.unwrap();
    open.shutdown().await.unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "stillbye");
    std::fs::write(edge.directory.path().join("stack.yml"), stack(refused)).unwrap();
    until("the port is given up", || async { TcpStream::connect(at(new)).await.is_err() }).await;
    assert!(TcpStream::connect(at(refused)).await.is_err(), "the configuration does not allow it");
}

#[tokio::test]
async fn a_port_that_is_taken_is_had_once_it_is_free() {
    let upstream = echo("db ").await.to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = port.to_string();
    let stack = services(&[("db", &[("skep.tcp.listen", &listen), ("skep.tcp.address", &upstream)])]);
    let _edge = edge(&stack, &[port]).await;
    drop(taken);
    until("the port is open", || async { TcpStream::connect(at(port)).await.is_ok() }).await;
    assert_eq!(talk(port, b"x").await, "db xbye");
}

/// Ends with the test, whatever becomes of it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_refuses_no_connection_to_a_port() {
    let (upstream, port, http) = (echo("db ").await, free_port(), free_port());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (listen, address) = (port.to_string(), upstream.to_string());
    let write = |labels: &[(&str, &str)]| std::fs::write(path("stack.yml"), services(&[("db", labels)])).unwrap();
    write(&[("skep.host", "a.test"), ("skep.address", &address)]);
    let settings = format!(
        "[http]\nlisten = \"127.0.0.1:{http}\"\n[https]\nlisten = \"off\"\n[admin]\nlisten = \"off\"\n[tcp]\nports = [{port}]\nlisten = \"127.0.0.1\"\n\
         [proxy]\ndrain = \"3s\"\n[state]\ndirectory = \"{0}\"\n[access-log]\npath = \"{0}/access.log\"\n",
        directory.path().display(),
    );
    std::fs::write(path("skep.toml"), settings).unwrap();
    let run = |log: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
        command.args(["run", "--no-docker", "--config"]).arg(path("skep.toml")).arg("--file").arg(path("stack.yml"));
        Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(path(log)).unwrap()).spawn().unwrap())
    };
    let mut first = run("first.log");
    until("it serves", || async { TcpStream::connect(at(http)).await.is_ok() }).await;
    // A port that it did not have when it began.
    write(&[("skep.tcp.listen", &listen), ("skep.tcp.address", &address)]);
    until("it listens", || async { TcpStream::connect(at(port)).await.is_ok() }).await;
    let mut open = TcpStream::connect(at(port)).await.unwrap();
    let mut name = [0; 3];
    open.read_exact(&mut name).await.unwrap();

    let (enough, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (enough, served) = (enough.clone(), served.clone());
            tokio::spawn(async move {
                while !enough.load(Ordering::Relaxed) {
                    assert_eq!(talk(port, b"x").await, "db xbye");
                    served.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    // One started beside the first, which finds it at the upgrade socket and takes over.
    let _second = run("second.log");
    until("the first lets go", || async { std::fs::read_to_string(path("second.log")).unwrap_or_default().contains("took over") }).await;
    open.write_all(b"still").await.unwrap();
    open.shutdown().await.unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "stillbye", "what the first has goes on");
    let before = served.load(Ordering::Relaxed);
    until("the second serves", || async { served.load(Ordering::Relaxed) > before + 50 }).await;
    until("the first ends", || std::future::ready(first.0.try_wait().unwrap().is_some())).await;
    enough.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no connection was refused or cut");
    }
}

mod passthrough {
    use bytes::BytesMut;
    use rcgen::{CertificateParams, KeyPair};
    use skep::config::Config;
    use skep::provider::compose;
    use skep::proxy::Observer;
    use skep::proxy::conduit::Conduit;
    use skep::proxy::passthrough;
    use skep::proxy::stream::PerConnection;
    use skep::state::State;
    use skep::telemetry::{Record, json_line};
    use std::sync::Mutex;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use tokio_rustls::rustls::server::Acceptor;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// The access log's lines.
    #[derive(Default)]
    struct Lines(Mutex<Vec<serde_json::Value>>);

    impl Observer for Lines {
        fn finished(&self, record: &Record<'_>) {
            self.0.lock().unwrap().push(serde_json::from_str(&json_line(record)).unwrap());
        }
    }

    /// A service with a certificate of its own for `name`; it expects a PROXY header of version 1 where `announced`.
    async fn service(name: &str, announced: bool) -> (SocketAddr, CertificateDer<'static>) {
        // Another test of this process may have installed it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = certificate.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![der.clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut header = Vec::new();
                    while announced && !header.ends_with(b"\r\n") {
                        header.push(stream.read_u8().await.unwrap());
                    }
                    let mut tls = acceptor.accept(stream).await.unwrap();
                    tls.write_all(&header).await.unwrap();
                    let mut words = [0; 4];
                    tls.read_exact(&mut words).await.unwrap();
                    tls.write_all(&words).await.unwrap();
                    tls.shutdown().await.unwrap();
                });
            }
        });
        (address, der)
    }

    /// Reads a ClientHello, as a TLS listener does: its name, and all that was read.
    async fn hello(tcp: &mut TcpStream) -> Option<(String, BytesMut)> {
        let (mut acceptor, mut unread) = (Acceptor::default(), BytesMut::new());
        loop {
            let before = unread.len();
            if tcp.read_buf(&mut unread).await.ok()? == 0 {
                return None;
            }
            acceptor.read_tls(&mut &unread[before..]).ok()?;
            if let Some(accepted) = acceptor.accept().ok()? {
                return Some((accepted.client_hello().server_name()?.to_owned(), unread));
            }
        }
    }

    /// A listener in front of `stack`, and what it logs.
    async fn listen(stack: &str) -> (SocketAddr, Arc<Lines>) {
        let (snapshot, findings) = compose::parse("stack.yml", stack, &|_| None);
        let state = State::build(Arc::new(Config::default()), Arc::new(snapshot.unwrap_or_else(|| panic!("{findings:?}"))));
        let lines = Arc::new(Lines::default());
        let conduit = Conduit { ledger: Arc::default(), observer: lines.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(state);
        tokio::spawn(async move {
            while let Ok((mut tcp, peer)) = listener.accept().await {
                let (state, conduit) = (state.clone(), conduit.clone());
                tokio::spawn(async move {
                    let (sni, unread) = hello(&mut tcp).await?;
                    let route = state.passthrough.find(&sni)?.clone();
                    passthrough::serve(&conduit, tcp, unread, &sni, &route, &PerConnection::accepted(peer, address)).await;
                    Some(())
                });
            }
        });
        (address, lines)
    }

    /// What a client hears that trusts `certificate` alone; `None`: no TLS.
    async fn ask(edge: SocketAddr, name: &str, certificate: &CertificateDer<'static>) -> Option<String> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let tcp = TcpStream::connect(edge).await.unwrap();
        let mut tls = connector.connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await.ok()?;
        tls.write_all(b"ping").await.ok()?;
        let mut heard = String::new();
        tokio::time::timeout(PATIENCE, tls.read_to_string(&mut heard)).await.expect("it ends").ok()?;
        Some(heard)
    }

    #[tokio::test]
    async fn tls_ends_at_the_service_that_the_name_says() {
        let (one, first) = service("vault.test", false).await;
        let (two, second) = service("a.wild.test", true).await;
        let (one, two) = (one.to_string(), two.to_string());
        let pass = ("skep.tls", "passthrough");
        let stack = services(&[
            ("vault", &[("skep.host", "vault.test"), pass, ("skep.address", &one)]),
            ("wild", &[("skep.host", "*.wild.test"), pass, ("skep.address", &two), ("skep.proxy-protocol", "v1")]),
            ("shut", &[("skep.host", "shut.test"), pass, ("skep.address", &one), ("skep.auth", "staff")]),
            ("away", &[("skep.host", "away.test"), pass, ("skep.address", &one), ("skep.allow", "10.0.0.0/8")]),
            ("gone", &[("skep.host", "gone.test"), pass, ("skep.address", &nobody())]),
        ]);
        let (edge, lines) = listen(&stack).await;
        assert_eq!(ask(edge, "vault.test", &first).await.as_deref(), Some("ping"), "the client sees the service's own certificate");
        let heard = ask(edge, "a.wild.test", &second).await.unwrap();
        assert!(heard.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 ") && heard.ends_with("\r\nping"), "{heard}");
        for name in ["shut.test", "away.test", "gone.test", "stranger.test"] {
            assert_eq!(ask(edge, name, &first).await, None, "{name}");
        }
        until("all are told of", || std::future::ready(lines.0.lock().unwrap().len() == 5)).await;
        let lines = lines.0.lock().unwrap();
        let told: Vec<_> = lines.iter().map(|line| (line["host"].as_str().unwrap(), line["status"].as_u64().unwrap())).collect();
        assert_eq!(told, [("vault.test", 200), ("a.wild.test", 200), ("shut.test", 503), ("away.test", 403), ("gone.test", 502)]);
        assert_eq!((lines[0]["method"].as_str(), lines[0]["route"].as_str()), (Some("TLS"), Some("vault")));
        assert!(lines[0]["bytes_in"].as_u64() > Some(200), "the ClientHello counts: {}", lines[0]);
    }

    #[tokio::test]
    async fn the_edge_passes_it_through_and_sends_http_to_https() {
        let (one, first) = service("vault.test", false).await;
        let one = one.to_string();
        let stack = services(&[("vault", &[("skep.host", "vault.test"), ("skep.tls", "passthrough"), ("skep.address", &one)])]);
        let edge = Edge::with_config(&stack, |config| {
            config.https.listen = vec!["127.0.0.1:0".parse().unwrap()];
            config.https.public_port = Some(443);
        })
        .await;
        assert_eq!(ask(edge.running.https[0], "vault.test", &first).await.as_deref(), Some("ping"));
        assert_eq!(ask(edge.running.https[0], "other.test", &first).await, None, "the edge's own certificate");
        let reply = get_path(edge.http, "vault.test", "/ui?a=1").await;
        assert_eq!((reply.status, reply.header("location")), (301, "https://vault.test/ui?a=1"));
        let reply = send(edge.http, request("POST", "vault.test", "/", &[])).await;
        assert_eq!(reply.status, 308);
    }
}
