//! Process 1 of a container after an upgrade: its end would end the container, so it stays, passes signals on to the edge
//! that serves now, and ends as that one ends.

use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use super::talk::{PROMPT, Talk};
use crate::handover::{Answer, Ask};

/// Watches over `successor` and whoever follows it by further upgrades. Returns the exit code of the last one.
///
/// # Errors
/// Signals cannot be watched.
pub async fn attend(mut successor: u32, socket: Option<&Path>) -> io::Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    let mut child = signal(SignalKind::child())?;
    let mut ending = None;
    loop {
        if let Some(status) = reap(successor) {
            match next(socket).await {
                Some(next) => successor = next,
                None => return Ok(code(status)),
            }
            // Whoever had been told to end was no longer the one who serves.
            if let (Some(signal), Some(pid)) = (ending, pid(successor)) {
                _ = kill_process(pid, signal);
            }
            continue;
        }
        let signal = tokio::select! {
            _ = terminate.recv() => Signal::TERM,
            _ = interrupt.recv() => Signal::INT,
            _ = hangup.recv() => Signal::HUP,
            _ = user2.recv() => Signal::USR2,
            _ = child.recv() => continue,
        };
        if matches!(signal, Signal::TERM | Signal::INT) {
            ending = Some(signal);
        }
        // An upgrade may just have happened.
        successor = next(socket).await.unwrap_or(successor);
        if let Some(pid) = pid(successor) {
            // It may just have ended, which is seen in the next round.
            _ = kill_process(pid, signal);
        }
    }
}

/// Takes the ends of all children, as is the duty of process 1; returns how `successor` ended, if it did.
fn reap(successor: u32) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if u32::try_from(pid.as_raw_pid()) == Ok(successor) {
            ended = Some(status);
        }
    }
    ended
}

/// Who serves now, if that is a living child: orphans in this container become ours.
async fn next(socket: Option<&Path>) -> Option<u32> {
    let mut talk = Talk::connect(socket?).await.ok()?;
    talk.say(&Ask::Who, &[]).await.ok()?;
    let Ok(Answer::Serving { pid: next }) = talk.hear(PROMPT).await else { return None };
    matches!(waitpid(Some(pid(next)?), WaitOptions::NOHANG), Ok(None)).then_some(next)
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// As shells say it: what a signal killed is 128 and its number.
fn code(status: WaitStatus) -> u8 {
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(number).unwrap_or(1)
}
