//! HTTPS at the edge: who is shown which certificate, what is agreed on, where HTTP leads, and what never happens in clear.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Edge, Reply, Upstream, raw, request, send, services};

/// An authority whose certificates the clients here trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate for `names` and its key as NAME.crt and NAME.key.
    pub fn write(&self, directory: &Path, file: &str, names: &[&str]) {
        let (certificate, key) = self.certificate(names, "server", ExtendedKeyUsagePurpose::ServerAuth);
        std::fs::write(directory.join(format!("{file}.crt")), certificate.pem()).unwrap();
        let path = directory.join(format!("{file}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    fn certificate(&self, names: &[&str], subject: &str, purpose: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, subject);
        params.extended_key_usages = vec![purpose];
        let day = |days: i64| {
            let date = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)).to_zoned(jiff::tz::TimeZone::UTC).date();
            rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
        };
        (params.not_before, params.not_after) = (day(-1), day(89));
        // As public authorities have it; nobody looks there.
        params.crl_distribution_points = vec![rcgen::CrlDistributionPoint { uris: vec!["http://crl.test/ca.crl".to_owned()] }];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A client that trusts this authority only.
    pub fn client(&self, protocols: &[&[u8]]) -> ClientConfig {
        let mut config = ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config
    }

    /// The same, that shows a certificate of `by` with `subject` when it is asked.
    fn client_with(&self, by: &Authority, subject: &str) -> ClientConfig {
        let (certificate, key) = by.certificate(&[], subject, ExtendedKeyUsagePurpose::ClientAuth);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ClientConfig::builder().with_root_certificates(self.roots()).with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        roots
    }
}

pub async fn connect(address: SocketAddr, name: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await
}

/// One HTTP/1.1 request over a connection of its own.
async fn get(stream: TlsStream<TcpStream>, host: &str, path: &str) -> Reply {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let (head, body) = sender.send_request(request("GET", host, path, &[])).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
}

/// The same over HTTP/2.
async fn get2(stream: TlsStream<TcpStream>, host: &str, path: &str) -> Reply {
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let asked = http::Request::get(format!("https://{host}{path}")).body(Full::<Bytes>::default()).unwrap();
    let (head, body) = sender.send_request(asked).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
}

pub struct Secured {
    pub edge: Edge,
    pub authority: Authority,
    pub files: tempfile::TempDir,
    pub https: SocketAddr,
    _upstream: Upstream,
}

/// Services behind HTTPS; a.test and b.test share a certificate, c.test has its own, and so has everything below w.test.
pub async fn secured(labels: &[(&str, &[(&str, &str)])], change: impl FnOnce(&mut skep::config::Config, &Path)) -> Secured {
    let (upstream, authority, files) = (Upstream::start("web").await, Authority::new("Servers"), tempfile::tempdir().unwrap());
    authority.write(files.path(), "ab", &["a.test", "b.test"]);
    authority.write(files.path(), "c", &["c.test"]);
    authority.write(files.path(), "w", &["*.w.test"]);
    let address = upstream.address.to_string();
    let all: Vec<(&str, Vec<(&str, &str)>)> = labels
        .iter()
        .map(|(name, own)| (*name, own.iter().copied().chain([("skep.address", address.as_str()), ("skep.cert", "file")]).collect()))
        .collect();
    let all: Vec<(&str, &[(&str, &str)])> = all.iter().map(|(name, labels)| (*name, labels.as_slice())).collect();
    let path = files.path().to_owned();
    let edge = Edge::with_config(&services(&all), |config| {
        config.https.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.certificates.directory = Some(path.clone());
        change(config, &path);
    })
    .await;
    let https = edge.running.https[0];
    let secured = Secured { edge, authority, files, https, _upstream: upstream };
    // No wait: a client of the first moment, as during an upgrade, is shown the right one.
    connect(https, "c.test", secured.authority.client(&[])).await.expect("shown from the first handshake on");
    secured
}

impl Secured {
    async fn connect(&self, name: &str) -> TlsStream<TcpStream> {
        connect(self.https, name, self.authority.client(&[])).await.unwrap()
    }
}

pub const THREE: &[(&str, &[(&str, &str)])] = &[
    ("a", &[("skep.host", "a.test"), ("skep.hsts", "365d")]),
    ("b", &[("skep.host", "b.test"), ("skep.redirect-from", "w.w.test"), ("skep.tls", "both")]),
    ("c", &[("skep.host", "c.test"), ("skep.tls", "only")]),
    ("off", &[("skep.host", "x.w.test"), ("skep.tls", "off")]),
];

#[tokio::test]
async fn http_leads_to_https_where_the_route_wants_it() {
    let edge = secured(THREE, |config, _| config.https.public_port = Some(443)).await;
    // method, host, path, status, where to
    for (method, host, path, status, to) in [
        ("GET", "a.test", "/x?y=1", 301, "https://a.test/x?y=1"),
        ("HEAD", "a.test", "/", 301, "https://a.test/"),
        ("POST", "a.test", "/x", 308, "https://a.test/x"),
        ("GET", "a.test", "/.well-known/acme-challenge/of-the-service", 200, ""),
        ("GET", "b.test", "/", 200, ""),
        ("GET", "c.test", "/", 403, ""),
        ("GET", "w.w.test", "/q", 301, "http://b.test"),
        ("GET", "x.w.test", "/", 200, ""),
    ] {
        let reply = send(edge.edge.http, request(method, host, path, &[])).await;
        assert_eq!(reply.status, status, "{method} {host}{path}");
        assert!(reply.header("location").starts_with(to), "{host}{path}: {}", reply.header("location"));
        assert_eq!(reply.header("strict-transport-security"), "", "never over HTTP (RFC 6797, 7.2)");
    }
    for (host, path, status, hsts) in [("a.test", "/", 200, "max-age=31536000"), ("c.test", "/", 200, ""), ("x.w.test", "/", 404, "")] {
        let reply = get(edge.connect(host).await, host, path).await;
        assert_eq!((reply.status, reply.header("strict-transport-security")), (status, hsts), "{host}");
    }
    let redirected = get(edge.connect("w.w.test").await, "w.w.test", "/q?r").await;
    assert_eq!(redirected.status, 301);
    assert!(redirected.header("location").starts_with("https://b.test") && redirected.header("location").ends_with("/q?r"));
}

#[tokio::test]
async fn both_protocols_are_spoken_and_the_upstream_hears_of_tls() {
    let edge = secured(THREE, |_, _| {}).await;
    for (offered, agreed) in [(&[b"h2" as &[u8], b"http/1.1"][..], Some("h2")), (&[b"http/1.1"], Some("http/1.1")), (&[], None)] {
        let stream = connect(edge.https, "a.test", edge.authority.client(offered)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes));
        let reply = if agreed == Some("h2") { get2(stream, "a.test", "/").await } else { get(stream, "a.test", "/").await };
        assert_eq!(reply.upstream_saw("x-forwarded-proto"), "https", "{agreed:?}");
        assert_eq!(reply.upstream_saw("x-forwarded-port"), edge.https.port().to_string());
    }
    let lines = edge.edge.log_lines(3).await;
    assert!(lines.iter().all(|line| line["tls_ms"].is_number() && line["host"] == "a.test"), "{lines:?}");
}

#[tokio::test]
async fn bodies_of_any_size_pass_both_ways() {
    let edge = secured(THREE, |_, _| {}).await;
    for protocol in [&b"h2"[..], b"http/1.1"] {
        for size in [1_usize, 16_384, 100_000, 3_000_000] {
            let stream = connect(edge.https, "a.test", edge.authority.client(&[protocol])).await.unwrap();
            let down = match protocol {
                b"h2" => get2(stream, "a.test", &format!("/bytes/{size}")).await,
                _ => get(stream, "a.test", &format!("/bytes/{size}")).await,
            };
            assert_eq!((down.status, down.body.len()), (200, size));
            let stream = connect(edge.https, "a.test", edge.authority.client(&[protocol])).await.unwrap();
            let up = http::Request::post(if protocol == b"h2" { "https://a.test/count" } else { "/count" });
            let up = if protocol == b"h2" { up } else { up.header("host", "a.test") };
            let up = up.body(Full::new(Bytes::from(vec![b'x'; size]))).unwrap();
            let answer = match protocol {
                b"h2" => {
                    let (mut sender, connection) =
                        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
                    tokio::spawn(connection);
                    sender.send_request(up).await.unwrap()
                }
                _ => {
                    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                    tokio::spawn(connection);
                    sender.send_request(up).await.unwrap()
                }
            };
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, size.to_string().as_bytes());
        }
    }
}

#[tokio::test]
async fn a_request_stays_with_the_host_that_its_connection_was_made_for() {
    let edge = secured(THREE, |_, _| {}).await;
    // connected as, asked for, status
    for (name, host, status) in [("a.test", "a.test", 200), ("a.test", "b.test", 200), ("a.test", "c.test", 421), ("c.test", "a.test", 421)]
    {
        assert_eq!(get(edge.connect(name).await, host, "/").await.status, status, "{name} -> {host}");
        let stream = connect(edge.https, name, edge.authority.client(&[b"h2"])).await.unwrap();
        assert_eq!(get2(stream, host, "/").await.status, status, "{name} -> {host} over HTTP/2");
    }
}

#[tokio::test]
async fn clients_prove_themselves_where_the_label_asks_for_it() {
    let people = Authority::new("People");
    let labels: &[(&str, &[(&str, &str)])] = &[
        ("a", &[("skep.host", "a.test"), ("skep.client-ca", "people.pem"), ("skep.tls", "both")]),
        ("b", &[("skep.host", "b.test")]),
        ("c", &[("skep.host", "c.test"), ("skep.client-ca", "nobody.pem")]),
    ];
    let pem = people.pem.clone();
    let edge = secured(labels, |config, files| {
        let authorities = files.join("authorities");
        std::fs::create_dir(&authorities).unwrap();
        std::fs::write(authorities.join("people.pem"), &pem).unwrap();
        config.certificates.authorities = Some(authorities);
    })
    .await;
    let alice = || edge.authority.client_with(&people, "alice");
    let reply = get(connect(edge.https, "a.test", alice()).await.unwrap(), "a.test", "/").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.upstream_saw("x-client-cert-subject"), "CN=alice");
    assert!(reply.upstream_saw("client-cert").starts_with(":MII"), "{}", reply.body);
    assert_eq!(get(edge.connect("a.test").await, "a.test", "/").await.status, 403, "without a certificate");
    let strange = edge.authority.client_with(&Authority::new("Strangers"), "alice");
    let strange = connect(edge.https, "a.test", strange).await;
    let refused = match strange {
        Err(_) => true,
        // TLS 1.3 clients hear of it with their first read.
        Ok(mut stream) => {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.is_err() || !matches!(stream.read(&mut [0; 9]).await, Ok(1..))
        }
    };
    assert!(refused, "a certificate of another authority");
    assert_eq!(
        get(connect(edge.https, "b.test", alice()).await.unwrap(), "a.test", "/").await.status,
        421,
        "by way of a host that does not ask"
    );
    assert_eq!(get(connect(edge.https, "c.test", alice()).await.unwrap(), "c.test", "/").await.status, 403, "nobody can be asked");
    let clear =
        send(edge.edge.http, request("GET", "a.test", "/", &[("x-client-cert-subject", "CN=alice"), ("client-cert", ":AA:")])).await;
    assert_eq!(clear.status, 403);
    let forged = "GET / HTTP/1.1\r\nHost: b.test\r\nX-Client-Cert-Subject: CN=root\r\nX_Client_Cert_Subject: CN=root\r\nClient-Cert: :AA:\r\nConnection: close\r\n\r\n";
    let mut stream = edge.connect("b.test").await;
    stream.write_all(forged.as_bytes()).await.unwrap();
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer).await;
    assert!(answer.contains("200 OK") && !answer.contains("CN=root") && !answer.contains(":AA:"), "{answer}");
}

#[tokio::test]
async fn what_is_no_tls_is_told_so() {
    let edge = secured(THREE, |config, _| config.https.handshake_timeout = Duration::from_millis(300)).await;
    let answer = raw(edge.https, b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    assert_eq!(raw(edge.https, b"\x80\x2e\x01\x00\x02").await, "");
    let began = tokio::time::Instant::now();
    for slow in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        assert_eq!(raw(edge.https, slow).await, "");
    }
    assert!(began.elapsed() < Duration::from_secs(4), "each is closed after the handshake's time");
    assert_eq!(get(edge.connect("a.test").await, "a.test", "/").await.status, 200);
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_no_connection_is_lost() {
    let edge = secured(THREE, |_, _| {}).await;
    let stream = edge.connect("c.test").await;
    let (mut old, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let shown = async || edge.connect("c.test").await.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let before = shown().await;
    edge.authority.write(edge.files.path(), "c", &["c.test"]);
    for _ in 0..400 {
        let answer = old.send_request(request("GET", "c.test", "/", &[])).await.unwrap();
        assert_eq!(answer.status(), 200, "on a connection of the old certificate");
        answer.into_body().collect().await.unwrap();
        if shown().await != before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the new certificate is never shown");
}

#[tokio::test]
async fn half_an_answer_never_ends_well() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = [0; 4096];
            _ = tcp.read(&mut head).await;
            _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            // So that the client has some of it.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let (authority, files) = (Authority::new("Servers"), tempfile::tempdir().unwrap());
    authority.write(files.path(), "a", &["a.test"]);
    let labels: &[(&str, &str)] = &[("skep.host", "a.test"), ("skep.cert", "file"), ("skep.address", &address)];
    let edge = Edge::with_config(&services(&[("a", labels)]), |config| {
        config.https.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.certificates.directory = Some(files.path().to_owned());
    })
    .await;
    let mut stream = connect(edge.running.https[0], "a.test", authority.client(&[])).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer).await;
    assert!(end.is_err(), "a close_notify would make it look whole: {end:?} {}", String::from_utf8_lossy(&answer));
    let mut whole = connect(edge.running.https[0], "a.test", authority.client(&[])).await.unwrap();
    whole.write_all(b"GET / HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    whole.read_to_end(&mut answer).await.expect("a whole answer ends with a goodbye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_and_curl_agree() {
    let edge = secured(THREE, |_, _| {}).await;
    let root = edge.files.path().join("root.pem");
    std::fs::write(&root, &edge.authority.pem).unwrap();
    let at = edge.https.to_string();
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &at, "-servername", "a.test", "-verify_return_error", "-CAfile"]).arg(&root).args(arguments);
        let output = command.stdin(std::process::Stdio::null()).output().expect("openssl is installed: ./dev test sees to it");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    for (arguments, wanted) in [
        (&["-tls1_2"][..], "TLSv1.2"),
        (&["-tls1_3"], "TLSv1.3"),
        (&["-alpn", "h2"], "ALPN protocol: h2"),
        (&["-tls1_2", "-cipher", "AES128-SHA"], "alert handshake failure"),
        (&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "alert"),
        (&["-verify_hostname", "a.test"], "Verification: OK"),
        (&["-servername", "A.Test"], "Verification: OK"),
        (&["-servername", "b.test."], "Verification: OK"),
    ] {
        let said = openssl(arguments);
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let session = edge.files.path().join("session");
        let kept = session.to_str().unwrap();
        // TLS 1.3 tickets come after the handshake: something has to be read.
        let first = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "(printf 'GET / HTTP/1.1\\r\\nHost: a.test\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) | \
                 openssl s_client -connect {at} -servername a.test {version} -sess_out {kept} -ign_eof"
            ))
            .output()
            .unwrap();
        assert!(session.exists(), "{}", String::from_utf8_lossy(&first.stderr));
        let again = openssl(&[version, "-sess_in", kept]);
        assert!(again.contains("Reused, "), "{version}: {again}");
    }
    for protocol in ["--http1.1", "--http2"] {
        let port = edge.https.port();
        let output = Command::new("curl")
            .args(["-sS", protocol, "--cacert"])
            .arg(&root)
            .args([
                "--resolve",
                &format!("a.test:{port}:127.0.0.1"),
                &format!("https://a.test:{port}/"),
                "-w",
                "%{http_code} %{http_version}",
            ])
            .output()
            .expect("curl is installed");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("200 ") && output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    }
}
