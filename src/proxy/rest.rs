//! When an HTTP/2 connection without a request is to end: after its idle time, or sooner where others wait for its place.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Sleep;

use super::lean::BRIEF;

/// One connection's rest. Beginning it costs a look at the clock, ending it nothing: a timer that runs is left to run.
pub(super) struct Rest {
    /// Somebody waits for a place: who rests hears of it, the longest first.
    crowd: Arc<Notify>,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    asked: Option<Pin<Box<OwnedNotified>>>,
}

impl Rest {
    pub(super) fn new(crowd: Arc<Notify>) -> Rest {
        Rest { crowd, since: None, timer: None, asked: None }
    }

    /// A request is served.
    pub(super) fn end(&mut self) {
        self.since = None;
        // A notification that came meanwhile passes on to the next.
        self.asked = None;
    }

    /// The same rest is to last otherwise.
    pub(super) fn begin_anew(&mut self) {
        self.end();
        self.timer = None;
    }

    /// No request is served. Ready once that has lasted for `limit`, or another connection wants the place; never too soon after a
    /// request: who is idle for a moment only is not asked to leave, and most are.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        loop {
            let rested = since.elapsed();
            if rested >= limit {
                return Poll::Ready(());
            }
            if rested >= BRIEF {
                let asked = self.asked.get_or_insert_with(|| Box::pin(self.crowd.clone().notified_owned()));
                if asked.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
            }
            let next = since + if rested < BRIEF { BRIEF.min(limit) } else { limit };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next.into())));
            if timer.deadline() > next.into() {
                timer.as_mut().reset(next.into());
            }
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_ends_with_its_time_and_each_rest_has_its_own() {
        let mut rest = Rest::new(Arc::default());
        let began = Instant::now();
        poll_fn(|cx| rest.poll(cx, Duration::from_millis(200))).await;
        assert!(began.elapsed() >= Duration::from_millis(200));
        rest.end();
        assert!(timeout(Duration::from_millis(120), poll_fn(|cx| rest.poll(cx, Duration::from_millis(200)))).await.is_err());
        rest.begin_anew();
        let again = Instant::now();
        poll_fn(|cx| rest.poll(cx, Duration::from_millis(200))).await;
        assert!(again.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn it_makes_room_but_not_at_once() {
        let crowd = Arc::<Notify>::default();
        let mut rest = Rest::new(crowd.clone());
        crowd.notify_one();
        let began = Instant::now();
        timeout(Duration::from_secs(5), poll_fn(|cx| rest.poll(cx, LONG))).await.unwrap();
        assert!(began.elapsed() >= BRIEF);
    }

    #[tokio::test]
    async fn what_it_was_asked_passes_on_where_a_request_came_first() {
        let crowd = Arc::<Notify>::default();
        let (mut busy, mut other) = (Rest::new(crowd.clone()), Rest::new(crowd.clone()));
        assert!(timeout(2 * BRIEF, poll_fn(|cx| busy.poll(cx, LONG))).await.is_err());
        crowd.notify_one();
        busy.end();
        timeout(Duration::from_secs(5), poll_fn(|cx| other.poll(cx, LONG))).await.unwrap();
    }
}
