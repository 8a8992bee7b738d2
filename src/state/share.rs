//! Canaries: several services that claim the same route, each with a weight, share it.
//! They share the oldest one's settings; one that would be protected otherwise than the oldest does not take part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::claim::{Claim, subject};
use super::{Action, Route, Row};
use crate::diagnostic::Diagnostic;
use crate::label::Value;
use crate::route::{Condition, HostPattern, Matcher, PathPattern};

/// What two services must have in common to share a route.
type Unit = (HostPattern, PathPattern, Vec<Condition>, Option<i32>);

/// Takes what several services share out of `claims` (oldest first) and puts one row for it into `rows`.
pub(super) fn merge(claims: &mut [Claim<'_>], rows: &mut Vec<Row>, findings: &mut Vec<Diagnostic>) {
    let mut shares: HashMap<Unit, Vec<usize>> = HashMap::new();
    for (index, claim) in claims.iter().enumerate().filter(|(_, claim)| claim.weight.is_some()) {
        for matcher in &claim.matching.alternatives {
            for host in &matcher.hosts {
                let unit = (host.clone(), matcher.path.clone(), matcher.conditions.clone(), matcher.priority);
                shares.entry(unit).or_default().push(index);
            }
        }
    }
    let mut by_members: BTreeMap<Vec<usize>, Vec<Unit>> = BTreeMap::new();
    for (unit, claimants) in shares.into_iter().filter(|(_, claimants)| claimants.len() > 1) {
        let members = members(claims, &claimants, findings);
        if members.len() > 1 {
            by_members.entry(members).or_default().push(unit);
        }
    }
    for (members, units) in &by_members {
        members.iter().for_each(|member| give_up(&mut claims[*member], units));
    }
    let mut named = HashSet::new();
    for (members, mut units) in by_members {
        units.sort();
        let oldest = &claims[members[0]];
        let mut route = shared(claims, &members);
        // The oldest's own name, so that logs and metrics go on when a canary comes; unless the oldest needs it for what it does not share.
        if !oldest.matching.alternatives.is_empty() || !named.insert(members[0]) {
            let ids: Vec<_> = members.iter().map(|member| &*claims[*member].route.id).collect();
            route.id = Arc::from(ids.join("+"));
        }
        let route = Arc::new(route);
        rows.extend(units.into_iter().map(|(host, path, conditions, priority)| {
            let matcher = Matcher { hosts: vec![host], path, conditions, priority };
            Row::new(oldest.service, matcher, &route, oldest.label().cloned())
        }));
    }
}

/// Of `claimants`, those that may share with the oldest.
fn members(claims: &[Claim<'_>], claimants: &[usize], findings: &mut Vec<Diagnostic>) -> Vec<usize> {
    let oldest = &claims[claimants[0]];
    let mut members = vec![claimants[0]];
    for &index in &claimants[1..] {
        let claim = &claims[index];
        let place = claim.spec.get("weight").map(Value::place);
        let report = |finding: Diagnostic| match place {
            Some(place) => finding.at(place).of(subject(claim.service)),
            None => finding.of(subject(claim.service)),
        };
        if claim.route.access != oldest.route.access {
            let message =
                format!("the access labels differ from those of service `{}`, so the two cannot share a route", oldest.service.name);
            findings.push(report(Diagnostic::error("weight-access", message).help("give both routes the same access labels")));
            continue;
        }
        if settings(&claim.route) != settings(&oldest.route) {
            let message = format!("the shared route has the settings of service `{}`; other ones here do nothing", oldest.service.name);
            findings
                .push(report(Diagnostic::warning("weight-settings", message).help("give both routes the same labels but for the weight")));
        }
        members.push(index);
    }
    members
}

/// What the members of a shared route should have in common.
fn settings(route: &Route) -> impl PartialEq + '_ {
    let forward = match &route.action {
        Action::Forward { pool, timeouts, retries } => Some((&pool.balance, &pool.sticky, timeouts, retries)),
        Action::RedirectHost(_) => None,
    };
    (forward, &route.traffic, &route.tls)
}

/// The oldest member's route with the groups of all.
fn shared(claims: &[Claim<'_>], members: &[usize]) -> Route {
    let mut route = claims[members[0]].route.clone();
    if let Action::Forward { pool, .. } = &mut route.action {
        for &member in &members[1..] {
            if let Action::Forward { pool: other, .. } = &claims[member].route.action {
                pool.groups.extend(other.groups.iter().cloned());
            }
        }
    }
    route
}

/// Takes `units` out of what `claim` claims alone.
fn give_up(claim: &mut Claim<'_>, units: &[Unit]) {
    for matcher in &mut claim.matching.alternatives {
        let same = |(host, path, conditions, priority): &Unit, one: &HostPattern| {
            host == one && *path == matcher.path && *conditions == matcher.conditions && *priority == matcher.priority
        };
        matcher.hosts.retain(|host| !units.iter().any(|unit| same(unit, host)));
    }
    claim.matching.alternatives.retain(|matcher| !matcher.hosts.is_empty());
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::tests::{build, codes, id, pool, route, service};

    fn shares(state: &State, url: &str) -> Vec<(String, u32)> {
        let route = route(state, url).expect("served");
        pool(&route).groups.iter().map(|group| (group.service.to_string(), group.weight)).collect()
    }

    #[test]
    fn services_with_weights_share_a_route() {
        let state = build(vec![
            service("new", 2, &[("skep.host", "a.example.com"), ("skep.weight", "10")]),
            service("old", 1, &[("skep.host", "a.example.com"), ("skep.weight", "90")]),
            service("test", 3, &[("skep.test.host", "a.example.com"), ("skep.test.weight", "0")]),
        ]);
        assert_eq!(shares(&state, "a.example.com/"), [("old".into(), 90), ("new".into(), 10), ("test".into(), 0)]);
        assert_eq!((id(&state, "a.example.com/"), state.routes.len()), ("old".into(), 1));
        assert!(state.diagnostics.is_empty(), "{:?}", state.diagnostics);
    }

    #[test]
    fn without_a_weight_there_is_no_sharing() {
        let state = build(vec![
            service("old", 1, &[("skep.host", "a.example.com"), ("skep.weight", "90")]),
            service("new", 2, &[("skep.host", "a.example.com")]),
        ]);
        assert_eq!(shares(&state, "a.example.com/"), [("old".into(), 90)]);
        assert_eq!(codes(&state, "new"), ["route-taken"]);
        let state = build(vec![
            service("oldest", 1, &[("skep.host", "a.example.com")]),
            service("one", 2, &[("skep.host", "a.example.com"), ("skep.weight", "1")]),
            service("two", 3, &[("skep.host", "a.example.com"), ("skep.weight", "1")]),
        ]);
        assert_eq!(id(&state, "a.example.com/"), "oldest");
        assert_eq!(codes(&state, "one"), ["route-taken"]);
    }

    #[test]
    fn only_what_both_claim_is_shared() {
        let state = build(vec![
            service("old", 1, &[("skep.host", "a.example.com, b.example.com"), ("skep.weight", "90")]),
            service("new", 2, &[("skep.host", "a.example.com, c.example.com"), ("skep.weight", "10")]),
        ]);
        for (url, wanted, groups) in [("a.example.com/", "old+new", 2), ("b.example.com/", "old", 1), ("c.example.com/", "new", 1)] {
            assert_eq!((id(&state, url).as_str(), shares(&state, url).len()), (wanted, groups), "{url}");
        }
    }

    #[test]
    fn a_service_that_is_protected_otherwise_does_not_share() {
        for (old, new) in [(None, Some("10.0.0.0/8")), (Some("10.0.0.0/8"), None), (Some("10.0.0.0/8"), Some("192.168.0.0/16"))] {
            let with = |name, age, allow: Option<&'static str>| {
                let labels: Vec<_> = [("skep.host", "a.example.com"), ("skep.weight", "1")]
                    .into_iter()
                    .chain(allow.map(|nets| ("skep.allow", nets)))
                    .collect();
                service(name, age, &labels)
            };
            let state = build(vec![with("old", 1, old), with("new", 2, new)]);
            assert_eq!(shares(&state, "a.example.com/"), [("old".into(), 1)]);
            assert_eq!(codes(&state, "new"), ["route-taken", "weight-access"]);
        }
    }

    #[test]
    fn settings_that_differ_are_named() {
        let state = build(vec![
            service("old", 1, &[("skep.host", "a.example.com"), ("skep.weight", "90")]),
            service("new", 2, &[("skep.host", "a.example.com"), ("skep.weight", "10"), ("skep.retries", "0")]),
        ]);
        assert_eq!(shares(&state, "a.example.com/").len(), 2);
        assert_eq!(codes(&state, "new"), ["weight-settings"]);
    }
}
