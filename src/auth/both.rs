//! A file of users and a directory server as one directory. Names that the file has are the file's alone, so that the accounts in it work
//! while the server is down, and nobody on the server can take their place.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::directory::{Directory, Unavailable};
use super::identity::{Identity, Password};

/// The file is asked first.
#[derive(Debug)]
pub struct Both {
    file: Option<Arc<dyn Directory>>,
    server: Option<Arc<dyn Directory>>,
}

impl Both {
    /// Either may be missing; without any, nobody is known.
    pub fn new(file: Option<Arc<dyn Directory>>, server: Option<Arc<dyn Directory>>) -> Both {
        Both { file, server }
    }

    /// Whoever answers for `user`. A file that gives no answer may have that name, so then nobody does.
    async fn answering(&self, user: &str) -> Result<Option<&dyn Directory>, Unavailable> {
        match (&self.file, &self.server) {
            (Some(file), None) => Ok(Some(&**file)),
            (Some(file), Some(_)) if file.look_up(user).await?.is_some() => Ok(Some(&**file)),
            (_, server) => Ok(server.as_deref()),
        }
    }
}

impl Directory for Both {
    fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            match self.answering(user).await? {
                Some(directory) => directory.verify(user, password).await,
                None => Ok(None),
            }
        }
        .boxed()
    }

    fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            let found = match &self.file {
                Some(file) => file.look_up(user).await?,
                None => None,
            };
            match (found, &self.server) {
                (None, Some(server)) => server.look_up(user).await,
                (found, _) => Ok(found),
            }
        }
        .boxed()
    }

    fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
        async move {
            let (mut known, mut failed) = (BTreeSet::new(), None);
            for directory in self.file.iter().chain(&self.server) {
                match directory.known(groups).await {
                    Ok(some) => known.extend(some),
                    Err(unavailable) => failed = failed.or(Some(unavailable)),
                }
            }
            match failed {
                Some(unavailable) if known.len() < groups.len() => Err(unavailable),
                _ => Ok(known),
            }
        }
        .boxed()
    }

    /// Can those be looked up of whom there are most? The users of the file always can.
    fn looks_up(&self) -> bool {
        self.server.as_ref().is_none_or(|server| server.looks_up())
    }
}

#[cfg(test)]
mod tests {
    use super::super::htpasswd::tests::password;
    use super::*;

    /// Users whose password is the directory's name, and who are in the group of that name.
    #[derive(Debug)]
    struct Known(&'static str, &'static [&'static str], bool);

    impl Known {
        fn answer<T>(&self, answer: T) -> Result<T, Unavailable> {
            if self.2 { Ok(answer) } else { Err(Unavailable(format!("{} is down", self.0))) }
        }

        fn identity(&self, user: &str) -> Option<Identity> {
            self.1.contains(&user).then(|| Identity::new(user, [self.0.to_owned()]))
        }
    }

    impl Directory for Known {
        fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
            let found = self.identity(user).filter(|_| password.reveal() == self.0);
            std::future::ready(self.answer(found)).boxed()
        }

        fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
            std::future::ready(self.answer(self.identity(user))).boxed()
        }

        fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
            std::future::ready(self.answer(groups & &BTreeSet::from([self.0.to_owned()]))).boxed()
        }
    }

    fn both(file_answers: bool, server_answers: bool) -> Both {
        Both::new(
            Some(Arc::new(Known("file", &["root", "ada"], file_answers))),
            Some(Arc::new(Known("server", &["ada", "bob"], server_answers))),
        )
    }

    #[tokio::test]
    async fn names_of_the_file_are_the_files_alone() {
        // user, password, whether file and server answer, whether they are let in; None: nobody knows
        for (user, clear, file, server, wanted) in [
            ("root", "file", true, true, Some(true)),
            ("root", "file", true, false, Some(true)),
            ("ada", "file", true, false, Some(true)),
            ("ada", "server", true, true, Some(false)),
            ("bob", "server", true, true, Some(true)),
            ("bob", "server", true, false, None),
            ("eve", "server", true, true, Some(false)),
            ("bob", "server", false, true, None),
            ("root", "file", false, true, None),
        ] {
            let both = both(file, server);
            let found = both.verify(user, &password(clear)).await;
            assert_eq!(found.map(|found| found.is_some()).ok(), wanted, "{user} {clear} {file} {server}");
            let found = both.look_up(user).await;
            assert_eq!(found.is_ok(), wanted.is_some(), "{user} {clear} {file} {server}");
        }
    }

    #[tokio::test]
    async fn groups_are_those_of_both() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(both(true, true).known(&set(&["file", "server", "typo"])).await, Ok(set(&["file", "server"])));
        assert_eq!(both(true, false).known(&set(&["file"])).await, Ok(set(&["file"])), "the one that is down is not needed");
        assert!(both(true, false).known(&set(&["file", "typo"])).await.is_err(), "the one that is down may have it");
        assert!(both(false, true).known(&set(&["file"])).await.is_err());
        let alone = Both::new(None, None);
        assert_eq!((alone.look_up("ada").await, alone.verify("ada", &password("x")).await), (Ok(None), Ok(None)));
    }
}
