//! Asks whoever knows users which of the groups that labels name there are, so that a misspelt one is said and not only refused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::auth::directory::Directory;
use crate::state::Live;

/// Folded names of groups that nobody has.
pub type Unknown = watch::Receiver<Arc<BTreeSet<String>>>;

/// Asks again so soon after no answer.
const AGAIN: Duration = Duration::from_secs(15);

/// Asks at each new state and every `auth.recheck`; without an answer, what was known last stays.
pub async fn follow(
    directory: Arc<dyn Directory>,
    live: Arc<Live>,
    mut swapped: watch::Receiver<()>,
    unknown: watch::Sender<Arc<BTreeSet<String>>>,
) {
    loop {
        swapped.borrow_and_update();
        let state = live.load();
        let wanted = state.groups();
        let mut pause = state.config.auth.recheck;
        let answer = if wanted.is_empty() { Ok(BTreeSet::new()) } else { directory.known(&wanted).await };
        match answer {
            Ok(known) => {
                let missing: BTreeSet<String> = wanted.difference(&known).cloned().collect();
                unknown.send_if_modified(|there| {
                    let differs = **there != missing;
                    *there = Arc::new(missing);
                    differs
                });
            }
            // Told by whoever asks the directory; the next answer will do.
            Err(error) => {
                tracing::debug!(%error, "the groups of labels could not be looked up");
                pause = pause.min(AGAIN);
            }
        }
        // Either way it is time: for a new state, or for the directory's changes.
        if let Ok(Err(_)) = timeout(pause, swapped.changed()).await {
            return;
        }
    }
}
