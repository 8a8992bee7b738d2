//! What a run is about to do to applications, written down before it does it, and what is left to be undone after its process died. A journal
//! is text: a line for each change, the last whole one counts, so that writing never destroys what was written.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hasher;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::command::holder;
use super::inventory::Inventory;
use super::{Repository, Task};

/// Of one run. Container ids are there before anything happens to the containers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub run: String,
    pub task: Task,
    pub volume: Option<String>,
    pub target: String,
    pub repository: Repository,
    /// By what name borg's locks know the run: its BORG_HOST_ID.
    pub holder: String,
    /// The archive that it makes, as long as that is not known to be good.
    #[serde(default)]
    pub archive: Option<String>,
    pub began: Timestamp,
    /// When what is paused or stopped goes on, whatever happens.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// What it is at, for people.
    #[serde(default)]
    pub step: String,
    /// Containers that it froze or is about to, and that were running.
    #[serde(default)]
    pub paused: Vec<String>,
    /// Containers that it stopped or is about to, and that were running.
    #[serde(default)]
    pub stopped: Vec<String>,
}

impl Entry {
    /// Of a run that has done nothing yet.
    pub fn new(run: &str, began: Timestamp, task: Task, volume: Option<&str>, target: &str, repository: &Repository) -> Entry {
        Entry {
            run: run.to_owned(),
            task,
            volume: volume.map(str::to_owned),
            target: target.to_owned(),
            repository: repository.clone(),
            holder: holder(run),
            archive: None,
            began,
            deadline: None,
            step: String::new(),
            paused: Vec::new(),
            stopped: Vec::new(),
        }
    }
}

/// The run that works on the same volume, and began before `own`: two at once would bring the application back under each other's feet, or
/// save what is half restored. `within` is the restore that a safety archive is made for. Whoever restores on trial touches no volume.
pub fn in_the_way<'a>(own: &Entry, living: &'a [Entry], within: Option<&str>) -> Option<&'a Entry> {
    let same = |entry: &&Entry| own.volume.is_some() && entry.volume == own.volume && entry.task == Task::Save;
    let other = |entry: &&Entry| entry.run != own.run && Some(entry.run.as_str()) != within;
    living.iter().filter(same).filter(other).find(|entry| (entry.began, &entry.run) < (own.began, &own.run))
}

/// What a journal file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// `None`: nothing in it can be read.
    pub entry: Option<Entry>,
    /// Something in it is not what was written.
    pub is_damaged: bool,
    /// What looks like a container's id anywhere in a damaged file.
    pub named: BTreeSet<String>,
}

/// What brings things back after a run died, in this order. Archives that it did not finish are deleted by the volume's next good run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Unpause {
        container: String,
        name: String,
    },
    Start {
        container: String,
        name: String,
    },
    /// If it is still held in this name.
    BreakLock {
        repository: Repository,
        holder: String,
    },
    /// Everything before this was done.
    Forget,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Unpause { name, .. } => write!(formatter, "unpause {name}"),
            Action::Start { name, .. } => write!(formatter, "start {name}"),
            Action::BreakLock { repository, .. } => write!(formatter, "break the lock on {}", repository.location),
            Action::Forget => write!(formatter, "forget the run"),
        }
    }
}

/// The entry as one line with its checksum.
///
/// # Errors
/// None that can happen: it is plain text and numbers.
pub fn line(entry: &Entry) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_string(entry)?;
    Ok(format!("{} {body}\n", checksum(&body)).into_bytes())
}

/// Reads what [`line`] wrote, any number of them.
pub fn read(bytes: &[u8]) -> Found {
    let mut found = Found::default();
    let mut lines = 0;
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        // A line without its end was being written when the process died: nothing was done in its name.
        let Some(whole) = piece.strip_suffix(b"\n") else { continue };
        lines += 1;
        match one(whole) {
            Some(entry) => found.entry = Some(entry),
            None => found.is_damaged = true,
        }
    }
    found.is_damaged |= lines == 0;
    if found.is_damaged {
        found.named = identities(bytes);
    }
    found
}

fn one(line: &[u8]) -> Option<Entry> {
    let (sum, body) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    (sum == checksum(body)).then(|| serde_json::from_str(body).ok())?
}

/// Everything that is 64 hexadecimal digits and not part of something longer.
fn identities(bytes: &[u8]) -> BTreeSet<String> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric());
    let texts = words.filter_map(|word| std::str::from_utf8(word).ok());
    texts.filter(|text| super::answer::is_identity(text)).map(str::to_owned).collect()
}

fn checksum(text: &str) -> String {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(text.as_bytes());
    format!("{:016x}", hasher.finish())
}

/// What is to be done about a run whose process is dead, given what the containers are now. The application comes first.
pub fn undo(found: &Found, inventory: &Inventory) -> Vec<Action> {
    let mut actions = Vec::new();
    let (paused, stopped) = match &found.entry {
        Some(entry) => (entry.paused.iter().rev().collect(), entry.stopped.iter().rev().collect()),
        None => (Vec::new(), Vec::new()),
    };
    let container = |id: &str| inventory.containers.iter().find(|container| container.id == id);
    let mut seen = BTreeSet::new();
    for id in paused.into_iter().chain(&found.named) {
        let Some(known) = container(id).filter(|known| known.state == "paused" && seen.insert(known.id.clone())) else { continue };
        actions.push(Action::Unpause { container: known.id.clone(), name: known.name.clone() });
    }
    for id in stopped {
        // One that is named by a damaged file only may have been stopped by somebody else.
        let Some(known) = container(id).filter(|known| !known.is_running() && known.state != "removing") else { continue };
        actions.push(Action::Start { container: known.id.clone(), name: known.name.clone() });
    }
    if let Some(entry) = &found.entry {
        actions.push(Action::BreakLock { repository: entry.repository.clone(), holder: entry.holder.clone() });
    }
    actions.push(Action::Forget);
    actions
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backup::inventory::Container;

    pub fn entry(run: &str) -> Entry {
        Entry {
            run: run.into(),
            task: Task::Save,
            volume: Some("shop_data".into()),
            target: "local".into(),
            repository: Repository { location: "/srv/b/n1".into(), name: "n1".into() },
            holder: format!("skep-{run}"),
            archive: None,
            began: Timestamp::UNIX_EPOCH,
            deadline: None,
            step: "create".into(),
            paused: Vec::new(),
            stopped: Vec::new(),
        }
    }

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn with(states: &[(char, &str)]) -> Inventory {
        let container = |(digit, state): &(char, &str)| Container {
            id: id(*digit),
            name: digit.to_string(),
            state: (*state).into(),
            ..Container::default()
        };
        Inventory { containers: states.iter().map(container).collect(), ..Inventory::default() }
    }

    fn said(actions: &[Action]) -> Vec<String> {
        actions.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_run_works_on_a_volume_at_a_time() {
        let repository = Repository { location: "/b/n1".into(), name: "n1".into() };
        let entry = |run: &str, second, task, volume| {
            Entry::new(run, Timestamp::from_second(second).expect("a time"), task, volume, "t", &repository)
        };
        let own = entry("b", 10, Task::Save, Some("v"));
        for (other, is_in_the_way) in [
            (entry("a", 9, Task::Save, Some("v")), true),
            (entry("a", 10, Task::Save, Some("v")), true),
            (entry("c", 10, Task::Save, Some("v")), false),
            (entry("c", 11, Task::Save, Some("v")), false),
            (entry("b", 10, Task::Save, Some("v")), false),
            (entry("a", 9, Task::Save, Some("w")), false),
            (entry("a", 9, Task::Drill, Some("v")), false),
            (entry("a", 9, Task::CheckRepository, None), false),
        ] {
            let living = [other];
            assert_eq!(in_the_way(&own, &living, None).is_some(), is_in_the_way, "{living:?}");
            assert_eq!(in_the_way(&own, &living, Some("a")), None, "what it is a part of");
        }
        assert_eq!(in_the_way(&entry("b", 10, Task::CheckRepository, None), &[entry("a", 9, Task::Save, None)], None), None);
    }

    #[test]
    fn the_last_whole_line_counts() {
        let first = entry("1");
        let second = Entry { paused: vec![id('a')], ..first.clone() };
        let text = [line(&first).unwrap(), line(&second).unwrap()].concat();
        assert_eq!(read(&text), Found { entry: Some(second.clone()), ..Found::default() });
        let torn = &text[..text.len() - 1];
        assert_eq!(read(torn), Found { entry: Some(first.clone()), ..Found::default() }, "what was not written whole was not done");
        assert!(read(b"").is_damaged);
        let mut flipped = text.clone();
        let place = line(&first).unwrap().len() + 3;
        flipped[place] ^= 1;
        let found = read(&flipped);
        assert_eq!((found.entry, found.is_damaged), (Some(first), true));
        assert_eq!(found.named, BTreeSet::from([id('a')]), "a container that a damaged line names is looked after");
    }

    #[test]
    fn containers_come_back_before_anything_else() {
        let entry = Entry {
            paused: vec![id('a'), id('b'), id('c')],
            stopped: vec![id('d'), id('e'), id('f')],
            archive: Some("x.unproven".into()),
            ..entry("1")
        };
        let found = Found { entry: Some(entry), ..Found::default() };
        let now = with(&[
            ('a', "paused"),
            ('b', "running"),
            ('c', "paused"),
            ('d', "exited"),
            ('e', "running"),
            ('9', "paused"),
            ('8', "exited"),
        ]);
        assert_eq!(
            said(&undo(&found, &now)),
            ["unpause c", "unpause a", "start d", "break the lock on /srv/b/n1", "forget the run"],
            "the last frozen first; nobody else's containers"
        );
    }

    #[test]
    fn a_damaged_journal_still_brings_back_what_it_names() {
        let found = Found { entry: None, is_damaged: true, named: BTreeSet::from([id('a'), id('b')]) };
        assert_eq!(said(&undo(&found, &with(&[('a', "paused"), ('b', "exited")]))), ["unpause a", "forget the run"]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let found = read(&bytes);
            proptest::prop_assert!(found.entry.is_none());
        }

        #[test]
        fn every_cut_is_an_earlier_state(cut in 0..1500usize) {
            let states: Vec<Entry> = (0..3).map(|paused| Entry { paused: vec![id('a'); paused], ..entry("1") }).collect();
            let text: Vec<u8> = states.iter().flat_map(|entry| line(entry).unwrap()).collect();
            let found = read(&text[..cut.min(text.len())]);
            match found.entry {
                Some(entry) => proptest::prop_assert!(states.contains(&entry) && !found.is_damaged),
                None => proptest::prop_assert!(found.is_damaged),
            }
        }
    }
}
