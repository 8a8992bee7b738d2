//! Somebody who signed in, as one request has them: who it is, and by what they proved it.

use std::sync::Arc;

use http::HeaderValue;

use super::accounts::Live;
use super::visitor::Visitor;

/// Somebody who may be let in.
#[derive(Clone, Debug)]
pub struct Entrant {
    pub visitor: Arc<Visitor>,
    pub proof: Proof,
    /// The cookie that goes out with the answer, where the request's grows old.
    pub renewal: Option<HeaderValue>,
}

/// By what somebody proved who they are.
#[derive(Clone, Debug)]
pub enum Proof {
    /// A cookie.
    Session(Live),
    /// A name and a password, sent with the request itself.
    Credentials,
    /// The same, of a user of the route's own.
    Local,
    /// The word of the route's authorizer.
    Authorizer,
}

impl Entrant {
    /// A member of any of the directory's `groups` (folded)?
    pub fn is_in_one_of(&self, groups: &[String]) -> bool {
        self.is_known() && groups.iter().any(|group| self.visitor.identity.belongs(group))
    }

    /// Does a directory know them? It does not know a route's own users, nor whom an authorizer let in.
    pub fn is_known(&self) -> bool {
        matches!(self.proof, Proof::Session(_) | Proof::Credentials)
    }

    pub fn is_local(&self) -> bool {
        matches!(self.proof, Proof::Local)
    }

    /// Were the request's own credentials what proved it? They were for us then, and not for the service.
    pub fn by_credentials(&self) -> bool {
        matches!(self.proof, Proof::Credentials | Proof::Local)
    }
}
