//! Credentials that were right a moment ago. Programs send name and password with every request; who they are is asked once in a few
//! minutes. A password is never kept, only a keyed hash of it that says nothing without the key of this process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::hmac;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::{Mutex as Turnstile, OwnedMutexGuard};

use super::identity::{Identity, Password, folded};

/// Removed users and changed passwords are out after this time, whatever the settings say.
const LONGEST: Duration = Duration::from_secs(300);
/// Some 2 MB.
const PLACES: u64 = 10_000;

/// The credentials that were right, of all realms.
pub struct Verified {
    key: hmac::Key,
    /// To whoever they are.
    users: Cache<[u8; 32], Arc<Identity>>,
    /// Goes on by one whenever something is forgotten.
    forgotten: AtomicU64,
    /// Credentials that are being verified.
    turns: Mutex<HashMap<[u8; 32], Weak<Turnstile<()>>>>,
}

/// Credentials as they are known here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    digest: [u8; 32],
    /// Of the time when they began to be verified.
    forgotten: u64,
}

impl Verified {
    /// Remembers for `life`, five minutes at most; with none, nothing is. `key` is random and of this process.
    pub fn new(key: &[u8; 32], life: Duration) -> Verified {
        let places = if life.is_zero() { 0 } else { PLACES };
        // What is asked for most is not pushed out by what was right once.
        let users = Cache::builder().max_capacity(places).time_to_live(life.clamp(Duration::from_millis(1), LONGEST));
        let users = users.eviction_policy(EvictionPolicy::tiny_lfu()).support_invalidation_closures().build();
        Verified { key: hmac::Key::new(hmac::HMAC_SHA256, key), users, forgotten: AtomicU64::new(0), turns: Mutex::default() }
    }

    /// What these credentials are known by. `realm` is whoever verifies them: the directory, or the lines of one route
    /// ([`super::htpasswd::realm`]), so that those of one mean nothing to the other. Taken before they are verified.
    pub fn seal(&self, realm: &[u8], user: &str, password: &Password) -> Seal {
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let mut context = hmac::Context::with_key(&self.key);
        for part in [realm, folded(user).as_bytes(), password.reveal().as_bytes()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        Seal { digest, forgotten }
    }

    /// Whose these credentials are, if they were right a moment ago.
    pub fn get(&self, seal: Seal) -> Option<Arc<Identity>> {
        self.users.get(&seal.digest)
    }

    /// Waits until nobody else verifies the same credentials: a program opens ten connections at one moment, and only the first of them
    /// needs to ask, and counts as a try. [`Verified::get`] is to be asked again then. Whoever drops the future gives up the turn.
    pub async fn turn(&self, seal: Seal) -> Turn<'_> {
        let turnstile = {
            let mut turns = self.turns();
            match turns.get(&seal.digest).and_then(Weak::upgrade) {
                Some(turnstile) => turnstile,
                None => {
                    // Of those that went away while they waited; seldom, for it looks at all.
                    if turns.len().is_power_of_two() {
                        turns.retain(|_, turnstile| turnstile.strong_count() > 0);
                    }
                    let turnstile = Arc::<Turnstile<()>>::default();
                    turns.insert(seal.digest, Arc::downgrade(&turnstile));
                    turnstile
                }
            }
        };
        Turn { guard: Some(turnstile.lock_owned().await), digest: seal.digest, verified: self }
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<[u8; 32], Weak<Turnstile<()>>>> {
        // It is whole after every step, also of one that broke off.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These credentials were right. They are not kept when anything was forgotten since they began to be verified: they may be what was.
    pub fn keep(&self, seal: Seal, identity: Arc<Identity>) {
        let changed = || self.forgotten.load(Ordering::Acquire) != seal.forgotten;
        if changed() {
            return;
        }
        self.users.insert(seal.digest, identity);
        if changed() {
            self.users.invalidate(&seal.digest);
        }
    }

    /// Credentials of `user` are verified anew from now on: the groups changed, or the sessions were cut.
    pub fn forget(&self, user: &str) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        let user = folded(user);
        // Refused only without support for it, which this cache has; then all are forgotten.
        if self.users.invalidate_entries_if(move |_, known| folded(&known.user) == user).is_err() {
            self.users.invalidate_all();
        }
    }

    /// All credentials are verified anew from now on.
    pub fn forget_all(&self) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.users.invalidate_all();
    }
}

/// Nobody else verifies these credentials meanwhile.
pub struct Turn<'a> {
    guard: Option<OwnedMutexGuard<()>>,
    digest: [u8; 32],
    verified: &'a Verified,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.verified.turns();
        drop(self.guard.take());
        if turns.get(&self.digest).is_some_and(|turnstile| turnstile.strong_count() == 0) {
            turns.remove(&self.digest);
        }
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Verified").field("users", &self.users.entry_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::htpasswd::tests::password;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn known(verified: &Verified, realm: &str, user: &str, clear: &str) -> Option<String> {
        verified.get(verified.seal(realm.as_bytes(), user, &password(clear))).map(|identity| folded(&identity.user))
    }

    fn keep(verified: &Verified, realm: &str, user: &str, clear: &str) {
        verified.keep(verified.seal(realm.as_bytes(), user, &password(clear)), Arc::new(Identity::new(user, [])));
    }

    #[test]
    fn only_the_same_credentials_of_the_same_realm_are_known() {
        let verified = Verified::new(&[7; 32], MINUTE);
        keep(&verified, "directory", "Ada", "secret");
        assert_eq!(known(&verified, "directory", "ADA", "secret").as_deref(), Some("ada"));
        for (realm, user, clear) in [
            ("directory", "ada", "Secret"),
            ("directory", "bob", "secret"),
            ("route", "ada", "secret"),
            ("directorya", "da", "secret"),
            ("directory", "adas", "ecret"),
            ("directory", "ada", ""),
        ] {
            assert_eq!(known(&verified, realm, user, clear), None, "{realm} {user} {clear}");
        }
        assert!(Verified::new(&[8; 32], MINUTE).seal(b"", "", &password("")) != verified.seal(b"", "", &password("")));
        assert!(!format!("{verified:?}").contains("secret"));
    }

    #[test]
    fn a_user_is_forgotten_at_once_and_what_was_being_verified_too() {
        let verified = Verified::new(&[7; 32], MINUTE);
        for user in ["ada", "bob"] {
            keep(&verified, "directory", user, "secret");
            keep(&verified, "route", user, "other");
        }
        let under_way = verified.seal(b"directory", "ada", &password("secret"));
        verified.forget("Ada");
        assert_eq!([known(&verified, "directory", "ada", "secret"), known(&verified, "route", "ada", "other")], [None, None]);
        assert!(known(&verified, "directory", "bob", "secret").is_some());
        verified.keep(under_way, Arc::new(Identity::new("ada", [])));
        assert_eq!(known(&verified, "directory", "ada", "secret"), None, "it was asked for before");
        keep(&verified, "directory", "ada", "secret");
        assert!(known(&verified, "directory", "ada", "secret").is_some());
        verified.forget_all();
        assert_eq!(known(&verified, "directory", "bob", "secret"), None);
    }

    #[tokio::test]
    async fn the_same_credentials_are_verified_once_at_a_time() {
        let verified = Arc::new(Verified::new(&[7; 32], MINUTE));
        let asked = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let (verified, asked) = (verified.clone(), asked.clone());
                tokio::spawn(async move {
                    let seal = verified.seal(b"directory", "ada", &password("secret"));
                    let _turn = verified.turn(seal).await;
                    if verified.get(seal).is_none() {
                        asked.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        verified.keep(seal, Arc::new(Identity::new("ada", [])));
                    }
                })
            })
            .collect();
        // Others do not wait for them, and whoever goes away leaves nothing behind.
        let other = verified.seal(b"directory", "bob", &password("secret"));
        let turn = verified.turn(other).await;
        let given_up = tokio::time::timeout(Duration::from_millis(1), verified.turn(other)).await;
        assert!(given_up.is_err());
        drop(turn);
        for task in tasks {
            task.await.expect("it ends");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(verified.turns().len(), 0);
    }

    #[test]
    fn credentials_are_kept_for_a_bounded_time_and_number() {
        let off = Verified::new(&[7; 32], Duration::ZERO);
        keep(&off, "directory", "ada", "secret");
        off.users.run_pending_tasks();
        assert_eq!(known(&off, "directory", "ada", "secret"), None);
        let verified = Verified::new(&[7; 32], 100 * MINUTE);
        assert_eq!(verified.users.policy().time_to_live(), Some(LONGEST));
        for number in 0..2 * PLACES {
            keep(&verified, "directory", &format!("user{number}"), "secret");
        }
        verified.users.run_pending_tasks();
        assert!(verified.users.entry_count() <= PLACES);
        let short = Verified::new(&[7; 32], Duration::from_millis(1));
        keep(&short, "directory", "ada", "secret");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(known(&short, "directory", "ada", "secret"), None);
    }
}
