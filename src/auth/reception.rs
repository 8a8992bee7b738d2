//! The edge's own addresses: the forms by which people sign in and out.

use http::header::{ALLOW, CACHE_CONTROL, HeaderValue, LOCATION, SET_COOKIE};
use http::{Method, StatusCode};

use super::accounts::Live;
use super::browser::{self, Browser};
use super::code::{Code, Ticket};
use super::cookie::Cookie;
use super::entrance::{self, Entrance};
use super::form::{Fields, Form, Nonce, is_cross_site};
use super::gate::{Event, Gate};
use super::gatekeeper::{Destination, Visit};
use super::identity::{Password, folded};
use super::keys::random;
use super::page;
use super::page::Trouble;
use super::passage::{Basic, can_be_asked_again, may_enter};
use super::reply::Reply;
use super::target::target;

/// Where somebody is going who signs in.
pub(super) enum Bound {
    /// Back to a path of this host.
    Here(String),
    /// Over to the host that sent them; with the text that says so.
    There(Ticket, String),
}

impl Gate {
    pub(super) async fn reception(&self, entrance: Entrance, visit: &Visit<'_>) -> Reply {
        let asks = can_be_asked_again(visit.method);
        match entrance {
            Entrance::SignIn if asks => self.sign_in_page(visit).await,
            Entrance::SignIn if visit.method == Method::POST => self.sign_in(visit).await,
            Entrance::SignOut if asks => self.sign_out_page(visit, false),
            Entrance::SignOut if visit.method == Method::POST => self.sign_out(visit).await,
            Entrance::Enter if asks => self.enter(visit).await,
            Entrance::Keys if asks => {
                let keys = self.roster.signer.with(|signer| signer.jwks().to_string());
                Reply::new(StatusCode::OK, "keys").with_body("application/jwk-set+json", keys).with(CACHE_CONTROL, "public, max-age=3600")
            }
            Entrance::SignIn | Entrance::SignOut => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "refused").with(ALLOW, "GET, HEAD, POST"),
            Entrance::Enter | Entrance::Keys => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "refused").with(ALLOW, "GET, HEAD"),
        }
    }

    /// The page with the form; who is signed in already, and may go where they want to, goes there.
    async fn sign_in_page(&self, visit: &Visit<'_>) -> Reply {
        let parameter = |name: &str| {
            let mut pairs = form_urlencoded::parse(visit.query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        let (ticket, other) = (parameter("ticket"), parameter(entrance::OTHER).is_some());
        if visit.is_away() && ticket.is_none() {
            let reply = self.departure(visit, target(parameter("to").as_deref().unwrap_or("/")));
            return if other { as_other(reply) } else { reply };
        }
        let bound = self.bound(visit, parameter("to"), ticket);
        let Some(live) = self.roster.session_of_any(&visit.caller).await.filter(|_| !other) else {
            return self.form(visit, &bound, "", None);
        };
        let user = &live.identity().user;
        match (&bound, bound.destination(visit)) {
            (_, Some(there)) if !may_enter(&there.access, live.identity()) => {
                page::refused(bound.host(visit), Some(&there.service), user, Some(&again(&bound)))
            }
            (Bound::Here(to), None) if visit.is_home() && to == "/" => page::signed_in(visit.caller.host, user),
            _ => self.onward(visit, &bound, &live),
        }
    }

    /// The form, with a token for this browser.
    fn form(&self, visit: &Visit<'_>, bound: &Bound, user: &str, trouble: Option<Trouble>) -> Reply {
        let caller = &visit.caller;
        let known = form_nonce(visit);
        let nonce = known.unwrap_or_else(|| Nonce::new(random()));
        let token = self.roster.keys.with(|ring| Form::SignIn.token(ring, caller.host, &nonce, caller.now, random()));
        let destination = bound.destination(visit);
        let service = destination.as_ref().map(|there| there.service.as_str());
        let (to, ticket, host) = match bound {
            Bound::Here(to) => (to.as_str(), None, caller.host),
            Bound::There(ticket, text) => ("/", Some(text.as_str()), ticket.host()),
        };
        let mut reply = page::sign_in(&page::SignIn { service, host, user, trouble, to, ticket, token: &token });
        if known.is_none() {
            reply = reply.with(SET_COOKIE, &Cookie::Form.set(caller.secure, &nonce.text(), None));
        }
        reply
    }

    async fn sign_in(&self, visit: &Visit<'_>) -> Reply {
        let caller = &visit.caller;
        let Ok(fields) = Fields::parse(visit.body) else {
            return self.form(visit, &Bound::Here("/".to_owned()), "", Some(Trouble::Expired));
        };
        let bound = self.bound(visit, fields.to, fields.ticket);
        let user = fields.user.unwrap_or_default().trim().to_owned();
        let token = fields.token.unwrap_or_default();
        let ours = form_nonce(visit)
            .is_some_and(|nonce| self.roster.keys.with(|ring| Form::SignIn.accepts(ring, caller.host, &nonce, &token, caller.now)));
        if !ours || is_cross_site(caller.headers, authority(visit), caller.secure) {
            self.note(Event::Forged, caller, &user);
            return self.form(visit, &bound, &user, Some(Trouble::Expired));
        }
        if visit.is_away() && matches!(bound, Bound::Here(_)) {
            return self.departure(visit, "/");
        }
        let browser = self.browser(visit);
        let known = browser.as_ref().filter(|browser| browser.knows(&folded(&user))).map(|browser| browser.id);
        let basic = Basic { user, password: fields.password.unwrap_or_else(|| Password::new(String::new())) };
        let identity = match self.check(caller, &basic, known).await {
            Ok(identity) => identity,
            Err(denied) => return self.form(visit, &bound, &basic.user, Some(Trouble::of(denied))),
        };
        // Whatever session this browser had, nobody who knew of it has the new one.
        if let Some(old) = self.roster.session(caller) {
            self.roster.register.sign_out(&old.user, old.session).await;
        }
        let token = self.roster.register.sign_in((*identity).clone(), caller.now, random()).await;
        let live = token.and_then(|token| self.roster.register.find(token, caller.now));
        // Nobody has such a name, or it was signed out again in this moment.
        let Some(live) = live else { return self.form(visit, &bound, &basic.user, Some(Trouble::Unavailable)) };
        self.note(Event::SignedIn, caller, &identity.user);
        let browser = browser.unwrap_or_else(|| Browser::new(random())).with(&live.user);
        let sealed = self.roster.keys.with(|ring| browser.seal(ring, caller.host, random()));
        let mut reply = match bound.destination(visit) {
            Some(there) if !may_enter(&there.access, live.identity()) => {
                page::refused(bound.host(visit), Some(&there.service), &live.identity().user, Some(&again(&bound)))
            }
            _ => self.onward(visit, &bound, &live),
        };
        reply.headers.extend(self.roster.cookie(&live, caller).map(|cookie| (SET_COOKIE, cookie)));
        reply.with(SET_COOKIE, &Cookie::Browser.set(caller.secure, &sealed, Some(browser::LIFETIME)))
    }

    /// To where somebody wants to go who is signed in.
    fn onward(&self, visit: &Visit<'_>, bound: &Bound, live: &Live) -> Reply {
        match bound {
            Bound::Here(to) => Reply::see_other(to, "signed in"),
            Bound::There(ticket, _) => {
                let code = Code::new(ticket, &live.user, live.session, visit.caller.now, random());
                let text = self.roster.keys.with(|ring| code.seal(ring, ticket.host(), random()));
                Reply::see_other(&ticket.url(&text), "signed in")
            }
        }
    }

    /// Where a form or its page leads. A ticket that is none leads to the root of this host.
    fn bound(&self, visit: &Visit<'_>, to: Option<String>, ticket: Option<String>) -> Bound {
        let opened = ticket.filter(|_| visit.is_home()).and_then(|text| {
            let ticket = self.roster.keys.with(|ring| Ticket::open(ring, visit.caller.host, &text, visit.caller.now))?;
            Some(Bound::There(ticket, text))
        });
        opened.unwrap_or_else(|| Bound::Here(target(to.as_deref().unwrap_or("/")).to_owned()))
    }

    /// The browser, if somebody signed in there before.
    fn browser(&self, visit: &Visit<'_>) -> Option<Browser> {
        let caller = &visit.caller;
        let mut texts = Cookie::Browser.values(caller.headers, caller.secure);
        self.roster.keys.with(|ring| texts.find_map(|text| Browser::open(ring, caller.host, text)))
    }

    fn sign_out_page(&self, visit: &Visit<'_>, expired: bool) -> Reply {
        let caller = &visit.caller;
        let Some(live) = self.roster.session(caller) else { return page::signed_out(caller.host) };
        let known = form_nonce(visit);
        let nonce = known.unwrap_or_else(|| Nonce::new(random()));
        let form = Form::SignOut(live.session);
        let token = self.roster.keys.with(|ring| form.token(ring, caller.host, &nonce, caller.now, random()));
        let mut reply = page::sign_out(caller.host, &live.identity().user, &token, expired);
        if known.is_none() {
            reply = reply.with(SET_COOKIE, &Cookie::Form.set(caller.secure, &nonce.text(), None));
        }
        reply
    }

    async fn sign_out(&self, visit: &Visit<'_>) -> Reply {
        let caller = &visit.caller;
        let foreign = is_cross_site(caller.headers, authority(visit), caller.secure);
        let Some(live) = self.roster.session(caller) else {
            // Browsers send none of our cookies with another site's form, and would lose a good one by the answer to it.
            let dead = !foreign && Cookie::Session.values(caller.headers, caller.secure).next().is_some();
            let reply = page::signed_out(caller.host);
            return if dead { reply.with(SET_COOKIE, &Cookie::Session.delete(caller.secure)) } else { reply };
        };
        let fields = Fields::parse(visit.body).unwrap_or_default();
        let token = fields.token.unwrap_or_default();
        let form = Form::SignOut(live.session);
        let ours = form_nonce(visit)
            .is_some_and(|nonce| self.roster.keys.with(|ring| form.accepts(ring, caller.host, &nonce, &token, caller.now)));
        if !ours || foreign {
            self.note(Event::Forged, caller, &live.user);
            return self.sign_out_page(visit, true);
        }
        match fields.everywhere {
            true => {
                self.roster.register.sign_out_everywhere(&live.user).await;
                self.roster.verified.forget(&live.user);
                self.note(Event::SignedOutEverywhere, caller, &live.user);
            }
            false => {
                self.roster.register.sign_out(&live.user, live.session).await;
                self.note(Event::SignedOut, caller, &live.user);
            }
        }
        page::signed_out(caller.host).with(SET_COOKIE, &Cookie::Session.delete(caller.secure))
    }

    /// Leads somebody to the host at which everybody signs in, with a ticket back.
    pub(super) fn departure(&self, visit: &Visit<'_>, path: &str) -> Reply {
        let caller = &visit.caller;
        let (Some(home), Some(host)) = (&visit.home, &caller.auth.host) else { return page::unavailable(caller.host) };
        let known = nonce(visit, Cookie::Enter);
        // Several tabs leave at once: all of them come back with the same one.
        let nonce = known.unwrap_or_else(|| Nonce::new(random()));
        let authority = visit.back.split_once("://").map_or(caller.host, |(_, authority)| authority).to_owned();
        let ticket = Ticket { authority, path: target(path).to_owned(), secure: caller.secure, nonce: nonce.hash(), made: caller.now };
        let text = self.roster.keys.with(|ring| ticket.seal(ring, host, random()));
        let mut reply =
            Reply::new(StatusCode::FOUND, "not signed in").with(LOCATION, &format!("{home}{}sign-in?ticket={text}", entrance::PATH));
        if known.is_none() {
            reply = reply.with(SET_COOKIE, &Cookie::Enter.set(caller.secure, &nonce.text(), None));
        }
        reply
    }

    /// A code of the host at which everybody signs in: makes its session one of this host too.
    async fn enter(&self, visit: &Visit<'_>) -> Reply {
        let caller = &visit.caller;
        let code = form_urlencoded::parse(visit.query.as_bytes()).find(|(key, _)| key == "code").map(|(_, code)| code.into_owned());
        let nonce = nonce(visit, Cookie::Enter);
        let code = code.unwrap_or_default();
        let redeemed = self.roster.keys.with(|ring| self.codes.redeem(ring, caller.host, nonce.as_ref(), &code, caller.now));
        let found = redeemed.map_err(|refused| tracing::debug!(%refused, "a code is not taken")).ok();
        // The session may have begun a moment ago, in another process.
        let live = match &found {
            Some(code) => self.roster.register.find_told(&code.user, code.session, caller.now).await,
            None => None,
        };
        let Some((live, path)) = live.zip(found.map(|code| code.path)) else {
            self.note(Event::BadCode, caller, "");
            return page::bad_code(caller.host);
        };
        self.note(Event::Entered, caller, &live.identity().user);
        let mut reply = Reply::see_other(&path, "signed in");
        reply.headers.extend(self.roster.cookie(&live, caller).map(|cookie| (SET_COOKIE, cookie)));
        reply
    }
}

/// The same way, for somebody who wants to be somebody else there.
fn as_other(mut reply: Reply) -> Reply {
    for (_, value) in reply.headers.iter_mut().filter(|(name, _)| *name == LOCATION) {
        let to = value.to_str().map(|to| format!("{to}&{}=1", entrance::OTHER)).unwrap_or_default();
        // What was a field stays one: only letters were added.
        if let Ok(to) = HeaderValue::from_str(&to) {
            *value = to;
        }
    }
    reply
}

/// Where to sign in as somebody else, on the same way.
fn again(bound: &Bound) -> String {
    match bound {
        Bound::Here(to) => entrance::sign_in_as_other(to, ""),
        Bound::There(_, ticket) => format!("{}sign-in?ticket={ticket}&{}=1", entrance::PATH, entrance::OTHER),
    }
}

impl Bound {
    /// The host there.
    fn host<'a>(&'a self, visit: &'a Visit<'_>) -> &'a str {
        match self {
            Bound::Here(_) => visit.caller.host,
            Bound::There(ticket, _) => ticket.host(),
        }
    }

    /// The route there, if somebody has to sign in for it.
    fn destination(&self, visit: &Visit<'_>) -> Option<Destination> {
        match self {
            Bound::Here(to) => (visit.destination)(visit.caller.host, to),
            Bound::There(ticket, _) => (visit.destination)(ticket.host(), &ticket.path),
        }
    }
}

impl Visit<'_> {
    /// Does everybody sign in here?
    fn is_home(&self) -> bool {
        self.caller.auth.host.as_deref() == Some(self.caller.host)
    }

    /// Does everybody sign in elsewhere?
    fn is_away(&self) -> bool {
        self.home.is_some() && !self.is_home()
    }
}

/// The host as the client wrote it, with its port.
fn authority<'a>(visit: &'a Visit<'_>) -> &'a str {
    visit.base.split_once("://").map_or(visit.caller.host, |(_, authority)| authority)
}

fn form_nonce(visit: &Visit<'_>) -> Option<Nonce> {
    nonce(visit, Cookie::Form)
}

fn nonce(visit: &Visit<'_>, cookie: Cookie) -> Option<Nonce> {
    cookie.values(visit.caller.headers, visit.caller.secure).find_map(Nonce::parse)
}
