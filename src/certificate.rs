//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

pub mod account;
pub mod acme;
mod api;
pub mod ari;
pub mod authority;
pub mod challenge;
mod cloudflare;
pub mod dns;
pub mod failure;
pub mod files;
mod hook;
mod journal;
pub mod keyring;
pub mod label;
pub mod local;
pub mod order;
mod ovh;
pub mod pairs;
pub mod pem;
pub mod probe;
mod propagation;
mod publish;
pub mod record;
mod rfc2136;
pub mod tls;
pub mod transport;
mod tsig;
mod unverified;
pub mod wanted;
pub mod zone;

pub use label::{KEYS, Mode, Source, Tls, parse};
