//! The upstream side of a request: how the backend is dialled, and the request as the backend shall see it.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version};
use pingora_core::protocols::ALPN;
use pingora_core::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use crate::state::Route;
use crate::traffic::HeaderEdit;
use crate::upstream::{Backend, Scheme, Timeouts};

/// How long an idle upstream connection is kept for the next request.
const UPSTREAM_KEEP_ALIVE: Duration = Duration::from_secs(30);
/// An upgraded connection may be silent this long, or for the route's idle time if that is longer.
pub(super) const UPGRADED_IDLE: Duration = Duration::from_secs(3600);
/// Streams of one HTTP/2 connection to an upstream.
const UPSTREAM_STREAMS: usize = 100;

/// The backend as pingora dials it, with this route's limits.
pub(super) fn peer(backend: &Backend, timeouts: &Timeouts, session: &Session) -> HttpPeer {
    let secure = backend.scheme.is_secure();
    // rustls cannot parse an empty name; an address as text means that no SNI is sent.
    let name = if backend.sni.is_empty() { backend.address.ip().to_string() } else { backend.sni.to_string() };
    let mut peer = HttpPeer::new(backend.address, secure, if secure { name } else { String::new() });
    let options = &mut peer.options;
    options.alpn = match backend.scheme {
        Scheme::Http | Scheme::Https | Scheme::Tcp => ALPN::H1,
        Scheme::H2c | Scheme::Grpc | Scheme::Grpcs => ALPN::H2,
    };
    options.connection_timeout = Some(timeouts.connect);
    options.total_connection_timeout = Some(timeouts.connect * if secure { 2 } else { 1 });
    options.idle_timeout = Some(UPSTREAM_KEEP_ALIVE);
    options.max_h2_streams = UPSTREAM_STREAMS;
    options.write_timeout = Some(timeouts.idle);
    let longest = timeouts.response.max(timeouts.idle);
    options.read_timeout = Some(timeouts.request.map_or(longest, |whole| whole.min(longest)));
    if session.is_upgrade_req() {
        options.read_timeout = Some(timeouts.idle.max(UPGRADED_IDLE));
        if upgrades_to_other_than_http(&session.req_header().headers) {
            options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Preserve;
        }
    }
    peer
}

/// Any protocol but HTTP/2 itself may be switched to: an `h2c` tunnel would carry requests that nobody routed or checked.
fn upgrades_to_other_than_http(headers: &HeaderMap) -> bool {
    let mut tokens = headers.get_all(header::UPGRADE).iter().flat_map(|line| line.to_str().unwrap_or("h2c").split(','));
    !tokens.any(|token| {
        let token = token.trim().to_ascii_lowercase();
        token.starts_with("h2") || token.starts_with("http/") || token == "tls" || token.starts_with("tls/")
    })
}

/// Puts the route's path into the upstream's request. Returns the stripped prefix.
pub(super) fn rewrite(request: &mut RequestHeader, route: &Route, path: &str, query: &str) -> Result<Option<String>> {
    let rewritten = route.traffic.rewrite(path);
    let (path, prefix) = match &rewritten {
        Some((path, prefix)) => (path.as_str(), prefix.clone()),
        None => (path, None),
    };
    // Of an absolute form, pingora keeps the whole for the wire, and its path alone in the URI.
    if request.uri.path() == path && request.uri.scheme().is_none() && request.raw_path().starts_with(b"/") {
        return Ok(prefix);
    }
    if request.uri.path() == "*" && rewritten.is_none() {
        return Ok(prefix);
    }
    let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let bad = |error: &dyn std::fmt::Display| Error::explain(ErrorType::InvalidHTTPHeader, format!("rewritten path: {error}"));
    let path_and_query = text.parse::<http::uri::PathAndQuery>().map_err(|error| bad(&error))?;
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query);
    if request.version != Version::HTTP_2 {
        // Origin form towards the upstream, also where the client used the absolute form.
        (parts.scheme, parts.authority) = (None, None);
    }
    request.set_uri(Uri::from_parts(parts).map_err(|error| bad(&error))?);
    Ok(prefix)
}

/// Carries out header edits by `set`; `None` removes.
pub(super) fn apply(edits: &[HeaderEdit], mut set: impl FnMut(&HeaderName, Option<&HeaderValue>) -> Result<()>) -> Result<()> {
    for edit in edits {
        match edit {
            HeaderEdit::Set(name, value) => set(name, Some(value))?,
            HeaderEdit::Remove(name) => set(name, None)?,
        }
    }
    Ok(())
}
