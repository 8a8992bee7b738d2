//! Texts that browsers keep for us and can neither read nor change: encrypted, authenticated, bound to what they are for and to a host.
//! AES-256-GCM-SIV (RFC 8452): should a nonce ever come twice, as after a virtual machine was copied, no key is lost.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Random bytes that each sealing wants.
pub const NONCE_BYTES: usize = 12;
/// Of a sealed text, in bytes: what browsers keep as one cookie.
pub const MAX_TEXT: usize = 4096;
/// Of what is sealed: its text stays below [`MAX_TEXT`], with the name of a cookie beside it.
pub const MAX_PLAIN: usize = 2944;

const ID_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Of the format; authenticated, so that a later one can never be read as this one.
const FORMAT: u8 = 1;
/// A new key is not sealed with before every process must have read it.
const SPREAD: Duration = Duration::from_secs(60);
/// Clocks of nodes may be apart so far.
const SLACK: Duration = Duration::from_secs(3600);
/// Keys at a time: rotation is slowed rather than a key dropped that something alive is sealed with.
const MOST_KEYS: u32 = 32;

/// What a sealed text is for. It opens for nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Session = 1,
    SignInForm = 2,
    SignOutForm = 3,
    Ticket = 4,
    Code = 5,
    Browser = 6,
}

/// One key as the store keeps it. Wiped when dropped, shown to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    id: u32,
    created: Timestamp,
    /// Base64.
    secret: Zeroizing<String>,
}

impl Key {
    /// What it is made from; `None` if the store has something else there.
    pub(super) fn secret(&self) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        let length = BASE64_STANDARD.decode_slice(self.secret.as_str(), &mut *bytes).ok()?;
        (length == KEY_BYTES).then_some(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("id", &self.id).field("created", &self.created).finish_non_exhaustive()
    }
}

/// All keys as the store keeps them, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    keys: Vec<Key>,
}

impl Keys {
    /// What is to be kept instead at `now`; `None`: nothing changes. A key is replaced after `rotation` and kept while anything
    /// that was sealed with it may be alive: `lifetime`. `random` becomes the new key, if there is one.
    pub fn planned(&self, now: Timestamp, rotation: Duration, lifetime: Duration, random: &[u8; KEY_BYTES]) -> Option<Keys> {
        let rotation = rotation.max(lifetime / MOST_KEYS).max(2 * SPREAD);
        let keep = lifetime + SLACK;
        let mut keys = self.alive(now, keep);
        // A key of the future was made while a clock was wrong: nobody knows its age.
        let current = keys.last().is_some_and(|key| age(key.created, now) < rotation && key.created <= now + SLACK);
        if !current {
            let id = self.keys.iter().map(|key| key.id).max().map_or(1, |id| id.wrapping_add(1));
            keys.push(Key { id, created: now, secret: Zeroizing::new(BASE64_STANDARD.encode(random)) });
        }
        (keys.len() != self.keys.len() || !current).then_some(Keys { keys })
    }

    /// Those that are of use at `now`, the one to seal or sign with first: the newest that everybody has had `spread` to read.
    pub(super) fn ordered(&self, now: Timestamp, spread: Duration) -> Vec<&Key> {
        let mut newest_first: Vec<&Key> = self.keys.iter().rev().collect();
        if let Some(ready) = newest_first.iter().position(|key| age(key.created, now) >= spread) {
            newest_first[..=ready].rotate_right(1);
        }
        newest_first
    }

    /// Those that something alive may be sealed with: a key's successor ended its use.
    fn alive(&self, now: Timestamp, keep: Duration) -> Vec<Key> {
        let ended = |index: usize| self.keys.get(index + 1).map(|next| next.created);
        let alive = |index: usize| ended(index).is_none_or(|ended| age(ended, now) < keep);
        self.keys.iter().enumerate().filter(|(index, _)| alive(*index)).map(|(_, key)| key.clone()).collect()
    }
}

/// From `then` to `now`; zero if `then` is to come.
pub(super) fn age(then: Timestamp, now: Timestamp) -> Duration {
    now.duration_since(then).try_into().unwrap_or_default()
}

/// The keys ready for use, of which one seals and all open.
pub struct Ring {
    /// The one that seals is first.
    keys: Vec<(u32, LessSafeKey)>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl Ring {
    /// `keys` at `now`; `None` when none of them can be used.
    pub fn new(keys: &Keys, now: Timestamp) -> Option<Ring> {
        let usable = keys.ordered(now, SPREAD).into_iter().filter_map(|key| Some((key.id, cipher(key)?)));
        Some(Ring { keys: usable.collect() }).filter(|ring| !ring.keys.is_empty())
    }

    /// `plain`, of up to [`MAX_PLAIN`] bytes, as a text for URLs and cookies that [`Ring::open`] opens for the same `purpose` and
    /// `context` (the host). `nonce` is random. Empty, which opens for nobody, if
    /// something is too long.
    pub fn seal(&self, purpose: Purpose, context: &str, plain: &[u8], nonce: [u8; NONCE_BYTES]) -> String {
        let parts = self.keys.first().zip(associated(purpose, context)).filter(|_| plain.len() <= MAX_PLAIN);
        // Longer than all that we make: what opens for nobody.
        let Some(((id, key), aad)) = parts else { return String::new() };
        let mut sealed = plain.to_vec();
        if key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).is_err() {
            return String::new();
        }
        let mut bytes = Vec::with_capacity(ID_BYTES + NONCE_BYTES + sealed.len());
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What [`Ring::seal`] sealed for `purpose` and `context`; `None` for all else.
    pub fn open(&self, purpose: Purpose, context: &str, text: &str) -> Option<Vec<u8>> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        if bytes.len() < ID_BYTES + NONCE_BYTES + TAG_BYTES {
            return None;
        }
        let id = u32::from_be_bytes(bytes.first_chunk().copied()?);
        let nonce: [u8; NONCE_BYTES] = bytes[ID_BYTES..].first_chunk().copied()?;
        let (_, key) = self.keys.iter().find(|(known, _)| *known == id)?;
        let body = ID_BYTES + NONCE_BYTES..;
        let plain = key.open_within(Nonce::assume_unique_for_key(nonce), associated(purpose, context)?, &mut bytes, body).ok()?.len();
        bytes.truncate(plain);
        Some(bytes)
    }
}

/// Bytes of a context: a host has no more than 253.
const MAX_CONTEXT: usize = 254;

/// What is authenticated beside the sealed: the purpose and the context, which nothing follows, so that no two pairs look alike.
fn associated(purpose: Purpose, context: &str) -> Option<Aad<Associated>> {
    let mut bytes = [0; MAX_CONTEXT + 2];
    bytes[..2].copy_from_slice(&[FORMAT, purpose as u8]);
    bytes.get_mut(2..2 + context.len())?.copy_from_slice(context.as_bytes());
    Some(Aad::from(Associated { bytes, length: 2 + context.len() }))
}

struct Associated {
    bytes: [u8; MAX_CONTEXT + 2],
    length: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn cipher(key: &Key) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM_SIV, &*key.secret()?).ok().map(LessSafeKey::new)
}

/// What all sealed values are written and read with: numbers of a fixed size, texts and bytes with their length.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn fixed<const N: usize>(mut self, bytes: &[u8; N]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// To the second.
    pub fn time(self, time: Timestamp) -> Writer {
        self.fixed(&time.as_second().to_be_bytes())
    }

    /// Up to 65,535 bytes; longer ones make a value that does not read back.
    pub fn text(mut self, text: &str) -> Writer {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }
}

/// Takes a value apart that a [`Writer`] wrote.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub fn time(&mut self) -> Option<Timestamp> {
        Timestamp::from_second(i64::from_be_bytes(self.fixed()?)).ok()
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let length = usize::from(u16::from_be_bytes(self.fixed()?));
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(bytes).ok()
    }

    /// Is everything read?
    pub fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    pub fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
    }

    fn after(time: Duration) -> Timestamp {
        at(0) + time
    }

    fn first() -> Keys {
        Keys::default().planned(at(0), DAY, WEEK, &[7; KEY_BYTES]).expect("the first key")
    }

    pub fn ring() -> Ring {
        Ring::new(&first(), at(0)).expect("a key")
    }

    #[test]
    fn what_is_sealed_opens_for_its_purpose_and_host_only() {
        let ring = ring();
        let text = ring.seal(Purpose::Session, "a.test", b"ada", [1; NONCE_BYTES]);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
        assert_eq!(ring.open(Purpose::Session, "a.test", &text).as_deref(), Some(&b"ada"[..]));
        for (purpose, host) in
            [(Purpose::Code, "a.test"), (Purpose::Session, "b.test"), (Purpose::Session, "a.tes"), (Purpose::Session, "")]
        {
            assert_eq!(ring.open(purpose, host, &text), None, "{purpose:?} {host}");
        }
        let other = Keys::default().planned(at(0), DAY, WEEK, &[8; KEY_BYTES]).expect("a key");
        assert_eq!(Ring::new(&other, at(0)).expect("a ring").open(Purpose::Session, "a.test", &text), None, "another installation");
    }

    #[test]
    fn a_key_that_was_rotated_opens_until_nothing_can_be_alive_that_it_sealed() {
        let keys = first();
        let text = Ring::new(&keys, at(0)).expect("a ring").seal(Purpose::Session, "a", b"ada", [1; NONCE_BYTES]);
        let open = |keys: &Keys, now| Ring::new(keys, now).expect("a ring").open(Purpose::Session, "a", &text).is_some();
        assert_eq!(keys.planned(after(DAY / 2), DAY, WEEK, &[8; KEY_BYTES]), None, "young");
        let rotated = keys.planned(after(DAY), DAY, WEEK, &[8; KEY_BYTES]).expect("a second key");
        assert!(rotated.keys.len() == 2 && open(&rotated, after(DAY)));
        let late = after(DAY + WEEK);
        let third = rotated.planned(late, DAY, WEEK, &[9; KEY_BYTES]).expect("a third key");
        assert!(open(&third, late), "the clocks of nodes may differ");
        let last = third.planned(late + SLACK, DAY, WEEK, &[9; KEY_BYTES]).expect("one is dropped");
        assert!(!open(&last, late + SLACK));
        assert_eq!(last.keys.iter().map(|key| key.id).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_new_key_seals_once_every_process_must_know_it() {
        let old = first();
        let new = old.planned(after(DAY), DAY, WEEK, &[8; KEY_BYTES]).expect("a second key");
        let elsewhere = Ring::new(&old, after(DAY)).expect("a ring");
        let sealed = |now| Ring::new(&new, now).expect("a ring").seal(Purpose::Session, "a", b"ada", [1; NONCE_BYTES]);
        assert!(elsewhere.open(Purpose::Session, "a", &sealed(after(DAY))).is_some());
        assert!(elsewhere.open(Purpose::Session, "a", &sealed(after(DAY + SPREAD))).is_none());
    }

    #[test]
    fn rotation_is_bounded_and_survives_wrong_clocks() {
        let year = 365 * DAY;
        let mut keys = Keys::default();
        for hour in 0..2 * 365 * 24 {
            let now = after(hour * SLACK);
            keys = keys.planned(now, SLACK, year, &[1; KEY_BYTES]).unwrap_or(keys);
        }
        assert!(keys.keys.len() <= MOST_KEYS as usize + 2, "{}", keys.keys.len());
        let future = Keys::default().planned(after(year), DAY, WEEK, &[1; KEY_BYTES]).expect("a key");
        let now = future.planned(at(0), DAY, WEEK, &[2; KEY_BYTES]).expect("another key");
        assert_eq!(now.planned(at(1), DAY, WEEK, &[3; KEY_BYTES]), None);
    }

    #[test]
    fn keys_read_back_and_are_not_shown() {
        let keys = first();
        let text = serde_json::to_string(&keys).expect("JSON");
        assert_eq!(serde_json::from_str::<Keys>(&text).expect("read back"), keys);
        assert!(text.contains(keys.keys[0].secret.as_str()));
        assert!(!format!("{keys:?} {:?}", ring()).contains(keys.keys[0].secret.as_str()));
        let broken = text.replace(keys.keys[0].secret.as_str(), "AAAA");
        assert!(Ring::new(&serde_json::from_str(&broken).expect("JSON"), at(0)).is_none());
    }

    #[test]
    fn a_change_at_any_place_is_seen() {
        let ring = ring();
        let text = ring.seal(Purpose::Session, "a", b"ada and more", [1; NONCE_BYTES]);
        for at in 0..text.len() {
            for letter in ['A', 'B', 'z', '-', '_', '=', '+', '%', '\0'] {
                let mut changed = text.clone();
                changed.replace_range(at..=at, &letter.to_string());
                assert!(changed == text || ring.open(Purpose::Session, "a", &changed).is_none(), "{at} {letter}");
            }
            assert_eq!(ring.open(Purpose::Session, "a", &text[..at]), None, "cut at {at}");
        }
        for longer in [format!("{text}A"), format!("{text}="), format!("{text}AAAA"), "A".repeat(MAX_TEXT + 4), "A".repeat(10_000_000)] {
            assert_eq!(ring.open(Purpose::Session, "a", &longer), None);
        }
    }

    proptest! {
        #[test]
        fn anything_reads_back(plain in proptest::collection::vec(any::<u8>(), 0..=MAX_PLAIN), host in "[a-z.]{0,253}", nonce: [u8; 12]) {
            let text = ring().seal(Purpose::Code, &host, &plain, nonce);
            prop_assert!(text.len() <= MAX_TEXT);
            prop_assert_eq!(ring().open(Purpose::Code, &host, &text), Some(plain));
        }

        #[test]
        fn what_we_did_not_seal_does_not_open(text in "\\PC{0,300}", base64 in "[A-Za-z0-9_-]{0,300}") {
            prop_assert_eq!(ring().open(Purpose::Session, "a", &text), None);
            prop_assert_eq!(ring().open(Purpose::Session, "a", &format!("AAAAAQ{base64}")), None);
        }

        #[test]
        fn values_read_back(time in -1_000_000_000i64..4_000_000_000, text in "\\PC{0,40}", bytes: [u8; 16]) {
            let time = Timestamp::from_second(time).expect("in range");
            let written = Writer::default().fixed(&bytes).text(&text).time(time).0;
            let mut reader = Reader(&written);
            prop_assert_eq!((reader.fixed(), reader.text(), reader.time(), reader.end()), (Some(bytes), Some(text.as_str()), Some(time), Some(())));
            for end in 0..written.len() {
                let mut reader = Reader(&written[..end]);
                prop_assert!(reader.fixed::<16>().and(reader.text()).and(reader.time()).is_none());
            }
        }
    }
}
