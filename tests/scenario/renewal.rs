//! Renewal as the authority wants it (RFC 9773), against acme2certifier: pebble as Debian has it knows no such thing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use skep::certificate::acme::{Acme, Issued, Limits, Request};
use skep::certificate::ari;
use skep::certificate::label::Source;
use skep::certificate::record::Record;
use skep::config::{Challenge, Issuer};

use crate::authority::Authority;
use crate::pebble::{Process, free_port, listening, server_certificate, store};

/// Where `./dev test` installs it.
fn python() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/acme2certifier/bin/python")
}

/// A running acme2certifier. It believes every challenge: validation is what pebble is asked for.
struct Certifier {
    directory: tempfile::TempDir,
    address: SocketAddr,
    process: Option<Process>,
}

impl Certifier {
    async fn start() -> Certifier {
        let directory = tempfile::tempdir().unwrap();
        server_certificate(directory.path());
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        write("issuing.pem", &params.self_signed(&key).unwrap().pem());
        write("issuing.key", &key.serialize_pem());
        let mut certifier = Certifier { directory, address: SocketAddr::from(([127, 0, 0, 1], free_port())), process: None };
        certifier.restart(false).await;
        certifier
    }

    /// The same authority anew; `force`: it wants every certificate renewed now.
    async fn restart(&mut self, force: bool) {
        self.process = None;
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let config = include_str!("certifier.cfg").replace("DIR", &self.directory.path().display().to_string());
        std::fs::write(at("acme.cfg"), config.replace("FORCE", if force { "True" } else { "False" })).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(at("log")).unwrap();
        let child = Command::new(python())
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenario/certifier.py"), &at(""), &self.address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(Process(child.unwrap()));
        listening(self.address).await;
    }

    fn issuer(&self) -> Issuer {
        let mut issuer = Issuer::new("certifier", &format!("https://{}/directory", self.address));
        issuer.root = Some(self.directory.path().join("ca.pem"));
        issuer
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

fn record(issued: Issued, names: &BTreeSet<String>) -> Record {
    Record {
        id: "0123456789abcdef".to_owned(),
        service: "web".to_owned(),
        source: Source::Acme,
        issuer: Some("certifier".to_owned()),
        names: names.iter().cloned().collect(),
        chain: issued.chain,
        key: issued.key,
        not_before: issued.not_before,
        not_after: issued.not_after,
        window: None,
        unwanted_since: None,
    }
}

/// What is said of the old certificate may be refused; the order is not.
#[tokio::test]
async fn a_renewal_says_what_it_replaces_unless_that_is_refused() {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = rcgen::Issuer::new(authority, KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let old = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap().pem();
    let names = BTreeSet::from(["a.test".to_owned()]);
    for (kind, orders) in [("alreadyReplaced", 2), ("malformed", 2), ("rateLimited", 1)] {
        let problem = serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "no"}).to_string();
        let authority = Authority::answering(BTreeMap::from([("/new-order", (409, vec![], problem))])).await;
        let (_disk, store) = store();
        let acme = Acme::new(Arc::default(), store, None, Limits::default());
        let mut issuer = authority.issuer();
        issuer.profile = Some("shortlived".to_owned());
        let request =
            Request { names: &names, issuer: &issuer, challenge: Challenge::Http01, replaces: Some(&old), email: None, agree: true };
        acme.obtain(request).await.unwrap_err();
        let seen = authority.payloads("/new-order");
        let replaced: Vec<_> = seen.iter().map(|payload| payload["replaces"].as_str()).collect();
        let id = ari::identifier(&old).unwrap().to_string();
        assert_eq!(replaced, [Some(id.as_str()), None][..orders], "{kind}");
        assert!(seen.iter().all(|payload| payload["profile"] == "shortlived" && payload["identifiers"][0]["value"] == "a.test"));
    }
}

#[tokio::test]
async fn the_authority_says_when_to_renew() {
    if !python().exists() {
        eprintln!("NOT CHECKED: renewal windows, because {} is missing: `./dev test` installs it", python().display());
        return;
    }
    let mut certifier = Certifier::start().await;
    let issuer = certifier.issuer();
    let (_disk, store) = store();
    let acme = Acme::new(Arc::default(), Arc::clone(&store), None, Limits::default());
    let names = BTreeSet::from(["ari.skep.test".to_owned()]);
    let order = async |replaces: Option<&str>| {
        let request =
            Request { names: &names, issuer: &issuer, challenge: Challenge::Http01, replaces, email: Some("a@skep.test"), agree: true };
        acme.obtain(request).await
    };
    let first = order(None).await.unwrap_or_else(|failure| panic!("{failure}\n{}", certifier.log()));
    let first = record(first, &names);
    let now = Timestamp::now();
    let window = acme.window(&issuer, &first).await.unwrap_or_else(|failure| panic!("{failure}\n{}", certifier.log())).unwrap();
    assert!(now < window.start && window.start < window.end && window.end <= first.not_after, "{window:?}");
    let again = window.ask_again.duration_since(now);
    assert!((SignedDuration::from_secs(3500)..SignedDuration::from_secs(3700)).contains(&again), "Retry-After: {again:?}");
    // It has to revoke, say: the window moves into the past.
    certifier.restart(true).await;
    let moved = acme.window(&issuer, &first).await.unwrap_or_else(|failure| panic!("{failure}\n{}", certifier.log())).unwrap();
    assert!(moved.start < window.start && moved.start <= Timestamp::now(), "{moved:?}");
    let second = order(Some(&first.chain)).await.unwrap_or_else(|failure| panic!("{failure}\n{}", certifier.log()));
    let ids = [&first.chain, &second.chain].map(|chain| ari::identifier(chain).unwrap().to_string());
    assert_ne!(ids[0], ids[1]);
}
