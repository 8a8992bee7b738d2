//! Our own answers: a small page for browsers, JSON for programs, plain text for curl, a status trailer for gRPC.
//! Each carries the request id, so that what a user sees can be found in the log.

use std::sync::Arc;

use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use maud::{DOCTYPE, PreEscaped, html};

use super::forwarded::X_REQUEST_ID;
use crate::auth::identity::Identity;
use crate::auth::page;
use crate::auth::passage::{Manner, challenge};
use crate::auth::reply::Reply;

/// Why we answer ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A request that cannot be understood or is not allowed to be: 400, 405, 414, 431.
    Refused(StatusCode, &'static str),
    /// No route for this host and path.
    NotFound,
    /// The client's address may not enter.
    Forbidden,
    /// 401: somebody has to say who they are, to the host; in which form they are asked.
    Unauthorized(Manner, String),
    /// 403: signed in, and in none of the groups that may enter.
    Outside {
        identity: Arc<Identity>,
        service: Arc<str>,
        host: String,
        /// Where to sign in as somebody else, if there is a page for that.
        again: Option<String>,
    },
    /// 503: whoever knows users gave no answer.
    NoDirectory,
    /// 429: too many sign-ins failed. Seconds until the next may be tried.
    TooManyTries(u64),
    /// What the edge itself or an authorizer says of a sign-in.
    Sign(Arc<Reply>),
    /// The route is closed because a label that protects it could not be honoured.
    Closed,
    /// No healthy task.
    Unavailable,
    /// 502: the upstream could not be reached or broke off.
    BadGateway,
    /// 504: the upstream took too long.
    Timeout,
    /// Switched off on purpose, perhaps with an end (seconds from now).
    Maintenance(Option<u64>),
    /// 301, 302, 307 or 308 to a place.
    Redirect(StatusCode, String),
    /// A CORS preflight; its headers are set by the caller.
    Preflight,
    /// 429: the caller asked too often. Seconds until it may ask again; so many requests within `window` seconds are allowed.
    RateLimited { retry: u64, burst: u32, window: u64 },
    /// 413: the request's body is longer than the route takes.
    TooLarge,
    /// 503: as many requests as the route takes are at work or waiting. Seconds.
    Busy(u64),
    /// 503: the service failed too often and is left alone for so many seconds.
    Broken(u64),
    /// 421: the host of the request is not the one that the connection was secured for.
    Misdirected,
    /// The route answers over HTTPS only.
    SecureOnly,
    /// The client has to show a certificate and did not.
    NoCertificate,
    /// What a certificate authority asked for to see that a host is ours.
    Challenge(String),
}

/// Seconds after which a client may try an unavailable service again.
const RETRY_SECONDS: u64 = 5;

impl Answer {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Answer::Refused(status, _) | Answer::Redirect(status, _) => *status,
            Answer::Sign(reply) => reply.status,
            Answer::Unauthorized(..) => StatusCode::UNAUTHORIZED,
            Answer::NotFound => StatusCode::NOT_FOUND,
            Answer::Forbidden | Answer::Outside { .. } => StatusCode::FORBIDDEN,
            Answer::Closed | Answer::Unavailable | Answer::Maintenance(_) => StatusCode::SERVICE_UNAVAILABLE,
            Answer::Busy(_) | Answer::Broken(_) => StatusCode::SERVICE_UNAVAILABLE,
            Answer::NoDirectory => StatusCode::SERVICE_UNAVAILABLE,
            Answer::RateLimited { .. } | Answer::TooManyTries(_) => StatusCode::TOO_MANY_REQUESTS,
            Answer::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Answer::BadGateway => StatusCode::BAD_GATEWAY,
            Answer::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Answer::Preflight => StatusCode::NO_CONTENT,
            Answer::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Answer::SecureOnly | Answer::NoCertificate => StatusCode::FORBIDDEN,
            Answer::Challenge(_) => StatusCode::OK,
        }
    }

    /// One sentence for the person who sees it. Says nothing about the inside of the network.
    pub fn sentence(&self) -> &'static str {
        match self {
            Answer::Refused(_, why) => why,
            Answer::NotFound => "Nothing is served at this address.",
            Answer::Forbidden => "Your network address may not enter here.",
            Answer::Unauthorized(..) => "Please sign in to enter here.",
            Answer::Outside { .. } => "You are signed in, but may not enter here.",
            Answer::NoDirectory => "Nobody can sign in at the moment. Please try again later.",
            Answer::TooManyTries(_) => "Too many sign-ins failed. Please wait a moment.",
            Answer::Sign(_) => "",
            Answer::Closed => "This service is closed until its protection is in place.",
            Answer::Unavailable => "The service is starting or stopped. Please try again in a moment.",
            Answer::BadGateway => "The service broke off or could not be reached.",
            Answer::Timeout => "The service took too long to answer.",
            Answer::Maintenance(_) => "The service is in maintenance.",
            Answer::Redirect(..) => "The page is at another address.",
            Answer::Preflight => "",
            Answer::RateLimited { .. } => "You ask too often. Please wait a moment.",
            Answer::TooLarge => "The request's body is too large.",
            Answer::Busy(_) => "The service is busy. Please try again in a moment.",
            Answer::Broken(_) => "The service fails too often and is given a pause. Please try again in a moment.",
            Answer::Misdirected => "This connection was made for another host.",
            Answer::SecureOnly => "This address answers over HTTPS only.",
            Answer::NoCertificate => "Your client has to show a certificate to enter here.",
            Answer::Challenge(_) => "",
        }
    }

    /// The word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Answer::Refused(..) => "refused",
            Answer::NotFound => "no route",
            Answer::Forbidden => "address not allowed",
            Answer::Unauthorized(..) => "not signed in",
            Answer::Outside { .. } => "not in a group that may enter",
            Answer::NoDirectory => "no directory",
            Answer::TooManyTries(_) => "too many failed sign-ins",
            Answer::Sign(reply) => reply.reason,
            Answer::Closed => "route closed",
            Answer::Unavailable => "no healthy task",
            Answer::BadGateway => "upstream failed",
            Answer::Timeout => "upstream timed out",
            Answer::Maintenance(_) => "maintenance",
            Answer::Redirect(..) => "redirect",
            Answer::Preflight => "preflight",
            Answer::RateLimited { .. } => "rate limited",
            Answer::TooLarge => "body too large",
            Answer::Busy(_) => "too many in flight",
            Answer::Broken(_) => "circuit open",
            Answer::Misdirected => "another host's connection",
            Answer::SecureOnly => "not over HTTPS",
            Answer::NoCertificate => "no client certificate",
            Answer::Challenge(_) => "challenge",
        }
    }

    fn retry_after(&self) -> Option<u64> {
        match self {
            Answer::Closed | Answer::Unavailable | Answer::NoDirectory => Some(RETRY_SECONDS),
            Answer::TooManyTries(seconds) => Some(*seconds),
            Answer::Maintenance(seconds) => Some(seconds.unwrap_or(60)),
            Answer::RateLimited { retry: seconds, .. } | Answer::Busy(seconds) | Answer::Broken(seconds) => Some(*seconds),
            _ => None,
        }
    }
}

/// What the client would like to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
    Grpc,
}

/// Head and body, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: String,
}

/// Writes `answer` in the form that the request's headers ask for.
pub fn render(answer: &Answer, method: &Method, request: &HeaderMap, request_id: &str) -> Rendered {
    let form = form(request);
    let mut headers = vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.push((X_REQUEST_ID, id));
    }
    if let Some(seconds) = answer.retry_after() {
        headers.push((RETRY_AFTER, HeaderValue::from(seconds)));
    }
    if let Answer::Unauthorized(manner, realm) = answer {
        headers.extend(challenge(*manner, realm).map(|value| (WWW_AUTHENTICATE, value)));
    }
    if let Answer::RateLimited { retry, burst, window } = answer {
        headers.extend(rate_limit(*retry, *burst, *window));
    }
    if let Answer::Redirect(_, to) = answer
        // Bytes, not text: a path may hold letters beyond ASCII as they were sent.
        && let Ok(to) = HeaderValue::from_bytes(to.as_bytes())
    {
        headers.push((LOCATION, to));
    }
    if *answer == Answer::Preflight {
        return Rendered { status: answer.status(), headers, body: String::new() };
    }
    if let Answer::Sign(reply) = answer {
        let (headers, body) = reply.sent(method, headers);
        return Rendered { status: reply.status, headers, body };
    }
    if form == Form::Grpc {
        return grpc(answer, headers);
    }
    if let Answer::Challenge(text) = answer {
        // RFC 8555, 8.3: the bytes and nothing else.
        headers.push((CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")));
        headers.push((CONTENT_LENGTH, HeaderValue::from(text.len())));
        let body = if *method == Method::HEAD { String::new() } else { text.clone() };
        return Rendered { status: answer.status(), headers, body };
    }
    if let (Answer::Outside { identity, service, host, again }, Form::Html) = (answer, form) {
        let reply = page::refused(host, Some(service), &identity.user, again.as_deref());
        let (headers, body) = reply.sent(method, headers);
        return Rendered { status: reply.status, headers, body };
    }
    let (kind, body) = match form {
        Form::Html => ("text/html; charset=utf-8", html_page(answer, request_id)),
        Form::Json => ("application/json", json(answer, request_id)),
        Form::Text | Form::Grpc => ("text/plain; charset=utf-8", text(answer, request_id)),
    };
    headers.push((CONTENT_TYPE, HeaderValue::from_static(kind)));
    headers.push((CONTENT_LENGTH, HeaderValue::from(body.len())));
    let body = if *method == Method::HEAD { String::new() } else { body };
    Rendered { status: answer.status(), headers, body }
}

/// How much a caller may ask, for programs (draft-ietf-httpapi-ratelimit-headers-10).
fn rate_limit(retry: u64, burst: u32, window: u64) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let policy = ("ratelimit-policy", format!("\"default\";q={burst};w={window}"));
    let left = ("ratelimit", format!("\"default\";r=0;t={retry}"));
    [policy, left].into_iter().filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?)))
}

/// May an error page stand for this answer to this request? Programs that say so get what they can read.
pub fn is_for_people(answer: &Answer, request: &HeaderMap) -> bool {
    !matches!(answer, Answer::NoDirectory | Answer::Sign(_))
        && answer.status().is_server_error()
        && matches!(form(request), Form::Html | Form::Text)
}

/// gRPC reads its status from headers of a 200 answer without body ("Trailers-Only", gRPC over HTTP/2).
fn grpc(answer: &Answer, mut headers: Vec<(HeaderName, HeaderValue)>) -> Rendered {
    let code = match answer.status().as_u16() {
        400 | 431 | 414 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        413 | 429 => 8,
        504 => 4,
        _ => 14,
    };
    headers.push((CONTENT_TYPE, HeaderValue::from_static("application/grpc")));
    headers.push((HeaderName::from_static("grpc-status"), HeaderValue::from(code)));
    headers.push((HeaderName::from_static("grpc-message"), HeaderValue::from_static(answer.reason())));
    Rendered { status: StatusCode::OK, headers, body: String::new() }
}

fn form(request: &HeaderMap) -> Form {
    let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    if request.get(CONTENT_TYPE).is_some_and(is_grpc) {
        return Form::Grpc;
    }
    let accept = request.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let position = |kind: &str| accept.split(',').position(|entry| entry.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(kind));
    match (position("text/html"), position("application/json").or_else(|| position("application/problem+json"))) {
        (Some(html), Some(json)) if json < html => Form::Json,
        (Some(_), _) => Form::Html,
        (None, Some(_)) => Form::Json,
        (None, None) => Form::Text,
    }
}

fn text(answer: &Answer, request_id: &str) -> String {
    let status = answer.status();
    format!("{} {}\n{}\nrequest {request_id}\n", status.as_u16(), status.canonical_reason().unwrap_or(""), answer.sentence())
}

fn json(answer: &Answer, request_id: &str) -> String {
    let status = answer.status();
    let value = serde_json::json!({
        "status": status.as_u16(),
        "error": status.canonical_reason().unwrap_or(""),
        "message": answer.sentence(),
        "request_id": request_id,
    });
    format!("{value}\n")
}

const STYLE: &str = "*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;\
font:16px/1.5 system-ui,sans-serif;background:#f6f5f1;color:#2b2a27}main{max-width:30rem;padding:2rem}\
h1{font-size:3.5rem;line-height:1;margin:0;color:#b7791f}h2{font-size:1.25rem;margin:.5rem 0 1rem}\
p{margin:.5rem 0}small{color:#6b675e;font-family:ui-monospace,monospace;word-break:break-all}a{color:inherit}\
@media(prefers-color-scheme:dark){body{background:#1d1c1a;color:#e8e6e1}h1{color:#e0a94a}small{color:#9c978c}}";

fn html_page(answer: &Answer, request_id: &str) -> String {
    let status = answer.status();
    let name = status.canonical_reason().unwrap_or("");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="robots" content="noindex";
                title { (status.as_u16()) " " (name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (status.as_u16()) }
                    h2 { (name) }
                    p { (answer.sentence()) }
                    @if let Answer::Redirect(_, to) = answer { p { a href=(to) { (to) } } }
                    p { small { "request " (request_id) } }
                }
            }
        }
    }
    .into_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(accept: &str, kind: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        }
        headers
    }

    fn header<'a>(rendered: &'a Rendered, name: &str) -> Option<&'a str> {
        rendered.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_str().unwrap())
    }

    #[test]
    fn everybody_gets_the_form_they_asked_for() {
        let table = [
            ("text/html,application/xhtml+xml,*/*;q=0.8", "", "text/html; charset=utf-8"),
            ("application/json", "", "application/json"),
            ("application/json, text/html", "", "application/json"),
            ("*/*", "", "text/plain; charset=utf-8"),
            ("", "", "text/plain; charset=utf-8"),
            ("*/*", "application/grpc+proto", "application/grpc"),
        ];
        for (accept, kind, expected) in table {
            let rendered = render(&Answer::NotFound, &Method::GET, &asked(accept, kind), "r1");
            assert_eq!(header(&rendered, "content-type"), Some(expected), "{accept}");
            assert_eq!(header(&rendered, "x-request-id"), Some("r1"));
        }
    }

    #[test]
    fn the_request_id_is_in_every_body_and_is_escaped() {
        for accept in ["text/html", "application/json", "*/*"] {
            let rendered = render(&Answer::BadGateway, &Method::GET, &asked(accept, ""), "id-42");
            assert!(rendered.body.contains("id-42"), "{accept}");
            assert_eq!(header(&rendered, "content-length"), Some(rendered.body.len().to_string().as_str()));
        }
        let evil = Answer::Redirect(StatusCode::FOUND, "https://a/\"><script>".to_owned());
        assert!(!render(&evil, &Method::GET, &asked("text/html", ""), "r").body.contains("<script>"));
    }

    #[test]
    fn no_healthy_task_says_when_to_come_back() {
        let rendered = render(&Answer::Unavailable, &Method::GET, &asked("", ""), "r");
        assert_eq!((rendered.status.as_u16(), header(&rendered, "retry-after")), (503, Some("5")));
        let rendered = render(&Answer::Maintenance(Some(90)), &Method::GET, &asked("", ""), "r");
        assert_eq!((rendered.status.as_u16(), header(&rendered, "retry-after")), (503, Some("90")));
    }

    #[test]
    fn a_redirect_always_says_where_to() {
        for to in ["http://a.test/", "http://a.test/\u{e4}?q=\u{fc}"] {
            let rendered = render(&Answer::Redirect(StatusCode::FOUND, to.to_owned()), &Method::GET, &asked("", ""), "r");
            let place = rendered.headers.iter().find(|(name, _)| name == LOCATION).expect("a place");
            assert_eq!(place.1.as_bytes(), to.as_bytes());
        }
    }

    #[test]
    fn head_gets_the_length_but_no_body() {
        let rendered = render(&Answer::NotFound, &Method::HEAD, &asked("", ""), "r");
        assert!(rendered.body.is_empty() && header(&rendered, "content-length") != Some("0"));
    }

    #[test]
    fn who_asks_too_often_is_told_when_and_how_much() {
        let limited = Answer::RateLimited { retry: 2, burst: 200, window: 10 };
        let rendered = render(&limited, &Method::GET, &asked("", ""), "r");
        assert_eq!((rendered.status.as_u16(), header(&rendered, "retry-after")), (429, Some("2")));
        assert_eq!(header(&rendered, "ratelimit-policy"), Some("\"default\";q=200;w=10"));
        assert_eq!(header(&rendered, "ratelimit"), Some("\"default\";r=0;t=2"));
        let rendered = render(&limited, &Method::POST, &asked("", "application/grpc"), "r");
        assert_eq!((rendered.status.as_u16(), header(&rendered, "grpc-status")), (200, Some("8")));
    }

    #[test]
    fn grpc_is_told_in_its_own_way() {
        let rendered = render(&Answer::Unavailable, &Method::POST, &asked("", "application/grpc"), "r");
        assert_eq!((rendered.status.as_u16(), header(&rendered, "grpc-status")), (200, Some("14")));
    }
}
