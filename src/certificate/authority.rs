//! Certificates that nobody else vouches for: those of our own authority, for names that are not public, and self-signed ones, which
//! stand in until there is something better. Keys are made by `certificate::local`; here is what they sign.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde::{Deserialize, Serialize};

use super::pem::Flaw;
use super::record::{Origin, Record, Secret};

/// Where the internal authority lies in the store.
pub const KEY: &str = "authority/internal";
/// Of a root: devices are told to trust it once, by hand.
pub const ROOT_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3652);
/// Of what it signs; renewed as any other certificate.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 90);
/// Of self-signed ones: longer than a process lives without an upgrade.
pub const SELF_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 397);
/// Clients' clocks may be behind ours.
const BACKDATED: SignedDuration = SignedDuration::from_hours(1);
/// What a certificate is for that is there before any name is known.
pub const NO_NAME: &str = "skep.invalid";
/// Bytes of a common name (RFC 5280, appendix A).
const MAX_COMMON_NAME: usize = 64;

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificate could not be made: {0}")]
    Making(#[from] rcgen::Error),
    #[error("what was made cannot be used: {0}")]
    Flaw(#[from] Flaw),
    #[error("the internal authority's root expired on {0}")]
    Expired(Timestamp),
}

/// Our own authority, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    pub id: String,
    /// PEM; the public part.
    root: String,
    /// PEM, PKCS#8.
    key: Secret,
    pub not_after: Timestamp,
}

impl Authority {
    /// A new authority with `key`, called by the first letters of `id`.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn found(id: &str, key: &KeyPair, now: Timestamp) -> Result<Authority, Error> {
        let short: String = id.chars().take(8).collect();
        let not_after = now + ROOT_LIFETIME;
        let mut root = params(&format!("Skep internal CA {short}"), now, not_after);
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let root = root.self_signed(key)?.pem();
        Ok(Authority { id: id.to_owned(), root, key: secret(key), not_after })
    }

    /// The root for devices that shall trust this authority.
    pub fn root_pem(&self) -> &str {
        &self.root
    }

    /// A certificate of `key` for `names` (hosts, wildcards and IP addresses).
    ///
    /// # Errors
    /// The root expired, or a name cannot stand in a certificate.
    pub fn issue(&self, origin: Origin, names: &BTreeSet<String>, key: &KeyPair, now: Timestamp) -> Result<Record, Error> {
        if self.not_after <= now {
            return Err(Error::Expired(self.not_after));
        }
        let root_key = KeyPair::from_pem(self.key.reveal())?;
        let issuer = Issuer::from_ca_cert_pem(&self.root, root_key)?;
        let certificate = leaf(names, now, (now + LEAF_LIFETIME).min(self.not_after))?.signed_by(key, &issuer)?;
        Ok(Record::from_pem(origin, &certificate.pem(), secret(key).reveal())?)
    }
}

/// A certificate that `key` signed for itself; for no names at all, one that is valid nowhere.
///
/// # Errors
/// A name cannot stand in a certificate.
pub fn self_signed(origin: Origin, names: &BTreeSet<String>, key: &KeyPair, now: Timestamp) -> Result<Record, Error> {
    let none = BTreeSet::from([NO_NAME.to_owned()]);
    let names = if names.is_empty() { &none } else { names };
    let certificate = leaf(names, now, now + SELF_LIFETIME)?.self_signed(key)?;
    Ok(Record::from_pem(origin, &certificate.pem(), secret(key).reveal())?)
}

fn leaf(names: &BTreeSet<String>, now: Timestamp, not_after: Timestamp) -> Result<CertificateParams, Error> {
    let short = names.first().filter(|name| name.len() <= MAX_COMMON_NAME).map_or("Skep", String::as_str);
    let mut leaf = params(short, now, not_after);
    leaf.subject_alt_names = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?.subject_alt_names;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    Ok(leaf)
}

fn params(common_name: &str, now: Timestamp, not_after: Timestamp) -> CertificateParams {
    // The form that rcgen wants times in.
    let time = |time: Timestamp| date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(time.as_second().unsigned_abs());
    let mut params = CertificateParams::default();
    params.not_before = time(now - BACKDATED);
    params.not_after = time(not_after);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn secret(key: &KeyPair) -> Secret {
    Secret::new(key.serialize_pem())
}
