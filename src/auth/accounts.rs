//! The accounts that have live sessions: what makes a token good or not, at once and on every host. Requests read it without waiting;
//! what changes takes effect for the next request, and wakes whoever holds a connection open. [`super::register`] keeps it in the store.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::account::{Account, Record, Session, merged, next_check, whole};
use super::identity::{Identity, folded};
use super::seal::age;
use super::session::{Limits, MAX_USER, SessionId, Standing, Token};

/// Accounts with sessions; one more ends those of the ones that were unused for the longest time.
pub const MOST_ACCOUNTS: usize = 100_000;

/// A session that is alive, at the time of a request.
#[derive(Clone, Debug)]
pub struct Live {
    account: Arc<Account>,
    pub user: String,
    pub session: SessionId,
    pub issued: Timestamp,
    /// Whatever happens, it ends then.
    pub ends: Timestamp,
    /// Should a new cookie go out with the answer?
    pub renew: bool,
}

impl Live {
    pub fn identity(&self) -> &Arc<Identity> {
        &self.account.identity
    }

    fn touch(&self, now: Timestamp) {
        if let Some(session) = self.account.sessions.iter().find(|session| session.id == self.session) {
            session.touch(now);
        }
    }

    /// What the browser gets at `now`, by a new cookie or on another host.
    pub fn token(&self, now: Timestamp) -> Token {
        Token { user: self.user.clone(), session: self.session, issued: self.issued, seen: now }
    }

    /// Ends when this may not be true any more: [`Accounts::again`] tells. For connections that stay open.
    pub async fn changed(&self) {
        self.account.changed.cancelled().await;
    }
}

/// What a sign-in came to.
#[derive(Debug)]
pub struct SignedIn {
    pub token: Token,
    /// Accounts that had to go for it.
    pub(super) evicted: Vec<String>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Accounts {
    table: DashMap<String, Arc<Account>>,
}

impl Accounts {
    /// The session that `token` names, if it is alive. Counts as a use of it.
    pub fn find(&self, token: Token, now: Timestamp, limits: &Limits) -> Option<Live> {
        let standing = Some(token.judge(now, limits)).filter(|standing| *standing != Standing::Ended)?;
        let account = Arc::clone(&*self.table.get(token.user.as_str())?);
        let live = alive(account, token.user, token.session, now, limits)?;
        live.touch(now);
        Some(Live { renew: standing == Standing::Renew, ..live })
    }

    /// What `live` is now; `None` once its session has ended. No use of it: that a connection is open keeps no session alive.
    pub fn again(&self, live: &Live, now: Timestamp, limits: &Limits) -> Option<Live> {
        self.session(&live.user, live.session, now, limits)
    }

    /// The session of the folded `user`, if it is alive: for whoever was told of it by something else than its cookie.
    pub fn session(&self, user: &str, session: SessionId, now: Timestamp, limits: &Limits) -> Option<Live> {
        let account = Arc::clone(&*self.table.get(user)?);
        alive(account, user.to_owned(), session, now, limits)
    }

    /// A new session of `identity`, as the directory just said it to be; `None` if its name is none that can be. `random` names it.
    pub fn sign_in(&self, identity: Identity, now: Timestamp, limits: &Limits, random: [u8; SessionId::BYTES]) -> Option<SignedIn> {
        let user = folded(&identity.user);
        if user.is_empty() || user.len() > MAX_USER {
            return None;
        }
        let evicted = if self.table.len() >= MOST_ACCOUNTS { self.evict(MOST_ACCOUNTS / 100) } else { Vec::new() };
        let id = SessionId(random);
        let seen = Arc::new(AtomicI64::new(now.as_second()));
        let new = Session { id, issued: whole(now), seen, saved: None };
        let next_check = next_check(&user, now, now, limits);
        self.replace(&user, |held| {
            let mut account = match held {
                Some(held) => held.confirmed(identity, now, next_check),
                None => Account::new(identity, now, next_check),
            };
            account.sessions.push(new);
            account.bound();
            Some(account)
        });
        Some(SignedIn { token: Token { user, session: id, issued: whole(now), seen: whole(now) }, evicted })
    }

    /// Ends one session. Was it alive?
    pub fn sign_out(&self, user: &str, session: SessionId) -> bool {
        self.end(user, |known| known.id == session) > 0
    }

    /// Ends all sessions of the folded `user`: how many there were.
    pub fn sign_out_everywhere(&self, user: &str) -> usize {
        self.end(user, |_| true)
    }

    fn end(&self, user: &str, over: impl Fn(&Session) -> bool) -> usize {
        let mut ended = 0;
        self.replace(user, |held| {
            let mut account = held?.clone();
            account.end(over);
            ended = account.ended.len() - held?.ended.len();
            Some(account)
        });
        ended
    }

    /// What the directory said of the folded `user` at `now`: replaces what it said before, or ends all sessions. Did it change anything?
    pub fn checked(&self, user: &str, said: Option<Identity>, now: Timestamp, limits: &Limits) -> Checked {
        let Some(identity) = said.filter(|identity| folded(&identity.user) == user) else {
            return Checked::Ended(self.sign_out_everywhere(user));
        };
        let next_check = next_check(user, now, now, limits);
        let mut checked = Checked::Same;
        self.replace(user, |held| {
            if *held?.identity != identity {
                checked = Checked::Changed;
            }
            Some(held?.confirmed(identity, now, next_check))
        });
        checked
    }

    /// Who must be asked about at `now`, `most` at a time.
    pub fn due(&self, now: Timestamp, most: usize) -> Vec<Due> {
        let due = self.table.iter().filter(|entry| entry.next_check <= now && !entry.sessions.is_empty());
        due.take(most).map(|entry| Due { user: entry.key().clone(), name: entry.identity.user.clone() }).collect()
    }

    /// Asks about the folded `user` at `then` instead: the directory had no answer.
    pub fn defer(&self, user: &str, then: Timestamp) {
        self.replace(user, |held| Some(Account { next_check: then, ..held?.clone() }));
    }

    /// Ends the sessions whose time is over: whose they were, and how many.
    pub fn sweep(&self, now: Timestamp, limits: &Limits) -> Vec<(String, usize)> {
        let over = |account: &Account| {
            let unverified = !limits.looks_up && age(account.checked, now) >= limits.recheck;
            account.sessions.iter().any(|session| unverified || session.is_over(now, limits)).then_some(unverified)
        };
        let found: Vec<(String, bool)> = self.table.iter().filter_map(|entry| Some((entry.key().clone(), over(&entry)?))).collect();
        let end = |(user, all): (String, bool)| {
            let ended = self.end(&user, |session| all || session.is_over(now, limits));
            (user, ended)
        };
        found.into_iter().map(end).collect()
    }

    /// Accounts that the store has otherwise, `most` at a time.
    pub fn behind(&self, limits: &Limits, most: usize) -> Vec<String> {
        self.table.iter().filter(|entry| entry.is_behind(limits.idle)).take(most).map(|entry| entry.key().clone()).collect()
    }

    /// What the store should have of `user`, where it has `kept`: both with what the other does not know of.
    pub fn wanted(&self, user: &str, kept: Option<&Record>, now: Timestamp, limits: &Limits) -> Wanted {
        let held = self.table.get(user).map(|entry| Arc::clone(&entry));
        let wanted = merged(user, kept, held.as_deref(), now, limits).and_then(|account| account.record(user));
        match (kept, wanted) {
            (None, None) => Wanted::Same,
            (Some(_), None) => Wanted::Nothing,
            (Some(kept), Some(wanted)) if !kept.is_behind(&wanted, limits.idle) => Wanted::Same,
            (_, Some(wanted)) => Wanted::Record(wanted),
        }
    }

    /// The store has `kept`, or nothing, of `user`: takes over what others did.
    pub fn settle(&self, user: &str, kept: Option<&Record>, now: Timestamp, limits: &Limits) {
        let full = self.table.len() >= MOST_ACCOUNTS;
        self.replace(user, |held| match held {
            None if full => None,
            _ => merged(user, kept, held, now, limits),
        });
    }

    /// Is there anything of the folded `user`?
    pub(super) fn knows(&self, user: &str) -> bool {
        self.table.contains_key(user)
    }

    /// Live accounts, and their sessions.
    pub fn count(&self) -> (usize, usize) {
        let alive = self.table.iter().map(|entry| entry.sessions.len()).filter(|sessions| *sessions > 0);
        alive.fold((0, 0), |(accounts, sessions), more| (accounts + 1, sessions + more))
    }

    /// Takes the `many` that were unused for the longest time out of the table.
    fn evict(&self, many: usize) -> Vec<String> {
        let mut used: Vec<(i64, String)> = self.table.iter().map(|entry| (entry.last_seen(), entry.key().clone())).collect();
        if used.len() > many {
            used.select_nth_unstable(many);
            used.truncate(many);
        }
        used.into_iter().map(|(_, user)| user).inspect(|user| self.replace(user, |_| None)).collect()
    }

    /// Puts what `change` makes of the account in its place, and wakes whoever relied on it if it lets them do less. Once nobody has
    /// anything to do with it, it goes.
    fn replace(&self, user: &str, change: impl FnOnce(Option<&Account>) -> Option<Account>) {
        let of_use = |account: &Account| !account.sessions.is_empty() || !account.ended.is_empty();
        let woken = match self.table.entry(user.to_owned()) {
            Entry::Vacant(entry) => {
                if let Some(new) = change(None).filter(of_use) {
                    entry.insert(Arc::new(new));
                }
                None
            }
            Entry::Occupied(mut entry) => match change(Some(entry.get())).filter(of_use) {
                None => Some(entry.remove()),
                Some(mut new) if entry.get().takes_from(&new) => {
                    new.changed = CancellationToken::new();
                    Some(entry.insert(Arc::new(new)))
                }
                Some(new) => {
                    entry.insert(Arc::new(new));
                    None
                }
            },
        };
        // Once they can see why.
        if let Some(old) = woken {
            old.changed.cancel();
        }
    }
}

/// An account that the directory has to be asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Folded.
    pub user: String,
    /// As the directory writes it.
    pub name: String,
}

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    Same,
    Changed,
    /// So many sessions.
    Ended(usize),
}

/// What the store is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What it has.
    Same,
    /// This instead.
    Record(Record),
    Nothing,
}

fn alive(account: Arc<Account>, user: String, id: SessionId, now: Timestamp, limits: &Limits) -> Option<Live> {
    let session = account.sessions.iter().find(|session| session.id == id)?;
    let unverified = !limits.looks_up && age(account.checked, now) >= limits.recheck;
    if unverified || session.is_over(now, limits) {
        return None;
    }
    let issued = session.issued;
    Some(Live { user, session: id, issued, ends: issued + limits.lifetime, renew: false, account })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::account::{Kept, MOST_SESSIONS, key};
    use super::super::seal::tests::at;
    use super::*;

    const HOUR: i64 = 3600;

    fn limits() -> Limits {
        Limits::new(&crate::config::Auth::default(), true)
    }

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity::new(user, groups.iter().map(|group| (*group).to_owned()))
    }

    fn sign_in(accounts: &Accounts, user: &str, now: i64, number: u8) -> Token {
        accounts.sign_in(identity(user, &["staff"]), at(now), &limits(), [number; 16]).expect("signed in").token
    }

    fn find(accounts: &Accounts, token: &Token, now: i64) -> Option<Live> {
        accounts.find(token.clone(), at(now), &limits())
    }

    /// As the register does it, with a store that always works.
    fn save(accounts: &Accounts, user: &str, store: &mut Option<Record>, now: i64) -> bool {
        let wanted = accounts.wanted(user, store.as_ref(), at(now), &limits());
        let wrote = wanted != Wanted::Same;
        match wanted {
            Wanted::Same => {}
            Wanted::Record(record) => *store = Some(record),
            Wanted::Nothing => *store = None,
        }
        accounts.settle(user, store.as_ref(), at(now), &limits());
        wrote
    }

    #[test]
    fn a_token_is_good_while_its_session_is_in_the_table() {
        let accounts = Accounts::default();
        let (one, two) = (sign_in(&accounts, "Ada  L", 0, 1), sign_in(&accounts, "ada l", 0, 2));
        let other = sign_in(&accounts, "bob", 0, 3);
        let live = find(&accounts, &one, 1).expect("alive");
        assert_eq!((live.user.as_str(), live.session, live.ends, live.renew), ("ada l", SessionId([1; 16]), at(168 * HOUR), false));
        assert!(live.identity().belongs("staff"));
        assert!(find(&accounts, &one, 2 * HOUR).expect("alive").renew);
        assert!(accounts.sign_out("ada l", SessionId([1; 16])));
        assert!(!accounts.sign_out("ada l", SessionId([1; 16])), "it was signed out");
        assert!(find(&accounts, &one, 1).is_none() && find(&accounts, &two, 1).is_some());
        assert_eq!(accounts.sign_out_everywhere("ada l"), 1);
        assert!(find(&accounts, &two, 1).is_none() && find(&accounts, &other, 1).is_some());
        let forged = Token { user: "bob".to_owned(), ..two };
        assert!(find(&accounts, &forged, 1).is_none(), "a session is its user's");
        assert_eq!(accounts.count(), (1, 1));
    }

    #[test]
    fn names_that_cannot_be_do_not_sign_in() {
        for user in ["", "  ", &"a".repeat(MAX_USER + 1)] {
            assert!(Accounts::default().sign_in(identity(user, &[]), at(0), &limits(), [1; 16]).is_none(), "{user:?}");
        }
    }

    #[test]
    fn one_session_too_many_ends_the_oldest() {
        let accounts = Accounts::default();
        let tokens: Vec<Token> = (0..=MOST_SESSIONS as u8).map(|number| sign_in(&accounts, "ada", i64::from(number), number)).collect();
        assert!(find(&accounts, &tokens[0], 40).is_none());
        assert!(tokens[1..].iter().all(|token| find(&accounts, token, 40).is_some()));
    }

    #[test]
    fn one_account_too_many_ends_those_unused_for_the_longest_time() {
        let accounts = Accounts::default();
        let tokens: Vec<Token> = (0..10).map(|number| sign_in(&accounts, &format!("user{number}"), i64::from(number), number)).collect();
        assert!(find(&accounts, &tokens[0], 100).is_some(), "used again");
        let mut gone = accounts.evict(3);
        gone.sort();
        assert_eq!(gone, ["user1", "user2", "user3"]);
        assert!(find(&accounts, &tokens[0], 100).is_some() && find(&accounts, &tokens[2], 100).is_none());
    }

    #[tokio::test]
    async fn who_holds_a_connection_open_hears_of_what_changes() {
        let accounts = Accounts::default();
        let (one, two) = (sign_in(&accounts, "ada", 0, 1), sign_in(&accounts, "ada", 0, 2));
        let hears = |live: Live| async move { tokio::time::timeout(Duration::from_millis(20), live.changed()).await.is_ok() };
        let live = find(&accounts, &one, 1).expect("alive");
        assert_eq!(accounts.checked("ada", Some(identity("ada", &["staff"])), at(2), &limits()), Checked::Same);
        sign_in(&accounts, "ada", 3, 3);
        assert!(!hears(live.clone()).await, "nothing was taken");
        assert_eq!(accounts.checked("ada", Some(identity("ada", &[])), at(4), &limits()), Checked::Changed);
        assert!(hears(live.clone()).await);
        let live = accounts.again(&live, at(5), &limits()).expect("alive");
        assert!(!live.identity().belongs("staff"));
        assert!(!hears(live.clone()).await);
        accounts.sign_out("ada", two.session);
        assert!(hears(live.clone()).await, "looking again is cheap");
        let live = accounts.again(&live, at(5), &limits()).expect("its own session is alive");
        assert_eq!(accounts.checked("ada", None, at(6), &limits()), Checked::Ended(2));
        assert!(hears(live.clone()).await);
        assert!(accounts.again(&live, at(6), &limits()).is_none());
    }

    #[test]
    fn a_directory_that_now_means_somebody_else_ends_the_sessions() {
        let accounts = Accounts::default();
        sign_in(&accounts, "ada", 0, 1);
        assert_eq!(accounts.checked("ada", Some(identity("eve", &["staff"])), at(1), &limits()), Checked::Ended(1));
    }

    #[test]
    fn everybody_is_asked_about_in_time_and_not_at_once() {
        let accounts = Accounts::default();
        let limits = limits();
        for number in 0..1000u32 {
            let id: [u8; 16] = std::array::from_fn(|place| number.to_be_bytes()[place % 4]);
            accounts.sign_in(identity(&format!("user{number}"), &[]), at(0), &limits, id).expect("signed in");
        }
        assert!(accounts.due(at(224), 2000).is_empty());
        let half = accounts.due(at(262), 2000).len();
        assert!((300..700).contains(&half), "{half}");
        assert_eq!(accounts.due(at(300), 2000).len(), 1000);
        assert_eq!(accounts.due(at(300), 10).len(), 10);
        for due in accounts.due(at(300), 2000) {
            accounts.checked(&due.user, Some(identity(&due.name, &[])), at(300), &limits);
        }
        assert!(accounts.due(at(524), 2000).is_empty());
        let restarted = Accounts::default();
        for number in 0..1000 {
            let user = format!("user{number}");
            restarted.settle(&user, accounts.wanted(&user, None, at(0), &limits).record().as_ref(), at(5000), &limits);
        }
        let soon = restarted.due(at(5030), 2000).len();
        assert!((50..200).contains(&soon), "{soon} of those that were overdue at the start");
        assert_eq!(restarted.due(at(5300), 2000).len(), 1000);
    }

    impl Wanted {
        fn record(self) -> Option<Record> {
            match self {
                Wanted::Record(record) => Some(record),
                _ => None,
            }
        }
    }

    #[test]
    fn sessions_end_by_time() {
        let accounts = Accounts::default();
        let (idle, used) = (sign_in(&accounts, "ada", 0, 1), sign_in(&accounts, "ada", 0, 2));
        for hour in 1..=167 {
            find(&accounts, &Token { seen: at(hour * HOUR), ..used.clone() }, hour * HOUR).expect("in use");
            accounts.sweep(at(hour * HOUR), &limits());
        }
        assert!(find(&accounts, &Token { seen: at(167 * HOUR), ..idle }, 167 * HOUR).is_none(), "it was not used");
        assert_eq!(accounts.sweep(at(168 * HOUR), &limits()), [("ada".to_owned(), 1)]);
        assert!(find(&accounts, &Token { issued: at(1), seen: at(168 * HOUR), ..used }, 168 * HOUR).is_none(), "the table knows better");
    }

    #[test]
    fn where_nobody_can_be_asked_about_a_session_ends_when_it_would_be() {
        let limits = Limits { looks_up: false, ..limits() };
        let accounts = Accounts::default();
        let token = accounts.sign_in(identity("ada", &[]), at(0), &limits, [1; 16]).expect("signed in").token;
        assert!(accounts.find(token.clone(), at(299), &limits).is_some());
        assert!(accounts.find(token, at(300), &limits).is_none());
        assert_eq!(accounts.sweep(at(300), &limits), [("ada".to_owned(), 1)]);
    }

    #[test]
    fn sessions_go_on_after_a_restart() {
        let (accounts, mut store) = (Accounts::default(), None);
        let (one, two) = (sign_in(&accounts, "ada", 0, 1), sign_in(&accounts, "ada", 1, 2));
        assert_eq!(accounts.behind(&limits(), 9), ["ada"]);
        assert!(save(&accounts, "ada", &mut store, 1));
        assert!(accounts.behind(&limits(), 9).is_empty() && !save(&accounts, "ada", &mut store, 1));
        let text = serde_json::to_string(&store).expect("JSON");
        let mut store: Option<Record> = serde_json::from_str(&text).expect("read back");
        let next = Accounts::default();
        next.settle("ada", store.as_ref(), at(60), &limits());
        assert!(find(&next, &one, 60).is_some() && find(&next, &two, 60).is_some());
        next.sign_out("ada", one.session);
        assert!(save(&next, "ada", &mut store, 60));
        accounts.settle("ada", store.as_ref(), at(61), &limits());
        assert!(find(&accounts, &one, 61).is_none() && find(&accounts, &two, 61).is_some(), "signed out in the other process");
        next.sign_out_everywhere("ada");
        assert!(save(&next, "ada", &mut store, 61) && store.is_none());
        accounts.settle("ada", None, at(62), &limits());
        assert_eq!((accounts.count(), accounts.behind(&limits(), 9).len()), ((0, 0), 0));
    }

    #[test]
    fn what_the_store_does_not_know_yet_is_not_lost() {
        let (here, there, mut store) = (Accounts::default(), Accounts::default(), None);
        let one = sign_in(&here, "ada", 0, 1);
        save(&here, "ada", &mut store, 0);
        there.settle("ada", store.as_ref(), at(0), &limits());
        let (two, three) = (sign_in(&here, "ada", 1, 2), sign_in(&there, "ada", 1, 3));
        here.sign_out("ada", one.session);
        save(&there, "ada", &mut store, 2);
        save(&here, "ada", &mut store, 2);
        there.settle("ada", store.as_ref(), at(3), &limits());
        for accounts in [&here, &there] {
            assert!(find(accounts, &one, 3).is_none() && find(accounts, &two, 3).is_some() && find(accounts, &three, 3).is_some());
        }
        assert!(!save(&here, "ada", &mut store, 4) && !save(&there, "ada", &mut store, 4));
    }

    #[test]
    fn the_later_word_of_the_directory_counts_and_uses_are_written_now_and_then() {
        let (here, there, mut store) = (Accounts::default(), Accounts::default(), None);
        let token = sign_in(&here, "ada", 0, 1);
        save(&here, "ada", &mut store, 0);
        there.settle("ada", store.as_ref(), at(0), &limits());
        here.checked("ada", Some(identity("ada", &["boss"])), at(300), &limits());
        assert!(save(&here, "ada", &mut store, 300));
        there.settle("ada", store.as_ref(), at(301), &limits());
        assert!(find(&there, &token, 301).expect("alive").identity().belongs("boss"));
        here.checked("ada", Some(identity("ada", &["boss"])), at(600), &limits());
        assert!(here.behind(&limits(), 9).is_empty(), "the same again");
        find(&here, &token, 2 * HOUR);
        assert!(here.behind(&limits(), 9).is_empty());
        find(&here, &token, 3 * HOUR);
        assert!(save(&here, "ada", &mut store, 3 * HOUR));
        assert_eq!(store.as_ref().expect("kept").sessions[0].seen, at(3 * HOUR));
        let other = sign_in(&here, "ada", 5 * HOUR, 2);
        save(&here, "ada", &mut store, 5 * HOUR);
        find(&here, &Token { seen: at(6 * HOUR), ..token }, 6 * HOUR).expect("alive");
        assert!(save(&here, "ada", &mut store, 6 * HOUR), "each session for itself");
        find(&here, &other, 6 * HOUR);
        assert!(here.behind(&limits(), 9).is_empty());
    }

    #[test]
    fn what_the_store_dates_in_the_future_lives_no_longer_for_it() {
        let (accounts, mut store) = (Accounts::default(), None);
        sign_in(&accounts, "ada", 0, 1);
        save(&accounts, "ada", &mut store, 0);
        let kept = store.expect("kept");
        for far in [Timestamp::MAX, at(48 * HOUR)] {
            let session = |id: u8, issued| Kept { id: SessionId([id; 16]), issued, seen: far };
            let record = Record { checked: far, sessions: vec![session(1, at(0)), session(2, far)], ..kept.clone() };
            let next = Accounts::default();
            next.settle("ada", Some(&record), at(1), &limits());
            let alive = |id: u8, limits: &Limits, now| next.session("ada", SessionId([id; 16]), at(now), limits).is_some();
            assert!(alive(1, &limits(), 1) && !alive(2, &limits(), 1));
            assert!(!alive(1, &Limits { looks_up: false, ..limits() }, 400), "what the directory said is as old as it can be");
            assert!(!next.due(at(400), 9).is_empty());
            next.checked("ada", Some(identity("ada", &["boss"])), at(400), &limits());
            next.settle("ada", Some(&record), at(401), &limits());
            let live = next.session("ada", SessionId([1; 16]), at(401), &limits()).expect("alive");
            assert!(live.identity().belongs("boss"), "what the directory says now counts");
        }
    }

    #[test]
    fn keys_are_the_stores() {
        for user in ["ada", "Ada/../x", "köche *", &"x".repeat(1000)] {
            crate::store::check_key(&key(user)).expect("a key");
        }
        assert_ne!(key("ada"), key("adb"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        In(u8),
        Out(u8),
        Everywhere,
        Save,
    }

    proptest! {
        /// Two processes, one store, any order: once both have written and read, both know the same, and nothing that was ended lives.
        #[test]
        fn processes_come_to_agree(
            steps in proptest::collection::vec((any::<bool>(), prop_oneof![
                (0u8..20).prop_map(Step::In), (0u8..20).prop_map(Step::Out), Just(Step::Everywhere), Just(Step::Save),
            ]), 0..40),
        ) {
            let (tables, mut store) = ([Accounts::default(), Accounts::default()], None);
            let mut ended = BTreeSet::new();
            let mut used = BTreeSet::new();
            for (which, step) in steps {
                let table = &tables[usize::from(which)];
                match step {
                    Step::In(number) if used.insert(number) => drop(sign_in(table, "ada", 0, number)),
                    Step::In(_) => {}
                    Step::Out(number) => ended.extend(table.sign_out("ada", SessionId([number; 16])).then_some(number)),
                    Step::Everywhere => {
                        let alive = |number: &u8| table.session("ada", SessionId([*number; 16]), at(0), &limits()).is_some();
                        ended.extend(used.iter().copied().filter(alive));
                        table.sign_out_everywhere("ada");
                    }
                    Step::Save => drop(save(table, "ada", &mut store, 0)),
                }
            }
            for table in tables.iter().chain(&tables) {
                save(table, "ada", &mut store, 0);
            }
            for number in used {
                for table in &tables {
                    let alive = table.session("ada", SessionId([number; 16]), at(0), &limits()).is_some();
                    prop_assert_eq!(alive, !ended.contains(&number), "{}", number);
                }
            }
        }
    }
}
