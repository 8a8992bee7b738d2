//! Any header text from a trusted peer: no panic, and what goes upstream stays one valid header line.
//! `cargo +nightly fuzz run forwarded`.
#![no_main]

use http::header::{FORWARDED, HeaderMap, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use skep::proxy::forwarded::{self, Connection, X_FORWARDED_FOR, X_FORWARDED_PORT, X_FORWARDED_PROTO, X_REQUEST_ID};

fuzz_target!(|data: (&[u8], &[u8], &str)| {
    let (list, word, host) = data;
    let mut headers = HeaderMap::new();
    for (name, bytes) in [(X_FORWARDED_FOR, list), (FORWARDED, list), (X_FORWARDED_PROTO, word), (X_FORWARDED_PORT, word), (X_REQUEST_ID, word)] {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(name, value);
        }
    }
    let connection = Connection { peer: ([10, 0, 0, 1], 1).into(), local: ([10, 0, 0, 2], 80).into(), secure: false };
    let everybody: IpNet = "0.0.0.0/0".parse().expect("a network");
    let origin = forwarded::origin(&connection, &headers, &[everybody], host, "id".to_owned());
    for text in [&origin.chain, &origin.forwarded, &origin.request_id] {
        assert!(HeaderValue::from_str(text).is_ok());
    }
});
