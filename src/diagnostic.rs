//! A finding about a user's text: which service, which label or config text, what is wrong, what to write instead.
//! Nothing that a user got wrong is an error or a log line only: it becomes one of these values and is shown everywhere.

mod render;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use render::render;

/// How much a finding matters. Ordered: `Error` is greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Understood and explained; nothing is wrong.
    Info,
    /// Works, but probably not as meant.
    Warning,
    /// A key, a route or a file has no effect because of it.
    Error,
}

/// The text that a finding points at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Place {
    /// A label: `span` is a byte range of `value`, or of `key` when `in_key`.
    Label { key: String, value: String, span: Range<usize>, in_key: bool },
    /// A file (configuration, stack file): `span` is a byte range of `text`.
    File { path: String, text: String, span: Range<usize> },
}

/// One finding. `code` is stable and kebab-case, so that it can be searched for and counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Diagnostic {
    pub code: String,
    pub severity: Severity,
    /// What the finding is about, e.g. `service shop_web`, `skep.toml`; empty until [`Diagnostic::of`] names it.
    pub subject: String,
    pub place: Option<Place>,
    /// What is wrong, one sentence without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding without place or help.
    pub fn new(severity: Severity, code: &str, message: impl Into<String>) -> Self {
        Diagnostic { code: code.to_owned(), severity, subject: String::new(), place: None, message: message.into(), help: None }
    }

    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, message)
    }

    pub fn warning(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, message)
    }

    pub fn info(code: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Info, code, message)
    }

    /// The same finding, pointing at `place`.
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// The same finding with what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same finding about `subject`.
    pub fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }
}

/// `2 errors, 1 warning`; `nothing to report` when there is nothing.
pub fn summary(findings: &[Diagnostic]) -> String {
    let counted = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Info, "note")].map(|(severity, word)| {
        let count = findings.iter().filter(|finding| finding.severity == severity).count();
        (count > 0).then(|| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
    });
    let words: Vec<_> = counted.into_iter().flatten().collect();
    if words.is_empty() { "nothing to report".to_owned() } else { words.join(", ") }
}

/// The candidate that `word` most probably was meant to be, if any is near: one wrong letter in three, at most three.
/// The first of equally near ones wins.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    let length = word.chars().count();
    if length > LONGEST {
        return None;
    }
    let allowed = (length / 3).clamp(1, 3);
    let worth = candidates.into_iter().filter(|candidate| may_be_near(word, candidate, allowed));
    let near = worth.map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    near.filter(|&(distance, _)| distance <= allowed && distance < length)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Are there at most `allowed` letters that only one of the two has? One edit changes one of them at most, so that this rules out most
/// candidates at a fraction of the distance's cost, which every label that is not ours would pay at each change.
fn may_be_near(one: &str, other: &str, allowed: usize) -> bool {
    const BUCKETS: usize = 64;
    let mut balance = [0i32; BUCKETS];
    one.chars().for_each(|letter| balance[letter as usize % BUCKETS] += 1);
    other.chars().for_each(|letter| balance[letter as usize % BUCKETS] -= 1);
    let only = |sign: i32| balance.iter().map(|count| usize::try_from(sign * count).unwrap_or(0)).sum::<usize>();
    only(1).max(only(-1)) <= allowed
}

/// A user's text made short and harmless enough to stand in a sentence.
pub fn brief(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => text[..end].chars().map(printable).chain(["…".to_owned()]).collect(),
        None => text.chars().map(printable).collect(),
    }
}

/// A character as it may be sent to a terminal: control, direction and invisible characters escaped.
fn printable(character: char) -> String {
    match character {
        ' '..='~' => character.to_string(),
        _ => character.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counted() {
        let (error, warning, info) = (Diagnostic::error("a", ""), Diagnostic::warning("b", ""), Diagnostic::info("c", ""));
        assert_eq!(summary(&[error.clone(), warning, error, info]), "2 errors, 1 warning, 1 note");
        assert_eq!(summary(&[]), "nothing to report");
    }

    #[test]
    fn near_words() {
        let keys = ["port", "path", "host", "auth", "allow", "timeout-response"];
        for (word, wanted) in [
            ("prot", Some("port")),
            ("pot", Some("port")),
            ("hsot", Some("host")),
            ("timeout-respone", Some("timeout-response")),
            ("timeout-resp", None),
            ("zzz", None),
            ("", None),
            ("h", None),
        ] {
            assert_eq!(nearest(word, keys), wanted, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), keys), None);
    }

    proptest! {
        /// What is ruled out by its letters is far indeed.
        #[test]
        fn no_near_word_is_ruled_out(one in "[a-d.é]{0,8}", other in "[a-d.é]{0,8}", allowed in 1..4usize) {
            prop_assert!(may_be_near(&one, &other, allowed) || strsim::damerau_levenshtein(&one, &other) > allowed);
        }
    }

    #[test]
    fn as_json_it_survives() {
        let finding = Diagnostic::error("bad-port", "no")
            .at(Place::Label { key: "skep.port".to_owned(), value: "x".to_owned(), span: 0..1, in_key: false })
            .help("y")
            .of("service a");
        let text = serde_json::to_string(&finding).expect("serializes");
        assert_eq!(serde_json::from_str::<Diagnostic>(&text).expect("reads"), finding);
    }
}
