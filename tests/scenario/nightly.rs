//! Backups by the clock, as the running edge makes them: a missing and a failed one are told, a mended one is told too, and two Skeps on
//! one node save a volume once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use skep::backup::shelf::Shelf;
use skep::backup::{Reason, Repository, Run, Stats, Task, Verdict};
use skep::store::keyed::Keyed;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::harness::free_port;
use crate::swarm::Engine;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");
const LONG: Duration = Duration::from_secs(90);

/// Takes what is told.
async fn receiver() -> (String, Arc<Mutex<Vec<Value>>>) {
    let got = Arc::<Mutex<Vec<Value>>>::default();
    let noted = got.clone();
    let take = move |body: String| {
        noted.lock().unwrap().push(serde_json::from_str(&body).unwrap());
        std::future::ready("thanks")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(take))).await.unwrap() });
    (url, got)
}

/// A running edge that saves; killed at the end.
struct Edge {
    process: Child,
    admin: u16,
    log: PathBuf,
}

impl Edge {
    fn start(config: &Path, log: &Path) -> Edge {
        let admin = free_port();
        let file = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(SKEP);
        command.args(["run", "--http", "127.0.0.1:0", "--admin", &format!("127.0.0.1:{admin}"), "--config"]).arg(config);
        let process = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Edge { process, admin, log: log.to_owned() }
    }

    async fn get(&self, path: &str) -> Option<String> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.admin));
        tokio::net::TcpStream::connect(address).await.ok()?;
        let reply = crate::harness::get_path(address, "127.0.0.1", path).await;
        (reply.status == 200).then_some(reply.body)
    }

    /// How one volume stands, once that is as it should be.
    async fn until(&self, volume: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let (began, mut last) = (Instant::now(), Value::Null);
        while began.elapsed() < LONG {
            if let Some(body) = self.get("/backups").await {
                let report: Value = serde_json::from_str(&body).unwrap();
                let found = report["volumes"].as_array().unwrap().iter().find(|standing| standing["volume"] == volume).cloned();
                last = found.unwrap_or(report);
                if is_so(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("not {what}: {last:#}\n{}", std::fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // It may be gone already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

async fn told(got: &Arc<Mutex<Vec<Value>>>, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    while began.elapsed() < LONG {
        if let Some(notice) = got.lock().unwrap().iter().find(|notice| is_it(notice)) {
            return notice.clone();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("{what} was not told: {:#?}", got.lock().unwrap());
}

/// A node with one labelled volume that should have been saved days ago, when that failed for the last time.
struct Node {
    engine: Engine,
    volume: String,
    directory: TempDir,
    config: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.engine.docker(&["volume", "rm", "-f", &self.volume]);
    }
}

impl Node {
    async fn new(name: &str, hook: &str) -> Option<Node> {
        let engine = Engine::shared()?;
        let directory = tempfile::tempdir().unwrap();
        let volume = format!("nightly-{name}-{}", std::process::id());
        engine.docker(&["volume", "create", "--label", "backup.enable=true", &volume]);
        let path = engine.docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &volume]);
        std::fs::write(Path::new(&path).join("file"), "what matters\n").unwrap();
        let at = directory.path();
        let config = at.join("skep.toml");
        let text = format!(
            "[state]\ndirectory = \"{0}/state\"\n[https]\nlisten = []\n[docker]\nendpoint = \"{1}\"\n[upgrade]\nsocket = \"off\"\n\
             [backup]\ntargets = [\"disk={0}/target\"]\nrequire-key-export = false\nretry-pause = \"1s\"\nretries = 20\nmin-free = \"off\"\nnice = 0\nio-idle = false\n\
             [notify]\nwebhooks = [\"{hook}\"]\nlevel = \"success\"\n",
            at.display(),
            engine.socket(),
        );
        std::fs::write(&config, text).unwrap();
        std::fs::create_dir(at.join("state")).unwrap();
        let node = engine.docker(&["info", "-f", "{{.Name}}"]);
        let began = Timestamp::now() - SignedDuration::from_hours(72);
        let old = Run {
            id: "old".into(),
            task: Task::Save,
            volume: Some(volume.clone()),
            target: "disk".into(),
            repository: Repository { location: format!("{}/target/{node}", at.display()), name: node },
            archive: None,
            began,
            ended: began,
            verdict: Verdict::Failed,
            message: "the power failed".to_owned(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: Stats::default(),
            census: None,
            reason: Reason::Scheduled,
        };
        let (store, _) = Keyed::open(&at.join("state")).unwrap();
        let shelf = Shelf::open(&at.join("state"), Arc::new(store)).unwrap();
        shelf.note(old).await.unwrap();
        Some(Node { engine, volume, directory, config })
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("skep.log")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_and_a_missing_backup_are_told_and_so_is_their_end() {
    let (hook, got) = receiver().await;
    let Some(node) = Node::new("told", &hook).await else { return };
    // Where the target should be a directory lies something else.
    let target = node.directory.path().join("target");
    std::fs::write(&target, "not a disk").unwrap();
    let tried = Command::new(SKEP).args(["backup", "notify", "--config"]).arg(&node.config).output().unwrap();
    let said = String::from_utf8_lossy(&tried.stdout).into_owned();
    assert!(tried.status.success() && said.contains("delivered") && !said.contains("/hook"), "{tried:?}");
    told(&got, "a trial", |notice| notice["kind"] == "trial").await;
    let edge = Edge::start(&node.config, &node.log());
    let names = |notice: &Value| notice.to_string().contains(&node.volume);
    told(&got, "a failed backup", |notice| names(notice) && notice["level"] == "error").await;
    let standing = edge.until(&node.volume, "overdue", |standing| standing["overdue"] == true).await;
    assert!(standing["failures"].as_u64().unwrap() >= 1, "{standing:#}");
    told(&got, "a missing backup", |notice| names(notice) && notice.to_string().contains("overdue")).await;

    std::fs::remove_file(&target).unwrap();
    std::fs::create_dir(&target).unwrap();
    let standing = edge.until(&node.volume, "good", |standing| standing["state"] == "good").await;
    assert!(standing["success"]["archive"].as_str().unwrap().starts_with(&format!("{}@", node.volume)), "{standing:#}");
    told(&got, "the end of it", |notice| names(notice) && notice["level"] == "success").await;
    let admin = format!("127.0.0.1:{}", edge.admin);
    let status = Command::new(SKEP).args(["backup", "status", "--admin", &admin, "--config"]).arg(&node.config).output().unwrap();
    let shown = String::from_utf8(status.stdout).unwrap();
    let row = shown.lines().find(|line| line.starts_with(&node.volume)).unwrap_or_else(|| panic!("{shown}"));
    assert!(row.contains(" good ") && row.contains("0 minutes ago"), "{shown}");
    let repository = shown.lines().find(|line| line.starts_with(target.to_str().unwrap())).unwrap_or_else(|| panic!("{shown}"));
    assert!(repository.contains("iB") && repository.contains("not yet"), "{shown}");
    let log = std::fs::read_to_string(node.log()).unwrap();
    assert!(log.contains("unkept-key"), "that the key is kept nowhere else is said: {log}");
    let metrics = edge.get("/metrics").await.unwrap();
    let line = format!("skep_backup_overdue{{volume=\"{}\",target=\"disk\"}} 0", node.volume);
    assert!(metrics.contains(&line), "{line}\n{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_skeps_on_one_node_save_a_volume_once() {
    let (hook, _) = receiver().await;
    let Some(node) = Node::new("twice", &hook).await else { return };
    std::fs::create_dir(node.directory.path().join("target")).unwrap();
    let first = Edge::start(&node.config, &node.log());
    first.until(&node.volume, "looked at", |standing| standing["volume"] == node.volume.as_str()).await;
    let second = Edge::start(&node.config, &node.log());
    first.until(&node.volume, "good", |standing| standing["state"] == "good").await;
    // Whoever has the duty dies; the other one has it, and finds that nothing is to be done.
    drop(first);
    let standing = second.until(&node.volume, "good", |standing| standing["state"] == "good").await;
    assert_eq!(standing["failures"], 0, "{standing:#}");
    let list = || {
        let output = Command::new(SKEP).args(["backup", "list", "--json", "--config"]).arg(&node.config).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let archives = list().matches(&format!("\"{}@", node.volume)).count();
    assert_eq!(archives, 1, "{}", list());
}
