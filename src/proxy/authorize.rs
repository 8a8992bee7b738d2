//! Asks a route's authorizer (`forward-auth`) about a request, over HTTP/1.1, within bounds of time, size and number. What is asked and
//! what the answer means is decided by [`crate::auth::authorizer`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use rustls::RootCertStore;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use crate::auth::authorizer::{LARGEST, Word, word};
use crate::config::Auth;
use crate::outbound::{Client, Outbound, causes};

const CONNECT: Duration = Duration::from_secs(2);
/// From the question to the end of the answer, with the wait for a place.
const TIME: Duration = Duration::from_secs(10);
const IDLE_CONNECTIONS: usize = 16;
/// Questions at one time.
const AT_ONCE: usize = 256;
/// Authorizers of which it is remembered whether they answer.
const MOST: usize = 1000;

/// Whoever asks. The client is made at the first question: most edges have none.
pub(super) struct Authorizers {
    client: OnceCell<Result<Client, String>>,
    places: Semaphore,
    /// By URL: it does not answer, which was said.
    silent: Mutex<HashMap<String, bool>>,
}

impl Default for Authorizers {
    fn default() -> Authorizers {
        Authorizers { client: OnceCell::new(), places: Semaphore::new(AT_ONCE), silent: Mutex::default() }
    }
}

impl Authorizers {
    /// Asks `url` with `fields`.
    pub(super) async fn ask(&self, url: &str, fields: HeaderMap, auth: &Auth) -> Word {
        let answered = timeout(TIME, self.answer(url, fields, auth)).await;
        let word = answered.unwrap_or_else(|_| Err(format!("it takes longer than {} s", TIME.as_secs()))).unwrap_or_else(Word::Closed);
        self.tell(url, &word);
        word
    }

    async fn answer(&self, url: &str, fields: HeaderMap, auth: &Auth) -> Result<Word, String> {
        let client = self.client.get_or_init(|| async { client() }).await.as_ref().map_err(Clone::clone)?;
        // Never closed.
        let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
        let mut request = Request::get(url).body(Full::default()).map_err(|error| error.to_string())?;
        request.headers_mut().extend(fields);
        let answer = client.request(request).await.map_err(|error| causes(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map_err(|error| format!("its answer broke off or is too long: {error}"))?;
        Ok(word(head.status, &head.headers, &body.to_bytes(), auth))
    }

    /// Once when it falls silent, and once when it answers again.
    fn tell(&self, url: &str, word: &Word) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent.len() >= MOST {
            silent.clear();
        }
        let was = silent.insert(url.to_owned(), matches!(word, Word::Closed(_))).unwrap_or_default();
        match (was, word) {
            (false, Word::Closed(why)) => tracing::error!(url, why, "an authorizer gives no answer: the routes that ask it are closed"),
            (true, Word::Pass { .. } | Word::Answer(_)) => tracing::info!(url, "the authorizer answers again"),
            _ => {}
        }
    }
}

/// With its causes, of which the last one tells most.
fn client() -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Outbound { roots, https_only: false, connect: CONNECT, kept: IDLE_CONNECTIONS }.client()
}
