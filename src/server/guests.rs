//! The users of `skep demo`: two people with passwords of their own at each start, in a file that is gone with the demo.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

use crate::auth::edit::{Entry, add};
use crate::auth::file::rewrite;
use crate::auth::htpasswd::hashed;
use crate::auth::identity::Password;

/// Name, what they are called, group.
const PEOPLE: [(&str, &str, &str); 2] = [("ada", "Ada Lovelace", "staff"), ("bob", "Bob Guest", "guests")];

/// Somebody who can sign in to the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub user: &'static str,
    pub group: &'static str,
    pub password: Password,
}

/// The file of users of the demo, gone once this is dropped.
#[derive(Debug)]
pub struct Guests {
    directory: PathBuf,
    pub people: Vec<Guest>,
}

impl Guests {
    /// Makes the file in a new directory that nobody else may read.
    ///
    /// # Errors
    /// Of the disk.
    pub fn invite() -> io::Result<Guests> {
        let directory = std::env::temp_dir().join(format!("skep-demo-{}", word()?));
        DirBuilder::new().mode(0o700).create(&directory)?;
        let mut guests = Guests { directory, people: Vec::new() };
        for (user, name, group) in PEOPLE {
            let password = Password::new(word()?);
            let entry = Entry {
                user: user.to_owned(),
                groups: vec![group.to_owned()],
                name: Some(name.to_owned()),
                email: Some(format!("{user}@example.com")),
            };
            let hash = hashed(&password, random()?).map_err(io::Error::other)?;
            let line = |text: Option<&str>| add(text.unwrap_or_default(), &entry, &hash).map(|text| (text, ())).map_err(io::Error::other);
            rewrite(&guests.file(), line)?;
            guests.people.push(Guest { user, group, password });
        }
        Ok(guests)
    }

    /// For `auth.users`.
    pub fn file(&self) -> PathBuf {
        self.directory.join("users")
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        // Left over, it harms nobody: the next demo has other passwords.
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// Sixty random bits, without characters that look like others.
fn word() -> io::Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let letters: Vec<char> = random::<12>()?.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
    Ok(letters.chunks(4).map(|part| part.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}

fn random<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes).map_err(|_| io::Error::other("this machine gives no random numbers"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::auth::file::read;

    #[test]
    fn the_demo_has_two_users_for_as_long_as_it_runs() {
        let (guests, others) = (Guests::invite().expect("invited"), Guests::invite().expect("invited"));
        assert!(guests.people[0].password != guests.people[1].password && guests.people[0].password != others.people[0].password);
        let found = read(&guests.file());
        assert_eq!(found.findings, []);
        let users = found.users.expect("readable");
        for Guest { user, group, password } in &guests.people {
            assert!(users.verify(user, password).expect("right").belongs(group));
        }
        let directory = guests.directory().to_owned();
        assert_eq!(fs::metadata(&directory).expect("there").mode() & 0o777, 0o700);
        drop(guests);
        assert!(!directory.exists());
    }
}
