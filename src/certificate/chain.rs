//! What stands in a certificate: for whom, how long, for which key, and by which name its authority knows it (RFC 9773, 4.1).

use std::collections::BTreeSet;
use std::net::IpAddr;

use instant_acme::CertificateIdentifier;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The first certificate of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Of the subject alternative names: lower case, as in [`super::wanted::Wish::names`].
    pub names: BTreeSet<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// The SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
}

/// Reads the first certificate of `chain` (PEM).
///
/// # Errors
/// There is none, or it cannot be read.
pub fn leaf(chain: &str) -> Result<Leaf, String> {
    let der = first(chain)?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| format!("the certificate's dates cannot be read: {error}"))
    };
    Ok(Leaf {
        names: names(&certificate)?,
        not_before: time(certificate.validity().not_before)?,
        not_after: time(certificate.validity().not_after)?,
        public_key: certificate.public_key().raw.to_vec(),
    })
}

/// How an authority names the first certificate of `chain` in renewals (RFC 9773, 4.1): `AKI.serial`, each base64url.
///
/// # Errors
/// It cannot be read, or names no authority key.
pub fn identifier(chain: &str) -> Result<CertificateIdentifier<'static>, String> {
    let der = first(chain)?;
    CertificateIdentifier::try_from(&der).map(CertificateIdentifier::into_owned)
}

fn first(chain: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|error| format!("there is no certificate in it: {error}"))
}

fn names(certificate: &X509Certificate<'_>) -> Result<BTreeSet<String>, String> {
    let extension = certificate.subject_alternative_name().map_err(|error| format!("its names cannot be read: {error}"))?;
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    };
    Ok(extension.map(|extension| extension.value.general_names.iter().filter_map(name).collect()).unwrap_or_default())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
