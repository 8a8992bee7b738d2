//! What a relay has to know of its client, whatever that speaks.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::dispatch::Dispatch;
use super::pump::Fault;
use super::wire::{Framing, Malformed, Response};
use crate::state::Route;

/// Bodies up to this length are read before the upstream is chosen: a slow client then holds no upstream, and the request can be
/// sent to another one.
pub(super) const GATHERED: u64 = 64 * 1024;

/// How far a body is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The receiver has some of the message.
    pub(super) begun: bool,
    /// All of it was read and handed over.
    pub(super) over: bool,
    /// All that was read was handed over: it is the sender who has the next word.
    pub(super) waiting: bool,
    /// Bytes of the body that were read.
    pub(super) passed: u64,
    /// The sender sent more than the body.
    pub(super) surplus: bool,
}

/// The client's side of a relay: where the request's body comes from, and where the answer goes.
pub(super) trait Side {
    /// For so long a client that sends no more is served.
    fn be_patient(&mut self, patience: Duration);
    /// Reads what is to be read of the body before an upstream is chosen, each piece within `pause`; returns how much there is.
    fn gather(&mut self, pause: Duration) -> impl Future<Output = io::Result<u64>> + Send;
    /// Some of the body is still to be read from the client.
    fn is_streamed(&self) -> bool;
    /// What was read of the body is kept, so that it can be sent once more.
    fn is_repeatable(&self) -> bool;
    /// An attempt begins: the request's head, then the body from its beginning.
    ///
    /// # Errors
    /// When what was gathered is no start of such a body.
    fn begin(&mut self, to: &Dispatch<'_>, route: &Route) -> Result<(), Malformed>;
    /// How far the request is.
    fn up(&self) -> Progress;
    /// Sends more of the request; ready once it is over.
    fn poll_up(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>>;
    /// Ready once the client is gone; to be asked while the upstream is at work.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;
    /// Passes a head on that comes before the answer's own (1xx).
    fn announce(&mut self, head: &Response, limit: Duration) -> impl Future<Output = io::Result<()>> + Send;
    /// The answer begins; `first` of it was read together with its head.
    ///
    /// # Errors
    /// When `first` is no start of such an answer.
    fn answer(&mut self, to: &Dispatch<'_>, head: &Response, framing: Framing, first: BytesMut) -> Result<(), Malformed>;
    /// How far the answer is.
    fn down(&self) -> Progress;
    /// Sends more of the answer; ready once it is over.
    fn poll_down(&mut self, cx: &mut Context<'_>, upstream: &mut TcpStream) -> Poll<Result<(), Fault>>;
    /// The client may go on after this answer.
    fn keeps(&self) -> bool;
    /// The answer ends as one that is not whole.
    fn break_off(&mut self);
}
