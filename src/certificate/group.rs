//! Which names go into one certificate: those of one service, renewals together with what was added since.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::attempt::Attempts;
use super::coverage::{Coverage, Service};
use super::due;
use super::names;
use super::record::Record;
use super::wanted::Wish;

/// However short certificates live, nobody is asked again at once.
const SHORTEST_PATIENCE: SignedDuration = SignedDuration::from_secs(5);

/// Names that may be ordered together. Each may be left out where it is not ready.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub wish: &'a Wish,
    /// Names that need a certificate: without one of them there is no reason to order.
    pub needed: Vec<&'a str>,
    /// Names that have one, and would better be in this one at the next occasion.
    pub joining: Vec<&'a str>,
    /// The certificate that it takes the place of.
    pub renews: Option<&'a Record>,
    /// The longest pause after failures: there is less time where certificates live shorter.
    pub patience: SignedDuration,
    /// From when on it goes before names that have no certificate.
    pub pressing: Timestamp,
}

/// What one certificate serves of a wish.
struct Part<'a> {
    record: &'a Record,
    names: Vec<&'a str>,
}

/// The groups of one wish. `wildcards`: those that are wished for and can be had, which spare the names below them.
pub fn groups<'a>(wish: &'a Wish, coverage: &Coverage<'a>, attempts: &Attempts, wildcards: &BTreeSet<&str>, most: usize) -> Vec<Group<'a>> {
    let (mut due, mut fresh): (Vec<Part<'_>>, Vec<Part<'_>>) = <_>::default();
    let (mut missing, mut found) = (Vec::new(), Vec::new());
    let spared = |name| names::wildcard(name).is_some_and(|wild| wildcards.contains(wild.as_str()));
    for name in wish.names.iter().map(String::as_str).filter(|name| !spared(name)) {
        match coverage.of(name, wish.source) {
            Service::Fresh(record) if record.service != wish.service || record.source != wish.source => {}
            // What a wildcard serves need not be in a certificate by itself.
            Service::Fresh(record) if !record.names.iter().any(|own| own == name) => {}
            Service::Fresh(record) => add(&mut fresh, name, record),
            Service::Due(record) if attempts.is_alone(name) => found.push(gather(wish, coverage, vec![name], Vec::new(), Some(record))),
            Service::Due(record) => add(&mut due, name, record),
            Service::Missing(_) if attempts.is_alone(name) => found.push(gather(wish, coverage, vec![name], Vec::new(), None)),
            Service::Missing(_) => missing.push(name),
        }
    }
    for parts in [&mut due, &mut fresh] {
        parts.sort_by_key(|part| (part.record.not_after, &part.record.id));
    }
    while !due.is_empty() {
        let Part { record, names: mut needed } = due.remove(0);
        let mut room = most.saturating_sub(needed.len());
        needed.extend(take(&mut due, &mut room));
        let joining = take(&mut fresh, &mut room);
        needed.extend(missing.drain(..missing.len().min(room)));
        found.push(gather(wish, coverage, needed, joining, Some(record)));
    }
    found.extend(missing.chunks(most.max(1)).map(|names| gather(wish, coverage, names.to_vec(), Vec::new(), None)));
    found
}

/// The names of those that fit as a whole: half a certificate would have to be renewed all the same.
fn take<'a>(parts: &mut Vec<Part<'a>>, room: &mut usize) -> Vec<&'a str> {
    let mut taken = Vec::new();
    parts.retain(|part| {
        let fits = part.names.len() <= *room;
        if fits {
            *room -= part.names.len();
            taken.extend_from_slice(&part.names);
        }
        !fits
    });
    taken
}

fn gather<'a>(
    wish: &'a Wish,
    coverage: &Coverage<'a>,
    needed: Vec<&'a str>,
    joining: Vec<&'a str>,
    renews: Option<&'a Record>,
) -> Group<'a> {
    let last = || needed.iter().filter_map(|name| coverage.of(name, wish.source).record());
    let patience = last().map(|record| due::life(record) / 20).min().unwrap_or(SignedDuration::MAX).max(SHORTEST_PATIENCE);
    let pressing = last().map(due::pressing).min().unwrap_or(Timestamp::MAX);
    Group { wish, needed, joining, renews, patience, pressing }
}

fn add<'a>(parts: &mut Vec<Part<'a>>, name: &'a str, record: &'a Record) {
    match parts.iter_mut().find(|part| part.record.id == record.id) {
        Some(part) => part.names.push(name),
        None => parts.push(Part { record, names: vec![name] }),
    }
}
