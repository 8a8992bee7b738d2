//! How many files and sockets this process may have open: raised as far as it may be raised, and said where it is too few.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is open beside clients' connections and those to their upstreams: listeners, logs, the engine, the runtime, the admin listener.
const BESIDE: u64 = 256;

/// Raises the soft limit to the hard one; returns the limit that holds now, `None` where there is none or it cannot be read.
pub fn raise() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, soft, hard, "the limit of open files cannot be raised");
        return Some(soft);
    }
    Some(hard)
}

/// What to say where `limit` open files are too few for `connections` of clients, each with one to an upstream.
pub fn shortage(limit: Option<u64>, connections: usize) -> Option<String> {
    let limit = limit?;
    let wanted = connections as u64 * 2 + BESIDE;
    let fit = limit.saturating_sub(BESIDE) / 2;
    (limit < wanted).then(|| {
        format!(
            "proxy.max-connections is {connections}, but only {limit} files may be open, enough for about {fit} connections: \
             raise the limit to {wanted} (ulimit -n, LimitNOFILE, --ulimit nofile) or lower proxy.max-connections"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_said_with_numbers() {
        for (limit, connections, says) in [(Some(1024), 20_000, Some("about 384 ")), (Some(1_048_576), 20_000, None), (None, 20_000, None)]
        {
            let said = shortage(limit, connections);
            assert_eq!(said.is_some(), says.is_some(), "{said:?}");
            assert!(says.is_none_or(|says| said.unwrap().contains(says)));
        }
    }
}
