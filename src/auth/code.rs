//! The way over the sign-in host and back, where one sign-in is for all hosts. A ticket says where somebody comes from, so that the
//! sign-in host sends nobody elsewhere; a code brings them back signed in: once, within seconds, to that host, in that browser.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use subtle::ConstantTimeEq;

use super::form::Nonce;
use super::seal::{NONCE_BYTES, Purpose, Reader, Ring, Writer, age};
use super::session::SessionId;
use super::target::{is_target, target};

/// Somebody may take so long to sign in.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(3600);
/// A browser comes back at once.
pub const CODE_LIFETIME: Duration = Duration::from_secs(30);
/// Codes that were used within their lifetime; beyond it, none is taken.
const MOST_USED: usize = 100_000;
const VERSION: u8 = 1;

/// Where somebody came from, before they signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// With the port where the browser gave one: `shop.example.com:8443`.
    pub authority: String,
    /// Path and query: see [`super::target`].
    pub path: String,
    /// Does the host speak HTTPS?
    pub secure: bool,
    /// [`Nonce::hash`] of the browser's cookie on that host.
    pub nonce: [u8; 32],
    pub made: Timestamp,
}

impl Ticket {
    /// What goes in the URL of the sign-in host `sign_in`; a path that is no target becomes `/`. `random` seals it.
    pub fn seal(&self, ring: &Ring, sign_in: &str, random: [u8; NONCE_BYTES]) -> String {
        let flags = [VERSION, u8::from(self.secure)];
        let plain = Writer::default().fixed(&flags).time(self.made).fixed(&self.nonce).text(&self.authority).text(target(&self.path)).0;
        ring.seal(Purpose::Ticket, sign_in, &plain, random)
    }

    /// What [`Ticket::seal`] made for `sign_in`, if it is not old.
    pub fn open(ring: &Ring, sign_in: &str, text: &str, now: Timestamp) -> Option<Ticket> {
        let plain = ring.open(Purpose::Ticket, sign_in, text)?;
        let mut reader = Reader(&plain);
        let [VERSION, secure @ 0..=1] = reader.fixed()? else { return None };
        let (made, nonce, authority, path) = (reader.time()?, reader.fixed()?, reader.text()?.to_owned(), reader.text()?.to_owned());
        reader.end()?;
        let fresh = age(made, now) < TICKET_LIFETIME && made <= now + TICKET_LIFETIME && is_target(&path);
        fresh.then_some(Ticket { authority, path, secure: secure == 1, nonce, made })
    }

    /// The host alone, as cookies and codes know it.
    pub fn host(&self) -> &str {
        host(&self.authority)
    }

    /// Where the browser is sent with `code`.
    pub fn url(&self, code: &str) -> String {
        format!("{}://{}/.skep/enter?code={code}", if self.secure { "https" } else { "http" }, self.authority)
    }
}

/// `authority` without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// What brings somebody who is signed in to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Names it: random.
    pub id: [u8; 16],
    /// Folded.
    pub user: String,
    pub session: SessionId,
    /// Of the ticket.
    pub nonce: [u8; 32],
    /// Of the ticket.
    pub path: String,
    pub expires: Timestamp,
}

impl Code {
    /// For whoever has the session `session` of the folded `user` and came with `ticket`. `id` is random.
    pub fn new(ticket: &Ticket, user: &str, session: SessionId, now: Timestamp, id: [u8; 16]) -> Code {
        let (nonce, path) = (ticket.nonce, ticket.path.clone());
        Code { id, user: user.to_owned(), session, nonce, path, expires: now + CODE_LIFETIME }
    }

    /// What goes in the URL of `host`. `random` seals it.
    pub fn seal(&self, ring: &Ring, host: &str, random: [u8; NONCE_BYTES]) -> String {
        let head = Writer::default().fixed(&[VERSION]).fixed(&self.id).fixed(&self.session.0).fixed(&self.nonce).time(self.expires);
        ring.seal(Purpose::Code, host, &head.text(&self.user).text(&self.path).0, random)
    }

    fn open(ring: &Ring, host: &str, text: &str) -> Option<Code> {
        let plain = ring.open(Purpose::Code, host, text)?;
        let mut reader = Reader(&plain);
        let [VERSION] = reader.fixed()? else { return None };
        let (id, session, nonce, expires) = (reader.fixed()?, SessionId(reader.fixed()?), reader.fixed()?, reader.time()?);
        let (user, path) = (reader.text()?.to_owned(), reader.text()?.to_owned());
        reader.end().map(|()| Code { id, user, session, nonce, path, expires })
    }
}

/// Why a code is not taken. Whoever comes with it goes the whole way again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the code is none for this host")]
    Foreign,
    #[error("the code is older than {CODE_LIFETIME:?}")]
    Expired,
    #[error("the code was given to another browser")]
    OtherBrowser,
    #[error("the code was used before")]
    Used,
    #[error("too many codes are being used")]
    Full,
}

/// The codes that were used, while they could be used again.
#[derive(Default)]
pub struct UsedCodes {
    /// With the second in which each expires.
    used: Mutex<HashMap<[u8; 16], i64>>,
}

impl fmt::Debug for UsedCodes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UsedCodes(..)")
    }
}

impl UsedCodes {
    /// What `text` says, for the browser that holds `nonce` on `host`: once. Whether its session is alive is for
    /// [`super::register::Register::session`] to say.
    ///
    /// # Errors
    /// It is not good here and now.
    pub fn redeem(&self, ring: &Ring, host: &str, nonce: Option<&Nonce>, text: &str, now: Timestamp) -> Result<Code, Refused> {
        let code = Code::open(ring, host, text).filter(|code| is_target(&code.path)).ok_or(Refused::Foreign)?;
        if now >= code.expires || code.expires > now + 2 * CODE_LIFETIME {
            return Err(Refused::Expired);
        }
        let same = nonce.is_some_and(|nonce| bool::from(nonce.hash().ct_eq(&code.nonce)));
        // Not used up by a browser that it was not meant for.
        if !same {
            return Err(Refused::OtherBrowser);
        }
        self.note(&code, now).map(|()| code)
    }

    fn note(&self, code: &Code, now: Timestamp) -> Result<(), Refused> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(&code.id) {
            return Err(Refused::Used);
        }
        if used.len() >= MOST_USED {
            used.retain(|_, expires| *expires >= now.as_second());
        }
        if used.len() >= MOST_USED {
            return Err(Refused::Full);
        }
        used.insert(code.id, code.expires.as_second());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use proptest::prelude::*;

    use super::super::seal::tests::{at, ring};
    use super::super::target::MAX;
    use super::*;

    const BROWSER: [u8; 16] = [7; 16];

    fn ticket() -> Ticket {
        let nonce = Nonce::new(BROWSER).hash();
        Ticket { authority: "shop.test:8443".to_owned(), path: "/a?b=c".to_owned(), secure: true, nonce, made: at(0) }
    }

    fn code() -> Code {
        Code::new(&ticket(), "ada", SessionId([2; 16]), at(0), [3; 16])
    }

    fn sealed() -> String {
        code().seal(&ring(), "shop.test", [4; 12])
    }

    fn redeem(used: &UsedCodes, host: &str, browser: Option<[u8; 16]>, text: &str, now: i64) -> Result<Code, Refused> {
        used.redeem(&ring(), host, browser.map(Nonce::new).as_ref(), text, at(now))
    }

    #[test]
    fn a_ticket_brings_back_to_where_it_was_made() {
        let text = ticket().seal(&ring(), "login.test", [1; 12]);
        assert_eq!(Ticket::open(&ring(), "login.test", &text, at(3599)), Some(ticket()));
        assert_eq!(Ticket::open(&ring(), "login.test", &text, at(3600)), None, "old");
        assert_eq!(Ticket::open(&ring(), "other.test", &text, at(0)), None, "for another sign-in host");
        assert_eq!(ticket().host(), "shop.test");
        assert_eq!(ticket().url("x"), "https://shop.test:8443/.skep/enter?code=x");
        for (authority, host) in [("a.test", "a.test"), ("a.test:80", "a.test"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")] {
            assert_eq!(super::host(authority), host);
        }
        let evil = Ticket { path: "//evil.test".to_owned(), ..ticket() }.seal(&ring(), "login.test", [1; 12]);
        assert_eq!(Ticket::open(&ring(), "login.test", &evil, at(0)).expect("ours").path, "/");
        for place in 0..text.len() {
            let mut changed = text.clone();
            changed.replace_range(place..=place, if &text[place..=place] == "A" { "B" } else { "A" });
            assert_eq!(Ticket::open(&ring(), "login.test", &changed, at(0)), None, "changed at {place}");
        }
    }

    #[test]
    fn a_code_is_good_once_there_and_then() {
        let used = UsedCodes::default();
        for (host, browser, now, why) in [
            ("other.test", Some(BROWSER), 0, Refused::Foreign),
            ("shop.test", Some([8; 16]), 0, Refused::OtherBrowser),
            ("shop.test", None, 0, Refused::OtherBrowser),
            ("shop.test", Some(BROWSER), 30, Refused::Expired),
            ("shop.test", Some(BROWSER), -31, Refused::Expired),
        ] {
            assert_eq!(redeem(&used, host, browser, &sealed(), now), Err(why), "{host} {now}");
        }
        assert_eq!(redeem(&used, "shop.test", Some(BROWSER), &sealed(), 29), Ok(code()));
        assert_eq!(redeem(&used, "shop.test", Some(BROWSER), &sealed(), 29), Err(Refused::Used));
        let again = code().seal(&ring(), "shop.test", [5; 12]);
        assert_eq!(redeem(&used, "shop.test", Some(BROWSER), &again, 0), Err(Refused::Used), "sealed anew");
        let as_ticket = ring().open(Purpose::Code, "shop.test", &sealed()).expect("ours");
        let other = ring().seal(Purpose::Ticket, "shop.test", &as_ticket, [1; 12]);
        assert_eq!(redeem(&used, "shop.test", Some(BROWSER), &other, 0), Err(Refused::Foreign));
        for place in 0..sealed().len() {
            let mut changed = sealed();
            changed.replace_range(place..=place, if &sealed()[place..=place] == "A" { "B" } else { "A" });
            assert_eq!(redeem(&used, "shop.test", Some(BROWSER), &changed, 0), Err(Refused::Foreign), "changed at {place}");
        }
    }

    #[test]
    fn of_many_that_come_with_a_code_at_once_one_is_let_in() {
        for _ in 0..20 {
            let (used, start) = (UsedCodes::default(), Barrier::new(8));
            let taken = std::thread::scope(|scope| {
                let come = || {
                    start.wait();
                    redeem(&used, "shop.test", Some(BROWSER), &sealed(), 0).is_ok()
                };
                let all: Vec<_> = (0..8).map(|_| scope.spawn(come)).collect();
                all.into_iter().map(|one| one.join().expect("no panic")).filter(|taken| *taken).count()
            });
            assert_eq!(taken, 1);
        }
    }

    #[test]
    fn when_too_many_codes_are_used_none_is_taken_twice() {
        let used = UsedCodes::default();
        let numbered = |number: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            Code { id, ..code() }
        };
        for number in 0..MOST_USED {
            used.note(&numbered(number), at(0)).expect("room");
        }
        assert_eq!(used.note(&numbered(MOST_USED), at(0)), Err(Refused::Full));
        assert_eq!(used.note(&numbered(0), at(0)), Err(Refused::Used));
        assert_eq!(used.note(&numbered(MOST_USED), at(31)), Ok(()), "the others have expired");
    }

    #[test]
    fn the_longest_fits_in_a_url() {
        let (authority, path) = (format!("{}:65535", "a".repeat(253)), format!("/{}", "b".repeat(MAX - 1)));
        let long = Ticket { authority: authority.clone(), path, ..ticket() };
        let text = long.seal(&ring(), &"l".repeat(253), [1; 12]);
        assert_eq!(Ticket::open(&ring(), &"l".repeat(253), &text, at(0)), Some(long.clone()));
        let user = "u".repeat(super::super::session::MAX_USER);
        let text = Code::new(&long, &user, SessionId([1; 16]), at(0), [1; 16]).seal(&ring(), long.host(), [1; 12]);
        assert!(redeem(&UsedCodes::default(), long.host(), Some(BROWSER), &text, 0).is_ok());
    }

    proptest! {
        #[test]
        fn any_sealed_bytes_are_survived(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = |purpose| ring().seal(purpose, "shop.test", &plain, [1; 12]);
            let _ = Ticket::open(&ring(), "shop.test", &text(Purpose::Ticket), at(0));
            let _ = redeem(&UsedCodes::default(), "shop.test", Some(BROWSER), &text(Purpose::Code), 0);
        }
    }
}
