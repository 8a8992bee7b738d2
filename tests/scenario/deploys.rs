//! Rolling updates and killed tasks on a real swarm, under load: no request is lost.
//! The tasks keep connections open and end at SIGTERM at once, with whatever they were at: the rudest that a container may be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::swarm::{Cleanup, Edge, Engine, overlay};

/// A server of shell words alone: fast enough to be asked thousands of times, and it keeps connections.
/// `/slow` takes three seconds, so that requests may be under way when a task ends.
const SERVE: &str = r#"
cat >/tmp/answer <<'END'
while read -r _ target _; do
    while read -r line && [ "${#line}" -gt 1 ]; do :; done
    [ "$target" = / ] || sleep 3
    printf 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
done
END
trap 'exit 0' TERM
nc -ll -p 80 -e sh /tmp/answer &
wait
"#;
const HOST: &str = "rolling.test";
/// Those that ask for much, and those whose requests are under way when a task ends.
const CLIENTS: [(&str, usize); 2] = [("/", 6), ("/slow", 6)];

/// Clients that ask all the time, each over its own connection.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(edge: SocketAddr) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let paths = CLIENTS.iter().flat_map(|(path, count)| std::iter::repeat_n(*path, *count));
        let clients = paths.map(|path| tokio::spawn(ask(edge, path, stop.clone(), answered.clone()))).collect();
        Load { stop, answered, clients }
    }

    async fn until(&self, count: usize) {
        let began = Instant::now();
        while self.answered.load(Ordering::Relaxed) < count {
            assert!(began.elapsed() < Duration::from_secs(120), "{} requests in two minutes", self.answered.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many were answered, and what else came.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.unwrap());
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

async fn ask(edge: SocketAddr, path: &'static str, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Vec<String> {
    let mut failures = Vec::new();
    let mut sender = None;
    while !stop.load(Ordering::Relaxed) {
        let mut open = match sender.take() {
            Some(open) => open,
            None => {
                let stream = TcpStream::connect(edge).await.unwrap();
                let (open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                open
            }
        };
        let request = http::Request::get(path).header("host", HOST).body(Empty::<Bytes>::new()).unwrap();
        match open.send_request(request).await {
            Ok(answer) => {
                let status = answer.status();
                let body = answer.into_body().collect().await;
                match body.map(|body| body.to_bytes()) {
                    Ok(body) if status == 200 && body == "ok" => _ = answered.fetch_add(1, Ordering::Relaxed),
                    body => failures.push(format!("{status} {body:?}")),
                }
                // Where the edge closes, the next request finds out by itself.
                sender = open.ready().await.is_ok().then_some(open);
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures
}

fn updated(engine: &Engine) -> bool {
    let state = engine.docker(&["service", "inspect", "-f", "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}", "rolling"]);
    state == "completed"
}

async fn until_replicas(engine: &Engine, edge: &Edge, count: usize) {
    let began = Instant::now();
    loop {
        let running = engine.docker(&["service", "ps", "-q", "--filter", "desired-state=running", "rolling"]);
        let states = engine.docker(&["service", "ps", "--format", "{{.CurrentState}}", "--filter", "desired-state=running", "rolling"]);
        if running.lines().count() == count && states.lines().all(|state| state.starts_with("Running")) {
            edge.until_status(HOST, 200).await;
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{count} tasks never ran: {states}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_updates_and_killed_tasks_lose_no_request() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["rolling"]);
    overlay(&engine, "rolling-net");
    let edge = Edge::start(&engine, "rolling-net");
    engine.service("rolling", "rolling-net", &[&format!("skep.host={HOST}")], &["--replicas", "2", "skep-test:1", "sh", "-c", SERVE]);
    let mut all = 0;
    for (replicas, order, at_once) in
        [("2", "start-first", "1"), ("2", "stop-first", "1"), ("5", "start-first", "2"), ("5", "stop-first", "2")]
    {
        engine.docker(&["service", "scale", "--detach", &format!("rolling={replicas}")]);
        until_replicas(&engine, &edge, replicas.parse().unwrap()).await;
        let load = Load::start(edge.http);
        load.until(500).await;
        let update = ["--update-order", order, "--update-monitor", "0s", "--update-parallelism", at_once];
        engine.docker(&[&["service", "update", "--detach", "--no-resolve-image", "--force"], &update[..], &["rolling"]].concat());
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(500)).await;
        while !updated(&engine) {
            assert!(began.elapsed() < Duration::from_secs(90), "the update never ended");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let took = began.elapsed();
        load.until(5_000).await;
        let (answered, failures) = load.end().await;
        let retried = retried(&edge);
        eprintln!(
            "{order}, {replicas} replicas: {answered} answered, {} failed, {retried} retried so far; the update took {took:?}",
            failures.len()
        );
        assert!(failures.is_empty(), "{order}, {replicas} replicas: of {answered}: {failures:?}\n{}", log(&edge));
        all += answered;
    }
    assert!(all >= 20_000);
    let load = Load::start(edge.http);
    load.until(500).await;
    let victim = engine.docker(&["ps", "-q", "--filter", "name=rolling.1"]);
    engine.docker(&["kill", "--signal", "KILL", &victim]);
    let killed = load.answered.load(Ordering::Relaxed);
    load.until(killed + 2_000).await;
    let (answered, failures) = load.end().await;
    eprintln!("killed: {answered} answered, {} failed, {} retried so far", failures.len(), retried(&edge));
    assert!(failures.is_empty(), "killed: of {answered}: {failures:?}\n{}", log(&edge));
    if retried(&edge) == 0 {
        // As tasks leave the table before they die, few requests meet a dead one. That those are saved is told by `resilience`.
        eprintln!("NOTE: no request of this run was at risk");
    }
}

/// Requests that were tried again, or failed.
fn retried(edge: &Edge) -> usize {
    log(edge).lines().filter(|line| line.contains("\"retries\":")).count()
}

/// What the edge said, without the requests that went well.
fn log(edge: &Edge) -> String {
    let text = std::fs::read_to_string(&edge.log).unwrap_or_default();
    let odd = text.lines().filter(|line| !line.contains("\"status\":200") || !line.contains("\"retries\":0"));
    odd.collect::<Vec<_>>().join("\n")
}
