//! What an authority says about when: `Retry-After`, and the window in which it wants a certificate renewed (RFC 9773).

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::Deserialize;

use super::record::Window;

/// Bounds of the time after which a window is asked for again (RFC 9773, 4.3.3 wants such).
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(24 * 3600);
/// Where the authority does not say.
const UNTOLD: Duration = Duration::from_secs(6 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Suggested,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    /// Every directory has it, so that something else is known.
    #[serde(rename = "newOrder")]
    _new_order: String,
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
struct Suggested {
    start: Timestamp,
    end: Timestamp,
}

/// Where the authority that has this directory answers about renewals; `None` where it does not.
///
/// # Errors
/// It is no directory.
pub fn url(directory: &[u8]) -> Result<Option<String>, String> {
    let directory: Directory = serde_json::from_slice(directory).map_err(|error| format!("this is no ACME directory: {error}"))?;
    Ok(directory.renewal_info)
}

/// The window in `body`; `retry_after` is when the authority wants to be asked again.
///
/// # Errors
/// It is no renewal information, or its window ends before it starts.
pub fn window(body: &[u8], retry_after: Option<Timestamp>, now: Timestamp) -> Result<Window, String> {
    let info: RenewalInfo = serde_json::from_slice(body).map_err(|error| format!("this is no renewal information: {error}"))?;
    let Suggested { start, end } = info.suggested_window;
    if end < start {
        return Err(format!("the window ends at {end}, before it starts at {start}"));
    }
    let ask_again = retry_after.unwrap_or(now + UNTOLD).clamp(now + SOONEST, now + LATEST);
    Ok(Window { start, end, ask_again })
}

/// The time of a `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. A date of the past is now.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    const FURTHEST: u64 = 366 * 24 * 3600;
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(FURTHEST).min(FURTHEST);
        return now.checked_add(Duration::from_secs(seconds)).ok();
    }
    // HTTP dates are RFC 2822 dates, but for the name of their zone, which is always GMT.
    let date = rfc2822::parse(&text.replace("GMT", "+0000")).ok()?.timestamp();
    Some(date.clamp(now, now.checked_add(Duration::from_secs(FURTHEST)).ok()?))
}
