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
use url::Url;

use crate::browser::{Browser, Page};
use crate::harness::*;
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
