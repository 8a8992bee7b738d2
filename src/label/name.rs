//! Host names as users write them, in every dialect and in rules: checked, in lower case, in the form that browsers send.
//! The usual slips (a scheme, a port, a path, quotes) are told apart, because each needs another help.

use std::ops::Range;

use super::Value;
use crate::diagnostic::{Diagnostic, brief};

/// The longest host name that DNS can carry, in bytes.
const LONGEST_HOST: usize = 253;
/// The longest part between two dots, in bytes.
const LONGEST_PART: usize = 63;
/// Longer texts are refused before any work is done on them.
const LONGEST_INPUT: usize = 1024;

/// One host: lower case, international names in their ASCII form, no trailing dot; `*.example.com` stays as it is.
pub fn host(value: &Value) -> Result<String, Diagnostic> {
    let bad = |message: String, span: Range<usize>| Diagnostic::error("bad-host", message).at(value.span(span));
    let text = value.text.as_str();
    if text.len() > LONGEST_INPUT {
        return Err(bad(format!("a host has at most {LONGEST_HOST} characters"), 0..text.len()));
    }
    if let Some(finding) = not_a_host(value) {
        return Err(finding);
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let (wildcard, name) = match name.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", name),
    };
    if let Some(star) = name.find('*') {
        let star = wildcard.len() + star;
        return Err(bad("`*` stands for one whole label at the front of a host, nowhere else".to_owned(), star..star + 1)
            .help("write `*.example.com`; for other patterns use a rule with HostRegexp(`...`)"));
    }
    let ascii = match idna::domain_to_ascii(name) {
        Ok(ascii) => ascii,
        Err(_) => return Err(bad(format!("`{}` is not a host name", brief(text)), 0..text.len()).help("write it like `app.example.com`")),
    };
    if let Some(wrong) = wrong_part(&ascii) {
        return Err(bad(wrong, 0..text.len()).help("write it like `app.example.com`"));
    }
    let host = format!("{wildcard}{ascii}");
    match host.len() <= LONGEST_HOST {
        true => Ok(host),
        false => Err(bad(format!("a host has at most {LONGEST_HOST} characters, this one has {}", host.len()), 0..text.len())),
    }
}

/// Texts that people write for a host and that are more, or something else.
fn not_a_host(value: &Value) -> Option<Diagnostic> {
    let text = value.text.as_str();
    let bad = |message: String, span: Range<usize>| Diagnostic::error("bad-host", message).at(value.span(span));
    if let Some(end) = text.find("://") {
        let rest = &text[end + 3..];
        let help = match rest.split(['/', ':', '?']).next().filter(|name| !name.is_empty()) {
            Some(name) => format!("write `{}`", brief(name)),
            None => "write `app.example.com`".to_owned(),
        };
        return Some(bad("a host has no scheme".to_owned(), 0..end + 3).help(help));
    }
    if text.contains('(') {
        return Some(
            bad("this is a rule, not a host".to_owned(), 0..text.len()).help("put it in the `rule` key, or write `app.example.com`"),
        );
    }
    if let Some(slash) = text.find('/') {
        return Some(
            bad("a host has no path".to_owned(), slash..text.len())
                .help(format!("write `{}` here and the path in the `path` key", brief(&text[..slash]))),
        );
    }
    if let Some(colon) = text.find(':') {
        if colon == 0 || text[colon + 1..].contains(':') {
            let message = "an IPv6 address is not read as a host".to_owned();
            return Some(bad(message, 0..text.len()).help("write a name like `app.example.com`"));
        }
        let help = format!("write `{}`; the container's port goes to `port`", brief(&text[..colon]));
        return Some(bad("a host has no port: the edge listens where its configuration says".to_owned(), colon..text.len()).help(help));
    }
    if text == "*" {
        let help = "write the hosts, `*.example.com` for one label deep, or a rule such as PathPrefix(`/`) for any host";
        return Some(bad("`*` alone is not a host".to_owned(), 0..1).help(help));
    }
    let odd = |c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '*');
    let (at, character) = text.char_indices().find(|&(_, c)| odd(c))?;
    let help = match character {
        '"' | '\'' | '`' => "write the host without quotes",
        '$' | '{' | '}' => "a variable was not replaced: the value reaches Docker as it is written here",
        ';' | '|' => "separate hosts with a comma",
        _ => "write it like `app.example.com`",
    };
    let shown = character.escape_debug().collect::<String>();
    Some(bad(format!("`{shown}` cannot stand in a host"), at..at + character.len_utf8()).help(help))
}

/// What is wrong with a name between its dots, if anything.
fn wrong_part(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("the host is empty".to_owned());
    }
    name.split('.').find_map(|part| {
        if part.is_empty() {
            return Some("a host has no empty label between dots".to_owned());
        }
        if part.len() > LONGEST_PART {
            return Some(format!("`{}` is longer than {LONGEST_PART} characters", brief(part)));
        }
        if part.starts_with('-') || part.ends_with('-') {
            return Some(format!("`{part}` begins or ends with a hyphen"));
        }
        let odd = part.chars().find(|&c| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))?;
        Some(format!("`{}` cannot stand in a host", odd.escape_debug()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::Place;

    fn value(text: &str) -> Value {
        Value::new("skep.host", text).expect("a test's value is not blank")
    }

    /// The part of the label's value that a finding points at.
    fn pointed(finding: &Diagnostic) -> String {
        match &finding.place {
            Some(Place::Label { value, span, in_key: false, .. }) => value[span.clone()].to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hosts() {
        let long = format!("{}.de", "a".repeat(63));
        for (text, wanted) in [
            ("app.example.com", "app.example.com"),
            (" App.Example.COM ", "app.example.com"),
            ("app.example.com.", "app.example.com"),
            ("localhost", "localhost"),
            ("_dmarc.my_app.de", "_dmarc.my_app.de"),
            ("*.example.com", "*.example.com"),
            ("*.Example.com.", "*.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("10.0.0.1", "10.0.0.1"),
            (&long, &long),
        ] {
            assert_eq!(host(&value(text)).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_host() {
        let long = format!("{}.de", "a".repeat(64));
        let longer = format!("{}de", "abcdefghi.".repeat(26));
        for (text, points_at, help) in [
            ("https://app.example.com/x", "https://", "write `app.example.com`"),
            ("https://", "https://", "write `app.example.com`"),
            ("app.example.com:443", ":443", "write `app.example.com`; the container's port goes to `port`"),
            ("app.example.com/api", "/api", "write `app.example.com` here and the path in the `path` key"),
            ("[::1]", "[::1]", "write a name"),
            ("*", "*", "any host"),
            ("a.*.de", "*", "HostRegexp"),
            ("a*.de", "*", "HostRegexp"),
            ("*.*.de", "*", "HostRegexp"),
            ("\"app.example.com\"", "\"", "without quotes"),
            ("${HOST}", "$", "variable"),
            ("Host(`a.de`)", "Host(`a.de`)", "`rule`"),
            ("a.de;b.de", ";", "comma"),
            ("a..de", "a..de", "app.example.com"),
            (".", ".", "app.example.com"),
            ("*.", "*", "HostRegexp"),
            ("-a.de", "-a.de", "app.example.com"),
            ("ü\u{202e}.de", "ü\u{202e}.de", "app.example.com"),
            (&long, &long, "app.example.com"),
        ] {
            let finding = host(&value(text)).expect_err(text);
            assert_eq!(pointed(&finding), points_at, "{text}: {}", finding.message);
            assert!(finding.help.as_deref().unwrap_or_default().contains(help), "{text}: {:?}", finding.help);
        }
        assert!(host(&value(&longer)).is_err());
    }

    #[test]
    fn the_caret_stands_under_the_wildcard_that_is_wrong() {
        for (text, start) in [("a.*.de", 2), ("*.*.de", 2), ("*.a.*.de.", 4)] {
            let finding = host(&value(text)).expect_err(text);
            assert!(
                matches!(&finding.place, Some(Place::Label { span, .. }) if *span == (start..start + 1)),
                "{text}: {:?}",
                finding.place
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_host_or_pointed_at(text in "\\PC{0,40}|[a-z*.:/-]{0,30}") {
            let Some(value) = Value::new("skep.host", &text) else { return Ok(()) };
            for part in value.list() {
                match host(&part) {
                    Err(finding) => {
                        pointed(&finding);
                        prop_assert!(finding.help.is_some() || part.text.len() > LONGEST_HOST);
                    }
                    Ok(read) => {
                        prop_assert!(read.is_ascii() && read.len() <= LONGEST_HOST && read == read.to_ascii_lowercase());
                        prop_assert_eq!(host(&Value::new("l", &read).expect("not empty")), Ok(read));
                    }
                }
            }
        }
    }
}
