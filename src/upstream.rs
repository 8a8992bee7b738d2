//! Backends of a route, what is known of their health, and picking one.
//! Picking is a function of the pool, the ledger, the clock and a seed; the ledger is what survives a swap.

mod address;
mod budget;
mod check;
mod ejection;
mod health;
mod ledger;
mod pick;
pub mod probe;
mod retry;
mod settings;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::label::Key;
use crate::snapshot::Condition;

pub use address::backends;
pub use check::{Checked, Verdict, checks, checks_differ};
pub use ejection::Change;
pub use health::{Fitness, Health};
pub use ledger::{InFlight, Ledger, Stats};
pub use retry::{Attempt, Failure, Retries};
pub use settings::parse;
pub use stream::{KEYS as STREAM_KEYS, SILENCE, parse_stream, prefix as stream_prefix};

/// The keys of this feature.
pub const KEYS: &[Key] = &[
    Key::route("port", "container port", "the only exposed port, else 80", "The container's port that requests go to; it needs no EXPOSE."),
    Key::route("scheme", "http, h2c, https, grpc, grpcs", "http", "How to speak to the container; grpc is h2c, grpcs is HTTP/2 over TLS."),
    Key::route("address", "host:port, host:port", "", "Upstreams outside Docker; only in a stack file that is given with --file."),
    Key::route(
        "network",
        "name of a network",
        "the one shared with the edge",
        "Which network's address to dial; a stack's networks by their short names too.",
    ),
    Key::route(
        "balance",
        "p2c, round-robin, least, hash:ip, hash:header:NAME, hash:cookie:NAME",
        "p2c",
        "How a task is chosen for a request.",
    ),
    Key::route(
        "proxy-protocol",
        "v1, v2",
        "off",
        "A PROXY header in front of each connection tells the task who the client is; connections are then not shared by clients.",
    ),
    Key::route(
        "upstream-ca",
        "file name",
        "the machine's authorities",
        "With scheme https: whose certificates the tasks have; a file with CAs in the directory `certificates.authorities`.",
    ),
    Key::route(
        "upstream-sni",
        "shop.internal",
        "the name or address that is dialled",
        "With scheme https: the name that is asked for and that the task's certificate must have.",
    ),
    Key::route("upstream-verify", "on, off", "on", "With scheme https: `off` believes whoever answers; a warning says so."),
    Key::route("sticky", "cookie name", "off", "A cookie that brings a browser back to the task that it had before."),
    Key::route("retries", "0 to 10", "2", "Attempts on other tasks after the first one failed."),
    Key::route("timeout-connect", "duration", "2s", "Until a connection to a task stands."),
    Key::route("timeout-response", "duration", "60s", "From the request sent until the answer begins."),
    Key::route("timeout-idle", "duration", "60s", "Silence within a body or an upgraded connection."),
    Key::route("timeout-request", "duration", "no limit", "The whole request, from its head to the answer's last byte."),
    Key::route(
        "weight",
        "0 to 1000000",
        "",
        "Share of the route's traffic where several services claim the same route, each with a weight.",
    ),
    Key::route("health-path", "path", "off", "Asked of every task; a task that answers otherwise than health-status gets no traffic."),
    Key::route("health-interval", "duration", "10s", "How often health-path is asked."),
    Key::route("health-timeout", "duration", "2s", "How long an answer to health-path may take."),
    Key::route("health-status", "200, 200-399", "200-399", "Answers to health-path that are good."),
    Key::route("health-unhealthy", "1 to 100", "3", "Bad answers in a row until a task gets no traffic."),
    Key::route("health-healthy", "1 to 100", "1", "Good answers in a row until it gets traffic again."),
    Key::route(
        "retry-on",
        "connect, reset, timeout, 502, 503",
        "502, 503, 504, and timeout for GET",
        "What else than broken connections is tried on another task, for idempotent methods; failed connects always are.",
    ),
];

/// Milliseconds on a clock that never goes back; coarse, and the same one for a whole ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// How to speak to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    #[default]
    Http,
    H2c,
    Https,
    Grpc,
    Grpcs,
    /// Not spoken to at all: bytes are carried.
    Tcp,
}

impl Scheme {
    /// Over TLS, with the edge as its client.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Grpcs)
    }
}

/// Whom a task behind TLS must be vouched for by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Trust {
    /// The authorities of this machine.
    #[default]
    Machine,
    /// The authorities in this file.
    Authority(Arc<Path>),
    /// Nobody: a label says so.
    Unverified,
}

/// The version of the PROXY header that a backend is sent in front of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// How a backend is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The less busy one of two random ones.
    #[default]
    PowerOfTwo,
    RoundRobin,
    Least,
    HashIp,
    /// Lower-case header name.
    HashHeader(String),
    HashCookie(String),
}

impl Balance {
    /// Is the task chosen by what only a request has?
    pub fn needs_a_request(&self) -> bool {
        matches!(self, Balance::HashHeader(_) | Balance::HashCookie(_))
    }
}

/// How long each step may take; `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// From the request sent to the response's head.
    pub response: Duration,
    /// Between two reads of a body or an upgraded connection.
    pub idle: Duration,
    /// The whole request.
    pub request: Option<Duration>,
}

/// The upstream keys of one route spec, typed.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub port: Option<u16>,
    pub scheme: Scheme,
    pub trust: Trust,
    /// The file of `upstream-ca`, as it is written.
    pub ca: Option<String>,
    /// SNI and certificate name in place of what is dialled.
    pub sni: Option<String>,
    /// `address`: host (name or IP) and port pairs of a stack file.
    pub address: Vec<(String, u16)>,
    pub network: Option<String>,
    /// `None`: connections begin with the request.
    pub proxy_protocol: Option<ProxyVersion>,
    pub balance: Balance,
    /// Name of the sticky cookie.
    pub sticky: Option<String>,
    /// Attempts on other tasks after the first.
    pub retries: u32,
    pub timeouts: Timeouts,
    /// Share among services that claim the same route.
    pub weight: Option<u32>,
    /// Active checks; `None` without `health-path`.
    pub check: Option<Check>,
    /// What is tried again beside a failed connect.
    pub retry_on: Vec<RetryOn>,
}

/// An HTTP request that every task must answer well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub path: String,
    /// The host that is asked for; the task's address without one.
    pub host: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub status: Vec<RangeInclusive<u16>>,
    /// Bad answers in a row until a task is out, good ones until it is back.
    pub unhealthy: u32,
    pub healthy: u32,
}

/// A reason to try another task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    Connect,
    Timeout,
    /// The connection broke before the answer began.
    Reset,
    Status(u16),
}

/// One address that requests can go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Stable over swaps: `service/task@address`. Key of the ledger.
    pub id: Arc<str>,
    pub service: Arc<str>,
    pub task: Arc<str>,
    pub node: Arc<str>,
    pub address: SocketAddr,
    pub scheme: Scheme,
    /// SNI and certificate name for TLS upstreams; empty: the address.
    pub sni: Arc<str>,
    pub trust: Trust,
    pub proxy_protocol: Option<ProxyVersion>,
    pub condition: Condition,
    /// Opaque value of the sticky cookie.
    pub token: Arc<str>,
}

/// Backends of one service on one route.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub service: Arc<str>,
    /// Share among the groups of the route; 1 when no weight was given.
    pub weight: u32,
    pub backends: Vec<Backend>,
    /// What every backend must answer well.
    pub check: Option<Arc<Check>>,
}

/// All backends of a route and how one is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub groups: Vec<Group>,
    pub balance: Balance,
    pub sticky: Option<String>,
}

/// What picking needs of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Affinity<'a> {
    pub client: Option<IpAddr>,
    /// The value of the header or cookie that `balance` names.
    pub key: Option<&'a str>,
    /// The value of the sticky cookie.
    pub token: Option<&'a str>,
}
