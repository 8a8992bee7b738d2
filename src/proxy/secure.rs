//! What a route's TLS settings mean for one request: to HTTPS with it, or not at all, or only for those who proved who they are.

use http::StatusCode;

use super::answer::Answer;
use super::forwarded::Origin;
use super::handshake::Handshake;
use crate::certificate::Mode;
use crate::certificate::challenge;
use crate::config::Config;
use crate::route::Head;
use crate::state::{Action, Route};

/// `Some`: the request is not to be served here, and this is said instead.
pub(super) fn answer(
    config: &Config,
    route: &Route,
    head: &Head<'_>,
    origin: &Origin,
    handshake: Option<&Handshake>,
    permanent: StatusCode,
) -> Option<Answer> {
    // A proxy in front that is trusted may have asked for another host than its client; it answers for that.
    if !origin.trusted && handshake.is_some_and(|handshake| !handshake.speaks_for(head.host)) {
        return Some(Answer::Misdirected);
    }
    if let Some(authority) = &route.tls.client_ca {
        let proved = handshake.and_then(|handshake| handshake.client.as_ref());
        match proved {
            Some(client) if client.authority == *authority => {}
            // Over a connection for another host; the right one will ask for a certificate.
            _ if handshake.is_some_and(|handshake| handshake.asked.as_ref() != Some(authority)) => return Some(Answer::Misdirected),
            _ if origin.secure => return Some(Answer::NoCertificate),
            _ => {}
        }
    }
    let secured = origin.secure;
    match route.tls.mode.unwrap_or(Mode::Both) {
        // In clear nobody can prove who they are.
        Mode::Both | Mode::Off if !secured && route.tls.client_ca.is_some() => Some(Answer::SecureOnly),
        Mode::Both => None,
        // Whoever serves the host may be obtaining a certificate too, and is asked over HTTP only.
        Mode::Redirect if !secured && head.path.starts_with(challenge::PATH) => None,
        // Its answer leads to HTTPS anyway, and to the right host at once.
        Mode::Redirect | Mode::Passthrough if !secured && matches!(route.action, Action::RedirectHost(_)) => None,
        Mode::Redirect | Mode::Passthrough if !secured => {
            Some(Answer::Redirect(permanent, https_url(config, head.host, head.path, head.query)))
        }
        Mode::Only if !secured => Some(Answer::SecureOnly),
        Mode::Redirect | Mode::Only => None,
        // Its requests are not for us to read; a client that gets here took another host's connection.
        Mode::Passthrough => Some(Answer::Misdirected),
        Mode::Off if handshake.is_some() => Some(Answer::NotFound),
        Mode::Off => None,
    }
}

/// Where the same is served over HTTPS; the port is named where it is not HTTPS's own.
pub(super) fn https_url(config: &Config, host: &str, path: &str, query: &str) -> String {
    let port = match config.https.port() {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let mark = if query.is_empty() { "" } else { "?" };
    format!("https://{host}{port}{path}{mark}{query}")
}
