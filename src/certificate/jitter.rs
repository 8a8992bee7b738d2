//! Spreads moments: not everything at once, and yet the same moment whenever it is asked for. Hashes, where others would draw lots.

use std::hash::Hasher;

use jiff::{SignedDuration, Timestamp};

/// The whole of a share, as [`share`] counts it.
pub const WHOLE: i128 = 1_000_000;

/// A part of [`WHOLE`] that looks drawn by lot, always the same for the same arguments.
pub fn part(seed: u64, key: &str, number: u64) -> i128 {
    let mut hash = fnv::FnvHasher::with_key(seed ^ 0xcbf2_9ce4_8422_2325);
    hash.write(key.as_bytes());
    hash.write_u64(number);
    // FNV's high bits hardly depend on the last bytes: stir (splitmix64's finalizer).
    let mut bits = hash.finish();
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    i128::from(bits ^ (bits >> 31)) % WHOLE
}

/// `parts` of [`WHOLE`] of `span`.
pub fn share(span: SignedDuration, parts: i128) -> SignedDuration {
    SignedDuration::try_from_millis_i128(span.as_millis() * parts / WHOLE).unwrap_or(SignedDuration::MAX)
}

/// `at` and `span` later; the end of time where that is beyond it.
pub fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// How long to wait after `times` failures in a row: doubled from `first` to `longest`, up to a quarter less by lot.
pub fn pause(times: u32, first: SignedDuration, longest: SignedDuration, lot: i128) -> SignedDuration {
    let doubled = first.saturating_mul(1 << times.saturating_sub(1).min(20)).min(longest);
    share(doubled, WHOLE - lot / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_fall_evenly_and_again_the_same() {
        let lots: Vec<i128> = (0..1_000).map(|number| part(7, &format!("name-{number}.example.com"), 1)).collect();
        let mean = lots.iter().sum::<i128>() / 1_000;
        assert!((450_000..550_000).contains(&mean), "{mean}");
        assert_eq!(part(7, "a", 1), part(7, "a", 1));
        assert!(part(7, "a", 1) != part(8, "a", 1) && part(7, "a", 1) != part(7, "a", 2) && part(7, "a", 1) != part(7, "b", 1));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (SignedDuration::from_mins(1), SignedDuration::from_hours(6));
        let pauses: Vec<i64> = (1..=40).map(|times| pause(times, first, longest, 0).as_secs()).collect();
        assert_eq!(pauses[..4], [60, 120, 240, 480]);
        assert!(pauses[10..].iter().all(|pause| *pause == 21_600), "{pauses:?}");
        assert_eq!(pause(1, first, longest, WHOLE - 1).as_secs(), 45);
        assert_eq!(later(Timestamp::MAX, first), Timestamp::MAX);
    }
}
