//! HTTPS as others see it: a browser that trusts the authority, one that does not, and a scanner that looks for weaknesses.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::secure::{THREE, secured};

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}: ./dev test installs it"));
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The page at `url` as Chromium shows it, with the authorities in `home`.
fn browse(home: &Path, url: &str) -> String {
    let mut browser = Command::new("chromium");
    browser.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]);
    browser.args(["--disable-sync", "--no-first-run", "--virtual-time-budget=5000", "--host-resolver-rules=MAP *.test 127.0.0.1"]);
    let profile = home.join("profile");
    browser.arg(format!("--user-data-dir={}", profile.display())).args(["--dump-dom", url]).env("HOME", home);
    text(&run(&mut browser).stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_trusts_the_authority_is_led_to_https() {
    let edge = secured(THREE, |_, _| {}).await;
    let root = edge.files.path().join("root.pem");
    std::fs::write(&root, &edge.authority.pem).unwrap();
    let (trusting, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = trusting.path().join(".pki/nssdb");
    std::fs::create_dir_all(&database).unwrap();
    let database = format!("sql:{}", database.display());
    run(Command::new("certutil").args(["-d", &database, "-N", "--empty-password"]));
    run(Command::new("certutil").args(["-d", &database, "-A", "-t", "C,,", "-n", "test", "-i"]).arg(&root));
    // From the HTTP port, by the redirect.
    let url = format!("http://a.test:{}/page", edge.edge.http.port());
    let page = browse(trusting.path(), &url);
    assert!(page.contains("\"uri\":\"/page\"") && page.contains("\"x-forwarded-proto\":\"https\""), "{page}");
    let warned = browse(other.path(), &url);
    assert!(!warned.contains("x-forwarded-proto"), "{warned}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scanner_finds_nothing_above_low() {
    let edge = secured(THREE, |_, _| {}).await;
    let (root, found) = (edge.files.path().join("root.pem"), edge.files.path().join("found.json"));
    std::fs::write(&root, &edge.authority.pem).unwrap();
    let at = format!("a.test:{}", edge.https.port());
    let mut scanner = Command::new("testssl");
    // Protocols, cipher categories, forward secrecy, the server's preferences and defaults.
    scanner.args(["--quiet", "--color", "0", "--warnings", "off", "--openssl-timeout", "10", "-p", "-s", "-f", "-P", "-S"]);
    scanner.arg("--add-ca").arg(&root).arg("--jsonfile").arg(&found).args(["--ip", "127.0.0.1", &at]);
    let output = scanner.stdin(Stdio::null()).output().expect("testssl: ./dev test installs it");
    let all: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&found).unwrap()).unwrap_or_else(|_| panic!("{}", text(&output.stdout)));
    let severe = ["MEDIUM", "HIGH", "CRITICAL", "FATAL"];
    let wrong: Vec<_> = all.iter().filter(|finding| severe.contains(&finding["severity"].as_str().unwrap())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let says =
        |id: &str, wanted: &str| all.iter().any(|finding| finding["id"] == id && finding["finding"].as_str().unwrap().contains(wanted));
    assert!(says("TLS1_3", "offered") && says("TLS1_2", "offered") && says("TLS1_1", "not offered"), "{}", text(&output.stdout));
}
