//! An answer of HTTP/1.1 on its way to a client of HTTP/2: its head as HEADERS, its body without the chunks as DATA, what stands
//! behind it as trailers. Only what the client takes is read, but for one piece.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::header::HeaderMap;
use pingora_core::protocols::http::v2::server::HttpSession;
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, ReadBuf};

use super::chunks::Chunks;
use super::pump::{Fault, with_scratch};
use super::side::Progress;
use super::wire::{self, Framing, Malformed};

/// The most that is read at once, and so what waits for a client that takes nothing.
const PIECE: usize = 32 * 1024;

/// How the end of the body is known.
#[derive(Debug)]
enum End {
    Length(u64),
    Chunks(Chunks),
    Close,
    /// All of it was read.
    Over,
}

/// One answer.
pub(super) struct Download {
    /// Until it was sent.
    head: Option<Box<ResponseHeader>>,
    /// Once the head was sent and the answer is not over.
    stream: Option<SendStream<Bytes>>,
    end: End,
    /// Of the body, to be sent.
    ready: Bytes,
    /// The trailer section, as far as it came.
    trailers: Vec<u8>,
    /// The client has all of it.
    over: bool,
    begun: bool,
    /// It is the upstream who has the next word.
    waiting: bool,
    passed: u64,
    surplus: bool,
}

impl Download {
    /// `first` was read together with the message's head.
    ///
    /// # Errors
    /// When `first` is no start of such a body.
    pub(super) fn new(head: Box<ResponseHeader>, framing: Framing, first: BytesMut) -> Result<Download, Malformed> {
        let end = match framing {
            Framing::Length(0) => End::Over,
            Framing::Length(length) => End::Length(length),
            Framing::Chunked => End::Chunks(Chunks::default()),
            Framing::UntilClose => End::Close,
        };
        let mut download = Download {
            head: Some(head),
            stream: None,
            end,
            ready: Bytes::new(),
            trailers: Vec::new(),
            over: false,
            begun: false,
            waiting: false,
            passed: 0,
            surplus: false,
        };
        download.surplus = matches!(download.end, End::Over) && !first.is_empty();
        if !first.is_empty() && !download.surplus {
            download.take_in(first)?;
        }
        Ok(download)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { begun: self.begun, over: self.over, waiting: self.waiting, passed: self.passed, surplus: self.surplus }
    }

    /// Ready once the client has given the stream up.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>, session: &mut HttpSession) -> Poll<io::Error> {
        let reason = match &mut self.stream {
            Some(stream) => ready!(stream.poll_reset(cx)).map_err(io::Error::other),
            None => return poll_reset(session, cx),
        };
        Poll::Ready(reason.map_or_else(|error| error, reset))
    }

    /// The client learns that there is no more, and that it is not all.
    pub(super) fn break_off(&mut self, session: &mut HttpSession) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            None => session.shutdown(),
        }
    }

    /// Goes on until it is over or one side has nothing to give or no room.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut HttpSession,
        source: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<(), Fault>> {
        if self.head.is_some() {
            // Head and body leave together, where the body is there too; and where it never comes, there is still another answer.
            if self.ready.is_empty()
                && !matches!(self.end, End::Over)
                && let Poll::Ready(Err(fault)) = self.poll_read(cx, source)
            {
                return Poll::Ready(Err(fault));
            }
            self.send_head(session)?;
        }
        while !self.over {
            ready!(self.poll_send(cx))?;
            if !self.over {
                ready!(self.poll_read(cx, source))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn send_head(&mut self, session: &mut HttpSession) -> Result<(), Fault> {
        let Some(head) = self.head.take() else { return Ok(()) };
        self.over = self.is_last();
        session.write_response_header(head, self.over).map_err(|error| Fault::Sink(io::Error::other(error)))?;
        self.begun = true;
        if !self.over {
            self.stream = session.take_response_body_writer();
        }
        Ok(())
    }

    /// Nothing will follow what is ready and is sent now.
    fn is_last(&self) -> bool {
        self.ready.is_empty() && matches!(self.end, End::Over) && self.trailers.is_empty()
    }

    /// Sends what is ready, and the end once it is there.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(Err(gone())) };
        while !self.ready.is_empty() {
            self.waiting = false;
            stream.reserve_capacity(self.ready.len());
            let room = match stream.capacity() {
                0 => match ready!(stream.poll_capacity(cx)) {
                    Some(room) => room.map_err(|error| Fault::Sink(io::Error::other(error)))?,
                    None => return Poll::Ready(Err(gone())),
                },
                room => room,
            };
            let piece = self.ready.split_to(room.min(self.ready.len()));
            self.passed += piece.len() as u64;
            self.over = self.ready.is_empty() && matches!(self.end, End::Over) && self.trailers.is_empty();
            stream.send_data(piece, self.over).map_err(|error| Fault::Sink(io::Error::other(error)))?;
        }
        if matches!(self.end, End::Over) && !self.over {
            self.over = true;
            let trailers = if self.trailers.is_empty() { HeaderMap::new() } else { wire::trailers(&self.trailers) };
            match trailers.is_empty() {
                true => stream.send_data(Bytes::new(), true),
                false => stream.send_trailers(trailers),
            }
            .map_err(|error| Fault::Sink(io::Error::other(error)))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads one piece.
    fn poll_read(&mut self, cx: &mut Context<'_>, source: &mut (impl AsyncRead + Unpin)) -> Poll<Result<(), Fault>> {
        let most = match self.end {
            // No byte more than the body's: what follows is not ours.
            End::Length(left) => usize::try_from(left).unwrap_or(PIECE).min(PIECE),
            _ => PIECE,
        };
        self.waiting = true;
        let read = with_scratch(|scratch| {
            let mut piece = ReadBuf::new(&mut scratch[..most]);
            ready!(Pin::new(source).poll_read(cx, &mut piece))?;
            Poll::Ready(Ok(BytesMut::from(piece.filled())))
        });
        let piece = ready!(read).map_err(Fault::Source)?;
        Poll::Ready(match (piece.is_empty(), &self.end) {
            (false, _) => self.take_in(piece).map_err(Fault::Malformed),
            (true, End::Close) => {
                self.end = End::Over;
                Ok(())
            }
            (true, _) => Err(Fault::Source(io::ErrorKind::UnexpectedEof.into())),
        })
    }

    /// Takes the body's part of `piece` as what is ready.
    fn take_in(&mut self, mut piece: BytesMut) -> Result<(), Malformed> {
        let over = match &mut self.end {
            End::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                self.surplus |= taken < piece.len();
                piece.truncate(taken);
                *left -= taken as u64;
                *left == 0
            }
            End::Chunks(chunks) => {
                self.surplus |= unchunk(chunks, &mut piece, &mut self.trailers)?;
                chunks.done()
            }
            End::Close => false,
            End::Over => true,
        };
        if over {
            self.end = End::Over;
        }
        self.ready = piece.freeze();
        Ok(())
    }
}

/// Leaves only the content of chunks in `piece`. Returns whether more followed their end.
fn unchunk(chunks: &mut Chunks, piece: &mut BytesMut, trailers: &mut Vec<u8>) -> Result<bool, Malformed> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let taken = chunks.read(piece, |run| runs.push(run), |byte| trailers.push(byte))?;
    let surplus = taken < piece.len();
    let Some(start) = runs.first().map(|run| run.start) else {
        piece.clear();
        return Ok(surplus);
    };
    // The first one stays where it is, the others are moved up to it.
    let mut end = start;
    for run in runs {
        piece.copy_within(run.clone(), end);
        end += run.len();
    }
    piece.truncate(end);
    piece.advance(start);
    Ok(surplus)
}

fn gone() -> Fault {
    Fault::Sink(io::ErrorKind::ConnectionReset.into())
}

fn reset(reason: Reason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("the stream was reset: {reason}"))
}

/// Ready once the client has given a stream up whose answer has not begun.
pub(super) fn poll_reset(session: &mut HttpSession, cx: &mut Context<'_>) -> Poll<io::Error> {
    let reason = ready!(Pin::new(&mut session.idle()).poll(cx));
    Poll::Ready(reason.map_or_else(io::Error::other, reset))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content of chunks that come cut into pieces.
    fn content(text: &[u8], cut: usize) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut chunks, mut content, mut trailers, mut surplus) = (Chunks::default(), Vec::new(), Vec::new(), false);
        for piece in text.chunks(cut) {
            let mut piece = BytesMut::from(piece);
            surplus |= unchunk(&mut chunks, &mut piece, &mut trailers)?;
            content.extend_from_slice(&piece);
        }
        assert!(chunks.done());
        Ok((content, surplus))
    }

    proptest! {
        #[test]
        fn the_content_is_the_same_however_it_is_cut(pieces in proptest::collection::vec("[a-z]{1,40}", 0..8), cut in 1_usize..100) {
            let mut text = Vec::new();
            for piece in &pieces {
                text.extend_from_slice(format!("{:x};e\r\n{piece}\r\n", piece.len()).as_bytes());
            }
            text.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(content(&text, cut), Ok((pieces.concat().into_bytes(), false)));
            text.extend_from_slice(b"more");
            prop_assert_eq!(content(&text, text.len()), Ok((pieces.concat().into_bytes(), true)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut trailers = Vec::new();
            _ = unchunk(&mut Chunks::default(), &mut BytesMut::from(&bytes[..]), &mut trailers);
            _ = wire::trailers(&bytes);
        }
    }
}
