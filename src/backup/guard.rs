//! The promise that an application goes on, kept by a process of its own: it waits for the word that all is well, and un-pauses and starts
//! what it was told of when that word does not come, because whoever was to say it is dead, or hangs.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};

use super::engine::{Engine, Error};
use crate::config;

/// Said to the guard when everything runs again.
const DONE: &str = "done";
/// Said by the guard once it can no longer be taken down with its parent.
const READY: &str = "ready";
/// A process that starts takes milliseconds.
const STARTING: Duration = Duration::from_secs(20);
const LEAVING: Duration = Duration::from_secs(5);
/// The engine may be restarting, or busy.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After so long the journal is what is left.
const PERSISTENCE: Duration = Duration::from_secs(3600);

/// What a guard guards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Containers to un-pause, if they are paused.
    pub paused: Vec<String>,
    /// Containers to start, if they do not run.
    pub stopped: Vec<String>,
    /// It waits no longer than this.
    pub limit: Duration,
    /// What was asked of the engine may still be under way: so long after everything was found to run, that is looked at again.
    pub settle: Duration,
}

/// A guard that watches. Dropped without [`Guard::dismiss`], it acts at once.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    stdin: ChildStdin,
}

impl Guard {
    /// Starts `program backup guard` and waits until it watches.
    ///
    /// # Errors
    /// It does not start: nothing may be paused or stopped then.
    pub async fn start(program: &Path, docker: &config::Docker, charge: &Charge) -> std::io::Result<Guard> {
        let mut command = Command::new(program);
        command.args(["backup", "guard", "--endpoint", &docker.endpoint, "--seconds", &charge.limit.as_secs().max(1).to_string()]);
        command.args(["--settle", &charge.settle.as_secs().to_string()]);
        if let Some(tls) = &docker.tls {
            command.arg("--tls").arg(tls);
        }
        charge.paused.iter().for_each(|id| _ = command.args(["--unpause", id]));
        charge.stopped.iter().for_each(|id| _ = command.args(["--start", id]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let broken = || std::io::Error::other("the guard has no pipes");
        let (stdin, stdout) = (child.stdin.take().ok_or_else(broken)?, child.stdout.take().ok_or_else(broken)?);
        let mut line = String::new();
        let heard = tokio::time::timeout(STARTING, BufReader::new(stdout.take(64)).read_line(&mut line)).await;
        match heard {
            Ok(Ok(_)) if line.trim() == READY => Ok(Guard { child, stdin }),
            Ok(Err(error)) => Err(error),
            _ => Err(std::io::Error::other("the guard that is to un-pause containers does not start")),
        }
    }

    /// Everything runs again.
    pub async fn dismiss(mut self) {
        let said = self.stdin.write_all(format!("{DONE}\n").as_bytes()).await;
        drop(self.stdin);
        if said.is_err() || tokio::time::timeout(LEAVING, self.child.wait()).await.is_err() {
            // It un-pauses what runs, which does nothing; but nobody should be left waiting for its end.
            tracing::warn!("the guard of a backup did not leave when told so");
            _ = self.child.start_kill();
        }
    }
}

/// What the guard's process does.
///
/// # Errors
/// Containers that it could not bring back, as a sentence.
pub async fn watch(docker: &config::Docker, charge: &Charge) -> Result<(), String> {
    // Its own session: neither a signal to its parent's group nor a closed terminal ends it. Fails only where it leads one already.
    _ = rustix::process::setsid();
    let ignored = [
        tokio::signal::unix::SignalKind::terminate(),
        tokio::signal::unix::SignalKind::interrupt(),
        tokio::signal::unix::SignalKind::hangup(),
    ];
    // Caught and never looked at, as long as they live.
    let _streams = ignored.map(tokio::signal::unix::signal);
    // Whoever waited for this may be dead already; then there is work to do.
    let mut stdout = std::io::stdout();
    _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    // Not by a thread of its own, which would keep this process for as long as its parent lives.
    let input = std::io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
    let input = input.map_err(|error| format!("it is to be started by Skep, with a pipe to it: {error}"))?;
    if let Ok(true) = tokio::time::timeout(charge.limit, is_dismissed(input)).await {
        return Ok(());
    }
    bring_back(docker, charge, PERSISTENCE).await
}

/// Waits for the word or the end.
async fn is_dismissed(input: impl AsyncRead + Unpin) -> bool {
    let mut said = String::new();
    let read = BufReader::new(input.take(64)).read_line(&mut said).await;
    read.is_ok() && said.trim() == DONE
}

/// Un-pauses and starts, again and again until everything runs and has settled, or `persistence` is over.
///
/// # Errors
/// What does not run, and why.
pub async fn bring_back(docker: &config::Docker, charge: &Charge, persistence: Duration) -> Result<(), String> {
    let began = tokio::time::Instant::now();
    let (settled, until) = (began + charge.settle, began + charge.settle + persistence);
    let mut pause = FIRST_PAUSE;
    loop {
        let failures = match Engine::connect(docker).await {
            Ok(engine) => once(&engine, charge).await,
            Err(error) => vec![error.to_string()],
        };
        if failures.is_empty() {
            if tokio::time::Instant::now() >= settled {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
            continue;
        }
        if tokio::time::Instant::now() + pause > until {
            return Err(failures.join("; "));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One try for each container; why some do not run.
pub async fn once(engine: &Engine, charge: &Charge) -> Vec<String> {
    let mut failures = Vec::new();
    // In the opposite order of their pausing, and each whatever happens to the others.
    for container in charge.paused.iter().rev() {
        failures.extend(unpause(engine, container).await.err().map(|error| error.to_string()));
    }
    for container in charge.stopped.iter().rev() {
        failures.extend(start(engine, container).await.err().map(|error| error.to_string()));
    }
    failures
}

async fn unpause(engine: &Engine, container: &str) -> Result<(), Error> {
    match engine.state(container).await?.as_deref() {
        Some("paused") => engine.unpause(container).await,
        _ => Ok(()),
    }
}

async fn start(engine: &Engine, container: &str) -> Result<(), Error> {
    match engine.state(container).await?.as_deref() {
        None | Some("running" | "paused" | "restarting" | "removing") => Ok(()),
        Some(_) => engine.start(container).await,
    }
}

/// The arguments as the guard's command line has them.
pub fn docker(endpoint: String, tls: Option<PathBuf>) -> config::Docker {
    config::Docker { endpoint, tls, ..config::Config::default().docker }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_word_dismisses_it() {
        for (said, expected) in [("done\n", true), ("done", true), ("", false), ("don", false), ("no\ndone\n", false), ("xdone\n", false)] {
            assert_eq!(is_dismissed(said.as_bytes()).await, expected, "{said:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_tried_again_and_then_said() {
        let nowhere = docker("unix:///nowhere/docker.sock".into(), None);
        let charge = Charge { paused: vec!["a".into()], ..Charge::default() };
        let began = tokio::time::Instant::now();
        let error = bring_back(&nowhere, &charge, Duration::from_millis(500)).await.expect_err("no engine");
        assert!(error.contains("nowhere") && began.elapsed() >= Duration::from_millis(200), "{error}");
    }
}
