//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

pub mod attempt;
pub mod challenge;
mod coverage;
mod due;
mod group;
pub mod issuer;
mod jitter;
pub mod label;
mod names;
mod place;
pub mod plan;
mod planner;
mod quota;
mod ready;
pub mod record;
#[cfg(test)]
mod simulation;
pub mod standing;
pub mod wanted;

pub use label::{KEYS, Mode, Source, Tls, parse};
