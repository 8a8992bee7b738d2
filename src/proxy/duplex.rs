//! Two connections joined: what one side says the other hears, each direction to its own end, until both are over or nobody says
//! anything for too long.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pingora_timeout::timeout;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pump::{Fault, Pump};
use super::relay::Clock;
use super::wire::{Framing, Malformed};

/// Why the two were parted before both had ended.
#[derive(Debug)]
pub(super) enum Parted {
    Client(io::Error),
    Upstream(io::Error),
    Silence,
}

/// One direction: its bytes, whether its sender has ended, and whether its receiver was told.
struct Lane {
    pump: Pump,
    over: bool,
    told: bool,
}

/// Both directions.
pub(super) struct Duplex {
    up: Lane,
    down: Lane,
}

impl Lane {
    fn new(head: Vec<u8>, first: &[u8]) -> Result<Lane, Malformed> {
        Ok(Lane { pump: Pump::new(Framing::UntilClose, head, first)?, over: false, told: false })
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if !self.over {
            match self.pump.poll(cx, source, sink) {
                Poll::Ready(Ok(())) => self.over = true,
                other => return other,
            }
        }
        if !self.told {
            // Whether it fails or not: a receiver that is gone has heard of it.
            self.told = Pin::new(sink).poll_shutdown(cx).is_ready();
        }
        if self.told { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl Duplex {
    /// `head` goes to the upstream before anything of the client, `first` is what the client has said already.
    ///
    /// # Errors
    /// Never for bytes that end with the connection.
    pub(super) fn new(head: Vec<u8>, first: &[u8]) -> Result<Duplex, Malformed> {
        Ok(Duplex { up: Lane::new(head, first)?, down: Lane::new(Vec::new(), &[])? })
    }

    /// The client's bytes so far, and the upstream's.
    pub(super) fn passed(&self) -> (u64, u64) {
        (self.up.pump.passed, self.down.pump.passed)
    }

    /// Until both directions are over. One that is over is passed on as such, and the other goes on.
    ///
    /// # Errors
    /// One side broke off, or neither said anything for `idle`.
    pub(super) async fn run<C, U>(&mut self, client: &mut C, upstream: &mut U, idle: Duration) -> Result<(), Parted>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let (began, mut step) = (Instant::now(), Clock::start(idle));
        loop {
            let Some(wait) = step.left(began, None) else { return Err(Parted::Silence) };
            let both = poll_fn(|cx| self.poll(cx, client, upstream));
            match timeout(wait, both).await {
                Ok(ended) => return ended,
                Err(_) if step.moved(self.up.pump.passed + self.down.pump.passed) => {}
                Err(_) => return Err(Parted::Silence),
            }
        }
    }

    fn poll<C, U>(&mut self, cx: &mut Context<'_>, client: &mut C, upstream: &mut U) -> Poll<Result<(), Parted>>
    where
        C: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        let up = match self.up.poll(cx, client, upstream) {
            Poll::Ready(Err(fault)) => return Poll::Ready(self.parted(fault, true)),
            up => up.is_ready(),
        };
        let down = match self.down.poll(cx, upstream, client) {
            Poll::Ready(Err(fault)) => return Poll::Ready(self.parted(fault, false)),
            down => down.is_ready(),
        };
        if up && down { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Who failed: the source of one direction is the sink of the other. Who has said all may be gone before it has heard all.
    fn parted(&self, fault: Fault, upwards: bool) -> Result<(), Parted> {
        let (error, upstream) = match fault {
            Fault::Source(error) => (error, !upwards),
            Fault::Sink(error) => (error, upwards),
            Fault::Malformed(Malformed(why)) => (io::Error::other(why), !upwards),
        };
        match upstream {
            true if self.down.over => Ok(()),
            true => Err(Parted::Upstream(error)),
            false if self.up.over => Ok(()),
            false => Err(Parted::Client(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// The edge between a client and an upstream, each with its own end of a pipe.
    #[tokio::test]
    async fn each_direction_ends_for_itself() {
        let (mut client, mut near) = duplex(64);
        let (mut far, mut upstream) = duplex(64);
        let mut both = Duplex::new(b"HEAD ".to_vec(), b"first ").unwrap();
        let joined = tokio::spawn(async move {
            let ended = both.run(&mut near, &mut far, Duration::from_secs(60)).await;
            (ended.is_ok(), both.passed())
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        upstream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "HEAD first question");
        // The client has ended, and hears all the same.
        upstream.write_all(&[b'x'; 1000]).await.unwrap_or_default();
        upstream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(joined.await.unwrap(), (true, (14, answer.len() as u64)));
    }

    #[tokio::test]
    async fn silence_ends_both() {
        let (_client, mut near) = duplex(64);
        let (mut far, _upstream) = duplex(64);
        let mut both = Duplex::new(Vec::new(), b"").unwrap();
        let ended = both.run(&mut near, &mut far, Duration::from_millis(50)).await;
        assert!(matches!(ended, Err(Parted::Silence)));
    }
}
