//! DNS-01 against real servers: BIND takes signed updates and answers for zones; Cloudflare and OVHcloud are played after their
//! documentation, with their checks of tokens and signatures; hooks are real scripts.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use tempfile::TempDir;

use skep::certificate::dns::{self, Dns, Fault, Record};
use skep::certificate::zone::Zones;
use skep::config::{Dns as Settings, DnsProvider, TsigAlgorithm};

use crate::harness::free_port;

const NAME: &str = "_acme-challenge.app.example.test";
const KEYS: [(&str, &str, &str); 2] = [
    ("skep", "hmac-sha256", "c2tlcC1za2VwLXNrZXAtc2tlcC1za2VwLXNrZXA9"),
    ("long", "hmac-sha512", "bG9uZy1sb25nLWxvbmctbG9uZy1sb25nLWxvbmctbG9uZw=="),
];
const PATIENCE: Duration = Duration::from_secs(20);

/// BIND on one address and port of this machine: authoritative for the zones below, and a resolver that knows no others.
pub struct Named {
    pub address: SocketAddr,
    process: Child,
    folder: TempDir,
}

impl Drop for Named {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to stop.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn zone(servers: &[(&str, &str)], more: &str) -> String {
    let mut text = "$TTL 1\n@ SOA ns1 hostmaster 1 1 1 3600 1\n".to_owned();
    for (name, address) in servers {
        let kind = if address.contains(':') { "AAAA" } else { "A" };
        text += &format!("@ NS {name}\n{name} {kind} {address}\n");
    }
    text + more
}

impl Named {
    /// The zones example.test and delegated.test, which the keys may change, guarded.test, which they may not, and the root.
    pub async fn primary() -> Named {
        Named::serving(&[("ns1", "127.0.0.1")], "").await
    }

    async fn serving(servers: &[(&str, &str)], options: &str) -> Named {
        Named::on(free_port(), servers, options).await
    }

    async fn on(port: u16, servers: &[(&str, &str)], options: &str) -> Named {
        let free = "allow-update { key skep; key long; };";
        let aliases = "_acme-challenge.away CNAME away.delegated.test.\n\
            *.wild CNAME app\n\
            _acme-challenge.circle CNAME circle\ncircle CNAME _acme-challenge.circle\n\
            _acme-challenge.strict CNAME strict.guarded.test.\n\
            _acme-challenge.app TXT \"somebody else's\"\n";
        let zones = [
            ("example.test", zone(servers, aliases), free),
            ("delegated.test", zone(&[("ns1", "127.0.0.1")], ""), free),
            ("guarded.test", zone(&[("ns1", "127.0.0.1")], ""), ""),
            (".", zone(&[("ns1", "127.0.0.1")], ""), ""),
        ];
        let written: Vec<(&str, String, &str)> = zones.iter().map(|(name, text, more)| (*name, text.clone(), *more)).collect();
        let statements: String =
            written.iter().map(|(name, _, more)| format!("zone \"{name}\" {{ type primary; file \"{name}.zone\"; {more} }};\n")).collect();
        let files: Vec<(String, String)> = written.into_iter().map(|(name, text, _)| (format!("{name}.zone"), text)).collect();
        Named::start("127.0.0.1", port, &files, &statements, options).await
    }

    async fn start(ip: &str, port: u16, files: &[(String, String)], zones: &str, options: &str) -> Named {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let keys: String = KEYS
            .iter()
            .map(|(name, algorithm, secret)| format!("key \"{name}\" {{ algorithm {algorithm}; secret \"{secret}\"; }};\n"))
            .collect();
        // It listens on addresses of interfaces only, so a second server beside 127.0.0.1 is at ::1.
        let listen = match ip.contains(':') {
            false => format!("listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }};"),
            true => format!("listen-on {{ none; }}; listen-on-v6 port {port} {{ {ip}; }};"),
        };
        let text = format!(
            "{keys}options {{ directory \"{path}\"; pid-file \"{path}/pid\"; session-keyfile \"{path}/session.key\"; {listen} \
             dnssec-validation no; recursion yes; allow-transfer {{ any; }}; {options} }};\ncontrols {{ }};\n{zones}"
        );
        std::fs::write(folder.path().join("named.conf"), text).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("named")
            .args(["-g", "-n", "1", "-c"])
            .arg(folder.path().join("named.conf"))
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("`named` cannot be run: `apt-get install bind9`, as `./dev test` does");
        let named = Named { address: SocketAddr::new(ip.parse().unwrap(), port), process, folder };
        for _ in 0..200 {
            if lookup(named.address, "ns1.example.test", RecordType::A).await.is_some_and(|found| !found.is_empty()) {
                return named;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(named.folder.path().join("log")).unwrap();
        panic!("named does not answer:\n{log}");
    }

    /// The TXT values at `name`, sorted.
    async fn values(&self, name: &str) -> Vec<String> {
        let mut found = lookup(self.address, name, RecordType::TXT).await.unwrap_or_default();
        found.sort();
        found
    }
}

/// What a server answers; `None`: nothing, or no such name.
async fn lookup(server: SocketAddr, name: &str, kind: RecordType) -> Option<Vec<String>> {
    let mut connection = ConnectionConfig::tcp();
    connection.port = server.port();
    let config = ResolverConfig::from_name_servers(vec![NameServerConfig::new(server.ip(), true, vec![connection])]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.options_mut().attempts = 1;
    builder.options_mut().timeout = Duration::from_secs(2);
    let found = builder.build().unwrap().lookup(format!("{name}."), kind).await.ok()?;
    let text = |data: &RData| match data {
        RData::TXT(txt) => Some(String::from_utf8(txt.txt_data.concat()).unwrap()),
        RData::A(address) => Some(address.to_string()),
        _ => None,
    };
    Some(found.answers().iter().filter_map(|answer| text(&answer.data)).collect())
}

/// A file with a secret.
fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Settings of rfc2136 with the first key, as `tsig-keygen` prints it.
pub fn settings(named: &Named, folder: &TempDir) -> Settings {
    let (name, algorithm, secret) = KEYS[0];
    let key = format!("key \"{name}\" {{\n\talgorithm {algorithm};\n\tsecret \"{secret}\";\n}};\n");
    Settings {
        provider: DnsProvider::Rfc2136,
        server: Some(named.address.to_string()),
        tsig_key_file: Some(file(folder, "key", &key)),
        resolver: vec![named.address],
        nameservers: vec![named.address],
        propagation_timeout: PATIENCE,
        ..Settings::default()
    }
}

fn open(settings: &Settings) -> Arc<Dns> {
    dns::from_config(settings, None).unwrap().unwrap()
}

/// [`open`], but looking for the zones' own name servers on the port of `named`.
fn with_own_servers(settings: &Settings, named: &Named) -> Arc<Dns> {
    let zones = Zones::new(&settings.resolver, Vec::new()).unwrap().with_port(named.address.port());
    Arc::new(Dns::new(dns::provider(settings).unwrap().unwrap(), zones, None, settings.propagation_timeout))
}

#[tokio::test]
async fn a_wildcard_and_its_apex_have_their_values_side_by_side_and_nobody_else_loses_his() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let dns = with_own_servers(&settings(&named, &folder), &named);
    let (apex, wildcard) = tokio::join!(dns.publish("app.example.test", "apex"), dns.publish("*.App.Example.Test.", "wildcard"));
    let published = [apex.unwrap(), wildcard.unwrap()];
    dns.wait(&published).await.unwrap();
    assert_eq!(named.values(NAME).await, ["apex", "somebody else's", "wildcard"]);

    let [apex, wildcard] = published;
    apex.remove().await.unwrap();
    assert_eq!(named.values(NAME).await, ["somebody else's", "wildcard"]);
    // The order is given up: nobody waits, it is removed all the same.
    drop(wildcard);
    dns.finish().await;
    assert_eq!(named.values(NAME).await, ["somebody else's"]);
}

#[tokio::test]
async fn a_bare_key_needs_its_name_and_algorithm_from_the_settings() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let bare = Settings {
        tsig_key_file: Some(file(&folder, "bare", KEYS[1].2)),
        tsig_name: Some("long".into()),
        tsig_algorithm: Some(TsigAlgorithm::Sha512),
        ..settings(&named, &folder)
    };
    let published = open(&bare).publish("app.example.test", "x").await.unwrap();
    assert!(named.values(NAME).await.contains(&"x".to_owned()));
    published.remove().await.unwrap();

    let nameless = dns::provider(&Settings { tsig_name: None, ..bare.clone() }).unwrap_err();
    assert!(nameless.fault == Fault::Settings && nameless.what.contains("dns.tsig-name is not set"), "{nameless}");
    let two = Settings { tsig_name: Some("other".into()), ..settings(&named, &folder) };
    assert!(dns::provider(&two).unwrap_err().what.contains("holds the key skep"));
}

#[tokio::test]
async fn each_mistake_of_a_key_or_zone_is_named() {
    let named = Named::primary().await;
    let empty = Named::start(
        "127.0.0.1",
        free_port(),
        &[("e.zone".into(), zone(&[("ns1", "127.0.0.1")], ""))],
        "zone \"example.test\" { type primary; file \"e.zone\"; };",
        "",
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let fine = settings(&named, &folder);
    let key = |name: &str, algorithm: &str, secret: &str| {
        let text = format!("key {name} {{ algorithm {algorithm}; secret \"{secret}\"; }};");
        Settings { tsig_key_file: Some(file(&folder, &format!("{name}-{algorithm}"), &text)), ..fine.clone() }
    };
    let cases = [
        (key("skep", "hmac-sha256", "d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc="), "app.example.test", "BADSIG"),
        (key("nobody", "hmac-sha256", KEYS[0].2), "app.example.test", "does not know the key nobody (BADKEY)"),
        (key("skep", "hmac-sha512", KEYS[0].2), "app.example.test", "BADKEY"),
        (fine.clone(), "guarded.test", "to let the key skep change the zone guarded.test (REFUSED)"),
        (fine.clone(), "strict.example.test", "change the zone guarded.test (REFUSED)"),
        (
            Settings { server: Some(empty.address.to_string()), ..fine.clone() },
            "x.delegated.test",
            "is not the server of the zone delegated.test",
        ),
    ];
    for (settings, name, said) in cases {
        let error = open(&settings).publish(name, "x").await.unwrap_err();
        assert_eq!(error.fault, Fault::Settings, "{error}");
        assert!(error.what.contains(said) && !error.passes(), "{said}: {error}");
        assert!(!error.to_string().contains(KEYS[0].2), "{error}");
    }
    for (name, said) in [("app.nowhere.invalid", "no zone with a SOA record"), ("circle.example.test", "in a circle")] {
        let error = open(&fine).publish(name, "x").await.unwrap_err();
        assert!(error.fault == Fault::Zone && error.what.contains(said), "{error}");
    }
    assert_eq!(named.values(NAME).await, ["somebody else's"]);
}

#[tokio::test]
async fn a_server_that_is_down_or_silent_is_the_networks_fault() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let babbling = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = babbling.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = babbling.accept().await {
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok();
        }
    });
    let start = Instant::now();
    for (server, said) in [
        (format!("127.0.0.1:{}", free_port()), "takes no connection"),
        ("nowhere.invalid".to_owned(), "has no address"),
        (silent.local_addr().unwrap().to_string(), "takes longer than"),
        (address.to_string(), ""),
    ] {
        let error =
            open(&Settings { server: Some(server), ..settings(&named, &folder) }).publish("app.example.test", "x").await.unwrap_err();
        assert!(error.passes() && error.what.contains(said), "{error}");
    }
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (own, behind) = (slow.local_addr().unwrap().to_string(), named.address);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = slow.accept().await {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
            tokio::io::copy_bidirectional(&mut stream, &mut server).await.ok();
        }
    });
    let patient = open(&Settings { server: Some(own), ..settings(&named, &folder) });
    patient.publish("app.example.test", "slow").await.unwrap().remove().await.unwrap();

    let deaf = Settings { resolver: vec![silent.local_addr().unwrap()], ..settings(&named, &folder) };
    let error = open(&deaf).publish("app.example.test", "x").await.unwrap_err();
    assert!(error.fault == Fault::Network && error.to_string().contains("dns.resolver"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(120));
}

#[tokio::test]
async fn a_cname_leads_into_the_zone_that_may_be_changed_and_a_wildcards_does_not() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let dns = with_own_servers(&settings(&named, &folder), &named);
    let away = dns.publish("*.away.example.test", "x").await.unwrap();
    let wild = dns.publish("one.wild.example.test", "y").await.unwrap();
    let published = [away, wild];
    dns.wait(&published).await.unwrap();
    assert_eq!(named.values("away.delegated.test").await, ["x"]);
    assert_eq!(named.values("_acme-challenge.away.example.test").await, ["x"], "as the authority asks");
    assert_eq!(named.values("_acme-challenge.one.wild.example.test").await, ["y"]);
    assert_eq!(named.values("app.example.test").await, [""; 0]);
    for one in published {
        one.remove().await.unwrap();
    }
    assert_eq!(named.values("away.delegated.test").await, [""; 0]);
}

#[tokio::test]
async fn what_a_crash_leaves_behind_is_swept_at_the_next_start_and_nothing_else() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&named, &folder);
    let open = || dns::from_config(&settings, Some(folder.path())).unwrap().unwrap();
    let crashed = open();
    std::mem::forget(crashed.publish("app.example.test", "lost").await.unwrap());
    let removed = crashed.publish("app.example.test", "removed").await.unwrap();
    removed.remove().await.unwrap();

    let next = open();
    let live = next.publish("app.example.test", "live").await.unwrap();
    assert_eq!(named.values(NAME).await, ["live", "lost", "somebody else's"]);
    assert_eq!(next.sweep().await, 1);
    assert_eq!(named.values(NAME).await, ["live", "somebody else's"]);
    assert_eq!(next.sweep().await, 0);
    live.remove().await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path().join("dns")).unwrap().count(), 0);

    // Refused as a whole: nothing to remember.
    assert!(next.publish("guarded.test", "x").await.is_err());
    assert_eq!(std::fs::read_dir(folder.path().join("dns")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_cannot_be_removed_while_the_server_is_down_is_removed_later() {
    let mut named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&named, &folder);
    let dns = dns::from_config(&settings, Some(folder.path())).unwrap().unwrap();
    let published = dns.publish("app.example.test", "late").await.unwrap();
    named.process.kill().unwrap();
    named.process.wait().unwrap();
    let error = published.remove().await.unwrap_err();
    assert!(error.fault == Fault::Network, "{error}");
    assert_eq!(dns.sweep().await, 0);

    let again = Named::on(named.address.port(), &[("ns1", "127.0.0.1")], "").await;
    // Its zones are as they were written: what was published before is published anew, by somebody without a memory.
    std::mem::forget(open(&settings).publish("app.example.test", "late").await.unwrap());
    let live = dns.publish("app.example.test", "live").await.unwrap();
    assert_eq!(dns.sweep().await, 1);
    assert_eq!(again.values(NAME).await, ["live", "somebody else's"]);
    live.remove().await.unwrap();
}

#[tokio::test]
async fn a_record_is_there_when_the_slowest_server_answers_with_it() {
    // ns2 is not told of changes and looks every second or two; nobody is at ns3.
    let options = "notify no;";
    let named = Named::serving(&[("ns1", "127.0.0.1"), ("ns2", "::1"), ("ns3", "127.0.0.3")], options).await;
    let port = named.address.port();
    let zones = format!(
        "zone \"example.test\" {{ type secondary; file \"copy.zone\"; primaries {{ 127.0.0.1 port {port}; }}; \
         min-refresh-time 2; max-refresh-time 2; }};"
    );
    let slow = Named::start("::1", port, &[], &zones, "").await;
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&named, &folder);
    let dns = with_own_servers(&settings, &named);
    let published = [dns.publish("app.example.test", "x").await.unwrap()];
    dns.wait(&published).await.unwrap();
    assert_eq!(slow.values(NAME).await, ["somebody else's", "x"]);
    let [one] = published;
    one.remove().await.unwrap();
}

#[tokio::test]
async fn a_server_that_stays_behind_is_named_when_patience_ends() {
    let named = Named::serving(&[("ns1", "127.0.0.1"), ("ns2", "::1")], "").await;
    let copy = [("stale.zone".to_owned(), zone(&[("ns1", "127.0.0.1"), ("ns2", "::1")], ""))];
    let _stale =
        Named::start("::1", named.address.port(), &copy, "zone \"example.test\" { type primary; file \"stale.zone\"; };", "").await;
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { propagation_timeout: Duration::from_secs(3), ..settings(&named, &folder) };
    let dns = with_own_servers(&settings, &named);
    let published = [dns.publish("app.example.test", "x").await.unwrap()];
    let error = dns.wait(&published).await.unwrap_err();
    assert!(error.fault == Fault::Zone && error.what.contains("ns2.example.test did not answer with"), "{error}");
    assert!(error.help.contains("propagation-timeout"), "{error}");
    // Whoever does not want to know is not kept waiting.
    let careless = open(&Settings { propagation_timeout: Duration::ZERO, ..settings });
    careless.wait(&published).await.unwrap();
}

/// A hook that runs `script`.
fn hook(folder: &TempDir, named: &Named, script: &str) -> Settings {
    let path = file(folder, "hook", &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = vec![path.display().to_string(), "first argument".to_owned()];
    Settings {
        provider: DnsProvider::Exec,
        command,
        command_timeout: Duration::from_secs(10),
        resolver: vec![named.address],
        propagation_timeout: Duration::ZERO,
        ..Settings::default()
    }
}

#[tokio::test]
async fn a_hook_gets_what_lego_and_certbot_give_and_none_of_our_environment() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = format!(
        "echo \"$1|$2|$3|$4|$#|$CERTBOT_DOMAIN|$CERTBOT_VALIDATION\" >> {0}\nenv | cut -d= -f1 | grep -c -e CARGO -e SKEP -e NEXTEST >> {0}\ntrue",
        told.display()
    );
    let dns = open(&hook(&folder, &named, &script));
    let published = [dns.publish("*.away.example.test", "va$lue; `x`").await.unwrap()];
    dns.wait(&published).await.unwrap();
    let [one] = published;
    one.remove().await.unwrap();
    let line = |action: &str| format!("first argument|{action}|away.delegated.test.|va$lue; `x`|4|away.example.test|va$lue; `x`\n0\n");
    assert_eq!(std::fs::read_to_string(&told).unwrap(), line("present") + &line("cleanup"));
}

#[tokio::test]
async fn a_hook_that_fails_is_quoted_and_cleaned_up_after() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script =
        format!("echo $2 >> {}\n[ $2 = cleanup ] || {{ echo quiet; printf 'no such\\n\\033[31mzone' >&2; exit 3; }}", told.display());
    let dns = open(&hook(&folder, &named, &script));
    let error = dns.publish("app.example.test", "x").await.unwrap_err();
    assert!(error.what.contains("ended with exit status: 3 and said `no such [31mzone`"), "{error}");
    dns.finish().await;
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "present\ncleanup\n");

    let missing = Settings { command: vec!["/nowhere/hook".into()], ..hook(&folder, &named, "") };
    let error = open(&missing).publish("app.example.test", "x").await.unwrap_err();
    assert!(error.fault == Fault::Settings && error.to_string().contains("dns.command"), "{error}");
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_with_all_that_it_started() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child");
    let script = format!("[ $2 = cleanup ] && exit 0\nsleep 1000 & echo $! > {}\nwait", child.display());
    let slow = Settings { command_timeout: Duration::from_secs(1), ..hook(&folder, &named, &script) };
    let start = Instant::now();
    let error = open(&slow).publish("app.example.test", "x").await.unwrap_err();
    assert!(error.what.contains("took longer than 1s and was killed") && start.elapsed() < Duration::from_secs(30), "{error}");
    gone(&child).await;

    // The order is dropped while the program runs.
    let dns = open(&Settings { command_timeout: Duration::from_secs(60), ..hook(&folder, &named, &script) });
    std::fs::remove_file(&child).unwrap();
    let order = tokio::spawn(async move { dns.publish("app.example.test", "x").await.is_ok() });
    while std::fs::read_to_string(&child).unwrap_or_default().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    order.abort();
    gone(&child).await;
}

/// Waits until the process whose number `file` holds is gone, or dead and not yet reaped.
async fn gone(file: &Path) {
    let number = std::fs::read_to_string(file).unwrap();
    for _ in 0..200 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", number.trim())).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("process {number} still runs");
}

#[tokio::test]
async fn a_hook_may_write_more_than_anybody_reads() {
    let named = Named::primary().await;
    let folder = tempfile::tempdir().unwrap();
    let flood = "head -c 30000000 /dev/zero | tr '\\0' y\nhead -c 30000000 /dev/zero | tr '\\0' y >&2\n";
    let dns = open(&hook(&folder, &named, flood));
    dns.publish("app.example.test", "x").await.unwrap().remove().await.unwrap();
    let dns = open(&hook(&folder, &named, &format!("{flood}exit 1")));
    let error = dns.publish("app.example.test", "x").await.unwrap_err();
    assert!(error.what.contains("and said `yyy") && error.what.len() < 1000, "{}", error.what.len());
    // What it leaves running in the background holds its output open, and us not up.
    let start = Instant::now();
    let dns = open(&hook(&folder, &named, "sleep 30 & exit 1"));
    assert!(dns.publish("app.example.test", "x").await.is_err());
    assert!(start.elapsed() < Duration::from_secs(9));
}

fn record(zone: &str, name: &str, value: &str) -> Record {
    Record { domain: zone.into(), name: format!("{name}.{zone}"), zone: Some(zone.into()), value: value.into() }
}

mod cloudflare {
    use std::sync::Mutex;

    use axum::extract::{Path, Query, State};
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::{delete, get};
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;

    const TOKEN: &str = "YQSn-xWAQiiEh9qM58wZNnyQS7FUdoqGIUAbrh7T";
    const ZONE: &str = "023e105f4ecef8ad9ca31a8372d0c353";

    /// Records, as the API gives them.
    #[derive(Clone, Default)]
    struct Account(Arc<Mutex<Vec<Value>>>);

    fn answer(result: Value) -> Response {
        Json(json!({ "success": true, "errors": [], "messages": [], "result": result })).into_response()
    }

    fn refusal(status: u16, code: i64, message: &str) -> Response {
        let body = json!({ "success": false, "errors": [{ "code": code, "message": message }], "messages": [], "result": null });
        (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
    }

    async fn authorized(headers: HeaderMap, request: axum::extract::Request, next: axum::middleware::Next) -> Response {
        match headers.get("authorization").map(|value| value.to_str().unwrap().to_owned()) {
            Some(token) if token == format!("Bearer {TOKEN}") => next.run(request).await,
            Some(token) if token == "Bearer busy" => refusal(429, 971, "Please wait and consider throttling your request speed"),
            Some(token) if token == "Bearer ill" => (StatusCode::BAD_GATEWAY, "<html>Bad gateway</html>").into_response(),
            Some(token) if token == "Bearer huge" => "x".repeat(5_000_000).into_response(),
            Some(token) if token.len() < 20 => refusal(400, 6003, "Invalid request headers"),
            _ => refusal(403, 9109, "Invalid access token"),
        }
    }

    async fn zones(Query(query): Query<std::collections::HashMap<String, String>>) -> Response {
        answer(if query["name"] == "example.com" { json!([{ "id": ZONE, "name": "example.com", "status": "active" }]) } else { json!([]) })
    }

    async fn list(State(account): State<Account>, Query(query): Query<std::collections::HashMap<String, String>>) -> Response {
        let records = account.0.lock().unwrap();
        let fits = |record: &&Value| record["type"] == query["type"] && record["name"] == query["name"];
        answer(records.iter().filter(fits).cloned().collect())
    }

    async fn create(State(account): State<Account>, Path(zone): Path<String>, Json(mut wanted): Json<Value>) -> Response {
        let mut records = account.0.lock().unwrap();
        if zone != ZONE || wanted["type"] != "TXT" || wanted["ttl"].as_u64().is_none_or(|ttl| ttl < 60) {
            return refusal(400, 9021, "Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic.");
        }
        assert!(wanted["content"].as_str().unwrap().starts_with('"'), "their dashboard warns of TXT without quotation marks");
        if records.iter().any(|record| record["name"] == wanted["name"] && record["content"] == wanted["content"]) {
            return refusal(400, 81058, "An identical record already exists.");
        }
        wanted["id"] = json!(format!("{:032x}", records.len() + 1));
        records.push(wanted.clone());
        answer(wanted)
    }

    async fn remove(State(account): State<Account>, Path((zone, id)): Path<(String, String)>) -> Response {
        let mut records = account.0.lock().unwrap();
        let before = records.len();
        records.retain(|record| record["id"] != id);
        if zone != ZONE || records.len() == before {
            return refusal(404, 81044, "Record does not exist.");
        }
        answer(json!({ "id": id }))
    }

    async fn start() -> (Account, String) {
        let account = Account::default();
        let router = Router::new()
            .route("/client/v4/zones", get(zones))
            .route("/client/v4/zones/{zone}/dns_records", get(list).post(create))
            .route("/client/v4/zones/{zone}/dns_records/{id}", delete(remove))
            .layer(axum::middleware::from_fn(authorized))
            .with_state(account.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/client/v4", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (account, url)
    }

    fn settings(folder: &TempDir, api: &str, token: &str) -> Settings {
        let token = file(folder, "token", &format!("{token}\n"));
        let provider = DnsProvider::Cloudflare;
        Settings { provider, cloudflare_api: api.to_owned(), cloudflare_token_file: Some(token), ttl: 1, ..Settings::default() }
    }

    #[tokio::test]
    async fn two_values_are_published_and_just_ours_removed() {
        let (account, api) = start().await;
        let folder = tempfile::tempdir().unwrap();
        account
            .0
            .lock()
            .unwrap()
            .push(json!({ "id": "f0", "type": "TXT", "name": "_acme-challenge.example.com", "content": "\"theirs\"" }));
        let provider = dns::provider(&settings(&folder, &api, TOKEN)).unwrap().unwrap();
        let (one, two) = (record("example.com", "_acme-challenge", "one"), record("example.com", "_acme-challenge", "two"));
        provider.publish(&one).await.unwrap();
        provider.publish(&two).await.unwrap();
        provider.publish(&two).await.expect("it is there already");
        let contents = || account.0.lock().unwrap().iter().map(|record| record["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(contents(), ["\"theirs\"", "\"one\"", "\"two\""]);
        provider.remove(&one).await.unwrap();
        provider.remove(&one).await.expect("it is gone already");
        assert_eq!(contents(), ["\"theirs\"", "\"two\""]);
    }

    #[tokio::test]
    async fn what_it_refuses_is_told_without_the_token() {
        let (_, api) = start().await;
        let folder = tempfile::tempdir().unwrap();
        let fails = async |api: &str, token: &str, zone: &str| {
            let provider = dns::provider(&settings(&folder, api, token)).unwrap().unwrap();
            assert!(!format!("{provider:?}").contains(token), "{provider:?}");
            let error = provider.publish(&record(zone, "_acme-challenge", "one")).await.unwrap_err();
            assert!(!error.to_string().contains(token), "{error}");
            (error.fault, error.what)
        };
        for (token, zone, fault, said) in [
            (TOKEN, "example.org", Fault::Settings, "sees no zone example.org"),
            ("someone-elses-token-that-is-long", "example.com", Fault::Settings, "403 Forbidden, Invalid access token (9109)"),
            ("short", "example.com", Fault::Settings, "Invalid request headers (6003)"),
            ("busy", "example.com", Fault::Provider, "asked too often"),
            ("ill", "example.com", Fault::Provider, "502 Bad Gateway"),
            ("huge", "example.com", Fault::Network, "breaks its answer off"),
        ] {
            let (found, what) = fails(&api, token, zone).await;
            assert!(found == fault && what.contains(said), "{token}: {what}");
        }
        let (fault, what) = fails(&format!("http://127.0.0.1:{}", free_port()), TOKEN, "example.com").await;
        assert!(fault == Fault::Network && what.contains("does not answer"), "{what}");
        let missing = Settings { cloudflare_token_file: Some("/nowhere".into()), ..settings(&folder, &api, TOKEN) };
        assert!(dns::provider(&missing).unwrap_err().what.contains("dns.cloudflare-token-file"));
    }
}

mod ovh {
    use std::sync::Mutex;

    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    use axum::Router;
    use axum::body::Bytes;
    use axum::extract::State;
    use axum::http::{HeaderMap, Method, StatusCode, Uri};
    use axum::response::{IntoResponse, Response};
    use serde_json::{Value, json};

    use super::*;

    const APPLICATION: &str = "7kbG7Bk7S9Nt7ZSV";
    const SECRET: &str = "EXEgWIz07P0HYwtQDs7cNIqCiQaWSuHF";
    const CONSUMER: &str = "MtSwSrPpNjqfVSmJhLbPyr2i45lSwPU1";
    /// Their clock is not ours.
    const AHEAD: i64 = 7200;

    #[derive(Default)]
    struct Account {
        /// By number.
        records: Vec<(u64, Value)>,
        /// What name servers answer with: since the last refresh.
        served: Vec<String>,
        may_refresh: bool,
    }

    #[derive(Clone)]
    struct Api {
        account: Arc<Mutex<Account>>,
        base: String,
    }

    fn refusal(status: u16, code: &str, message: &str) -> Response {
        (StatusCode::from_u16(status).unwrap(), axum::Json(json!({ "class": "Client", "message": message, "errorCode": code })))
            .into_response()
    }

    fn signed(api: &Api, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Result<(), Response> {
        let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        if of("x-ovh-application") != APPLICATION {
            return Err(refusal(403, "INVALID_KEY", "This application key is invalid"));
        }
        if of("x-ovh-consumer") != CONSUMER {
            return Err(refusal(403, "INVALID_CREDENTIAL", "This credential does not exist"));
        }
        let now = jiff::Timestamp::now().as_second() + AHEAD;
        let stamp: i64 = of("x-ovh-timestamp").parse().unwrap_or(0);
        let root = api.base.strip_suffix("/1.0").unwrap();
        let text = format!("{SECRET}+{CONSUMER}+{method}+{root}{uri}+{}+{stamp}", String::from_utf8_lossy(body));
        let hex: String = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if (now - stamp).abs() > 60 || of("x-ovh-signature") != format!("$1${hex}") {
            return Err(refusal(400, "INVALID_SIGNATURE", "Invalid signature"));
        }
        Ok(())
    }

    async fn serve(State(api): State<Api>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
        if uri.path() == "/1.0/auth/time" {
            return (jiff::Timestamp::now().as_second() + AHEAD).to_string().into_response();
        }
        if let Err(refusal) = signed(&api, &method, &uri, &headers, &body) {
            return refusal;
        }
        let mut account = api.account.lock().unwrap();
        let Some(path) = uri.path().strip_prefix("/1.0/domain/zone/example.com/") else {
            return refusal(404, "", "This service does not exist");
        };
        let parts: Vec<&str> = path.split('/').collect();
        let number = parts.get(1).and_then(|number| number.parse::<u64>().ok());
        let target = |record: &Value| record["target"].as_str().unwrap().to_owned();
        match (method.as_str(), parts[0], number) {
            ("POST", "refresh", None) if !account.may_refresh => refusal(403, "NOT_GRANTED_CALL", "This call has not been granted"),
            ("POST", "refresh", None) => {
                account.served = account.records.iter().map(|(_, record)| target(record)).collect();
                "null".into_response()
            }
            ("POST", "record", None) => {
                let mut record: Value = serde_json::from_slice(&body).unwrap();
                let id = 5_000_000_000 + account.records.len() as u64;
                (record["id"], record["zone"]) = (json!(id), json!("example.com"));
                account.records.push((id, record.clone()));
                axum::Json(record).into_response()
            }
            ("GET", "record", None) => {
                let query = uri.query().unwrap();
                let fits = |record: &Value| {
                    query
                        == format!(
                            "fieldType={}&subDomain={}",
                            record["fieldType"].as_str().unwrap(),
                            record["subDomain"].as_str().unwrap()
                        )
                };
                axum::Json(account.records.iter().filter(|(_, record)| fits(record)).map(|(id, _)| *id).collect::<Vec<_>>()).into_response()
            }
            ("GET", "record", Some(number)) => match account.records.iter().find(|(id, _)| *id == number) {
                Some((_, record)) => axum::Json(record.clone()).into_response(),
                None => refusal(404, "", "The requested object does not exist"),
            },
            ("DELETE", "record", Some(number)) => {
                account.records.retain(|(id, _)| *id != number);
                "null".into_response()
            }
            _ => refusal(404, "INVALID_URL", "Got an invalid (or empty) URL"),
        }
    }

    async fn start() -> Api {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/1.0", listener.local_addr().unwrap());
        let account = Arc::new(Mutex::new(Account { may_refresh: true, ..Account::default() }));
        let api = Api { account, base };
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        api
    }

    fn settings(folder: &TempDir, api: &Api) -> Settings {
        Settings {
            provider: DnsProvider::Ovh,
            ovh_endpoint: api.base.clone(),
            ovh_application_key: Some(APPLICATION.into()),
            ovh_application_secret_file: Some(file(folder, "secret", SECRET)),
            ovh_consumer_key_file: Some(file(folder, "consumer", &format!("{CONSUMER}\n"))),
            ..Settings::default()
        }
    }

    #[tokio::test]
    async fn two_values_are_served_after_a_refresh_and_just_ours_removed() {
        let api = start().await;
        let folder = tempfile::tempdir().unwrap();
        let theirs = json!({ "fieldType": "TXT", "subDomain": "_acme-challenge.app", "target": "\"theirs\"" });
        api.account.lock().unwrap().records.push((1, theirs));
        let provider = dns::provider(&settings(&folder, &api)).unwrap().unwrap();
        let (one, two) = (record("example.com", "_acme-challenge.app", "one"), record("example.com", "_acme-challenge.app", "two"));
        provider.publish(&one).await.unwrap();
        provider.publish(&two).await.unwrap();
        let served = || api.account.lock().unwrap().served.clone();
        assert_eq!(served(), ["\"theirs\"", "\"one\"", "\"two\""]);
        provider.remove(&one).await.unwrap();
        provider.remove(&one).await.expect("it is gone already");
        assert_eq!(served(), ["\"theirs\"", "\"two\""]);
    }

    #[tokio::test]
    async fn what_it_refuses_is_told_without_the_keys() {
        let api = start().await;
        let folder = tempfile::tempdir().unwrap();
        let fine = settings(&folder, &api);
        let wrong = |name: &str| Some(file(&folder, name, "wrong-wrong-wrong"));
        for (settings, zone, fault, said) in [
            (fine.clone(), "example.org", Fault::Settings, "has no zone example.org"),
            (
                Settings { ovh_application_key: Some("nobodys".into()), ..fine.clone() },
                "example.com",
                Fault::Settings,
                "This application key is invalid, INVALID_KEY",
            ),
            (
                Settings { ovh_consumer_key_file: wrong("c"), ..fine.clone() },
                "example.com",
                Fault::Settings,
                "This credential does not exist",
            ),
            (Settings { ovh_application_secret_file: wrong("s"), ..fine.clone() }, "example.com", Fault::Settings, "Invalid signature"),
            (
                Settings { ovh_endpoint: format!("http://127.0.0.1:{}/1.0", free_port()), ..fine.clone() },
                "example.com",
                Fault::Network,
                "does not answer",
            ),
        ] {
            let provider = dns::provider(&settings).unwrap().unwrap();
            let error = provider.publish(&record(zone, "_acme-challenge", "one")).await.unwrap_err();
            assert!(error.fault == fault && error.what.contains(said), "{error}");
            for text in [format!("{provider:?}"), error.to_string()] {
                assert!([SECRET, CONSUMER, "wrong-wrong"].iter().all(|secret| !text.contains(secret)), "{text}");
            }
        }
        // A consumer key that may write and not refresh leaves nothing behind.
        api.account.lock().unwrap().may_refresh = false;
        let error = dns::provider(&fine).unwrap().unwrap().publish(&record("example.com", "_acme-challenge", "one")).await.unwrap_err();
        assert!(error.fault == Fault::Settings && error.help.contains("DELETE on /domain/zone"), "{error}");
        assert_eq!(api.account.lock().unwrap().records, []);
    }
}
