//! Coding of answers on their way: one encoder a stream, with bounded windows, that gives out what it has at each piece
//! where pieces must not wait. pingora's own compressor does not flush, so events would wait for its buffers to fill.

use std::io::{self, Write};

use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::write::GzEncoder;

use crate::traffic::encoding::Encoding;

/// What a web server takes for answers made on the fly: most of the gain for little of the time.
const ZSTD_LEVEL: i32 = 3;
const BROTLI_QUALITY: u32 = 4;
const GZIP_LEVEL: u32 = 5;
/// A megabyte looked back on: zstd and brotli would take up to eight and sixteen.
const ZSTD_WINDOW: u32 = 20;
const BROTLI_WINDOW: u32 = 19;
const BROTLI_BUFFER: usize = 4096;

enum Coder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Gzip(GzEncoder<Vec<u8>>),
}

/// The encoder of one answer.
pub struct Compressor {
    /// `None` once the end was written.
    coder: Option<Coder>,
    flush: bool,
}

impl Compressor {
    /// `flush`: every piece goes out as it comes.
    ///
    /// # Errors
    /// When there is no memory for the encoder.
    pub fn new(encoding: Encoding, flush: bool) -> io::Result<Compressor> {
        let coder = match encoding {
            Encoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW)?;
                Coder::Zstd(encoder)
            }
            Encoding::Br => Coder::Brotli(Box::new(CompressorWriter::new(Vec::new(), BROTLI_BUFFER, BROTLI_QUALITY, BROTLI_WINDOW))),
            Encoding::Gzip => Coder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))),
        };
        Ok(Compressor { coder: Some(coder), flush })
    }

    /// Takes a piece and returns what can go out; nothing while the encoder gathers. After the end there is nothing more.
    ///
    /// # Errors
    /// When the encoder fails; the answer cannot be finished then.
    pub fn code(&mut self, piece: &[u8], end: bool) -> io::Result<Option<Bytes>> {
        let Some(coder) = &mut self.coder else { return Ok(None) };
        if !piece.is_empty() {
            match coder {
                Coder::Zstd(encoder) => step(encoder, piece, self.flush && !end)?,
                Coder::Brotli(encoder) => step(encoder, piece, self.flush && !end)?,
                Coder::Gzip(encoder) => step(encoder, piece, self.flush && !end)?,
            }
        }
        let out = match end {
            true => self.coder.take().map(finish).transpose()?.unwrap_or_default(),
            false => std::mem::take(coder.written()),
        };
        Ok((!out.is_empty()).then(|| out.into()))
    }
}

impl Coder {
    fn written(&mut self) -> &mut Vec<u8> {
        match self {
            Coder::Zstd(encoder) => encoder.get_mut(),
            Coder::Brotli(encoder) => encoder.get_mut(),
            Coder::Gzip(encoder) => encoder.get_mut(),
        }
    }
}

fn step(encoder: &mut impl Write, piece: &[u8], flush: bool) -> io::Result<()> {
    encoder.write_all(piece)?;
    if flush { encoder.flush() } else { Ok(()) }
}

fn finish(coder: Coder) -> io::Result<Vec<u8>> {
    match coder {
        Coder::Zstd(encoder) => encoder.finish(),
        Coder::Brotli(encoder) => Ok(encoder.into_inner()),
        Coder::Gzip(encoder) => encoder.finish(),
    }
}

/// The whole of a coded body, for tests.
#[cfg(test)]
fn decode(encoding: Encoding, coded: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    match encoding {
        Encoding::Zstd => return zstd::stream::decode_all(coded).unwrap(),
        Encoding::Br => brotli::Decompressor::new(coded, 4096).read_to_end(&mut plain),
        Encoding::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut plain),
    }
    .unwrap();
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 3] = [Encoding::Zstd, Encoding::Br, Encoding::Gzip];

    #[test]
    fn each_flushed_piece_can_be_read_at_once() {
        for encoding in ALL {
            let mut compressor = Compressor::new(encoding, true).unwrap();
            for _ in 0..3 {
                assert!(compressor.code(b"data: 1\n\n", false).unwrap().is_some(), "{encoding:?}");
            }
            assert!(compressor.code(b"", true).unwrap().is_some());
            assert_eq!(compressor.code(b"more", true).unwrap(), None, "after the end there is nothing");
        }
    }

    #[test]
    fn text_becomes_shorter() {
        let text = "All the king's horses and all the king's men. ".repeat(1000);
        for encoding in ALL {
            let mut compressor = Compressor::new(encoding, false).unwrap();
            let coded = compressor.code(text.as_bytes(), true).unwrap().unwrap();
            assert!(coded.len() * 20 < text.len(), "{encoding:?}: {}", coded.len());
            assert_eq!(decode(encoding, &coded), text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_was_coded_reads_back(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8), flush: bool) {
            for encoding in ALL {
                let mut compressor = Compressor::new(encoding, flush).unwrap();
                let mut coded = Vec::new();
                for piece in &pieces {
                    coded.extend(compressor.code(piece, false).unwrap().unwrap_or_default());
                }
                coded.extend(compressor.code(b"", true).unwrap().unwrap_or_default());
                prop_assert_eq!(decode(encoding, &coded), pieces.concat());
            }
        }
    }
}
