//! How long the labels of one service take to read: those of a first-generation stack, native ones, and ones that are nobody's.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use skep::label::{self, SismicsAuth};
use skep::state::keys;

const HAPROXY: &[(&str, &str)] = &[
    ("haproxy.virtual_host_secure", "docs.example.com, www.docs.example.com"),
    ("haproxy.http_redirect_from", "docs.example.org, www.docs.example.org"),
    ("haproxy.virtual_host_port", "8080"),
    ("com.sismics.docker.auth", "docs"),
    ("backup.enable", "true"),
];

const NATIVE: &[(&str, &str)] = &[
    ("skep.host", "docs.example.com"),
    ("skep.port", "8080"),
    ("skep.timeout-response", "60m"),
    ("skep.api.host", "docs.example.com"),
    ("skep.api.path", "/api"),
    ("skep.api.balance", "least"),
    ("skep.api.sticky", "lb"),
];

const NOBODYS: &[(&str, &str)] = &[
    ("com.docker.stack.namespace", "docs"),
    ("com.docker.stack.image", "registry.example.com/docs:1.2.3"),
    ("org.opencontainers.image.title", "Docs"),
    ("prometheus.io/scrape", "true"),
];

fn read(c: &mut Criterion) {
    let keys = keys();
    for (name, labels, routes) in [("haproxy", HAPROXY, 1), ("native", NATIVE, 2), ("nobodys", NOBODYS, 0)] {
        let labels: BTreeMap<String, String> = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        c.bench_function(&format!("label/{name}"), |b| {
            b.iter(|| {
                let (spec, findings) = label::parse(black_box(&labels), &keys, SismicsAuth::Both);
                assert_eq!(spec.routes.len(), routes);
                (spec, findings)
            });
        });
    }
}

criterion_group!(benches, read);
criterion_main!(benches);
