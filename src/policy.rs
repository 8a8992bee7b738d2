//! Who owns a service in the Docker API proxy and the console. Parsed now, enforced when those exist.

use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Key, ServiceSpec};

const FEATURE: &str = "the Docker API proxy";

/// The keys of this feature.
pub const KEYS: &[Key] =
    &[Key::route("owner", "one directory group", "none", "The directory group that owns the service: who may see and change it.")
        .of_service()
        .guarding()
        .later(FEATURE)];

/// The directory group that owns the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner(pub Option<String>);

/// Reads owner.
pub fn parse(spec: &ServiceSpec) -> (Owner, Vec<Diagnostic>) {
    let Some(value) = spec.get("owner") else { return (Owner::default(), Vec::new()) };
    if let Some(at) = value.text.find(|c: char| c == ',' || c.is_control()) {
        let first = value.text[..at].trim();
        let finding = Diagnostic::error("bad-owner", "a service has one owner").at(value.span(at..value.text.len()));
        return (
            Owner::default(),
            vec![finding.help(format!("write one group, like `{}`", brief(if first.is_empty() { "staff" } else { first })))],
        );
    }
    let finding = Diagnostic::warning(
        "not-yet",
        format!("nobody enforces yet that `{}` owns the service: {FEATURE} comes later", brief(&value.text)),
    );
    (Owner(Some(value.text.clone())), vec![finding.at(value.place()).help("the label may stay: it will count when the feature is there")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::Value;

    #[test]
    fn owners() {
        for (text, owner, code) in
            [("staff", Some("staff"), "not-yet"), ("Human Resources", Some("Human Resources"), "not-yet"), ("a, b", None, "bad-owner")]
        {
            let mut spec = ServiceSpec::default();
            spec.values.insert("owner", Value::new("skep.owner", text).expect("not blank"));
            let (read, findings) = parse(&spec);
            assert_eq!((read.0.as_deref(), findings[0].code.as_str()), (owner, code), "{text}");
        }
        assert_eq!(parse(&ServiceSpec::default()), (Owner(None), Vec::new()));
    }
}
