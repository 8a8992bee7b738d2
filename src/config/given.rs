//! The configuration text as a flat list of named values, each with its place.
//! TOML's types stay apart, so that a setting can say which one it wants.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{SETTINGS, issuer};
use crate::diagnostic::{Diagnostic, Place};

/// A value as somebody wrote it.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    Text(String),
    Flag(bool),
    Number(i64),
    List(Vec<Given>),
    /// From an environment variable: its type is whatever the setting wants.
    Words(String),
    /// Anything that no setting is: a date, a float, a table in a list.
    Other(&'static str),
}

/// Every `section.key` of `text` in the order of the file. Text that is not TOML is a finding.
pub fn read(path: &str, text: &str, findings: &mut Vec<Diagnostic>) -> Vec<(String, Given, Place)> {
    let place = |span: Range<usize>| Place::File { path: path.to_owned(), text: text.to_owned(), span };
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            findings.push(Diagnostic::error("syntax", format!("this is not TOML: {}", error.message())).at(place(span)).of(path));
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for (section, value) in table.get_ref() {
        let known = SETTINGS.iter().any(|setting| setting.section() == section.get_ref().as_ref());
        match value.get_ref() {
            DeValue::Table(keys) if known => {
                for (key, value) in keys {
                    let name = format!("{}.{}", section.get_ref(), key.get_ref());
                    let known = SETTINGS.iter().any(|setting| setting.name == name);
                    let span = if known { value.span() } else { key.span() };
                    found.push((span.start, (name, given(value.get_ref()), place(span))));
                }
            }
            DeValue::Table(issuers) if section.get_ref() == "issuer" => {
                for (name, value) in issuers {
                    match value.get_ref() {
                        DeValue::Table(keys) => found.extend(keys.iter().map(|(key, value)| {
                            let span = if issuer::is_key(key.get_ref()) { value.span() } else { key.span() };
                            (span.start, (format!("issuer.{}.{}", name.get_ref(), key.get_ref()), given(value.get_ref()), place(span)))
                        })),
                        other => found.push((name.span().start, (format!("issuer.{}", name.get_ref()), given(other), place(name.span())))),
                    }
                }
            }
            // Unknown as a whole: one finding, not one for each of its keys.
            other => found.push((section.span().start, (section.get_ref().to_string(), given(other), place(section.span())))),
        }
    }
    found.sort_by_key(|(start, _)| *start);
    found.into_iter().map(|(_, entry)| entry).collect()
}

fn given(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Boolean(flag) => Given::Flag(*flag),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or(Given::Other("number out of range"), Given::Number),
        DeValue::Array(items) => Given::List(items.iter().map(|item| given(item.get_ref())).collect()),
        other => Given::Other(other.type_str()),
    }
}

impl Given {
    /// What it is, for a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Given::Text(_) | Given::Words(_) => "text",
            Given::Flag(_) => "true or false",
            Given::Number(_) => "a number",
            Given::List(_) => "a list",
            Given::Other(kind) => kind,
        }
    }

    /// A text, or the words of a variable.
    pub fn text(&self) -> Option<&str> {
        match self {
            Given::Text(text) | Given::Words(text) => Some(text.trim()),
            _ => None,
        }
    }

    /// A list of texts; a single text is a list of one, words are split at commas and white space.
    pub fn texts(&self) -> Option<Vec<&str>> {
        match self {
            Given::Text(text) => Some(vec![text.trim()]),
            Given::Words(words) => Some(words.split([',', ' ']).map(str::trim).filter(|word| !word.is_empty()).collect()),
            Given::List(items) => items.iter().map(|item| if let Given::Text(text) = item { Some(text.trim()) } else { None }).collect(),
            _ => None,
        }
    }
}
