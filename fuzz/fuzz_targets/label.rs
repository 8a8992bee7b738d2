//! Any labels, one `key=value` a line, through all of the build: nothing panics, and every finding points into a label.
//! `cargo +nightly fuzz run label`.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use skep::config::Config;
use skep::diagnostic::{Place, render};
use skep::snapshot::{Origin, Service, Snapshot};
use skep::state::State;

fuzz_target!(|text: &str| {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let labels = pairs.map(|(label, value)| (label.to_owned(), value.replace("\\n", "\n"))).collect();
    let service = Service { name: "shop".to_owned(), origin: Origin::File, labels, ..Service::default() };
    let state = State::build(Arc::new(Config::default()), Arc::new(Snapshot { services: vec![service], ..Snapshot::default() }));
    for finding in &state.diagnostics {
        if let Some(Place::Label { key, value, span, in_key }) = &finding.place {
            assert!((if *in_key { key } else { value }).get(span.clone()).is_some(), "{finding:?}");
        }
    }
    render(&state.diagnostics, true);
});
