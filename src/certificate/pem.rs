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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SanType};
    use x509_parser::der_parser::parse_der;

    use super::*;

    fn params(subject: &str, names: &[&str]) -> CertificateParams {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, subject);
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate().expect("a key")
    }

    fn single(names: &[&str]) -> (String, String) {
        let key = key();
        (params("leaf", names).self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    /// Leaf, intermediate, root, and the leaf's key.
    fn chain() -> ([String; 3], String) {
        let ca = |subject| {
            let mut params = params(subject, &[]);
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
        };
        let (root, middle, leaf) = (key(), key(), key());
        let root_pem = ca("root").self_signed(&root).expect("a root").pem();
        let middle_pem = ca("middle").signed_by(&middle, &Issuer::new(ca("root"), root)).expect("signed").pem();
        let leaf_pem = params("leaf", &["a.test"]).signed_by(&leaf, &Issuer::new(ca("middle"), middle)).expect("signed").pem();
        ([leaf_pem, middle_pem, root_pem].map(|pem| pem.replace("\r\n", "\n")), leaf.serialize_pem())
    }

    #[test]
    fn names_are_as_labels_write_them() {
        let (chain, key) = single(&["B.test.", "*.a.test", "192.0.2.1", "2001:db8::1", "xn--mnchen-3ya.test", "b.test"]);
        assert_eq!(read(&chain, &key).expect("read").names, ["*.a.test", "192.0.2.1", "2001:db8::1", "b.test", "xn--mnchen-3ya.test"]);
        // As nobody should write it, and some do.
        let mut odd = params("leaf", &[]);
        odd.subject_alt_names = vec![SanType::Rfc822Name("a@b.test".try_into().expect("ascii"))];
        let own = KeyPair::generate().expect("a key");
        let pem = odd.self_signed(&own).expect("a certificate").pem();
        assert_eq!(read(&pem, &own.serialize_pem()), Err(Flaw::NoNames));
    }

    #[test]
    fn a_chain_is_put_in_order() {
        let (pems, key) = chain();
        let whole = pems.concat();
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let text: String = order.iter().map(|index| format!("some words\n{}", pems[*index])).collect();
            assert_eq!(read(&text, &key).expect("read").chain, whole, "{order:?}");
        }
        // Both in one text, with what OpenSSL writes before each.
        let read_both = read(&format!("{key}subject=CN = leaf\n{whole}"), &format!("{key}{whole}")).expect("read");
        assert_eq!((read_both.chain, read_both.key.reveal().trim().to_owned()), (whole, key.replace("\r\n", "\n").trim().to_owned()));
    }

    #[test]
    fn every_kind_of_key_is_read() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let chain = params("leaf", &["a.test"]).self_signed(&key).expect("a certificate").pem();
            assert!(read(&chain, &key.serialize_pem()).is_ok(), "{algorithm:?}");
            // What PKCS#8 wraps is the older form of the key.
            let (_, wrapped) = parse_der(key.serialized_der()).expect("PKCS#8");
            let inner = wrapped.as_sequence().expect("a sequence")[2].as_slice().expect("octets");
            let label = match algorithm {
                _ if *algorithm == PKCS_RSA_SHA256 => "RSA PRIVATE KEY",
                _ if *algorithm == PKCS_ED25519 => continue,
                _ => "EC PRIVATE KEY",
            };
            let old = armored(label, inner);
            assert_eq!(read(&chain, &old).expect(label).key.reveal(), old, "{label}");
        }
    }

    #[test]
    fn what_cannot_be_served_is_said_in_a_sentence() {
        let ((chain, key), (other, other_key)) = (single(&["a.test"]), single(&["b.test"]));
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let legacy = key.replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n").replace("-----\r\n", "-----\r\nProc-Type: 4,ENCRYPTED\n");
        let broken = armored("CERTIFICATE", b"not DER");
        for (chain, key, expected) in [
            ("", key.as_str(), "there is no certificate"),
            (&key, &key, "there is no certificate"),
            (&chain, "", "there is no private key"),
            (&chain, &chain, "there is no private key"),
            (&chain, &encrypted, "decrypt it with `openssl pkey"),
            (&chain, &legacy, "decrypt it with `openssl pkey"),
            (&chain, &format!("{key}{other_key}"), "several private keys"),
            (&chain, &armored("PRIVATE KEY", b"not DER"), "of a kind that TLS does not use"),
            (&chain, &other_key, "the key does not belong to the certificate of `CN=leaf`"),
            (&broken, &key, "certificate 1 of the text cannot be read"),
            (&chain.repeat(11), &key, "there are 11 certificates"),
            (&format!("{chain}{}", other.replace("\r\n", "\n")), &key, ""),
            (&format!("{chain}{}", chain_of_a_stranger()), &key, "the certificate of `CN=stranger` is not part of the chain"),
        ] {
            let result = read(chain, key);
            match expected {
                // It has the issuer's name, so it may be its other certificate.
                "" => assert!(result.is_ok(), "{result:?}"),
                expected => assert!(result.clone().is_err_and(|flaw| flaw.to_string().contains(expected)), "{expected}: {result:?}"),
            }
        }
    }

    fn chain_of_a_stranger() -> String {
        let (signer, own) = (key(), key());
        let issuer = Issuer::new(params("elsewhere", &[]), signer);
        params("stranger", &["c.test"]).signed_by(&own, &issuer).expect("signed").pem()
    }

    #[test]
    fn a_certificate_without_end_ends_with_the_calendar() {
        let own = key();
        let mut endless = params("leaf", &["a.test"]);
        endless.not_after = rcgen::date_time_ymd(9999, 12, 31) + std::time::Duration::from_secs(86_399);
        let pem = endless.self_signed(&own).expect("a certificate").pem();
        assert_eq!(read(&pem, &own.serialize_pem()).expect("read").not_after, Timestamp::MAX);
    }

    #[test]
    fn nothing_shows_the_key() {
        let (chain, key) = single(&["a.test"]);
        let inner = key.lines().nth(1).expect("base64").trim().to_owned();
        let read_back = read(&chain, &key).expect("read");
        assert!(!format!("{read_back:?}").contains(&inner));
        let flaw = read(&chain, &key.replace(&inner, &inner.replacen('M', "N", 1))).expect_err("broken");
        assert!(!format!("{flaw} {flaw:?}").contains(&inner[8..40]), "{flaw}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(-----(BEGIN|END) (CERTIFICATE|PRIVATE KEY|EC PRIVATE KEY)-----|[A-Za-z0-9+/=]{0,60}|.{0,10}|\n){0,20}") {
            prop_assert!(read(&text, &text).is_err());
        }

        #[test]
        fn any_damage_is_refused_or_harmless(at in 0..2000usize, bit in 0..8u8) {
            use std::sync::LazyLock;
            static GOOD: LazyLock<(String, String)> = LazyLock::new(|| single(&["a.test"]));
            let (chain, key) = &*GOOD;
            let der = CertificateDer::from_pem_slice(chain.as_bytes()).expect("one");
            let mut bytes = der.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            _ = read(&armored("CERTIFICATE", &bytes), key);
            _ = read(&armored("CERTIFICATE", &bytes[..at]), key);
        }
    }
}
