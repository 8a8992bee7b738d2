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
            return Err(format!("`{}` has {} fields, a schedule has five; {EXAMPLE}", brief(text), parts.len()));
        };
        let whole = read(fields).map_err(|why| format!("`{}` is not a schedule ({why}); {EXAMPLE}", brief(text)))?;
        let days = Days::of(&whole);
        if days.none {
            return Err(format!("`{}` never comes: there is no such day; {EXAMPLE}", brief(text)));
        }
        let times = times(&whole);
        if closest(&times, days.neighbours).is_some_and(|minutes| minutes < CLOSEST) {
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

/// What days a schedule has, by the calendar of 28 years, after which leap days and weekdays come round.
struct Days {
    none: bool,
    /// Some day follows another one.
    neighbours: bool,
}

impl Days {
    fn of(cron: &Cron) -> Days {
        let Ok(first) = Date::new(2001, 1, 1) else { return Days { none: true, neighbours: false } };
        let mut days = Days { none: true, neighbours: false };
        let mut yesterday = false;
        for date in first.series(1.day()).take(28 * 365 + 7) {
            let (month, day) = (u32::from(date.month().unsigned_abs()), u32::from(date.day().unsigned_abs()));
            let today = cron.pattern.month_match(month).unwrap_or(false)
                && cron.pattern.day_match(i32::from(date.year()), month, day, weekday(date)).unwrap_or(false);
            days.none &= !today;
            days.neighbours |= today && yesterday;
            if days.neighbours {
                break;
            }
            yesterday = today;
        }
        days
    }
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

/// The least distance of two times, of one day or of neighbouring ones.
fn closest(times: &[u32], neighbours: bool) -> Option<u32> {
    let within = times.windows(2).map(|pair| pair[1] - pair[0]).min();
    let across = times.first().zip(times.last()).filter(|_| neighbours).map(|(first, last)| first + 24 * 60 - last);
    within.into_iter().chain(across).min()
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
        next_time(self.from, at, zone)
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
