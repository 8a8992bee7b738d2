//! How long a snapshot takes to become a state: a label change waits for it. Wanted: 100 services in 1 ms, 10,000 in 100 ms.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use skep::config::Config;
use skep::snapshot::{Condition, Edge, Engine, Service, Snapshot, Swarm, Task};
use skep::state::{Live, State};

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A service with two tasks and the labels that stacks have: one host, a port, what Docker itself adds; every tenth in the haproxy dialect.
fn service(number: u32) -> Service {
    let name = format!("stack{}_web{number}", number / 10);
    let host = format!("app{number}.example.com");
    let labels = match number % 10 {
        0 => vec![("haproxy.virtual_host", host), ("haproxy.virtual_host_port", "8080".to_owned())],
        _ => vec![("skep.host", host), ("skep.port", "8080".to_owned())],
    };
    let stack = ("com.docker.stack.namespace", format!("stack{}", number / 10));
    let image = ("com.docker.stack.image", "registry.example.com/app:1.2.3".to_owned());
    let task = |slot: u32| Task {
        id: format!("{number:012}{slot:013}"),
        name: format!("{name}.{slot}"),
        node: format!("node{}", slot % 5),
        container: Some(format!("{number:032}{slot:032}")),
        condition: Condition::Healthy,
        message: String::new(),
        addresses: BTreeMap::from([("edge".to_owned(), IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + number * 2 + slot)))]),
    };
    Service {
        id: format!("service{number}"),
        created: jiff::Timestamp::from_second(1_700_000_000 + i64::from(number)).expect("in range"),
        container_labels: BTreeMap::from([(stack.0.to_owned(), stack.1.clone())]),
        labels: labels.into_iter().chain([stack, image]).map(|(key, value)| (key.to_owned(), value)).collect(),
        networks: vec!["edge".to_owned(), "ingress".to_owned()],
        ports: vec![8080],
        replicas: Some(2),
        tasks: vec![task(1), task(2)],
        name,
        ..Service::default()
    }
}

fn snapshot(services: u32) -> Arc<Snapshot> {
    let edge = Edge { container: Some("skep".to_owned()), networks: vec!["edge".to_owned()] };
    let engine = Engine { id: "engine".to_owned(), swarm: Swarm::Manager, edge, ..Engine::default() };
    Arc::new(Snapshot { engine, services: (0..services).map(service).collect(), ..Snapshot::default() })
}

fn build(c: &mut Criterion) {
    let config = Arc::new(Config::default());
    let mut group = c.benchmark_group("state");
    for services in [100, 10_000] {
        let snapshot = snapshot(services);
        group.sample_size(if services > 1000 { 20 } else { 100 });
        group.bench_function(format!("build/{services}"), |b| {
            // Dropped at once, but not measured: memory is used again, as it is from one swap to the next.
            b.iter_batched(
                || (Arc::clone(&config), Arc::clone(&snapshot)),
                |(config, snapshot)| {
                    let state = State::build(config, black_box(snapshot));
                    assert_eq!(state.routes.len(), services as usize);
                    state
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("publish/{services}"), |b| {
            let live = Live::new(State::build(Arc::clone(&config), Arc::clone(&snapshot)));
            let mut changed = (*snapshot).clone();
            changed.services[0].tasks[0].condition = Condition::Stopping;
            let snapshots = [Arc::new(changed), Arc::clone(&snapshot)];
            let mut turn = 0;
            b.iter_batched(
                || {
                    turn += 1;
                    State::build(Arc::clone(&config), Arc::clone(&snapshots[turn % 2]))
                },
                |state| live.publish(state),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, build);
criterion_main!(benches);
