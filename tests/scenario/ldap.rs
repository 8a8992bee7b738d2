//! Signing in with a directory server: OpenLDAP itself, in every mood.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use skep::auth::directory::{Directory, Unavailable};
use skep::auth::identity::{Identity, Password, folded};
use skep::auth::ldap::Ldap;
use skep::config::filter::Template;
use skep::config::ldap::Server;
use skep::config::{self, Scheme};

use crate::slapd::{Options, SUFFIX, Slapd, has_ipv6};

fn open(config: &config::Ldap) -> Ldap {
    Ldap::open(config).unwrap()
}

fn secret(text: &str) -> Password {
    Password::new(text.to_owned())
}

async fn verify(ldap: &Ldap, user: &str, password: &str) -> Result<Option<Identity>, Unavailable> {
    ldap.verify(user, &secret(password)).await
}

/// The groups of who signs in, sorted; `None`: they may not.
async fn groups(ldap: &Ldap, user: &str, password: &str) -> Option<Vec<String>> {
    verify(ldap, user, password).await.unwrap().map(sorted)
}

fn sorted(identity: Identity) -> Vec<String> {
    identity.groups().map(str::to_owned).collect()
}

async fn known(ldap: &Ldap, groups: &[&str]) -> Result<Vec<String>, Unavailable> {
    let groups: BTreeSet<String> = groups.iter().map(|group| folded(group)).collect();
    Ok(ldap.known(&groups).await?.into_iter().collect())
}

/// Waits until it does: a machine may be too busy for short limits.
async fn answers(ldap: &Ldap) {
    let began = Instant::now();
    while ldap.look_up("ada").await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", ldap.health());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const ALL: [&str; 5] = ["everybody", "Human  Resources", "ops", "staff", "teedy"];

#[tokio::test]
async fn a_user_is_found_and_bound_and_their_groups_of_all_kinds_are_read() {
    let slapd = Slapd::start().await;
    let (config, findings) = config::parse("skep.toml", &slapd.section(), &[]);
    assert_eq!(findings, []);
    let ldap = open(&config.unwrap().ldap);
    let ada = verify(&ldap, "ada", "ada-secret").await.unwrap().expect("the right password");
    assert_eq!((ada.user.as_str(), ada.name.as_deref(), ada.email.as_deref()), ("ada", Some("Ada Lovelace"), Some("ada@example.org")));
    assert_eq!(sorted(ada), ALL);
    let bob = verify(&ldap, "bob", "bob-secret").await.unwrap().expect("the right password");
    assert_eq!((bob.name.as_deref(), bob.email.as_deref()), (Some("Bob"), None));
    assert_eq!(sorted(bob), ["sismics"]);
    for (user, password) in
        [("ada", "bob-secret"), ("ada", "ada-secret "), ("eve", "ada-secret"), ("reader", "reader-secret"), ("*", "ada-secret")]
    {
        assert_eq!(verify(&ldap, user, password).await, Ok(None), "{user} {password}");
    }
    // Both spellings and the mail address are the same person.
    for user in ["ADA", " ada ", "ada@example.org"] {
        assert_eq!(verify(&ldap, user, "ada-secret").await.unwrap().map(|ada| ada.user).as_deref(), Some("ada"), "{user}");
    }
    assert_eq!(ldap.look_up("ada").await.unwrap().map(sorted).unwrap(), ALL);
    assert_eq!(ldap.look_up("eve").await, Ok(None));
    // Sessions are in the user's name, not in the address.
    assert_eq!(ldap.look_up("ada@example.org").await, Ok(None));
    assert!(ldap.looks_up());
    assert_eq!(
        known(&ldap, &["Teedy", "human resources", "OPS", "nobodies", "a*", "ada"]).await.unwrap(),
        ["human resources", "ops", "teedy"]
    );
}

#[tokio::test]
async fn members_are_known_by_their_own_entries_too() {
    let slapd = Slapd::start().await;
    let member_of = config::Ldap { scheme: Scheme::MemberOf, ..slapd.config() };
    let ldap = open(&member_of);
    assert_eq!(groups(&ldap, "ada", "ada-secret").await.unwrap(), ["everybody", "teedy"]);
    assert_eq!(known(&ldap, &["teedy", "none"]).await.unwrap(), ["teedy"]);
    let flat = open(&config::Ldap { nested_groups: false, ..member_of.clone() });
    assert_eq!(groups(&flat, "ada", "ada-secret").await.unwrap(), ["teedy"]);
    // A group elsewhere is another group, whatever its name.
    slapd.add(&format!("dn: cn=admins,ou=people,{SUFFIX}\nobjectClass: groupOfNames\ncn: admins\nmember: uid=ada,ou=people,{SUFFIX}\n"));
    assert_eq!(groups(&flat, "ada", "ada-secret").await.unwrap(), ["teedy"]);
    let anywhere = open(&config::Ldap { group_base: None, nested_groups: false, ..member_of });
    assert_eq!(groups(&anywhere, "ada", "ada-secret").await.unwrap(), ["admins", "teedy"]);
}

#[tokio::test]
async fn a_filter_of_ones_own_decides() {
    let slapd = Slapd::start().await;
    let template = |text: &str, places: &[&str]| Template::parse(text, places).ok();
    let config = config::Ldap {
        user_filter: template("(&(objectClass=posixAccount)(uid={user}))", &["{user}"]),
        group_filter: template("(&(objectClass=posixGroup)(memberUid={user}))", &["{user}"]),
        name_attribute: Some("sn".to_owned()),
        email_attribute: Some("homeDirectory".to_owned()),
        ..slapd.config()
    };
    let ldap = open(&config);
    let ada = verify(&ldap, "ada", "ada-secret").await.unwrap().unwrap();
    assert_eq!((ada.name.as_deref(), ada.email.as_deref()), (Some("Lovelace"), Some("/home/ada")));
    assert_eq!(sorted(ada), ["ops"]);
    assert_eq!(verify(&ldap, "bob", "bob-secret").await, Ok(None), "bob has no such account");
}

#[tokio::test]
async fn whoever_left_a_group_is_out_at_the_next_look() {
    let slapd = Slapd::start().await;
    for scheme in [Scheme::MemberOf, Scheme::Groups] {
        let ldap = open(&config::Ldap { scheme, ..slapd.config() });
        assert!(ldap.look_up("ada").await.unwrap().unwrap().belongs("ops") == (scheme == Scheme::Groups));
    }
    let ldap = open(&slapd.config());
    slapd.leave("ada", "teedy");
    assert_eq!(ldap.look_up("ada").await.unwrap().map(sorted).unwrap(), ["Human  Resources", "ops", "staff"]);
    // The entry moves, and is still the same person.
    slapd.add(&format!("dn: ou=leavers,ou=people,{SUFFIX}\nobjectClass: organizationalUnit\nou: leavers\n"));
    let base = format!(
        "dn: uid=ada,ou=people,{SUFFIX}\nchangetype: modrdn\nnewrdn: uid=ada\ndeleteoldrdn: 0\nnewsuperior: ou=leavers,ou=people,{SUFFIX}\n"
    );
    slapd.modify(&base);
    assert!(ldap.look_up("ada").await.unwrap().is_some());
    slapd.modify(&format!("dn: uid=ada,ou=leavers,ou=people,{SUFFIX}\nchangetype: delete\n"));
    assert_eq!(ldap.look_up("ada").await, Ok(None));
}

#[tokio::test]
async fn closed_accounts_do_not_sign_in_and_are_gone_at_the_next_look() {
    let slapd = Slapd::start().await;
    let ldap = open(&slapd.config());
    slapd.replace("ada", "shadowExpire", "10000");
    assert_eq!(verify(&ldap, "ada", "ada-secret").await, Ok(None));
    assert_eq!(ldap.look_up("ada").await, Ok(None));
    slapd.replace("ada", "shadowExpire", "99999");
    assert!(verify(&ldap, "ada", "ada-secret").await.unwrap().is_some());
    // An administrator locks bob,
    slapd.replace("bob", "pwdAccountLockedTime", "000001010000Z");
    assert_eq!(verify(&ldap, "bob", "bob-secret").await, Ok(None));
    assert_eq!(ldap.look_up("bob").await, Ok(None));
    // and a stranger guesses ada's password until the server takes none any more: that ends none of ada's sessions.
    for _ in 0..4 {
        assert_eq!(verify(&ldap, "ada", "guessed").await, Ok(None));
    }
    assert_eq!(verify(&ldap, "ada", "ada-secret").await, Ok(None));
    assert!(ldap.look_up("ada").await.unwrap().is_some());
}

#[tokio::test]
async fn names_mean_what_they_say_whatever_is_in_them() {
    const NAMES: [&str; 14] = [
        "a*",
        "(b)",
        "c\\",
        "d,e=f+g",
        "#h",
        "\"i\"",
        "<j>;k",
        "Ľudmila Õun",
        "日本",
        "l@m.example",
        "n{user}",
        "\\2a",
        "o)(uid=*",
        "p\u{1f510}",
    ];
    let mut more = String::new();
    let coded = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    for (number, name) in NAMES.iter().enumerate() {
        let dn = coded(&format!("uid={},ou=people,{SUFFIX}", config::dn::escape(name)));
        writeln!(more, "dn:: {dn}\nobjectClass: inetOrgPerson\nuid:: {}\ncn: x\nsn: x\nuserPassword: secret-{number}\n", coded(name))
            .unwrap();
        let group = format!("g{name}");
        let dn_of_group = coded(&format!("cn={},ou=groups,{SUFFIX}", config::dn::escape(&group)));
        writeln!(more, "dn:: {dn_of_group}\nobjectClass: groupOfNames\ncn:: {}\nmember:: {dn}\n", coded(&group)).unwrap();
    }
    let slapd = Slapd::with(Options { more, ..Options::default() }).await;
    let direct = config::Ldap { bind_template: Some(format!("uid={{user}},ou=people,{SUFFIX}")), ..slapd.config() };
    let member_of = config::Ldap { scheme: Scheme::MemberOf, ..slapd.config() };
    for config in [slapd.config(), direct, member_of] {
        let ldap = open(&config);
        for (number, name) in NAMES.iter().enumerate() {
            let user = verify(&ldap, name, &format!("secret-{number}")).await.unwrap().unwrap_or_else(|| panic!("{name}"));
            assert_eq!(user.user, *name);
            assert_eq!(sorted(user), [format!("g{name}")], "{name}");
            assert_eq!(verify(&ldap, name, "secret-99").await, Ok(None), "{name}");
            assert!(ldap.look_up(name).await.unwrap().is_some(), "{name}");
            assert_eq!(known(&ldap, &[&format!("g{name}")]).await.unwrap(), [folded(&format!("g{name}"))]);
        }
        for name in ["*", "a\0", "ada\0", "\0", "", " ", "ada\n", "ada)(uid=*", "uid=ada", "ada,ou=people", &"x".repeat(300), "ad\u{0}a"] {
            assert_eq!(verify(&ldap, name, "ada-secret").await, Ok(None), "{name:?}");
            assert_eq!(ldap.look_up(name).await, Ok(None), "{name:?}");
        }
        let asked: u64 = ldap.health().iter().map(|health| health.failures).sum();
        assert_eq!(asked, 0, "no name makes a server look ill: {:?}", ldap.health());
    }
}

#[tokio::test]
async fn an_empty_password_is_wrong_and_nobody_is_asked() {
    // Nobody listens there: whoever asked would be told so.
    let slapd = Slapd::start().await;
    let config = config::Ldap { servers: vec!["ldaps://127.0.0.1:1".parse().unwrap()], ..slapd.config() };
    let ldap = open(&config);
    for password in ["", "\0", "\0\0", "ada-secret\0"] {
        assert_eq!(verify(&ldap, "ada", password).await, Ok(None), "{password:?}");
    }
    assert_eq!(ldap.health()[0].requests, 0);
    assert!(verify(&ldap, "ada", "ada-secret").await.is_err());
    assert_eq!(ldap.health()[0].requests, 1);
}

#[tokio::test]
async fn who_does_not_exist_is_refused_by_the_same_steps_as_a_wrong_password() {
    let slapd = Slapd::start().await;
    let ldap = open(&slapd.config());
    let steps = async |user: &str| {
        let before = slapd.log().len();
        assert_eq!(verify(&ldap, user, "wrong").await, Ok(None));
        let log = slapd.log().split_off(before);
        ["BIND dn=\"", "SRCH base="].map(|step| log.lines().filter(|line| line.contains(step) && !line.contains("mech=")).count())
    };
    // The first search needs the service account.
    steps("ada").await;
    assert_eq!(steps("ada").await, [1, 1], "{}", slapd.log());
    assert_eq!(steps("eve").await, [1, 1], "{}", slapd.log());
    assert!(!slapd.log().contains("wrong") && !slapd.log().contains("reader-secret"));
}

#[tokio::test]
async fn users_sign_in_directly_where_their_names_follow_a_rule() {
    let slapd = Slapd::start().await;
    let template = Some(format!("uid={{user}},ou=people,{SUFFIX}"));
    let with_account = open(&config::Ldap { bind_template: template.clone(), user_base: None, ..slapd.config() });
    assert_eq!(groups(&with_account, "ada", "ada-secret").await.unwrap(), ALL);
    assert_eq!(groups(&with_account, "ada", "wrong").await, None);
    assert_eq!(groups(&with_account, "eve", "wrong").await, None);
    assert!(with_account.looks_up() && with_account.look_up("bob").await.unwrap().is_some());
    assert_eq!(with_account.look_up("eve").await, Ok(None));
    // Without one, users read what they may: themselves, and here no group.
    let alone =
        open(&config::Ldap { bind_template: template, bind_dn: None, scheme: Scheme::MemberOf, nested_groups: false, ..slapd.config() });
    assert_eq!(groups(&alone, "ada", "ada-secret").await.unwrap(), ["teedy"]);
    assert_eq!(groups(&alone, "ada", "wrong").await, None);
    assert!(!alone.looks_up());
    assert!(alone.look_up("ada").await.is_err(), "it cannot be said that ada is gone");
    assert_eq!(known(&alone, &["anything"]).await.unwrap(), ["anything"]);
}

#[tokio::test]
async fn several_entries_of_one_name_let_nobody_in() {
    let more = format!(
        "dn: ou=more,ou=people,{SUFFIX}\nobjectClass: organizationalUnit\nou: more\n\ndn: cn=other,ou=more,ou=people,{SUFFIX}\n\
         objectClass: inetOrgPerson\nuid: ada\ncn: other\nsn: x\nuserPassword: other-secret\n"
    );
    let slapd = Slapd::with(Options { more, ..Options::default() }).await;
    let ldap = open(&slapd.config());
    assert_eq!(verify(&ldap, "ada", "ada-secret").await, Ok(None));
    assert_eq!(verify(&ldap, "ada", "other-secret").await, Ok(None));
    assert_eq!(ldap.look_up("ada").await, Ok(None));
    assert!(verify(&ldap, "bob", "bob-secret").await.unwrap().is_some());
}

#[tokio::test]
async fn a_restart_of_the_server_costs_no_request() {
    let mut slapd = Slapd::start().await;
    let ldap = open(&slapd.config());
    for way in [Slapd::kill, Slapd::stop] {
        for _ in 0..3 {
            assert!(ldap.look_up("ada").await.unwrap().is_some());
        }
        way(&mut slapd);
        slapd.run().await;
        assert!(ldap.look_up("ada").await.unwrap().is_some());
        assert!(verify(&ldap, "ada", "ada-secret").await.unwrap().is_some());
    }
    // Away for good, it is said so at once, and an unknown user is not taken for one who is gone.
    slapd.kill();
    let began = Instant::now();
    assert!(
        ldap.look_up("ada").await.is_err() && verify(&ldap, "ada", "ada-secret").await.is_err() && known(&ldap, &["teedy"]).await.is_err()
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    let health = &ldap.health()[0];
    assert!(!health.up && health.failures == 3 && health.error.as_ref().unwrap().contains("refused"), "{health:?}");
    // The first request after its return is answered.
    slapd.run().await;
    assert!(verify(&ldap, "ada", "ada-secret").await.unwrap().is_some());
    assert!(ldap.health()[0].up);
}

#[tokio::test]
async fn the_next_server_is_asked_and_the_first_again_once_it_is_back() {
    let (mut one, two) = (Slapd::start().await, Slapd::start().await);
    // That is how they are told apart.
    two.replace("ada", "displayName", "Ada of the second");
    let ldap = open(&Slapd::configs(&[&one, &two]));
    let who = async |ldap: &Ldap| verify(ldap, "ada", "ada-secret").await.unwrap().unwrap().name.unwrap();
    assert_eq!(who(&ldap).await, "Ada Lovelace");
    one.kill();
    for _ in 0..3 {
        assert_eq!(who(&ldap).await, "Ada of the second");
    }
    let up = |ldap: &Ldap| ldap.health().iter().map(|health| health.up).collect::<Vec<_>>();
    assert_eq!(up(&ldap), [false, true]);
    one.run().await;
    let began = Instant::now();
    while who(&ldap).await != "Ada Lovelace" {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", ldap.health());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(up(&ldap), [true, true]);
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up_in_time() {
    let (one, two) = (Slapd::start().await, Slapd::start().await);
    let quick =
        |config: config::Ldap| config::Ldap { connect_timeout: Duration::from_secs(1), request_timeout: Duration::from_secs(1), ..config };
    let ldap = open(&quick(Slapd::configs(&[&one, &two])));
    let alone = open(&quick(one.config()));
    answers(&ldap).await;
    answers(&alone).await;
    one.freeze();
    let began = Instant::now();
    assert!(ldap.look_up("ada").await.unwrap().is_some());
    assert!(alone.look_up("ada").await.is_err() && verify(&alone, "ada", "ada-secret").await.is_err());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(!ldap.health()[0].up && ldap.health()[1].up);
    // Many at a time do not wait one after the other.
    let began = Instant::now();
    let all = futures_util::future::join_all((0..50).map(|_| alone.look_up("ada"))).await;
    assert!(all.iter().all(Result::is_err) && began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    one.thaw();
    answers(&alone).await;
}

#[tokio::test]
async fn only_the_server_that_the_certificate_names_is_told_anything() {
    let slapd = Slapd::start().await;
    let other = Slapd::with(Options { names: vec!["elsewhere.example", "192.0.2.1"], ..Options::default() }).await;
    let fails = async |config: config::Ldap, why: &str| {
        let ldap = open(&config);
        let error = verify(&ldap, "ada", "ada-secret").await.unwrap_err().0;
        assert!(error.contains(why), "{error}");
    };
    let at = |url: String| vec![url.parse::<Server>().unwrap()];
    fails(config::Ldap { ca: Some(other.ca_file()), ..slapd.config() }, "UnknownIssuer").await;
    fails(other.config(), "not valid for").await;
    let starttls = |slapd: &Slapd| config::Ldap { servers: at(format!("ldap://{}", slapd.plain)), ..slapd.config() };
    fails(config::Ldap { ca: Some(other.ca_file()), ..starttls(&slapd) }, "UnknownIssuer").await;
    fails(starttls(&other), "not valid for").await;
    // By address, by name, over IPv6, and by StartTLS.
    let mut urls = vec![
        format!("ldaps://localhost:{}", slapd.tls.port()),
        format!("ldap://127.0.0.1:{}", slapd.plain.port()),
        format!("ldap://localhost:{}", slapd.plain.port()),
    ];
    urls.extend(has_ipv6().then(|| format!("ldaps://[::1]:{}", slapd.tls.port())));
    for url in urls {
        let ldap = open(&config::Ldap { servers: at(url.clone()), ..slapd.config() });
        assert!(verify(&ldap, "ada", "ada-secret").await.unwrap().is_some(), "{url}");
    }
    if has_ipv6() {
        fails(config::Ldap { servers: at(format!("ldaps://[::1]:{}", other.tls.port())), ..other.config() }, "not valid for").await;
    }
    // No file, or nothing in it, is a mistake that is told at the start.
    for ca in [slapd.file("empty.pem", ""), slapd.directory.path().join("none.pem")] {
        assert!(Ldap::open(&config::Ldap { ca: Some(ca), ..slapd.config() }).unwrap_err().contains("ldap.ca"));
    }
    let empty = Some(slapd.file("empty.txt", "\n"));
    assert!(Ldap::open(&config::Ldap { bind_password_file: empty, ..slapd.config() }).unwrap_err().contains("no password"));
}

#[tokio::test]
async fn nothing_is_said_in_clear_unless_that_is_wanted() {
    let plain = Slapd::with(Options { names: vec![], ..Options::default() }).await;
    let servers: Vec<Server> = vec![format!("ldap://{}", plain.plain).parse().unwrap()];
    let strict = config::Ldap { servers: servers.clone(), ..plain.config() };
    let error = verify(&open(&strict), "ada", "ada-secret").await.unwrap_err().0;
    assert!(error.contains("StartTLS is refused"), "{error}");
    let open_one = open(&config::Ldap { servers, starttls: false, ..plain.config() });
    assert_eq!(groups(&open_one, "bob", "bob-secret").await.unwrap(), ["sismics"]);
    // A server that wants TLS says so, instead of calling the password wrong.
    let wanting = Slapd::with(Options { database: "security simple_bind=128", ..Options::default() }).await;
    let clear = vec![format!("ldap://{}", wanting.plain).parse().unwrap()];
    let error =
        verify(&open(&config::Ldap { servers: clear, starttls: false, ..wanting.config() }), "ada", "ada-secret").await.unwrap_err().0;
    assert!(error.contains("it wants an encrypted connection"), "{error}");
    assert!(verify(&open(&wanting.config()), "ada", "ada-secret").await.unwrap().is_some());
}

#[tokio::test]
async fn an_account_that_may_not_search_is_no_reason_to_call_anybody_gone() {
    let slapd = Slapd::start().await;
    let mut config = slapd.config();
    config.bind_password_file = Some(slapd.file("wrong.txt", "wrong"));
    let ldap = open(&config);
    let error = ldap.look_up("ada").await.unwrap_err().0;
    assert!(error.contains("ldap.bind-dn may not sign in"), "{error}");
    // A new password is taken up without a restart.
    slapd.file("wrong.txt", "reader-secret\n");
    assert!(ldap.look_up("ada").await.unwrap().is_some());
    // Nobody may search here without an account, and a base that is gone is not a user who is.
    let nobody = open(&config::Ldap { bind_dn: None, bind_password_file: None, ..slapd.config() });
    assert!(nobody.look_up("ada").await.is_err() && verify(&nobody, "ada", "ada-secret").await.is_err());
    let nowhere = open(&config::Ldap { user_base: Some(format!("ou=none,{SUFFIX}")), ..slapd.config() });
    assert!(nowhere.look_up("ada").await.unwrap_err().0.contains("ou=none"));
    let groupless = open(&config::Ldap { group_base: Some(format!("ou=none,{SUFFIX}")), ..slapd.config() });
    assert!(groupless.look_up("ada").await.is_err() && known(&groupless, &["teedy"]).await.is_err());
}

#[tokio::test]
async fn ten_thousand_users_and_thousands_of_groups_are_no_trouble() {
    let mut more = String::new();
    for number in 0..10_000 {
        let dn = format!("uid=user{number},ou=people,{SUFFIX}");
        writeln!(
            more,
            "dn: {dn}\nobjectClass: inetOrgPerson\nuid: user{number}\ncn: User {number}\nsn: x\nuserPassword: secret-{number}\n"
        )
        .unwrap();
    }
    for number in 0..1_200 {
        let member = format!("uid=ada,ou=people,{SUFFIX}");
        writeln!(more, "dn: cn=group{number},ou=groups,{SUFFIX}\nobjectClass: groupOfNames\ncn: group{number}\nmember: {member}\n")
            .unwrap();
    }
    let slapd = Slapd::with(Options { more, ..Options::default() }).await;
    let ldap = open(&config::Ldap { page_size: 100, ..slapd.config() });
    let names: Vec<String> = (0..10_000).step_by(500).map(|number| format!("user{number}")).collect();
    let all = futures_util::future::join_all(names.iter().map(|name| async {
        let password = name.replace("user", "secret-");
        verify(&ldap, name, &password).await.unwrap().map(|user| user.user)
    }))
    .await;
    assert_eq!(all, names.into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(groups(&ldap, "ada", "ada-secret").await.unwrap().len(), 1_200 + ALL.len());
    let asked: Vec<String> = (0..1_300).map(|number| format!("group{number}")).collect();
    let known = known(&ldap, &asked.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(known.len(), 1_200);
}

#[tokio::test]
async fn what_is_no_directory_is_only_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers that are no LDAP, that are LDAP and make no sense, and that never end.
    const ANSWERS: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x05\x02\x01\x01\x61\x00",
        b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x01\xff\x04\x00",
        b"\x30\x84\x7f\xff\xff\xff\x02",
        b"\x30\x03\x02\x01\x01",
        b"",
    ];
    tokio::spawn(async move {
        for answer in ANSWERS.iter().cycle() {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut buffer = [0; 256];
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let slapd = Slapd::start().await;
    let config = config::Ldap {
        servers: vec![format!("ldap://{address}").parse().unwrap()],
        connect_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
        starttls: false,
        ..slapd.config()
    };
    for starttls in [false, true] {
        let ldap = open(&config::Ldap { starttls, ..config.clone() });
        for _ in 0..ANSWERS.len() {
            assert!(ldap.look_up("ada").await.is_err());
        }
        assert_eq!(ldap.health()[0].failures, ANSWERS.len() as u64);
    }
}

#[tokio::test]
async fn referrals_are_followed_only_to_servers_that_are_named() {
    let away = Slapd::start().await;
    let more = format!(
        "dn: ou=away,ou=people,{SUFFIX}\nobjectClass: referral\nobjectClass: extensibleObject\nou: away\n\
         ref: ldaps://127.0.0.1:{}/ou=people,{SUFFIX}??sub\n",
        away.tls.port()
    );
    away.add(&format!("dn: uid=zoe,ou=people,{SUFFIX}\nobjectClass: inetOrgPerson\nuid: zoe\ncn: Zoe\nsn: z\nuserPassword: zoe-secret\n"));
    let here = Slapd::with(Options { more, ..Options::default() }).await;
    let both = Slapd::configs(&[&here, &away]);
    let strict = config::Ldap { servers: vec![both.servers[0].clone()], ..both.clone() };
    let ldap = open(&strict);
    // A reference beside what is found is no trouble.
    assert!(verify(&ldap, "ada", "ada-secret").await.unwrap().is_some());
    assert_eq!(verify(&ldap, "zoe", "zoe-secret").await, Ok(None));
    let wide = open(&config::Ldap { referrals: vec![both.servers[1].clone()], ..strict.clone() });
    assert_eq!(groups(&wide, "zoe", "zoe-secret").await.unwrap(), [""; 0]);
    assert_eq!(groups(&wide, "zoe", "wrong").await, None);
    assert!(wide.look_up("zoe").await.unwrap().is_some());
    // Both servers have an ada: which one it is cannot be said.
    assert_eq!(verify(&wide, "ada", "ada-secret").await, Ok(None));
    // Everything is elsewhere, so nobody here is gone.
    let base = Some(format!("ou=away,ou=people,{SUFFIX}"));
    let ldap = open(&config::Ldap { user_base: base.clone(), ..strict.clone() });
    let error = ldap.look_up("zoe").await.unwrap_err().0;
    assert!(error.contains("it refers to ldaps://127.0.0.1"), "{error}");
    let wide = open(&config::Ldap { user_base: base, referrals: vec![both.servers[1].clone()], ..strict });
    assert_eq!(groups(&wide, "zoe", "zoe-secret").await.unwrap(), [""; 0]);
}
