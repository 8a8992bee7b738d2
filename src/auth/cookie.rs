//! The cookies that are ours: their names and attributes (RFC 6265, 4.1), finding them in a request, and keeping them from upstreams.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{COOKIE, HeaderMap};

/// Cookies of one name that are looked at; more of them are an attack.
const MOST: usize = 4;

/// What a cookie of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookie {
    /// Who is signed in.
    Session,
    /// What a form is bound to.
    Form,
    /// A browser in which somebody signed in before.
    Browser,
    /// What a way over the sign-in host is bound to.
    Enter,
}

impl Cookie {
    /// Its name. Over HTTPS browsers hold `__Host-` to its promise: set by this very host over TLS, not by a neighbour.
    pub fn name(self, secure: bool) -> &'static str {
        match (self, secure) {
            (Cookie::Session, true) => "__Host-skep",
            (Cookie::Session, false) => "skep",
            (Cookie::Form, true) => "__Host-skep-form",
            (Cookie::Form, false) => "skep-form",
            (Cookie::Browser, true) => "__Host-skep-browser",
            (Cookie::Browser, false) => "skep-browser",
            (Cookie::Enter, true) => "__Host-skep-enter",
            (Cookie::Enter, false) => "skep-enter",
        }
    }

    /// The value of `Set-Cookie` that sets it for `age`; `None`: until the browser is closed.
    pub fn set(self, secure: bool, value: &str, age: Option<Duration>) -> String {
        let age = age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
        format!("{}={value}; Path=/{age}; HttpOnly; SameSite=Lax{}", self.name(secure), if secure { "; Secure" } else { "" })
    }

    /// The value of `Set-Cookie` that takes it away.
    pub fn delete(self, secure: bool) -> String {
        self.set(secure, "", Some(Duration::ZERO))
    }

    /// Its values in a request, in the browser's order, four at most: over plain HTTP a neighbouring host may have set another.
    pub fn values(self, headers: &HeaderMap, secure: bool) -> impl Iterator<Item = &str> {
        let name = self.name(secure).as_bytes();
        let lines = headers.get_all(COOKIE).into_iter().map(http::HeaderValue::as_bytes);
        let pairs = lines.filter(|line| has_ours(line)).flat_map(pairs);
        pairs.filter_map(move |pair| value(pair, name)).take(MOST)
    }
}

fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
}

/// The value of `pair` if it has just this `name`.
fn value<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
    std::str::from_utf8(value).ok()
}

/// Is there anything of ours in this `Cookie` field?
pub fn has_ours(line: &[u8]) -> bool {
    // Nearly all lines have none, and most have no such word at all.
    line.windows(4).any(|word| word[0] | 0x20 == b's' && word.eq_ignore_ascii_case(b"skep")) && pairs(line).any(is_ours)
}

/// The `Cookie` field without ours, the others byte for byte; `None` when nothing is left.
pub fn without_ours(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !pairs(line).any(is_ours) {
        return Some(Cow::Borrowed(line));
    }
    let mut left = Vec::with_capacity(line.len());
    for pair in pairs(line).filter(|pair| !is_ours(pair)) {
        if !left.is_empty() {
            left.push(b';');
        }
        left.extend_from_slice(if left.is_empty() { pair.trim_ascii_start() } else { pair });
    }
    (!left.trim_ascii().is_empty()).then_some(Cow::Owned(left))
}

/// `skep`, `skep-...`, with or without `__Host-`, however it is written: an upstream that reads names generously gets none either.
fn is_ours(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or(pair).trim_ascii();
    let bare = without_prefix(name, b"__host-").unwrap_or(name);
    without_prefix(bare, b"skep").is_some_and(|rest| rest.is_empty() || rest[0] == b'-')
}

fn without_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = text.split_at_checked(prefix.len())?;
    begin.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cookies_are_set_for_this_host_and_its_scripts_do_not_see_them() {
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(Cookie::Session.set(true, "x", hour), "__Host-skep=x; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(Cookie::Form.set(false, "x", None), "skep-form=x; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(Cookie::Enter.delete(true), "__Host-skep-enter=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure");
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let read = |line: &str, secure| {
            let headers = HeaderMap::from_iter([(COOKIE, line.parse().expect("a value"))]);
            Cookie::Session.values(&headers, secure).map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        for (line, secure, found) in [
            ("a=1; __Host-skep=x; b=2", true, "x"),
            ("__Host-skep=x=y", true, "x=y"),
            ("skep=x", true, ""),
            ("__Host-skep=x", false, ""),
            ("skep=x;skep=y", false, "x y"),
            ("__host-skep=x; __Host-skep-form=y; x__Host-skep=z; __Host-skep", true, ""),
            ("skep=1; skep=2; skep=3; skep=4; skep=5", false, "1 2 3 4"),
            ("", true, ""),
        ] {
            assert_eq!(read(line, secure), found, "{line}");
        }
        let mut headers = HeaderMap::new();
        for line in [&b"\xff\xfe=1; skep=\xff"[..], b"skep=x"] {
            headers.append(COOKIE, http::HeaderValue::from_bytes(line).expect("a value"));
        }
        assert_eq!(Cookie::Session.values(&headers, false).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn upstreams_get_the_others_as_they_are() {
        for (line, left) in [
            ("a=1; __Host-skep=x; b=2", Some("a=1; b=2")),
            ("__Host-skep=x; a=1", Some("a=1")),
            ("a=1;skep=x", Some("a=1")),
            ("a=1;  b=\"2\";skep-form=x;; c", Some("a=1;  b=\"2\";; c")),
            ("skep=x", None),
            ("skep=x; ", None),
            ("skep=x; __Host-skep-browser=y; skep-enter=z; SKEP=1; __HOST-Skep=2; skep =3; skep", None),
            ("skeptic=1; __Host-skeptic=2; myskep=3; __Secure-skep=4", Some("skeptic=1; __Host-skeptic=2; myskep=3; __Secure-skep=4")),
            ("a=skep", Some("a=skep")),
        ] {
            assert_eq!(without_ours(line.as_bytes()).as_deref(), left.map(str::as_bytes), "{line}");
            assert_eq!(has_ours(line.as_bytes()), left != Some(line), "{line}");
        }
        assert_eq!(without_ours(b"a=\xff; skep=1").as_deref(), Some(&b"a=\xff"[..]));
    }

    proptest! {
        #[test]
        fn nothing_of_ours_is_left_and_nothing_else_is_lost(
            pairs in proptest::collection::vec(("(__Host-)?(skep|SKEP|a|b)(-form|x)?", "[ -:<-~]{0,8}"), 0..8),
            gap in "[ \t]{0,2}",
        ) {
            let line = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(&format!(";{gap}"));
            let left = without_ours(line.as_bytes()).unwrap_or_default().into_owned();
            prop_assert!(!has_ours(&left));
            let others: Vec<&[u8]> = super::pairs(line.as_bytes()).filter(|pair| !is_ours(pair)).map(|pair| pair.trim_ascii()).collect();
            let kept: Vec<&[u8]> = super::pairs(&left).map(|pair| pair.trim_ascii()).filter(|pair| !pair.is_empty()).collect();
            prop_assert_eq!(kept, others.into_iter().filter(|pair| !pair.is_empty()).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_survived(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(has_ours(&line), without_ours(&line).as_deref() != Some(&line[..]));
        }
    }
}
