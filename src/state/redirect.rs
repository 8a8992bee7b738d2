//! `redirect-from`: hosts that answer with a redirect to a route's first host.
//! Decided by age as everything is, so that no redirect takes what is served, nobody takes a redirect away, and none goes in circles.

use std::collections::HashMap;
use std::sync::Arc;

use super::claim::{Claim, subject};
use super::{Action, Route, Row};
use crate::auth::Access;
use crate::diagnostic::Diagnostic;
use crate::label::Value;
use crate::route::{HostPattern, Matcher, PathPattern};
use crate::snapshot::Service;
use crate::traffic::Traffic;

/// Rows for `redirect-from`. A source that an older service or the service itself serves is refused: it would be lost, or the redirect
/// would loop. A newer service that serves a source contests it, as any other place.
pub(super) fn rows(claims: &[Claim<'_>], findings: &mut Vec<Diagnostic>) -> Vec<Row> {
    if claims.iter().all(|claim| claim.matching.redirect_from.is_empty()) {
        return Vec::new();
    }
    // The oldest to serve a host, as claims come in that order.
    let mut served = HashMap::new();
    for (index, claim) in claims.iter().enumerate() {
        for host in claim.matching.alternatives.iter().flat_map(|matcher| &matcher.hosts) {
            if let HostPattern::Exact(host) = host {
                served.entry(host.as_str()).or_insert((index, claim.service));
            }
        }
    }
    let mut rows = Vec::new();
    for (index, claim) in claims.iter().enumerate().filter(|(_, claim)| !claim.matching.redirect_from.is_empty()) {
        let Some(target) = &claim.matching.first_host else { continue };
        let route = Arc::new(Route {
            id: Arc::from(format!("{}/redirect-from", claim.route.id)),
            action: Action::RedirectHost(target.clone()),
            // The redirect shows nothing of the service, so what protects the service need not protect it.
            access: Access::default(),
            traffic: Traffic::default(),
            ..claim.route.clone()
        });
        for (source, value) in &claim.matching.redirect_from {
            let server = served.get(source.as_str()).filter(|(at, server)| *at < index || std::ptr::eq(*server, claim.service));
            if let Some((_, server)) = server {
                findings.push(served_source(source, server, value).of(subject(claim.service)));
                continue;
            }
            let matcher = Matcher {
                hosts: vec![HostPattern::Exact(source.clone())],
                path: PathPattern::Prefix("/".to_owned()),
                conditions: Vec::new(),
                priority: None,
            };
            rows.push(Row::new(claim.service, matcher, &route, Some(value.clone())));
        }
    }
    rows
}

fn served_source(source: &str, server: &Service, value: &Value) -> Diagnostic {
    Diagnostic::error("redirect-loop", format!("`{source}` is served by service `{}`, so it is not redirected", server.name))
        .at(value.place())
        .help("remove it here, or from the hosts that are served")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{build, codes, id, route, service};
    use super::*;

    #[test]
    fn hosts_redirect_to_the_first_host() {
        let state =
            build(vec![service("shop", 1, &[("skep.host", "www.example.com"), ("skep.redirect-from", "example.com, old.example.com")])]);
        let redirect = route(&state, "example.com/any/path").expect("redirected");
        assert_eq!((&*redirect.id, &redirect.action), ("shop/redirect-from", &Action::RedirectHost("www.example.com".into())));
        assert_eq!(state.routes["shop/redirect-from"].matches, ["example.com/", "old.example.com/"]);
    }

    #[test]
    fn what_is_served_is_not_redirected() {
        let state = build(vec![
            service("one", 1, &[("skep.host", "one.example.com")]),
            service("two", 2, &[("skep.host", "two.example.com"), ("skep.redirect-from", "one.example.com, three.example.com")]),
        ]);
        assert_eq!((codes(&state, "one").len(), codes(&state, "two")), (0, vec!["redirect-loop".to_owned()]));
        for (url, wanted) in [("one.example.com/", "one"), ("two.example.com/", "two"), ("three.example.com/", "two/redirect-from")] {
            assert_eq!(id(&state, url), wanted, "{url}");
        }
    }

    #[test]
    fn a_newer_service_does_not_take_a_redirect_away() {
        let state = build(vec![
            service("one", 1, &[("skep.host", "one.example.com"), ("skep.redirect-from", "two.example.com")]),
            service("two", 2, &[("skep.host", "two.example.com"), ("skep.redirect-from", "one.example.com")]),
        ]);
        assert_eq!(codes(&state, "one"), ["route-contested"]);
        assert_eq!(codes(&state, "two"), ["route-taken", "redirect-loop"]);
        assert_eq!((id(&state, "one.example.com/"), id(&state, "two.example.com/")), ("one".into(), "one/redirect-from".into()));
    }

    #[test]
    fn redirects_never_go_in_circles() {
        for ages in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [1, 1, 1]] {
            let around = [("a", "b"), ("b", "c"), ("c", "a")];
            let services = around.iter().zip(ages).map(|((host, from), age)| {
                let (host, from) = (format!("{host}.example.com"), format!("{from}.example.com"));
                service(&format!("on-{host}"), age, &[("skep.host", &host), ("skep.redirect-from", &from)])
            });
            let state = build(services.collect());
            for (host, _) in around {
                let mut at = format!("{host}.example.com");
                for _ in 0..around.len() {
                    if let Action::RedirectHost(to) = &route(&state, &format!("{at}/")).expect("all are served").action {
                        at = to.clone();
                    }
                }
                let end = route(&state, &format!("{at}/")).expect("all are served");
                assert!(matches!(end.action, Action::Forward { .. }), "{ages:?}: {host}");
            }
        }
    }

    #[test]
    fn a_closed_route_still_redirects_to_itself_and_answers_there() {
        let state = build(vec![service("shop", 1, &[("skep.host", "a.de"), ("skep.redirect-from", "b.de"), ("skep.auth", "staff")])]);
        assert!(route(&state, "a.de/").expect("in the table").access.closed.is_some());
        assert!(route(&state, "b.de/").expect("in the table").access.closed.is_none());
    }
}
