//! What to do with one request: pure decisions from the state, the request's head and the clock.
//! The shell in `proxy/pingora.rs` calls these functions at pingora's phases and makes no choice of its own.

pub mod answer;
mod attempt;
pub mod authority;
mod authorize;
mod bell;
pub mod chunks;
mod client;
pub mod clock;
mod compress;
pub mod conduit;
mod deadline;
mod dial;
mod direct;
mod dispatch;
mod download;
mod duplex;
mod exchange;
mod fetch;
pub mod forwarded;
mod frames;
pub mod handshake;
mod head;
mod http2;
mod idle;
pub mod lean;
pub mod limit;
mod mirror;
mod multiplexed;
mod page;
pub mod passthrough;
mod peer;
pub mod pingora;
mod places;
mod plain;
pub mod preamble;
mod pump;
mod questions;
mod rate;
mod relay;
mod reply;
mod rest;
mod secure;
mod side;
pub mod socket;
mod standing;
pub mod stream;
mod trace;
mod transform;
mod tunnel;
mod upload;
pub mod wire;

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use jiff::Timestamp;

use crate::auth::entrance::{self, Entrance};
use crate::auth::entrant::Entrant;
use crate::auth::passage::{Basic, Manner, Passage, Proved, Who, can_be_asked_again, manner, passage};
use crate::auth::{self, Verdict};
use crate::certificate::Mode;
use crate::config;
use crate::route::Head;
use crate::state::{Action, Route, State};
use crate::telemetry::Record;
use crate::traffic::{Cors, Maintenance};
use crate::upstream::{Balance, Pool};

use self::answer::Answer;
use self::forwarded::Origin;
use self::handshake::Handshake;

/// Who wants to know of finished requests: the access log and the metrics.
pub trait Observer: Send + Sync {
    fn finished(&self, record: &Record<'_>);
}

/// The outcome of routing.
#[derive(Clone, Debug)]
pub enum Routed {
    /// To one of the route's backends, for whoever signed in.
    Forward(Arc<Route>, Option<Arc<Entrant>>),
    /// We answer ourselves, on behalf of a route where one matched.
    Answer(Option<Arc<Route>>, Answer),
    /// Somebody else has to be asked first.
    Ask(Option<Arc<Route>>, Question),
}

/// What a decision waits for.
#[derive(Clone, Debug)]
pub enum Question {
    /// Are the credentials right, and whose are they?
    Verify(Basic),
    /// Does the route's authorizer let the request pass?
    Authorize(Option<Arc<Entrant>>),
    /// Somebody is to be led to the host at which everybody signs in.
    Depart,
    /// The request is for the edge itself.
    Entrance(Entrance),
}

/// What is seen of a request.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    pub head: &'a Head<'a>,
    pub origin: &'a Origin,
    pub handshake: Option<&'a Handshake>,
    pub now: Timestamp,
}

/// The way of one request from its head to a route or an answer. Order matters: access is decided before anything
/// of the route shows, redirects come before the upstream is chosen, and nobody is asked for a password in clear where the route is for
/// HTTPS. `proved` is what was found out since the head was first looked at; `who` says who sends it, as far as that is known.
pub fn route(state: &State, seen: &Seen<'_>, proved: &Proved, who: impl FnOnce(&Route) -> Who) -> Routed {
    let Seen { head, origin, handshake, now } = *seen;
    if let Some(routed) = entrance(state, head, origin, handshake) {
        return routed;
    }
    let Some(route) = state.table.find(head) else {
        return Routed::Answer(None, Answer::NotFound);
    };
    let answer = |answer| Routed::Answer(Some(route.clone()), answer);
    match auth::admit(&route.access, head.client) {
        Verdict::Pass => {}
        Verdict::Forbidden => return answer(Answer::Forbidden),
        Verdict::Closed(_) => return answer(Answer::Closed),
    }
    if let Some(other) = secure::answer(&state.config, route, head, origin, handshake, permanent(head.method)) {
        return answer(other);
    }
    let maintenance = route.traffic.maintenance.as_ref().filter(|maintenance| maintenance.applies(now, head.client));
    if let Some(maintenance) = maintenance.filter(|maintenance| maintenance.groups.is_empty()) {
        return answer(Answer::Maintenance(seconds_left(maintenance, now)));
    }
    // A preflight never has credentials (Fetch standard, 4.8), and shows nothing but what may be asked.
    let preflight = route.traffic.cors.is_some() && is_preflight(head);
    let passage = if preflight { Passage::Open } else { passage(&route.access, head.path, proved, || who(route)) };
    let entrant = match passage {
        Passage::Open => None,
        Passage::Enter(entrant) => Some(entrant),
        Passage::Challenge => return challenge(state, route, head, origin),
        Passage::Refused(identity) => {
            let by_page = route.access.groups.is_some() && route.access.mode == auth::Mode::Form;
            let again = by_page.then(|| entrance::sign_in_as_other(head.path, head.query));
            return answer(Answer::Outside { identity, service: route.service.clone(), host: head.host.to_owned(), again });
        }
        Passage::Verify(basic) => return Routed::Ask(Some(route.clone()), Question::Verify(basic)),
        Passage::Authorize(entrant) => return Routed::Ask(Some(route.clone()), Question::Authorize(entrant)),
    };
    let lets = |maintenance: &Maintenance| entrant.as_ref().is_some_and(|entrant| entrant.is_in_one_of(&maintenance.groups));
    if let Some(maintenance) = maintenance.filter(|maintenance| !lets(maintenance)) {
        return answer(Answer::Maintenance(seconds_left(maintenance, now)));
    }
    if let Action::RedirectHost(host) = &route.action {
        let https = matches!(route.tls.mode, Some(Mode::Redirect | Mode::Only | Mode::Passthrough)) && !origin.secure;
        let to =
            if https { secure::https_url(&state.config, host, head.path, head.query) } else { url(origin, host, head.path, head.query) };
        return answer(Answer::Redirect(permanent(head.method), to));
    }
    if let Some(redirect) = &route.traffic.redirect
        && let Some(to) = route.traffic.redirect(&url(origin, head.host, head.path, head.query))
    {
        let status = if redirect.permanent { permanent(head.method) } else { temporary(head.method) };
        return answer(Answer::Redirect(status, to));
    }
    if preflight {
        return answer(Answer::Preflight);
    }
    Routed::Forward(route.clone(), entrant)
}

/// What becomes of a request for one of the edge's own addresses; `None`: it is none.
fn entrance(state: &State, head: &Head<'_>, origin: &Origin, handshake: Option<&Handshake>) -> Option<Routed> {
    let home = head.path == "/" && state.config.auth.host.as_deref() == Some(head.host) && state.table.find(head).is_none();
    let rest = if home { "sign-in" } else { head.path.strip_prefix(entrance::PATH)? };
    let secure = state.sign_ins.find(head.host)?;
    let answer = if !origin.trusted && handshake.is_some_and(|handshake| !handshake.speaks_for(head.host)) {
        Answer::Misdirected
    } else if secure && !origin.secure {
        match can_be_asked_again(head.method) {
            true => Answer::Redirect(StatusCode::FOUND, secure::https_url(&state.config, head.host, head.path, head.query)),
            // What came in clear was seen by others already; it must not seem fine.
            false => Answer::SecureOnly,
        }
    } else {
        match Entrance::of(rest) {
            Some(entrance) => return Some(Routed::Ask(None, Question::Entrance(entrance))),
            None => Answer::NotFound,
        }
    };
    Some(Routed::Answer(None, answer))
}

/// Nobody has said who they are, and somebody has to.
fn challenge(state: &State, route: &Arc<Route>, head: &Head<'_>, origin: &Origin) -> Routed {
    let people = route.access.groups.is_some();
    let mode = if people { route.access.mode } else { auth::Mode::Basic };
    let (status, query) = if can_be_asked_again(head.method) { (StatusCode::FOUND, head.query) } else { (StatusCode::SEE_OTHER, "") };
    let answer = match manner(mode, head.headers) {
        // Over HTTPS from the first step on: the code that brings somebody back must not come in clear.
        Manner::Page if people && !origin.secure && state.sign_ins.find(head.host) == Some(true) => {
            Answer::Redirect(status, secure::https_url(&state.config, head.host, head.path, query))
        }
        Manner::Page if state.config.auth.host.as_deref().is_some_and(|host| host != head.host) && state.sign_ins.names(head.host) => {
            return Routed::Ask(Some(route.clone()), Question::Depart);
        }
        Manner::Page => Answer::Redirect(status, entrance::sign_in(head.path, query)),
        manner => Answer::Unauthorized(manner, head.host.to_owned()),
    };
    Routed::Answer(Some(route.clone()), answer)
}

/// Methods with a body keep it on 308 and 307; old clients know 301 and 302.
fn permanent(method: &Method) -> StatusCode {
    if method == Method::GET || method == Method::HEAD { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT }
}

fn temporary(method: &Method) -> StatusCode {
    if method == Method::GET || method == Method::HEAD { StatusCode::FOUND } else { StatusCode::TEMPORARY_REDIRECT }
}

/// How long a maintenance still takes, in seconds; `None` when no end was given.
fn seconds_left(maintenance: &Maintenance, now: Timestamp) -> Option<u64> {
    maintenance.until.map(|until| u64::try_from(until.as_second() - now.as_second()).unwrap_or(0).max(1))
}

/// The URL as the client sees it; the port is written only where it is not the scheme's own.
fn url(origin: &Origin, host: &str, path: &str, query: &str) -> String {
    let (scheme, default) = if origin.secure { ("https", 443) } else { ("http", 80) };
    let port = if origin.port == default { String::new() } else { format!(":{}", origin.port) };
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{host}{port}{path}{mark}{query}")
}

fn is_preflight(head: &Head<'_>) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains_key(header::ORIGIN)
        && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The CORS headers of an answer to `request` (Fetch standard, 3.2). Empty for origins that are not on the list.
pub fn cors_headers(cors: &Cors, request: &HeaderMap, preflight: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(header::VARY, HeaderValue::from_static("Origin"))];
    let Some(origin) = request.get(header::ORIGIN) else { return headers };
    let any = cors.origins.iter().any(|allowed| allowed == "*");
    if !origin.to_str().is_ok_and(|origin| cors.allows(origin)) {
        return headers;
    }
    if any {
        headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")));
    } else {
        headers.push((header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
        headers.push((header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")));
    }
    if preflight {
        let echo = [
            (header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_ALLOW_METHODS),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, header::ACCESS_CONTROL_ALLOW_HEADERS),
        ];
        for (asked, allowed) in echo {
            headers.extend(request.get(asked).map(|value| (allowed, value.clone())));
        }
        headers.push((header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")));
    }
    headers
}

/// What of a request's head is counted against the limits of `[proxy]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSize {
    /// Bytes of the target: path and query, or whatever stands in their place.
    pub target: usize,
    /// Header fields.
    pub fields: usize,
    /// Bytes of the target and the fields.
    pub bytes: usize,
}

/// What is wrong with a head before any route is looked for. Every path to a request calls this, so that all have the same limits.
pub fn refuse(version: Version, headers: &HeaderMap, has_authority: bool, size: HeadSize, limits: &config::Proxy) -> Option<Answer> {
    if size.target > limits.max_uri_bytes {
        return Some(Answer::Refused(StatusCode::URI_TOO_LONG, "The request's path and query are too long."));
    }
    if size.bytes > limits.max_header_bytes {
        return Some(Answer::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's header is too large."));
    }
    if size.fields > limits.max_headers {
        return Some(Answer::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's header has too many fields."));
    }
    if version != Version::HTTP_2
        && let Some(answer) = badly_framed(headers)
    {
        return Some(answer);
    }
    if version == Version::HTTP_11 && !has_authority && !headers.contains_key(header::HOST) {
        return Some(Answer::Refused(StatusCode::BAD_REQUEST, "An HTTP/1.1 request needs a Host header."));
    }
    None
}

/// A message of HTTP/1 whose end an upstream might see elsewhere (RFC 9112, 6.3): only one length of digits alone, or the one coding
/// that everybody knows, goes on.
fn badly_framed(headers: &HeaderMap) -> Option<Answer> {
    let refused = |why| Some(Answer::Refused(StatusCode::BAD_REQUEST, why));
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => None,
        (Some(_), Some(_)) => refused("The request has both Content-Length and Transfer-Encoding."),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => None,
        (Some(_), None) => Some(Answer::Refused(StatusCode::NOT_IMPLEMENTED, "The request has a Transfer-Encoding other than chunked.")),
        (None, Some(length)) if lengths.next().is_none() && length.as_bytes().iter().all(u8::is_ascii_digit) => None,
        (None, Some(_)) => refused("The request's Content-Length is not one number."),
    }
}

/// Host names are compared in lower case, without port and without the dot of a fully qualified name. `None`: not a host.
pub fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    let bare = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            if !(after.is_empty() || after.starts_with(':')) {
                return None;
            }
            inside
        }
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    let fine = bare.len() <= 255 && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte));
    let lower = !bare.bytes().any(|byte| byte.is_ascii_uppercase());
    fine.then(|| if lower { Cow::Borrowed(bare) } else { Cow::Owned(bare.to_ascii_lowercase()) })
}

/// The value of a cookie (RFC 6265, 4.2.1); the first one where there are several.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// What the pool's balance policy wants to know of the request.
pub fn affinity_key<'a>(pool: &Pool, headers: &'a HeaderMap) -> Option<&'a str> {
    match &pool.balance {
        Balance::HashHeader(name) => headers.get(name.as_str()).and_then(|value| value.to_str().ok()),
        Balance::HashCookie(name) => cookie(headers, name),
        _ => None,
    }
}

/// The cookie that keeps a client with its task. The token says nothing of the inside.
pub fn sticky_cookie(name: &str, token: &str, secure: bool) -> Option<HeaderValue> {
    let secure = if secure { "; Secure" } else { "" };
    HeaderValue::from_str(&format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax{secure}")).ok()
}

/// Header fields that belong to one connection only (RFC 9110, 7.6.1), with those that `Connection` names.
pub fn hop_by_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    const FIXED: [&str; 4] = ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"];
    let mut names: Vec<HeaderName> =
        FIXED.iter().filter(|name| headers.contains_key(**name)).map(|name| HeaderName::from_static(name)).collect();
    for line in headers.get_all(header::CONNECTION) {
        for token in line.to_str().unwrap_or("").split(',').map(str::trim) {
            let framing =
                ["close", "keep-alive", "upgrade", "transfer-encoding", "content-length"].iter().any(|own| token.eq_ignore_ascii_case(own));
            if !framing && let Ok(name) = HeaderName::from_bytes(token.as_bytes()) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_normalised_or_refused() {
        let table = [
            ("a.test", Some("a.test")),
            ("A.Test:8080", Some("a.test")),
            ("a.test.", Some("a.test")),
            ("[::1]:80", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::1]x", None),
            ("a b", None),
            ("a/b", None),
            ("user@a.test", None),
            ("", Some("")),
        ];
        for (sent, host) in table {
            assert_eq!(host_of(sent).as_deref(), host, "{sent}");
        }
    }

    #[test]
    fn only_one_way_of_framing_goes_on() {
        // lengths, codings, status
        let table: [(&[&'static str], &[&'static str], Option<u16>); 14] = [
            (&[], &[], None),
            (&["5"], &[], None),
            (&[], &["chunked"], None),
            (&[], &["Chunked"], None),
            (&["5"], &["chunked"], Some(400)),
            (&["5", "5"], &[], Some(400)),
            (&["5, 5"], &[], Some(400)),
            (&["+5"], &[], Some(400)),
            (&["0x5"], &[], Some(400)),
            (&[], &["chunked", "chunked"], Some(501)),
            (&[], &["gzip, chunked"], Some(501)),
            (&[], &["identity"], Some(501)),
            (&[], &["xchunked"], Some(501)),
            (&[], &[""], Some(501)),
        ];
        for (lengths, codings, status) in table {
            let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("a.test"))]);
            lengths.iter().for_each(|length| _ = headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(length)));
            codings.iter().for_each(|coding| _ = headers.append(header::TRANSFER_ENCODING, HeaderValue::from_static(coding)));
            let size = HeadSize { target: 1, fields: headers.len(), bytes: 100 };
            let refused = refuse(Version::HTTP_11, &headers, false, size, &config::Config::default().proxy);
            assert_eq!(refused.map(|answer| answer.status().as_u16()), status, "{lengths:?} {codings:?}");
        }
    }

    #[test]
    fn the_url_names_a_port_only_where_it_must() {
        let mut origin = forwarded::origin(
            &forwarded::Connection { peer: "1.2.3.4:5".parse().unwrap(), local: "10.0.0.1:80".parse().unwrap(), secure: false },
            &HeaderMap::new(),
            &[],
            "a.test",
            "id".into(),
        );
        assert_eq!(url(&origin, "b.test", "/x", "q=1"), "http://b.test/x?q=1");
        origin.port = 8080;
        assert_eq!(url(&origin, "b.test", "/", ""), "http://b.test:8080/");
        origin.secure = true;
        origin.port = 443;
        assert_eq!(url(&origin, "b.test", "/", ""), "https://b.test/");
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; b=2"));
        headers.append(header::COOKIE, HeaderValue::from_static("c=3"));
        let table = [("a", Some("1")), ("b", Some("2")), ("c", Some("3")), ("d", None), ("", None)];
        for (name, value) in table {
            assert_eq!(cookie(&headers, name), value, "{name}");
        }
    }

    #[test]
    fn only_listed_origins_are_let_in() {
        let cors = Cors { origins: vec!["https://a.test".into()] };
        let asked = |origin: &'static str| HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static(origin))]);
        let allowed = |headers: Vec<(HeaderName, HeaderValue)>| {
            headers.into_iter().find(|(name, _)| name == header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|(_, value)| value)
        };
        assert_eq!(allowed(cors_headers(&cors, &asked("https://a.test"), false)).unwrap(), "https://a.test");
        assert_eq!(allowed(cors_headers(&cors, &asked("https://evil.test"), false)), None);
        let any = Cors { origins: vec!["*".into()] };
        assert_eq!(allowed(cors_headers(&any, &asked("https://b.test"), false)).unwrap(), "*");
    }

    #[test]
    fn connection_names_are_hop_by_hop_but_framing_stays() {
        let headers = HeaderMap::from_iter([
            (header::CONNECTION, HeaderValue::from_static("close, X-Secret, Content-Length")),
            (HeaderName::from_static("keep-alive"), HeaderValue::from_static("timeout=5")),
        ]);
        assert_eq!(hop_by_hop(&headers), vec![HeaderName::from_static("keep-alive"), HeaderName::from_static("x-secret")]);
    }
}
