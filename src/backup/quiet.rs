//! Containers that do not write while their volume is read: first written down, then guarded, then paused or stopped; and brought back
//! before anything else is done, whatever happened.

use std::path::Path;
use std::time::Duration;

use super::engine::Engine;
use super::guard::{Charge, Guard, once};
use super::shelf::Journal;
use super::step::{Quiesce, Quiet};
use crate::config;

/// The guard acts so much later than whoever holds it would.
const LENIENCE: Duration = Duration::from_secs(10);
/// How long a container is tried to be brought back before that is left to the guard.
const PERSISTENCE: Duration = Duration::from_secs(60);
/// The engine may still be pausing what it was asked to.
pub const SETTLE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
/// As the engine takes it where a container does not say.
const GRACE: u32 = 10;

/// Containers that are paused or stopped. Dropped without [`Quieted::resume`], their guard brings them back at once.
#[derive(Debug)]
pub struct Quieted {
    guard: Guard,
    charge: Charge,
}

/// Pauses or stops the containers of a step.
///
/// # Errors
/// One of them could not be; then all go on, and why is said as a sentence.
pub async fn quiesce(
    engine: &Engine,
    docker: &config::Docker,
    program: &Path,
    journal: &mut Journal,
    step: &Quiesce,
) -> Result<Quieted, String> {
    let ids: Vec<String> = step.containers.iter().map(|container| container.id.clone()).collect();
    let graces = match step.how {
        Quiet::Pause => vec![Duration::ZERO; ids.len()],
        Quiet::Stop => graces(engine, step).await?,
    };
    let settle = SETTLE + graces.iter().max().copied().unwrap_or_default();
    let mut charge = Charge { limit: step.limit + LENIENCE, settle, ..Charge::default() };
    match step.how {
        Quiet::Pause => charge.paused = ids,
        Quiet::Stop => charge.stopped = ids,
    }
    let deadline = jiff::Timestamp::now().checked_add(step.limit).ok();
    let (paused, stopped) = (charge.paused.clone(), charge.stopped.clone());
    let noted = journal.change(|entry| {
        (entry.paused, entry.stopped, entry.deadline) = (paused, stopped, deadline);
    });
    noted.await.map_err(|error| format!("nothing was paused or stopped, as that could not be written down first: {error}"))?;
    let guard = Guard::start(program, docker, &charge).await;
    let guard = guard.map_err(|error| format!("nothing was paused or stopped, as nobody would guard it: {error}"))?;
    let quieted = Quieted { guard, charge };
    for (container, grace) in step.containers.iter().zip(graces) {
        let done = match step.how {
            Quiet::Pause => engine.pause(&container.id).await,
            Quiet::Stop => engine.stop(&container.id, grace).await,
        };
        if let Err(error) = done {
            let resumed = quieted.resume(engine, journal, false).await.err().map(|error| format!("; {error}")).unwrap_or_default();
            return Err(format!("{} cannot be {}: {error}{resumed}", container.name, verb(step.how)));
        }
    }
    Ok(quieted)
}

/// How long each container may take to end. One that the engine removes when it stops must not be stopped.
async fn graces(engine: &Engine, step: &Quiesce) -> Result<Vec<Duration>, String> {
    let mut graces = Vec::new();
    for container in &step.containers {
        let inspected = engine.inspect(&container.id).await.map_err(|error| error.to_string())?;
        if inspected.host_config.auto_remove {
            return Err(format!("{} was started with --rm: it would be gone once it is stopped; use another mode", container.name));
        }
        graces.push(Duration::from_secs(inspected.config.stop_timeout.unwrap_or(GRACE).into()));
    }
    Ok(graces)
}

impl Quieted {
    /// Brings them back. `is_settled`: the engine has done what it was asked to, so that the guard may go; else it stays a little.
    ///
    /// # Errors
    /// One of them does not come back within a minute. Its guard goes on trying, and the journal must stay.
    pub async fn resume(self, engine: &Engine, journal: &mut Journal, is_settled: bool) -> Result<(), String> {
        let until = tokio::time::Instant::now() + PERSISTENCE;
        loop {
            let failures = once(engine, &self.charge).await;
            if failures.is_empty() {
                break;
            }
            if tokio::time::Instant::now() > until {
                return Err(format!("the application does not run again, and is still tried to be brought back: {}", failures.join("; ")));
            }
            tokio::time::sleep(PAUSE).await;
        }
        if is_settled {
            self.guard.dismiss().await;
        }
        let noted = journal.change(|entry| (entry.paused, entry.stopped, entry.deadline) = Default::default()).await;
        if let Err(error) = noted {
            // A later look at the journal finds them running, and does nothing.
            tracing::warn!("it could not be written down that containers run again: {error}");
        }
        Ok(())
    }
}

fn verb(how: Quiet) -> &'static str {
    match how {
        Quiet::Pause => "paused",
        Quiet::Stop => "stopped",
    }
}
