//! What it costs to find the certificate for a handshake at 10, 1,000 and 100,000 certificates: it should not grow, and must not
//! allocate. Every answer is checked inside the loop, so that a fast wrong keyring cannot win. And what a plan costs, which is made anew
//! after each step of each certificate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use skep::certificate::Source;
use skep::certificate::attempt::Attempts;
use skep::certificate::issuer::{Issuer, Limits, Policy};
use skep::certificate::keyring::{Entry, Keyring};
use skep::certificate::plan::{Action, Scene, plan};
use skep::certificate::record::{Record, Secret};
use skep::certificate::tls::Shown;
use skep::certificate::wanted::Wish;

const SIZES: [usize; 3] = [10, 1_000, 100_000];

/// The system's allocator, and how often this thread asked it for memory.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate after its counter is gone.
    _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// Counting is only possible here, and `GlobalAlloc` is an unsafe trait.
// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` asks for memory.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn key() -> Arc<CertifiedKey> {
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).expect("a pair"))
}

/// One wildcard in ten.
fn name(number: usize) -> String {
    if number.is_multiple_of(10) { format!("*.team{number}.example.com") } else { format!("app{number}.example.com") }
}

fn entry(key: &Arc<CertifiedKey>, name: &str) -> Arc<Entry> {
    Arc::new(Entry::with_key(Arc::clone(key), [Box::from(name)], Source::Acme, Timestamp::MAX))
}

/// A keyring of `size` certificates, and its default one.
fn keyring(key: &Arc<CertifiedKey>, size: usize) -> (Keyring, Arc<Entry>) {
    let default = entry(key, "default");
    (Keyring::new((0..size).map(|number| entry(key, &name(number))), Arc::clone(&default)), default)
}

/// What clients ask for, spread over all that there is, and whether there is a certificate for it.
fn questions(size: usize) -> [(&'static str, Vec<Option<String>>, bool); 4] {
    let spread = || (0..64).map(move |at| (at * size / 64) / 10 * 10);
    [
        ("exact", spread().map(|number| Some(format!("app{}.example.com", number + 1))).collect(), true),
        ("wildcard", spread().map(|number| Some(format!("www.team{number}.example.com"))).collect(), true),
        ("unknown", spread().map(|number| Some(format!("www.app{number}.example.org"))).collect(), false),
        ("no name", vec![None], false),
    ]
}

fn find(criterion: &mut Criterion) {
    let key = key();
    let mut group = criterion.benchmark_group("find");
    for size in SIZES {
        let (keyring, default) = keyring(&key, size);
        for (case, names, known) in questions(size) {
            let ask = |name: &Option<String>| {
                let found = keyring.find(black_box(name.as_deref()));
                match name {
                    Some(name) if known => assert!(found.covers(name)),
                    _ => assert!(Arc::ptr_eq(found, &default)),
                }
            };
            assert_eq!(allocations(|| names.iter().for_each(ask)), 0, "{case} at {size}: looking up allocates");
            assert_eq!(allocations(|| drop(black_box(name(size)))).min(1), 1, "allocations are not counted");
            let mut at = 0;
            group.bench_function(BenchmarkId::new(case, size), |bencher| {
                bencher.iter(|| {
                    at = (at + 1) % names.len();
                    ask(&names[at]);
                });
            });
        }
        // As handshakes do it: out of what may be swapped meanwhile.
        let shown = Shown::new(keyring);
        let asked = name(1);
        assert!(shown.find(Some(&asked)).covers(&asked));
        let count = allocations(|| drop(black_box(shown.find(Some(&asked)))));
        assert_eq!(count, 0, "shown at {size}: looking up allocates");
        group.bench_function(BenchmarkId::new("shown", size), |bencher| bencher.iter(|| shown.find(black_box(Some(&asked)))));
    }
    group.finish();
}

fn build(criterion: &mut Criterion) {
    let key = key();
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for size in SIZES {
        let entries: Vec<_> = (0..size).map(|number| entry(&key, &name(number))).collect();
        let default = entry(&key, "default");
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("keyring", size), |bencher| {
            bencher.iter(|| assert_eq!(Keyring::new(entries.iter().cloned(), Arc::clone(&default)).len(), size));
        });
    }
    group.finish();
}

/// A service for each name, each with a certificate of its own where `obtained`.
fn scene(count: usize, obtained: bool, now: Timestamp) -> (Vec<Wish>, Vec<Record>, Attempts) {
    let name = |number: usize| format!("app{number}.domain{}.com", number / 10);
    let wish = |number| Wish { service: format!("s{number}"), source: Source::Acme, names: BTreeSet::from([name(number)]) };
    let record = |number| Record {
        id: format!("{number:016x}"),
        service: format!("s{number}"),
        source: Source::Acme,
        issuer: Some("letsencrypt".to_owned()),
        names: vec![name(number)],
        chain: String::new(),
        key: Secret::new(String::new()),
        not_before: now - SignedDuration::from_hours(24),
        not_after: now + SignedDuration::from_hours(89 * 24),
        window: None,
        unwanted_since: None,
    };
    let records = if obtained { (0..count).map(record).collect() } else { Vec::new() };
    let attempts = (0..count).fold(Attempts::default(), |attempts, number| attempts.probed(&name(number), Ok(()), now));
    ((0..count).map(wish).collect(), records, attempts)
}

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let issuer = Issuer { name: "letsencrypt".to_owned(), public: true, limits: Limits::LETS_ENCRYPT };
    let policy = Policy { issuers: vec![issuer], ..Policy::default() };
    for count in [100, 1_000] {
        for (case, obtained) in [("to be ordered", false), ("obtained", true)] {
            let (wishes, records, attempts) = scene(count, obtained, now);
            let records: Vec<_> = records.iter().collect();
            let scene = Scene { wishes: &wishes, records: &records, attempts: &attempts, under_way: &[], policy: &policy, now, seed: 7 };
            let orders = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Order(_))).count();
            let wanted = orders(&plan(&scene));
            assert_eq!(wanted == 0, obtained, "{case}: {wanted} orders, {:?}", plan(&scene).first());
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(case, count), |bencher| {
                bencher.iter(|| assert_eq!(orders(&plan(black_box(&scene))), wanted));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, find, build, plans);
criterion_main!(benches);
