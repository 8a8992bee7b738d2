//! What strangers and files say about users: a file of users, a form, a target to go back to, a cookie line. Nothing panics, and
//! nobody is led elsewhere. `cargo +nightly fuzz run signing`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep::auth::cookie::{has_ours, without_ours};
use skep::auth::form::Fields;
use skep::auth::target::target;
use skep::auth::users;
use skep::diagnostic::render;

fuzz_target!(|data: &[u8]| {
    _ = Fields::parse(data);
    if let Some(left) = without_ours(data) {
        assert!(!has_ours(&left), "{left:?}");
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let to = target(text);
    assert!(to.starts_with('/') && !to.starts_with("//") && !to.contains('\\'), "{to}");
    let (_, findings) = users::parse("users", text);
    render(&findings, true);
});
