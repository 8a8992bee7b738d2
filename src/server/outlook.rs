//! What the certifier knows, for those who look: `skep certs`, the admin listener, the metrics, and the log where a name begins to lack.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use crate::certificate::attempt::Attempts;
use crate::certificate::failure::Failure;
use crate::certificate::issuer::Policy;
use crate::certificate::pairs::FilesFound;
use crate::certificate::plan::{Scene, Started, plan};
use crate::certificate::record::Record;
use crate::certificate::standing::{Report, standings};
use crate::certificate::wanted::Wish;
use crate::telemetry::certificates::CertificatesNow;

/// All that a plan depends on, but for the clock.
pub struct Outlook {
    pub wishes: Vec<Wish>,
    pub records: Arc<Vec<Record>>,
    pub files: Arc<FilesFound>,
    pub attempts: Attempts,
    pub under_way: Vec<Started>,
    pub policy: Arc<Policy>,
    pub seed: u64,
}

/// The latest outlook, and what was counted since the start.
#[derive(Default)]
pub struct Ledger {
    outlook: ArcSwapOption<Outlook>,
    /// By issuer and result.
    orders: Mutex<BTreeMap<(String, &'static str), u64>>,
    /// Of the last order that came to nothing.
    failed: Mutex<Option<Timestamp>>,
    /// What was said in the log, by name.
    said: Mutex<BTreeMap<String, String>>,
}

impl Outlook {
    fn scene<T>(&self, now: Timestamp, view: impl FnOnce(&Scene<'_>) -> T) -> T {
        let records: Vec<&Record> = self.records.iter().chain(self.files.records.values().map(|record| &**record)).collect();
        view(&Scene {
            wishes: &self.wishes,
            records: &records,
            attempts: &self.attempts,
            under_way: &self.under_way,
            policy: &self.policy,
            now,
            seed: self.seed,
        })
    }
}

impl Ledger {
    /// Replaces the outlook. Names that have no certificate for a new reason are said, once.
    pub fn publish(&self, outlook: Outlook) {
        let standings = outlook.scene(Timestamp::now(), standings);
        self.outlook.store(Some(Arc::new(outlook)));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lacking = BTreeSet::new();
        for standing in &standings {
            let (Some(finding), Some(error)) = (standing.finding(), &standing.error) else { continue };
            lacking.insert(standing.name.clone());
            if said.insert(standing.name.clone(), error.clone()).as_ref() != Some(error) {
                tracing::warn!(service = standing.service, "{}", finding.message);
            }
        }
        said.retain(|name, _| lacking.contains(name));
    }

    /// Counts an order that ended.
    pub fn count(&self, issuer: &str, failure: Option<&Failure>) {
        let result = match failure {
            None => "issued",
            Some(Failure::Names(_)) => "names",
            Some(Failure::RateLimited { .. }) => "rate_limited",
            Some(Failure::Unavailable { .. }) => "unavailable",
            Some(Failure::Account { .. }) => "account",
            Some(Failure::Local(_)) => "local",
        };
        *self.orders.lock().unwrap_or_else(PoisonError::into_inner).entry((issuer.to_owned(), result)).or_default() += 1;
        if failure.is_some() {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Timestamp::now());
        }
    }

    /// Names, and what is going to be done.
    pub fn report(&self) -> Report {
        let (outlook, now) = (self.outlook.load(), Timestamp::now());
        let report = |scene: &Scene<'_>| Report {
            names: standings(scene),
            plan: plan(scene),
            under_way: scene.under_way.iter().map(|started| started.action.clone()).collect(),
        };
        outlook.as_ref().map(|outlook| outlook.scene(now, report)).unwrap_or_default()
    }

    /// For the metrics.
    pub fn now(&self) -> CertificatesNow {
        let outlook = self.outlook.load();
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        CertificatesNow {
            names: outlook.as_ref().map(|outlook| outlook.scene(Timestamp::now(), standings)).unwrap_or_default(),
            orders: orders.iter().map(|((issuer, result), count)| (issuer.clone(), *result, *count)).collect(),
            failed: *self.failed.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
