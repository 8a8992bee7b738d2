//! What the scenarios share: upstreams with known behaviour, the edge in this process, clients that say what they send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Path, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use skep::config::Config;
use skep::server::{self, Options, Running};

/// A port that nobody has, for TCP and UDP, and that no other test takes: it is below those that the system gives out, and a locked
/// file reserves it until this process ends.
pub fn free_port() -> u16 {
    static RESERVED: std::sync::Mutex<Vec<std::fs::File>> = std::sync::Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join("skep-test-ports");
    std::fs::create_dir_all(&folder).unwrap();
    loop {
        let port = fastrand::u16(10_000..32_000);
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(folder.join(port.to_string())).unwrap();
        let is_free = || std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() && std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if file.try_lock().is_ok() && is_free() {
            RESERVED.lock().unwrap().push(file);
            return port;
        }
    }
}

/// An upstream that tells what it got. `seen` counts requests.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<AtomicUsize>,
}

impl Upstream {
    pub async fn start(name: &'static str) -> Upstream {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        let count = move |request: Request, next: axum::middleware::Next| {
            counted.fetch_add(1, Ordering::SeqCst);
            next.run(request)
        };
        let router = Router::new()
            .route("/status/{code}", any(|Path(code): Path<u16>| async move { StatusCode::from_u16(code).unwrap() }))
            .route(
                "/delay/{milliseconds}",
                any(|Path(milliseconds): Path<u64>| async move {
                    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                    "late"
                }),
            )
            .route("/count", post(count_body))
            .route("/bytes/{count}", get(|Path(count): Path<usize>| async move { big(count) }))
            .route("/events", get(events))
            .route("/ws", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
            .fallback(any(move |request: Request| async move { describe(name, request).await }))
            .layer(axum::middleware::from_fn(count));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Upstream { address, seen }
    }

    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

async fn describe(name: &str, request: Request) -> Response {
    let headers: serde_json::Map<String, serde_json::Value> = request
        .headers()
        .iter()
        .map(|(key, value)| (key.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned().into()))
        .collect();
    let body = serde_json::json!({
        "name": name, "method": request.method().as_str(), "uri": request.uri().to_string(), "headers": headers,
    });
    ([("x-upstream", name), ("keep-alive", "timeout=9"), ("server", "test")], body.to_string()).into_response()
}

async fn count_body(request: Request) -> String {
    let mut stream = request.into_body().into_data_stream();
    let mut count = 0;
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => count += chunk.len(),
            Err(_) => return "broken".to_owned(),
        }
    }
    count.to_string()
}

fn big(count: usize) -> Body {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let whole = count / chunk.len();
    let rest = chunk.slice(..count % chunk.len());
    let chunks = std::iter::repeat_n(chunk, whole).chain(std::iter::once(rest)).map(Ok::<_, std::io::Error>);
    Body::from_stream(futures_util::stream::iter(chunks))
}

/// Three events, half a second apart.
async fn events() -> Response {
    let stream = futures_util::stream::unfold(0, |number| async move {
        if number == 3 {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Some((Ok::<_, std::io::Error>(format!("data: {number}\n\n")), number + 1))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn echo(mut socket: axum::extract::ws::WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// The edge in this process, in front of a stack file's services.
pub struct Edge {
    pub running: Running,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub directory: tempfile::TempDir,
}

impl Edge {
    pub async fn with(stack: &str) -> Edge {
        Edge::with_config(stack, |_| {}).await
    }

    pub async fn with_config(stack: &str, change: impl FnOnce(&mut Config)) -> Edge {
        // As `main` does.
        _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("stack.yml");
        std::fs::write(&file, stack).unwrap();
        let mut config = Config::default();
        config.http.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.https.listen = vec![];
        config.admin.listen = Some("127.0.0.1:0".parse().unwrap());
        config.docker.enabled = false;
        config.state.directory = None;
        config.access_log.path = Some(directory.path().join("access.log"));
        change(&mut config);
        let running = server::start(Options { config, files: vec![file], ..Options::default() }).await.unwrap();
        Edge { http: running.http[0], admin: running.admin.unwrap(), running, directory }
    }

    /// The access log once it holds `count` lines.
    pub async fn log_lines(&self, count: usize) -> Vec<serde_json::Value> {
        for _ in 0..100 {
            let text = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
            if text.lines().count() >= count {
                return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the access log never had {count} lines");
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What the upstream saw of this request's header.
    pub fn upstream_saw(&self, name: &str) -> String {
        self.json()["headers"][name].as_str().unwrap_or("").to_owned()
    }
}

/// A request over its own connection.
pub async fn send(address: SocketAddr, request: http::Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() }
}

pub fn request(method: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> http::Request<Full<Bytes>> {
    let mut builder = http::Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::default()).unwrap()
}

pub async fn get_path(address: SocketAddr, host: &str, path: &str) -> Reply {
    send(address, request("GET", host, path, &[])).await
}

/// Sends bytes as they are and returns what comes back until the edge closes, or for five seconds.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0_u8; 4096];
    while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut chunk)).await {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A stack file with one service of these labels.
pub fn stack(labels: &[(&str, &str)]) -> String {
    services(&[("web", labels)])
}

pub fn services(services: &[(&str, &[(&str, &str)])]) -> String {
    let mut text = String::from("services:\n");
    for (name, labels) in services {
        text.push_str(&format!("  {name}:\n    labels:\n"));
        for (key, value) in *labels {
            text.push_str(&format!("      {key}: {}\n", serde_json::to_string(value).unwrap()));
        }
    }
    text
}
