//! A dump on its way from a database's container into an archive. It ends well only if the command did and the dump is whole; else it ends
//! with an error, so that no part of a dump is ever taken for one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::borg::Feed;
use super::dump::{Passing, command, title};
use super::engine::Engine;
use super::exec::Exec;
use super::inventory::Container;
use super::{Database, dump};

/// Counts the bytes of a dump.
pub type Count = Arc<AtomicU64>;

/// Has the database in `container` write its dump. `volume` says where the container keeps the file of SQLite.
///
/// # Errors
/// The command does not begin; a sentence.
pub async fn dump(engine: &Engine, container: &Container, volume: &str, database: &Database) -> Result<(Feed, Count), String> {
    let mount = container.mount(volume).map_or(Path::new("/"), |mount| &mount.destination);
    let begun = engine.exec(&container.id, &command(database, mount), None).await;
    let exec = begun.map_err(|error| format!("the {} dump does not begin in {}: {error}", title(database), container.name))?;
    let count = Arc::new(AtomicU64::new(0));
    let passing = Passing::new(database);
    let flow = Flow { exec, passing, count: count.clone(), database: database.clone(), container: container.name.clone() };
    let bytes = stream::unfold(Some(flow), |flow| async move {
        let mut flow = flow?;
        match flow.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(flow))),
            Ok(None) => Some((flow.end().await, None)),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok((bytes.boxed(), count))
}

struct Flow {
    exec: Exec,
    passing: Passing,
    count: Arc<AtomicU64>,
    database: Database,
    container: String,
}

impl Flow {
    /// More of the dump; `None`: the command's output has ended.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        while let Some(chunk) = self.exec.next().await {
            let chunk = chunk.map_err(|error| format!("the {} dump broke off: {error}", title(&self.database)))?;
            let passed = self.passing.push(chunk);
            self.count.store(self.passing.bytes(), Relaxed);
            if !passed.is_empty() {
                return Ok(Some(passed));
            }
        }
        Ok(None)
    }

    /// The rest of the dump, if it is whole.
    async fn end(&mut self) -> Result<Bytes, String> {
        let title = dump::title(&self.database);
        let ended = self.exec.ended().await.map_err(|error| format!("how the {title} dump ended is not known: {error}"))?;
        if ended.code != 0 {
            let why = if ended.complaint.is_empty() { "it said nothing" } else { &ended.complaint };
            return Err(format!("the {title} dump in {} failed with exit code {}: {why}", self.container, ended.code));
        }
        let rest = self.passing.finish()?;
        self.count.store(self.passing.bytes(), Relaxed);
        Ok(rest)
    }
}
