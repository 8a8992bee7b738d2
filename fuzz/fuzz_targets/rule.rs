//! Any text as a rule: it is read, or a finding points into it. `cargo +nightly fuzz run rule`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep::diagnostic::{Place, render};
use skep::label::Value;
use skep::route::rule;

fuzz_target!(|text: &str| {
    let Some(value) = Value::new("skep.rule", text) else { return };
    let (_, findings) = rule::parse(&value);
    for finding in &findings {
        let Some(Place::Label { value, span, .. }) = &finding.place else { panic!("no place: {finding:?}") };
        assert!(value.get(span.clone()).is_some(), "{finding:?}");
    }
    render(&findings, true);
});
