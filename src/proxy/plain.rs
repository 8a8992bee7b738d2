//! Which requests the lean paths serve: those that need no more than bytes passed on.

use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::header::HeaderMap;

use super::Routed;
use super::answer::Answer;
use super::exchange::Exchange;
use super::lean::Lean;
use crate::state::{Action, Route};
use crate::upstream::Scheme;

/// A request that may go to an upstream.
pub(super) struct Going {
    pub(super) route: Arc<Route>,
    /// Path and query for the upstream, and the prefix that was stripped.
    pub(super) target: String,
    pub(super) prefix: Option<String>,
}

impl Lean {
    /// What becomes of a request on a lean path: it goes on, or gets an answer of ours. `None`: it is pingora's. `streamed`: as in
    /// [`crate::traffic::Traffic::transforms`].
    pub(super) async fn judge(
        &self,
        ctx: &mut Exchange,
        routed: Routed,
        uri: &Uri,
        headers: &HeaderMap,
        streamed: bool,
    ) -> Option<Result<Going, Answer>> {
        match routed {
            // Its page has to be fetched.
            Routed::Answer(Some(route), _) if route.traffic.limits.error_page.is_some() => None,
            Routed::Answer(route, answer) => {
                ctx.route = route;
                Some(Err(answer))
            }
            // Somebody else has to be asked, or a form to be read.
            Routed::Ask(..) => None,
            Routed::Forward(route, _) if !is_plain(&route, streamed) => None,
            Routed::Forward(route, _) => {
                let (target, prefix) = upstream_target(&route, ctx, uri)?;
                ctx.route = Some(route.clone());
                let client = ctx.origin.as_ref().map_or(IpAddr::from([0, 0, 0, 0]), |origin| origin.client);
                Some(match self.limits.admit(&route, client, headers).await {
                    Ok(pass) => {
                        ctx.transform.pass = pass;
                        Ok(Going { route, target, prefix })
                    }
                    Err(answer) => Err(answer),
                })
            }
        }
    }
}

/// Nothing of the route needs more than bytes passed on over plain HTTP/1.1.
fn is_plain(route: &Route, streamed: bool) -> bool {
    let Action::Forward { pool, .. } = &route.action else { return false };
    !route.traffic.transforms(streamed)
        && pool
            .groups
            .iter()
            .all(|group| group.backends.first().is_none_or(|backend| backend.scheme == Scheme::Http && backend.proxy_protocol.is_none()))
}

/// Path and query for the upstream, and the stripped prefix; `None` where labels make something else of it than plain ASCII.
fn upstream_target(route: &Route, ctx: &Exchange, uri: &Uri) -> Option<(String, Option<String>)> {
    let (path, prefix) = route.traffic.rewrite(&ctx.path).map_or((None, None), |(path, prefix)| (Some(path), prefix));
    let path = path.as_deref().unwrap_or(&ctx.path);
    if !path.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
        return None;
    }
    Some((uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")), prefix))
}
