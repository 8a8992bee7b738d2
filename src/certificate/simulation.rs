//! The plan over months: a clock, authorities with outages and limits, names that come, go and break, restarts. For tests only.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::Source;
use super::attempt::Attempts;
use super::failure::{Blame, Failure, Refusal};
use super::issuer::{Issuer, Limit, Limits, Policy};
use super::jitter::{later, part};
use super::names;
use super::plan::{Action, Order, Reason, Scene, Started, plan};
use super::record::{Record, Secret, Window};
use super::standing::{State, standings};
use super::wanted::Wish;

/// A certificate without content.
pub fn record(id: &str, service: &str, names: &[&str], not_before: Timestamp, not_after: Timestamp) -> Record {
    Record {
        id: id.to_owned(),
        service: service.to_owned(),
        source: Source::Acme,
        issuer: Some("first".to_owned()),
        names: names.iter().map(|name| name.to_string()).collect(),
        chain: String::new(),
        key: Secret::new(String::new()),
        not_before,
        not_after,
        window: None,
        unwanted_since: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

fn seconds(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// What becomes of a name for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Health {
    Good,
    /// It does not reach us.
    Dead,
    /// It reaches us, but the authority finds that it does not.
    Treacherous,
}

/// From, to, in seconds.
type Span = (i64, i64);

#[derive(Clone, Debug)]
struct Authority {
    life: i64,
    /// It names windows for renewals.
    windows: bool,
    outages: Vec<Span>,
    orders: Vec<Timestamp>,
    /// When, for which names, exempt from the limit by domain.
    issued: Vec<(Timestamp, Vec<String>, bool)>,
    failed: Vec<(Timestamp, String)>,
    replaced: BTreeSet<String>,
}

impl Authority {
    fn new(life: i64, windows: bool, outages: &[Span]) -> Authority {
        Authority {
            life,
            windows,
            outages: outages.to_vec(),
            orders: Vec::new(),
            issued: Vec::new(),
            failed: Vec::new(),
            replaced: BTreeSet::new(),
        }
    }

    fn is_up(&self, now: i64) -> bool {
        !within(&self.outages, now)
    }

    /// A real authority answers 429; here it must not come to that.
    fn count(&self, limits: &Limits, order: &Order, now: Timestamp) {
        let over = |limit: Option<Limit>, times: Vec<Timestamp>| {
            // Without the minute of grace that we add.
            let limit = limit.map(|limit| (limit.most, limit.per - seconds(60)));
            limit.is_some_and(|(most, per)| times.iter().filter(|time| later(**time, per) > now).count() >= most)
        };
        assert!(!over(limits.orders, self.orders.clone()), "too many orders at {now}");
        for name in &order.names {
            let failed = self.failed.iter().filter(|(_, own)| own == name).map(|(at, _)| *at).collect();
            assert!(!over(limits.failures, failed), "{name} failed too often before {now}");
            let domain = names::registered(name);
            let of_domain = |names: &[String]| names.iter().any(|name| names::registered(name) == domain);
            let issued = self.issued.iter().filter(|(_, names, exempt)| !exempt && of_domain(names)).map(|(at, ..)| *at).collect();
            assert!(order.exempt || !over(limits.domain, issued), "too many certificates of {domain} at {now}");
        }
        let same = self.issued.iter().filter(|(_, names, _)| *names == order.names).map(|(at, ..)| *at).collect();
        assert!(!over(limits.duplicates, same), "too many certificates of {:?} at {now}", order.names);
    }
}

fn within(spans: &[Span], now: i64) -> bool {
    spans.iter().any(|(from, to)| (*from..*to).contains(&now))
}

/// Everything there is, and what happened.
struct World {
    now: i64,
    seed: u64,
    policy: Policy,
    authorities: BTreeMap<String, Authority>,
    /// Each wish for its time.
    wishes: Vec<(Span, Wish)>,
    health: BTreeMap<String, Vec<(Span, Health)>>,
    restarts: Vec<i64>,
    records: Vec<Record>,
    attempts: Attempts,
    under_way: Vec<(Started, i64)>,
    count: u64,
    plans: u64,
    /// Names that the authorities tried in vain.
    refused: BTreeSet<String>,
}

impl World {
    fn new(policy: Policy, authorities: Vec<Authority>, seed: u64) -> World {
        let names = policy.issuers.iter().map(|issuer| issuer.name.clone());
        World {
            now: 0,
            seed,
            authorities: names.zip(authorities).collect(),
            policy,
            wishes: Vec::new(),
            health: BTreeMap::new(),
            restarts: Vec::new(),
            records: Vec::new(),
            attempts: Attempts::default(),
            under_way: Vec::new(),
            count: 0,
            plans: 0,
            refused: BTreeSet::new(),
        }
    }

    fn wanted(&self) -> Vec<Wish> {
        self.wishes.iter().filter(|((from, to), _)| (*from..*to).contains(&self.now)).map(|(_, wish)| wish.clone()).collect()
    }

    fn health(&self, name: &str) -> Health {
        let spans = self.health.get(name).into_iter().flatten();
        spans.filter(|((from, to), _)| (*from..*to).contains(&self.now)).map(|(_, health)| *health).next().unwrap_or(Health::Good)
    }

    /// Lives until `end`; `check` looks at the world whenever something may have changed.
    fn run(&mut self, end: i64, mut check: impl FnMut(&World)) {
        while self.now < end {
            self.settle();
            let actions = self.plan();
            check(self);
            let mut next = self.under_way.iter().map(|(_, ends)| *ends).min().unwrap_or(end).min(end);
            for action in &actions {
                if let Action::Wait { until, .. } = action {
                    next = next.min((until.as_second() - at(0).as_second()).max(self.now + 1));
                }
            }
            let changes = self.wishes.iter().flat_map(|((from, to), _)| [*from, *to]).chain(self.restarts.iter().copied());
            next = changes.filter(|change| *change > self.now).min().unwrap_or(end).min(next);
            assert!(next > self.now, "time goes on");
            self.now = next;
            if self.restarts.contains(&self.now) {
                self.restart();
            }
        }
    }

    /// Plans and begins until there is nothing left to begin.
    fn plan(&mut self) -> Vec<Action> {
        for _ in 0..20 {
            let wishes = self.wanted();
            let started: Vec<Started> = self.under_way.iter().map(|(started, _)| started.clone()).collect();
            let scene = Scene {
                wishes: &wishes,
                records: &self.records.iter().collect::<Vec<_>>(),
                attempts: &self.attempts,
                under_way: &started,
                policy: &self.policy,
                now: at(self.now),
                seed: self.seed,
            };
            let actions = plan(&scene);
            self.plans += 1;
            if self.plans % 64 == 1 {
                assert_eq!(actions, plan(&scene), "the same of the same");
            }
            if actions.iter().all(|action| matches!(action, Action::Wait { .. })) {
                return actions;
            }
            let names: BTreeSet<String> = wishes.iter().flat_map(|wish| wish.names.iter().cloned()).collect();
            for action in actions {
                self.begin(action);
            }
            let wanted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            let ids = self.records.iter().map(|record| record.id.as_str()).collect();
            self.attempts = std::mem::take(&mut self.attempts).forget(&wanted, &ids, at(self.now));
        }
        panic!("there is always more to do at {}", self.now);
    }

    fn begin(&mut self, action: Action) {
        let now = at(self.now);
        let started = |action| Started { action, since: now };
        match action {
            Action::Wait { .. } => {}
            Action::Want { id } => self.record(&id).unwanted_since = None,
            Action::Unwant { id } => self.record(&id).unwanted_since = Some(now),
            Action::Prune { id, .. } => self.records.retain(|record| record.id != id),
            Action::Issue { service, source, names } => {
                self.add(&service, source, None, &names, 7 * DAY);
                self.attempts = std::mem::take(&mut self.attempts).issued(None, &names, now);
            }
            Action::Probe { names } => {
                for name in names {
                    let takes = if self.health(&name) == Health::Dead { 5 } else { 1 };
                    self.under_way.push((started(Action::Probe { names: vec![name] }), self.now + takes));
                }
            }
            Action::Order(order) => {
                let issuer = self.policy.issuer(&order.issuer).expect("a configured issuer");
                self.attempts = std::mem::take(&mut self.attempts).ordered(issuer, &order, now);
                let takes = 3 + part(self.seed, &order.names[0], self.count) as i64 % 20;
                let authority = self.authorities.get_mut(&order.issuer).expect("an authority");
                if authority.is_up(self.now) {
                    authority.count(&issuer.limits, &order, now);
                    authority.orders.push(now);
                    if let Some(replaced) = &order.replaces {
                        assert!(!authority.replaced.contains(replaced), "replaced twice");
                    }
                }
                self.under_way.push((started(Action::Order(order)), self.now + takes));
            }
            Action::AskWindow { id, issuer, .. } => {
                let authority = &self.authorities[&issuer];
                let (up, windows) = (authority.is_up(self.now), authority.windows);
                self.attempts = std::mem::take(&mut self.attempts).asked(&id, later(now, seconds(if up { 30 * DAY } else { HOUR })));
                if up && windows {
                    let record = self.record(&id);
                    let life = record.not_after.duration_since(record.not_before);
                    let window = |part| later(record.not_before, life * part / 100);
                    record.window =
                        Some(Window { start: window(60), end: window(70), ask_again: later(now, seconds(6 * HOUR).min(life / 20)) });
                }
            }
        }
    }

    /// Ends what has come to its end.
    fn settle(&mut self) {
        let (ended, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.under_way).into_iter().partition(|(_, ends)| *ends <= self.now);
        self.under_way = rest;
        for (started, _) in ended {
            let attempts = std::mem::take(&mut self.attempts);
            self.attempts = match started.action {
                Action::Probe { names } => {
                    let answer = if self.health(&names[0]) == Health::Dead { Err("no such host") } else { Ok(()) };
                    attempts.probed(&names[0], answer, at(self.now))
                }
                Action::Order(order) => match self.answer(&order) {
                    Ok(()) => attempts.issued(Some(&order.issuer), &order.names, at(self.now)),
                    Err(failure) => attempts.failed(Some(&order.issuer), &order.names, &failure, at(self.now)),
                },
                _ => attempts,
            };
        }
    }

    fn answer(&mut self, order: &Order) -> Result<(), Failure> {
        let now = at(self.now);
        let bad: Vec<String> = order.names.iter().filter(|name| self.health(name) != Health::Good).cloned().collect();
        let authority = self.authorities.get_mut(&order.issuer).expect("an authority");
        if !authority.is_up(self.now) {
            return Err(Failure::unavailable("connection refused"));
        }
        if !bad.is_empty() {
            authority.failed.extend(bad.iter().map(|name| (now, name.clone())));
            self.refused.extend(bad.iter().cloned());
            let refusal = Refusal { tried: true, ..Refusal::ours("connection", Blame::Name, "connection refused") };
            return Err(Failure::Names(bad.into_iter().map(|name| (name, refusal.clone())).collect()));
        }
        authority.issued.push((now, order.names.clone(), order.exempt));
        authority.replaced.extend(order.replaces.clone());
        let life = authority.life;
        self.add(&order.service, Source::Acme, Some(&order.issuer), &order.names, life);
        Ok(())
    }

    fn add(&mut self, service: &str, source: Source, issuer: Option<&str>, names: &[String], life: i64) {
        self.count += 1;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let id = format!("{:016x}", self.count);
        let record = record(&id, service, &names, at(self.now), at(self.now + life));
        self.records.push(Record { source, issuer: issuer.map(str::to_owned), ..record });
    }

    /// What was under way is lost, though the authorities may have done it. What was stored is read again.
    fn restart(&mut self) {
        for (started, _) in std::mem::take(&mut self.under_way) {
            if let Action::Order(order) = started.action {
                let records = self.records.clone();
                let _ = self.answer(&order);
                self.records = records;
            }
        }
        let stored = serde_json::to_vec(&self.attempts).expect("JSON");
        assert!(stored.len() < 1_000_000, "{} bytes", stored.len());
        self.attempts = serde_json::from_slice(&stored).expect("the same");
    }

    fn record(&mut self, id: &str) -> &mut Record {
        self.records.iter_mut().find(|record| record.id == id).expect("a record")
    }

    fn is_served(&self, name: &str) -> bool {
        let covers = |record: &Record| record.names.iter().any(|own| names::covers(own, name));
        self.records.iter().any(|record| record.not_after > at(self.now) && covers(record))
    }
}

fn wish(service: &str, names: &[&str]) -> Wish {
    Wish { service: service.to_owned(), source: Source::Acme, names: names.iter().map(|name| name.to_string()).collect() }
}

fn policy(issuers: &[(&str, Limits)]) -> Policy {
    let issuer = |(name, limits): &(&str, Limits)| Issuer { name: name.to_string(), public: true, limits: limits.clone() };
    Policy { issuers: issuers.iter().map(issuer).collect(), dns: true, ..Policy::default() }
}

const ALWAYS: Span = (i64::MIN, i64::MAX);

#[test]
fn a_hundred_names_of_which_ten_are_dead() {
    for together in [true, false] {
        let authority = Authority::new(90 * DAY, true, &[]);
        let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![authority], 1);
        let names: Vec<String> = (0..100).map(|number| format!("n{number}.example{}.com", number % 5)).collect();
        let dead: BTreeSet<&String> = names.iter().step_by(10).collect();
        for name in &dead {
            world.health.insert(name.to_string(), vec![(ALWAYS, Health::Dead)]);
        }
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        if together {
            world.wishes.push((ALWAYS, wish("web", &all)));
        } else {
            world.wishes.extend(all.iter().map(|name| (ALWAYS, wish(&format!("service-{name}"), &[name]))));
        }
        world.run(60, |_| {});
        assert_eq!(names.iter().filter(|name| world.is_served(name)).count(), 90);
        assert_eq!(world.refused, BTreeSet::new(), "the authority saw no failure");
        let authority = &world.authorities["first"];
        assert_eq!(authority.orders.len(), if together { 1 } else { 90 });
        world.run(4 * HOUR, |_| {});
        assert_eq!(world.refused, BTreeSet::new());
        assert!(world.plans < 1_500, "{} plans", world.plans);

        let revived = *dead.iter().next().expect("one");
        world.health.remove(revived);
        world.run(4 * HOUR + 20 * MINUTE, |_| {});
        assert!(world.is_served(revived), "seen within the pause");
    }
}

#[test]
fn a_bad_name_blocks_nobody_and_limits_hold() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, true, &[])], 3);
    world.wishes.push((ALWAYS, wish("web", &["a.example.com", "b.example.com", "bad.example.com"])));
    world.health.insert("bad.example.com".into(), vec![(ALWAYS, Health::Treacherous)]);
    world.run(HOUR, |_| {});
    assert!(world.is_served("a.example.com") && world.is_served("b.example.com") && !world.is_served("bad.example.com"));
    assert!(world.authorities["first"].failed.len() >= 4, "it is tried again");
    world.run(30 * DAY, |_| {});
    let tried = world.authorities["first"].failed.len();
    assert!((100..200).contains(&tried), "{tried} times in a month");
}

#[test]
fn the_next_issuer_serves_while_the_first_is_down_and_the_first_comes_back() {
    let authorities = vec![Authority::new(90 * DAY, true, &[(0, DAY)]), Authority::new(90 * DAY, false, &[])];
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT), ("second", Limits::UNTOLD)]), authorities, 5);
    world.wishes.push((ALWAYS, wish("web", &["a.example.com"])));
    world.wishes.push(((2 * DAY, i64::MAX), wish("later", &["b.example.com"])));
    world.run(HOUR, |_| {});
    assert_eq!(world.records[0].issuer.as_deref(), Some("second"));
    world.run(100 * DAY, |world| assert!(world.now < MINUTE || world.is_served("a.example.com")));
    let issuers = |name: &str| -> Vec<String> {
        let of = world.records.iter().filter(|record| record.names.iter().any(|own| own == name));
        of.map(|record| record.issuer.clone().unwrap_or_default()).collect()
    };
    assert_eq!(issuers("b.example.com").first().map(String::as_str), Some("first"));
    assert_eq!(issuers("a.example.com").last().map(String::as_str), Some("first"));
}

#[test]
fn retry_after_is_kept_and_falls_to_the_next() {
    let authorities = vec![Authority::new(90 * DAY, true, &[]), Authority::new(90 * DAY, true, &[])];
    let mut world = World::new(policy(&[("first", Limits::UNTOLD), ("second", Limits::UNTOLD)]), authorities, 5);
    let limited = |names: &[&str], until| Failure::RateLimited {
        until: at(until),
        names: names.iter().map(|name| name.to_string()).collect(),
        text: "too many".into(),
    };
    let name = ["a.example.com".to_owned()];
    world.attempts = Attempts::default().failed(Some("first"), &name, &limited(&[], 2 * HOUR), at(0));
    world.attempts = std::mem::take(&mut world.attempts).failed(Some("second"), &name, &limited(&["a.example.com"], HOUR), at(0));
    world.wishes.push((ALWAYS, wish("a", &["a.example.com"])));
    world.wishes.push((ALWAYS, wish("b", &["b.example.com"])));
    world.run(HOUR - 1, |_| {});
    assert!(world.is_served("b.example.com") && !world.is_served("a.example.com"));
    assert_eq!((world.authorities["first"].orders.len(), world.authorities["second"].orders.len()), (0, 1));
    let wishes = world.wanted();
    let scene = Scene {
        wishes: &wishes,
        records: &world.records.iter().collect::<Vec<_>>(),
        attempts: &world.attempts,
        under_way: &[],
        policy: &world.policy,
        now: at(world.now),
        seed: 5,
    };
    let standing = &standings(&scene)[0];
    assert_eq!((standing.state, standing.next), (State::Waiting, Some(at(HOUR))), "{standing:?}");
    assert!(standing.error.as_deref().is_some_and(|error| error.contains("too many")), "{standing:?}");
    world.run(HOUR + MINUTE, |_| {});
    assert!(world.is_served("a.example.com"));
}

#[test]
fn certificates_of_our_own_and_names_that_none_can_certify() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, true, &[])], 5);
    let own = |source| Wish { source, ..wish("own", &["db.internal", "localhost", "10.0.0.1"]) };
    world.wishes.push((ALWAYS, own(Source::Internal)));
    world.wishes.push((ALWAYS, own(Source::SelfSigned)));
    world.wishes.push((ALWAYS, wish("web", &["wiki", "app.test", "app.example.com"])));
    world.run(30 * DAY, |world| {
        for source in [Source::Internal, Source::SelfSigned] {
            let valid = |record: &&Record| record.source == source && record.not_after > at(world.now);
            assert!(world.records.iter().find(valid).is_some_and(|record| record.names.len() == 3));
        }
    });
    assert_eq!(world.authorities["first"].orders.len(), 1);
    assert!(world.is_served("app.example.com"));
    let wishes = world.wanted();
    let scene = Scene {
        wishes: &wishes,
        records: &world.records.iter().collect::<Vec<_>>(),
        attempts: &world.attempts,
        under_way: &[],
        policy: &world.policy,
        now: at(world.now),
        seed: 5,
    };
    let states: BTreeMap<String, State> = standings(&scene).into_iter().map(|standing| (standing.name, standing.state)).collect();
    assert_eq!((states["wiki"], states["app.test"], states["app.example.com"]), (State::Refused, State::Refused, State::Valid));
}

#[test]
fn labels_that_come_back_in_time_find_their_certificate() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, false, &[])], 5);
    world.wishes.push(((0, DAY), wish("web", &["a.example.com"])));
    world.wishes.push(((20 * DAY, 21 * DAY), wish("other", &["a.example.com"])));
    world.run(22 * DAY, |_| {});
    assert_eq!((world.records.len(), world.authorities["first"].orders.len()), (1, 1), "used again, by another service too");
    assert_eq!(world.records[0].unwanted_since, Some(at(21 * DAY)));
    world.run(51 * DAY + 1, |_| {});
    assert!(world.records.is_empty(), "30 days unwanted");
}

#[test]
fn wildcards_spare_the_names_below_them_until_they_fail() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, true, &[])], 5);
    world.wishes.push((ALWAYS, wish("web", &["*.example.com", "example.com"])));
    world.wishes.push((ALWAYS, wish("app", &["app.example.com", "a.b.example.com"])));
    world.run(200 * DAY, |world| {
        assert!(world.now < MINUTE || ["x.example.com", "example.com", "app.example.com"].iter().all(|name| world.is_served(name)));
    });
    assert!(world.records.iter().all(|record| !record.names.contains(&"app.example.com".to_owned())));

    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, true, &[])], 5);
    world.wishes.push((ALWAYS, wish("web", &["*.example.com", "app.example.com"])));
    world.health.insert("*.example.com".into(), vec![(ALWAYS, Health::Treacherous)]);
    world.run(HOUR, |_| {});
    assert!(world.is_served("app.example.com") && !world.is_served("x.example.com"));
}

#[test]
fn new_names_are_ordered_at_once_and_join_at_the_next_renewal() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, true, &[])], 5);
    world.wishes.push(((0, DAY), wish("web", &["a.example.com"])));
    world.wishes.push(((DAY, i64::MAX), wish("web", &["a.example.com", "b.example.com"])));
    world.run(DAY + MINUTE, |_| {});
    let names = |world: &World| -> Vec<usize> { world.records.iter().map(|record| record.names.len()).collect() };
    assert_eq!(names(&world), [1, 1]);
    world.run(70 * DAY, |_| {});
    assert_eq!(names(&world), [1, 1, 2]);
    assert_eq!(world.authorities["first"].orders.len(), 3);
}

#[test]
fn services_of_one_domain_keep_its_limits() {
    let mut world = World::new(policy(&[("first", Limits::LETS_ENCRYPT)]), vec![Authority::new(90 * DAY, false, &[])], 5);
    world.wishes.extend((0..80).map(|number| (ALWAYS, wish(&format!("s{number}"), &[&format!("n{number}.example.com")]))));
    world.wishes.push(((HOUR, i64::MAX), wish("neighbour", &["n.example.net"])));
    world.run(2 * HOUR, |_| {});
    assert_eq!(world.authorities["first"].issued.len(), 51, "fifty, and the neighbour");
    world.run(15 * DAY, |_| {});
    assert_eq!(world.authorities["first"].issued.len(), 81);
    world.run(100 * DAY, |_| {});
    assert!((0..80).all(|number| world.is_served(&format!("n{number}.example.com"))));
    assert!(world.authorities["first"].issued.len() > 150, "renewed");
}

/// A name, and how it fares.
type Fate = (u8, u8);

/// One history to live through.
#[derive(Clone, Debug)]
struct Plot {
    life: i64,
    windows: bool,
    second: bool,
    limits: bool,
    seed: u64,
    /// By service: from, how long (in hundredths of the whole), names, how they fare.
    services: Vec<(i64, i64, Vec<Fate>)>,
    /// Of the first issuer: lengths in hundredths of what is bearable, and of the time between.
    outages: Vec<(i64, i64)>,
    restarts: Vec<i64>,
}

fn plots(life: i64) -> impl Strategy<Value = Plot> {
    let names = prop::collection::vec((0..12u8, 0..10u8), 1..6);
    let services = prop::collection::vec((0..30i64, 30..200i64, names), 1..5);
    let outages = prop::collection::vec((0..=100i64, 0..=100i64), 0..40);
    let restarts = prop::collection::vec(0..100i64, 0..6);
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>(), services, outages, restarts).prop_map(
        move |(windows, second, limits, seed, services, outages, restarts)| Plot {
            life,
            windows,
            second,
            limits,
            seed,
            services,
            outages,
            restarts,
        },
    )
}

impl Plot {
    /// Lives through it, and checks what must hold at every moment.
    fn live(&self) {
        let span = if self.life < DAY { DAY } else { (self.life * 4).min(240 * DAY) };
        let hundredth = span / 100;
        let limits = if self.limits { Limits::LETS_ENCRYPT } else { Limits::UNTOLD };
        let mut issuers = vec![("first", limits)];
        let mut authorities = vec![Authority::new(self.life, self.windows, &self.outages())];
        if self.second {
            issuers.push(("second", Limits::UNTOLD));
            authorities.push(Authority::new(self.life, !self.windows, &[(span / 2, span / 2 + self.bearable())]));
        }
        let mut world = World::new(policy(&issuers), authorities, self.seed);
        let mut taken = BTreeSet::new();
        let mut wanted = Vec::new();
        for (number, (from, length, names)) in self.services.iter().enumerate() {
            let own: Vec<(u8, u8)> = names.iter().copied().filter(|(name, _)| taken.insert(*name)).collect();
            let names: Vec<String> = own.iter().map(|(name, _)| name_of(*name)).collect();
            let time = (from * hundredth, (from + length) * hundredth);
            for (name, (_, fate)) in names.iter().zip(&own) {
                self.decide(&mut world, name, *fate, span);
                wanted.push((name.clone(), time, *fate));
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            world.wishes.push((time, wish(&format!("s{number}"), &names)));
        }
        world.restarts = self.restarts.iter().map(|part| part * hundredth + 3).collect();
        let mut served = BTreeSet::new();
        world.run(span, |world| self.check(world, &wanted, &mut served));
        assert!(world.plans < 60_000, "{} plans", world.plans);
    }

    /// The longest outage within which a certificate does not expire: half of the time between renewal and expiry.
    fn bearable(&self) -> i64 {
        self.life / 6
    }

    /// Between outages, the authority answers for at least as long as the longest pause, and then some for orders.
    fn outages(&self) -> Vec<Span> {
        let shortest = (self.life / 20).min(HOUR) + 2 * MINUTE;
        let mut now = self.life / 10;
        let mut found = Vec::new();
        for (length, pause) in &self.outages {
            let outage = self.bearable() * length / 100;
            found.push((now, now + outage));
            now += outage + shortest + self.life * pause / 200;
        }
        found
    }

    fn decide(&self, world: &mut World, name: &str, fate: u8, span: i64) {
        let middle = (span / 3, span / 3 + span / 50);
        let spans = match fate {
            7 if self.life < 90 * DAY => vec![(ALWAYS, Health::Dead)],
            7 => vec![(middle, Health::Dead)],
            8 => vec![(ALWAYS, Health::Treacherous)],
            9 => vec![(middle, Health::Treacherous)],
            _ => return,
        };
        world.health.insert(name.to_owned(), spans);
    }

    /// No name that validates is ever expired. A name that is there has a certificate soon.
    fn check(&self, world: &World, wanted: &[(String, Span, u8)], served: &mut BTreeSet<String>) {
        for (name, (from, to), _) in wanted.iter().filter(|(_, _, fate)| *fate < 7) {
            if !(*from..*to).contains(&world.now) {
                served.remove(name);
            } else if world.is_served(name) {
                served.insert(name.clone());
            } else {
                assert!(!served.contains(name), "{name} expired at {} ({})", world.now, at(world.now));
                let first = &world.authorities["first"];
                let long = 2 * HOUR;
                let up = !first.outages.iter().any(|(begin, end)| *begin <= world.now && *end > world.now - long);
                assert!(!up || self.limits || world.now - from < long, "{name} has none at {}", world.now);
            }
        }
    }
}

fn name_of(number: u8) -> String {
    match number {
        0 => "*.example.com".to_owned(),
        1 => "example.com".to_owned(),
        number => format!("n{number}.example{}.com", if number < 6 { String::new() } else { number.to_string() }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn ten_minutes(plot in plots(10 * MINUTE)) {
        // As a test's authority gives them, which has no limits; nobody could renew so often with Let's Encrypt.
        Plot { limits: false, ..plot }.live();
    }

    #[test]
    fn six_days(plot in plots(6 * DAY)) {
        plot.live();
    }

    #[test]
    fn ninety_days(plot in plots(90 * DAY)) {
        plot.live();
    }
}

#[test]
fn a_plan_waits_for_something() {
    let wishes = [wish("web", &["a.example.com"])];
    let policy = policy(&[("first", Limits::LETS_ENCRYPT)]);
    let planned = |attempts: &Attempts, now| {
        plan(&Scene { wishes: &wishes, records: &[], attempts, under_way: &[], policy: &policy, now: at(now), seed: 1 })
    };
    let attempts = Attempts::default();
    assert_eq!(planned(&attempts, 0)[0], Action::Probe { names: vec!["a.example.com".into()] });
    let attempts = attempts.probed("a.example.com", Err("no such host"), at(0));
    let actions = planned(&attempts, 1);
    let [Action::Wait { until, reason: Reason::Unreachable { .. }, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert!((45..=60).contains(&(until.as_second() - at(0).as_second())));
    let attempts = attempts.probed("a.example.com", Ok(()), at(100));
    let actions = planned(&attempts, 101);
    assert!(matches!(&actions[..], [Action::Order(_)]), "{actions:?}");
    let text = serde_json::to_string(&actions).expect("JSON");
    assert_eq!(serde_json::from_str::<Vec<Action>>(&text).expect("actions"), actions);
}
