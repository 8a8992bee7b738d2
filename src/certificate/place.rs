//! Places the names of a group with the authorities: each name that is ready with the first one that takes it, within its limits.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::group::Group;
use super::issuer::Issuer;
use super::jitter::later;
use super::names;
use super::plan::{Action, Order, Reason, Why};
use super::planner::Planner;
use super::ready::{Ready, ready};
use super::record::Record;

/// A name that may be ordered.
#[derive(Clone, Debug)]
struct Member<'a> {
    name: &'a str,
    needed: bool,
    issuers: Vec<&'a Issuer>,
}

impl<'a> Planner<'a> {
    /// Orders what of the group is ready; has the others asked whether they reach us.
    pub(super) fn place(&mut self, group: &Group<'a>) {
        let (patience, now) = (self.patience(group), self.scene.now);
        let mut open: Vec<Member<'a>> = Vec::new();
        let (mut probes, mut held): (Vec<(bool, &str)>, _) = (Vec::new(), None);
        for (needed, name) in self.members(group) {
            match ready(name, &self.attempts, &patience) {
                Ready::Order(issuers) => open.push(Member { name, needed, issuers }),
                Ready::Probe => {
                    let first = self.attempts.name(name).is_none_or(|history| history.unreachable.is_none());
                    let since = self.probing.get(name).copied();
                    let until = later(since.unwrap_or(now), self.scene.policy.gather);
                    if first && until > now {
                        held = held.max(Some(until));
                    }
                    if since.is_none() {
                        probes.push((needed, name));
                    }
                }
                Ready::Wait(until, reason) if needed => self.wait([name], until, reason),
                Ready::Wait(..) | Ready::Never(_) => {}
            }
        }
        let any_needed = open.iter().any(|member| member.needed) || probes.iter().any(|(needed, _)| *needed);
        if !any_needed {
            return;
        }
        self.probes.extend(probes.into_iter().map(|(_, name)| name));
        match held {
            Some(until) => self.wait(open.iter().filter(|member| member.needed).map(|member| member.name), until, Reason::Gathering),
            None => self.order(group, open),
        }
    }

    /// Orders what is open of the first authority that takes it, and what that does not take of the next.
    fn order(&mut self, group: &Group<'a>, mut open: Vec<Member<'a>>) {
        let mut waits: BTreeMap<&str, (Timestamp, Reason)> = BTreeMap::new();
        for issuer in &self.scene.policy.issuers {
            let mine = |member: &Member<'_>| member.issuers.iter().any(|own| own.name == issuer.name);
            let replaces = self.predecessor(group, issuer, open.iter().filter(|member| mine(member)));
            let exempt = replaces.is_some_and(|record| record.window.is_some());
            let (mut taken, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(mine);
            open = rest;
            if !exempt {
                let (fits, over) = self.within_domains(taken, issuer, &mut waits);
                (taken, open) = (fits, [open, over].concat());
            }
            if !taken.iter().any(|member| member.needed) {
                open.extend(taken);
                continue;
            }
            let mut names: Vec<String> = taken.iter().map(|member| member.name.to_owned()).collect();
            names.sort();
            if let Some((until, limit)) = self.limited(issuer, &names) {
                for member in &taken {
                    waits.entry(member.name).or_insert((until, Reason::limit(issuer, limit)));
                }
                open.extend(taken);
                continue;
            }
            let why = if group.renews.is_some() { Why::Renewal } else { Why::New };
            let replaces = replaces.map(|record| record.id.clone());
            let order = Order { service: group.wish.service.clone(), issuer: issuer.name.clone(), names, replaces, exempt, why };
            self.attempts = std::mem::take(&mut self.attempts).ordered(issuer, &order, self.scene.now);
            self.actions.push(Action::Order(order));
        }
        for member in open.iter().filter(|member| member.needed) {
            if let Some((until, reason)) = waits.remove(member.name) {
                self.wait([member.name], until, reason);
            }
        }
    }

    /// Those of `members` for whose registered domains `issuer` takes another certificate, and the others.
    fn within_domains(
        &self,
        members: Vec<Member<'a>>,
        issuer: &Issuer,
        waits: &mut BTreeMap<&'a str, (Timestamp, Reason)>,
    ) -> (Vec<Member<'a>>, Vec<Member<'a>>) {
        let Some(quota) = self.attempts.issuer(&issuer.name) else { return (members, Vec::new()) };
        let mut free: BTreeMap<&str, Option<Timestamp>> = BTreeMap::new();
        members.into_iter().partition(|member| {
            let domain = names::registered(member.name);
            let until = *free.entry(domain).or_insert_with(|| quota.domain_free(&issuer.limits, domain, self.scene.now));
            if let Some(until) = until {
                waits.entry(member.name).or_insert((until, Reason::limit(issuer, "certificates of a registered domain")));
            }
            until.is_none()
        })
    }

    fn limited(&self, issuer: &Issuer, names: &[String]) -> Option<(Timestamp, &'static str)> {
        let (quota, now) = (self.attempts.issuer(&issuer.name)?, self.scene.now);
        let orders = quota.orders_free(&issuer.limits, now).map(|until| (until, "orders"));
        orders.or_else(|| quota.set_free(&issuer.limits, names, now).map(|until| (until, "certificates of the same names")))
    }

    /// The record whose successor an order of `issuer` is: one that it gave, of which it has seen no other.
    fn predecessor<'m>(&self, group: &Group<'a>, issuer: &Issuer, mut members: impl Iterator<Item = &'m Member<'a>>) -> Option<&'a Record>
    where
        'a: 'm,
    {
        let record = group.renews.filter(|record| record.issuer.as_deref() == Some(issuer.name.as_str()))?;
        let shares = members.any(|member| record.names.iter().any(|own| own == member.name));
        (shares && !self.attempts.is_replaced(&record.id) && !self.coverage.is_replaced(record)).then_some(record)
    }
}
