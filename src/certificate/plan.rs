//! What is to be done about certificates now: a function of what is wanted, what is kept and what was tried. Who executes it chooses nothing;
//! after each step it asks again. So nothing is queued, and a plan that is printed is the plan that is carried out.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Source;
use super::attempt::Attempts;
use super::issuer::{Issuer, Policy};
use super::planner::Planner;
use super::record::Record;
use super::wanted::Wish;

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub wishes: &'a [Wish],
    /// Obtained, made and given ones.
    pub records: &'a [&'a Record],
    pub attempts: &'a Attempts,
    /// Actions that were begun and have not ended.
    pub under_way: &'a [Started],
    pub policy: &'a Policy,
    pub now: Timestamp,
    /// Draws the moments that are free: any number, always the same one.
    pub seed: u64,
}

/// An action that is being carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    pub action: Action,
    pub since: Timestamp,
}

/// One thing to do. All of a plan may be done at once, or in this order, or some of it now and the rest of the next plan later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// A label wants it again.
    Want {
        id: String,
    },
    /// No label wants it any more: note since when.
    Unwant {
        id: String,
    },
    /// No label has wanted it for long, or nobody could use it any more.
    Prune {
        id: String,
        names: Vec<String>,
    },
    /// Issue a certificate of our own ([`Source::Internal`] or [`Source::SelfSigned`]).
    Issue {
        service: String,
        source: Source,
        names: Vec<String>,
    },
    /// Ask whether each of the names reaches us. Each answer counts as it comes.
    Probe {
        names: Vec<String>,
    },
    Order(Order),
    /// Ask the authority when it wants that certificate renewed.
    AskWindow {
        id: String,
        issuer: String,
        names: Vec<String>,
    },
    /// Nothing, before then.
    Wait {
        names: Vec<String>,
        until: Timestamp,
        reason: Reason,
    },
}

/// Obtain a certificate by ACME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub service: String,
    pub issuer: String,
    pub names: Vec<String>,
    /// The record that the authority is to take for its predecessor (RFC 9773, 5).
    pub replaces: Option<String>,
    /// It is a renewal in the authority's own window, which limits do not count by domain.
    pub exempt: bool,
    pub why: Why,
}

/// What an order is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    New,
    Renewal,
}

/// Why nothing is done before a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Reason {
    /// All is well; then it is renewed.
    Renewal,
    /// All is well; then the authority is asked whether it wants it renewed sooner.
    Window,
    /// A file of the user's serves it, until it expires.
    File,
    /// Others of the service are being asked whether they reach us.
    Gathering,
    /// The name does not reach us; it is asked again then.
    Unreachable {
        error: String,
    },
    Failed {
        error: String,
    },
    Down {
        issuer: String,
        error: String,
    },
    RetryAfter {
        issuer: String,
        error: String,
    },
    /// One more would be against a limit that we know of.
    Limit {
        issuer: String,
        limit: String,
    },
    /// It is kept in case that its labels come back.
    Keep,
}

/// The actions, what is urgent first, waits last.
pub fn plan(scene: &Scene<'_>) -> Vec<Action> {
    let mut planner = Planner::new(scene);
    planner.keep();
    planner.obtain();
    planner.ask();
    planner.finish()
}

impl Action {
    /// The names that it is about.
    pub fn names(&self) -> &[String] {
        match self {
            Action::Want { .. } | Action::Unwant { .. } => &[],
            Action::Order(Order { names, .. })
            | Action::Prune { names, .. }
            | Action::Issue { names, .. }
            | Action::Probe { names }
            | Action::AskWindow { names, .. }
            | Action::Wait { names, .. } => names,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Want { id } => write!(formatter, "keep certificate {id}: it is wanted again"),
            Action::Unwant { id } => write!(formatter, "note that no label wants certificate {id} any more"),
            Action::Prune { id, .. } => write!(formatter, "drop certificate {id}"),
            Action::Issue { source, .. } => write!(formatter, "make a certificate ({})", source.word()),
            Action::Probe { .. } => formatter.write_str("ask whether the names reach this edge"),
            Action::Order(Order { issuer, why: Why::New, .. }) => write!(formatter, "order from {issuer}"),
            Action::Order(Order { issuer, why: Why::Renewal, .. }) => write!(formatter, "renew by {issuer}"),
            Action::AskWindow { issuer, .. } => write!(formatter, "ask {issuer} when to renew"),
            Action::Wait { reason, .. } => reason.fmt(formatter),
        }
    }
}

impl Reason {
    pub fn limit(issuer: &Issuer, limit: &str) -> Reason {
        Reason::Limit { issuer: issuer.name.clone(), limit: limit.to_owned() }
    }

    /// What went wrong; `None` where all is well.
    pub fn error(&self) -> Option<String> {
        match self {
            Reason::Renewal | Reason::Window | Reason::File | Reason::Gathering | Reason::Keep => None,
            _ => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Renewal => formatter.write_str("renewed then"),
            Reason::Window => formatter.write_str("the authority is asked then whether it wants it renewed sooner"),
            Reason::File => formatter.write_str("a file serves it until it expires"),
            Reason::Gathering => formatter.write_str("others of the service are being asked whether they reach this edge"),
            Reason::Unreachable { error } => write!(formatter, "the name does not reach this edge: {error}"),
            Reason::Failed { error } => formatter.write_str(error),
            Reason::Down { issuer, error } => write!(formatter, "{issuer} cannot be used: {error}"),
            Reason::RetryAfter { issuer, error } => write!(formatter, "{issuer} wants no orders before then: {error}"),
            Reason::Limit { issuer, limit } => write!(formatter, "{issuer} would be asked for more than its limit of {limit}"),
            Reason::Keep => formatter.write_str("no label wants it; deleted then"),
        }
    }
}
