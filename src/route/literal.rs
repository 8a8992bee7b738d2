//! Hosts, paths, methods, header names, networks and regexes as users write them, in keys and in rules alike.
//! Each is read by one function here, so that a mistake gets the same words wherever it stands.

use crate::diagnostic::{Diagnostic, brief, nearest};
use crate::label::{self, Value};

use super::condition::{Pattern, header_name};
use super::path::{canonical_path, has_dots, other_readings, readable};
use super::pattern::HostPattern;

/// The longest path, in bytes.
const LONGEST_PATH: usize = 2048;

/// Methods that a typo is compared with.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];

/// `app.example.com` or `*.example.com`.
pub(super) fn host(value: &Value) -> Result<HostPattern, Diagnostic> {
    let host = label::host(value)?;
    Ok(match host.strip_prefix("*.") {
        Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
        None => HostPattern::Exact(host),
    })
}

/// A path in readable form, percent-encoded or not in the label.
pub(super) fn path(value: &Value) -> Result<String, Diagnostic> {
    let text = value.text.as_str();
    let bad = |message: &str, help: String| Diagnostic::error("bad-path", message).at(value.place()).help(help);
    if !text.starts_with('/') {
        return Err(bad("a path begins with `/`", format!("write `/{}`", brief(text))));
    }
    if text.len() > LONGEST_PATH {
        return Err(bad("the path is too long", format!("write at most {LONGEST_PATH} bytes")));
    }
    if let Some(end) = text.find(['?', '#']) {
        let finding =
            bad("a path has no query and no fragment", format!("write `{}`; what the query must hold goes to `query`", &text[..end]));
        return Err(finding.at(value.span(end..text.len())));
    }
    let Some(canonical) = canonical_path(text) else {
        return Err(bad(
            "the path is malformed: `%` is followed by two hex digits, and dot segments stand alone",
            "write it like `/api`".to_owned(),
        ));
    };
    if has_dots(text) {
        return Err(bad("the path has dot segments, which never reach a route", format!("write `{}`", brief(&canonical))));
    }
    let path = readable(&canonical);
    match other_readings(&path).last() {
        Some(other) => Err(bad("servers read this path differently, so requests for it are refused", format!("write `{}`", brief(other)))),
        None => Ok(path.into_owned()),
    }
}

/// A method in upper case.
pub(super) fn method(value: &Value) -> Result<String, Diagnostic> {
    let method = value.text.to_ascii_uppercase();
    let near = (!METHODS.contains(&method.as_str())).then(|| nearest(&method, METHODS)).flatten();
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None if method.parse::<http::Method>().is_ok() => return Ok(method),
        None => "write methods like `GET, POST`".to_owned(),
    };
    Err(Diagnostic::error("bad-method", format!("`{}` is not a method", brief(&value.text))).at(value.place()).help(help))
}

/// A header's name in lower case.
pub(super) fn header(value: &Value) -> Result<String, Diagnostic> {
    header_name(&value.text).ok_or_else(|| {
        Diagnostic::error("bad-header", format!("`{}` is not a header name", brief(&value.text)))
            .at(value.place())
            .help("write it like `X-Beta`")
    })
}

/// A regex; on hosts without regard to case.
pub(super) fn regex(value: &Value, ignore_case: bool) -> Result<Pattern, Diagnostic> {
    Pattern::new(&value.text, ignore_case).map_err(|why| {
        Diagnostic::error("bad-regex", format!("the regular expression cannot be used: {why}"))
            .at(value.place())
            .help("write it in the syntax of RE2, without look-around and back-references")
    })
}
