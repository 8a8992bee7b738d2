//! How signing in stands at one moment: for metrics and the admin listener.

/// Signing in at the moment of a scrape. Counts are since the process began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SigningNow {
    /// By result, as the audit lines have it.
    pub results: Vec<(&'static str, u64)>,
    /// Users with live sessions, and their sessions.
    pub accounts: u64,
    pub sessions: u64,
    /// Does whoever knows users answer? `None`: nobody is configured, or nobody has asked yet.
    pub directory: Option<bool>,
    /// The directory's servers.
    pub servers: Vec<ServerNow>,
}

/// One server of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNow {
    pub server: String,
    pub up: bool,
    pub requests: u64,
    pub failures: u64,
}
