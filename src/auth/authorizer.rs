//! An authorizer beside ours (`forward-auth`): what it is told of a request, and what its answer means. Its word closes as ours does:
//! whatever is not clearly a yes lets nobody in.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::cookie::{has_ours, without_ours};
use super::identity::Identity;
use super::reply::Reply;
use super::visitor::Visitor;
use crate::config::Auth;

/// Bytes of its answer.
pub const LARGEST: usize = 64 * 1024;

/// A request that it is asked about.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub host: &'a str,
    /// Path and query, as they go to the service.
    pub target: &'a str,
    pub secure: bool,
    /// `X-Forwarded-For` as the service gets it.
    pub chain: &'a str,
    pub request_id: &'a str,
    /// What we know of whoever signed in.
    pub told: &'a [(HeaderName, HeaderValue)],
    /// `Authorization` was meant for us.
    pub consumed: bool,
}

/// What its answer means.
#[derive(Debug)]
pub enum Word {
    Pass {
        /// Whom it says that it let in.
        visitor: Option<Visitor>,
        /// Cookies of its own for the client.
        cookies: Vec<HeaderValue>,
    },
    /// The client gets its answer.
    Answer(Reply),
    /// It said nothing that can be relied on.
    Closed(String),
}

/// Fields that say how the client talks to us, what its body is, or which part of an answer it wants: none of the authorizer's business.
const KEPT_BACK: [HeaderName; 17] = [
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::EXPECT,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::ACCEPT_ENCODING,
    header::COOKIE,
];

/// Names that only the edge may use towards it, in whatever spelling.
const OURS: [&str; 9] =
    ["x-forwarded-", "x-original-", "x-real-ip", "x-request-id", "forwarded", "keep-alive", "proxy-", "x-rewrite-", "sec-websocket-"];

/// The fields of the question: the client's own, the request's line as other proxies write it, and who signed in with us.
pub fn question(asked: &Asked<'_>, auth: &Auth) -> HeaderMap {
    let named = named_by_connection(asked.headers);
    let goes = |name: &HeaderName| {
        let plain = name.as_str().replace('_', "-");
        let ours = auth.headers().any(|own| own.as_str() == plain) || OURS.iter().any(|own| plain.starts_with(own));
        !(ours || KEPT_BACK.contains(name) || named.contains(&plain) || (asked.consumed && *name == header::AUTHORIZATION))
    };
    let mut fields = HeaderMap::with_capacity(asked.headers.len() + 8);
    for (name, value) in asked.headers.iter().filter(|(name, _)| goes(name)) {
        fields.append(name.clone(), value.clone());
    }
    for line in asked.headers.get_all(header::COOKIE) {
        let left = if has_ours(line.as_bytes()) { without_ours(line.as_bytes()) } else { Some(line.as_bytes().into()) };
        if let Some(left) = left.and_then(|left| HeaderValue::from_bytes(&left).ok()) {
            fields.append(header::COOKIE, left);
        }
    }
    let proto = if asked.secure { "https" } else { "http" };
    let url = format!("{proto}://{}{}", asked.host, asked.target);
    let line = [
        ("x-forwarded-method", asked.method.as_str()),
        ("x-forwarded-proto", proto),
        ("x-forwarded-host", asked.host),
        ("x-forwarded-uri", asked.target),
        ("x-forwarded-for", asked.chain),
        ("x-original-method", asked.method.as_str()),
        ("x-original-url", &url),
        ("x-request-id", asked.request_id),
    ];
    for (name, value) in line {
        // A path may hold letters beyond ASCII as they were sent.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            fields.insert(HeaderName::from_static(name), value);
        }
    }
    fields.extend(asked.told.iter().cloned());
    fields
}

fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(header::CONNECTION).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// Fields of its answer that describe its connection, or would speak for us.
const NOT_PASSED_ON: [HeaderName; 7] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::STRICT_TRANSPORT_SECURITY,
    header::DATE,
];

/// The meaning of an answer.
pub fn word(status: StatusCode, headers: &HeaderMap, body: &[u8], auth: &Auth) -> Word {
    if status.is_success() {
        let cookies = headers.get_all(header::SET_COOKIE).into_iter().cloned().collect();
        return Word::Pass { visitor: visitor(headers, auth), cookies };
    }
    if status.is_server_error() || status.is_informational() {
        return Word::Closed(format!("it answered {}", status.as_u16()));
    }
    let Ok(body) = std::str::from_utf8(body) else { return Word::Closed("its answer is no text".to_owned()) };
    let mut reply = Reply::new(status, "authorizer");
    let named = named_by_connection(headers);
    let passed = |name: &HeaderName| {
        !NOT_PASSED_ON.contains(name)
            && name != "keep-alive"
            && !name.as_str().starts_with("proxy-")
            && !named.contains(&name.as_str().to_owned())
    };
    reply.headers = headers.iter().filter(|(name, _)| passed(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    body.clone_into(&mut reply.body);
    Word::Answer(reply)
}

/// Whom it says to have let in, in the fields by which services are told.
fn visitor(headers: &HeaderMap, auth: &Auth) -> Option<Visitor> {
    let said = |name: &Option<HeaderName>| headers.get(name.as_ref()?).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let user = said(&auth.user_header).filter(|user| !user.is_empty())?;
    let groups = said(&auth.groups_header).unwrap_or_default().split(',').map(str::trim).filter(|group| !group.is_empty());
    let mut identity = Identity::new(user, groups.map(str::to_owned));
    identity.name = said(&auth.name_header).map(str::to_owned);
    identity.email = said(&auth.email_header).map(str::to_owned);
    Some(Visitor::new(Arc::new(identity), auth))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        map
    }

    fn asked(headers: &HeaderMap) -> Asked<'_> {
        Asked {
            method: &Method::POST,
            headers,
            host: "a.test",
            target: "/x?y=1",
            secure: true,
            chain: "192.0.2.1",
            request_id: "id",
            told: &[],
            consumed: false,
        }
    }

    #[test]
    fn it_is_told_of_the_request_and_nothing_that_the_client_made_up() {
        let sent = map(&[
            ("cookie", "a=1; __Host-skep=secret; b=2"),
            ("authorization", "Bearer x"),
            ("accept", "text/html"),
            ("content-length", "5"),
            ("content-type", "text/plain"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-forwarded-uri", "/open"),
            ("x_forwarded_uri", "/open"),
            ("x-original-url", "https://evil/"),
            ("x_forwarded_user", "root"),
            ("x-forwarded-groups", "admins"),
            ("range", "bytes=0-1"),
        ]);
        let fields = question(&asked(&sent), &Auth::default());
        let got = |name: &str| fields.get_all(name).into_iter().map(|value| value.to_str().expect("text")).collect::<Vec<_>>().join("|");
        for (name, value) in [
            ("cookie", "a=1; b=2"),
            ("authorization", "Bearer x"),
            ("accept", "text/html"),
            ("content-length", ""),
            ("content-type", ""),
            ("connection", ""),
            ("x-hop", ""),
            ("range", ""),
            ("x-forwarded-uri", "/x?y=1"),
            ("x_forwarded_uri", ""),
            ("x-forwarded-method", "POST"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.test"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-original-url", "https://a.test/x?y=1"),
            ("x_forwarded_user", ""),
            ("x-forwarded-groups", ""),
        ] {
            assert_eq!(got(name), value, "{name}");
        }
        let consumed = Asked { consumed: true, ..asked(&sent) };
        assert!(!question(&consumed, &Auth::default()).contains_key("authorization"));
    }

    #[test]
    fn only_a_clear_yes_is_one() {
        let headers = map(&[
            ("x-forwarded-user", "ada"),
            ("x-forwarded-groups", "a, b"),
            ("set-cookie", "s=1"),
            ("location", "/login"),
            ("keep-alive", "5"),
        ]);
        for (status, wanted) in [
            (200, "pass"),
            (204, "pass"),
            (302, "answer"),
            (401, "answer"),
            (403, "answer"),
            (404, "answer"),
            (500, "closed"),
            (503, "closed"),
        ] {
            let word = word(StatusCode::from_u16(status).expect("a status"), &headers, b"body", &Auth::default());
            let is = match &word {
                Word::Pass { visitor, cookies } => {
                    let identity = &visitor.as_ref().expect("somebody").identity;
                    assert_eq!((identity.user.as_str(), identity.groups().count(), cookies.len()), ("ada", 2, 1));
                    "pass"
                }
                Word::Answer(reply) => {
                    assert_eq!((reply.status.as_u16(), reply.body.as_str(), reply.headers.len()), (status, "body", 4));
                    "answer"
                }
                Word::Closed(_) => "closed",
            };
            assert_eq!(is, wanted, "{status}");
        }
        assert!(matches!(word(StatusCode::FORBIDDEN, &headers, b"\xff", &Auth::default()), Word::Closed(_)));
        assert!(matches!(word(StatusCode::OK, &HeaderMap::new(), b"", &Auth::default()), Word::Pass { visitor: None, .. }));
    }
}
