//! The streams of one borg, served until it has ended: what it is fed with, what it answers, and what it says beside that.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::{self, Failure, Kind};
use super::report::{self, Line, Message};
use super::{MAX_WARNINGS, Progress, Sink, Stats};

/// Of a line of an answer, or of what is said.
const MAX_LINE: usize = 1 << 20;
/// Messages that are remembered of one command.
const MAX_MESSAGES: usize = 200;
/// A borg that is told to end rolls its transaction back; after so long it is told more firmly.
const PATIENCE: Duration = Duration::from_secs(20);
const CHUNK: usize = 64 << 10;

/// What is streamed into an archive. An `Err` ends borg before it could take the end of the stream for the end of the dump.
pub type Feed = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// What a command that went well said.
#[derive(Clone, Debug, Default)]
pub struct Output {
    pub stdout: Vec<u8>,
    /// At most [`MAX_WARNINGS`], `more_warnings` counts the rest.
    pub warnings: Vec<String>,
    pub more_warnings: u64,
    /// Of `create`.
    pub stats: Stats,
}

impl Output {
    /// The answer, as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.stdout).map_err(|error| Failure::new(Kind::Other, format!("borg's answer cannot be read: {error}")))
    }
}

/// What ssh says of itself. borg hands that on only if it reads it before it sees that the connection is gone, so ssh writes it to a file.
pub(super) struct Log(PathBuf);

impl Log {
    /// Where ssh is to write.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn new(base: &Path) -> Log {
        Log(base.join("tmp").join(format!("ssh-{:016x}.log", fastrand::u64(..))))
    }

    /// A connection that was not to be had is told by what ssh had to say.
    pub fn explain(&self, ended: Result<Output, Failure>) -> Result<Output, Failure> {
        ended.map_err(|failure| failure::explained(failure, &self.text()))
    }

    /// Of a bounded length; without ssh there is none.
    fn text(&self) -> String {
        let mut text = Vec::new();
        if let Ok(file) = std::fs::File::open(&self.0) {
            // What cannot be read explains nothing, and the failure is told all the same.
            _ = std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_LINE as u64), &mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Most of the time ssh was not asked for, or had nothing to say.
        _ = std::fs::remove_file(&self.0);
    }
}

/// Serves the three streams of a command until it has ended; `reading` takes its answer, and owns that pipe: a borg that waits until
/// somebody reads its answer hears no signal, so the pipe goes first.
pub(super) async fn drive(
    (mut child, is_check): (Child, bool),
    feed: Option<Feed>,
    reading: impl Future<Output = Result<(), String>> + Send,
    sink: &Sink,
    stop: &CancellationToken,
    limit: Duration,
) -> Result<Output, Failure> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take().ok_or_else(no_pipes)?);
    let mut said = Said::default();
    let mut fed = Ok(());
    let mut read = Ok(());
    let work = async {
        let feeding = async {
            if let (Some(feed), Some(mut stdin)) = (feed, stdin) {
                match pour(feed, &mut stdin).await {
                    Ok(()) => drop(stdin),
                    // The pipe stays open, so that borg does not take this for the end.
                    Err(reason) => return Err((reason, stdin)),
                }
            }
            Ok(())
        };
        let listening = said.listen(stderr, sink);
        tokio::pin!(feeding, reading, listening);
        let mut open = (true, true, true);
        // Once borg says nothing more, it is gone, and nobody waits for what it was to be fed with.
        while open.1 || open.2 {
            tokio::select! {
                done = &mut feeding, if open.0 => {
                    open.0 = false;
                    if let Err(reason) = done {
                        fed = Err(reason);
                        return;
                    }
                }
                done = &mut reading, if open.1 => {
                    open.1 = false;
                    if done.is_err() {
                        read = done;
                        return;
                    }
                }
                () = &mut listening, if open.2 => open.2 = false,
            }
        }
    };
    let interrupted = tokio::select! {
        () = work => None,
        () = stop.cancelled() => Some(Failure::new(Kind::Stopped, "it was told to stop")),
        () = sleep(limit) => Some(Failure::new(Kind::Timeout, format!("it took longer than {} s", limit.as_secs()))),
    };
    if let Some(failure) = interrupted {
        end(&mut child).await;
        return Err(failure);
    }
    if let Err((reason, stdin)) = fed {
        end(&mut child).await;
        drop(stdin);
        return Err(Failure::new(Kind::Feed, reason));
    }
    if let Err(reason) = read {
        end(&mut child).await;
        return Err(Failure::new(Kind::Other, reason));
    }
    let status = child.wait().await.map_err(|error| Failure::new(Kind::Other, format!("borg's end was not seen: {error}")))?;
    failure::ended(status.code(), &said.messages, is_check)?;
    Ok(said.output())
}

pub(super) fn no_pipes() -> Failure {
    Failure::new(Kind::Other, "borg has no pipes")
}

/// All that borg says beside its answer.
#[derive(Default)]
struct Said {
    messages: Vec<Message>,
    warnings: Vec<String>,
    more_warnings: u64,
}

impl Said {
    async fn listen(&mut self, from: ChildStderr, sink: &Sink) {
        let mut from = BufReader::new(from);
        // A stream that breaks is one that ends.
        while let Ok(Some(text)) = next_line(&mut from).await {
            match report::line(&text) {
                Line::Progress(progress) => sink(progress),
                Line::Message(message) => {
                    if !message.is_error {
                        self.warn(&message.text, sink);
                    }
                    if self.messages.len() >= MAX_MESSAGES {
                        self.messages.remove(MAX_MESSAGES / 2);
                    }
                    self.messages.push(message);
                }
                Line::Other => {}
            }
        }
    }

    fn warn(&mut self, text: &str, sink: &Sink) {
        sink(Progress::Warning { text: text.to_owned() });
        match self.warnings.len() < MAX_WARNINGS {
            true => self.warnings.push(text.to_owned()),
            false => self.more_warnings += 1,
        }
    }

    fn output(self) -> Output {
        Output { warnings: self.warnings, more_warnings: self.more_warnings, ..Output::default() }
    }
}

/// Streams all of `feed`; why it is not whole, where it is not.
async fn pour(mut feed: Feed, stdin: &mut ChildStdin) -> Result<(), String> {
    while let Some(chunk) = feed.next().await {
        for part in chunk?.chunks(CHUNK) {
            if stdin.write_all(part).await.is_err() {
                // borg reads no more: why is what it says itself. The feed is read to its end, so that its own trouble is heard.
                while let Some(rest) = feed.next().await {
                    rest?;
                }
                return Ok(());
            }
        }
    }
    // Too late for anything but what borg says itself.
    _ = stdin.flush().await;
    Ok(())
}

/// The next line without its end, of a bounded length; `None` at the end. What is no UTF-8 is shown as well as it can be.
pub(super) async fn next_line(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let length = (&mut *from).take(MAX_LINE as u64).read_until(b'\n', &mut line).await?;
    Ok((length > 0).then(|| String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned()))
}

/// Asks politely, so that locks are released, then firmly, then not at all.
async fn end(child: &mut Child) {
    for signal in [Signal::INT, Signal::TERM] {
        let Some(id) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
        // It may be gone already, which the wait tells.
        _ = kill_process(id, signal);
        if timeout(PATIENCE, child.wait()).await.is_ok() {
            return;
        }
    }
    if let Err(error) = child.kill().await {
        tracing::error!(%error, "a borg does not end");
    }
}
