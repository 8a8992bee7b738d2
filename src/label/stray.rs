//! Labels that are nearly ours: a misspelt prefix or key, another tool's dialect, quotes that were left in.
//! Whatever merely belongs to somebody else stays silent; whatever might have been meant to protect is never taken lightly.

use super::{Key, ServiceSpec, Value, backup, haproxy, native};
use crate::diagnostic::{Diagnostic, Place, Severity, brief, nearest};
use crate::snapshot::Labels;

/// Words that other tools, or common sense, use for our keys.
const SYNONYMS: &[(&str, &str)] = &[
    ("domain", "host"),
    ("domains", "host"),
    ("hostname", "host"),
    ("hostnames", "host"),
    ("vhost", "host"),
    ("virtual_host", "host"),
    ("virtual-host", "host"),
    ("container-port", "port"),
    ("protocol", "scheme"),
    ("upstream", "address"),
    ("loadbalancer", "balance"),
    ("group", "auth"),
    ("groups", "auth"),
    ("ldap", "auth"),
    ("login", "auth"),
    ("sso", "auth"),
    ("users", "basic-auth"),
    ("password", "basic-auth"),
    ("htpasswd", "basic-auth"),
    ("whitelist", "allow"),
    ("ipwhitelist", "allow"),
    ("ip-whitelist", "allow"),
    ("cidr", "allow"),
    ("source-range", "allow"),
    ("mtls", "client-ca"),
    ("disabled", "enable"),
    ("headers", "request-header"),
    ("gzip", "compress"),
    ("timeout", "timeout-response"),
];

/// The key that `word` was probably meant to be: a near spelling, a synonym, or a longer word around it (`auth-groups`).
/// Of equally near keys the protecting one is taken.
pub(super) fn nearest_key<'a>(word: &str, keys: &'a [Key]) -> Option<&'a Key> {
    let find = |name: &str| keys.iter().find(|key| key.name == name);
    let dashed = word.replace('_', "-");
    let mut ordered: Vec<&Key> = keys.iter().collect();
    ordered.sort_by_key(|key| !key.guard);
    find(&dashed)
        .or_else(|| SYNONYMS.iter().find(|(synonym, _)| *synonym == word).and_then(|(_, name)| find(name)))
        .or_else(|| nearest(&dashed, ordered.iter().map(|key| key.name)).and_then(find))
        .or_else(|| ordered.iter().filter(|key| dashed.starts_with(key.name)).max_by_key(|key| key.name.len()).copied())
        .or_else(|| ordered.iter().filter(|key| key.guard && dashed.contains(key.name)).max_by_key(|key| key.name.len()).copied())
}

/// Does any part of a label that could not be read look like a protecting key?
pub(super) fn guards(rest: &str, keys: &[Key]) -> bool {
    const MOST_PARTS: usize = 16;
    rest.split(['.', '_', '-', ':', '/']).take(MOST_PARTS).any(|part| nearest_key(part, keys).is_some_and(|key| key.guard))
        || nearest_key(rest.rsplit('.').next().unwrap_or(rest), keys).is_some_and(|key| key.guard)
}

/// The value without a pair of quotes around it, which list-style labels (`- skep.host="a"`) leave in.
pub(super) fn unquoted(value: Value, findings: &mut Vec<Diagnostic>) -> Value {
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.text.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.trim().is_empty() && !inner.contains(quote)).then_some(inner)
    });
    let Some(inner) = inner else { return value };
    let start = 1 + inner.len() - inner.trim_start().len();
    let part = value.part(start..start + inner.trim().len());
    let message = "the quotes are part of the value; they are left out";
    findings.push(Diagnostic::warning("quoted-value", message).at(value.place()).help(format!(
        "write `{}: {}` or, as a list, `- {}={}`",
        value.label,
        brief(&part.text),
        value.label,
        brief(&part.text)
    )));
    part
}

/// Looks at the labels that no dialect has read.
pub(super) fn parse(labels: &Labels, keys: &[Key], spec: &mut ServiceSpec, findings: &mut Vec<Diagnostic>) {
    let mut traefik = false;
    for (label, value) in labels {
        let lower = label.to_ascii_lowercase();
        if lower.starts_with(native::PREFIX) || haproxy::is_ours(&lower) {
            continue;
        }
        let place = |end| Place::Label { key: label.clone(), value: value.clone(), span: 0..end, in_key: true };
        if lower.starts_with("traefik.") {
            if !std::mem::replace(&mut traefik, true) {
                findings.push(
                    Diagnostic::info("traefik-dialect", "Skep does not read Traefik's labels yet")
                        .at(place("traefik".len()))
                        .help("describe the route with `skep.host` and `skep.port`; both sets of labels can stand side by side"),
                );
            }
            continue;
        }
        let Some(meant) = misspelt(&lower, keys) else { continue };
        let severity = if meant.guard { Severity::Error } else { Severity::Warning };
        findings.push(
            Diagnostic::new(severity, "misspelt-prefix", format!("`{}` is read by nobody, but is nearly a label of Skep", brief(label)))
                .at(place(label.len()))
                .help(format!("did you mean `{}`?", brief(&meant.label))),
        );
        if meant.guard {
            spec.close(format!("`{}` is misspelt, and was probably meant to protect", brief(label)));
        }
    }
}

/// What a label was probably meant to be.
struct Meant {
    label: String,
    guard: bool,
}

/// Recognises a label whose first part is nearly a prefix of ours, and of which the rest makes sense there.
fn misspelt(lower: &str, keys: &[Key]) -> Option<Meant> {
    if let Some(label) = nearest(lower, [haproxy::AUTH, backup::ENABLE]) {
        return Some(Meant { label: label.to_owned(), guard: label == haproxy::AUTH });
    }
    let end = lower.find(['.', '_', '-', ':', '/'])?;
    let (head, rest) = (&lower[..end], &lower[end + 1..]);
    let last = rest.rsplit(['.', ':', '/']).next().unwrap_or(rest);
    if nearest(head, ["skep"]).is_some() {
        let key = keys.iter().find(|key| key.name == last).or_else(|| nearest_key(last, keys))?;
        let route = rest.strip_suffix(last).unwrap_or_default().replace([':', '/'], ".");
        return Some(Meant { label: format!("{}{route}{}", native::PREFIX, key.name), guard: key.guard });
    }
    if nearest(head, ["backup"]).is_some()
        && let Some(label) = backup::nearest_label(rest)
    {
        return Some(Meant { label, guard: false });
    }
    let label = nearest(head, ["haproxy"]).and_then(|_| haproxy::nearest_label(rest))?;
    Some(Meant { label: label.to_owned(), guard: false })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{codes, read};
    use crate::diagnostic::Severity;

    #[test]
    fn nearly_our_labels_are_named() {
        for (label, help, closes) in [
            ("skpe.port", "did you mean `skep.port`?", false),
            ("skepp.api.port", "did you mean `skep.api.port`?", false),
            ("skep_port", "did you mean `skep.port`?", false),
            ("skep-timeout-response", "did you mean `skep.timeout-response`?", false),
            ("skep/host", "did you mean `skep.host`?", false),
            ("skp.host", "did you mean `skep.host`?", false),
            ("skpe.auth", "did you mean `skep.auth`?", true),
            ("skpe.atuh", "did you mean `skep.auth`?", true),
            ("skep:api:allow", "did you mean `skep.api.allow`?", true),
            ("haproxi.virtual_host", "did you mean `haproxy.virtual_host`?", false),
            ("haproxy_virtual_host_port", "did you mean `haproxy.virtual_host_port`?", false),
            ("com.sismic.docker.auth", "did you mean `com.sismics.docker.auth`?", true),
            ("com.sismics.docker_auth", "did you mean `com.sismics.docker.auth`?", true),
            ("bakup.enable", "did you mean `backup.enable`?", false),
            ("bakup.schedule", "did you mean `backup.schedule`?", false),
        ] {
            let (spec, findings) = read(&[("skep.host", "a.de"), (label, "10.0.0.0/8")]);
            let found: Vec<_> = findings.iter().map(|finding| (finding.code.as_str(), finding.help.as_deref())).collect();
            assert_eq!((found, spec.routes[0].closed.is_some()), (vec![("misspelt-prefix", Some(help))], closes), "{label}");
        }
    }

    #[test]
    fn what_belongs_to_others_stays_silent() {
        for label in [
            "com.docker.stack.namespace",
            "com.docker.compose.project",
            "org.opencontainers.image.title",
            "maintainer",
            "skip.build",
            "step.name",
            "keep.forever",
            "prometheus.port",
            "docker-volume-backup.stop-during-backup",
            "",
            ".",
            "skep",
        ] {
            assert_eq!(codes(&read(&[("skep.host", "a.de"), (label, "x")]).1), Vec::<&str>::new(), "{label}");
        }
    }

    #[test]
    fn another_dialect_is_mentioned_once() {
        let (_, findings) = read(&[("traefik.enable", "true"), ("traefik.http.routers.a.rule", "Host(`a.de`)")]);
        assert_eq!(codes(&findings), ["traefik-dialect"]);
        assert_eq!(findings[0].severity, Severity::Info);
    }
}
