//! Picking a backend: sticky cookie first, then the groups' weights, then the pool's balance.
//! A function of pool, ledger and seed, without allocation and linear in the backends, because every request pays for it.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use super::ejection::WHOLE;
use super::health::Fitness;
use super::{Affinity, Backend, Balance, Failure, Group, Ledger, Moment, Pool};
use crate::snapshot::Condition;

impl Pool {
    /// A backend that may get traffic and is not in `tried`, or `None`. A sticky cookie's task where it is still good;
    /// else a group by weight (a weight of 0 gets nothing unless no other group can serve), and in it a task by balance.
    /// Who is ejected, or waits for its first check, is asked only where nobody else is left, the least bad first; who fails its check never.
    pub fn pick(&self, ledger: &Ledger, affinity: Affinity<'_>, tried: &[Arc<str>], now: Moment, seed: u64) -> Option<&Backend> {
        let usable = |backend: &&Backend| backend.condition == Condition::Healthy && !tried.contains(&backend.id);
        if ledger.all_well(now) {
            return self.pick_among(ledger, affinity, seed, usable);
        }
        let fitness = |backend: &Backend| ledger.fitness(&backend.id, now);
        let draw = self.key(affinity).unwrap_or(seed);
        // Who comes back takes part in some draws only, and for a hashed key in more and more of them.
        let drawn = |backend: &Backend, share| share == WHOLE || mix(draw ^ hash(backend.token.as_bytes())) >> 32 < share;
        let full = |backend: &&Backend| usable(backend) && matches!(fitness(backend), Fitness::Fit(share) if drawn(backend, share));
        let fit = |backend: &&Backend| usable(backend) && matches!(fitness(backend), Fitness::Fit(_));
        let unchecked = |backend: &&Backend| usable(backend) && fitness(backend) == Fitness::Unchecked;
        let sticky = affinity.token.and_then(|_| self.pick_sticky(affinity, fit));
        let picked =
            sticky.or_else(|| self.pick_among(ledger, affinity, seed, full)).or_else(|| self.pick_among(ledger, affinity, seed, fit));
        picked.or_else(|| self.pick_among(ledger, affinity, seed, unchecked)).or_else(|| {
            let ejected = |backend: &Backend| match fitness(backend) {
                Fitness::Ejected(until) => Some(until),
                _ => None,
            };
            let all = self.groups.iter().flat_map(|group| &group.backends).filter(usable);
            all.filter_map(|backend| Some((ejected(backend)?, backend))).min_by_key(|(until, _)| *until).map(|(_, backend)| backend)
        })
    }

    /// Does a client belong to a task of its own?
    pub fn binds(&self) -> bool {
        self.sticky.is_some() || matches!(self.balance, Balance::HashIp | Balance::HashHeader(_) | Balance::HashCookie(_))
    }

    /// Is there a backend, not in `tried`, that is not known to be sick?
    pub fn has_fit(&self, ledger: &Ledger, tried: &[Arc<str>], now: Moment) -> bool {
        let backends = self.groups.iter().flat_map(|group| &group.backends);
        let mut others = backends.filter(|backend| backend.condition == Condition::Healthy && !tried.contains(&backend.id));
        others.any(|backend| matches!(ledger.fitness(&backend.id, now), Fitness::Fit(_)))
    }

    /// May the backend with this id be ejected for `failure`? Never the last one that serves; and where it may be overload, at most half of them.
    pub(super) fn can_spare(&self, ledger: &Ledger, id: &str, failure: Failure, now: Moment) -> bool {
        let backends = self.groups.iter().flat_map(|group| &group.backends).filter(|other| other.condition == Condition::Healthy);
        let fit = backends.clone().filter(|other| *other.id != *id && matches!(ledger.fitness(&other.id, now), Fitness::Fit(_))).count();
        let all = backends.count();
        fit > 0 && (!failure.may_be_overload() || fit * 2 >= all)
    }

    fn pick_sticky<'a>(&'a self, affinity: Affinity<'_>, usable: impl Fn(&&'a Backend) -> bool + Copy) -> Option<&'a Backend> {
        let (Some(_), Some(token)) = (&self.sticky, affinity.token) else { return None };
        self.serving(usable).flat_map(|group| &group.backends).filter(usable).find(|backend| &*backend.token == token)
    }

    /// The groups with a usable backend; those of weight 0 only where there are no others.
    fn serving<'a>(&'a self, usable: impl Fn(&&'a Backend) -> bool + Copy) -> impl Iterator<Item = &'a Group> + Clone {
        let serves = move |group: &&'a Group| {
            let group: &'a Group = group;
            group.backends.iter().any(|backend| usable(&backend))
        };
        let weighted = self.groups.iter().filter(serves).any(|group| group.weight > 0);
        self.groups.iter().filter(serves).filter(move |group| !weighted || group.weight > 0)
    }

    fn pick_among<'a>(
        &'a self,
        ledger: &Ledger,
        affinity: Affinity<'_>,
        seed: u64,
        usable: impl Fn(&&'a Backend) -> bool + Copy,
    ) -> Option<&'a Backend> {
        if let Some(sticky) = self.pick_sticky(affinity, usable) {
            return Some(sticky);
        }
        // A key that decides the task decides the group too: who is hashed sees one version of a service, not a new draw each time.
        let key = self.key(affinity);
        let group = by_weight(self.serving(usable), key.unwrap_or(seed))?;
        self.choose(group, ledger, key, seed, usable)
    }

    /// Where the value that `balance` wants comes from, if it is a header or a cookie: see [`Affinity::key`].
    pub fn key_source(&self) -> Option<&Balance> {
        matches!(self.balance, Balance::HashHeader(_) | Balance::HashCookie(_)).then_some(&self.balance)
    }

    /// What a hashing balance goes by; `None` for the others, and where the request does not carry it.
    fn key(&self, affinity: Affinity<'_>) -> Option<u64> {
        match self.balance {
            Balance::HashIp => affinity.client.map(|client| match client {
                IpAddr::V4(address) => hash(&address.octets()),
                IpAddr::V6(address) => hash(&address.octets()),
            }),
            Balance::HashHeader(_) | Balance::HashCookie(_) => affinity.key.map(|key| hash(key.as_bytes())),
            Balance::PowerOfTwo | Balance::RoundRobin | Balance::Least => None,
        }
    }

    fn choose<'a>(
        &self,
        group: &'a Group,
        ledger: &Ledger,
        key: Option<u64>,
        seed: u64,
        usable: impl Fn(&&'a Backend) -> bool + Copy,
    ) -> Option<&'a Backend> {
        let mut backends = group.backends.iter().filter(usable);
        if let Some(key) = key {
            // Rendezvous: every backend bids for the key, so that a task that comes or goes moves only the keys that it wins or held.
            return backends.max_by_key(|backend| mix(key ^ hash(backend.token.as_bytes())));
        }
        let count = backends.clone().count() as u64;
        match self.balance {
            Balance::RoundRobin => backends.nth((ledger.turn(&group.service) % count.max(1)) as usize),
            Balance::Least => {
                // The search begins at a random one, so that equals share.
                let start = scale(mix(seed), count) as usize;
                let turned = backends.clone().skip(start).chain(backends.take(start));
                turned.min_by_key(|backend| ledger.in_flight(&backend.id))
            }
            _ => power_of_two(backends, count, ledger, seed),
        }
    }
}

/// The less busy one of two random ones.
fn power_of_two<'a>(
    mut backends: impl Iterator<Item = &'a Backend> + Clone,
    count: u64,
    ledger: &Ledger,
    seed: u64,
) -> Option<&'a Backend> {
    if count < 2 {
        return backends.next();
    }
    let draw = mix(seed);
    let first = scale(draw, count);
    // Anyone but the first: drawn among the others, then moved past it.
    let second = scale(mix(draw), count - 1);
    let second = if second >= first { second + 1 } else { second };
    let one = backends.clone().nth(first as usize)?;
    let other = backends.nth(second as usize)?;
    Some(if ledger.in_flight(&other.id) < ledger.in_flight(&one.id) { other } else { one })
}

/// One of `groups` by their weights; evenly where all weights are 0.
fn by_weight<'a>(groups: impl Iterator<Item = &'a Group> + Clone, draw: u64) -> Option<&'a Group> {
    let total: u64 = groups.clone().map(|group| u64::from(group.weight)).sum();
    let share = |group: &Group| if total == 0 { 1 } else { u64::from(group.weight) };
    // Another constant than the one within the group: both draws come from one seed and must not go together.
    let mut rest = scale(mix(draw ^ 0x5851_f42d_4c95_7f2d), groups.clone().map(share).sum());
    for group in groups {
        if rest < share(group) {
            return Some(group);
        }
        rest -= share(group);
    }
    None
}

/// A stable hash: the same in another process and on another node.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    mix(hasher.finish())
}

/// Spreads every bit of `value` over the whole word (the finalizer of splitmix64, Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A spread word onto `0..count`, without the bias and cost of a division.
fn scale(word: u64, count: u64) -> u64 {
    ((u128::from(word) * u128::from(count)) >> 64) as u64
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::upstream::Scheme;

    pub(in super::super) fn backend(service: &str, number: u8) -> Backend {
        let address = SocketAddr::from(([10, 0, 0, number], 80));
        let id = format!("{service}/task{number}@{address}");
        Backend {
            token: Arc::from(format!("{:016x}", hash(id.as_bytes()))),
            id: Arc::from(id),
            service: Arc::from(service),
            task: Arc::from(format!("{service}.{number}")),
            node: Arc::from("n1"),
            address,
            scheme: Scheme::Http,
            trust: Default::default(),
            sni: Arc::from(""),
            proxy_protocol: None,
            condition: Condition::Healthy,
        }
    }

    pub(in super::super) fn pool(groups: Vec<(&str, u32, Vec<Backend>)>) -> Pool {
        let groups =
            groups.into_iter().map(|(service, weight, backends)| Group { service: Arc::from(service), weight, backends, check: None });
        Pool { groups: groups.collect(), balance: Balance::PowerOfTwo, sticky: None }
    }

    fn shop(count: u8, balance: Balance) -> Pool {
        Pool { balance, ..pool(vec![("shop", 1, (1..=count).map(|number| backend("shop", number)).collect())]) }
    }

    /// How often each backend's task (or each service) gets one of 10,000 requests.
    fn spread(pool: &Pool, ledger: &Ledger, name: impl Fn(&Backend) -> Arc<str>) -> BTreeMap<Arc<str>, u32> {
        let mut counts = BTreeMap::new();
        for seed in 0..10_000 {
            let picked = pool.pick(ledger, Affinity::default(), &[], Moment(0), seed).expect("all are healthy");
            *counts.entry(name(picked)).or_default() += 1;
        }
        counts
    }

    #[test]
    fn balances_share_evenly_among_equals() {
        for balance in [Balance::PowerOfTwo, Balance::RoundRobin, Balance::Least] {
            let counts = spread(&shop(4, balance.clone()), &Ledger::default(), |backend| backend.task.clone());
            assert_eq!(counts.len(), 4);
            assert!(counts.values().all(|count| (2300..=2700).contains(count)), "{balance:?}: {counts:?}");
        }
    }

    #[test]
    fn busy_backends_get_less() {
        let ledger = Ledger::default();
        let least = shop(3, Balance::Least);
        let _first = ledger.start(&least.groups[0].backends[0]);
        let counts = spread(&least, &ledger, |backend| backend.task.clone());
        assert!(!counts.contains_key("shop.1") && counts.len() == 2, "{counts:?}");
        let two = shop(3, Balance::PowerOfTwo);
        let counts = spread(&two, &ledger, |backend| backend.task.clone());
        assert!(!counts.contains_key("shop.1") && counts.len() == 2, "{counts:?}");
    }

    #[test]
    fn weights_share_among_groups() {
        let shares = |groups: [u32; 2]| {
            let pool =
                pool(vec![("old", groups[0], vec![backend("old", 1)]), ("new", groups[1], vec![backend("new", 2), backend("new", 3)])]);
            spread(&pool, &Ledger::default(), |backend| backend.service.clone()).get("new").copied().unwrap_or_default()
        };
        assert!((850..=1150).contains(&shares([90, 10])));
        assert_eq!(shares([1, 0]), 0);
        assert_eq!(shares([0, 1]), 10_000);
        assert!((4700..=5300).contains(&shares([0, 0])), "all drained: all serve");
    }

    #[test]
    fn a_group_without_healthy_tasks_leaves_its_share_to_the_others() {
        let mut pool = pool(vec![("old", 1, vec![backend("old", 1)]), ("new", 99, vec![backend("new", 2)])]);
        pool.groups[1].backends[0].condition = Condition::Unhealthy;
        assert_eq!(spread(&pool, &Ledger::default(), |backend| backend.service.clone()), BTreeMap::from([(Arc::from("old"), 10_000)]));
        pool.groups[0].weight = 0;
        assert_eq!(spread(&pool, &Ledger::default(), |backend| backend.service.clone()), BTreeMap::from([(Arc::from("old"), 10_000)]));
    }

    #[test]
    fn sticky_holds_while_the_task_is_good() {
        let ledger = Ledger::default();
        let mut pool = pool(vec![("old", 99, vec![backend("old", 1)]), ("new", 1, vec![backend("new", 2), backend("new", 3)])]);
        let token = pool.groups[1].backends[1].token.clone();
        let affinity = Affinity { token: Some(&token), ..Affinity::default() };
        let hits = |pool: &Pool| {
            (0..1000).filter(|seed| pool.pick(&ledger, affinity, &[], Moment(0), *seed).is_some_and(|b| b.token == token)).count()
        };
        assert!(hits(&pool) < 50, "a token is nothing without the key");
        pool.sticky = Some("lb".into());
        assert_eq!(hits(&pool), 1000);
        pool.groups[1].weight = 0;
        assert_eq!(hits(&pool), 0, "a weight of 0 drains sticky browsers too");
        pool.groups[1].weight = 1;
        pool.groups[1].backends[1].condition = Condition::Stopping;
        assert_eq!(hits(&pool), 0);
    }

    #[test]
    fn hashing_without_a_key_falls_back() {
        let counts = spread(&shop(4, Balance::HashCookie("sid".into())), &Ledger::default(), |backend| backend.task.clone());
        assert_eq!(counts.len(), 4);
    }

    #[test]
    fn hashes_are_the_same_in_every_process() {
        assert_eq!(hash(b"shop/task1@10.0.0.1:80"), 5_171_099_378_362_453_833);
    }

    #[test]
    fn few_keys_move_when_a_task_comes() {
        let (four, five) = (shop(4, Balance::HashHeader("x-user".into())), shop(5, Balance::HashHeader("x-user".into())));
        let ledger = Ledger::default();
        let mut moved = 0;
        for user in 0..2000 {
            let user = user.to_string();
            let affinity = Affinity { key: Some(&user), ..Affinity::default() };
            let before = four.pick(&ledger, affinity, &[], Moment(0), 1).expect("healthy");
            let after = five.pick(&ledger, affinity, &[], Moment(0), 2).expect("healthy");
            if before.id != after.id {
                assert_eq!(&*after.task, "shop.5", "keys move to the new task only");
                moved += 1;
            }
        }
        assert!((300..=500).contains(&moved), "about a fifth: {moved}");
    }

    fn any_pool() -> impl Strategy<Value = Pool> {
        let condition = prop_oneof![3 => Just(Condition::Healthy), 1 => Just(Condition::Starting), 1 => Just(Condition::Down)];
        let group = (0u32..4, proptest::collection::vec(condition, 0..5));
        let balance = prop_oneof![
            Just(Balance::PowerOfTwo),
            Just(Balance::RoundRobin),
            Just(Balance::Least),
            Just(Balance::HashIp),
            Just(Balance::HashHeader("x".into())),
        ];
        (proptest::collection::vec(group, 0..4), balance, any::<bool>()).prop_map(|(groups, balance, sticky)| {
            let groups = groups.into_iter().enumerate().map(|(index, (weight, conditions))| {
                let service = format!("s{index}");
                let backends = (1..).zip(conditions).map(|(number, condition)| Backend { condition, ..backend(&service, number) });
                Group { backends: backends.collect(), service: Arc::from(service.as_str()), weight, check: None }
            });
            Pool { groups: groups.collect(), balance, sticky: sticky.then(|| "lb".into()) }
        })
    }

    proptest! {
        /// Whoever is picked is healthy and untried, and trying on reaches every healthy one.
        #[test]
        fn picking_reaches_all_that_are_healthy_and_no_other(pool in any_pool(), seed: u64, key in "[a-z]{0,3}", token in 0usize..20) {
            let ledger = Ledger::default();
            let all: Vec<_> = pool.groups.iter().flat_map(|group| &group.backends).collect();
            let token = all.get(token).map(|backend| &*backend.token);
            let affinity = Affinity { client: Some(IpAddr::from([10, 1, 2, 3])), key: Some(&key), token };
            let mut tried = Vec::new();
            while let Some(picked) = pool.pick(&ledger, affinity, &tried, Moment(0), seed) {
                prop_assert_eq!(picked.condition, Condition::Healthy);
                prop_assert!(!tried.contains(&picked.id));
                tried.push(picked.id.clone());
            }
            let healthy = all.iter().filter(|backend| backend.condition == Condition::Healthy).count();
            prop_assert_eq!(tried.len(), healthy);
        }

        /// The same key finds the same task, whatever the seed and however the tasks are listed.
        #[test]
        fn hashing_is_stable(mut pool in any_pool(), seeds: [u64; 2], key in "[a-z]{1,8}") {
            pool.balance = Balance::HashCookie("sid".into());
            let ledger = Ledger::default();
            let affinity = Affinity { key: Some(&key), ..Affinity::default() };
            let before = pool.pick(&ledger, affinity, &[], Moment(0), seeds[0]).map(|backend| backend.id.clone());
            for group in &mut pool.groups {
                group.backends.reverse();
            }
            prop_assert_eq!(before, pool.pick(&ledger, affinity, &[], Moment(0), seeds[1]).map(|backend| backend.id.clone()));
        }
    }
}
