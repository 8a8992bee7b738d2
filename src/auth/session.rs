//! What a signed-in browser holds: a sealed token that names a session. Whether the session is alive is ours to know
//! ([`super::accounts`]); the token alone says who is meant, since when, and when it was last seen.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::seal::{NONCE_BYTES, Purpose, Ring, age};
use crate::config::Auth;

/// Of the format below.
const VERSION: u8 = 1;
/// Behind the user: version, session, issued, seen.
const TAIL: usize = 1 + SessionId::BYTES + 8 + 8;
/// Bytes of a folded user that can sign in; a token with it is still a small cookie.
pub const MAX_USER: usize = 256;
/// So much of the idle time may pass before the cookie is renewed.
const RENEW: u32 = 10;
/// Clocks of nodes may be apart so far; a token from further in the future is none of ours.
const SLACK: Duration = Duration::from_secs(300);

/// Names a session: one sign-in of one browser, the same on all hosts. Random, and no secret by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; SessionId::BYTES]);

impl SessionId {
    pub const BYTES: usize = 16;

    fn hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for SessionId {
    /// Its begin, which tells sessions apart in a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SessionId({}..)", &self.hex()[..8])
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 2 * SessionId::BYTES);
        number.map(|number| SessionId(number.to_be_bytes())).ok_or_else(|| serde::de::Error::custom("no session"))
    }
}

/// How long sessions live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unused.
    pub idle: Duration,
    /// In any case.
    pub lifetime: Duration,
    /// Groups are asked for again so often.
    pub recheck: Duration,
    /// Can they be asked for at all? Else a session ends after `recheck`.
    pub looks_up: bool,
}

impl Limits {
    pub fn new(auth: &Auth, looks_up: bool) -> Limits {
        Limits { idle: auth.session_idle, lifetime: auth.session_lifetime, recheck: auth.recheck, looks_up }
    }
}

/// What the session cookie says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Folded.
    pub user: String,
    pub session: SessionId,
    /// To the second, as all times of tokens.
    pub issued: Timestamp,
    pub seen: Timestamp,
}

impl Token {
    /// The cookie's value for `host` (lower case, without port). `nonce` is random.
    pub fn seal(&self, ring: &Ring, host: &str, nonce: [u8; NONCE_BYTES]) -> String {
        let mut plain = Vec::with_capacity(self.user.len() + TAIL);
        plain.extend_from_slice(self.user.as_bytes());
        plain.push(VERSION);
        plain.extend_from_slice(&self.session.0);
        plain.extend_from_slice(&self.issued.as_second().to_be_bytes());
        plain.extend_from_slice(&self.seen.as_second().to_be_bytes());
        ring.seal(Purpose::Session, host, &plain, nonce)
    }

    /// What [`Token::seal`] made for `host`. Says nothing of its age.
    pub fn open(ring: &Ring, host: &str, text: &str) -> Option<Token> {
        let mut plain = ring.open(Purpose::Session, host, text)?;
        let tail: [u8; TAIL] = *plain.last_chunk()?;
        plain.truncate(plain.len() - TAIL);
        let [version, rest @ ..] = tail;
        let (session, times) = rest.split_first_chunk()?;
        let (issued, seen) = times.split_first_chunk()?;
        let time = |bytes: [u8; 8]| Timestamp::from_second(i64::from_be_bytes(bytes)).ok();
        let token = Token {
            user: String::from_utf8(plain).ok()?,
            session: SessionId(*session),
            issued: time(*issued)?,
            seen: time(seen.try_into().ok()?)?,
        };
        Some(token).filter(|_| version == VERSION)
    }

    /// May it be used at `now`? And should a new one go out with the answer?
    pub fn judge(&self, now: Timestamp, limits: &Limits) -> Standing {
        let unused = age(self.seen, now);
        let future = self.seen.max(self.issued) > now + SLACK;
        match () {
            () if future || unused >= limits.idle || age(self.issued, now) >= limits.lifetime => Standing::Ended,
            () if unused >= limits.idle / RENEW => Standing::Renew,
            () => Standing::Fresh,
        }
    }

    /// The one that goes out instead at `now`.
    #[must_use]
    pub fn renewed(self, now: Timestamp) -> Token {
        Token { seen: now, ..self }
    }

    /// How long the browser should keep it at `now`: until it ends if it is not used.
    pub fn keep(&self, now: Timestamp, limits: &Limits) -> Duration {
        limits.idle.min(limits.lifetime.saturating_sub(age(self.issued, now)))
    }
}

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Fresh,
    /// Good, and old enough for a new cookie.
    Renew,
    Ended,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::seal::tests::{at, ring};
    use super::*;

    fn token() -> Token {
        Token { user: "ada".to_owned(), session: SessionId([7; 16]), issued: at(0), seen: at(0) }
    }

    fn limits() -> Limits {
        Limits::new(&Auth::default(), true)
    }

    const HOUR: i64 = 3600;

    #[test]
    fn a_token_ends_unused_or_old() {
        for (issued, seen, now, standing) in [
            (0, 0, 0, Standing::Fresh),
            (0, 0, HOUR, Standing::Fresh),
            (0, 0, 2 * HOUR, Standing::Renew),
            (0, 0, 12 * HOUR - 1, Standing::Renew),
            (0, 0, 12 * HOUR, Standing::Ended),
            (0, 160 * HOUR, 160 * HOUR, Standing::Fresh),
            (0, 168 * HOUR - 1, 168 * HOUR - 1, Standing::Fresh),
            (0, 168 * HOUR - 1, 168 * HOUR, Standing::Ended),
            (60, 60, 0, Standing::Fresh),
            (0, HOUR, 0, Standing::Ended),
            (HOUR, 0, 0, Standing::Ended),
        ] {
            let token = Token { issued: at(issued), seen: at(seen), ..token() };
            assert_eq!(token.judge(at(now), &limits()), standing, "{issued} {seen} {now}");
        }
        let renewed = token().renewed(at(HOUR));
        assert_eq!((renewed.issued, renewed.seen), (at(0), at(HOUR)), "a renewed one does not live longer");
        assert_eq!(renewed.keep(at(HOUR), &limits()), Duration::from_secs(12 * 3600));
        assert_eq!(renewed.keep(at(167 * HOUR), &limits()), Duration::from_secs(3600));
    }

    #[test]
    fn a_token_is_good_on_its_host_and_as_a_session_only() {
        let text = token().seal(&ring(), "a.test", [1; 12]);
        assert_eq!(Token::open(&ring(), "a.test", &text), Some(token()));
        assert_eq!(Token::open(&ring(), "b.test", &text), None);
        let plain = ring().open(Purpose::Session, "a.test", &text).expect("ours");
        let other = ring().seal(Purpose::Browser, "a.test", &plain, [1; 12]);
        assert_eq!(Token::open(&ring(), "a.test", &other), None);
        for short in 0..TAIL {
            let text = ring().seal(Purpose::Session, "a.test", &plain[..short], [1; 12]);
            assert_eq!(Token::open(&ring(), "a.test", &text), None, "{short}");
        }
    }

    #[test]
    fn a_session_reads_back_and_is_shown_in_part() {
        let id = SessionId([0x0f; 16]);
        assert_eq!(serde_json::to_string(&id).expect("JSON"), format!("\"{}\"", "0f".repeat(16)));
        assert_eq!(serde_json::from_str::<SessionId>(&format!("\"{}\"", "0f".repeat(16))).expect("read"), id);
        assert!(serde_json::from_str::<SessionId>("\"0f\"").is_err());
        assert_eq!(format!("{id:?}"), "SessionId(0f0f0f0f..)");
    }

    proptest! {
        #[test]
        fn any_token_reads_back(user in "\\PC{0,60}", session: [u8; 16], issued in 0i64..1_000_000, seen in 0i64..1_000_000, nonce: [u8; 12]) {
            let token = Token { user, session: SessionId(session), issued: at(issued), seen: at(seen) };
            prop_assert_eq!(Token::open(&ring(), "a", &token.seal(&ring(), "a", nonce)), Some(token));
        }

        #[test]
        fn any_sealed_bytes_are_survived(plain in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Token::open(&ring(), "a", &ring().seal(Purpose::Session, "a", &plain, [1; 12]));
        }
    }
}
