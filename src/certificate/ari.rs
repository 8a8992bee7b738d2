//! What an authority says about when: `Retry-After`, and the window in which it wants a certificate renewed (RFC 9773).

use std::time::Duration;

use http::{HeaderMap, header};
use instant_acme::CertificateIdentifier;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::record::Window;

/// Bounds of the time after which a window is asked for again (RFC 9773, 4.3.3 wants such).
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(24 * 3600);
/// Where the authority does not say.
const UNTOLD: Duration = Duration::from_secs(6 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Suggested,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    /// Every directory has it, so that something else is known.
    #[serde(rename = "newOrder")]
    _new_order: String,
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
struct Suggested {
    start: Timestamp,
    end: Timestamp,
}

/// Where the authority that has this directory answers about renewals; `None` where it does not.
///
/// # Errors
/// It is no directory.
pub fn url(directory: &[u8]) -> Result<Option<String>, String> {
    let directory: Directory = serde_json::from_slice(directory).map_err(|error| format!("this is no ACME directory: {error}"))?;
    Ok(directory.renewal_info)
}

/// The window in `body`; `retry_after` is when the authority wants to be asked again.
///
/// # Errors
/// It is no renewal information, or its window ends before it starts.
pub fn window(body: &[u8], retry_after: Option<Timestamp>, now: Timestamp) -> Result<Window, String> {
    let info: RenewalInfo = serde_json::from_slice(body).map_err(|error| format!("this is no renewal information: {error}"))?;
    let Suggested { start, end } = info.suggested_window;
    if end < start {
        return Err(format!("the window ends at {end}, before it starts at {start}"));
    }
    let ask_again = retry_after.unwrap_or(now + UNTOLD).clamp(now + SOONEST, now + LATEST);
    Ok(Window { start, end, ask_again })
}

/// How an authority names the first certificate of `chain` (PEM) in renewals (RFC 9773, 4.1): `AKI.serial`, each base64url.
///
/// # Errors
/// It cannot be read, or names no authority key.
pub fn identifier(chain: &str) -> Result<CertificateIdentifier<'static>, String> {
    let der = CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|error| format!("there is no certificate in the chain: {error}"))?;
    CertificateIdentifier::try_from(&der).map(CertificateIdentifier::into_owned)
}

/// The time of a `Retry-After` (RFC 9110, 10.2.3): seconds, or a date. A date of the past is now.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Timestamp> {
    const FURTHEST: u64 = 366 * 24 * 3600;
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = text.parse().unwrap_or(FURTHEST).min(FURTHEST);
        return now.checked_add(Duration::from_secs(seconds)).ok();
    }
    // HTTP dates are RFC 2822 dates, but for the name of their zone, which is always GMT.
    let date = rfc2822::parse(&text.replace("GMT", "+0000")).ok()?.timestamp();
    Some(date.clamp(now, now.checked_add(Duration::from_secs(FURTHEST)).ok()?))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn said(text: &str) -> Option<Timestamp> {
        let value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
        retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value)]), at("2026-01-01T00:00:00Z"))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, expected) in [
            ("120", Some("2026-01-01T00:02:00Z")),
            (" 0 ", Some("2026-01-01T00:00:00Z")),
            ("Thu, 01 Jan 2026 06:00:00 GMT", Some("2026-01-01T06:00:00Z")),
            ("Wed, 31 Dec 2025 06:00:00 GMT", Some("2026-01-01T00:00:00Z")),
            ("99999999999999999999", Some("2027-01-02T00:00:00Z")),
            ("soon", None),
            ("", None),
            ("-5", None),
        ] {
            assert_eq!(said(text), expected.map(at), "{text}");
        }
    }

    /// The example of RFC 9773, 4.2.
    #[test]
    fn a_window_is_read_and_asked_for_again_within_bounds() {
        let now = at("2025-01-01T00:00:00Z");
        let body = br#"{"suggestedWindow": {"start": "2025-01-02T04:00:00Z", "end": "2025-01-03T04:00:00Z"},
            "explanationURL": "https://acme.example.com/docs/ari"}"#;
        for (retry_after, expected) in [
            (Some("2025-01-01T06:00:00Z"), "2025-01-01T06:00:00Z"),
            (Some("2025-01-01T00:00:01Z"), "2025-01-01T00:01:00Z"),
            (Some("2026-01-01T00:00:00Z"), "2025-01-02T00:00:00Z"),
            (None, "2025-01-01T06:00:00Z"),
        ] {
            let read = window(body, retry_after.map(at), now).expect("a window");
            let expected = Window { start: at("2025-01-02T04:00:00Z"), end: at("2025-01-03T04:00:00Z"), ask_again: at(expected) };
            assert_eq!(read, expected, "{retry_after:?}");
        }
        for body in ["", "{}", "[]", r#"{"suggestedWindow": {"start": "2025-01-03T04:00:00Z", "end": "2025-01-02T04:00:00Z"}}"#] {
            assert!(window(body.as_bytes(), None, now).is_err(), "{body}");
        }
    }

    #[test]
    fn a_directory_says_whether_there_are_windows() {
        assert_eq!(url(br#"{"newOrder": "o", "renewalInfo": "https://ca/ari"}"#), Ok(Some("https://ca/ari".to_owned())));
        assert_eq!(url(br#"{"newOrder": "o"}"#), Ok(None));
        assert!(url(b"{}").is_err() && url(b"<html>").is_err());
    }

    #[test]
    fn a_certificate_is_named_by_its_authoritys_key_and_its_serial() {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyIdMethod, KeyPair, SerialNumber};
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_identifier_method = KeyIdMethod::PreSpecified(vec![0x69, 0x88, 0x5b]);
        let authority = Issuer::new(authority, KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::new(["a.test".to_owned()]).expect("names");
        // The serial of the RFC's example has its sign bit set, so that its encoding begins with a zero.
        params.serial_number = Some(SerialNumber::from_slice(&[0x87, 0x65, 0x43, 0x21]));
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &authority).expect("a certificate").pem();
        assert_eq!(identifier(&chain).expect("its name").to_string(), "aYhb.AIdlQyE");
        let alone = CertificateParams::new(["a.test".to_owned()]).expect("names").self_signed(&key).expect("a certificate").pem();
        for text in [alone.as_str(), "", "text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(identifier(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_header_and_any_body_is_survived(text in "\\PC{0,60}", body in "\\PC{0,100}") {
            if let Some(until) = said(&text) {
                prop_assert!(until >= at("2026-01-01T00:00:00Z"));
            }
            let _ = window(body.as_bytes(), None, at("2026-01-01T00:00:00Z"));
        }
    }
}
