//! What a route's access labels can be had from, of what this edge has: somebody who knows users, authorizers that may be asked.
//! A route whose protection cannot be had is closed.

use std::collections::{BTreeSet, HashMap};

use super::State;
use super::claim::{Claim, subject};
use crate::auth::{Access, Groups};
use crate::certificate::Mode;
use crate::config::{Config, auth};
use crate::diagnostic::{Diagnostic, Place, brief};
use crate::label::Value;
use crate::route::HostPattern;
use crate::snapshot::Origin;

/// Closes routes whose users nobody knows, or whose authorizer may not be asked; says where passwords would go in clear.
pub(super) fn settle(claims: &mut [Claim<'_>], config: &Config, findings: &mut Vec<Diagnostic>) {
    for claim in claims {
        for (finding, reason) in [unknown_users(claim, config), refused_authorizer(claim, config)].into_iter().flatten() {
            findings.push(finding.of(subject(claim.service)));
            claim.route.access.closed.get_or_insert(reason);
        }
        findings.extend(groups_of_nobody(claim).map(|finding| finding.of(subject(claim.service))));
        findings.extend(in_clear(claim, config).map(|finding| finding.of(subject(claim.service))));
    }
}

fn unknown_users(claim: &Claim<'_>, config: &Config) -> Option<(Diagnostic, String)> {
    let value = label(claim).filter(|_| claim.route.access.groups.is_some() && !auth::is_configured(config))?;
    let finding = Diagnostic::warning("no-directory", "nobody is known who could sign in, so the route is closed: it answers 503");
    let help = "set [ldap] for a directory or `auth.users` for a file of users, or remove the label to open the route to everybody";
    Some((finding.at(value.place()).help(help), format!("`{}` asks for sign-in, and nobody knows any users", brief(&value.label))))
}

fn refused_authorizer(claim: &Claim<'_>, config: &Config) -> Option<(Diagnostic, String)> {
    let (url, value) = claim.route.access.forward_auth.as_ref().zip(claim.spec.get("forward-auth"))?;
    if claim.route.origin == Origin::File || config.auth.authorizers.iter().any(|allowed| begins(url, allowed)) {
        return None;
    }
    let message = format!("`{}` is not one of the authorizers that labels may name, so the route is closed", brief(url));
    let finding = Diagnostic::error("authorizer-refused", message).at(value.place());
    let help = "list it in `auth.authorizers`: else any service could let the edge ask anybody";
    Some((finding.help(help), format!("`{}` names nobody who may be asked", brief(&value.label))))
}

/// Groups that pass a maintenance, where nobody signs in.
fn groups_of_nobody(claim: &Claim<'_>) -> Option<Diagnostic> {
    let value = claim.spec.get("maintenance")?;
    let groups = claim.route.traffic.maintenance.as_ref().is_some_and(|maintenance| !maintenance.groups.is_empty());
    (groups && claim.route.access.groups.is_none()).then(|| {
        Diagnostic::warning("maintenance-of-nobody", "nobody signs in here, so no member of a group can be told apart")
            .at(value.place())
            .help("add `skep.auth: \"*\"`, or name networks behind `allow`")
    })
}

fn in_clear(claim: &Claim<'_>, config: &Config) -> Option<Diagnostic> {
    // A proxy in front may have terminated TLS.
    if config.https.listen.is_empty() && !config.proxy.trusted_proxies.is_empty() {
        return None;
    }
    let Access { groups, basic_auth, closed, .. } = &claim.route.access;
    if closed.is_some() || (groups.is_none() && basic_auth.is_empty()) || matches!(claim.route.tls.mode, Some(Mode::Redirect | Mode::Only))
    {
        return None;
    }
    let value = label(claim).or_else(|| claim.spec.get("basic-auth"))?;
    let finding = Diagnostic::warning("sign-in-in-clear", "passwords for this route go over plain HTTP, where everybody can read them");
    Some(finding.at(value.key_place()).help("add `skep.tls: redirect`, or use `haproxy.virtual_host_secure`"))
}

fn label<'a>(claim: &'a Claim<'_>) -> Option<&'a Value> {
    claim.spec.get("auth")
}

/// Is `url` what `allowed` says, or below it?
fn begins(url: &str, allowed: &str) -> bool {
    match url.strip_prefix(allowed) {
        Some("") => true,
        Some(rest) => allowed.ends_with('/') || rest.starts_with(['/', '?']),
        None => false,
    }
}

/// Hosts at which people sign in, and whether any of their routes wants HTTPS for it: by exact name, by what follows `*.`, and for
/// any host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignIns {
    exact: HashMap<String, bool>,
    wildcard: HashMap<String, bool>,
    any: Option<bool>,
}

impl SignIns {
    /// Is `host` one of them? Then whether its sign-in is for HTTPS only.
    pub fn find(&self, host: &str) -> Option<bool> {
        let above = || host.split_once('.').and_then(|(_, rest)| self.wildcard.get(rest)).copied();
        self.exact.get(host).copied().or_else(above).or(self.any)
    }

    /// Does a label name `host`, by itself or below a wildcard? Of any other host it is not known whose it is: a browser that is
    /// signed in elsewhere must not be sent there with what lets it in.
    pub fn names(&self, host: &str) -> bool {
        self.exact.contains_key(host) || host.split_once('.').is_some_and(|(_, rest)| self.wildcard.contains_key(rest))
    }
}

/// The hosts of all routes that people sign in for, and the one at which they do.
pub(super) fn hosts(claims: &[Claim<'_>], config: &Config) -> SignIns {
    let mut hosts = SignIns::default();
    for claim in claims.iter().filter(|claim| claim.route.access.groups.is_some()) {
        let secure = matches!(claim.route.tls.mode, Some(Mode::Redirect | Mode::Only));
        for host in claim.matching.alternatives.iter().flat_map(|matcher| &matcher.hosts) {
            let known = match host {
                HostPattern::Exact(name) => hosts.exact.entry(name.clone()).or_default(),
                HostPattern::Wildcard(rest) => hosts.wildcard.entry(rest.clone()).or_default(),
                HostPattern::Any => hosts.any.get_or_insert_default(),
            };
            *known |= secure;
        }
    }
    if let Some(host) = config.auth.host.as_ref().filter(|_| auth::is_configured(config)) {
        hosts.exact.insert(host.clone(), !config.https.listen.is_empty());
    }
    hosts
}

/// A group that a label names, with where.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Folded.
    pub group: String,
    subject: String,
    place: Place,
}

/// All groups that labels name.
pub(super) fn groups(claims: &[Claim<'_>]) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    for claim in claims.iter().filter(|claim| claim.route.access.closed.is_none()) {
        let (Some(Groups::OneOf(groups)), Some(value)) = (&claim.route.access.groups, label(claim)) else { continue };
        let place = |name: &str| value.text.find(name).map_or_else(|| value.place(), |at| value.span(at..at + name.len()));
        let naming =
            groups.iter().map(|(group, name)| Wanted { group: group.clone(), subject: subject(claim.service), place: place(name) });
        wanted.extend(naming);
    }
    wanted
}

impl State {
    /// The folded names of all groups that labels name.
    pub fn groups(&self) -> BTreeSet<String> {
        self.groups.iter().map(|wanted| wanted.group.clone()).collect()
    }

    /// The state with findings about the groups that whoever knows users said not to have. Nobody is a member of those, so they let
    /// nobody in.
    #[must_use]
    pub fn with_unknown_groups(mut self, unknown: &BTreeSet<String>) -> State {
        for wanted in self.groups.iter().filter(|wanted| unknown.contains(&wanted.group)) {
            let message = format!("the directory has no group `{}`: it lets nobody in", brief(&wanted.group));
            let finding = Diagnostic::error("unknown-group", message).at(wanted.place.clone()).of(wanted.subject.clone());
            self.diagnostics.push(finding.help("write the group's name as the directory has it (`cn`), or make the group there"));
        }
        super::tidy(&mut self.diagnostics);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::tests::{codes, route, service};
    use super::*;
    use crate::snapshot::{Edge, Engine, Snapshot, Swarm};

    fn build(labels: &[(&str, &str)], configure: impl FnOnce(&mut Config)) -> State {
        let mut config = Config::default();
        configure(&mut config);
        let edge = Edge { container: Some("skep".into()), networks: vec!["edge".into()] };
        let engine = Engine { id: "e".into(), swarm: Swarm::Manager, edge, ..Engine::default() };
        let services = vec![service("shop", 1, &[&[("skep.host", "a.de")], labels].concat())];
        State::build(Arc::new(config), Arc::new(Snapshot { engine, services, ..Snapshot::default() }))
    }

    fn with_users(config: &mut Config) {
        config.auth.users = Some(PathBuf::from("/users"));
    }

    #[test]
    fn without_anybody_who_knows_users_the_route_is_closed() {
        let closed = |state: &State| route(state, "a.de/").expect("it keeps its place").access.closed.is_some();
        let state = build(&[("skep.auth", "staff"), ("skep.tls", "redirect")], |_| {});
        assert_eq!((closed(&state), codes(&state, "shop")), (true, vec!["no-directory".to_owned()]));
        let state = build(&[("skep.auth", "staff"), ("skep.tls", "redirect")], with_users);
        assert_eq!((closed(&state), codes(&state, "shop")), (false, vec![]));
        let state = build(&[("skep.auth", "staff"), ("skep.tls", "off")], with_users);
        assert_eq!((closed(&state), codes(&state, "shop")), (false, vec!["sign-in-in-clear".to_owned()]));
    }

    #[test]
    fn people_sign_in_at_hosts_that_ask_for_it_and_over_https_where_any_route_wants_that() {
        let state = build(&[("skep.auth", "staff"), ("skep.tls", "redirect"), ("skep.host", "a.de, *.b.de")], |config| {
            with_users(config);
            config.auth.host = Some("login.de".to_owned());
        });
        for (host, found) in [("a.de", Some(true)), ("x.b.de", Some(true)), ("b.de", None), ("x.y.b.de", None), ("login.de", Some(true))] {
            assert_eq!(state.sign_ins.find(host), found, "{host}");
        }
        let open = build(&[("skep.tls", "redirect")], with_users);
        assert_eq!(open.sign_ins, SignIns::default());
    }

    #[test]
    fn authorizers_of_labels_are_the_operators_choice() {
        for (url, allowed, fine) in [
            ("http://auth/verify", &["http://auth/verify"][..], true),
            ("http://auth/verify?x=1", &["http://auth/verify"], true),
            ("http://auth/verify/x", &["http://auth/"], true),
            ("http://auth/verify2", &["http://auth/verify"], false),
            ("http://auth.evil/verify", &["http://auth"], false),
            ("http://other/verify", &["http://auth/"], false),
            ("http://auth/verify", &[], false),
        ] {
            let allowed: Vec<String> = allowed.iter().map(|url| (*url).to_owned()).collect();
            let state = build(&[("skep.forward-auth", url)], |config| config.auth.authorizers = allowed);
            assert_eq!(route(&state, "a.de/").expect("a route").access.closed.is_none(), fine, "{url}");
            assert_eq!(codes(&state, "shop").contains(&"authorizer-refused".to_owned()), !fine, "{url}");
        }
    }

    #[test]
    fn a_group_that_nobody_has_is_said_at_its_name() {
        let state = build(&[("skep.auth", "staff, Typo"), ("skep.tls", "redirect")], with_users);
        assert_eq!(state.groups(), BTreeSet::from(["staff".to_owned(), "typo".to_owned()]));
        let state = state.with_unknown_groups(&BTreeSet::from(["typo".to_owned()]));
        let finding = &state.diagnostics[0];
        assert_eq!(finding.code, "unknown-group");
        assert!(matches!(&finding.place, Some(Place::Label { span, .. }) if *span == (7..11)), "{:?}", finding.place);
    }
}
