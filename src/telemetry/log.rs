//! The access log's writer: one thread that owns the file, and a bounded queue that requests put their lines into.
//! A request never waits for a disk or a pipe; a line that finds the queue full is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Record, common_line, json_line};
use crate::config::{self, AccessLogFormat};

/// Lines that wait for the writer; at common lengths 4 MB.
const QUEUE: usize = 8192;
/// Lines are written together up to this many bytes.
const BATCH: usize = 64 * 1024;
/// How long the end of the process waits for the last lines; standard output may be a pipe that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Where finished requests are written to. Its end writes what is queued.
pub struct AccessLog {
    format: fn(&Record<'_>) -> String,
    /// `None`: off.
    writer: Option<Writer>,
}

struct Writer {
    /// `None` only while dropping. An empty line wakes the thread without writing.
    lines: Option<SyncSender<String>>,
    shared: Arc<Shared>,
    /// Disconnects when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    reopen: AtomicBool,
}

impl AccessLog {
    /// Opens the file (appending) or standard output and starts the writer.
    ///
    /// # Errors
    /// In words: the file cannot be opened, or the thread not started.
    pub fn open(settings: &config::AccessLog) -> Result<AccessLog, String> {
        let format = match settings.format {
            AccessLogFormat::Off => return Ok(AccessLog { format: json_line, writer: None }),
            AccessLogFormat::Json => json_line,
            AccessLogFormat::Common => common_line,
        };
        Ok(AccessLog { format, writer: Some(Writer::start(Output::open(settings.path.as_deref())?, QUEUE)?) })
    }

    /// Queues the line of `record`.
    pub fn write(&self, record: &Record<'_>) {
        if let Some(writer) = &self.writer {
            writer.queue((self.format)(record));
        }
    }

    /// Lines that were not written, because the queue was full or the disk was.
    pub fn dropped(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.shared.dropped.load(Ordering::Relaxed))
    }

    /// Opens the file anew by its name: after a rotation.
    pub fn reopen(&self) {
        if let Some(Writer { lines: Some(lines), shared, .. }) = &self.writer {
            shared.reopen.store(true, Ordering::Release);
            // Only a wake-up: when the queue is full, the writer is awake and sees the flag.
            _ = lines.try_send(String::new());
        }
    }
}

impl Writer {
    fn start(output: Output, queue: usize) -> Result<Writer, String> {
        let (lines, queued) = sync_channel(queue);
        let (end, ended) = sync_channel(0);
        let shared = Arc::new(Shared::default());
        let mut loop_ = Loop { queued, output, shared: Arc::clone(&shared), failing: false };
        let body = move || {
            loop_.run();
            drop(end);
        };
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(body)
            .map_err(|error| format!("cannot start the access log: {error}"))?;
        Ok(Writer { lines: Some(lines), shared, ended: Mutex::new(ended) })
    }

    fn queue(&self, mut line: String) {
        line.push('\n');
        if self.lines.as_ref().is_none_or(|lines| lines.try_send(line).is_err()) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lines = None;
        // Nothing is ever sent: it returns when the thread ends or the time is over, and either way we are done.
        _ = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).recv_timeout(LAST_LINES);
    }
}

/// Standard output or a file.
struct Output {
    to: Box<dyn Write + Send>,
    /// What is opened anew after a rotation; `None`: standard output.
    path: Option<PathBuf>,
}

impl Output {
    fn open(path: Option<&Path>) -> Result<Output, String> {
        Ok(match path {
            None => Output { to: Box::new(io::stdout()), path: None },
            Some(path) => Output { to: Box::new(open(path)?), path: Some(path.to_owned()) },
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.path {
            Some(_) => self.to.write_all(bytes)?,
            None => whole_lines(bytes).try_for_each(|piece| self.to.write_all(piece).and_then(|()| self.to.flush()))?,
        }
        self.to.flush()
    }
}

/// Pieces that a pipe takes in one (`PIPE_BUF`), so that lines of two processes, during an upgrade, do not run into each other.
/// Only a line that is longer than that stands alone.
fn whole_lines(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const AT_ONCE: usize = 4096;
    std::iter::from_fn(move || {
        let line_end = |within: &[u8]| within.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1);
        let first_end = |within: &[u8]| within.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
        let end = match bytes.get(..AT_ONCE) {
            None => bytes.len(),
            Some(piece) => line_end(piece).or_else(|| first_end(bytes)).unwrap_or(bytes.len()),
        };
        let (piece, rest) = bytes.split_at(end);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn open(path: &Path) -> Result<File, String> {
    // Not for everybody: queries and addresses are in it.
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    file.map_err(|error| format!("cannot open the access log {}: {error}; the directory must exist and be writable", path.display()))
}

/// The writer thread's state.
struct Loop {
    queued: Receiver<String>,
    output: Output,
    shared: Arc<Shared>,
    /// The last write failed; said once, not once a line.
    failing: bool,
}

impl Loop {
    /// Until all senders are gone and the queue is empty.
    fn run(&mut self) {
        while let Ok(first) = self.queued.recv() {
            let mut batch = first;
            let mut lines = u64::from(!batch.is_empty());
            while batch.len() < BATCH
                && let Ok(next) = self.queued.try_recv()
            {
                lines += u64::from(!next.is_empty());
                batch.push_str(&next);
            }
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            if lines > 0 {
                self.write(batch, lines);
            }
        }
    }

    fn write(&mut self, mut batch: String, lines: u64) {
        if self.failing {
            // The failed write may have left half a line.
            batch.insert(0, '\n');
        }
        match self.output.write(batch.as_bytes()) {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!(dropped = self.shared.dropped.load(Ordering::Relaxed), "the access log is written again");
            }
            Ok(()) => {}
            Err(error) => {
                self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
                if !self.failing {
                    tracing::error!("cannot write the access log: {error}; its lines are dropped and counted until that works again");
                }
                self.failing = true;
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.output.path else { return };
        match open(path) {
            Ok(file) => self.output.to = Box::new(file),
            Err(error) => tracing::error!("{error}; the old file is written on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::LazyLock;
    use std::sync::mpsc::{Sender, channel};

    use http::HeaderMap;

    use super::*;

    static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    fn record(path: &str) -> Record<'_> {
        Record {
            at: jiff::Timestamp::UNIX_EPOCH,
            request_id: "",
            trace: None,
            client: None,
            secure: false,
            user: None,
            method: "GET",
            host: "a.example",
            path,
            query: "",
            version: "HTTP/1.1",
            status: 200,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            tls: None,
            wait: None,
            connect: None,
            upstream: None,
            reused: None,
            nth: 0,
            route: None,
            service: None,
            task: None,
            backend: None,
            retries: 0,
            headers: &NO_HEADERS,
            error: None,
        }
    }

    fn settings(format: AccessLogFormat, path: &Path) -> config::AccessLog {
        config::AccessLog { format, path: Some(path.to_owned()) }
    }

    /// Writes nothing until told to, and fails when told `false`.
    struct Gate {
        entered: Sender<()>,
        open: Receiver<bool>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            _ = self.entered.send(());
            if !self.open.recv().unwrap_or(true) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gated {
        log: AccessLog,
        entered: Receiver<()>,
        open: Sender<bool>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    fn gated() -> Gated {
        let ((open, gate), (enter, entered)) = (channel(), channel());
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate { entered: enter, open: gate, written: Arc::clone(&written) };
        let output = Output { to: Box::new(gate), path: None };
        Gated { log: AccessLog { format: common_line, writer: Some(Writer::start(output, 4).unwrap()) }, entered, open, written }
    }

    fn eventually(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: not within five seconds");
    }

    #[test]
    fn every_line_is_in_the_file_at_the_end_in_order_and_after_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        for (format, opening) in [(AccessLogFormat::Json, "{\"time\":"), (AccessLogFormat::Common, "a.example - - - [")] {
            let path = folder.path().join(format!("{format:?}"));
            fs::write(&path, "old\n").unwrap();
            let log = AccessLog::open(&settings(format, &path)).unwrap();
            for number in 0..500 {
                log.write(&record(&format!("/{number}")));
            }
            assert_eq!(log.dropped(), 0);
            drop(log);
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!((lines.len(), lines[0]), (501, "old"));
            assert!(lines[1..].iter().enumerate().all(|(number, line)| line.starts_with(opening) && line.contains(&format!("/{number}"))));
        }
    }

    #[test]
    fn lines_reach_a_pipe_whole() {
        let lines = [10, 4000, 200, 4095, 9000, 1, 4096].map(|length| "x".repeat(length) + "\n");
        let all = lines.concat();
        let pieces: Vec<&[u8]> = whole_lines(all.as_bytes()).collect();
        assert_eq!(pieces.concat(), all.as_bytes());
        for piece in pieces {
            let count = piece.iter().filter(|byte| **byte == b'\n').count();
            assert!(piece.ends_with(b"\n") && (piece.len() <= 4096 || count == 1), "{} bytes, {count} lines", piece.len());
        }
        assert_eq!(whole_lines(b"").count(), 0);
        assert_eq!(whole_lines(b"no end").collect::<Vec<_>>(), [b"no end"]);
    }

    #[test]
    fn off_writes_nothing_and_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let log = AccessLog::open(&settings(AccessLogFormat::Off, &path)).unwrap();
        log.write(&record("/"));
        log.reopen();
        assert_eq!(log.dropped(), 0);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let message = AccessLog::open(&settings(AccessLogFormat::Json, Path::new("/nowhere/access.log"))).err().unwrap();
        assert!(message.starts_with("cannot open the access log /nowhere/access.log: No such file"), "{message}");
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let log = AccessLog::open(&settings(AccessLogFormat::Common, &path)).unwrap();
        log.write(&record("/before"));
        eventually("the first line", || fs::read_to_string(&path).unwrap().contains("/before"));
        fs::rename(&path, &rotated).unwrap();
        log.reopen();
        eventually("the new file exists without a request", || path.exists());
        log.write(&record("/after"));
        drop(log);
        assert!(fs::read_to_string(&path).unwrap().contains("/after"));
        assert!(!fs::read_to_string(&rotated).unwrap().contains("/after"));
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_never_waits() {
        let Gated { log, entered, open, written } = gated();
        log.write(&record("/0"));
        entered.recv().unwrap();
        for number in 1..100 {
            log.write(&record(&format!("/{number}")));
        }
        assert_eq!(log.dropped(), 95, "one is being written, four wait");
        drop(open);
        drop(log);
        assert_eq!(String::from_utf8(written.lock().unwrap().clone()).unwrap().lines().count(), 5);
    }

    #[test]
    fn a_full_disk_drops_lines_and_the_next_good_write_begins_on_a_new_line() {
        let Gated { log, entered: _entered, open, written } = gated();
        log.write(&record("/lost"));
        open.send(false).unwrap();
        eventually("the line is counted", || log.dropped() == 1);
        log.write(&record("/kept"));
        open.send(true).unwrap();
        drop(log);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("\na.example") && text.contains("/kept") && !text.contains("/lost"), "{text:?}");
    }
}
