//! Active checks: one task asks each backend that the present state wants asked, and stops when it does not any more.
//! When, what and what it means is decided in [`crate::upstream`]; here it is started, spread and carried out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::proxy::clock;
use crate::state::Live;
use crate::upstream::probe::{self, Vouchers};
use crate::upstream::{Backend, Check, Checked, Ledger, Verdict, checks};

/// Questions at one time, over all backends.
const AT_ONCE: usize = 64;
/// The first questions after a change are spread over this time, so that many tasks are not asked in one moment.
const FIRST_WITHIN_MS: u64 = 200;

/// What is needed to ask.
#[derive(Clone)]
struct Asking {
    live: Arc<Live>,
    ledger: Arc<Ledger>,
    vouchers: Vouchers,
    places: Arc<Semaphore>,
}

/// One backend that is being asked.
struct Probe {
    check: Arc<Check>,
    task: AbortHandle,
}

/// Asks whom the state says, until it is dropped; `swapped` tells of a new state.
pub async fn follow(live: Arc<Live>, ledger: Arc<Ledger>, mut swapped: watch::Receiver<()>) {
    // Most have none, and need not read the machine's authorities.
    while checks(live.load().pools()).is_empty() {
        if swapped.changed().await.is_err() {
            return;
        }
    }
    let vouchers = match tokio::task::spawn_blocking(Vouchers::of_this_machine).await {
        Ok(Ok(vouchers)) => vouchers,
        Ok(Err(error)) => return tracing::error!(%error, "no active checks: TLS cannot be set up"),
        Err(error) => return tracing::error!(%error, "no active checks: the authorities cannot be read"),
    };
    let asking = Asking { live: live.clone(), ledger, vouchers, places: Arc::new(Semaphore::new(AT_ONCE)) };
    let (mut probes, mut tasks) = (HashMap::new(), JoinSet::new());
    loop {
        adjust(&mut probes, checks(live.load().pools()), &asking, &mut tasks);
        while let Some(ended) = tasks.try_join_next() {
            // A probe ends by being stopped only; anything else is a mistake of ours that must not go unseen.
            if let Some(error) = ended.err().filter(|error| !error.is_cancelled()) {
                tracing::error!(%error, "an active check ended by itself");
            }
        }
        if swapped.changed().await.is_err() {
            return;
        }
    }
}

/// Stops what is not wanted any more or otherwise, and starts what is new.
fn adjust(
    probes: &mut HashMap<Arc<str>, Probe>,
    mut wanted: BTreeMap<Arc<str>, (Backend, Arc<Check>)>,
    asking: &Asking,
    tasks: &mut JoinSet<()>,
) {
    probes.retain(|id, probe| {
        let stays = wanted.get(id).is_some_and(|(_, check)| *check == probe.check);
        match stays {
            true => _ = wanted.remove(id),
            false => probe.task.abort(),
        }
        stays
    });
    for (id, (backend, check)) in wanted {
        let task = tasks.spawn(watch(backend, Arc::clone(&check), asking.clone()));
        probes.insert(id, Probe { check, task });
    }
}

/// Asks one backend for ever.
async fn watch(backend: Backend, check: Arc<Check>, asking: Asking) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..FIRST_WITHIN_MS))).await;
    loop {
        // Closed never: the one who would do it is gone with us.
        let place = asking.places.acquire().await.ok();
        let answer = probe::ask(&backend, &check, &asking.vouchers, &|path| asking.live.load().authority(path)).await;
        drop(place);
        let change = asking.ledger.answered(&backend.id, answer, &check, clock::now());
        let checked = asking.ledger.checked(&backend.id).unwrap_or_default();
        if let Some(verdict) = change {
            say(&backend, &check, verdict, &checked);
        }
        tokio::time::sleep(checked.pause(&check, fastrand::u64(..))).await;
    }
}

/// One line for each change.
fn say(backend: &Backend, check: &Check, verdict: Verdict, checked: &Checked) {
    let Backend { service, task, address, .. } = backend;
    match verdict {
        Verdict::Failing => {
            tracing::warn!(%service, %task, %address, path = %check.path, "fails its check and gets no requests: {}", checked.reason);
        }
        Verdict::Passing => tracing::info!(%service, %task, %address, path = %check.path, "passes its check and gets requests"),
        Verdict::Unknown => {}
    }
}
