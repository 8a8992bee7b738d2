//! Requests that last: whoever was let in may lose that right meanwhile, and then what still flows is cut. Short requests pay next to
//! nothing for it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pingora_timeout::timeout;
use tokio::task::AbortHandle;

use super::exchange::Exchange;
use crate::auth::entrant::{Entrant, Proof};
use crate::auth::gatekeeper::Gatekeeper;
use crate::state::{Route, State};

/// Requests that are over sooner are not looked at again.
const BRIEF: Duration = Duration::from_secs(1);

/// The right by which a request goes on.
#[derive(Clone)]
pub(super) struct Guard {
    gatekeeper: Arc<dyn Gatekeeper>,
    entrant: Arc<Entrant>,
    route: Arc<Route>,
    state: Arc<State>,
}

/// It is gone.
pub(super) struct Fallen;

impl Guard {
    /// Of a request that a sign-in let in; `None`: nobody can take its right away.
    pub(super) fn of(ctx: &Exchange, route: &Arc<Route>, gatekeeper: &Arc<dyn Gatekeeper>) -> Option<Guard> {
        let entrant = ctx.entrant.clone().filter(|entrant| matches!(entrant.proof, Proof::Session(_) | Proof::Credentials))?;
        Some(Guard { gatekeeper: gatekeeper.clone(), entrant, route: route.clone(), state: ctx.state.clone() })
    }

    /// Ends once the right is gone.
    async fn fallen(&self) {
        self.gatekeeper.outlasted(&self.entrant, &self.route.access, &self.state.config.auth).await;
    }

    /// For whoever only sees pieces pass: tells of the fall, and calls `on_fall` then.
    pub(super) fn watched(self, on_fall: impl FnOnce() + Send + 'static) -> Watch {
        let fallen = Arc::new(AtomicBool::new(false));
        let told = fallen.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(BRIEF).await;
            self.fallen().await;
            told.store(true, Ordering::Release);
            on_fall();
        });
        Watch { fallen, task: task.abort_handle() }
    }
}

/// Watches over one request's right until it is dropped.
pub(super) struct Watch {
    fallen: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Watch {
    pub(super) fn has_fallen(&self) -> bool {
        self.fallen.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Goes on with `flow` while `guard` stands.
///
/// # Errors
/// It fell.
pub(super) async fn while_it_stands<T>(guard: Option<&Guard>, flow: impl Future<Output = T>) -> Result<T, Fallen> {
    let Some(guard) = guard else { return Ok(flow.await) };
    let mut flow = pin!(flow);
    if let Ok(done) = timeout(BRIEF, &mut flow).await {
        return Ok(done);
    }
    tokio::select! {
        biased;
        done = &mut flow => Ok(done),
        () = guard.fallen() => Err(Fallen),
    }
}
