//! What a finished request costs to count, on one thread and on two at once: counters that cores share would show here.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use skep::telemetry::prometheus::Metrics;
use skep::telemetry::{Record, common_line, json_line};

const ROUTES: usize = 1_000;

fn routes() -> Vec<Arc<str>> {
    (0..ROUTES).map(|number| Arc::from(format!("stack{number}_web/api"))).collect()
}

fn record<'a>(route: &'a Arc<str>, headers: &'a HeaderMap, number: u64) -> Record<'a> {
    Record {
        at: Timestamp::UNIX_EPOCH,
        request_id: "0123456789abcdef0123456789abcdef",
        trace: None,
        client: Some([192, 0, 2, 7].into()),
        secure: false,
        user: None,
        method: if number.is_multiple_of(8) { "POST" } else { "GET" },
        host: "app.example.com",
        path: "/api/v1/users/7",
        query: "page=2",
        version: "HTTP/1.1",
        status: if number.is_multiple_of(16) { 404 } else { 200 },
        bytes_in: 0,
        bytes_out: 512,
        duration: Duration::from_micros(1_500 + number % 1_000),
        tls: None,
        wait: None,
        connect: Some(Duration::from_micros(80)),
        upstream: Some(Duration::from_micros(1_300)),
        reused: None,
        nth: 0,
        route: Some(route),
        service: Some("stack_web"),
        task: Some("stack_web.1"),
        backend: Some("stack_web/stack_web.1@10.0.1.3:80"),
        retries: 0,
        headers,
        error: None,
    }
}

fn spend(metrics: &Metrics, routes: &[Arc<str>], headers: &HeaderMap, count: u64) {
    for number in 0..count {
        let route = &routes[(number % routes.len() as u64) as usize];
        metrics.record(black_box(&record(route, headers, number)));
    }
}

/// The time of `count` requests on each of `threads` threads that began together.
fn together(threads: usize, metrics: &Metrics, routes: &[Arc<str>], headers: &HeaderMap, count: u64) -> Duration {
    let barrier = Barrier::new(threads + 1);
    let began = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                spend(metrics, routes, headers, count);
            });
        }
        barrier.wait();
        Instant::now()
    });
    began.elapsed()
}

fn count(criterion: &mut Criterion) {
    let (all, headers) = (routes(), HeaderMap::new());
    let mut group = criterion.benchmark_group("record");
    for (name, routes) in [("one route", &all[..1]), ("1000 routes", &all[..])] {
        for threads in [1, 2] {
            let metrics = Metrics::new();
            let case = format!("{name}, threads: {threads}");
            group.bench_function(case, |bencher| bencher.iter_custom(|count| together(threads, &metrics, routes, &headers, count)));
        }
    }
    group.finish();
}

fn line(criterion: &mut Criterion) {
    let routes = routes();
    let headers = HeaderMap::from_iter([
        (header::USER_AGENT, HeaderValue::from_static("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")),
        (header::REFERER, HeaderValue::from_static("https://app.example.com/users")),
    ]);
    let record = record(&routes[0], &headers, 1);
    criterion.bench_function("line/json", |bencher| bencher.iter(|| json_line(black_box(&record))));
    criterion.bench_function("line/common", |bencher| bencher.iter(|| common_line(black_box(&record))));
}

criterion_group!(benches, count, line);
criterion_main!(benches);
