//! Ways into a protected service that are none: forged, stolen and replayed cookies, forms of other sites, one-time codes of others,
//! redirects to strangers, paths and framings that somebody might read otherwise. Each is tried at the edge itself.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use skep::auth::code::{Code, Ticket};
use skep::auth::form::{self, Nonce};
use skep::auth::seal::{Keys, Ring};
use skep::auth::session::{SessionId, Token};
use skep::store::Store;
use skep::store::keyed::Keyed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use crate::browser::{Browser, Network, Page};
use crate::harness::*;
use crate::lean::BY_PINGORA;
use crate::siege;
use crate::signin::*;

/// A host with an open and a protected part, one with a path that is let by, and one that is protected whole.
const HOSTS: &[(&str, &[(&str, &str)])] = &[
    ("web", &[("skep.host", "web.test"), ("skep.auth", "staff")]),
    ("other", &[("skep.host", "other.test"), ("skep.auth", "staff")]),
    ("open", &[("skep.host", "open.test")]),
    (
        "mixed",
        &[("skep.host", "mixed.test"), ("skep.admin.host", "mixed.test"), ("skep.admin.path", "/admin"), ("skep.admin.auth", "admins")],
    ),
    ("hooks", &[("skep.host", "hooks.test"), ("skep.auth", "staff"), ("skep.auth-bypass", "/hooks")]),
];

/// Everybody signs in at login.test.
async fn shared(change: impl FnOnce(&mut skep::config::Config)) -> House {
    House::with_config(HOSTS, |config| {
        config.auth.host = Some("login.test".to_owned());
        change(config);
    })
    .await
}

/// What of a browser's is signed in on web.test.
async fn signed_in(house: &House, user: &str) -> Browser {
    let mut browser = house.browser();
    assert!(browser.sign_in(&house.url("web.test/"), user, PASSWORD).await.is_of_service());
    browser
}

/// Does this value of the session cookie let anybody in?
async fn lets_in(house: &House, host: &str, cookie: &str) -> bool {
    let reply = house.program("GET", &format!("{host}/"), &[("cookie", &format!("skep={cookie}"))]).await;
    assert!(matches!(reply.status, 200 | 401), "{reply:?}");
    reply.status == 200
}

/// The keys of the edge with this state directory: what an attacker would have to have.
async fn ring(state: &Path) -> Ring {
    let (store, _) = Keyed::open(state).unwrap();
    let (keys, _) = skep::store::read::<Keys>(&store, "auth/keys").await.unwrap().expect("keys");
    Ring::new(&keys, Timestamp::now()).unwrap()
}

#[tokio::test]
async fn a_cookie_that_was_changed_anywhere_is_none() {
    let house = House::with(HOSTS).await;
    let browser = signed_in(&house, "ada").await;
    let good = browser.cookie("web.test", "skep").to_owned();
    assert!(lets_in(&house, "web.test", &good).await);
    for place in 0..good.len() {
        let letter = if &good[place..=place] == "A" { "B" } else { "A" };
        let changed = [&good[..place], letter, &good[place + 1..]].concat();
        assert!(!lets_in(&house, "web.test", &changed).await, "changed at {place}");
        if place % 8 == 0 {
            assert!(!lets_in(&house, "web.test", &good[..place]).await, "cut at {place}");
        }
    }
    let long = "A".repeat(4200);
    for wrong in
        ["", "\"\"", "null", "A", &format!("{good}A"), &format!("{good}="), &format!("\"{good}\""), &format!("{good}{good}"), &long]
    {
        assert!(!lets_in(&house, "web.test", wrong).await, "{wrong}");
    }
    assert!(!lets_in(&house, "other.test", &good).await, "on another host");
    assert!(lets_in(&house, "web.test", &good).await, "nothing of that ended the session");
    // Beside others that a neighbour planted, ours is found; a crowd of them is an attack.
    for (before, found) in [(1, true), (3, true), (4, false), (200, false)] {
        let cookies = format!("{}a=1; skep={good}", "skep=planted; ".repeat(before));
        assert_eq!(house.program("GET", "web.test/", &[("cookie", &cookies)]).await.status == 200, found, "{before}");
    }
    for name in ["SKEP", "skep-form", "skep-browser", "__Host-skep", " skep.", "xskep", "skep[]", "$skep"] {
        let reply = house.program("GET", "web.test/", &[("cookie", &format!("{name}={good}"))]).await;
        assert_eq!(reply.status, 401, "{name}");
    }
}

#[tokio::test]
async fn one_sealed_text_is_no_other() {
    let house = shared(|_| {}).await;
    let mut browser = house.browser();
    let page = browser.open(&house.url("web.test/")).await;
    let (form_token, ticket) = (page.sign_in_form().field("token").to_owned(), page.sign_in_form().field("ticket").to_owned());
    let left = browser.post(&page.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
    let code = left.reply.header("location").split_once("code=").unwrap().1.to_owned();
    let home = browser.cookie("login.test", "skep").to_owned();
    let known = browser.cookie("login.test", "skep-browser").to_owned();
    let nonce = browser.cookie("web.test", "skep-enter").to_owned();
    for (kind, text) in
        [("a form's token", &form_token), ("a ticket", &ticket), ("a code", &code), ("a known browser", &known), ("a nonce", &nonce)]
    {
        for host in ["web.test", "other.test"] {
            assert!(!lets_in(&house, host, text).await, "{kind} as a session");
        }
        let reply = house.program("GET", "login.test/", &[("cookie", &format!("skep={text}")), ("accept", "text/html")]).await;
        assert!(!reply.body.contains("ada"), "{kind} as the session of the sign-in host: {reply:?}");
    }
    assert!(!lets_in(&house, "web.test", &home).await, "the sign-in host's session");
    for text in [&home, &known, &ticket, &form_token] {
        let page = browser.ask("GET", &house.url(&format!("web.test/.skep/enter?code={text}")), &[], b"").await;
        assert_eq!((page.status(), page.reply.headers.contains_key("set-cookie")), (403, false), "as a code: {page:?}");
        let form = page_of(&mut browser, &house).await.set("token", text).set("user", "ada").set("password", PASSWORD);
        assert!(!is_let(&browser.post(&form).await) || text == &form_token, "as a form's token");
    }
    for text in [&home, &known, &code, &form_token] {
        let page = browser.clone().ask("GET", &house.url(&format!("login.test/.skep/sign-in?ticket={text}")), &[], b"").await;
        assert!(!page.reply.header("location").contains("code="), "as a ticket: {page:?}");
    }
}

/// A fresh form of the sign-in host, in a browser that nobody is signed in with.
async fn page_of(browser: &mut Browser, house: &House) -> crate::browser::Form {
    browser.jar.retain(|cookie| cookie.name != "skep");
    browser.open(&house.url("login.test/.skep/sign-in")).await.sign_in_form()
}

/// Did an answer sign somebody in?
fn is_let(page: &Page) -> bool {
    page.reply.headers.get_all("set-cookie").iter().any(|line| {
        let line = line.to_str().unwrap();
        (line.starts_with("skep=") || line.starts_with("__Host-skep=")) && !line.contains("Max-Age=0")
    })
}

#[tokio::test]
async fn what_is_sealed_rightly_may_still_be_too_old_or_name_nobody() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let house = House::with_config(HOSTS, |config| config.state.directory = Some(path)).await;
    let mut browser = signed_in(&house, "ada").await;
    let ring = ring(state.path()).await;
    let real = Token::open(&ring, "web.test", browser.cookie("web.test", "skep")).expect("ours");
    let (now, hour) = (Timestamp::now(), Duration::from_secs(3600));
    let seal = |token: &Token| token.seal(&ring, "web.test", fastrand::u128(..).to_be_bytes()[..12].try_into().unwrap());
    assert!(lets_in(&house, "web.test", &seal(&real)).await, "the key is the right one");
    for (what, token) in [
        ("unused for too long", Token { seen: now - 13 * hour, ..real.clone() }),
        ("signed in too long ago", Token { issued: now - 8 * 24 * hour, ..real.clone() }),
        ("of the future", Token { seen: now + 2 * hour, ..real.clone() }),
        ("another session", Token { session: SessionId([7; 16]), ..real.clone() }),
        ("another user", Token { user: "cyd".to_owned(), ..real.clone() }),
        ("nobody", Token { user: String::new(), ..real.clone() }),
        ("as the user writes it", Token { user: "ADA".to_owned(), ..real.clone() }),
    ] {
        assert!(!lets_in(&house, "web.test", &seal(&token)).await, "{what}");
    }
    // A form that was left open overnight.
    let form = house.browser().open(&house.url("web.test/.skep/sign-in")).await;
    assert!(form.asks());
    let nonce = Nonce::new([3; 16]);
    let old = form::Form::SignIn.token(&ring, "web.test", &nonce, now - 2 * hour, [1; 12]);
    let fresh = form::Form::SignIn.token(&ring, "web.test", &nonce, now, [1; 12]);
    browser.jar.clear();
    browser.plant("web.test", "skep-form", &nonce.text());
    for (token, fine) in [(old, false), (fresh, true)] {
        let form = form.sign_in_form().set("token", &token).set("user", "ada").set("password", PASSWORD);
        let page = browser.post(&form).await;
        assert_eq!((is_let(&page), page.asks()), (fine, !fine), "{page:?}");
    }
}

#[tokio::test]
async fn a_cookie_outlives_its_keys_rotation_and_not_the_key() {
    let state = tempfile::tempdir().unwrap();
    let start = || {
        let path = state.path().to_owned();
        House::with_config(HOSTS, |config| config.state.directory = Some(path))
    };
    let house = start().await;
    let cookie = signed_in(&house, "ada").await.cookie("web.test", "skep").to_owned();
    house.edge.running.stop().await;
    // As time goes by: a month, and ten more days.
    for (newest_is_days_old, keys, good) in [(0, 1, true), (40, 2, true), (10, 1, false)] {
        age_keys(state.path(), newest_is_days_old).await;
        let house = start().await;
        assert_eq!(lets_in(&house, "web.test", &cookie).await, good, "{newest_is_days_old} days");
        house.edge.running.stop().await;
        let (store, _) = Keyed::open(state.path()).unwrap();
        let (kept, _) = skep::store::read::<serde_json::Value>(&store, "auth/keys").await.unwrap().unwrap();
        assert_eq!(kept["keys"].as_array().unwrap().len(), keys, "{newest_is_days_old} days");
    }
}

async fn age_keys(state: &Path, days: i64) {
    let (store, _) = Keyed::open(state).unwrap();
    let (mut kept, version) = skep::store::read::<serde_json::Value>(&store, "auth/keys").await.unwrap().unwrap();
    let newest = kept["keys"].as_array_mut().unwrap().last_mut().unwrap();
    newest["created"] = (Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).to_string().into();
    let store: &dyn Store = &store;
    skep::store::write(store, "auth/keys", &kept, Some(&version)).await.unwrap();
}

#[tokio::test]
async fn what_was_planted_before_a_sign_in_is_not_what_is_signed_in() {
    let house = House::with(HOSTS).await;
    let attacker = signed_in(&house, "cyd").await;
    let theirs = attacker.cookie("web.test", "skep").to_owned();
    for planted in [theirs.as_str(), "whatever", ""] {
        let mut victim = house.browser();
        victim.plant("web.test", "skep", planted);
        let form = victim.open(&house.url("web.test/.skep/sign-in?to=/x")).await;
        // Who is signed in as somebody else is led on; the form can be asked for all the same.
        let form = if form.asks() { form.sign_in_form() } else { house.browser().open(&house.url("web.test/")).await.sign_in_form() };
        let page = victim.post(&form.set("user", "ada").set("password", PASSWORD)).await;
        let page = if page.asks() { victim.submit(&page.sign_in_form().set("user", "ada").set("password", PASSWORD)).await } else { page };
        let own = victim.cookie("web.test", "skep").to_owned();
        assert!(own != planted && lets_in(&house, "web.test", &own).await, "{page:?}");
    }
    let form = {
        let mut attacker = attacker.clone();
        attacker.ask("GET", &house.url("web.test/.skep/sign-out"), &[], b"").await
    };
    assert!(!form.reply.body.contains("ada"), "the attacker's cookie never became somebody else's");
    // Each sign-in is a new session, and the browser's one before is over.
    let mut browser = signed_in(&house, "ada").await;
    let first = browser.cookie("web.test", "skep").to_owned();
    let page = browser.clone();
    browser.jar.retain(|cookie| cookie.name != "skep");
    let form = browser.open(&house.url("web.test/")).await.sign_in_form().set("user", "ada").set("password", PASSWORD);
    browser.plant("web.test", "skep", &first);
    assert!(is_let(&browser.post(&form).await));
    assert_ne!(browser.cookie("web.test", "skep"), first);
    assert!(!lets_in(&house, "web.test", page.cookie("web.test", "skep")).await);
}

/// What comes with a form that its own page did not send.
const FOREIGN: &[(&str, &[(&str, &str)])] = &[
    ("another origin", &[("origin", "https://evil.test")]),
    ("a neighbour", &[("origin", "http://other.test")]),
    ("another port", &[("origin", "http://web.test:1")]),
    ("no origin that can be said, from another site", &[("origin", "null"), ("sec-fetch-site", "cross-site")]),
    ("no origin that can be said", &[("origin", "null")]),
    ("an origin that looks like ours", &[("origin", "http://web.test.evil.test")]),
    ("ours as somebody's name", &[("origin", "http://web.test@evil.test")]),
    ("two origins", &[("origin", "http://web.test"), ("origin", "http://evil.test")]),
    ("another site", &[("sec-fetch-site", "cross-site")]),
    ("a site of the same domain", &[("sec-fetch-site", "same-site")]),
    ("a site that is no word", &[("sec-fetch-site", "same-origin, cross-site")]),
    ("another referrer", &[("referer", "https://evil.test/?http://web.test/")]),
    ("a neighbour's referrer", &[("referer", "http://other.test/.skep/sign-in")]),
];

#[tokio::test]
async fn no_other_site_signs_anybody_in() {
    let house = House::with(HOSTS).await;
    let fill = |form: crate::browser::Form| form.set("user", "bob").set("password", PASSWORD);
    let mut browser = house.browser();
    let form = fill(browser.open(&house.url("web.test/.skep/sign-in")).await.sign_in_form());
    for (what, headers) in FOREIGN {
        let page = browser.post_from(&form, headers).await;
        assert_eq!((page.status(), is_let(&page), page.asks()), (403, false, true), "{what}: {page:?}");
    }
    let (mut other_browser, mut none) = (house.browser(), house.browser());
    let others = other_browser.open(&house.url("web.test/.skep/sign-in")).await.sign_in_form().field("token").to_owned();
    let host = browser.open(&house.url("other.test/.skep/sign-in")).await.sign_in_form().field("token").to_owned();
    for (what, token) in [("none", ""), ("another browser's", others.as_str()), ("another host's", host.as_str()), ("nonsense", "AAAA")] {
        let page = browser.post(&form.clone().set("token", token)).await;
        assert_eq!((page.status(), is_let(&page)), (403, false), "{what}: {page:?}");
    }
    assert!(!is_let(&none.post(&form).await), "no cookie");
    // The page with which it is refused works.
    let page = none.post(&form).await;
    assert!(is_let(&none.post(&fill(page.sign_in_form())).await));
    // A form in the query signs nobody in, and neither do other methods.
    for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let url = format!("{}?{}", form.action, form.body());
        let page = browser.ask(method, &url, &[("sec-fetch-site", "same-origin")], form.body().as_bytes()).await;
        assert!(!is_let(&page) && matches!(page.status(), 200 | 405), "{method}: {page:?}");
    }
    assert!(is_let(&browser.post(&form).await), "nothing of that spoiled the form");
}

#[tokio::test]
async fn no_other_site_signs_anybody_out() {
    let house = House::with(HOSTS).await;
    let mut browser = signed_in(&house, "ada").await;
    let form = browser.sign_out_form(&house.url("web.test/")).await;
    for (what, headers) in FOREIGN {
        let page = browser.clone().post_from(&form, headers).await;
        assert_eq!(page.status(), 403, "{what}: {page:?}");
    }
    let others = signed_in(&house, "ada").await.sign_out_form(&house.url("web.test/")).await.field("token").to_owned();
    let sign_in = house.browser().open(&house.url("web.test/")).await.sign_in_form().field("token").to_owned();
    for (what, token) in
        [("none", ""), ("another session's", others.as_str()), ("the other form's", sign_in.as_str()), ("nonsense", "AAAA")]
    {
        let page = browser.clone().post(&form.clone().set("token", token).set("everywhere", "1")).await;
        assert_eq!(page.status(), 403, "{what}: {page:?}");
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let url = format!("{}?{}", form.action, form.body());
        let page = browser.clone().ask(method, &url, &[("sec-fetch-site", "same-origin")], form.body().as_bytes()).await;
        assert!(matches!(page.status(), 200 | 405) && !page.reply.headers.contains_key("set-cookie"), "{method}: {page:?}");
    }
    // A browser sends no cookie of ours with another site's form, and must not lose it by the answer.
    for (what, headers) in FOREIGN {
        let headers = [*headers, &[("cookie", "")]].concat();
        let page = browser.clone().post_from(&form, &headers).await;
        let lost = page.reply.headers.get_all("set-cookie").iter().any(|line| line.to_str().unwrap().starts_with("skep="));
        assert!(!lost, "{what}: {page:?}");
    }
    assert!(browser.open(&house.url("web.test/")).await.is_of_service(), "still signed in");
    assert_eq!(browser.post(&form).await.status(), 200);
    assert!(browser.open(&house.url("web.test/")).await.asks());
}

#[tokio::test]
async fn a_code_is_good_once_and_there_and_then() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let house = shared(|config| config.state.directory = Some(path)).await;
    let mut browser = house.browser();
    let form = browser.open(&house.url("web.test/x")).await.sign_in_form().set("user", "ada").set("password", PASSWORD);
    let left = browser.post(&form).await;
    let url = left.reply.header("location").to_owned();
    let (_, code) = url.split_once("code=").unwrap();
    let enter = |host: &str, code: &str| house.url(&format!("{host}/.skep/enter?code={code}"));

    // Another browser, without the cookie and with one of its own; another host; changed; none.
    let mut stranger = house.browser();
    assert!(!is_let(&stranger.ask("GET", &url, &[], b"").await));
    stranger.open(&house.url("web.test/")).await;
    assert!(!stranger.cookie("web.test", "skep-enter").is_empty() && !is_let(&stranger.ask("GET", &url, &[], b"").await));
    let mut elsewhere = browser.clone();
    let nonce = browser.cookie("web.test", "skep-enter").to_owned();
    elsewhere.plant("other.test", "skep-enter", &nonce);
    assert!(!is_let(&elsewhere.ask("GET", &enter("other.test", code), &[], b"").await));
    for place in (0..code.len()).step_by(7) {
        let letter = if &code[place..=place] == "A" { "B" } else { "A" };
        let changed = [&code[..place], letter, &code[place + 1..]].concat();
        for wrong in [&changed, &code[..place]] {
            let page = browser.clone().ask("GET", &enter("web.test", wrong), &[], b"").await;
            assert_eq!((page.status(), is_let(&page)), (403, false), "at {place}");
        }
    }
    assert!(!is_let(&browser.clone().ask("POST", &url, &[], b"").await));
    // None of that used it up, and this does.
    let again = browser.clone();
    let page = browser.ask("GET", &url, &[], b"").await;
    assert_eq!((page.status(), page.reply.header("location"), is_let(&page)), (303, "/x", true), "{page:?}");
    for mut browser in [again, browser.clone()] {
        let page = browser.ask("GET", &url, &[], b"").await;
        assert_eq!((page.status(), is_let(&page)), (403, false), "a second time");
    }

    // Sealed rightly, and yet too old, of a session that is over, or leading away.
    let ring = ring(state.path()).await;
    let token = Token::open(&ring, "web.test", browser.cookie("web.test", "skep")).expect("ours");
    let now = Timestamp::now();
    let hash = Nonce::parse(&nonce).unwrap().hash();
    let ticket = Ticket { authority: "web.test".to_owned(), path: "/x".to_owned(), secure: false, nonce: hash, made: now };
    let new = |id: u8| Code::new(&ticket, &token.user, token.session, now, [id; 16]);
    let old = Code { expires: now, ..new(1) };
    let eternal = Code { expires: now + Duration::from_secs(3600), ..new(2) };
    let over = Code { session: SessionId([9; 16]), ..new(3) };
    let other = Code { user: "bob".to_owned(), ..new(4) };
    let away = Code { path: "//evil.test/".to_owned(), ..new(5) };
    for (what, code, fine) in [
        ("old", old, false),
        ("eternal", eternal, false),
        ("over", over, false),
        ("other", other, false),
        ("away", away, false),
        ("good", new(6), true),
    ] {
        let text = code.seal(&ring, "web.test", [7; 12]);
        assert_eq!(is_let(&browser.clone().ask("GET", &enter("web.test", &text), &[], b"").await), fine, "{what}");
    }
}

#[tokio::test]
async fn a_ticket_leads_nowhere_but_where_it_was_made() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    let house = shared(|config| config.state.directory = Some(path)).await;
    let mut browser = signed_in(&house, "ada").await;
    let ticket = Url::parse(house.browser().open(&house.url("other.test/y")).await.way[0].1.as_str()).unwrap();
    let text = ticket.query_pairs().find(|(key, _)| key == "ticket").unwrap().1.into_owned();
    let at = |host: &str, text: &str| house.url(&format!("{host}/.skep/sign-in?ticket={text}"));
    let led = async |browser: &Browser, url: &str| {
        let page = browser.clone().ask("GET", url, &[], b"").await;
        page.reply.header("location").to_owned()
    };
    let to = led(&browser, &at("login.test", &text)).await;
    assert!(to.starts_with(&house.url("other.test/.skep/enter?code=")), "{to}");
    for place in (0..text.len()).step_by(5) {
        let letter = if &text[place..=place] == "A" { "B" } else { "A" };
        let changed = [&text[..place], letter, &text[place + 1..]].concat();
        for wrong in [&changed, &text[..place]] {
            let to = led(&browser, &at("login.test", wrong)).await;
            assert!(!to.contains("code="), "at {place}: {to}");
        }
    }
    assert!(!led(&browser, &at("web.test", &text)).await.contains("code="), "at a host where nobody signs in for others");
    assert!(!led(&browser, &at("other.test", &text)).await.contains("code="));
    // Somebody else's: they get no code that is good in their browser, for its nonce is another's.
    let page = browser.open(&at("login.test", &text)).await;
    assert_eq!((page.status(), page.is_of_service()), (403, false), "{page:?}");

    // Sealed rightly: too old, or leading away.
    let ring = ring(state.path()).await;
    let now = Timestamp::now();
    let good = Ticket { authority: "web.test".to_owned(), path: "/x".to_owned(), secure: false, nonce: [1; 32], made: now };
    for (what, ticket, fine) in [
        ("good", good.clone(), true),
        ("old", Ticket { made: now - Duration::from_secs(3601), ..good.clone() }, false),
        ("for another sign-in host", good.clone(), false),
    ] {
        let host = if what.starts_with("for") { "web.test" } else { "login.test" };
        let text = ticket.seal(&ring, host, [2; 12]);
        assert_eq!(led(&browser, &at("login.test", &text)).await.contains("code="), fine, "{what}");
    }
}

/// Where nobody may be led, in the spellings that browsers and servers have fallen for.
const AWAY: &[&str] = &[
    "",
    "a",
    "?a",
    "//evil.test",
    "///evil.test",
    "////evil.test",
    "/\\evil.test",
    "\\\\evil.test",
    "\\/evil.test",
    "https:evil.test",
    "https://evil.test",
    "HTTPS://evil.test",
    "https:/evil.test",
    "javascript:alert(1)",
    "data:text/html,x",
    "/%2F/evil.test",
    "/%2fevil.test",
    "/%5cevil.test",
    "/%5C/evil.test",
    "/\tevil.test",
    "/\t/evil.test",
    "\t//evil.test",
    "/\n/evil.test",
    "/\r/evil.test",
    " //evil.test",
    "/ /evil.test",
    "/a\r\nSet-Cookie: x=y",
    "/a\r\nLocation: https://evil.test",
    "/a%0d%0aX: y",
    "/%00",
    "/a\0",
    "/.skep/",
    "/.skep/sign-out",
    "/.SKEP/x",
    "/%2eskep/sign-out",
    "/.%73kep",
    "/a/../.skep/sign-out",
    "/./.skep/sign-out",
    "/..//evil.test",
    "/.//evil.test",
    "/%2e%2e//evil.test",
    "/a/..//evil.test",
    "/a/%5c..%5c..",
    "／／evil.test",
    "/／evil.test",
    "/\u{2215}evil.test",
    "/\u{202e}x",
    "/\u{feff}/evil.test",
    "/#",
    "/a#//evil.test",
    "/<script>",
    "/\"x",
    "@evil.test",
    ":80/",
    ".evil.test",
    "/@evil.test",
    "//evil.test@web.test/",
    "//web.test@evil.test/",
    "http://web.test@evil.test/",
    "http://evil.test#web.test",
    "http://web.test.evil.test/",
    "https://web.test/",
    "///web.test",
    "/;//evil.test",
    "/?//evil.test",
    "/a?b=https://evil.test",
];

#[tokio::test]
async fn nobody_is_led_to_a_stranger() {
    let house = House::with(HOSTS).await;
    let base = Url::parse(&house.url("web.test/.skep/sign-in")).unwrap();
    let mut browser = house.browser();
    let form = browser.open(base.as_str()).await.sign_in_form().set("user", "ada").set("password", PASSWORD);
    let stays = |page: &Page, to: &str| {
        let location = page.reply.header("location");
        let there = base.join(location).unwrap();
        assert_eq!(there.origin(), base.origin(), "{to:?} leads to {location:?}");
        assert!(!there.path().to_ascii_lowercase().starts_with("/.skep/sign-out"), "{to:?} leads to {location:?}");
        assert!(location.starts_with('/') && !location.starts_with("//"), "{to:?} leads to {location:?}");
        assert!(page.reply.headers.keys().all(|name| name != "x") && page.reply.headers.get_all("location").iter().count() == 1);
    };
    for to in AWAY {
        let page = browser.clone().post(&form.clone().set("to", to)).await;
        assert_eq!((page.status(), is_let(&page)), (303, true), "{to:?}");
        stays(&page, to);
    }
    // Who is signed in already.
    browser.post(&form).await;
    for to in AWAY {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
        let page = browser.ask("GET", &format!("{base}?{query}"), &[], b"").await;
        assert_eq!(page.status(), 303, "{to:?}");
        stays(&page, to);
    }
    // Over the sign-in host.
    let house = shared(|_| {}).await;
    let browser = signed_in(&house, "ada").await;
    let own = Url::parse(&house.url("other.test/")).unwrap();
    for to in AWAY {
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
        let page = browser.clone().open(&house.url(&format!("other.test/.skep/sign-in?{query}"))).await;
        assert!(page.is_of_service() && page.url.origin() == own.origin(), "{to:?}: {page:?}");
        let strange = |to: &str| !["login.test", "other.test"].contains(&Url::parse(to).unwrap().host_str().unwrap());
        assert!(!page.way.iter().any(|(_, to)| strange(to)), "{to:?}: {:?}", page.way);
    }
}

#[tokio::test]
async fn a_host_that_lies_gets_no_code() {
    let house = shared(|_| {}).await;
    let signed_in = signed_in(&house, "ada").await;
    let port = house.edge.http.port();
    let (login, own) = (house.url("login.test/.skep/sign-in?ticket="), format!("http://web.test:{port}/.skep/enter?code="));
    let heads = [
        format!("Host: web.test:{port}"),
        format!("Host: WEB.test:{port}"),
        format!("Host: web.test.:{port}"),
        "Host: web.test".to_owned(),
        "Host: web.test:".to_owned(),
        "Host: web.test:1".to_owned(),
        "Host: web.test:65535".to_owned(),
        "Host: web.test:65536".to_owned(),
        "Host: web.test:080".to_owned(),
        "Host: web.test:8a".to_owned(),
        "Host: web.test:1:2".to_owned(),
        "Host: web.test:1@evil.test".to_owned(),
        "Host: web.test@evil.test".to_owned(),
        "Host: user@web.test".to_owned(),
        "Host: user:pass@web.test".to_owned(),
        "Host: evil.test".to_owned(),
        "Host: evil.test#web.test".to_owned(),
        "Host: evil.test/web.test".to_owned(),
        "Host: evil.test?web.test".to_owned(),
        "Host: web.test/evil.test".to_owned(),
        "Host: web.test\\evil.test".to_owned(),
        "Host: web.test evil.test".to_owned(),
        "Host: web.test, evil.test".to_owned(),
        "Host: web.test%00.evil.test".to_owned(),
        "Host: web.test%2eevil.test".to_owned(),
        "Host: [::1]".to_owned(),
        "Host: [web.test]:80".to_owned(),
        "Host: web.test:80\r\nHost: evil.test".to_owned(),
        "Host: evil.test\r\nHost: web.test".to_owned(),
        "Host:\r\nX-Forwarded-Host: web.test".to_owned(),
        "Host: web.test\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Proto: gopher".to_owned(),
        "Host: web.test\r\nForwarded: host=evil.test;proto=https".to_owned(),
        "Host: web.test\r\nX-Host: evil.test\r\nX-Original-URL: //evil.test".to_owned(),
    ];
    for target in ["/x", "http://web.test/x", "http://evil.test/x", "http://web.test@evil.test/x", "http://web.test:1/x"] {
        for head in &heads {
            let answer = raw(
                house.edge.http,
                format!("GET {target} HTTP/1.1\r\n{head}\r\nAccept: text/html\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .await;
            let location = field(&answer, "location");
            if location.is_empty() {
                assert!(answer.starts_with("HTTP/1.1 4"), "{target} {head:?}: {answer}");
                continue;
            }
            assert!(location.starts_with(&login), "{target} {head:?}: {location}");
            // Whoever asked so could send the link to somebody who is signed in.
            let page = signed_in.clone().ask("GET", &location, &[], b"").await;
            let back = page.reply.header("location");
            assert!(back.starts_with(&own) || back.starts_with("http://web.test/.skep/enter?code="), "{target} {head:?}: {back}");
        }
    }
}

/// The first field of this name in an answer as text.
fn field(answer: &str, name: &str) -> String {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let found = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// A route without a host serves every name that anybody points here. At those nobody is signed in from elsewhere: the name may be an
/// attacker's, and so is whoever answers at it tomorrow.
#[tokio::test]
async fn a_host_that_nobody_named_is_sent_no_code() {
    let labels: &[(&str, &[(&str, &str)])] = &[
        ("web", &[("skep.host", "web.test"), ("skep.auth", "staff")]),
        ("any", &[("skep.rule", "PathPrefix(`/`)"), ("skep.auth", "staff")]),
    ];
    let house = House::with_config(labels, |config| config.auth.host = Some("login.test".to_owned())).await;
    let mut browser = signed_in(&house, "ada").await;
    let page = browser.open(&house.url("evil.test/x")).await;
    assert!(page.asks() && page.url.host_str() == Some("evil.test"), "{page:?}");
    let page = browser.submit(&page.sign_in_form().set("user", "ada").set("password", PASSWORD)).await;
    assert_eq!((page.place().as_str(), page.is_of_service()), ("evil.test/x", true), "{page:?}");
}

/// What a lax server may make of the path of `uri`: decoded once, backslashes as slashes, without parameters, slashes collapsed, dots
/// resolved.
fn lax(uri: &str) -> String {
    let path = uri.split(['?', '#']).next().unwrap();
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy().replace('\\', "/");
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/').map(|segment| segment.split(';').next().unwrap()) {
        match segment {
            "" | "." => {}
            ".." => _ = kept.pop(),
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The URI that the service was asked for, in an answer of it as text; `None`: the answer is the edge's.
fn asked_of_service(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.to_ascii_lowercase().contains("\r\nx-upstream:").then(|| {
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        body["uri"].as_str().unwrap().to_owned()
    })
}

/// Spellings of `{p}`, and ways to it from `{o}`.
const SPELLINGS: &[&str] = &[
    "/{p}",
    "//{p}",
    "///{p}",
    "/./{p}",
    "/%2e/{p}",
    "/%2E/{p}",
    "/{o}/../{p}",
    "/{o}/..//{p}",
    "/{o}//../{p}",
    "/{o}/%2e%2e/{p}",
    "/{o}/.%2e/{p}",
    "/{o}/%2e./{p}",
    "/{o}%2f..%2f{p}",
    "/{o}/..%2f{p}",
    "/{o}/%2e%2e%2f{p}",
    "/{o}%2F%2e%2e%2F{p}",
    "/{o}/..;/{p}",
    "/{o}/..;x=1/{p}",
    "/{o};/../{p}",
    "/{o}/.;/../{p}",
    "/{o}/%2e%2e;/{p}",
    "/{o}/..%3b/{p}",
    "/;/{p}",
    "/;x/{p}",
    "/{p};",
    "/{p};x=1",
    "/{p}%3bx",
    "/{o}\\..\\{p}",
    "/{o}/..\\{p}",
    "\\{p}",
    "/\\{p}",
    "/{o}%5c..%5c{p}",
    "/{o}/..%5c{p}",
    "/%5c{p}",
    "/%2f{p}",
    "/%2F/{p}",
    "/{p}%2f",
    "/{p}%2fx",
    "/{p}/",
    "/{p}/.",
    "/{p}/..",
    "/{p}/x/..",
    "/{p}//x",
    "/{p}?x",
    "/{p}#x",
    "/{p}%23",
    "/{p}%3f",
    "/{p}.",
    "/{p}..",
    "/{p}%00",
    "/{p}%20",
    "/{p}%0a",
    "/{p}%09",
    "/%61{t}",
    "/{o}/%252e%252e/{p}",
    "/{o}/..%252f{p}",
    "/{o}/%25%32%65%25%32%65/{p}",
    "/{o}/%c0%ae%c0%ae/{p}",
    "/{o}/..%c0%af{p}",
    "/{o}/.../{p}",
    "/{o}/....//{p}",
    "/{o}/../../{p}",
    "/../{p}",
    "/..;/{p}",
    "/.;/{p}",
    "/{o}/x/../../{p}",
    "/{o}/?/../{p}",
    "/{o}#/../{p}",
    "/{o}/%2e%2e?/{p}",
    "/{o}/../{o}/../{p}",
    "http://mixed.test/{p}",
    "http://mixed.test//{p}",
    "http://hooks.test/{p}",
    "http://other.test/{p}",
    "http://open.test/{p}",
    "http:/{p}",
    "{p}",
    "*",
    "mixed.test:80",
];

#[tokio::test]
async fn no_spelling_of_a_path_leads_around_what_guards_it() {
    let house = House::with(HOSTS).await;
    for spelling in SPELLINGS {
        // A protected part of an open host.
        let target = spelling.replace("{p}", "admin").replace("{t}", "dmin").replace("{o}", "public");
        let answer =
            raw(house.edge.http, format!("GET {target} HTTP/1.1\r\nHost: mixed.test\r\nConnection: close\r\n\r\n").as_bytes()).await;
        if let Some(uri) = asked_of_service(&answer) {
            let strange = target.starts_with("http://open.test");
            assert!(strange || !is_below(&lax(&uri), "/admin"), "{target} reached {uri}");
        }
        // An open part of a protected host.
        let target = spelling.replace("{p}", "secret").replace("{t}", "ecret").replace("{o}", "hooks");
        let answer =
            raw(house.edge.http, format!("GET {target} HTTP/1.1\r\nHost: hooks.test\r\nConnection: close\r\n\r\n").as_bytes()).await;
        if let Some(uri) = asked_of_service(&answer) {
            let strange = target.starts_with("http://open.test") || target.starts_with("http://mixed.test");
            assert!(strange || is_below(&lax(&uri), "/hooks"), "{target} reached {uri}");
        }
    }
    let of_admin = |answer: &str| asked_of_service(answer).is_some_and(|uri| is_below(&lax(&uri), "/admin"));
    // The same as HTTP/2 has it: a scheme and an authority of their own.
    let network = Network { http2: true, ..house.network() };
    for spelling in SPELLINGS.iter().filter(|spelling| spelling.starts_with('/') && !spelling.contains(['#', '\\'])) {
        let path = spelling.replace("{p}", "admin").replace("{t}", "dmin").replace("{o}", "public");
        let mut client = h2::client::handshake(TcpStream::connect(network.http).await.unwrap()).await.unwrap();
        tokio::spawn(client.1);
        let Ok(uri) = format!("http://mixed.test{path}").parse::<http::Uri>() else { continue };
        let (answer, _) = client.0.send_request(http::Request::get(uri).body(()).unwrap(), true).unwrap();
        let Ok(answer) = answer.await else { continue };
        let (head, mut body) = answer.into_parts();
        let text = match body.data().await {
            Some(Ok(data)) => String::from_utf8_lossy(&data).into_owned(),
            _ => String::new(),
        };
        let from_service = head.headers.contains_key("x-upstream");
        assert!(!from_service || !of_admin(&format!("\r\nx-upstream:\r\n\r\n{text}")), "{path}: {text}");
    }
}

#[tokio::test]
async fn the_edges_own_paths_are_never_forwarded() {
    let house = House::with(HOSTS).await;
    let cookie = format!("skep={}", signed_in(&house, "ada").await.cookie("web.test", "skep"));
    for path in [
        "/.skep/",
        "/.skep/sign-in",
        "/.skep/sign-in/",
        "/.skep/enter",
        "/.skep/enter?code=x",
        "/.skep/jwks.json",
        "/.skep/x",
        "/.skep//x",
        "/.skep//sign-in",
        "/%2eskep/",
        "/%2Eskep/sign-in",
        "/.%73kep/sign-in",
        "/x/../.skep/sign-in",
        "/./.skep/x",
        "/.skep/../.skep/x",
        "/.skep/x/../y",
        "/.skep/%2e%2e%2fx",
        "/.skep/sign-in;x",
        "/.skep/sign-in%00",
        "/.skep/..;/x",
        "/.skep/%2e/x",
        "http://web.test/.skep/x",
    ] {
        for (method, headers) in
            [("GET", ""), ("POST", "Content-Length: 0\r\n"), ("PUT", "Content-Length: 0\r\n"), ("OPTIONS", ""), ("TRACE", "")]
        {
            for host in ["web.test", "mixed.test"] {
                let asked = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{headers}Connection: close\r\n\r\n");
                let answer = raw(house.edge.http, asked.as_bytes()).await;
                assert_eq!(asked_of_service(&answer), None, "{method} {host} {path}");
                assert!(answer.starts_with("HTTP/1.1 "), "{method} {host} {path}: {answer:?}");
            }
        }
    }
    // What only looks like it is the service's own, and still guarded.
    for path in ["/.skep", "/.skepx", "/.skepx/y", "/.SKEP/sign-in", "/x/.skep/y", "/.skep;/sign-in", "/.skep%2fsign-in", "//.skep/sign-in"]
    {
        let answer = raw(house.edge.http, format!("GET {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert_eq!(asked_of_service(&answer), None, "{path}");
    }
}

/// Requests in one piece, none of which has a session. `{}` is a request for what is protected.
const SMUGGLED: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: mixed.test\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 60\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 4\r\n\r\nabcd{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 0, 60\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: +0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 0x0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nContent-Length:\r\n 0\r\n\r\n{}",
    "POST / HTTP/1.1\r\nHost: mixed.test\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nabcd{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}",
    "POST /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 0\r\n\r\n{}",
    "POST /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 8\r\n\r\nuser=ada{}",
    "POST /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nuser=ada\r\n0\r\n\r\n{}",
    "POST /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
    "GET /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 4\r\n\r\nabcd{}",
    "GET /.skep/sign-in HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 60\r\n\r\n{}",
    "GET /.skep/x HTTP/1.1\r\nHost: mixed.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
    "PUT /admin HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 60\r\n\r\n{}",
    "GET /admin HTTP/1.1\r\nHost: mixed.test\r\nContent-Length: 60\r\n\r\n{}",
    "GET /\r\nX: y HTTP/1.1\r\nHost: mixed.test\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nX: y\r\r\n\r\n{}",
    "GET / HTTP/1.1\r\nHost: mixed.test\r\nX: \0\r\n\r\n{}",
    "GET http://open.test/admin HTTP/1.1\r\nHost: mixed.test\r\n\r\n{}",
    "GET http://mixed.test/admin HTTP/1.1\r\nHost: open.test\r\n\r\n{}",
    "GET /admin HTTP/1.1\r\nHost: open.test\r\nHost: mixed.test\r\n\r\n{}",
    "GET /admin HTTP/1.1\r\nHost: mixed.test\r\nHost: open.test\r\n\r\n{}",
    "GET /admin HTTP/1.0\r\nHost: mixed.test\r\n\r\n{}",
    "GET /admin HTTP/1.1\r\nHost: mixed.test\r\nX-Original-URL: /\r\nX-Rewrite-URL: /\r\nX-HTTP-Method-Override: OPTIONS\r\n\r\n{}",
];

#[tokio::test]
async fn no_request_is_smuggled_past_the_check() {
    let house = House::with(HOSTS).await;
    for begin in SMUGGLED {
        for path in ["/admin/smuggled", "/admin"] {
            let before = house.upstream.seen();
            let hidden = format!("GET {path} HTTP/1.1\r\nHost: mixed.test\r\nX: {}\r\nConnection: close\r\n\r\n", "x".repeat(9));
            let bytes = begin.replace("{}", &hidden);
            let answer = tokio::time::timeout(Duration::from_secs(3), raw(house.edge.http, bytes.as_bytes())).await.unwrap_or_default();
            let answered = answer.matches("\r\nx-upstream: web").count();
            assert!(!answer.contains("\"uri\":\"/admin"), "{begin:?}: {answer}");
            let open = answer.contains("\"host\":\"open.test\"");
            assert!(house.upstream.seen() - before <= answered + usize::from(answer.is_empty()) || open, "{begin:?}: {answer}");
        }
    }
    // Many requests of one connection, of which each stands for itself.
    let cookie = signed_in(&house, "ada").await.cookie("web.test", "skep").to_owned();
    let (with, without) =
        (format!("GET /in HTTP/1.1\r\nHost: web.test\r\nCookie: skep={cookie}\r\n"), "GET /out HTTP/1.1\r\nHost: web.test\r\n");
    let bytes = format!("{with}\r\n{without}\r\n{with}\r\n{without}Connection: close\r\n\r\n");
    let answer = raw(house.edge.http, bytes.as_bytes()).await;
    let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "401", "200", "401"], "{answer}");
    // The same one after the other, where each may go another way.
    let stream = hyper_util::rt::TokioIo::new(TcpStream::connect(house.edge.http).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let session = format!("skep={cookie}");
    for round in 0..8 {
        let mut fields = if round % 2 == 0 { vec![("cookie", session.as_str())] } else { vec![] };
        fields.extend((round % 3 == 0).then_some(BY_PINGORA));
        sender.ready().await.unwrap();
        let answer = sender.send_request(request("GET", "web.test", "/", &fields)).await.unwrap();
        assert_eq!(answer.status().as_u16(), if round % 2 == 0 { 200 } else { 401 }, "{round}");
        http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    }
    let mut form = house.browser();
    let page = form.open(&house.url("web.test/")).await.sign_in_form().set("user", "ada").set("password", PASSWORD);
    let (body, nonce) = (page.body(), form.cookie("web.test", "skep-form").to_owned());
    let head =
        format!("POST /.skep/sign-in HTTP/1.1\r\nHost: web.test\r\nCookie: skep-form={nonce}\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = raw(house.edge.http, format!("{head}{body}{without}Connection: close\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 303 ") && answer.contains("\r\nHTTP/1.1 401 ") || answer.contains("HTTP/1.1 401 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");

    // Over HTTP/2, on one connection.
    let (mut client, connection) = h2::client::handshake(TcpStream::connect(house.edge.http).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async |uri: &str, fields: &[(&str, &str)]| {
        let mut request = http::Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        answer.await.map_or(0, |answer| answer.status().as_u16())
    };
    for path_of in [("accept", "*/*"), BY_PINGORA] {
        for (uri, fields, status) in [
            ("http://web.test/", &[("cookie", session.as_str())][..], 200),
            ("http://web.test/", &[], 401),
            ("http://web.test/", &[("host", "open.test")], 400),
            ("http://open.test/", &[("host", "web.test")], 400),
            ("http://open.test/", &[], 200),
            ("http://other.test/", &[("cookie", session.as_str())], 401),
            ("http://web.test/", &[("cookie", "a=b"), ("cookie", session.as_str())], 200),
        ] {
            assert_eq!(ask(uri, &[fields, &[path_of]].concat()).await, status, "{uri} {fields:?} {path_of:?}");
        }
    }
}

#[tokio::test]
async fn credentials_that_can_be_read_in_two_ways_are_none() {
    let house = House::with(HOSTS).await;
    let (ada, bob, wrong) = (basic("ada", PASSWORD), basic("bob", PASSWORD), basic("ada", "wrong"));
    let huge = format!("Basic {}", "QQ".repeat(4000));
    let nul = basic("ada\0x", PASSWORD);
    for fields in [
        &[("authorization", ada.as_str()), ("authorization", bob.as_str())][..],
        &[("authorization", &ada), ("authorization", &ada)],
        &[("authorization", &wrong), ("authorization", &ada)],
        &[("authorization", "Basic")],
        &[("authorization", "Basic ")],
        &[("authorization", "Basic ====")],
        &[("authorization", "Basic QQ==")],
        &[("authorization", "Bearer x")],
        &[("authorization", "Negotiate x")],
        &[("authorization", &huge)],
        &[("authorization", &nul)],
        &[("authorization", &basic("ada", ""))],
        &[("authorization", &basic("", PASSWORD))],
        &[("proxy-authorization", &ada)],
        &[("x-authorization", &ada)],
        &[("x_authorization", &ada)],
        &[("cookie", &format!("authorization={ada}"))],
    ] {
        let reply = house.program("GET", "web.test/", fields).await;
        assert_eq!(reply.status, 401, "{fields:?}: {reply:?}");
    }
    assert_eq!(house.upstream.seen(), 0);
    let padding = "x".repeat(20_000);
    for (cookie, statuses) in
        [(format!("a={padding}"), [401, 431]), (format!("skep={padding}"), [401, 431]), ("a=b; ".repeat(3000), [401, 431])]
    {
        let reply = house.program("GET", "web.test/", &[("cookie", &cookie)]).await;
        assert!(statuses.contains(&reply.status), "{reply:?}");
    }
    assert_eq!(house.upstream.seen(), 0);
}

#[tokio::test]
async fn nobody_says_of_themselves_who_they_are() {
    let house = House::with(HOSTS).await;
    let cookie = format!("skep={}", signed_in(&house, "ada").await.cookie("web.test", "skep"));
    let names = ["user", "groups", "email", "name"];
    let spellings: Vec<String> = names
        .iter()
        .flat_map(|name| {
            [
                format!("X-Forwarded-{name}"),
                format!("x-forwarded-{name}"),
                format!("X_Forwarded_{name}"),
                format!("X-Forwarded_{name}"),
                format!("x_forwarded-{}", name.to_uppercase()),
            ]
        })
        .collect();
    for (host, path_of) in
        [("open.test", ""), ("web.test", ""), ("hooks.test", ""), ("web.test", "Te: trailers\r\n"), ("open.test", "Te: trailers\r\n")]
    {
        for spelling in &spellings {
            let path = if host == "hooks.test" { "/hooks" } else { "/" };
            for twice in ["", "again"] {
                let forged =
                    if twice.is_empty() { format!("{spelling}: root\r\n") } else { format!("{spelling}: a\r\n{spelling}: root\r\n") };
                let asked = format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n{forged}{path_of}Connection: close, {spelling}\r\n\r\n"
                );
                let answer = raw(house.edge.http, asked.as_bytes()).await;
                assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("root"), "{host} {spelling}: {answer}");
            }
        }
    }
    // And none of it lets anybody in.
    for spelling in &spellings {
        assert_eq!(house.program("GET", "web.test/", &[(spelling.to_ascii_lowercase().as_str(), "ada")]).await.status, 401);
    }
    for claim in ["remote-user", "x-remote-user", "x-auth-request-user", "x-skep-user", "x-skep-mirror", "x-skep-proof", "via"] {
        assert_eq!(house.program("GET", "web.test/", &[(claim, "ada")]).await.status, 401, "{claim}");
    }
}

#[tokio::test]
async fn a_form_is_a_form_of_ours_or_none() {
    let house = House::with_config(HOSTS, |config| config.proxy.body_timeout = Duration::from_millis(500)).await;
    let mut browser = house.browser();
    let page = browser.open(&house.url("web.test/")).await;
    let good = page.sign_in_form().set("user", "ada").set("password", PASSWORD).body();
    let url = house.url("web.test/.skep/sign-in");
    let json = r#"{"user":"ada","password":"correct horse"}"#;
    let multipart = format!(
        "--b\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nada\r\n--b\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\n{}\r\n--b--\r\n",
        page.sign_in_form().field("token")
    );
    for (what, kind, body, status) in [
        ("nothing", "application/x-www-form-urlencoded", String::new(), 403),
        ("JSON", "application/json", json.to_owned(), 403),
        ("multipart", "multipart/form-data; boundary=b", multipart, 403),
        ("twice the user", "application/x-www-form-urlencoded", format!("{good}&user=bob"), 403),
        ("twice the token", "application/x-www-form-urlencoded", format!("{good}&token=x"), 403),
        ("twice, written otherwise", "application/x-www-form-urlencoded", format!("{good}&%75ser=bob"), 403),
        ("broken UTF-8", "application/x-www-form-urlencoded", good.replace("user=ada", "user=ada%ff"), 403),
        ("a crowd of fields", "application/x-www-form-urlencoded", format!("{good}{}", "&a".repeat(3000)), 403),
        ("10,000 fields", "application/x-www-form-urlencoded", format!("{good}{}", "&a".repeat(10_000)), 413),
        ("long", "application/x-www-form-urlencoded", format!("{good}&x={}", "x".repeat(9000)), 413),
        ("very long", "application/x-www-form-urlencoded", format!("{good}&x={}", "x".repeat(3_000_000)), 413),
        ("a NUL", "application/x-www-form-urlencoded", good.replace("user=ada", "user=ada%00"), 401),
        ("no password", "application/x-www-form-urlencoded", good.replace("password=correct+horse", "password="), 401),
        (
            "a long password",
            "application/x-www-form-urlencoded",
            good.replace("password=correct+horse", &format!("password={}", "x".repeat(6000))),
            401,
        ),
        ("a long name", "application/x-www-form-urlencoded", good.replace("user=ada", &format!("user={}", "a".repeat(3000))), 401),
    ] {
        let page = browser.ask("POST", &url, &[("content-type", kind)], body.as_bytes()).await;
        assert_eq!((page.status(), is_let(&page)), (status, false), "{what}: {page:?}");
    }
    let page = browser.ask("POST", &url, &[("content-type", "application/x-www-form-urlencoded")], good.as_bytes()).await;
    assert!(is_let(&page), "{page:?}");

    // A body that does not come, or not whole; what comes behind one that is too long is no request.
    let began = |length: usize, body: &str| {
        format!("POST /.skep/sign-in HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let slow = raw(house.edge.http, began(100, "user=ada").as_bytes()).await;
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    let hidden = "GET /hidden HTTP/1.1\r\nHost: open.test\r\nConnection: close\r\n\r\n";
    for length in [8 * 1024, 8 * 1024 + 1, 20_000] {
        let before = house.upstream.seen();
        let answer = raw(house.edge.http, began(length + hidden.len(), &format!("{}{hidden}", "x".repeat(length))).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{length}: {answer}");
        assert_eq!((house.upstream.seen(), answer.contains("/hidden")), (before, false), "{length}");
    }
    // Who waits to be told to go on is told.
    let mut stream = TcpStream::connect(house.edge.http).await.unwrap();
    let head = format!(
        "POST /.skep/sign-in HTTP/1.1\r\nHost: web.test\r\nExpect: 100-continue\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        good.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(good.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains("HTTP/1.1 403 "), "a form without its cookie: {answer}");
}

#[tokio::test]
async fn a_name_is_text_wherever_it_is_shown() {
    let house = House::with(HOSTS).await;
    let names = [
        "ada\r\nSet-Cookie: evil=1",
        "ada\nLocation: https://evil.test",
        "\"><script>alert(1)</script>",
        "'><img src=x onerror=alert(1)>",
        "</title><svg onload=alert(1)>",
        "\u{1b}[31mada",
        "ada\",\"status\":200,\"x\":\"",
        "ada\n{\"status\":200}",
        "\u{202e}ada",
        "{{7*7}}",
        "*)(uid=*",
        "ada' or 1=1 --",
    ];
    for name in names {
        let mut browser = house.browser();
        let form = browser.open(&house.url("web.test/")).await.sign_in_form().set("user", name).set("password", "hunter2hunter2");
        let page = browser.post(&form).await;
        assert_eq!((page.status(), page.asks()), (401, true), "{name:?}: {page:?}");
        let headers = format!("{:?}", page.reply.headers);
        assert!(!headers.contains("evil"), "{name:?}: {headers}");
        for raw in ["<script>", "<img src", "<svg onload"] {
            assert!(!name.contains(raw) || !page.reply.body.contains(raw), "{name:?}: {}", page.reply.body);
        }
        let credentials = basic(name, "hunter2hunter2");
        let reply = house.program("GET", "web.test/", &[("authorization", &credentials)]).await;
        assert!(matches!(reply.status, 401 | 429), "{reply:?}");
    }
    // Each line of the log is one of ours, whatever somebody calls themselves or asks for.
    let query = "/.skep/enter?code=secret-code&x=%0a{";
    house.program("GET", &format!("web.test{query}"), &[]).await;
    raw(house.edge.http, b"GET /%2eskep/enter?code=secret-code HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n").await;
    let lines = house.edge.log_lines(3 * names.len() + 2).await;
    assert!(lines.iter().all(|line| line["status"] != 200 || line["path"] == "/.skep/sign-in"), "{lines:?}");
    let text = std::fs::read_to_string(house.edge.directory.path().join("access.log")).unwrap();
    for secret in ["secret-code", "hunter2hunter2", PASSWORD, "skep-form"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[tokio::test]
async fn what_is_closed_to_somebody_tells_them_nothing_of_the_service() {
    let house = House::with(HOSTS).await;
    let bob = basic("bob", PASSWORD);
    let address = house.upstream.address.to_string();
    for (credentials, status) in [(None, 401), (Some(bob.as_str()), 403)] {
        let mut seen = std::collections::BTreeSet::new();
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
            for path in ["/", "/status/404", "/status/500", "/nothing", "/bytes/10", "/events", "/ws", "/count"] {
                let mut fields = vec![("accept", "*/*")];
                fields.extend(credentials.map(|credentials| ("authorization", credentials)));
                let reply = house.program(method, &format!("web.test{path}"), &fields).await;
                assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
                assert!(!reply.body.contains(&address) && !reply.headers.contains_key("x-upstream"), "{method} {path}: {reply:?}");
                let id = reply.header("x-request-id").to_owned();
                let names: Vec<_> =
                    reply.headers.keys().filter(|name| *name != "date" && *name != "connection").map(ToString::to_string).collect();
                seen.insert((method == "HEAD", names.join(" "), reply.body.replace(&id, "")));
            }
        }
        assert!(seen.len() <= 2, "all look the same: {seen:?}");
    }
    assert_eq!(house.upstream.seen(), 0);
}

#[tokio::test]
async fn what_is_done_beside_a_request_is_not_done_for_strangers() {
    let copies = Upstream::start("copy").await;
    let address = copies.address.to_string();
    let labels: &[(&str, &[(&str, &str)])] = &[
        (
            "web",
            &[
                ("skep.host", "web.test"),
                ("skep.auth", "staff"),
                ("skep.mirror", "copy"),
                ("skep.error-page", "5xx pages"),
                ("skep.rate-limit", "1/h"),
                ("skep.circuit", "on"),
                ("skep.compress", "on"),
                ("skep.redirect-from", "www.test"),
                ("skep.moved.host", "web.test"),
                ("skep.moved.path", "/moved"),
                ("skep.moved.auth", "staff"),
                ("skep.moved.redirect-regex", "^http://web.test[^/]*/moved(.*) https://secret.test$1"),
            ],
        ),
        ("copy", &[("skep.host", "copy.test"), ("skep.address", &address)]),
        ("pages", &[("skep.host", "pages.test"), ("skep.address", &address)]),
    ];
    let upstream = Upstream::start("web").await;
    let web = upstream.address.to_string();
    let own: Vec<(&str, &str)> =
        labels[0].1.iter().copied().chain([("skep.address", web.as_str()), ("skep.moved.address", web.as_str())]).collect();
    let users = tempfile::tempdir().unwrap();
    write_users(&users.path().join("users"), PEOPLE);
    let edge = Edge::with_config(&services(&[("web", &own), labels[1], labels[2]]), |config| {
        config.auth.users = Some(users.path().join("users"));
    })
    .await;
    for _ in 0..5 {
        assert_eq!(get_path(edge.http, "web.test", "/").await.status, 401);
        let moved = get_path(edge.http, "web.test", "/moved/x").await;
        assert_eq!((moved.status, moved.header("location")), (401, ""));
    }
    assert_eq!((upstream.seen(), copies.seen()), (0, 0));
    let ada = basic("ada", PASSWORD);
    let reply = send(edge.http, request("GET", "web.test", "/", &[("authorization", &ada)])).await;
    assert_eq!(reply.status, 200, "strangers did not use up what members may ask: {reply:?}");
    let www = get_path(edge.http, "www.test", "/x").await;
    assert!(www.status == 301 && www.header("location").starts_with("http://web.test"), "{www:?}");
}

/// What is not a path to us must be none to the service.
#[tokio::test]
async fn a_target_that_says_no_path_reaches_nobody() {
    let house = House::with(HOSTS).await;
    for target in [
        "admin",
        "admin/x",
        "?x",
        "*",
        "*x",
        "*/admin",
        "mixed.test:80",
        "mixed.test",
        "a:/admin",
        "foo:bar://h/admin",
        "ftp://mixed.test/admin",
        "http:///admin",
        "http:/admin",
        "http:admin",
        "http://mixed.test:81/public",
        "http://user@mixed.test/public",
        "http://mixed.test/admin",
        "http://mixed.test/public/../admin",
        "HTTP://mixed.test/admin",
        "\\mixed.test\\admin",
        ";/admin",
        ".",
        "..",
        "../admin",
        "%2fadmin",
    ] {
        let answer =
            raw(house.edge.http, format!("GET {target} HTTP/1.1\r\nHost: mixed.test\r\nConnection: close\r\n\r\n").as_bytes()).await;
        let status = answer.get(9..12).unwrap_or("");
        let refused =
            if target.ends_with("/admin") && target.to_ascii_lowercase().starts_with("http://m") { ["401", "400"] } else { ["400"; 2] };
        assert!(refused.contains(&status), "{target}: {answer}");
        let connect = answer_of(&house, &format!("CONNECT {target} HTTP/1.1\r\nHost: mixed.test\r\nConnection: close\r\n\r\n")).await;
        assert!(connect.starts_with("HTTP/1.1 4"), "{target}: {connect}");
    }
    assert_eq!(house.upstream.seen(), 0);
    // The absolute form becomes the usual one.
    for (target, uri) in [
        ("http://mixed.test/public?x", "/public?x"),
        ("https://mixed.test/public", "/public"),
        ("http://mixed.test", "/"),
        ("/#/admin", "/"),
    ] {
        let answer = answer_of(&house, &format!("GET {target} HTTP/1.1\r\nHost: mixed.test\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(asked_of_service(&answer).as_deref(), Some(uri), "{target}: {answer}");
    }
    let answer = answer_of(&house, "OPTIONS * HTTP/1.1\r\nHost: mixed.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(asked_of_service(&answer).as_deref(), Some("*"), "{answer}");
}

async fn answer_of(house: &House, asked: &str) -> String {
    raw(house.edge.http, asked.as_bytes()).await
}

#[tokio::test]
async fn a_path_of_http2_is_a_path() {
    let house = House::with(HOSTS).await;
    let paths = [
        "admin",
        "*",
        "",
        "?x",
        ";/admin",
        "http://mixed.test/admin",
        "//mixed.test/admin",
        "/public/../admin",
        "/%61dmin",
        "/admin#x",
        "/\\admin",
    ];
    let asking = paths.iter().flat_map(|path| ["http", "https", "ftp"].map(|scheme| (*path, scheme))).map(async |(path, scheme)| {
        let names: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
        let values: [&[u8]; 4] = [b"GET", scheme.as_bytes(), b"mixed.test", path.as_bytes()];
        let block = siege::fields(&std::array::from_fn::<_, 4, _>(|index| (names[index], values[index])));
        let head = siege::frame(siege::HEADERS, siege::END_STREAM | siege::END_HEADERS, 1, &block);
        let mut stream = TcpStream::connect(house.edge.http).await.unwrap();
        stream.write_all(&[siege::preface(), head].concat()).await.unwrap();
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        // What is still to come a while after the last piece is nothing.
        let mut read = async || tokio::time::timeout(Duration::from_secs(1), stream.read(&mut chunk)).await.map(|read| (read, chunk));
        while let Ok((Ok(count @ 1..), chunk)) = read().await {
            answer.extend_from_slice(&chunk[..count]);
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let reached = text.contains("\"name\":\"web\"") && is_below(&lax(uri_in(&text)), "/admin");
        assert!(!reached, "{path}: {text}");
    });
    futures_util::future::join_all(asking).await;
}

fn uri_in(text: &str) -> &str {
    text.split_once("\"uri\":\"").map_or("", |(_, rest)| rest.split('"').next().unwrap())
}
