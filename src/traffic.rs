//! What a route does to requests and responses on their way: path work, headers, CORS, maintenance, limits, compression, copies, error pages.
//! A key that cannot be read has no effect and is a finding; the rest of the route lives.

pub mod circuit;
pub mod encoding;
mod header;
mod limit;
mod mirror;
mod now;
mod page;
mod redirect;

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::config::Defaults;
use crate::diagnostic::{Diagnostic, brief};
use crate::label::{Key, RouteSpec, Value, network, path};

pub use limit::{By, Inflight, Limits, Rate};
pub use mirror::Mirror;
pub use now::LimitNow;
pub use page::{ErrorPage, PageSource};

/// The keys of this feature.
pub const KEYS: &[Key] = &[
    Key::route(
        "strip-prefix",
        "paths like `/api`",
        "none",
        "Removes the longest of these prefixes from the path; the service learns it from X-Forwarded-Prefix.",
    ),
    Key::route("add-prefix", "a path like `/app`", "none", "Puts this in front of the path, after strip-prefix."),
    Key::route(
        "replace-path",
        "a path like `/index.html`",
        "none",
        "Asks the service for this path, whatever the request's path; the query stays.",
    ),
    Key::route(
        "redirect-regex",
        "`REGEX REPLACEMENT [permanent]`",
        "none",
        "Redirects a URL that the regular expression matches; `$1` in the replacement is its first group, `${1}` where a letter follows.",
    ),
    Key::route("request-header", "lines `Name: value` or `-Name`", "none", "Sets or removes headers on the way to the service."),
    Key::route("response-header", "lines `Name: value` or `-Name`", "none", "Sets or removes headers on the way to the client."),
    Key::route(
        "cors",
        "origins like `https://app.example.com`, or `*`",
        "off",
        "Web pages from these origins may call the route; `*` means any, without cookies.",
    ),
    Key::route(
        "maintenance",
        "`on`, `off` or an end like `2026-12-01T06:00:00Z`; then `allow 10.0.0.0/8`, `group staff`",
        "off",
        "The route answers 503 until then; the networks behind `allow` and, where people sign in, the groups behind `group` still pass.",
    ),
    Key::route(
        "rate-limit",
        "`100/s burst 200 by ip`",
        "none",
        "How many requests a client may make (`by ip`, `by header:X-Api-Key`), or all together (`by route`); more are answered 429.",
    ),
    Key::route(
        "max-inflight",
        "`100`, `100 queue 50 wait 500ms`",
        "none",
        "More than that many at a time wait, as many again for 1 s unless it says otherwise; who finds no place is answered 503.",
    ),
    Key::route("max-body", "a size like `10MB`, or `off`", "defaults.max-body", "Longer request bodies are answered 413."),
    Key::route(
        "circuit",
        "`on`, `50% of 20 in 10s for 15s`",
        "off",
        "When so many of at least 20 answers in 10 s failed, requests are answered 503 at once for 15 s; then one is tried.",
    ),
    Key::route("compress", "on or off", "off", "Compresses answers with zstd, br or gzip, as the client accepts them."),
    Key::route(
        "error-page",
        "`5xx /errors/busy.html` or `4xx,5xx SERVICE`",
        "none",
        "What people see in place of errors: a file, or the service's `/{status}.html`; answers of APIs stay as they are.",
    ),
    Key::route(
        "mirror",
        "a service's name, perhaps a share like `10%`",
        "none",
        "That service gets a copy of each request; its answers are dropped.",
    ),
];

/// Set or remove one header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderEdit {
    Set(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// Allowed origins, explicit list; `*` alone means any origin, without credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    pub origins: Vec<String>,
}

/// The route answers 503 until `until` (for ever when `None`), but for these networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    pub until: Option<Timestamp>,
    pub allow: Vec<IpNet>,
    /// Folded names of directory groups whose members pass, where people sign in.
    pub groups: Vec<String>,
}

/// The traffic keys of one spec, typed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub strip_prefix: Vec<String>,
    pub add_prefix: Option<String>,
    pub replace_path: Option<String>,
    pub redirect: Option<Redirect>,
    pub request_headers: Vec<HeaderEdit>,
    pub response_headers: Vec<HeaderEdit>,
    pub cors: Option<Cors>,
    pub maintenance: Option<Maintenance>,
    pub limits: Limits,
}

/// `redirect-regex`: a regex on the whole URL and its replacement (`$1`).
#[derive(Clone, Debug)]
pub struct Redirect {
    pub regex: regex::Regex,
    pub replacement: String,
    pub permanent: bool,
}

/// A regex compares by its text.
impl PartialEq for Redirect {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && (&self.replacement, self.permanent) == (&other.replacement, other.permanent)
    }
}

/// Reads the traffic keys. A key that cannot be read is a finding and has no effect.
pub fn parse(spec: &RouteSpec, defaults: &Defaults) -> (Traffic, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let mut traffic = Traffic { limits: Limits::by_default(defaults), ..Traffic::default() };
    for (&key, value) in &spec.values {
        let read = match key {
            "strip-prefix" => paths(value, &mut findings).map(|paths| traffic.strip_prefix = paths),
            "add-prefix" => path(value).map(|prefix| traffic.add_prefix = Some(prefix.trim_end_matches('/').to_owned())),
            "replace-path" => path(value).map(|path| traffic.replace_path = Some(path)),
            "redirect-regex" => redirect::read(value).map(|redirect| traffic.redirect = Some(redirect)),
            "request-header" => {
                traffic.request_headers = header::read(value, &mut findings);
                Ok(())
            }
            "response-header" => {
                traffic.response_headers = header::read(value, &mut findings);
                Ok(())
            }
            "cors" => cors(value).map(|cors| traffic.cors = Some(cors)),
            "maintenance" => maintenance(value, &mut findings).map(|maintenance| traffic.maintenance = maintenance),
            "rate-limit" | "max-inflight" | "max-body" | "circuit" | "compress" | "error-page" | "mirror" => {
                limit::read(&mut traffic.limits, key, value)
            }
            _ => Ok(()),
        };
        findings.extend(read.err());
    }
    if let (Some(_), Some(lost)) = (&traffic.replace_path, spec.get("strip-prefix").or(spec.get("add-prefix"))) {
        findings.push(
            Diagnostic::warning("path-replaced", format!("`{}` has no effect beside `replace-path`", brief(&lost.label)))
                .at(lost.key_place())
                .help("keep one of the two labels"),
        );
    }
    (traffic, findings)
}

impl Traffic {
    /// The path that the upstream sees (`replace-path`, else `strip-prefix` then `add-prefix`); `None`: unchanged. Also returns the
    /// stripped prefix for `X-Forwarded-Prefix`. Works on the path as it was sent: what is percent-encoded stays so.
    pub fn rewrite(&self, path: &str) -> Option<(String, Option<String>)> {
        // `OPTIONS *` has no path to work on.
        if !path.starts_with('/') {
            return None;
        }
        if let Some(replaced) = &self.replace_path {
            return (replaced != path).then(|| (replaced.clone(), None));
        }
        let fits = |prefix: &&String| path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let stripped = self.strip_prefix.iter().filter(fits).max_by_key(|prefix| prefix.len());
        let added = self.add_prefix.as_deref().unwrap_or_default();
        if stripped.is_none() && added.is_empty() {
            return None;
        }
        let rest = &path[stripped.map_or(0, String::len)..];
        let slash = if rest.is_empty() { "/" } else { "" };
        Some((format!("{added}{slash}{rest}"), stripped.cloned()))
    }

    /// Does the route look into bodies or change answers? `streamed`: the request has a body whose length is not declared, so that
    /// `max-body` must count it on its way; a declared length is decided on with the head.
    pub fn transforms(&self, streamed: bool) -> bool {
        let limits = &self.limits;
        limits.compress || limits.mirror.is_some() || limits.error_page.is_some() || (streamed && limits.body.is_some())
    }

    /// Where `redirect-regex` sends `url`, if it matches and leads elsewhere.
    pub fn redirect(&self, url: &str) -> Option<String> {
        let redirect = self.redirect.as_ref()?;
        let target = redirect.regex.is_match(url).then(|| redirect.regex.replace(url, redirect.replacement.as_str()))?;
        (target != url).then(|| target.into_owned())
    }
}

impl Cors {
    /// May a page from `origin` (the header's value) read the answers?
    pub fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

impl Maintenance {
    /// Is this client kept out at this time?
    pub fn applies(&self, now: Timestamp, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.until.is_none_or(|until| now < until) && !self.allow.iter().any(|net| net.contains(&client))
    }
}

/// Prefixes without their last slash; one that is only a slash strips nothing.
fn paths(value: &Value, findings: &mut Vec<Diagnostic>) -> Result<Vec<String>, Diagnostic> {
    let mut read = Vec::new();
    for part in value.list() {
        match path(&part) {
            Ok(prefix) if prefix.trim_end_matches('/').is_empty() => findings.push(
                Diagnostic::warning("strips-nothing", "`/` strips nothing")
                    .at(part.place())
                    .help("write a longer prefix like `/api`, or remove it"),
            ),
            Ok(prefix) => read.push(prefix.trim_end_matches('/').to_owned()),
            Err(finding) => findings.push(finding),
        }
    }
    Ok(read)
}

fn cors(value: &Value) -> Result<Cors, Diagnostic> {
    let parts = value.list();
    let mut origins = Vec::new();
    for part in &parts {
        let bad = |message: String| Diagnostic::error("bad-cors", message).at(part.place());
        if part.text == "*" {
            if parts.len() > 1 {
                return Err(bad("`*` means any origin, so others mean nothing".to_owned()).help("write either `*` or the origins"));
            }
            return Ok(Cors { origins: vec!["*".to_owned()] });
        }
        let origin = part.text.trim_end_matches('/').to_ascii_lowercase();
        let host = origin.strip_prefix("https://").or(origin.strip_prefix("http://"));
        let good = |host: &str| !host.is_empty() && host.parse::<http::uri::Authority>().is_ok() && !host.contains('@');
        if !host.is_some_and(good) {
            let help = match part.text.contains("://") {
                true => "write scheme, host and port only, like `https://app.example.com`".to_owned(),
                false => format!("write `https://{}`", brief(&part.text)),
            };
            return Err(bad(format!("`{}` is not an origin", brief(&part.text))).help(help));
        }
        origins.push(origin);
    }
    match origins.is_empty() {
        true => Err(Diagnostic::error("bad-cors", "no origin is named").at(value.place()).help("write it like `https://app.example.com`")),
        false => Ok(Cors { origins }),
    }
}

/// `on`, `off` or an end, then `allow` and networks, `group` and groups. A network that cannot be read is not let in; the maintenance
/// holds.
fn maintenance(value: &Value, findings: &mut Vec<Diagnostic>) -> Result<Option<Maintenance>, Diagnostic> {
    let bad = |at: &Value, message: String| Diagnostic::error("bad-maintenance", message).at(at.place());
    let example = "write `on`, or its end like `2026-12-01T06:00:00Z`, then perhaps `allow 10.0.0.0/8` and `group staff`";
    let words = value.list();
    let Some((first, rest)) = words.split_first() else { return Err(bad(value, "nothing is said".to_owned()).help(example)) };
    let until = match first.text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" => None,
        "off" | "false" | "no" if rest.is_empty() => return Ok(None),
        _ => match first.text.parse::<Timestamp>() {
            Ok(until) => Some(until),
            Err(_) => return Err(bad(first, format!("`{}` is neither `on` nor a time with its zone", brief(&first.text))).help(example)),
        },
    };
    let is = |word: &Value, wanted: &str| word.text.eq_ignore_ascii_case(wanted);
    let (networks, groups) = rest.split_at(rest.iter().position(|word| is(word, "group")).unwrap_or(rest.len()));
    let groups: Vec<String> = groups.iter().skip(1).map(|group| group.text.to_lowercase()).collect();
    let networks = match networks.split_first() {
        None => &[],
        Some((allow, networks)) if is(allow, "allow") => networks,
        Some((other, _)) => {
            findings.push(bad(other, format!("`{}` means nothing here; the maintenance holds", brief(&other.text))).help(example));
            &[]
        }
    };
    let mut allow = Vec::new();
    for part in networks {
        match network(part) {
            Ok(network) => allow.push(network),
            Err(finding) => findings.push(finding),
        }
    }
    Ok(Some(Maintenance { until, allow, groups }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::label::Dialect;

    fn read(labels: &[(&'static str, &str)]) -> (Traffic, Vec<Diagnostic>) {
        let mut spec = RouteSpec::new("", Dialect::Native);
        for (key, text) in labels {
            spec.values.insert(key, Value::new(&format!("skep.{key}"), text).expect("not blank"));
        }
        parse(&spec, &Config::default().defaults)
    }

    fn good(labels: &[(&'static str, &str)]) -> Traffic {
        let (traffic, findings) = read(labels);
        assert_eq!(findings, [], "{labels:?}");
        traffic
    }

    #[test]
    fn paths_are_rewritten_on_segment_boundaries() {
        let strip = good(&[("strip-prefix", "/api, /api/v1/")]);
        let add = good(&[("add-prefix", "/app/")]);
        let both = good(&[("strip-prefix", "/api"), ("add-prefix", "/app")]);
        let replace = good(&[("replace-path", "/index.html")]);
        for (traffic, path, wanted) in [
            (&strip, "/api", Some(("/", Some("/api")))),
            (&strip, "/api/", Some(("/", Some("/api")))),
            (&strip, "/api/x", Some(("/x", Some("/api")))),
            (&strip, "/api/v1", Some(("/", Some("/api/v1")))),
            (&strip, "/api/v1/x", Some(("/x", Some("/api/v1")))),
            (&strip, "/api/v10", Some(("/v10", Some("/api")))),
            (&strip, "/apix", None),
            (&strip, "/%61pi/x", None),
            (&strip, "/api/a%2Fb", Some(("/a%2Fb", Some("/api")))),
            (&strip, "*", None),
            (&add, "/", Some(("/app/", None))),
            (&add, "/x", Some(("/app/x", None))),
            (&both, "/api/x", Some(("/app/x", Some("/api")))),
            (&both, "/y", Some(("/app/y", None))),
            (&replace, "/x", Some(("/index.html", None))),
            (&replace, "/index.html", None),
            (&Traffic::default(), "/x", None),
        ] {
            let rewritten = traffic.rewrite(path);
            let seen = rewritten.as_ref().map(|(path, prefix)| (path.as_str(), prefix.as_deref()));
            assert_eq!(seen, wanted, "{path}");
        }
    }

    #[test]
    fn urls_are_redirected_by_regex() {
        for (value, url, wanted) in [
            ("^https?://old.de/(.*) https://new.de/$1", "http://old.de/a?b=c", Some("https://new.de/a?b=c")),
            ("^https?://old.de/(.*) https://new.de/$1", "http://other.de/a", None),
            ("(?<rest>/x.*) ${rest}y permanent", "/x", Some("/xy")),
            (".* https://new.de/", "https://new.de/", None),
            ("^http://a.de/(\\d{1,3})$ https://a.de/n/$1", "http://a.de/12", Some("https://a.de/n/12")),
        ] {
            assert_eq!(good(&[("redirect-regex", value)]).redirect(url).as_deref(), wanted, "{value} {url}");
        }
        let permanent = |value| good(&[("redirect-regex", value)]).redirect.map(|redirect| redirect.permanent);
        assert_eq!((permanent("a /b permanent"), permanent("a /b temporary"), permanent("a /b")), (Some(true), Some(false), Some(false)));
    }

    #[test]
    fn headers_are_set_and_removed() {
        let edits = good(&[("request-header", "X-A: 1, 2\n-X-B\n  x-c : a: b ")]).request_headers;
        let name = |name: &str| name.parse::<HeaderName>().expect("a name");
        let value = HeaderValue::from_static;
        assert_eq!(
            edits,
            [HeaderEdit::Set(name("x-a"), value("1, 2")), HeaderEdit::Remove(name("x-b")), HeaderEdit::Set(name("x-c"), value("a: b"))]
        );
        let (traffic, findings) = read(&[("response-header", "Connection: close\nX-A: 1")]);
        assert_eq!((traffic.response_headers.len(), findings.len()), (1, 1));
    }

    #[test]
    fn origins() {
        let cors = good(&[("cors", "https://App.example.com http://localhost:3000/")]).cors.expect("cors");
        for (origin, allowed) in [
            ("https://app.example.com", true),
            ("http://app.example.com", false),
            ("http://localhost:3000", true),
            ("https://app.example.com.evil.de", false),
            ("null", false),
        ] {
            assert_eq!(cors.allows(origin), allowed, "{origin}");
        }
        assert!(good(&[("cors", "*")]).cors.is_some_and(|cors| cors.allows("https://any.de")));
    }

    #[test]
    fn maintenance_ends_and_lets_networks_pass() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (before, after) = (at("2026-12-01T05:59:59Z"), at("2026-12-01T06:00:00Z"));
        let (inside, outside) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        for (value, now, client, kept_out) in [
            ("on", after, outside, true),
            ("on allow 10.0.0.0/8", after, outside, true),
            ("on allow 10.0.0.0/8", after, inside, false),
            ("2026-12-01T06:00:00Z", before, outside, true),
            ("2026-12-01T06:00:00Z", after, outside, false),
            ("2026-12-01T07:00:00+01:00 allow 192.0.2.1, 10.0.0.1", before, outside, false),
        ] {
            let maintenance = good(&[("maintenance", value)]).maintenance.expect("maintenance");
            assert_eq!(maintenance.applies(now, client), kept_out, "{value}");
        }
        assert_eq!(good(&[("maintenance", "off")]).maintenance, None);
        let (traffic, findings) = read(&[("maintenance", "on allow office")]);
        assert!(traffic.maintenance.is_some_and(|held| held.applies(before, inside)) && findings.len() == 1);
    }

    #[test]
    fn what_looks_into_bodies_or_changes_answers() {
        // label, with a declared length, with a streamed body
        for (label, declared, streamed) in [
            (("compress", "on"), true, true),
            (("mirror", "next"), true, true),
            (("error-page", "5xx errors"), true, true),
            (("max-body", "1MB"), false, true),
            (("rate-limit", "1/s"), false, false),
            (("max-inflight", "1"), false, false),
            (("circuit", "on"), false, false),
        ] {
            let (traffic, _) = read(&[label]);
            assert_eq!((traffic.transforms(false), traffic.transforms(true)), (declared, streamed), "{label:?}");
        }
    }

    #[test]
    fn mistakes_are_named_and_have_no_effect() {
        for (key, text, code, help) in [
            ("strip-prefix", "api", "bad-path", "write `/api`"),
            ("strip-prefix", "/", "strips-nothing", "write a longer prefix like `/api`, or remove it"),
            ("add-prefix", "/a?b", "bad-path", "write `/a`"),
            ("add-prefix", "/ü", "bad-path", "write `%C3%BC`, as requests carry it"),
            ("replace-path", "https://a.de/x", "bad-path", "write the path only, like `/api`"),
            ("redirect-regex", "/old", "bad-redirect", "write it like"),
            ("redirect-regex", "/old( /new", "bad-redirect", "write it like"),
            ("redirect-regex", "/old /new 301", "bad-redirect", "write it like"),
            ("redirect-regex", "/old new", "bad-redirect", "write it like"),
            ("redirect-regex", "/(old) /$2", "bad-redirect", "number the groups from 1"),
            ("redirect-regex", "/(old) /$1x", "bad-redirect", "number the groups from 1"),
            ("redirect-regex", "(a{999}){999} /x", "bad-redirect", "write it like"),
            ("request-header", "X-A", "bad-header", "write `X-A: value` to set it or `-X-A` to remove it"),
            ("request-header", "X A: 1", "bad-header", "write `Name: value` or `-Name`, one a line"),
            ("request-header", "X-A:", "bad-header", "write `-X-A` to remove it"),
            ("request-header", "X-A: a\u{7}", "bad-header", "remove it"),
            ("response-header", "-Transfer-Encoding", "bad-header", "remove the line"),
            ("cors", "app.example.com", "bad-cors", "write `https://app.example.com`"),
            ("cors", "https://a.de/x", "bad-cors", "write scheme, host and port only, like `https://app.example.com`"),
            ("cors", "*, https://a.de", "bad-cors", "write either `*` or the origins"),
            ("cors", ",", "bad-cors", "write it like `https://app.example.com`"),
            ("maintenance", "tomorrow", "bad-maintenance", "write `on`, or its end like"),
            ("maintenance", "2026-12-01", "bad-maintenance", "write `on`, or its end like"),
            ("maintenance", "on 10.0.0.0/8", "bad-maintenance", "write `on`, or its end like"),
            ("rate-limit", "many", "bad-rate-limit", "write it like"),
        ] {
            let (_, findings) = read(&[(key, text)]);
            let found: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
            assert_eq!(found, [code], "{key}: {text}");
            assert!(findings[0].help.as_deref().unwrap_or_default().starts_with(help), "{key}: {text}: {:?}", findings[0].help);
        }
        let (traffic, findings) = read(&[("replace-path", "/x"), ("strip-prefix", "/a")]);
        assert_eq!((traffic.rewrite("/a/b"), findings[0].code.as_str()), (Some(("/x".to_owned(), None)), "path-replaced"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_rewritten_paths_begin_with_a_slash(text in "[a-z/ $(){}*:,.^0-9-]{0,30}|\\PC{0,20}", path in "/[a-z/%]{0,20}|\\PC{0,10}") {
            for key in KEYS.iter().map(|key| key.name) {
                let Some(value) = Value::new("skep.x", &text) else { continue };
                let mut spec = RouteSpec::new("", Dialect::Native);
                spec.values.insert(key, value);
                let (traffic, findings) = parse(&spec, &Config::default().defaults);
                proptest::prop_assert!(findings.iter().all(|finding| finding.help.is_some() && finding.place.is_some()));
                if let Some((rewritten, _)) = traffic.rewrite(&path) {
                    proptest::prop_assert!(rewritten.starts_with('/'));
                }
                traffic.redirect(&path);
            }
        }
    }
}
