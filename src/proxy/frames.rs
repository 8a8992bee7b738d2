//! Follows an HTTP/2 client's frames as their bytes pass, for two limits that the HTTP/2 library does not have: how long a
//! request's head may take (HEADERS with its CONTINUATIONs, and the SETTINGS that a connection begins with), and how many
//! frames may come that carry nothing (PING, SETTINGS, PRIORITY, empty DATA, RST_STREAM).

use std::time::Instant;

/// Length of a frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Frames without content that may come at once, and how many more each second. A gRPC client may ping once per answer:
/// so what carries content, in both directions, allows further ones.
const EMPTY: (u32, u32) = (2000, 100);
const EMPTY_PER_FRAME: u32 = 4;
const BYTES_PER_EMPTY: usize = 64;
/// WINDOW_UPDATEs likewise. A simple client acknowledges each small piece of an answer twice.
const UPDATES: (u32, u32) = (10_000, 100);
const BYTES_PER_UPDATE: usize = 8;
/// Streams that may be reset at once, and each second, as nghttp2 has it (CVE-2023-44487, "rapid reset").
const RESETS: (u32, u32) = (1000, 33);

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flood {
    #[error("too many HTTP/2 frames that carry nothing")]
    Empty,
    #[error("too many HTTP/2 streams were reset")]
    Resets,
}

/// A number of tokens that comes back with time.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    most: u32,
    each_second: u32,
    filled: Instant,
}

impl Bucket {
    fn new((most, each_second): (u32, u32), now: Instant) -> Bucket {
        Bucket { tokens: most, most, each_second, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_millis();
        let fresh = u32::try_from(passed.saturating_mul(self.each_second.into()) / 1000).unwrap_or(u32::MAX);
        if fresh > 0 {
            self.add(fresh);
            self.filled = now;
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }

    fn add(&mut self, count: u32) {
        self.tokens = self.tokens.saturating_add(count).min(self.most);
    }
}

/// The frames of one client.
#[derive(Debug)]
pub struct Frames {
    header: [u8; HEADER],
    /// Bytes of `header` that were seen.
    seen: usize,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    /// Heads that were awaited so far; one is awaited now where `open`.
    heads: u32,
    open: bool,
    empty: Bucket,
    updates: Bucket,
    resets: Bucket,
    /// Bytes that went to the client and have not been made up for in `empty`.
    written: usize,
}

impl Frames {
    /// After the connection preface: SETTINGS are awaited.
    pub fn new(now: Instant) -> Frames {
        Frames {
            header: [0; HEADER],
            seen: 0,
            left: 0,
            heads: 0,
            open: true,
            empty: Bucket::new(EMPTY, now),
            updates: Bucket::new(UPDATES, now),
            resets: Bucket::new(RESETS, now),
            written: 0,
        }
    }

    /// The number of the head that has begun and not ended; a time limit is due on each.
    pub fn awaited(&self) -> Option<u32> {
        self.open.then_some(self.heads)
    }

    /// Bytes went to the client.
    pub fn wrote(&mut self, count: usize) {
        let tokens = |bytes: usize, each: usize| u32::try_from(bytes / each).unwrap_or(u32::MAX);
        self.updates.add(tokens(count, BYTES_PER_UPDATE));
        self.written += count;
        self.empty.add(tokens(self.written, BYTES_PER_EMPTY));
        self.written %= BYTES_PER_EMPTY;
    }

    /// Bytes came from the client.
    ///
    /// # Errors
    /// When they are a flood; the connection is then to be closed.
    pub fn pass(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.seen < HEADER {
                let count = bytes.len().min(HEADER - self.seen);
                self.header[self.seen..self.seen + count].copy_from_slice(&bytes[..count]);
                (self.seen, bytes) = (self.seen + count, &bytes[count..]);
                if self.seen == HEADER {
                    self.left = usize::from(self.header[0]) << 16 | usize::from(self.header[1]) << 8 | usize::from(self.header[2]);
                    self.begin(now)?;
                }
            } else {
                let count = bytes.len().min(self.left);
                (self.left, bytes) = (self.left - count, &bytes[count..]);
            }
            if self.seen == HEADER && self.left == 0 {
                self.end();
            }
        }
        Ok(())
    }

    fn begin(&mut self, now: Instant) -> Result<(), Flood> {
        let (kind, flags) = (self.header[3], self.header[4]);
        let fine = match kind {
            HEADERS => {
                (self.open, self.heads) = (true, self.heads.wrapping_add(1).max(1));
                self.empty.add(EMPTY_PER_FRAME);
                true
            }
            // The HTTP/2 library bounds how many CONTINUATIONs one head may have.
            CONTINUATION => true,
            DATA if self.left > 0 || flags & END_STREAM != 0 => {
                self.empty.add(EMPTY_PER_FRAME);
                true
            }
            RST_STREAM => return self.resets.take(now).then_some(()).ok_or(Flood::Resets),
            WINDOW_UPDATE => self.updates.take(now),
            _ => self.empty.take(now),
        };
        if fine { Ok(()) } else { Err(Flood::Empty) }
    }

    fn end(&mut self) {
        let ends_head = match self.header[3] {
            HEADERS | CONTINUATION => self.header[4] & END_HEADERS != 0,
            SETTINGS => self.heads == 0,
            _ => false,
        };
        self.open &= !ends_head;
        self.seen = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEADER + payload, 0xAA);
        bytes
    }

    const PING: u8 = 0x6;

    #[test]
    fn a_head_is_awaited_from_its_first_frame_to_its_last() {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        // what comes, the head that is awaited then
        let table = [
            (frame(WINDOW_UPDATE, 0, 4), Some(0)),
            (frame(SETTINGS, 0, 12), None),
            (frame(HEADERS, END_STREAM, 100), Some(1)),
            (frame(CONTINUATION, 0, 100), Some(1)),
            (frame(CONTINUATION, END_HEADERS, 0), None),
            (frame(DATA, 0, 10), None),
            (frame(HEADERS, END_HEADERS, 7)[..12].to_vec(), Some(2)),
            (frame(HEADERS, END_HEADERS, 7)[12..].to_vec(), None),
            (frame(SETTINGS, 1, 0), None),
        ];
        for (bytes, awaited) in table {
            frames.pass(&bytes, now).unwrap();
            assert_eq!(frames.awaited(), awaited, "{bytes:?}");
        }
    }

    /// Frames of `kind` until it is a flood, at one moment; at most 100,000.
    fn passed(kind: u8, flags: u8, payload: usize) -> (usize, Option<Flood>) {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        let bytes = frame(kind, flags, payload);
        let flood = (0..100_000).map(|count| (count, frames.pass(&bytes, now).err())).find(|(_, flood)| flood.is_some());
        flood.unwrap_or((100_000, None))
    }

    #[test]
    fn what_carries_nothing_is_bounded_and_content_is_not() {
        // kind, flags, payload, frames that pass, what it is then
        let table = [
            (PING, 0, 8, 2000, Some(Flood::Empty)),
            (SETTINGS, 0, 0, 2000, Some(Flood::Empty)),
            (WINDOW_UPDATE, 0, 4, 10_000, Some(Flood::Empty)),
            (DATA, 0, 0, 2000, Some(Flood::Empty)),
            (0x2, 0, 5, 2000, Some(Flood::Empty)),
            (0xEE, 0, 5, 2000, Some(Flood::Empty)),
            (RST_STREAM, 0, 4, 1000, Some(Flood::Resets)),
            (DATA, 0, 1, 100_000, None),
            (HEADERS, END_HEADERS | END_STREAM, 20, 100_000, None),
        ];
        for (kind, flags, payload, count, flood) in table {
            assert_eq!(passed(kind, flags, payload), (count, flood), "kind {kind}");
        }
    }

    #[test]
    fn a_ping_for_each_answer_and_an_acknowledged_download_are_no_flood() {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        for _ in 0..100_000 {
            frames.pass(&frame(HEADERS, END_HEADERS | END_STREAM, 20), now).unwrap();
            frames.pass(&frame(PING, 0, 8), now).unwrap();
        }
        for _ in 0..100_000 {
            frames.wrote(29);
            frames.pass(&[frame(WINDOW_UPDATE, 0, 4), frame(WINDOW_UPDATE, 0, 4)].concat(), now).unwrap();
        }
        // Answers to pings are no content.
        let flood = (0..100_000).find(|_| {
            frames.wrote(17);
            frames.pass(&frame(PING, 0, 8), now).is_err()
        });
        assert!(flood.is_some());
    }

    #[test]
    fn patience_comes_back_with_time() {
        let begin = Instant::now();
        let mut frames = Frames::new(begin);
        for second in 0..100_000 {
            let now = begin + Duration::from_secs(second);
            for _ in 0..30 {
                frames.pass(&frame(RST_STREAM, 0, 4), now).unwrap();
                frames.pass(&frame(PING, 0, 8), now).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(kinds in proptest::collection::vec((0_u8..11, 0_u8..=255, 0_usize..40), 0..60), cut in 1_usize..20) {
            let now = Instant::now();
            let bytes: Vec<u8> = kinds.into_iter().flat_map(|(kind, flags, payload)| frame(kind, flags, payload)).collect();
            let (mut whole, mut pieces) = (Frames::new(now), Frames::new(now));
            whole.pass(&bytes, now).unwrap();
            for piece in bytes.chunks(cut) {
                pieces.pass(piece, now).unwrap();
            }
            prop_assert_eq!(whole.awaited(), pieces.awaited());
            prop_assert_eq!((whole.seen, whole.left), (pieces.seen, pieces.left));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let now = Instant::now();
            let _ = Frames::new(now).pass(&bytes, now);
        }
    }
}
