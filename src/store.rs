//! What must outlive a process, as keys and bytes that prove to be whole.
//! The disk store keeps the last good snapshot, which serves a start without Docker.

pub mod disk;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The last good snapshot of Docker.
pub const SNAPSHOT: &str = "snapshot";

/// Of the envelope. A value written by another version is not read: a fresh one comes in a moment.
const VERSION: u32 = 1;

/// The first line: what is in the rest, and the mark by which a torn or edited rest is known.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    skep: u32,
    key: String,
    bytes: usize,
    checksum: String,
}

/// Why stored bytes are no value.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("it has no readable first line")]
    NoSeal,
    #[error("it was written in version {found}, this is version {VERSION}")]
    Version { found: u32 },
    #[error("it holds `{found}`")]
    Key { found: String },
    #[error("it is damaged: {expected} bytes with checksum {checksum} were written, {found} bytes are there")]
    Damaged { expected: usize, found: usize, checksum: String },
    #[error("it holds something else: {0}")]
    Value(#[from] serde_json::Error),
}

/// `value` as bytes for `key`: a line about the rest, then JSON.
///
/// # Errors
/// The value has no JSON form.
pub fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(value)?;
    let seal = Seal { skep: VERSION, key: key.to_owned(), bytes: body.len(), checksum: checksum(&body) };
    let mut bytes = serde_json::to_vec(&seal)?;
    bytes.push(b'\n');
    bytes.extend(body);
    Ok(bytes)
}

/// The value that [`encode`] made bytes of.
///
/// # Errors
/// Another version or key, or bytes that are not those that were written.
pub fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Unusable> {
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unusable::NoSeal)?;
    let (head, body) = (&bytes[..line], &bytes[line + 1..]);
    let seal: Seal = serde_json::from_slice(head).map_err(|_| Unusable::NoSeal)?;
    if seal.skep != VERSION {
        return Err(Unusable::Version { found: seal.skep });
    }
    if seal.key != key {
        return Err(Unusable::Key { found: seal.key });
    }
    if seal.bytes != body.len() || seal.checksum != checksum(body) {
        return Err(Unusable::Damaged { expected: seal.bytes, found: body.len(), checksum: seal.checksum });
    }
    Ok(serde_json::from_slice(body)?)
}

/// FNV-1a: finds torn writes and bad disks; nobody is kept from forging it.
fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_reads_back() {
        let bytes = encode(SNAPSHOT, &vec!["a", "b"]).expect("bytes");
        assert_eq!(decode::<Vec<String>>(SNAPSHOT, &bytes).expect("a value"), ["a", "b"]);
    }

    #[test]
    fn anything_else_says_what_it_is() {
        let good = encode("x", &1).expect("bytes");
        let text = String::from_utf8(good.clone()).expect("text");
        for (bytes, key, expected) in [
            (Vec::new(), "x", "no readable first line"),
            (b"{}\n1".to_vec(), "x", "no readable first line"),
            (text.replace(":1,", ":2,").into_bytes(), "x", "written in version 2"),
            (good.clone(), "y", "holds `x`"),
            ([&good[..], b"2"].concat(), "x", "damaged"),
            (encode("x", &"text").expect("bytes"), "x", "something else"),
        ] {
            let error = decode::<u32>(key, &bytes).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_cut_and_every_flipped_bit_is_noticed(cut in 0..200usize, bit in 0..1600usize) {
            let good = encode("x", &vec!["some text"; 8]).expect("bytes");
            if cut < good.len() {
                proptest::prop_assert!(decode::<Vec<String>>("x", &good[..cut]).is_err());
            }
            let mut flipped = good.clone();
            let index = bit / 8 % good.len();
            flipped[index] ^= 1 << (bit % 8);
            let read = decode::<Vec<String>>("x", &flipped);
            proptest::prop_assert!(read.is_err() || read.is_ok_and(|value| value == vec!["some text"; 8]));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            proptest::prop_assert!(decode::<u32>("x", &bytes).is_err());
        }
    }
}
