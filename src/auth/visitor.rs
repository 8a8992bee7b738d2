//! What services are told of whoever signed in: header fields that only we may send.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};

use super::identity::Identity;
use crate::config::Auth;

/// Bytes of all groups in their field; whoever has more is told to be in none, as a part of them could let in whom the whole would not.
const MOST: usize = 8 * 1024;

/// Somebody as a service is told of them.
#[derive(Clone, Debug)]
pub struct Visitor {
    pub identity: Arc<Identity>,
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

impl Visitor {
    /// The fields that `auth` names, as far as there is something to say.
    pub fn new(identity: Arc<Identity>, auth: &Auth) -> Visitor {
        let mut fields = Vec::with_capacity(4);
        let mut say = |name: &Option<HeaderName>, value: Option<&[u8]>| {
            if let (Some(name), Some(value)) = (name, value.and_then(|value| HeaderValue::from_bytes(value).ok())) {
                fields.push((name.clone(), value));
            }
        };
        say(&auth.user_header, Some(identity.user.as_bytes()));
        say(&auth.name_header, identity.name.as_deref().map(str::as_bytes));
        say(&auth.email_header, identity.email.as_deref().map(str::as_bytes));
        if auth.groups_header.is_some() {
            say(&auth.groups_header, Some(&groups(&identity)));
        }
        Visitor { identity, fields }
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Visitor {
        self.fields.push((name, value));
        self
    }
}

/// The groups, separated by commas. A comma or a control within a name is percent-encoded, and so is the percent sign.
fn groups(identity: &Identity) -> Vec<u8> {
    let mut text = Vec::new();
    for group in identity.groups() {
        if !text.is_empty() {
            text.push(b',');
        }
        for byte in group.bytes() {
            match byte {
                b',' | b'%' | ..b' ' | 0x7f => text.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                _ => text.push(byte),
            }
        }
    }
    if text.len() > MOST { Vec::new() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(visitor: &Visitor) -> Vec<(&str, String)> {
        visitor.fields.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
    }

    #[test]
    fn services_are_told_what_the_directory_says() {
        let mut identity = Identity::new("ada", ["staff".to_owned(), "a,b".to_owned(), "100%".to_owned(), "Köche".to_owned()]);
        identity.name = Some("Ada Lovelace".to_owned());
        let visitor = Visitor::new(Arc::new(identity), &Auth::default());
        let groups = "100%25,a%2Cb,Köche,staff".to_owned();
        let wanted =
            [("x-forwarded-user", "ada".to_owned()), ("x-forwarded-name", "Ada Lovelace".to_owned()), ("x-forwarded-groups", groups)];
        assert_eq!(said(&visitor), wanted);
        let quiet = Auth { groups_header: None, name_header: None, ..Auth::default() };
        assert_eq!(said(&Visitor::new(visitor.identity, &quiet)), [("x-forwarded-user", "ada".to_owned())]);
    }

    #[test]
    fn too_many_groups_are_none() {
        let many = (0..2000).map(|number| format!("group-{number}"));
        let visitor = Visitor::new(Arc::new(Identity::new("ada", many)), &Auth::default());
        assert_eq!(said(&visitor)[1], ("x-forwarded-groups", String::new()));
    }

    proptest! {
        #[test]
        fn nothing_that_a_directory_says_ends_a_field(user in "\\PC{0,30}|.{0,30}", group in ".{0,30}", name in ".{0,30}") {
            let mut identity = Identity::new(&user, [group]);
            identity.name = Some(name);
            for (_, value) in Visitor::new(Arc::new(identity), &Auth::default()).fields {
                prop_assert!(!value.as_bytes().iter().any(|byte| *byte < b' ' && *byte != b'\t'));
            }
        }
    }
}
