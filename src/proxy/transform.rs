//! What a route changes or copies of bodies and answers, on pingora's session: each step is decided in `traffic`, done by
//! `compress`, `mirror` and `page`, and only wired to the phases here.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Version};
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::answer::{Answer, is_for_people};
use super::compress::Compressor;
use super::fetch::Fetch;
use super::limit::{Limits, Pass, count};
use super::mirror::Copy;
use super::page::Page;
use crate::state::Route;
use crate::traffic::encoding;
use crate::upstream::Ledger;

/// What is kept of one request for this.
#[derive(Default)]
pub(super) struct Transform {
    pub(super) pass: Pass,
    /// Body bytes of the present attempt.
    received: u64,
    copy: Option<Copy>,
    copied: bool,
    body: Body,
    /// The upstream's answer has no body whose place the page could take.
    alone: bool,
    /// To be sent once the exchange was ended for it.
    pub(super) page_alone: Option<(Box<ResponseHeader>, Bytes)>,
}

/// What becomes of the answer's body.
#[derive(Default)]
enum Body {
    #[default]
    Untouched,
    Coded(Compressor),
    /// The page, until it was sent; the upstream's own body is dropped.
    Replaced(Option<Bytes>),
}

/// What describes a body that is not sent.
const OF_THE_BODY: [HeaderName; 12] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::TRAILER,
];

impl Transform {
    /// The request goes to an upstream, perhaps not for the first time: its body comes from its beginning.
    pub(super) fn request_begins(
        &mut self,
        route: &Route,
        request: &RequestHeader,
        bodiless: bool,
        fetch: &Arc<Fetch>,
        ledger: &Arc<Ledger>,
    ) {
        self.received = 0;
        self.copy = None;
        let Some(held) = self.pass.held().filter(|_| !self.copied) else { return };
        self.copy = Copy::begin(route, held, (&request.method, &request.uri, &request.headers), fastrand::u64(..));
        if bodiless {
            self.send_copy(fetch, ledger);
        }
    }

    /// A piece of the request's body.
    ///
    /// # Errors
    /// 413 when the body got too long. It breaks the upstream's connection off before the piece is sent.
    pub(super) fn request_body(&mut self, piece: &[u8], end: bool, fetch: &Arc<Fetch>, ledger: &Arc<Ledger>) -> Result<()> {
        self.received += piece.len() as u64;
        if self.pass.check_body(self.received).is_err() {
            self.copy = None;
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the request's body is longer than the route takes").into_down());
        }
        self.copy = self.copy.take().and_then(|copy| copy.gather(piece));
        if end {
            self.send_copy(fetch, ledger);
        }
        Ok(())
    }

    fn send_copy(&mut self, fetch: &Arc<Fetch>, ledger: &Arc<Ledger>) {
        if let Some(copy) = self.copy.take() {
            self.copied = true;
            copy.send(fetch.clone(), ledger.clone(), fastrand::u64(..));
        }
    }

    /// The upstream's last head came: counts it, and puts the route's error page in its place where it has one.
    ///
    /// # Errors
    /// When the page's head cannot be written.
    pub(super) async fn answered(
        &mut self,
        session: &Session,
        response: &mut ResponseHeader,
        route: &Route,
        fetch: &Fetch,
        ledger: &Ledger,
    ) -> Result<()> {
        self.pass.answered(response.status.is_server_error());
        let page = route.traffic.limits.error_page.as_ref().filter(|page| page.replaces(response.status, &response.headers));
        if page.is_none() || session.is_upgrade_req() || is_grpc(&session.req_header().headers) {
            return Ok(());
        }
        let (Some(source), Some(held)) = (&route.aside.pages, self.pass.held()) else { return Ok(()) };
        let Some(page) = held.shelf.get(response.status, source, fetch, ledger, fastrand::u64(..)).await else { return Ok(()) };
        let is_head = session.req_header().method == Method::HEAD;
        let length = response.headers.get(header::CONTENT_LENGTH).map(|length| length.as_bytes() != b"0");
        self.alone = !is_head && !length.unwrap_or(response.headers.contains_key(header::TRANSFER_ENCODING));
        for name in OF_THE_BODY {
            response.remove_header(&name);
        }
        response.insert_header(header::CONTENT_TYPE, page.kind)?;
        response.insert_header(header::CONTENT_LENGTH, page.body.len())?;
        self.body = Body::Replaced((!is_head).then_some(page.body));
        Ok(())
    }

    /// The head is as the client shall see it, but for the coding of its body.
    ///
    /// # Errors
    /// When a page must be sent alone, see [`Transform::page_alone`], and when there is no memory for an encoder.
    pub(super) fn response_begins(&mut self, session: &Session, response: &mut ResponseHeader, route: &Route) -> Result<()> {
        if let (true, Body::Replaced(page)) = (self.alone, &mut self.body) {
            let mut head = response.clone();
            // pingora writes no head of HTTP/2 to a client of HTTP/1, and takes this one for either.
            head.set_version(Version::HTTP_11);
            self.page_alone = Some((Box::new(head), page.take().unwrap_or_default()));
            return Err(Error::explain(ErrorType::HTTPStatus(response.status.as_u16()), "an error page is sent alone").into_in());
        }
        let request = session.req_header();
        if !route.traffic.limits.compress || !matches!(self.body, Body::Untouched) || is_grpc(&request.headers) {
            return Ok(());
        }
        let plan = encoding::plan(&request.method, request.version, &request.headers, response.status, &response.headers);
        let Some(plan) = plan else { return Ok(()) };
        if let Some(encoding) = plan.encoding.filter(|_| request.method != Method::HEAD) {
            let compressor = Compressor::new(encoding, plan.flush);
            let failed = |error| Error::because(ErrorType::InternalError, "the answer cannot be compressed", error);
            self.body = Body::Coded(compressor.map_err(failed)?);
            // HTTP/2 frames its bodies itself, and pingora takes this out there.
            response.insert_header(header::TRANSFER_ENCODING, "chunked")?;
        }
        for (name, value) in plan.edits {
            match value {
                Some(value) => response.insert_header(name, value)?,
                None => drop(response.remove_header(&name)),
            }
        }
        Ok(())
    }

    /// A piece of the answer's body on its way to the client.
    ///
    /// # Errors
    /// When the encoder fails.
    pub(super) fn response_body(&mut self, body: &mut Option<Bytes>, end: bool) -> Result<()> {
        match &mut self.body {
            Body::Untouched => {}
            Body::Replaced(page) => *body = page.take(),
            Body::Coded(compressor) => {
                let piece = body.take().unwrap_or_default();
                let coded = compressor.code(&piece, end);
                let failed = |error| Error::because(ErrorType::InternalError, "compressing the answer", error);
                *body = coded.map_err(failed)?;
                if let Some(held) = self.pass.held() {
                    count(&held.counters.compressed_in, piece.len() as u64);
                    count(&held.counters.compressed_out, body.as_ref().map_or(0, |coded| coded.len() as u64));
                }
            }
        }
        Ok(())
    }
}

/// The page for an answer of the edge itself, which may come before the request had a pass.
pub(super) async fn page_for(
    answer: &Answer,
    request: &HeaderMap,
    route: &Route,
    limits: &Limits,
    fetch: &Fetch,
    ledger: &Ledger,
) -> Option<Page> {
    let covered = route.traffic.limits.error_page.as_ref().is_some_and(|page| page.covers(answer.status()));
    let source = route.aside.pages.as_ref().filter(|_| covered && is_for_people(answer, request))?;
    limits.of(route).shelf.get(answer.status(), source, fetch, ledger, fastrand::u64(..)).await
}

fn is_grpc(request: &HeaderMap) -> bool {
    request.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
