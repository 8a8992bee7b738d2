//! Carrying a backup out on a real engine: what is saved, and that the application always comes back.
//! Images are made of this machine's own programs (tests/images.sh); without an engine the stories are skipped, loudly.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use skep::backup::engine::{Engine, Throwaway};
use skep::backup::guard::{Charge, Guard};
use skep::backup::inventory::MountKind;
use skep::config::{self, Config};

use crate::swarm::Engine as Scratch;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");

/// The scratch engine, with what a test made there; all of it goes at the end.
struct Place {
    scratch: Scratch,
    docker: config::Docker,
    engine: Engine,
    containers: Vec<String>,
    volumes: Vec<String>,
    directory: tempfile::TempDir,
}

impl Place {
    async fn new() -> Option<Place> {
        let scratch = Scratch::shared()?;
        let docker = config::Docker { endpoint: scratch.socket(), ..Config::default().docker };
        let engine = Engine::connect(&docker).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        Some(Place { scratch, docker, engine, containers: Vec::new(), volumes: Vec::new(), directory })
    }

    fn name(&self, what: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        format!("saving-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// A volume, and where its files are.
    fn volume(&mut self) -> (String, PathBuf) {
        let name = self.name("volume");
        self.scratch.docker(&["volume", "create", "--label", "backup.enable=true", &name]);
        self.volumes.push(name.clone());
        let path = self.scratch.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &name]);
        (name, path.into())
    }

    /// A running container; its id.
    fn container(&mut self, image: &str, options: &[&str], command: &[&str]) -> String {
        let name = self.name("container");
        let mut words = vec!["run", "-d", "--name", &name, "--network", "none", "--stop-timeout", "1"];
        words.extend(options);
        words.push(image);
        words.extend(command);
        let id = self.scratch.docker(&words);
        self.containers.push(id.clone());
        id
    }

    /// One of a database's image, made if it is missing.
    fn image(&self, name: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images.sh");
        let made = Command::new(script).args([name, &self.scratch.socket()]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        format!("skep-test:{name}")
    }

    async fn until(&self, container: &str, state: &str) {
        let began = Instant::now();
        loop {
            let now = self.engine.state(container).await.unwrap();
            if now.as_deref() == Some(state) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "the container is {now:?}, not {state}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a command in a container writes, once it succeeds.
    async fn said(&self, container: &str, command: &[&str]) -> String {
        let words: Vec<String> = command.iter().map(ToString::to_string).collect();
        let mut last = None;
        for _ in 0..200 {
            let (output, ended) = self.engine.exec(container, &words, None).await.unwrap().collect(1 << 20).await.unwrap();
            if ended.code == 0 {
                return String::from_utf8(output).unwrap();
            }
            last = Some(ended);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{command:?} never succeeded: {last:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let quietly = |words: &[&str]| {
            let mut command = Command::new("docker");
            _ = command.args(["-H", &self.scratch.socket()]).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        for container in &self.containers {
            quietly(&["unpause", container]);
            quietly(&["rm", "-f", "-v", container]);
        }
        self.volumes.iter().for_each(|volume| quietly(&["volume", "rm", "-f", volume]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_tells_what_it_has_and_does_as_asked() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    let options = ["-v", &format!("{volume}:/data"), "-v", "/tmp:/host:ro", "-e", "PGDATA=/data/x", "-e", "POSTGRES_PASSWORD=hush"];
    let id = place.container("skep-test:1", &options, &["sleep", "1000"]);

    let inventory = place.engine.inventory(None).await.unwrap();
    let known = inventory.volumes.iter().find(|known| known.name == volume).unwrap();
    assert_eq!((known.path.as_path(), known.labels["backup.enable"].as_str(), known.anonymous), (path.as_path(), "true", false));
    assert!(known.created.is_some() && !inventory.node.is_empty());
    let container = inventory.containers.iter().find(|container| container.id == id).unwrap();
    assert_eq!((container.state.as_str(), container.mount(&volume).unwrap().destination.as_path()), ("running", Path::new("/data")));
    assert!(container.mounts.iter().any(|mount| mount.kind == MountKind::Bind && mount.source == "/tmp" && !mount.writable));
    assert_eq!(container.environment["PGDATA"], "/data/x");
    assert!(container.digest.starts_with("sha256:") && !format!("{inventory:?}").contains("hush"));
    let moved = place.engine.inventory(Some(Path::new("/elsewhere"))).await.unwrap();
    assert!(moved.volumes.iter().any(|known| known.path == Path::new("/elsewhere").join(&volume).join("_data")));
    assert_eq!(place.engine.containers(Some(&volume)).await.unwrap().len(), 1);

    let engine = &place.engine;
    let state = async || engine.state(&id).await.unwrap();
    engine.pause(&id).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("paused"));
    assert!(engine.pause(&id).await.is_err(), "it is paused already");
    engine.unpause(&id).await.unwrap();
    engine.unpause(&id).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("running"));
    engine.stop(&id, Duration::from_secs(1)).await.unwrap();
    engine.stop(&id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("exited"));
    engine.start(&id).await.unwrap();
    engine.start(&id).await.unwrap();
    assert_eq!((state().await.as_deref(), engine.state("nobody").await.unwrap()), (Some("running"), None));
    engine.unpause("nobody").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_in_containers_are_heard_to_their_end() {
    let Some(mut place) = Place::new().await else { return };
    let id = place.container("skep-test:1", &[], &["sleep", "1000"]);
    let run = async |text: &str| {
        let words = ["sh", "-c", text].map(str::to_owned);
        place.engine.exec(&id, &words, None).await.unwrap().collect(64 << 20).await.unwrap()
    };
    let (output, ended) = run("echo to >&2; printf 'a\\000\\001\\377b'; exit 3").await;
    assert_eq!((output.as_slice(), ended.code, ended.complaint.as_str()), (&b"a\x00\x01\xffb"[..], 3, "to"));
    let (output, ended) = run("head -c 20000000 /dev/zero").await;
    assert_eq!((output.len(), ended.code), (20_000_000, 0));
    let words = ["cat".to_owned()];
    let fed = std::io::Cursor::new(vec![7; 3_000_000]);
    let (output, ended) = place.engine.exec_fed(&id, &words, None, fed).await.unwrap().collect(64 << 20).await.unwrap();
    assert_eq!((output.len(), ended.code), (3_000_000, 0));
    // A command that is killed, and a container that is: no output is taken for whole.
    let (_, ended) = run("kill -9 $$").await;
    assert_ne!(ended.code, 0);
    let mut exec = place.engine.exec(&id, &["sh", "-c", "while :; do echo x; sleep 0.1; done"].map(str::to_owned), None).await.unwrap();
    assert!(exec.next().await.unwrap().is_ok());
    place.scratch.docker(&["kill", &id]);
    while let Some(Ok(_)) = exec.next().await {}
    assert_ne!(exec.ended().await.map(|ended| ended.code).unwrap_or(-1), 0);
    assert!(place.engine.exec(&id, &words, None).await.is_err(), "it does not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn throwaways_live_without_a_network_and_go() {
    let Some(mut place) = Place::new().await else { return };
    let engine = place.engine.clone();
    assert!(engine.has_image("skep-test:1").await.unwrap() && !engine.has_image("no/such/image:1").await.unwrap());
    let name = place.name("made");
    place.volumes.push(name.clone());
    let labels = [("a".to_owned(), "b".to_owned())].into();
    engine.create_volume(&name, "local", &Default::default(), &labels).await.unwrap();
    let made = engine.volume(&name, None).await.unwrap().unwrap();
    assert_eq!(made.labels["a"], "b");
    std::fs::write(made.path.join("file"), "here").unwrap();
    let wanted = Throwaway {
        image: "skep-test:1".into(),
        command: ["sh", "-c", "cat /in/file; ip -o link | grep -c . ; touch /in/x; exit 4"].map(str::to_owned).to_vec(),
        binds: vec![format!("{name}:/in:ro")],
        ..Throwaway::default()
    };
    let id = engine.throwaway(&wanted).await.unwrap();
    assert!(engine.throwaways().await.unwrap().contains(&id));
    assert_eq!(engine.wait(&id, Duration::from_secs(20)).await.unwrap(), 4);
    let log = engine.logs(&id, 100).await.unwrap();
    assert!(log.contains("here") && log.contains("Read-only"), "{log}");
    engine.remove(&id).await.unwrap();
    engine.remove(&id).await.unwrap();
    engine.remove_volume(&name).await.unwrap();
    engine.remove_volume(&name).await.unwrap();
    assert!(engine.volume(&name, None).await.unwrap().is_none());
    assert!(engine.throwaway(&Throwaway { image: "no/such/image:1".into(), ..wanted }).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_brings_back_what_nobody_else_does() {
    let Some(mut place) = Place::new().await else { return };
    let (one, other) = (place.container("skep-test:1", &[], &["sleep", "1000"]), place.container("skep-test:1", &[], &["sleep", "1000"]));
    let settle = Duration::from_secs(3);
    let charge = Charge { paused: vec![one.clone()], stopped: vec![other.clone()], limit: Duration::from_secs(600), settle };
    let quiet = async |place: &Place| {
        place.engine.pause(&one).await.unwrap();
        place.engine.stop(&other, Duration::from_secs(1)).await.unwrap();
    };

    // Told that all is well, it does nothing.
    let guard = Guard::start(Path::new(SKEP), &place.docker, &charge).await.unwrap();
    quiet(&place).await;
    guard.dismiss().await;
    assert_eq!(place.engine.state(&one).await.unwrap().as_deref(), Some("paused"));

    // Whoever started it is gone.
    drop(Guard::start(Path::new(SKEP), &place.docker, &charge).await.unwrap());
    place.until(&one, "running").await;
    place.until(&other, "running").await;

    // Whoever started it hangs, while the engine still does what it was asked to.
    let soon = Charge { limit: Duration::from_secs(1), ..charge.clone() };
    let guard = Guard::start(Path::new(SKEP), &place.docker, &soon).await.unwrap();
    quiet(&place).await;
    place.until(&one, "running").await;
    place.until(&other, "running").await;
    guard.dismiss().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_outlives_its_parent_and_signals_to_its_group() {
    let Some(mut place) = Place::new().await else { return };
    let id = place.container("skep-test:1", &[], &["sleep", "1000"]);
    // A shell holds the pipe as Skep would, in a process group of its own.
    let script = format!(
        "mkfifo {dir}/in; {SKEP} backup guard --endpoint {} --seconds 600 --unpause {id} <{dir}/in >{dir}/out & exec 9>{dir}/in; echo $! >{dir}/pid; wait",
        place.docker.endpoint,
        dir = place.directory.path().display()
    );
    let mut shell = Command::new("setsid").args(["sh", "-c", &script]).spawn().unwrap();
    let read = |name: &str| std::fs::read_to_string(place.directory.path().join(name)).unwrap_or_default();
    while read("out") != "ready\n" || read("pid").is_empty() {
        assert!(shell.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    place.engine.pause(&id).await.unwrap();
    let (group, guard) = (format!("-{}", shell.id()), read("pid").trim().to_owned());
    for (signal, whom) in [("-TERM", guard.as_str()), ("-INT", &guard), ("-HUP", &guard)] {
        assert!(Command::new("kill").args([signal, "--", whom]).status().unwrap().success());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("paused"), "it still watches");
    assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    shell.wait().unwrap();
    place.until(&id, "running").await;
}
