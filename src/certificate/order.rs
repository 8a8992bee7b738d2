//! One order at an authority: each name proved, the certificate asked for and fetched. Short outages in the middle are waited out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{AuthorizationStatus, ChallengeHandle, ChallengeStatus, ChallengeType, Order, OrderStatus, Problem};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::acme::{Issued, Patience, Request, proof};
use super::challenge::{Challenges, Live};
use super::dns::{self, Dns, Fault, Published};
use super::failure::{Blame, Failure, Refusal, is_passing, kind_of};
use super::pem;
use super::transport::Transport;
use crate::config::Challenge;

/// The answers of one order, for as long as it lasts.
pub struct Answers {
    challenges: Arc<Challenges>,
    dns: Option<Arc<Dns>>,
    live: Vec<Live>,
    records: Vec<Published>,
}

impl Answers {
    pub fn new(challenges: Arc<Challenges>, dns: Option<Arc<Dns>>) -> Answers {
        Answers { challenges, dns, live: Vec::new(), records: Vec::new() }
    }

    /// Makes the answer to `asked` ready to be found.
    async fn give(&mut self, name: &str, asked: &ChallengeHandle<'_>, by: Challenge) -> Result<(), Refusal> {
        let answer = asked.key_authorization();
        match by {
            Challenge::Http01 => self.live.push(self.challenges.answer_http(&asked.token, answer.as_str().to_owned())),
            Challenge::TlsAlpn01 => {
                let certificate = validation_certificate(name, answer.digest().as_ref());
                let certificate = certificate.map_err(|text| Refusal::ours("challenge", Blame::Edge, text))?;
                self.live.push(self.challenges.answer_tls(&server_name(name), Arc::new(certificate)));
            }
            Challenge::Dns01 => {
                let off = || Refusal::ours("dns-settings", Blame::Edge, "no DNS provider is configured");
                let dns = self.dns.as_ref().ok_or_else(off)?;
                self.records.push(dns.publish(name, &answer.dns_value()).await.map_err(|error| by_dns(&error))?);
            }
        }
        Ok(())
    }

    /// Until all records can be seen.
    async fn visible(&self) -> Result<(), Refusal> {
        match &self.dns {
            Some(dns) if !self.records.is_empty() => dns.wait(&self.records).await.map_err(|error| by_dns(&error)),
            _ => Ok(()),
        }
    }

    /// Takes everything away again. What cannot be taken away does no harm; whoever published it has said so.
    pub async fn withdraw(self) {
        futures_util::future::join_all(self.records.into_iter().map(Published::remove)).await;
    }
}

/// What a DNS provider's failure means for the name.
fn by_dns(error: &dns::Error) -> Refusal {
    let (kind, blame) = match error.fault {
        Fault::Settings => ("dns-settings", Blame::Edge),
        Fault::Zone => ("dns-zone", Blame::Name),
        Fault::Provider | Fault::Network => ("dns-provider", Blame::Edge),
    };
    Refusal::ours(kind, blame, error.to_string())
}

/// Answers the challenges of all names, then tells the authority that it may look.
pub async fn prove(order: &mut Order, request: &Request<'_>, answers: &mut Answers) -> Result<(), Failure> {
    let failed = |error| Failure::of(&error, request.names, Timestamp::now());
    let mut open = BTreeSet::new();
    let count = order.state().authorizations.len();
    let mut patience = Patience::default();
    while let Err(error) = fetch(order, count).await {
        patience.wait(error).await.map_err(failed)?;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        let name = authorization.identifier().to_string();
        let by = proof(&name, request.challenge);
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => return Err(Failure::unavailable(format!("its authorization for {name} is {other:?}"))),
        }
        let Some(challenge) = authorization.challenge(wire(by)) else {
            let text = format!("the authority does not offer {} for it: set acme.challenge to another", word(by));
            return Err(Failure::name(&name, Refusal::ours("challenge", Blame::Edge, text)));
        };
        answers.give(&name, &challenge, by).await.map_err(|refusal| Failure::name(&name, refusal))?;
        open.insert(name);
    }
    answers.visible().await.map_err(|refusal| {
        let by_dns = open.iter().filter(|name| proof(name, request.challenge) == Challenge::Dns01);
        Failure::Names(by_dns.map(|name| (name.clone(), refusal.clone())).collect())
    })?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(failed)?;
        let name = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(wire(proof(&name, request.challenge))).filter(|_| open.contains(&name)) else {
            continue;
        };
        let mut patience = Patience::default();
        while let Err(error) = challenge.set_ready().await {
            // An earlier try arrived after all: its answer was lost.
            if kind_of(&error) == Some("malformed") {
                break;
            }
            patience.wait(error).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Fetches those of the order's authorizations that are not there yet.
async fn fetch(order: &mut Order, count: usize) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..count {
        if let Some(authorization) = authorizations.next().await {
            authorization?;
        }
    }
    Ok(())
}

/// Waits until the order is ready, asks for the certificate and fetches it.
pub async fn finish(order: &mut Order, names: &BTreeSet<String>, key: &KeyPair, transport: &Transport) -> Result<Issued, Failure> {
    const OUTAGES: u32 = 8;
    const FINALIZED: u32 = 3;
    let failed = |error| Failure::of(&error, names, Timestamp::now());
    let request = signing_request(names, key)?;
    let (mut outages, mut finalized) = (0, 0);
    let mut pace = Pace::new();
    loop {
        let state = match order.refresh().await {
            Ok(state) => state,
            Err(error) if is_passing(&error) && outages < OUTAGES => {
                outages += 1;
                pace.wait(transport.said()).await;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        outages = 0;
        match state.status {
            OrderStatus::Pending | OrderStatus::Processing => pace.wait(transport.said()).await,
            OrderStatus::Ready if finalized < FINALIZED => {
                finalized += 1;
                pace = Pace::new();
                match order.finalize_csr(&request).await {
                    Ok(()) => {}
                    // An earlier try arrived, or this one did: the next look at the order tells.
                    Err(error) if is_passing(&error) || kind_of(&error) == Some("orderNotReady") => pace.wait(None).await,
                    Err(error) => return Err(failed(error)),
                }
            }
            OrderStatus::Ready => return Err(Failure::unavailable("it takes the signing request and makes nothing of it")),
            OrderStatus::Valid => {
                let mut patience = Patience::default();
                let chain = loop {
                    match order.certificate().await {
                        Ok(chain) => break chain.unwrap_or_default(),
                        Err(error) => patience.wait(error).await.map_err(failed)?,
                    }
                };
                return issued(&chain, key, names);
            }
            OrderStatus::Invalid => {
                let problem = state.error.clone();
                return Err(why_invalid(order, problem, names, transport).await);
            }
        }
    }
}

/// The certificate with its key, if it is what was asked for.
fn issued(chain: &str, key: &KeyPair, names: &BTreeSet<String>) -> Result<Issued, Failure> {
    let key = Zeroizing::new(key.serialize_pem());
    let read = pem::read(chain, &key).map_err(|flaw| Failure::unavailable(format!("it gives what cannot be used: {flaw}")))?;
    if let Some(name) = names.iter().find(|name| !read.names.contains(name)) {
        return Err(Failure::unavailable(format!("it gives a certificate without {name}")));
    }
    Ok(Issued { chain: read.chain, key: read.key, not_before: read.not_before, not_after: read.not_after })
}

/// Which names failed. The authority goes on with the others for a moment, so that all that fail are told at once.
async fn why_invalid(order: &mut Order, problem: Option<Problem>, names: &BTreeSet<String>, transport: &Transport) -> Failure {
    const LONGEST: Duration = Duration::from_secs(10);
    let mut refused = BTreeMap::new();
    // What is known when the time is over will do.
    let _ = timeout(LONGEST, async {
        let mut pace = Pace::new();
        while undecided(order, &mut refused).await {
            pace.wait(transport.said()).await;
        }
    })
    .await;
    if !refused.is_empty() {
        return Failure::Names(refused);
    }
    match problem {
        Some(problem) => Failure::of(&problem.into(), names, Timestamp::now()),
        None => Failure::unavailable("it declares the order invalid and does not say why"),
    }
}

/// Is a validation still under way? Puts the names that failed into `refused`.
async fn undecided(order: &mut Order, refused: &mut BTreeMap<String, Refusal>) -> bool {
    if order.refresh().await.is_err() {
        return true;
    }
    let mut running = false;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(authorization) = authorization else { return true };
        let error = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        match (authorization.status, error) {
            (AuthorizationStatus::Invalid, Some(problem)) => {
                refused.insert(authorization.identifier().to_string(), Refusal::of(problem, true));
            }
            (AuthorizationStatus::Pending, None) => {
                running |= authorization.challenges.iter().any(|challenge| challenge.status == ChallengeStatus::Processing);
            }
            _ => {}
        }
    }
    running
}

/// How often an order is looked at: fast at first, and as the authority wants.
struct Pace(Duration);

impl Pace {
    const FIRST: Duration = Duration::from_millis(200);
    const SLOWEST: Duration = Duration::from_secs(5);
    /// Later than that it says for other reasons than this order.
    const LONGEST: Duration = Duration::from_secs(60);

    fn new() -> Pace {
        Pace(Pace::FIRST)
    }

    async fn wait(&mut self, said: Option<Timestamp>) {
        let wanted = said.and_then(|until| Duration::try_from(until.duration_since(Timestamp::now())).ok());
        sleep(wanted.unwrap_or_default().min(Pace::LONGEST).max(self.0)).await;
        self.0 = (self.0 * 3 / 2).min(Pace::SLOWEST);
    }
}

/// A PKCS#10 request for `names`, DER.
fn signing_request(names: &BTreeSet<String>, key: &KeyPair) -> Result<Vec<u8>, Failure> {
    let bad = |error: rcgen::Error| Failure::Local(format!("no signing request can be made of these names: {error}"));
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>()).map_err(bad)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key).map_err(bad)?.der().to_vec())
}

/// The certificate that answers TLS-ALPN-01 (RFC 8737, 3).
fn validation_certificate(name: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    let bad = |error: rcgen::Error| format!("no validation certificate can be made: {error}");
    let key = KeyPair::generate().map_err(bad)?;
    let mut params = CertificateParams::new([name.to_owned()]).map_err(bad)?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key).map_err(bad)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).map_err(|error| format!("its key cannot be used: {error}"))?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

/// What a validating client sends as server name: the name, or for an address its name in the reverse tree (RFC 8738, 6).
fn server_name(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(address) => hickory_proto::rr::Name::from(address).to_ascii().trim_end_matches('.').to_owned(),
        Err(_) => name.to_owned(),
    }
}

fn wire(challenge: Challenge) -> ChallengeType {
    match challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        Challenge::Dns01 => ChallengeType::Dns01,
    }
}

/// As in the configuration.
pub fn word(challenge: Challenge) -> &'static str {
    match challenge {
        Challenge::Http01 => "http-01",
        Challenge::TlsAlpn01 => "tls-alpn-01",
        Challenge::Dns01 => "dns-01",
    }
}
