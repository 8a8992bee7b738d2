//! How many connections one client may have. Pure counting: an address is known only while it has a connection, so the
//! memory is bounded by the connections that there are.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// A refusal is said in the log at most this often.
const SAID_EACH: Duration = Duration::from_secs(10);

/// Counts the connections of each client.
#[derive(Debug)]
pub struct Admission {
    most: usize,
    counts: DashMap<IpAddr, usize>,
    refused: AtomicU64,
    began: Instant,
    /// Milliseconds since `began` up to which nothing more is said.
    quiet: AtomicU64,
}

/// A connection that was let in; dropping it makes room.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    client: IpAddr,
}

impl Admission {
    /// Lets `most` connections in of each client.
    pub fn new(most: usize, now: Instant) -> Admission {
        Admission { most, counts: DashMap::new(), refused: AtomicU64::new(0), began: now, quiet: AtomicU64::new(0) }
    }

    /// A place for one more connection of `client`; `None` where it has too many.
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Admitted> {
        let client = network(client);
        let mut count = self.counts.entry(client).or_insert(0);
        if *count >= self.most {
            drop(count);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        Some(Admitted { admission: self.clone(), client })
    }

    /// Connections that were refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Is it time to say that clients are refused? True for the first caller, then for one in ten seconds.
    pub fn is_worth_saying(&self, now: Instant) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let until = now.saturating_add(SAID_EACH.as_millis() as u64);
        let quiet = self.quiet.load(Ordering::Relaxed);
        now >= quiet && self.quiet.compare_exchange(quiet, until, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.admission.counts.entry(self.client) {
            match *entry.get() {
                0 | 1 => drop(entry.remove()),
                count => *entry.get_mut() = count - 1,
            }
        }
    }
}

/// Who counts as one client: an IPv4 address, or the /64 that an IPv6 site has at least.
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_client_has_its_own_places_and_nobody_is_remembered() {
        let admission = Arc::new(Admission::new(2, Instant::now()));
        // clients in their order, let in
        let table = [
            ("192.0.2.1", true),
            ("192.0.2.1", true),
            ("192.0.2.1", false),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::ffff:1", true),
            ("2001:db8::2:0:0:1", false),
            ("2001:db8:0:1::1", true),
        ];
        let mut places = Vec::new();
        for (client, wanted) in table {
            let place = admission.admit(ip(client));
            assert_eq!(place.is_some(), wanted, "{client}");
            places.extend(place);
        }
        assert_eq!(admission.refused(), 3);
        places.remove(0);
        assert!(admission.admit(ip("192.0.2.1")).is_some());
        places.clear();
        assert!(admission.counts.is_empty());
    }

    #[test]
    fn refusals_are_said_rarely() {
        let begin = Instant::now();
        let admission = Admission::new(1, begin);
        let said = |seconds| admission.is_worth_saying(begin + Duration::from_secs(seconds));
        assert_eq!([said(0), said(0), said(9), said(10), said(11), said(60)], [true, false, false, true, false, true]);
    }
}
