//! Who is signed in, as far as that is known without asking anybody: what requests are recognised by. One for the whole process; reading
//! it waits for nobody.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;

use super::accounts::{Accounts, Live};
use super::cookie::Cookie;
use super::entrant::{Entrant, Proof};
use super::label::Access;
use super::passage::{Basic, Who, basic, may_enter};
use super::seal::{NONCE_BYTES, Ring};
use super::session::{Limits, Token};
use super::verified::Verified;
use super::visitor::Visitor;
use crate::config::Auth;

/// What a request shows of who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    pub headers: &'a HeaderMap,
    /// Lower case, without port.
    pub host: &'a str,
    /// The client used HTTPS.
    pub secure: bool,
    /// Random bytes, for whoever needs some.
    pub nonce: fn() -> [u8; NONCE_BYTES],
}

/// Sessions, and credentials that were right a moment ago.
#[derive(Debug)]
pub struct Roster {
    pub accounts: Arc<Accounts>,
    pub verified: Verified,
    /// `None`: no cookie can be read or made.
    pub ring: Arc<ArcSwapOption<Ring>>,
    /// Can users be looked up without their passwords?
    pub looks_up: bool,
}

impl Roster {
    /// Who sends a request for a route with `access`. A cookie outranks credentials, which may be meant for the service.
    pub fn who(&self, access: &Access, presented: &Presented<'_>, auth: &Auth, now: Timestamp) -> Who {
        if access.groups.is_some()
            && let Some(live) = self.session(presented, auth, now)
        {
            let renewal = live.renew.then(|| self.cookie(&live, presented, auth, now)).flatten();
            let visitor = Arc::new(Visitor::new(live.identity().clone(), auth));
            return Who::Known(Arc::new(Entrant { visitor, proof: Proof::Session(live), renewal }));
        }
        let Some(basic) = basic(presented.headers) else { return Who::Nobody };
        match self.remembered(access, &basic, auth) {
            Some(entrant) => Who::Known(entrant),
            None => Who::Claims(basic),
        }
    }

    /// The live session of the request's cookie.
    pub fn session(&self, presented: &Presented<'_>, auth: &Auth, now: Timestamp) -> Option<Live> {
        let mut cookies = Cookie::Session.values(presented.headers, presented.secure).peekable();
        cookies.peek()?;
        let (ring, limits) = (self.ring.load(), self.limits(auth));
        let ring = ring.as_deref()?;
        cookies.find_map(|text| self.accounts.find(Token::open(ring, presented.host, text)?, now, &limits))
    }

    /// `Set-Cookie` by which the browser holds `live` on this host; `None`: no cookie can be made.
    pub fn cookie(&self, live: &Live, presented: &Presented<'_>, auth: &Auth, now: Timestamp) -> Option<HeaderValue> {
        let token = live.token(now);
        let text = token.seal(self.ring.load().as_deref()?, presented.host, (presented.nonce)());
        let set = Cookie::Session.set(presented.secure, &text, Some(token.keep(now, &self.limits(auth))));
        HeaderValue::from_str(&set).ok()
    }

    /// Who has these credentials, if they were verified lately.
    fn remembered(&self, access: &Access, basic: &Basic, auth: &Auth) -> Option<Arc<Entrant>> {
        if let Some(realm) = access.realm()
            && let Some(identity) = self.verified.get(realm, &basic.user, &basic.password)
        {
            return Some(Arc::new(Entrant { visitor: Arc::new(Visitor::new(identity, auth)), proof: Proof::Local, renewal: None }));
        }
        let identity = access.groups.as_ref().and_then(|_| self.verified.get(DIRECTORY, &basic.user, &basic.password))?;
        Some(Arc::new(Entrant { visitor: Arc::new(Visitor::new(identity, auth)), proof: Proof::Credentials, renewal: None }))
    }

    /// May whoever was let in to `access` as `entrant` still be there?
    pub fn stands(&self, entrant: &Entrant, access: &Access, auth: &Auth, now: Timestamp) -> bool {
        let Proof::Session(live) = &entrant.proof else { return true };
        let Some(live) = self.accounts.again(live, now, &self.limits(auth)) else { return false };
        Arc::ptr_eq(live.identity(), &entrant.visitor.identity) || may_enter(access, live.identity())
    }

    pub fn limits(&self, auth: &Auth) -> Limits {
        Limits::new(auth, self.looks_up)
    }
}

/// The realm of credentials that the directory knows.
pub const DIRECTORY: &str = "";
