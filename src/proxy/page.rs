//! Error pages: read from a file or asked of a service, kept for a moment, and never a reason for a worse answer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use super::clock;
use super::fetch::Fetch;
use crate::state::Pages;
use crate::upstream::{Affinity, Ledger, Pool};

/// A longer page is none.
const LARGEST: usize = 256 * 1024;
/// Pages of so many statuses are kept, a route.
const STATUSES: usize = 16;
const KEPT: Duration = Duration::from_secs(10);
/// After a failure the source is left alone for so long.
const FAILED: Duration = Duration::from_secs(2);
/// An error may wait so long for its page.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is shown in place of an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub kind: HeaderValue,
    pub body: Bytes,
}

/// One route's pages.
#[derive(Default)]
pub struct Shelf(Mutex<HashMap<u16, (Instant, Option<Page>)>>);

impl Shelf {
    /// The page for `status`; `None`: the source has none, or not in time. One asks at a time, the others wait for what it gets.
    pub async fn get(&self, status: StatusCode, source: &Pages, fetch: &Fetch, ledger: &Ledger, seed: u64) -> Option<Page> {
        let found = async {
            let mut shelf = self.0.lock().await;
            let fresh = |(when, page): &(Instant, Option<Page>)| when.elapsed() < if page.is_some() { KEPT } else { FAILED };
            if let Some(kept) = shelf.get(&status.as_u16()).filter(|kept| fresh(kept)) {
                return kept.1.clone();
            }
            if shelf.len() >= STATUSES {
                shelf.retain(|_, kept| fresh(kept));
            }
            let room = shelf.len() < STATUSES;
            if room {
                // Stands when the answer does not come in time, so that the next one does not wait again.
                shelf.insert(status.as_u16(), (Instant::now(), None));
            }
            let page = match source {
                Pages::File { path, within } => read(path, within.as_deref(), status).await,
                Pages::Service(pool) => ask(pool, status, fetch, ledger, seed).await,
            };
            if room {
                shelf.insert(status.as_u16(), (Instant::now(), page.clone()));
            }
            page
        };
        tokio::time::timeout(PATIENCE, found).await.ok().flatten()
    }
}

/// Reads the file for `status`.
async fn read(path: &Path, within: Option<&Path>, status: StatusCode) -> Option<Page> {
    let path = PathBuf::from(path.to_str()?.replace("{status}", status.as_str()));
    let told = |error: std::io::Error| tracing::warn!(%error, path = %path.display(), "an error page cannot be read");
    let real = tokio::fs::canonicalize(&path).await.map_err(told).ok()?;
    if let Some(directory) = within {
        let directory = tokio::fs::canonicalize(directory).await.map_err(told).ok()?;
        if !real.starts_with(&directory) {
            tracing::warn!(path = %path.display(), "an error page leads out of proxy.error-pages");
            return None;
        }
    }
    // A pipe or a device would be waited for.
    let about = tokio::fs::metadata(&real).await.map_err(told).ok()?;
    if !about.is_file() || about.len() > LARGEST as u64 {
        tracing::warn!(path = %path.display(), bytes = about.len(), most = LARGEST, "an error page is not a file of that size");
        return None;
    }
    let mut body = Vec::new();
    let file = tokio::fs::File::open(&real).await.map_err(told).ok()?;
    file.take(LARGEST as u64).read_to_end(&mut body).await.map_err(told).ok()?;
    let kind = match real.extension().and_then(|extension| extension.to_str()) {
        Some("txt") => "text/plain; charset=utf-8",
        Some("json") => "application/json",
        _ => "text/html; charset=utf-8",
    };
    Some(Page { kind: HeaderValue::from_static(kind), body: body.into() })
}

/// Asks the service for `/{status}.html`.
async fn ask(pool: &Pool, status: StatusCode, fetch: &Fetch, ledger: &Ledger, seed: u64) -> Option<Page> {
    let backend = pool.pick(ledger, Affinity::default(), &[], clock::now(), seed)?;
    let request = Request::get(format!("/{}.html", status.as_u16())).header(HOST, &*backend.service).header(ACCEPT, "text/html");
    let request = request.body(Full::default()).ok()?;
    let answer = match fetch.ask(backend, request, LARGEST).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, backend = %backend.id, "no error page");
            return None;
        }
    };
    // What is coded without being asked for cannot be shown to everybody.
    if answer.status() != StatusCode::OK || answer.headers().contains_key(CONTENT_ENCODING) {
        return None;
    }
    let kind = answer.headers().get(CONTENT_TYPE).cloned().unwrap_or(HeaderValue::from_static("text/html; charset=utf-8"));
    Some(Page { kind, body: answer.into_body() })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(source: &Pages, status: u16) -> Option<String> {
        let status = StatusCode::from_u16(status).unwrap();
        let page = Shelf::default().get(status, source, &Fetch::default(), &Ledger::default(), 0).await?;
        Some(String::from_utf8_lossy(&page.body).into_owned())
    }

    #[tokio::test]
    async fn a_file_is_read_for_its_status_and_never_out_of_its_directory() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(inside.path().join("503.html"), "busy").unwrap();
        std::fs::write(inside.path().join("long.html"), vec![b'x'; LARGEST + 1]).unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("link.html")).unwrap();
        let file =
            |name: &str, bound: bool| Pages::File { path: inside.path().join(name), within: bound.then(|| inside.path().to_owned()) };
        for (source, status, wanted) in [
            (file("{status}.html", true), 503, Some("busy")),
            (file("{status}.html", true), 500, None),
            (file("link.html", true), 500, None),
            (file("link.html", false), 500, Some("secret")),
            (file("long.html", true), 500, None),
            (file("", false), 500, None),
        ] {
            assert_eq!(get(&source, status).await.as_deref(), wanted, "{source:?} {status}");
        }
    }

    #[tokio::test]
    async fn a_page_is_kept_for_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("busy.html");
        std::fs::write(&path, "one").unwrap();
        let (source, shelf, fetch) = (Pages::File { path: path.clone(), within: None }, Shelf::default(), Fetch::default());
        for text in ["one", "two"] {
            std::fs::write(&path, text).unwrap();
            let page = shelf.get(StatusCode::BAD_GATEWAY, &source, &fetch, &Ledger::default(), 0).await;
            assert_eq!(page.map(|page| page.body), Some(Bytes::from_static(b"one")));
        }
    }
}
