//! TLS towards upstreams: the certificate is verified against the machine's authorities and the name that the label gives.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::harness::{self, get_path, services};

/// The built binary: the authorities are read from the environment when a process starts.
struct Edge(Child, SocketAddr);

impl Drop for Edge {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An HTTPS upstream that answers `secret` on every path, with a certificate for `localhost` from `issuer`.
async fn upstream(issuer: &Issuer<'_, KeyPair>) -> SocketAddr {
    upstream_named(issuer, "localhost").await
}

async fn upstream_named(issuer: &Issuer<'_, KeyPair>, name: &str) -> SocketAddr {
    let (address, acceptor, listener) = secured(issuer, name, &[]).await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us ends the handshake; that is what some of the stories are about.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                let mut buffer = [0_u8; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await.unwrap();
                }
            });
        }
    });
    address
}

/// The same over HTTP/2, and over nothing else.
async fn upstream_of_http2(issuer: &Issuer<'_, KeyPair>, name: &str) -> SocketAddr {
    let (address, acceptor, listener) = secured(issuer, name, &[b"h2"]).await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = |_| async { Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"secret")))) };
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
            tokio::spawn(connection);
        }
    });
    address
}

/// A listener, and what makes TLS of its connections with a certificate for `name`.
async fn secured(issuer: &Issuer<'_, KeyPair>, name: &str, protocols: &[&[u8]]) -> (SocketAddr, TlsAcceptor, TcpListener) {
    // Another test of this process may have installed it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), acceptor, listener)
}

fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

#[tokio::test]
async fn an_https_upstream_must_prove_its_name() {
    // Another test of this process may have installed it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (trusted, pem) = authority();
    let (stranger, _) = authority();
    let good = upstream(&trusted).await;
    let bad = upstream(&stranger).await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let https = |host: &'static str, address: String| {
        vec![("skep.host", host.to_owned()), ("skep.scheme", "https".to_owned()), ("skep.address", address)]
    };
    let checked = |mut labels: Vec<(&'static str, String)>| {
        let check = [("skep.health-path", "/health"), ("skep.health-interval", "100ms"), ("skep.health-unhealthy", "1")];
        labels.extend(check.map(|(key, value)| (key, value.to_owned())));
        labels
    };
    let table = [
        ("good", https("good.test", format!("localhost:{}", good.port())), 200),
        ("stranger", https("stranger.test", format!("localhost:{}", bad.port())), 502),
        ("misnamed", https("misnamed.test", good.to_string()), 502),
        // A check trusts whom requests trust; where it fails on every task, none is asked.
        ("checked", checked(https("checked.test", format!("127.0.0.1:{}, localhost:{}", good.port(), good.port()))), 200),
        ("unproven", checked(https("unproven.test", format!("localhost:{}", bad.port()))), 503),
    ];
    let labels: Vec<(&str, Vec<(&str, &str)>)> =
        table.iter().map(|(name, labels, _)| (*name, labels.iter().map(|(key, value)| (*key, value.as_str())).collect())).collect();
    let labels: Vec<(&str, &[(&str, &str)])> = labels.iter().map(|(name, labels)| (*name, labels.as_slice())).collect();
    let stack = write("stack.yml", &services(&labels));
    let authorities = write("ca.pem", &pem);
    let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_skep"))
        .args(["run", "--no-docker", "--http", &http.to_string(), "--file"])
        .arg(stack)
        .envs([("SSL_CERT_FILE", authorities.as_os_str())])
        .env_remove("SSL_CERT_DIR")
        .envs([("SKEP_STATE_DIRECTORY", "off"), ("SKEP_ADMIN_LISTEN", "off"), ("SKEP_HTTPS_LISTEN", "off")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let edge = Edge(child, http);
    let began = Instant::now();
    while TcpStream::connect(edge.1).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the edge never listened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, labels, status) in &table {
        let mut reply = get_path(edge.1, &labels[0].1, "/").await;
        // Until the first checks are answered, tasks are asked all the same.
        while name.starts_with("un") && reply.status != *status && began.elapsed() < Duration::from_secs(20) {
            reply = get_path(edge.1, &labels[0].1, "/").await;
        }
        assert_eq!(reply.status, *status, "{name}: {reply:?}");
    }
}

#[tokio::test]
async fn labels_say_whom_a_task_is_vouched_for_by() {
    let (ours, pem) = authority();
    let (stranger, _) = authority();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("internal.pem");
    std::fs::write(&file, pem).unwrap();
    let ca = file.to_str().unwrap();
    let good = upstream_named(&ours, "shop.internal").await.to_string();
    let bad = upstream_named(&stranger, "shop.internal").await.to_string();
    let grpc = upstream_of_http2(&ours, "shop.internal").await.to_string();
    let (ca, name, wrong) = (("skep.upstream-ca", ca), ("skep.upstream-sni", "shop.internal"), ("skep.upstream-sni", "other.internal"));
    let (off, check) = (("skep.upstream-verify", "off"), [("skep.health-path", "/"), ("skep.health-interval", "100ms")]);
    // In this order: no connection that one of them keeps may serve the next, which asks for more.
    type Row<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], u16);
    let table: [Row<'_>; 11] = [
        ("careless", "https", &bad, &[name, off], 200),
        ("misled", "https", &bad, &[name, ca], 502),
        ("vouched", "https", &good, &[name, ca], 200),
        ("unvouched", "https", &good, &[name], 502),
        ("unnamed", "https", &good, &[ca], 502),
        ("misnamed", "https", &good, &[wrong, ca], 502),
        ("nameless", "https", &good, &[wrong, off], 200),
        ("rpc", "grpcs", &grpc, &[name, ca], 200),
        ("foreign-rpc", "grpcs", &grpc, &[name], 502),
        ("checked", "https", &good, &[name, ca, check[0], check[1]], 200),
        ("careless-check", "https", &bad, &[wrong, off, check[0], check[1]], 200),
    ];
    let labels: Vec<(&str, Vec<(&str, String)>)> = table
        .iter()
        .map(|(service, scheme, address, more, _)| {
            let own =
                [("skep.host", format!("{service}.test")), ("skep.scheme", (*scheme).to_owned()), ("skep.address", (*address).to_owned())];
            (*service, own.into_iter().chain(more.iter().map(|(key, value)| (*key, (*value).to_owned()))).collect())
        })
        .collect();
    let labels: Vec<(&str, Vec<(&str, &str)>)> =
        labels.iter().map(|(name, labels)| (*name, labels.iter().map(|(key, value)| (*key, value.as_str())).collect())).collect();
    let labels: Vec<(&str, &[(&str, &str)])> = labels.iter().map(|(name, labels)| (*name, labels.as_slice())).collect();
    let edge = harness::Edge::with(&services(&labels)).await;
    // Until the first checks are answered, tasks are asked all the same.
    for round in 0..2 {
        for (name, _, _, _, status) in &table {
            let reply = get_path(edge.http, &format!("{name}.test"), "/").await;
            assert_eq!(reply.status, *status, "{name}, round {round}: {reply:?}");
            assert_eq!(reply.body == "secret", *status == 200, "{name}");
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let lines = edge.log_lines(table.len()).await;
    let error = |index: usize| lines[index]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error(1).contains("TLSHandshakeFailure: invalid peer certificate: "), "{}", error(1));
    assert!(error(5).contains("other.internal"), "{}", error(5));
}

#[tokio::test]
async fn authorities_are_read_again_and_none_means_nobody() {
    let (ours, pem) = authority();
    let (stranger, other) = authority();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("internal.pem");
    let (one, two) = (upstream_named(&ours, "one.internal").await.to_string(), upstream_named(&stranger, "two.internal").await.to_string());
    let with = |host: &'static str, name: &'static str, address: &str| {
        vec![
            ("skep.host", host.to_owned()),
            ("skep.scheme", "https".to_owned()),
            ("skep.address", address.to_owned()),
            ("skep.upstream-sni", name.to_owned()),
            ("skep.upstream-ca", file.to_str().unwrap().to_owned()),
        ]
    };
    let labels = [("one", with("one.test", "one.internal", &one)), ("two", with("two.test", "two.internal", &two))];
    let labels: Vec<(&str, Vec<(&str, &str)>)> =
        labels.iter().map(|(name, labels)| (*name, labels.iter().map(|(key, value)| (*key, value.as_str())).collect())).collect();
    let labels: Vec<(&str, &[(&str, &str)])> = labels.iter().map(|(name, labels)| (*name, labels.as_slice())).collect();
    let edge = harness::Edge::with(&services(&labels)).await;
    let reply = get_path(edge.http, "one.test", "/").await;
    assert_eq!((reply.status, reply.body.contains("secret")), (502, false), "{reply:?}");
    let line = edge.log_lines(1).await.remove(0);
    assert!(line["error"].as_str().is_some_and(|error| error.contains("upstream-ca")), "{line}");
    for (text, served, refused) in [(&pem, "one.test", "two.test"), (&other, "two.test", "one.test")] {
        std::fs::write(&file, text).unwrap();
        let began = Instant::now();
        while get_path(edge.http, served, "/").await.status != 200 {
            assert!(began.elapsed() < Duration::from_secs(30), "never read again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(get_path(edge.http, refused, "/").await.status, 502, "a kept connection is of no use once its authority is gone");
    }
}
