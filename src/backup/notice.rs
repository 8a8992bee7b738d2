//! Who is told what of a report, and when: what is new, what got worse, what is still so after a while, and what is good again.
//! A failure is told at once as a warning while it will be tried again, and as an error once nobody tries any more; later tries of the
//! same night add nothing. What happens to many volumes at one target is told together: the first at once, the rest a little later.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::{Level, Notify};

use super::standing::{Check, Keeping, Last, Report, Standing, State, long, place};
use super::wording::{help, title};
use super::{Stats, Task, Verdict};

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Unique: who gets it twice can tell by this.
    pub id: String,
    pub kind: Kind,
    pub level: Level,
    pub node: String,
    pub at: Timestamp,
    pub target: Option<String>,
    /// What happened, in one line.
    pub title: String,
    /// What to do; may be empty.
    pub help: String,
    /// What it is about, at most [`LISTED`] of it; `more` counts the rest.
    pub about: Vec<About>,
    pub more: u64,
    /// It was told before, and nothing has changed.
    pub repeated: bool,
}

/// Things that one notice lists.
pub const LISTED: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A volume was not saved.
    Failed,
    /// No good archive for too long, failed or not.
    Overdue,
    /// A run did its work and has something to say.
    Warned,
    CheckFailed,
    CheckOverdue,
    /// The newest archive of a volume could not be restored on trial.
    DrillFailed,
    DrillOverdue,
    /// Nothing is saved before the key is kept elsewhere.
    Held,
    SpaceLow,
    /// More archives are gone than pruning explains.
    ArchivesLost,
    /// A volume that was saved so far is no longer asked to be.
    Dropped,
    /// What was told before is good again.
    Recovered,
    Saved,
    /// Somebody tries out whether notices arrive.
    Trial,
}

/// One volume or repository that a notice is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// `None`: it is about a repository as a whole.
    pub volume: Option<String>,
    pub repository: Option<String>,
    pub message: String,
    pub last_success: Option<Timestamp>,
    /// When it is tried again.
    pub retry: Option<Timestamp>,
    pub archive: Option<String>,
    pub stats: Option<Stats>,
}

/// What was told already, to be kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// Of the last report.
    at: Option<Timestamp>,
    /// Was there anybody to tell?
    heard: bool,
    seen: BTreeMap<String, Timestamp>,
    open: BTreeMap<String, Open>,
    /// The last run of each volume at each target.
    runs: BTreeMap<String, String>,
    waiting: Vec<Item>,
    /// When a group was last told of.
    groups: BTreeMap<String, Timestamp>,
    /// Items that nobody was told of because there were too many.
    surplus: u64,
}

/// A trouble that is not over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    kind: Kind,
    level: Level,
    target: String,
    /// What of it would have to be told anew when it changes.
    mark: String,
    told: Option<Timestamp>,
}

/// One thing of a notice to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    kind: Kind,
    level: Level,
    target: String,
    about: About,
    repeated: bool,
}

/// A trouble as the report has it.
struct Trouble {
    key: String,
    kind: Kind,
    level: Level,
    target: String,
    mark: String,
    about: About,
    /// Something graver tells it.
    muted: bool,
}

/// After a notice, more of its group is gathered for so long.
const GATHERED: SignedDuration = SignedDuration::from_mins(10);
/// Items that wait at one time.
const MOST: usize = 10_000;

/// What is to be told now of `report`, and what was told then. To be asked after each run and every minute or so; a report from before the
/// volumes were first listed must not be given.
pub fn notices(before: &Told, report: &Report, now: Timestamp, notify: &Notify) -> (Vec<Notice>, Told) {
    let mut told = before.clone();
    told.begin(now, notify);
    let places: BTreeSet<String> = report.volumes.iter().map(|standing| place(&standing.volume, &standing.target)).collect();
    let troubles = troubles(report);
    let mended = told.close(&troubles, report, &places);
    for trouble in troubles {
        told.weigh(trouble, now, notify);
    }
    told.drop_missing(&places, notify);
    told.note_runs(report, &mended, notify);
    for place in places {
        told.seen.entry(place).or_insert(now);
    }
    told.at = Some(now);
    (told.gather(&report.node, now), told)
}

/// A notice that tries out whether notices arrive.
pub fn trial(node: &str, now: Timestamp) -> Notice {
    let item = Item { kind: Kind::Trial, level: Level::Success, target: String::new(), about: About::default(), repeated: false };
    notice(node, now, &[item], 0)
}

impl Told {
    /// Is there more to keep than when it was last looked?
    pub fn differs(&self, other: &Told) -> bool {
        let now = Told { at: other.at, ..self.clone() };
        now != *other
    }

    /// Since when each volume is to be saved to each target, for the next report's `Facts::seen`.
    pub fn seen(&self) -> &BTreeMap<String, Timestamp> {
        &self.seen
    }

    fn begin(&mut self, now: Timestamp, notify: &Notify) {
        if notify.is_heard() && !self.heard {
            self.open.values_mut().for_each(|open| open.told = None);
        }
        self.heard = notify.is_heard();
        // After a clock was set back, what was told in the future must not keep anybody quiet.
        for open in self.open.values_mut() {
            open.told = open.told.filter(|at| *at <= now);
        }
        self.groups.retain(|_, at| *at <= now && now.duration_since(*at) < GATHERED);
        self.seen.values_mut().for_each(|at| *at = (*at).min(now));
    }

    /// Ends what is no trouble any more; gives the places of volumes of which is told that they are good again.
    fn close(&mut self, troubles: &[Trouble], report: &Report, places: &BTreeSet<String>) -> BTreeSet<String> {
        let there: BTreeSet<&str> = troubles.iter().map(|trouble| trouble.key.as_str()).collect();
        let over: Vec<String> = self.open.keys().filter(|key| !there.contains(key.as_str())).cloned().collect();
        let mut mended = BTreeSet::new();
        for key in over {
            let Some(open) = self.open.remove(&key) else { continue };
            let named = key.split_once(' ').map_or("", |(_, named)| named);
            let silent = matches!(open.kind, Kind::Warned | Kind::ArchivesLost);
            if silent || open.told.is_none() || !mended.insert(named.to_owned()) {
                continue;
            }
            if let Some(about) = good_again(open.kind, named, report, places) {
                self.push(Item { kind: Kind::Recovered, level: Level::Success, target: open.target, about, repeated: false });
            }
        }
        mended
    }

    fn weigh(&mut self, trouble: Trouble, now: Timestamp, notify: &Notify) {
        let was = self.open.get(&trouble.key);
        let level = was.map_or(trouble.level, |was| was.level.max(trouble.level));
        let told = was.and_then(|was| was.told);
        let changed = was.is_none_or(|was| was.mark != trouble.mark || was.level < level);
        let again = told.is_none_or(|at| now.duration_since(at).unsigned_abs() >= notify.repeat);
        let tell = (changed || again) && !trouble.muted && level >= notify.level;
        let open = Open {
            kind: trouble.kind,
            level,
            target: trouble.target.clone(),
            mark: trouble.mark,
            told: if tell { Some(now) } else { told },
        };
        self.open.insert(trouble.key, open);
        if tell {
            let repeated = !changed && told.is_some();
            self.push(Item { kind: trouble.kind, level, target: trouble.target, about: trouble.about, repeated });
        }
    }

    /// Tells of volumes that were to be saved and are so no longer.
    fn drop_missing(&mut self, places: &BTreeSet<String>, notify: &Notify) {
        let gone: Vec<String> = self.seen.keys().filter(|place| !places.contains(*place)).cloned().collect();
        for place in gone {
            self.seen.remove(&place);
            self.runs.remove(&place);
            if notify.level > Level::Warning {
                continue;
            }
            let (volume, target) = place.split_once(' ').unwrap_or((&place, ""));
            let message = "it is gone, or no label asks for it any more; its archives stay".to_owned();
            let about = About { volume: Some(volume.to_owned()), message, ..About::default() };
            self.push(Item { kind: Kind::Dropped, level: Level::Warning, target: target.to_owned(), about, repeated: false });
        }
    }

    /// Tells of good runs, except for those of which it is told that they end a trouble. What ran before the first report is old.
    fn note_runs(&mut self, report: &Report, mended: &BTreeSet<String>, notify: &Notify) {
        for standing in &report.volumes {
            let Some(last) = &standing.last else { continue };
            let place = place(&standing.volume, &standing.target);
            let was = self.runs.insert(place.clone(), last.id.clone());
            let new = was.map_or(self.at.is_some(), |was| was != last.id);
            if new && last.verdict == Verdict::Good && notify.level == Level::Success && !mended.contains(&place) {
                let target = standing.target.clone();
                self.push(Item { kind: Kind::Saved, level: Level::Success, target, about: saved(standing), repeated: false });
            }
        }
    }

    fn push(&mut self, item: Item) {
        if self.waiting.len() < MOST { self.waiting.push(item) } else { self.surplus += 1 }
    }

    /// The notices of all groups that have not been told of just now.
    fn gather(&mut self, node: &str, now: Timestamp) -> Vec<Notice> {
        let mut groups: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for item in std::mem::take(&mut self.waiting) {
            let group = item.group();
            match self.groups.contains_key(&group) {
                true => self.waiting.push(item),
                false => groups.entry(group).or_default().push(item),
            }
        }
        let mut notices = Vec::new();
        for (group, items) in groups {
            self.groups.insert(group, now);
            notices.push(notice(node, now, &items, std::mem::take(&mut self.surplus)));
        }
        notices.sort_by_key(|notice| std::cmp::Reverse(notice.level));
        notices
    }
}

impl Item {
    fn group(&self) -> String {
        format!("{:?} {:?} {} {}", self.kind, self.level, self.repeated, self.target)
    }
}

/// One notice about `items`, which are of one group.
fn notice(node: &str, now: Timestamp, items: &[Item], surplus: u64) -> Notice {
    // Never empty: a group comes to be with its first item.
    let Some(first) = items.first() else { return trial(node, now) };
    let target = Some(first.target.clone()).filter(|target| !target.is_empty());
    let about: Vec<About> = items.iter().take(LISTED).map(|item| item.about.clone()).collect();
    let count = items.len() as u64 + surplus;
    let title = title(first.kind, &about, count, target.as_deref(), first.repeated);
    Notice {
        id: format!("{}.{}.{}.{}", now.as_millisecond(), node, first.group().replace(' ', "."), count),
        kind: first.kind,
        level: first.level,
        node: node.to_owned(),
        at: now,
        help: help(first.kind, &about),
        title,
        more: count - about.len() as u64,
        about,
        target,
        repeated: first.repeated,
    }
}

fn saved(standing: &Standing) -> About {
    let success = standing.success.as_ref();
    About {
        volume: Some(standing.volume.clone()),
        repository: Some(standing.repository.location.clone()),
        message: standing.message.clone(),
        last_success: success.map(|success| success.at),
        retry: None,
        archive: success.and_then(|success| success.archive.clone()),
        stats: success.map(|success| success.stats),
    }
}

/// What is to be said of a trouble that is over; `None` where what it was about is no longer there.
fn good_again(kind: Kind, named: &str, report: &Report, places: &BTreeSet<String>) -> Option<About> {
    let message = match kind {
        Kind::Held => "its key is kept elsewhere",
        Kind::SpaceLow => "there is room again",
        Kind::CheckFailed | Kind::CheckOverdue => "its check ended well",
        Kind::DrillFailed | Kind::DrillOverdue => "it was restored on trial",
        _ => "it was saved",
    };
    let message = message.to_owned();
    if places.contains(named) {
        let standing = report.volumes.iter().find(|standing| place(&standing.volume, &standing.target) == named)?;
        // What is held is not told to be overdue, and not good either.
        let is_bad = standing.overdue || standing.last.as_ref().is_some_and(|last| last.verdict == Verdict::Failed);
        if is_bad && matches!(kind, Kind::Overdue | Kind::Failed) {
            return None;
        }
        return Some(About { message, ..saved(standing) });
    }
    let keeping = report.repositories.iter().find(|keeping| named.split(' ').next() == Some(&keeping_name(keeping)))?;
    Some(About { repository: Some(keeping.repository.location.clone()), message, ..About::default() })
}

fn keeping_name(keeping: &Keeping) -> String {
    format!("{}/{}", keeping.target, keeping.repository.name)
}

/// Everything in a report that somebody should hear of.
fn troubles(report: &Report) -> Vec<Trouble> {
    let volumes = report.volumes.iter().flat_map(of_volume);
    volumes.chain(report.repositories.iter().flat_map(of_repository)).collect()
}

fn of_volume(standing: &Standing) -> Vec<Trouble> {
    let named = place(&standing.volume, &standing.target);
    let trouble = |kind: Kind, level: Level, mark: String, message: String, muted: bool| Trouble {
        key: format!("{kind:?} {named}"),
        kind,
        level,
        target: standing.target.clone(),
        mark,
        about: About { message, ..saved(standing) },
        muted,
    };
    let mut found = Vec::new();
    let overdue = standing.state == State::Overdue;
    if overdue {
        found.push(trouble(Kind::Overdue, Level::Error, String::new(), standing.message.clone(), false));
    }
    if let Some(last) = &standing.last {
        match last.verdict {
            Verdict::Failed => {
                let mut failed = trouble(Kind::Failed, weight(last), last.incident.clone(), last.message.clone(), overdue);
                failed.about.retry = last.retry;
                found.push(failed);
            }
            Verdict::Warning => found.push(trouble(Kind::Warned, Level::Warning, sort(&last.message), last.message.clone(), false)),
            Verdict::Good => {}
        }
    }
    if let Some(drill) = &standing.drill {
        let told = of_check(drill, [Kind::DrillFailed, Kind::DrillOverdue]);
        found.extend(told.map(|(kind, level, mark, message)| {
            let mut trouble = trouble(kind, level, mark, message, false);
            trouble.key = format!("{kind:?}-drill {named}");
            trouble
        }));
    }
    found
}

fn of_repository(keeping: &Keeping) -> Vec<Trouble> {
    let trouble = |what: &str, kind: Kind, level: Level, mark: String, message: String| Trouble {
        key: format!("{kind:?} {}{what}", keeping_name(keeping)),
        kind,
        level,
        target: keeping.target.clone(),
        mark,
        about: About { repository: Some(keeping.repository.location.clone()), message, ..About::default() },
        muted: false,
    };
    let mut found = Vec::new();
    if let Some(why) = &keeping.held {
        found.push(trouble("", Kind::Held, Level::Error, String::new(), why.clone()));
    }
    if keeping.low {
        let free = keeping.free.unwrap_or_default() / (1 << 20);
        found.push(trouble("", Kind::SpaceLow, Level::Warning, String::new(), format!("{free} MiB are free")));
    }
    if let Some((before, now)) = keeping.lost {
        let message = format!("there were {before} archives, and {now} are left");
        found.push(trouble("", Kind::ArchivesLost, Level::Warning, format!("{before} {now}"), message));
    }
    for check in &keeping.checks {
        let told = of_check(check, [Kind::CheckFailed, Kind::CheckOverdue]);
        let what = format!(" {:?}", check.task);
        found.extend(told.map(|(kind, level, mark, message)| trouble(&what, kind, level, mark, message)));
    }
    found
}

/// What a check or a trial wants told: its kind (failed, overdue, or a warning), weight, mark and message.
fn of_check(check: &Check, [failed, overdue]: [Kind; 2]) -> Option<(Kind, Level, String, String)> {
    let name = match check.task {
        Task::CheckRepository => "the check of the repository",
        Task::CheckArchives => "the check of the archives",
        Task::VerifyData => "the verification of the data",
        Task::Drill | Task::Save => "the restore on trial",
    };
    match (&check.last, check.state) {
        (Some(last), _) if last.verdict == Verdict::Failed => {
            Some((failed, weight(last), last.incident.clone(), format!("{name} failed: {}", last.message)))
        }
        (_, State::Overdue) => {
            let message = match check.age {
                Some(age) => format!("{name} last ended well {} ago", long(age)),
                None => format!("{name} has never ended well"),
            };
            Some((overdue, Level::Warning, String::new(), message))
        }
        (Some(last), _) if last.verdict == Verdict::Warning => {
            Some((Kind::Warned, Level::Warning, sort(&last.message), format!("{name}: {}", last.message)))
        }
        _ => None,
    }
}

/// What will be tried again may mend itself.
fn weight(last: &Last) -> Level {
    if last.retry.is_some() { Level::Warning } else { Level::Error }
}

/// Warnings that differ in numbers only are of one sort, which is told again after a while and not each night.
fn sort(message: &str) -> String {
    message.chars().filter(|letter| !letter.is_ascii_digit()).take(200).collect()
}
