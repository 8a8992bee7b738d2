//! Wakes a task for one of its parts, but not for what the task itself is just doing: a stream of HTTP/2 that sends something wakes
//! its connection, which is driven right behind it anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};

use futures_util::task::AtomicWaker;

/// The part's waker.
#[derive(Default)]
pub(super) struct Bell {
    task: AtomicWaker,
    muted: AtomicBool,
    /// Rung while it was muted.
    rung: AtomicBool,
}

impl Bell {
    /// The task begins to run.
    pub(super) fn mute(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
        self.muted.store(true, Ordering::SeqCst);
    }

    /// The part is driven now: what it was woken for so far is seen to.
    pub(super) fn forget(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    /// The task has run: what it was woken for since then brings it back.
    pub(super) fn unmute(&self) {
        self.muted.store(false, Ordering::SeqCst);
        if self.rung.swap(false, Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.muted.load(Ordering::SeqCst) {
            self.task.wake();
            return;
        }
        self.rung.store(true, Ordering::SeqCst);
        // It may have been unmuted between the two.
        if !self.muted.load(Ordering::SeqCst) && self.rung.swap(false, Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Waker;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_is_heard_outside_and_what_was_not_seen_to_is_not_lost() {
        let (count, bell) = (Arc::<Count>::default(), Arc::<Bell>::default());
        let (task, part) = (Waker::from(count.clone()), Waker::from(bell.clone()));
        let cx = Context::from_waker(&task);
        let heard = || count.0.load(Ordering::SeqCst);
        bell.mute(&cx);
        part.wake_by_ref();
        bell.forget();
        bell.unmute();
        assert_eq!(heard(), 0, "it was seen to");
        part.wake_by_ref();
        assert_eq!(heard(), 1);
        bell.mute(&cx);
        bell.forget();
        part.wake_by_ref();
        assert_eq!(heard(), 1);
        bell.unmute();
        assert_eq!(heard(), 2, "it came too late to be seen to");
    }
}
