//! One path, many spellings: which of them are the same, and which are refused because servers read them differently.
//! A request must never reach what a longer, protected path guards by spelling that path in a way that only the upstream understands.
//!
//! - *Canonical* ([`canonical_path`]) is what is forwarded: dot segments resolved, `%61` written `a`, nothing else changed.
//! - *Readable* is what is matched, and what labels are stored as: `%40` is `@`, `%20` a space, `%C3%A4` is `ä`.
//!   What would change the path's structure stays encoded: `%2F`, `%5C`, `%3B`, `%25`, `%3F`, `%23` and controls.
//! - *Readings* are what a laxer server may see: `%2F` or a backslash as `/`, `//` as `/`, `;parameters` dropped. If any of them leads to another
//!   route, the request belongs to none. `/projects/group%2Fname` passes, `/%2Fadmin` does not when `/admin` is a route.
//!
//! Not covered, as no reading of the standards allows it: upstreams that decode twice or ignore case.

use std::borrow::Cow;

/// The path with dot segments resolved and needless percent-encodings undone (RFC 3986, 6.2.2); idempotent.
///
/// `None` when no honest client sends it: no `/` at the start, broken percent-encoding, control characters, or dot segments together with
/// anything that servers split differently (`//`, `\`, `%2F`, `%5C`, `..;`).
pub fn canonical_path(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') || path.bytes().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    let path = if path.contains('%') { decode_unreserved(path)? } else { Cow::Borrowed(path) };
    if !path.contains("/.") && !path.contains(['\\', '%']) {
        return Some(path);
    }
    let lax = Reading { slash: true, backslash: true, parameters: true, collapse: false }.of(&path);
    if !lax.split('/').any(is_dots) {
        return Some(path);
    }
    (*lax == *path && !path.contains("//")).then(|| Cow::Owned(resolve_dots(&path)))
}

/// Both hex digits of the escape at `at`, as a byte.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (high, low) = (digit(*bytes.get(at + 1)?)?, digit(*bytes.get(at + 2)?)?);
    u8::try_from(high * 16 + low).ok()
}

fn decode_unreserved(path: &str) -> Option<Cow<'_, str>> {
    let bytes = path.as_bytes();
    let mut decoded = String::with_capacity(path.len());
    let mut rest = 0;
    while let Some(found) = path[rest..].find('%') {
        let at = rest + found;
        let byte = escape(bytes, at).filter(|byte| *byte != 0)?;
        decoded.push_str(&path[rest..at]);
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            decoded.push(char::from(byte));
        } else {
            decoded.push_str(&format!("%{byte:02X}"));
        }
        rest = at + 3;
    }
    decoded.push_str(&path[rest..]);
    Some(if decoded == path { Cow::Borrowed(path) } else { Cow::Owned(decoded) })
}

fn is_dots(segment: &str) -> bool {
    segment == "." || segment == ".."
}

/// Does `path` hold `.` or `..` segments, however they are written?
pub(super) fn has_dots(path: &str) -> bool {
    decode_unreserved(path).is_none_or(|path| path.split('/').any(is_dots))
}

/// RFC 3986, 5.2.4; `..` at the root stays at the root.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path[1..].split('/') {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let directory = path.rsplit('/').next().is_some_and(is_dots) && !kept.is_empty();
    format!("/{}{}", kept.join("/"), if directory { "/" } else { "" })
}

/// The form that patterns are written in and matched against. `path` is canonical.
pub(super) fn readable(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match escape(bytes, at).filter(|byte| bytes[at] == b'%' && !byte.is_ascii_control() && !b"/\\;%?#".contains(byte)) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    let mut text = String::with_capacity(decoded.len());
    for chunk in decoded.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
    }
    Cow::Owned(text)
}

/// How a laxer server may read a path.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// `%2F` is `/`.
    slash: bool,
    /// `\` and `%5C` are `/`.
    backslash: bool,
    /// `;name=value` is not part of a segment.
    parameters: bool,
    /// `//` is `/`.
    collapse: bool,
}

impl Reading {
    fn of<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(path);
        if self.slash && text.contains("%2F") {
            text = Cow::Owned(text.replace("%2F", "/"));
        }
        if self.backslash && (text.contains('\\') || text.contains("%5C")) {
            text = Cow::Owned(text.replace("%5C", "/").replace('\\', "/"));
        }
        if self.parameters && (text.contains(';') || text.contains("%3B")) {
            let bare = |segment: &str| segment.find(';').or_else(|| segment.find("%3B")).map_or(segment.len(), |end| end);
            text = Cow::Owned(text.split('/').map(|segment| &segment[..bare(segment)]).collect::<Vec<_>>().join("/"));
        }
        while self.collapse && text.contains("//") {
            text = Cow::Owned(text.replace("//", "/"));
        }
        text
    }
}

/// Has nobody any doubt how to read this path? Then it is canonical and readable as it stands.
pub(super) fn is_plain(path: &str) -> bool {
    let mut before = b' ';
    path.starts_with('/')
        && path.bytes().all(|byte| {
            let plain = !byte.is_ascii_control() && !b"%;\\".contains(&byte) && !(before == b'/' && (byte == b'/' || byte == b'.'));
            before = byte;
            plain
        })
}

/// Every other way that some server may read `path` (readable form); empty for nearly all paths.
pub(super) fn other_readings(path: &str) -> Vec<String> {
    let mut readings = Vec::new();
    if !path.contains("//") && !path.contains(['%', ';', '\\']) {
        return readings;
    }
    for bits in 1u8..16 {
        let bit = |place: u8| bits & (1 << place) != 0;
        let reading = Reading { slash: bit(0), backslash: bit(1), parameters: bit(2), collapse: bit(3) }.of(path).into_owned();
        if reading != path && !readings.contains(&reading) {
            readings.push(reading);
        }
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_paths() {
        for (sent, canonical) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a/", Some("/a/")),
            ("/.well-known/acme", Some("/.well-known/acme")),
            ("/a..b/.c/...", Some("/a..b/.c/...")),
            // Dot segments, plain and encoded.
            ("/a/../b", Some("/b")),
            ("/a/./b", Some("/a/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/.", Some("/a/")),
            ("/..", Some("/")),
            ("/../../admin", Some("/admin")),
            ("/a/%2e%2E/admin", Some("/admin")),
            ("/a/.%2e/admin", Some("/admin")),
            // Needless encodings go, the others stay and are spelled one way.
            ("/%61dmin", Some("/admin")),
            ("/%7euser", Some("/~user")),
            ("/a%2fb", Some("/a%2Fb")),
            ("/a%2Cb", Some("/a%2Cb")),
            ("/a+b%2Bc", Some("/a+b%2Bc")),
            ("/%2561dmin", Some("/%2561dmin")),
            // Kept, as nothing climbs.
            ("//a", Some("//a")),
            ("/a//b", Some("/a//b")),
            ("/a;v=1", Some("/a;v=1")),
            // Refused.
            ("", None),
            ("a", None),
            ("*", None),
            ("/a%", None),
            ("/a%2", None),
            ("/a%zz", None),
            ("/a%00", None),
            ("/a\r\nb", None),
            ("/a//../admin", None),
            ("/a/..%2fadmin", None),
            ("/a%2f..%2fadmin", None),
            ("/a/..%5cadmin", None),
            ("/a/..\\admin", None),
            ("/a/..;/admin", None),
            ("/a/..;x=1/admin", None),
            ("/a/%2e%2e%3b/admin", None),
        ] {
            assert_eq!(canonical_path(sent).as_deref(), canonical, "{sent:?}");
        }
    }

    #[test]
    fn readable_paths() {
        for (canonical, expected) in [
            ("/a", "/a"),
            ("/%40admin", "/@admin"),
            ("/a%20b", "/a b"),
            ("/k%C3%A4se", "/käse"),
            ("/a%2Fb%5C%3B%25%3F%23%0A", "/a%2Fb%5C%3B%25%3F%23%0A"),
            ("/%40admin/%FF", "/@admin/%FF"),
        ] {
            assert_eq!(readable(canonical), expected, "{canonical}");
        }
    }

    #[test]
    fn readings_of_unclear_paths() {
        for (path, readings) in [
            ("/a/b", vec![]),
            ("/a%20b", vec![]),
            ("//admin", vec!["/admin"]),
            ("/%2Fadmin", vec!["//admin", "/admin"]),
            ("/;/admin", vec!["//admin", "/admin"]),
            ("/admin;x=1/b", vec!["/admin/b"]),
            ("/admin%5Cb", vec!["/admin/b"]),
        ] {
            assert_eq!(other_readings(path), readings, "{path}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_stable_and_has_no_dots(path in "(/|\\.|%2[eEfF]|%5c|;|a|%61|\\\\|%|ä){0,12}") {
            if let Some(once) = canonical_path(&path) {
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.split('/').any(is_dots));
                prop_assert_eq!(canonical_path(&once), Some(Cow::Borrowed(&*once)));
                let text = readable(&once).into_owned();
                prop_assert_eq!(readable(&text), text.as_str());
            }
            if is_plain(&path) {
                prop_assert_eq!(canonical_path(&path), Some(Cow::Borrowed(path.as_str())));
                prop_assert_eq!(readable(&path), path.as_str());
                prop_assert!(other_readings(&path).is_empty());
            }
        }
    }
}
