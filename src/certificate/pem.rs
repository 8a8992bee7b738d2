//! Certificates and keys as people and authorities hand them over: PEM text, in which order ever, with whatever else is in the file.
//! What cannot be served to clients is told apart here, in sentences, before it replaces something that can.

use std::collections::BTreeSet;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::record::Secret;
use crate::diagnostic::brief;

/// Certificates of one chain; public authorities need three.
const MAX_CHAIN: usize = 10;

/// Why a text is no certificate that can be served. No text of a key is ever in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("there is no certificate: no `-----BEGIN CERTIFICATE-----` that can be read")]
    NoCertificate,
    #[error("there is no private key: no `-----BEGIN PRIVATE KEY-----`, nor one of RSA or EC, that can be read")]
    NoKey,
    #[error("the private key is encrypted, and Skep knows no passphrase: decrypt it with `openssl pkey -in KEY -out NEW`")]
    EncryptedKey,
    #[error("there are several private keys: keep the one that belongs to the certificate")]
    SeveralKeys,
    #[error("the key is of a kind that TLS does not use: make one of ECDSA P-256 or P-384, Ed25519, or RSA with 2048 bits or more")]
    UnusableKey,
    #[error("certificate {number} of the text cannot be read")]
    UnreadableCertificate { number: usize },
    #[error("there are {count} certificates, at most {MAX_CHAIN} make a chain")]
    LongChain { count: usize },
    #[error("the key does not belong to the certificate{of}", of = named(.subject))]
    WrongKey { subject: String },
    #[error("the certificate{of} is not part of the chain: it signed none of the others", of = named(.subject))]
    Stranger { subject: String },
    #[error("the certificate has no names (subjectAltName); clients do not look at its common name")]
    NoNames,
}

fn named(subject: &str) -> String {
    if subject.is_empty() { String::new() } else { format!(" of `{subject}`") }
}

/// What a certificate's texts say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// PEM, leaf first, each followed by its issuer.
    pub chain: String,
    /// PEM: PKCS#8, PKCS#1 or SEC1, as it was given; nothing but the key.
    pub key: Secret,
    /// Sorted; as in [`super::wanted::Wish::names`], and addresses as text.
    pub names: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// Does `text` hold a private key, encrypted or not?
pub fn has_key(text: &str) -> bool {
    text.contains("PRIVATE KEY-----")
}

/// Does `text` hold a certificate?
pub fn has_certificate(text: &str) -> bool {
    text.contains("-----BEGIN CERTIFICATE-----")
}

/// The certificate in `chain` that belongs to `key`, and its issuers. Both may be one text.
///
/// # Errors
/// What keeps it from being served; that it expired does not.
pub fn read(chain: &str, key: &str) -> Result<Read, Flaw> {
    let ders: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().map_err(|_| Flaw::NoCertificate)?;
    if ders.len() > MAX_CHAIN {
        return Err(Flaw::LongChain { count: ders.len() });
    }
    let parse = |(index, der): (usize, &'_ CertificateDer<'static>)| match X509Certificate::from_der(der) {
        Ok(([], _)) => Ok(()),
        _ => Err(Flaw::UnreadableCertificate { number: index + 1 }),
    };
    ders.iter().enumerate().try_for_each(parse)?;
    let certificates: Vec<X509Certificate<'_>> = ders.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let first = certificates.first().ok_or(Flaw::NoCertificate)?;
    let (key, public) = key_of(key)?;
    let belongs = |certificate: &X509Certificate<'_>| certificate.public_key().raw == public;
    let wrong = || Flaw::WrongKey { subject: brief(&first.subject().to_string()) };
    let leaf = certificates.iter().position(belongs).ok_or_else(wrong)?;
    let order = in_order(&certificates, leaf)?;
    let leaf = &certificates[leaf];
    let names = names(leaf);
    if names.is_empty() {
        return Err(Flaw::NoNames);
    }
    Ok(Read {
        chain: order.iter().map(|index| armored("CERTIFICATE", &ders[*index])).collect(),
        key,
        names: names.into_iter().collect(),
        not_before: timestamp(leaf.validity().not_before.timestamp()),
        not_after: timestamp(leaf.validity().not_after.timestamp()),
    })
}

/// The key in `text`, alone, and its public part as certificates write it.
fn key_of(text: &str) -> Result<(Secret, Vec<u8>), Flaw> {
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(Flaw::EncryptedKey);
    }
    let mut keys = PrivateKeyDer::pem_slice_iter(text.as_bytes()).map(|key| key.map(Zeroizing::new));
    let der = keys.next().and_then(Result::ok).ok_or(Flaw::NoKey)?;
    if keys.next().is_some() {
        return Err(Flaw::SeveralKeys);
    }
    let key = any_supported_type(&der).map_err(|_| Flaw::UnusableKey)?;
    let public = key.public_key().ok_or(Flaw::UnusableKey)?.to_vec();
    let label = match &*der {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    Ok((Secret::new(armored(label, der.secret_der())), public))
}

/// From the leaf to its last issuer; certificates that another authority made for an issuer's name come last.
fn in_order(certificates: &[X509Certificate<'_>], leaf: usize) -> Result<Vec<usize>, Flaw> {
    let mut order = vec![leaf];
    let mut last = leaf;
    loop {
        let issuer = |index: &usize| !order.contains(index) && certificates[*index].subject() == certificates[last].issuer();
        let Some(next) = (0..certificates.len()).find(issuer) else { break };
        order.push(next);
        last = next;
    }
    for (index, certificate) in certificates.iter().enumerate() {
        if !order.contains(&index) {
            let related = |other: &usize| *other != index && certificates[*other].issuer() == certificate.subject();
            if !(0..certificates.len()).any(|other| related(&other)) {
                return Err(Flaw::Stranger { subject: brief(&certificate.subject().to_string()) });
            }
            order.push(index);
        }
    }
    Ok(order)
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => host(name),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// As labels' hosts are written: lower case, ASCII, no dot at the end. Authorities write A-labels (RFC 5280, 7.2); own ones may not.
fn host(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let (wildcard, rest) = match name.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", name),
    };
    let ascii = idna::domain_to_ascii(rest).ok().filter(|ascii| !ascii.is_empty() && !ascii.contains('*'))?;
    Some(format!("{wildcard}{ascii}"))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// "No expiry" is written as the last second of the year 9999 (RFC 5280, 4.1.2.5), which is later than clocks here go.
fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(if second < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// RFC 7468; in a buffer that had its full size from the start: what grows leaves copies behind.
fn armored(label: &str, der: &[u8]) -> String {
    const LINE: usize = 48; // 64 letters
    let mut text = String::with_capacity(der.len() / LINE * 65 + 2 * label.len() + 128);
    text.extend(["-----BEGIN ", label, "-----\n"]);
    for line in der.chunks(LINE) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.extend(["-----END ", label, "-----\n"]);
    text
}
