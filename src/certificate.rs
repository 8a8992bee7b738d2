//! Certificates: which ones labels want, which ones there are, what is to be done about the difference, and which one a client gets.
//! The pure part decides; the children named by a technology ask certificate authorities, DNS servers and the file system.

pub mod authority;
pub mod challenge;
pub mod files;
pub mod label;
pub mod local;
pub mod pairs;
pub mod pem;
pub mod record;
pub mod wanted;

pub use label::{KEYS, Mode, Source, Tls, parse};
