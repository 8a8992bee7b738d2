//! Discovery against a real engine: the scratch swarm that `SKEP_TEST_DOCKER` names.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use skep::config;
use skep::provider::{Health, docker};
use skep::snapshot::{Condition, Origin, Service, Snapshot, Swarm};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::swarm::Engine;

const IN_TIME: Duration = Duration::from_secs(30);

fn config(endpoint: &str) -> config::Docker {
    config::Docker {
        enabled: true,
        endpoint: endpoint.to_owned(),
        tls: None,
        networks: vec!["edge".to_owned()],
        poll_busy: Duration::from_millis(250),
        poll_rest: Duration::from_secs(5),
        resync: Duration::from_secs(60),
        debounce: Duration::from_millis(10),
    }
}

/// A discovery that runs until it is dropped, and what is taken away then.
struct Watched {
    engine: Engine,
    updates: watch::Receiver<Option<Arc<Snapshot>>>,
    health: Arc<Health>,
    stop: CancellationToken,
    made: Vec<String>,
}

impl Watched {
    fn new(engine: Engine) -> Watched {
        let (sender, updates) = watch::channel(None);
        let (health, stop) = (Arc::new(Health::default()), CancellationToken::new());
        tokio::spawn(docker::run(config(&engine.socket()), sender, health.clone(), stop.clone()));
        Watched { engine, updates, health, stop, made: Vec::new() }
    }

    /// The Docker CLI's output.
    fn cli(&self, arguments: &str) -> String {
        self.engine.docker(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// On an overlay network of the same name.
    fn service(&mut self, name: &str, arguments: &str) {
        self.made.extend([format!("service rm {name}"), format!("network rm {name}")]);
        self.cli(&format!("network create --driver overlay {name}"));
        self.cli(&format!("service create -d --no-resolve-image --name {name} --network {name} {arguments}"));
    }

    fn container(&mut self, name: &str, arguments: &str) {
        self.made.push(format!("rm -f {name}"));
        self.cli(&format!("run -d --name {name} {arguments}"));
    }

    fn state(&self, container: &str) -> String {
        self.cli(&format!("inspect -f {{{{.State.Status}}}} {container}"))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.updates.borrow().clone().expect("a snapshot")
    }

    /// Waits for a snapshot in which the service (`None` while it is not there) is as wanted; how long that took.
    async fn until(&mut self, name: &str, wanted: impl Fn(Option<&Service>) -> bool) -> Duration {
        let began = Instant::now();
        let found = self.updates.wait_for(|snapshot| {
            snapshot.as_ref().is_some_and(|snapshot| wanted(snapshot.services.iter().find(|service| service.name == name)))
        });
        if tokio::time::timeout(IN_TIME, found).await.is_err() {
            panic!("{name} is not as wanted: {:#?}", self.updates.borrow());
        }
        began.elapsed()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.cancel();
        for made in &self.made {
            // Best effort: a task may still hold the network, and the engine goes away anyway.
            let _ = std::process::Command::new("docker").args(["-H", &self.engine.socket()]).args(made.split(' ')).output();
        }
    }
}

fn healthy(service: Option<&Service>) -> usize {
    service.map_or(0, |service| service.tasks.iter().filter(|task| task.condition == Condition::Healthy).count())
}

fn condition(service: Option<&Service>) -> Option<Condition> {
    service.and_then(|service| service.tasks.first()).map(|task| task.condition)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_comes_scales_and_goes() {
    let Some(engine) = Engine::shared() else { return };
    let mut watched = Watched::new(engine);
    watched.service("d-life", "--replicas 1 -l skep.host=life.example skep-test:1");
    watched.until("d-life", |service| healthy(service) == 1).await;
    let snapshot = watched.snapshot();
    let service = snapshot.services.iter().find(|service| service.name == "d-life").expect("the service");
    assert_eq!((snapshot.engine.swarm, service.origin), (Swarm::Manager, Origin::Swarm));
    assert_eq!((&service.networks[..], &service.ports[..]), (&["d-life".to_owned()][..], &[80][..]));
    assert_eq!(service.tasks[0].addresses.keys().collect::<Vec<_>>(), ["d-life"]);
    for replicas in [5, 0, 1] {
        watched.cli(&format!("service scale -d d-life={replicas}"));
        let took = watched.until("d-life", |service| healthy(service) == replicas).await;
        eprintln!("scaled to {replicas} in {took:?}");
    }
    watched.cli("service rm d-life");
    watched.until("d-life", |service| service.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_change_is_seen_at_once_and_costs_at_most_five_calls() {
    let Some(engine) = Engine::shared() else { return };
    let mut watched = Watched::new(engine);
    watched.service("d-label", "--replicas 1 skep-test:1");
    watched.until("d-label", |service| healthy(service) == 1).await;
    let mut times = Vec::new();
    for number in 0..20 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let count = |health: &Health| [&health.calls, &health.refreshes, &health.polls].map(|counter| counter.load(Relaxed));
        let before = count(&watched.health);
        let value = format!("n{number}");
        watched.cli(&format!("service update -d --no-resolve-image --label-add skep.host={value} d-label"));
        times
            .push(watched.until("d-label", |service| service.is_some_and(|service| service.labels.get("skep.host") == Some(&value))).await);
        let after = count(&watched.health);
        let [calls, refreshes, polls] = [0, 1, 2].map(|index| after[index] - before[index]);
        // One listing may be under way at either end of the measurement.
        assert!(calls <= 5 * (refreshes + 1) + polls + 1, "{calls} calls, {refreshes} refreshes, {polls} polls");
    }
    times.sort();
    eprintln!("from the end of the CLI to the snapshot: median {:?}, slowest {:?}", times[10], times[19]);
    assert!(times[10] < Duration::from_millis(200), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_stop_signal_leaves_before_it_dies() {
    let Some(engine) = Engine::shared() else { return };
    let mut watched = Watched::new(engine);
    watched.container("d-stop", "-e LINGER=3 skep-test:1");
    watched.until("d-stop", |service| healthy(service) == 1).await;
    watched.cli("kill -s TERM d-stop");
    let took = watched.until("d-stop", |service| condition(service) == Some(Condition::Stopping)).await;
    eprintln!("from the end of the CLI to the snapshot: {took:?}");
    assert_eq!(watched.state("d-stop"), "running");
    watched.until("d-stop", |service| condition(service) == Some(Condition::Down)).await;
    watched.cli("start d-stop");
    watched.until("d-stop", |service| healthy(service) == 1).await;
    watched.cli("rm -f d-stop");
    watched.until("d-stop", |service| service.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_reads_its_files_again_stays() {
    let Some(engine) = Engine::shared() else { return };
    let mut watched = Watched::new(engine);
    // The first process of a container ignores signals that it does not handle.
    watched.container("d-reload", "skep-test:1 sleep 1000");
    watched.until("d-reload", |service| healthy(service) == 1).await;
    let before = watched.health.refreshes.load(Relaxed);
    watched.cli("kill -s HUP d-reload");
    while watched.health.refreshes.load(Relaxed) < before + 1 {
        assert_eq!(condition(watched.snapshot().services.iter().find(|service| service.name == "d-reload")), Some(Condition::Healthy));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(watched.state("d-reload"), "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_health_check_is_seen_and_its_recovery_too() {
    let Some(engine) = Engine::shared() else { return };
    let mut watched = Watched::new(engine);
    watched.container("d-sick", "skep-test:health");
    watched.until("d-sick", |service| healthy(service) == 1).await;
    watched.cli("exec d-sick touch /tmp/sick");
    watched.until("d-sick", |service| condition(service) == Some(Condition::Unhealthy)).await;
    watched.cli("exec d-sick rm /tmp/sick");
    watched.until("d-sick", |service| healthy(service) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_engine_leaves_the_last_snapshot_and_a_restarted_one_is_found() {
    let Some(engine) = Engine::own("plain") else { return };
    let mut watched = Watched::new(engine);
    watched.container("d-dead", "-l skep.host=dead.example skep-test:1");
    watched.until("d-dead", |service| healthy(service) == 1).await;
    let before = watched.snapshot();
    assert_eq!((before.engine.swarm, &before.engine.edge.networks[..]), (Swarm::Off, &["bridge".to_owned(), "edge".to_owned()][..]));
    for how in ["stop", "kill"] {
        watched.engine.engine(&[how], &[]);
        while watched.health.connected.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*watched.snapshot(), *before, "after {how}");
        watched.engine.engine(&["start"], &[]);
        watched.container(&format!("d-after-{how}"), "skep-test:1");
        watched.until(&format!("d-after-{how}"), |service| healthy(service) == 1).await;
        watched.until("d-dead", |service| healthy(service) == 1).await;
        watched.cli(&format!("rm -f d-after-{how}"));
        watched.until(&format!("d-after-{how}"), |service| service.is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_leaves_or_joins_a_swarm_is_asked_accordingly() {
    let Some(engine) = Engine::own("swarm") else { return };
    let mut watched = Watched::new(engine);
    watched.service("d-first", "skep-test:1");
    watched.until("d-first", |service| healthy(service) == 1).await;
    watched.cli("swarm leave --force");
    watched.container("d-plain", "skep-test:1");
    watched.until("d-first", |service| service.is_none()).await;
    watched.until("d-plain", |service| healthy(service) == 1).await;
    assert_eq!(watched.snapshot().engine.swarm, Swarm::Off);
    watched.cli("swarm init --advertise-addr 127.0.0.1");
    watched.service("d-second", "skep-test:1");
    watched.until("d-second", |service| healthy(service) == 1).await;
    assert_eq!(watched.snapshot().engine.swarm, Swarm::Manager);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_is_enough_for_a_command() {
    let Some(engine) = Engine::shared() else { return };
    let snapshot = docker::once(&config(&engine.socket())).await.expect("a snapshot");
    assert!(snapshot.engine.version.starts_with(|digit: char| digit.is_ascii_digit()));
    assert!(snapshot.engine.api.starts_with("1.") && snapshot.engine.edge.networks.contains(&"edge".to_owned()));
    for (endpoint, says) in [
        ("unix:///nowhere/docker.sock", "/nowhere/docker.sock"),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("https://127.0.0.1:1", "docker.tls"),
        ("nonsense", "unix:///path"),
    ] {
        let error = docker::once(&config(endpoint)).await.expect_err(endpoint).to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// In front of the engine's socket: TLS for those who show a certificate of this authority, as dockerd itself has it.
async fn tls(socket: String, pems: &std::path::Path) -> std::net::SocketAddr {
    let key = || rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = key();
    let authority_certificate = authority.self_signed(&authority_key).expect("an authority");
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let issue = |key: &rcgen::KeyPair| {
        rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("names").signed_by(key, &issuer).expect("a certificate")
    };
    let (server_key, client_key) = (key(), key());
    let (server, client) = (issue(&server_key), issue(&client_key));
    for (name, pem) in [("ca", authority_certificate.pem()), ("cert", client.pem()), ("key", client_key.serialize_pem())] {
        std::fs::write(pems.join(format!("{name}.pem")), pem).expect("written");
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority_certificate.der().clone()).expect("a root");
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let server_key = rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier);
    let config = config.with_single_cert(vec![server.der().clone()], server_key).expect("a configuration");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut engine = tokio::net::UnixStream::connect(socket).await.expect("the engine");
                // Either end may simply close.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut engine).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_behind_tls_wants_a_certificate() {
    let Some(engine) = Engine::shared() else { return };
    // Another test of this process may have done it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let pems = tempfile::tempdir().expect("a directory");
    let address = tls(engine.socket().replace("unix://", ""), pems.path()).await;
    let mut config = config(&format!("tcp://{address}"));
    config.tls = Some(pems.path().to_owned());
    let snapshot = docker::once(&config).await.expect("a snapshot");
    assert_eq!(snapshot.engine.swarm, Swarm::Manager);
    let other = tempfile::tempdir().expect("a directory");
    tls(String::new(), other.path()).await;
    std::fs::copy(pems.path().join("ca.pem"), other.path().join("ca.pem")).expect("copied");
    config.tls = Some(other.path().to_owned());
    assert!(docker::once(&config).await.is_err(), "a certificate of another authority");
    config.tls = None;
    assert!(docker::once(&config).await.is_err(), "no certificate");
}
