//! The seam between signing in and whoever knows the users: a directory server, a file of users, or both.

use std::collections::BTreeSet;
use std::fmt;

use futures_util::future::BoxFuture;

use super::identity::{Identity, Password};

/// Whoever knows users and their groups. Every call ends in bounded time.
pub trait Directory: fmt::Debug + Send + Sync {
    /// Who `user` is, if `password` is theirs; `None` for a wrong password as for an unknown user, in about the same time. An empty
    /// password is never right.
    fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>>;

    /// Who `user` is now, without a password; `None` once they are gone or may not sign in any more.
    fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>>;

    /// Those of `groups` (folded) that there are.
    fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>>;

    /// Can [`Directory::look_up`] be asked at all? A directory that shows users to themselves only cannot; their sessions then end when
    /// they would have to be checked again.
    fn looks_up(&self) -> bool {
        true
    }
}

/// The directory gave no answer; why, as a sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);
