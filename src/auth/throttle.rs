//! How fast passwords may be guessed: waits that grow with the failures, for whoever fails, and never for whom somebody else wants out.
//!
//! Three counts, each of its own kind of guessing:
//! - by account and address (IPv6 by /64): a few free tries, then waits that double. Somebody who tries one account.
//! - by address, over all accounts: more free tries, for offices share an address. Somebody who tries one password on all accounts.
//! - by account, over all addresses: it makes nobody wait who has not failed on this account from their own address; those who have get
//!   fewer free tries and longer waits. Somebody who has many addresses. An address adds its free tries at most, so that one of them
//!   alone does no harm.
//!
//! So nobody can lock somebody else out: who comes from an address of their own waits for their own failures only. Where an address is
//! shared with whoever guesses, a browser that has signed in to the account before is counted by itself, and by nothing else.
//!
//! A try counts as failed from its beginning, and is given back when it was not: a thousand guesses at one moment are not one.
//!
//! Memory is bounded by forgetting what failed longest ago. Whatever is counted is so forgotten only after as many other tries as there
//! are places ([`PLACES`]), each of which was let through and counted too. Forgetting thus gives at most the free tries back for each
//! [`PLACES`] guesses elsewhere: it costs ten thousand times what it gains.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;

/// What is remembered of each kind; some 10 MB when all are full.
pub const PLACES: usize = 1 << 16;
const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
/// What failed so long ago is forgotten.
const FORGET: i64 = 24 * HOUR;

/// Tries of one account from one address, or from one known browser, before waits begin.
const FREE: u32 = 5;
const LONGEST: i64 = 15 * MINUTE;
/// While many addresses try the account.
const LONGEST_UNDER_ATTACK: i64 = HOUR;
const ADDRESS_FREE: u32 = 30;
const ADDRESS_LONGEST: i64 = 5 * MINUTE;
/// One failure of an address is forgiven so often,
const ADDRESS_LEAK: i64 = 2 * MINUTE;
/// and one of an account.
const ACCOUNT_LEAK: i64 = 30 * MINUTE;
/// What is no attack yet: four addresses that are out of free tries.
const ACCOUNT_FREE: u32 = 20;
/// So many more failures double the waits once more.
const ACCOUNT_STEP: u32 = 5;

/// Somebody who says who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// Folded.
    pub account: &'a str,
    pub address: IpAddr,
    /// What is known of the browser by its cookie, when it has signed in to this account before and nobody else can have it.
    pub browser: Option<&'a [u8]>,
}

/// Too many tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tries; the next one is possible in {} s", .after.as_secs_f64().ceil())]
pub struct Retry {
    /// More than nothing.
    pub after: Duration,
}

/// The counts of this edge.
#[derive(Debug)]
pub struct Throttle {
    /// Who is counted is known by a keyed hash only: names do not stay in memory, and nobody chooses which collide.
    key: hmac::Key,
    counts: Mutex<Counts>,
}

impl Throttle {
    /// Nobody has failed yet. `key` is random and of this process.
    pub fn new(key: &[u8; 32]) -> Throttle {
        Throttle::with_places(key, PLACES)
    }

    fn with_places(key: &[u8; 32], places: usize) -> Throttle {
        let table = |leak| Table { leak, places, buckets: HashMap::new(), order: BTreeSet::new() };
        let counts = Counts { pairs: table(None), addresses: table(Some(ADDRESS_LEAK)), accounts: table(Some(ACCOUNT_LEAK)) };
        Throttle { key: hmac::Key::new(hmac::HMAC_SHA256, key), counts: Mutex::new(counts) }
    }

    /// May the password be verified now? Then it counts as wrong until one of the others is called with the same attempt; that of an
    /// attempt that broke off stays wrong.
    ///
    /// # Errors
    /// Not yet. That changes no count.
    pub fn check(&self, attempt: Attempt<'_>, now: Timestamp) -> Result<(), Retry> {
        let (keys, now) = (self.keys(attempt), now.as_millisecond());
        let mut counts = self.counts();
        let wait = counts.wait(keys, now);
        if wait > 0 {
            return Err(Retry { after: Duration::from_millis(wait.unsigned_abs()) });
        }
        counts.charge(keys, now);
        Ok(())
    }

    /// The password was wrong: the wait begins now.
    pub fn failed(&self, attempt: Attempt<'_>, now: Timestamp) {
        let (keys, now) = (self.keys(attempt), now.as_millisecond());
        let counts = &mut *self.counts();
        for (table, key) in [(&mut counts.pairs, Some(keys.pair)), (&mut counts.addresses, keys.wide.map(|(address, _)| address))] {
            if let Some(key) = key {
                // It may be forgotten by now.
                let bucket = table.get(key, now);
                table.put(key, Bucket { failures: bucket.failures.max(1), last: now, ..bucket });
            }
        }
    }

    /// The password was right: the account has no failures any more at this address, or in this browser.
    pub fn succeeded(&self, attempt: Attempt<'_>, now: Timestamp) {
        let keys = self.keys(attempt);
        let mut counts = self.counts();
        counts.refund(keys, now.as_millisecond());
        counts.pairs.remove(keys.pair);
    }

    /// Nobody could say whether the password was right.
    pub fn withdrawn(&self, attempt: Attempt<'_>, now: Timestamp) {
        self.counts().refund(self.keys(attempt), now.as_millisecond());
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after every step, also of one that broke off.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys(&self, Attempt { account, address, browser }: Attempt<'_>) -> Keys {
        let network = network(address);
        let key = |kind: u8, parts: &[&[u8]]| {
            let mut context = hmac::Context::with_key(&self.key);
            context.update(&[kind]);
            for part in parts {
                context.update(&(part.len() as u64).to_be_bytes());
                context.update(part);
            }
            let mut key = [0; 16];
            key.copy_from_slice(&context.sign().as_ref()[..16]);
            u128::from_be_bytes(key)
        };
        let account = account.as_bytes();
        match browser {
            Some(browser) => Keys { pair: key(0, &[account, browser]), wide: None },
            None => Keys { pair: key(1, &[account, &network]), wide: Some((key(2, &[&network]), key(3, &[account]))) },
        }
    }
}

/// Who counts as one: an IPv4 address, the 64 bits of IPv6 that a connection to the Internet has at least.
fn network(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => (Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)).octets(),
    }
}

/// Where an attempt is counted.
#[derive(Clone, Copy, Debug)]
struct Keys {
    /// Account and address, or account and browser.
    pair: u128,
    /// Address and account; a known browser is counted by itself.
    wide: Option<(u128, u128)>,
}

#[derive(Debug)]
struct Counts {
    pairs: Table,
    addresses: Table,
    accounts: Table,
}

impl Counts {
    /// Milliseconds from `now` until the attempt may be made.
    fn wait(&mut self, keys: Keys, now: i64) -> i64 {
        let pair = self.pairs.get(keys.pair, now);
        let Some((address, account)) = keys.wide else { return pair.wait(delay(pair.failures, 0), now) };
        let (address, account) = (self.addresses.get(address, now), self.accounts.get(account, now));
        let pressure = account.failures.saturating_sub(ACCOUNT_FREE).div_ceil(ACCOUNT_STEP);
        let of_address = doubled(address.failures.checked_sub(ADDRESS_FREE), ADDRESS_LONGEST);
        pair.wait(delay(pair.failures, pressure), now).max(address.wait(of_address, now))
    }

    fn charge(&mut self, keys: Keys, now: i64) {
        let before = self.pairs.add(keys.pair, now);
        if let Some((address, account)) = keys.wide {
            self.addresses.add(address, now);
            if before < FREE {
                self.accounts.add(account, now);
            }
        }
    }

    fn refund(&mut self, keys: Keys, now: i64) {
        let after = self.pairs.subtract(keys.pair, now);
        if let (Some((address, account)), Some(after)) = (keys.wide, after) {
            self.addresses.subtract(address, now);
            if after < FREE {
                self.accounts.subtract(account, now);
            }
        }
    }
}

/// From the last try of an account at one place to the next, after so many that failed there; `pressure` is how much the account is tried
/// from everywhere.
fn delay(failures: u32, pressure: u32) -> i64 {
    match pressure {
        0 => doubled(failures.checked_sub(FREE), LONGEST),
        _ => doubled(failures.checked_sub(1).map(|more| more.saturating_add(pressure)), LONGEST_UNDER_ATTACK),
    }
}

/// A second, doubled so often.
fn doubled(times: Option<u32>, longest: i64) -> i64 {
    times.map_or(0, |times| (SECOND << times.min(20)).min(longest))
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    failures: u32,
    /// Of the last failure, in milliseconds.
    last: i64,
    /// Until when failures were forgiven.
    forgiven: i64,
}

impl Bucket {
    fn wait(&self, delay: i64, now: i64) -> i64 {
        (self.last + delay - now).max(0)
    }
}

/// What is counted of one kind, by keyed hash.
#[derive(Debug)]
struct Table {
    /// One failure is forgiven so often.
    leak: Option<i64>,
    places: usize,
    buckets: HashMap<u128, Bucket>,
    /// By the time of the last failure.
    order: BTreeSet<(i64, u128)>,
}

impl Table {
    fn get(&self, key: u128, now: i64) -> Bucket {
        let new = Bucket { failures: 0, last: now, forgiven: now };
        let Some(mut bucket) = self.buckets.get(&key).copied() else { return new };
        // A clock that was set back must not make anybody wait for it.
        (bucket.last, bucket.forgiven) = (bucket.last.min(now), bucket.forgiven.min(now));
        if now - bucket.last >= FORGET {
            return new;
        }
        if let Some(leak) = self.leak {
            let times = (now - bucket.forgiven) / leak;
            bucket.failures = bucket.failures.saturating_sub(u32::try_from(times).unwrap_or(u32::MAX));
            bucket.forgiven += times * leak;
        }
        bucket
    }

    fn put(&mut self, key: u128, bucket: Bucket) {
        self.remove(key);
        while self.buckets.len() >= self.places {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.buckets.remove(&oldest);
        }
        self.order.insert((bucket.last, key));
        self.buckets.insert(key, bucket);
    }

    fn remove(&mut self, key: u128) {
        if let Some(bucket) = self.buckets.remove(&key) {
            self.order.remove(&(bucket.last, key));
        }
    }

    /// One failure more. Returns how many there were.
    fn add(&mut self, key: u128, now: i64) -> u32 {
        let bucket = self.get(key, now);
        self.put(key, Bucket { failures: bucket.failures.saturating_add(1), last: now, ..bucket });
        bucket.failures
    }

    /// One failure less. Returns how many there are left; `None` when there was none.
    fn subtract(&mut self, key: u128, now: i64) -> Option<u32> {
        let bucket = self.get(key, now);
        let left = bucket.failures.checked_sub(1);
        match left {
            Some(failures @ 1..) => self.put(key, Bucket { failures, ..bucket }),
            _ => self.remove(key),
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * HOUR;

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millisecond).expect("a time")
    }

    fn from(account: &str, number: u32) -> Attempt<'_> {
        Attempt { account, address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)), browser: None }
    }

    /// How long `attempt` has to wait; a wrong password if it has not.
    fn wrong(throttle: &Throttle, attempt: Attempt<'_>, now: i64) -> i64 {
        match throttle.check(attempt, at(now)) {
            Ok(()) => {
                throttle.failed(attempt, at(now));
                0
            }
            Err(retry) => i64::try_from(retry.after.as_millis()).expect("small"),
        }
    }

    /// Guesses on `account` within a day by somebody with so many addresses who tries as soon as one of them may.
    fn guesses(throttle: &Throttle, account: &str, addresses: u32) -> u32 {
        let mut queue: BTreeSet<(i64, u32)> = (0..addresses).map(|number| (0, number)).collect();
        let mut count = 0;
        while let Some((now, number)) = queue.pop_first().filter(|(now, _)| *now < DAY) {
            match wrong(throttle, from(account, number), now) {
                0 => {
                    count += 1;
                    queue.insert((now, number));
                }
                wait => {
                    queue.insert((now + wait, number));
                }
            }
        }
        count
    }

    #[test]
    fn waits_double_after_the_free_tries_and_are_forgotten() {
        let throttle = Throttle::new(&[1; 32]);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..18 {
            let wait = wrong(&throttle, from("ada", 1), now);
            waits.push(wait / SECOND);
            now += wait;
            assert!(wait == 0 || wrong(&throttle, from("ada", 1), now) == 0);
        }
        assert_eq!(waits, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(wrong(&throttle, from("ada", 1), now + DAY), 0);
        assert_eq!(wrong(&throttle, from("ada", 1), now + DAY), 0, "and the free tries are back");
    }

    #[test]
    fn success_clears_the_account_at_its_address_only() {
        let throttle = Throttle::new(&[1; 32]);
        for _ in 0..FREE {
            assert_eq!(wrong(&throttle, from("ada", 1), 0) + wrong(&throttle, from("bob", 1), 0), 0);
        }
        assert!(wrong(&throttle, from("ada", 1), 0) > 0);
        throttle.check(from("ada", 1), at(SECOND)).expect("after a second");
        throttle.succeeded(from("ada", 1), at(SECOND));
        assert_eq!(wrong(&throttle, from("ada", 1), SECOND), 0);
        assert!(wrong(&throttle, from("bob", 1), 0) > 0);
    }

    #[test]
    fn guesses_at_one_moment_are_not_one() {
        let throttle = Throttle::new(&[1; 32]);
        let passed = (0..1000).filter(|_| throttle.check(from("ada", 1), at(0)).is_ok()).count();
        assert_eq!(passed, 5);
        // What nobody could answer is given back.
        for _ in 0..passed {
            throttle.withdrawn(from("ada", 1), at(0));
        }
        assert_eq!((0..1000).filter(|_| throttle.check(from("ada", 1), at(0)).is_ok()).count(), 5);
    }

    #[test]
    fn one_address_cannot_try_all_accounts() {
        let throttle = Throttle::new(&[1; 32]);
        let names: Vec<String> = (0..10_000).map(|number| format!("user{number}")).collect();
        let (mut now, mut count) = (0, 0);
        for name in &names {
            let wait = wrong(&throttle, from(name, 1), now);
            now += wait;
            count += u32::from(now < DAY && (wait == 0 || wrong(&throttle, from(name, 1), now) == 0));
        }
        assert!((300..1000).contains(&count), "{count}");
        assert_eq!(wrong(&throttle, from("ada", 2), now), 0, "others are not touched");
    }

    #[test]
    fn addresses_of_one_connection_are_one() {
        let throttle = Throttle::new(&[1; 32]);
        let passed = |address: String| {
            let attempt = Attempt { account: "ada", address: address.parse().expect("an address"), browser: None };
            throttle.check(attempt, at(0)).is_ok()
        };
        assert_eq!((0..1000).filter(|host| passed(format!("2001:db8::{host:x}"))).count(), 5);
        assert!(passed("2001:db8:0:1::1".to_owned()));
        assert_eq!((0..10).filter(|_| passed("192.0.2.1".to_owned()) || passed("::ffff:192.0.2.1".to_owned())).count(), 5);
    }

    /// The bound of the day: with many addresses each gets a few dozen guesses, not one each second.
    #[test]
    fn an_attacker_with_many_addresses_gets_few_guesses_a_day() {
        for (addresses, most) in [(1, 112), (4, 4 * 112), (10, 600), (100, 4200), (1000, 40_000)] {
            let count = guesses(&Throttle::new(&[1; 32]), "ada", addresses);
            assert!(count <= most, "{addresses} addresses: {count} guesses");
        }
    }

    #[test]
    fn the_owner_is_never_locked_out() {
        let throttle = Throttle::new(&[1; 32]);
        guesses(&throttle, "ada", 300);
        let now = DAY;
        throttle.check(from("ada", 5000), at(now)).expect("an address that has not failed enters at once, in the middle of an attack");
        throttle.withdrawn(from("ada", 5000), at(now));
        assert_eq!(wrong(&throttle, from("ada", 5000), now), 0);
        let wait = wrong(&throttle, from("ada", 5000), now);
        assert!(wait > 0 && wait <= LONGEST_UNDER_ATTACK, "after a slip the wait is bounded: {wait}");
        // The attacker goes on meanwhile; that makes it no longer.
        for later in 0..60 {
            for number in 0..300 {
                wrong(&throttle, from("ada", number), now + later * MINUTE);
            }
        }
        throttle.check(from("ada", 5000), at(now + wait.max(59 * MINUTE))).expect("the wait ends");
    }

    /// Behind one address with somebody who guesses without pause, as where a load balancer hides who asks.
    #[test]
    fn a_known_browser_is_counted_by_itself() {
        let throttle = Throttle::new(&[1; 32]);
        let known = Attempt { browser: Some(b"known"), ..from("ada", 0) };
        let other = Attempt { browser: Some(b"other"), ..from("ada", 0) };
        guesses(&throttle, "ada", 1);
        wrong(&throttle, from("ada", 0), DAY);
        assert!(wrong(&throttle, from("ada", 0), DAY) > 0);
        throttle.check(known, at(DAY)).expect("it does not wait");
        throttle.succeeded(known, at(DAY));
        assert!(wrong(&throttle, from("ada", 0), DAY) > 0, "that gives the other nothing");
        assert_eq!((0..10).filter(|_| wrong(&throttle, other, DAY) == 0).count(), 5, "and a browser that was stolen has its limit");
        throttle.check(known, at(DAY)).expect("of its own");
    }

    /// Full tables forget what failed longest ago: guesses elsewhere, many of them, buy a few here.
    #[test]
    fn what_forgetting_gives_back_is_paid_for() {
        const FEW: usize = 1000;
        let throttle = Throttle::with_places(&[1; 32], FEW);
        let (mut here, mut elsewhere) = (0, 0_u32);
        // The attacker has all addresses there are, and does nothing but make us forget.
        for round in 0..20_000_u32 {
            here += u32::from(wrong(&throttle, from("ada", 1), i64::from(round)) == 0);
            elsewhere += u32::from(wrong(&throttle, from("eve", 10 + round), i64::from(round)) == 0);
        }
        let counts = throttle.counts();
        for table in [&counts.pairs, &counts.addresses, &counts.accounts] {
            assert!(table.buckets.len() <= FEW && table.order.len() == table.buckets.len());
        }
        let bought = elsewhere / u32::try_from(FEW).expect("small") * FREE;
        assert!(here <= 2 * FREE + bought, "{here} for {elsewhere}");
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nobody_wait_for_it() {
        let throttle = Throttle::new(&[1; 32]);
        for _ in 0..20 {
            wrong(&throttle, from("ada", 1), 10 * DAY);
        }
        let wait = wrong(&throttle, from("ada", 1), 0);
        assert!(wait <= LONGEST, "{wait}");
    }

    proptest! {
        /// Whatever happens, in whatever order: nobody waits for longer than the longest wait, tables are bounded and in order, and an
        /// address that never failed is let in.
        #[test]
        fn waits_are_bounded(steps in proptest::collection::vec((0..4u8, 0..3u32, 0..4usize, 0..2_000_000i64), 0..300)) {
            let throttle = Throttle::with_places(&[1; 32], 4);
            let mut now = 0;
            for (what, number, account, later) in steps {
                now += later;
                let attempt = from(["ada", "bob", "cai", "eve"][account], number);
                match what {
                    0 => throttle.succeeded(attempt, at(now)),
                    1 => throttle.withdrawn(attempt, at(now)),
                    2 => throttle.failed(attempt, at(now)),
                    _ => if let Err(retry) = throttle.check(attempt, at(now)) {
                        let wait = i64::try_from(retry.after.as_millis()).expect("small");
                        prop_assert!(wait > 0 && wait <= LONGEST_UNDER_ATTACK);
                    }
                }
                prop_assert!(throttle.check(from("ada", 99), at(now)).is_ok());
                throttle.withdrawn(from("ada", 99), at(now));
                let counts = throttle.counts();
                for table in [&counts.pairs, &counts.addresses, &counts.accounts] {
                    prop_assert!(table.buckets.len() <= 4 && table.order.len() == table.buckets.len());
                }
            }
        }
    }
}
