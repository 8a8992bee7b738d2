//! What labels ask of TLS: over which of HTTP and HTTPS a route answers, and where its certificate comes from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, brief, nearest};
use crate::label::{Key, RouteSpec, Value, duration};

/// The keys of this feature.
pub const KEYS: &[Key] = &[
    Key::route(
        "tls",
        "redirect, only, both, off or passthrough",
        "redirect where a certificate can be had",
        "Over which of HTTP and HTTPS the route answers: `redirect` sends HTTP to HTTPS, `passthrough` leaves TLS to the service.",
    ),
    Key::route(
        "cert",
        "acme, file, internal or self",
        "acme when an account is configured, else self",
        "Where the certificate of the route's hosts comes from.",
    ),
    Key::route("hsts", "seconds, or a duration like `365d`", "off", "How long browsers shall use HTTPS only (Strict-Transport-Security)."),
    Key::route("client-ca", "file with CA certificates", "none", "Clients must show a certificate that one of these authorities signed.")
        .guarding(),
];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Redirect,
    Only,
    Both,
    Off,
    Passthrough,
}

const MODES: [(&str, Mode); 5] =
    [("redirect", Mode::Redirect), ("only", Mode::Only), ("both", Mode::Both), ("off", Mode::Off), ("passthrough", Mode::Passthrough)];

/// Where a certificate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Acme,
    File,
    Internal,
    #[serde(rename = "self")]
    SelfSigned,
}

impl Source {
    /// As labels have it.
    pub fn word(self) -> &'static str {
        SOURCES.iter().find(|(_, source)| *source == self).map_or("", |(word, _)| *word)
    }
}

const SOURCES: [(&str, Source); 4] =
    [("acme", Source::Acme), ("file", Source::File), ("internal", Source::Internal), ("self", Source::SelfSigned)];

/// The TLS keys of one spec, typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `None`: the label is absent.
    pub mode: Option<Mode>,
    pub source: Option<Source>,
    pub hsts: Option<Duration>,
    /// The file with the authorities; as the label has it until `state` knows where such files lie.
    pub client_ca: Option<Arc<Path>>,
    /// The route must not be served: why.
    pub closed: Option<String>,
}

/// Reads tls, cert, hsts, client-ca.
pub fn parse(spec: &RouteSpec) -> (Tls, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let mut tls = Tls::default();
    if let Some(value) = spec.get("tls") {
        mode(value, &mut tls, &mut findings);
    }
    if let Some(value) = spec.get("cert") {
        tls.source = one_of(value, &SOURCES, "bad-cert", &mut findings);
    }
    if let Some(value) = spec.get("hsts") {
        match value.text.parse().map(Duration::from_secs).or_else(|_| duration(value)) {
            Ok(age) => tls.hsts = Some(age),
            Err(finding) => findings.push(finding),
        }
    }
    if let Some(value) = spec.get("client-ca") {
        tls.client_ca = Some(Arc::from(Path::new(&value.text)));
    }
    (tls, findings)
}

fn mode(value: &Value, tls: &mut Tls, findings: &mut Vec<Diagnostic>) {
    tls.mode = one_of(value, &MODES, "bad-tls", findings);
    // A misspelling of what keeps a route off plain HTTP must not put it there.
    if tls.mode.is_none() && matches!(nearest(&value.text.to_ascii_lowercase(), MODES.map(|mode| mode.0)), Some("only" | "passthrough")) {
        tls.closed = Some(format!("`{}` could not be read", brief(&value.label)));
    }
}

fn one_of<T: Copy>(value: &Value, words: &[(&'static str, T)], code: &str, findings: &mut Vec<Diagnostic>) -> Option<T> {
    let text = value.text.to_ascii_lowercase();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Some(*meaning);
    }
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let help = match nearest(&text, names.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("write one of {}", names.join(", ")),
    };
    findings.push(Diagnostic::error(code, format!("`{}` means nothing here", brief(&value.text))).at(value.place()).help(help));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::Dialect;

    fn read(key: &'static str, text: &str) -> (Tls, Vec<String>) {
        let mut spec = RouteSpec::new("", Dialect::Native);
        spec.values.insert(key, Value::new(&format!("skep.{key}"), text).expect("not blank"));
        let (tls, findings) = parse(&spec);
        (tls, findings.into_iter().map(|finding| finding.code).collect())
    }

    #[test]
    fn what_must_not_be_served_in_clear_is_closed() {
        for (key, text, closed, codes) in [
            ("tls", "redirect", false, &[][..]),
            ("tls", "Both", false, &[]),
            ("tls", "off", false, &[]),
            ("tls", "only", false, &[]),
            ("tls", "passthrough", false, &[]),
            ("tls", "onyl", true, &["bad-tls"]),
            ("tls", "true", false, &["bad-tls"]),
            ("cert", "acme", false, &[]),
            ("cert", "letsencrypt", false, &["bad-cert"]),
            ("hsts", "31536000", false, &[]),
            ("hsts", "365d", false, &[]),
            ("hsts", "long", false, &["bad-duration"]),
            ("client-ca", "ca.pem", false, &[]),
        ] {
            let (tls, found) = read(key, text);
            assert_eq!((tls.closed.is_some(), found), (closed, codes.iter().map(|code| code.to_string()).collect()), "{key}: {text}");
        }
        assert_eq!(parse(&RouteSpec::new("", Dialect::Native)), (Tls::default(), Vec::new()));
    }

    #[test]
    fn values_are_typed() {
        assert_eq!(read("hsts", "60").0.hsts, Some(Duration::from_secs(60)));
        assert_eq!(read("cert", "self").0.source, Some(Source::SelfSigned));
        assert_eq!(read("tls", "passthrough").0.mode, Some(Mode::Passthrough));
        assert_eq!(read("client-ca", "ca.pem").0.client_ca, Some(Arc::from(Path::new("ca.pem"))));
    }
}
