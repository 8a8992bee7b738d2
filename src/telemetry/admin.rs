//! The admin listener: metrics, health, and what the running edge knows, for Prometheus, `skep routes` and people with curl.
//! It only tells and changes nothing; it is for this machine and its private networks, so it refuses names that a web page could forge.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep};

use super::prometheus::{CONTENT_TYPE, Metrics, Now};
use crate::backup::standing::Report as Backups;
use crate::certificate::standing::Report;
use crate::config::auth::Facts;
use crate::state::Live;
use crate::traffic::LimitNow;
use crate::upstream::Backend;

/// Connections at one time; more wait.
const CONNECTIONS: usize = 64;
/// A connection carries one request and ends after this time, whatever the client does.
const LIFETIME: Duration = Duration::from_secs(30);
/// How long the loop rests when the process is out of file descriptors.
const REST: Duration = Duration::from_millis(100);

const CONTENTS: &str = "\
/metrics      for Prometheus
/health       200 while the process serves
/ready        200 once the routes come from a snapshot, 503 before
/routes       the routing table (JSON)
/diagnostics  findings about labels (JSON)
/snapshot     what Docker said (JSON)
/facts        settings that decide which routes are closed (JSON)
/ledger       counters of the backends (JSON)
/limits       counters and circuits of the routes (JSON)
/certificates how the names stand that want certificates, and what is done next (JSON)
/backups      how volumes stand that are to be saved, and what is not saved (JSON)
/certificates/root.pem whom clients trust who trust Skep's internal authority
";

/// What the admin listener tells from.
pub struct Admin {
    pub live: Arc<Live>,
    pub metrics: Arc<Metrics>,
    /// Read at each scrape; with a `snapshot_age` the edge counts as ready.
    pub now: Box<dyn Fn() -> Now + Send + Sync>,
    /// The counters of the backends.
    pub ledger: Box<dyn Fn() -> Value + Send + Sync>,
    /// The limits of the routes that have any.
    pub limits: Box<dyn Fn() -> Vec<LimitNow> + Send + Sync>,
    /// How names stand that want certificates.
    pub certificates: Box<dyn Fn() -> Report + Send + Sync>,
    /// How volumes stand that are to be saved.
    pub backups: Box<dyn Fn() -> Backups + Send + Sync>,
    /// The root of the internal authority, as PEM; or why there is none.
    pub root: Box<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>,
    /// Why a backend that is up gets no requests, in words.
    pub ailment: Ailment,
}

/// Asked of each backend when the routes are told.
pub type Ailment = Box<dyn Fn(&Backend) -> Option<String> + Send + Sync>;

/// Serves until `stopping` turns true (or its sender is gone); then answers what was asked and returns.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, mut stopping: watch::Receiver<bool>) {
    let listener = Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS)) };
    let stopped = async move {
        // An error means that the sender is gone: whoever would have told us has ended.
        _ = stopping.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, router(admin)).with_graceful_shutdown(stopped).await {
        tracing::error!("the admin listener ended: {error}");
    }
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/", get(CONTENTS))
        .route("/metrics", get(metrics))
        .route("/health", get("ok\n"))
        .route("/ready", get(readiness))
        .route("/routes", get(routes))
        .route("/diagnostics", get(diagnostics))
        .route("/snapshot", get(snapshot))
        .route("/facts", get(facts))
        .route("/ledger", get(ledger))
        .route("/limits", get(limits))
        .route("/certificates", get(certificates))
        .route("/backups", get(backups))
        .route("/certificates/root.pem", get(root))
        .fallback(unknown)
        .with_state(admin)
        .layer(middleware::from_fn(guard))
}

type Told = Shared<Arc<Admin>>;

async fn metrics(Shared(admin): Told) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], admin.metrics.encode(&(admin.now)())).into_response()
}

/// Ready is who has services to route: listed now, or kept from an earlier run while Docker is away.
async fn readiness(Shared(admin): Told) -> (StatusCode, &'static str) {
    match (admin.now)().snapshot_age.is_some() || !admin.live.load().snapshot.services.is_empty() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no snapshot yet: the edge has not heard from Docker or a stack file\n"),
    }
}

async fn routes(Shared(admin): Told) -> Response {
    Json(admin.live.load().list_with(&*admin.ailment)).into_response()
}

async fn diagnostics(Shared(admin): Told) -> Response {
    Json(&admin.live.load().diagnostics).into_response()
}

async fn snapshot(Shared(admin): Told) -> Response {
    Json(&*admin.live.load().snapshot).into_response()
}

async fn facts(Shared(admin): Told) -> Response {
    Json(Facts::of(&admin.live.load().config)).into_response()
}

async fn ledger(Shared(admin): Told) -> Response {
    Json((admin.ledger)()).into_response()
}

async fn limits(Shared(admin): Told) -> Response {
    Json((admin.limits)()).into_response()
}

async fn root(Shared(admin): Told) -> Response {
    match (admin.root)().await {
        Ok(pem) => ([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn certificates(Shared(admin): Told) -> Response {
    Json((admin.certificates)()).into_response()
}

async fn backups(Shared(admin): Told) -> Response {
    Json((admin.backups)()).into_response()
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, format!("There is:\n{CONTENTS}")).into_response()
}

/// Lets requests of this machine and its networks through, one a connection, without their bodies.
async fn guard(request: Request, next: Next) -> Response {
    let named = request.uri().host().map(str::as_bytes);
    let hosts = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes).chain(named);
    let trusted = hosts.into_iter().all(|host| std::str::from_utf8(host).is_ok_and(is_trusted));
    let mut response = if trusted {
        let (head, _) = request.into_parts();
        next.run(Request::from_parts(head, Body::empty())).await
    } else {
        (StatusCode::FORBIDDEN, "Ask by an IP address, localhost, or a name without dots: other names may be a web page's trick.\n")
            .into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// No public DNS name can pass: a web page that lets its own name point to this listener (DNS rebinding) is refused.
/// Names without dots are those of Swarm services and of `/etc/hosts`.
fn is_trusted(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if port.is_empty() || port.starts_with(':') => {
                return address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
            }
            _ => return false,
        },
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let single = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    single || name.parse::<IpAddr>().is_ok()
}

/// A listener that bounds the number of its connections and their time.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Limited;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Limited, SocketAddr) {
        loop {
            // Closed never: nobody but us has the semaphore.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Limited { stream, end: Box::pin(sleep(LIFETIME)), _place: place }, peer),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("the admin listener cannot accept: {error}");
                    sleep(REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over, and gives its place back when dropped.
struct Limited {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Limited {
    /// The outcome, unless the stream has to wait and its time is over.
    fn in_time<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_pending() {
            ready!(self.end.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        outcome
    }
}

impl AsyncRead for Limited {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.in_time(context, outcome)
    }
}

impl AsyncWrite for Limited {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;
    use crate::config::Config;
    use crate::snapshot::{Service, Snapshot};
    use crate::state::State;

    fn shop() -> Service {
        let labels = [("skep.host", "shop.example.com"), ("skep.hots", "typo")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Service { name: "shop".to_owned(), labels, ..Service::default() }
    }

    fn admin(snapshot_age: Option<f64>, services: Vec<Service>) -> Arc<Admin> {
        let snapshot = Snapshot { services, ..Snapshot::default() };
        Arc::new(Admin {
            live: Arc::new(Live::new(State::build(Arc::new(Config::default()), Arc::new(snapshot)))),
            metrics: Arc::new(Metrics::new()),
            now: Box::new(move || Now { snapshot_age, ..Now::default() }),
            ledger: Box::new(|| serde_json::json!({ "backends": 0 })),
            limits: Box::new(|| vec![LimitNow { route: "shop".into(), ..LimitNow::default() }]),
            certificates: Box::new(Report::default),
            backups: Box::new(Backups::default),
            root: Box::new(|| Box::pin(async { Err("no store".to_owned()) })),
            ailment: Box::new(|_| None),
        })
    }

    /// Sends `request` as it is and returns everything until the server closes.
    async fn exchange(admin: Arc<Admin>, request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = watch::channel(false);
        let server = tokio::spawn(serve(listener, admin, stopping));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.expect("the connection is closed").unwrap();
        stop.send_replace(true);
        timeout(Duration::from_secs(5), server).await.expect("it stops").unwrap();
        answer
    }

    async fn ask(path: &str) -> (u16, String) {
        let answer = exchange(admin(Some(1.0), vec![shop()]), &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn each_page_answers() {
        let cases = [
            ("/", 200, "/metrics "),
            ("/metrics", 200, "skep_snapshot_age_seconds 1.0\n"),
            ("/health", 200, "ok\n"),
            ("/ready", 200, "ready\n"),
            ("/routes", 200, r#""matches":["shop.example.com/"]"#),
            ("/diagnostics", 200, "skep.hots"),
            ("/snapshot", 200, r#""name":"shop""#),
            ("/facts", 200, r#"{"sign_in":false,"#),
            ("/ledger", 200, r#"{"backends":0}"#),
            ("/certificates", 200, r#""names":[]"#),
            ("/backups", 200, r#""volumes":[]"#),
            ("/elsewhere", 404, "/routes "),
        ];
        for (path, status, part) in cases {
            let (got, body) = ask(path).await;
            assert!(got == status && body.contains(part), "{path}: {got} {body}");
        }
        for path in ["/routes", "/diagnostics", "/snapshot", "/ledger"] {
            let body = ask(path).await.1;
            assert!(serde_json::from_str::<Value>(&body).is_ok(), "{path}: {body}");
        }
    }

    #[tokio::test]
    async fn without_a_snapshot_the_edge_lives_but_is_not_ready() {
        let kept = vec![shop()];
        for (path, services, status) in [("/health", vec![], "200"), ("/ready", vec![], "503"), ("/ready", kept, "200")] {
            let answer = exchange(admin(None, services), &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
            assert_eq!(&answer[9..12], status, "{path}");
        }
    }

    #[tokio::test]
    async fn only_get_and_head_are_answered_and_no_body_is_read() {
        let cases = [
            ("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
            ("POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", "405"),
            ("DELETE /snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
            ("GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", "200"),
            ("GET /health HTTP/1.0\r\n\r\n", "200"),
            ("GET /snapshot HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
            ("GET http://evil.example/snapshot HTTP/1.1\r\nHost: localhost\r\n\r\n", "403"),
            ("GET /snapshot HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "403"),
        ];
        for (request, status) in cases {
            let answer = exchange(admin(Some(1.0), vec![shop()]), request).await;
            assert_eq!(&answer[9..12], status, "{request:?}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_in_the_middle_of_a_head_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_stop, stopping) = watch::channel(false);
        tokio::spawn(serve(listener, admin(None, vec![]), stopping));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTT").await.unwrap();
        let mut answer = Vec::new();
        // Whether it ends by FIN or by RST does not matter.
        _ = timeout(LIFETIME * 2, stream.read_to_end(&mut answer)).await.expect("cut off");
        assert!(answer.is_empty(), "{answer:?}");
    }

    #[test]
    fn names_that_a_web_page_could_have_are_refused() {
        let cases = [
            ("", true),
            ("localhost", true),
            ("localhost:9180", true),
            ("127.0.0.1:9180", true),
            ("10.0.0.7", true),
            ("[::1]:9180", true),
            ("[::1]", true),
            ("skep:9180", true),
            ("edge_skep", true),
            ("evil.example", false),
            ("evil.example:9180", false),
            ("skep.", false),
            ("127.0.0.1.nip.io", false),
            ("[evil.example]", false),
            ("[::1]evil.example", false),
            ("[127.0.0.1]", false),
            ("evil.example@localhost", false),
            ("a b", false),
        ];
        for (host, trusted) in cases {
            assert_eq!(is_trusted(host), trusted, "{host:?}");
        }
    }
}
