//! A time limit on an upstream connection that pingora's one read timeout cannot express: the response's head within
//! one time, the gaps of its body within another, the whole request within a third.
//! When it runs out the socket is shut down, which pingora sees as the upstream's end.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{close, dup};
use tokio::task::AbortHandle;

/// Shuts an upstream connection down when its time is over; dropping it in time prevents that.
#[derive(Debug)]
pub struct Deadline {
    timer: AbortHandle,
    state: Arc<Running>,
    after: Duration,
}

#[derive(Debug)]
struct Running {
    began: Instant,
    /// Milliseconds since `began`.
    until: AtomicU64,
    fired: AtomicBool,
}

impl Running {
    /// Sets the end to `after` from now on.
    fn allow(&self, after: Duration) {
        let until = u64::try_from((self.began.elapsed() + after).as_millis()).unwrap_or(u64::MAX);
        self.until.store(until, Ordering::Relaxed);
    }

    fn left(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::Relaxed)).saturating_sub(self.began.elapsed())
    }
}

/// Our own descriptor of the socket, so that its number cannot be somebody else's by the time the timer fires.
pub(super) struct Socket(RawFd);

impl Socket {
    /// `None` when the process is out of descriptors.
    pub(super) fn of(socket: RawFd) -> Option<Socket> {
        dup(socket).ok().map(Socket)
    }

    pub(super) fn shut_down(&self) {
        // It fails only where the connection is closed already, which is what was wanted.
        let _ = shutdown(self.0, Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = close(self.0) {
            tracing::warn!(%error, "closing the descriptor of a deadline");
        }
    }
}

impl Deadline {
    /// Starts the timer. `None` when the process is out of descriptors; pingora's read timeout then bounds the wait alone.
    pub fn arm(socket: RawFd, after: Duration) -> Option<Deadline> {
        let socket = Socket::of(socket)?;
        let state = Arc::new(Running { began: Instant::now(), until: AtomicU64::new(0), fired: AtomicBool::new(false) });
        state.allow(after);
        let running = state.clone();
        let timer = tokio::spawn(async move {
            // Whoever extends the time lets this sleep again.
            while let left = running.left()
                && !left.is_zero()
            {
                tokio::time::sleep(left).await;
            }
            running.fired.store(true, Ordering::Release);
            socket.shut_down();
        });
        Some(Deadline { timer: timer.abort_handle(), state, after })
    }

    /// Begins again: it runs out its whole time from now on.
    pub fn extend(&self) {
        self.state.allow(self.after);
    }

    /// Did it run out?
    pub fn fired(&self) -> bool {
        self.state.fired.load(Ordering::Acquire)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timer.abort();
    }
}
