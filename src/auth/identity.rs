//! Who somebody is, as a directory says: the one thing that all ways of signing in come to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A person or a program that a directory knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name to sign in with, as the directory writes it: `Ada` and `ada` are one identity.
    pub user: String,
    /// As people write it.
    pub name: Option<String>,
    pub email: Option<String>,
    /// By their folded names, as the directory writes them.
    groups: BTreeMap<String, String>,
}

impl Identity {
    /// Somebody of whom no more is known than the name and `groups`.
    pub fn new(user: &str, groups: impl IntoIterator<Item = String>) -> Identity {
        let groups = groups.into_iter().map(|group| (folded(&group), group)).collect();
        Identity { user: user.to_owned(), name: None, email: None, groups }
    }

    /// Member of `group`? That is folded, as labels are once they are read.
    pub fn belongs(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// All groups, as the directory writes them.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.values().map(String::as_str)
    }
}

/// A name in the form in which names are compared: directories ignore case and repeated spaces (RFC 4518, 2.2 and 2.6.1).
pub fn folded(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// What somebody proves who they are with. Wiped when dropped, shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    pub fn new(text: String) -> Password {
        Password(Zeroizing::new(text))
    }

    /// The secret itself, for those who check it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A directory takes an empty password for no sign-in at all and says yes (RFC 4513, 5.1.2).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_compared_as_directories_do() {
        let ada = Identity::new("ada", ["Human  Resources".to_owned(), "Köche".to_owned()]);
        for (label, member) in [("human resources", true), (" Human Resources ", true), ("KÖCHE", true), ("human", false), ("", false)] {
            assert_eq!(ada.belongs(&folded(label)), member, "{label}");
        }
        assert_eq!(ada.groups().collect::<Vec<_>>(), ["Human  Resources", "Köche"]);
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        assert_eq!(format!("{:?}", Password::new("hunter2".to_owned())), "Password(..)");
    }
}
