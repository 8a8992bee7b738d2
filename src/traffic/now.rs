//! What a route's limits did and how they stand at one moment: for metrics, the admin listener and `skep routes`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::circuit::Standing;

/// One route. Counts are since the process began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitNow {
    pub route: Arc<str>,
    pub rate_limited: u64,
    /// Of `max-inflight`: at work, waiting, and turned away so far.
    pub in_flight: u32,
    pub queued: u32,
    pub rejected: u64,
    pub body_too_large: u64,
    /// `None`: the route has no circuit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit: Option<Standing>,
    /// Answered while the circuit was open.
    pub short_circuited: u64,
    /// Copies that were answered, that were not, that were too large, and that found no place.
    pub mirrored: u64,
    pub mirror_failed: u64,
    pub mirror_too_large: u64,
    pub mirror_dropped: u64,
    /// Bytes of answers before and after their coding.
    pub compressed_in: u64,
    pub compressed_out: u64,
}
