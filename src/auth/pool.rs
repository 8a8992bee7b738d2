//! Connections to one directory server that searches share, bound as the service account; and connections of their own for those who
//! sign in. Both are bounded.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::connection::{Bound, Connection, Found, Query, Trouble};
use super::dialer::Dialer;
use crate::config::Ldap;
use crate::config::ldap::Server;

/// Idle connections are closed after this: what stands between us and the server forgets them, and says nothing.
const IDLE: Duration = Duration::from_secs(60);
/// So many sign-ins may be under way for each connection that is kept.
const SIGN_INS: usize = 4;
/// A password file that is longer holds no password.
const LONGEST: usize = 4096;

/// One server.
pub struct Pool {
    pub server: Server,
    dialer: Arc<Dialer>,
    account: Option<Account>,
    idle: Mutex<Vec<(Connection, Instant)>>,
    searches: Semaphore,
    sign_ins: Semaphore,
    wait: Duration,
}

/// Who searches.
#[derive(Clone, Debug)]
struct Account {
    name: String,
    password: PathBuf,
}

impl Pool {
    pub fn new(ldap: &Ldap, server: Server, dialer: Arc<Dialer>) -> Pool {
        let account = ldap.bind_dn.clone().zip(ldap.bind_password_file.clone()).map(|(name, password)| Account { name, password });
        let (searches, sign_ins) = (Semaphore::new(ldap.pool_size), Semaphore::new(ldap.pool_size * SIGN_INS));
        Pool { server, dialer, account, idle: Mutex::default(), searches, sign_ins, wait: ldap.request_timeout }
    }

    /// Searches as the service account, or as nobody where there is none. A connection that turns out to be dead is replaced, once.
    ///
    /// # Errors
    /// There was no whole answer.
    pub async fn search(&self, query: Query<'_>) -> Result<Found, Trouble> {
        let busy = || Trouble::Unwilling(format!("too many searches: none of {} ended within {:?}", self.server, self.wait));
        // The semaphore is never closed.
        let _place = tokio::time::timeout(self.wait, self.searches.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        if let Some(mut connection) = self.rested() {
            match connection.search(query).await {
                Ok(found) => {
                    self.keep(connection);
                    return Ok(found);
                }
                // Its neighbours are as old.
                Err(Trouble::Connection(_)) => self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear(),
                Err(other) => {
                    self.keep(connection);
                    return Err(other);
                }
            }
        }
        let mut connection = self.dialer.dial(&self.server).await?;
        self.introduce(&mut connection).await?;
        let found = connection.search(query).await?;
        self.keep(connection);
        Ok(found)
    }

    /// A connection of its own for somebody who signs in, and what the server said about `name` and `password`.
    ///
    /// # Errors
    /// It did not say.
    pub async fn sign_in(&self, name: &str, password: &str) -> Result<(Connection, Bound), Trouble> {
        let busy = || Trouble::Unwilling(format!("too many sign-ins: none at {} ended within {:?}", self.server, self.wait));
        let _place = tokio::time::timeout(self.wait, self.sign_ins.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let mut connection = self.dialer.dial(&self.server).await?;
        let bound = connection.bind(name, password).await?;
        Ok((connection, bound))
    }

    async fn introduce(&self, connection: &mut Connection) -> Result<(), Trouble> {
        let Some(account) = &self.account else { return Ok(()) };
        let path = account.password.clone();
        let read = tokio::task::spawn_blocking(move || password(&path)).await;
        let password = read.map_err(|error| Trouble::Question(error.to_string()))?.map_err(Trouble::Question)?;
        match connection.bind(&account.name, &password).await {
            Ok(Bound::Yes) => Ok(()),
            Ok(Bound::No(why)) | Err(Trouble::Unwilling(why)) => Err(Trouble::Server(format!("ldap.bind-dn may not sign in: {why}"))),
            Err(trouble) => Err(trouble),
        }
    }

    /// A connection that lay idle, the one that was used last.
    fn rested(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain_mut(|(connection, since)| since.elapsed() < IDLE && !connection.is_closed());
        idle.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
    }
}

/// The secret in a file, without the line's end. It is read for each connection, so a new one is taken up by itself.
///
/// # Errors
/// The file cannot be read, or holds nothing.
pub fn password(path: &Path) -> Result<Zeroizing<String>, String> {
    let bad = |why: &dyn std::fmt::Display| format!("ldap.bind-password-file, {}, cannot be used: {why}", path.display());
    // With room for all of it, so that no copy is left behind when it grows.
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    let file = File::open(path).map_err(|error| bad(&error))?;
    let read = file.take(LONGEST as u64).read_to_string(&mut text).map_err(|error| bad(&error))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    match secret.is_empty() || read == LONGEST {
        true => Err(bad(&"it holds no password")),
        false => Ok(Zeroizing::new(secret.to_owned())),
    }
}
