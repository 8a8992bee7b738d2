//! The first process after an upgrade, where its end would be taken for the service's end, as that of process 1 in a container: it
//! stays, passes signals on to the edge that serves now, and ends as that one ends.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_child_subreaper, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use super::talk::Talk;

/// Longer than the kernel takes to say who listens; the one who asked for the signal waits.
const ANSWER: Duration = Duration::from_secs(1);
/// How often, and with which pause, is asked who followed an edge that ended.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

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
    // Orphans come to process 1 anyway; to another one they do if it asks for them.
    set_child_subreaper(Some(getpid()))?;
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
        // The one we wait for may be finishing what it has, while its own successor serves.
        if let Some(pid) = serving(socket).await.or_else(|| pid(successor)) {
            // It may just have ended, which is seen in the next round.
            _ = kill_process(pid, signal);
        }
    }
}

/// Takes the ends of all children and orphans, as is the duty of process 1; returns how `successor` ended, if it did.
fn reap(successor: u32) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if u32::try_from(pid.as_raw_pid()) == Ok(successor) {
            ended = Some(status);
        }
    }
    ended
}

/// Who serves now, as the kernel knows it; `None` for nobody, and for an edge in another container.
async fn serving(socket: Option<&Path>) -> Option<Pid> {
    let talk = tokio::time::timeout(ANSWER, Talk::connect(socket?)).await.ok()?.ok()?;
    pid(talk.peer()?)
}

/// Who serves now, if that is a child: orphans in this container become ours. One that took over a moment ago may not have told
/// the kernel yet.
async fn next(socket: Option<&Path>) -> Option<u32> {
    for _ in 0..TRIES {
        Talk::connect(socket?).await.ok()?;
        let child = serving(socket).await.filter(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
        if let Some(child) = child {
            return u32::try_from(child.as_raw_pid()).ok();
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(number).ok()?)
}

/// As shells say it: what a signal killed is 128 and its number.
fn code(status: WaitStatus) -> u8 {
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(number).unwrap_or(1)
}
