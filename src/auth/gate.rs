//! Asks whoever knows users, within bounds: how often an account may be tried, how many are asked about at once, what is remembered.
//! Every result is counted and told in an audit line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::code::UsedCodes;
use super::directory::{Directory, Unavailable};
use super::entrance::Entrance;
use super::entrant::{Entrant, Proof};

use super::failover::Health;
use super::gatekeeper::{Caller, Denied, Gatekeeper, Visit};
use super::hashing::Hashing;
use super::identity::{Identity, folded};
use super::keys::random;
use super::label::Access;
use super::ldap::Ldap;
use super::passage::{Basic, Who, may_enter};
use super::reply::Reply;
use super::roster::{DIRECTORY, Roster};
use super::standing::{ServerNow, SigningNow};
use super::throttle::{Attempt, Retry, Throttle};
use crate::config::Auth;
use crate::diagnostic::brief;

/// Questions to the directory at one time; more wait,
const AT_ONCE: usize = 64;
/// so long.
const TURN: Duration = Duration::from_secs(5);

/// What audit lines and metrics call a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A browser got a session.
    SignedIn,
    /// A program's credentials were right.
    Verified,
    Wrong,
    Throttled,
    Unavailable,
    /// A form that another site sent, or that is too old.
    Forged,
    SignedOut,
    SignedOutEverywhere,
    /// Over from the host at which everybody signs in, or not.
    Entered,
    BadCode,
}

const EVENTS: [(Event, &str); 10] = [
    (Event::SignedIn, "signed-in"),
    (Event::Verified, "verified"),
    (Event::Wrong, "wrong"),
    (Event::Throttled, "throttled"),
    (Event::Unavailable, "unavailable"),
    (Event::Forged, "forged"),
    (Event::SignedOut, "signed-out"),
    (Event::SignedOutEverywhere, "signed-out-everywhere"),
    (Event::Entered, "entered"),
    (Event::BadCode, "bad-code"),
];

/// The one place where passwords are looked at.
#[derive(Debug)]
pub struct Gate {
    pub(super) roster: Roster,
    directory: Option<Arc<dyn Directory>>,
    /// Of `directory`, for how its servers stand.
    ldap: Option<Arc<Ldap>>,
    hashing: Hashing,
    throttle: Throttle,
    pub(super) codes: UsedCodes,
    places: Semaphore,
    counts: [AtomicU64; EVENTS.len()],
    /// 0: nobody has asked the directory yet; 1: it does not answer; 2: it does.
    answers: AtomicU8,
}

impl Gate {
    pub fn new(roster: Roster, directory: Option<Arc<dyn Directory>>, ldap: Option<Arc<Ldap>>, hashing: Hashing) -> Gate {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Gate {
            roster,
            directory,
            ldap,
            hashing,
            throttle: Throttle::new(&random()),
            codes: UsedCodes::default(),
            places: Semaphore::new(AT_ONCE),
            counts,
            answers: AtomicU8::new(0),
        }
    }

    /// Is this the password of that user of the directory? `browser`: the one in which somebody signed in before.
    pub(super) async fn check(&self, caller: &Caller<'_>, basic: &Basic, browser: Option<[u8; 16]>) -> Result<Arc<Identity>, Denied> {
        let Some(directory) = &self.directory else { return Err(Denied::Unavailable) };
        self.attempt(caller, basic, browser, directory.verify(&basic.user, &basic.password)).await
    }

    /// Lets `asking` say whether `basic` is right, if that may be tried now.
    async fn attempt(
        &self,
        caller: &Caller<'_>,
        basic: &Basic,
        browser: Option<[u8; 16]>,
        asking: impl Future<Output = Result<Option<Identity>, Unavailable>>,
    ) -> Result<Arc<Identity>, Denied> {
        let account = folded(&basic.user);
        let attempt = Attempt { account: &account, address: caller.client, browser: browser.as_ref().map(|id| &id[..]) };
        if let Err(Retry { after }) = self.throttle.check(attempt, caller.now) {
            self.note(Event::Throttled, caller, &basic.user);
            return Err(Denied::Wait(after.as_secs() + 1));
        }
        let answer = match timeout(TURN, self.places.acquire()).await {
            Ok(Ok(_place)) => asking.await,
            _ => Err(Unavailable("too many sign-ins are under way".to_owned())),
        };
        self.answers.store(if answer.is_ok() { 2 } else { 1 }, Ordering::Relaxed);
        match answer {
            Ok(Some(identity)) => {
                self.throttle.succeeded(attempt, caller.now);
                Ok(Arc::new(identity))
            }
            Ok(None) => {
                self.throttle.failed(attempt, caller.now);
                self.note(Event::Wrong, caller, &basic.user);
                Err(Denied::Wrong)
            }
            Err(error) => {
                self.throttle.withdrawn(attempt, caller.now);
                self.note(Event::Unavailable, caller, &basic.user);
                tracing::error!(%error, "nobody could say whether a password is right");
                Err(Denied::Unavailable)
            }
        }
    }

    /// The same for credentials that come with every request: a page full of them is one question.
    async fn recognise(
        &self,
        caller: &Caller<'_>,
        basic: &Basic,
        realm: &[u8; 32],
        asking: impl Future<Output = Result<Option<Identity>, Unavailable>>,
    ) -> Result<Arc<Identity>, Denied> {
        let seal = self.roster.verified.seal(realm, &basic.user, &basic.password);
        let Ok(_turn) = timeout(TURN, self.roster.verified.turn(seal)).await else { return Err(Denied::Unavailable) };
        if let Some(identity) = self.roster.verified.get(seal) {
            return Ok(identity);
        }
        let identity = self.attempt(caller, basic, None, asking).await?;
        self.roster.verified.keep(seal, identity.clone());
        self.note(Event::Verified, caller, &identity.user);
        Ok(identity)
    }

    /// Ends once the directory does not have `identity` in a group any more that may enter.
    async fn left(&self, identity: &Identity, access: &Access, auth: &Auth) {
        let Some(directory) = self.directory.as_ref().filter(|directory| directory.looks_up()) else {
            // Nobody can say whether they are still a member.
            return sleep(auth.recheck).await;
        };
        loop {
            sleep(auth.recheck).await;
            match directory.look_up(&identity.user).await {
                Ok(Some(identity)) if may_enter(access, &identity) => {}
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "it is not known whether somebody is still a member"),
            }
        }
    }

    fn entrant(&self, identity: Arc<Identity>, proof: Proof, caller: &Caller<'_>) -> Arc<Entrant> {
        Arc::new(Entrant { visitor: self.roster.visitor(identity, caller), proof, renewal: None })
    }

    /// Counts `event` and tells it.
    pub(super) fn note(&self, event: Event, caller: &Caller<'_>, user: &str) {
        let index = EVENTS.iter().position(|(known, _)| *known == event).unwrap_or_default();
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        let (result, user, host, client) = (EVENTS[index].1, brief(user), brief(caller.host), caller.client);
        match event {
            Event::SignedIn | Event::Verified | Event::SignedOut | Event::SignedOutEverywhere | Event::Entered => {
                tracing::info!(target: "skep::audit", result, user, host, %client, "sign-in");
            }
            Event::Wrong | Event::Throttled | Event::Unavailable | Event::Forged | Event::BadCode => {
                tracing::warn!(target: "skep::audit", result, user, host, %client, "sign-in");
            }
        }
    }

    /// How signing in stands, for the metrics.
    pub fn now(&self) -> SigningNow {
        let results = EVENTS.iter().zip(&self.counts).map(|((_, result), count)| (*result, count.load(Ordering::Relaxed))).collect();
        let (accounts, sessions) = self.roster.register.accounts().count();
        let asked = self.answers.load(Ordering::Relaxed);
        let directory = self.directory.is_some().then(|| asked != 1 && self.roster.register.failure().is_none());
        let health = self.ldap.iter().flat_map(|ldap| ldap.health());
        let server = |Health { server, up, requests, failures, .. }| ServerNow { server, up, requests, failures };
        SigningNow { results, accounts: accounts as u64, sessions: sessions as u64, directory, servers: health.map(server).collect() }
    }
}

impl Gatekeeper for Gate {
    fn who(&self, caller: &Caller<'_>, access: &Access) -> Who {
        self.roster.who(caller, access)
    }

    fn outlasted<'a>(&'a self, entrant: &'a Entrant, access: &'a Access, auth: &'a Auth) -> BoxFuture<'a, ()> {
        async move {
            match &entrant.proof {
                Proof::Session(live) => self.roster.outlasted(live, access).await,
                Proof::Credentials => self.left(&entrant.visitor.identity, access, auth).await,
                // Of a change of labels they are not told, and nothing else takes their right away.
                Proof::Local | Proof::Authorizer => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn verify<'a>(&'a self, caller: &'a Caller<'a>, access: &'a Access, basic: &'a Basic) -> BoxFuture<'a, Result<Arc<Entrant>, Denied>> {
        async move {
            let own = access.realm.filter(|_| access.groups.is_none() || access.has_own(&basic.user));
            if let Some(realm) = own {
                // A user of the route's own; other names may be the directory's.
                let asking = self.hashing.verify(access.basic_auth.clone(), &basic.user, &basic.password);
                match self.recognise(caller, basic, &realm, asking).await {
                    Ok(identity) => return Ok(self.entrant(identity, Proof::Local, caller)),
                    Err(Denied::Wrong) if access.groups.is_some() => {}
                    Err(denied) => return Err(denied),
                }
            }
            let Some(directory) = &self.directory else { return Err(Denied::Unavailable) };
            let identity = self.recognise(caller, basic, DIRECTORY, directory.verify(&basic.user, &basic.password)).await?;
            Ok(self.entrant(identity, Proof::Credentials, caller))
        }
        .boxed()
    }

    fn receive<'a>(&'a self, entrance: Entrance, visit: &'a Visit<'a>) -> BoxFuture<'a, Reply> {
        self.reception(entrance, visit).boxed()
    }

    fn depart(&self, visit: &Visit<'_>, path: &str) -> Reply {
        self.departure(visit, path)
    }
}
