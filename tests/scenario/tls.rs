//! TLS towards upstreams: the certificate is verified against the machine's authorities and the name that the label gives.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::harness::{get_path, services};

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
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us ends the handshake; that is what the second story is about.
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
