//! Keeps what handshakes use up to date: the keyring by the certificates that there are, and the settings by the authorities that
//! labels name. One task; handshakes take what they need by a pointer.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;

use super::Error;
use super::places::Places;
use super::terminate::{Settings, Terminator};
use crate::certificate::challenge::Challenges;
use crate::certificate::keyring::{Entry, Keyring};
use crate::certificate::local;
use crate::certificate::pairs::FilesFound;
use crate::certificate::record::Record;
use crate::certificate::tls::{Shown, Terms};
use crate::config::Config;
use crate::diagnostic::render;
use crate::state::{Certificates, Live, State};
use crate::store::Store;
use crate::store::keyed::Keyed;
use crate::store::memory::Memory;

/// One client may have this part of all handshakes.
const SHARE: usize = 8;

/// All certificates that were obtained or made, as there are now.
pub type Records = watch::Receiver<Arc<Vec<Record>>>;
/// Those that the user gives.
pub type Files = watch::Receiver<Arc<FilesFound>>;

/// The one writer of the keyring and of the handshakes' settings.
pub struct Credentials {
    pub terminator: Arc<Terminator>,
    provider: Arc<CryptoProvider>,
    default: Arc<Entry>,
    live: Arc<Live>,
    /// By record: a key is read once.
    entries: HashMap<String, Arc<Entry>>,
    /// What was found in the files that labels name.
    authorities: HashMap<Arc<Path>, Certificates>,
}

impl Credentials {
    /// With nothing but `default` to show.
    ///
    /// # Errors
    /// TLS cannot be spoken at all.
    pub fn new(config: &Config, default: Entry, challenges: Arc<Challenges>, live: Arc<Live>) -> Result<Credentials, Error> {
        let no_tls = |error: &dyn std::fmt::Display| Error::Start(format!("TLS cannot be set up: {error}"));
        let provider = provider();
        let default = Arc::new(default);
        let shown = Arc::new(Shown::new(Keyring::new([], default.clone())));
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| no_tls(&error))?;
        let terms = Terms::new(config.https.profile, provider.clone(), shown.clone(), tickets);
        let settings = ArcSwap::from_pointee(Settings::new(terms).map_err(|error| no_tls(&error))?);
        let most = config.https.max_handshakes;
        let terminator = Terminator { shown, settings, challenges, places: Arc::new(Places::new(most, (most / SHARE).max(1))) };
        let (entries, authorities) = (HashMap::new(), HashMap::new());
        Ok(Credentials { terminator: Arc::new(terminator), provider, default, live, entries, authorities })
    }

    /// Takes what there is now; to be called before the first handshake.
    pub fn look(&mut self, obtained: &Records, files: &Files) {
        let (own, given) = (obtained.borrow().clone(), files.borrow().clone());
        self.show(own.iter().chain(given.records.values().map(|record| &**record)));
        self.ask(&self.live.load());
    }

    /// Follows the certificates of all origins and the state's authorities, for as long as they change.
    pub async fn follow(mut self, mut obtained: Records, mut files: Files, mut swapped: watch::Receiver<()>) {
        loop {
            obtained.mark_unchanged();
            files.mark_unchanged();
            self.look(&obtained, &files);
            tokio::select! {
                Ok(()) = obtained.changed() => {}
                Ok(()) = files.changed() => {}
                Ok(()) = swapped.changed() => {}
                else => return,
            }
        }
    }

    /// Takes `records` for what clients are shown.
    fn show<'a>(&mut self, records: impl Iterator<Item = &'a Record>) {
        let mut entries = HashMap::with_capacity(self.entries.len());
        let mut changed = false;
        for record in records {
            if let Some(entry) = self.entries.remove(&record.id) {
                entries.insert(record.id.clone(), entry);
                continue;
            }
            match Entry::new(record, &self.provider) {
                Ok(entry) => {
                    changed = true;
                    entries.insert(record.id.clone(), Arc::new(entry));
                }
                Err(error) => tracing::error!(names = ?record.names, %error, "a certificate cannot be used"),
            }
        }
        changed |= !self.entries.is_empty();
        self.entries = entries;
        if changed {
            let keyring = Keyring::new(self.entries.values().cloned(), self.default.clone());
            tracing::info!(names = keyring.len(), "certificates");
            self.terminator.shown.swap(keyring);
        }
    }

    /// Makes settings for the authorities that the state names.
    fn ask(&mut self, state: &State) {
        let read: HashMap<_, _> = state.client_authorities.all().into_iter().map(|path| (path.clone(), state.authority(&path))).collect();
        if read == self.authorities {
            return;
        }
        let old = self.terminator.settings.load();
        let mut asking = HashMap::new();
        for (path, certificates) in &read {
            // Where there are none the state has a finding, and nobody can enter.
            let Ok(certificates) = certificates else { continue };
            match old.terms.asking(certificates) {
                Ok(config) => drop(asking.insert(path.clone(), config)),
                Err(error) => {
                    tracing::error!(file = %path.display(), %error, "a `client-ca` cannot be used: nobody can enter the routes that ask for it");
                }
            }
        }
        self.terminator.settings.store(Arc::new(Settings { terms: old.terms.clone(), open: old.open.clone(), asking }));
        self.authorities = read;
    }
}

/// The process's one crypto provider, which `main` installs; the same where nobody did.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// What is shown to clients for whose host there is no certificate: one that nobody trusts, made for this run.
///
/// # Errors
/// No key could be made.
pub fn default_entry() -> Result<Entry, Error> {
    let no_key = |error: &dyn std::fmt::Display| Error::Start(format!("no default certificate can be made: {error}"));
    let record = local::self_signed("", &BTreeSet::new(), Timestamp::now()).map_err(|error| no_key(&error))?;
    Entry::new(&record, &provider()).map_err(|error| no_key(&error))
}

/// What outlives the process, on disk. Where nothing can be kept, certificates are obtained again at each start, which authorities bear a
/// few times only: then there is no start where they are asked.
///
/// # Errors
/// Others may read the keys, or nothing can be kept and an authority is to be asked.
pub fn open_store(config: &Config) -> Result<Arc<dyn Store>, Error> {
    let Some(directory) = &config.state.directory else {
        return match config.acme.configured() {
            true => Err(Error::Start("certificates are obtained by ACME and have to be kept: set state.directory".to_owned())),
            false => Ok(Arc::new(Memory::default())),
        };
    };
    match Keyed::open(directory) {
        Ok((store, findings)) => {
            if !findings.is_empty() {
                tracing::warn!("{}", render(&findings, false).trim_end());
            }
            Ok(Arc::new(store))
        }
        Err(error) if directory.join("store").is_dir() || config.acme.configured() => Err(Error::Start(error.to_string())),
        Err(error) => {
            tracing::warn!(%error, "nothing is kept but in memory: set state.directory to a place that can be written");
            Ok(Arc::new(Memory::default()))
        }
    }
}
