//! Changes to the text of a file of users: one line comes, goes or gets another hash; all others, comments and order stay.

use crate::diagnostic::{brief, nearest};

use super::users::{Fields, bad_group, bad_name, lines, subject};

/// A user to be.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub user: String,
    pub groups: Vec<String>,
    pub name: Option<String>,
    pub email: Option<String>,
}

/// Why a change is not made: a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Entry {
    /// Can this be written, so that it is read back as it is?
    ///
    /// # Errors
    /// A name or a group cannot be used.
    pub fn check(&self) -> Result<(), Refused> {
        if let Some(why) = bad_name(&self.user) {
            return Err(Refused(format!("the user's name `{}` {why}", brief(&self.user))));
        }
        if let Some((group, why)) = self.groups.iter().find_map(|group| Some((group, bad_group(group)?))) {
            return Err(Refused(format!("the group `{}` {why}", brief(group))));
        }
        let bad = |text: &&String| text.contains(':') || text.chars().any(char::is_control);
        match self.name.iter().chain(&self.email).find(bad) {
            Some(text) => Err(Refused(format!("`{}` has a colon or a control character, which the file cannot hold", brief(text)))),
            None => Ok(()),
        }
    }

    /// Without the fields at its end that say nothing.
    fn line(&self, hash: &str) -> String {
        let (groups, text) = (self.groups.join(","), |text: &Option<String>| text.clone().unwrap_or_default());
        let line = [self.user.as_str(), hash, &groups, &text(&self.name), &text(&self.email)].join(":");
        line.trim_end_matches(':').to_owned()
    }
}

/// `text` with `entry` in a line at its end.
///
/// # Errors
/// The user is there already, or cannot be written.
pub fn add(text: &str, entry: &Entry, hash: &str) -> Result<String, Refused> {
    entry.check()?;
    let wanted = subject(&entry.user);
    if let Some((number, _)) = lines(text).find(|(_, line)| subject(line) == wanted) {
        let user = brief(&entry.user);
        return Err(Refused(format!(
            "`{user}` is there already, in line {}: `skep user passwd` sets a new password, an editor changes the groups",
            number + 1
        )));
    }
    let line_break = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{text}{line_break}{}\n", entry.line(hash)))
}

/// `text` without any line of `user`.
///
/// # Errors
/// There is none.
pub fn remove(text: &str, user: &str) -> Result<String, Refused> {
    line_of(text, user)?;
    let wanted = subject(user);
    let gone: Vec<usize> = lines(text).filter(|(_, line)| subject(line) == wanted).map(|(number, _)| number).collect();
    Ok(text.split_inclusive('\n').enumerate().filter(|(number, _)| !gone.contains(number)).map(|(_, line)| line).collect())
}

/// `text` with `hash` in the line of `user` that counts.
///
/// # Errors
/// There is none.
pub fn set_hash(text: &str, user: &str, hash: &str) -> Result<String, Refused> {
    let number = line_of(text, user)?;
    let changed = text.split_inclusive('\n').enumerate().map(|(at, line)| {
        let Fields { hash: old, user, .. } = Fields::of(line.trim_end_matches(['\n', '\r']));
        match (at == number, old) {
            (false, _) => line.to_owned(),
            (true, Some(old)) => format!("{}{hash}{}", &line[..old.start], &line[old.end..]),
            (true, None) => format!("{}:{hash}{}", &line[user.clone()], &line[user.end..]),
        }
    });
    Ok(changed.collect())
}

/// The number of the line of `user` that counts, from 0.
fn line_of(text: &str, user: &str) -> Result<usize, Refused> {
    let wanted = subject(user);
    if let (Some((number, _)), None) = (lines(text).find(|(_, line)| subject(line) == wanted), bad_name(user)) {
        return Ok(number);
    }
    // A line without a colon may be a password.
    let names: Vec<String> = lines(text).filter(|(_, line)| line.contains(':')).map(|(_, line)| subject(line)).collect();
    let near = nearest(&wanted, names.iter().map(String::as_str)).map(|near| format!("; did you mean `{}`?", brief(near)));
    Err(Refused(format!("there is no user `{}`{}", brief(user), near.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::htpasswd::tests::{APR1, BCRYPT, password};
    use super::super::users::parse;
    use super::*;

    fn entry(user: &str, groups: &[&str]) -> Entry {
        Entry { user: user.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Entry::default() }
    }

    #[test]
    fn one_line_changes_and_the_rest_stays() {
        let text = format!("# staff\nada:{APR1}:staff:Ada Lovelace:a@b.c\r\n\nbroken\nbob:{BCRYPT}");
        let added =
            add(&text, &Entry { email: Some("c@d.e".to_owned()), ..entry("cai", &["staff", "Human Resources"]) }, BCRYPT).expect("added");
        assert_eq!(added, format!("{text}\ncai:{BCRYPT}:staff,Human Resources::c@d.e\n"));
        assert_eq!(add("", &entry("ada", &[]), BCRYPT).expect("added"), format!("ada:{BCRYPT}\n"));
        let changed = set_hash(&text, "ADA", BCRYPT).expect("changed");
        assert_eq!(changed, text.replace(APR1, BCRYPT));
        assert_eq!(remove(&text, "Ada").expect("removed"), format!("# staff\n\nbroken\nbob:{BCRYPT}"));
        let twice = format!("ada:{APR1}\nbob:{APR1}\nAda:{APR1}\n");
        assert_eq!(remove(&twice, "ada").expect("removed"), format!("bob:{APR1}\n"), "all of them: the other must not come to count");
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let text = format!("ada:{BCRYPT}\nhunter2\n");
        for (refused, wanted) in [
            (add(&text, &entry("Ada", &[]), BCRYPT), "in line 1"),
            (add(&text, &entry("a:b", &[]), BCRYPT), "colon"),
            (add(&text, &entry("#a", &[]), BCRYPT), "comments"),
            (add(&text, &entry("", &[]), BCRYPT), "empty"),
            (add(&text, &entry("bob", &["a,b"]), BCRYPT), "comma"),
            (add(&text, &entry("bob", &["*"]), BCRYPT), "any signed-in"),
            (add(&text, &Entry { name: Some("a:b".to_owned()), ..entry("bob", &[]) }, BCRYPT), "colon"),
            (remove(&text, "adda"), "did you mean `ada`?"),
            (remove(&text, "hunter"), "there is no user `hunter`"),
            (remove(&text, ""), "there is no user"),
            (set_hash(&text, "eve", BCRYPT), "there is no user `eve`"),
        ] {
            let said = refused.expect_err(wanted).to_string();
            assert!(said.contains(wanted) && !said.contains("hunter2"), "{wanted}: {said}");
        }
    }

    proptest! {
        /// Whatever was added is read back, can sign in, and is gone once it is removed; the others never notice.
        #[test]
        fn what_is_written_is_read_back(user in "[^:\\p{C}]{1,20}", groups in proptest::collection::vec("[^:,\\p{C}]{1,10}", 0..3), name in "[^:\\p{C}]{0,10}") {
            let text = format!("\u{feff}# us\nsomebody:{APR1}:staff\n");
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let entry = Entry { name: Some(name), ..entry(&user, &groups) };
            let Ok(added) = add(&text, &entry, BCRYPT) else { return Ok(()) };
            let (users, findings) = parse("users", &added);
            prop_assert_eq!((users.len(), findings.len()), (2, 1));
            let found = users.verify(&user, &password("correct horse"));
            prop_assert_eq!(found.map(|identity| identity.user), Some(user.clone()));
            for group in groups {
                prop_assert!(users.get(&user).expect("there").identity.belongs(&super::super::identity::folded(group)));
            }
            prop_assert_eq!(remove(&added, &user), Ok(text));
        }
    }
}
