//! Copying a message's body from one connection to another, with the end of the body known to the byte.
//! Reading and writing happen in one poll through one piece of memory a thread, so that a waiting connection holds none.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::Chunks;
use super::side::Progress;
use super::wire::{Framing, Malformed};

/// The most that is read at once; what the other side does not take of it waits in the pump.
const PIECE: usize = 128 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// A piece of memory for reading, one a thread.
pub(super) fn with_scratch<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}

/// What is left of a body.
#[derive(Debug, Default)]
enum End {
    Length(u64),
    Chunks(Chunks),
    Close,
    #[default]
    Over,
}

/// Which side failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The body's sender broke off.
    Source(io::Error),
    /// Its receiver did.
    Sink(io::Error),
    Malformed(Malformed),
}

/// One body on its way; by default there is none.
#[derive(Debug, Default)]
pub(super) struct Pump {
    end: End,
    /// Read, but not taken by the receiver yet, from `given` on.
    pending: Vec<u8>,
    given: usize,
    /// Nothing was handed over yet: the head waits for the first piece, to leave together with it.
    fresh: bool,
    /// The receiver has some of it.
    begun: bool,
    /// Bytes of the body that were read.
    pub(super) passed: u64,
    /// The sender sent more than the body.
    surplus: bool,
}

impl Pump {
    /// `head` is sent before the body; `first` was read together with the message's head.
    ///
    /// # Errors
    /// When `first` is no start of such a body.
    pub(super) fn new(framing: Framing, mut head: Vec<u8>, first: &[u8]) -> Result<Pump, Malformed> {
        let end = match framing {
            Framing::Length(0) => End::Over,
            Framing::Length(length) => End::Length(length),
            Framing::Chunked => End::Chunks(Chunks::default()),
            Framing::UntilClose => End::Close,
        };
        let mut pump = Pump { end, pending: Vec::new(), given: 0, fresh: true, begun: false, passed: 0, surplus: false };
        let taken = pump.account(first)?;
        head.extend_from_slice(&first[..taken]);
        pump.pending = head;
        Ok(pump)
    }

    /// Everything was read and handed over.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.end, End::Over) && self.given == self.pending.len()
    }

    pub(super) fn progress(&self) -> Progress {
        let (given, read) = (self.given == self.pending.len(), matches!(self.end, End::Over));
        Progress { begun: self.begun, over: given && read, waiting: given && !read, passed: self.passed, surplus: self.surplus }
    }

    /// Counts bytes of the sender in; returns how many of them belong to the body.
    fn account(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let (taken, over) = match &mut self.end {
            End::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                (taken, *left == 0)
            }
            End::Chunks(chunks) => (chunks.advance(bytes)?, chunks.done()),
            End::Close => (bytes.len(), false),
            End::Over => (0, true),
        };
        if over {
            self.end = End::Over;
        }
        self.surplus |= taken < bytes.len();
        self.passed += taken as u64;
        Ok(taken)
    }

    /// Goes on until the body is over or one side has nothing to give or no room.
    pub(super) fn poll<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if std::mem::take(&mut self.fresh)
            && !matches!(self.end, End::Over)
            && let Poll::Ready(Err(fault)) = with_scratch(|scratch| self.poll_piece(cx, source, sink, scratch))
        {
            return Poll::Ready(Err(fault));
        }
        loop {
            ready!(self.poll_give(cx, sink))?;
            if matches!(self.end, End::Over) {
                return Pin::new(&mut *sink).poll_flush(cx).map_err(Fault::Sink);
            }
            ready!(with_scratch(|scratch| self.poll_piece(cx, source, sink, scratch)))?;
        }
    }

    fn poll_give<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, sink: &mut W) -> Poll<Result<(), Fault>> {
        while self.given < self.pending.len() {
            let count = ready!(Pin::new(&mut *sink).poll_write(cx, &self.pending[self.given..])).map_err(Fault::Sink)?;
            if count == 0 {
                return Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into())));
            }
            self.given += count;
            self.begun = true;
        }
        if self.given > 0 {
            (self.pending, self.given) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// One piece: read, and written as far as the receiver takes it at once.
    fn poll_piece<R, W>(&mut self, cx: &mut Context<'_>, source: &mut R, sink: &mut W, scratch: &mut [u8]) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let most = match self.end {
            // No byte more than the body's: what follows is not ours.
            End::Length(left) => usize::try_from(left).unwrap_or(PIECE).min(PIECE),
            _ => PIECE,
        };
        let mut piece = ReadBuf::new(&mut scratch[..most]);
        match Pin::new(source).poll_read(cx, &mut piece) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::Source(error))),
            Poll::Pending => {
                // What was buffered below must not wait for the next piece.
                _ = Pin::new(sink).poll_flush(cx).map_err(Fault::Sink)?;
                return Poll::Pending;
            }
        }
        if piece.filled().is_empty() {
            return Poll::Ready(match self.end {
                End::Close => {
                    self.end = End::Over;
                    Ok(())
                }
                _ => Err(Fault::Source(io::ErrorKind::UnexpectedEof.into())),
            });
        }
        let taken = self.account(piece.filled()).map_err(Fault::Malformed)?;
        let piece = &piece.filled()[..taken];
        let waiting = &self.pending[self.given..];
        let written = match waiting.is_empty() {
            true => Pin::new(sink).poll_write(cx, piece),
            false => Pin::new(sink).poll_write_vectored(cx, &[IoSlice::new(waiting), IoSlice::new(piece)]),
        };
        let count = match written {
            Poll::Ready(count) => count.map_err(Fault::Sink)?,
            Poll::Pending => 0,
        };
        self.begun |= count > 0;
        match count.checked_sub(waiting.len()) {
            Some(count) => (self.pending, self.given) = (piece[count..].to_vec(), 0),
            None => {
                self.given += count;
                self.pending.extend_from_slice(piece);
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    async fn copy(framing: Framing, first: &str, sent: &str, room: usize) -> (Result<(), Fault>, String, u64, bool) {
        let (mut sender, mut source) = duplex(room);
        let (mut sink, mut receiver) = duplex(room);
        let text = sent.to_owned();
        let sending = tokio::spawn(async move {
            sender.write_all(text.as_bytes()).await.ok();
        });
        let receiving = tokio::spawn(async move {
            let mut got = String::new();
            receiver.read_to_string(&mut got).await.unwrap();
            got
        });
        let mut pump = Pump::new(framing, b"head ".to_vec(), first.as_bytes()).unwrap();
        let result = poll_fn(|cx| pump.poll(cx, &mut source, &mut sink)).await;
        drop(sink);
        drop(source);
        sending.await.unwrap();
        (result, receiving.await.unwrap(), pump.passed, pump.surplus)
    }

    #[tokio::test]
    async fn a_body_arrives_whole_and_alone_whatever_the_room() {
        for room in [1, 3, 100_000] {
            let (result, got, passed, surplus) = copy(Framing::Length(8), "ab", "cdefghNEXT", room).await;
            assert!(result.is_ok() && !surplus, "what follows a length is not even read");
            assert_eq!((got.as_str(), passed), ("head abcdefgh", 8));
            let (result, got, passed, _) = copy(Framing::Chunked, "3\r", "\nabc\r\n0\r\n\r\n", room).await;
            assert!(result.is_ok());
            assert_eq!((got.as_str(), passed), ("head 3\r\nabc\r\n0\r\n\r\n", 13));
            let (result, got, _, _) = copy(Framing::UntilClose, "", "abc", room).await;
            assert!(result.is_ok());
            assert_eq!(got, "head abc");
        }
        let (result, got, _, surplus) = copy(Framing::Length(2), "abc", "", 10).await;
        assert!(result.is_ok() && surplus);
        assert_eq!(got, "head ab");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_body() {
        assert!(matches!(copy(Framing::Length(8), "", "abc", 10).await.0, Err(Fault::Source(_))));
        assert!(matches!(copy(Framing::Chunked, "", "3\r\nabc\r\n", 10).await.0, Err(Fault::Source(_))));
        assert!(matches!(copy(Framing::Chunked, "", "3\r\nabcd\r\n", 10).await.0, Err(Fault::Malformed(_))));
    }
}
