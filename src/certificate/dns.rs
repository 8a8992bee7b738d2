//! DNS-01 (RFC 8555, 8.4): what a record is, who may write it, and whose fault it is when that fails.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use super::publish::{Dns, Published, from_config};
use super::record::Secret;
use super::{cloudflare, hook, ovh, rfc2136};
use crate::config::{self, DnsProvider};

/// The label below which authorities look (RFC 8555, 8.4).
const LABEL: &str = "_acme-challenge";
/// Longer files are no secrets.
const LONGEST_SECRET: u64 = 16 * 1024;
/// Letters of what others say that are passed on.
const LONGEST_SAID: usize = 500;

/// Whose turn it is to repair something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Our settings: nothing changes until somebody changes them.
    Settings,
    /// The name's zone, or its delegation.
    Zone,
    /// The provider refused or failed.
    Provider,
    /// Nobody answered: trying again may help.
    Network,
}

/// Why a record could not be published, seen or removed: whose fault it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {help}")]
pub struct Error {
    pub fault: Fault,
    pub what: String,
    pub help: String,
}

impl Error {
    pub fn new(fault: Fault, what: impl Into<String>, help: impl Into<String>) -> Error {
        Error { fault, what: what.into(), help: help.into() }
    }

    /// Has it a chance without anybody doing something?
    pub fn passes(&self) -> bool {
        matches!(self.fault, Fault::Provider | Fault::Network)
    }
}

/// One TXT record of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name that is to be proven, without `*.`.
    pub domain: String,
    /// Where the record lies, CNAMEs followed: lower case, without a trailing dot.
    pub name: String,
    /// The zone in which that is; `None`: the provider does not ask for it.
    pub zone: Option<String>,
    pub value: String,
}

impl Record {
    /// The zone, for providers that cannot do without.
    pub fn zone(&self) -> Result<&str, Error> {
        self.zone.as_deref().ok_or_else(|| {
            Error::new(
                Fault::Zone,
                format!("the zone of {} is not known", self.name),
                "it is a leftover of another provider: remove it by hand",
            )
        })
    }
}

/// Who writes into zones. Several values may be live under one name (a wildcard and its apex): each call is about one.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Adds the record beside those that are there.
    async fn publish(&self, record: &Record) -> Result<(), Error>;
    /// Takes exactly this record away; one that is not there is fine.
    async fn remove(&self, record: &Record) -> Result<(), Error>;
    /// How long one of these may take before it is given up.
    fn longest(&self) -> Duration {
        Duration::from_secs(120)
    }
    /// Is [`Record::zone`] to be found out?
    fn needs_zone(&self) -> bool {
        true
    }
}

/// The provider of the settings; `None` when DNS-01 is off. Reads the files that hold its secrets.
pub fn provider(dns: &config::Dns) -> Result<Option<Arc<dyn Provider>>, Error> {
    Ok(Some(match dns.provider {
        DnsProvider::Off => return Ok(None),
        DnsProvider::Rfc2136 => Arc::new(rfc2136::Rfc2136::from_config(dns)?),
        DnsProvider::Cloudflare => Arc::new(cloudflare::Cloudflare::from_config(dns)?),
        DnsProvider::Ovh => Arc::new(ovh::Ovh::from_config(dns)?),
        DnsProvider::Exec => Arc::new(hook::Hook::from_config(dns)?),
    }))
}

/// What is proven for `name`: itself, or what a wildcard stands below.
pub(super) fn domain(name: &str) -> String {
    name.strip_prefix("*.").unwrap_or(name).trim_end_matches('.').to_ascii_lowercase()
}

/// Where authorities look for the TXT records of `domain`.
pub fn record_name(domain: &str) -> String {
    format!("{LABEL}.{domain}")
}

/// What others say, as part of one line of an error: without what could steer a terminal, and not all of it.
pub(super) fn one_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let words = text.split(|letter: char| letter.is_control() || letter.is_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(LONGEST_SAID).collect()
}

/// The text of a secret's file, without white space around it.
pub(super) fn secret(setting: &str, path: Option<&Path>) -> Result<Secret, Error> {
    use std::io::Read;
    let unset = || Error::new(Fault::Settings, format!("dns.{setting} is not set"), "name the file that holds it");
    let path = path.ok_or_else(unset)?;
    let wrong =
        |what: String| Error::new(Fault::Settings, format!("{} (dns.{setting}) {what}", path.display()), "put the secret into that file");
    let mut text = zeroize::Zeroizing::new(String::new());
    let file = std::fs::File::open(path).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    file.take(LONGEST_SECRET + 1).read_to_string(&mut text).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    match text.trim() {
        "" => Err(wrong("is empty".to_owned())),
        _ if text.len() as u64 > LONGEST_SECRET => Err(wrong("is too long for a secret".to_owned())),
        trimmed => Ok(Secret::new(trimmed.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_and_its_apex_are_proven_under_one_name() {
        for name in ["example.com", "*.example.com", "Example.COM."] {
            assert_eq!(record_name(&domain(name)), "_acme-challenge.example.com", "{name}");
        }
        assert_eq!(record_name(&domain("*.a.example.com")), "_acme-challenge.a.example.com");
    }

    #[test]
    fn what_others_say_becomes_one_line() {
        assert_eq!(one_line(b" \n"), "");
        assert_eq!(one_line(b"no such\n\tzone\x1b[31m\n"), "no such zone [31m");
        assert_eq!(one_line(&[b'x'; 10_000]).len(), LONGEST_SAID);
    }

    proptest! {
        #[test]
        fn what_others_say_never_steers_a_terminal(said: Vec<u8>) {
            prop_assert!(!one_line(&said).chars().any(char::is_control));
        }
    }

    #[test]
    fn secrets_are_trimmed_bounded_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            secret("cloudflare-token-file", Some(&file))
        };
        assert_eq!(read("  hunter2\n").unwrap().reveal(), "hunter2");
        assert!(!format!("{:?}", read("hunter2").unwrap()).contains("hunter2"));
        for (text, said) in [(" \n", "is empty"), (&*"x".repeat(20_000), "too long")] {
            let error = read(text).unwrap_err();
            assert!(error.fault == Fault::Settings && error.what.contains(said), "{error}");
        }
        assert!(secret("x", Some(Path::new("/nowhere"))).unwrap_err().what.contains("cannot be read"));
        assert!(secret("x", None).unwrap_err().what.contains("dns.x is not set"));
    }
}
