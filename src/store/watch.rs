//! Changes of a directory, found by looking: another process may write there too, and no notice is lost by looking again.
//! Every write renames a file, which its directory's time tells of; so a look at rest is a `stat` for each directory.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::keyed::{Keyed, Stamp};
use super::{Change, Version};

const LOOK: Duration = Duration::from_secs(1);
/// Times of directories are as coarse as the kernel's clock ticks: one that changed just now may change again at the same time.
const RECENT: Duration = Duration::from_secs(3);
/// So often in looks everything is read, whatever the directories say: somebody may have edited a file in place.
const THOROUGH: u32 = 60;

/// What was there at the last look.
#[derive(Debug, Default)]
pub struct Seen {
    pub folders: BTreeMap<PathBuf, SystemTime>,
    pub files: BTreeMap<String, (Stamp, Version)>,
}

impl Seen {
    /// Do the directories say that nothing came or went?
    fn is_current(&self) -> bool {
        let now = SystemTime::now();
        let same = |(folder, time): (&PathBuf, &SystemTime)| {
            let old = now.duration_since(*time).is_ok_and(|age| age > RECENT);
            old && fs::metadata(folder).and_then(|data| data.modified()).is_ok_and(|modified| modified == *time)
        };
        !self.folders.is_empty() && self.folders.iter().all(same)
    }
}

/// One reader of changes.
pub struct Watcher {
    keyed: Keyed,
    prefix: String,
    /// Woken by writes of this process.
    woken: watch::Receiver<()>,
    seen: Seen,
    untold: VecDeque<Change>,
    looks: u32,
    broken: bool,
}

impl Watcher {
    pub fn new(keyed: Keyed, prefix: &str, woken: watch::Receiver<()>) -> Watcher {
        Watcher { keyed, prefix: prefix.to_owned(), woken, seen: Seen::default(), untold: VecDeque::new(), looks: 0, broken: false }
    }

    /// The next change; waits for it.
    pub async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.untold.pop_front() {
                return change;
            }
            if self.looks > 0 {
                // The sender lives as long as `keyed`, so this never fails.
                _ = tokio::time::timeout(LOOK, self.woken.changed()).await;
            }
            self.woken.mark_unchanged();
            self.look().await;
            self.looks = self.looks.wrapping_add(1).max(1);
        }
    }

    async fn look(&mut self) {
        let (keyed, prefix, thorough) = (self.keyed.clone(), self.prefix.clone(), self.looks.is_multiple_of(THOROUGH));
        let before = std::mem::take(&mut self.seen);
        let looked = tokio::task::spawn_blocking(move || match !thorough && before.is_current() {
            true => (before, None),
            false => {
                let now = keyed.scan(&prefix, &before.files);
                (before, Some(now))
            }
        });
        match looked.await {
            Ok((before, None)) => self.seen = before,
            Ok((before, Some(Ok(now)))) => {
                self.untold = differences(&before.files, &now.files);
                (self.seen, self.broken) = (now, false);
            }
            Ok((before, Some(Err(error)))) => {
                self.seen = before;
                if !std::mem::replace(&mut self.broken, true) {
                    tracing::warn!(%error, "changes in the store cannot be seen; trying on");
                }
            }
            // Everything is told again.
            Err(error) => tracing::error!(%error, "looking at the store broke off"),
        }
    }
}

type Files = BTreeMap<String, (Stamp, Version)>;

fn differences(before: &Files, now: &Files) -> VecDeque<Change> {
    let version = |files: &Files, key: &String| files.get(key).map(|(_, version)| version.clone());
    let gone = before.keys().filter(|key| !now.contains_key(*key)).map(|key| Change { key: key.clone(), version: None });
    let new = now.keys().filter(|key| version(before, key) != version(now, key));
    gone.chain(new.map(|key| Change { key: key.clone(), version: version(now, key) })).collect()
}
