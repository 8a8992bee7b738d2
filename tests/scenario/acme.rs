//! Certificates from a real authority: every challenge is really validated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use instant_acme::{Account, AccountCredentials};
use jiff::{SignedDuration, Timestamp};
use skep::certificate::acme::{Acme, Issued, Limits, Request};
use skep::certificate::challenge::Challenges;
use skep::certificate::failure::{AccountProblem, Blame, Failure};
use skep::certificate::pem;
use skep::certificate::transport::Transport;
use skep::config::{self, Challenge, Issuer};
use skep::store::{Store, Version};

use crate::authority::{Answer, Authority};
use crate::pebble::{Answering, Cut, Door, Options, Pebble, TestNames, store};

/// An authority, and what asks it.
struct World {
    pebble: Pebble,
    challenges: Arc<Challenges>,
    store: Arc<dyn Store>,
    _disk: tempfile::TempDir,
    names: Arc<TestNames>,
    acme: Acme,
    answering: Option<Answering>,
}

impl World {
    async fn with(options: Options) -> World {
        let pebble = Pebble::start(options).await;
        let challenges = Arc::new(Challenges::default());
        let (disk, store) = store();
        let names = TestNames::of(&pebble);
        let answering = Some(Answering::start(&challenges, pebble.http_port, pebble.tls_port).await);
        let acme = Acme::new(Arc::clone(&challenges), store.clone(), Some(pebble.provider(&names)), Limits::default());
        World { pebble, challenges, store, _disk: disk, names, acme, answering }
    }

    async fn obtain(&self, names: &[&str], challenge: Challenge) -> Result<Issued, Failure> {
        obtain(&self.acme, &self.pebble.issuer(), names, challenge).await
    }

    /// Another one that asks the same authority, with accounts of its own.
    fn another(&self, limits: Limits) -> (tempfile::TempDir, Acme) {
        let (disk, store) = store();
        (disk, Acme::new(Arc::clone(&self.challenges), store, None, limits))
    }

    async fn accounts(&self) -> BTreeMap<String, Version> {
        self.store.list("acme/account/").await.unwrap()
    }

    fn nothing_is_left(&self) {
        assert_eq!(*self.names.records.lock().unwrap(), [], "every record was taken away");
        assert!(format!("{:?}", self.challenges).contains("http: {}, tls: {}"), "{:?}", self.challenges);
    }

    async fn restart_listeners(&mut self) {
        self.answering = None;
        tokio::task::yield_now().await;
        self.answering = Some(Answering::start(&self.challenges, self.pebble.http_port, self.pebble.tls_port).await);
    }
}

async fn obtain(acme: &Acme, issuer: &Issuer, names: &[&str], challenge: Challenge) -> Result<Issued, Failure> {
    let names = set(names);
    acme.obtain(Request { names: &names, issuer, challenge, replaces: None, email: Some("a@skep.test"), agree: true }).await
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn each_challenge_proves_names() {
    let world = World::with(Options { alternate_roots: 2, ..Options::default() }).await;
    let table = [
        (&["one.skep.test", "two.skep.test"][..], Challenge::Http01),
        (&["one.skep.test", "two.skep.test"], Challenge::TlsAlpn01),
        (&["one.skep.test", "two.skep.test"], Challenge::Dns01),
        (&["*.wild.skep.test", "wild.skep.test", "plain.skep.test"], Challenge::Http01),
    ];
    // All at once, so that the account is asked for by all.
    let orders = table.map(async |(names, challenge)| (names, challenge, world.obtain(names, challenge).await));
    for (names, challenge, outcome) in futures_util::future::join_all(orders).await {
        let issued = outcome.unwrap_or_else(|failure| panic!("{challenge:?}: {failure}"));
        let read = pem::read(&issued.chain, issued.key.reveal()).unwrap();
        assert_eq!(read.names.into_iter().collect::<BTreeSet<_>>(), set(names), "{challenge:?}");
        assert!(issued.not_before < issued.not_after);
        assert_eq!(issued.chain.matches("BEGIN CERTIFICATE").count(), 2, "the leaf and its issuer");
        assert!(!format!("{issued:?}").contains("PRIVATE KEY"));
    }
    assert_eq!(world.accounts().await.len(), 1, "one account serves all orders");
    world.nothing_is_left();
}

#[tokio::test]
async fn refused_nonces_are_tried_again() {
    let world = World::with(Options { refused_nonces: 50, ..Options::default() }).await;
    for round in 0..3 {
        let issued = world.obtain(&["a.skep.test", "b.skep.test"], Challenge::Http01).await;
        issued.unwrap_or_else(|failure| panic!("{round}: {failure}"));
    }
    world.nothing_is_left();
}

/// An account with a binding is registered once; orders of later ones find it.
#[tokio::test]
async fn accounts_are_bound_to_external_ones() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let world = World::with(Options { bindings: BTreeMap::from([("kid-1", KEY)]), ..Options::default() }).await;
    let bound = |kid: Option<&str>, key: &str| {
        let file = kid.map(|kid| world.pebble.file(kid, key));
        Issuer { eab_kid: kid.map(str::to_owned), eab_key_file: file, ..world.pebble.issuer() }
    };
    let wrong = KEY.replace('z', "y");
    for (kid, key, said) in [
        (None, "", "wants an external account binding: set eab-kid and eab-key-file in [issuer.pebble]"),
        (Some("kid-2"), KEY, "refuses the external account binding of [issuer.pebble]"),
        (Some("kid-1"), wrong.as_str(), "refuses the external account binding of [issuer.pebble]"),
    ] {
        let failure = obtain(&world.acme, &bound(kid, key), &["a.skep.test"], Challenge::Http01).await.unwrap_err();
        let Failure::Account { problem: AccountProblem::Binding, text } = &failure else { panic!("{kid:?}: {failure:?}") };
        assert!(text.contains(said) && !text.contains(KEY), "{kid:?}: {text}");
    }
    let mut unreadable = bound(Some("kid-1"), "this is no key");
    for file in [unreadable.eab_key_file.clone(), Some("/nowhere/key".into())] {
        unreadable.eab_key_file = file;
        let failure = obtain(&world.acme, &unreadable, &["a.skep.test"], Challenge::Http01).await.unwrap_err();
        assert!(matches!(&failure, Failure::Local(text) if text.contains("issuer.pebble.eab-key-file")), "{failure:?}");
    }
    for _ in 0..2 {
        obtain(&world.acme, &bound(Some("kid-1"), &format!("{KEY}\n")), &["a.skep.test"], Challenge::Http01).await.unwrap();
    }
    assert_eq!(world.accounts().await.len(), 1);
}

#[tokio::test]
async fn an_account_that_is_gone_is_registered_again() {
    let mut world = World::with(Options::default()).await;
    let kept = async |world: &World| {
        let (key, _) = world.accounts().await.pop_first().unwrap();
        let entry = world.store.get(&key).await.unwrap().unwrap();
        serde_json::from_slice::<serde_json::Value>(&entry.value).unwrap()["credentials"].clone()
    };
    world.obtain(&["a.skep.test"], Challenge::Http01).await.unwrap();
    // Deactivated, as somebody does who believes that its key leaked.
    let first = kept(&world).await;
    let transport = Transport::new(world.pebble.issuer().root.as_deref(), Duration::from_secs(10)).unwrap();
    let credentials: AccountCredentials = serde_json::from_value(first.clone()).unwrap();
    let account = Account::builder_with_http(Box::new(transport)).from_credentials(credentials).await.unwrap();
    account.deactivate().await.unwrap();
    world.obtain(&["a.skep.test"], Challenge::Http01).await.unwrap();
    let second = kept(&world).await;
    assert_ne!(first["key_pkcs8"], second["key_pkcs8"], "a new account has a new key");
    // Forgotten, as by an authority that was set up anew.
    world.pebble.start_authority().await;
    world.obtain(&["a.skep.test"], Challenge::Http01).await.unwrap();
    assert_ne!(second["key_pkcs8"], kept(&world).await["key_pkcs8"]);
    assert_eq!(world.accounts().await.len(), 1, "the new one takes the place of the old one");
}

#[tokio::test]
async fn the_names_that_are_to_blame_are_named_with_the_reason() {
    let world = World::with(Options::default()).await;
    world.pebble.change_names("set-servfail", serde_json::json!({"host": "broken.skep.test"})).await;
    world.pebble.change_names("add-a", serde_json::json!({"host": "far.skep.test", "addresses": ["127.0.0.9"]})).await;
    let failure = world.obtain(&["broken.skep.test", "far.skep.test", "fine.skep.test"], Challenge::Http01).await.unwrap_err();
    let Failure::Names(refused) = &failure else { panic!("{failure:?}") };
    let told: Vec<_> = refused.iter().map(|(name, refusal)| (name.as_str(), refusal.kind.as_str(), refusal.blame, refusal.tried)).collect();
    let name = |name, kind| (name, kind, Blame::Name, true);
    assert_eq!(told, [name("broken.skep.test", "connection"), name("far.skep.test", "connection")], "{failure}");
    let failure = world.obtain(&["blocked.test", "fine.skep.test"], Challenge::Http01).await.unwrap_err();
    let Failure::Names(refused) = &failure else { panic!("{failure:?}") };
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["blocked.test"], "{failure}");
    assert_eq!((refused["blocked.test"].kind.as_str(), refused["blocked.test"].tried), ("rejectedIdentifier", false));
    world.obtain(&["fine.skep.test"], Challenge::Http01).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test]
async fn an_outage_at_any_step_is_survived_or_told() {
    let world = World::with(Options::default()).await;
    let quick = Limits { request: Duration::from_secs(5), order: Duration::from_secs(60), ..Limits::default() };
    let through = async |cut, name: String| {
        let door = Door::to(world.pebble.address, cut).await;
        let (disk, acme) = world.another(quick);
        let outcome = obtain(&acme, &world.pebble.issuer_at(door.address), &[&name], Challenge::Http01).await;
        (outcome, door.pieces.load(Ordering::SeqCst), (disk, acme))
    };
    let (outcome, pieces, _) = through(Cut::Never, "whole.skep.test".to_owned()).await;
    outcome.unwrap();
    assert!(pieces > 10, "{pieces}");
    let steps: Vec<_> = (1..=pieces).map(|step| through(Cut::Once(step), format!("once-{step}.skep.test"))).collect();
    let mut survived = 0;
    for (step, (outcome, ..)) in futures_util::future::join_all(steps).await.into_iter().enumerate() {
        match outcome {
            Ok(_) => survived += 1,
            Err(Failure::Unavailable { text, .. }) => assert!(step < pieces / 2, "step {step}: {text}"),
            Err(failure) => panic!("step {step}: {failure:?}"),
        }
    }
    assert!(survived * 2 >= pieces, "{survived} of {pieces}");
    let steps: Vec<_> = (1..=pieces).step_by(4).map(|step| through(Cut::From(step), format!("from-{step}.skep.test"))).collect();
    for (step, (outcome, _, (_disk, acme))) in futures_util::future::join_all(steps).await.into_iter().enumerate() {
        assert!(matches!(outcome, Err(Failure::Unavailable { .. })), "step {step}: {outcome:?}");
        // The same client, once the authority is back.
        obtain(&acme, &world.pebble.issuer(), &["back.skep.test"], Challenge::Http01).await.unwrap();
    }
    world.nothing_is_left();
}

/// What an authority has issued when it goes away counts towards its limits, and is fetched when it is back.
#[tokio::test]
async fn an_order_that_lacks_its_certificate_only_is_gone_on_with() {
    let world = World::with(Options::default()).await;
    let quick = Limits { request: Duration::from_secs(1), order: Duration::from_secs(2), ..Limits::default() };
    let mut fetched_later = 0;
    let mut whole = None;
    for back in (0..8).rev() {
        let at = whole.map_or(Cut::Never, |pieces: usize| Cut::Silent(pieces - back));
        let door = Door::to(world.pebble.address, at).await;
        let (_disk, acme) = world.another(quick);
        let issuer = world.pebble.issuer_at(door.address);
        let before = world.pebble.issued();
        let name = format!("late-{back}.skep.test");
        let outcome = obtain(&acme, &issuer, &[&name], Challenge::Http01).await;
        whole.get_or_insert(door.pieces.load(Ordering::SeqCst));
        if outcome.is_ok() {
            continue;
        }
        assert!(matches!(outcome, Err(Failure::Unavailable { .. })), "{back}: {outcome:?}");
        fetched_later += world.pebble.issued() - before;
        door.open();
        obtain(&acme, &issuer, &[&name], Challenge::Http01).await.unwrap();
        assert_eq!(world.pebble.issued() - before, 1, "{back}: ordered once");
    }
    assert!(fetched_later > 0, "an outage fell between issuing and fetching");
    world.nothing_is_left();
}

#[tokio::test]
async fn a_silent_authority_is_given_up() {
    let world = World::with(Options::default()).await;
    for pieces in [1, 5, 12] {
        let began = Instant::now();
        let door = Door::to(world.pebble.address, Cut::Silent(pieces)).await;
        let (_disk, acme) = world.another(Limits { request: Duration::from_secs(1), order: Duration::from_secs(4), ..Limits::default() });
        let outcome = obtain(&acme, &world.pebble.issuer_at(door.address), &["a.skep.test"], Challenge::Http01).await;
        let Err(Failure::Unavailable { text, .. }) = &outcome else { panic!("{pieces}: {outcome:?}") };
        assert!(text.contains("within"), "{pieces}: {text}");
        assert!(began.elapsed() < Duration::from_secs(30), "{pieces}: {:?}", began.elapsed());
    }
    world.nothing_is_left();
}

#[tokio::test]
async fn a_slow_authority_is_waited_for() {
    let mut world = World::with(Options { slow: Some(3), ..Options::default() }).await;
    let names = set(&["slow.skep.test", "*.slow.skep.test"]);
    let issuer = world.pebble.issuer();
    {
        let request = Request { names: &names, issuer: &issuer, challenge: Challenge::TlsAlpn01, replaces: None, email: None, agree: true };
        world.acme.obtain(request).await.unwrap();
    }
    // The listeners that answer begin anew while the authority takes its time: it gets its answer, or says what it lacked.
    let (_disk, another) = world.another(Limits::default());
    let order = tokio::spawn(async move { obtain(&another, &issuer, &["restart.skep.test"], Challenge::Http01).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.restart_listeners().await;
    match order.await.unwrap() {
        Ok(_) => {}
        Err(Failure::Names(refused)) => assert_eq!(refused["restart.skep.test"].kind, "connection", "{refused:?}"),
        Err(failure) => panic!("{failure:?}"),
    }
    world.obtain(&["restart.skep.test"], Challenge::Http01).await.unwrap();
    world.nothing_is_left();
}

#[tokio::test]
async fn an_order_that_is_dropped_leaves_nothing() {
    let world = World::with(Options { slow: Some(15), ..Options::default() }).await;
    let order = world.obtain(&["*.drop.skep.test", "drop.skep.test"], Challenge::Http01);
    assert!(tokio::time::timeout(Duration::from_secs(2), order).await.is_err(), "it takes longer");
    let began = Instant::now();
    while !world.names.records.lock().unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", world.names.records);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.nothing_is_left();
}

#[tokio::test]
async fn what_nobody_need_be_asked_for_is_said_at_once() {
    let authority = Authority::answering(BTreeMap::new()).await;
    let (_disk, store) = store();
    let acme = Acme::new(Arc::default(), store, None, Limits::default());
    let failure = async |names: &[&str], change: &dyn Fn(&mut Issuer), challenge, agree| {
        let mut issuer = authority.issuer();
        change(&mut issuer);
        let names = set(names);
        let request = Request { names: &names, issuer: &issuer, challenge, replaces: None, email: None, agree };
        acme.obtain(request).await.unwrap_err()
    };
    let same = |_: &mut Issuer| {};
    let (http, dns) = (Challenge::Http01, Challenge::Dns01);
    let told = failure(&["a.test"], &same, http, false).await;
    assert!(matches!(&told, Failure::Account { problem: AccountProblem::Terms, text } if text.contains("agree-tos = true")), "{told:?}");
    for (names, challenge, blamed) in [(&["a.test", "*.a.test"][..], http, &["*.a.test"][..]), (&["a.test"], dns, &["a.test"])] {
        let told = failure(names, &same, challenge, true).await;
        let Failure::Names(refused) = &told else { panic!("{told:?}") };
        assert_eq!(refused.keys().collect::<Vec<_>>(), blamed);
        assert!(refused.values().all(|refusal| refusal.blame == Blame::Edge && !refusal.tried && refusal.text.contains("[dns]")));
    }
    let told = failure(&["a.test"], &|issuer| issuer.root = Some("/nowhere.pem".into()), http, true).await;
    assert!(matches!(&told, Failure::Local(text) if text.contains("/nowhere.pem")), "{told:?}");
    let told = failure(&["a.test"], &|issuer| issuer.root = None, http, true).await;
    assert!(matches!(&told, Failure::Unavailable { text, .. } if text.contains("UnknownIssuer")), "{told:?}");
    let told = failure(&["a.test"], &|issuer| issuer.directory = "https://127.0.0.1:1/dir".to_owned(), http, true).await;
    assert!(matches!(&told, Failure::Unavailable { text, .. } if text.contains("refused")), "{told:?}");
}

#[tokio::test]
async fn what_an_authority_says_against_an_order_is_understood() {
    let problem =
        |kind: &str, detail: &str| serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail}).to_string();
    let order = |status, headers: &[(&'static str, &str)], body: String| -> Answer {
        (status, headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(), body)
    };
    let told = async |answer: Answer| {
        let authority = Authority::answering(BTreeMap::from([("/new-order", answer)])).await;
        let (_disk, store) = store();
        let acme = Acme::new(Arc::default(), store, None, Limits::default());
        obtain(&acme, &authority.issuer(), &["a.one.test", "b.two.test"], Challenge::Http01).await.unwrap_err()
    };
    let limit = "too many certificates (50) already issued for \"one.test\" in the last 168h0m0s";
    let near = |until: Timestamp, expected: i64| (until.duration_since(Timestamp::now()).as_secs() - expected).abs() < 60;
    match told(order(429, &[("retry-after", "7200")], problem("rateLimited", limit))).await {
        Failure::RateLimited { until, names, text } => {
            assert!(near(until, 7200) && names == set(&["a.one.test"]), "{until} {names:?} {text}")
        }
        other => panic!("{other:?}"),
    }
    let date = (Timestamp::now() + SignedDuration::from_hours(3)).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    match told(order(429, &[("retry-after", &date)], problem("rateLimited", "too many new orders"))).await {
        Failure::RateLimited { until, names, .. } => assert!(near(until, 3 * 3600) && names.is_empty(), "{until} {names:?}"),
        other => panic!("{other:?}"),
    }
    match told(order(429, &[], "<html>slow down</html>".to_owned())).await {
        Failure::RateLimited { until, .. } => assert!(near(until, 3600), "{until}"),
        other => panic!("{other:?}"),
    }
    match told(order(503, &[("retry-after", "120")], "busy".to_owned())).await {
        Failure::Unavailable { retry_after: Some(until), text } => assert!(near(until, 120) && text.contains("503"), "{until} {text}"),
        other => panic!("{other:?}"),
    }
    for (status, body, said) in [
        (500, problem("serverInternal", "oops"), "oops"),
        (201, "<html>hello</html>".to_owned(), "not ACME"),
        (301, String::new(), "301"),
        (404, String::new(), "404"),
        (200, "x".repeat(3_000_000), "length limit"),
    ] {
        let failure = told(order(status, &[], body)).await;
        assert!(matches!(&failure, Failure::Unavailable { text, .. } if text.contains(said)), "{status}: {failure:?}");
    }
    let failure = told(order(403, &[], problem("userActionRequired", "the terms have changed"))).await;
    assert!(matches!(&failure, Failure::Account { problem: AccountProblem::Terms, .. }), "{failure:?}");
    let failure = told(order(400, &[], problem("rejectedIdentifier", "Cannot issue for \"b.two.test\": forbidden by policy"))).await;
    assert!(matches!(&failure, Failure::Names(refused) if refused.keys().eq(["b.two.test"])), "{failure:?}");
}

/// Nothing that an authority says reaches a log with control characters, or at length.
#[tokio::test]
async fn what_an_authority_says_is_kept_short() {
    let body = serde_json::json!({"type": "urn:ietf:params:acme:error:dns", "detail": format!("a\u{1b}[31m\n{}", "x".repeat(5000))});
    let authority = Authority::answering(BTreeMap::from([("/new-order", (400, vec![], body.to_string()))])).await;
    let (_disk, store) = store();
    let acme = Acme::new(Arc::default(), store, None, Limits::default());
    let failure = obtain(&acme, &authority.issuer(), &["a.test"], config::Challenge::Http01).await.unwrap_err().to_string();
    assert!(failure.len() < 600 && !failure.chars().any(char::is_control), "{failure:?}");
}
