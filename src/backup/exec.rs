//! A command in a running container: its output as it comes, its complaints, and how it ended.

use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as Bollard;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::engine::{Engine, Error, bounded};

/// Of a command's complaints its last bytes are kept.
const MAX_COMPLAINT: usize = 8 << 10;
/// The engine may take a moment to know how a command ended whose output has.
const ENDING: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

/// A command that runs. Its standard output is what this yields; dropping it does not end the command.
pub struct Exec {
    engine: Engine,
    id: String,
    output: BoxStream<'static, Result<LogOutput, Bollard>>,
    input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    complaint: Vec<u8>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i64,
    /// The end of what it wrote to standard error.
    pub complaint: String,
}

impl Engine {
    /// Runs `command` in a running container, as `user` (`None`: the container's own).
    ///
    /// # Errors
    /// The container does not run, or the engine's.
    pub async fn exec(&self, container: &str, command: &[String], user: Option<&str>) -> Result<Exec, Error> {
        self.attach(container, command, user, false).await
    }

    /// As [`Engine::exec`], with all of `input` as the command's standard input.
    ///
    /// # Errors
    /// As there.
    pub async fn exec_fed(
        &self,
        container: &str,
        command: &[String],
        user: Option<&str>,
        mut input: impl AsyncRead + Unpin + Send + 'static,
    ) -> Result<Exec, Error> {
        let mut exec = self.attach(container, command, user, true).await?;
        if let Some(mut sink) = exec.input.take() {
            // What the command does not read ends with the command.
            tokio::spawn(async move {
                _ = tokio::io::copy(&mut input, &mut sink).await;
                _ = sink.shutdown().await;
            });
        }
        Ok(exec)
    }

    async fn attach(&self, container: &str, command: &[String], user: Option<&str>, fed: bool) -> Result<Exec, Error> {
        let options = CreateExecOptions {
            attach_stdin: Some(fed),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            user: user.map(str::to_owned),
            ..CreateExecOptions::default()
        };
        let call = format!("run a command in {container}");
        let id = bounded(LIMIT, &call, self.docker.create_exec(container, options)).await?.id;
        match bounded(LIMIT, &call, self.docker.start_exec(&id, None::<StartExecOptions>)).await? {
            StartExecResults::Attached { output, input } => {
                let input = Some(input).filter(|_| fed);
                Ok(Exec { engine: self.clone(), id, output, input, complaint: Vec::new() })
            }
            StartExecResults::Detached => Err(Error::Broken("the engine does not give it".into())),
        }
    }
}

impl Exec {
    /// More of its standard output; `None`: that has ended, which does not say that it ended well: ask [`Exec::ended`].
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, Error>>> {
        use std::task::Poll::{Pending, Ready};
        loop {
            return match self.output.poll_next_unpin(context) {
                Pending => Pending,
                Ready(None) => Ready(None),
                Ready(Some(Ok(LogOutput::StdOut { message }))) => Ready(Some(Ok(message))),
                Ready(Some(Ok(LogOutput::StdErr { message }))) => {
                    self.complaint.extend_from_slice(&message);
                    let surplus = self.complaint.len().saturating_sub(MAX_COMPLAINT);
                    self.complaint.drain(..surplus);
                    continue;
                }
                // Without a terminal everything comes in frames: this is the stump of one.
                Ready(Some(Ok(_))) => Ready(Some(Err(Error::Broken("the connection ended within it".into())))),
                Ready(Some(Err(error))) => Ready(Some(Err(Error::Broken(error.to_string())))),
            };
        }
    }

    /// How it ended, once its output has.
    ///
    /// # Errors
    /// It runs on without output, or the engine does not know (any more).
    pub async fn ended(&mut self) -> Result<Ended, Error> {
        let deadline = tokio::time::Instant::now() + ENDING;
        loop {
            let state = self.engine.exec_state(&self.id).await?;
            if let (false, Some(code)) = (state.running, state.exit_code) {
                return Ok(Ended { code, complaint: String::from_utf8_lossy(&self.complaint).trim().to_owned() });
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Error::Timeout { call: "see the command's end".into(), after: ENDING });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All output, at most `limit` bytes of it (the rest is read and dropped), and how it ended.
    ///
    /// # Errors
    /// As [`Exec::next`] and [`Exec::ended`].
    pub async fn collect(mut self, limit: usize) -> Result<(Vec<u8>, Ended), Error> {
        let mut output = Vec::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            let room = limit.saturating_sub(output.len()).min(chunk.len());
            output.extend_from_slice(&chunk[..room]);
        }
        let ended = self.ended().await?;
        Ok((output, ended))
    }
}

impl Stream for Exec {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}
