//! The TXT records that are live, on disk: what a crash leaves behind can be told from other people's records and taken away.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::dns::Record;

/// A record this old is no running order's, be it of another process that hands over to us.
const STALE: SignedDuration = SignedDuration::from_mins(60);
/// A record this old is tried a last time.
const HOPELESS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// More entries are not read at a time.
const MOST: usize = 1000;
/// Longer files are not entries.
const LONGEST: u64 = 16 * 1024;

/// One file a record.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    /// What this process noted is not left over, however old.
    started: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    since: Timestamp,
    /// Which process noted it.
    process: u32,
    /// It could not be removed when it should have been.
    #[serde(default)]
    given_up: bool,
    record: Record,
}

impl Journal {
    pub fn new(directory: PathBuf) -> Journal {
        Journal { directory, started: Timestamp::now() }
    }

    /// Remembers `record`, before it is published. Failing is said and no reason not to publish.
    pub async fn note(&self, record: &Record) {
        self.remember(record, false).await;
    }

    /// `record` is not needed any more and could not be removed.
    pub async fn give_up(&self, record: &Record) {
        self.remember(record, true).await;
    }

    async fn remember(&self, record: &Record, given_up: bool) {
        let entry = Entry { since: Timestamp::now(), process: std::process::id(), given_up, record: record.clone() };
        let (directory, file) = (self.directory.clone(), self.file(record));
        let written = blocking(move || write(&directory, &file, &entry)).await;
        if let Err(error) = written {
            tracing::warn!(directory = %self.directory.display(), %error, "a crash now would leave a DNS-01 record behind");
        }
    }

    /// The record is gone.
    pub async fn forget(&self, record: &Record) {
        let file = self.file(record);
        match blocking(move || std::fs::remove_file(file)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(directory = %self.directory.display(), %error, "the note of a DNS-01 record cannot be removed");
            }
            _ => {}
        }
    }

    /// Records of earlier runs and those that were given up, each with whether this is its last chance.
    pub async fn leftovers(&self) -> Vec<(Record, bool)> {
        let (directory, started) = (self.directory.clone(), self.started);
        let entries = blocking(move || read(&directory)).await.unwrap_or_else(|error| {
            tracing::warn!(directory = %self.directory.display(), %error, "notes of DNS-01 records cannot be read");
            Vec::new()
        });
        let alive = |process: u32| process != std::process::id() && Path::new("/proc").join(process.to_string()).exists();
        let now = Timestamp::now();
        let left = entries.into_iter().filter(|entry| left_over(entry, alive(entry.process), started, now));
        left.map(|entry| (entry.record, now.duration_since(entry.since) > HOPELESS)).collect()
    }

    fn file(&self, record: &Record) -> PathBuf {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{}\n{}", record.name, record.value).as_bytes());
        let hex: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(format!("{hex}.json"))
    }
}

/// Whoever noted it may still need it: this process (`started`), or another one that runs (`alive`) and hands over to us.
fn left_over(entry: &Entry, alive: bool, started: Timestamp, now: Timestamp) -> bool {
    entry.given_up || (entry.since < started && (!alive || now.duration_since(entry.since) > STALE))
}

fn write(directory: &Path, file: &Path, entry: &Entry) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let draft = file.with_extension("draft");
    let mut handle = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    io::Write::write_all(&mut handle, &serde_json::to_vec(entry)?)?;
    handle.sync_all()?;
    std::fs::rename(&draft, file)?;
    std::fs::File::open(directory)?.sync_all()
}

fn read(directory: &Path) -> io::Result<Vec<Entry>> {
    let listing = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut entries = Vec::new();
    for item in listing.take(MOST) {
        let path = item?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(&path)?, LONGEST), &mut text)?;
        match serde_json::from_slice(&text) {
            Ok(entry) => entries.push(entry),
            Err(error) => tracing::warn!(file = %path.display(), %error, "this is no note of a DNS-01 record"),
        }
    }
    Ok(entries)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &str) -> Record {
        let name = "_acme-challenge.example.com".to_owned();
        Record { domain: "example.com".into(), name, zone: Some("example.com".into()), value: value.into() }
    }

    #[tokio::test]
    async fn what_an_earlier_run_noted_and_did_not_forget_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("dns");
        let crashed = Journal::new(directory.clone());
        crashed.note(&record("one")).await;
        crashed.note(&record("two")).await;
        crashed.forget(&record("one")).await;
        crashed.forget(&record("one")).await;
        assert_eq!(crashed.leftovers().await, [], "they are its own");
        crashed.note(&record("four")).await;
        crashed.give_up(&record("four")).await;
        assert_eq!(crashed.leftovers().await, [(record("four"), false)]);
        crashed.forget(&record("four")).await;
        std::fs::write(directory.join("stray.json"), "{").unwrap();
        std::fs::write(directory.join("half.draft"), "{").unwrap();

        let next = Journal::new(directory);
        next.note(&record("three")).await;
        assert_eq!(next.leftovers().await, [(record("two"), false)]);
        assert_eq!(Journal::new(folder.path().join("none")).leftovers().await, []);
    }

    #[test]
    fn an_order_of_a_process_that_still_runs_is_let_be_for_an_hour() {
        let started: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
        let entry = |since: &str| Entry { since: since.parse().unwrap(), process: 7, given_up: false, record: record("x") };
        let now = started + SignedDuration::from_mins(5);
        for (since, alive, expected) in [
            ("2026-01-01T09:59:00Z", true, false),
            ("2026-01-01T09:59:00Z", false, true),
            ("2026-01-01T08:59:00Z", true, true),
            ("2026-01-01T10:01:00Z", false, false),
        ] {
            assert_eq!(left_over(&entry(since), alive, started, now), expected, "{since} {alive}");
        }
    }
}
