//! The attempts of one request: which task is asked next, and what becomes of the request when one fails.
//! It speaks of requests and answers only, so that every shell that carries HTTP decides alike.

use std::time::Instant;

use http::{HeaderMap, Method, StatusCode};

use super::answer::Answer;
use super::clock;
use super::exchange::Exchange;
use crate::state::Action;
use crate::upstream::{Affinity, Attempt, Backend, Change, Failure, Ledger, Pool, Scheme};

/// Where the next attempt goes.
pub(super) struct Chosen {
    pub(super) backend: Backend,
    /// A kept connection to it broke: this one must be new.
    pub(super) fresh: bool,
}

/// What only the shell knows of the request at this point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending<'a> {
    pub(super) method: &'a Method,
    /// The upstream may have got the whole head of the request, or more.
    pub(super) sent: bool,
    /// All of the body that was read so far is kept, and nothing of a final answer went to the client.
    pub(super) repeatable: bool,
}

/// What is to be done after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Ask [`Exchange::next_backend`] again and send the request from its beginning.
    Elsewhere,
    /// The client gets what there is.
    GiveUp,
}

impl Exchange {
    /// Picks a task for the next attempt and counts it. Our own answer, where there is none.
    pub(super) fn next_backend(&mut self, ledger: &Ledger, headers: &HeaderMap) -> Result<Chosen, Answer> {
        let Some((pool, _, _)) = self.forward() else { return Err(Answer::Unavailable) };
        let began = Instant::now();
        let now = clock::at(began);
        let fresh = self.fresh;
        let again = self.backend.as_ref().filter(|_| fresh);
        let affinity = self.affinity(pool, headers);
        let Some(backend) = again.or_else(|| pool.pick(ledger, affinity, &self.tried, now, fastrand::u64(..))).cloned() else {
            return Err(if self.tried.is_empty() { Answer::Unavailable } else { Answer::BadGateway });
        };
        let in_flight = ledger.start(&backend);
        if self.attempts == 0 {
            in_flight.is_first(now);
        }
        (self.in_flight, self.backend) = (Some(in_flight), Some(backend.clone()));
        (self.failure, self.fresh) = (None, false);
        self.begin_attempt(began);
        Ok(Chosen { backend, fresh })
    }

    /// The attempt failed before an answer began.
    pub(super) fn attempt_failed(&mut self, ledger: &Ledger, failure: Failure, sending: Sending<'_>) -> Retry {
        let blamed = failure.blames_the_task();
        if failure == Failure::Connect {
            self.connect_failed();
        }
        self.failed(ledger, failure, blamed, sending)
    }

    /// The head of an answer came. [`Retry::Elsewhere`]: drop the answer, the request is tried on another task;
    /// [`Retry::GiveUp`]: it is for the client. Informational heads say nothing.
    pub(super) fn head_arrived(&mut self, ledger: &Ledger, status: StatusCode, sending: Sending<'_>) -> Retry {
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            return Retry::GiveUp;
        }
        let sick = Failure::by_status(status.as_u16());
        let named = self.forward().is_some_and(|(_, _, retries)| retries.names(status.as_u16()));
        if sick.is_none() {
            self.succeeded();
        }
        if sick.is_some() || named {
            let failure = Failure::Status(status.as_u16());
            if self.failed(ledger, failure, sick.is_some(), sending) == Retry::Elsewhere {
                return Retry::Elsewhere;
            }
            // It is the upstream's own answer, not a failure of the exchange.
            self.failure = None;
        }
        self.answering = true;
        Retry::GiveUp
    }

    /// The upstream broke off within its answer.
    pub(super) fn broke_off(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.broke_off();
        }
    }

    fn succeeded(&self) {
        let (Some(in_flight), Some(began)) = (&self.in_flight, self.attempt_began) else { return };
        if let Some(change) = in_flight.succeeded(clock::now(), clock::at(began)) {
            self.say(change, None);
        }
    }

    fn failed(&mut self, ledger: &Ledger, failure: Failure, blamed: bool, sending: Sending<'_>) -> Retry {
        let now = clock::now();
        self.failure = Some(failure.to_string());
        self.timeouts += u32::from(failure == Failure::Timeout);
        let Some(route) = self.route.clone() else { return Retry::GiveUp };
        let Action::Forward { pool, .. } = &route.action else { return Retry::GiveUp };
        if let (Some(in_flight), true) = (&self.in_flight, blamed)
            && let Some(change) = ledger.failed(in_flight, pool, failure, now, fastrand::u64(..))
        {
            self.say(change, Some(failure));
        }
        if self.may_go_elsewhere(ledger, pool, failure, sending) { Retry::Elsewhere } else { Retry::GiveUp }
    }

    /// Everything that a retry needs: a request that allows it, time, another task, and a budget.
    fn may_go_elsewhere(&mut self, ledger: &Ledger, pool: &Pool, failure: Failure, sending: Sending<'_>) -> bool {
        let (Some((_, timeouts, retries)), Some(backend)) = (self.forward(), &self.backend) else { return false };
        let rpc = matches!(backend.scheme, Scheme::Grpc | Scheme::Grpcs);
        let attempt = Attempt {
            method: sending.method,
            sent: sending.sent,
            kept: sending.repeatable,
            rpc,
            attempts: self.attempts,
            timeouts: self.timeouts,
        };
        if !retries.allow(failure, &attempt) || timeouts.request.is_some_and(|whole| self.began.elapsed() >= whole) {
            return false;
        }
        // Who belongs to a task stays with it, as long as another attempt is left for the case that it is gone.
        let belongs = pool.binds() && self.attempts < retries.most;
        let now = clock::now();
        let id = backend.id.clone();
        self.tried.push(id);
        let other = match failure {
            // A sick task's answer is better than none at all.
            Failure::Status(_) => pool.has_fit(ledger, &self.tried, now),
            _ => pool.pick(ledger, Affinity::default(), &self.tried, now, 0).is_some(),
        };
        let same = failure == Failure::Stale && (!other || belongs);
        if same {
            self.tried.pop();
        }
        // Nothing reaches a task that cannot be connected to, so that is no load to be bounded. Asked last: what is taken is spent.
        let paid = || failure == Failure::Connect || self.in_flight.as_ref().is_some_and(|in_flight| in_flight.may_retry(now));
        if !(other || same) || !paid() {
            return false;
        }
        self.fresh = same;
        (self.in_flight, self.head_deadline, self.request_deadline) = (None, None, None);
        true
    }

    fn affinity<'a>(&self, pool: &'a Pool, headers: &'a HeaderMap) -> Affinity<'a> {
        Affinity {
            client: self.origin.as_ref().map(|origin| origin.client),
            key: super::affinity_key(pool, headers),
            token: pool.sticky.as_deref().and_then(|name| super::cookie(headers, name)),
        }
    }

    fn say(&self, change: Change, failure: Option<Failure>) {
        if let Some(backend) = &self.backend {
            say(backend, change, failure);
        }
    }
}

/// One line for each change of a task's standing.
pub(super) fn say(backend: &Backend, change: Change, failure: Option<Failure>) {
    let Backend { service, task, address, .. } = backend;
    match change {
        Change::Ejected { pause, failures } => {
            let reason = failure.map(|failure| failure.to_string()).unwrap_or_default();
            let seconds = pause.as_secs_f32();
            tracing::warn!(%service, %task, %address, "ejected for {seconds:.1} s after {failures} failures in a row: {reason}");
        }
        Change::Returned => tracing::info!(%service, %task, %address, "answers again after its ejection"),
    }
}
