//! What an authenticated request costs over an open one: from its cookie to a member of the group, and the cookie kept from the
//! upstream. Wanted: less than 5 µs in all. Beside it, what an open request costs for being looked through.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::header::{COOKIE, HeaderMap, HeaderValue};
use jiff::Timestamp;
use skep::auth::accounts::Accounts;
use skep::auth::cookie::{Cookie, has_ours, without_ours};
use skep::auth::identity::Identity;
use skep::auth::seal::{Keys, Ring};
use skep::auth::session::{Limits, Token};
use skep::auth::token::{KEY_LIFETIME, Signer, Tokens};
use skep::config::Auth;

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOST: &str = "shop.example.com";
/// As a browser sends it that has been around.
const OTHERS: &str = "theme=dark; _ga=GA1.1.1234567890.1234567890; csrftoken=0123456789abcdef0123456789abcdef; lang=de-DE";

fn keys() -> Keys {
    Keys::default().planned(Timestamp::now(), Duration::from_secs(86400), KEY_LIFETIME, &[7; 32]).expect("a key")
}

fn accounts(limits: &Limits) -> (Accounts, Token) {
    let accounts = Accounts::default();
    let mut token = None;
    for number in 0..10_000u128 {
        let groups = (0..20).map(|group| format!("group {group}"));
        let identity = Identity::new(&format!("user{number}"), groups);
        token = accounts.sign_in(identity, Timestamp::now(), limits, number.to_be_bytes()).map(|signed_in| signed_in.token);
    }
    (accounts, token.expect("the last one"))
}

fn request(c: &mut Criterion) {
    let limits = Limits::new(&Auth::default(), true);
    let (accounts, token) = accounts(&limits);
    let ring = Ring::new(&keys(), Timestamp::now()).expect("a ring");
    let text = token.seal(&ring, HOST, [1; 12]);
    let line = |text: &str| HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(text).expect("a value"))]);
    let (open, signed_in) = (line(OTHERS), line(&format!("{OTHERS}; __Host-skep={text}")));
    let member = |headers: &HeaderMap, now| {
        let found = Cookie::Session.values(headers, true).find_map(|text| {
            let token = Token::open(&ring, HOST, text)?;
            accounts.find(token, now, &limits)
        });
        found.filter(|live| live.identity().belongs("group 7"))
    };
    assert!(member(&signed_in, Timestamp::now()).is_some() && member(&open, Timestamp::now()).is_none());

    let mut group = c.benchmark_group("auth");
    group.bench_function("open request: is a cookie ours?", |b| {
        b.iter(|| black_box(&open).get_all(COOKIE).iter().any(|line| has_ours(line.as_bytes())));
    });
    group.bench_function("cookie to member of a group, cookie removed", |b| {
        b.iter(|| {
            let live = member(black_box(&signed_in), Timestamp::now());
            let left = signed_in.get(COOKIE).and_then(|line| without_ours(line.as_bytes()));
            (live, black_box(left))
        });
    });
    group.bench_function("of that: cookie to token", |b| b.iter(|| Token::open(&ring, HOST, black_box(&text))));
    group.bench_function("of that: token to session", |b| {
        b.iter(|| accounts.find(black_box(&token).clone(), Timestamp::now(), &limits));
    });

    let (signer, tokens) = (Signer::new(&keys(), Timestamp::now()).expect("a signer"), Tokens::default());
    let identity = Arc::new(Identity::new("ada", ["staff".to_owned()]));
    group.bench_function("signed token for the upstream, again", |b| {
        b.iter(|| tokens.get(&signer, black_box(&identity), HOST, Timestamp::now()));
    });
    group.bench_function("signed token for the upstream, new", |b| {
        b.iter(|| Tokens::default().get(&signer, black_box(&identity), HOST, Timestamp::now()));
    });
    group.finish();
}

criterion_group!(benches, request);
criterion_main!(benches);
