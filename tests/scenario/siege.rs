//! What the hostile stories share: the real binary as a process of its own (so that its memory and its limits are its own),
//! an upstream that notes every byte, and frames of HTTP/2 written by hand.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// `skep run` on a stack file.
pub struct Process {
    child: Child,
    pub http: SocketAddr,
    /// Lives as long as the process.
    _directory: tempfile::TempDir,
    said: Arc<Mutex<String>>,
}

impl Process {
    /// Starts it with `settings` of the environment and at most `files` open files, where that is given.
    pub fn start(stack: &str, settings: &[(&str, &str)], files: Option<u32>) -> Process {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("stack.yml");
        std::fs::write(&file, stack).unwrap();
        let ulimit = files.map_or(String::new(), |files| format!("ulimit -n {files}; "));
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{ulimit}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_skep")]);
        command.args(["run", "--no-docker", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--file"]).arg(&file);
        command.env("SKEP_STATE_DIRECTORY", "off").env("SKEP_HTTPS_LISTEN", "off");
        command.env("SKEP_ACCESS_LOG_PATH", directory.path().join("access.log"));
        command.envs(settings.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (said, mut http) = (Arc::new(Mutex::new(String::new())), None);
        while http.is_none() {
            let line = lines.next().expect("the edge ended before it served").unwrap();
            let listed = line.split_once("serving http=[").and_then(|(_, rest)| rest.split([']', ',']).next());
            http = listed.map(|address| address.parse().unwrap());
            said.lock().unwrap().push_str(&format!("{line}\n"));
        }
        let rest = said.clone();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| rest.lock().unwrap().push_str(&format!("{line}\n"))));
        Process { child, http: http.unwrap(), _directory: directory, said }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its log so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Kilobytes of memory that it holds now.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Waits until it holds no more than a tenth and `constant` KB above `before`; what it holds in the end otherwise. The allocator and
    /// the timers give back in their own time, some seconds on a busy machine; a leak stays.
    pub async fn settles(&self, before: u64, constant: u64) -> Result<(), u64> {
        let (began, bound) = (Instant::now(), before + before / 10 + constant);
        while self.resident() > bound {
            if began.elapsed() > Duration::from_secs(40) {
                return Err(self.resident());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An upstream that reads requests strictly, answers `ok`, and keeps every byte.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    pub async fn start() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let place = {
                    let mut all = kept.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                tokio::spawn(record(stream, kept.clone(), place));
            }
        });
        Recorder { address, seen }
    }

    /// What came since the last call, one entry a connection that said anything.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut seen = self.seen.lock().unwrap();
        seen.iter_mut().map(std::mem::take).filter(|bytes| !bytes.is_empty()).collect()
    }
}

/// Answers each head that comes; bodies are taken for what follows, so that a smuggled head gets its answer too.
async fn record(mut stream: TcpStream, seen: Arc<Mutex<Vec<Vec<u8>>>>, place: usize) {
    let mut chunk = [0_u8; 4096];
    let mut head = Vec::new();
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        seen.lock().unwrap()[place].extend_from_slice(&chunk[..count]);
        head.extend_from_slice(&chunk[..count]);
        if head.windows(4).any(|four| four == b"\r\n\r\n") {
            // The rest of a body that is on its way.
            let _ = tokio::time::timeout(Duration::from_millis(30), async {
                while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                    seen.lock().unwrap()[place].extend_from_slice(&chunk[..count]);
                }
            })
            .await;
            head.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    }
}

/// An ordinary client that asks all the time while something goes on.
pub struct Bystander {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Bystander {
    pub fn start(address: SocketAddr) -> Bystander {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (over.clone(), served.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !until.load(Ordering::Relaxed) {
                match tokio::time::timeout(Duration::from_secs(10), ask(address)).await {
                    Ok(Ok(200)) => _ = count.fetch_add(1, Ordering::Relaxed),
                    other => failures.push(format!("{other:?}")),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            failures
        });
        Bystander { over, served, task }
    }

    pub async fn ends(self) -> (usize, Vec<String>) {
        self.over.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        (self.served.load(Ordering::Relaxed), failures)
    }
}

pub async fn ask(address: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0))
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The preface and empty SETTINGS.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()
}

/// Fields as literals without indexing (RFC 7541, 6.2.2), byte for byte.
pub fn fields(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// A length of seven bits and its continuation (RFC 7541, 5.1), then the bytes.
pub fn text(block: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 127 {
        block.push(text.len() as u8);
    } else {
        block.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            block.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

/// A whole GET without a body.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    let block = fields(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.test"), (b":path", path.as_bytes())]);
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

/// Writes without an end until the edge has enough: `Ok` when it closed within the limit.
pub async fn until_closed(
    address: SocketAddr,
    first: Vec<u8>,
    again: impl Fn(u32) -> Vec<u8>,
    limit: Duration,
) -> Result<(), &'static str> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let closed = async {
        if stream.write_all(&first).await.is_err() {
            return;
        }
        let (mut reader, mut writer) = stream.split();
        let drain = async {
            let mut chunk = [0_u8; 16 * 1024];
            while let Ok(1..) = reader.read(&mut chunk).await {}
        };
        let send = async {
            for round in 0.. {
                if writer.write_all(&again(round)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = drain => {}
            () = send => {}
        }
    };
    tokio::time::timeout(limit, closed).await.map_err(|_| "the edge never closed the connection")
}
