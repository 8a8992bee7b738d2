//! The program under test as a child process: started, read, asked, stopped.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Lines of the access log that are kept for failures to be found in.
const KEPT: usize = 20_000;

/// The access log's last lines.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<(VecDeque<String>, u64)>>);

impl Log {
    fn push(&self, line: String) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.1 += u64::from(line.contains("\"status\":5"));
        log.0.push_back(line);
        if log.0.len() > KEPT {
            log.0.pop_front();
        }
    }

    /// The line of the request with this mark in its query.
    pub fn find(&self, mark: &str) -> Option<String> {
        let mark = format!("mark={mark}\"");
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.0.iter().rev().find(|line| line.contains(&mark)).cloned()
    }

    /// Requests that the edge answered with its own or an upstream's fault.
    pub fn faults(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// A running edge.
pub struct Edge {
    pub http: SocketAddr,
    admin: SocketAddr,
    pub log: Log,
    child: Child,
}

/// What was seen of it at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub resident: f64,
    pub fds: f64,
    pub tasks: f64,
    pub connections: f64,
    pub in_flight: f64,
    pub swaps: f64,
    pub threads: f64,
    /// Seconds of CPU time since the start.
    pub cpu: f64,
}

impl Edge {
    /// Starts `program` on free ports and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start within ten seconds.
    pub async fn start(program: &Path, config: &Path, stack: &Path) -> io::Result<Edge> {
        let [http, admin] = free_addresses().await?;
        let mut child = Command::new(program)
            .args([OsStr::new("run"), "--no-docker".as_ref(), "--config".as_ref(), config.as_ref(), "--file".as_ref(), stack.as_ref()])
            .args(["--http", &http.to_string(), "--admin", &admin.to_string()])
            .env_remove("SKEP_BIN")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let log = Log::default();
        if let Some(stdout) = child.stdout.take() {
            let log = log.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    log.push(line);
                }
            });
        }
        let mut edge = Edge { http, admin, log, child };
        for _ in 0..100 {
            if edge.ask("/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(edge);
            }
            if let Some(status) = edge.child.try_wait()? {
                return Err(io::Error::other(format!("the edge ended at its start: {status}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(io::Error::other("the edge was not ready within ten seconds"))
    }

    /// An answer of the admin listener.
    async fn ask(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Looks at it.
    ///
    /// # Errors
    /// When it does not answer within five seconds.
    pub async fn sample(&self) -> io::Result<Sample> {
        let late = |_| io::Error::other("the admin listener does not answer");
        let text = tokio::time::timeout(Duration::from_secs(5), self.ask("/metrics")).await.map_err(late)??;
        let pid = self.child.id().ok_or_else(|| io::Error::other("the edge ended by itself"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let metric = |name: &str| {
            let samples = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
            samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Sample {
            resident: metric("process_resident_memory_bytes"),
            fds: metric("process_open_fds"),
            tasks: metric("skep_tasks"),
            connections: metric("skep_connections"),
            in_flight: metric("skep_upstream_in_flight"),
            swaps: metric("skep_swaps_total"),
            threads: status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok()).unwrap_or_default(),
            cpu: cpu(&stat).unwrap_or_default(),
        })
    }

    /// Asks it to end, and says how it did.
    ///
    /// # Errors
    /// When it does not within a minute, or not with success.
    pub async fn stop(mut self) -> io::Result<()> {
        if let Some(pid) = self.child.id() {
            Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        }
        let late = |_| io::Error::other("the edge did not end within a minute of SIGTERM");
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.map_err(late)??;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the edge ended with {status}"))) }
    }
}

/// Seconds of CPU time in a `/proc/PID/stat` (proc_pid_stat(5)): user and system, in ticks of which Linux has 100 a second.
fn cpu(stat: &str) -> Option<f64> {
    // The name may hold spaces and parentheses, so count from its end: state is field 3, utime 14, stime 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

/// Two that nobody listens on, as far as can be told.
async fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let (one, other) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    Ok([one.local_addr()?, other.local_addr()?])
}
