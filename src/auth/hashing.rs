//! Verifying passwords aside: it takes a core for a good part of a second and up to a gigabyte, so only few run at one time, on
//! threads of their own, and those that would wait for too long are told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::directory::Unavailable;
use super::htpasswd::{Line, verify};
use super::identity::{Identity, Password};

/// Verifications that may wait; whoever comes then is sent away at once.
const MAX_WAITING: usize = 256;
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The places for work on passwords, shared by all that verify any.
#[derive(Clone, Debug)]
pub struct Hashing {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

impl Hashing {
    /// As many at one time as leave half of this machine's `cores` to requests.
    pub fn new(cores: usize) -> Hashing {
        Hashing { places: Arc::new(Semaphore::new((cores / 2).max(1))), waiting: Arc::default() }
    }

    /// Does `work` on a thread of its own, once there is a place for it. Work that has begun goes on when nobody waits for it any more,
    /// and keeps its place.
    ///
    /// # Errors
    /// There was no place in time.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unavailable> {
        let busy = || Unavailable("too many people sign in at this moment".to_owned());
        let place = {
            let waiting = Waiting::new(&self.waiting);
            if waiting.before >= MAX_WAITING {
                return Err(busy());
            }
            let place = tokio::time::timeout(MAX_WAIT, self.places.clone().acquire_owned()).await;
            place.map_err(|_| busy())?.map_err(|_| busy())?
        };
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        done.await.map_err(|_| Unavailable("verifying the password broke off".to_owned()))
    }

    /// Who of `lines`, those of a route's `basic-auth`, is `user`, if `password` is theirs.
    ///
    /// # Errors
    /// There was no place in time.
    pub async fn verify(&self, lines: Arc<[Line]>, user: &str, password: &Password) -> Result<Option<Identity>, Unavailable> {
        let (user, password) = (user.to_owned(), password.clone());
        self.run(move || verify(&lines, &user, &password)).await
    }
}

/// One that waits, for as long as it does.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        Waiting { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::htpasswd::tests::{BCRYPT, password};
    use super::*;

    #[tokio::test]
    async fn few_run_at_one_time_and_few_wait() {
        let hashing = Hashing::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let hashing = hashing.clone();
            async move { hashing.run(move || ended.recv().is_ok()).await }
        });
        while hashing.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // Whoever waited for it went away; the work did not.
        first.abort();
        _ = first.await;
        assert_eq!(hashing.places.available_permits(), 0);
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let hashing = hashing.clone();
                tokio::spawn(async move { hashing.run(|| ()).await })
            })
            .collect();
        while hashing.waiting.load(Ordering::Relaxed) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        assert!(hashing.run(|| ()).await.is_err(), "one too many");
        end.send(()).expect("it waits");
        for one in waiting {
            assert_eq!(one.await.expect("it ran"), Ok(()));
        }
        assert_eq!(hashing.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_lines_of_a_route_are_verified() {
        let (hashing, lines) = (Hashing::new(2), Arc::from([Line::parse(&format!("ada:{BCRYPT}")).expect("a line")]));
        let found = hashing.verify(Arc::clone(&lines), "Ada", &password("correct horse")).await.expect("a place");
        assert_eq!(found.map(|identity| identity.user).as_deref(), Some("ada"));
        assert_eq!(hashing.verify(lines, "ada", &password("wrong")).await, Ok(None));
    }
}
