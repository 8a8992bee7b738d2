//! A directory server behind [`Directory`]: every question goes to one server of the list; if that fails, to the next.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::connection::Trouble;
use super::dialer::Dialer;
use super::directory::{Directory, Unavailable};
use super::failover::{Change, Failover, Health};
use super::identity::{Identity, Password};
use super::pool::Pool;
use super::question;
use super::tree::Tree;
use crate::config;
use crate::config::ldap::Server;

/// The directory of `[ldap]`.
pub struct Ldap {
    tree: Tree,
    servers: Vec<Pool>,
    failover: Mutex<Failover>,
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
        Ok(Ldap { tree: Tree::new(config, others), servers, failover })
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
        // Two connections and some searches; groups in groups need more of them.
        let limit = self.tree.config.connect_timeout * 2 + self.tree.config.request_timeout * 6;
        let mut asked = Vec::new();
        let mut last = None;
        loop {
            let Some(index) = self.failover().next(&asked, Timestamp::now()) else { break };
            asked.push(index);
            let mut turn = Turn { ldap: self, index, settled: false };
            let answer = tokio::time::timeout(limit, question(&self.servers[index])).await;
            match answer.unwrap_or_else(|_| Err(Trouble::Connection(format!("no whole answer within {limit:?}")))) {
                Ok(answer) => {
                    turn.succeeded();
                    return Ok(answer);
                }
                Err(Trouble::Question(why)) => {
                    return Err(Unavailable(format!("the directory cannot be asked: {why}")));
                }
                Err(Trouble::Unwilling(why)) => last = Some(why),
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
}

impl Directory for Ldap {
    fn verify<'a>(&'a self, user: &'a str, password: &'a Password) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            // A NUL ends a password in some servers, and then it may be an empty one.
            if !question::is_name(user) || password.is_empty() || password.reveal().contains('\0') {
                return Ok(None);
            }
            self.ask(|pool| self.tree.signed_in(pool, user, password)).await
        }
        .boxed()
    }

    fn look_up<'a>(&'a self, user: &'a str) -> BoxFuture<'a, Result<Option<Identity>, Unavailable>> {
        async move {
            match (self.looks_up(), question::is_name(user)) {
                (false, _) => Err(Unavailable("the directory shows users to themselves only".to_owned())),
                (true, false) => Ok(None),
                (true, true) => self.ask(|pool| self.tree.looked_up(pool, user)).await,
            }
        }
        .boxed()
    }

    /// Where nobody but users can ask, all are taken for known: of a group that there is not, nobody is a member.
    fn known<'a>(&'a self, groups: &'a BTreeSet<String>) -> BoxFuture<'a, Result<BTreeSet<String>, Unavailable>> {
        async move {
            if groups.is_empty() || !self.looks_up() || self.tree.group_base().is_none() {
                return Ok(groups.clone());
            }
            self.ask(|pool| self.tree.known_of(pool, groups)).await
        }
        .boxed()
    }

    fn looks_up(&self) -> bool {
        self.tree.config.bind_dn.is_some() || self.tree.config.bind_template.is_none()
    }
}

impl fmt::Debug for Ldap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ldap").field("servers", &self.tree.config.servers).finish_non_exhaustive()
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
            tracing::info!(server = %self.ldap.tree.config.servers[self.index], "the directory server answers again");
        }
    }

    fn failed(&mut self, why: &str) {
        self.settled = true;
        if self.ldap.failover().failed(self.index, why, Timestamp::now()) == Some(Change::Down) {
            tracing::error!(server = %self.ldap.tree.config.servers[self.index], why, "the directory server does not answer");
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
