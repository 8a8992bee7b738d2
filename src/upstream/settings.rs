//! The upstream keys of one route spec, from text to types.
//! A key that cannot be read is a finding and has its default; the route lives on.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::{Balance, Check, KEYS, ProxyVersion, RetryOn, Scheme, Settings, Timeouts, Trust};
use crate::config::Defaults;
use crate::diagnostic::{Diagnostic, Place, brief, nearest};
use crate::label::{self, Effect, RouteSpec, Value};

/// The largest share; enough for per-mille and finer, and no sum of shares overflows.
const GREATEST_WEIGHT: u32 = 1_000_000;
/// More attempts would turn one slow request into a storm on the service's tasks.
const MOST_RETRIES: u32 = 10;
const MOST_ANSWERS: u32 = 100;

const SCHEMES: &[(&str, Scheme)] =
    &[("http", Scheme::Http), ("h2c", Scheme::H2c), ("https", Scheme::Https), ("grpc", Scheme::Grpc), ("grpcs", Scheme::Grpcs)];

/// The upstream keys of one spec; `defaults` are what routes get whose labels do not say.
/// Findings name what could not be read; that key then has its default.
pub fn parse(spec: &RouteSpec, defaults: &Defaults) -> (Settings, Vec<Diagnostic>) {
    let mut read = Reader { spec, findings: Vec::new() };
    let timeouts = Timeouts {
        connect: read.key("timeout-connect", label::duration).unwrap_or(defaults.timeout_connect),
        response: read.key("timeout-response", label::duration).unwrap_or(defaults.timeout_response),
        idle: read.key("timeout-idle", label::duration).unwrap_or(defaults.timeout_idle),
        request: read.key("timeout-request", label::duration).or(defaults.timeout_request),
    };
    let settings = Settings {
        port: read.key("port", port),
        scheme: read.key("scheme", scheme).unwrap_or_default(),
        trust: trust(&mut read),
        ca: spec.get("upstream-ca").map(|value| value.text.clone()),
        sni: read.key("upstream-sni", sni),
        address: read.list("address", address),
        proxy_protocol: read.key("proxy-protocol", proxy_version),
        network: spec.get("network").map(|value| value.text.clone()),
        balance: read.key("balance", balance).unwrap_or_default(),
        sticky: read.key("sticky", cookie),
        retries: read.key("retries", |value| number(value, 0..=MOST_RETRIES)).unwrap_or(defaults.retries),
        timeouts,
        weight: read.key("weight", |value| number(value, 0..=GREATEST_WEIGHT)),
        check: check(&mut read),
        retry_on: read.list("retry-on", retry_on),
    };
    read.not_yet();
    read.findings.extend(late_answers(spec, &settings));
    read.findings.extend(without_tls(spec, &settings));
    (settings, read.findings)
}

/// A stream of HTTP/2 cannot be cut without the others of its connection: there one limit bounds every wait, the longest of the two.
fn late_answers(spec: &RouteSpec, settings: &Settings) -> Option<Diagnostic> {
    let shared = matches!(settings.scheme, Scheme::H2c | Scheme::Grpc | Scheme::Grpcs);
    let value = spec.get("timeout-response").filter(|_| shared && settings.timeouts.response < settings.timeouts.idle)?;
    Some(
        Diagnostic::warning("one-timeout", "over HTTP/2 an answer may take as long to begin as its body may pause: `timeout-idle`")
            .at(value.place())
            .help("give the route a `timeout-idle` that is not longer than its `timeout-response`"),
    )
}

/// Keys about TLS on a route whose tasks are spoken to without: what somebody took for protected is not.
fn without_tls(spec: &RouteSpec, settings: &Settings) -> Option<Diagnostic> {
    let value = ["upstream-ca", "upstream-sni", "upstream-verify"].iter().find_map(|key| spec.get(key));
    let value = value.filter(|_| !settings.scheme.is_secure())?;
    Some(
        Diagnostic::warning("upstream-not-tls", "this does nothing: requests go to the service without TLS")
            .at(value.key_place())
            .help("add `scheme: https` (or `grpcs`) beside it, or remove it"),
    )
}

/// Verified unless `upstream-verify` says otherwise and nothing else does.
fn trust(read: &mut Reader<'_>) -> Trust {
    if read.key("upstream-verify", label::boolean) != Some(false) {
        return Trust::Machine;
    }
    let Some(value) = read.spec.get("upstream-verify") else { return Trust::Machine };
    let (finding, trust) = match read.spec.get("upstream-ca") {
        Some(_) => (
            Diagnostic::error(
                "verify-contradiction",
                "`upstream-ca` says by whom tasks are verified, and this that they are not: they are",
            )
            .help("remove one of the two"),
            Trust::Machine,
        ),
        None => (
            Diagnostic::warning("unverified-upstream", "the tasks' certificates are not looked at: whoever answers there is believed")
                .help("name the CA that signed them with `upstream-ca`, and the name that they have with `upstream-sni`"),
            Trust::Unverified,
        ),
    };
    read.findings.push(finding.at(value.place()));
    trust
}

/// Reads keys of one spec and gathers what could not be read.
struct Reader<'a> {
    spec: &'a RouteSpec,
    findings: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn key<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, Diagnostic>) -> Option<T> {
        let result = parse(self.spec.get(key)?);
        result.map_err(|finding| self.findings.push(finding)).ok()
    }

    /// Says of keys that were read and do nothing yet that they do nothing; what could not be read has a finding already.
    fn not_yet(&mut self) {
        for key in KEYS {
            let (Effect::Later(feature), Some(value)) = (key.effect, self.spec.get(key.name)) else { continue };
            let about = |finding: &Diagnostic| matches!(&finding.place, Some(Place::Label { key, .. }) if *key == value.label);
            if !self.findings.iter().any(about) {
                self.findings.push(label::not_yet(value, feature));
            }
        }
    }

    /// The parts of a list that could be read.
    fn list<T>(&mut self, key: &str, parse: impl Fn(&Value) -> Result<T, Diagnostic>) -> Vec<T> {
        let parts = self.spec.get(key).map(Value::list).unwrap_or_default();
        parts.iter().filter_map(|part| parse(part).map_err(|finding| self.findings.push(finding)).ok()).collect()
    }
}

fn check(read: &mut Reader<'_>) -> Option<Check> {
    let path = read.key("health-path", health_path);
    let interval = read.key("health-interval", label::duration).unwrap_or(Duration::from_secs(10));
    let timeout = read.key("health-timeout", label::duration).unwrap_or(Duration::from_secs(2));
    let status = read.list("health-status", statuses);
    let unhealthy = read.key("health-unhealthy", |value| number(value, 1..=MOST_ANSWERS)).unwrap_or(3);
    let healthy = read.key("health-healthy", |value| number(value, 1..=MOST_ANSWERS)).unwrap_or(1);
    if read.spec.get("health-path").is_none() {
        let stray = read.spec.values.iter().find(|(key, _)| key.starts_with("health-"));
        if let Some((key, value)) = stray {
            let finding =
                Diagnostic::warning("health-without-path", format!("`{key}` does nothing without `health-path`")).at(value.key_place());
            read.findings.push(finding.help("say what to ask, e.g. `health-path: /health`, or leave it to the container's HEALTHCHECK"));
        }
    }
    let status = if status.is_empty() { vec![200..=399] } else { status };
    path.map(|path| Check { path, host: None, interval, timeout, status, unhealthy, healthy })
}

/// A finding on a value that `key` cannot mean.
fn bad(code: &str, value: &Value, what: &str, help: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, format!("`{}` is not {what}", brief(&value.text))).at(value.place()).help(help)
}

pub(super) fn port(value: &Value) -> Result<u16, Diagnostic> {
    let help = match value.text.contains([':', '/']) {
        true => "write the container's own port alone, e.g. `8080`; the edge needs no published port",
        false => "write the port that the container listens on, 1 to 65535, e.g. `8080`",
    };
    value.text.parse().ok().filter(|port| *port > 0).ok_or_else(|| bad("bad-port", value, "a port", help))
}

fn scheme(value: &Value) -> Result<Scheme, Diagnostic> {
    let text = value.text.to_ascii_lowercase();
    let names = SCHEMES.iter().map(|(name, _)| *name);
    let found = SCHEMES.iter().find(|(name, _)| *name == text).map(|(_, scheme)| *scheme);
    found.ok_or_else(|| bad("bad-scheme", value, "a scheme", one_of(&text, names)))
}

/// One name that a certificate can have.
fn sni(value: &Value) -> Result<String, Diagnostic> {
    if value.text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(value.text.clone());
    }
    match label::host(value)? {
        name if name.starts_with('*') => Err(bad("bad-sni", value, "one name", "write the name of the certificate, e.g. `shop.internal`")),
        name => Ok(name),
    }
}

fn proxy_version(value: &Value) -> Result<ProxyVersion, Diagnostic> {
    match value.text.to_ascii_lowercase().as_str() {
        "v1" | "1" => Ok(ProxyVersion::V1),
        "v2" | "2" => Ok(ProxyVersion::V2),
        text => Err(bad("bad-proxy-protocol", value, "a version of the PROXY protocol", one_of(text, ["v1", "v2"].into_iter()))),
    }
}

/// `did you mean` where a name is near, else all names.
fn one_of<'a>(text: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(text, names.clone()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("write one of {}", names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

fn balance(value: &Value) -> Result<Balance, Diagnostic> {
    const NAMES: [&str; 6] = ["p2c", "round-robin", "least", "hash:ip", "hash:header:NAME", "hash:cookie:NAME"];
    let refuse = || bad("bad-balance", value, "a way to choose a task", one_of(&value.text, NAMES.into_iter()));
    let text = value.text.as_str();
    match text.split_once(':') {
        None => match text.to_ascii_lowercase().as_str() {
            "p2c" => Ok(Balance::PowerOfTwo),
            "round-robin" => Ok(Balance::RoundRobin),
            "least" => Ok(Balance::Least),
            _ => Err(refuse()),
        },
        Some((hash, by)) if hash.eq_ignore_ascii_case("hash") => match by.split_once(':') {
            None if by.eq_ignore_ascii_case("ip") => Ok(Balance::HashIp),
            Some((kind, name)) if kind.eq_ignore_ascii_case("header") && is_token(name) => {
                Ok(Balance::HashHeader(name.to_ascii_lowercase()))
            }
            Some((kind, name)) if kind.eq_ignore_ascii_case("cookie") && is_token(name) => Ok(Balance::HashCookie(name.to_owned())),
            _ => Err(refuse()),
        },
        Some(_) => Err(refuse()),
    }
}

/// What HTTP allows as the name of a header or a cookie.
fn is_token(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

fn cookie(value: &Value) -> Result<String, Diagnostic> {
    match is_token(&value.text) {
        true => Ok(value.text.clone()),
        false => Err(bad("bad-cookie", value, "a cookie's name", "write a name without blanks and signs, e.g. `lb`")),
    }
}

fn number(value: &Value, range: RangeInclusive<u32>) -> Result<u32, Diagnostic> {
    let parsed = value.text.parse().ok().filter(|number| range.contains(number));
    let help = || format!("write a whole number from {} to {}", range.start(), range.end());
    parsed.ok_or_else(|| bad("bad-number", value, "a number that this key takes", help()))
}

/// `host:port`, `10.0.0.1:80`, `[::1]:80`.
fn address(value: &Value) -> Result<(String, u16), Diagnostic> {
    let refuse = || bad("bad-address", value, "an address", "write `host:port`, e.g. `10.0.0.5:8080`, `[fd00::5]:8080` or `legacy.lan:80`");
    let (host, port) = value.text.rsplit_once(':').ok_or_else(refuse)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(refuse)?;
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return std::net::Ipv6Addr::from_str(inner).map(|ip| (ip.to_string(), port)).map_err(|_| refuse());
    }
    let name = value.part(0..host.len());
    match label::host(&name) {
        Ok(name) if !name.starts_with('*') => Ok((name, port)),
        _ => Err(refuse()),
    }
}

fn health_path(value: &Value) -> Result<String, Diagnostic> {
    match value.text.starts_with('/') && !value.text.contains(char::is_whitespace) {
        true => Ok(value.text.clone()),
        false => Err(bad("bad-path", value, "a path", "write a path that begins with `/`, e.g. `/health`")),
    }
}

/// `200` or `200-399`.
fn statuses(value: &Value) -> Result<RangeInclusive<u16>, Diagnostic> {
    let (first, last) = value.text.split_once('-').unwrap_or((&value.text, &value.text));
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(bad("bad-status", value, "a status", "write statuses like `200` or `200-399`")),
    }
}

fn retry_on(value: &Value) -> Result<RetryOn, Diagnostic> {
    match value.text.to_ascii_lowercase().as_str() {
        "connect" => Ok(RetryOn::Connect),
        "timeout" => Ok(RetryOn::Timeout),
        "reset" => Ok(RetryOn::Reset),
        text => match text.parse::<u16>() {
            Ok(status @ (429 | 500..=599)) => Ok(RetryOn::Status(status)),
            _ => Err(bad(
                "bad-retry",
                value,
                "a reason to try another task",
                "write some of `connect`, `timeout`, `reset`, `502`, `503`, `504`",
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::label::Dialect;

    fn defaults() -> Defaults {
        Defaults {
            timeout_connect: Duration::from_secs(2),
            timeout_response: Duration::from_secs(60),
            timeout_idle: Duration::from_secs(61),
            timeout_request: None,
            retries: 2,
            max_body: None,
        }
    }

    fn read(labels: &[(&'static str, &str)]) -> (Settings, Vec<Diagnostic>) {
        let values = labels.iter().filter_map(|(key, text)| Some((*key, Value::new(&format!("skep.{key}"), text)?))).collect();
        parse(&RouteSpec { values, ..RouteSpec::new("", Dialect::Native) }, &defaults())
    }

    #[test]
    fn over_http2_there_is_one_timeout_and_the_label_says_so() {
        for (scheme, response, found) in [("grpc", "5s", true), ("h2c", "60s", false), ("http", "5s", false)] {
            let mut spec = RouteSpec::new("", crate::label::Dialect::Native);
            spec.values.insert("scheme", Value::new("skep.scheme", scheme).unwrap());
            spec.values.insert("timeout-response", Value::new("skep.timeout-response", response).unwrap());
            let (_, findings) = parse(&spec, &crate::config::Config::default().defaults);
            assert_eq!(findings.iter().any(|finding| finding.code == "one-timeout"), found, "{scheme} {response}");
        }
    }

    #[test]
    fn what_is_not_said_has_the_configured_default() {
        let (settings, findings) = read(&[]);
        assert!(findings.is_empty());
        let timeouts =
            Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(60), idle: Duration::from_secs(61), request: None };
        let wanted = Settings {
            trust: Trust::Machine,
            ca: None,
            sni: None,
            port: None,
            scheme: Scheme::Http,
            address: Vec::new(),
            network: None,
            proxy_protocol: None,
            balance: Balance::PowerOfTwo,
            sticky: None,
            retries: 2,
            timeouts,
            weight: None,
            check: None,
            retry_on: Vec::new(),
        };
        assert_eq!(settings, wanted);
    }

    #[test]
    fn every_key_is_read() {
        let (settings, findings) = read(&[
            ("port", "8080"),
            ("scheme", "GRPCS"),
            ("address", "10.0.0.5:80, legacy.lan:81 [fd00::5]:82"),
            ("network", "backend"),
            ("balance", "hash:header:X-User"),
            ("proxy-protocol", "V2"),
            ("sticky", "lb"),
            ("retries", "0"),
            ("timeout-connect", "500ms"),
            ("timeout-response", "60m"),
            ("timeout-idle", "1h"),
            ("timeout-request", "2h"),
            ("weight", "10"),
            ("health-path", "/health"),
            ("health-interval", "5s"),
            ("health-timeout", "1s"),
            ("health-status", "200, 301-302"),
            ("health-unhealthy", "2"),
            ("health-healthy", "4"),
            ("retry-on", "connect timeout reset 503"),
        ]);
        assert_eq!(findings, []);
        assert_eq!((settings.port, settings.scheme, settings.retries, settings.weight), (Some(8080), Scheme::Grpcs, 0, Some(10)));
        assert_eq!(settings.address, [("10.0.0.5".into(), 80), ("legacy.lan".into(), 81), ("fd00::5".into(), 82)]);
        assert_eq!(settings.balance, Balance::HashHeader("x-user".into()));
        assert_eq!((settings.network.as_deref(), settings.sticky.as_deref()), (Some("backend"), Some("lb")));
        assert_eq!(settings.proxy_protocol, Some(ProxyVersion::V2));
        assert_eq!(settings.timeouts.request, Some(Duration::from_secs(7200)));
        assert_eq!(settings.timeouts.response, Duration::from_secs(3600));
        let check = settings.check.expect("health-path is given");
        assert_eq!(check.status, [200..=200, 301..=302]);
        assert_eq!((check.interval, check.timeout, check.unhealthy, check.healthy), (Duration::from_secs(5), Duration::from_secs(1), 2, 4));
        assert_eq!(settings.retry_on, [RetryOn::Connect, RetryOn::Timeout, RetryOn::Reset, RetryOn::Status(503)]);
    }

    #[test]
    fn balances() {
        for (text, wanted) in [
            ("p2c", Balance::PowerOfTwo),
            ("round-robin", Balance::RoundRobin),
            ("Least", Balance::Least),
            ("hash:ip", Balance::HashIp),
            ("hash:header:X-Id", Balance::HashHeader("x-id".into())),
            ("hash:cookie:Sid", Balance::HashCookie("Sid".into())),
        ] {
            assert_eq!(read(&[("balance", text)]).0.balance, wanted, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_and_has_its_default() {
        let cases = [
            ("port", "http", "bad-port", "8080"),
            ("port", "0", "bad-port", "1 to 65535"),
            ("port", "70000", "bad-port", "1 to 65535"),
            ("port", "8080:80", "bad-port", "published"),
            ("port", "80/tcp", "bad-port", "published"),
            ("scheme", "htps", "bad-scheme", "`https`"),
            ("scheme", "quic-over-avian", "bad-scheme", "`grpcs`"),
            ("balance", "round-robbin", "bad-balance", "`round-robin`"),
            ("balance", "hash:header:", "bad-balance", "hash:header:NAME"),
            ("balance", "hash:cookie:a b", "bad-balance", "hash:cookie:NAME"),
            ("sticky", "l b", "bad-cookie", "without blanks"),
            ("retries", "11", "bad-number", "0 to 10"),
            ("retries", "-1", "bad-number", "0 to 10"),
            ("weight", "10%", "bad-number", "0 to 1000000"),
            ("timeout-response", "60", "bad-duration", "60s"),
            ("timeout-request", "soon", "bad-duration", "5s"),
            ("address", "legacy", "bad-address", "host:port"),
            ("address", "http://legacy:80", "bad-address", "host:port"),
            ("address", "fd00::5:x", "bad-address", "[fd00::5]"),
            ("health-path", "health", "bad-path", "/health"),
            ("retry-on", "always", "bad-retry", "connect"),
            ("retry-on", "404", "bad-retry", "connect"),
        ];
        for (key, text, code, help) in cases {
            let (settings, findings) = read(&[(key, text)]);
            assert_eq!(settings, read(&[]).0, "{key}={text}");
            assert_eq!(findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), [code], "{key}={text}");
            assert!(findings[0].help.as_deref().unwrap_or_default().contains(help), "{key}={text}: {:?}", findings[0].help);
            assert!(findings[0].place.is_some());
        }
    }

    #[test]
    fn a_bad_part_of_a_list_leaves_the_others() {
        let (settings, findings) = read(&[("address", "10.0.0.5:80, nowhere, 10.0.0.6:80")]);
        assert_eq!(settings.address.len(), 2);
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn checks_without_a_path_are_said_to_do_nothing() {
        let (settings, findings) = read(&[("health-interval", "5s")]);
        assert_eq!(settings.check, None);
        assert_eq!(findings[0].code, "health-without-path");
    }

    proptest! {
        #[test]
        fn no_value_is_too_odd(key in 0..super::super::KEYS.len(), text in "\\PC{0,30}|[a-z0-9:.,\\-\\[\\]/ ]{0,30}") {
            let key = super::super::KEYS[key].name;
            for finding in read(&[(key, &text)]).1 {
                prop_assert!(finding.help.is_some() && finding.place.is_some());
            }
        }
    }
}
