//! The matchers that a rule may call, and what each makes of its values; the names and forms of Traefik v2 are accepted with a warning.

use std::ops::Range;

use crate::diagnostic::{Diagnostic, nearest};
use crate::label::{self, Value};

use super::condition::Test;
use super::literal;
use super::pattern::PathPattern;
use super::rule::{Expression, Text};

/// The matchers of Traefik v3.
const NAMES: [&str; 11] =
    ["Host", "HostRegexp", "Path", "PathPrefix", "PathRegexp", "Method", "Header", "HeaderRegexp", "Query", "QueryRegexp", "ClientIP"];

/// What Traefik v2 called some of them.
const OLD_NAMES: [(&str, &str); 3] = [("HostHeader", "Host"), ("Headers", "Header"), ("HeadersRegexp", "HeaderRegexp")];

/// A matcher's name.
pub(super) struct Name {
    current: &'static str,
    /// It was written as v2 has it.
    old: bool,
}

impl Name {
    /// The matcher called `text` (case does not matter), or what to write instead.
    pub(super) fn new(text: &str) -> Result<Name, String> {
        if let Some(current) = NAMES.into_iter().find(|known| known.eq_ignore_ascii_case(text)) {
            return Ok(Name { current, old: false });
        }
        if let Some((_, current)) = OLD_NAMES.into_iter().find(|(old, _)| old.eq_ignore_ascii_case(text)) {
            return Ok(Name { current, old: true });
        }
        let lower = text.to_ascii_lowercase();
        let names = NAMES.map(str::to_ascii_lowercase);
        let near =
            nearest(&lower, names.iter().map(String::as_str)).and_then(|near| NAMES.iter().find(|known| known.eq_ignore_ascii_case(near)));
        Err(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the matchers are {}", NAMES.join(", ")),
        })
    }
}

/// A matcher with its values, as it stands in a rule.
pub(super) struct Call<'a> {
    pub rule: &'a Value,
    pub name: Name,
    /// The whole call, in bytes of the rule.
    pub at: Range<usize>,
    /// At least one.
    pub texts: Vec<Text>,
}

/// A test, and whether it was written in a form that v3 does not have.
type Made = Result<(Test, bool), Diagnostic>;

impl Call<'_> {
    /// How many of the values may become regexes, templates of v2 among them.
    pub(super) fn regexes(&self) -> usize {
        let all = self.name.current.ends_with("Regexp");
        self.texts.iter().filter(|text| all || text.value.text.contains('{')).count()
    }

    /// What the call asks for, and a warning if Traefik v3 would not read it so.
    pub(super) fn read(&self) -> Result<(Expression, Option<Diagnostic>), Diagnostic> {
        let name = self.name.current;
        let values: Vec<&Value> = self.texts.iter().map(|text| &text.value).collect();
        let (mut tests, mut old) = (Vec::new(), self.name.old);
        // In v2 several query pairs must all hold, several of everything else are alternatives.
        let mut all = false;
        match (name, values.as_slice()) {
            ("Header", [name, value]) => tests.push(Test::Header(literal::header(name)?, value.text.clone())),
            ("HeaderRegexp", [name, value]) => tests.push(Test::HeaderRegexp(literal::header(name)?, literal::regex(value, false)?)),
            ("Header" | "HeaderRegexp", _) => return Err(self.count("a name and a value, like Header(`X-Beta`, `1`)")),
            ("Query", [pair, ..]) if pair.text.contains('=') => {
                (old, all) = (true, true);
                tests = values.iter().map(|pair| old_query(pair)).collect::<Result<_, _>>()?;
            }
            ("Query" | "QueryRegexp", [key]) => tests.push(Test::Query(key.text.clone(), String::new())),
            ("Query", [key, value]) => tests.push(Test::Query(key.text.clone(), value.text.clone())),
            ("QueryRegexp", [key, value]) => tests.push(Test::QueryRegexp(key.text.clone(), literal::regex(value, false)?)),
            ("Query" | "QueryRegexp", _) => return Err(self.count("a name and maybe a value, like Query(`beta`, `1`)")),
            _ => {
                old |= values.len() > 1;
                for value in values {
                    let (test, template) = single(name, value)?;
                    old |= template;
                    tests.push(test);
                }
            }
        }
        let mut parts: Vec<_> = tests.into_iter().map(Expression::Test).collect();
        let expression = match parts.len() {
            1 => parts.remove(0),
            _ if all => Expression::And(parts),
            _ => Expression::Or(parts),
        };
        let warning = old.then(|| self.old_form(&expression));
        Ok((expression, warning))
    }

    fn count(&self, wanted: &str) -> Diagnostic {
        let name = self.name.current;
        let span =
            self.texts.first().map_or(self.at.start, |text| text.span.start)..self.texts.last().map_or(self.at.end, |text| text.span.end);
        Diagnostic::error("bad-rule", format!("{name} has {} values", self.texts.len()))
            .at(self.rule.span(span))
            .help(format!("{name} takes {wanted}"))
    }

    fn old_form(&self, now: &Expression) -> Diagnostic {
        let now = match now {
            Expression::Test(_) => now.to_string(),
            several => format!("({several})"),
        };
        Diagnostic::warning("old-rule", "this is the form of Traefik v2; it is read as v2 meant it")
            .at(self.rule.span(self.at.clone()))
            .help(format!("write {now}"))
    }
}

/// ``Query(`name=value`)`` of v2.
fn old_query(pair: &Value) -> Result<Test, Diagnostic> {
    match pair.text.split_once('=') {
        Some((key, value)) => Ok(Test::Query(key.to_owned(), value.to_owned())),
        None => Ok(Test::Query(pair.text.clone(), String::new())),
    }
}

/// The matchers that look at one value only.
fn single(name: &str, value: &Value) -> Made {
    let test = match name {
        "Host" => Test::Host(literal::host(value)?),
        "Method" => Test::Method(literal::method(value)?),
        "ClientIP" => Test::ClientIp(label::network(value)?),
        "PathRegexp" => Test::PathRegexp(literal::regex(value, false)?),
        "HostRegexp" => match template(value, "[^.]+")? {
            Some(regex) => return Ok((Test::HostRegexp(literal::regex(&value.implied(format!("^{regex}$")), true)?), true)),
            None => Test::HostRegexp(literal::regex(value, true)?),
        },
        _ => {
            let exact = name == "Path";
            if let Some(regex) = template(value, "[^/]+")? {
                let regex = format!("^{regex}{}", if exact { "$" } else { "" });
                return Ok((Test::PathRegexp(literal::regex(&value.implied(regex), false)?), true));
            }
            let path = literal::path(value)?;
            Test::Path(match path.as_str() {
                _ if exact => PathPattern::Exact(path),
                // All paths start with it, so that both kinds of prefix say the same.
                "/" => PathPattern::Prefix(path),
                _ => PathPattern::Start(path),
            })
        }
    };
    Ok((test, false))
}

/// The regex that a v2 template (`{name}`, `{name:regex}`) stands for, without anchors; `None` when `value` is not one.
/// `default` is what a name without a regex matches.
fn template(value: &Value, default: &str) -> Result<Option<String>, Diagnostic> {
    let text = value.text.as_str();
    let mut regex = String::new();
    let mut rest = 0;
    let mut found = false;
    while let Some(open) = text[rest..].find('{').map(|at| rest + at) {
        let close = closing(&text[open..]).map(|at| open + at);
        // `{2}` and `{2,3}` are counts of a regex, `\p{L}` is a class: not names.
        let class = text[..open].char_indices().rev().nth(1).is_some_and(|(_, before)| before == '\\');
        let named = !class && text[open + 1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let Some(close) = close.filter(|_| named) else {
            if found && named {
                let finding = Diagnostic::error("bad-rule", "this `{` is not closed").at(value.span(open..open + 1));
                return Err(finding.help("add `}`"));
            }
            return Ok(None);
        };
        let part = text[open + 1..close].split_once(':').map_or(default, |(_, part)| part);
        regex.push_str(&regex::escape(&text[rest..open]));
        regex.push_str(&format!("(?:{part})"));
        (rest, found) = (close + 1, true);
    }
    regex.push_str(&regex::escape(&text[rest..]));
    Ok(found.then_some(regex))
}

/// Where the `{` that `text` starts with is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}
