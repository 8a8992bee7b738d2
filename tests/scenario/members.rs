//! Why sign-in is there: on a real swarm, beside a real OpenLDAP, one label lets the members of a group in, tells others that they are
//! none, and asks everybody else to sign in.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use crate::browser::{Browser, Network};
use crate::harness::send;
use crate::slapd::{Options, Slapd};
use crate::swarm::{Cleanup, Edge, Engine, overlay};

/// The services' network reaches this machine at an address of its own; the directory listens on loopback only.
async fn reachable(from: SocketAddr) -> TcpListener {
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect(from).unwrap();
    TcpListener::bind((probe.local_addr().unwrap().ip(), 0)).await.unwrap()
}

fn relay(listener: TcpListener, to: SocketAddr) {
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(to).await {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn one_label_of_a_service_lets_members_in_and_nobody_else() {
    let Some(engine) = Engine::shared() else { return };
    let _cleanup = Cleanup(&engine, vec!["teedy"]);
    overlay(&engine, "members-net");
    let address: SocketAddr = format!("{}:80", engine.engine(&["address"], &["members-net"])).parse().unwrap();
    let listener = reachable(address).await;
    let here = listener.local_addr().unwrap();
    let name: &'static str = here.ip().to_string().leak();
    let slapd = Slapd::with(Options { names: vec!["127.0.0.1", name], ..Options::default() }).await;
    relay(listener, slapd.tls);
    let section = slapd.section().replace(&slapd.tls.to_string(), &here.to_string());
    let edge = Edge::with(&engine, "members-net", &section);
    // The label as the first users' stacks have it.
    engine.service("teedy", "members-net", &["haproxy.virtual_host=teedy.test", "com.sismics.docker.auth=teedy"], &[]);
    edge.until("teedy.test", "closed to strangers", |reply| reply.status == 401 && reply.header("www-authenticate").starts_with("Basic "))
        .await;

    let mut ada = Browser::new(Network { http: edge.http, https: None, http2: false });
    let page = ada.open("http://teedy.test/").await;
    assert!(page.asks() && page.place().starts_with("teedy.test/.skep/sign-in?to="), "{page:?}");
    let page = ada.submit(&page.sign_in_form().set("user", "ada").set("password", "wrong")).await;
    assert_eq!(page.status(), 401, "{page:?}");
    let mut page = ada.submit(&page.sign_in_form().set("user", "ada").set("password", "ada-secret")).await;
    // Who may enter may be quicker than the task.
    let began = Instant::now();
    while page.status() == 503 && began.elapsed() < Duration::from_secs(40) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        page = ada.open("http://teedy.test/").await;
    }
    assert_eq!(
        (page.status(), page.place().as_str()),
        (200, "teedy.test/"),
        "{page:?}\n{}",
        std::fs::read_to_string(&edge.log).unwrap_or_default()
    );
    assert!(page.reply.body.contains("teedy"), "the task answers with its name: {page:?}");

    let mut bob = Browser::new(Network { http: edge.http, https: None, http2: false });
    let page = bob.sign_in("http://teedy.test/", "bob", "bob-secret").await;
    assert_eq!(page.status(), 403, "{page:?}\n{}", std::fs::read_to_string(&edge.log).unwrap_or_default());
    assert_eq!(bob.open("http://teedy.test/").await.status(), 403);

    for (user, password, status) in [("ada", "ada-secret", 200), ("bob", "bob-secret", 403), ("ada", "bob-secret", 401), ("ada", "", 401)] {
        let credentials = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, format!("{user}:{password}"));
        let request = http::Request::get("/").header("host", "teedy.test").header("authorization", format!("Basic {credentials}"));
        let reply = send(edge.http, request.body(http_body_util::Full::default()).unwrap()).await;
        assert_eq!(reply.status, status, "{user} {password}: {reply:?}");
    }
}
