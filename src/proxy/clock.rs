//! The ledger's clock: milliseconds since the process first asked, which no change of the machine's time can turn back.

use std::sync::OnceLock;
use std::time::Instant;

use crate::upstream::Moment;

/// Instants before the first call count as the beginning.
pub fn at(instant: Instant) -> Moment {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    let since = instant.saturating_duration_since(*BEGINNING.get_or_init(Instant::now));
    // Half a billion years fit.
    Moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub fn now() -> Moment {
    at(Instant::now())
}
