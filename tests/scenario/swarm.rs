//! The edge in front of a real Docker Swarm: services come, change, grow, fall ill and go, and requests follow.
//! Needs the scratch engine that `./dev test` starts; without one the stories are skipped, loudly.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Reply, get_path};

/// A scratch engine, named by its directory.
pub struct Engine {
    pub directory: String,
    script: String,
    /// Taken down at the end of the test (its own engine), or left (the shared one).
    own: bool,
}

impl Engine {
    /// The shared engine of this test run, or `None` with a loud word when there is none.
    pub fn shared() -> Option<Engine> {
        match (std::env::var("SKEP_TEST_DIR"), std::env::var("SKEP_TEST_ENGINE")) {
            (Ok(directory), Ok(script)) => Some(Engine { directory, script, own: false }),
            _ if std::env::var("CI").is_ok() => panic!("no scratch engine: run the tests by ./dev test"),
            _ => {
                eprintln!("SKIPPED: no scratch Docker engine; run the tests by ./dev test");
                None
            }
        }
    }

    /// An engine of this test's own, because it will be stopped and killed.
    pub fn own(mode: &str) -> Option<Engine> {
        let script = Engine::shared()?.script.clone();
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("skep-own-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name).to_string_lossy().into_owned();
        let engine = Engine { directory, script, own: true };
        engine.engine(&["up"], &[mode]);
        Some(engine)
    }

    /// `engine.sh COMMAND DIR ARGUMENTS`.
    pub fn engine(&self, command: &[&str], arguments: &[&str]) -> String {
        run(Command::new(&self.script).args(command).arg(&self.directory).args(arguments))
    }

    pub fn socket(&self) -> String {
        format!("unix://{}/docker.sock", self.directory)
    }

    pub fn docker(&self, arguments: &[&str]) -> String {
        run(Command::new("docker").arg("-H").arg(self.socket()).args(arguments))
    }

    /// A service of the test image on `network`, without waiting for it.
    pub fn service(&self, name: &str, network: &str, labels: &[&str], more: &[&str]) {
        let mut arguments = vec!["service", "create", "--detach", "--no-resolve-image", "--name", name, "--network", network];
        arguments.extend(["--stop-grace-period", "2s", "--restart-delay", "200ms"]);
        labels.iter().for_each(|label| arguments.extend(["--label", label]));
        arguments.extend(more);
        if !more.iter().any(|argument| argument.starts_with("skep-test:")) {
            arguments.push("skep-test:1");
        }
        self.docker(&arguments);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.own {
            self.engine(&["down"], &[]);
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The built binary, running inside an anchor container's network as a user's edge container would.
pub struct Edge {
    child: Child,
    pub http: SocketAddr,
    pub log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Edge {
    pub fn start(engine: &Engine, network: &str) -> Edge {
        Edge::with(engine, network, "")
    }

    /// With more lines of configuration.
    pub fn with(engine: &Engine, network: &str, more: &str) -> Edge {
        let directory = tempfile::tempdir().unwrap();
        let address = engine.engine(&["address"], &[network]);
        let config = directory.path().join("skep.toml");
        let text = format!(
            "[http]\nlisten = [\"0.0.0.0:80\"]\n[https]\nlisten = []\n[docker]\nendpoint = \"{}\"\n[state]\ndirectory = \"{}\"\n{more}",
            engine.socket(),
            directory.path().join("state").display()
        );
        std::fs::write(&config, text).unwrap();
        let log = directory.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(&engine.script)
            .args(["enter", &engine.directory, network, "--", env!("CARGO_BIN_EXE_skep"), "run", "--config"])
            .arg(&config)
            .env("SKEP_LOG_FILTER", "info,skep=debug")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Edge { child, http: SocketAddr::new(address.parse().unwrap(), 80), log, _directory: directory }
    }

    /// Asks until the answer is as wanted; the time that it took.
    pub async fn until(&self, host: &str, what: &str, wanted: impl Fn(&Reply) -> bool) -> Duration {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < Duration::from_secs(40) {
            if tokio::net::TcpStream::connect(self.http).await.is_ok() {
                let reply = get_path(self.http, host, "/").await;
                if wanted(&reply) {
                    return began.elapsed();
                }
                last = Some(reply);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{host} never was {what}: {last:?}\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }

    pub async fn until_status(&self, host: &str, status: u16) -> Duration {
        self.until(host, &format!("answered {status}"), |reply| reply.status == status).await
    }

    /// The names of the tasks that answer, from `count` requests; all must be 200.
    pub async fn tasks(&self, host: &str, count: usize) -> std::collections::BTreeSet<String> {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..count {
            let reply = get_path(self.http, host, "/").await;
            assert_eq!(reply.status, 200, "{reply:?}");
            names.insert(reply.body.lines().next().unwrap().to_owned());
        }
        names
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Services of a test are removed at its end, also when it fails.
pub struct Cleanup<'a>(pub &'a Engine, pub Vec<&'static str>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        for name in &self.1 {
            let _ = Command::new("docker").args(["-H", &self.0.socket(), "service", "rm", name]).output();
        }
    }
}

pub fn overlay(engine: &Engine, name: &str) {
    engine.docker(&["network", "create", "--driver", "overlay", "--attachable", name]);
}

#[tokio::test]
async fn labels_come_change_and_go() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["labelled"]);
    overlay(&engine, "labels-net");
    let edge = Edge::start(&engine, "labels-net");
    edge.until_status("first.test", 404).await;
    engine.service("labelled", "labels-net", &["skep.host=first.test"], &[]);
    edge.until_status("first.test", 200).await;
    engine.docker(&["service", "update", "--detach", "--no-resolve-image", "--label-add", "skep.host=second.test", "labelled"]);
    edge.until_status("second.test", 200).await;
    assert_eq!(get_path(edge.http, "first.test", "/").await.status, 404);
    engine.docker(&["service", "update", "--detach", "--no-resolve-image", "--label-rm", "skep.host", "labelled"]);
    edge.until_status("second.test", 404).await;
}

#[tokio::test]
async fn a_service_scales_up_and_down_to_nothing_and_back() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["scaled"]);
    overlay(&engine, "scale-net");
    let edge = Edge::start(&engine, "scale-net");
    engine.service("scaled", "scale-net", &["skep.host=scaled.test"], &[]);
    edge.until_status("scaled.test", 200).await;
    engine.docker(&["service", "scale", "--detach", "scaled=5"]);
    let began = Instant::now();
    while edge.tasks("scaled.test", 60).await.len() < 5 {
        assert!(began.elapsed() < Duration::from_secs(40), "five tasks never answered");
    }
    engine.docker(&["service", "scale", "--detach", "scaled=0"]);
    edge.until_status("scaled.test", 503).await;
    let reply = get_path(edge.http, "scaled.test", "/").await;
    assert_eq!(reply.header("retry-after"), "5", "{reply:?}");
    engine.docker(&["service", "scale", "--detach", "scaled=1"]);
    edge.until_status("scaled.test", 200).await;
}

#[tokio::test]
async fn a_sick_container_gets_no_traffic() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["healthy"]);
    overlay(&engine, "health-net");
    let edge = Edge::start(&engine, "health-net");
    engine.service(
        "healthy",
        "health-net",
        &["skep.host=healthy.test"],
        &["--replicas", "2", "--health-retries", "1000", "skep-test:health"],
    );
    edge.until_status("healthy.test", 200).await;
    let began = Instant::now();
    while edge.tasks("healthy.test", 30).await.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(40), "two tasks never answered");
    }
    // A plain container, so that Swarm does not replace it the moment it falls ill.
    engine.docker(&["run", "-d", "--name", "sick", "--network", "health-net", "--label", "skep.host=sick.test", "skep-test:health"]);
    edge.until_status("sick.test", 200).await;
    engine.docker(&["exec", "sick", "touch", "/tmp/sick"]);
    edge.until_status("sick.test", 503).await;
    assert_eq!(get_path(edge.http, "healthy.test", "/").await.status, 200);
    engine.docker(&["exec", "sick", "rm", "/tmp/sick"]);
    edge.until_status("sick.test", 200).await;
    engine.docker(&["rm", "-f", "sick"]);
    edge.until_status("sick.test", 404).await;
}

/// The labels that the first users have in their stacks, as they are.
const SEED: &str = "
version: '3.8'
services:
  teedy:
    image: skep-test:1
    networks: [seed-net]
    deploy:
      placement:
        constraints: [node.labels.region == paris]
      labels:
        haproxy.virtual_host_secure: docs.test
        haproxy.http_redirect_from: www.docs.test, old.test
        haproxy.virtual_host_port: '80'
        backup.enable: 'true'
  private:
    image: skep-test:1
    networks: [seed-net]
    deploy:
      labels:
        haproxy.virtual_host_secure: private.test
        haproxy.virtual_host_port: '80'
        com.sismics.docker.auth: teedy
networks:
  seed-net:
    external: true
";

#[tokio::test]
async fn the_seed_labels_route_as_they_are() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["seed_teedy", "seed_private"]);
    overlay(&engine, "seed-net");
    let node = engine.docker(&["node", "ls", "-q"]);
    engine.docker(&["node", "update", "--label-add", "region=paris", &node]);
    let edge = Edge::start(&engine, "seed-net");
    let file = edge._directory.path().join("seed.yml");
    std::fs::write(&file, SEED).unwrap();
    engine.docker(&["stack", "deploy", "--resolve-image", "never", "-c", &file.to_string_lossy(), "seed"]);
    edge.until_status("docs.test", 200).await;
    let reply = get_path(edge.http, "www.docs.test", "/a?b=c").await;
    assert_eq!((reply.status, reply.header("location")), (301, "http://docs.test/a?b=c"));
    // Sign-in is not there yet, so what asks for it stays closed.
    edge.until_status("private.test", 503).await;
}

#[tokio::test]
async fn traffic_goes_on_while_the_engine_is_away() {
    let Some(engine) = Engine::own("plain") else { return };
    engine.docker(&["network", "create", "away-net"]);
    let run = ["run", "-d", "--network", "away-net", "--label", "skep.host=away.test", "skep-test:1"];
    engine.docker(&run);
    let edge = Edge::start(&engine, "away-net");
    edge.until_status("away.test", 200).await;
    for end in ["stop", "kill"] {
        engine.engine(&[end], &[]);
        edge.tasks("away.test", 100).await;
        engine.engine(&["start"], &[]);
        edge.tasks("away.test", 100).await;
    }
    // And it is still, or again, live.
    engine.docker(&["run", "-d", "--network", "away-net", "--label", "skep.host=after.test", "skep-test:1"]);
    edge.until_status("after.test", 200).await;
    assert_eq!(get_path(edge.http, "away.test", "/").await.status, 200);
}

#[tokio::test]
async fn a_start_without_docker_serves_what_was_known() {
    let Some(engine) = Engine::own("plain") else { return };
    engine.docker(&["network", "create", "kept-net"]);
    engine.docker(&["run", "-d", "--network", "kept-net", "--label", "skep.host=kept.test", "skep-test:1"]);
    let mut edge = Edge::start(&engine, "kept-net");
    edge.until_status("kept.test", 200).await;
    // The snapshot is written off the hot path, a moment later.
    let kept = edge._directory.path().join("state");
    let began = Instant::now();
    while std::fs::read_dir(&kept).map_or(0, |entries| entries.count()) == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "the snapshot was never kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // `enter` asks the engine for the anchor, so the second edge is started inside the first one's network by hand.
    let mut holder = Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", edge.child.id())).args(["sleep", "120"]).spawn().unwrap();
    engine.engine(&["stop"], &[]);
    edge.child.kill().unwrap();
    edge.child.wait().unwrap();
    let log = std::fs::File::create(&edge.log).unwrap();
    edge.child = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", holder.id()))
        .arg(env!("CARGO_BIN_EXE_skep"))
        .args(["run", "--config"])
        .arg(edge._directory.path().join("skep.toml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    edge.until_status("kept.test", 200).await;
    holder.kill().unwrap();
    holder.wait().unwrap();
    engine.engine(&["start"], &[]);
}

#[tokio::test]
async fn a_killed_task_leaves_before_it_dies() {
    let Some(engine) = Engine::shared() else { return };
    overlay(&engine, "kill-net");
    for name in ["kill-one", "kill-two"] {
        // It goes on serving for eight seconds after SIGTERM: what still reaches it then was sent by us.
        engine.docker(&[
            "run",
            "-d",
            "--name",
            name,
            "--env",
            "LINGER=8",
            "--network",
            "kill-net",
            "--label",
            "skep.host=kill.test",
            "--label",
            "skep.weight=1",
            "skep-test:1",
        ]);
    }
    let edge = Edge::start(&engine, "kill-net");
    edge.until_status("kill.test", 200).await;
    while edge.tasks("kill.test", 20).await.len() < 2 {}
    let victim = engine.docker(&["inspect", "-f", "{{.Config.Hostname}}", "kill-one"]);
    let mut docker = Command::new("docker").args(["-H", &engine.socket(), "stop", "kill-one"]).stdout(Stdio::null()).spawn().unwrap();
    while edge.tasks("kill.test", 60).await.contains(&victim) {}
    assert!(docker.try_wait().unwrap().is_none(), "{victim} was asked to its end, after its kill event");
    docker.wait().unwrap();
    engine.docker(&["rm", "-f", "kill-one", "kill-two"]);
}
