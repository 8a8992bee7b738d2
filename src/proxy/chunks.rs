//! Finding the end of a chunked body (RFC 9112, 7.1) while its bytes pass through unchanged.
//! Strict: line ends are CR LF, sizes are hexadecimal digits alone; what laxer readers would see otherwise is refused.

use std::ops::Range;

use super::wire::Malformed;

/// Bytes of extensions and trailers together; honest ones are short.
const MOST_EXTRA: usize = 16 * 1024;

/// Where in the chunks the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In a size, of which this many digits were read.
    Size(u8),
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// The reader of one body.
#[derive(Clone, Debug)]
pub struct Chunks {
    at: At,
    /// The size being read, then the bytes of the chunk that are still to come.
    left: u64,
    extra: usize,
    /// The trailer section has begun.
    in_trailer: bool,
}

impl Default for Chunks {
    fn default() -> Self {
        Chunks { at: At::Size(0), left: 0, extra: 0, in_trailer: false }
    }
}

impl Chunks {
    /// Has the end been seen?
    pub fn done(&self) -> bool {
        self.at == At::Done
    }

    /// Reads on; returns how many of `bytes` belong to the body, which is all of them before its end.
    ///
    /// # Errors
    /// Bytes that are no chunks.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        self.read(bytes, |_| {}, |_| {})
    }

    /// As [`Chunks::advance`]; `data` is told where in `bytes` each piece of a chunk's content stands, `trailer` gets the trailer
    /// section (RFC 9112, 7.1.2) byte by byte, without its last line end.
    ///
    /// # Errors
    /// Bytes that are no chunks.
    pub fn read(&mut self, bytes: &[u8], mut data: impl FnMut(Range<usize>), mut trailer: impl FnMut(u8)) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.at != At::Done {
            if self.at == At::Data {
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                data(at..at + taken);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.at = self.step(bytes[at])?;
            if matches!(self.at, At::Trailer | At::TrailerLf) || (self.at == At::TrailerStart && bytes[at] == b'\n' && self.in_trailer) {
                self.in_trailer = true;
                trailer(bytes[at]);
            }
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<At, Malformed> {
        Ok(match (self.at, byte) {
            (At::Size(digits), _) if byte.is_ascii_hexdigit() => {
                // 15 digits are more bytes than there are, and cannot overflow.
                if digits == 15 {
                    return Err(Malformed("a chunk's size is too large"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left * 16 + u64::from(digit);
                At::Size(digits + 1)
            }
            (At::Size(1..), b'\r') => At::SizeEnd,
            (At::Size(1..), b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, b'\n') => return Err(Malformed("a chunk's line ends in a bare line feed")),
            (At::Extension, _) => self.extra(At::Extension)?,
            (At::SizeEnd, b'\n') if self.left == 0 => At::TrailerStart,
            (At::SizeEnd, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size(0),
            (At::TrailerStart, b'\r') => At::LastLf,
            (At::TrailerStart | At::Trailer, b'\n') => return Err(Malformed("a trailer ends in a bare line feed")),
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerStart | At::Trailer, _) => self.extra(At::Trailer)?,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::LastLf, b'\n') => At::Done,
            _ => return Err(Malformed("the body is not chunked as it should be")),
        })
    }

    fn extra(&mut self, at: At) -> Result<At, Malformed> {
        self.extra += 1;
        if self.extra > MOST_EXTRA { Err(Malformed("a chunked body has too many extensions or trailers")) } else { Ok(at) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut chunks = Chunks::default();
        chunks.advance(text).map(|taken| (taken, chunks.done()))
    }

    #[test]
    fn the_end_is_found_and_nothing_behind_it_is_taken() {
        #[expect(clippy::type_complexity, reason = "a table")]
        let table: [(&[u8], Option<(usize, bool)>); 16] = [
            (b"0\r\n\r\n", Some((5, true))),
            (b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1", Some((15, true))),
            (b"A;name=\"x\"\r\n0123456789\r\n000\r\n\r\n", Some((31, true))),
            (b"0\r\nX-Sum: 1\r\n\r\n", Some((15, true))),
            (b"5\r\nhel", Some((6, false))),
            (b"", Some((0, false))),
            (b"\r\n", None),
            (b"5\nhello\r\n", None),
            (b"5\r\nhello0\r\n", None),
            (b"5\r\nhello\n0\r\n\r\n", None),
            (b"-5\r\n", None),
            (b"+5\r\n", None),
            (b"0x5\r\n", None),
            (b"ffffffffffffffff\r\n", None),
            (b"0\r\nX: 1\n\r\n", None),
            (b"5;a\nhello", None),
        ];
        for (text, wanted) in table {
            assert_eq!(whole(text).ok(), wanted, "{:?}", String::from_utf8_lossy(text));
        }
        assert!(whole(&[b"1;".as_slice(), &vec![b'a'; MOST_EXTRA + 1]].concat()).is_err());
    }

    /// The content and the trailer section, read in pieces.
    fn parts(text: &[u8], cut: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut chunks, mut content, mut trailer) = (Chunks::default(), Vec::new(), Vec::new());
        for piece in text.chunks(cut) {
            chunks.read(piece, |range| content.extend_from_slice(&piece[range]), |byte| trailer.push(byte)).unwrap();
        }
        assert!(chunks.done());
        (content, trailer)
    }

    #[test]
    fn content_and_trailers_are_told_apart() {
        for cut in 1..60 {
            let read = parts(b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\nB: 2\r\n\r\nnext", cut);
            assert_eq!(read, (b"hello world".to_vec(), b"X-Sum: 1\r\nB: 2\r\n".to_vec()), "{cut}");
            assert_eq!(parts(b"1\r\n0\r\n0\r\n\r\n", cut), (b"0".to_vec(), vec![]));
        }
    }

    proptest! {
        #[test]
        fn the_same_end_however_it_is_cut(sizes in proptest::collection::vec(0_usize..70, 0..6), cut in 1_usize..40) {
            let mut body = Vec::new();
            for size in sizes.iter().filter(|size| **size > 0) {
                body.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                body.extend(std::iter::repeat_n(b'x', *size));
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let mut chunks = Chunks::default();
            for piece in body.chunks(cut) {
                prop_assert!(!chunks.done());
                prop_assert_eq!(chunks.advance(piece), Ok(piece.len()));
            }
            prop_assert!(chunks.done());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            _ = whole(&bytes);
        }
    }
}
