//! What a lookup costs at 10, 1,000 and 100,000 routes (it should not grow), and what reading a rule costs.
//! Every answer is checked inside the loop, so that a fast wrong table cannot win.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use jiff::Timestamp;
use skep::label::Value;
use skep::route::condition::{Condition, Test};
use skep::route::{Entry, Head, HostPattern, Matcher, PathPattern, Table, rule};

/// What a table of `size` routes holds: one wildcard in ten hosts, three paths a host, one of them with a condition.
fn entries(size: usize) -> Vec<Entry<usize>> {
    let entry = |index: usize| {
        let (host, kind) = (index / 3, index % 3);
        let host = match host % 10 {
            9 => HostPattern::Wildcard(format!("team{host}.example.com")),
            _ => HostPattern::Exact(format!("app{host}.example.com")),
        };
        let path = PathPattern::Prefix(["/", "/api", "/api/v1"][kind].to_owned());
        let condition = Condition { test: Test::Method("GET".to_owned()), negated: false };
        let conditions = if kind == 2 { vec![condition] } else { Vec::new() };
        let matcher = Matcher { hosts: vec![host], path, conditions, priority: None };
        Entry { matcher, created: Timestamp::UNIX_EPOCH, owner: format!("service{index}"), payload: index }
    };
    (0..size).map(entry).collect()
}

fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find");
    let (headers, get, post) = (HeaderMap::new(), Method::GET, Method::POST);
    for size in [10, 1_000, 100_000] {
        let (table, conflicts) = Table::build(entries(size));
        assert!(conflicts.is_empty());
        // Requests spread over the whole table, so that caches help no more than they would for a server.
        let hosts: Vec<usize> = (0..64).map(|at| at * (size / 3).max(1) / 64).collect();
        let names: Vec<String> =
            hosts.iter().map(|host| if host % 10 == 9 { format!("x.team{host}") } else { format!("app{host}") }).collect();
        let names: Vec<String> = names.iter().map(|name| format!("{name}.example.com")).collect();
        let paths = [("/index.html", &get, 0), ("/api/v1/users/7", &get, 2), ("/api/v1/users/7", &post, 1), ("/%61pi/v2", &get, 1)];
        for (case, (path, method, kind)) in ["root", "deep", "condition", "encoded"].into_iter().zip(paths) {
            group.bench_function(BenchmarkId::new(case, size), |bencher| {
                let mut at = 0;
                bencher.iter(|| {
                    at = (at + 1) % hosts.len();
                    let client = std::net::Ipv4Addr::LOCALHOST.into();
                    let head = Head { host: &names[at], path, query: "", method, headers: &headers, client };
                    let found = table.find(black_box(&head));
                    assert_eq!(found, Some(&(hosts[at] * 3 + kind)));
                });
            });
        }
        group.bench_function(BenchmarkId::new("unknown host", size), |bencher| {
            let client = std::net::Ipv4Addr::LOCALHOST.into();
            let head = Head { host: "nobody.example.org", path: "/", query: "", method: &get, headers: &headers, client };
            bencher.iter(|| assert_eq!(table.find(black_box(&head)), None));
        });
    }
    group.finish();
}

/// Many paths on one host, as one application with a table of its own has them.
fn one_host(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one host");
    let (headers, get) = (HeaderMap::new(), Method::GET);
    for size in [10usize, 1_000, 100_000] {
        let entry = |index: usize| {
            let path = PathPattern::Start(format!("/section/{index}-"));
            let matcher =
                Matcher { hosts: vec![HostPattern::Exact("a.example.com".to_owned())], path, conditions: Vec::new(), priority: None };
            Entry { matcher, created: Timestamp::UNIX_EPOCH, owner: String::new(), payload: index }
        };
        let (table, _) = Table::build((0..size).map(entry).collect());
        let paths: Vec<(usize, String)> = (0..64).map(|at| at * size / 64).map(|index| (index, format!("/section/{index}-x/y"))).collect();
        group.bench_function(BenchmarkId::new("find", size), |bencher| {
            let mut at = 0;
            bencher.iter(|| {
                at = (at + 1) % paths.len();
                let (index, path) = &paths[at];
                let client = std::net::Ipv4Addr::LOCALHOST.into();
                let head = Head { host: "a.example.com", path, query: "", method: &get, headers: &headers, client };
                assert_eq!(table.find(black_box(&head)), Some(index));
            });
        });
    }
    group.finish();
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for size in [10, 1_000, 100_000] {
        let input = entries(size);
        group.bench_function(BenchmarkId::new("table", size), |bencher| {
            bencher.iter_batched(|| input.clone(), |input| assert!(Table::build(input).1.is_empty()), criterion::BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rule");
    for (name, text) in [
        ("host and path", "Host(`app.example.com`) && PathPrefix(`/api`)"),
        (
            "mixed",
            "(Host(`a.example.com`) || Host(`b.example.com`)) && !PathPrefix(`/private`) && (Method(`GET`) || Header(`X-Beta`, `1`))",
        ),
        ("regex", "HostRegexp(`^team-[0-9]+\\.example\\.com$`)"),
    ] {
        let value = Value::new("skep.rule", text).expect("not blank");
        group.bench_function(name, |bencher| bencher.iter(|| assert!(rule::parse(black_box(&value)).0.is_some())));
    }
    group.finish();
}

criterion_group!(benches, find, one_host, build, parse);
criterion_main!(benches);
