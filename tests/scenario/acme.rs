//! Certificates from a real authority: every challenge is really validated.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep::certificate::acme::{Acme, Issued, Limits, Request};
use skep::certificate::chain;
use skep::certificate::challenge::Challenges;
use skep::certificate::failure::Failure;
use skep::config::{self, Challenge};

use crate::pebble::{Answering, Memory, Options, Pebble, TestNames};

/// An authority, and what asks it.
struct World {
    pebble: Pebble,
    challenges: Arc<Challenges>,
    store: Arc<Memory>,
    names: Arc<TestNames>,
    acme: Acme,
    _answering: Answering,
}

impl World {
    async fn with(options: Options) -> World {
        let pebble = Pebble::start(options).await;
        let challenges = Arc::new(Challenges::default());
        let store = Arc::new(Memory::default());
        let names = TestNames::of(&pebble);
        let answering = Answering::start(&challenges, pebble.http_port, pebble.tls_port).await;
        let acme = Acme::new(Arc::clone(&challenges), store.clone(), Some(pebble.provider(&names)), Limits::default());
        World { pebble, challenges, store, names, acme, _answering: answering }
    }

    async fn obtain(&self, names: &[&str], challenge: Challenge) -> Result<Issued, Failure> {
        self.obtain_from(&self.pebble.issuer(), names, challenge).await
    }

    async fn obtain_from(&self, issuer: &config::Issuer, names: &[&str], challenge: Challenge) -> Result<Issued, Failure> {
        let names = set(names);
        self.acme.obtain(Request { names: &names, issuer, challenge, replaces: None, email: Some("a@skep.test"), agree: true }).await
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn each_challenge_proves_names() {
    let world = World::with(Options::default()).await;
    for (names, challenge) in [
        (&["one.skep.test", "two.skep.test"][..], Challenge::Http01),
        (&["one.skep.test", "two.skep.test"], Challenge::TlsAlpn01),
        (&["one.skep.test", "two.skep.test"], Challenge::Dns01),
        (&["*.wild.skep.test", "wild.skep.test", "plain.skep.test"], Challenge::Http01),
    ] {
        let issued = world.obtain(names, challenge).await.unwrap_or_else(|failure| panic!("{challenge:?}: {failure}"));
        let leaf = chain::leaf(&issued.chain).unwrap();
        assert_eq!(leaf.names, set(names), "{challenge:?}");
        assert!(issued.not_before < issued.not_after);
        assert_eq!(issued.chain.matches("BEGIN CERTIFICATE").count(), 2, "the leaf and its issuer");
    }
    assert_eq!(world.store.0.lock().unwrap().len(), 1, "one account serves all orders");
    assert_eq!(*world.names.records.lock().unwrap(), [], "every record was taken away");
    assert!(format!("{:?}", world.challenges).contains("http: {}, tls: {}"), "{:?}", world.challenges);
}
