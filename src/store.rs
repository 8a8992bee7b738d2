//! What must outlive a process, as keys and bytes that prove to be whole. [`Store`] is the seam at which one node's disk can be replaced
//! by a store that several nodes share; nothing above it knows which one it has.

pub mod disk;
pub mod keyed;
pub mod memory;
mod permission;
mod watch;

use std::collections::BTreeMap;
use std::fmt;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The last good snapshot of Docker.
pub const SNAPSHOT: &str = "snapshot";
/// Bytes of one value in a [`Store`]; a certificate with a hundred names has 10 KB.
pub const MAX_VALUE: usize = 1 << 20;

/// Of the envelope. A value written by another version is not read.
const VERSION: u32 = 1;
const MAX_KEY: usize = 200;

/// Keys like `certificate/0123456789abcdef`, each with one value. Values may be secret: they are wiped when dropped, and an
/// implementation shows them to nobody. A key has up to 200 bytes of `a-z`, `0-9`, `.`, `_`, `-`, in parts separated by `/` that begin
/// with a letter or digit.
pub trait Store: fmt::Debug + Send + Sync {
    /// The value under `key` with its version; `None` when there is none, or what was there was damaged, which is said in the log.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>>;

    /// Puts `value` under `key` if `expected` is still its version; `None`: if there is no value yet. All or nothing, and kept once
    /// this returns. [`Error::Conflict`] when somebody else was first: read again, decide again.
    fn put<'a>(&'a self, key: &'a str, value: &'a [u8], expected: Option<&'a Version>) -> BoxFuture<'a, Result<Version, Error>>;

    /// Removes the value under `key` if `expected` is still its version. [`Error::Conflict`] when it is not, or there is none.
    fn remove<'a>(&'a self, key: &'a str, expected: &'a Version) -> BoxFuture<'a, Result<(), Error>>;

    /// All keys that begin with `prefix` (`certificate/`), with their versions.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, Version>, Error>>;

    /// First every key that is there, then every change, whoever made it, within seconds. Only the latest version of a key is told,
    /// so a slow reader costs nothing. Never ends; while the store cannot be reached, it waits.
    fn watch(&self, prefix: &str) -> BoxStream<'static, Change>;
}

/// Of one value: differs after every put, means nothing else, and is no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// For implementations: `text` must not have been used for the key before.
    pub fn new(text: String) -> Version {
        Version(text)
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A value as it was at one version.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub version: Version,
    pub value: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Entry").field("version", &self.version).field("bytes", &self.value.len()).finish()
    }
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    /// `None`: it was removed.
    pub version: Option<Version>,
}

/// Why a store did not do as asked. The texts show keys and places, never values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{key}` was changed by somebody else in between")]
    Conflict { key: String },
    #[error("`{key}` is not a key of the store")]
    Key { key: String },
    #[error("the value of `{key}` has {bytes} bytes; at most {MAX_VALUE} can be kept")]
    TooLarge { key: String, bytes: usize },
    #[error("`{key}` is not used: {source}")]
    Unusable { key: String, source: Unusable },
    /// The disk's or the network's, as a sentence.
    #[error("{0}")]
    Unavailable(String),
}

/// The value under `key` as what [`write`] wrote.
///
/// # Errors
/// The store's, or it holds something else.
pub async fn read<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<(T, Version)>, Error> {
    let Some(Entry { version, value }) = store.get(key).await? else { return Ok(None) };
    match serde_json::from_slice(&value) {
        Ok(value) => Ok(Some((value, version))),
        Err(error) => Err(Error::Unusable { key: key.to_owned(), source: error.into() }),
    }
}

/// Puts `value` under `key` as JSON, as [`Store::put`] does.
///
/// # Errors
/// The store's, or the value has no JSON form.
pub async fn write<T: Serialize>(store: &dyn Store, key: &str, value: &T, expected: Option<&Version>) -> Result<Version, Error> {
    let bytes = json(value).map_err(|error| Error::Unusable { key: key.to_owned(), source: error.into() })?;
    store.put(key, &bytes, expected).await
}

/// Is `key` one that every store can have? Keys become names of files.
///
/// # Errors
/// It is not.
pub fn check_key(key: &str) -> Result<(), Error> {
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
            && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    match key.len() <= MAX_KEY && key.split('/').all(part) {
        true => Ok(()),
        false => Err(Error::Key { key: crate::diagnostic::brief(key) }),
    }
}

/// The first line: what is in the rest, and the mark by which a torn or edited rest is known.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    skep: u32,
    key: String,
    bytes: usize,
    checksum: String,
    /// Files of before there was one do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
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
    /// Without JSON's own words, which cite what they stumble over: it may be a key.
    #[error("it holds something else: line {line}, column {column} of its value was not expected")]
    Value { line: usize, column: usize },
}

impl Unusable {
    /// Will nobody ever read it again? Another version of Skep may read what it wrote.
    pub fn is_lost(&self) -> bool {
        matches!(self, Unusable::NoSeal | Unusable::Key { .. } | Unusable::Damaged { .. })
    }
}

impl From<serde_json::Error> for Unusable {
    fn from(error: serde_json::Error) -> Unusable {
        Unusable::Value { line: error.line(), column: error.column() }
    }
}

/// `value` as bytes for `key`: a line about the rest, then JSON.
///
/// # Errors
/// The value has no JSON form.
pub fn encode<T: Serialize>(key: &str, value: &T) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    seal(key, None, &json(value)?)
}

/// `body` as bytes for `key` with its version: a line about the rest, then the rest.
///
/// # Errors
/// None that can happen: the line is plain text.
pub fn seal(key: &str, version: Option<&Version>, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let version = version.map(|version| version.0.clone());
    let line = serde_json::to_vec(&Seal { skep: VERSION, key: key.to_owned(), bytes: body.len(), checksum: checksum(body), version })?;
    // At its full size from the start: what grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(line.len() + 1 + body.len()));
    bytes.extend(line);
    bytes.push(b'\n');
    bytes.extend(body);
    Ok(bytes)
}

/// The value that [`encode`] made bytes of.
///
/// # Errors
/// Another version or key, or bytes that are not those that were written.
pub fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Unusable> {
    let (_, body) = unseal(key, bytes)?;
    Ok(serde_json::from_slice(body)?)
}

/// What [`seal`] sealed, and its version: the checksum where none was given.
///
/// # Errors
/// Another version or key, or bytes that are not those that were written.
pub fn unseal<'a>(key: &str, bytes: &'a [u8]) -> Result<(Version, &'a [u8]), Unusable> {
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or(Unusable::NoSeal)?;
    let (head, body) = (&bytes[..line], &bytes[line + 1..]);
    let seal: Seal = serde_json::from_slice(head).map_err(|_| Unusable::NoSeal)?;
    if seal.skep != VERSION {
        return Err(Unusable::Version { found: seal.skep });
    }
    if seal.key != key {
        return Err(Unusable::Key { found: crate::diagnostic::brief(&seal.key) });
    }
    if seal.bytes != body.len() || seal.checksum != checksum(body) {
        return Err(Unusable::Damaged { expected: seal.bytes, found: body.len(), checksum: seal.checksum });
    }
    Ok((Version(seal.version.unwrap_or(seal.checksum)), body))
}

/// As JSON, in a buffer that had its full size from the start: what grows leaves copies behind.
fn json<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(count.0));
    serde_json::to_writer(&mut *bytes, value)?;
    Ok(bytes)
}

struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
    fn a_version_is_kept_and_files_without_one_are_read() {
        let version = Version::new("1".into());
        let bytes = seal("x", Some(&version), b"[]").expect("bytes");
        assert_eq!(unseal("x", &bytes).expect("whole"), (version, &b"[]"[..]));
        let old = b"{\"skep\":1,\"key\":\"x\",\"bytes\":2,\"checksum\":\"09612b07b5ecb5a5\"}\n[]".to_vec();
        assert_eq!(unseal("x", &old).expect("whole").1, b"[]");
        assert!(decode::<Vec<u32>>("x", &old).expect("a value").is_empty());
    }

    #[test]
    fn keys_are_names_of_files() {
        for good in ["tickets", "certificate/0123456789abcdef", "a/b.c/d_e-f"] {
            assert!(check_key(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".hidden", "A", "a b", "ü", "a\0", "a\\b", &"a".repeat(201)] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_error_shows_a_value() {
        let error = decode::<u32>("x", &encode("x", &"top secret").expect("bytes")).expect_err("not a number");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        let entry = Entry { version: Version::new("1".into()), value: Zeroizing::new(b"top secret".to_vec()) };
        assert_eq!(format!("{entry:?}"), "Entry { version: Version(\"1\"), bytes: 10 }");
    }

    #[test]
    fn anything_else_says_what_it_is() {
        let good = encode("x", &1).expect("bytes");
        let text = String::from_utf8(good.to_vec()).expect("text");
        for (bytes, key, expected) in [
            (Vec::new(), "x", "no readable first line"),
            (b"{}\n1".to_vec(), "x", "no readable first line"),
            (text.replace(":1,", ":2,").into_bytes(), "x", "written in version 2"),
            (good.to_vec(), "y", "holds `x`"),
            ([&good[..], b"2"].concat(), "x", "damaged"),
            (encode("x", &"text").expect("bytes").to_vec(), "x", "something else"),
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
