//! What may be tried again on another task: never a request that could be carried out twice, never one that cannot be sent again whole.
//! How often is bounded by `retries`, and for a service as a whole by its [`super::budget`].

use std::sync::Arc;

use http::Method;

use super::RetryOn;

/// Why an attempt on a task failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The edge itself could not even begin to connect: it is out of sockets.
    Edge,
    /// No connection: nothing of the request left the edge.
    Connect,
    /// The connection broke, or carried no HTTP, before the answer began.
    Reset,
    /// A kept connection broke so: the task may have closed it at the very moment that the request was sent.
    Stale,
    /// The answer did not begin in time.
    Timeout,
    /// An answer that a sick task gives.
    Status(u16),
}

impl Failure {
    /// Statuses by which a task says that it cannot serve, as opposed to what an application answers (RFC 9110, 15.6.3 to 15.6.5).
    pub fn by_status(status: u16) -> Option<Failure> {
        matches!(status, 502..=504).then_some(Failure::Status(status))
    }

    /// Does it say something of the task? A kept connection may be closed by anyone at any time.
    pub fn blames_the_task(self) -> bool {
        !matches!(self, Failure::Stale | Failure::Edge)
    }

    /// Overload looks the same on every task: then sending everything to the others would take them down too.
    pub fn may_be_overload(self) -> bool {
        matches!(self, Failure::Timeout | Failure::Status(_))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Edge => formatter.write_str("the edge has no socket left"),
            Failure::Connect => formatter.write_str("no connection"),
            Failure::Reset => formatter.write_str("the connection broke before the answer"),
            Failure::Stale => formatter.write_str("a kept connection broke before the answer"),
            Failure::Timeout => formatter.write_str("no answer in time"),
            Failure::Status(status) => write!(formatter, "answered {status}"),
        }
    }
}

/// What a route tries again, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first.
    pub most: u32,
    /// What `retry-on` names; `None` without the label.
    pub on: Option<Arc<[RetryOn]>>,
}

/// What a retry depends on beside its reason.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub method: &'a Method,
    /// The upstream may have got the whole head of the request, or more.
    pub sent: bool,
    /// What was read of the request's body is kept, so that it can be sent again.
    pub kept: bool,
    /// gRPC says in trailers what went wrong; its statuses are not HTTP's.
    pub rpc: bool,
    /// Attempts so far, and those of them that ended in a timeout.
    pub attempts: u32,
    pub timeouts: u32,
}

impl Retries {
    /// May the request be tried again for `failure`, as far as the request itself is concerned?
    pub fn allow(&self, failure: Failure, attempt: &Attempt<'_>) -> bool {
        if attempt.attempts > self.most || !attempt.kept {
            return false;
        }
        if matches!(failure, Failure::Connect | Failure::Edge) || !attempt.sent {
            return true;
        }
        attempt.method.is_idempotent() && self.covers(failure, attempt)
    }

    fn covers(&self, failure: Failure, attempt: &Attempt<'_>) -> bool {
        let named = |reason: RetryOn| self.on.as_ref().map(|on| on.contains(&reason));
        match failure {
            Failure::Edge | Failure::Connect | Failure::Reset | Failure::Stale => true,
            // Once: the client waits for the second answer as long as for the first.
            Failure::Timeout => attempt.timeouts <= 1 && named(RetryOn::Timeout).unwrap_or(attempt.method.is_safe()),
            Failure::Status(status) => !attempt.rpc && named(RetryOn::Status(status)).unwrap_or(Failure::by_status(status).is_some()),
        }
    }

    /// Could an answer of this status be a reason to try again?
    pub fn names(&self, status: u16) -> bool {
        self.on.as_ref().is_some_and(|on| on.contains(&RetryOn::Status(status)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attempt(method: &Method) -> Attempt<'_> {
        Attempt { method, sent: true, kept: true, rpc: false, attempts: 1, timeouts: 0 }
    }

    fn retries(on: Option<&[RetryOn]>) -> Retries {
        Retries { most: 2, on: on.map(Arc::from) }
    }

    #[test]
    fn what_is_tried_again() {
        let (get, put, post) = (&Method::GET, &Method::PUT, &Method::POST);
        let none: Option<&[RetryOn]> = None;
        let only_503: Option<&[RetryOn]> = Some(&[RetryOn::Status(503)]);
        let timeout: Option<&[RetryOn]> = Some(&[RetryOn::Timeout, RetryOn::Status(429)]);
        // retry-on, failure, GET, PUT, POST
        let table = [
            (none, Failure::Connect, true, true, true),
            (none, Failure::Reset, true, true, false),
            (none, Failure::Stale, true, true, false),
            (none, Failure::Timeout, true, false, false),
            (none, Failure::Status(503), true, true, false),
            (none, Failure::Status(500), false, false, false),
            (none, Failure::Status(429), false, false, false),
            (only_503, Failure::Connect, true, true, true),
            (only_503, Failure::Reset, true, true, false),
            (only_503, Failure::Timeout, false, false, false),
            (only_503, Failure::Status(503), true, true, false),
            (only_503, Failure::Status(502), false, false, false),
            (timeout, Failure::Timeout, true, true, false),
            (timeout, Failure::Status(429), true, true, false),
        ];
        for (on, failure, of_get, of_put, of_post) in table {
            for (method, wanted) in [(get, of_get), (put, of_put), (post, of_post)] {
                assert_eq!(retries(on).allow(failure, &attempt(method)), wanted, "{on:?} {failure:?} {method}");
            }
        }
    }

    #[test]
    fn what_did_not_leave_the_edge_is_tried_again_whatever_it_is() {
        let unsent = Attempt { sent: false, ..attempt(&Method::POST) };
        assert!(retries(None).allow(Failure::Stale, &unsent) && retries(None).allow(Failure::Reset, &unsent));
    }

    #[test]
    fn grpc_is_not_judged_by_http_statuses_and_timeouts_are_tried_again_once() {
        let get = Method::GET;
        assert!(!retries(None).allow(Failure::Status(503), &Attempt { rpc: true, ..attempt(&get) }));
        assert!(retries(None).allow(Failure::Timeout, &Attempt { timeouts: 1, ..attempt(&get) }));
        assert!(!retries(None).allow(Failure::Timeout, &Attempt { timeouts: 2, ..attempt(&get) }));
    }

    proptest! {
        /// Nothing is tried without its body, nor more often than said, nor twice where it could be carried out twice.
        #[test]
        fn a_request_is_never_carried_out_twice(
            method in prop_oneof![Just(Method::POST), Just(Method::PATCH), Just(Method::CONNECT), Just(Method::GET)],
            failure in prop_oneof![Just(Failure::Connect), Just(Failure::Reset), Just(Failure::Stale), Just(Failure::Timeout), (400u16..600).prop_map(Failure::Status)],
            (sent, kept, rpc) in any::<(bool, bool, bool)>(),
            attempts in 1u32..6,
        ) {
            let on: Arc<[RetryOn]> = Arc::from((400..600).map(RetryOn::Status).chain([RetryOn::Timeout, RetryOn::Reset]).collect::<Vec<_>>());
            let allowed = Retries { most: 2, on: Some(on) }.allow(failure, &Attempt { method: &method, sent, kept, rpc, attempts, timeouts: 0 });
            if !kept || attempts > 2 || (!method.is_idempotent() && sent && failure != Failure::Connect) {
                prop_assert!(!allowed);
            }
        }
    }
}
