//! Signing in, put together: whoever knows users, the sessions in the store, and the tasks that keep both up to date.

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Error;
use super::census;
use crate::auth::both::Both;
use crate::auth::directory::Directory;
use crate::auth::file::UsersFile;
use crate::auth::gate::Gate;
use crate::auth::hashing::Hashing;
use crate::auth::keys::{Current, Schedule, random};
use crate::auth::ldap::Ldap;
use crate::auth::register::Register;
use crate::auth::roster::Roster;
use crate::auth::seal::Ring;
use crate::auth::session::Limits;
use crate::auth::token::{Signer, Tokens};
use crate::auth::verified::Verified;
use crate::config::{Config, ldap};
use crate::state::Live;
use crate::store::Store;
use crate::store::memory::Memory;

/// All of it.
pub struct Signing {
    pub gate: Arc<Gate>,
    directory: Option<Arc<dyn Directory>>,
    register: Arc<Register>,
    keys: Arc<Current<Ring>>,
    signer: Arc<Current<Signer>>,
    unknown: watch::Sender<Arc<BTreeSet<String>>>,
}

impl Signing {
    /// Reads what is kept. Nobody is asked yet: a directory that is away keeps no edge from starting.
    ///
    /// # Errors
    /// A file that the configuration names cannot be used.
    pub async fn open(config: &Config, store: Arc<dyn Store>, tasks: &mut JoinSet<()>) -> Result<Signing, Error> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let hashing = Hashing::new(cores);
        let (directory, ldap) = directory(config, hashing.clone(), tasks).await?;
        // Where nobody signs in, nothing of it is kept.
        let store = if directory.is_some() { store } else { Arc::new(Memory::default()) };
        let limits = Limits::new(&config.auth, directory.as_ref().is_none_or(|directory| directory.looks_up()));
        let register = Arc::new(Register::open(store.clone(), limits).await);
        let keys = Arc::new(Current::open(store.clone(), Schedule::of_cookies(&config.auth)).await);
        let signer = Arc::new(Current::open(store, Schedule::of_tokens(&config.auth)).await);
        let roster = Roster {
            register: register.clone(),
            keys: keys.clone(),
            verified: Verified::new(&random(), config.auth.basic_cache),
            signer: signer.clone(),
            tokens: Tokens::default(),
        };
        let gate = Arc::new(Gate::new(roster, directory.clone(), ldap, hashing));
        Ok(Signing { gate, directory, register, keys, signer, unknown: watch::Sender::default() })
    }

    /// What is found out about the groups that labels name.
    pub fn unknown(&self) -> census::Unknown {
        self.unknown.subscribe()
    }

    /// Keeps everything up to date from now on.
    pub fn start(self, live: Arc<Live>, swapped: watch::Receiver<()>, tasks: &mut JoinSet<()>) {
        let Signing { directory, register, keys, signer, unknown, .. } = self;
        tasks.spawn(async move { keys.follow().await });
        tasks.spawn(async move { signer.follow().await });
        let Some(directory) = directory else { return };
        tasks.spawn(census::follow(directory.clone(), live, swapped, unknown));
        tasks.spawn(async move { register.follow(directory).await });
    }
}

/// Whoever knows users: the file, then the directory server.
async fn directory(
    config: &Config,
    hashing: Hashing,
    tasks: &mut JoinSet<()>,
) -> Result<(Option<Arc<dyn Directory>>, Option<Arc<Ldap>>), Error> {
    let file: Option<Arc<dyn Directory>> = match &config.auth.users {
        Some(path) => {
            let (file, follower) = UsersFile::open(path.clone(), hashing).await;
            tasks.spawn(follower.run());
            Some(file)
        }
        None => None,
    };
    let ldap = match ldap::is_configured(&config.ldap) {
        true => Some(Arc::new(Ldap::open(&config.ldap).map_err(|error| Error::Start(format!("the directory cannot be asked: {error}")))?)),
        false => None,
    };
    let server = ldap.clone().map(|ldap| -> Arc<dyn Directory> { ldap });
    let directory: Option<Arc<dyn Directory>> = match (file, server) {
        (None, None) => None,
        (file, server) => Some(Arc::new(Both::new(file, server))),
    };
    Ok((directory, ldap))
}
