//! From a label to a live route on a real swarm: the time from the answer of Docker's API to the first request that is routed.
//! Needs the scratch engine that `./dev bench` starts; prints the distribution, asserts nothing about time.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{InspectServiceOptions, UpdateServiceOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NETWORK: &str = "bench-net";
const SERVICE: &str = "bench-live";
const ROUNDS: usize = 100;

struct Edge(Child);

impl Drop for Edge {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The status of `GET /` for `host`; 0 when nobody listens.
async fn status(edge: SocketAddr, host: &str) -> u16 {
    let Ok(mut stream) = TcpStream::connect(edge).await else { return 0 };
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).await.is_err() || stream.read_to_end(&mut answer).await.is_err() {
        return 0;
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

async fn until_routed(edge: SocketAddr, host: &str) -> Duration {
    let began = Instant::now();
    while status(edge, host).await != 200 {
        assert!(began.elapsed() < Duration::from_secs(60), "{host} is never routed");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

async fn relabel(docker: &Docker, host: &str) {
    let service = docker.inspect_service(SERVICE, None::<InspectServiceOptions>).await.unwrap();
    let mut spec = service.spec.unwrap();
    spec.labels.get_or_insert_default().insert("skep.host".to_owned(), host.to_owned());
    let version = i32::try_from(service.version.unwrap().index.unwrap()).unwrap();
    docker.update_service(SERVICE, spec, UpdateServiceOptions { version, ..UpdateServiceOptions::default() }, None).await.unwrap();
}

#[tokio::main]
async fn main() {
    let (Ok(directory), Ok(socket), Ok(script)) =
        (std::env::var("SKEP_TEST_DIR"), std::env::var("SKEP_TEST_DOCKER"), std::env::var("SKEP_TEST_ENGINE"))
    else {
        println!("live: SKIPPED, no scratch Docker engine; run it by ./dev bench");
        return;
    };
    run("docker", &["-H", &socket, "network", "create", "--driver", "overlay", "--attachable", NETWORK]);
    let create = ["-H", &socket, "service", "create", "--detach", "--no-resolve-image", "--name", SERVICE, "--network", NETWORK];
    run("docker", &[&create[..], &["--label", "skep.host=start.test", "skep-test:1"]].concat());
    let address: IpAddr = run(&script, &["address", &directory, NETWORK]).parse().unwrap();
    let edge = SocketAddr::new(address, 80);
    let _running = Edge(
        Command::new(&script)
            .args(["enter", &directory, NETWORK, "--", env!("CARGO_BIN_EXE_skep"), "run", "--http", "0.0.0.0:80"])
            .envs([("DOCKER_HOST", &*socket), ("SKEP_STATE_DIRECTORY", "off"), ("SKEP_ACCESS_LOG_FORMAT", "off")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    until_routed(edge, "start.test").await;
    let docker = Docker::connect_with_unix(socket.trim_start_matches("unix://"), 10, bollard::API_DEFAULT_VERSION).unwrap();
    let docker = docker.negotiate_version().await.unwrap();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let host = format!("round-{round}.test");
        relabel(&docker, &host).await;
        times.push(until_routed(edge, &host).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    run("docker", &["-H", &socket, "service", "rm", SERVICE]);
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    println!(
        "label change to live route, {ROUNDS} changes: p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, most {:.1?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
}
