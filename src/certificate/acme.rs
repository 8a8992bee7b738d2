//! Orders certificates from authorities that speak ACME (RFC 8555), and asks them when to renew (RFC 9773).
//! It does what it is told, once, and reports; what is to be ordered and when to try again is decided by the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use instant_acme::{Account, Error, Identifier, NewOrder, Order, OrderStatus};
use jiff::Timestamp;
use rcgen::KeyPair;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::account::{self, Holder};
use super::ari;
use super::challenge::Challenges;
use super::dns::Dns;
use super::failure::{AccountProblem, Blame, Failure, Refusal, is_passing, kind_of};
use super::order::{self, Answers};
use super::record::{Record, Secret, Window};
use super::transport::Transport;
use crate::config::{Challenge, Issuer};
use crate::store::Store;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// As in [`super::wanted::Wish::names`]; all go into one certificate.
    pub names: &'a BTreeSet<String>,
    pub issuer: &'a Issuer,
    /// For names that are no wildcards, which take DNS-01 in any case.
    pub challenge: Challenge,
    /// The chain (PEM) of the certificate that this one is to replace.
    pub replaces: Option<&'a str>,
    pub email: Option<&'a str>,
    /// `acme.agree-tos`
    pub agree: bool,
}

/// A certificate that was obtained.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM, leaf first.
    pub chain: String,
    /// PEM, PKCS#8.
    pub key: Secret,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// One request with its answer.
    pub request: Duration,
    /// One order, from the account to the certificate.
    pub order: Duration,
    /// The same for one that waits for DNS.
    pub order_by_dns: Duration,
}

impl Limits {
    /// Those where records get `propagation` to be seen, once for each order, beside the time that finding their zones takes.
    #[must_use]
    pub fn with_propagation(self, propagation: Duration) -> Limits {
        const FINDING: Duration = Duration::from_secs(60);
        Limits { order_by_dns: self.order + FINDING + propagation, ..self }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { request: Duration::from_secs(20), order: Duration::from_secs(120), order_by_dns: Duration::from_secs(300) }
    }
}

/// Asks authorities.
pub struct Acme {
    challenges: Arc<Challenges>,
    store: Arc<dyn Store>,
    dns: Option<Arc<Dns>>,
    limits: Limits,
    /// By root file.
    transports: DashMap<Option<PathBuf>, Transport>,
    /// One registration at a time for each account.
    registering: DashMap<String, Arc<Mutex<()>>>,
    /// Orders that were given up when all was proved, by account and names: their certificates need not be ordered again.
    unfinished: DashMap<(String, BTreeSet<String>), Unfinished>,
}

struct Unfinished {
    url: String,
    key: Arc<KeyPair>,
}

/// More orders are not remembered.
const MOST_UNFINISHED: usize = 1000;

impl Acme {
    /// Answers go to `challenges`, which the listeners read; accounts are kept in `store`; TXT records go to `dns`, without which there are no wildcards.
    pub fn new(challenges: Arc<Challenges>, store: Arc<dyn Store>, dns: Option<Arc<Dns>>, limits: Limits) -> Acme {
        Acme { challenges, store, dns, limits, transports: DashMap::new(), registering: DashMap::new(), unfinished: DashMap::new() }
    }

    /// Orders one certificate for all names of `request`, with a fresh key.
    ///
    /// # Errors
    /// See [`Failure`]. Nothing is left behind that the authority counts, but for validations that failed.
    pub async fn obtain(&self, request: Request<'_>) -> Result<Issued, Failure> {
        self.check(&request)?;
        let by_dns = request.names.iter().any(|name| proof(name, request.challenge) == Challenge::Dns01);
        let longest = if by_dns { self.limits.order_by_dns } else { self.limits.order };
        let mut answers = Answers::new(Arc::clone(&self.challenges), self.dns.clone());
        let issued = timeout(longest, self.order(&request, &mut answers)).await;
        answers.withdraw().await;
        issued.unwrap_or_else(|_| Err(Failure::unavailable(format!("the order was not done within {longest:?}"))))
    }

    /// In which time the authority wants `record` renewed; `None` where it does not say such things.
    ///
    /// # Errors
    /// It cannot be asked, does not know the certificate, or answers nonsense.
    pub async fn window(&self, issuer: &Issuer, record: &Record) -> Result<Option<Window>, Failure> {
        let transport = self.transport(issuer)?;
        let failed = |error: Error| Failure::of(&error, &BTreeSet::new(), Timestamp::now());
        let (_, directory) = transport.get(&issuer.directory).await.map_err(failed)?;
        let Some(url) = ari::url(&directory).map_err(Failure::unavailable)? else { return Ok(None) };
        let id = ari::identifier(&record.chain).map_err(Failure::Local)?;
        let (_, body) = transport.get(&format!("{}/{id}", url.trim_end_matches('/'))).await.map_err(failed)?;
        ari::window(&body, transport.said(), Timestamp::now()).map(Some).map_err(Failure::unavailable)
    }

    /// What can be said without asking anybody.
    fn check(&self, request: &Request<'_>) -> Result<(), Failure> {
        let name = &request.issuer.name;
        if !request.agree {
            let text = format!("nobody has agreed to the terms of {name}: set acme.agree-tos = true");
            return Err(Failure::Account { problem: AccountProblem::Terms, text });
        }
        if request.names.is_empty() {
            return Err(Failure::Local("a certificate without a name was asked for".to_owned()));
        }
        if self.dns.is_some() {
            return Ok(());
        }
        let needs = request.names.iter().filter(|name| proof(name, request.challenge) == Challenge::Dns01);
        let text = "it is proved by a DNS record, and no DNS provider is configured: see [dns]";
        let refused: BTreeMap<_, _> = needs.map(|name| (name.clone(), Refusal::ours("dns-provider", Blame::Edge, text))).collect();
        if refused.is_empty() { Ok(()) } else { Err(Failure::Names(refused)) }
    }

    async fn order(&self, request: &Request<'_>, answers: &mut Answers) -> Result<Issued, Failure> {
        let transport = self.transport(request.issuer)?;
        let holder = Holder { issuer: request.issuer, email: request.email };
        let account = self.account(holder, None, &transport).await?;
        let id = (holder.key(), request.names.clone());
        let given_up = self.unfinished.remove(&id).map(|(_, unfinished)| unfinished);
        if let Some(unfinished) = given_up
            && let Some(order) = resumed(&account, &unfinished).await
        {
            return self.finish(order, unfinished.key, id, &transport).await;
        }
        let mut order = self.begin(request, account, &transport).await?;
        order::prove(&mut order, request, answers).await?;
        let key = KeyPair::generate().map_err(|error| Failure::Local(format!("no key can be made: {error}")))?;
        self.finish(order, Arc::new(key), id, &transport).await
    }

    /// Waits for the certificate. If that takes too long, or is dropped, the order is gone on with when it is asked for again.
    async fn finish(
        &self,
        mut order: Order,
        key: Arc<KeyPair>,
        id: (String, BTreeSet<String>),
        transport: &Transport,
    ) -> Result<Issued, Failure> {
        if self.unfinished.len() < MOST_UNFINISHED {
            self.unfinished.insert(id.clone(), Unfinished { url: order.url().to_owned(), key: Arc::clone(&key) });
        }
        let outcome = order::finish(&mut order, &id.1, &key, transport).await;
        if !matches!(outcome, Err(Failure::Unavailable { .. })) {
            self.unfinished.remove(&id);
        }
        outcome
    }

    /// A new order; where the authority no longer knows the account, it is registered again, once.
    async fn begin(&self, request: &Request<'_>, account: Account, transport: &Transport) -> Result<Order, Failure> {
        match place(&account, request).await {
            Err(error) if matches!(kind_of(&error), Some("accountDoesNotExist" | "unauthorized")) => {
                tracing::warn!(issuer = request.issuer.name, %error, "the authority no longer takes our account: registering again");
                let holder = Holder { issuer: request.issuer, email: request.email };
                let account = self.account(holder, Some(account.id()), transport).await?;
                place(&account, request).await
            }
            placed => placed,
        }
        .map_err(|error| Failure::of(&error, request.names, Timestamp::now()))
    }

    /// The kept account, unless it is the `dead` one; else a new one.
    async fn account(&self, holder: Holder<'_>, dead: Option<&str>, transport: &Transport) -> Result<Account, Failure> {
        let lock = Arc::clone(&self.registering.entry(holder.key()).or_default());
        let _alone = lock.lock().await;
        let kept = account::kept(holder, &*self.store, transport).await?;
        match kept {
            Some((account, _)) if dead != Some(account.id()) => Ok(account),
            kept => account::register(holder, &*self.store, kept.map(|(_, version)| version).as_ref(), transport).await,
        }
    }

    fn transport(&self, issuer: &Issuer) -> Result<Transport, Failure> {
        if let Some(transport) = self.transports.get(&issuer.root) {
            return Ok(transport.again());
        }
        let transport = Transport::new(issuer.root.as_deref(), self.limits.request).map_err(Failure::Local)?;
        self.transports.insert(issuer.root.clone(), transport.clone());
        Ok(transport)
    }
}

/// The order, if nothing but its certificate is missing. The answers to its challenges are gone.
async fn resumed(account: &Account, unfinished: &Unfinished) -> Option<Order> {
    let mut order = account.order(unfinished.url.clone()).await.ok()?;
    matches!(order.state().status, OrderStatus::Ready | OrderStatus::Processing | OrderStatus::Valid).then_some(order)
}

/// How `name` is proved: wildcards can be by DNS-01 only (RFC 8555, 7.4.1 and 8.4).
pub fn proof(name: &str, challenge: Challenge) -> Challenge {
    if name.starts_with("*.") { Challenge::Dns01 } else { challenge }
}

/// Places the order; without `replaces` where the authority wants to hear nothing of that.
async fn place(account: &Account, request: &Request<'_>) -> Result<Order, Error> {
    let identifiers: Vec<Identifier> = request.names.iter().map(|name| identifier(name)).collect();
    let mut replaces = request.replaces.and_then(|chain| ari::identifier(chain).ok());
    let order = || {
        let order = NewOrder::new(&identifiers);
        if let Some(profile) = &request.issuer.profile { order.profile(profile) } else { order }
    };
    let mut patience = Patience::default();
    loop {
        let asked = match &replaces {
            Some(replaces) => order().replaces(replaces.clone()),
            None => order(),
        };
        match account.new_order(&asked).await {
            Err(error) if replaces.is_some() && concerns_replacing(&error) => replaces = None,
            Err(error) => patience.wait(error).await?,
            placed => return placed,
        }
    }
}

/// The authority knows no replacing, or not the certificate, or has seen it replaced: the order stands without.
fn concerns_replacing(error: &Error) -> bool {
    match kind_of(error) {
        Some(kind) => matches!(kind, "alreadyReplaced" | "malformed" | "conflict" | "unauthorized"),
        None => match error {
            Error::Unsupported(_) => true,
            Error::Other(inner) => inner.to_string().starts_with("replaces field mismatch"),
            _ => false,
        },
    }
}

fn identifier(name: &str) -> Identifier {
    name.parse().map_or_else(|_| Identifier::Dns(name.to_owned()), Identifier::Ip)
}

/// How often a request is repeated whose answer may be another in a moment: instant-acme itself repeats one only for three refused
/// nonces in a row.
#[derive(Debug, Default)]
pub struct Patience(usize);

impl Patience {
    const PAUSES: [Duration; 4] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_secs(3)];

    /// Waits, where it makes sense to ask again.
    ///
    /// # Errors
    /// It does not.
    pub async fn wait(&mut self, error: Error) -> Result<(), Error> {
        match Patience::PAUSES.get(self.0) {
            Some(pause) if is_passing(&error) => {
                self.0 += 1;
                sleep(*pause).await;
                Ok(())
            }
            _ => Err(error),
        }
    }
}
