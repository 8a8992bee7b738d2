//! Search filters with places for names in them (RFC 4515): checked when they are read, so that whatever is put in is a value and
//! nothing else.

use std::fmt::Write as _;

/// What a filter asks about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// `{user}`: the name that somebody signs in with, or of a group's member.
    pub user: &'a str,
    /// `{dn}`: the name of the user's entry.
    pub dn: &'a str,
}

/// A filter with places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    User,
    Dn,
}

/// Deeper filters are mistakes.
const DEPTH: usize = 16;

impl Template {
    /// Reads a filter in which the places `allowed` (as `{user}`) may stand.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, allowed: &[&str]) -> Result<Template, String> {
        let text = text.trim();
        match list(text, DEPTH) {
            Some("") if text.starts_with('(') => {}
            _ => return Err("it is not a filter: each part is (attribute=value), (&...), (|...) or (!...)".to_owned()),
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("a { has no }")?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(match name {
                "user" if allowed.contains(&"{user}") => Piece::User,
                "dn" if allowed.contains(&"{dn}") => Piece::Dn,
                _ => return Err(format!("it has a place other than {}", allowed.join(" and "))),
            });
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Template(pieces))
    }

    /// Has it a place for the user's name?
    pub fn has_user(&self) -> bool {
        self.0.contains(&Piece::User)
    }

    /// Has it a place for the name of the user's entry?
    pub fn has_dn(&self) -> bool {
        self.0.contains(&Piece::Dn)
    }

    /// Does it find users by this attribute alone?
    pub fn finds_by(&self, attribute: &str) -> bool {
        let end = format!("({attribute}=").to_ascii_lowercase();
        self.0.windows(3).any(|three| match three {
            [Piece::Text(before), Piece::User, Piece::Text(after)] => before.to_ascii_lowercase().ends_with(&end) && after.starts_with(')'),
            _ => false,
        })
    }

    /// The filter about somebody.
    pub fn fill(&self, about: About<'_>) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::User => escape(about.user),
            Piece::Dn => escape(about.dn),
        };
        self.0.iter().map(piece).collect()
    }
}

/// `value` as it is written in a filter (RFC 4515, 3).
pub fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 8);
    for letter in value.chars() {
        if letter.is_ascii_control() || matches!(letter, '*' | '(' | ')' | '\\') {
            // Writing to a String cannot fail.
            _ = write!(text, "\\{:02x}", letter as u32);
        } else {
            text.push(letter);
        }
    }
    text
}

/// Bytes that are no text as they are written in a filter.
pub fn escape_bytes(value: &[u8]) -> String {
    value.iter().fold(String::with_capacity(value.len() * 3), |mut text, byte| {
        _ = write!(text, "\\{byte:02x}"); // as above
        text
    })
}

/// What follows the filters at the start of `text`; `None` if something else is there.
fn list(mut text: &str, depth: usize) -> Option<&str> {
    while text.starts_with('(') {
        text = one(text, depth.checked_sub(1)?)?;
    }
    Some(text)
}

fn one(text: &str, depth: usize) -> Option<&str> {
    let inner = text.strip_prefix('(')?;
    let after = match inner.chars().next()? {
        '&' | '|' => list(&inner[1..], depth)?,
        '!' => one(&inner[1..], depth.checked_sub(1)?)?,
        _ => item(inner)?,
    };
    after.strip_prefix(')')
}

/// `attribute=value`, `attribute:rule:=value`, `attribute>=value`, ...
fn item(text: &str) -> Option<&str> {
    let (attribute, rest) = text.split_once('=')?;
    let attribute = attribute.strip_suffix(['~', '>', '<', ':']).unwrap_or(attribute);
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-.;:".contains(&byte);
    if attribute.is_empty() || !attribute.bytes().all(letter) {
        return None;
    }
    let end = rest.find(['(', ')', '\0'])?;
    let (value, after) = rest.split_at(end);
    let hex = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    value.split('\\').skip(1).all(hex).then_some(after)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Result<Template, String> {
        Template::parse(text, &["{user}"])
    }

    #[test]
    fn filters_are_checked_when_they_are_read() {
        for text in [
            "(uid={user})",
            " (&(objectClass=person)(|(uid={user})(mail={user}@example.com))(!(nsAccountLock=TRUE))) ",
            "(member:1.2.840.113556.1.4.1941:=cn=a)",
            "(cn=*)",
            "(cn=a\\2a*b)",
            "(uidNumber>=1000)",
            "(&)",
        ] {
            assert!(of(text).is_ok(), "{text}: {:?}", of(text));
        }
        let deep = format!("{}(a=b){}", "(!".repeat(40), ")".repeat(40));
        for text in [
            "",
            "uid={user}",
            "(uid={user}",
            "(uid={user}))",
            "({user}=x)",
            "(uid={dn})",
            "(uid={user)",
            "(a=\\2)",
            "(a)",
            "(=a)",
            "(!(a=b)(c=d))",
            &deep,
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_attribute_that_finds_users_is_known() {
        let filter = of("(&(objectClass=person)(|(UID={user})(mail={user}@x)))").unwrap();
        assert!(filter.finds_by("uid") && !filter.finds_by("mail") && !filter.finds_by("d"));
    }

    /// The value of the one equality in the filter as the client that sends it reads it; `None` if it is anything else.
    fn sent(filter: &str) -> Option<Vec<u8>> {
        let tag = ldap3::parse_filter(filter).ok()?;
        let tag = ldap3::asn1::ASNTag::into_structure(tag);
        let mut parts = tag.match_id(3)?.expect_constructed()?.into_iter();
        assert_eq!(parts.next()?.expect_primitive()?, b"uid");
        parts.next()?.expect_primitive()
    }

    proptest! {
        #[test]
        fn any_name_is_a_value_and_nothing_else(user in "\\PC*|[*()\\\\\0&|!= a\u{e9}]{0,12}") {
            let filter = of("(uid={user})").unwrap().fill(About { user: &user, dn: "" });
            // Our own reading of the grammar agrees, but for an empty value.
            prop_assert!(of(&filter.replace(['{', '}'], "")).is_ok(), "{}", filter);
            prop_assert_eq!(sent(&filter), Some(user.into_bytes()), "{}", filter);
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC*|[()&|!=*{}a\\\\]{0,24}") {
            if let Ok(template) = of(&text) {
                template.fill(About { user: "a", dn: "b" });
            }
        }
    }
}
