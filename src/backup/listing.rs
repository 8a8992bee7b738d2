//! Which archives there are of a volume, and which of them somebody means: the latest, one by its name, or the volume as it was at a time.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;

use super::archive;
use crate::diagnostic::{Diagnostic, brief, nearest};

/// An archive of a repository, as far as its name and borg's list tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Archive {
    pub name: String,
    /// `None`: it was not named by Skep.
    pub volume: Option<String>,
    pub node: Option<String>,
    /// When it was made; its name says it, else borg.
    pub at: Option<Timestamp>,
    /// Its run ended well. What others named is as good as they say.
    pub is_proven: bool,
}

/// Which archive is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Latest,
    Named(String),
    /// The newest that is not younger.
    At(Timestamp),
}

impl Archive {
    /// What a name and borg's own time (where it can be read) say.
    pub fn of(name: &str, start: Option<Timestamp>) -> Archive {
        let parsed = archive::parse(name);
        let is_checkpoint = |name: &str| name.ends_with(".checkpoint") || name.contains(".checkpoint.");
        Archive {
            name: name.to_owned(),
            at: parsed.as_ref().map(|parsed| parsed.at).or(start),
            is_proven: !is_checkpoint(name) && parsed.as_ref().is_none_or(|parsed| !parsed.unproven),
            volume: parsed.as_ref().map(|parsed| parsed.volume.clone()),
            node: parsed.map(|parsed| parsed.node),
        }
    }
}

/// Archives of one volume (`None`: all), oldest first.
pub fn of_volume<'a>(archives: &'a [Archive], volume: Option<&str>) -> Vec<&'a Archive> {
    let mut found: Vec<&Archive> =
        archives.iter().filter(|archive| volume.is_none_or(|volume| archive.volume.as_deref() == Some(volume))).collect();
    found.sort_by(|one, other| (one.at, &one.name).cmp(&(other.at, &other.name)));
    found
}

/// How a volume and a node are written in names of archives, which know fewer characters.
pub fn written(volume: &str, node: &str) -> (String, String) {
    let parsed = archive::parse(&archive::name(volume, node, Timestamp::UNIX_EPOCH));
    parsed.map_or_else(|| (volume.to_owned(), node.to_owned()), |parsed| (parsed.volume, parsed.node))
}

/// The archive that is meant. One that is asked for by name may be anybody's, and unproven.
///
/// # Errors
/// There is none; what there is instead.
pub fn choose<'a>(archives: &'a [Archive], volume: Option<&str>, choice: &Choice) -> Result<&'a Archive, Diagnostic> {
    if let Choice::Named(name) = choice {
        let found = archives.iter().find(|archive| archive.name == *name);
        return found.ok_or_else(|| {
            let missing = Diagnostic::error("no-archive", format!("there is no archive `{}` in the repository", brief(name)));
            missing.help(instead(nearest(name, archives.iter().map(|archive| archive.name.as_str()))))
        });
    }
    let own = of_volume(archives, volume);
    let proven: Vec<&&Archive> = own.iter().filter(|archive| archive.is_proven).collect();
    let found = match choice {
        Choice::At(at) => proven.iter().rev().find(|archive| archive.at.is_some_and(|made| made <= *at)),
        Choice::Latest | Choice::Named(_) => proven.last(),
    };
    found.map(|found| **found).ok_or_else(|| none(archives, volume, choice, &own, proven.first().map(|first| **first)))
}

fn none(archives: &[Archive], volume: Option<&str>, choice: &Choice, own: &[&Archive], first: Option<&Archive>) -> Diagnostic {
    let of = volume.map(|volume| format!(" of `{}`", brief(volume))).unwrap_or_default();
    if let (Choice::At(at), Some(first)) = (choice, first) {
        let oldest = first.at.map(|made| format!(", made {}", clock(made))).unwrap_or_default();
        return Diagnostic::error("no-archive", format!("there is no archive{of} that is as old as {}", clock(*at)))
            .help(format!("the oldest is {}{oldest}", shown(&first.name)));
    }
    let missing = Diagnostic::error("no-archive", format!("there is no archive{of} in the repository"));
    if let Some(unproven) = own.last() {
        return missing
            .help(format!("there is {}, whose run did not end well; name it if you want it all the same", shown(&unproven.name)));
    }
    match volume {
        Some(volume) => missing.help(instead(nearest(volume, archives.iter().filter_map(|archive| archive.volume.as_deref())))),
        None => missing.help("is it the right repository?"),
    }
}

fn instead(near: Option<&str>) -> String {
    near.map_or_else(|| "`skep backup list` shows what there is".to_owned(), |near| format!("did you mean `{}`?", shown(near)))
}

/// A name as it may be sent to a terminal, whole, since somebody may copy it.
fn shown(name: &str) -> String {
    name.escape_debug().to_string()
}

/// A time as it is shown.
pub fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Reads a point in time: `2026-11-20 03:00`, `2026-11-20` (its end), both in `zone`; `2026-11-20T03:00:00Z`; `2d`, `36h`, `30min` ago.
///
/// # Errors
/// It is none of them, as a sentence.
pub fn moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    let wrong = || {
        format!(
            "`{}` is no point in time: write 2026-11-20, \"2026-11-20 03:00\", 2026-11-20T03:00:00Z, or 2d for two days ago",
            brief(text)
        )
    };
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let local = |time: DateTime| zone.to_timestamp(time).map_err(|_| wrong());
    // Whoever names a day means the archive of that day.
    if let Ok(day) = Date::strptime("%Y-%m-%d", text) {
        return local(day.at(23, 59, 59, 999_999_999));
    }
    for form in ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"] {
        if let Ok(time) = DateTime::strptime(form, text) {
            return local(time);
        }
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: i64 = number.parse().ok().filter(|number| *number < 1_000_000).ok_or_else(wrong)?;
    let hours = |hours: i64| Span::new().try_hours(hours).ok();
    let span = match unit.trim() {
        "min" => Span::new().try_minutes(number).ok(),
        "h" => hours(number),
        "d" => hours(number * 24),
        "w" => hours(number * 24 * 7),
        _ => None,
    };
    now.checked_sub(span.ok_or_else(wrong)?).map_err(|_| wrong())
}

/// `VOLUME`, `VOLUME::ARCHIVE` or `::ARCHIVE`.
pub fn split(text: &str) -> (Option<&str>, Option<&str>) {
    let (volume, archive) = text.split_once("::").unwrap_or((text, ""));
    (Some(volume).filter(|volume| !volume.is_empty()), Some(archive).filter(|archive| !archive.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archives() -> Vec<Archive> {
        let foreign: Timestamp = "2019-03-01T00:00:00Z".parse().unwrap();
        let mut all: Vec<Archive> = [
            "a@n1-2026-11-20T02:00:00",
            "a@n1-2026-11-22T02:00:00",
            "a-b@n1-2026-11-21T02:00:00",
            "a@n1-2026-11-23T02:00:00.unproven",
            "c@n1-2026-11-23T02:00:00.unproven",
        ]
        .iter()
        .map(|name| Archive::of(name, None))
        .collect();
        all.push(Archive::of("oldbox-2019-03-01", Some(foreign)));
        all
    }

    fn chosen(volume: Option<&str>, choice: Choice) -> Result<String, String> {
        let archives = archives();
        let found = choose(&archives, volume, &choice);
        found.map(|found| found.name.clone()).map_err(|finding| format!("{}; {}", finding.message, finding.help.unwrap_or_default()))
    }

    #[test]
    fn the_latest_is_the_latest_that_is_proven() {
        assert_eq!(chosen(Some("a"), Choice::Latest).unwrap(), "a@n1-2026-11-22T02:00:00");
        assert_eq!(chosen(Some("a-b"), Choice::Latest).unwrap(), "a-b@n1-2026-11-21T02:00:00");
        let unproven = chosen(Some("c"), Choice::Latest).unwrap_err();
        assert!(unproven.contains("c@n1-2026-11-23T02:00:00.unproven, whose run did not end well"), "{unproven}");
        let named = Choice::Named("c@n1-2026-11-23T02:00:00.unproven".into());
        assert!(chosen(Some("a"), named).is_ok(), "whoever names it gets it");
    }

    #[test]
    fn a_point_in_time_is_the_newest_not_after_it() {
        let at = |text: &str| Choice::At(text.parse().unwrap());
        assert_eq!(chosen(Some("a"), at("2026-11-22T01:59:59Z")).unwrap(), "a@n1-2026-11-20T02:00:00");
        assert_eq!(chosen(Some("a"), at("2026-11-22T02:00:00Z")).unwrap(), "a@n1-2026-11-22T02:00:00");
        assert_eq!(chosen(Some("a"), at("2030-01-01T00:00:00Z")).unwrap(), "a@n1-2026-11-22T02:00:00", "never an unproven one");
        let before = chosen(Some("a"), at("2026-11-20T01:00:00Z")).unwrap_err();
        assert!(before.contains("the oldest is a@n1-2026-11-20T02:00:00"), "{before}");
        assert_eq!(chosen(None, at("2020-01-01T00:00:00Z")).unwrap(), "oldbox-2019-03-01");
    }

    #[test]
    fn what_is_not_there_gets_its_nearest() {
        for (volume, choice, wanted) in [
            (Some("a-d"), Choice::Latest, "did you mean `a-b`?"),
            (None, Choice::Named("oldbox-2019-03-02".into()), "did you mean `oldbox-2019-03-01`?"),
            (Some("something"), Choice::Latest, "`skep backup list` shows what there is"),
        ] {
            let said = chosen(volume, choice).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn times_as_people_write_them() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        for (text, wanted) in [
            ("2026-11-20 03:00", "2026-11-20T02:00:00Z"),
            ("2026-11-20T03:00:05", "2026-11-20T02:00:05Z"),
            ("2026-11-20", "2026-11-20T22:59:59.999999999Z"),
            ("2026-11-20T03:00:00Z", "2026-11-20T03:00:00Z"),
            ("2d", "2026-11-21T12:00:00Z"),
            ("36h", "2026-11-22T00:00:00Z"),
            ("1w", "2026-11-16T12:00:00Z"),
            ("30min", "2026-11-23T11:30:00Z"),
        ] {
            assert_eq!(moment(text, now, &zone).map(|at| at.to_string()), Ok(wanted.to_owned()), "{text}");
        }
        for text in ["", "yesterday", "2x", "-1d", "99999999999d", "2026-13-01", "2026-11-20 25:00"] {
            assert!(moment(text, now, &zone).unwrap_err().contains("no point in time"), "{text}");
        }
    }

    #[test]
    fn a_volume_and_its_archive() {
        for (text, wanted) in [
            ("shop", (Some("shop"), None)),
            ("shop::x@n-1", (Some("shop"), Some("x@n-1"))),
            ("::x", (None, Some("x"))),
            ("shop::", (Some("shop"), None)),
            ("", (None, None)),
        ] {
            assert_eq!(split(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "\\PC*") {
            let now = Timestamp::UNIX_EPOCH;
            _ = moment(&text, now, &TimeZone::UTC);
            _ = split(&text);
            let archive = Archive::of(&text, None);
            prop_assert_eq!(&archive.name, &text);
            _ = choose(&[archive], Some(&text), &Choice::Latest);
        }
    }
}
