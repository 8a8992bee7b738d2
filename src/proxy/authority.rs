//! Whom a task behind TLS must be vouched for by: files of authorities are read for the state, and a connection to a task is told
//! what the state says. Nothing is believed because a file could not be read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use pingora_error::{Error, ErrorType, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::state::{Certificates, State};
use crate::upstream::{Backend, Trust};

/// A larger file is none of authorities: the machine's own are a quarter of that.
const LARGEST: u64 = 1024 * 1024;
/// How often files are looked at whether they changed.
const LOOK: Duration = Duration::from_secs(5);

/// Reads the authorities in `path`, which must really be below `within`.
///
/// # Errors
/// In words, for a finding: there is no such file, it leads elsewhere, or holds no certificate of an authority.
pub fn read(path: &Path, within: Option<&Path>) -> Certificates {
    let real = std::fs::canonicalize(path).map_err(|error| error.to_string())?;
    if let Some(directory) = within {
        let directory = std::fs::canonicalize(directory).map_err(|error| error.to_string())?;
        if !real.starts_with(directory) {
            return Err("it leads out of `certificates.authorities`".to_owned());
        }
    }
    // A pipe or a device would be waited for.
    let about = std::fs::metadata(&real).map_err(|error| error.to_string())?;
    if !about.is_file() || about.len() > LARGEST {
        return Err(format!("it is not a file of at most {LARGEST} bytes"));
    }
    let mut text = Vec::new();
    let file = std::fs::File::open(&real).map_err(|error| error.to_string())?;
    file.take(LARGEST).read_to_end(&mut text).map_err(|error| error.to_string())?;
    parse(&text)
}

/// All certificates of a PEM text. One that cannot be used makes the whole text unusable: it was put there to be trusted.
fn parse(text: &[u8]) -> Certificates {
    let found: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| format!("it is not PEM: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in &found {
        let whole = X509Certificate::from_der(certificate).is_ok_and(|(rest, _)| rest.is_empty());
        // pingora's own reader panics on what it cannot read: better once here than at each request.
        let readable = || std::panic::catch_unwind(|| drop(wrapped(certificate))).is_ok();
        let usable = whole && roots.add(certificate.clone()).is_ok() && readable();
        usable.then_some(()).ok_or("a certificate in it cannot be used")?;
    }
    match found.is_empty() {
        true => Err("there is no certificate in it".to_owned()),
        false => Ok(found.iter().map(|certificate| certificate.to_vec()).collect()),
    }
}

/// Lets `peer` be believed as the backend's labels say.
///
/// # Errors
/// The authorities could not be read: then the task is not asked.
pub(super) fn vouch(peer: &mut HttpPeer, backend: &Backend, state: &State) -> Result<()> {
    if !backend.scheme.is_secure() {
        return Ok(());
    }
    match &backend.trust {
        Trust::Machine => {}
        Trust::Unverified => (peer.options.verify_cert, peer.options.verify_hostname) = (false, false),
        Trust::Authority(path) => {
            let certificates = match state.authority(path) {
                Ok(certificates) => certificates,
                Err(why) => return Error::e_explain(ErrorType::InvalidCert, format!("upstream-ca {}: {why}", path.display())),
            };
            // Kept connections are found by all that makes a peer, which its authorities are no part of.
            let mut hasher = DefaultHasher::new();
            certificates.hash(&mut hasher);
            peer.group_key = hasher.finish();
            peer.options.ca = Some(certificates.iter().map(|der| wrapped(der)).collect());
        }
    }
    Ok(())
}

fn wrapped(der: &[u8]) -> WrappedX509 {
    WrappedX509::new(der.to_vec(), parse_x509)
}

/// What files looked like when they were read.
#[derive(Debug, Default)]
pub struct Stamps(BTreeMap<Arc<Path>, Option<(SystemTime, u64)>>);

impl Stamps {
    /// From now on these are looked at.
    pub fn keep<'a>(&mut self, paths: impl Iterator<Item = &'a Arc<Path>>) {
        self.0 = paths.map(|path| (Arc::clone(path), stamp(path))).collect();
    }

    /// Waits until one of them is another one, is gone, or is there again.
    pub async fn changed(&self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        while self.0.iter().all(|(path, before)| stamp(path) == *before) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    fn authority() -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn only_certificates_are_authorities() {
        let pem = authority();
        assert_eq!(parse(pem.as_bytes()).unwrap().len(), 1);
        assert_eq!(parse(format!("a comment\n{pem}{pem}").as_bytes()).unwrap().len(), 2);
        let broken = pem.replacen(['B', 'C'], "A", 40);
        for text in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &broken] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("inside"), directory.path().join("ca.pem"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(&outside, authority()).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("ca.pem")).unwrap();
        assert!(read(&inside.join("ca.pem"), None).is_ok());
        assert!(read(&inside.join("ca.pem"), Some(&inside)).unwrap_err().contains("leads out"));
        assert!(read(&inside.join("missing.pem"), Some(&inside)).is_err());
        assert!(read(&inside, Some(directory.path())).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes));
            prop_assert!(parse(pem.as_bytes()).is_err());
        }
    }
}
