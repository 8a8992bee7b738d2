//! The accounts of [`super::accounts`], kept in the store and up to date: written when somebody signs in or out, read at the start,
//! followed while other processes write, and asked about at the directory in the background.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};

use super::account::{PREFIX, Record, key};
use super::accounts::{Accounts, Checked, Due, Live, Wanted};
use super::directory::{Directory, Unavailable};
use super::identity::Identity;
use super::keys::{TRIES, read};
use super::seal::age;
use super::session::{Limits, SessionId, Token};
use crate::store::{self, Change, Error, Store, Version};

/// Between looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// Whoever signs in or out waits no longer for the store; it goes on by itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// A change of the store is seen within this everywhere.
const NEWS: Duration = Duration::from_secs(10);
/// Changes of what is read now are certainly told if they happen later than this.
const SEEN: Duration = Duration::from_secs(5);
/// Values that are read, and users that are asked about, at a time.
const AT_ONCE: usize = 8;
/// Of one look at what is due.
const BATCH: usize = 64;
/// After a failure of the store or the directory: doubled at each further one,
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// up to this.
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// Users of different stripes are written at the same time.
const STRIPES: usize = 64;

/// Who is signed in.
pub struct Register {
    accounts: Accounts,
    limits: Limits,
    store: Arc<dyn Store>,
    /// What is in the store: whose it is, and which version was taken over.
    known: Mutex<HashMap<String, (String, Version)>>,
    /// Who had to make room, and is still in the store.
    leaving: Mutex<Vec<String>>,
    /// Whose accounts were read before changes of them are told: what went away in between is told to nobody, so that they are looked
    /// at again.
    doubtful: Mutex<HashMap<String, Instant>>,
    /// Reading, merging and taking over is one step for each user, so that what is taken over is never older than before.
    stripes: [tokio::sync::Mutex<()>; STRIPES],
    failure: ArcSwapOption<Unavailable>,
}

impl fmt::Debug for Register {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Register").field("count", &self.accounts.count()).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Register {
    /// The accounts that `store` has. While it cannot be read, there are none, and everybody has to sign in again.
    pub async fn open(store: Arc<dyn Store>, limits: Limits) -> Register {
        let register = Register {
            accounts: Accounts::default(),
            limits,
            store,
            known: Mutex::default(),
            leaving: Mutex::default(),
            doubtful: Mutex::default(),
            stripes: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            failure: ArcSwapOption::empty(),
        };
        match register.store.list(PREFIX).await {
            Ok(keys) => {
                let reading = stream::iter(keys.into_keys()).map(|key| register.take_over(key)).buffer_unordered(AT_ONCE);
                reading.for_each(async |user| register.doubt(user)).await;
            }
            Err(error) => tracing::error!(%error, "who was signed in cannot be read: everybody has to sign in again"),
        }
        register
    }

    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Why the directory could not be asked about signed-in users, when it was tried last; `None` if it could.
    pub fn failure(&self) -> Option<Arc<Unavailable>> {
        self.failure.load_full()
    }

    /// The live session that `token` names.
    pub fn find(&self, token: Token, now: Timestamp) -> Option<Live> {
        self.accounts.find(token, now, &self.limits)
    }

    /// The same for a token that is not found here and was given out a moment ago: another process may have done so, as during an
    /// upgrade. Asks the store, so that it is for those alone; older ones would be known.
    pub async fn find_new(&self, token: Token, now: Timestamp) -> Option<Live> {
        if age(token.issued, now) < NEWS {
            self.find_told(&token.user, token.session, now).await?;
        }
        self.find(token, now)
    }

    /// The session of the folded `user`, if it is alive here or in the store: for whoever comes with a code, which is good once.
    pub async fn find_told(&self, user: &str, session: SessionId, now: Timestamp) -> Option<Live> {
        if let Some(live) = self.session(user, session, now) {
            return Some(live);
        }
        self.doubt(timeout(PATIENCE, self.take_over(key(user))).await.ok()?);
        self.session(user, session, now)
    }

    /// What `live` is now; `None` once its session has ended.
    pub fn again(&self, live: &Live, now: Timestamp) -> Option<Live> {
        self.accounts.again(live, now, &self.limits)
    }

    /// The session of the folded `user`, if it is alive.
    pub fn session(&self, user: &str, session: SessionId, now: Timestamp) -> Option<Live> {
        self.accounts.session(user, session, now, &self.limits)
    }

    /// A new session of `identity`, whom the directory just vouched for; `None` if the name is none that can sign in. A store that
    /// cannot be written keeps nobody out: the directory said yes, and all that is lost is that the session ends with this process.
    pub async fn sign_in(&self, identity: Identity, now: Timestamp, random: [u8; SessionId::BYTES]) -> Option<Token> {
        let signed_in = self.accounts.sign_in(identity, now, &self.limits, random)?;
        for user in &signed_in.evicted {
            tracing::warn!(user, "signed out: there are too many signed-in users, and this one was unused for the longest time");
        }
        // Not for this one to wait for.
        self.leaving().extend(signed_in.evicted);
        self.save(&signed_in.token.user, "a session is not in the store: it ends with this process unless it can be written later").await;
        Some(signed_in.token)
    }

    /// Ends one session, on all hosts. Was it alive?
    pub async fn sign_out(&self, user: &str, session: SessionId) -> bool {
        let ended = self.accounts.sign_out(user, session);
        self.save(user, LIVES_ON).await;
        ended
    }

    /// Ends all sessions of the folded `user`: how many there were.
    pub async fn sign_out_everywhere(&self, user: &str) -> usize {
        let ended = self.accounts.sign_out_everywhere(user);
        self.save(user, LIVES_ON).await;
        ended
    }

    /// Keeps everything up to date; never ends.
    pub async fn follow(&self, directory: Arc<dyn Directory>) {
        // Only now do changes begin to be told.
        self.doubtful().values_mut().for_each(|since| *since = Instant::now());
        tokio::join!(self.follow_store(), self.keep_time(), self.ask(&*directory));
    }

    async fn follow_store(&self) {
        let mut changes = self.store.watch(PREFIX);
        while let Some(Change { key, version }) = changes.next().await {
            let known = self.known().get(&key).cloned();
            match (known, version) {
                (Some((_, known)), Some(version)) if known == version => {}
                (Some((user, _)), None) => self.save(&user, UNSEEN).await,
                (None, None) => {}
                (_, Some(_)) => drop(self.take_over(key).await),
            }
        }
    }

    /// Ends what is over, and writes what could not be written or was not worth it before.
    async fn keep_time(&self) {
        let mut pause = TICK;
        loop {
            sleep(pause).await;
            for (user, sessions) in self.accounts.sweep(Timestamp::now(), &self.limits) {
                tracing::info!(user, sessions, "sessions ended: their time is over");
            }
            let leaving = std::mem::take(&mut *self.leaving());
            for user in leaving {
                if let Err(error) = self.remove(&user).await {
                    tracing::warn!(user, %error, "the store still has the sessions of somebody who was signed out");
                }
            }
            let mut failed = self.look_again().await;
            for user in self.accounts.behind(&self.limits, BATCH) {
                failed |= self.sync(&user).await.inspect_err(|error| tracing::debug!(user, %error, "still not written")).is_err();
            }
            pause = if failed { (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE) } else { TICK };
        }
    }

    /// Looks at the accounts again of which a change may not have been told. Did that fail?
    async fn look_again(&self) -> bool {
        let again: Vec<_> = self.doubtful().extract_if(|_, since| since.elapsed() >= SEEN).collect();
        let looks = stream::iter(again).map(async |(user, _)| self.sync(&user).await.err().map(|_| user)).buffer_unordered(AT_ONCE);
        let failed: Vec<String> = looks.filter_map(async |failed| failed).collect().await;
        let any = !failed.is_empty();
        failed.into_iter().for_each(|user| self.doubt(Some(user)));
        any
    }

    fn doubt(&self, user: Option<String>) {
        self.doubtful().extend(user.map(|user| (user, Instant::now())));
    }

    /// Asks the directory about everybody who is signed in, again and again.
    async fn ask(&self, directory: &dyn Directory) {
        if !self.limits.looks_up {
            return;
        }
        let mut pause = TICK;
        loop {
            sleep(pause).await;
            // While nobody answers, one question is enough.
            let down = self.failure.load().is_some();
            let due = self.accounts.due(Timestamp::now(), if down { 1 } else { BATCH });
            let full = due.len() == BATCH;
            let asking = stream::iter(due).map(|due| self.ask_about(directory, due)).buffer_unordered(AT_ONCE);
            let answers: Vec<bool> = asking.collect().await;
            pause = match answers.contains(&true) {
                true if full => Duration::ZERO,
                true => TICK,
                false if self.failure.load().is_some() => (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE),
                false => TICK,
            };
        }
    }

    async fn ask_about(&self, directory: &dyn Directory, Due { user, name }: Due) -> bool {
        let answer = directory.look_up(&name).await;
        let now = Timestamp::now();
        let said = match answer {
            Ok(said) => said,
            Err(unavailable) => {
                // Its sessions go on to their end. Others come first: it may be this user that the directory stumbles over.
                self.accounts.defer(&user, now + LAST_PAUSE.min(self.limits.recheck));
                if self.failure.swap(Some(Arc::new(unavailable.clone()))).is_none() {
                    tracing::error!(user, %unavailable, "the directory does not say who is still a member; sessions go on to their end");
                }
                return false;
            }
        };
        if self.failure.swap(None).is_some() {
            tracing::info!("the directory says again who is a member");
        }
        match self.accounts.checked(&user, said, now, &self.limits) {
            Checked::Same => return true,
            Checked::Changed => tracing::info!(user, "the directory changed what it says of a signed-in user"),
            Checked::Ended(sessions) => tracing::info!(user, sessions, "signed out: the directory does not know the user any more"),
        }
        self.save(&user, LIVES_ON).await;
        true
    }

    /// Brings the store and the table together for `user`; says `failure` where that does not work out in time. It is tried on.
    async fn save(&self, user: &str, failure: &str) {
        match timeout(PATIENCE, self.sync(user)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(user, %error, "{failure}"),
            Err(_) => tracing::error!(user, "{failure} (the store did not answer in {PATIENCE:?})"),
        }
    }

    async fn sync(&self, user: &str) -> Result<(), Error> {
        let key = key(user);
        let _one_at_a_time = self.stripe(&key).lock().await;
        let mut last = Error::Conflict { key: key.clone() };
        for _ in 0..TRIES {
            let (kept, version) = read::<Record>(&*self.store, &key).await?;
            let now = Timestamp::now();
            let done = match (self.accounts.wanted(user, kept.as_ref(), now, &self.limits), version) {
                (Wanted::Same, version) => Ok((kept, version)),
                (Wanted::Record(record), version) => {
                    store::write(&*self.store, &key, &record, version.as_ref()).await.map(|version| (Some(record), Some(version)))
                }
                (Wanted::Nothing, Some(version)) => self.store.remove(&key, &version).await.map(|()| (None, None)),
                (Wanted::Nothing, None) => Ok((None, None)),
            };
            match done {
                Ok((kept, version)) => {
                    self.accounts.settle(user, kept.as_ref(), now, &self.limits);
                    self.note(key, user, version);
                    return Ok(());
                }
                Err(conflict @ Error::Conflict { .. }) => last = conflict,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Takes over what the store has under `key`: whose it is.
    async fn take_over(&self, key: String) -> Option<String> {
        match store::read::<Record>(&*self.store, &key).await {
            // Its name says whose it is; else somebody could be given another's sessions.
            Ok(Some((record, _))) if self::key(&record.user) == key => {
                self.save(&record.user, UNSEEN).await;
                return Some(record.user);
            }
            Ok(Some(_)) => tracing::error!(key, "a value of the store is not used: it is another account's"),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "{UNSEEN}"),
        }
        None
    }

    async fn remove(&self, user: &str) -> Result<(), Error> {
        let key = key(user);
        let _one_at_a_time = self.stripe(&key).lock().await;
        if self.accounts.knows(user) {
            // Signed in again.
            return Ok(());
        }
        if let Some(entry) = self.store.get(&key).await? {
            self.store.remove(&key, &entry.version).await?;
        }
        self.note(key, user, None);
        Ok(())
    }

    fn note(&self, key: String, user: &str, version: Option<Version>) {
        match version {
            Some(version) => drop(self.known().insert(key, (user.to_owned(), version))),
            None => drop(self.known().remove(&key)),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, Version)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubtful(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stripe(&self, key: &str) -> &tokio::sync::Mutex<()> {
        let sum = key.bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        &self.stripes[sum % STRIPES]
    }
}

const LIVES_ON: &str = "the store still has a session that was ended: it would live again if this process ended now; trying on";
const UNSEEN: &str = "what another process did with an account is not seen";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::future::BoxFuture;

    use super::super::identity::Password;
    use super::*;
    use crate::store::keyed::Keyed;
    use crate::store::memory::Memory;

    const WAIT: Duration = Duration::from_secs(20);

    /// A directory whose answers a test changes.
    #[derive(Debug, Default)]
    struct Staff(Mutex<Option<Result<Vec<String>, Unavailable>>>);

    impl Staff {
        fn says(&self, answer: Option<Result<&[&str], &str>>) {
            let groups = |groups: &[&str]| groups.iter().map(|group| (*group).to_owned()).collect();
            let answer = answer.map(|answer| answer.map(groups).map_err(|why| Unavailable(why.to_owned())));
            *self.0.lock().expect("no panic") = answer;
        }
    }

    impl Directory for Staff {
        fn verify<'a>(&'a self, _: &'a str, _: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
            Box::pin(async { Ok(None) })
        }

        fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
            let answer = self.0.lock().expect("no panic").clone();
            Box::pin(async move { answer.map(|answer| answer.map(|groups| Identity::new(user, groups))).transpose() })
        }

        fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
            Box::pin(async { Ok(groups.clone()) })
        }
    }

    fn limits() -> Limits {
        Limits { recheck: Duration::from_secs(1), ..Limits::new(&crate::config::Auth::default(), true) }
    }

    async fn register(store: &Arc<dyn Store>) -> Arc<Register> {
        Arc::new(Register::open(Arc::clone(store), limits()).await)
    }

    fn memory() -> Arc<dyn Store> {
        Arc::new(Memory::default())
    }

    async fn sign_in(register: &Register, user: &str, number: u8) -> Token {
        register.sign_in(Identity::new(user, ["staff".to_owned()]), Timestamp::now(), [number; 16]).await.expect("signed in")
    }

    fn is_alive(register: &Register, token: &Token) -> bool {
        register.find(token.clone(), Timestamp::now()).is_some()
    }

    async fn until(what: &str, mut done: impl FnMut() -> bool) {
        let turns = async {
            while !done() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(WAIT, turns).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    fn follow(register: &Arc<Register>, directory: &Arc<Staff>) -> tokio::task::JoinHandle<()> {
        let (register, directory) = (Arc::clone(register), Arc::clone(directory));
        tokio::spawn(async move { register.follow(directory).await })
    }

    #[tokio::test]
    async fn sessions_outlive_a_process() {
        let folder = tempfile::tempdir().expect("a directory");
        let open = || -> Arc<dyn Store> { Arc::new(Keyed::open(folder.path()).expect("a store").0) };
        let before = register(&open()).await;
        let (one, two) = (sign_in(&before, "Ada", 1).await, sign_in(&before, "Ada", 2).await);
        before.sign_out("ada", one.session).await;
        drop(before);
        let after = register(&open()).await;
        assert!(!is_alive(&after, &one) && is_alive(&after, &two));
        assert_eq!(after.sign_out_everywhere("ada").await, 1);
        assert!(open().list(PREFIX).await.expect("listed").is_empty(), "nothing is kept of whoever signed out");
    }

    #[tokio::test]
    async fn a_sign_out_in_one_process_counts_in_the_other() {
        let folder = tempfile::tempdir().expect("a directory");
        let open = || -> Arc<dyn Store> { Arc::new(Keyed::open(folder.path()).expect("a store").0) };
        let (here, there, staff) = (register(&open()).await, register(&open()).await, Arc::new(Staff::default()));
        staff.says(Some(Ok(&["staff"])));
        let following = [follow(&here, &staff), follow(&there, &staff)];
        let token = sign_in(&here, "ada", 1).await;
        assert!(there.find_new(token.clone(), Timestamp::now()).await.is_some(), "before it was told");
        until("the other process knows of the sign-in", || is_alive(&there, &token)).await;
        let held = there.find(token.clone(), Timestamp::now()).expect("alive");
        here.sign_out("ada", token.session).await;
        assert!(!is_alive(&here, &token), "at once");
        timeout(WAIT, held.changed()).await.expect("an open connection hears of it");
        assert!(there.again(&held, Timestamp::now()).is_none());
        following.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn what_ended_while_a_process_started_has_ended_there_too() {
        let (store, staff) = (memory(), Arc::new(Staff::default()));
        staff.says(Some(Ok(&["staff"])));
        let here = register(&store).await;
        let token = sign_in(&here, "ada", 1).await;
        let there = register(&store).await;
        here.sign_out("ada", token.session).await;
        assert!(is_alive(&there, &token), "read, and not followed yet");
        let following = follow(&there, &staff);
        until("it has ended", || !is_alive(&there, &token)).await;
        following.abort();
    }

    #[tokio::test]
    async fn what_the_directory_says_counts_while_somebody_is_signed_in() {
        let (store, staff) = (memory(), Arc::new(Staff::default()));
        let register = register(&store).await;
        let token = sign_in(&register, "ada", 1).await;
        staff.says(Some(Err("nobody answers")));
        let following = follow(&register, &staff);
        until("the failure is reported", || register.failure().is_some()).await;
        assert!(is_alive(&register, &token), "nothing ends because the directory is down");
        staff.says(Some(Ok(&["staff", "boss"])));
        let groups = || register.find(token.clone(), Timestamp::now()).is_some_and(|live| live.identity().belongs("boss"));
        until("a new group is taken over", groups).await;
        assert!(register.failure().is_none());
        staff.says(None);
        until("whoever is gone is signed out", || !is_alive(&register, &token)).await;
        until("in the store too", || register.known().is_empty()).await;
        assert!(store.list(PREFIX).await.expect("listed").is_empty());
        following.abort();
    }

    #[tokio::test]
    async fn a_broken_value_is_nobodys_session() {
        let store = memory();
        let token = sign_in(&*register(&store).await, "ada", 1).await;
        let entry = store.get(&key("ada")).await.expect("read").expect("kept");
        store.put(&key("eve"), &entry.value, None).await.expect("written");
        store.put(&key("bob"), b"{", None).await.expect("written");
        let next = register(&store).await;
        assert_eq!(next.accounts().count(), (1, 1));
        assert!(is_alive(&next, &token));
        let bob = sign_in(&next, "bob", 2).await;
        assert!(is_alive(&*register(&store).await, &bob), "it is written over");
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_written_keeps_nobody_out() {
        let folder = tempfile::tempdir().expect("a directory");
        let store: Arc<dyn Store> = Arc::new(Keyed::open(folder.path()).expect("a store").0);
        let (register, staff) = (register(&store).await, Arc::new(Staff::default()));
        staff.says(Some(Ok(&["staff"])));
        let (path, aside) = (folder.path().join("store"), folder.path().join("aside"));
        std::fs::rename(&path, &aside).expect("moved");
        std::fs::write(&path, "no directory").expect("written");
        let (one, two) = (sign_in(&register, "ada", 1).await, sign_in(&register, "ada", 2).await);
        register.sign_out("ada", one.session).await;
        assert!(!is_alive(&register, &one) && is_alive(&register, &two));
        std::fs::remove_file(&path).expect("removed");
        std::fs::rename(&aside, &path).expect("moved back");
        let following = follow(&register, &staff);
        until("it is written once it can be", || register.accounts.behind(&limits(), 1).is_empty()).await;
        following.abort();
        let next = Register::open(store, limits()).await;
        assert!(!is_alive(&next, &one) && is_alive(&next, &two));
    }
}
