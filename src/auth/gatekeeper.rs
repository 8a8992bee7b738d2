//! The seam between requests and whoever has to be asked about them: what is asked, and what can come of it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::entrance::Entrance;
use super::entrant::Entrant;
use super::label::Access;
use super::passage::{Basic, Who};
use super::reply::Reply;
use crate::config::Auth;

/// Whose request it is, and when.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub client: IpAddr,
    /// Lower case, without port.
    pub host: &'a str,
    /// The client used HTTPS.
    pub secure: bool,
    pub headers: &'a HeaderMap,
    pub now: Timestamp,
    pub auth: &'a Auth,
}

/// Why credentials let nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    Wrong,
    /// Too many were wrong: not looked at for so many seconds.
    Wait(u64),
    /// Nobody could say.
    Unavailable,
}

/// A request for one of the edge's own addresses.
pub struct Visit<'a> {
    pub caller: Caller<'a>,
    pub method: &'a Method,
    pub query: &'a str,
    pub body: &'a [u8],
    /// Scheme and authority as the client knows them: `https://app.example.com:8443`.
    pub base: String,
    /// The same for whoever is sent here from another host: a port is one of the edge's own, whatever the client says.
    pub back: String,
    /// The same of the host at which everybody signs in; `None`: this host signs in by itself.
    pub home: Option<String>,
    /// What is served to this client at a host and a path.
    pub destination: &'a (dyn Fn(&str, &str) -> Option<Destination> + Sync),
}

/// A route that somebody may want to go to.
#[derive(Clone, Debug)]
pub struct Destination {
    /// What people call it.
    pub service: String,
    pub access: Access,
}

/// Whoever is asked. Every answer comes in bounded time, and none lets anybody in that it is not sure of.
pub trait Gatekeeper: fmt::Debug + Send + Sync {
    /// Who sends a request for a route with `access`, as far as that is known without asking anybody: called for each request, it waits
    /// for nothing.
    fn who(&self, caller: &Caller<'_>, access: &Access) -> Who;

    /// Ends once whoever was let in to `access` as `entrant` may not be there any more.
    fn outlasted<'a>(&'a self, entrant: &'a Entrant, access: &'a Access, auth: &'a Auth) -> BoxFuture<'a, ()>;

    /// Are these credentials right, for a route with `access`?
    fn verify<'a>(&'a self, caller: &'a Caller<'a>, access: &'a Access, basic: &'a Basic) -> BoxFuture<'a, Result<Arc<Entrant>, Denied>>;

    /// Answers for one of the edge's own addresses.
    fn receive<'a>(&'a self, entrance: Entrance, visit: &'a Visit<'a>) -> BoxFuture<'a, Reply>;

    /// Leads somebody who wants `path` and query here to the host at which everybody signs in.
    fn depart(&self, visit: &Visit<'_>, path: &str) -> Reply;
}
