//! Who is told what of a report, and when: what is new, what got worse, what is still so after a while, and what is good again.
//! A failure is told at once as a warning while it will be tried again, and as an error once nobody tries any more; later tries of the
//! same night add nothing. What happens to many volumes at one target is told together: the first at once, the rest a little later.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config::{Level, Notify};

use super::standing::{Report, place};
use super::trouble::{Trouble, keeping_name, saved, troubles};
use super::wording::{help, title};
use super::{Stats, Verdict};

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
        let what = if self.about.volume.is_some() { "volumes" } else { "repositories" };
        format!("{:?} {:?} {} {what} {}", self.kind, self.level, self.repeated, self.target)
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

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backup::standing::tests::{DAY, HOUR, Node, held, job, missed, noon, run, save};
    use crate::backup::{Reason, Run, Task};

    /// A story told report by report; what is said keeps between them as over a restart.
    struct Story {
        told: Told,
        now: Timestamp,
        notify: Notify,
    }

    fn story() -> Story {
        let notify = Notify { webhooks: vec!["https://example.com/".into()], ..Notify::default() };
        Story { told: Told::default(), now: noon(), notify }
    }

    impl Story {
        fn all(&mut self, node: &Node, minutes: u64) -> Vec<Notice> {
            self.now = self.now.checked_add(Duration::from_secs(60 * minutes)).unwrap();
            let mut node = node.clone();
            node.now = self.now;
            node.seen = self.told.seen().clone();
            let (notices, told) = notices(&self.told, &node.report(), self.now, &self.notify);
            self.told = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
            assert_eq!(self.told, told);
            notices
        }

        /// Kinds and levels of what is told so many minutes later.
        fn tell(&mut self, node: &Node, minutes: u64) -> Vec<(Kind, Level)> {
            self.all(node, minutes).into_iter().map(|notice| (notice.kind, notice.level)).collect()
        }
    }

    fn failed(volume: &str) -> Node {
        Node::with(&[volume]).ran(save(volume, 2 * HOUR, Verdict::Good)).ran(save(volume, HOUR, Verdict::Failed))
    }

    #[test]
    fn a_failure_is_told_once_then_again_after_a_while_and_when_it_is_over() {
        let mut story = story();
        let node = failed("db");
        assert_eq!(story.tell(&node, 0), [(Kind::Failed, Level::Error)]);
        assert_eq!(story.tell(&node, 1), []);
        assert_eq!(story.tell(&node, 23 * 60), []);
        let again = story.all(&node, 60);
        assert_eq!((again.len(), again[0].repeated, again[0].title.starts_with("Still: ")), (1, true, true));
        let good = node.ran(save("db", 0, Verdict::Good));
        assert_eq!(story.tell(&good, 1), [(Kind::Recovered, Level::Success)]);
        assert_eq!(story.tell(&good, 1), []);
    }

    #[test]
    fn tries_of_one_failure_are_a_warning_until_nobody_tries_any_more() {
        let mut story = story();
        let retried =
            |node: Node, number: u32, seconds| node.ran(Run { reason: Reason::Retry(number), ..save("db", seconds, Verdict::Failed) });
        let mut node = failed("db");
        node.jobs = vec![job(Task::Save, "db", noon(), Reason::Retry(1))];
        assert_eq!(story.tell(&node, 0), [(Kind::Failed, Level::Warning)]);
        node = retried(node, 1, 600);
        assert_eq!(story.tell(&node, 5), []);
        node = retried(node, 2, 300);
        node.jobs.clear();
        let last = story.all(&node, 5);
        assert_eq!((last.len(), last[0].level, last[0].repeated), (1, Level::Error, false));
        // The next night: told once, and its tries are not.
        node = node.ran(save("db", 0, Verdict::Failed));
        node.jobs = vec![job(Task::Save, "db", noon(), Reason::Retry(1))];
        assert_eq!(story.tell(&node, 20 * 60), [(Kind::Failed, Level::Error)]);
        node.jobs.clear();
        assert_eq!(story.tell(&retried(node, 1, 0), 5), []);
    }

    #[test]
    fn what_is_missing_is_told_without_any_run_and_over_a_restart() {
        let mut story = story();
        let node = Node::with(&["db"]);
        assert_eq!(story.tell(&node, 0), []);
        assert_eq!(story.tell(&node, 36 * 60 - 1), []);
        assert_eq!(story.tell(&node, 1), [(Kind::Overdue, Level::Error)]);
        assert_eq!(story.tell(&node, 1), []);
        // A failure adds nothing to that, nor does its end without an archive.
        let node = node.ran(save("db", 0, Verdict::Failed));
        assert_eq!(story.tell(&node, 1), []);
        let mut good = save("db", 0, Verdict::Good);
        good.ended = story.now;
        let all = story.all(&node.ran(good), 1);
        assert_eq!(all.iter().map(|notice| notice.kind).collect::<Vec<_>>(), [Kind::Recovered]);
    }

    #[test]
    fn a_run_that_makes_up_for_what_is_missing_is_waited_for() {
        let mut story = story();
        let mut node = Node::with(&["db"]).ran(save("db", 5 * DAY, Verdict::Good));
        node.under_way.push((job(Task::Save, "db", noon(), Reason::CaughtUp), None));
        assert_eq!(story.tell(&node, 0), []);
        node.under_way.clear();
        assert_eq!(story.tell(&node.clone().ran(save("db", 0, Verdict::Good)), 60), [], "nothing was told, so nothing is over");
        assert_eq!(story.tell(&node, 60), [(Kind::Overdue, Level::Error)]);
    }

    #[test]
    fn many_volumes_at_one_target_make_one_notice() {
        let mut story = story();
        let names: Vec<String> = (0..70).map(|number| format!("v{number:02}")).collect();
        let refs: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut node = refs[1..].iter().fold(Node::with(&refs), |node, name| node.ran(save(name, HOUR, Verdict::Failed)));
        let first = story.all(&node, 0);
        assert_eq!((first.len(), first[0].about.len(), first[0].more, first[0].target.as_deref()), (1, LISTED, 19, Some("offsite")));
        assert!(first[0].title.contains("69 volumes"), "{}", first[0].title);
        // One that follows soon waits a little for others.
        node = node.ran(save("v00", 0, Verdict::Failed));
        assert_eq!(story.tell(&node, 1), []);
        let later = story.all(&node, 10);
        assert_eq!((later.len(), later[0].about[0].volume.as_deref(), later[0].more), (1, Some("v00"), 0));
    }

    #[test]
    fn warnings_of_one_sort_are_not_told_each_time() {
        let mut story = story();
        let warned = |node: Node, message: &str| node.ran(Run { message: message.into(), ..save("db", 0, Verdict::Warning) });
        let node = warned(Node::with(&["db"]), "3 warnings");
        assert_eq!(story.tell(&node, 0), [(Kind::Warned, Level::Warning)]);
        assert_eq!(story.tell(&warned(node.clone(), "4 warnings"), 60), []);
        assert_eq!(story.tell(&warned(node.clone(), "it is 60 % smaller than usual"), 60), [(Kind::Warned, Level::Warning)]);
        assert_eq!(story.tell(&node.ran(save("db", 0, Verdict::Good)), 60), [], "that it is over is no news");
    }

    #[test]
    fn repositories_and_trials_have_their_notices() {
        type Change = fn(Node) -> Node;
        let full = |mut node: Node| {
            node.free.insert("offsite".into(), 1);
            node
        };
        let lost = |node: Node| node.ran(missed("db", 40, 2));
        let hold = |mut node: Node| {
            node.held.push(held());
            node
        };
        let table: [(Change, Kind, Level, bool); 7] = [
            (hold, Kind::Held, Level::Error, true),
            (full, Kind::SpaceLow, Level::Warning, true),
            (lost, Kind::ArchivesLost, Level::Warning, false),
            (|node| node.ran(run(Task::CheckArchives, "", HOUR, Verdict::Failed, "damage")), Kind::CheckFailed, Level::Error, true),
            (|node| node.ran(run(Task::Drill, "db", HOUR, Verdict::Failed, "differs")), Kind::DrillFailed, Level::Error, true),
            (|node| drilled(node.ran(run(Task::Drill, "db", 70 * DAY, Verdict::Good, ""))), Kind::DrillOverdue, Level::Warning, true),
            (|node| node.ran(run(Task::VerifyData, "", HOUR, Verdict::Warning, "odd")), Kind::Warned, Level::Warning, false),
        ];
        for (change, kind, level, recovers) in table {
            let mut story = story();
            let node = Node::with(&["db"]).ran(save("db", HOUR, Verdict::Good));
            assert_eq!(story.tell(&node, 0), []);
            let all = story.all(&change(node.clone()), 1);
            assert_eq!(all.iter().map(|notice| (notice.kind, notice.level)).collect::<Vec<_>>(), [(kind, level)]);
            assert!(!all[0].title.is_empty() && !all[0].help.is_empty() && !all[0].about[0].message.is_empty(), "{:?}", all[0]);
            let over: Vec<_> = if recovers { vec![(Kind::Recovered, Level::Success)] } else { vec![] };
            assert_eq!(story.tell(&node, 1), over, "{kind:?}");
        }
    }

    fn drilled(mut node: Node) -> Node {
        node.config.drill = Some(Duration::from_secs(30 * DAY));
        node
    }

    #[test]
    fn the_level_says_what_is_told() {
        for (level, failing, saved) in [(Level::Error, false, false), (Level::Warning, true, false), (Level::Success, true, true)] {
            let mut story = story();
            story.notify.level = level;
            let mut node = Node::with(&["db"]).ran(save("db", 3 * HOUR, Verdict::Good));
            assert_eq!(story.tell(&node, 0), [], "what ran before is old");
            node = node.ran(save("db", 2 * HOUR, Verdict::Failed));
            node.jobs = vec![job(Task::Save, "db", noon(), Reason::Retry(1))];
            assert_eq!(!story.tell(&node, 1).is_empty(), failing);
            node = node.ran(save("db", HOUR, Verdict::Good));
            assert_eq!(!story.tell(&node, 1).is_empty(), failing, "only what was told is told to be over");
            assert_eq!(story.tell(&node.ran(save("db", 0, Verdict::Good)), 30).contains(&(Kind::Saved, Level::Success)), saved);
        }
    }

    #[test]
    fn a_volume_that_is_no_longer_saved_is_told_once() {
        let mut story = story();
        let both = Node::with(&["db", "files"]);
        let one = Node::with(&["files"]);
        assert_eq!(story.tell(&both, 0), []);
        let gone = story.all(&one, 1);
        assert_eq!((gone[0].kind, gone[0].about[0].volume.as_deref()), (Kind::Dropped, Some("db")));
        assert_eq!(story.tell(&one, 60), []);
        // With it goes what was wrong with it.
        let mut story = super::tests::story();
        assert_eq!(story.tell(&failed("db"), 0), [(Kind::Failed, Level::Error)]);
        assert_eq!(story.tell(&Node::with(&[]), 1), [(Kind::Dropped, Level::Warning)]);
    }

    #[test]
    fn who_comes_to_listen_hears_of_what_is_open() {
        let mut story = story();
        let receivers = std::mem::take(&mut story.notify.webhooks);
        // For the log.
        assert_eq!(story.tell(&failed("db"), 0), [(Kind::Failed, Level::Error)]);
        story.notify.webhooks = receivers;
        assert_eq!(story.tell(&failed("db"), 60), [(Kind::Failed, Level::Error)]);
    }

    #[test]
    fn a_clock_that_is_set_back_silences_nobody() {
        let mut story = story();
        let node = failed("db");
        assert_eq!(story.tell(&node, 0), [(Kind::Failed, Level::Error)]);
        story.now = noon().checked_sub(Duration::from_secs(300 * DAY)).unwrap();
        assert_eq!(story.tell(&node, 0).len(), 1);
        assert_eq!(story.tell(&node, 1).len(), 0);
    }
}
