//! How a request passes a route that somebody must sign in for: what is asked of it, and in which form it is asked.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Method};

use super::entrant::Entrant;
use super::identity::{Identity, Password};
use super::label::{Access, Groups, Mode};

/// A name and a password that came with a request (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basic {
    pub user: String,
    pub password: Password,
}

/// Who sends a request, as far as that is known without asking anybody.
#[derive(Clone, Debug)]
pub enum Who {
    Nobody,
    Known(Arc<Entrant>),
    /// Somebody says so, and nobody has checked it lately.
    Claims(Basic),
}

/// What was found out about a request since it was first looked at.
#[derive(Clone, Debug, Default)]
pub struct Proved {
    /// Who it is.
    pub entrant: Option<Arc<Entrant>>,
    /// The route's authorizer let it pass.
    pub authorized: bool,
}

/// What becomes of a request on a route that may ask for a sign-in.
#[derive(Clone, Debug)]
pub enum Passage {
    /// Nobody is asked.
    Open,
    Enter(Arc<Entrant>),
    /// Somebody has to say who they are.
    Challenge,
    /// Signed in, and in none of the groups that may enter.
    Refused(Arc<Identity>),
    /// Whoever knows users has to be asked.
    Verify(Basic),
    /// The route's authorizer has to be asked.
    Authorize(Option<Arc<Entrant>>),
}

/// Decides by the labels and by who sends the request; `who` is only asked where that matters. `path` is canonical.
pub fn passage(access: &Access, path: &str, proved: &Proved, who: impl FnOnce() -> Who) -> Passage {
    if !access.asks() || bypasses(&access.bypass, path) {
        return Passage::Open;
    }
    let authorize = |entrant| if access.forward_auth.is_some() && !proved.authorized { Some(Passage::Authorize(entrant)) } else { None };
    if access.groups.is_none() && access.basic_auth.is_empty() {
        return authorize(None).unwrap_or_else(|| proved.entrant.clone().map_or(Passage::Open, Passage::Enter));
    }
    let entrant = match proved.entrant.clone().map_or_else(who, Who::Known) {
        Who::Nobody => return Passage::Challenge,
        Who::Claims(basic) => return Passage::Verify(basic),
        Who::Known(entrant) => entrant,
    };
    match lets(access, &entrant) {
        true => authorize(Some(entrant.clone())).unwrap_or(Passage::Enter(entrant)),
        false => Passage::Refused(entrant.visitor.identity.clone()),
    }
}

/// Users of the route's own may; others where a group of theirs may.
fn lets(access: &Access, entrant: &Entrant) -> bool {
    match entrant.is_local() {
        true => !access.basic_auth.is_empty(),
        false => entrant.is_known() && may_enter(access, &entrant.visitor.identity),
    }
}

/// Is `identity`, whom the directory knows, in a group that may enter?
pub fn may_enter(access: &Access, identity: &Identity) -> bool {
    match &access.groups {
        None => false,
        Some(Groups::AnySignedIn) => true,
        Some(Groups::OneOf(groups)) => groups.keys().any(|group| identity.belongs(group)),
    }
}

/// Is the canonical `path` below one of `prefixes`, and would every server read it so? What laxer servers might take apart otherwise
/// is not let by.
fn bypasses(prefixes: &[String], path: &str) -> bool {
    const DOUBTFUL: [&str; 7] = ["//", "/.", ";", "\\", "%2F", "%5C", "%3B"];
    if prefixes.is_empty() || path.contains("%25") || DOUBTFUL.iter().any(|piece| path.contains(piece)) {
        return false;
    }
    prefixes.iter().any(|prefix| {
        let prefix = prefix.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The credentials of `Authorization: Basic`. `None` where there are none of that scheme, or they cannot be read: then nobody has said
/// who they are.
pub fn basic(headers: &HeaderMap) -> Option<Basic> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (scheme, coded) = line.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || coded.len() > 2048 {
        return None;
    }
    let text = zeroize::Zeroizing::new(STANDARD.decode(coded.trim()).ok()?);
    let (user, password) = std::str::from_utf8(&text).ok()?.split_once(':')?;
    let fine = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    (fine(user) && fine(password)).then(|| Basic { user: user.to_owned(), password: Password::new(password.to_owned()) })
}

/// In which form somebody is asked who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A person looks at pages: they are led to the one to sign in.
    Page,
    /// A page's own request: its browser must not open a window of its own for a password.
    Script,
    /// A program: HTTP Basic.
    Program,
    Grpc,
}

/// How to ask whoever sent this.
pub fn manner(mode: Mode, headers: &HeaderMap) -> Manner {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Manner::Grpc;
    }
    if mode == Mode::Basic {
        return Manner::Program;
    }
    match text("sec-fetch-mode") {
        Some("navigate") => Manner::Page,
        Some(_) => Manner::Script,
        None if headers.contains_key("x-requested-with") => Manner::Script,
        None if text("accept").is_some_and(|accept| accept.contains("text/html")) => Manner::Page,
        // Browsers that do not send Sec-Fetch-Mode, on a page's own behalf.
        None if text("user-agent").is_some_and(|agent| agent.starts_with("Mozilla/")) => Manner::Script,
        None => Manner::Program,
    }
}

/// `WWW-Authenticate` (RFC 9110, 11.6.1), which every 401 has. Browsers do not know the scheme `Cookie`, and so ask nobody.
pub fn challenge(manner: Manner, realm: &str) -> Option<HeaderValue> {
    let realm: String = realm.chars().filter(|letter| letter.is_ascii_graphic() && !matches!(letter, '"' | '\\')).collect();
    match manner {
        Manner::Program => HeaderValue::from_str(&format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")).ok(),
        Manner::Page | Manner::Script | Manner::Grpc => HeaderValue::from_str(&format!("Cookie realm=\"{realm}\"")).ok(),
    }
}

/// A page that was asked for can be asked for again after a detour; anything else would be lost on it.
pub fn can_be_asked_again(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}
