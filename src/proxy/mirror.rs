//! Copies of requests for another service. A copy never holds up its original: it is gathered while the original streams,
//! sent in a task of its own once it is whole, and dropped when too many are under way. Answers are read and forgotten.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::clock;
use super::fetch::Fetch;
use super::limit::{Counters, Held, count};
use crate::state::Route;
use crate::upstream::{Affinity, Ledger, Pool};

/// Copies carry it, and what carries it is not copied again.
pub const X_SKEP_MIRROR: HeaderName = HeaderName::from_static("x-skep-mirror");

/// Longer bodies are not copied.
pub(super) const LARGEST: usize = 64 * 1024;
/// Copies of one route that are held in memory, from the first byte of a body to the answer's end: 16 MB at most.
const HELD: usize = 256;
/// Of those, so many are with the service at a time.
const AT_ONCE: usize = 32;
/// For one copy, from its turn until its answer's end.
const PATIENCE: Duration = Duration::from_secs(10);
/// A longer answer ends with its connection.
const ANSWER: usize = 1 << 20;

/// The way of one route's copies.
pub struct Lane {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Default for Lane {
    fn default() -> Self {
        Lane { places: Arc::new(Semaphore::new(HELD)), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// A request on its way into a copy.
pub struct Copy {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: BytesMut,
    pool: Arc<Pool>,
    held: Arc<Held>,
    place: OwnedSemaphorePermit,
}

impl Copy {
    /// Begins a copy of the request as its upstream sees it, if the route has a mirror and this `seed` is among its share.
    /// None, and counted, where the body is too long or too many copies are under way.
    pub fn begin(route: &Route, held: &Arc<Held>, (method, uri, headers): (&Method, &Uri, &HeaderMap), seed: u64) -> Option<Copy> {
        let (mirror, pool) = (route.traffic.limits.mirror.as_ref()?, route.aside.mirror.as_ref()?);
        if !mirror.takes(seed) || headers.contains_key(X_SKEP_MIRROR) || headers.contains_key(UPGRADE) {
            return None;
        }
        let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if declared.is_some_and(|length| length > LARGEST) {
            count(&held.counters.mirror_too_large, 1);
            return None;
        }
        let Ok(place) = held.lane.places.clone().try_acquire_owned() else {
            count(&held.counters.mirror_dropped, 1);
            return None;
        };
        let mut headers = headers.clone();
        // The copy has one connection and one whole body; how the original came is not its concern.
        for name in super::hop_by_hop(&headers) {
            headers.remove(name);
        }
        for name in [http::header::CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, TE, EXPECT] {
            headers.remove(name);
        }
        headers.insert(X_SKEP_MIRROR, HeaderValue::from_static("1"));
        let (method, uri, body) = (method.clone(), uri.clone(), BytesMut::new());
        Some(Copy { method, uri, headers, body, pool: pool.clone(), held: held.clone(), place })
    }

    /// Takes a piece of the body; `None`: it got too long for a copy.
    pub fn gather(mut self, piece: &[u8]) -> Option<Copy> {
        if self.body.len() + piece.len() > LARGEST {
            count(&self.held.counters.mirror_too_large, 1);
            return None;
        }
        self.body.extend_from_slice(piece);
        Some(self)
    }

    /// Sends the copy off, in a task of its own.
    pub fn send(self, fetch: Arc<Fetch>, ledger: Arc<Ledger>, seed: u64) {
        let Copy { method, uri, headers, body, pool, held, place } = self;
        let counters: Arc<Counters> = held.counters.clone();
        let turns = held.lane.turns.clone();
        let mut request = Request::new(Full::new(body.freeze()));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
        tokio::spawn(async move {
            let _place = place;
            // The semaphore is never closed.
            let Ok(_turn) = turns.acquire_owned().await else { return };
            let sent = tokio::time::timeout(PATIENCE, deliver(&fetch, &ledger, &pool, request, seed)).await;
            count(if sent == Ok(true) { &counters.mirrored } else { &counters.mirror_failed }, 1);
        });
    }
}

/// Did the service answer, whatever it said?
async fn deliver(fetch: &Fetch, ledger: &Ledger, pool: &Pool, request: Request<Full<Bytes>>, seed: u64) -> bool {
    let Some(backend) = pool.pick(ledger, Affinity::default(), &[], clock::now(), seed) else { return false };
    match fetch.ask(backend, request, ANSWER).await {
        Ok(_) | Err(super::fetch::Error::TooLong) => true,
        Err(error) => {
            tracing::debug!(%error, backend = %backend.id, "a copy was not delivered");
            false
        }
    }
}
