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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{RootCertStore, crypto};

    use super::*;
    use crate::certificate::Source;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn now() -> Timestamp {
        "2026-11-23T00:00:00Z".parse().expect("a time")
    }

    fn origin() -> Origin {
        Origin { id: "0123456789abcdef".into(), service: "shop_web".into(), source: Source::Internal, issuer: None }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// What a client that trusts `root` says of `record` for `name`.
    fn verify(root: &str, record: &Record, name: &str, now: Timestamp) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).expect("a root")).expect("trusted");
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier");
        let leaf = CertificateDer::from_pem_slice(record.chain.as_bytes()).expect("a leaf");
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().unsigned_abs()));
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&leaf, &[], &name, &[], time).map(drop)
    }

    #[test]
    fn clients_that_trust_the_root_trust_what_it_signed() {
        let (root_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let authority = Authority::found("fedcba9876543210", &root_key, now()).expect("founded");
        let wanted = names(&["a.internal", "*.b.internal", "10.0.0.1", "fd00::1"]);
        let record = authority.issue(origin(), &wanted, &key, now()).expect("issued");
        assert_eq!(record.names, wanted.iter().cloned().collect::<Vec<_>>());
        assert_eq!((record.not_before, record.not_after), (now() - BACKDATED, now() + 90 * DAY));
        for name in ["a.internal", "x.b.internal", "10.0.0.1", "fd00::1"] {
            assert_eq!(verify(authority.root_pem(), &record, name, now() + 89 * DAY), Ok(()), "{name}");
        }
        assert!(verify(authority.root_pem(), &record, "c.internal", now()).is_err());
        assert!(verify(authority.root_pem(), &record, "a.internal", now() + 91 * DAY).is_err());
        let other = Authority::found("x", &KeyPair::generate().expect("a key"), now()).expect("founded");
        assert!(verify(other.root_pem(), &record, "a.internal", now()).is_err());
        assert!(crate::certificate::pem::read(authority.root_pem(), authority.key.reveal()).is_err(), "a root is for no name");
        // A certificate ends with its root at the latest.
        let late = authority.not_after - DAY;
        assert_eq!(authority.issue(origin(), &wanted, &key, late).expect("issued").not_after, authority.not_after);
        assert!(matches!(authority.issue(origin(), &wanted, &key, authority.not_after), Err(Error::Expired(_))));
    }

    #[test]
    fn long_names_and_none_have_self_signed_certificates() {
        let key = KeyPair::generate().expect("a key");
        let long = format!("{}.test", ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join("."));
        for wanted in [names(&["a.test"]), names(&[&long, "xn--mnchen-3ya.test"])] {
            let record = self_signed(origin(), &wanted, &key, now()).expect("signed");
            assert_eq!(record.names, wanted.iter().cloned().collect::<Vec<_>>());
        }
        assert_eq!(self_signed(origin(), &BTreeSet::new(), &key, now()).expect("signed").names, [NO_NAME]);
        assert!(self_signed(origin(), &names(&["ü.test"]), &key, now()).is_err(), "A-labels only");
    }

    #[test]
    fn what_is_kept_reads_back_and_shows_no_key() {
        let authority = Authority::found("fedcba9876543210", &KeyPair::generate().expect("a key"), now()).expect("founded");
        let text = serde_json::to_string(&authority).expect("JSON");
        assert_eq!(serde_json::from_str::<Authority>(&text).expect("read back"), authority);
        let letters = authority.key.reveal().lines().nth(1).expect("base64").trim();
        assert!(text.contains(letters) && !format!("{authority:?}").contains(letters));
    }
}
