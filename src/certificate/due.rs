//! When a certificate is to be renewed.

use jiff::{SignedDuration, Timestamp};

use super::Source;
use super::jitter::{WHOLE, later, part, share};
use super::record::Record;

/// Two thirds of its life, or up to a twentieth before.
const LATEST: i128 = WHOLE * 2 / 3;
const SPREAD: i128 = WHOLE / 20;
/// Whatever window an authority names: then there must be time left for a second try.
const LAST_CALL: i128 = WHOLE * 19 / 20;
/// Whatever window it names, a certificate is not renewed again at once: a window that has always passed would make a loop.
const FIRST_CALL: i128 = WHOLE / 10;
const FIRST_CALL_AT_MOST: SignedDuration = SignedDuration::from_hours(6);

/// When `record` is to be renewed: at a moment of its authority's window that is drawn by lot (RFC 9773, 4.2), else at two thirds of its life.
/// Never for files: whoever put them there renews them.
pub fn due(record: &Record, seed: u64) -> Timestamp {
    if record.source == Source::File {
        return Timestamp::MAX;
    }
    let (begin, life) = (record.not_before, life(record));
    let lot = part(seed, &record.id, 0);
    let Some(window) = record.window else {
        return later(begin, share(life, LATEST - SPREAD * lot / WHOLE));
    };
    let drawn = later(window.start, share(window.end.duration_since(window.start).max(SignedDuration::ZERO), lot));
    let first = later(begin, share(life, FIRST_CALL).min(FIRST_CALL_AT_MOST));
    drawn.min(later(begin, share(life, LAST_CALL))).max(first)
}

/// How long it is valid in all.
pub fn life(record: &Record) -> SignedDuration {
    record.not_after.duration_since(record.not_before).max(SignedDuration::ZERO)
}

/// From when on nothing must wait behind others any more: a sixth of its life is left.
pub fn pressing(record: &Record) -> Timestamp {
    later(record.not_before, share(life(record), WHOLE * 5 / 6))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::Window;
    use super::super::simulation::record;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    proptest! {
        #[test]
        fn two_thirds_of_any_life(minutes in 10..130_000i64, seed: u64) {
            let record = record("id", "web", &["a.example.com"], at(0), at(minutes * 60));
            let due = due(&record, seed).as_second() as f64 / (minutes * 60) as f64;
            prop_assert!((0.61..=0.667).contains(&due), "{}", due);
        }

        #[test]
        fn a_moment_of_the_window(start in 20_000..60_000i64, length in 1..20_000i64, seed: u64) {
            let mut record = record("id", "web", &["a.example.com"], at(0), at(90_000));
            record.window = Some(Window { start: at(start), end: at(start + length), ask_again: at(0) });
            let due = due(&record, seed).as_second();
            prop_assert!((start..=start + length).contains(&due));
        }
    }

    #[test]
    fn windows_of_the_past_are_now_but_no_loop() {
        let mut record = record("id", "web", &["a.example.com"], at(1_000_000), at(1_900_000));
        record.window = Some(Window { start: at(0), end: at(1), ask_again: at(0) });
        assert_eq!(due(&record, 1), at(1_000_000 + 6 * 3600));
        record.window = Some(Window { start: at(5_000_000), end: at(6_000_000), ask_again: at(0) });
        assert_eq!(due(&record, 1), at(1_855_000), "beyond its end");
        record.source = Source::File;
        assert_eq!(due(&record, 1), Timestamp::MAX);
    }
}
