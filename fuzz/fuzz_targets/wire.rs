//! Any bytes as a request, an answer and a chunked body of the lean path: no panic; a plain head stays one head when it is written
//! again, and the end of chunks is the same however they arrive.
//! `cargo +nightly fuzz run wire`.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use skep::proxy::chunks::Chunks;
use skep::proxy::wire::{self, Arrived};

fuzz_target!(|data: (&[u8], usize)| {
    let (bytes, cut) = data;
    if let Arrived::Plain(first) = wire::request(&mut BytesMut::from(bytes)) {
        let mut out = format!("{} ", first.method).into_bytes();
        out.extend_from_slice(&first.target);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        first.fields.write(&mut out, |_| true);
        out.extend_from_slice(b"\r\n");
        let mut again = BytesMut::from(&out[..]);
        let Arrived::Plain(second) = wire::request(&mut again) else { panic!("a plain head is plain again") };
        assert!(again.is_empty());
        assert_eq!((first.body, &first.target), (second.body, &second.target));
    }
    if let Ok(Some(head)) = wire::response(&mut BytesMut::from(bytes)) {
        _ = head.framing(&http::Method::GET);
    }
    let whole = Chunks::default().advance(bytes);
    let (mut chunks, mut taken) = (Chunks::default(), Ok(0));
    for piece in bytes.chunks(cut % 17 + 1) {
        taken = taken.and_then(|count| chunks.advance(piece).map(|more| count + more));
    }
    assert_eq!(whole, taken);
});
