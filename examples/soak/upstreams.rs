//! Upstreams that never fail: what goes wrong before them is the edge's doing. Each ends as a well-behaved server does:
//! it accepts no more, finishes what flows, then closes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Bytes of the large answer.
pub const LARGE: usize = 100_000;
/// Events of a stream, and the pause between two.
pub const EVENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(400);

/// One that serves until it is told to drain.
pub struct Upstream {
    pub address: SocketAddr,
    drain: oneshot::Sender<()>,
}

impl Upstream {
    pub async fn start() -> std::io::Result<Upstream> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (drain, drained) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let serving = axum::serve(listener, router()).with_graceful_shutdown(async move { _ = drained.await });
            if let Err(error) = serving.await {
                eprintln!("an upstream ended by itself: {error}");
            }
        });
        Ok(Upstream { address, drain })
    }

    /// Nothing new; what flows is finished.
    pub fn drain(self) {
        // An error means that it has ended, which it said itself.
        _ = self.drain.send(());
    }
}

fn router() -> Router {
    Router::new()
        .route("/small", any(|| async { "hello" }))
        .route("/large", get(|| async { vec![b'x'; LARGE] }))
        .route("/count", post(count))
        .route("/events", get(events))
        .route("/slow", get(slow))
        .route("/socket", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
        .route("/page", get(page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "nothing here") })
}

/// How many bytes came.
async fn count(request: Request) -> String {
    let mut pieces = request.into_body().into_data_stream();
    let mut count = 0;
    while let Some(Ok(piece)) = pieces.next().await {
        count += piece.len();
    }
    count.to_string()
}

async fn events() -> Response {
    let events = futures_util::stream::iter(0..EVENTS).then(|number| async move {
        tokio::time::sleep(PAUSE).await;
        Ok::<_, Infallible>(format!("data: {number}\n\n"))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

/// A head after a while, then a body in pieces: for clients that leave in the middle.
async fn slow() -> Body {
    tokio::time::sleep(PAUSE / 2).await;
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    Body::from_stream(futures_util::stream::iter(0..50).then(move |_| {
        let piece = piece.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, Infallible>(piece)
        }
    }))
}

async fn page(headers: HeaderMap) -> Response {
    const TAG: &str = "\"v1\"";
    match headers.get("if-none-match").is_some_and(|tag| tag == TAG) {
        true => (StatusCode::NOT_MODIFIED, [("etag", TAG)]).into_response(),
        false => ([("etag", TAG)], "a page").into_response(),
    }
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}
