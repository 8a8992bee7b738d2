//! The retry budget: retries are a share of recent traffic, so that an outage is never multiplied by those who try again.
//! One per service; counted in slots of a second, each one word, so that a request pays one relaxed addition.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Moment;

/// Retries per this many recent requests: 20 %.
const ONE_IN: u64 = 5;
/// A service with little traffic may try so often all the same, within [`SLOTS`] seconds: three a second.
const FLOOR: u64 = 30;
/// Seconds that count as recent.
const SLOTS: usize = 10;

/// A slot's word: its second (24 bits), retries (16 bits), requests (24 bits).
const RETRY: u64 = 1 << 24;
const MOST_REQUESTS: u64 = (1 << 24) - 1;
const MOST_RETRIES: u64 = (1 << 16) - 1;
const MOST_SECONDS: u64 = 1 << 24;

/// Requests and retries of the last seconds.
#[derive(Debug, Default)]
pub struct Budget {
    slots: [AtomicU64; SLOTS],
    refused: AtomicU64,
}

/// What one slot counted.
#[derive(Clone, Copy)]
struct Slot(u64);

impl Slot {
    fn empty(second: u64) -> Slot {
        Slot((second % MOST_SECONDS) << 40)
    }

    fn is_of(self, second: u64) -> bool {
        self.0 >> 40 == second % MOST_SECONDS
    }

    fn requests(self) -> u64 {
        self.0 & MOST_REQUESTS
    }

    fn retries(self) -> u64 {
        (self.0 >> 24) & MOST_RETRIES
    }
}

impl Budget {
    /// A request began: what the budget is a share of.
    pub fn request(&self, now: Moment) {
        self.count(now, |slot| if slot.requests() < MOST_REQUESTS { 1 } else { 0 });
    }

    /// Takes one retry, if there is one left.
    pub fn take(&self, now: Moment) -> bool {
        let (requests, retries) = self.recent(now);
        let taken = retries < requests / ONE_IN + FLOOR && self.count(now, |slot| if slot.retries() < MOST_RETRIES { RETRY } else { 0 });
        if !taken {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Retries that were ever refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Adds what `more` says of the present slot to it; `false` where that is nothing.
    fn count(&self, now: Moment, more: impl Fn(Slot) -> u64) -> bool {
        let second = now.0 / 1000;
        let word = &self.slots[(second % SLOTS as u64) as usize];
        loop {
            let found = word.load(Ordering::Relaxed);
            let slot = Slot(found);
            if slot.is_of(second) {
                let more = more(slot);
                // Whoever turns the slot over in between loses nothing but the place of this one count.
                word.fetch_add(more, Ordering::Relaxed);
                return more > 0;
            }
            // The first of a second clears what the slot held ten seconds ago; the others find it cleared.
            let _ = word.compare_exchange(found, Slot::empty(second).0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Requests and retries of the last [`SLOTS`] seconds.
    fn recent(&self, now: Moment) -> (u64, u64) {
        let second = now.0 / 1000;
        let slots = self.slots.iter().map(|word| Slot(word.load(Ordering::Relaxed)));
        let recent = slots.filter(|slot| (0..SLOTS as u64).any(|ago| second >= ago && slot.is_of(second - ago)));
        recent.fold((0, 0), |(requests, retries), slot| (requests + slot.requests(), retries + slot.retries()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quiet_service_may_try_again_a_few_times_a_second() {
        let budget = Budget::default();
        let taken = (0..100).filter(|_| budget.take(Moment(5_000))).count();
        assert_eq!((taken, budget.refused()), (30, 70));
        assert!(!budget.take(Moment(14_999)));
        assert!(budget.take(Moment(15_000)), "ten seconds later it is forgotten");
    }

    #[test]
    fn a_busy_service_may_retry_a_fifth_of_its_requests() {
        let budget = Budget::default();
        (0..1000).for_each(|number| budget.request(Moment(number)));
        let taken = (0..1000).filter(|number| budget.take(Moment(1_000 + number))).count();
        assert_eq!(taken, 230);
    }

    proptest! {
        /// Whatever happens when: retries are no more than a fifth of the requests and the floor.
        #[test]
        fn the_share_is_never_exceeded(steps in proptest::collection::vec((0u64..3_000, 0u32..100, 0u32..50), 1..30)) {
            let budget = Budget::default();
            let mut now = 0;
            let mut counted = Vec::new();
            for (pause, requests, retries) in steps {
                now += pause;
                (0..requests).for_each(|_| budget.request(Moment(now)));
                let taken = (0..retries).filter(|_| budget.take(Moment(now))).count() as u64;
                counted.push((now / 1000, u64::from(requests), taken));
                let within = |seconds: u64| {
                    let recent = counted.iter().filter(|(second, _, _)| second + seconds > now / 1000);
                    recent.fold((0, 0), |sum, one| (sum.0 + one.1, sum.1 + one.2))
                };
                let (requests, taken) = within(10);
                prop_assert_eq!(budget.recent(Moment(now)), (requests, taken));
                // A retry stays allowed when the requests that it was a share of are not recent any more.
                prop_assert!(taken <= within(20).0 / 5 + 30);
            }
        }
    }
}
