//! Which volumes are backed up. The label is parsed now; runs come with the backup feature, until then a finding says so.

use crate::diagnostic::Diagnostic;
use crate::label::{Key, ServiceSpec, boolean, not_yet};

const FEATURE: &str = "backups";

/// The keys of this feature.
pub const KEYS: &[Key] =
    &[Key::route("backup", "true or false", "false", "`true` saves the volumes of the service.").of_service().later(FEATURE)];

/// Reads backup: whether the service's volumes are to be saved.
pub fn parse(spec: &ServiceSpec) -> (bool, Vec<Diagnostic>) {
    let Some(value) = spec.get("backup") else { return (false, Vec::new()) };
    match boolean(value) {
        Ok(true) => (true, vec![not_yet(value, FEATURE)]),
        Ok(false) => (false, Vec::new()),
        Err(finding) => (false, vec![finding]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::Value;

    #[test]
    fn backups() {
        for (text, wanted, codes) in [("true", true, &["not-yet"][..]), ("false", false, &[]), ("daily", false, &["bad-boolean"])] {
            let mut spec = ServiceSpec::default();
            spec.values.insert("backup", Value::new("backup.enable", text).expect("not blank"));
            let (read, findings) = parse(&spec);
            assert_eq!(
                (read, findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>()),
                (wanted, codes.to_vec()),
                "{text}"
            );
        }
    }
}
