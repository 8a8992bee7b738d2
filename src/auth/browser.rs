//! A browser in which somebody signed in before: guessing at their password from elsewhere must not keep them out of it.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use super::seal::{NONCE_BYTES, Purpose, Reader, Ring, Writer};

/// How long a browser keeps it. It is good as long as its key: a sign-in writes it anew.
pub const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Users of one browser; the one of the oldest sign-in is forgotten.
const MOST: usize = 5;
const VERSION: u8 = 1;

/// What the cookie of a known browser says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Browser {
    /// Names it. Random, and nothing else.
    pub id: [u8; 16],
    /// Of folded users, the begin of a hash each: the cookie stays small, whatever their names. The last is the latest.
    users: Vec<[u8; 8]>,
}

impl Browser {
    /// One in which nobody has signed in yet. `id` is random.
    pub fn new(id: [u8; 16]) -> Browser {
        Browser { id, users: Vec::new() }
    }

    /// Has the folded `user` signed in there?
    pub fn knows(&self, user: &str) -> bool {
        self.users.contains(&mark(user))
    }

    /// The same after the folded `user` signed in.
    #[must_use]
    pub fn with(mut self, user: &str) -> Browser {
        let mark = mark(user);
        self.users.retain(|known| *known != mark);
        self.users.push(mark);
        self.users.drain(..self.users.len().saturating_sub(MOST));
        self
    }

    /// The cookie's value for `host`. `nonce` is random.
    pub fn seal(&self, ring: &Ring, host: &str, nonce: [u8; NONCE_BYTES]) -> String {
        let plain = self.users.iter().fold(Writer::default().fixed(&[VERSION]).fixed(&self.id), |writer, user| writer.fixed(user));
        ring.seal(Purpose::Browser, host, &plain.0, nonce)
    }

    /// What [`Browser::seal`] made for `host`.
    pub fn open(ring: &Ring, host: &str, text: &str) -> Option<Browser> {
        let plain = ring.open(Purpose::Browser, host, text)?;
        let mut reader = Reader(&plain);
        let ([VERSION], id) = (reader.fixed()?, reader.fixed()?) else { return None };
        let mut users = Vec::new();
        while let Some(user) = reader.fixed() {
            users.push(user);
        }
        reader.end().map(|()| Browser { id, users })
    }
}

fn mark(user: &str) -> [u8; 8] {
    let mut mark = [0; 8];
    mark.copy_from_slice(&digest(&SHA256, user.as_bytes()).as_ref()[..8]);
    mark
}

#[cfg(test)]
mod tests {
    use super::super::seal::tests::ring;
    use super::*;

    #[test]
    fn a_browser_knows_its_last_users() {
        let browser = (0..6).fold(Browser::new([1; 16]), |browser, number| browser.with(&format!("user{number}")).with("ada"));
        let text = browser.seal(&ring(), "a", [1; 12]);
        let read = Browser::open(&ring(), "a", &text).expect("ours");
        assert_eq!(read, browser);
        for (user, known) in [("ada", true), ("user5", true), ("user2", true), ("user1", false), ("bob", false), ("", false)] {
            assert_eq!(read.knows(user), known, "{user}");
        }
        assert!(text.len() < 150, "{}", text.len());
        assert_eq!(Browser::open(&ring(), "b", &text), None);
        assert_eq!(Browser::open(&ring(), "a", &ring().seal(Purpose::Browser, "a", &[1; 20], [1; 12])), None);
        assert_eq!(Browser::open(&ring(), "a", ""), None);
    }
}
