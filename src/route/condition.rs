//! What a route may ask of a request, and whether it holds: the tests that rules and the method, header and query keys are made of.
//! Tests are values that compare and print (as rule text), so that two routes asking for the same thing are seen to be in conflict.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use http::HeaderName;
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

use super::Head;
use super::pattern::{HostPattern, PathPattern};

/// What one compiled regex may weigh, in bytes.
const REGEX_LIMIT: usize = 1 << 18;

/// A regex that compares by its text.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Unanchored, as in Traefik; `Err` says in words what is wrong.
    pub fn new(text: &str, ignore_case: bool) -> Result<Pattern, String> {
        let mut builder = RegexBuilder::new(text);
        builder.case_insensitive(ignore_case).size_limit(REGEX_LIMIT).dfa_size_limit(REGEX_LIMIT);
        builder.build().map(Pattern).map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("it is too large: compiled it takes more than {limit} bytes"),
            // The last line of a syntax error says what is wrong; those above draw the pattern.
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        })
    }

    /// Fits every text.
    pub(super) fn anything() -> Pattern {
        // The empty regex is valid and small: `unwrap` cannot fail.
        Pattern(Regex::new("").unwrap())
    }

    fn text(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text().cmp(other.text())
    }
}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

/// One question about a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Test {
    Host(HostPattern),
    Path(PathPattern),
    HostRegexp(Pattern),
    /// On the readable form of the path (`%20` is a space).
    PathRegexp(Pattern),
    Method(String),
    /// Some value of the header (name in lower case) is this one.
    Header(String, String),
    HeaderRegexp(String, Pattern),
    /// Some value of the query parameter, decoded, is this one.
    Query(String, String),
    QueryRegexp(String, Pattern),
    ClientIp(IpNet),
}

impl Test {
    /// The answer for `head`, whose path in readable form is `path`.
    pub(super) fn holds(&self, head: &Head<'_>, path: &str) -> bool {
        match self {
            Test::Host(pattern) => pattern.fits(head.host),
            Test::Path(pattern) => pattern.fits(path),
            Test::HostRegexp(pattern) => pattern.0.is_match(head.host),
            Test::PathRegexp(pattern) => pattern.0.is_match(path),
            Test::Method(method) => head.method == method.as_str(),
            Test::Header(name, wanted) => headers(head, name).any(|value| value == wanted.as_bytes()),
            Test::HeaderRegexp(name, pattern) => headers(head, name).any(|value| pattern.0.is_match(&String::from_utf8_lossy(value))),
            Test::Query(key, wanted) => parameters(head, key).any(|value| equals(value, wanted)),
            Test::QueryRegexp(key, pattern) => parameters(head, key).any(|value| pattern.0.is_match(&decode(value))),
            Test::ClientIp(net) => net.contains(&head.client.to_canonical()),
        }
    }

    /// What `head` has where this test looks, in words.
    fn seen(&self, head: &Head<'_>, path: &str) -> String {
        let list = |what: &str, values: Vec<String>| match values.as_slice() {
            [] => format!("{what} is missing"),
            values => format!("{what} is {}", values.join(", ")),
        };
        match self {
            Test::Host(_) | Test::HostRegexp(_) => format!("host is {}", head.host),
            Test::Path(_) | Test::PathRegexp(_) => format!("path is {path}"),
            Test::Method(_) => format!("method is {}", head.method),
            Test::Header(name, _) | Test::HeaderRegexp(name, _) => {
                let values = headers(head, name).map(|value| format!("\"{}\"", String::from_utf8_lossy(value))).collect();
                list(&format!("header {}", header_case(name)), values)
            }
            Test::Query(key, _) | Test::QueryRegexp(key, _) => {
                list(&format!("query parameter {key}"), parameters(head, key).map(|value| format!("\"{}\"", decode(value))).collect())
            }
            Test::ClientIp(_) => format!("client is {}", head.client),
        }
    }
}

fn headers<'a>(head: &Head<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    head.headers.get_all(name).into_iter().map(|value| value.as_bytes())
}

/// The raw values of the query parameter `key`.
fn parameters<'a>(head: &Head<'a>, key: &str) -> impl Iterator<Item = &'a str> {
    head.query.split('&').filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        equals(name, key).then_some(value)
    })
}

fn decode(raw: &str) -> Cow<'_, str> {
    if !raw.contains(['%', '+']) {
        return Cow::Borrowed(raw);
    }
    let spaced = raw.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

/// Is `raw`, decoded, equal to `wanted`? Allocates nothing.
fn equals(raw: &str, wanted: &str) -> bool {
    percent_encoding::percent_decode_str(raw).zip(raw_marks(raw)).map(|(byte, plus)| if plus { b' ' } else { byte }).eq(wanted.bytes())
}

/// For every decoded byte of `raw`: was it written as a bare `+`?
fn raw_marks(raw: &str) -> impl Iterator<Item = bool> {
    let bytes = raw.as_bytes();
    let hex = move |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        at += if byte == b'%' && hex(at + 1) && hex(at + 2) { 3 } else { 1 };
        Some(byte == b'+')
    })
}

/// `x-beta` as people write it: `X-Beta`.
fn header_case(name: &str) -> String {
    let capital = |part: &str| part.chars().take(1).map(|first| first.to_ascii_uppercase()).chain(part.chars().skip(1)).collect::<String>();
    name.split('-').map(capital).collect::<Vec<_>>().join("-")
}

/// The name in the form in which requests are asked for it; `None`: no header can have this name.
pub(super) fn header_name(text: &str) -> Option<String> {
    HeaderName::from_bytes(text.as_bytes()).ok().map(|name| name.as_str().to_owned())
}

/// A test that must hold, or must not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    pub test: Test,
    pub negated: bool,
}

impl Condition {
    /// Does it hold for `head`, whose path in readable form is `path`?
    pub fn holds(&self, head: &Head<'_>, path: &str) -> bool {
        self.test.holds(head, path) != self.negated
    }

    /// Why it does not hold, in words: `header X-Beta is "0", wants Header(`X-Beta`, `1`)`.
    pub(super) fn why(&self, head: &Head<'_>, path: &str) -> String {
        format!("{}, wants {self}", self.test.seen(head, path))
    }
}

/// A literal of a rule: in backticks, or quoted where it has a backtick itself.
struct Literal<'a>(&'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains('`') {
            write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
        } else {
            write!(f, "`{}`", self.0)
        }
    }
}

/// As a rule has it. The segment prefix, which no matcher of a rule says, prints as the two that together say it.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Test::Host(pattern) => write!(f, "Host({})", Literal(&pattern.to_string())),
            Test::Path(PathPattern::Exact(path)) => write!(f, "Path({})", Literal(path)),
            Test::Path(PathPattern::Start(path)) => write!(f, "PathPrefix({})", Literal(path)),
            Test::Path(PathPattern::Prefix(path)) if path == "/" => f.write_str("PathPrefix(`/`)"),
            Test::Path(PathPattern::Prefix(path)) => {
                write!(f, "(Path({}) || PathPrefix({}))", Literal(path), Literal(&format!("{path}/")))
            }
            Test::HostRegexp(pattern) => write!(f, "HostRegexp({})", Literal(pattern.text())),
            Test::PathRegexp(pattern) => write!(f, "PathRegexp({})", Literal(pattern.text())),
            Test::Method(method) => write!(f, "Method({})", Literal(method)),
            Test::Header(name, value) => write!(f, "Header({}, {})", Literal(&header_case(name)), Literal(value)),
            Test::HeaderRegexp(name, value) => write!(f, "HeaderRegexp({}, {})", Literal(&header_case(name)), Literal(value.text())),
            Test::Query(key, value) => write!(f, "Query({}, {})", Literal(key), Literal(value)),
            Test::QueryRegexp(key, value) => write!(f, "QueryRegexp({}, {})", Literal(key), Literal(value.text())),
            Test::ClientIp(net) => write!(f, "ClientIP({})", Literal(&net.to_string())),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.negated { "!" } else { "" }, self.test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'a>(method: &'a http::Method, headers: &'a http::HeaderMap, query: &'a str) -> Head<'a> {
        let client = "::ffff:10.1.2.3".parse().unwrap();
        Head { host: "app.example.com", path: "/a", query, method, headers, client }
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text, false).unwrap()
    }

    #[test]
    fn tests_hold_or_say_what_they_saw() {
        let mut headers = http::HeaderMap::new();
        headers.append("x-beta", "0".parse().unwrap());
        headers.append("x-beta", "2".parse().unwrap());
        let head = head(&http::Method::GET, &headers, "q=a+b%2B&flag&k%20k=%c3%a4&&=");
        let text = |text: &str| text.to_owned();
        for (test, holds, seen) in [
            (Test::Header(text("x-beta"), text("2")), true, r#"header X-Beta is "0", "2""#),
            (Test::Header(text("x-beta"), text("1")), false, r#"header X-Beta is "0", "2""#),
            (Test::Header(text("x-alpha"), text("")), false, "header X-Alpha is missing"),
            (Test::HeaderRegexp(text("x-beta"), pattern("^[12]$")), true, r#"header X-Beta is "0", "2""#),
            (Test::Query(text("q"), text("a b+")), true, r#"query parameter q is "a b+""#),
            (Test::Query(text("q"), text("a+b+")), false, r#"query parameter q is "a b+""#),
            (Test::Query(text("flag"), text("")), true, r#"query parameter flag is """#),
            (Test::Query(text("k k"), text("ä")), true, r#"query parameter k k is "ä""#),
            (Test::Query(text("none"), text("")), false, "query parameter none is missing"),
            (Test::QueryRegexp(text("q"), pattern("^a b")), true, r#"query parameter q is "a b+""#),
            (Test::Method(text("GET")), true, "method is GET"),
            (Test::Method(text("POST")), false, "method is GET"),
            (Test::HostRegexp(pattern("^app\\.")), true, "host is app.example.com"),
            (Test::PathRegexp(pattern("^/b")), false, "path is /a"),
            (Test::ClientIp("10.0.0.0/8".parse().unwrap()), true, "client is ::ffff:10.1.2.3"),
            (Test::ClientIp("::1/128".parse().unwrap()), false, "client is ::ffff:10.1.2.3"),
        ] {
            assert_eq!(test.holds(&head, "/a"), holds, "{test}");
            assert_eq!(test.seen(&head, "/a"), seen, "{test}");
            assert_ne!(Condition { test: test.clone(), negated: true }.holds(&head, "/a"), holds, "!{test}");
        }
    }

    #[test]
    fn a_regex_that_cannot_be_used_says_why() {
        for (text, why) in [
            ("a(b", "unclosed group"),
            ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            ("(a{1000}){1000}", "it is too large: compiled it takes more than 262144 bytes"),
        ] {
            assert_eq!(Pattern::new(text, false).unwrap_err(), why);
        }
    }
}
