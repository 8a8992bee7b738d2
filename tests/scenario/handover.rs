//! A new binary takes the place of the running one while connections are open and requests flow: with the real program, as
//! processes of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Upstream, free_port, get_path, stack};

const SKEP: &str = env!("CARGO_BIN_EXE_skep");
/// Detects what hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// An edge as a process, and those that follow it. All of them end with this.
struct Edge {
    first: Mutex<Child>,
    /// Where systemd would be told.
    notified: std::os::unix::net::UnixDatagram,
    http: SocketAddr,
    admin: SocketAddr,
    directory: tempfile::TempDir,
}

impl Edge {
    /// As systemd does.
    fn start(upstream: &Upstream, drain: &str) -> Edge {
        Edge::start_by(&["env", "NOTIFY_SOCKET=notify", SKEP], upstream, drain)
    }

    /// `command`: the program, or what runs it.
    fn start_by(command: &[&str], upstream: &Upstream, drain: &str) -> Edge {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("stack.yml"), stack(&[("skep.host", "a.test"), ("skep.address", &upstream.address.to_string())])).unwrap();
        let free = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (http_address, admin_address) = (free(), free());
        let settings = format!(
            "[http]\nlisten = \"{http_address}\"\n[https]\nlisten = \"off\"\n[admin]\nlisten = \"{admin_address}\"\n\
             [proxy]\ndrain = \"{drain}\"\nmax-connections-per-client = 20000\n[state]\ndirectory = \"{0}\"\n[access-log]\npath = \"{0}/access.log\"\n",
            path.display(),
        );
        std::fs::write(path.join("skep.toml"), settings).unwrap();
        let notified = std::os::unix::net::UnixDatagram::bind(path.join("notify")).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = std::fs::File::create(path.join("log")).unwrap();
        let first = Command::new(command[0])
            .args(&command[1..])
            .args(["run", "--no-docker", "--config"])
            .arg(path.join("skep.toml"))
            .arg("--file")
            .arg(path.join("stack.yml"))
            .env_remove("NOTIFY_SOCKET")
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let edge = Edge { first: Mutex::new(first), notified, http: http_address, admin: admin_address, directory };
        edge.until("it serves", || edge.serving().is_some());
        edge
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One line through the upgrade socket and its answer.
    fn say(&self, line: &[u8]) -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(self.path("upgrade.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    }

    /// The process that serves, as it says.
    fn serving(&self) -> Option<u32> {
        let answer = self.say(b"skep/1 \"who\"\n").ok()?;
        let answer: serde_json::Value = serde_json::from_str(answer.strip_prefix("skep/1 ")?).ok()?;
        u32::try_from(answer["serving"]["pid"].as_u64()?).ok()
    }

    async fn upgrade(&self, more: &[&str]) -> Output {
        let mut command = Command::new(SKEP);
        command.args(["upgrade", "--config"]).arg(self.path("skep.toml")).args(more);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Has the first process ended?
    fn ended(&self) -> bool {
        self.first.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Ends all, politely; returns what `first` ended with.
    fn stop(self) -> Option<i32> {
        if let Some(pid) = self.serving() {
            signal(pid, "TERM");
        }
        self.until("all end", || self.ended() && self.serving().is_none());
        self.first.lock().unwrap().wait().unwrap().code()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(pid) = self.serving().filter(|pid| *pid > 1) {
            signal(pid, "KILL");
        }
        let mut first = self.first.lock().unwrap();
        _ = first.kill();
        _ = first.wait();
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What clients saw. A request that was sent and has no whole answer is lost, and so is a connection that was refused.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    reconnected: AtomicUsize,
    lost: Mutex<Vec<String>>,
    enough: AtomicBool,
}

impl Seen {
    fn lose(&self, what: String) {
        self.lost.lock().unwrap().push(what);
    }
}

/// One client: connects, asks now and then on the same connection, and connects anew when the edge has said that it closes or
/// did so while nothing was asked.
async fn client(address: SocketAddr, pause: Duration, keep: bool, seen: Arc<Seen>) {
    while !seen.enough.load(Ordering::Relaxed) {
        let mut stream = match TcpStream::connect(address).await {
            Ok(stream) => stream,
            Err(error) => return seen.lose(format!("connect: {error}")),
        };
        loop {
            match ask(&mut stream).await {
                Ok(goes_on) => {
                    seen.answered.fetch_add(1, Ordering::Relaxed);
                    if !goes_on || !keep {
                        break;
                    }
                }
                Err(error) => return seen.lose(format!("request: {error}")),
            }
            // The end of the connection between two requests is seen before the next is sent.
            let mut byte = [0];
            if tokio::time::timeout(pause, stream.peek(&mut byte)).await.is_ok() {
                break;
            }
            if seen.enough.load(Ordering::Relaxed) {
                return;
            }
        }
        seen.reconnected.fetch_add(1, Ordering::Relaxed);
        if !keep {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Returns whether the connection goes on.
async fn ask(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n").await?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(std::io::Error::other(format!("closed after {} bytes", answer.len())));
        }
        answer.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            assert!(head.starts_with("http/1.1 200"), "{head}");
            return Ok(!head.contains("connection: close"));
        }
    }
}

/// It never left this side, or GOAWAY says that the edge did not begin with it (RFC 9113, 6.8): it can be sent again safely.
fn was_not_taken(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    error.is_canceled()
        || cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR))
}

/// The same with many requests over one HTTP/2 connection. What the edge has announced not to take is sent again over a new one.
async fn multiplexing_client(address: SocketAddr, seen: Arc<Seen>) {
    while !seen.enough.load(Ordering::Relaxed) {
        let stream = match TcpStream::connect(address).await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => return seen.lose(format!("connect: {error}")),
        };
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        while sender.ready().await.is_ok() && !seen.enough.load(Ordering::Relaxed) {
            let request = || http::Request::get("http://a.test/x").body(Full::<Bytes>::default()).unwrap();
            let (one, other) = tokio::join!(sender.clone().send_request(request()), sender.clone().send_request(request()));
            for answer in [one, other] {
                match answer {
                    Ok(answer) => match answer.into_body().collect().await {
                        Ok(_) => _ = seen.answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => seen.lose(format!("h2 body: {error:?}")),
                    },
                    Err(error) if was_not_taken(&error) => {}
                    Err(error) => seen.lose(format!("h2: {error:?}")),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen.reconnected.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_refuses_and_resets_nothing() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start(&upstream, "8s");
    let seen = Arc::new(Seen::default());
    let mut clients = tokio::task::JoinSet::new();
    for index in 0..1000_u64 {
        // Some ask more often than idle connections are closed, some less.
        clients.spawn(client(edge.http, Duration::from_millis(300 + index * 4), true, seen.clone()));
    }
    for _ in 0..4 {
        clients.spawn(client(edge.http, Duration::from_millis(10), false, seen.clone()));
    }
    for _ in 0..10 {
        clients.spawn(multiplexing_client(edge.http, seen.clone()));
    }
    let (mut socket, _) = tokio_tungstenite::client_async("ws://a.test/ws", TcpStream::connect(edge.http).await.unwrap()).await.unwrap();
    let late = tokio::spawn(async move { get_path(edge.http, "a.test", "/delay/4000").await });
    edge.until("a thousand were answered", || seen.answered.load(Ordering::Relaxed) > 1000);
    let old = edge.serving().unwrap();

    let output = edge.upgrade(&[]).await;
    assert!(output.status.success(), "{}{}", said(&output), edge.log());
    let new = edge.serving().unwrap();
    assert_ne!(old, new);
    assert!(said(&output).contains(&format!("process {new} serves now")), "{}", said(&output));

    // What the old one had goes on: a slow request, an open WebSocket.
    socket.send(Message::Text("still".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Text("still".into()));
    let late = late.await.unwrap();
    assert_eq!((late.status, late.body.as_str()), (200, "late"));
    socket.close(None).await.unwrap();
    edge.until("the old one has ended", || edge.ended());

    // And once more, by a signal, while all clients go on.
    let before = seen.answered.load(Ordering::Relaxed);
    signal(new, "USR2");
    edge.until("the third serves", || edge.serving().is_some_and(|pid| pid != new));
    edge.until("the second has ended", || {
        !PathBuf::from(format!("/proc/{new}/cmdline")).exists() || edge.log().matches("stopped, nothing was cut").count() == 2
    });
    edge.until("it goes on", || seen.answered.load(Ordering::Relaxed) > before + 2000);
    seen.enough.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    let lost = seen.lost.lock().unwrap();
    assert!(lost.is_empty(), "{} lost: {:?}\n{}", lost.len(), &lost[..lost.len().min(5)], edge.log());
    assert!(seen.reconnected.load(Ordering::Relaxed) > 1000, "the clients moved over");
    assert_eq!(
        StdStream::connect(edge.admin)
            .and_then(|mut admin| {
                admin.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
                let mut text = String::new();
                admin.read_to_string(&mut text).map(|_| text.contains(" 200 "))
            })
            .ok(),
        Some(true)
    );
    drop(lost);
    edge.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_binary_that_does_not_serve_changes_nothing() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start(&upstream, "5s");
    let old = edge.serving().unwrap();
    // What takes the listening sockets, and dies before it serves: its access log is in the way of a directory.
    let script = edge.path("late.sh");
    std::fs::write(&script, format!("#!/bin/sh\nSKEP_ACCESS_LOG_PATH={} exec {SKEP} \"$@\"\n", edge.directory.path().display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let settings = std::fs::read_to_string(edge.path("skep.toml")).unwrap();
    // binary, change of the settings, what is said
    for (binary, broken, reason) in [
        ("/bin/false", false, "ended (exit status: 1)"),
        ("/nonexistent", false, "does not start"),
        (script.to_str().unwrap(), false, "ended (exit status: 2)"),
        (SKEP, true, "ended (exit status: 2)"),
    ] {
        if broken {
            std::fs::write(edge.path("skep.toml"), format!("{settings}[proxy]\ndrain = 30\n")).unwrap();
        }
        let socket = edge.path("upgrade.sock");
        let mut command = Command::new(SKEP);
        command.args(["upgrade", "--socket"]).arg(&socket).args(["--binary", binary]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = said(&output);
        assert!(output.status.code() == Some(1) && text.contains(reason) && text.contains("goes on"), "{binary}: {text}{}", edge.log());
        assert_eq!(edge.serving(), Some(old), "{binary}");
        assert_eq!(get_path(edge.http, "a.test", "/").await.status, 200, "{binary}");
    }
    assert!(edge.log().contains("cannot open the access log"), "{}", edge.log());
    std::fs::write(edge.path("skep.toml"), settings).unwrap();
    assert!(edge.upgrade(&[]).await.status.success(), "{}", edge.log());
    assert_ne!(edge.serving(), Some(old));
    edge.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_socket_harms_nothing() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start(&upstream, "5s");
    let old = edge.serving().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(edge.path("upgrade.sock")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let long = vec![b'x'; 1 << 20];
    // sent, answered
    for (line, answer) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "this is not a message of Skep"),
        (b"skep/2 {\"later\":1}\n", "version 2"),
        (b"skep/1 {\"take\":\n", "makes no sense"),
        (b"skep/1 {\"ready\":{\"pid\":1}}\n", "nothing was taken"),
        (b"skep/1 {\"take\":{\"listen\":[\"127.0.0.1:1\"]}}\n", "another network namespace"),
        (b"skep/1 {\"start\":{\"binary\":\"/nonexistent\"}}\n", "does not start"),
        (b"\n", "this is not a message of Skep"),
    ] {
        let said = edge.say(line).unwrap();
        assert!(said.starts_with("skep/1 {\"refused\":") && said.contains(answer), "{said}");
    }
    // More than is read, nothing at all, and half a line by many who stay.
    _ = edge.say(&long);
    let silent: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(edge.path("upgrade.sock")).unwrap();
            stream.write_all(b"skep/1 {\"ta").unwrap();
            stream
        })
        .collect();
    // Who takes and leaves, or says something else, was none.
    let network = std::fs::read_link("/proc/self/ns/net").unwrap();
    let take = format!("skep/1 {{\"take\":{{\"listen\":[\"{}\"],\"network\":\"{}\"}}}}\n", edge.http, network.display());
    for then in [&b""[..], b"skep/1 \"who\"\n", b"garbage\n"] {
        let mut line = take.clone().into_bytes();
        line.extend_from_slice(then);
        // The one before may not be noticed to be gone at once.
        edge.until("its turn comes", || edge.say(&line).unwrap().contains("listeners"));
    }
    assert_eq!(edge.serving(), Some(old));
    assert_eq!(get_path(edge.http, "a.test", "/").await.status, 200);
    assert!(edge.upgrade(&[]).await.status.success(), "{}", edge.log());
    drop(silent);
    edge.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_who_serves() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start(&upstream, "5s");
    let told = |count: usize| -> Vec<String> {
        let mut buffer = [0; 256];
        let mut next = || edge.notified.recv(&mut buffer).map(|count| String::from_utf8_lossy(&buffer[..count]).into_owned()).unwrap();
        let mut told: Vec<_> = (0..count).map(|_| next()).collect();
        told.sort();
        told
    };
    assert_eq!(told(1), ["READY=1"]);
    assert!(edge.upgrade(&[]).await.status.success(), "{}", edge.log());
    let new = edge.serving().unwrap();
    assert_eq!(told(2), [format!("MAINPID={new}"), "READY=1".to_owned()]);
    signal(new, "TERM");
    assert_eq!(told(1), ["STOPPING=1"]);
    edge.stop();
}

/// As a new container beside the old one does it: nobody asks the old edge to start anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_with_the_same_settings_takes_over_and_one_with_others_does_not() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start(&upstream, "5s");
    let old = edge.serving().unwrap();
    let second = |name: &str, more: &[&str]| {
        let log = std::fs::File::create(edge.path(name)).unwrap();
        let mut command = Command::new(SKEP);
        command.args(["run", "--no-docker", "--config"]).arg(edge.path("skep.toml")).arg("--file").arg(edge.path("stack.yml")).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    };
    let log_of = |name: &str| std::fs::read_to_string(edge.path(name)).unwrap();

    let mut stranger = second("stranger", &["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    edge.until("the stranger serves", || log_of("stranger").contains(" serving "));
    assert!(log_of("stranger").contains("nothing is taken over"), "{}", log_of("stranger"));
    assert_eq!((edge.serving(), edge.ended()), (Some(old), false));
    signal(stranger.id(), "TERM");
    assert_eq!(stranger.wait().unwrap().code(), Some(0));
    assert_eq!(edge.serving(), Some(old), "the stranger's end leaves the socket where it is");

    let mut follower = second("follower", &[]);
    edge.until("the old one ends", || edge.ended());
    assert_eq!(edge.serving(), Some(follower.id()));
    assert_eq!(get_path(edge.http, "a.test", "/").await.status, 200);
    signal(follower.id(), "TERM");
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    assert!(!edge.path("upgrade.sock").exists(), "who is the last takes the socket away");
}

/// Under a shell, a supervisor or a container's init, all of which wait for the process that they started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_process_stays_where_nobody_is_told_of_the_next() {
    let upstream = Upstream::start("a").await;
    let edge = Edge::start_by(&[SKEP], &upstream, "5s");
    let first = edge.serving().unwrap();
    for round in 1..4 {
        let old = edge.serving().unwrap();
        assert!(edge.upgrade(&[]).await.status.success(), "{}", edge.log());
        assert_ne!(edge.serving(), Some(old));
        edge.until("the one before has ended", || edge.log().matches("stopped, nothing was cut").count() == round);
        assert!(!edge.ended(), "{}", edge.log());
        let gone = || std::fs::read_to_string(format!("/proc/{old}/stat")).is_err();
        edge.until("only the first stays", || old == first || gone());
    }
    signal(first, "TERM");
    edge.until("it ends with the last", || edge.ended());
    assert_eq!(edge.first.lock().unwrap().wait().unwrap().code(), Some(0), "{}", edge.log());
    assert_eq!(edge.serving(), None);
}

/// Needs the privilege to make a namespace of processes; without it there is nothing to see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_1_of_a_container_stays_until_the_last_edge_ends() {
    let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !Command::new(namespace[0]).args(&namespace[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        return;
    }
    let upstream = Upstream::start("a").await;
    let edge = Edge::start_by(&[&namespace[..], &[SKEP]].concat(), &upstream, "5s");
    assert_eq!(edge.serving(), Some(1));
    let mut last = 1;
    for round in 0..3 {
        assert!(edge.upgrade(&[]).await.status.success(), "{}", edge.log());
        let new = edge.serving().unwrap();
        assert!(new > last, "{round}: {new}");
        last = new;
        edge.until("the one before has ended", || edge.log().matches("stopped, nothing was cut").count() == round + 1);
        assert!(!edge.ended(), "the container lives on\n{}", edge.log());
        assert_eq!(get_path(edge.http, "a.test", "/").await.status, 200);
    }
    // What the engine sends goes to process 1, which is the only child of `unshare`.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", edge.first.lock().unwrap().id())).unwrap();
    let process_1: u32 = children.trim().parse().unwrap();
    signal(process_1, "HUP");
    edge.until("the last one reads its settings again", || edge.log().contains("was read again"));
    signal(process_1, "USR2");
    edge.until("the last one is upgraded", || edge.serving().is_some_and(|pid| pid > last));
    signal(process_1, "TERM");
    edge.until("the container ends", || edge.ended());
    assert_eq!(edge.first.lock().unwrap().wait().unwrap().code(), Some(0), "{}", edge.log());
    assert!(std::net::TcpStream::connect(edge.http).is_err());
}
