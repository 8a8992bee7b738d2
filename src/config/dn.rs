//! Names of directory entries as text (RFC 4514): read, compared and written, so that nobody's name changes what a name means.

use std::fmt::Write as _;

/// A distinguished name: relative names from the entry itself up to the root, each of one attribute or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dn(Vec<Vec<(String, String)>>);

impl Dn {
    /// `None`: `text` is no name. Also takes what LDAPv2 wrote: `;`, and spaces around separators.
    pub fn parse(text: &str) -> Option<Dn> {
        let mut rest = text.trim_start_matches(' ');
        let mut names = Vec::new();
        if rest.is_empty() {
            return Some(Dn(names));
        }
        let mut name = Vec::new();
        loop {
            let (kind, after) = rest.split_once('=')?;
            let kind = kind.trim_matches(' ');
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
            if kind.is_empty() || !kind.bytes().all(letter) {
                return None;
            }
            let (value, after) = value(after.trim_start_matches(' '))?;
            name.push((kind.to_ascii_lowercase(), value));
            let separator = after.chars().next();
            if separator != Some('+') {
                names.push(std::mem::take(&mut name));
            }
            match separator {
                None => return Some(Dn(names)),
                Some('+' | ',' | ';') => rest = after[1..].trim_start_matches(' '),
                Some(_) => return None,
            }
        }
    }

    /// The attribute (in lower case) and the value that set the entry apart from its neighbours; the first, if there are several.
    pub fn own(&self) -> Option<(&str, &str)> {
        self.0.first()?.first().map(|(kind, value)| (kind.as_str(), value.as_str()))
    }

    /// Is it `base`, or below it? Case and repeated spaces make no difference, as for most attributes (RFC 4518).
    pub fn is_within(&self, base: &Dn) -> bool {
        let own = self.0.len().checked_sub(base.0.len()).map(|above| &self.0[above..]);
        own.is_some_and(|own| own.iter().zip(&base.0).all(|(one, other)| folded(one) == folded(other)))
    }

    /// Do both name one entry?
    pub fn is(&self, other: &Dn) -> bool {
        self.0.len() == other.0.len() && self.is_within(other)
    }
}

fn folded(name: &[(String, String)]) -> Vec<(&str, String)> {
    let fold = |value: &str| value.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut pairs: Vec<_> = name.iter().map(|(kind, value)| (kind.as_str(), fold(value))).collect();
    pairs.sort();
    pairs
}

/// The value at the start of `text`, and what follows.
fn value(text: &str) -> Option<(String, &str)> {
    if let Some(hex) = text.strip_prefix('#') {
        return hexadecimal(hex);
    }
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, after) = escaped(quoted, |letter| letter == '"')?;
        return Some((value, after.strip_prefix('"')?.trim_start_matches(' ')));
    }
    let (mut value, after) = escaped(text, |letter| matches!(letter, ',' | '+' | ';'))?;
    // Spaces at the end are no part of it unless they are escaped.
    let raw = &text[..text.len() - after.len()];
    let core = raw.trim_end_matches(' ');
    let slashes = core.len() - core.trim_end_matches('\\').len();
    let loose = raw.len() - core.len();
    value.truncate(value.len() - loose.saturating_sub(slashes % 2));
    Some((value, after))
}

/// Up to an unescaped letter for which `end` is true.
fn escaped(text: &str, end: impl Fn(char) -> bool) -> Option<(String, &str)> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut letters = text.char_indices();
    let mut stop = text.len();
    while let Some((index, letter)) = letters.next() {
        if end(letter) {
            stop = index;
            break;
        }
        match letter {
            '\\' => {
                let (_, next) = letters.next()?;
                match next.to_digit(16) {
                    Some(high) => bytes.push((high * 16 + letters.next()?.1.to_digit(16)?) as u8),
                    None => bytes.extend(next.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
            '\0' => return None,
            letter => bytes.extend(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some((String::from_utf8(bytes).ok()?, &text[stop..]))
}

/// `#` and the BER of a string (RFC 4514, 2.4): tag, length, text.
fn hexadecimal(text: &str) -> Option<(String, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(text.len());
    let (digits, after) = text.split_at(end);
    let bytes: Option<Vec<u8>> =
        digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let bytes =
        bytes.filter(|bytes| digits.len() % 2 == 0 && bytes.len() >= 2 && bytes[1] < 0x80 && usize::from(bytes[1]) == bytes.len() - 2)?;
    Some((String::from_utf8(bytes[2..].to_vec()).ok()?, after.trim_start_matches(' ')))
}

/// `value` as it is written in a distinguished name (RFC 4514, 2.4).
pub fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 8);
    let last = value.len().saturating_sub(1);
    for (index, letter) in value.char_indices() {
        let edge = index == 0 && matches!(letter, ' ' | '#') || index == last && letter == ' ';
        if edge || letter.is_ascii_control() || matches!(letter, '"' | '+' | ',' | ';' | '<' | '=' | '>' | '\\') {
            // Writing to a String cannot fail.
            _ = write!(text, "\\{:02x}", letter as u32);
        } else {
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_as_directories_write_them() {
        // The second column is the first attribute with its value.
        for (text, own) in [
            ("cn=teedy,ou=groups,dc=example,dc=org", Some(("cn", "teedy"))),
            ("CN=Domain Users,CN=Users,DC=corp,DC=example", Some(("cn", "Domain Users"))),
            (r"CN=Smith\, James,OU=People,DC=x", Some(("cn", "Smith, James"))),
            (r#"CN="Smith, James",OU=People"#, Some(("cn", "Smith, James"))),
            (r"CN=Before\0dAfter,DC=x", Some(("cn", "Before\rAfter"))),
            (r"cn=Lu\C4\8Di\C4\87", Some(("cn", "Lučić"))),
            (r"cn=\ x\ ,dc=y", Some(("cn", " x "))),
            (r"cn=x  ,dc=y", Some(("cn", "x"))),
            (r"cn=x\\ ,dc=y", Some(("cn", "x\\"))),
            (r"cn=a=b\+c+uid=ada , dc=y", Some(("cn", "a=b+c"))),
            ("1.3.6.1.4.1.1466.0=#04024869", Some(("1.3.6.1.4.1.1466.0", "Hi"))),
            ("cn=x;dc=y", Some(("cn", "x"))),
            ("cn=", Some(("cn", ""))),
            ("", None),
        ] {
            assert_eq!(Dn::parse(text).unwrap_or_else(|| panic!("{text}")).own(), own, "{text}");
        }
        for text in ["teedy", "cn", "cn=a,", "=a", "c n=a", "cn=a\\", "cn=a\\f", "cn=\"a", "cn=\"a\"b", "cn=#0402", "cn=\\ff", "cn=a,b"] {
            assert_eq!(Dn::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_below_a_base_is_known_by_meaning() {
        let within = |text: &str, base: &str| Dn::parse(text).unwrap().is_within(&Dn::parse(base).unwrap());
        assert!(within("cn=a,OU=My  Groups, DC=x", "ou=my groups,dc=X"));
        assert!(within("uid=ada+cn=b,dc=x", "CN=B+uid=Ada,dc=x"));
        assert!(within("cn=a", ""));
        assert!(!within("cn=a,ou=other,dc=x", "ou=groups,dc=x"));
        // The comma is part of the name.
        assert!(!within(r"cn=a\,ou=groups,dc=x", "ou=groups,dc=x"));
        assert!(!within("dc=x", "ou=groups,dc=x"));
    }

    proptest! {
        #[test]
        fn any_value_is_read_back_as_it_was(value in "\\PC*|[ #\\\\,+\"\0-\x1f;<>=a]{0,8}") {
            let dn = Dn::parse(&format!("uid={},ou=people", escape(&value)));
            let dn = dn.unwrap();
            prop_assert_eq!(dn.own(), Some(("uid", value.as_str())));
            prop_assert!(dn.is_within(&Dn::parse("ou=people").unwrap()));
            prop_assert_eq!(dn.0.len(), 2);
        }

        #[test]
        fn nothing_makes_it_panic(text in "\\PC*|[cn=,+;\"\\\\# 0-9a-f]{0,24}") {
            let _ = Dn::parse(&text);
        }
    }
}
