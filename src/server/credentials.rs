//! Keeps what handshakes use up to date: the keyring by the certificates that there are, and the settings by the authorities that
//! labels name. One task; handshakes take what they need by a pointer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use tokio::sync::{Semaphore, watch};

use super::Error;
use super::admission::Admission;
use super::terminate::{Settings, Terminator};
use crate::certificate::challenge::Challenges;
use crate::certificate::keyring::{Entry, Keyring};
use crate::certificate::record::Record;
use crate::certificate::tls::{Shown, Terms};
use crate::config::Config;
use crate::state::{Certificates, Live, State};

/// One client may have this part of all handshakes.
const SHARE: usize = 8;

/// All certificates of one origin that there are now.
pub type Records = watch::Receiver<Arc<Vec<Record>>>;

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
        let terminator = Terminator {
            shown,
            settings,
            challenges,
            places: Arc::new(Semaphore::new(most)),
            admission: Arc::new(Admission::new((most / SHARE).max(1), std::time::Instant::now())),
        };
        let (entries, authorities) = (HashMap::new(), HashMap::new());
        Ok(Credentials { terminator: Arc::new(terminator), provider, default, live, entries, authorities })
    }

    /// Follows the certificates of all origins and the state's authorities, for as long as they change.
    pub async fn follow(mut self, mut records: Vec<Records>, mut swapped: watch::Receiver<()>) {
        loop {
            let all: Vec<Arc<Vec<Record>>> = records.iter_mut().map(|origin| origin.borrow_and_update().clone()).collect();
            self.show(all.iter().flat_map(|records| records.iter()));
            self.ask(&self.live.load());
            let mut any: futures_util::stream::FuturesUnordered<_> = records.iter_mut().map(watch::Receiver::changed).collect();
            tokio::select! {
                Some(Ok(())) = futures_util::StreamExt::next(&mut any) => {}
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
    let made = rcgen::generate_simple_self_signed(vec!["skep.invalid".to_owned()]).map_err(|error| no_key(&error))?;
    let record = Record {
        id: "default".to_owned(),
        service: String::new(),
        source: crate::certificate::Source::SelfSigned,
        issuer: None,
        names: Vec::new(),
        chain: made.cert.pem(),
        key: crate::certificate::record::Secret::new(made.signing_key.serialize_pem()),
        not_before: jiff::Timestamp::UNIX_EPOCH,
        not_after: jiff::Timestamp::MAX,
        window: None,
        unwanted_since: None,
    };
    Entry::new(&record, &provider()).map_err(|error| no_key(&error))
}
