//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

pub mod account;
pub mod acme;
mod api;
pub mod ari;
pub mod attempt;
pub mod authority;
pub mod challenge;
mod cloudflare;
mod coverage;
pub mod dns;
mod due;
pub mod failure;
pub mod files;
mod group;
mod hook;
pub mod issuer;
mod jitter;
mod journal;
pub mod keyring;
pub mod label;
pub mod local;
mod names;
pub mod order;
mod ovh;
pub mod pairs;
pub mod pem;
mod place;
pub mod plan;
mod planner;
pub mod probe;
mod propagation;
mod publish;
mod quota;
mod ready;
pub mod record;
mod rfc2136;
pub mod shelf;
#[cfg(test)]
mod simulation;
pub mod standing;
pub mod tls;
pub mod transport;
mod tsig;
mod unverified;
pub mod wanted;
pub mod zone;

pub use label::{KEYS, Mode, Source, Tls, parse};
