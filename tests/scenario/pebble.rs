//! A certificate authority of one's own: pebble with real validation, its DNS server, and a listener that serves the answers to its
//! challenges. Each has ports and state of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use skep::certificate::challenge::{ALPN, Challenges};
use skep::certificate::dns::{Dns, Error, Provider, Record};
use skep::certificate::zone::Zones;
use skep::config;
use skep::store::Store;
use skep::store::keyed::Keyed;

pub use crate::harness::free_port;
use crate::harness::{request, send};

/// A child process that ends with its owner.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What differs from authority to authority.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Key ids with their keys: then accounts need one of them.
    pub bindings: BTreeMap<&'static str, &'static str>,
    /// Percent of the nonces that are refused.
    pub refused_nonces: u32,
    /// Slower validation, by up to so many seconds.
    pub slow: Option<u32>,
    pub alternate_roots: u32,
    /// Seconds for which its certificates are good; 0: 90 days.
    pub validity: u32,
}

/// A running authority.
pub struct Pebble {
    pub directory: tempfile::TempDir,
    /// Where its ACME directory is.
    pub address: SocketAddr,
    /// Where challtestsrv takes changes of the DNS.
    pub dns: SocketAddr,
    /// Where it tells of itself.
    management: SocketAddr,
    /// Where HTTP-01 and TLS-ALPN-01 are validated.
    pub http_port: u16,
    pub tls_port: u16,
    options: Options,
    pebble: Option<Process>,
    names: Option<Process>,
    dns_port: u16,
}

/// An authority for the servers of tests, its certificate, and a certificate with key for this machine, all PEM.
pub fn server_certificate(directory: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &issuer).unwrap().pem();
    for (name, text) in [("ca.pem", pem), ("cert.pem", leaf), ("key.pem", key.serialize_pem())] {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

/// Waits until somebody listens.
pub async fn listening(address: SocketAddr) {
    let began = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody listens at {address}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Pebble {
    pub async fn start(options: Options) -> Pebble {
        let directory = tempfile::tempdir().unwrap();
        server_certificate(directory.path());
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut pebble = Pebble {
            directory,
            address: at(free_port()),
            dns: at(free_port()),
            management: at(free_port()),
            http_port: free_port(),
            tls_port: free_port(),
            options,
            pebble: None,
            names: None,
            dns_port: free_port(),
        };
        pebble.start_names().await;
        pebble.start_authority().await;
        pebble
    }

    /// The authority with its whole memory gone, as pebble keeps none.
    pub async fn start_authority(&mut self) {
        self.pebble = None;
        let path = |name: &str| self.directory.path().join(name);
        let options = &self.options;
        let config = serde_json::json!({"pebble": {
            "listenAddress": self.address.to_string(), "managementListenAddress": self.management.to_string(),
            "certificate": path("cert.pem"), "privateKey": path("key.pem"), "httpPort": self.http_port, "tlsPort": self.tls_port,
            "ocspResponderURL": "", "domainBlocklist": ["blocked.test"], "externalAccountBindingRequired": !options.bindings.is_empty(),
            "externalAccountMACKeys": options.bindings, "certificateValidityPeriod": if options.validity > 0 { options.validity } else { 7_776_000 },
        }});
        std::fs::write(path("pebble.json"), config.to_string()).unwrap();
        let mut command = Command::new("pebble");
        command.arg("-config").arg(path("pebble.json")).args(["-dnsserver", &format!("127.0.0.1:{}", self.dns_port)]);
        command.envs([("PEBBLE_WFE_NONCEREJECT", options.refused_nonces.to_string()), ("PEBBLE_AUTHZREUSE", "0".to_owned())]);
        command.env("PEBBLE_ALTERNATE_ROOTS", options.alternate_roots.to_string());
        match options.slow {
            Some(seconds) => command.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
            None => command.env("PEBBLE_VA_NOSLEEP", "1"),
        };
        self.pebble = Some(self.spawn(command, "pebble.log"));
        listening(self.address).await;
    }

    /// Whom clients of its certificates trust.
    pub async fn roots(&self) -> rustls::RootCertStore {
        let url = format!("https://{}/roots/0", self.management);
        let told = tokio::process::Command::new("curl").args(["-sSk", &url]).output().await.expect("curl is installed");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(&told.stdout).expect("a root")).unwrap();
        roots
    }

    pub fn stop_authority(&mut self) {
        self.pebble = None;
    }

    /// What the authority says of what it does.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("pebble.log")).unwrap()
    }

    /// The DNS in which every name is this machine.
    pub async fn start_names(&mut self) {
        self.names = None;
        let mut command = Command::new("pebble-challtestsrv");
        command.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""]);
        command.args(["-dns01", &format!("127.0.0.1:{}", self.dns_port), "-management", &self.dns.to_string()]);
        self.names = Some(self.spawn(command, "names.log"));
        listening(self.dns).await;
    }

    fn spawn(&self, mut command: Command, log: &str) -> Process {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join(log)).unwrap();
        let program = command.get_program().to_owned();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Process(child.unwrap_or_else(|error| panic!("{program:?}: {error}; `./dev test` installs it, as does `apt-get install pebble`")))
    }

    /// Where its DNS is asked.
    pub fn names_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.dns_port))
    }

    /// The same DNS as Skep uses it.
    pub fn provider(&self, names: &Arc<TestNames>) -> Arc<Dns> {
        let server = self.names_address();
        Arc::new(Dns::new(names.clone(), Zones::new(&[server], vec![server]).unwrap(), None, Duration::from_secs(20)))
    }

    /// The issuer as Skep is configured for it.
    pub fn issuer(&self) -> config::Issuer {
        self.issuer_at(self.address)
    }

    /// The same behind something that listens elsewhere.
    pub fn issuer_at(&self, address: SocketAddr) -> config::Issuer {
        let mut issuer = config::Issuer::new("pebble", &format!("https://{address}/dir"));
        issuer.root = Some(self.directory.path().join("ca.pem"));
        issuer
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// How many certificates it gave.
    pub fn issued(&self) -> usize {
        std::fs::read_to_string(self.directory.path().join("pebble.log")).unwrap().matches("Issued certificate serial").count()
    }

    /// Changes the DNS: `set-txt`, `clear-txt`, `add-a`, `set-servfail`, ...
    pub async fn change_names(&self, what: &str, body: serde_json::Value) {
        change_names(self.dns, what, body).await;
    }
}

async fn change_names(address: SocketAddr, what: &str, body: serde_json::Value) {
    let mut request = request("POST", "localhost", &format!("/{what}"), &[]);
    *request.body_mut() = body.to_string().into();
    let reply = send(address, request).await;
    assert_eq!(reply.status, 200, "{what} {body}: {reply:?}");
}

/// challtestsrv as a DNS provider.
#[derive(Debug)]
pub struct TestNames {
    management: SocketAddr,
    /// What is there now: names with their values.
    pub records: Mutex<Vec<(String, String)>>,
}

impl TestNames {
    pub fn of(pebble: &Pebble) -> Arc<TestNames> {
        Arc::new(TestNames { management: pebble.dns, records: Mutex::default() })
    }
}

#[async_trait]
impl Provider for TestNames {
    async fn publish(&self, record: &Record) -> Result<(), Error> {
        self.records.lock().unwrap().push((record.name.clone(), record.value.clone()));
        let body = serde_json::json!({"host": format!("{}.", record.name), "value": record.value});
        change_names(self.management, "set-txt", body).await;
        Ok(())
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        self.records.lock().unwrap().retain(|other| *other != (record.name.clone(), record.value.clone()));
        change_names(self.management, "clear-txt", serde_json::json!({"host": format!("{}.", record.name)})).await;
        Ok(())
    }

    fn needs_zone(&self) -> bool {
        false
    }
}

/// A store on a disk of its own.
pub fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let (store, findings) = Keyed::open(directory.path()).unwrap();
    assert_eq!(findings, []);
    (directory, Arc::new(store))
}

/// A door to an authority that can be shut: it counts what comes in, and cuts connections.
pub struct Door {
    pub address: SocketAddr,
    /// Pieces that clients sent so far.
    pub pieces: Arc<AtomicUsize>,
    cut: Arc<Mutex<Cut>>,
    task: tokio::task::JoinHandle<()>,
}

/// What happens at a door.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    Never,
    /// The connection that brings the n-th piece is cut; later ones are fine.
    Once(usize),
    /// From the n-th piece on, every connection is cut.
    From(usize),
    /// From the n-th piece on, nothing passes, and nobody is told.
    Silent(usize),
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Door {
    pub async fn to(authority: SocketAddr, cut: Cut) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, pieces) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let cut = Arc::new(Mutex::new(cut));
        let (counted, now) = (Arc::clone(&pieces), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, authority, Arc::clone(&now), Arc::clone(&counted)));
            }
        });
        Door { address, pieces, cut, task }
    }

    pub fn open(&self) {
        *self.cut.lock().unwrap() = Cut::Never;
    }
}

async fn pass(mut client: TcpStream, authority: SocketAddr, cut: Arc<Mutex<Cut>>, pieces: Arc<AtomicUsize>) {
    let mut server = TcpStream::connect(authority).await.unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let number = pieces.fetch_add(1, Ordering::SeqCst) + 1;
            let cut = *cut.lock().unwrap();
            match cut {
                Cut::Once(at) if number == at => return,
                Cut::From(at) if number >= at => return,
                Cut::Silent(at) if number >= at => std::future::pending().await,
                _ => {}
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    // Either end may be gone first; then the other goes too.
    tokio::select! {
        () = there => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

/// A listener for HTTP-01; ends with its owner.
pub struct Answering(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Answering {
    /// Serves the answers in `challenges` over HTTP and over TLS, at these ports of 127.0.0.1.
    pub async fn start(challenges: &Arc<Challenges>, http_port: u16, tls_port: u16) -> Answering {
        Answering(vec![
            tokio::spawn(http(TcpListener::bind(("127.0.0.1", http_port)).await.unwrap(), Arc::clone(challenges))),
            tokio::spawn(tls(TcpListener::bind(("127.0.0.1", tls_port)).await.unwrap(), Arc::clone(challenges))),
        ])
    }
}

async fn http(listener: TcpListener, challenges: Arc<Challenges>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let challenges = Arc::clone(&challenges);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                let Ok(1..) = stream.read_buf(&mut head).await else { return };
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let (status, body) = challenges.http(path).map_or(("404 Not Found", String::new()), |answer| ("200 OK", answer));
            let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            // Whoever asked may be gone.
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

#[derive(Debug)]
struct ByChallenge(Arc<Challenges>);

impl ResolvesServerCert for ByChallenge {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.alpn()?.any(|protocol| protocol == ALPN).then_some(())?;
        self.0.tls(hello.server_name()?)
    }
}

async fn tls(listener: TcpListener, challenges: Arc<Challenges>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByChallenge(challenges)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // What the handshake comes to is the authority's to judge.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read(&mut [0]).await;
            }
        });
    }
}
