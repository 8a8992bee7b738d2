//! What the labels want: one [`Wish`] for each service and source, made by `state` from the routes that answer over HTTPS.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Source;

/// Names that one service wants from one source. A name is wished for once: by the oldest service that serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Names of one service go into one certificate, as far as they can.
    pub service: String,
    pub source: Source,
    /// Lower case, ASCII (A-labels), without a trailing dot; `*.example.com` for wildcards.
    pub names: BTreeSet<String>,
}
