//! A directory server behind [`Directory`]: finds who signs in, lets the server judge the password, and reads the groups. Everything is
//! asked of one server of the list; if that fails, of the next.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use ldap3::Scope;

use super::connection::{Bound, Connection, Dialer, Found, Query, Trouble};
use super::directory::{Directory, Unavailable};
use super::entry::{self, Entry};
use super::failover::{Change, Failover, Health};
use super::identity::{Identity, Password, folded};
use super::pool::Pool;
use super::question;
use super::referral::Referral;
use crate::config;
use crate::config::dn::{Dn, escape};
use crate::config::ldap::Server;

/// Groups of one user; whoever is in more is in none.
const GROUPS: usize = 10_000;
/// Groups in groups, in groups.
const DEPTH: usize = 16;
/// Names that one filter asks about.
const BATCH: usize = 50;

/// The directory of `[ldap]`.
pub struct Ldap {
    config: config::Ldap,
    servers: Vec<Pool>,
    /// Those that may be referred to.
    others: Vec<Pool>,
    failover: Mutex<Failover>,
    user_attributes: Vec<String>,
    group_attributes: Vec<String>,
}

/// An entry, and the server that has it.
struct Located<'a> {
    entry: Entry,
    pool: Option<&'a Pool>,
}

/// Who reads entries: the service account of a server, or somebody who has just signed in.
enum Reader<'a> {
    Service(&'a Pool),
    Own(&'a mut Connection),
}

impl Ldap {
    /// Reads what the settings name; asks no server yet.
    ///
    /// # Errors
    /// The file with authorities, or the one with the password, cannot be used.
    pub fn open(config: &config::Ldap) -> Result<Ldap, String> {
        let dialer = Arc::new(Dialer::new(config)?);
        if let Some(path) = &config.bind_password_file {
            super::pool::password(path)?;
        }
        let pools = |servers: &[Server]| servers.iter().map(|server| Pool::new(config, server.clone(), Arc::clone(&dialer))).collect();
        let (servers, others) = (pools(&config.servers), pools(&config.referrals));
        let failover = Mutex::new(Failover::new(config.servers.iter().map(ToString::to_string), Timestamp::now()));
        let (user_attributes, group_attributes) = (question::user_attributes(config), vec![config.group_attribute().to_owned()]);
        Ok(Ldap { config: config.clone(), servers, others, failover, user_attributes, group_attributes })
    }

    /// How each server does, in the order of the settings.
    pub fn health(&self) -> Vec<Health> {
        self.failover().health().cloned().collect()
    }

    fn failover(&self) -> MutexGuard<'_, Failover> {
        self.failover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the servers, one after the other, until one answers.
    async fn ask<'a, T, F>(&'a self, question: impl Fn(&'a Pool) -> F) -> Result<T, Unavailable>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let mut asked = Vec::new();
        let mut last = None;
        loop {
            let Some(index) = self.failover().next(&asked, Timestamp::now()) else { break };
            asked.push(index);
            let mut turn = Turn { ldap: self, index, settled: false };
            match question(&self.servers[index]).await {
                Ok(answer) => {
                    turn.succeeded();
                    return Ok(answer);
                }
                // The server did answer.
                Err(Trouble::Question(why)) => {
                    turn.succeeded();
                    return Err(Unavailable(format!("the directory cannot be asked: {why}")));
                }
                Err(Trouble::Unwilling(why)) => {
                    turn.succeeded();
                    last = Some(why);
                }
                Err(trouble) => {
                    let why = trouble.to_string();
                    turn.failed(&why);
                    last = Some(why);
                }
            }
        }
        let known = || self.failover().health().find_map(|health| health.error.clone());
        let why = last.or_else(known).unwrap_or_else(|| "no server is configured".to_owned());
        Err(Unavailable(format!("no directory server answers: {why}")))
    }

    async fn signed_in(&self, pool: &Pool, user: &str, password: &Password) -> Result<Option<Identity>, Trouble> {
        let Some(template) = &self.config.bind_template else {
            let found = self.find(&mut Reader::Service(pool), user).await?;
            // Whoever does not exist is asked about all the same, so that it takes as long.
            let name = found.as_ref().map_or_else(|| self.nobody(), |found| found.entry.dn.clone());
            let at = found.as_ref().and_then(|found| found.pool).unwrap_or(pool);
            let bound = match self.bind(at, &name, password).await {
                // Some servers answer so about accounts that are closed.
                Err(Trouble::Unwilling(_))
                    if found.as_ref().is_some_and(|found| entry::closed(&found.entry, Timestamp::now()).is_some()) =>
                {
                    None
                }
                bound => bound?,
            };
            let (Some(connection), Some(found)) = (bound, found) else { return Ok(None) };
            connection.close().await;
            return self.identity(&mut Reader::Service(pool), &found.entry).await;
        };
        // Whoever is named by an entry elsewhere is nobody of these users.
        if !template.contains('=') && user.contains('=') {
            return Ok(None);
        }
        let name = filled(template, user);
        let Some(mut connection) = self.bind(pool, &name, password).await? else { return Ok(None) };
        let dn = self.own_name(&mut connection, &name).await?;
        let mut reader = if self.config.bind_dn.is_some() { Reader::Service(pool) } else { Reader::Own(&mut connection) };
        let entry = match dn {
            Bearer::Dn(dn) => self.read(&mut reader, &dn, user).await?,
            Bearer::Filter(filter) => self.find_by(&mut reader, user, &filter).await?.map(|found| found.entry),
        };
        let Some(entry) = entry else {
            tracing::debug!(name, "whoever signs in is no user by ldap.user-base and ldap.user-filter, or may not see the own entry");
            return Ok(None);
        };
        let identity = self.identity(&mut reader, &entry).await;
        drop(reader);
        connection.close().await;
        identity
    }

    /// `None`: the password is wrong, or nobody is called so.
    async fn bind(&self, pool: &Pool, name: &str, password: &Password) -> Result<Option<Connection>, Trouble> {
        let (connection, bound) = pool.sign_in(name, password.reveal()).await?;
        match bound {
            Bound::Yes => return Ok(Some(connection)),
            Bound::No(why) => tracing::debug!(name, why, "the directory refuses a sign-in"),
        }
        connection.close().await;
        Ok(None)
    }

    /// An entry that there is not.
    fn nobody(&self) -> String {
        match self.config.user_base.as_deref() {
            Some(base) => format!("cn=nobody of this name,{base}"),
            None => "cn=nobody of this name".to_owned(),
        }
    }

    /// Whose entry it is that just signed in as `name`. What Active Directory takes as a name leads to an entry by its own rules, so it
    /// is asked whom it means.
    async fn own_name(&self, connection: &mut Connection, name: &str) -> Result<Bearer, Trouble> {
        let unknown = || Trouble::Question("the server does not say who signed in".to_owned());
        if Dn::parse(name).is_some() {
            return Ok(Bearer::Dn(name.to_owned()));
        }
        if let Some(who) = connection.who_am_i().await? {
            let account = who.strip_prefix("u:").map(|account| account.rsplit('\\').next().unwrap_or(account));
            let within = |dn: &Dn| self.config.user_base.as_deref().and_then(Dn::parse).is_some_and(|base| dn.is_within(&base));
            let dn = who.strip_prefix("dn:").filter(|dn| Dn::parse(dn).as_ref().is_some_and(within));
            let dn = dn.map(|dn| Bearer::Dn(dn.to_owned()));
            return dn.or_else(|| account.map(|account| Bearer::Filter(question::user(&self.config, account)))).ok_or_else(unknown);
        }
        // Samba does not answer that, and knows this (MS-ADTS, 3.1.1.3.2.43).
        let attributes = ["tokenGroups".to_owned()];
        let query = Query { base: "", scope: Scope::Base, filter: "(objectClass=*)", attributes: &attributes, most: 1 };
        let root = connection.search(query).await?.entries.into_iter().next().unwrap_or_default();
        match root.bytes("tokenGroups") {
            [] => Err(unknown()),
            sids => Ok(Bearer::Filter(question::bearer(sids))),
        }
    }

    /// The entry of whoever signs in as `user`; `None` if there is none, or if there are several.
    async fn find(&self, reader: &mut Reader<'_>, user: &str) -> Result<Option<Located<'_>>, Trouble> {
        self.find_by(reader, user, &question::user(&self.config, user)).await
    }

    async fn find_by(&self, reader: &mut Reader<'_>, user: &str, filter: &str) -> Result<Option<Located<'_>>, Trouble> {
        let base = self.config.user_base.as_deref().unwrap_or_default();
        let query = Query { base, scope: Scope::Subtree, filter, attributes: &self.user_attributes, most: 1 };
        let found = reader.search(query).await?;
        let mut more = found.more;
        let mut all: Vec<Located<'_>> = found.entries.into_iter().map(|entry| Located { entry, pool: None }).collect();
        let mut followed = false;
        for (pool, base) in found.references.iter().filter_map(|url| self.referred(url)) {
            followed = true;
            let base = if base.is_empty() { query.base } else { &base };
            // Whether that one answers says nothing about this one.
            let there = pool.search(Query { base, ..query }).await.map_err(|why| Trouble::Question(format!("by a referral, {why}")))?;
            more |= there.more;
            all.extend(there.entries.into_iter().map(|entry| Located { entry, pool: Some(pool) }));
        }
        if found.elsewhere && !followed {
            return Err(elsewhere(&found.references));
        }
        if more || all.len() > 1 {
            tracing::warn!(user, "several entries are called so, and none may sign in; narrow ldap.user-base or ldap.user-filter");
            return Ok(None);
        }
        // Without a name it would be everybody's.
        Ok(all.pop().filter(|found| !found.entry.dn.is_empty()))
    }

    /// Where a referral leads, if it may be followed.
    fn referred(&self, url: &str) -> Option<(&Pool, String)> {
        let referral = Referral::parse(url)?;
        let pool = self.others.iter().find(|pool| pool.server == referral.server)?;
        Some((pool, referral.base))
    }

    /// The entry `dn`, if it is what the settings call a user.
    async fn read(&self, reader: &mut Reader<'_>, dn: &str, user: &str) -> Result<Option<Entry>, Trouble> {
        let own = self.config.user_filter.as_ref().map(|_| question::user(&self.config, user));
        let filter = own.as_deref().unwrap_or("(objectClass=*)");
        let query = Query { base: dn, scope: Scope::Base, filter, attributes: &self.user_attributes, most: 1 };
        let found = reader.search(query).await?;
        match found.elsewhere {
            true => Err(elsewhere(&found.references)),
            false => Ok(found.entries.into_iter().next()),
        }
    }

    async fn identity(&self, reader: &mut Reader<'_>, entry: &Entry) -> Result<Option<Identity>, Trouble> {
        if let Some(why) = entry::closed(entry, Timestamp::now()) {
            tracing::debug!(dn = entry.dn, why, "the directory has closed an account");
            return Ok(None);
        }
        let attribute = self.config.user_attribute();
        let nameless = || Trouble::Question(format!("`{}` has no {attribute}: set ldap.user-attribute", entry.dn));
        let name = entry.name(attribute).ok_or_else(nameless)?;
        let groups = self.groups(reader, entry, name).await?;
        entry::identity(&self.config, entry, groups).map(Some).ok_or_else(nameless)
    }

    /// The names of all groups of an entry.
    async fn groups(&self, reader: &mut Reader<'_>, entry: &Entry, name: &str) -> Result<BTreeSet<String>, Trouble> {
        let partly = |why: &str| Trouble::Question(format!("`{}`: {why}", entry.dn));
        let mut fresh = entry::own_groups(&self.config, entry).map_err(partly)?;
        if let Some(filter) = question::groups(&self.config, entry, name) {
            fresh.extend(self.groups_by(reader, &filter).await?);
        }
        let (mut names, mut seen) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for (dn, name) in fresh.drain(..) {
                names.insert(name);
                if seen.insert(folded(&dn)) {
                    next.push(dn);
                }
            }
            if seen.len() > GROUPS {
                return Err(partly("it is in too many groups"));
            }
            for batch in next.chunks(BATCH) {
                if let Some(filter) = question::parents(&self.config, batch) {
                    fresh.extend(self.groups_by(reader, &filter).await?);
                }
            }
            if fresh.is_empty() {
                break;
            }
        }
        Ok(names)
    }

    /// Entries of groups with their names.
    async fn groups_by(&self, reader: &mut Reader<'_>, filter: &str) -> Result<Vec<(String, String)>, Trouble> {
        let Some(base) = self.group_base() else { return Ok(Vec::new()) };
        let query = Query { base, scope: Scope::Subtree, filter, attributes: &self.group_attributes, most: GROUPS };
        let found = reader.search(query).await?;
        if found.more {
            return Err(Trouble::Question(format!("more than {GROUPS} groups are found below `{base}`")));
        }
        if found.elsewhere {
            return Err(elsewhere(&found.references));
        }
        let named = |entry: Entry| Some((entry.dn.clone(), entry.name(self.config.group_attribute())?.to_owned()));
        Ok(found.entries.into_iter().filter_map(named).collect())
    }

    fn group_base(&self) -> Option<&str> {
        self.config.group_base.as_deref().or(self.config.user_base.as_deref())
    }

    async fn looked_up(&self, pool: &Pool, user: &str) -> Result<Option<Identity>, Trouble> {
        let reader = &mut Reader::Service(pool);
        let direct = self.config.bind_template.as_deref().map(|template| filled(template, user)).filter(|name| Dn::parse(name).is_some());
        let entry = match direct {
            Some(dn) => self.read(reader, &dn, user).await?,
            None => self.find(reader, user).await?.map(|found| found.entry),
        };
        let Some(entry) = entry else { return Ok(None) };
        Ok(self.identity(reader, &entry).await?.filter(|identity| entry::is_named(identity, user)))
    }

    async fn known_of(&self, pool: &Pool, groups: &BTreeSet<String>) -> Result<BTreeSet<String>, Trouble> {
        let mut known = BTreeSet::new();
        let all: Vec<&String> = groups.iter().filter(|group| !group.is_empty()).collect();
        for batch in all.chunks(BATCH) {
            let filter = question::known(&self.config, batch.iter().copied());
            let found = self.groups_by(&mut Reader::Service(pool), &filter).await?;
            known.extend(found.into_iter().map(|(_, name)| folded(&name)));
        }
        Ok(groups.intersection(&known).cloned().collect())
    }
}

impl Reader<'_> {
    async fn search(&mut self, query: Query<'_>) -> Result<Found, Trouble> {
        match self {
            Reader::Service(pool) => pool.search(query).await,
            Reader::Own(connection) => connection.search(query).await,
        }
    }
}

/// What is not here is not gone.
fn elsewhere(references: &[String]) -> Trouble {
    let first: String = references.first().map_or("another server", String::as_str).chars().take(100).collect();
    Trouble::Server(format!("it refers to {}, which is not followed", first.escape_debug()))
}

/// Who signed in.
enum Bearer {
    Dn(String),
    /// Whom this finds.
    Filter(String),
}

/// The name to bind with. A name with a domain of its own is what Active Directory takes as it is.
fn filled(template: &str, user: &str) -> String {
    match (template.contains('='), user.contains(['@', '\\'])) {
        (true, _) => template.replace("{user}", &escape(user)),
        (false, true) => user.to_owned(),
        (false, false) => template.replace("{user}", user),
    }
}

impl Directory for Ldap {
    fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            // A NUL ends a password in some servers, and then it may be an empty one.
            if !question::is_name(user) || password.is_empty() || password.reveal().contains('\0') {
                return Ok(None);
            }
            self.ask(|pool| self.signed_in(pool, user, password)).await
        }
        .boxed()
    }

    fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            match (self.looks_up(), question::is_name(user)) {
                (false, _) => Err(Unavailable("the directory shows users to themselves only".to_owned())),
                (true, false) => Ok(None),
                (true, true) => self.ask(|pool| self.looked_up(pool, user)).await,
            }
        }
        .boxed()
    }

    /// Where nobody but users can ask, all are taken for known: of a group that there is not, nobody is a member.
    fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
        async move {
            if groups.is_empty() || !self.looks_up() || self.group_base().is_none() {
                return Ok(groups.clone());
            }
            self.ask(|pool| self.known_of(pool, groups)).await
        }
        .boxed()
    }

    fn looks_up(&self) -> bool {
        self.config.bind_dn.is_some() || self.config.bind_template.is_none()
    }
}

impl fmt::Debug for Ldap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ldap").field("servers", &self.config.servers).finish_non_exhaustive()
    }
}

/// One request's turn at a server: however it ends, the server is free for the next.
struct Turn<'a> {
    ldap: &'a Ldap,
    index: usize,
    settled: bool,
}

impl Turn<'_> {
    fn succeeded(&mut self) {
        self.settled = true;
        if self.ldap.failover().succeeded(self.index, Timestamp::now()) == Some(Change::Up) {
            tracing::info!(server = %self.ldap.config.servers[self.index], "the directory server answers again");
        }
    }

    fn failed(&mut self, why: &str) {
        self.settled = true;
        if self.ldap.failover().failed(self.index, why, Timestamp::now()) == Some(Change::Down) {
            tracing::error!(server = %self.ldap.config.servers[self.index], why, "the directory server does not answer");
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.ldap.failover().given_up(self.index);
        }
    }
}
