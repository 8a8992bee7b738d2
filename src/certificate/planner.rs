//! Builds a plan: what becomes of the certificates that there are, what is to be obtained, and until when to wait.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::Source;
use super::attempt::Attempts;
use super::coverage::Coverage;
use super::due::{due, life};
use super::group::{Group, groups};
use super::jitter::later;
use super::names;
use super::plan::{Action, Order, Reason, Scene};
use super::ready::{Patience, never};

pub(super) struct Planner<'a> {
    pub(super) scene: Scene<'a>,
    pub(super) coverage: Coverage<'a>,
    /// With what this plan orders counted.
    pub(super) attempts: Attempts,
    /// Names that are being ordered or issued.
    busy: BTreeSet<&'a str>,
    pub(super) probing: BTreeMap<&'a str, Timestamp>,
    pub(super) actions: Vec<Action>,
    pub(super) probes: BTreeSet<&'a str>,
    waits: BTreeMap<(Timestamp, Reason), BTreeSet<String>>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(scene: &Scene<'a>) -> Planner<'a> {
        let (mut busy, mut probing) = (BTreeSet::new(), BTreeMap::new());
        for started in scene.under_way {
            match &started.action {
                Action::Order(Order { names, .. }) | Action::Issue { names, .. } => busy.extend(names.iter().map(String::as_str)),
                Action::Probe { names } => probing.extend(names.iter().map(|name| (name.as_str(), started.since))),
                _ => {}
            }
        }
        Planner {
            scene: *scene,
            coverage: Coverage::new(scene.records, scene.now, scene.seed),
            attempts: scene.attempts.clone(),
            busy,
            probing,
            actions: Vec::new(),
            probes: BTreeSet::new(),
            waits: BTreeMap::new(),
        }
    }

    /// What becomes of the certificates that there are.
    pub(super) fn keep(&mut self) {
        let (scene, in_use) = (self.scene, self.coverage.in_use(self.scene.wishes));
        for record in scene.records {
            let id = record.id.clone();
            match (in_use.contains(id.as_str()), record.unwanted_since) {
                (true, _) if record.source == Source::File => self.wait(record.names.iter(), record.not_after, Reason::File),
                (_, _) if record.source == Source::File => {}
                (true, Some(_)) => self.actions.push(Action::Want { id }),
                (true, None) => self.wait(record.names.iter(), due(record, scene.seed), Reason::Renewal),
                (false, None) => self.actions.push(Action::Unwant { id }),
                (false, Some(since)) => match later(since, scene.policy.keep_unwanted).min(record.not_after) {
                    until if until <= scene.now => self.actions.push(Action::Prune { id, names: record.names.clone() }),
                    until => self.wait(record.names.iter(), until, Reason::Keep),
                },
            }
        }
    }

    pub(super) fn obtain(&mut self) {
        let (scene, mut all) = (self.scene, Vec::new());
        for source in [Source::Internal, Source::SelfSigned, Source::Acme] {
            let wildcards = self.wildcards(source);
            for wish in scene.wishes.iter().filter(|wish| wish.source == source) {
                all.extend(groups(wish, &self.coverage, &self.attempts, &wildcards, scene.policy.names_per_certificate));
            }
        }
        // What has none goes before what has one still, as long as that has time.
        all.sort_by_key(|group| (group.renews.is_some() && group.pressing > scene.now, group.pressing));
        for group in &all {
            match group.wish.source {
                Source::Acme => self.place(group),
                _ => self.issue(group),
            }
        }
    }

    /// Wildcards that are wanted, can be had and have not failed: names below them need no certificate of their own.
    fn wildcards(&self, source: Source) -> BTreeSet<&'a str> {
        let wishes = self.scene.wishes.iter().filter(|wish| wish.source == source);
        let healthy = |name: &&str| {
            let failed = self.attempts.name(name).is_some_and(|history| history.failed.is_some()) || self.attempts.is_alone(name);
            names::is_wildcard(name) && !failed && (source != Source::Acme || never(self.scene.policy, name).is_none())
        };
        wishes.flat_map(|wish| wish.names.iter().map(String::as_str)).filter(healthy).collect()
    }

    /// A certificate of our own needs nobody's leave; only our own failures make it wait.
    fn issue(&mut self, group: &Group<'a>) {
        let patience = self.patience(group);
        let mut names = Vec::new();
        let mut needed = false;
        for (is_needed, name) in self.members(group) {
            let failed = self.attempts.name(name).and_then(|history| history.failed.as_ref());
            match patience.pause(failed, name, self.scene.policy.longest_issuer_pause) {
                Some((until, error)) => self.wait([name], until, Reason::Failed { error }),
                None => {
                    names.push(name.to_owned());
                    needed |= is_needed;
                }
            }
        }
        if needed {
            names.sort();
            self.actions.push(Action::Issue { service: group.wish.service.clone(), source: group.wish.source, names });
        }
    }

    /// Authorities are asked when they want their certificates renewed: soon after they gave them, and then as often as they say.
    pub(super) fn ask(&mut self) {
        let (scene, in_use) = (self.scene, self.coverage.in_use(self.scene.wishes));
        let asking =
            |id: &str| scene.under_way.iter().any(|started| matches!(&started.action, Action::AskWindow { id: own, .. } if own == id));
        for record in scene.records.iter().filter(|record| record.source == Source::Acme && in_use.contains(record.id.as_str())) {
            let issuer = record.issuer.as_deref().and_then(|name| scene.policy.issuer(name));
            let Some(issuer) = issuer.filter(|_| due(record, scene.seed) > scene.now && !asking(&record.id)) else { continue };
            let patience = Patience { policy: scene.policy, now: scene.now, seed: scene.seed, longest: life(record) / 20 };
            let told = record.window.map(|window| window.ask_again);
            let down = patience.down(issuer, &self.attempts).map(|(until, _)| until);
            match told.max(self.attempts.window(&record.id)).max(down) {
                Some(until) if until > scene.now => self.wait(record.names.iter(), until, Reason::Window),
                _ => {
                    let (id, issuer, names) = (record.id.clone(), issuer.name.clone(), record.names.clone());
                    self.actions.push(Action::AskWindow { id, issuer, names });
                }
            }
        }
    }

    pub(super) fn finish(mut self) -> Vec<Action> {
        if !self.probes.is_empty() {
            let names = self.probes.iter().map(|name| (*name).to_owned()).collect();
            self.actions.push(Action::Probe { names });
        }
        let waits =
            self.waits.into_iter().map(|((until, reason), names)| Action::Wait { names: names.into_iter().collect(), until, reason });
        self.actions.extend(waits);
        self.actions
    }

    /// The names of `group` that are not being worked at, and whether they are needed.
    pub(super) fn members(&self, group: &Group<'a>) -> Vec<(bool, &'a str)> {
        let needed = group.needed.iter().map(|name| (true, *name));
        let all = needed.chain(group.joining.iter().map(|name| (false, *name)));
        all.filter(|(_, name)| !self.busy.contains(name)).collect()
    }

    pub(super) fn patience(&self, group: &Group<'_>) -> Patience<'a> {
        Patience { policy: self.scene.policy, now: self.scene.now, seed: self.scene.seed, longest: group.patience }
    }

    /// Until a moment that is still to come.
    pub(super) fn wait(&mut self, names: impl IntoIterator<Item = impl AsRef<str>>, until: Timestamp, reason: Reason) {
        let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
        if until > self.scene.now && !names.is_empty() {
            self.waits.entry((until, reason)).or_default().extend(names);
        }
    }
}
