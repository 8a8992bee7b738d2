//! One account with its sessions: as the store keeps it, as this process holds it, and both put together.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use super::seal::age;
use super::session::{Limits, SessionId};

/// Sessions of one account; one more ends the oldest.
pub const MOST_SESSIONS: usize = 32;
/// Ended sessions that the store may still have: only while it cannot be written are there more than a few.
const MOST_ENDED: usize = 1024;
/// Where accounts are in the store.
pub const PREFIX: &str = "auth/account/";
/// When a session was used is noted so precisely, in seconds: most requests write nothing.
const PRECISION: i64 = 30;
/// What the store dates later than this was written while a clock was wrong, and is not believed.
const FUTURE: Duration = Duration::from_secs(24 * 3600);
/// Clocks of processes may be apart so far.
const SLACK: Duration = Duration::from_secs(300);
/// When it was used is kept in the store once that is this part of the idle time behind.
const DRIFT: u32 = 4;

/// An account as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Folded.
    pub user: String,
    pub identity: Identity,
    /// When the directory said so.
    pub checked: Timestamp,
    /// Its first sign-in of those that are remembered.
    pub since: Timestamp,
    pub sessions: Vec<Kept>,
}

/// A session as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub id: SessionId,
    pub issued: Timestamp,
    /// Roughly.
    pub seen: Timestamp,
}

impl Record {
    /// Must `other` be written over it? That the directory said the same again, or that a session was used again just now, need not be.
    pub fn is_behind(&self, other: &Record, idle: Duration) -> bool {
        let kept = |new: &Kept| self.sessions.iter().find(|kept| kept.id == new.id);
        let known = |new: &Kept| kept(new).is_some_and(|kept| age(kept.seen, new.seen) < idle / DRIFT);
        self.identity != other.identity || self.sessions.len() != other.sessions.len() || !other.sessions.iter().all(known)
    }

    /// When the directory said so, as far as that can be believed.
    fn checked(&self, now: Timestamp) -> Timestamp {
        if self.checked <= now + SLACK { self.checked.min(now) } else { Timestamp::UNIX_EPOCH }
    }
}

/// The key of the folded `user` in the store.
pub fn key(user: &str) -> String {
    let hex: String = digest(&SHA256, user.as_bytes()).as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{hex}")
}

/// One of an account's sessions.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub id: SessionId,
    pub issued: Timestamp,
    /// In seconds; shared by all versions of the account.
    pub seen: Arc<AtomicI64>,
    /// What the store has as `seen`; `None`: the store does not have the session.
    pub saved: Option<i64>,
}

impl Session {
    pub fn seen(&self) -> Timestamp {
        Timestamp::from_second(self.seen.load(Ordering::Relaxed)).unwrap_or(self.issued)
    }

    pub fn touch(&self, now: Timestamp) {
        if now.as_second() >= self.seen.load(Ordering::Relaxed) + PRECISION {
            self.seen.fetch_max(now.as_second(), Ordering::Relaxed);
        }
    }

    pub fn is_over(&self, now: Timestamp, limits: &Limits) -> bool {
        // Another process may know of a later use that the store does not have yet.
        let idle = limits.idle + limits.idle / DRIFT + Duration::from_secs(60);
        age(self.issued, now) >= limits.lifetime || age(self.seen(), now) >= idle
    }
}

/// One version of an account: it is replaced, never changed.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub identity: Arc<Identity>,
    pub checked: Timestamp,
    pub since: Timestamp,
    pub next_check: Timestamp,
    pub sessions: Vec<Session>,
    /// Ended here; the store may still have them.
    pub ended: Vec<SessionId>,
    /// Does the store have this identity?
    pub saved: bool,
    /// Cancelled when this version is not true any more in what it lets anybody do.
    pub changed: CancellationToken,
}

impl Account {
    /// Without sessions yet.
    pub fn new(identity: Identity, now: Timestamp, next_check: Timestamp) -> Account {
        let (identity, sessions, ended, changed) = (Arc::new(identity), Vec::new(), Vec::new(), CancellationToken::new());
        Account { identity, checked: now, since: now, next_check, sessions, ended, saved: false, changed }
    }

    /// With what the directory just said. The same again stays the same in memory, so that what was made from it is still good.
    pub fn confirmed(&self, identity: Identity, now: Timestamp, next_check: Timestamp) -> Account {
        let same = *self.identity == identity;
        let identity = if same { Arc::clone(&self.identity) } else { Arc::new(identity) };
        Account { identity, checked: now, next_check, saved: self.saved && same, ..self.clone() }
    }

    /// Ends the oldest sessions beyond what an account may have.
    pub fn bound(&mut self) {
        let many = self.sessions.len().saturating_sub(MOST_SESSIONS);
        self.ended.extend(self.sessions.drain(..many).map(|session| session.id));
        let many = self.ended.len().saturating_sub(MOST_ENDED);
        self.ended.drain(..many);
    }

    pub fn last_seen(&self) -> i64 {
        self.sessions.iter().map(|session| session.seen.load(Ordering::Relaxed)).max().unwrap_or_default()
    }

    pub fn is_behind(&self, idle: Duration) -> bool {
        let drift = |session: &Session| {
            let now = session.seen.load(Ordering::Relaxed);
            session.saved.is_none_or(|saved| u64::try_from(now - saved).is_ok_and(|drift| drift >= (idle / DRIFT).as_secs().max(1)))
        };
        !self.saved || !self.ended.is_empty() || self.sessions.iter().any(drift)
    }

    /// Ends the sessions that `over` names.
    pub fn end(&mut self, over: impl Fn(&Session) -> bool) {
        let (ended, left) = std::mem::take(&mut self.sessions).into_iter().partition::<Vec<_>, _>(over);
        self.sessions = left;
        self.ended.extend(ended.iter().map(|session| session.id));
    }

    pub fn record(&self, user: &str) -> Option<Record> {
        let kept = |session: &Session| Kept { id: session.id, issued: session.issued, seen: session.seen() };
        let sessions: Vec<Kept> = self.sessions.iter().map(kept).collect();
        let (identity, checked, since) = (Identity::clone(&self.identity), self.checked, self.since);
        (!sessions.is_empty()).then(|| Record { user: user.to_owned(), identity, checked, since, sessions })
    }

    /// May whoever held a connection open under `self` not do so any more?
    pub fn takes_from(&self, other: &Account) -> bool {
        let alive = |id: SessionId| other.sessions.iter().any(|session| session.id == id);
        !Arc::ptr_eq(&self.identity, &other.identity) || !self.sessions.iter().all(|session| alive(session.id))
    }
}

/// Both what the store has and what this process knows. Of sessions, the store knows best of those that it ever had, but for those that
/// were ended here since.
pub(super) fn merged(user: &str, kept: Option<&Record>, held: Option<&Account>, now: Timestamp, limits: &Limits) -> Option<Account> {
    let from_store = |kept: &Record| Account {
        since: kept.since,
        saved: true,
        ..Account::new(kept.identity.clone(), kept.checked(now), next_check(user, kept.checked(now), now, limits))
    };
    let mut account = match (kept, held) {
        (None, None) => return None,
        (Some(kept), None) => from_store(kept),
        (Some(kept), Some(held)) if kept.checked(now) > held.checked && kept.identity != *held.identity => {
            Account { ended: held.ended.clone(), ..from_store(kept) }
        }
        (kept, Some(held)) => Account {
            checked: kept.map_or(held.checked, |kept| kept.checked(now).max(held.checked)),
            since: kept.map_or(held.since, |kept| kept.since.min(held.since)),
            saved: kept.is_some_and(|kept| kept.identity == *held.identity),
            ..held.clone()
        },
    };
    let known = held.map_or(&[][..], |held| &held.sessions);
    let kept = kept.map_or(&[][..], |kept| &kept.sessions);
    account.ended.retain(|id| kept.iter().any(|session| session.id == *id));
    let good = |session: &&Kept| !account.ended.contains(&session.id) && session.issued <= now + FUTURE;
    let theirs = kept.iter().filter(good).map(|session| {
        let seen = known.iter().find(|own| own.id == session.id).map_or_else(Arc::default, |own| Arc::clone(&own.seen));
        seen.fetch_max(session.seen.min(now).as_second(), Ordering::Relaxed);
        Session { id: session.id, issued: session.issued, seen, saved: Some(session.seen.as_second()) }
    });
    let ours = known.iter().filter(|own| own.saved.is_none() && !kept.iter().any(|session| session.id == own.id)).cloned();
    account.sessions = theirs.chain(ours).collect();
    account.sessions.sort_by_key(|session| session.issued);
    account.bound();
    Some(account)
}

/// When to ask about the folded `user` again: spread over the last quarter of the time, or over all of it where it is overdue, as after a
/// start; each user has a place of their own.
pub(super) fn next_check(user: &str, checked: Timestamp, now: Timestamp, limits: &Limits) -> Timestamp {
    let hash = user.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let part = f64::from(hash >> 8) / f64::from(1u32 << 24);
    let next = checked + limits.recheck.mul_f64(0.75 + part / 4.0);
    if next > now { next.min(now + limits.recheck) } else { now + limits.recheck.mul_f64(part) }
}

/// To the second, as tokens and the store have it.
pub(super) fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
