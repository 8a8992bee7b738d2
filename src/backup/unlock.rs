//! Locks of runs that the journal proves dead: found as files of borg's, and broken. A repository over ssh is locked by the server's own
//! process, which ends with the connection; what is left of it is the cache's lock on this side.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::borg::{Borg, quiet};
use super::journal::Entry;
use super::lock::{may_break, roster};
use super::step::is_local;

/// Breaking a lock is removing a few files.
const LIMIT: Duration = Duration::from_secs(120);
const EXCLUSIVE: &str = "lock.exclusive";
const ROSTER: &str = "lock.roster";
const MAX_ROSTER: u64 = 1 << 20;

/// Breaks what the dead run of `entry` holds. `is_known`: its repository had archives, so that it is somewhere. Was there anything?
///
/// # Errors
/// Its target is not there, somebody else holds the lock too, or borg's; a sentence.
pub async fn free(borg: &Borg, entry: &Entry, is_known: bool) -> Result<bool, String> {
    let dead = BTreeSet::from([entry.run.clone()]);
    let caches = borg.base().join(".cache").join("borg");
    let (own, of_caches) = (dead.clone(), caches.clone());
    let freed = apart(move || free_caches(&of_caches, &own)).await?;
    if !is_local(&entry.repository.location) {
        return Ok(freed);
    }
    let location = entry.repository.location.trim_start_matches("file://").to_owned();
    let found = apart(move || match holders(Path::new(&location)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_known => Ok(Vec::new()),
        found => found.map_err(|error| format!("{location}: {error}")),
    });
    let holders = found.await?;
    // Whoever waits for the lock stands in line without holding it: then there is nothing of ours.
    if holders.is_empty() || may_break(&holders, &dead).is_err() && !holders.iter().any(|name| name.starts_with(&entry.holder)) {
        return Ok(freed);
    }
    may_break(&holders, &dead)?;
    let command = borg.access(&entry.repository, None, &entry.run).break_lock();
    borg.run(&command, None, &quiet(), &CancellationToken::new(), LIMIT).await.map_err(|failure| failure.to_string())?;
    Ok(true)
}

/// Who holds the locks in a repository's or a cache's directory.
fn holders(directory: &Path) -> io::Result<Vec<String>> {
    // A target that is not mounted has no repository, and then nobody knows.
    std::fs::metadata(directory)?;
    let mut names = Vec::new();
    match std::fs::read_dir(directory.join(EXCLUSIVE)) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let path = directory.join(ROSTER);
    if std::fs::metadata(&path).is_ok_and(|data| data.len() <= MAX_ROSTER) {
        names.extend(roster(&std::fs::read_to_string(path)?));
    }
    Ok(names)
}

/// borg's caches are ours alone: locks in them that only dead runs hold are removed as borg would.
fn free_caches(caches: &Path, dead: &BTreeSet<String>) -> Result<bool, String> {
    let failed = |error: io::Error| format!("{}: {error}", caches.display());
    let entries = match std::fs::read_dir(caches) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(failed)?,
    };
    let mut freed = false;
    for entry in entries {
        let cache = entry.map_err(failed)?.path();
        if !cache.is_dir() || may_break(&holders(&cache).map_err(failed)?, dead).is_err() {
            continue;
        }
        let removed = [std::fs::remove_dir_all(cache.join(EXCLUSIVE)), std::fs::remove_file(cache.join(ROSTER))];
        for result in removed {
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => freed = true,
            }
        }
    }
    Ok(freed)
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_dead_lose_their_locks() {
        let directory = tempfile::tempdir().unwrap();
        let lock = |cache: &str, holder: &str| {
            let path = directory.path().join(cache);
            std::fs::create_dir_all(path.join(EXCLUSIVE)).unwrap();
            std::fs::write(path.join(EXCLUSIVE).join(holder), "").unwrap();
            std::fs::write(path.join(ROSTER), format!(r#"{{"exclusive": [["{}", 1, 0]]}}"#, holder.split_once('.').unwrap().0)).unwrap();
            path
        };
        let (ours, theirs) = (lock("a", "skep-1@77.12-0"), lock("b", "skep-2@77.12-0"));
        assert_eq!(free_caches(directory.path(), &BTreeSet::from(["1".to_owned()])), Ok(true));
        assert!(!ours.join(EXCLUSIVE).exists() && !ours.join(ROSTER).exists());
        assert!(theirs.join(EXCLUSIVE).exists() && theirs.join(ROSTER).exists());
        assert_eq!(free_caches(directory.path(), &BTreeSet::from(["1".to_owned()])), Ok(false));
        assert_eq!(holders(&theirs).unwrap().len(), 2);
        assert!(holders(&directory.path().join("unmounted")).is_err());
    }
}
