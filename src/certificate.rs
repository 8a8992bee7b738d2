//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

pub mod account;
pub mod acme;
pub mod ari;
pub mod chain;
pub mod challenge;
pub mod failure;
pub mod label;
pub mod order;
pub mod record;
pub mod transport;
pub mod wanted;

pub use label::{KEYS, Mode, Source, Tls, parse};
