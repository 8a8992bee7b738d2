//! A stack file's text as a tree that remembers where each value stands.
//! A wrong value can then be a finding with a caret while its neighbours live, which deserializing into structs cannot give.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, PropertySyntax, Spanned};

/// A value and the byte range of the text that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub span: Range<usize>,
    pub value: Value,
}

/// What a stack file is made of. Scalars keep their spelling: `8080`, `true` and `1.10` are text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, doubled keys included.
    Map(Vec<(Node, Node)>),
}

/// Why a text is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub message: String,
    pub span: Range<usize>,
}

/// Reads one document. `${NAME}`, `$NAME` and their operators are replaced as Docker Compose does it, from `environment`.
pub fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Node, Unreadable> {
    let names: HashMap<String, String> =
        variables(text).filter_map(|variable| Some((variable.name.to_owned(), environment(variable.name)?))).collect();
    let options = serde_saphyr::options! {
        // Stack files are small; these bounds keep a hostile one from costing more than its size.
        budget: serde_saphyr::budget! {
            max_events: 400_000,
            max_nodes: 200_000,
            max_depth: 48,
            max_documents: 1,
            max_total_scalar_bytes: 8 << 20,
            max_recorded_anchor_bytes: 8 << 20,
            max_total_property_interpolation_work: 16 << 20,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000 },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
        property_syntax: PropertySyntax::DockerCompose,
    }
    .with_properties(names);
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Ok(node(raw, text)),
        Err(error) => {
            let location = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
            Err(Unreadable { message: error.to_string(), span: range(location, text) })
        }
    }
}

impl Node {
    /// The value under `key` of a mapping (the first, when it stands there twice), unless it is null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        let (_, value) = self.pairs()?.iter().find(|(name, _)| name.text() == Some(key))?;
        (value.value != Value::Null).then_some(value)
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn pairs(&self) -> Option<&[(Node, Node)]> {
        match &self.value {
            Value::Map(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// A list's items; a single text counts as a list of one.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            Value::Null | Value::Map(_) => &[],
            Value::Text(_) => std::slice::from_ref(self),
        }
    }

    /// A key that stands in its mapping a second time, here or below.
    pub fn doubled_key(&self) -> Option<&Node> {
        match &self.value {
            Value::Null | Value::Text(_) => None,
            Value::List(items) => items.iter().find_map(Node::doubled_key),
            Value::Map(pairs) => {
                let mut seen = HashSet::new();
                let doubled = pairs.iter().find(|(key, _)| key.text().is_some_and(|text| !seen.insert(text)));
                doubled.map(|(key, _)| key).or_else(|| pairs.iter().find_map(|(_, value)| value.doubled_key()))
            }
        }
    }
}

/// A `$NAME` or `${NAME...}` in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable<'a> {
    pub name: &'a str,
    /// Where its name stands, relative to the text.
    pub at: usize,
    /// No `:-default` or other operator says what an unset variable means.
    pub bare: bool,
}

/// All variables that a text names; `$$` is a dollar sign.
pub fn variables(text: &str) -> impl Iterator<Item = Variable<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('$')? + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
                continue;
            }
            let braced = rest.starts_with('{');
            let start = &rest[usize::from(braced)..];
            let length = start.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
            if length > 0 && !start.as_bytes()[0].is_ascii_digit() {
                rest = &start[length..];
                return Some(Variable { name: &start[..length], at: text.len() - start.len(), bare: !braced || rest.starts_with('}') });
            }
        }
    })
}

/// A value as the parser infers it. `Typed` lost its spelling and gets it back from the text.
#[derive(Debug)]
enum Raw {
    Null,
    Text(String),
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let span = range(raw.defined, text);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(value) => Value::Text(value),
        Raw::Typed(inferred) => match text.get(span.clone()) {
            // What stands there is the spelling, unless a variable was replaced.
            Some(spelling) if !spelling.is_empty() && !spelling.contains(['$', '\n']) => Value::Text(spelling.trim().to_owned()),
            _ => Value::Text(inferred),
        },
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(pairs) => Value::Map(pairs.into_iter().map(|(key, value)| (node(key, text), node(value, text))).collect()),
    };
    Node { span, value }
}

/// The parser's location as a byte range that lies within the text and on its character borders.
fn range(location: serde_saphyr::Location, text: &str) -> Range<usize> {
    let span = location.span();
    let offset = |value: Option<u64>| value.and_then(|value| usize::try_from(value).ok());
    let border = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let start = border(offset(span.byte_offset()).unwrap_or(0));
    let length = offset(span.byte_len()).unwrap_or(0);
    start..border(start.saturating_add(length))
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Raw, E> {
        Ok(Raw::Text(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".to_owned()),
            "NAME" => Some("shop".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn text_of(yaml: &str) -> Value {
        let root = parse(yaml, &environment).expect("readable");
        match root.value {
            Value::Map(mut pairs) => pairs.remove(0).1.value,
            other => other,
        }
    }

    #[test]
    fn scalars_keep_their_spelling() {
        for (written, read) in [
            ("a: 8080", "8080"),
            ("a: true", "true"),
            ("a: yes", "yes"),
            ("a: 1.10", "1.10"),
            ("a: 0x10", "0x10"),
            ("a: 007", "007"),
            ("a: \"8080\"", "8080"),
            ("a: 'it''s'", "it's"),
            ("a: 1_000", "1_000"),
            ("a: .inf", ".inf"),
            ("a: ${PORT}", "8080"),
            ("a: \"${PORT}\"", "8080"),
            ("a: x-$NAME-y", "x-shop-y"),
            ("a: ${UNSET:-d e}", "d e"),
            ("a: ${EMPTY:-d}", "d"),
            ("a: ${EMPTY-d}", ""),
            ("a: ${UNSET}z", "z"),
            ("a: cost $$5", "cost $5"),
            ("a: |\n  one\n  two\n", "one\ntwo\n"),
        ] {
            assert_eq!(text_of(written), Value::Text(read.to_owned()), "{written}");
        }
        assert_eq!(text_of("a:"), Value::Null);
        assert_eq!(text_of("a: ~"), Value::Null);
    }

    #[test]
    fn spans_point_at_the_value_where_it_was_written() {
        let yaml = "x: &l {k: ünï}\nb:\n  <<: *l\n  k2: 5\n";
        let Value::Map(pairs) = parse(yaml, &environment).expect("readable").value else { panic!("a map") };
        let Value::Map(b) = &pairs[1].1.value else { panic!("a map") };
        let found: Vec<_> = b.iter().map(|(key, value)| (&yaml[key.span.clone()], &yaml[value.span.clone()])).collect();
        assert!(found.contains(&("k", "ünï")), "{found:?}");
        assert!(found.contains(&("k2", "5")), "{found:?}");
    }

    #[test]
    fn doubled_keys_are_kept() {
        let Value::Map(pairs) = parse("a: 1\na: 2\n", &environment).expect("readable").value else { panic!("a map") };
        assert_eq!(pairs.len(), 2);
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        for yaml in ["a: [1,\nb: 2", "a: b: c", "a:\n\tb: 1", "a: *none", "a: ${NAME:?}\nb: ${UNSET:?no way}", "- a\nb: c"] {
            let error = parse(yaml, &environment).expect_err(yaml);
            assert!(!error.message.is_empty() && error.span.end <= yaml.len(), "{yaml}: {error:?}");
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut yaml = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}", level - 1);
            yaml += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(","));
        }
        assert!(parse(&yaml, &environment).is_err());
    }

    #[test]
    fn variables_are_found_with_their_place() {
        let found: Vec<_> = variables("a $$X ${B:-1} $C ${D} $ ${ $1 ${").map(|v| (v.name, v.at, v.bare)).collect();
        assert_eq!(found, [("B", 8, false), ("C", 15, true), ("D", 19, true)]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_tree_or_a_place(text in "[ -~\n\tü${}:&*<-]{0,80}") {
            if let Err(error) = parse(&text, &environment) {
                proptest::prop_assert!(text.get(error.span).is_some());
            }
        }
    }
}
