//! Keys that all processes with one store share and replace in time: what they are made of is planned by [`super::seal`]; here they are
//! read, written and followed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use futures_util::StreamExt;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::seal::{KEY_BYTES, Keys, Ring};
use super::token::{KEY_LIFETIME, Signer};
use crate::config::Auth;
use crate::store::{self, Error, Store, Unusable, Version};

/// Keys are looked at so often: one may have become old, or ready.
const LOOK: Duration = Duration::from_secs(30);
/// A conflict is somebody else's success; more in a row are none of theirs.
pub(super) const TRIES: u32 = 8;

/// Bytes that nobody can foresee.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // AWS-LC ends the process rather than give out what can be foreseen: this only fails for lengths that no array has.
    rand::fill(&mut bytes).expect("the random number generator gives this many bytes");
    bytes
}

/// Something made of keys.
pub trait Made: Sized + Send + Sync + 'static {
    /// Where the keys are in the store.
    const KEY: &'static str;
    /// What they are for, for the log.
    const WHAT: &'static str;

    /// `None` if none of `keys` can be used.
    fn make(keys: &Keys, now: Timestamp) -> Option<Self>;
}

impl Made for Ring {
    const KEY: &'static str = "auth/keys";
    const WHAT: &'static str = "the keys of cookies";

    fn make(keys: &Keys, now: Timestamp) -> Option<Ring> {
        Ring::new(keys, now)
    }
}

impl Made for Signer {
    const KEY: &'static str = "auth/signing";
    const WHAT: &'static str = "the keys of tokens for upstreams";

    fn make(keys: &Keys, now: Timestamp) -> Option<Signer> {
        Signer::new(keys, now)
    }
}

/// When keys are replaced and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// A key is replaced after this.
    pub rotation: Duration,
    /// What was made with a key lives no longer than this.
    pub lifetime: Duration,
}

impl Schedule {
    /// Of the keys of cookies.
    pub fn of_cookies(auth: &Auth) -> Schedule {
        Schedule { rotation: auth.key_rotation, lifetime: auth.session_lifetime }
    }

    /// Of the keys of tokens for upstreams.
    pub fn of_tokens(auth: &Auth) -> Schedule {
        Schedule { rotation: auth.key_rotation, lifetime: KEY_LIFETIME }
    }
}

/// The keys of the store, ready for use by everybody at any time.
pub struct Current<T> {
    made: ArcSwap<T>,
    store: Arc<dyn Store>,
    schedule: Schedule,
}

impl<T> fmt::Debug for Current<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Current").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}

impl<T: Made> Current<T> {
    /// The keys of `store`; made where there are none. While it cannot be read or written, keys of this process serve: what is made
    /// with them is worthless once the store's are there, and that is better than nobody being able to sign in.
    pub async fn open(store: Arc<dyn Store>, schedule: Schedule) -> Current<T> {
        let made = match refreshed(&*store, schedule).await {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "{} cannot be kept in the store: sessions end with this process", T::WHAT);
                own(schedule)
            }
        };
        Current { made: ArcSwap::from_pointee(made), store, schedule }
    }

    /// What is to be used now.
    pub fn get(&self) -> Arc<T> {
        self.made.load_full()
    }

    /// The same for as long as one look takes, without counting users of it.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.made.load())
    }

    /// Replaces keys in time and takes over what other processes did; never ends.
    pub async fn follow(&self) {
        let mut changes = self.store.watch(T::KEY);
        let mut broken = false;
        loop {
            // Time-outs and changes mean the same: look.
            _ = tokio::time::timeout(LOOK, changes.next()).await;
            match refreshed(&*self.store, self.schedule).await {
                Ok(made) => {
                    self.made.store(Arc::new(made));
                    broken = false;
                }
                Err(error) if !broken => {
                    broken = true;
                    tracing::error!(%error, "{} cannot be read or replaced in the store; trying on", T::WHAT);
                }
                Err(_) => {}
            }
        }
    }
}

/// Of this process alone.
fn own<T: Made>(schedule: Schedule) -> T {
    let now = Timestamp::now();
    loop {
        let keys = Keys::default().planned(now, schedule.rotation, schedule.lifetime, &random::<KEY_BYTES>());
        // Nearly all random bytes are a key.
        if let Some(made) = keys.and_then(|keys| T::make(&keys, now)) {
            return made;
        }
    }
}

/// What the store has, after replacing what is due.
async fn refreshed<T: Made>(store: &dyn Store, schedule: Schedule) -> Result<T, Error> {
    let mut last = Error::Conflict { key: T::KEY.to_owned() };
    for _ in 0..TRIES {
        let now = Timestamp::now();
        let (kept, version) = read::<Keys>(store, T::KEY).await?;
        // Keys that nothing can be made of are none.
        let kept = kept.filter(|keys| T::make(keys, now).is_some()).unwrap_or_default();
        let Some(planned) = kept.planned(now, schedule.rotation, schedule.lifetime, &random::<KEY_BYTES>()) else {
            return Ok(T::make(&kept, now).unwrap_or_else(|| own(schedule)));
        };
        let Some(made) = T::make(&planned, now) else { continue };
        match store::write(store, T::KEY, &planned, version.as_ref()).await {
            Ok(_) => {
                tracing::info!(replaced = version.is_some(), "{}: a new one was made or an old one dropped", T::WHAT);
                return Ok(made);
            }
            Err(conflict @ Error::Conflict { .. }) => last = conflict,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The value under `key` with its version; what is there and cannot be read is said, and can be written over.
pub(super) async fn read<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<(Option<T>, Option<Version>), Error> {
    match store::read(store, key).await {
        Ok(found) => Ok(found.unzip()),
        Err(error @ Error::Unusable { source: Unusable::Value { .. }, .. }) => {
            tracing::error!(%error, "a value of the store is replaced");
            Ok((None, store.get(key).await?.map(|entry| entry.version)))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::Purpose;
    use super::*;
    use crate::store::keyed::Keyed;
    use crate::store::memory::Memory;

    const SCHEDULE: Schedule = Schedule { rotation: Duration::from_secs(3600), lifetime: Duration::from_secs(3600) };

    async fn current(store: &Arc<dyn Store>) -> Current<Ring> {
        Current::open(Arc::clone(store), SCHEDULE).await
    }

    fn opens(one: &Current<Ring>, other: &Current<Ring>) -> bool {
        let text = one.get().seal(Purpose::Session, "a", b"ada", random());
        other.with(|ring| ring.open(Purpose::Session, "a", &text)).is_some()
    }

    #[tokio::test]
    async fn processes_that_start_at_once_share_their_keys() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { current(&store).await })
            })
            .collect();
        let mut all = Vec::new();
        for start in starts {
            all.push(start.await.expect("started"));
        }
        assert!(all.iter().all(|one| all.iter().all(|other| opens(one, other))));
    }

    #[tokio::test]
    async fn keys_outlive_a_process_and_are_not_readable_for_others() {
        let folder = tempfile::tempdir().expect("a directory");
        let open = || -> Arc<dyn Store> { Arc::new(Keyed::open(folder.path()).expect("a store").0) };
        let before = current(&open()).await;
        assert!(opens(&before, &current(&open()).await));
        let file = folder.path().join("store/auth/keys.skep");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file).expect("a file").permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_another_process_did_is_taken_over() {
        let folder = tempfile::tempdir().expect("a directory");
        let open = || -> Arc<dyn Store> { Arc::new(Keyed::open(folder.path()).expect("a store").0) };
        let (here, other, store) = (Arc::new(current(&open()).await), Arc::new(Memory::default()), open());
        let there = current(&(Arc::clone(&other) as Arc<dyn Store>)).await;
        assert!(!opens(&there, &here));
        let following = Arc::clone(&here);
        let follower = tokio::spawn(async move { following.follow().await });
        let theirs = other.get(Ring::KEY).await.expect("read").expect("keys").value;
        let version = store.get(Ring::KEY).await.expect("read").expect("keys").version;
        store.put(Ring::KEY, &theirs, Some(&version)).await.expect("written");
        for _ in 0..2000 {
            if opens(&there, &here) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(opens(&there, &here));
        follower.abort();
    }

    #[tokio::test]
    async fn what_one_process_signs_can_be_checked_with_what_another_publishes() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let open = async || Current::<Signer>::open(Arc::clone(&store), Schedule::of_tokens(&Auth::default())).await;
        let (here, there) = (open().await, open().await);
        assert_eq!(here.get().jwks(), there.get().jwks());
        let text = String::from_utf8(store.get(Signer::KEY).await.expect("read").expect("keys").value.to_vec()).expect("text");
        assert!(text.contains("secret") && !here.get().jwks().contains("secret"));
    }

    #[tokio::test]
    async fn what_is_no_key_is_replaced() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        for broken in
            [&b"no JSON"[..], b"[]", br#"{"keys":[{"id":1,"created":"2026-01-01T00:00:00Z","secret":"AAAA"}]}"#, br#"{"keys":[]}"#]
        {
            let version = store.get(Ring::KEY).await.expect("read").map(|entry| entry.version);
            store.put(Ring::KEY, broken, version.as_ref()).await.expect("written");
            assert!(opens(&current(&store).await, &current(&store).await), "{}", String::from_utf8_lossy(broken));
        }
    }
}
