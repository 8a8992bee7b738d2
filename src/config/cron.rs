//! When something recurs: cron's five fields in a time zone, and the hours in which it may begin.
//! Reads texts and computes moments; who is told what recurs, and what is done when a moment was missed, is `backup::plan`'s.

use std::time::Duration;

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, Weekday};
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use crate::diagnostic::brief;

/// A cron schedule that comes round, and not too often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Mostly one; one for each hour where hours are listed, so that each of them has its run on the days when clocks change.
    crons: Vec<Cron>,
}

/// What people write for the usual schedules.
const NAMED: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

const EXAMPLE: &str = "write five fields, minute hour day month weekday, as \"0 2 * * *\" for every night at two, or @daily, @weekly";
const LONGEST_TEXT: usize = 200;
/// Two occurrences are at least so many minutes apart.
const CLOSEST: u32 = 5;

impl Schedule {
    /// Reads cron's five fields, or a name such as `@daily`.
    ///
    /// # Errors
    /// One sentence with what to write: unreadable, never due, or due more often than every five minutes.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        let text = text.trim();
        if text.len() > LONGEST_TEXT {
            return Err(format!("this is too long for a schedule; {EXAMPLE}"));
        }
        let fields = match text.strip_prefix('@') {
            Some(_) => {
                let named = NAMED.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
                named.map(|(_, fields)| *fields).ok_or_else(|| unknown_name(text))?
            }
            None => text,
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let &[minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(format!(
                "`{}` has {}, a schedule has five; {EXAMPLE}",
                brief(text),
                if parts.len() == 1 { "one field".to_owned() } else { format!("{} fields", parts.len()) }
            ));
        };
        let whole = read(fields).map_err(|why| format!("`{}` is not a schedule ({why}); {EXAMPLE}", brief(text)))?;
        if !days(&whole).any(|due| due) {
            return Err(format!("`{}` never comes: there is no such day; {EXAMPLE}", brief(text)));
        }
        let times = times(&whole);
        if comes_too_often(&whole, &times) {
            return Err(format!("`{}` comes more often than every {CLOSEST} minutes; write \"*/{CLOSEST} * * * *\" at most", brief(text)));
        }
        let hours: std::collections::BTreeSet<u32> = times.iter().map(|time| time / 60).collect();
        let listed = times.len() == hours.len() && !hour.contains(['*', '/', '?']) && !minute.contains(['*', '/']);
        let crons = match listed && hours.len() > 1 {
            true => hours.iter().filter_map(|hour| read(&format!("{minute} {hour} {day} {month} {weekday}")).ok()).collect(),
            false => vec![whole],
        };
        Ok(Schedule { crons })
    }

    /// Every night at two: what stands in for a schedule that cannot be read.
    pub fn nightly() -> Schedule {
        Schedule { crons: read("0 2 * * *").into_iter().collect() }
    }

    /// The first occurrence after `after`. A time that the clocks skip is due when they have; one that comes twice is due once, unless
    /// the schedule goes through all hours. `None` beyond the end of time.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let after = after.to_zoned(zone.clone());
        self.crons.iter().filter_map(|cron| cron.find_next_occurrence(&after, false).ok()).map(|found| found.timestamp()).min()
    }

    /// The last occurrence before `before`, as [`Schedule::next`].
    pub fn previous(&self, before: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let before = before.to_zoned(zone.clone());
        self.crons.iter().filter_map(|cron| cron.find_previous_occurrence(&before, false).ok()).map(|found| found.timestamp()).max()
    }

    /// How old the last success may be at `at` when all goes well: the longer one of the distance that `at` lies in and of the one before.
    pub fn period(&self, at: Timestamp, zone: &TimeZone) -> Duration {
        // An occurrence at `at` itself begins the distance.
        let at = at.checked_add(1.second()).unwrap_or(at);
        let last = self.previous(at, zone);
        let ends = [last.and_then(|last| self.previous(last, zone)), last, self.next(at, zone)];
        let gaps = ends.windows(2).filter_map(|pair| Some(pair[1]?.duration_since(pair[0]?).unsigned_abs()));
        gaps.max().unwrap_or(YEAR).max(Duration::from_secs(60))
    }
}

const YEAR: Duration = Duration::from_secs(366 * 86_400);

fn read(fields: &str) -> Result<Cron, String> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(fields).map_err(|error| {
        let why = error.to_string();
        let why = why.split_once(": ").map_or(why.as_str(), |(_, why)| why);
        brief(why.trim_end_matches('.'))
    })
}

fn unknown_name(text: &str) -> String {
    match crate::diagnostic::nearest(&text.to_ascii_lowercase(), NAMED.iter().map(|(name, _)| *name)) {
        Some(near) => format!("`{}` is not a schedule; did you mean {near}?", brief(text)),
        None => format!("`{}` is not a schedule; {EXAMPLE}", brief(text)),
    }
}

/// For each day whether it is one of the schedule's, over 28 years, after which leap days and weekdays come round.
fn days(cron: &Cron) -> impl Iterator<Item = bool> {
    let first = Date::new(2001, 1, 1).unwrap_or(Date::ZERO);
    first.series(1.day()).take(28 * 365 + 7).map(|date| {
        let (month, day) = (u32::from(date.month().unsigned_abs()), u32::from(date.day().unsigned_abs()));
        cron.pattern.month_match(month).unwrap_or(false)
            && cron.pattern.day_match(i32::from(date.year()), month, day, weekday(date)).unwrap_or(false)
    })
}

fn weekday(date: Date) -> Weekday {
    match date.weekday() {
        jiff::civil::Weekday::Monday => Weekday::Monday,
        jiff::civil::Weekday::Tuesday => Weekday::Tuesday,
        jiff::civil::Weekday::Wednesday => Weekday::Wednesday,
        jiff::civil::Weekday::Thursday => Weekday::Thursday,
        jiff::civil::Weekday::Friday => Weekday::Friday,
        jiff::civil::Weekday::Saturday => Weekday::Saturday,
        jiff::civil::Weekday::Sunday => Weekday::Sunday,
    }
}

/// The minutes of a day at which it is due, ascending.
fn times(cron: &Cron) -> Vec<u32> {
    let set = |matches: &dyn Fn(u32) -> bool, end: u32| (0..end).filter(|value| matches(*value)).collect::<Vec<u32>>();
    let hours = set(&|hour| cron.pattern.hour_match(hour).unwrap_or(false), 24);
    let minutes = set(&|minute| cron.pattern.minute_match(minute).unwrap_or(false), 60);
    hours.iter().flat_map(|hour| minutes.iter().map(move |minute| hour * 60 + minute)).collect()
}

/// Are two of `times` too close, on one day or on neighbouring ones?
fn comes_too_often(cron: &Cron, times: &[u32]) -> bool {
    let across = times.first().zip(times.last()).is_some_and(|(first, last)| first + 24 * 60 - last < CLOSEST);
    let neighbours = || {
        let mut before = false;
        days(cron).any(|due| std::mem::replace(&mut before, due) && due)
    };
    times.windows(2).any(|pair| pair[1] - pair[0] < CLOSEST) || (across && neighbours())
}

/// The time zone called `name`; UTC where there is none, which the configuration refuses.
pub fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

/// Hours of the day, `22:00-06:00`: from the first on, up to and without the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: Time,
    to: Time,
}

impl Window {
    /// Reads `22:00-06:00`, `22-6`.
    ///
    /// # Errors
    /// One sentence with what to write.
    pub fn parse(text: &str) -> Result<Window, String> {
        let bad = || format!("`{}` is not a range of hours; write it like \"22:00-06:00\"", brief(text));
        let (from, to) = text.split_once(['-', '–']).ok_or_else(bad)?;
        let (from, to) = (time(from).ok_or_else(bad)?, time(to).ok_or_else(bad)?);
        match from == to {
            true => Err(format!("`{}` begins when it ends; write it like \"22:00-06:00\", or \"off\" for any hour", brief(text))),
            false => Ok(Window { from, to }),
        }
    }

    /// Is `at` within it?
    pub fn contains(&self, at: Timestamp, zone: &TimeZone) -> bool {
        let time = at.to_zoned(zone.clone()).time();
        match self.from < self.to {
            true => self.from <= time && time < self.to,
            false => self.from <= time || time < self.to,
        }
    }

    /// `at` where it is within, else the next moment at which it opens.
    pub fn moved(&self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        if self.contains(at, zone) {
            return at;
        }
        let opens = next_time(self.from, at, zone);
        // Clocks may skip all of it on one day.
        if self.contains(opens, zone) { opens } else { next_time(self.from, opens, zone) }
    }

    /// When it closes next after `at`.
    pub fn end(&self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        next_time(self.to, at, zone)
    }
}

fn time(text: &str) -> Option<Time> {
    let text = text.trim();
    let (hour, minute) = text.split_once(':').unwrap_or((text, "0"));
    let number =
        |text: &str| (text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<i8>().ok()).flatten();
    match (number(hour)?, number(minute)?) {
        (24, 0) => Some(Time::midnight()),
        (hour, minute) => Time::new(hour, minute, 0, 0).ok(),
    }
}

/// When the clocks show `time` next after `after`; where they skip it, as soon as they have.
fn next_time(time: Time, after: Timestamp, zone: &TimeZone) -> Timestamp {
    let today = after.to_zoned(zone.clone()).date();
    let days = [Some(today), today.tomorrow().ok(), today.tomorrow().and_then(Date::tomorrow).ok()];
    let moments = days.into_iter().flatten().filter_map(|day| zone.to_ambiguous_zoned(day.to_datetime(time)).later().ok());
    let next = moments.map(|moment| moment.timestamp()).find(|moment| *moment > after);
    next.unwrap_or_else(|| after.saturating_add(SignedDuration::from_hours(24)).unwrap_or(after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paris() -> TimeZone {
        TimeZone::get("Europe/Paris").expect("a bundled zone")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The next occurrences as clocks in Paris show them.
    fn occurrences(schedule: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule).expect(schedule);
        let zone = paris();
        let next = |after: &Timestamp| schedule.next(*after, &zone);
        std::iter::successors(next(&at(after)), next)
            .take(count)
            .map(|at| at.to_zoned(zone.clone()).strftime("%m-%d %H:%M %Z").to_string())
            .collect()
    }

    #[test]
    fn occurrences_are_those_of_the_clocks_on_the_wall() {
        for (schedule, wanted) in [
            ("0 2 * * *", ["01-15 02:00 CET", "01-16 02:00 CET", "01-17 02:00 CET"]),
            ("@daily", ["01-15 00:00 CET", "01-16 00:00 CET", "01-17 00:00 CET"]),
            ("@Weekly", ["01-18 00:00 CET", "01-25 00:00 CET", "02-01 00:00 CET"]),
            ("@hourly", ["01-14 13:00 CET", "01-14 14:00 CET", "01-14 15:00 CET"]),
            ("@monthly", ["02-01 00:00 CET", "03-01 00:00 CET", "04-01 00:00 CEST"]),
            ("30 22 * * mon-fri", ["01-14 22:30 CET", "01-15 22:30 CET", "01-16 22:30 CET"]),
            ("15 3,21 * * SUN", ["01-18 03:15 CET", "01-18 21:15 CET", "01-25 03:15 CET"]),
            ("0 4 L * *", ["01-31 04:00 CET", "02-28 04:00 CET", "03-31 04:00 CEST"]),
            ("0 4 * * fri#1", ["02-06 04:00 CET", "03-06 04:00 CET", "04-03 04:00 CEST"]),
            (" */20 6  * * * ", ["01-15 06:00 CET", "01-15 06:20 CET", "01-15 06:40 CET"]),
        ] {
            assert_eq!(occurrences(schedule, "2026-01-14T11:30:00Z", 3), wanted, "{schedule}");
        }
    }

    #[test]
    fn an_hour_that_clocks_skip_is_made_up_for_as_soon_as_it_is_over() {
        for (schedule, wanted) in [
            ("30 2 * * *", ["03-28 02:30 CET", "03-29 03:00 CEST", "03-30 02:30 CEST"]),
            ("30 2,14 * * *", ["03-28 02:30 CET", "03-28 14:30 CET", "03-29 03:00 CEST"]),
            ("0 2 * * SUN", ["03-29 03:00 CEST", "04-05 02:00 CEST", "04-12 02:00 CEST"]),
        ] {
            assert_eq!(occurrences(schedule, "2026-03-27T23:00:00Z", 3), wanted, "{schedule}");
        }
        assert_eq!(occurrences("0 * * * *", "2026-03-29T00:00:00Z", 2), ["03-29 03:00 CEST", "03-29 04:00 CEST"]);
    }

    #[test]
    fn an_hour_that_comes_twice_has_one_run_unless_all_hours_have_one() {
        for (schedule, wanted) in [
            ("30 2 * * *", ["10-25 02:30 CEST", "10-26 02:30 CET", "10-27 02:30 CET"]),
            ("30 2,14 * * *", ["10-25 02:30 CEST", "10-25 14:30 CET", "10-26 02:30 CET"]),
            ("0 * * * *", ["10-25 00:00 CEST", "10-25 01:00 CEST", "10-25 02:00 CEST"]),
        ] {
            assert_eq!(occurrences(schedule, "2026-10-24T21:00:00Z", 3), wanted, "{schedule}");
        }
        assert_eq!(occurrences("0 * * * *", "2026-10-25T00:30:00Z", 2), ["10-25 02:00 CET", "10-25 03:00 CET"]);
        // From within the second 2:30 there is no third.
        assert_eq!(occurrences("30 2 * * *", "2026-10-25T01:30:00Z", 1), ["10-26 02:30 CET"]);
    }

    #[test]
    fn what_never_comes_or_too_often_is_refused_with_what_to_write() {
        for (text, why) in [
            ("", "has 0 fields"),
            ("0 2 * *", "has 4 fields"),
            ("0 0 2 * * *", "has 6 fields"),
            ("@dayly", "did you mean @daily?"),
            ("@reboot", "is not a schedule"),
            ("0 25 * * *", "is not a schedule"),
            ("0 2 * * funday", "is not a schedule"),
            ("0 0 30 2 *", "there is no such day"),
            ("0 0 31 2,4,6,9,11 *", "there is no such day"),
            ("* * * * *", "every 5 minutes"),
            ("*/4 * * * *", "every 5 minutes"),
            ("0,3 2 * * *", "every 5 minutes"),
            ("58,1 0,23 * * *", "every 5 minutes"),
        ] {
            let said = Schedule::parse(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
        for text in ["*/5 * * * *", "0 0 29 2 *", "58,1 0,23 1 * *", "0 2 1 * MON", "0 0 1 1 *"] {
            assert!(Schedule::parse(text).is_ok(), "{text}: {:?}", Schedule::parse(text));
        }
    }

    #[test]
    fn a_period_is_how_old_a_success_may_be() {
        const HOUR: u64 = 3600;
        for (schedule, moment, hours) in [
            ("0 2 * * *", "2026-01-14T11:30:00Z", 24),
            ("0 * * * *", "2026-01-14T11:30:00Z", 1),
            // Monday: the success may be Friday's, and Tuesday at noon it may not.
            ("0 2 * * 1-5", "2026-01-12T12:00:00Z", 72),
            ("0 2 * * 1-5", "2026-01-14T12:00:00Z", 24),
            // At the occurrence itself, the one before may be all there is.
            ("0 2 * * 1-5", "2026-01-12T01:00:00Z", 72),
            ("0 2 1 * *", "2026-02-10T12:00:00Z", 31 * 24),
            // The night on which clocks go back is 25 hours long.
            ("0 2 * * *", "2026-10-25T12:00:00Z", 25),
            ("0 12,13 * * *", "2026-01-14T11:30:00Z", 23),
        ] {
            let period = Schedule::parse(schedule).expect(schedule).period(at(moment), &paris());
            assert_eq!(period, Duration::from_secs(hours * HOUR), "{schedule} {moment}");
        }
        let far = Schedule::parse("0 2 * * *").expect("fine");
        for end in [Timestamp::MIN, Timestamp::MAX] {
            assert!(far.period(end, &paris()) >= Duration::from_secs(60));
        }
    }

    #[test]
    fn windows_open_and_close() {
        let zone = paris();
        let night = Window::parse("22:00-06:00").expect("fine");
        for (moment, wanted) in [
            ("2026-01-14T20:59:59Z", "2026-01-14T21:00:00Z"),
            ("2026-01-14T21:00:00Z", "2026-01-14T21:00:00Z"),
            ("2026-01-15T04:59:59Z", "2026-01-15T04:59:59Z"),
            ("2026-01-15T05:00:00Z", "2026-01-15T21:00:00Z"),
        ] {
            assert_eq!(night.moved(at(moment), &zone), at(wanted), "{moment}");
        }
        assert_eq!(night.end(at("2026-01-14T21:30:00Z"), &zone), at("2026-01-15T05:00:00Z"));
        let day = Window::parse("2-3").expect("fine");
        // Its hour is the one that this day does not have: it opens on the next.
        assert_eq!(day.moved(at("2026-03-28T12:00:00Z"), &zone), at("2026-03-30T00:00:00Z"));
        for text in ["", "22", "22:00", "22:00-22:00", "25-3", "22:60-3", "-1-3", "a-b", "022:00-3"] {
            assert!(Window::parse(text).is_err(), "{text}");
        }
        assert_eq!(Window::parse("20-24"), Window::parse("20:00-00:00"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_schedule_that_comes_or_is_refused(
            text in "\\PC{0,24}|([0-9*/,-]{1,5} ){4}[0-9*/,#L-]{1,4}|@[a-z]{0,8}",
            second in 0i64..4_000_000_000,
        ) {
            let after = Timestamp::from_second(second).expect("in range");
            match Schedule::parse(&text) {
                Err(said) => prop_assert!(!said.is_empty()),
                Ok(schedule) => {
                    let zone = paris();
                    let next = schedule.next(after, &zone).expect("it comes");
                    prop_assert!(next > after);
                    let following = schedule.next(next, &zone).expect("and again");
                    prop_assert!(following > next);
                    prop_assert!(schedule.previous(next, &zone).is_none_or(|previous| previous <= after), "{text}");
                }
            }
        }

        /// A moment is moved to the next one that is within, and by less than a day and an hour.
        #[test]
        fn what_is_moved_is_within(from in 0i8..24, to in 0i8..24, second in 1_600_000_000i64..1_900_000_000) {
            prop_assume!(from != to);
            let (window, zone) = (Window::parse(&format!("{from}-{to}")).expect("fine"), paris());
            let moment = Timestamp::from_second(second).expect("in range");
            let moved = window.moved(moment, &zone);
            prop_assert!(moved >= moment && moved.duration_since(moment) <= SignedDuration::from_hours(47));
            prop_assert!(window.end(moved, &zone) > moved);
            prop_assert!(window.contains(moved, &zone), "{moved}");
        }
    }
}
