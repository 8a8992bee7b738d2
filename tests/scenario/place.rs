//! A node for stories about backups: the scratch engine with volumes and containers of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use skep::backup::engine::Engine;
use skep::config::{self, Config};

use crate::swarm::Engine as Scratch;

/// The scratch engine, with what a test made there; all of it goes at the end.
pub struct Place {
    pub scratch: Scratch,
    pub docker: config::Docker,
    pub engine: Engine,
    pub containers: Vec<String>,
    pub volumes: Vec<String>,
    pub directory: tempfile::TempDir,
}

impl Place {
    pub async fn new() -> Option<Place> {
        let scratch = Scratch::shared()?;
        let docker = config::Docker { endpoint: scratch.socket(), ..Config::default().docker };
        let engine = Engine::connect(&docker).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        Some(Place { scratch, docker, engine, containers: Vec::new(), volumes: Vec::new(), directory })
    }

    pub fn name(&self, what: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        format!("backup-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// A volume, and where its files are.
    pub fn volume(&mut self) -> (String, PathBuf) {
        let name = self.name("volume");
        self.scratch.docker(&["volume", "create", "--label", "backup.enable=true", "--label", "team=a", &name]);
        self.volumes.push(name.clone());
        let path = self.mountpoint(&name);
        (name, path)
    }

    pub fn mountpoint(&self, volume: &str) -> PathBuf {
        self.scratch.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", volume]).into()
    }

    /// A running container; its id.
    pub fn container(&mut self, image: &str, options: &[&str], command: &[&str]) -> String {
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
    pub fn image(&self, name: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images.sh");
        let made = Command::new(script).args([name, &self.scratch.socket()]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        format!("skep-test:{name}")
    }

    pub async fn until(&self, container: &str, state: &str) {
        let began = Instant::now();
        loop {
            let now = self.engine.state(container).await.unwrap();
            if now.as_deref() == Some(state) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "the container is {now:?}, not {state}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a command in a container writes, once it succeeds.
    pub async fn said(&self, container: &str, command: &[&str]) -> String {
        let words: Vec<String> = command.iter().map(ToString::to_string).collect();
        let mut last = None;
        for _ in 0..300 {
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
