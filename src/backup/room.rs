//! What is looked at on this node's disks before a run begins: the volume's files, and the room at a target that is a directory. A dead
//! file server makes such looks hang, so they have an end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;

use super::Subject;
use super::judge::size;
use super::step::is_local;
use crate::config;

const LIMIT: Duration = Duration::from_secs(30);

/// Are the volume's files where this process looks for them?
///
/// # Errors
/// They are not; what to do, as a sentence.
pub async fn volume(subject: &Subject) -> Result<(), String> {
    let volume = &subject.volume;
    let is_used = subject.containers.iter().any(|container| container.is_running());
    if volume.options.contains_key("device") && !is_used {
        return Err(format!("{} is mounted by the engine only while a container uses it, and none runs", volume.name));
    }
    let path = volume.path.clone();
    let shown = path.display().to_string();
    match looked(move || path.metadata()).await {
        Some(Ok(data)) if data.is_dir() => Ok(()),
        Some(Ok(_)) => Err(format!("{shown}, where the files of {} should be, is no directory", volume.name)),
        Some(Err(error)) => Err(format!(
            "the files of {} are not at {shown}: {error}; in a container, mount the engine's volumes directory and say where by backup.volumes",
            volume.name
        )),
        None => Err(format!("{shown} does not answer: does the server of {} run?", volume.name)),
    }
}

/// Are `bytes` free where `location` is or will be?
///
/// # Errors
/// They are not, or nobody knows; a sentence.
pub async fn free(location: &str, bytes: u64) -> Result<(), String> {
    match asked(location).await {
        Some(Ok(free)) if free >= bytes => Ok(()),
        Some(Ok(free)) => Err(format!("only {} are free at {location}, and backup.min-free wants {}", size(free), size(bytes))),
        Some(Err(error)) => Err(format!("nobody knows how much is free at {location}: {error}")),
        None => Err(format!("{location} does not answer")),
    }
}

/// Free bytes of the targets that are directories, by their names; those that nobody knows of are missing.
pub async fn of_targets(config: &config::Backup) -> BTreeMap<String, u64> {
    let directories = config.targets.iter().filter(|target| is_local(&target.location));
    let asked = directories.map(|target| async { Some((target.name.clone(), available(&target.location).await?)) });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Free bytes where `location` is or will be; `None`: nobody knows.
async fn available(location: &str) -> Option<u64> {
    asked(location).await?.ok()
}

async fn asked(location: &str) -> Option<rustix::io::Result<u64>> {
    let path = PathBuf::from(location.strip_prefix("file://").unwrap_or(location));
    looked(move || {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
        rustix::fs::statvfs(&there).map(|room| room.f_bavail.saturating_mul(room.f_frsize))
    })
    .await
}

/// `None`: it took too long.
async fn looked<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(look)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_looked_for_where_a_repository_will_be() {
        let directory = tempfile::tempdir().unwrap();
        let location = directory.path().join("not/yet/there").to_string_lossy().into_owned();
        assert_eq!(free(&location, 1).await, Ok(()));
        let error = free(&location, u64::MAX).await.expect_err("nobody has so much");
        assert!(error.contains("backup.min-free"), "{error}");
    }
}
