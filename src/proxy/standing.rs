//! Requests that last: whoever was let in may lose that right meanwhile, and then what still flows is cut. Short requests pay nothing
//! for it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pingora_timeout::timeout;

use super::exchange::Exchange;
use crate::auth::entrant::{Entrant, Proof};
use crate::auth::gatekeeper::Gatekeeper;
use crate::state::Route;

/// Requests that are over sooner are not looked at again, and others not more often.
const LOOK: Duration = Duration::from_secs(1);

/// The right by which a request goes on.
pub(super) struct Guard {
    gatekeeper: Arc<dyn Gatekeeper>,
    entrant: Arc<Entrant>,
    route: Arc<Route>,
    looked: Instant,
}

/// It is gone.
pub(super) struct Fallen;

impl Guard {
    /// Of a request that a sign-in let in; `None`: nobody can take its right away.
    pub(super) fn of(ctx: &Exchange, route: &Arc<Route>, gatekeeper: &Arc<dyn Gatekeeper>) -> Option<Guard> {
        let entrant = ctx.entrant.clone().filter(|entrant| matches!(entrant.proof, Proof::Session(_)))?;
        Some(Guard { gatekeeper: gatekeeper.clone(), entrant, route: route.clone(), looked: ctx.began })
    }

    /// By the session as it is now.
    fn stands(&self) -> bool {
        self.gatekeeper.stands(&self.entrant, &self.route.access, Timestamp::now())
    }

    /// For whoever sees its pieces pass.
    pub(super) fn still_stands(&mut self) -> bool {
        if self.looked.elapsed() < LOOK {
            return true;
        }
        self.looked = Instant::now();
        self.stands()
    }

    /// Ends once the right is gone.
    async fn fallen(&self) {
        while self.stands() {
            let Proof::Session(live) = &self.entrant.proof else { return std::future::pending().await };
            let left = live.ends.duration_since(Timestamp::now()).try_into().unwrap_or(Duration::ZERO);
            // Either way it is looked at again. A change that leaves the right stays told, hence the pause.
            _ = tokio::time::timeout(Duration::max(left, LOOK), live.changed()).await;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Goes on with `flow` while `guard` stands.
///
/// # Errors
/// It fell.
pub(super) async fn while_it_stands<T>(guard: Option<&Guard>, flow: impl Future<Output = T>) -> Result<T, Fallen> {
    let Some(guard) = guard else { return Ok(flow.await) };
    let mut flow = pin!(flow);
    if let Ok(done) = timeout(LOOK, &mut flow).await {
        return Ok(done);
    }
    tokio::select! {
        biased;
        done = &mut flow => Ok(done),
        () = guard.fallen() => Err(Fallen),
    }
}
