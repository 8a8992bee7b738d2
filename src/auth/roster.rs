//! Who is signed in: the sessions, and credentials that were right a moment ago. Requests are recognised by it without asking anybody.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use super::accounts::Live;
use super::cookie::Cookie;
use super::entrant::{Entrant, Proof};
use super::gatekeeper::Caller;
use super::identity::Identity;
use super::keys::{Current, random};
use super::label::Access;
use super::passage::{Basic, Who, basic, may_enter};
use super::register::Register;
use super::seal::Ring;
use super::session::Token;
use super::token::{Signer, Tokens};
use super::verified::Verified;
use super::visitor::Visitor;

/// Sessions, the keys of their cookies, and credentials.
#[derive(Debug)]
pub struct Roster {
    pub register: Arc<Register>,
    pub keys: Arc<Current<Ring>>,
    pub verified: Verified,
    pub signer: Arc<Current<Signer>>,
    pub tokens: Tokens,
}

impl Roster {
    /// Who sends a request for a route with `access`. A cookie outranks credentials, which may be meant for the service.
    pub(super) fn who(&self, caller: &Caller<'_>, access: &Access) -> Who {
        if access.groups.is_some()
            && let Some(live) = self.session(caller)
        {
            let renewal = if live.renew { self.cookie(&live, caller) } else { None };
            let visitor = self.visitor(live.identity().clone(), caller);
            return Who::Known(Arc::new(Entrant { visitor, proof: Proof::Session(live), renewal }));
        }
        let Some(basic) = basic(caller.headers) else { return Who::Nobody };
        match self.remembered(access, &basic, caller) {
            Some(entrant) => Who::Known(entrant),
            None => Who::Claims(basic),
        }
    }

    /// `identity` as the services of the caller's host are told of it, with a signed token where one is wanted.
    pub(super) fn visitor(&self, identity: Arc<Identity>, caller: &Caller<'_>) -> Arc<Visitor> {
        let token = |name: HeaderName| {
            let token = self.signer.with(|signer| self.tokens.get(signer, &identity, caller.host, caller.now))?;
            Some((name, token))
        };
        let token = caller.auth.token_header.clone().and_then(token);
        let visitor = Visitor::new(identity, caller.auth);
        Arc::new(match token {
            Some((name, token)) => visitor.with(name, token),
            None => visitor,
        })
    }

    /// The live session of the request's cookie.
    pub(super) fn session(&self, caller: &Caller<'_>) -> Option<Live> {
        let mut cookies = Cookie::Session.values(caller.headers, caller.secure).peekable();
        cookies.peek()?;
        self.keys.with(|ring| cookies.find_map(|text| self.register.find(Token::open(ring, caller.host, text)?, caller.now)))
    }

    /// The same, where another process may have begun it a moment ago.
    pub(super) async fn session_of_any(&self, caller: &Caller<'_>) -> Option<Live> {
        if let Some(live) = self.session(caller) {
            return Some(live);
        }
        let token = self.keys.with(|ring| {
            let mut cookies = Cookie::Session.values(caller.headers, caller.secure);
            cookies.find_map(|text| Token::open(ring, caller.host, text))
        });
        self.register.find_new(token?, caller.now).await
    }

    /// `Set-Cookie` by which the browser holds `live` on this host; `None`: no cookie can be made.
    pub(super) fn cookie(&self, live: &Live, caller: &Caller<'_>) -> Option<HeaderValue> {
        let token = live.token(caller.now);
        let text = self.keys.with(|ring| token.seal(ring, caller.host, random()));
        let set = Cookie::Session.set(caller.secure, &text, Some(token.keep(caller.now, self.register.limits())));
        HeaderValue::from_str(&set).ok()
    }

    /// Who has these credentials, if they were verified lately.
    fn remembered(&self, access: &Access, basic: &Basic, caller: &Caller<'_>) -> Option<Arc<Entrant>> {
        let known = |realm: &[u8; 32], proof| {
            let identity = self.verified.get(self.verified.seal(realm, &basic.user, &basic.password))?;
            Some(Arc::new(Entrant { visitor: self.visitor(identity, caller), proof, renewal: None }))
        };
        let own = access.realm.as_ref().and_then(|realm| known(realm, Proof::Local));
        own.or_else(|| access.groups.as_ref().and_then(|_| known(DIRECTORY, Proof::Credentials)))
    }

    /// May the session that let `live` in to `access` go on there?
    fn stands(&self, live: &Live, access: &Access) -> bool {
        self.register.again(live, Timestamp::now()).is_some_and(|live| may_enter(access, live.identity()))
    }

    /// Ends once it may not.
    pub(super) async fn outlasted(&self, live: &Live, access: &Access) {
        while self.stands(live, access) {
            let left = live.ends.duration_since(Timestamp::now()).try_into().unwrap_or(Duration::ZERO);
            // Either way it is looked at again. A change that leaves the right stays told, hence the pause.
            _ = timeout(Duration::max(left, PAUSE), live.changed()).await;
            if self.stands(live, access) {
                sleep(PAUSE).await;
            }
        }
    }
}

/// Between two looks at a session that goes on.
const PAUSE: Duration = Duration::from_secs(1);

/// The realm of credentials that the directory knows.
pub const DIRECTORY: &[u8; 32] = &[0; 32];
