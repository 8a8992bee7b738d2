//! The grammar of `request-header` and `response-header`: one edit a line.
//! Headers that hold a connection together are refused, because editing them breaks requests in ways that nobody connects with a label.

use http::{HeaderName, HeaderValue};

use super::HeaderEdit;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;

/// Headers that belong to one connection or frame a message: setting them would break it.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The most lines that one label may have.
const MOST_EDITS: usize = 100;

/// The edits that can be read, in order.
pub(super) fn read(value: &Value, findings: &mut Vec<Diagnostic>) -> Vec<HeaderEdit> {
    let lines = value.lines();
    if let Some(first) = lines.get(MOST_EDITS) {
        let message = format!("a label has at most {MOST_EDITS} lines; the rest is not read");
        findings.push(Diagnostic::error("too-many-headers", message).at(first.place()).help("remove some"));
    }
    let mut edits = Vec::new();
    for line in lines.into_iter().take(MOST_EDITS) {
        match header(&line) {
            Ok(edit) => edits.push(edit),
            Err(finding) => findings.push(finding),
        }
    }
    edits
}

fn header(line: &Value) -> Result<HeaderEdit, Diagnostic> {
    let bad = |message: String| Diagnostic::error("bad-header", message).at(line.place());
    let removed = line.text.strip_prefix('-').map(str::trim);
    let set = line.text.split_once(':').map(|(name, text)| (name.trim(), text.trim()));
    let name = removed.or(set.map(|(name, _)| name)).unwrap_or(&line.text);
    if removed.is_none() && set.is_none() {
        return Err(bad("a header needs a value".to_owned()).help(format!(
            "write `{}: value` to set it or `-{}` to remove it",
            brief(name),
            brief(name)
        )));
    }
    let Ok(parsed) = name.parse::<HeaderName>() else {
        return Err(bad(format!("`{}` is not the name of a header", brief(name))).help("write `Name: value` or `-Name`, one a line"));
    };
    if HOP_BY_HOP.contains(&parsed.as_str()) {
        return Err(bad(format!("`{parsed}` belongs to the connection and cannot be edited")).help("remove the line"));
    }
    let Some((_, text)) = set.filter(|_| removed.is_none()) else { return Ok(HeaderEdit::Remove(parsed)) };
    if text.is_empty() {
        return Err(bad(format!("`{parsed}` has no value")).help(format!("write `-{}` to remove it", brief(name))));
    }
    let text =
        HeaderValue::from_str(text).map_err(|_| bad("the value has a character that headers cannot carry".to_owned()).help("remove it"))?;
    Ok(HeaderEdit::Set(parsed, text))
}
