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

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;
    use crate::auth::entrant::Proof;
    use crate::auth::identity::folded;
    use crate::auth::visitor::Visitor;
    use crate::config::Auth;

    fn entrant(user: &str, groups: &[&str], proof: Proof) -> Arc<Entrant> {
        let identity = Identity::new(user, groups.iter().map(|group| (*group).to_owned()));
        let visitor = Arc::new(Visitor::new(Arc::new(identity), &Auth::default()));
        Arc::new(Entrant { visitor, proof, renewal: None })
    }

    fn staff() -> Access {
        Access { groups: Some(Groups::OneOf([(folded("Staff"), "Staff".to_owned())].into())), ..Access::default() }
    }

    fn word(passage: Passage) -> &'static str {
        match passage {
            Passage::Open => "open",
            Passage::Enter(_) => "enter",
            Passage::Challenge => "challenge",
            Passage::Refused(_) => "refused",
            Passage::Verify(_) => "verify",
            Passage::Authorize(_) => "authorize",
        }
    }

    #[test]
    fn who_comes_in() {
        let claims = Basic { user: "ada".to_owned(), password: Password::new("x".to_owned()) };
        let authorized = Access { forward_auth: Some("http://a.test/".to_owned()), ..staff() };
        let anybody = Access { groups: Some(Groups::AnySignedIn), ..Access::default() };
        let member = || Who::Known(entrant("ada", &["staff"], Proof::Credentials));
        for (access, who, wanted) in [
            (Access::default(), Who::Nobody, "open"),
            (staff(), Who::Nobody, "challenge"),
            (staff(), Who::Claims(claims), "verify"),
            (staff(), member(), "enter"),
            (staff(), Who::Known(entrant("bob", &["sales"], Proof::Credentials)), "refused"),
            (staff(), Who::Known(entrant("ada", &["staff"], Proof::Local)), "refused"),
            (staff(), Who::Known(entrant("ada", &["staff"], Proof::Authorizer)), "refused"),
            (anybody, Who::Known(entrant("bob", &[], Proof::Credentials)), "enter"),
            (authorized.clone(), Who::Nobody, "challenge"),
            (authorized, member(), "authorize"),
        ] {
            assert_eq!(word(passage(&access, "/", &Proved::default(), || who)), wanted, "{access:?}");
        }
        let only = Access { forward_auth: Some("http://a.test/".to_owned()), ..Access::default() };
        assert_eq!(word(passage(&only, "/", &Proved::default(), || Who::Nobody)), "authorize");
        assert_eq!(word(passage(&only, "/", &Proved { authorized: true, ..Proved::default() }, || Who::Nobody)), "open");
    }

    #[test]
    fn only_plain_paths_below_a_prefix_are_let_by() {
        let access = Access { bypass: vec!["/hooks".to_owned(), "/a/".to_owned()], ..staff() };
        for (path, open) in [
            ("/hooks", true),
            ("/hooks/", true),
            ("/hooks/x y", true),
            ("/hooks/%20", true),
            ("/a", true),
            ("/a/b", true),
            ("/hooksx", false),
            ("/Hooks", false),
            ("/", false),
            ("/hooks//x", false),
            ("//hooks", false),
            ("/hooks/..;/admin", false),
            ("/hooks;/admin", false),
            ("/hooks/%2F..%2Fadmin", false),
            ("/hooks/%5C..%5Cadmin", false),
            ("/hooks/\\..\\admin", false),
            ("/hooks/%252e%252e/admin", false),
            ("/hooks/.x", false),
        ] {
            assert_eq!(word(passage(&access, path, &Proved::default(), || Who::Nobody)) == "open", open, "{path}");
        }
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, text) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(text).expect("a value"));
        }
        map
    }

    #[test]
    fn everybody_is_asked_in_a_way_that_they_understand() {
        let html = ("accept", "text/html,*/*;q=0.8");
        for (mode, lines, wanted) in [
            (Mode::Form, &[html][..], Manner::Page),
            (Mode::Form, &[html, ("sec-fetch-mode", "navigate")], Manner::Page),
            (Mode::Form, &[html, ("sec-fetch-mode", "cors")], Manner::Script),
            (Mode::Form, &[("sec-fetch-mode", "websocket")], Manner::Script),
            (Mode::Form, &[html, ("x-requested-with", "XMLHttpRequest")], Manner::Script),
            (Mode::Form, &[("accept", "application/json"), ("user-agent", "Mozilla/5.0")], Manner::Script),
            (Mode::Form, &[("accept", "*/*"), ("user-agent", "curl/8")], Manner::Program),
            (Mode::Form, &[], Manner::Program),
            (Mode::Form, &[("content-type", "application/grpc+proto")], Manner::Grpc),
            (Mode::Basic, &[html], Manner::Program),
            (Mode::Basic, &[("content-type", "application/grpc")], Manner::Grpc),
        ] {
            assert_eq!(manner(mode, &headers(lines)), wanted, "{mode:?} {lines:?}");
        }
        assert_eq!(challenge(Manner::Program, "a\"\r\\b.test").expect("a value"), "Basic realm=\"ab.test\", charset=\"UTF-8\"");
    }

    #[test]
    fn credentials_are_read_once_and_whole() {
        let of = |text: &str| basic(&headers(&[("authorization", &format!("Basic {}", STANDARD.encode(text)))]));
        assert_eq!(of("ada:a:b").map(|basic| (basic.user, basic.password.reveal().to_owned())), Some(("ada".into(), "a:b".into())));
        for text in ["ada", "ada:", ":secret", "a\nb:secret", "ada:sec\0ret", ""] {
            assert_eq!(of(text), None, "{text:?}");
        }
        let good = format!("Basic {}", STANDARD.encode("ada:secret"));
        assert_eq!(basic(&headers(&[("authorization", &good), ("authorization", &good)])), None);
        assert_eq!(basic(&headers(&[("authorization", "Bearer YTpi")])), None);
    }

    proptest! {
        #[test]
        fn any_authorization_is_survived(text in "[ -~]{0,60}") {
            if let Some(basic) = basic(&headers(&[("authorization", &text)])) {
                prop_assert!(!basic.user.is_empty() && !basic.password.is_empty());
            }
        }

        #[test]
        fn what_is_let_by_is_below_its_prefix_however_it_is_read(path in "/[a-z./;%25F\\\\]{0,20}") {
            let access = Access { bypass: vec!["/a".to_owned()], ..staff() };
            if let Some(canonical) = crate::route::canonical_path(&path)
                && word(passage(&access, &canonical, &Proved::default(), || Who::Nobody)) == "open"
            {
                let decoded = percent_encoding::percent_decode_str(&canonical).decode_utf8_lossy().into_owned();
                prop_assert!(decoded == "/a" || decoded.starts_with("/a/"), "{path}");
                prop_assert!(!decoded.split('/').any(|part| part == ".." || part == "."), "{path}");
            }
        }
    }
}
