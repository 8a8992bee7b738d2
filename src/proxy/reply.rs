//! Our own answers on their way to the client, and which one a failed exchange gets.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use nix::errno::Errno;
use pingora_error::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::{FailToProxy, Session};

use super::answer::{Answer, Rendered};
use super::page::Page;

/// After an early answer the rest of the request is read for so long, or the client would see a reset instead of the answer.
const DRAIN_REQUEST: Duration = Duration::from_secs(1);

/// Sends an answer of ours whole.
pub(super) async fn write(session: &mut Session, rendered: Rendered, page: Option<Page>) -> Result<()> {
    let mut head = ResponseHeader::build(rendered.status, Some(rendered.headers.len()))?;
    for (name, value) in rendered.headers {
        head.append_header(name, value)?;
    }
    let mut body = Bytes::from(rendered.body);
    if let Some(page) = page {
        head.insert_header(header::CONTENT_TYPE, page.kind)?;
        head.insert_header(header::CONTENT_LENGTH, page.body.len())?;
        body = if session.req_header().method == Method::HEAD { Bytes::new() } else { page.body };
    }
    let empty = body.is_empty();
    session.write_response_header(Box::new(head), empty).await?;
    if !empty {
        session.write_response_body(Some(body), true).await?;
    }
    if !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN_REQUEST));
        if let Err(error) = session.drain_request_body().await {
            // The answer is out; a client that goes on sending for longer is cut.
            tracing::debug!(%error, "the request's body was not read to its end");
            session.set_keepalive(None);
        }
    }
    Ok(())
}

/// Did a connection fail because this process may open no further file?
pub(super) fn is_out_of_descriptors(error: &Error) -> bool {
    let errno = error.root_cause().downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    errno.is_some_and(|errno| [Errno::EMFILE as i32, Errno::ENFILE as i32].contains(&errno))
}

/// Sends the error page of an answer that came without a body, under that answer's own head.
pub(super) async fn show(session: &mut Session, head: Box<ResponseHeader>, page: Bytes) -> FailToProxy {
    let code = head.status.as_u16();
    let sent = match session.write_response_header(head, false).await {
        Ok(()) => session.write_response_body(Some(page), true).await,
        failed => failed,
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "the client left before the error page");
    }
    FailToProxy { error_code: code, can_reuse_downstream: false }
}

/// What the client is told of a failed exchange; `None`: there is nobody left to tell.
pub(super) fn answer_to(error: &Error) -> Option<Answer> {
    match (error.etype(), error.esource()) {
        (ErrorType::HTTPStatus(503), _) => Some(Answer::Unavailable),
        (ErrorType::HTTPStatus(502), _) => Some(Answer::BadGateway),
        (ErrorType::HTTPStatus(413), _) => Some(Answer::TooLarge),
        (
            ErrorType::ReadTimedout | ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout | ErrorType::WriteTimedout,
            ErrorSource::Upstream,
        ) => Some(Answer::Timeout),
        (_, ErrorSource::Upstream) => Some(Answer::BadGateway),
        (ErrorType::ReadTimedout, ErrorSource::Downstream) => {
            Some(Answer::Refused(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive."))
        }
        (
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::WriteTimedout,
            ErrorSource::Downstream,
        ) => None,
        (_, ErrorSource::Downstream) => Some(Answer::Refused(StatusCode::BAD_REQUEST, "The request is malformed.")),
        _ => Some(Answer::Refused(StatusCode::INTERNAL_SERVER_ERROR, "The edge failed to handle the request.")),
    }
}
