//! One label's value, and the small grammars that several features share: durations, networks, paths, yes or no.
//! A value remembers the label that it stands in, so that a finding about a part of it can point at exactly that part.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use crate::diagnostic::{Diagnostic, Place, brief, nearest};

/// A value (or the part of it that one key got) and the label that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Trimmed, never empty: an empty value means not set.
    pub text: String,
    /// The label as the user wrote it, `haproxy.virtual_host_secure`.
    pub label: String,
    /// The label's whole value.
    pub whole: String,
    /// Where `text` begins in `whole`, in bytes.
    pub offset: usize,
}

impl Value {
    /// The value of `label` as it stands; `None` when it is empty or blank.
    pub fn new(label: &str, whole: &str) -> Option<Value> {
        let text = whole.trim();
        let offset = whole.len() - whole.trim_start().len();
        (!text.is_empty()).then(|| Value { text: text.to_owned(), label: label.to_owned(), whole: whole.to_owned(), offset })
    }

    /// What this label means without saying it (`virtual_host_secure` means `tls: redirect`). Findings on it point at the whole value.
    pub fn implied(&self, text: impl Into<String>) -> Value {
        Value { text: text.into(), ..self.clone() }
    }

    /// The part `span` (bytes of `text`), as a value of its own with the same origin.
    pub fn part(&self, span: Range<usize>) -> Value {
        Value { text: self.text[span.clone()].to_owned(), offset: self.offset + span.start, ..self.clone() }
    }

    /// The comma or white space separated parts, in order, empty ones left out.
    pub fn list(&self) -> Vec<Value> {
        let mut parts = Vec::new();
        let mut start = None;
        let ends = self.text.char_indices().chain(std::iter::once((self.text.len(), ',')));
        for (at, character) in ends {
            let separator = character == ',' || character.is_whitespace();
            match (separator, start) {
                (true, Some(from)) => {
                    parts.push(self.part(from..at));
                    start = None;
                }
                (false, None) => start = Some(at),
                _ => {}
            }
        }
        parts
    }

    /// The lines, each trimmed, in order, blank ones left out.
    pub fn lines(&self) -> Vec<Value> {
        let mut parts = Vec::new();
        let mut start = 0;
        for line in self.text.split_inclusive('\n') {
            let from = start + line.len() - line.trim_start().len();
            let to = from + line.trim().len();
            if from < to {
                parts.push(self.part(from..to));
            }
            start += line.len();
        }
        parts
    }

    /// A place for the whole of this value.
    pub fn place(&self) -> Place {
        self.span(0..self.text.len())
    }

    /// A place for `span` (bytes of `text`); for the label's whole value when `text` is [`Value::implied`].
    pub fn span(&self, span: Range<usize>) -> Place {
        let stated = self.whole.get(self.offset..).is_some_and(|rest| rest.starts_with(&self.text));
        let span = match stated {
            true => self.offset + span.start..self.offset + span.end.min(self.text.len()),
            false => 0..self.whole.len(),
        };
        Place::Label { key: self.label.clone(), value: self.whole.clone(), span, in_key: false }
    }

    /// A place for the label's key.
    pub fn key_place(&self) -> Place {
        Place::Label { key: self.label.clone(), value: self.whole.clone(), span: 0..self.label.len(), in_key: true }
    }
}

/// The longest duration that makes sense for one request or one rule.
const LONGEST_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// `5s`, `2m`, `1h30m`, `500ms`; plain numbers are refused with the right spelling.
pub fn duration(value: &Value) -> Result<Duration, Diagnostic> {
    let bad = |message: String, span: Range<usize>| Diagnostic::error("bad-duration", message).at(value.span(span));
    let text = value.text.as_str();
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let shown = brief(text);
        return Err(
            bad(format!("`{shown}` has no unit"), 0..text.len()).help(format!("write `{shown}s` for seconds or `{shown}m` for minutes"))
        );
    }
    let example = "write it like `500ms`, `5s`, `2m` or `1h30m`";
    let mut total = Duration::ZERO;
    let mut at = 0;
    while at < text.len() {
        let digits = text[at..].bytes().take_while(u8::is_ascii_digit).count();
        let letters = text[at + digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let end = at + digits + letters;
        let (number, unit) = (&text[at..at + digits], &text[at + digits..end]);
        let millis = match unit.to_ascii_lowercase().as_str() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ if digits == 0 || letters == 0 => {
                return Err(bad(format!("`{}` is not a duration", brief(text)), at..text.len()).help(example));
            }
            _ => return Err(bad(format!("`{}` is not a unit of time", brief(unit)), at + digits..end).help(example)),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)).map(Duration::from_millis);
        total = match part.and_then(|part| total.checked_add(part)).filter(|total| *total <= LONGEST_DURATION) {
            Some(total) if digits > 0 => total,
            Some(_) => return Err(bad(format!("`{}` is not a duration", brief(text)), at..text.len()).help(example)),
            None => return Err(bad("a duration is at most 365 days".to_owned(), 0..text.len()).help(example)),
        };
        at = end;
    }
    match total.is_zero() {
        true => Err(bad("a duration is longer than nothing".to_owned(), 0..text.len()).help(example)),
        false => Ok(total),
    }
}

/// `true`, `yes`, `on`, `1` and their opposites, in any case.
pub fn boolean(value: &Value) -> Result<bool, Diagnostic> {
    match value.text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        other => {
            let finding = Diagnostic::error("bad-boolean", format!("`{}` is neither true nor false", brief(&value.text))).at(value.place());
            let near = nearest(other, ["true", "false"]);
            Err(finding.help(match near {
                Some(word) => format!("did you mean `{word}`?"),
                None => "write `true` or `false`".to_owned(),
            }))
        }
    }
}

/// `10MB`, `512KiB`, `1048576`.
pub fn bytes(value: &Value) -> Result<u64, Diagnostic> {
    let digits = value.text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        "g" | "gib" => Some(1 << 30),
        _ => None,
    };
    let size = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    size.ok_or_else(|| {
        Diagnostic::error("bad-size", format!("`{}` is not a size", brief(&value.text)))
            .at(value.place())
            .help("write it like `10MB`, `512KiB` or `1048576`")
    })
}

/// `10.0.0.0/8`, `2001:db8::/32`, or one address.
pub fn network(value: &Value) -> Result<IpNet, Diagnostic> {
    let text = value.text.as_str();
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse::<IpNet>().map(|net| net.trunc())).map_err(|_| {
        Diagnostic::error("bad-network", format!("`{}` is not a network", brief(text)))
            .at(value.place())
            .help("write it like `10.0.0.0/8`, `192.0.2.7` or `2001:db8::/32`")
    })
}

/// A path as requests carry it: begins with `/`, without a query, everything unusual percent-encoded.
pub fn path(value: &Value) -> Result<String, Diagnostic> {
    let text = value.text.as_str();
    let bad = |message: String, span: Range<usize>| Diagnostic::error("bad-path", message).at(value.span(span));
    if !text.starts_with('/') {
        let help = if text.contains("://") { "write the path only, like `/api`".to_owned() } else { format!("write `/{}`", brief(text)) };
        return Err(bad("a path begins with `/`".to_owned(), 0..text.len()).help(help));
    }
    match text.char_indices().find(|&(_, c)| !c.is_ascii_graphic() || matches!(c, '?' | '#')) {
        None => Ok(text.to_owned()),
        Some((at, '?' | '#')) => {
            Err(bad("a path has no query and no fragment".to_owned(), at..text.len()).help(format!("write `{}`", brief(&text[..at]))))
        }
        Some((at, odd)) => {
            let encoded =
                percent_encoding::utf8_percent_encode(odd.encode_utf8(&mut [0; 4]), percent_encoding::NON_ALPHANUMERIC).to_string();
            Err(bad(format!("`{}` cannot stand in a path", odd.escape_debug()), at..at + odd.len_utf8())
                .help(format!("write `{encoded}`, as requests carry it")))
        }
    }
}

/// The value is understood, but the feature that would act on it is not there yet.
pub fn not_yet(value: &Value, feature: &str) -> Diagnostic {
    Diagnostic::warning("not-yet", format!("`{}` has no effect yet: it comes with {feature}", brief(&value.label)))
        .at(value.key_place())
        .help("the label may stay: it is checked now and will count when the feature is there")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Value {
        Value::new("skep.x", text).expect("a test's value is not blank")
    }

    /// The part of the label's value that a finding points at.
    fn pointed(finding: &Diagnostic) -> String {
        match &finding.place {
            Some(Place::Label { value, span, in_key: false, .. }) => value[span.clone()].to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("5s", 5_000), ("2m", 120_000), ("1h30m", 5_400_000), ("500ms", 500), ("1S", 1_000), ("1d", 86_400_000), ("1m500ms", 60_500)]
        {
            assert_eq!(duration(&value(text)), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_duration() {
        for (text, points_at, help) in [
            ("60", "60", "write `60s` for seconds or `60m` for minutes"),
            ("5 s", "5 s", "like `500ms`"),
            ("5sec", "sec", "like `500ms`"),
            ("s", "s", "like `500ms`"),
            ("1h30", "30", "like `500ms`"),
            ("-5s", "-5s", "like `500ms`"),
            ("1.5s", "1.5s", "like `500ms`"),
            ("0s", "0s", "like `500ms`"),
            ("99999999999999999999s", "99999999999999999999s", "like `500ms`"),
            ("400d", "400d", "like `500ms`"),
            ("5ß", "5ß", "like `500ms`"),
        ] {
            let finding = duration(&value(text)).expect_err(text);
            assert_eq!((pointed(&finding).as_str(), finding.code.as_str()), (points_at, "bad-duration"), "{text}");
            assert!(finding.help.as_deref().unwrap_or_default().contains(help), "{text}: {:?}", finding.help);
        }
    }

    #[test]
    fn yes_or_no() {
        for (text, wanted) in [("true", true), ("True", true), ("1", true), ("on", true), ("no", false), ("FALSE", false), ("0", false)] {
            assert_eq!(boolean(&value(text)), Ok(wanted), "{text}");
        }
        let finding = boolean(&value("ture")).expect_err("misspelt");
        assert_eq!(finding.help.as_deref(), Some("did you mean `true`?"));
        assert_eq!(boolean(&value("maybe")).expect_err("no boolean").help.as_deref(), Some("write `true` or `false`"));
    }

    #[test]
    fn parts_keep_their_place() {
        let value = Value::new("l", " a.de,,  b.de\n c ").expect("not blank");
        let parts: Vec<_> = value.list().iter().map(|part| (part.text.clone(), part.offset)).collect();
        assert_eq!(parts, [("a.de".to_owned(), 1), ("b.de".to_owned(), 9), ("c".to_owned(), 15)]);
        let value = Value::new("l", "\nA: 1\r\n\n  -B\n").expect("not blank");
        let lines: Vec<_> = value.lines().iter().map(|part| (part.text.clone(), part.offset)).collect();
        assert_eq!(lines, [("A: 1".to_owned(), 1), ("-B".to_owned(), 10)]);
    }

    #[test]
    fn a_finding_on_an_implied_value_points_at_the_whole_label() {
        let implied = value("app.example.com").implied("redirect");
        assert!(matches!(implied.place(), Place::Label { span, .. } if span == (0..15)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_pointed_at(text in "\\PC{0,40}|[a-z*.:/-]{0,30}|[0-9hmsd.]{0,8}") {
            let Some(value) = Value::new("skep.host", &text) else { return Ok(()) };
            let parts = value.list().into_iter().chain(value.lines()).chain([value.clone()]);
            for part in parts {
                prop_assert_eq!(&part.whole[part.offset..part.offset + part.text.len()], part.text.as_str());
                for finding in [path(&part).err(), network(&part).err(), duration(&part).err(), boolean(&part).err()].into_iter().flatten() {
                    pointed(&finding);
                    prop_assert!(finding.help.is_some());
                }
            }
        }
    }
}
