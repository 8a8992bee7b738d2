//! Carries out the plan for certificates: asks for it whenever something happened, begins what it says, and remembers how that ended.
//! It chooses nothing; what is not begun now is in the next plan again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::{self, JoinError, JoinSet};

use super::credentials::Files;
use super::outlook::{Ledger, Outlook};
use crate::certificate::acme::{self, Acme, Issued};
use crate::certificate::attempt::Attempts;
use crate::certificate::challenge::Challenges;
use crate::certificate::failure::Failure;
use crate::certificate::issuer::Policy;
use crate::certificate::plan::{Action, Order, Scene, Started, plan};
use crate::certificate::probe::Probe;
use crate::certificate::record::{Record, Window};
use crate::certificate::shelf::Shelf;
use crate::certificate::{Source, dns, local};
use crate::config::Config;
use crate::state::Live;
use crate::store::{self, Store};

/// Each waits for somebody else most of the time; more at once would only look like an attack.
const ORDERS: usize = 16;
const PROBES: usize = 64;
const WINDOWS: usize = 8;
/// The plan is asked again at least so often: the clock may have been set, the store may be there again.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Authorities that do not know windows, or do not answer, are asked again after these.
const NO_WINDOW: SignedDuration = SignedDuration::from_hours(24);
const NO_ANSWER: SignedDuration = SignedDuration::from_hours(1);
/// How long after what could not be stored orders wait: what is ordered must be remembered.
const NO_STORE: SignedDuration = SignedDuration::from_secs(30);
/// Rounds of one step: marks on certificates change the plan, and nothing else does at once.
const ROUNDS: usize = 4;
/// The moments that are free are drawn by names and ids, which differ from edge to edge by themselves.
const SEED: u64 = 0;

/// The one task that obtains, renews and drops certificates.
pub struct Certifier {
    config: Arc<Config>,
    policy: Arc<Policy>,
    live: Arc<Live>,
    files: Files,
    shelf: Shelf,
    store: Arc<dyn Store>,
    acme: Arc<Acme>,
    /// Where records may have been left behind.
    sweeps: Option<Arc<dns::Dns>>,
    /// Why names cannot be asked whether they reach us, where they cannot.
    probe: Result<Arc<Probe>, String>,
    records: watch::Sender<Arc<Vec<Record>>>,
    ledger: Arc<Ledger>,
    under_way: Vec<Started>,
    /// The tasks of what is under way, in its order.
    ids: Vec<task::Id>,
    tasks: JoinSet<Done>,
    orders_from: Timestamp,
    /// Records were added, changed or removed since they were last published.
    changed: bool,
}

/// How an action ended.
enum Done {
    Probed {
        name: String,
        answer: Result<(), String>,
    },
    Ordered {
        order: Order,
        outcome: Result<Record, Failure>,
    },
    Made {
        names: Vec<String>,
        outcome: Result<Record, local::Error>,
    },
    Asked {
        id: String,
        outcome: Result<Option<Window>, Failure>,
    },
    /// What an earlier run left in the DNS.
    Swept,
}

/// What is remembered of it.
type Event = Box<dyn Fn(Attempts) -> Attempts + Send + Sync>;

impl Certifier {
    /// Reads what there is; it is published before this returns.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(
        config: Arc<Config>,
        store: Arc<dyn Store>,
        challenges: Arc<Challenges>,
        live: Arc<Live>,
        files: Files,
        records: watch::Sender<Arc<Vec<Record>>>,
    ) -> Result<Certifier, store::Error> {
        let mut policy = Policy::new(&config);
        let shelf = Shelf::open(store.clone()).await?;
        let dns = dns::from_config(&config.dns, config.state.directory.as_deref()).unwrap_or_else(|error| {
            tracing::error!(%error, "DNS-01 cannot be used");
            policy.dns = false;
            None
        });
        let probe = Probe::new(challenges.clone(), &config.dns.resolver, config.acme.probe_port).map(Arc::new);
        let sweeps = dns.clone();
        let acme =
            Arc::new(Acme::new(challenges, store.clone(), dns, acme::Limits::default().with_propagation(config.dns.propagation_timeout)));
        let mut certifier = Certifier {
            policy: Arc::new(policy),
            live,
            files,
            shelf,
            store,
            acme,
            probe,
            records,
            sweeps,
            ledger: Arc::default(),
            under_way: Vec::new(),
            ids: Vec::new(),
            tasks: JoinSet::new(),
            orders_from: Timestamp::MIN,
            changed: true,
            config,
        };
        certifier.publish();
        Ok(certifier)
    }

    /// What it knows, for whoever looks.
    pub fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    /// Works until `stopping` turns true; then begins nothing more, and ends once what is under way has ended.
    pub async fn run(mut self, mut swapped: watch::Receiver<()>, mut stopping: watch::Receiver<bool>) {
        let mut files = self.files.clone();
        if let Some(dns) = self.sweeps.take() {
            self.tasks.spawn(async move {
                dns.sweep().await;
                Done::Swept
            });
        }
        loop {
            let rest = self.step().await;
            let done = tokio::select! {
                Ok(()) = swapped.changed() => None,
                Ok(()) = files.changed() => None,
                Some(done) = self.tasks.join_next_with_id() => Some(done),
                () = stopped(&mut stopping) => break,
                () = tokio::time::sleep(rest) => None,
            };
            match done {
                Some(done) => self.note(done).await,
                None => self.shelf.save_again().await,
            }
        }
        while let Some(done) = self.tasks.join_next_with_id().await {
            self.note(done).await;
            self.publish();
        }
    }

    /// Begins all that the plan says, as far as there is room. How long to rest unless something happens.
    async fn step(&mut self) -> Duration {
        let mut rest = LONGEST_REST;
        for _ in 0..ROUNDS {
            let actions = self.look(plan);
            let (now, again) = (Timestamp::now(), actions.iter().any(is_mark));
            rest = actions.iter().filter_map(|action| until(action, now)).min().unwrap_or(LONGEST_REST).min(LONGEST_REST);
            self.begin(actions, now).await;
            if !again {
                break;
            }
        }
        self.publish();
        rest
    }

    /// What `view` makes of everything that there is now.
    fn look<T>(&self, view: impl FnOnce(&Scene<'_>) -> T) -> T {
        let (state, files) = (self.live.load(), self.files.borrow().clone());
        let records: Vec<&Record> = self.shelf.records().chain(files.records.values().map(|record| &**record)).collect();
        view(&Scene {
            wishes: &state.wishes,
            records: &records,
            attempts: self.shelf.attempts(),
            under_way: &self.under_way,
            policy: &self.policy,
            now: Timestamp::now(),
            seed: SEED,
        })
    }

    async fn begin(&mut self, actions: Vec<Action>, now: Timestamp) {
        let mut orders = Vec::new();
        for action in actions {
            match action {
                Action::Wait { .. } => {}
                Action::Want { id } => self.mark(&id, |record| record.unwanted_since = None).await,
                Action::Unwant { id } => self.mark(&id, |record| record.unwanted_since = Some(now)).await,
                Action::Prune { id, names } => {
                    tracing::info!(?names, "dropping a certificate that no label wants");
                    self.shelf.remove(&id).await;
                    self.changed = true;
                }
                Action::Probe { names } => self.probe(names, now),
                Action::Issue { service, source, names } => self.issue(service, source, names, now),
                Action::AskWindow { .. } => self.ask(action, now),
                Action::Order(order) => orders.push(order),
            }
        }
        self.order(orders, now).await;
    }

    async fn mark(&mut self, id: &str, change: impl FnOnce(&mut Record)) {
        let Some(mut record) = self.shelf.record(id).cloned() else { return };
        change(&mut record);
        self.shelf.keep(record).await;
        self.changed = true;
    }

    fn probe(&mut self, names: Vec<String>, now: Timestamp) {
        let running = self.running(|action| matches!(action, Action::Probe { .. }));
        for name in names.into_iter().take(PROBES.saturating_sub(running)) {
            let action = Action::Probe { names: vec![name.clone()] };
            let (probe, public) = (self.probe.clone(), self.policy.issuers.first().is_some_and(|issuer| issuer.public));
            self.start(action, now, async move {
                let answer = match probe {
                    Ok(probe) => {
                        let mut answers = probe.ask(&BTreeSet::from([name.clone()]), public).await;
                        answers.remove(&name).unwrap_or(Ok(())).map_err(|refusal| refusal.text)
                    }
                    Err(error) => Err(error),
                };
                Done::Probed { name, answer }
            });
        }
    }

    fn issue(&mut self, service: String, source: Source, names: Vec<String>, now: Timestamp) {
        let action = Action::Issue { service: service.clone(), source, names: names.clone() };
        let store = self.store.clone();
        self.start(action, now, async move {
            let set: BTreeSet<String> = names.iter().cloned().collect();
            let outcome = match source {
                Source::Internal => {
                    local::authority(&*store, now).await.and_then(|authority| local::internal(&authority, &service, &set, now))
                }
                _ => local::self_signed(&service, &set, now),
            };
            Done::Made { names, outcome }
        });
    }

    fn ask(&mut self, action: Action, now: Timestamp) {
        let Action::AskWindow { id, issuer, .. } = &action else { return };
        let running = self.running(|action| matches!(action, Action::AskWindow { .. }));
        let (Some(issuer), Some(record)) = (self.config.issuers.get(issuer).cloned(), self.shelf.record(id).cloned()) else { return };
        if running < WINDOWS {
            let acme = self.acme.clone();
            self.start(action, now, async move {
                let outcome = acme.window(&issuer, &record).await;
                Done::Asked { id: record.id, outcome }
            });
        }
    }

    /// Orders are remembered before they are sent.
    async fn order(&mut self, mut orders: Vec<Order>, now: Timestamp) {
        orders.truncate(ORDERS.saturating_sub(self.running(|action| matches!(action, Action::Order(_)))));
        if orders.is_empty() || now < self.orders_from {
            return;
        }
        let policy = self.policy.clone();
        let remembered = |attempts: Attempts| {
            orders.iter().fold(attempts, |attempts, order| match policy.issuer(&order.issuer) {
                Some(issuer) => attempts.ordered(issuer, order, now),
                None => attempts,
            })
        };
        if let Err(error) = self.shelf.remember(remembered).await {
            tracing::error!(%error, "no certificate is ordered as long as orders cannot be remembered");
            self.orders_from = now.checked_add(NO_STORE).unwrap_or(now);
            // Nothing was sent.
            let nothing = |attempts: Attempts| {
                let failure = Failure::Local(error.to_string());
                orders.iter().fold(attempts, |attempts, order| attempts.failed(Some(&order.issuer), &order.names, &failure, now))
            };
            _ = self.shelf.remember(nothing).await;
            return;
        }
        for order in orders {
            self.send(order, now);
        }
    }

    fn send(&mut self, order: Order, now: Timestamp) {
        let Some(issuer) = self.config.issuers.get(&order.issuer).cloned() else { return };
        tracing::info!(names = ?order.names, issuer = order.issuer, why = ?order.why, "ordering a certificate");
        let (acme, config) = (self.acme.clone(), self.config.clone());
        let replaces = order.replaces.as_deref().and_then(|id| self.shelf.record(id)).map(|record| record.chain.clone());
        self.start(Action::Order(order.clone()), now, async move {
            let names = order.names.iter().cloned().collect();
            let request = acme::Request {
                names: &names,
                issuer: &issuer,
                challenge: config.acme.challenge,
                replaces: replaces.as_deref(),
                email: config.acme.email.as_deref(),
                agree: config.acme.agree_tos,
            };
            // First: nothing may go wrong once the certificate is there.
            let outcome = match local::id() {
                Ok(id) => acme.obtain(request).await.map(|issued| record(id, &order, issued)),
                Err(error) => Err(Failure::Local(error.to_string())),
            };
            Done::Ordered { order, outcome }
        });
    }

    /// Notes how this action ended, and whatever ended meanwhile.
    async fn note(&mut self, done: Result<(task::Id, Done), JoinError>) {
        let mut all = vec![done];
        all.extend(std::iter::from_fn(|| self.tasks.try_join_next_with_id()));
        let now = Timestamp::now();
        let mut events: Vec<Event> = Vec::new();
        for done in all {
            match done {
                Ok((id, done)) => {
                    self.finish(id);
                    events.push(self.ended(done, now).await);
                }
                // It was not cancelled, so it panicked.
                Err(error) => {
                    tracing::error!(%error, "an attempt to obtain a certificate broke off");
                    let action = self.finish(error.id());
                    events.extend(action.map(|action| broken(action, now)));
                }
            }
        }
        let state = self.live.load();
        let wanted: BTreeSet<&str> = state.wishes.iter().flat_map(|wish| wish.names.iter().map(String::as_str)).collect();
        let ids: BTreeSet<String> = self.shelf.records().map(|record| record.id.clone()).collect();
        let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let remembered = |attempts| events.iter().fold(attempts, |attempts, event| event(attempts)).forget(&wanted, &ids, now);
        if let Err(error) = self.shelf.remember(remembered).await {
            tracing::error!(%error, "what became of orders cannot be stored");
        }
    }

    /// Keeps what an action brought. What it means for later attempts.
    async fn ended(&mut self, done: Done, now: Timestamp) -> Event {
        match done {
            Done::Swept => Box::new(std::convert::identity),
            Done::Probed { name, answer } => {
                Box::new(move |attempts| attempts.probed(&name, answer.as_ref().copied().map_err(String::as_str), now))
            }
            Done::Ordered { order, outcome } => {
                self.ledger.count(&order.issuer, outcome.as_ref().err());
                match outcome {
                    Ok(record) => {
                        tracing::info!(names = ?order.names, issuer = order.issuer, expires = %record.not_after, "a certificate is there");
                        self.keep(record).await;
                        Box::new(move |attempts| attempts.issued(Some(&order.issuer), &order.names, now))
                    }
                    Err(failure) => {
                        tracing::warn!(names = ?order.names, issuer = order.issuer, %failure, "no certificate");
                        Box::new(move |attempts| attempts.failed(Some(&order.issuer), &order.names, &failure, now))
                    }
                }
            }
            Done::Made { names, outcome } => match outcome {
                Ok(record) => {
                    self.keep(record).await;
                    Box::new(move |attempts| attempts.issued(None, &names, now))
                }
                Err(error) => {
                    tracing::error!(?names, %error, "no certificate can be made");
                    let failure = Failure::Local(error.to_string());
                    Box::new(move |attempts| attempts.failed(None, &names, &failure, now))
                }
            },
            Done::Asked { id, outcome } => {
                let again = match outcome {
                    Ok(Some(window)) => {
                        self.mark(&id, |record| record.window = Some(window)).await;
                        window.ask_again
                    }
                    Ok(None) => now.saturating_add(NO_WINDOW).unwrap_or(now),
                    Err(failure) => {
                        tracing::warn!(id, %failure, "the authority does not say when it wants a certificate renewed");
                        now.saturating_add(NO_ANSWER).unwrap_or(now)
                    }
                };
                Box::new(move |attempts| attempts.asked(&id, again))
            }
        }
    }

    async fn keep(&mut self, record: Record) {
        self.shelf.keep(record).await;
        self.changed = true;
        // Clients get it before anything else is done.
        self.publish();
    }

    fn running(&self, kind: impl Fn(&Action) -> bool) -> usize {
        self.under_way.iter().filter(|started| kind(&started.action)).count()
    }

    fn start(&mut self, action: Action, now: Timestamp, work: impl Future<Output = Done> + Send + 'static) {
        self.under_way.push(Started { action, since: now });
        self.ids.push(self.tasks.spawn(work).id());
    }

    /// The action of that task, which has ended.
    fn finish(&mut self, id: task::Id) -> Option<Action> {
        let index = self.ids.iter().position(|own| *own == id)?;
        self.ids.swap_remove(index);
        Some(self.under_way.swap_remove(index).action)
    }

    /// Tells the listeners which certificates there are, and everybody else how they stand.
    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.records.send_replace(Arc::new(self.shelf.records().cloned().collect()));
        }
        self.ledger.publish(Outlook {
            wishes: self.live.load().wishes.clone(),
            records: self.records.borrow().clone(),
            files: self.files.borrow().clone(),
            attempts: self.shelf.attempts().clone(),
            under_way: self.under_way.clone(),
            policy: self.policy.clone(),
            seed: SEED,
        });
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: whoever would have told us has ended.
    _ = stopping.wait_for(|stop| *stop).await;
}

fn record(id: String, order: &Order, issued: Issued) -> Record {
    Record {
        id,
        service: order.service.clone(),
        source: Source::Acme,
        issuer: Some(order.issuer.clone()),
        names: order.names.clone(),
        chain: issued.chain,
        key: issued.key,
        not_before: issued.not_before,
        not_after: issued.not_after,
        window: None,
        unwanted_since: None,
    }
}

/// What a panic means: it would come again at once if it meant nothing.
fn broken(action: Action, now: Timestamp) -> Event {
    const WHY: &str = "the attempt broke off: this is a bug of Skep, the log says more";
    match action {
        Action::Probe { names } => {
            Box::new(move |attempts| names.iter().fold(attempts, |attempts, name| attempts.probed(name, Err(WHY), now)))
        }
        Action::Order(Order { issuer, names, .. }) => {
            Box::new(move |attempts| attempts.failed(Some(&issuer), &names, &Failure::Local(WHY.to_owned()), now))
        }
        Action::Issue { names, .. } => Box::new(move |attempts| attempts.failed(None, &names, &Failure::Local(WHY.to_owned()), now)),
        Action::AskWindow { id, .. } => Box::new(move |attempts| attempts.asked(&id, now.saturating_add(NO_ANSWER).unwrap_or(now))),
        _ => Box::new(std::convert::identity),
    }
}

/// Does it change the plan at once?
fn is_mark(action: &Action) -> bool {
    matches!(action, Action::Want { .. } | Action::Unwant { .. } | Action::Prune { .. })
}

fn until(action: &Action, now: Timestamp) -> Option<Duration> {
    let Action::Wait { until, .. } = action else { return None };
    // A little later than exactly then, so that then is over.
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default() + Duration::from_millis(1))
}
