//! How many archives of a volume stay: `7d,4w,36m`, and which ones those are by the rules of `borg prune`.
//! borg decides for itself; what is foretold here is what a plan, a test and a person compare with.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::ISOWeekDate;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::diagnostic::{brief, nearest};

/// How many archives of one volume stay, by borg's rules of `prune`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

/// The most of one kind: more was meant otherwise.
const MOST: u32 = 10_000;

const EXAMPLE: &str = "write it like 7d,4w,36m: so many of the last days, weeks and months (also h, y, and `last`)";

/// Words for each kind, in the order of [`Keep::counts`]; the first is what it is written with.
const WORDS: [&[&str]; 6] = [
    &["last", "latest", "archives"],
    &["h", "hour", "hours", "hourly"],
    &["d", "day", "days", "daily"],
    &["w", "week", "weeks", "weekly"],
    &["m", "month", "months", "monthly"],
    &["y", "year", "years", "yearly", "annually"],
];

impl Keep {
    /// Reads `7d,4w,36m`, `7 daily, 4 weekly`, `keep 7d`, `last 3`.
    ///
    /// # Errors
    /// What is wrong, with what to write: a count of nothing, an unknown or a repeated kind.
    pub fn parse(text: &str) -> Result<Keep, String> {
        let mut keep = Keep::default();
        let mut seen = BTreeSet::new();
        let words = words(text);
        let mut rest = words.as_slice();
        while let Some((first, after)) = rest.split_first() {
            if first == "keep" {
                rest = after;
                continue;
            }
            let is_number = first.bytes().all(|byte| byte.is_ascii_digit());
            let [second, after @ ..] = after else {
                let lacks = if is_number { "of what" } else { "how many" };
                return Err(format!("`{}` does not say {lacks}; {EXAMPLE}", brief(first)));
            };
            let (number, kind) = if is_number { (first, second) } else { (second, first) };
            let count = number.parse::<u32>().ok().filter(|count| *count <= MOST);
            let count = count.ok_or_else(|| format!("`{}` is not a number from 0 to {MOST}; {EXAMPLE}", brief(number)))?;
            let at = WORDS.iter().position(|words| words.contains(&kind.as_str())).ok_or_else(|| unknown(kind))?;
            if !seen.insert(at) {
                return Err(format!("`{}` is there twice; keep one of the two", WORDS[at][0]));
            }
            *keep.counts_mut()[at] = count;
            rest = after;
        }
        match keep.is_nothing() {
            true => Err(format!("this keeps nothing; {EXAMPLE}")),
            false => Ok(keep),
        }
    }

    /// Would all archives go?
    pub fn is_nothing(&self) -> bool {
        self.counts().iter().all(|count| *count == 0)
    }

    /// Of last, hour, day, week, month, year.
    pub fn counts(&self) -> [u32; 6] {
        [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly]
    }

    fn counts_mut(&mut self) -> [&mut u32; 6] {
        [&mut self.last, &mut self.hourly, &mut self.daily, &mut self.weekly, &mut self.monthly, &mut self.yearly]
    }

    /// Which archives made at `times` stay: for each kind, from the finest to the coarsest, the newest archive of each of the newest
    /// periods that have one, as many as are asked for; what a finer kind keeps is not counted again. Where there are fewer, the
    /// oldest archive stays too. So it is in `prune_split` of borg 1.1 to 1.4, with the clock in UTC as we run it.
    pub fn kept(&self, times: &[Timestamp]) -> Vec<bool> {
        let mut newest: Vec<usize> = (0..times.len()).collect();
        newest.sort_by_key(|at| std::cmp::Reverse(times[*at]));
        let mut kept = vec![false; times.len()];
        for (kind, wanted) in self.counts().into_iter().enumerate().filter(|(_, wanted)| *wanted > 0) {
            let (mut last, mut count) = (None, 0);
            for at in &newest {
                let period = Some(period(kind, times[*at]));
                if period != last {
                    last = period;
                    if !kept[*at] {
                        kept[*at] = true;
                        count += 1;
                    }
                }
                if count == wanted {
                    break;
                }
            }
            if let Some(oldest) = newest.last().filter(|_| count < wanted) {
                kept[*oldest] = true;
            }
        }
        kept
    }
}

/// The second, hour, day, ISO week, month or year that `at` lies in, in UTC.
fn period(kind: usize, at: Timestamp) -> [i64; 2] {
    let time = at.to_zoned(TimeZone::UTC).datetime();
    let (year, month) = (i64::from(time.year()), i64::from(time.month()));
    match kind {
        0 => [at.as_second(), 0],
        1 => [at.as_second().div_euclid(3600), 0],
        2 => [at.as_second().div_euclid(86_400), 0],
        3 => {
            let week = ISOWeekDate::from(time.date());
            [i64::from(week.year()), i64::from(week.week())]
        }
        4 => [year, month],
        _ => [year, 0],
    }
}

/// The words and numbers of a text, in lower case; `7d` is two.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut words: Vec<String> = Vec::new();
    let mut before = None;
    for letter in lower.chars() {
        let kind = match letter {
            '0'..='9' => Some(true),
            ',' | ';' | ':' | '=' | '-' => None,
            letter if letter.is_whitespace() => None,
            _ => Some(false),
        };
        match (kind, before == Some(kind)) {
            (None, _) => {}
            (Some(_), true) => words.last_mut().into_iter().for_each(|word| word.push(letter)),
            (Some(_), false) => words.push(letter.to_string()),
        }
        before = Some(kind);
    }
    words
}

fn unknown(kind: &str) -> String {
    match nearest(kind, WORDS.iter().flat_map(|words| words.iter().copied())) {
        Some(near) => format!("`{}` is no kind of archive; did you mean `{near}`?", brief(kind)),
        None => format!("`{}` is no kind of archive; {EXAMPLE}", brief(kind)),
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.counts().into_iter().zip(WORDS).filter(|(count, _)| *count > 0);
        let written: Vec<String> = kinds.map(|(count, words)| format!("{count}{}", words[0])).collect();
        f.write_str(&written.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_people_write_is_read() {
        let usual = Keep { daily: 7, weekly: 4, monthly: 36, ..Keep::default() };
        for text in ["7d,4w,36m", "7d 4w 36m", "keep 7d, 4w, 36m", "7 daily, 4 weekly, 36 monthly", "7D,4 Weeks;36 months", "d7 w4 m36"] {
            assert_eq!(Keep::parse(text), Ok(usual), "{text}");
        }
        assert_eq!(Keep::parse("last 3"), Ok(Keep { last: 3, ..Keep::default() }));
        assert_eq!(Keep::parse("keep-last=3, 24h,2y"), Ok(Keep { last: 3, hourly: 24, yearly: 2, ..Keep::default() }));
        assert_eq!(Keep::parse("7d,0w"), Ok(Keep { daily: 7, ..Keep::default() }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_write() {
        for (text, why) in [
            ("", "keeps nothing"),
            ("0d,0w", "keeps nothing"),
            ("7", "does not say of what"),
            ("forever", "does not say how many"),
            ("7 dayly", "did you mean `daily`?"),
            ("7x", "no kind of archive"),
            ("7d,3d", "twice"),
            ("7d,9 daily", "twice"),
            ("99999999999d", "not a number from 0 to 10000"),
            ("d d", "not a number"),
        ] {
            let said = Keep::parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    fn days(numbers: &[i64]) -> Vec<Timestamp> {
        numbers.iter().map(|day| Timestamp::from_second(day * 86_400 + 7200).expect("in range")).collect()
    }

    /// The example of borg's own documentation (docs/misc/prune-example.txt): daily archives of 2016, pruned on new year's day with
    /// 14 daily and 6 monthly ones.
    #[test]
    fn the_example_of_borgs_documentation() {
        let first: Timestamp = "2015-01-01T02:00:00Z".parse().unwrap();
        let times: Vec<Timestamp> = (0..366).map(|day| first + jiff::SignedDuration::from_hours(24 * day)).collect();
        let keep = Keep { daily: 14, monthly: 6, yearly: 1, ..Keep::default() };
        let kept: Vec<String> =
            times.iter().zip(keep.kept(&times)).filter(|(_, kept)| *kept).map(|(time, _)| time.to_string()[..10].to_owned()).collect();
        let daily = (19..=31).map(|day| format!("2015-12-{day}")).chain(["2016-01-01".to_owned()]);
        let monthly = ["2015-06-30", "2015-07-31", "2015-08-31", "2015-09-30", "2015-10-31", "2015-11-30"].map(str::to_owned);
        // The year's newest is kept as a daily one, so the oldest stands in for it.
        let wanted: Vec<String> = ["2015-01-01".to_owned()].into_iter().chain(monthly).chain(daily).collect();
        assert_eq!(kept, wanted);
    }

    /// The rules once more, said slowly: an archive stays when a rule names it.
    fn slowly(keep: &Keep, times: &[Timestamp]) -> Vec<bool> {
        let mut named: BTreeSet<usize> = BTreeSet::new();
        for (kind, wanted) in keep.counts().into_iter().enumerate() {
            if wanted == 0 {
                continue;
            }
            // The newest of each period; of those made at one moment, the first in the list.
            let newest_of_its_period: Vec<usize> = (0..times.len())
                .filter(|&one| {
                    (0..times.len()).all(|other| {
                        period(kind, times[one]) != period(kind, times[other])
                            || times[other] < times[one]
                            || (times[other] == times[one] && other >= one)
                    })
                })
                .collect();
            let mut fresh: Vec<usize> = newest_of_its_period.into_iter().filter(|at| !named.contains(at)).collect();
            fresh.sort_by_key(|at| (std::cmp::Reverse(times[*at]), *at));
            fresh.truncate(wanted as usize);
            let enough = fresh.len() == wanted as usize;
            named.extend(fresh);
            let oldest = (0..times.len()).min_by_key(|at| (times[*at], std::cmp::Reverse(*at)));
            named.extend(oldest.filter(|_| !enough));
        }
        (0..times.len()).map(|at| named.contains(&at)).collect()
    }

    fn any_keep() -> impl Strategy<Value = Keep> {
        let few = || prop_oneof![2 => Just(0u32), 3 => 0u32..9];
        (few(), few(), few(), few(), few(), few()).prop_map(|(last, hourly, daily, weekly, monthly, yearly)| Keep {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        #[test]
        fn what_stays_is_what_the_rules_name(
            keep in any_keep(),
            times in proptest::collection::vec(prop_oneof![0i64..200_000, 0i64..100_000_000].prop_map(|minute| minute * 60), 0..60),
        ) {
            let times: Vec<Timestamp> = times.into_iter().map(|second| Timestamp::from_second(second).expect("in range")).collect();
            let kept = keep.kept(&times);
            prop_assert_eq!(&kept, &slowly(&keep, &times));
            // The newest always stays, unless nothing is kept.
            let newest = (0..times.len()).max_by_key(|at| (times[*at], std::cmp::Reverse(*at)));
            prop_assert!(newest.is_none_or(|newest| kept[newest] || keep.is_nothing()));
            prop_assert!(kept.iter().filter(|kept| **kept).count() as u64 <= keep.counts().iter().map(|count| u64::from(*count)).sum::<u64>().max(1));
        }

        /// Pruned every night, a volume still has an archive of each of the last days, weeks and months that are asked for.
        #[test]
        fn pruned_every_night_it_keeps_what_it_says(missed in proptest::collection::btree_set(0i64..400, 0..80)) {
            let keep = Keep { daily: 7, weekly: 4, monthly: 12, ..Keep::default() };
            let mut held: Vec<i64> = Vec::new();
            let made: Vec<i64> = (0..400).filter(|day| !missed.contains(day)).collect();
            for day in &made {
                held.push(*day);
                let kept = keep.kept(&days(&held));
                held = held.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(day, _)| day).collect();
            }
            let last = made.iter().rev().take(7).copied().collect::<BTreeSet<i64>>();
            prop_assert!(last.iter().all(|day| held.contains(day)), "{held:?}");
            let month = |day: &i64| period(4, days(&[*day])[0]);
            let months: BTreeSet<[i64; 2]> = made.iter().map(month).collect();
            let held_months: BTreeSet<[i64; 2]> = held.iter().map(month).collect();
            prop_assert!(months.iter().rev().take(12).all(|month| held_months.contains(month)), "{held:?}");
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,30}|[0-9dwmyhlast ,]{0,20}") {
            if let Ok(keep) = Keep::parse(&text) {
                prop_assert_eq!(Keep::parse(&keep.to_string()), Ok(keep));
            }
        }
    }
}
