//! The route table: which of all routes a request belongs to, and why.
//! Precedence is an order on values ([`Rank`]); the table knows nothing of upstreams or access, its payload is opaque.
//!
//! The way of a route: label texts become an expression ([`rule`], with the host, path, method, header and query keys ANDed to it), the
//! expression becomes alternatives (a host, a path, the remaining conditions each), and every alternative becomes a row of the [`Table`].
//! How spellings of one path are kept from leading around a protected route: [`path`].

mod alternative;
pub mod condition;
mod keys;
mod literal;
pub mod path;
pub mod pattern;
mod predicate;
pub mod rule;
mod table;

use std::net::IpAddr;

use crate::diagnostic::Diagnostic;
use crate::label::{Key, RouteSpec, Value};

pub use condition::Condition;
pub use path::canonical_path;
pub use pattern::{HostPattern, PathPattern};
pub use table::{Candidate, Conflict, Entry, Rank, Table};

/// The keys of this feature.
pub const KEYS: &[Key] = &[
    Key::route(
        "host",
        "app.example.com, *.example.com",
        "required, unless there is a rule",
        "The hosts that the route serves; `*.` stands for exactly one label.",
    ),
    Key::route("path", "/api", "/", "The path and everything below it (`/api/x`, not `/apix`), or `=/api` for exactly that path."),
    Key::route(
        "rule",
        "Host(`app.example.com`) && !Path(`/private`)",
        "none",
        "What host and path cannot say, in Traefik v3's grammar (PathPrefix is a plain string prefix there); host and path must hold as well.",
    ),
    Key::route(
        "priority",
        "10",
        "0",
        "Higher goes first; among equals exact host, wildcard, any host, then the longer path, then more conditions, then the older service.",
    ),
    Key::route("method", "GET, POST", "any", "One of these methods."),
    Key::route("header", "X-Beta=1, X-Canary", "none", "Request headers that must be there, with this value if one is given; all of them."),
    Key::route("query", "beta=1, debug", "none", "Query parameters that must be there, with this value if one is given; all of them."),
    Key::route(
        "redirect-from",
        "www.example.com",
        "none",
        "Hosts that answer with a redirect to the route's first host, path and query kept.",
    ),
];

/// What of a request decides its route. Borrowed from the request, no allocation.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Lower case, without port and without a trailing dot.
    pub host: &'a str,
    /// As sent or as [`canonical_path`] has it (the result is the same), starting with `/`, without the query.
    pub path: &'a str,
    /// Without the `?`; empty when there is none.
    pub query: &'a str,
    pub method: &'a http::Method,
    pub headers: &'a http::HeaderMap,
    /// The client's address after `trusted-proxies` was applied.
    pub client: IpAddr,
}

/// What one route of one service asks for; one matcher becomes one table row for each host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    pub hosts: Vec<HostPattern>,
    pub path: PathPattern,
    /// All must hold. Method, header and query keys, and what a rule says beyond host and path.
    pub conditions: Vec<Condition>,
    pub priority: Option<i32>,
}

/// What the labels of one route spec say about matching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// A rule with `||`, or several methods, yield several alternatives; else there is one.
    pub alternatives: Vec<Matcher>,
    /// Hosts that redirect to the first host, with the label that names each.
    pub redirect_from: Vec<(String, Value)>,
    /// The first exact host, target of `redirect_from`.
    pub first_host: Option<String>,
}

/// Reads host, path, rule, priority, method, header, query, redirect-from. `None`: the route has no meaning (a finding says why).
///
/// A key that narrows the route and cannot be read takes the route with it, as without it the route would serve more than it was
/// meant to. A priority, a host among several or a redirect source that cannot be read is left out alone.
pub fn parse(spec: &RouteSpec) -> (Option<Matching>, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let matching = keys::matching(spec, &mut findings);
    (matching, findings)
}
