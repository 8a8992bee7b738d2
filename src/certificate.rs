//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

mod api;
pub mod challenge;
mod cloudflare;
pub mod dns;
mod hook;
mod journal;
pub mod label;
mod ovh;
mod propagation;
mod publish;
pub mod record;
mod rfc2136;
mod tsig;
pub mod wanted;
pub mod zone;

pub use label::{KEYS, Mode, Source, Tls, parse};
