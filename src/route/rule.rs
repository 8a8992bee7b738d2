//! The rule grammar: Traefik v3's expressions, parsed to a value that matching can index.
//! Everything is bounded (length, nesting, regexes), and a mistake is a finding that points at the very character.
//!
//! ```text
//! or      = and { "||" and }
//! and     = unary { "&&" unary }
//! unary   = "!" unary | "(" or ")" | name "(" text { "," text } ")"
//! text    = "`" anything but a backtick "`" | '"' with \\ and \" '"'
//! ```
//! `PathPrefix` is a plain string prefix, as Traefik has it: ``PathPrefix(`/a`)`` fits `/ab`. The `path` key is not. Regexes on paths see the
//! readable form (`%20` is a space, `%2F` stays), see [`super::path`]; as everywhere, a request whose path other servers read differently
//! must lead to the same route in every reading.

use std::fmt;
use std::ops::Range;

use crate::diagnostic::{Diagnostic, brief};
use crate::label::Value;

use super::condition::Test;
use super::predicate;

pub use super::condition::Condition;

/// The longest rule, in bytes.
const LONGEST: usize = 16 * 1024;
/// The deepest nesting of parentheses and `!`.
const DEEPEST: usize = 32;
/// The most values of one rule, in all its matchers.
const MOST_VALUES: usize = 512;
/// The most values that become regexes: each may weigh a quarter of a megabyte.
const MOST_REGEXES: usize = 64;

/// A rule as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Test(Test),
    Not(Box<Expression>),
    /// At least two.
    And(Vec<Expression>),
    /// At least two.
    Or(Vec<Expression>),
}

/// Reads a rule. The findings beside an expression are warnings, about forms of Traefik v2.
pub fn parse(value: &Value) -> (Option<Expression>, Vec<Diagnostic>) {
    let mut parser = Parser { value, at: 0, depth: 0, values: 0, regexes: 0, warnings: Vec::new() };
    match parser.whole() {
        Ok(expression) => (Some(expression), parser.warnings),
        Err(finding) => (None, vec![finding]),
    }
}

/// An argument of a matcher: what stands between its quotes.
pub(super) struct Text {
    pub value: Value,
    /// With the quotes, in bytes of the rule.
    pub span: Range<usize>,
}

struct Parser<'a> {
    value: &'a Value,
    at: usize,
    depth: usize,
    values: usize,
    regexes: usize,
    warnings: Vec<Diagnostic>,
}

type Parsed<T> = Result<T, Diagnostic>;

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.value.text[self.at..]
    }

    /// The next character that is not white space, if it is not consumed.
    fn peek(&mut self) -> Option<char> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    /// Takes `token` if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.peek();
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    /// The name that comes next (maybe empty), not taken.
    fn word(&mut self) -> Range<usize> {
        self.peek();
        let length = self.rest().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        self.at..self.at + length
    }

    fn bad(&self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::error("bad-rule", message).at(self.value.span(span)).help(help)
    }

    /// The next character as a span, for findings; empty at the end.
    fn here(&mut self) -> Range<usize> {
        let length = self.peek().map_or(0, char::len_utf8);
        self.at..self.at + length
    }

    fn whole(&mut self) -> Parsed<Expression> {
        let length = self.value.text.len();
        if length > LONGEST {
            return Err(self.bad(0..length, format!("the rule is longer than {LONGEST} bytes"), "split it over several routes"));
        }
        let expression = self.or()?;
        match self.peek() {
            None => Ok(expression),
            Some(next) => Err(self.stray(next)),
        }
    }

    /// What comes next cannot stand behind a complete expression.
    fn stray(&mut self, next: char) -> Diagnostic {
        let here = self.here();
        let word = self.word();
        let text = self.value.text[word.clone()].to_owned();
        match (next, text.to_ascii_lowercase().as_str()) {
            ('&' | '|', _) => self.bad(here, format!("a single `{next}` means nothing"), format!("write `{next}{next}`")),
            (')', _) => self.bad(here, "there is no `(` for this `)`", "take it out, or open a parenthesis before"),
            (',' | ';', _) => {
                self.bad(here, "matchers are not separated like a list", "write `&&` when both must hold, `||` when one is enough")
            }
            (_, "and") => self.bad(word, "`and` is not an operator", "write `&&`"),
            (_, "or") => self.bad(word, "`or` is not an operator", "write `||`"),
            (_, "") => self.bad(here, format!("`{}` cannot stand here", next.escape_debug()), "write `&&` or `||` between matchers"),
            _ => self.bad(
                word,
                format!("there is no operator before `{}`", brief(&text)),
                "write `&&` when both must hold, `||` when one is enough",
            ),
        }
    }

    fn or(&mut self) -> Parsed<Expression> {
        let mut parts = vec![self.and()?];
        while self.take("||") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::Or(parts) })
    }

    fn and(&mut self) -> Parsed<Expression> {
        let mut parts = vec![self.unary()?];
        while self.take("&&") {
            parts.push(self.unary()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expression::And(parts) })
    }

    fn unary(&mut self) -> Parsed<Expression> {
        let here = self.here();
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.bad(here, format!("nested more than {DEEPEST} deep"), "write the rule flatter"));
        }
        let expression = if self.take("!") {
            Expression::Not(Box::new(self.unary()?))
        } else if self.take("(") {
            let inner = self.or()?;
            if !self.take(")") {
                return Err(match self.peek() {
                    None => self.bad(here, "this `(` is not closed", "add `)`"),
                    Some(next) => self.stray(next),
                });
            }
            inner
        } else {
            self.matcher()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn matcher(&mut self) -> Parsed<Expression> {
        let name = self.word();
        let text = self.value.text[name.clone()].to_owned();
        if name.is_empty() {
            return Err(self.no_matcher());
        }
        self.at = name.end;
        if text.eq_ignore_ascii_case("not") {
            return Err(self.bad(name, "`not` is not an operator", "write `!`"));
        }
        if self.take(":") {
            return Err(self.bad(name.start..self.at, "this is the grammar of Traefik v1", format!("write {text}(`...`)")));
        }
        let known = predicate::Name::new(&text).map_err(|help| {
            let message = format!("there is no matcher `{}`", brief(&text));
            self.bad(name.clone(), message, help)
        })?;
        if !self.take("(") {
            return Err(self.bad(name, format!("`{text}` has no value"), format!("write {text}(`...`)")));
        }
        let texts = self.texts(&text)?;
        let call = predicate::Call { rule: self.value, name: known, at: name.start..self.at, texts };
        self.values += call.texts.len();
        self.regexes += call.regexes();
        for (count, most, what) in [(self.values, MOST_VALUES, "values"), (self.regexes, MOST_REGEXES, "regular expressions")] {
            if count > most {
                return Err(self.bad(name, format!("the rule has more than {most} {what}"), "split it over several routes"));
            }
        }
        let (expression, warning) = call.read()?;
        self.warnings.extend(warning);
        Ok(expression)
    }

    /// A matcher was to come, and something else does.
    fn no_matcher(&mut self) -> Diagnostic {
        let here = self.here();
        match self.peek() {
            None => self.bad(here, "the rule ends where a matcher should follow", "write a matcher like Host(`app.example.com`)"),
            Some('`' | '"' | '\'') => self.bad(here, "a value without a matcher", "write a matcher like Host(`app.example.com`)"),
            Some(')') => self.bad(here, "there is nothing before this `)`", "write a matcher like Host(`app.example.com`)"),
            Some(next) => self.bad(
                here,
                format!("`{}` stands where a matcher should", next.escape_debug()),
                "write a matcher like Host(`app.example.com`)",
            ),
        }
    }

    /// The arguments of the matcher `name`, its `(` being taken.
    fn texts(&mut self, name: &str) -> Parsed<Vec<Text>> {
        let open = self.at - 1;
        let mut texts = Vec::new();
        loop {
            let here = self.here();
            match self.peek() {
                Some(')') if texts.is_empty() => {
                    let help =
                        format!("write {name}(`...`); in a shell put single quotes around the label, as it runs what stands in backticks");
                    return Err(self.bad(open..here.end, format!("`{name}` has no value"), help));
                }
                Some(')') => {}
                Some('`') => texts.push(self.raw()?),
                Some('"') => texts.push(self.quoted()?),
                _ => return Err(self.no_text(name, open)),
            }
            if self.take(")") {
                return Ok(texts);
            }
            if !self.take(",") {
                let here = self.here();
                return Err(match self.peek() {
                    None => self.bad(open..open + 1, "this `(` is not closed", "add `)`"),
                    Some(_) => self.bad(here, "values are separated by commas", "write `,` between values and `)` after the last"),
                });
            }
        }
    }

    /// An argument was to come, and something else does.
    fn no_text(&mut self, name: &str, open: usize) -> Diagnostic {
        let rest = self.rest();
        let end = rest.find([',', ')']).unwrap_or(rest.len());
        let bare = rest[..end].trim_matches(|c: char| c.is_whitespace() || "'‘’“”´".contains(c));
        let help = format!("write {name}(`{}`)", brief(bare));
        match self.peek() {
            None => self.bad(open..open + 1, "this `(` is not closed", "add a value in backticks and `)`"),
            Some('\'' | '‘' | '’' | '“' | '”' | '´') => {
                let here = self.here();
                self.bad(here, "a value stands in backticks or double quotes", help)
            }
            Some(_) => self.bad(self.at..self.at + end.max(1), "a value stands in backticks", help),
        }
    }

    /// A value in backticks: everything stands for itself.
    fn raw(&mut self) -> Parsed<Text> {
        let from = self.at + 1;
        let Some(length) = self.value.text[from..].find('`') else {
            return Err(self.bad(self.at..self.value.text.len(), "the value has no closing backtick", "add a backtick"));
        };
        let span = self.at..from + length + 1;
        self.at = span.end;
        Ok(Text { value: self.value.part(from..from + length), span })
    }

    /// A value in double quotes, with `\\` and `\"`.
    fn quoted(&mut self) -> Parsed<Text> {
        let from = self.at + 1;
        let mut text = String::new();
        let mut characters = self.value.text[from..].char_indices();
        while let Some((at, character)) = characters.next() {
            let at = from + at;
            match character {
                '"' => {
                    let span = self.at..at + 1;
                    self.at = span.end;
                    let value = self.value.part(from..at);
                    let value = if value.text == text { value } else { value.implied(text) };
                    return Ok(Text { value, span });
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('\\' | '"'))) => text.push(escaped),
                    _ => {
                        return Err(self.bad(
                            at..at + 1,
                            "in double quotes `\\` stands before `\\` or `\"` only",
                            "use backticks, where it stands for itself",
                        ));
                    }
                },
                other => text.push(other),
            }
        }
        Err(self.bad(self.at..self.value.text.len(), "the value has no closing quote", "add `\"`"))
    }
}

/// As it would be written; parentheses around all that is inside something else.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = |f: &mut fmt::Formatter<'_>, one: &Expression| match one {
            Expression::And(_) | Expression::Or(_) => write!(f, "({one})"),
            _ => write!(f, "{one}"),
        };
        let (parts, operator) = match self {
            Expression::Test(test) => return write!(f, "{test}"),
            Expression::Not(one) => {
                f.write_str("!")?;
                return inner(f, one);
            }
            Expression::And(parts) => (parts, " && "),
            Expression::Or(parts) => (parts, " || "),
        };
        for (index, part) in parts.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { operator })?;
            inner(f, part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diagnostic::{Place, Severity};
    use crate::route::condition::Pattern;
    use crate::route::pattern::{HostPattern, PathPattern};

    fn rule(text: &str) -> Value {
        Value::new("skep.rule", text).expect("a test's rule is not blank")
    }

    /// The part of the rule that a finding points at.
    fn pointed(finding: &Diagnostic) -> &str {
        match &finding.place {
            Some(Place::Label { value, span, in_key: false, .. }) => &value[span.clone()],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules_of_v3_are_read_and_printed() {
        for (text, printed) in [
            ("Host(`a.example.com`)", ""),
            ("HOST(\"A.example.COM.\")", "Host(`a.example.com`)"),
            ("host( `*.example.com` , )", "Host(`*.example.com`)"),
            ("Host(`a.b`) && Path(`/a`) || !PathPrefix(`/b/`)", "(Host(`a.b`) && Path(`/a`)) || !PathPrefix(`/b/`)"),
            ("Host(`a.b`)&&(Path(`/a`)||Path(`/b`))", "Host(`a.b`) && (Path(`/a`) || Path(`/b`))"),
            ("!!Method(`get`)", "!!Method(`GET`)"),
            ("!(Method(`GET`) || Method(`PURGE`))", ""),
            ("((Path(`/`)))", "Path(`/`)"),
            ("PathPrefix(`/k%C3%A4se%20brot`)", "PathPrefix(`/käse brot`)"),
            ("PathRegexp(`^/v[0-9]{1,2}/\\p{L}`)", ""),
            ("PathRegexp(\"^/a\\\\.b\")", "PathRegexp(`^/a\\.b`)"),
            ("HostRegexp(`^[a-z]{2}\\.example\\.com$`)", ""),
            ("Header(`x-beta`, `1`) && HeaderRegexp(`Accept`, `json`)", "Header(`X-Beta`, `1`) && HeaderRegexp(`Accept`, `json`)"),
            ("Header(`X-Odd`, \"`\\\"\\\\\")", "Header(`X-Odd`, \"`\\\"\\\\\")"),
            (
                "Query(`a`, `b=c`) && Query(`flag`) && QueryRegexp(`n`, `^[0-9]+$`)",
                "Query(`a`, `b=c`) && Query(`flag`, ``) && QueryRegexp(`n`, `^[0-9]+$`)",
            ),
            ("ClientIP(`10.1.2.3/8`) || ClientIP(`::1`)", "ClientIP(`10.0.0.0/8`) || ClientIP(`::1/128`)"),
            ("Host(`a.b`)\n  && Path(`/`)", "Host(`a.b`) && Path(`/`)"),
        ] {
            let (expression, findings) = parse(&rule(text));
            assert_eq!(findings, [], "{text}");
            assert_eq!(expression.unwrap().to_string(), if printed.is_empty() { text } else { printed });
        }
    }

    #[test]
    fn forms_of_v2_are_read_with_a_warning_that_names_those_of_v3() {
        for (text, now) in [
            ("Host(`a.b`, `c.d`)", "(Host(`a.b`) || Host(`c.d`))"),
            ("HostHeader(`a.b`)", "Host(`a.b`)"),
            ("Headers(`X-Beta`, `1`)", "Header(`X-Beta`, `1`)"),
            ("HeadersRegexp(`X-Beta`, `[12]`)", "HeaderRegexp(`X-Beta`, `[12]`)"),
            ("HostRegexp(`{sub:[a-z]+}.example.com`)", "HostRegexp(`^(?:[a-z]+)\\.example\\.com$`)"),
            ("HostRegexp(`{sub}.example.com`)", "HostRegexp(`^(?:[^.]+)\\.example\\.com$`)"),
            ("HostRegexp(`{any:.+}`)", "HostRegexp(`^(?:.+)$`)"),
            ("Path(`/users/{id:[0-9]{2}}/x`)", "PathRegexp(`^/users/(?:[0-9]{2})/x$`)"),
            ("PathPrefix(`/users/{id}`)", "PathRegexp(`^/users/(?:[^/]+)`)"),
            ("Path(`/a`, `/b`)", "(Path(`/a`) || Path(`/b`))"),
            ("Method(`GET`, `POST`)", "(Method(`GET`) || Method(`POST`))"),
            ("Query(`a=b`, `c=d`)", "(Query(`a`, `b`) && Query(`c`, `d`))"),
            ("ClientIP(`10.0.0.0/8`, `::1`)", "(ClientIP(`10.0.0.0/8`) || ClientIP(`::1/128`))"),
        ] {
            let (expression, findings) = parse(&rule(&format!("Path(`/`) && {text}")));
            let [warning] = findings.as_slice() else { panic!("{text}: {findings:?}") };
            assert_eq!((warning.severity, warning.code.as_str(), pointed(warning)), (Severity::Warning, "old-rule", text));
            assert_eq!(warning.help, Some(format!("write {now}")));
            assert_eq!(expression.unwrap().to_string(), format!("Path(`/`) && {now}"));
            assert_eq!(parse(&rule(now)).1, [], "the form of v3 is one");
        }
    }

    #[test]
    fn mistakes_point_at_the_place_and_say_what_to_write() {
        let deep = format!("{}Path(`/`)", "!".repeat(DEEPEST));
        for (text, at, help) in [
            ("Hots(`a.b`)", "Hots", "did you mean `Host`?"),
            ("PathPrefx(`/a`)", "PathPrefx", "did you mean `PathPrefix`?"),
            ("Fancy(`/a`)", "Fancy", "the matchers are Host, HostRegexp"),
            ("Host", "Host", "write Host(`...`)"),
            ("Host:a.example.com", "Host:", "write Host(`...`)"),
            ("Host(`a.b`) & Path(`/a`)", "&", "write `&&`"),
            ("Host(`a.b`) | Path(`/a`)", "|", "write `||`"),
            ("Host(`a.b`) and Path(`/a`)", "and", "write `&&`"),
            ("(Host(`a.b`) OR Path(`/a`))", "OR", "write `||`"),
            ("not Host(`a.b`)", "not", "write `!`"),
            ("Host(`a.b`), Path(`/a`)", ",", "write `&&` when both must hold"),
            ("Host(`a.b`) Path(`/a`)", "Path", "write `&&` when both must hold"),
            ("Host(`a.b`) &&", "", "write a matcher like"),
            ("|| Host(`a.b`)", "|", "write a matcher like"),
            ("(Host(`a.b`)", "(", "add `)`"),
            ("Host(`a.b`))", ")", "take it out"),
            ("()", ")", "write a matcher like"),
            ("`a.b`", "`", "write a matcher like"),
            ("Host()", "()", "in a shell put single quotes"),
            ("Host(", "(", "add a value in backticks and `)`"),
            ("Host(`a.b`", "(", "add `)`"),
            ("Host(`a.b)", "`a.b)", "add a backtick"),
            ("Host(\"a.b)", "\"a.b)", "add `\"`"),
            ("Host('a.b')", "'", "write Host(`a.b`)"),
            ("Host(“a.b”)", "“", "write Host(`a.b`)"),
            ("Host(a.b)", "a.b", "write Host(`a.b`)"),
            ("Host(`a.b` `c.d`)", "`", "write `,` between values"),
            ("Path(\"/a\\d\")", "\\", "use backticks"),
            ("Host(`http://a.b`)", "http://", "write `a.b`"),
            ("Path(`a`)", "a", "write `/a`"),
            ("PathPrefix(`/a?b`)", "?b", "write `/a`"),
            ("Path(`/a/../b`)", "/a/../b", "write `/b`"),
            ("Method(`GTE`)", "GTE", "did you mean `GET`?"),
            ("Header(`X Beta`, `1`)", "X Beta", "write it like `X-Beta`"),
            ("Header(`X-Beta`)", "`X-Beta`", "Header takes a name and a value"),
            ("Query(`a`, `b`, `c`)", "`a`, `b`, `c`", "Query takes a name and maybe a value"),
            ("PathRegexp(`^/(a`)", "^/(a", "write it in the syntax of RE2"),
            ("HostRegexp(`{a:x}{b`)", "{", "add `}`"),
            ("ClientIP(`10.0.0.0/33`)", "10.0.0.0/33", "write it like `10.0.0.0/8`"),
            (&deep, "P", "write the rule flatter"),
        ] {
            let (expression, findings) = parse(&rule(text));
            assert_eq!(expression, None, "{text}");
            let [error] = findings.as_slice() else { panic!("{text}: {findings:?}") };
            assert_eq!((error.severity, pointed(error)), (Severity::Error, at), "{text}: {error:?}");
            let said = error.help.as_deref().unwrap_or_default();
            assert!(said.contains(help), "{text}: {said}");
        }
    }

    #[test]
    fn everything_is_bounded() {
        let many = |text: &str, count: usize| vec![text; count].join("||");
        let listed = format!("PathRegexp({})", vec!["`a`"; MOST_REGEXES + 1].join(","));
        let crowds = [many("Path(`/`)", MOST_VALUES + 1), many("PathRegexp(`/`)", MOST_REGEXES + 1), listed];
        for text in crowds.into_iter().chain([
            format!("Path(`/{}`)", "a".repeat(LONGEST)),
            "(".repeat(5000),
            format!("PathRegexp(`{}`)", "(a{99}){99}"),
        ]) {
            assert_eq!(parse(&rule(&text)).0, None, "{text:.40}");
        }
    }

    fn test() -> impl Strategy<Value = Test> {
        let host = prop_oneof!["[a-z]{1,3}\\.example".prop_map(HostPattern::Exact), "[a-z]{1,3}\\.example".prop_map(HostPattern::Wildcard)];
        let path = "(/[a-zä @%]{1,3}){1,3}/?".prop_map(|text| text.replace('%', "%25"));
        let path = prop_oneof![path.clone().prop_map(PathPattern::Exact), path.prop_map(PathPattern::Start)];
        let text = "[ -~äß\n]{0,8}";
        let regex = || "[a-z.`\"\\\\d^$]{0,6}".prop_filter_map("a regex", |text| Pattern::new(&text, false).ok());
        prop_oneof![
            host.prop_map(Test::Host),
            path.prop_map(Test::Path),
            regex().prop_map(Test::HostRegexp),
            regex().prop_map(Test::PathRegexp),
            "[A-Z]{7,9}".prop_map(Test::Method),
            ("[a-z]{1,3}(-[a-z0-9]{1,3})?", text).prop_map(|(name, value)| Test::Header(name, value)),
            ("[a-z]{1,3}(-[a-z0-9]{1,3})?", regex()).prop_map(|(name, value)| Test::HeaderRegexp(name, value)),
            ("[ -<>-~]{0,5}", text).prop_map(|(key, value)| Test::Query(key, value)),
            ("[ -<>-~]{0,5}", regex()).prop_map(|(key, value)| Test::QueryRegexp(key, value)),
            (any::<[u8; 4]>(), 0..=32u8).prop_map(|(address, length)| {
                Test::ClientIp(ipnet::IpNet::new(std::net::Ipv4Addr::from(address).into(), length).expect("at most 32").trunc())
            }),
        ]
    }

    fn expression() -> impl Strategy<Value = Expression> {
        test().prop_map(Expression::Test).prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|one| Expression::Not(Box::new(one))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::And),
                prop::collection::vec(inner, 2..4).prop_map(Expression::Or),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_the_same(expression in expression()) {
            let (read, findings) = parse(&rule(&expression.to_string()));
            prop_assert_eq!(findings, []);
            prop_assert_eq!(read, Some(expression));
        }

        #[test]
        fn no_text_is_too_much(text in "[!-~]\\PC{0,40}") {
            parse(&rule(&text));
        }

        #[test]
        fn no_text_of_the_right_pieces_is_too_much(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "Host", "PathPrefix", "Headers", "Query", "HostRegexp", "(", ")", "`", "\"", "\\", "&&", "||", "&", "!", ",", " ", "/a", "a.b", "{x", "}", "ä", ":",
                ]),
                1..20,
            )
        ) {
            let text = pieces.concat();
            if let Some(value) = Value::new("skep.rule", &text) {
                let (expression, findings) = parse(&value);
                prop_assert!(expression.is_some() || findings.iter().any(|finding| finding.severity == Severity::Error));
                findings.iter().for_each(|finding| drop(pointed(finding).to_owned()));
            }
        }
    }
}
