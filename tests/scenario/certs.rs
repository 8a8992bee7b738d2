//! From a label to a certificate: the edge with a real authority, names that are dead, restarts, and what `skep certs` tells.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep::config::Config;

use crate::harness::{Edge, get_path, services};
use crate::pebble::{Options, Pebble};
use crate::swarm::{Cleanup, Engine, overlay};

/// An edge whose certificates come from `pebble`.
async fn edge(pebble: &Pebble, state: &Path, stack: &str) -> Edge {
    edge_with(pebble, state, stack, |_| {}).await
}

async fn edge_with(pebble: &Pebble, state: &Path, stack: &str, change: impl FnOnce(&mut Config)) -> Edge {
    // Another test of this process may have installed it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Edge::with_config(stack, |config: &mut Config| {
        config.http.listen = vec![SocketAddr::from(([127, 0, 0, 1], pebble.http_port))];
        config.https.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.state.directory = Some(state.to_owned());
        config.acme.agree_tos = true;
        config.acme.issuers = vec!["pebble".to_owned()];
        config.acme.probe_port = pebble.http_port;
        config.dns.resolver = vec![pebble.names_address()];
        config.issuers.insert("pebble".to_owned(), skep::config::Issuer { public: false, ..pebble.issuer() });
        change(config);
    })
    .await
}

fn secured(names: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    names.iter().map(|name| ("skep.host", *name)).chain([("skep.address", "127.0.0.1:9"), ("skep.tls", "both")]).collect()
}

/// The names' standings, once `fine` says so.
async fn standings(edge: &Edge, fine: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let report = get_path(edge.admin, "localhost", "/certificates").await.json();
        let names = report["names"].as_array().unwrap().clone();
        if fine(&names) {
            return names;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{report:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn states(names: &[Value]) -> Vec<(&str, &str)> {
    names.iter().map(|standing| (standing["name"].as_str().unwrap(), standing["state"].as_str().unwrap())).collect()
}

/// Who signed what the edge shows for `name`, and how many orders the authority saw.
fn shown(edge: &Edge, name: &str) -> String {
    let address = edge.running.https[0].to_string();
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", name])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find(|line| line.starts_with("issuer=")).unwrap_or_default().to_owned()
}

fn orders(pebble: &Pebble) -> usize {
    pebble.log().matches("orders in the db").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_leads_to_a_certificate_and_a_dead_name_to_no_failed_validation() {
    let pebble = Pebble::start(Options::default()).await;
    pebble.change_names("add-a", serde_json::json!({"host": "dead.skep.test.", "addresses": ["127.0.0.2"]})).await;
    let state = tempfile::tempdir().unwrap();
    let first = secured(&["one.skep.test, dead.skep.test"]);
    let edge = edge(&pebble, state.path(), &services(&[("web", &first)])).await;
    let names = standings(&edge, |names| states(names).contains(&("one.skep.test", "valid"))).await;
    assert_eq!(states(&names), [("dead.skep.test", "waiting"), ("one.skep.test", "valid")]);
    assert!(names[0]["error"].as_str().is_some_and(|error| error.contains("does not reach this edge")), "{}", names[0]);
    assert!(!pebble.log().contains("dead.skep.test"), "the authority never heard of it");
    assert!(shown(&edge, "one.skep.test").contains("Pebble"), "{}", shown(&edge, "one.skep.test"));
    assert!(!shown(&edge, "dead.skep.test").contains("Pebble"));

    // A label more: at once.
    let second = secured(&["two.skep.test"]);
    let began = Instant::now();
    std::fs::write(edge.directory.path().join("stack.yml"), services(&[("web", &first), ("other", &second)])).unwrap();
    standings(&edge, |names| states(names).contains(&("two.skep.test", "valid"))).await;
    println!("from label to certificate: {:?}", began.elapsed());
    assert!(shown(&edge, "two.skep.test").contains("Pebble"));

    let told = Command::new(env!("CARGO_BIN_EXE_skep")).args(["certs", "--admin", &edge.admin.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.code() == Some(1) && text.contains("dead.skep.test  waiting") && text.contains("pebble"), "{text}");
    let metrics = get_path(edge.admin, "localhost", "/metrics").await.body;
    for line in [
        r#"skep_certificate_names{state="valid"} 2"#,
        r#"skep_certificate_orders_total{issuer="pebble",result="issued"} 2"#,
        r#"skep_certificate_expiry_timestamp_seconds{name="two.skep.test",issuer="pebble"} "#,
    ] {
        assert!(metrics.lines().any(|own| own.starts_with(line)), "{line}");
    }
    edge.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_orders_nothing_and_one_without_its_authority_serves_on() {
    let mut pebble = Pebble::start(Options::default()).await;
    let state = tempfile::tempdir().unwrap();
    let labels = services(&[("web", &secured(&["one.skep.test"]))]);
    let edge_ = edge(&pebble, state.path(), &labels).await;
    standings(&edge_, |names| states(names) == [("one.skep.test", "valid")]).await;
    edge_.running.stop().await;
    let before = orders(&pebble);
    pebble.stop_authority();
    let edge_ = edge(&pebble, state.path(), &labels).await;
    assert!(shown(&edge_, "one.skep.test").contains("Pebble"), "from the first handshake");
    standings(&edge_, |names| states(names) == [("one.skep.test", "valid")]).await;
    assert_eq!(orders(&pebble), before);
    edge_.running.stop().await;
}

/// All that `haproxy.virtual_host_secure` says on a swarm: a certificate of the authority, soon, and HTTP that leads to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_a_swarm_has_its_certificate_within_seconds() {
    let Some(engine) = Engine::shared() else { return };
    let pebble = Pebble::start(Options::default()).await;
    let state = tempfile::tempdir().unwrap();
    let edge = edge_with(&pebble, state.path(), "services: {}", |config| {
        (config.docker.enabled, config.docker.endpoint) = (true, engine.socket());
        config.https.public_port = Some(443);
    })
    .await;
    let labels = ["haproxy.virtual_host_secure=app.skep.test", "haproxy.http_redirect_from=www.skep.test"];
    let _cleanup = Cleanup(&engine, vec!["certified"]);
    overlay(&engine, "certs-net");
    let began = Instant::now();
    engine.service("certified", "certs-net", &labels, &[]);
    let both = [("app.skep.test", "valid"), ("www.skep.test", "valid")];
    standings(&edge, |names| both.iter().all(|name| states(names).contains(name))).await;
    let took = began.elapsed();
    println!("from `docker service create` to the certificate: {took:?}");
    assert!(shown(&edge, "app.skep.test").contains("Pebble") && shown(&edge, "www.skep.test").contains("Pebble"));
    for (host, to) in [("app.skep.test", "https://app.skep.test/x"), ("www.skep.test", "https://app.skep.test/x")] {
        let reply = get_path(edge.http, host, "/x").await;
        assert_eq!((reply.status, reply.header("location")), (301, to));
    }
    edge.running.stop().await;
    assert!(took < Duration::from_secs(15), "nobody waits longer for a certificate: {took:?}");
}

/// A first start with a hundred names, some of which are gone: the others do not wait for them, and the authority never hears of them.
#[tokio::test(flavor = "multi_thread")]
async fn dead_names_keep_nobody_from_a_certificate() {
    let pebble = Pebble::start(Options::default()).await;
    let state = tempfile::tempdir().unwrap();
    let mut stack = String::from("services:\n");
    for service in 0..20 {
        // Every second service has a dead name among its five.
        let dead = |name: u32| name == 3 && service % 2 == 0;
        let hosts: Vec<String> =
            (0..5).map(|name| format!("{}{service}-{name}.skep.test", if dead(name) { "dead" } else { "live" })).collect();
        for host in hosts.iter().filter(|host| host.starts_with("dead")) {
            pebble.change_names("add-a", serde_json::json!({"host": format!("{host}."), "addresses": ["127.0.0.2"]})).await;
        }
        let labels = format!("skep.host: \"{}\"\n      skep.address: 127.0.0.1:9\n      skep.tls: both", hosts.join(", "));
        stack.push_str(&format!("  s{service}:\n    labels:\n      {labels}\n"));
    }
    let edge = edge(&pebble, state.path(), &stack).await;
    let valid = |names: &[Value]| states(names).iter().filter(|(_, state)| *state == "valid").count();
    let names = standings(&edge, |names| valid(names) == 90).await;
    let waiting: Vec<_> = states(&names).into_iter().filter(|(_, state)| *state != "valid").collect();
    assert!(waiting.len() == 10 && waiting.iter().all(|(name, _)| name.starts_with("dead")), "{waiting:?}");
    assert!(!pebble.log().contains("dead"), "the authority never heard of them");
    assert!(orders(&pebble) <= 40, "names of a service share a certificate: {}", orders(&pebble));
    edge.running.stop().await;
}

/// Certificates that last half a minute: several renewals, and never a handshake that fails or shows an expired one.
#[tokio::test(flavor = "multi_thread")]
async fn renewals_cost_no_handshake() {
    let pebble = Pebble::start(Options { validity: 24, ..Options::default() }).await;
    let state = tempfile::tempdir().unwrap();
    let edge = edge(&pebble, state.path(), &services(&[("web", &secured(&["one.skep.test"]))])).await;
    standings(&edge, |names| states(names) == [("one.skep.test", "valid")]).await;
    let roots = pebble.roots().await;
    let (mut shown, began, mut handshakes) = (std::collections::BTreeSet::new(), Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(45) && shown.len() < 3 {
        let config = rustls::ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        // Verifies the dates as well.
        let stream = crate::secure::connect(edge.running.https[0], "one.skep.test", config).await.expect("a good certificate at any time");
        shown.insert(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec());
        handshakes += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(shown.len() >= 3 && handshakes > 100, "{} certificates in {handshakes} handshakes", shown.len());
    edge.running.stop().await;
}
