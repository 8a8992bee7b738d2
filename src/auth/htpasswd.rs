//! Hashed passwords as `htpasswd` and this program write them: read, verified in constant time, and made.
//! Verifying is work for the processor and blocks; `auth::hashing` does it where that harms nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bcrypt::HashParts;
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::identity::{Identity, Password, folded};

/// What is longer is nobody's password: some hashes take as long as it is.
pub const MAX_PASSWORD_BYTES: usize = 1024;
/// Five more than `htpasswd -B` takes by default; each doubles the work. At 15 one sign-in takes seconds.
const MAX_BCRYPT_COST: u32 = 15;
/// 1 GiB, in KiB.
const MAX_ARGON2_MEMORY: u32 = 1 << 20;
/// Memory by passes, in KiB: four passes over the most memory.
const MAX_ARGON2_WORK: u64 = 4 << 20;
/// What OWASP's Password Storage Cheat Sheet recommends for argon2id: 19 MiB, two passes, one lane.
const OURS: Work = Work::Argon2 { algorithm: Algorithm::Argon2id, version: Version::V0x13, memory: 19 * 1024, passes: 2, lanes: 1 };
const OUR_LENGTH: usize = 32;
const BCRYPT_TEXT: usize = 60;
/// Where the digest begins in the text of a bcrypt hash.
const BCRYPT_DIGEST: usize = 29;
const APR1_DIGEST: usize = 22;
const APR1_MAX_SALT: usize = 8;

/// The hash of one password. Shown to nobody: whoever has it can guess at leisure.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash {
    work: Work,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

/// How a hash is computed, and so how long it takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// A thousand rounds of MD5, as Apache does it.
    Apr1,
    Bcrypt {
        cost: u32,
    },
    /// RFC 9106.
    Argon2 {
        algorithm: Algorithm,
        version: Version,
        /// KiB.
        memory: u32,
        passes: u32,
        lanes: u32,
    },
}

/// Why a text is not taken for the hash of a password. It never repeats the text, which may be the password itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no password hash")]
    Missing,
    #[error("the password stands there in plain text, or hashed in a way that is not known")]
    Plain,
    #[error("the password is hashed by a plain SHA, which is guessed in no time")]
    Sha,
    #[error("the password is hashed by crypt, and not by bcrypt, argon2 or apr1")]
    Crypt,
    #[error("every `$` of the password hash stands there twice")]
    Doubled,
    #[error("the {0} hash is damaged: characters are missing or too many")]
    Damaged(&'static str),
    #[error("the {0} hash asks for so much work that each sign-in would stop the edge: {1}")]
    Costly(&'static str, &'static str),
    #[error("a line holds `user:hash` and nothing else")]
    Line,
}

impl Hash {
    /// Reads bcrypt (`$2a$`, `$2b$`, `$2y$`), argon2id and argon2i (PHC strings) and apr1.
    ///
    /// # Errors
    /// It is something else, damaged, or would take too long to verify.
    pub fn parse(text: &str) -> Result<Hash, Refusal> {
        let begins = |marks: &[&str]| marks.iter().any(|mark| text.starts_with(mark));
        match text {
            "" => Err(Refusal::Missing),
            _ if begins(&["$$"]) => Err(Refusal::Doubled),
            _ if begins(&["$2a$", "$2b$", "$2y$"]) => bcrypt(text),
            _ if begins(&["$argon2id$", "$argon2i$"]) => argon2(text),
            _ if begins(&["$apr1$"]) => apr1(text),
            _ if begins(&["{"]) => Err(Refusal::Sha),
            _ if begins(&["$1$", "$2x$", "$5$", "$6$", "$7$", "$y$", "$gy$", "$sha1$", "$argon2d$"]) => Err(Refusal::Crypt),
            _ => Err(Refusal::Plain),
        }
    }

    /// Is it `password`? Takes as long for a wrong one as for the right one.
    pub fn verify(&self, password: &Password) -> bool {
        let bytes = password.reveal().as_bytes();
        // bcrypt ends a password at its NUL and begins again, so that others would be right too.
        let possible = !bytes.is_empty() && bytes.len() <= MAX_PASSWORD_BYTES && !bytes.contains(&0);
        let computed = compute(self.work, &bytes[..bytes.len().min(MAX_PASSWORD_BYTES)], &self.salt, self.digest.len());
        bool::from(computed.unwrap_or_default().ct_eq(&self.digest)) && possible
    }

    /// Can it be guessed soon by whoever gets hold of it?
    pub fn is_weak(&self) -> bool {
        self.work == Work::Apr1
    }

    /// A hash of no password, of the kind and cost that most of `hashes` have: verified for users that there are not, so that the time
    /// does not tell them from those that there are.
    pub fn decoy<'a>(hashes: impl Iterator<Item = &'a Hash>) -> Hash {
        let mut counts = BTreeMap::<(Work, usize, usize), usize>::new();
        for hash in hashes {
            *counts.entry((hash.work, hash.salt.len(), hash.digest.len())).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(shape, _)| shape);
        let (work, salt, digest) = most.unwrap_or((OURS, 16, OUR_LENGTH));
        Hash { work, salt: vec![b'.'; salt], digest: vec![0; digest] }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hash(..)")
    }
}

/// The text of a new hash of `password`, with a `salt` of random bytes: argon2id with the work that OWASP recommends.
///
/// # Errors
/// The password is empty, longer than [`MAX_PASSWORD_BYTES`], or has control characters, which no browser sends (RFC 7617, 2).
pub fn hashed(password: &Password, salt: [u8; 16]) -> Result<String, Unusable> {
    let text = password.reveal();
    let why = match text {
        "" => Some("is empty"),
        _ if text.len() > MAX_PASSWORD_BYTES => Some("is longer than 1024 bytes"),
        _ if text.chars().any(char::is_control) => Some("has control characters, which browsers cannot send"),
        _ => None,
    };
    if let Some(why) = why {
        return Err(Unusable(why));
    }
    let Work::Argon2 { memory, passes, lanes, .. } = OURS else { return Err(Unusable("cannot be hashed")) };
    let digest = compute(OURS, text.as_bytes(), &salt, OUR_LENGTH).ok_or(Unusable("cannot be hashed"))?;
    let [salt, digest] = [&salt[..], &digest].map(|bytes| BASE64_STANDARD_NO_PAD.encode(bytes));
    Ok(format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${digest}"))
}

/// What keeps a text from being a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password {0}")]
pub struct Unusable(&'static str);

fn bcrypt(text: &str) -> Result<Hash, Refusal> {
    let parts = HashParts::from_str(text).map_err(|_| Refusal::Damaged("bcrypt"))?;
    let cost = parts.get_cost();
    match cost {
        ..4 => Err(Refusal::Damaged("bcrypt")),
        _ if cost > MAX_BCRYPT_COST => Err(Refusal::Costly("bcrypt", "its cost is above 15")),
        _ if text.len() != BCRYPT_TEXT => Err(Refusal::Damaged("bcrypt")),
        _ => {
            Ok(Hash { work: Work::Bcrypt { cost }, salt: parts.get_salt_raw().to_vec(), digest: text.as_bytes()[BCRYPT_DIGEST..].to_vec() })
        }
    }
}

fn argon2(text: &str) -> Result<Hash, Refusal> {
    const DAMAGED: Refusal = Refusal::Damaged("argon2");
    let hash = PasswordHash::new(text).map_err(|_| DAMAGED)?;
    let params = Params::try_from(&hash).map_err(|_| DAMAGED)?;
    let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
    if memory > MAX_ARGON2_MEMORY {
        return Err(Refusal::Costly("argon2", "it takes more than 1 GiB (`m`)"));
    }
    if u64::from(memory) * u64::from(passes) > MAX_ARGON2_WORK {
        return Err(Refusal::Costly("argon2", "it makes too many passes (`t`) over its memory (`m`)"));
    }
    let (Some(salt), Some(digest), true) = (&hash.salt, &hash.hash, params.keyid().is_empty() && params.data().is_empty()) else {
        return Err(DAMAGED);
    };
    let algorithm = Algorithm::new(hash.algorithm.as_str()).map_err(|_| DAMAGED)?;
    // Left out, it is the first version.
    let version = Version::try_from(hash.version.unwrap_or(0x10)).map_err(|_| DAMAGED)?;
    let work = Work::Argon2 { algorithm, version, memory, passes, lanes };
    Ok(Hash { work, salt: salt.as_ref().to_vec(), digest: digest.as_bytes().to_vec() })
}

fn apr1(text: &str) -> Result<Hash, Refusal> {
    let is_ours = |part: &str| part.bytes().all(|byte| ITOA64.contains(&byte));
    match text["$apr1$".len()..].split_once('$') {
        Some((salt, digest))
            if (1..=APR1_MAX_SALT).contains(&salt.len()) && digest.len() == APR1_DIGEST && is_ours(salt) && is_ours(digest) =>
        {
            Ok(Hash { work: Work::Apr1, salt: salt.as_bytes().to_vec(), digest: digest.as_bytes().to_vec() })
        }
        _ => Err(Refusal::Damaged("apr1")),
    }
}

/// `length` bytes of digest; `None` where salt or length are not of this kind of hash, which [`Hash::parse`] lets nobody have.
fn compute(work: Work, password: &[u8], salt: &[u8], length: usize) -> Option<Vec<u8>> {
    match work {
        Work::Apr1 => Some(apr1_digest(password, salt)),
        Work::Bcrypt { cost } => {
            let text = bcrypt::hash_with_salt_bytes(password, cost, salt.try_into().ok()?).ok()?;
            Some(text[BCRYPT_DIGEST..].to_vec())
        }
        Work::Argon2 { algorithm, version, memory, passes, lanes } => {
            let params = Params::new(memory, passes, lanes, Some(length)).ok()?;
            let mut digest = vec![0; length];
            Argon2::new(algorithm, version, params).hash_password_into(password, salt, &mut digest).ok()?;
            Some(digest)
        }
    }
}

const ITOA64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Apache's variant of the MD5 crypt of FreeBSD (`apr_md5_encode` in apr-util), encoded.
fn apr1_digest(password: &[u8], salt: &[u8]) -> Vec<u8> {
    const ROUNDS: usize = 1000;
    let inner = md5(&[password, salt, password]);
    let mut first = [password, b"$apr1$", salt].concat();
    first.extend(inner.iter().cycle().take(password.len()));
    let mut left = password.len();
    while left > 0 {
        first.push(if left & 1 == 1 { 0 } else { password[0] });
        left >>= 1;
    }
    let mut last = md5(&[&first]);
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let begin: &[u8] = if odd { password } else { &last };
        let salt = if round % 3 == 0 { &[] } else { salt };
        let again = if round % 7 == 0 { &[] } else { password };
        let end: &[u8] = if odd { &last } else { password };
        last = md5(&[begin, salt, again, end]);
    }
    let mut text = Vec::with_capacity(APR1_DIGEST);
    for triple in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        let [high, middle, low] = triple.map(|index| usize::from(last[index]));
        encode(high << 16 | middle << 8 | low, 4, &mut text);
    }
    encode(usize::from(last[11]), 2, &mut text);
    text
}

/// `count` characters of six bits, the lowest first.
fn encode(mut bits: usize, count: usize, text: &mut Vec<u8>) {
    for _ in 0..count {
        text.push(ITOA64[bits & 63]);
        bits >>= 6;
    }
}

fn md5(parts: &[&[u8]]) -> [u8; 16] {
    parts.iter().fold(Md5::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// A user of one route: a line `user:hash` of a `basic-auth` label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub user: String,
    pub hash: Hash,
}

impl Line {
    /// Reads `user:hash`.
    ///
    /// # Errors
    /// There is no user, or the hash is none.
    pub fn parse(text: &str) -> Result<Line, Refusal> {
        let (user, hash) = text.split_once(':').ok_or(Refusal::Line)?;
        match user.trim().is_empty() || hash.contains(':') {
            true => Err(Refusal::Line),
            false => Ok(Line { user: user.trim().to_owned(), hash: Hash::parse(hash)? }),
        }
    }
}

/// Who of `lines` is `user`, if `password` is theirs. As much work for unknown users as for most that there are.
pub fn verify(lines: &[Line], user: &str, password: &Password) -> Option<Identity> {
    let user = folded(user);
    match lines.iter().find(|line| folded(&line.user) == user) {
        Some(line) => line.hash.verify(password).then(|| Identity::new(&line.user, [])),
        None => {
            Hash::decoy(lines.iter().map(|line| &line.hash)).verify(password);
            None
        }
    }
}

/// What tells the credentials of these lines from those of all others, for a cache of verified ones: other lines, other realm.
pub fn realm(lines: &[Line]) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    for Line { user, hash } in lines {
        for part in [user.as_bytes(), &hash.salt, &hash.digest] {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    }
    let mut realm = [0; 32];
    realm.copy_from_slice(digest.finish().as_ref());
    realm
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by `htpasswd -nbB -C 4`, `htpasswd -nb` and `argon2 saltsaltsalt -id -t 1 -k 64 -p 1 -e`, all of `correct horse`.
    pub const BCRYPT: &str = "$2y$04$TW1XwaGi59JVeDrAB0rc.u575ZQYyFeTWE2Qt2NLGqBb3bu.h4LvS";
    pub const APR1: &str = "$apr1$SWOCoKNZ$XWdq4nD3DHEqTfc8kGHtQ.";
    pub const ARGON2ID: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$Kw3/ZjLNvvrvmWv7DSmJdvIaVuO5yzpUAyMmNiCnHLI";
    pub const ARGON2I: &str = "$argon2i$v=19$m=64,t=2,p=1$c2FsdHNhbHRzYWx0$Z3or2DquTEpb4oZCJEjHqpP8o1eHuFFduAeYRFSyDRg";

    pub fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[test]
    fn what_other_programs_hashed_is_verified() {
        for text in [BCRYPT, APR1, ARGON2ID, ARGON2I] {
            let hash = Hash::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert!(hash.verify(&password("correct horse")), "{text}");
            for wrong in ["", "correct horse ", "Correct horse", "correct hors", "correct horse\0", "\0"] {
                assert!(!hash.verify(&password(wrong)), "{text}: {wrong:?}");
            }
            assert!(!hash.verify(&password(&"x".repeat(1 << 20))), "{text}");
            assert_eq!((hash.is_weak(), format!("{hash:?}").as_str()), (text == APR1, "Hash(..)"));
        }
    }

    /// `$2a$` and `$2b$` are the same for passwords as they are today.
    #[test]
    fn bcrypt_has_three_names() {
        for name in ["$2a$", "$2b$"] {
            let text = BCRYPT.replace("$2y$", name);
            assert!(Hash::parse(&text).expect("a hash").verify(&password("correct horse")), "{name}");
        }
    }

    #[test]
    fn apr1_is_apaches() {
        // From `openssl passwd -apr1 -salt SALT PASSWORD`.
        for (text, clear) in [
            ("$apr1$abcdefgh$G8IsPsylW5ROvIKsQMRG61", "a"),
            ("$apr1$abcdefgh$w5zrkRcCFxmViSrU.8VvD.", "ab"),
            ("$apr1$abcdefgh$p/XCpMEO2hPRLIfoxoLbn1", "sixteen bytes!!!"),
            ("$apr1$abcdefgh$i827fbeHN3wspu7Db0o4S.", "seventeen bytes!!"),
            ("$apr1$abcdefgh$lG5xSoI9O6CyY9.rEZqJl0", "a password that is much longer than sixteen bytes"),
            ("$apr1$abcdefgh$OtLWkSTkt2jVtWMhIodDU/", "päßword"),
            ("$apr1$x$0WGaJHzpvFaDL1qaJ8Mt90", "hello"),
        ] {
            assert!(Hash::parse(text).expect("a hash").verify(&password(clear)), "{clear}");
        }
    }

    #[test]
    fn what_is_no_hash_or_too_much_work_is_refused() {
        let bcrypt = |cost: &str| BCRYPT.replace("$04$", cost);
        let argon2 = |params: &str| ARGON2ID.replace("m=64,t=1,p=1", params);
        for (text, wanted) in [
            ("", "there is no"),
            ("hunter2", "plain text"),
            ("$", "plain text"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "plain SHA"),
            ("rl0uE8JTnuUUU", "plain text"),
            ("$6$salt$hash", "crypt"),
            ("$argon2d$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0", "crypt"),
            (&BCRYPT.replace('$', "$$"), "twice"),
            (&BCRYPT[..59], "damaged"),
            (&bcrypt("$03$"), "damaged"),
            (&bcrypt("$xx$"), "damaged"),
            (&bcrypt("$16$"), "above 15"),
            (&bcrypt("$31$"), "above 15"),
            ("$argon2id$", "damaged"),
            (&argon2("m=64,t=1"), ""),
            (&argon2("m=4,t=1,p=1"), "damaged"),
            (&argon2("m=64,t=0,p=1"), "damaged"),
            (&argon2("m=64,t=1,p=4294967295"), "damaged"),
            (&argon2("m=1048577,t=1,p=1"), "1 GiB"),
            (&argon2("m=4294967295,t=4294967295,p=1"), "1 GiB"),
            (&argon2("m=64,t=65537,p=1"), "passes"),
            ("$apr1$salt", "damaged"),
            ("$apr1$$0123456789012345678901", "damaged"),
            ("$apr1$123456789$0123456789012345678901", "damaged"),
        ] {
            let refused = Hash::parse(text).err().map(|why| why.to_string()).unwrap_or_default();
            assert!(refused.contains(wanted) && refused.is_empty() == wanted.is_empty(), "{text}: {refused}");
        }
    }

    #[test]
    fn new_hashes_are_what_owasp_recommends() {
        let text = hashed(&password("päßword"), [7; 16]).expect("hashed");
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let hash = Hash::parse(&text).expect("read back");
        assert!(hash.verify(&password("päßword")) && !hash.verify(&password("passwort")));
        for (text, wanted) in [("", "empty"), ("a\nb", "control"), (&*"x".repeat(1025), "1024")] {
            let why = hashed(&password(text), [7; 16]).expect_err("refused").to_string();
            assert!(why.contains(wanted), "{text}: {why}");
        }
    }

    #[test]
    fn a_decoy_is_as_much_work_as_most() {
        let [bcrypt, apr1] = [BCRYPT, APR1].map(|text| Hash::parse(text).expect("a hash"));
        let decoy = Hash::decoy([&bcrypt, &apr1, &bcrypt].into_iter());
        assert!(decoy.work == bcrypt.work && decoy != bcrypt && !decoy.verify(&password("correct horse")));
        assert!(Hash::decoy(std::iter::empty()).work == OURS);
        for text in [BCRYPT, APR1, ARGON2ID, ARGON2I] {
            let hash = Hash::parse(text).expect("a hash");
            let decoy = Hash::decoy(std::iter::once(&hash));
            let computed = compute(decoy.work, b"x", &decoy.salt, decoy.digest.len());
            assert_eq!(computed.map(|digest| digest.len()), Some(hash.digest.len()), "the work is done: {text}");
        }
    }

    #[test]
    fn a_route_has_users_of_its_own() {
        let lines = [format!("Ada:{BCRYPT}"), format!("bob:{APR1}")].map(|line| Line::parse(&line).expect("a line"));
        let who = |user, clear: &str| verify(&lines, user, &password(clear)).map(|identity| identity.user);
        assert_eq!(who("ADA", "correct horse").as_deref(), Some("Ada"));
        assert_eq!([who("ada", "wrong"), who("eve", "correct horse"), who("", "")], [None, None, None]);
        assert_eq!(Line::parse(&format!("ada:{BCRYPT}:staff")), Err(Refusal::Line));
        assert_eq!(Line::parse(&format!(":{BCRYPT}")), Err(Refusal::Line));
        assert!(realm(&lines) != realm(&lines[..1]) && realm(&lines) == realm(&lines.clone()));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*", mark in proptest::sample::select(vec!["", "$2y$", "$argon2id$v=19$m=8,", "$apr1$"])) {
            _ = Hash::parse(&format!("{mark}{text}"));
            _ = Line::parse(&text);
        }

        #[test]
        fn damaged_hashes_are_survived(of in proptest::sample::select(vec![BCRYPT, APR1, ARGON2ID, ARGON2I]), at in 0..90usize, with in "\\PC{0,3}") {
            let at = at.min(of.len());
            let text = format!("{}{with}{}", &of[..at], &of[(at + 1).min(of.len())..]);
            // Small costs only: what was damaged may ask for much work, and be allowed to.
            if let Ok(hash) = Hash::parse(&text) && hash.work == Hash::parse(of).expect("a hash").work {
                hash.verify(&password("correct horse"));
            }
        }
    }
}
