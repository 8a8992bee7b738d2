//! DNS-01 by a program of the user's, for every provider that Skep does not speak with itself: called as lego calls its `exec` provider,
//! with the environment that certbot's hooks get.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::dns::{Error, Fault, Provider, Record, one_line};
use crate::config;

/// What is kept of a program's output, for the error.
const KEPT: usize = 2048;
/// The only variables of ours that it gets: enough to find programs and certificates, none that may hold a secret.
const PASSED: [&str; 7] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Programs that were killed get so long to be gone.
const DYING: Duration = Duration::from_secs(5);
/// And those that ended, for the rest of their output.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs `COMMAND present|cleanup FQDN. VALUE`.
#[derive(Debug)]
pub struct Hook {
    command: Vec<String>,
    timeout: Duration,
}

impl Hook {
    pub fn from_config(dns: &config::Dns) -> Result<Hook, Error> {
        if dns.command.is_empty() {
            return Err(Error::new(Fault::Settings, "dns.command is empty", "name the program that publishes TXT records"));
        }
        Ok(Hook { command: dns.command.clone(), timeout: dns.command_timeout })
    }

    async fn run(&self, action: &str, record: &Record) -> Result<(), Error> {
        let program = &self.command[0];
        let mut child = self.command(action, record).spawn().map_err(|error| {
            Error::new(
                Fault::Settings,
                format!("{program} cannot be run ({error})"),
                "check dns.command: the file must be there and executable",
            )
        })?;
        let mut group = Group::of(&child);
        let output = (tokio::spawn(kept(child.stdout.take())), tokio::spawn(kept(child.stderr.take())));
        let Ok(ended) = tokio::time::timeout(self.timeout, child.wait()).await else {
            drop(group);
            let _ = tokio::time::timeout(DYING, child.wait()).await;
            let what = format!("{program} {action} for {} took longer than {:?} and was killed", record.name, self.timeout);
            return Err(Error::new(Fault::Provider, what, "find out what it waits for, or raise dns.command-timeout"));
        };
        // It ended, and its number may soon be another's.
        group.0 = None;
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let said = said(&last_words(output.1).await, &last_words(output.0).await);
                Err(Error::new(Fault::Provider, format!("{program} {action} for {} ended with {status}{said}", record.name), HELP))
            }
            Err(error) => Err(Error::new(Fault::Provider, format!("{program} {action} was lost ({error})"), HELP)),
        }
    }

    fn command(&self, action: &str, record: &Record) -> Command {
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .args([action, &format!("{}.", record.name), &record.value])
            .env_clear()
            .envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("CERTBOT_DOMAIN", &record.domain)
            .env("CERTBOT_VALIDATION", &record.value)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: what it starts ends with it.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

const HELP: &str = "its output says why; run it by hand with the same arguments";

#[async_trait]
impl Provider for Hook {
    async fn publish(&self, record: &Record) -> Result<(), Error> {
        self.run("present", record).await
    }

    async fn remove(&self, record: &Record) -> Result<(), Error> {
        self.run("cleanup", record).await
    }

    fn longest(&self) -> Duration {
        // Its own bound comes first, and says more.
        self.timeout + DYING * 2
    }

    fn needs_zone(&self) -> bool {
        false
    }
}

/// A program with all that it started: killed when the order is dropped before it ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may be gone already; then there is nothing to kill.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// What a program wrote; something that it left running may hold the pipe open.
async fn last_words(reading: JoinHandle<Vec<u8>>) -> Vec<u8> {
    tokio::time::timeout(LAST_WORDS, reading).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// The output's beginning; the rest is read and forgotten, so that the program does not stall.
async fn kept(output: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut output) = output else { return kept };
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut piece).await {
        kept.extend_from_slice(&piece[..length.min(KEPT - kept.len())]);
    }
    kept
}

/// The output for an error: what it complains about, else what it tells.
fn said(errors: &[u8], output: &[u8]) -> String {
    match [one_line(errors), one_line(output)].into_iter().find(|line| !line.is_empty()) {
        Some(line) => format!(" and said `{line}`"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_come_before_other_output() {
        assert_eq!(said(b"", b""), "");
        assert_eq!(said(b"no such\nzone\n", b"starting"), " and said `no such zone`");
        assert_eq!(said(b"\n", b"starting"), " and said `starting`");
    }
}
