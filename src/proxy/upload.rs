//! The body of a request that came over HTTP/2 on its way to an upstream of HTTP/1.1: from DATA frames to bytes on a socket,
//! chunked where its length is not known. What the upstream does not take is not read, so that the client's window closes.

use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora_core::protocols::http::v2::server::HttpSession;
use pingora_timeout::timeout;
use tokio::io::AsyncWrite;

use super::pump::Fault;
use super::side::{GATHERED, Progress};
use super::wire;

/// As much is made ready for the socket at once. A frame is not divided, and ours may have 16 KB.
const PIECE: usize = 16 * 1024;
/// A body without a length is gathered up to here: one frame more, and it can still be kept.
const AT_ONCE: usize = GATHERED as usize / 2;

/// One request's body; by default there is none.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// As `Content-Length` declares it; the HTTP/2 library holds the client to it.
    declared: Option<u64>,
    /// All that was read, as long as it is not too much.
    kept: Vec<u8>,
    lost: bool,
    /// The client sent all of it.
    ended: bool,
    chunked: bool,
    /// For the socket, from `given` on.
    out: Vec<u8>,
    given: usize,
    /// Nothing will follow what is in `out`.
    closed: bool,
    begun: bool,
    passed: u64,
}

impl Upload {
    /// `ended`: there is no body.
    pub(super) fn new(declared: Option<u64>, ended: bool) -> Upload {
        Upload { declared, ended, ..Upload::default() }
    }

    /// Reads a short body whole, each piece within `pause`, and of one without a length what is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when the client pauses, others when it is gone.
    pub(super) async fn gather(&mut self, session: &mut HttpSession, pause: Duration) -> io::Result<u64> {
        let short = self.declared.is_some_and(|length| length <= GATHERED);
        while !self.ended && (short || self.declared.is_none() && self.kept.len() < AT_ONCE) {
            let piece = match short {
                true => timeout(pause, poll_fn(|cx| self.poll_receive(cx, session))).await.map_err(|_| io::ErrorKind::TimedOut)?,
                false => match poll_fn(|cx| Poll::Ready(self.poll_receive(cx, session))).await {
                    Poll::Ready(piece) => piece,
                    Poll::Pending => break,
                },
            };
            piece?;
        }
        Ok(self.kept.len() as u64)
    }

    /// Some of it is still to be read from the client.
    pub(super) fn is_streamed(&self) -> bool {
        !self.ended
    }

    /// It can be sent once more.
    pub(super) fn is_repeatable(&self) -> bool {
        !self.lost
    }

    /// What the request's head says of it, for HTTP/1.1.
    pub(super) fn write_framing(&self, head: &mut Vec<u8>) {
        let length = self.declared.or((self.ended && !self.kept.is_empty()).then_some(self.kept.len() as u64));
        match length {
            Some(length) => wire::line(head, header::CONTENT_LENGTH.as_str().as_bytes(), itoa::Buffer::new().format(length).as_bytes()),
            None if self.ended => {}
            None => wire::line(head, header::TRANSFER_ENCODING.as_str().as_bytes(), b"chunked"),
        }
    }

    /// An attempt begins: behind `head`, which has [`Upload::write_framing`], it is sent from its beginning.
    pub(super) fn begin(&mut self, head: Vec<u8>) {
        (self.out, self.given) = (head, 0);
        self.chunked = self.declared.is_none() && !self.ended;
        (self.begun, self.closed, self.passed) = (false, false, 0);
        let kept = std::mem::take(&mut self.kept);
        self.frame(&kept);
        self.kept = kept;
        self.close_if_ended();
    }

    pub(super) fn progress(&self) -> Progress {
        let given = self.given == self.out.len();
        Progress { begun: self.begun, over: given && self.closed, waiting: given && !self.closed, passed: self.passed, surplus: false }
    }

    /// Goes on until it is over or one side has nothing to give or no room.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut HttpSession,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), Fault>> {
        loop {
            while self.given < self.out.len() {
                let count = ready!(Pin::new(&mut *sink).poll_write(cx, &self.out[self.given..])).map_err(Fault::Sink)?;
                if count == 0 {
                    return Poll::Ready(Err(Fault::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.given += count;
                self.begun = true;
            }
            (self.out, self.given) = (Vec::new(), 0);
            if self.closed {
                return Pin::new(&mut *sink).poll_flush(cx).map_err(Fault::Sink);
            }
            while !self.ended && self.out.len() < PIECE {
                match self.poll_receive(cx, session) {
                    Poll::Ready(piece) => {
                        let piece = piece.map_err(Fault::Source)?;
                        self.frame(&piece);
                    }
                    Poll::Pending if self.out.is_empty() => return Poll::Pending,
                    Poll::Pending => break,
                }
            }
            self.close_if_ended();
        }
    }

    /// The next piece from the client, which may then send as much more.
    fn poll_receive(&mut self, cx: &mut Context<'_>, session: &mut HttpSession) -> Poll<io::Result<Bytes>> {
        let piece = ready!(session.poll_read_body_bytes(cx)).transpose().map_err(io::Error::other)?;
        // Trailers are no body; those of a request stay here.
        self.ended = piece.is_none() || session.is_body_done();
        let piece = piece.unwrap_or_default();
        if !self.lost && (self.kept.len() + piece.len()) as u64 > GATHERED {
            (self.lost, self.kept) = (true, Vec::new());
        }
        if !self.lost {
            self.kept.extend_from_slice(&piece);
        }
        Poll::Ready(Ok(piece))
    }

    /// Makes a piece ready for the socket.
    fn frame(&mut self, piece: &[u8]) {
        self.passed += piece.len() as u64;
        if !self.chunked {
            self.out.extend_from_slice(piece);
        } else if !piece.is_empty() {
            // Into memory, which does not fail.
            _ = write!(self.out, "{:x}\r\n", piece.len());
            self.out.extend_from_slice(piece);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    fn close_if_ended(&mut self) {
        if self.ended && !self.closed {
            self.closed = true;
            if self.chunked {
                self.out.extend_from_slice(b"0\r\n\r\n");
            }
        }
    }
}
