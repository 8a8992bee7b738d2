//! The grammar of `redirect-regex`: an expression, its replacement, and whether browsers may remember it.
//! What a replacement refers to is checked here, because a group that does not exist would silently become nothing.

use std::sync::LazyLock;

use super::Redirect;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;

/// Compiled expressions stay below this size, in bytes, so that labels cannot eat the edge's memory.
const LARGEST_REGEX: usize = 1 << 20;

/// What refers to a group in a replacement: `$1`, `${name}`; `$$` is a dollar.
static REFERENCE: LazyLock<Result<regex::Regex, regex::Error>> =
    LazyLock::new(|| regex::Regex::new(r"\$(?:\$|\{(?<braced>[^}]*)\}|(?<bare>[0-9A-Za-z_]+))"));

/// `REGEX REPLACEMENT [permanent]`.
pub(super) fn read(value: &Value) -> Result<Redirect, Diagnostic> {
    let bad = |at: &Value, message: String| Diagnostic::error("bad-redirect", message).at(at.place());
    let example = "write it like `^https?://old.example.com/(.*) https://new.example.com/$1 permanent`";
    let words: Vec<Value> = words(value);
    let (pattern, target, permanent) = match words.as_slice() {
        [pattern, target] => (pattern, target, false),
        [pattern, target, word] if word.text == "permanent" => (pattern, target, true),
        [pattern, target, word] if word.text == "temporary" => (pattern, target, false),
        [_, _, word, ..] => return Err(bad(word, format!("`{}` means nothing here", brief(&word.text))).help(example)),
        _ => return Err(bad(value, "the replacement is missing".to_owned()).help(example)),
    };
    let regex = regex::RegexBuilder::new(&pattern.text).size_limit(LARGEST_REGEX).build();
    let regex = regex.map_err(|error| bad(pattern, format!("the regular expression cannot be read: {}", reason(&error))).help(example))?;
    if !["http://", "https://", "/", "$"].iter().any(|begin| target.text.starts_with(begin)) {
        return Err(bad(target, "a redirect leads to a URL or a path".to_owned()).help(example));
    }
    let references = REFERENCE.as_ref().map(|reference| reference.captures_iter(&target.text).collect::<Vec<_>>()).unwrap_or_default();
    for found in references {
        let Some(name) = found.name("braced").or(found.name("bare")) else { continue };
        let known = name.as_str().parse::<usize>().is_ok_and(|number| number < regex.captures_len())
            || regex.capture_names().flatten().any(|group| group == name.as_str());
        if !known {
            let message = format!("the regular expression has no group `{}`", brief(name.as_str()));
            let help = "number the groups from 1, and write `${1}` where a letter, digit or `_` follows";
            return Err(bad(&target.part(name.range()), message).help(help));
        }
    }
    Ok(Redirect { regex, replacement: target.text.clone(), permanent })
}

/// The white space separated parts: unlike [`Value::list`], commas may stand inside.
fn words(value: &Value) -> Vec<Value> {
    let start = |word: &str| word.as_ptr() as usize - value.text.as_ptr() as usize;
    value.text.split_whitespace().map(|word| value.part(start(word)..start(word) + word.len())).collect()
}

/// The last line of a regex error says what is wrong; the others draw the expression.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
