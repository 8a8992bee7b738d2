//! Signing in as people see it: a real Chromium types, clicks and follows, over HTTPS, from host to host.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::get_path;
use crate::secure::secured;
use crate::signin::{PASSWORD, PEOPLE, write_users};

/// A loaded machine may take its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tab of a browser, driven by the Chrome DevTools Protocol.
struct Tab {
    socket: WebSocketStream<TcpStream>,
    number: u64,
    browser: Child,
    _home: tempfile::TempDir,
}

impl Drop for Tab {
    fn drop(&mut self) {
        _ = self.browser.kill();
        _ = self.browser.wait();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: ./dev test installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Tab {
    /// A fresh browser that trusts the authority in `root`; all hosts below `test` are here.
    async fn open(root: &Path) -> Tab {
        let home = tempfile::tempdir().unwrap();
        let database = home.path().join(".pki/nssdb");
        std::fs::create_dir_all(&database).unwrap();
        let database = format!("sql:{}", database.display());
        run(Command::new("certutil").args(["-d", &database, "-N", "--empty-password"]));
        run(Command::new("certutil").args(["-d", &database, "-A", "-t", "C,,", "-n", "test", "-i"]).arg(root));
        let mut command = Command::new("chromium");
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]);
        command.args(["--disable-sync", "--no-first-run", "--host-resolver-rules=MAP *.test 127.0.0.1", "--remote-debugging-port=0"]);
        command.arg(format!("--user-data-dir={}", home.path().join("profile").display())).env("HOME", home.path());
        let mut browser = command.arg("about:blank").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(browser.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.split_once("ws://").map(|(_, rest)| rest.split('/').next().unwrap().to_owned()));
        let address = address.expect("the browser says where it listens").parse().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let began = Instant::now();
        let url = loop {
            let tabs = get_path(address, &address.to_string(), "/json/list").await.json();
            let tab = tabs.as_array().unwrap().iter().find(|tab| tab["type"] == "page");
            match tab.and_then(|tab| tab["webSocketDebuggerUrl"].as_str()) {
                Some(url) => break url.to_owned(),
                None => assert!(began.elapsed() < PATIENCE, "there is never a page: {tabs}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        Tab { socket, number: 0, browser, _home: home }
    }

    async fn tell(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let text = json!({"id": self.number, "method": method, "params": params}).to_string();
        self.socket.send(Message::text(text)).await.unwrap();
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("an answer in time").unwrap().unwrap();
            let Message::Text(text) = message else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    async fn evaluate(&mut self, script: &str) -> Value {
        let answer = self.tell("Runtime.evaluate", json!({"expression": script, "returnByValue": true})).await;
        answer["result"]["value"].clone()
    }

    /// What stands at the top, and what is to be read.
    async fn shown(&mut self) -> (String, String) {
        let script = "document.readyState == 'complete' && document.body ? [location.href, document.body.innerText] : ['', '']";
        let shown = self.evaluate(script).await;
        let text = |index: usize| shown[index].as_str().unwrap_or_default().to_owned();
        (text(0), text(1))
    }

    /// Waits until a page is there as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&str, &str) -> bool) {
        let began = Instant::now();
        loop {
            let (url, text) = self.shown().await;
            if wanted(&url, &text) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "never {what}: {url}\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn go(&mut self, url: &str) {
        self.tell("Page.navigate", json!({"url": url})).await;
    }

    /// Types `text` where the cursor is.
    async fn r#type(&mut self, text: &str) {
        self.tell("Input.insertText", json!({"text": text})).await;
    }

    async fn press(&mut self, key: &str) {
        let code = if key == "Tab" { 9 } else { 13 };
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" && kind == "keyDown" { "\r" } else { "" };
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.tell("Input.dispatchKeyEvent", event).await;
        }
    }

    /// Waits until the page has put the cursor into the field `id`.
    async fn focused(&mut self, id: &str) {
        let began = Instant::now();
        while self.evaluate("document.activeElement ? document.activeElement.id : ''").await != id {
            assert!(began.elapsed() < PATIENCE, "the cursor never was in {id}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// By keyboard alone: the page puts the cursor where it is needed.
    async fn sign_in(&mut self, user: &str, password: &str) {
        self.focused("user").await;
        self.r#type(user).await;
        self.press("Tab").await;
        self.focused("password").await;
        self.r#type(password).await;
        self.press("Enter").await;
    }

    /// Clicks what is labelled `text`.
    async fn click(&mut self, text: &str) {
        let script = format!("[...document.querySelectorAll('button,a')].find(one => one.innerText == '{text}').click()");
        self.evaluate(&script).await;
    }

    async fn cookies(&mut self, url: &str) -> Vec<Value> {
        self.tell("Network.getCookies", json!({"urls": [url]})).await["cookies"].as_array().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_signs_in_once_for_two_hosts_and_out_of_both() {
    let labels: &[(&str, &[(&str, &str)])] = &[
        ("shop", &[("skep.host", "a.test"), ("skep.auth", "staff")]),
        ("wiki", &[("skep.host", "b.test"), ("skep.auth", "staff, guests")]),
    ];
    let edge = secured(labels, |config, files| {
        write_users(&files.join("users"), PEOPLE);
        config.auth.users = Some(files.join("users"));
        config.auth.host = Some("c.test".to_owned());
    })
    .await;
    let port = edge.https.port();
    let root = edge.files.path().join("root.pem");
    std::fs::write(&root, &edge.authority.pem).unwrap();
    let mut tab = Tab::open(&root).await;

    // From the HTTP port, over HTTPS, to the host at which everybody signs in.
    tab.go(&format!("http://a.test:{}/report?week=47", edge.edge.http.port())).await;
    let home = format!("https://c.test:{port}/.skep/sign-in?ticket=");
    tab.until("asked to sign in", |url, text| url.starts_with(&home) && text.contains("to shop at a.test")).await;
    tab.sign_in("ada", "wrong").await;
    tab.until("told of the mistake", |_, text| text.contains("do not belong together")).await;
    tab.focused("password").await;
    assert_eq!(tab.evaluate("document.getElementById('user').value").await, "ada");
    tab.r#type(PASSWORD).await;
    tab.press("Enter").await;
    let report = format!("https://a.test:{port}/report?week=47");
    tab.until("where they wanted to go", |url, text| url == report && text.contains("\"x-forwarded-user\":\"ada\"")).await;
    let (_, text) = tab.shown().await;
    assert!(text.contains("\"x-forwarded-groups\":\"admins,staff\"") && !text.contains("__Host-skep"), "{text}");
    for host in ["a.test", "c.test"] {
        let cookies = tab.cookies(&format!("https://{host}:{port}/")).await;
        let session = cookies.iter().find(|cookie| cookie["name"] == "__Host-skep").unwrap_or_else(|| panic!("{host}: {cookies:?}"));
        assert_eq!(
            (&session["secure"], &session["httpOnly"], &session["sameSite"]),
            (&json!(true), &json!(true), &json!("Lax")),
            "{session}"
        );
        assert_eq!((session["domain"].as_str(), session["path"].as_str()), (Some(host), Some("/")));
    }

    // The second host asks for nothing.
    let wiki = format!("https://b.test:{port}/page");
    tab.go(&wiki).await;
    tab.until("let in at once", |url, text| url == wiki && text.contains("\"x-forwarded-user\":\"ada\"")).await;

    // Out of one is out of both.
    tab.go(&format!("https://b.test:{port}/.skep/sign-out")).await;
    tab.until("asked how to sign out", |_, text| text.contains("You are signed in as ada")).await;
    tab.click("Sign out of this browser").await;
    tab.until("told so", |_, text| text.contains("You are signed out")).await;
    for host in ["a.test", "b.test"] {
        tab.go(&format!("https://{host}:{port}/")).await;
        tab.until("asked again", |url, text| url.starts_with(&home) && text.contains(host)).await;
    }

    // Somebody else may see the wiki and not the shop.
    tab.sign_in("bob", PASSWORD).await;
    let wiki = format!("https://b.test:{port}/");
    tab.until("let in", |url, text| url == wiki && text.contains("\"x-forwarded-user\":\"bob\"")).await;
    tab.go(&report).await;
    tab.until("refused", |_, text| text.contains("You may not enter here") && text.contains("bob")).await;
    tab.click("Sign in as somebody else").await;
    tab.until("asked who else", |_, text| text.contains("to shop at a.test")).await;
    tab.sign_in("ada", PASSWORD).await;
    tab.until("where bob was refused", |url, text| url == report && text.contains("\"x-forwarded-user\":\"ada\"")).await;
}
