//! Signing in and out as people and programs do it: where they are led, how they come back, whom a route lets in, and when that ends.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{SinkExt, StreamExt};
use skep::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::Url;

use crate::browser::{Browser, Network, Page};
use crate::harness::*;
use crate::lean::{BY_PINGORA, scripted};
use crate::secure::{Secured, secured};

pub const PASSWORD: &str = "correct horse";
/// Of [`PASSWORD`], at a cost that costs nothing.
pub const HASH: &str = "$2y$04$TW1XwaGi59JVeDrAB0rc.u575ZQYyFeTWE2Qt2NLGqBb3bu.h4LvS";
/// Who signs in here, and their groups.
pub const PEOPLE: &[(&str, &str)] = &[("ada", "staff,admins"), ("bob", "guests"), ("Cyd", "staff")];
/// Long enough for whatever is looked at every second, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Labels<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];

/// An edge over plain HTTP whose people are in a file.
pub struct House {
    pub edge: Edge,
    pub upstream: Upstream,
    pub users: PathBuf,
    _files: tempfile::TempDir,
}

pub fn write_users(path: &Path, people: &[(&str, &str)]) {
    use std::os::unix::fs::PermissionsExt;
    let lines: String = people.iter().map(|(user, groups)| format!("{user}:{HASH}:{groups}:Name of {user}:{user}@x.test\n")).collect();
    let new = path.with_extension("new");
    std::fs::write(&new, lines).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, path).unwrap();
}

impl House {
    pub async fn with(labels: Labels<'_>) -> House {
        House::with_config(labels, |_| {}).await
    }

    pub async fn with_config(labels: Labels<'_>, change: impl FnOnce(&mut Config)) -> House {
        let (upstream, files) = (Upstream::start("web").await, tempfile::tempdir().unwrap());
        let users = files.path().join("users");
        write_users(&users, PEOPLE);
        let address = upstream.address.to_string();
        let edge = Edge::with_config(&addressed(labels, &address), |config| {
            config.auth.users = Some(users.clone());
            change(config);
        })
        .await;
        House { edge, upstream, users, _files: files }
    }

    pub fn network(&self) -> Network {
        Network { http: self.edge.http, https: None, http2: false }
    }

    pub fn browser(&self) -> Browser {
        Browser::new(self.network())
    }

    pub fn url(&self, place: &str) -> String {
        let (host, path) = place.split_at(place.find('/').unwrap());
        format!("http://{host}:{}{path}", self.edge.http.port())
    }

    /// As a program: no cookies, no word of a browser.
    pub async fn program(&self, method: &str, place: &str, headers: &[(&str, &str)]) -> Reply {
        let (host, path) = place.split_at(place.find('/').unwrap());
        send(self.edge.http, request(method, host, path, headers)).await
    }
}

/// A stack file of services of which all routes are at one address.
fn addressed(labels: Labels<'_>, address: &str) -> String {
    let all: Vec<(&str, Vec<(String, &str)>)> = labels
        .iter()
        .map(|(name, own)| {
            let keys = own
                .iter()
                .filter_map(|(key, _)| key.strip_suffix("host").or(key.strip_suffix("rule")))
                .map(|route| format!("{route}address"))
                .filter(|key| own.iter().all(|(known, _)| known != key));
            (*name, own.iter().map(|(key, value)| ((*key).to_owned(), *value)).chain(keys.map(|key| (key, address))).collect())
        })
        .collect();
    let all: Vec<(&str, Vec<(&str, &str)>)> =
        all.iter().map(|(name, labels)| (*name, labels.iter().map(|(key, value)| (key.as_str(), *value)).collect())).collect();
    let all: Vec<(&str, &[(&str, &str)])> = all.iter().map(|(name, labels)| (*name, labels.as_slice())).collect();
    services(&all)
}

pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// Asks every fifth of a second until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub const ONE: Labels<'static> = &[("web", &[("skep.host", "web.test"), ("skep.auth", "staff")])];

/// Everything that a route may say of who may enter.
const MANY: Labels<'static> = &[
    ("web", &[("skep.host", "web.test"), ("skep.auth", "staff")]),
    ("any", &[("skep.host", "any.test"), ("skep.auth", "*")]),
    ("several", &[("skep.host", "several.test"), ("skep.auth", "admins, guests")]),
    ("open", &[("skep.host", "open.test")]),
    (
        "mixed",
        &[
            ("skep.host", "mixed.test"),
            ("skep.admin.host", "mixed.test"),
            ("skep.admin.path", "/admin"),
            ("skep.admin.auth", "admins"),
            ("skep.staff.host", "mixed.test"),
            ("skep.staff.path", "/staff"),
            ("skep.staff.auth", "staff"),
        ],
    ),
    ("hooks", &[("skep.host", "hooks.test"), ("skep.auth", "staff"), ("skep.auth-bypass", "/hooks, /health")]),
    ("old", &[("skep.host", "old.test"), ("skep.auth", "staff"), ("skep.auth-mode", "basic")]),
    ("wild", &[("skep.host", "*.wild.test"), ("skep.auth", "staff")]),
    ("cors", &[("skep.host", "cors.test"), ("skep.auth", "staff"), ("skep.cors", "https://page.test")]),
    ("down", &[("skep.host", "down.test"), ("skep.auth", "*"), ("skep.maintenance", "on group admins")]),
    ("closed", &[("skep.host", "closed.test"), ("skep.auth", "staff"), ("skep.maintenance", "on")]),
    ("typo", &[("skep.host", "typo.test"), ("skep.auth", "staf")]),
    ("broken", &[("skep.host", "broken.test"), ("skep.auth", "staff"), ("skep.allow", "10.0.0.0/99")]),
];

#[tokio::test]
async fn somebody_signs_in_and_is_where_they_wanted_to_go() {
    let house = House::with(ONE).await;
    let mut browser = house.browser();
    let page = browser.open(&house.url("web.test/report/7?month=3&sort=a%20b")).await;
    assert_eq!((page.status(), page.asks(), page.way.len()), (200, true, 1), "{page:?}");
    assert_eq!(page.way[0].0, 302);
    assert!(page.reply.header("cache-control").contains("no-store"), "{page:?}");
    assert_eq!(house.upstream.seen(), 0);

    let wrong = browser.submit(&page.sign_in_form().set("user", "ada").set("password", "battery staple")).await;
    assert_eq!((wrong.status(), wrong.asks()), (401, true), "{wrong:?}");
    assert_eq!(browser.cookie("web.test", "skep"), "");

    let right = browser.post(&wrong.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
    assert_eq!((right.status(), right.reply.header("location")), (303, "/report/7?month=3&sort=a%20b"));
    let page = browser.follow(right).await;
    assert_eq!((page.status(), page.place().as_str()), (200, "web.test/report/7?month=3&sort=a%20b"));
    assert_eq!(page.reply.json()["uri"], "/report/7?month=3&sort=a%20b");

    // From now on nothing is asked, and the page to sign in leads on.
    assert_eq!(browser.open(&house.url("web.test/next")).await.way, []);
    let again = browser.open(&house.url("web.test/.skep/sign-in?to=/there")).await;
    assert_eq!(again.place(), "web.test/there");
    // A name is the same in any case, as directories have it; what surrounds it was a slip of the hand.
    let page = house.browser().sign_in(&house.url("web.test/"), " CYD ", PASSWORD).await;
    assert_eq!((page.status(), page.place().as_str()), (200, "web.test/"));
}

#[tokio::test]
async fn a_route_lets_in_whom_its_label_names() {
    let house = House::with(MANY).await;
    let people = [("nobody", None), ("ada", Some("ada")), ("bob", Some("bob")), ("cyd", Some("cyd"))];
    // place, then the status for nobody (a page: 401), ada (staff, admins), bob (guests), cyd (staff)
    let table = [
        ("web.test/", [401, 200, 403, 200]),
        ("any.test/", [401, 200, 200, 200]),
        ("several.test/", [401, 200, 200, 403]),
        ("open.test/", [200, 200, 200, 200]),
        ("mixed.test/", [200, 200, 200, 200]),
        ("mixed.test/adminx", [200, 200, 200, 200]),
        ("mixed.test/admin", [401, 200, 403, 403]),
        ("mixed.test/admin/users", [401, 200, 403, 403]),
        ("mixed.test/staff/x", [401, 200, 403, 200]),
        ("hooks.test/", [401, 200, 403, 200]),
        ("hooks.test/hooks/x", [200, 200, 200, 200]),
        ("hooks.test/health", [200, 200, 200, 200]),
        ("hooks.test/hooksx", [401, 200, 403, 200]),
        ("a.wild.test/", [401, 200, 403, 200]),
        ("down.test/", [401, 200, 503, 503]),
        ("closed.test/", [503, 503, 503, 503]),
        ("typo.test/", [401, 403, 403, 403]),
        ("broken.test/", [503, 503, 503, 503]),
    ];
    for (column, (_, user)) in people.iter().enumerate() {
        for (place, statuses) in table {
            // As a program with credentials,
            let credentials = user.map(|user| basic(user, PASSWORD));
            let headers: Vec<(&str, &str)> = credentials.iter().map(|value| ("authorization", value.as_str())).collect();
            assert_eq!(house.program("GET", place, &headers).await.status, statuses[column], "{user:?} {place} by a program");
            // and as a person, wherever there is anything to sign in for.
            let mut browser = house.browser();
            let page = browser.open(&house.url(place)).await;
            match (user, statuses) {
                (None, [401, ..]) => assert!(page.asks(), "{place}: {page:?}"),
                (Some(user), [401, ..]) => {
                    let page = browser.submit(&page.sign_in_form().set("user", user).set("password", PASSWORD)).await;
                    assert_eq!((page.status(), page.is_of_service()), (statuses[column], statuses[column] == 200), "{user} {place}");
                    let there = browser.open(&house.url(place)).await;
                    assert_eq!(there.status(), statuses[column], "{user} {place} once more");
                }
                (_, statuses) => assert_eq!(page.status(), statuses[column], "{user:?} {place}"),
            }
        }
    }
}

#[tokio::test]
async fn everybody_is_asked_in_the_form_that_they_understand() {
    let house = House::with(MANY).await;
    const NAVIGATION: &[(&str, &str)] = &[("sec-fetch-mode", "navigate"), ("accept", "text/html")];
    const OLD_BROWSER: &[(&str, &str)] = &[("accept", "text/html,*/*"), ("user-agent", "Mozilla/5.0")];
    const FETCH: &[(&str, &str)] = &[("sec-fetch-mode", "cors"), ("accept", "*/*"), ("user-agent", "Mozilla/5.0")];
    const IMAGE: &[(&str, &str)] = &[("sec-fetch-mode", "no-cors"), ("accept", "image/*"), ("user-agent", "Mozilla/5.0")];
    const XHR: &[(&str, &str)] = &[("x-requested-with", "XMLHttpRequest"), ("accept", "text/html")];
    const CURL: &[(&str, &str)] = &[("accept", "*/*"), ("user-agent", "curl/8")];
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];
    const HTML_GRPC: &[(&str, &str)] = &[("content-type", "application/grpc+proto"), ("accept", "text/html")];
    let page = "/.skep/sign-in?to=%2Fx%3Fq";
    // method, how it is asked, host, status, where to or the scheme of the challenge
    let table = [
        ("GET", NAVIGATION, "web.test", 302, page),
        ("HEAD", NAVIGATION, "web.test", 302, page),
        ("POST", NAVIGATION, "web.test", 303, "/.skep/sign-in?to=%2Fx"),
        ("GET", OLD_BROWSER, "web.test", 302, page),
        ("GET", FETCH, "web.test", 401, "Cookie"),
        ("POST", FETCH, "web.test", 401, "Cookie"),
        ("GET", IMAGE, "web.test", 401, "Cookie"),
        ("GET", XHR, "web.test", 401, "Cookie"),
        ("GET", CURL, "web.test", 401, "Basic"),
        ("PUT", CURL, "web.test", 401, "Basic"),
        ("GET", &[], "web.test", 401, "Basic"),
        ("DELETE", &[], "web.test", 401, "Basic"),
        ("TRACE", &[], "web.test", 401, "Basic"),
        ("OPTIONS", &[], "web.test", 401, "Basic"),
        ("PROPFIND", &[], "web.test", 401, "Basic"),
        ("GET", NAVIGATION, "old.test", 401, "Basic"),
        ("GET", FETCH, "old.test", 401, "Basic"),
        ("POST", GRPC, "web.test", 200, "grpc"),
        ("POST", HTML_GRPC, "web.test", 200, "grpc"),
        ("POST", GRPC, "old.test", 200, "grpc"),
        ("OPTIONS", &[("origin", "https://page.test"), ("access-control-request-method", "PUT")], "cors.test", 204, ""),
        ("OPTIONS", &[("origin", "https://page.test"), ("access-control-request-method", "PUT")], "web.test", 401, "Basic"),
        ("OPTIONS", &[("origin", "https://page.test")], "cors.test", 401, "Basic"),
        ("GET", &[("origin", "https://page.test"), ("access-control-request-method", "PUT")], "cors.test", 401, "Basic"),
    ];
    for (method, headers, host, status, how) in table {
        let reply = house.program(method, &format!("{host}/x?q"), headers).await;
        assert_eq!(reply.status, status, "{method} {headers:?} {host}: {reply:?}");
        match how {
            "grpc" => assert_eq!(reply.header("grpc-status"), "16", "{headers:?}"),
            "Basic" | "Cookie" => {
                let realm = reply.header("www-authenticate");
                assert!(realm.starts_with(&format!("{how} realm=\"{host}\"")), "{method} {headers:?} {host}: {realm}");
            }
            to => assert_eq!(reply.header("location"), to, "{method} {headers:?} {host}"),
        }
        assert!(reply.header("cache-control").contains("no-store") || status == 204, "{method} {host}: {reply:?}");
    }
    // Credentials that are wrong are asked for again, whoever sent them.
    for headers in [NAVIGATION, FETCH, CURL] {
        let wrong = basic("ada", "wrong");
        let headers = [headers, &[("authorization", wrong.as_str())]].concat();
        let reply = house.program("GET", "web.test/", &headers).await;
        assert_eq!((reply.status, reply.header("www-authenticate").starts_with("Basic ")), (401, true), "{headers:?}");
    }
    assert_eq!(house.upstream.seen(), 0);
}

#[tokio::test]
async fn programs_get_in_by_their_credentials_whatever_they_speak() {
    let house = House::with(MANY).await;
    let ada = basic("ada", PASSWORD);
    for (method, place) in [("GET", "web.test/x"), ("POST", "web.test/count"), ("DELETE", "old.test/"), ("OPTIONS", "web.test/")] {
        assert_eq!(house.program(method, place, &[("authorization", &ada)]).await.status, 200, "{method} {place}");
    }
    let lower = ada.replacen("Basic", "basic", 1);
    assert_eq!(house.program("GET", "web.test/", &[("authorization", &lower)]).await.status, 200);
    // A body goes the whole way, though somebody was asked in between.
    let body = "x".repeat(100_000);
    let upload = http::Request::post("/count").header("host", "web.test").header("authorization", &ada);
    let reply = send(house.edge.http, upload.body(http_body_util::Full::from(body)).unwrap()).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "100000"));
    // A websocket.
    for (credentials, status) in [(Some(&ada), 101), (None, 401)] {
        let mut asked = String::from(
            "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        );
        if let Some(credentials) = credentials {
            asked.push_str(&format!("Authorization: {credentials}\r\n"));
        }
        let head = first_line(house.edge.http, &format!("{asked}\r\n")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    // HTTP/2.
    let network = Network { http2: true, ..house.network() };
    let url = Url::parse(&house.url("web.test/x")).unwrap();
    let asked = |credentials: &str| http::Request::get("/").header("authorization", credentials);
    assert_eq!(network.send(&url, asked(&ada), b"").await.status, 200);
    assert_eq!(network.send(&url, asked(&basic("ada", "wrong")), b"").await.status, 401);
    assert_eq!(network.send(&url, asked(&basic("bob", PASSWORD)), b"").await.status, 403);
}

/// The first line of what comes back.
pub async fn first_line(address: std::net::SocketAddr, asked: &str) -> String {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, BufReader::new(stream).read_line(&mut line)).await.expect("in time").unwrap();
    line
}

#[tokio::test]
async fn who_signs_out_is_out() {
    let house = House::with(ONE).await;
    let (mut here, mut there) = (house.browser(), house.browser());
    for browser in [&mut here, &mut there] {
        assert_eq!(browser.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.status(), 200);
    }
    let stolen = here.clone();
    let form = here.sign_out_form(&house.url("web.test/")).await;
    let out = here.submit(&form).await;
    assert_eq!((out.status(), here.cookie("web.test", "skep")), (200, ""));
    for mut browser in [here.clone(), stolen] {
        assert!(browser.open(&house.url("web.test/")).await.asks(), "the session is over, not only its cookie gone");
    }
    assert!(there.open(&house.url("web.test/")).await.is_of_service(), "another browser's session goes on");

    // Everywhere.
    here.sign_in(&house.url("web.test/"), "ada", PASSWORD).await;
    let mut other = house.browser();
    other.sign_in(&house.url("web.test/"), "cyd", PASSWORD).await;
    let form = here.sign_out_form(&house.url("web.test/")).await.set("everywhere", "1");
    assert_eq!(here.submit(&form).await.status(), 200);
    for browser in [&mut here, &mut there] {
        assert!(browser.open(&house.url("web.test/")).await.asks());
    }
    assert!(other.open(&house.url("web.test/")).await.is_of_service(), "somebody else's session goes on");
}

#[tokio::test]
async fn a_session_ends_unused_or_old() {
    let house = House::with_config(ONE, |config| {
        config.auth.session_idle = Duration::from_secs(2);
        config.auth.session_lifetime = Duration::from_secs(6);
    })
    .await;
    let mut used = house.browser();
    assert!(used.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.is_of_service());
    let began = Instant::now();
    let (mut unused, first) = (used.clone(), used.cookie("web.test", "skep").to_owned());
    // Used all the time, its cookie is renewed, and it is over all the same when its time has come.
    let mut renewed = 0;
    let lived = loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let before = used.cookie("web.test", "skep").to_owned();
        let page = used.open(&house.url("web.test/")).await;
        if page.asks() {
            break began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "for ever");
        let renews = before != used.cookie("web.test", "skep");
        assert_eq!(page.reply.header("cache-control"), if renews { "private" } else { "" }, "no cache may keep a renewed cookie");
        renewed += usize::from(renews);
    };
    // Nothing is said of a machine that stood still: then it was unused.
    assert!(lived >= Duration::from_secs(2) && renewed > 0, "{lived:?}, {renewed} renewals");
    assert_ne!(first, used.cookie("web.test", "skep"));
    assert!(unused.open(&house.url("web.test/")).await.asks());
}

#[tokio::test]
async fn an_unused_session_ends_before_its_time() {
    let house = House::with_config(ONE, |config| config.auth.session_idle = Duration::from_secs(2)).await;
    let mut browser = house.browser();
    assert!(browser.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.is_of_service());
    tokio::time::sleep(Duration::from_millis(3100)).await;
    assert!(browser.open(&house.url("web.test/")).await.asks());
}

#[tokio::test]
async fn who_is_taken_out_of_the_file_or_the_group_is_out() {
    let house = House::with_config(ONE, |config| config.auth.recheck = Duration::from_secs(1)).await;
    let (mut ada, mut cyd) = (house.browser(), house.browser());
    assert!(ada.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.is_of_service());
    assert!(cyd.sign_in(&house.url("web.test/"), "cyd", PASSWORD).await.is_of_service());
    write_users(&house.users, &[("ada", "admins"), ("bob", "guests")]);
    for (browser, status) in [(ada, 403), (cyd, 200)] {
        until("out", || {
            let (mut browser, url) = (browser.clone(), house.url("web.test/"));
            async move {
                let page = browser.open(&url).await;
                !page.is_of_service() && page.status() == status && page.asks() == (status == 200)
            }
        })
        .await;
    }
    // And in again.
    write_users(&house.users, PEOPLE);
    until("in again", || {
        let (mut browser, url) = (house.browser(), house.url("web.test/"));
        async move { browser.sign_in(&url, "ada", PASSWORD).await.is_of_service() }
    })
    .await;
}

#[tokio::test]
async fn a_restart_keeps_sessions_where_a_directory_keeps_them() {
    let state = tempfile::tempdir().unwrap();
    let start = |kept: bool| {
        let path = state.path().to_owned();
        House::with_config(ONE, move |config| config.state.directory = kept.then_some(path))
    };
    let first = start(true).await;
    let mut browser = first.browser();
    assert!(browser.sign_in(&first.url("web.test/"), "ada", PASSWORD).await.is_of_service());
    let out = {
        let mut gone = first.browser();
        gone.sign_in(&first.url("web.test/"), "cyd", PASSWORD).await;
        let before = gone.clone();
        let form = gone.sign_out_form(&first.url("web.test/")).await;
        gone.submit(&form).await;
        before
    };
    first.edge.running.stop().await;
    for (kept, asks) in [(true, false), (false, true), (true, false)] {
        let next = start(kept).await;
        let (mut browser, mut out) = (browser.clone(), out.clone());
        (browser.network, out.network) = (next.network(), next.network());
        let page = browser.open(&next.url("web.test/")).await;
        assert_eq!((page.asks(), page.is_of_service()), (asks, !asks), "kept: {kept}");
        assert!(out.open(&next.url("web.test/")).await.asks(), "who signed out stays so");
        next.edge.running.stop().await;
    }
}

/// Sends a piece every fifth of a second for as long as somebody takes them, or none at all where the path says so.
async fn endless() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let silent = head.starts_with(b"GET /silent");
                let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n").await;
                while sent.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    sent = if silent { stream.write_all(b"").await } else { stream.write_all(b"data: more\n\n").await };
                }
            });
        }
    });
    address
}

type Socket = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn websocket(house: &House, host: &str, cookie: &str) -> Socket {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let mut asked = format!("ws://{host}/ws").into_client_request().unwrap();
    asked.headers_mut().insert("cookie", format!("skep={cookie}").parse().unwrap());
    let stream = tokio::net::TcpStream::connect(house.edge.http).await.unwrap();
    tokio_tungstenite::client_async(asked, stream).await.unwrap().0
}

/// What flows, until it ends.
fn flowing(house: &House, path: &'static str, cookie: &str, http2: bool, by_pingora: bool) -> tokio::task::JoinHandle<()> {
    let (address, cookie) = (house.edge.http, format!("skep={cookie}"));
    tokio::spawn(async move {
        let mut request = http::Request::get(format!("http://flow.test{path}")).header("cookie", &cookie);
        if by_pingora {
            request = request.header(BY_PINGORA.0, BY_PINGORA.1);
        }
        if http2 {
            let (mut client, connection) = h2::client::handshake(tokio::net::TcpStream::connect(address).await.unwrap()).await.unwrap();
            tokio::spawn(connection);
            let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            while let Some(Ok(piece)) = body.data().await {
                body.flow_control().release_capacity(piece.len()).unwrap();
            }
        } else {
            let more = if by_pingora { "Te: trailers\r\n" } else { "" };
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: flow.test\r\nCookie: {cookie}\r\n{more}\r\n").as_bytes()).await.unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
            let mut chunk = [0; 4096];
            while let Ok(1..) = stream.read(&mut chunk).await {}
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_flows_is_cut_with_the_session() {
    let address = endless().await.to_string();
    let labels: Labels<'_> = &[
        ONE[0],
        ("flow", &[("skep.host", "flow.test"), ("skep.auth", "staff"), ("skep.address", &address)]),
        // Not for the lean path.
        ("pressed", &[("skep.host", "pressed.test"), ("skep.auth", "staff"), ("skep.compress", "on")]),
    ];
    let house = House::with_config(labels, |config| config.auth.recheck = Duration::from_secs(1)).await;
    // The flowing host is signed in by its form alone: its pages have no end.
    let sign = async |user: &str| {
        let mut browser = house.browser();
        assert!(browser.sign_in(&house.url("web.test/"), user, PASSWORD).await.is_of_service());
        let form = browser.open(&house.url("flow.test/.skep/sign-in")).await.sign_in_form();
        browser.post(&form.set("user", user).set("password", PASSWORD)).await;
        (browser.cookie("web.test", "skep").to_owned(), browser.cookie("flow.test", "skep").to_owned())
    };
    let (ada, cyd) = (sign("ada").await, sign("cyd").await);
    let begin = |cookie: &str| {
        let ways = [
            ("/flow", false, false),
            ("/flow", false, true),
            ("/silent", false, false),
            ("/flow", true, false),
            ("/flow", true, true),
            ("/silent", true, false),
            ("/silent", false, true),
            ("/silent", true, true),
        ];
        ways.map(|(path, http2, by_pingora)| {
            (format!("{path} http2: {http2} pingora: {by_pingora}"), flowing(&house, path, cookie, http2, by_pingora))
        })
    };
    let (of_ada, of_cyd) = (begin(&ada.1), begin(&cyd.1));
    let (mut socket, mut other) = (websocket(&house, "web.test", &ada.0).await, websocket(&house, "web.test", &cyd.0).await);
    let mut browser = house.browser();
    browser.sign_in(&house.url("pressed.test/"), "ada", PASSWORD).await;
    let mut pressed = websocket(&house, "pressed.test", browser.cookie("pressed.test", "skep")).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for (way, flow) in of_ada.iter().chain(&of_cyd) {
        assert!(!flow.is_finished(), "{way} ended by itself");
    }
    write_users(&house.users, &[("cyd", "staff"), ("bob", "guests")]);
    for (way, flow) in of_ada {
        tokio::time::timeout(PATIENCE, flow).await.unwrap_or_else(|_| panic!("{way} flows on")).unwrap();
    }
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the websocket is cut");
    // There, what is said next is the end.
    let talk = async {
        while pressed.send("more".into()).await.is_ok() && matches!(pressed.next().await, Some(Ok(_))) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("the other websocket is cut");
    for (way, flow) in &of_cyd {
        assert!(!flow.is_finished(), "{way} of somebody else was cut");
    }
    other.send("still there".into()).await.unwrap();
    assert_eq!(other.next().await.unwrap().unwrap().into_text().unwrap(), "still there");
    of_cyd.iter().for_each(|(_, flow)| flow.abort());

    // The same for who signs out elsewhere.
    let mut browser = house.browser();
    browser.sign_in(&house.url("web.test/"), "cyd", PASSWORD).await;
    let form = browser.sign_out_form(&house.url("web.test/")).await.set("everywhere", "1");
    browser.submit(&form).await;
    let end = async { while let Some(Ok(_)) = other.next().await {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the websocket is cut");
}

/// The hosts of [`secured`]: two behind one certificate, the sign-in host with its own, and an open one.
const TWO: Labels<'static> = &[
    ("a", &[("skep.host", "a.test"), ("skep.auth", "staff")]),
    ("b", &[("skep.host", "b.test"), ("skep.auth", "admins")]),
    ("w", &[("skep.host", "*.w.test"), ("skep.auth", "*")]),
    ("c", &[("skep.host", "x.w.test")]),
];

struct Over {
    secured: Secured,
}

impl Over {
    async fn with(labels: Labels<'_>, change: impl FnOnce(&mut Config)) -> Over {
        let secured = secured(labels, |config, files| {
            let users = files.join("users");
            write_users(&users, PEOPLE);
            config.auth.users = Some(users);
            change(config);
        })
        .await;
        Over { secured }
    }

    fn browser(&self, http2: bool) -> Browser {
        let https = Some((self.secured.https, self.secured.authority.client(&[])));
        Browser::new(Network { http: self.secured.edge.http, https, http2 })
    }

    fn url(&self, place: &str) -> String {
        let (host, path) = place.split_at(place.find('/').unwrap());
        format!("https://{host}:{}{path}", self.secured.https.port())
    }
}

#[tokio::test]
async fn one_sign_in_is_for_all_hosts() {
    let over = Over::with(TWO, |config| config.auth.host = Some("c.test".to_owned())).await;
    for http2 in [false, true] {
        let mut browser = over.browser(http2);
        let page = browser.open(&over.url("a.test/deep/link?x=1&y=%2F")).await;
        assert_eq!((page.status(), page.asks(), page.url.host_str()), (200, true, Some("c.test")), "{page:?}");
        let wrong = browser.submit(&page.sign_in_form().set("user", "ada").set("password", "wrong")).await;
        assert_eq!((wrong.status(), wrong.url.host_str()), (401, Some("c.test")));
        let page = browser.submit(&wrong.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
        assert_eq!((page.status(), page.place().as_str()), (200, "a.test/deep/link?x=1&y=%2F"), "{page:?}");
        assert!(page.is_of_service() && !browser.cookie("a.test", "__Host-skep").is_empty());
        assert_ne!(browser.cookie("a.test", "__Host-skep"), browser.cookie("c.test", "__Host-skep"), "each host has its own");

        // The second host asks nothing.
        let page = browser.open(&over.url("b.test/second?z=2")).await;
        assert_eq!((page.is_of_service(), page.place().as_str()), (true, "b.test/second?z=2"), "{page:?}");
        assert!(page.way.len() >= 2, "{:?}", page.way);
        assert_eq!(browser.open(&over.url("b.test/")).await.way, []);
        assert!(browser.open(&over.url("any.w.test/")).await.is_of_service(), "hosts of a wildcard as well");

        // Signing out on one of them is for all.
        let form = browser.sign_out_form(&over.url("b.test/")).await;
        assert_eq!(browser.submit(&form).await.status(), 200);
        for host in ["a.test/", "b.test/", "any.w.test/"] {
            let page = browser.open(&over.url(host)).await;
            assert!(page.asks() && page.url.host_str() == Some("c.test"), "{host}: {page:?}");
        }
    }
}

#[tokio::test]
async fn who_may_not_enter_the_second_host_is_told_so_and_can_sign_in_as_somebody_else() {
    let over = Over::with(TWO, |config| config.auth.host = Some("c.test".to_owned())).await;
    let mut browser = over.browser(false);
    assert!(browser.sign_in(&over.url("a.test/"), "cyd", PASSWORD).await.is_of_service());
    // At the sign-in host one is told so, and can go on as somebody else.
    let page = browser.open(&over.url("b.test/x")).await;
    assert_eq!((page.status(), page.is_of_service(), page.url.host_str()), (403, false, Some("c.test")), "{page:?}");
    let other = page.url.join(&page.link("Sign in as somebody else")).unwrap();
    let page = browser.open(other.as_str()).await;
    assert!(page.asks(), "{page:?}");
    let page = browser.submit(&page.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
    assert_eq!(page.place(), "b.test/x");
    let page = browser.open(&over.url("a.test/")).await;
    assert!(page.is_of_service(), "{page:?}");
    // Somebody who is in no group is told so where they sign in.
    let page = over.browser(false).sign_in(&over.url("a.test/"), "bob", PASSWORD).await;
    assert_eq!((page.status(), page.is_of_service()), (403, false));
}

#[tokio::test]
async fn two_tabs_at_once_both_come_to_where_they_wanted() {
    let over = Over::with(TWO, |config| config.auth.host = Some("c.test".to_owned())).await;
    let mut browser = over.browser(false);
    let (one, two) = (browser.open(&over.url("a.test/one")).await, browser.open(&over.url("a.test/two")).await);
    let fill = |page: &Page| page.sign_in_form().set("user", "ada").set("password", PASSWORD);
    assert_eq!(browser.submit(&fill(&two)).await.place(), "a.test/two");
    assert_eq!(browser.submit(&fill(&one)).await.place(), "a.test/one");
    // And at hosts that sign in by themselves.
    let house = House::with(ONE).await;
    let mut browser = house.browser();
    let (one, two) = (browser.open(&house.url("web.test/one")).await, browser.open(&house.url("web.test/two")).await);
    assert_eq!(browser.submit(&fill(&two)).await.place(), "web.test/two");
    assert_eq!(browser.submit(&fill(&one)).await.place(), "web.test/one");
}

#[tokio::test]
async fn the_sign_in_host_is_a_page_of_its_own_and_open_hosts_stay_open() {
    let over = Over::with(TWO, |config| config.auth.host = Some("c.test".to_owned())).await;
    let mut browser = over.browser(false);
    assert!(browser.open(&over.url("x.w.test/anything")).await.is_of_service(), "below a wildcard that is not");
    let page = browser.open(&over.url("c.test/")).await;
    assert!(page.asks(), "{page:?}");
    let page = browser.submit(&page.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
    assert_eq!((page.status(), page.url.host_str(), page.asks()), (200, Some("c.test"), false), "{page:?}");
    assert!(page.reply.body.contains("ada"));
    assert!(browser.open(&over.url("a.test/")).await.is_of_service());
    // Over plain HTTP one is led to HTTPS, and nothing is set on the way.
    let plain = browser.ask("GET", &format!("http://c.test:{}/.skep/sign-in", over.secured.edge.http.port()), &[], b"").await;
    assert_eq!((plain.status(), plain.reply.header("location")), (302, over.url("c.test/.skep/sign-in").as_str()));
    assert!(!plain.reply.headers.contains_key("set-cookie"));
    let posted = browser.ask("POST", &format!("http://c.test:{}/.skep/sign-in", over.secured.edge.http.port()), &[], b"user=ada").await;
    assert_eq!(posted.status(), 403, "what was sent in clear must not seem fine");

    let house = House::with_config(MANY, |config| config.auth.host = Some("login.test".to_owned())).await;
    let mut browser = house.browser();
    for place in ["open.test/", "open.test/.skep/sign-in", "mixed.test/"] {
        assert!(browser.open(&house.url(place)).await.is_of_service(), "{place}: an open host has nothing of the edge's");
    }
    let page = browser.sign_in(&house.url("mixed.test/admin"), "ada", PASSWORD).await;
    assert_eq!((page.place().as_str(), page.is_of_service()), ("mixed.test/admin", true), "{page:?}");
}

/// Two routes of one host, of which one is for HTTPS alone: signing in is, for both.
#[tokio::test]
async fn nothing_that_signs_somebody_in_goes_in_clear_where_a_route_wants_https() {
    let labels: Labels<'_> = &[
        ("a", &[("skep.host", "a.test"), ("skep.auth", "staff"), ("skep.tls", "redirect")]),
        ("plain", &[("skep.host", "a.test"), ("skep.path", "/plain"), ("skep.auth", "staff"), ("skep.tls", "both")]),
    ];
    for host in [None, Some("c.test".to_owned())] {
        let over = Over::with(labels, |config| config.auth.host = host).await;
        let mut browser = over.browser(false);
        let clear = format!("http://a.test:{}/plain?x=1", over.secured.edge.http.port());
        let page = browser.sign_in(&clear, "ada", PASSWORD).await;
        assert!(page.is_of_service() && page.url.as_str() == over.url("a.test/plain?x=1"), "{page:?}");
        let (mut way, mut fresh) = (Vec::new(), over.browser(false));
        way.extend(fresh.open(&clear).await.way);
        way.extend(page.way);
        assert!(way.iter().all(|(_, to)| to.starts_with("https://")), "{way:?}");
        assert!(browser.jar.iter().chain(&fresh.jar).all(|cookie| cookie.name.starts_with("__Host-")), "{:?}", browser.jar);
    }
}

#[tokio::test]
async fn each_host_signs_in_by_itself_where_no_other_is_named() {
    let over = Over::with(TWO, |_| {}).await;
    for http2 in [false, true] {
        let mut browser = over.browser(http2);
        let page = browser.sign_in(&over.url("a.test/x"), "ada", PASSWORD).await;
        assert_eq!((page.place().as_str(), page.is_of_service()), ("a.test/x", true));
        let page = browser.open(&over.url("b.test/")).await;
        assert!(page.asks() && page.url.host_str() == Some("b.test"));
    }
}

#[tokio::test]
async fn who_guesses_waits_and_nobody_else_does() {
    let house = House::with(MANY).await;
    let mut known = house.browser();
    assert!(known.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.is_of_service());
    let mut guesser = house.browser();
    let form = guesser.open(&house.url("web.test/")).await.sign_in_form().set("user", "ada").set("password", "guess");
    let mut waits = 0;
    for _ in 0..10 {
        let page = guesser.post(&form).await;
        match page.status() {
            401 => {}
            429 => {
                assert!(page.asks(), "{page:?}");
                waits += 1;
            }
            _ => panic!("{page:?}"),
        }
    }
    assert!(waits > 0);
    // The right password does not help the guesser now, by a form or as a program.
    assert_eq!(guesser.post(&form.clone().set("password", PASSWORD)).await.status(), 429);
    let reply = house.program("GET", "web.test/", &[("authorization", &basic("ADA ", PASSWORD))]).await;
    assert_eq!((reply.status, reply.header("retry-after").is_empty()), (429, false), "{reply:?}");
    // Whoever is signed in goes on, others sign in, and ada can in her own browser.
    assert!(known.open(&house.url("web.test/")).await.is_of_service());
    assert!(house.browser().sign_in(&house.url("web.test/"), "cyd", PASSWORD).await.is_of_service());
    let form = known.sign_out_form(&house.url("web.test/")).await;
    known.submit(&form).await;
    assert!(known.sign_in(&house.url("web.test/"), "ada", PASSWORD).await.is_of_service());
}

#[tokio::test]
async fn credentials_are_remembered_for_a_while_and_no_longer() {
    let house = House::with_config(MANY, |config| config.auth.basic_cache = Duration::from_secs(2)).await;
    let ada = basic("ada", PASSWORD);
    assert_eq!(house.program("GET", "web.test/", &[("authorization", &ada)]).await.status, 200);
    for (user, password) in [("ada", "wrong"), ("ada", ""), ("adax", PASSWORD), ("ada", "correct horse ")] {
        assert_eq!(house.program("GET", "web.test/", &[("authorization", &basic(user, password))]).await.status, 401, "{user} {password}");
    }
    assert_eq!(house.program("GET", "mixed.test/admin", &[("authorization", &ada)]).await.status, 200);
    write_users(&house.users, &[("bob", "guests"), ("cyd", "staff")]);
    until("forgotten", || async { house.program("GET", "web.test/", &[("authorization", &ada)]).await.status == 401 }).await;
}

/// What services hear of whom.
mod identity {
    use super::*;

    #[tokio::test]
    async fn the_service_hears_who_it_is() {
        let house = House::with(MANY).await;
        let mut browser = house.browser();
        let page = browser.sign_in(&house.url("web.test/"), "ada", PASSWORD).await;
        let credentials = basic("Ada", PASSWORD);
        let program = house.program("GET", "any.test/", &[("authorization", &credentials)]).await;
        for reply in [&page.reply, &program] {
            assert_eq!(reply.upstream_saw("x-forwarded-user"), "ada");
            assert_eq!(reply.upstream_saw("x-forwarded-email"), "ada@x.test");
            assert_eq!(reply.upstream_saw("x-forwarded-name"), "Name of ada");
            let groups = reply.upstream_saw("x-forwarded-groups");
            assert!(groups.contains("staff") && groups.contains("admins"), "{groups}");
        }
        for place in ["open.test/", "hooks.test/hooks"] {
            let reply = browser.open(&house.url(place)).await.reply;
            assert_eq!(reply.upstream_saw("x-forwarded-user"), "", "{place}: nobody was asked");
        }
    }

    #[tokio::test]
    async fn nobody_gives_themselves_a_name_under_any_header() {
        let house = House::with_config(MANY, |config| {
            config.auth.user_header = Some("remote-user".parse().unwrap());
            config.auth.token_header = Some("x-skep-token".parse().unwrap());
            config.proxy.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
        let ada = basic("ada", PASSWORD);
        for path_of in [("accept", "*/*"), BY_PINGORA] {
            for (place, user) in [("open.test/", ""), ("hooks.test/hooks", ""), ("web.test/", "ada")] {
                for name in
                    ["remote-user", "remote_user", "Remote-User", "REMOTE_USER", "x-forwarded-groups", "x_forwarded_groups", "x-skep-token"]
                {
                    let mut fields = vec![path_of];
                    fields.extend((!user.is_empty()).then_some(("authorization", ada.as_str())));
                    fields.extend([(name, "root"), (name, "again root")]);
                    let reply = house.program("GET", place, &fields).await;
                    assert_eq!((reply.status, reply.upstream_saw("remote-user").as_str()), (200, user), "{place} {name}");
                    assert!(!reply.body.contains("root"), "{place} {name}: {}", reply.body);
                }
            }
        }
    }

    #[tokio::test]
    async fn what_proved_it_does_not_go_on() {
        let house = House::with(MANY).await;
        let mut browser = house.browser();
        browser.sign_in(&house.url("web.test/"), "ada", PASSWORD).await;
        let (ours, ada) = (browser.cookies_for(&Url::parse(&house.url("web.test/")).unwrap()), basic("ada", PASSWORD));
        assert!(ours.contains("skep=") && ours.contains("skep-browser="));
        for path_of in [("accept", "*/*"), BY_PINGORA] {
            for place in ["web.test/", "open.test/", "hooks.test/hooks"] {
                let mixed = format!("a=1; {ours}; b=2; __Host-skep=x; SKEP-form=y");
                let reply = house.program("GET", place, &[path_of, ("cookie", &mixed)]).await;
                assert_eq!(reply.upstream_saw("cookie"), "a=1; b=2", "{place}");
                let alone = house.program("GET", place, &[path_of, ("cookie", &ours)]).await;
                assert!(alone.status == 200 && alone.json()["headers"].get("cookie").is_none(), "{place}");
                // With a session, credentials are for the service.
                let both = house.program("GET", place, &[path_of, ("cookie", &ours), ("authorization", &ada)]).await;
                assert_eq!(both.upstream_saw("authorization"), ada, "{place}");
            }
            let reply = house.program("GET", "web.test/", &[path_of, ("authorization", &ada)]).await;
            assert_eq!((reply.status, reply.upstream_saw("authorization").as_str()), (200, ""));
        }
        let reply = house.program("GET", "open.test/", &[("authorization", &ada)]).await;
        assert_eq!(reply.upstream_saw("authorization"), ada, "where nobody was asked, they are the service's");
    }
}

/// Another authority is asked.
mod authorizer {
    use super::*;

    #[tokio::test]
    async fn a_request_goes_on_if_the_authorizer_says_so() {
        let asked = Upstream::start("authorizer").await;
        let (yes, no) = (format!("http://{}/status/200", asked.address), format!("http://{}/status/403", asked.address));
        let gone = format!("http://127.0.0.1:{}/", free_port());
        let labels: Labels<'_> = &[
            ("yes", &[("skep.host", "yes.test"), ("skep.forward-auth", &yes)]),
            ("no", &[("skep.host", "no.test"), ("skep.forward-auth", &no)]),
            ("gone", &[("skep.host", "gone.test"), ("skep.forward-auth", &gone)]),
            ("both", &[("skep.host", "both.test"), ("skep.forward-auth", &yes), ("skep.auth", "staff")]),
            ("neither", &[("skep.host", "neither.test"), ("skep.forward-auth", &no), ("skep.auth", "staff")]),
        ];
        let house = House::with(labels).await;
        let ada = basic("ada", PASSWORD);
        for (place, headers, statuses) in [
            ("yes.test/", &[][..], &[200][..]),
            ("no.test/", &[], &[403]),
            ("gone.test/", &[], &[502, 503, 504]),
            ("both.test/", &[], &[401]),
            ("both.test/", &[("authorization", ada.as_str())], &[200]),
            ("neither.test/", &[("authorization", ada.as_str())], &[403]),
        ] {
            let before = house.upstream.seen();
            let reply = house.program("GET", place, headers).await;
            assert!(statuses.contains(&reply.status), "{place}: {reply:?}");
            assert_eq!(house.upstream.seen() - before, usize::from(reply.status == 200), "{place}");
        }
    }

    /// The authorizer judges what is served, not what the client says that it asks for.
    #[tokio::test]
    async fn the_authorizer_is_told_what_is_asked_for() {
        let (address, mut seen) = scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Forwarded-User: eve\r\n\r\n").await;
        let url = format!("http://{address}/verify");
        let house = House::with_config(&[("web", &[("skep.host", "web.test"), ("skep.forward-auth", &url)])], |config| {
            config.proxy.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
        let forged = [
            ("x-forwarded-host", "public.test"),
            ("x-forwarded-uri", "/public"),
            ("x_forwarded_uri", "/public"),
            ("x-forwarded-method", "OPTIONS"),
            ("x-original-url", "http://public.test/public"),
            ("x-original-uri", "/public"),
            ("x-rewrite-url", "/public"),
            ("x-forwarded-user", "root"),
            ("x_forwarded_user", "root"),
        ];
        let reply = house.program("POST", "web.test/a/../admin?x=1", &forged).await;
        assert_eq!((reply.status, reply.upstream_saw("x-forwarded-user").as_str()), (200, "eve"), "{reply:?}");
        let asked = seen.recv().await.unwrap().to_ascii_lowercase();
        for line in [
            "x-forwarded-host: web.test",
            "x-forwarded-uri: /admin?x=1",
            "x-forwarded-method: post",
            "x-original-url: http://web.test/admin?x=1",
        ] {
            assert_eq!(asked.matches(&format!("\r\n{line}\r\n")).count(), 1, "{line}: {asked}");
        }
        assert!(!asked.contains("public") && !asked.contains("root"), "{asked}");
    }
}

/// How the pages look is seen elsewhere; here, what keeps others from using them.
mod pages {
    use super::*;

    #[tokio::test]
    async fn no_other_site_frames_them_and_no_cache_keeps_them() {
        let house = House::with(MANY).await;
        let mut browser = house.browser();
        let mut pages = vec![browser.open(&house.url("web.test/")).await];
        let form = pages[0].sign_in_form().set("user", "ada");
        pages.push(browser.post(&form.clone().set("password", "wrong")).await);
        pages.push(browser.post(&form.clone().set("token", "")).await);
        browser.submit(&form.set("password", PASSWORD)).await;
        pages.push(browser.open(&house.url("web.test/.skep/sign-out")).await);
        pages.push(browser.open(&house.url("web.test/.skep/enter?code=x")).await);
        for page in pages {
            let policy = page.reply.header("content-security-policy");
            assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{page:?}");
            assert!(page.reply.header("cache-control").contains("no-store"), "{page:?}");
            assert!(page.reply.header("content-type").starts_with("text/html"), "{page:?}");
            // Old browsers without Sec-Fetch-Site would say `Origin: null` after `no-referrer`, and could not sign in.
            assert!(matches!(page.reply.header("referrer-policy"), "same-origin" | "strict-origin"), "{page:?}");
            assert!(!page.reply.body.contains("<script"), "{page:?}");
        }
    }

    #[tokio::test]
    async fn who_has_to_wait_is_told_how_long() {
        let house = House::with(ONE).await;
        let mut browser = house.browser();
        let form = browser.open(&house.url("web.test/")).await.sign_in_form().set("user", "ada").set("password", "guess");
        let mut page = browser.post(&form).await;
        for _ in 0..10 {
            page = browser.post(&form).await;
        }
        assert_eq!(page.status(), 429);
        assert!(page.reply.header("retry-after").parse::<u64>().unwrap() > 0, "{page:?}");
    }
}

#[tokio::test]
async fn what_credentials_opened_is_cut_as_well() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let house = House::with_config(MANY, |config| {
        config.auth.recheck = Duration::from_secs(1);
        config.auth.basic_cache = Duration::from_secs(1);
    })
    .await;
    let mut asked = "ws://web.test/ws".into_client_request().unwrap();
    asked.headers_mut().insert("authorization", basic("ada", PASSWORD).parse().unwrap());
    let stream = tokio::net::TcpStream::connect(house.edge.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(asked, stream).await.unwrap();
    write_users(&house.users, &[("bob", "guests"), ("cyd", "staff")]);
    let end = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the websocket is cut");
}
