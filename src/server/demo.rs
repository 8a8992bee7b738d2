//! `skep demo`: the edge on free ports in front of tiny upstreams inside the same process.
//! It is the embedded default: it shows the real proxy at work where there is no Docker at all.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{any, get};
use tokio::net::TcpListener;

use super::guests::Guest;

/// The services of the demo.
pub const STACK: &str = include_str!("../../config/demo.yml");
/// Its name in diagnostics.
pub const STACK_PATH: &str = "config/demo.yml";

/// One upstream: the variable that `config/demo.yml` names it by, what it calls itself, what it does.
const UPSTREAMS: [(&str, &str, Kind); 7] = [
    ("DEMO_HELLO_1", "hello, first task", Kind::Plain),
    ("DEMO_HELLO_2", "hello, second task", Kind::Plain),
    ("DEMO_SHOP", "shop", Kind::Plain),
    ("DEMO_SHOP_NEXT", "shop, next version", Kind::Plain),
    ("DEMO_OFFICE", "office", Kind::Plain),
    ("DEMO_ECHO", "echo", Kind::Echo),
    ("DEMO_SLOW", "slow", Kind::Slow),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Echo,
    Slow,
}

/// Starts the upstreams on free loopback ports. Returns the variables that the stack file asks for; they serve until
/// the process ends.
///
/// # Errors
/// When loopback has no free port.
pub async fn upstreams() -> std::io::Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for (variable, name, kind) in UPSTREAMS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        variables.insert(variable.to_owned(), listener.local_addr()?.to_string());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, upstream(name, kind)).await {
                tracing::error!(%error, name, "a demo upstream ended");
            }
        });
    }
    // A port that was just given back: nobody listens there.
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
    variables.insert("DEMO_AWAY".to_owned(), nobody.to_string());
    Ok(variables)
}

fn upstream(name: &'static str, kind: Kind) -> Router {
    let router = Router::new().fallback(any(move |request: Request| async move { describe(name, &request) }));
    match kind {
        Kind::Plain => router,
        Kind::Echo => router.route("/ws", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) })),
        Kind::Slow => router.route("/", get(move |query: Query<Seconds>, headers: HeaderMap| slow(name, query, headers))),
    }
}

/// What arrived, as text: who answers, the request line and every header.
fn describe(name: &str, request: &Request) -> String {
    format!("{name}\n\n{} {}\n{}", request.method(), request.uri(), lines(request.headers()))
}

fn lines(headers: &HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()))).collect()
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let reply = match message {
            Message::Text(text) => Message::Text(text),
            Message::Binary(bytes) => Message::Binary(bytes),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        if socket.send(reply).await.is_err() {
            return;
        }
    }
}

#[derive(serde::Deserialize)]
struct Seconds {
    #[serde(default = "two")]
    seconds: u64,
}

fn two() -> u64 {
    2
}

async fn slow(name: &'static str, Query(Seconds { seconds }): Query<Seconds>, headers: HeaderMap) -> Response<String> {
    let seconds = seconds.min(60);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Response::new(format!("{name}, after {seconds} s\n\n{}", lines(&headers)))
}

/// Who may enter where somebody has to sign in. The passwords are of this start.
fn sign_in(port: u16, guests: &[Guest]) -> String {
    let mut text = format!("\nWho enters http://office.localhost:{port}/ has to sign in, as a member of the group staff. There are:\n\n");
    for Guest { user, group, password } in guests {
        text.push_str(&format!("\x20 {user}, password {}, of the group {group}\n", password.reveal()));
    }
    let first = guests.first().map(|guest| format!("{}:{}", guest.user, guest.password.reveal())).unwrap_or_default();
    text.push_str(&format!("\n\x20 curl -u {first} http://office.localhost:{port}/\n"));
    text
}

/// What to try, for the terminal.
pub fn invitation(http: SocketAddr, https: Option<SocketAddr>, admin: Option<SocketAddr>, root: Option<&str>, guests: &[Guest]) -> String {
    let port = http.port();
    let mut text = format!(
        "\nSkep is at http://hello.localhost:{port}/ — open it, or try:\n\n\
         \x20 curl http://hello.localhost:{port}/            # two tasks take turns\n\
         \x20 curl http://shop.localhost:{port}/             # nine of ten requests see one version, the tenth the next\n\
         \x20 curl http://hello.localhost:{port}/echo/inside # a path of its own, its prefix stripped\n\
         \x20 curl 'http://slow.localhost:{port}/?seconds=3' # a slow answer\n\
         \x20 curl 'http://slow.localhost:{port}/?seconds=20' # too slow: 504\n\
         \x20 curl -i http://away.localhost:{port}/          # nobody is at home: 502\n\
         \x20 curl -i http://nothing.localhost:{port}/       # no such route: 404\n\
         \x20 websocket: ws://echo.localhost:{port}/ws\n"
    );
    text.push_str(&sign_in(port, guests));
    if let (Some(https), Some(admin)) = (https, admin) {
        let port = https.port();
        text.push_str(&format!(
            "\nOver HTTPS as well, by certificates of an authority of its own:\n\n\
             \x20 curl -i http://secure.localhost:{}/            # leads to HTTPS\n\
             \x20 skep certs root --admin {admin} > root.pem     # whom to trust for that\n\
             \x20 curl --cacert root.pem https://secure.localhost:{port}/\n",
            http.port()
        ));
        if let Some(root) = root {
            text.push_str(&format!("\n{root}"));
        }
    }
    if let Some(admin) = admin {
        text.push_str(&format!(
            "\n  skep routes --admin {admin}                       # what is routed where\n\
             \x20 skep certs --admin {admin}                        # which certificates there are\n\
             \x20 skep explain --admin {admin} http://typo.localhost/ # why something is not\n\
             \x20 curl http://{admin}/metrics\n"
        ));
    }
    text.push_str("\nStop it with Ctrl-C.\n");
    text
}
