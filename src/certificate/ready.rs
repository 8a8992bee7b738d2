//! Whether a name may be ordered now, and of whom: pauses after failures, limits, and whether it was seen to reach us.

use jiff::{SignedDuration, Timestamp};

use super::attempt::{Attempts, Trouble};
use super::issuer::{Issuer, Policy};
use super::jitter::{later, part, pause};
use super::names::{self, Unfit};
use super::plan::Reason;

/// What is to be done about one name first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready<'a> {
    /// It can be ordered of these, in order.
    Order(Vec<&'a Issuer>),
    /// It must be seen to reach us first.
    Probe,
    Wait(Timestamp, Reason),
    /// No configured authority can certify it.
    Never(Unfit),
}

/// The pauses of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    pub policy: &'a Policy,
    pub now: Timestamp,
    pub seed: u64,
    /// No pause is longer, for the sake of certificates with a short life.
    pub longest: SignedDuration,
}

/// Why none of the configured issuers can certify `name`.
pub fn never(policy: &Policy, name: &str) -> Option<Unfit> {
    if policy.issuers.is_empty() {
        let message = "no authority is configured that could certify it".to_owned();
        return Some(Unfit { message, help: "set `acme.agree-tos`, or write `cert: internal` or `cert: self`" });
    }
    let mut refusals = policy.issuers.iter().map(|issuer| refusal(policy, issuer, name));
    let first = refusals.next().flatten()?;
    refusals.all(|refusal| refusal.is_some()).then_some(first)
}

fn refusal(policy: &Policy, issuer: &Issuer, name: &str) -> Option<Unfit> {
    names::refusal(name, issuer.public).or_else(|| {
        let message = format!("`{name}` can be proved by DNS-01 only, and no DNS provider is configured");
        let help = "set `dns.provider`, or label each host by its own name";
        (names::is_wildcard(name) && !policy.dns).then_some(Unfit { message, help })
    })
}

/// What is to be done about `name`, wanted by ACME.
pub fn ready<'a>(name: &str, attempts: &Attempts, patience: &Patience<'a>) -> Ready<'a> {
    let Patience { policy, now, .. } = *patience;
    if let Some(refusal) = never(policy, name) {
        return Ready::Never(refusal);
    }
    let history = attempts.name(name);
    if let Some((until, error)) = patience.pause(history.and_then(|history| history.failed.as_ref()), name, policy.longest_pause) {
        return Ready::Wait(until, Reason::Failed { error });
    }
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for issuer in policy.issuers.iter().filter(|issuer| refusal(policy, issuer, name).is_none()) {
        match hold(issuer, name, attempts, patience) {
            None => open.push(issuer),
            Some(wait) => closed.push(wait),
        }
    }
    if open.is_empty() {
        let (until, reason) = closed.into_iter().min_by_key(|(until, _)| *until).unwrap_or((Timestamp::MAX, Reason::Renewal));
        return Ready::Wait(until, reason);
    }
    let reached = history.and_then(|history| history.reached).is_some_and(|at| later(at, policy.probe_holds) > now);
    if !policy.probe || names::is_wildcard(name) || reached {
        return Ready::Order(open);
    }
    match patience.pause(history.and_then(|history| history.unreachable.as_ref()), name, policy.longest_probe_pause) {
        Some((until, error)) => Ready::Wait(until, Reason::Unreachable { error }),
        None => Ready::Probe,
    }
}

/// Until when `issuer` is not asked for `name`, and why.
fn hold(issuer: &Issuer, name: &str, attempts: &Attempts, patience: &Patience<'_>) -> Option<(Timestamp, Reason)> {
    let (quota, now) = (attempts.issuer(&issuer.name)?, patience.now);
    let told = || quota.names.get(name).filter(|(until, _)| *until > now).cloned();
    let refused = || patience.pause(quota.refused.get(name), name, patience.policy.longest_pause);
    let limited = || quota.validation_free(&issuer.limits, name, now);
    patience
        .down(issuer, attempts)
        .or_else(|| told().map(|(until, error)| (until, Reason::RetryAfter { issuer: issuer.name.clone(), error })))
        .or_else(|| refused().map(|(until, error)| (until, Reason::Failed { error })))
        .or_else(|| limited().map(|until| (until, Reason::limit(issuer, "failed validations of a name"))))
}

impl Patience<'_> {
    /// Until when `issuer` is not asked for anything, and why.
    pub fn down(&self, issuer: &Issuer, attempts: &Attempts) -> Option<(Timestamp, Reason)> {
        let quota = attempts.issuer(&issuer.name)?;
        if let Some((until, error)) = quota.until.clone().filter(|(until, _)| *until > self.now) {
            return Some((until, Reason::RetryAfter { issuer: issuer.name.clone(), error }));
        }
        let (until, error) = self.pause(quota.trouble.as_ref(), &issuer.name, self.policy.longest_issuer_pause)?;
        Some((until, Reason::Down { issuer: issuer.name.clone(), error }))
    }

    /// The end of the pause after `trouble`, if it is not over.
    pub fn pause(&self, trouble: Option<&Trouble>, key: &str, longest: SignedDuration) -> Option<(Timestamp, String)> {
        let trouble = trouble?;
        let longest = longest.min(self.longest);
        let lot = part(self.seed, key, u64::from(trouble.times));
        let until = later(trouble.at, pause(trouble.times, self.policy.first_pause.min(longest), longest, lot));
        (until > self.now).then(|| (until, trouble.error.clone()))
    }
}
