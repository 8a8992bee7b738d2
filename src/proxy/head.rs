//! Reading a request's head off pingora's session: the target, its size, its framing, the connection that it came on.

use std::net::SocketAddr;

use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Uri};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::HeadSize;
use super::answer::Answer;
use super::forwarded::Connection;
use super::stream::PerConnection;
use crate::route;

/// Everything of a head that routing needs, read once.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: String,
}

const BAD_TARGET: Answer = Answer::Refused(StatusCode::BAD_REQUEST, "The request's target cannot be understood.");
const BAD_HOST: Answer = Answer::Refused(StatusCode::BAD_REQUEST, "The request's host is not a host name.");

pub(super) fn target(request: &RequestHeader) -> std::result::Result<Target, Answer> {
    if !request.raw_path_is_utf8() || !has_a_path(&request.method, request.raw_path()) {
        return Err(BAD_TARGET);
    }
    let authority = match request.uri.authority() {
        Some(authority) => authority.as_str(),
        None => match request.headers.get(header::HOST) {
            Some(host) => host.to_str().map_err(|_| BAD_HOST)?,
            None => "",
        },
    };
    Target::new(authority, request.uri.path(), request.uri.query())
}

/// Is it one of the forms that say a path (RFC 9112, 3.2)? pingora takes any other text for `/` and would send it on as it came, for
/// the upstream to find a path in it: `GET admin`.
fn has_a_path(method: &Method, target: &[u8]) -> bool {
    let absolute = |scheme: &str| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme.as_bytes()));
    match *method {
        // It is refused for what it is.
        Method::CONNECT => true,
        Method::OPTIONS if target == b"*" => true,
        _ => target.starts_with(b"/") || absolute("http://") || absolute("https://"),
    }
}

impl Target {
    /// Of a request with one `Host` field and a target in origin form.
    pub(super) fn plain(headers: &HeaderMap, uri: &Uri) -> Result<Target, Answer> {
        let host = headers.get(header::HOST).map(|host| host.to_str().map_err(|_| BAD_HOST)).transpose()?;
        Target::new(host.unwrap_or(""), uri.path(), uri.query())
    }

    fn new(authority: &str, path: &str, query: Option<&str>) -> Result<Target, Answer> {
        let host = super::host_of(authority).ok_or(BAD_HOST)?.into_owned();
        let path = if matches!(path, "" | "*") { "/" } else { path };
        let path = route::canonical_path(path).ok_or(BAD_TARGET)?.into_owned();
        Ok(Target { host, path, query: query.unwrap_or("").to_owned() })
    }
}

pub(super) fn head_size(request: &RequestHeader) -> HeadSize {
    let target = request.raw_path().len();
    let fields = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    HeadSize { target, fields: request.headers.len(), bytes: target + fields }
}

/// pingora drops Content-Length where Transfer-Encoding is present too, before anybody else sees the head.
/// RFC 9112, 6.3: such a message ought to be handled as an error.
pub(super) fn had_two_framings(session: &Session) -> bool {
    let Some(session) = session.as_downstream().as_http1() else { return false };
    let is_length = |line: &[u8]| {
        let name = header::CONTENT_LENGTH.as_str();
        line.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name.as_bytes()))
    };
    session.req_header().headers.contains_key(header::TRANSFER_ENCODING)
        && session.get_headers_raw_bytes().split(|byte| *byte == b'\n').any(is_length)
}

pub(super) fn per_connection(session: &Session) -> Option<PerConnection> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest.user_data.as_ref()?.downcast_ref::<PerConnection>().cloned()
}

/// For a session that our own accept loop did not make.
pub(super) fn unknown_connection() -> Connection {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    Connection { peer: nowhere, local: nowhere, secure: false }
}
