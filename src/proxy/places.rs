//! How many requests of a route may be at work, and a short queue for those that find no place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::traffic::Inflight;

/// The places of one route, and those who wait for one, first come first served.
pub(super) struct Places {
    setting: Inflight,
    places: Arc<Semaphore>,
    waiting: AtomicU32,
}

impl Places {
    pub(super) fn new(setting: Inflight) -> Places {
        Places { setting, places: Arc::new(Semaphore::new(setting.most as usize)), waiting: AtomicU32::new(0) }
    }

    /// Requests that are at work.
    pub(super) fn taken(&self) -> u32 {
        self.setting.most.saturating_sub(u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX))
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A place, to be kept while the request is at work. `None`: the queue is full, or nothing got free in time.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        // Whoever waits has been given the place that gets free, so this overtakes nobody.
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        let _waiting = Waiting::join(&self.waiting, self.setting.queue)?;
        tokio::time::timeout(self.setting.wait, self.places.clone().acquire_owned()).await.ok()?.ok()
    }
}

/// One who waits, also when it gives up in between.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn join(waiting: &'a AtomicU32, most: u32) -> Option<Waiting<'a>> {
        let guard = Waiting(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(guard)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
