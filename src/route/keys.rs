//! The keys host, path, rule, priority, method, header, query and redirect-from of one route spec.
//! All of them are read even when one is bad, so that every mistake is told at once.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::diagnostic::Diagnostic;
use crate::label::{RouteSpec, Value};

use super::alternative::{matchers, spread};
use super::condition::{Pattern, Test};
use super::pattern::{HostPattern, PathPattern};
use super::rule::Expression;
use super::{Matcher, Matching, literal, rule};

/// The most hosts of one route.
const MOST_HOSTS: usize = 1000;

/// The most contradictions of one rule that are told.
const MOST_REASONS: usize = 3;

/// A part of the route could not be read, and without it the route would serve too much. The finding is told already.
struct Unusable;

type Read<T> = Result<T, Unusable>;

/// See [`super::parse`].
pub(super) fn matching(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Option<Matching> {
    let hosts = hosts(spec, findings);
    let parts = [path(spec, findings), methods(spec, findings), headers(spec, findings), queries(spec, findings), rule(spec, findings)];
    let priority = priority(spec, findings);
    let Ok(hosts) = hosts else { return None };
    let mut wanted = Vec::new();
    for part in parts {
        wanted.extend(part.ok()?);
    }
    let alternatives = alternatives(spec, wanted, &hosts, priority, findings)?;
    let exact = |host: &HostPattern| match host {
        HostPattern::Exact(name) => Some(name.clone()),
        _ => None,
    };
    let first_host = hosts.iter().chain(alternatives.iter().flat_map(|matcher| &matcher.hosts)).find_map(exact);
    let served: BTreeSet<String> = alternatives.iter().flat_map(|matcher| &matcher.hosts).filter_map(exact).collect();
    let redirect_from = redirects(spec, first_host.as_deref(), &served, findings);
    Some(Matching { alternatives, redirect_from, first_host })
}

/// The usable hosts; some bad ones among them are told and left out.
fn hosts(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<HostPattern>> {
    let Some(value) = spec.get("host") else {
        if spec.get("rule").is_some() {
            return Ok(Vec::new());
        }
        let prefix = if spec.name.is_empty() { String::new() } else { format!("{}.", spec.name) };
        let finding = Diagnostic::error("no-host", "the route says neither a host nor a rule, so nothing can reach it")
            .help(format!("add the label `skep.{prefix}host` with a host like `app.example.com`"));
        findings.push(spec.values.values().next().into_iter().fold(finding, |finding, value| finding.at(value.key_place())));
        return Err(Unusable);
    };
    let parts = value.list();
    if parts.len() > MOST_HOSTS {
        findings.push(Diagnostic::error("bad-host", format!("more than {MOST_HOSTS} hosts")).at(value.place()).help("use a wildcard"));
        return Err(Unusable);
    }
    let mut hosts: Vec<HostPattern> = Vec::new();
    for host in parts.iter().filter_map(|part| told(literal::host(part), findings)) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    if hosts.is_empty() { Err(Unusable) } else { Ok(hosts) }
}

/// The value, or the finding told.
fn told<T>(result: Result<T, Diagnostic>, findings: &mut Vec<Diagnostic>) -> Option<T> {
    result.map_err(|finding| findings.push(finding)).ok()
}

fn path(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<Expression>> {
    let Some(value) = spec.get("path") else { return Ok(Vec::new()) };
    let exact = value.text.starts_with('=');
    let text = value.part(usize::from(exact)..value.text.len());
    if let Some(star) = text.text.find('*') {
        let help = match text.text[..star].trim_end_matches('/') {
            "" => "leave `path` out: every path is served".to_owned(),
            prefix => format!("write `{prefix}`: a path includes everything below it"),
        };
        findings.push(Diagnostic::error("bad-path", "`*` does not stand for anything in a path").at(text.span(star..star + 1)).help(help));
        return Err(Unusable);
    }
    let path = told(literal::path(&text), findings).ok_or(Unusable)?;
    let pattern = match path.trim_end_matches('/') {
        _ if exact => PathPattern::Exact(path),
        "" => PathPattern::Prefix("/".to_owned()),
        // `/a/` means `/a` and what is below it, as everybody who writes it expects.
        prefix => PathPattern::Prefix(prefix.to_owned()),
    };
    Ok(vec![Expression::Test(Test::Path(pattern))])
}

fn priority(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Option<i32> {
    let value = spec.get("priority")?;
    let priority = value.text.parse();
    if priority.is_err() {
        let finding = Diagnostic::error("bad-priority", format!("`{}` is not a priority", value.text)).at(value.place());
        findings.push(finding.help(format!("write a whole number from {} to {}", i32::MIN, i32::MAX)));
    }
    priority.ok()
}

fn methods(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<Expression>> {
    let Some(value) = spec.get("method") else { return Ok(Vec::new()) };
    let parts = value.list();
    let methods: BTreeSet<String> = parts.iter().filter_map(|part| told(literal::method(part), findings)).collect();
    let tests: Vec<_> = methods.into_iter().map(|method| Expression::Test(Test::Method(method))).collect();
    // Methods widen each other: what is left of a list serves less than was meant, never more.
    if tests.is_empty() { Err(Unusable) } else { Ok(vec![one_of(tests)]) }
}

fn one_of(mut tests: Vec<Expression>) -> Expression {
    if tests.len() == 1 { tests.remove(0) } else { Expression::Or(tests) }
}

fn headers(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<Expression>> {
    let Some(value) = spec.get("header") else { return Ok(Vec::new()) };
    pairs(value, |name, wanted| {
        if wanted.is_none() && name.text.contains(':') {
            let written = name.text.replacen(':', "=", 1).replacen("= ", "=", 1);
            return Err(Diagnostic::error("bad-header", "a wanted header has `=` between name and value")
                .at(name.place())
                .help(format!("write `{written}`")));
        }
        let name = literal::header(&name)?;
        Ok(match wanted {
            Some(wanted) => Test::Header(name, wanted),
            None => Test::HeaderRegexp(name, Pattern::anything()),
        })
    })
    .map_err(|mut found| {
        findings.append(&mut found);
        Unusable
    })
}

fn queries(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<Expression>> {
    let Some(value) = spec.get("query") else { return Ok(Vec::new()) };
    pairs(value, |name, wanted| {
        if name.text.is_empty() {
            let finding = Diagnostic::error("bad-query", "the parameter has no name").at(value.place());
            return Err(finding.help("write `name=value`, or `name` for any value"));
        }
        Ok(match wanted {
            Some(wanted) => Test::Query(name.text, wanted),
            None => Test::QueryRegexp(name.text, Pattern::anything()),
        })
    })
    .map_err(|mut found| {
        findings.append(&mut found);
        Unusable
    })
}

/// The `name=value` or `name` parts of a list that is separated by commas or line ends, each as a test.
fn pairs(value: &Value, test: impl Fn(Value, Option<String>) -> Result<Test, Diagnostic>) -> Result<Vec<Expression>, Vec<Diagnostic>> {
    let (mut tests, mut findings) = (Vec::new(), Vec::new());
    for part in split(value) {
        let end = part.text.find('=').unwrap_or(part.text.len());
        let wanted = part.text.get(end + 1..).map(|wanted| wanted.trim().to_owned());
        let name = part.part(0..part.text[..end].trim_end().len());
        match test(name, wanted) {
            Ok(test) => tests.push(Expression::Test(test)),
            Err(finding) => findings.push(finding),
        }
    }
    if findings.is_empty() { Ok(tests) } else { Err(findings) }
}

/// The comma or line separated parts, trimmed, empty ones left out.
fn split(value: &Value) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut start = 0;
    for piece in value.text.split([',', '\n']) {
        let from = start + piece.len() - piece.trim_start().len();
        let range: Range<usize> = from..from + piece.trim().len();
        if !range.is_empty() {
            parts.push(value.part(range));
        }
        start += piece.len() + 1;
    }
    parts
}

/// What the rule says; empty when there is none.
fn rule(spec: &RouteSpec, findings: &mut Vec<Diagnostic>) -> Read<Vec<Expression>> {
    let Some(value) = spec.get("rule") else { return Ok(Vec::new()) };
    let (expression, found) = rule::parse(value);
    findings.extend(found);
    expression.map(|expression| vec![expression]).ok_or(Unusable)
}

/// Everything that the route wants, as matchers; `None` (and told) when that is nothing or too much.
fn alternatives(
    spec: &RouteSpec,
    wanted: Vec<Expression>,
    hosts: &[HostPattern],
    priority: Option<i32>,
    findings: &mut Vec<Diagnostic>,
) -> Option<Vec<Matcher>> {
    let at = |finding: Diagnostic| match spec.get("rule").or(spec.values.values().next()) {
        Some(value) => finding.at(value.place()),
        None => finding,
    };
    let Some(mut spread) = spread(&Expression::And(wanted)) else {
        let finding = Diagnostic::error("bad-rule", "the rule has too many combinations of `||` and `&&`");
        findings.push(at(finding).help("split it over several routes, or put hosts and paths that are alternatives into one `||`"));
        return None;
    };
    let matchers = matchers(&mut spread, hosts, priority);
    let why = spread.contradictions.into_iter().take(MOST_REASONS).collect::<Vec<_>>().join("; ");
    if matchers.is_empty() {
        let finding = Diagnostic::error("never-matches", format!("no request can ever match this route: {why}"));
        findings.push(at(finding).help("host, path, method and rule must hold at the same time"));
        return None;
    }
    if !why.is_empty() {
        let finding = Diagnostic::warning("never-matches", format!("a part of this rule never matches: {why}"));
        findings.push(at(finding).help("take that part out; host, path, method and rule must hold at the same time"));
    }
    Some(matchers)
}

/// The hosts that redirect to the first one.
fn redirects(spec: &RouteSpec, first: Option<&str>, served: &BTreeSet<String>, findings: &mut Vec<Diagnostic>) -> Vec<(String, Value)> {
    let Some(value) = spec.get("redirect-from") else { return Vec::new() };
    let bad = |code: &str, message: String, place: &Value, help: String| Diagnostic::error(code, message).at(place.place()).help(help);
    let Some(first) = first else {
        let message = "there is no host to redirect to: the route names no exact host".to_owned();
        findings.push(bad("redirect-without-host", message, value, "add a host without a wildcard to `host`".to_owned()));
        return Vec::new();
    };
    let mut sources: Vec<(String, Value)> = Vec::new();
    let parts = value.list();
    if parts.len() > MOST_HOSTS {
        findings.push(bad("bad-host", format!("more than {MOST_HOSTS} hosts"), value, "split them over several routes".to_owned()));
        return Vec::new();
    }
    for part in parts {
        match told(literal::host(&part), findings) {
            Some(HostPattern::Exact(name)) if served.contains(&name) => {
                let message = format!("`{name}` is served by this route, it cannot redirect to {first} as well");
                let help = format!("take `{name}` out of `{}` or out of the hosts", part.label);
                findings.push(bad("redirect-loop", message, &part, help));
            }
            Some(HostPattern::Exact(name)) if sources.iter().all(|(known, _)| *known != name) => sources.push((name, part)),
            Some(HostPattern::Wildcard(_)) => {
                let message = "a redirect starts from single hosts".to_owned();
                findings.push(bad("bad-host", message, &part, format!("write the hosts, like `www.{first}`")));
            }
            _ => {}
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::{Place, Severity};
    use crate::label::Dialect;
    use crate::route::KEYS;

    fn spec(keys: &[(&str, &str)]) -> RouteSpec {
        let mut spec = RouteSpec::new("api", Dialect::Native);
        for (name, text) in keys {
            let key = KEYS.iter().find(|key| key.name == *name).expect("a known key");
            spec.values.insert(key.name, Value::new(&format!("skep.api.{name}"), text).expect("not blank"));
        }
        spec
    }

    fn read(keys: &[(&str, &str)]) -> (Option<Matching>, Vec<Diagnostic>) {
        let mut findings = Vec::new();
        (matching(&spec(keys), &mut findings), findings)
    }

    /// `hosts path conditions` of every alternative.
    fn written(matching: &Matching) -> Vec<String> {
        let one = |matcher: &Matcher| {
            let hosts: Vec<_> = matcher.hosts.iter().map(HostPattern::to_string).collect();
            let conditions: Vec<_> = matcher.conditions.iter().map(|condition| format!(" {condition}")).collect();
            format!("{} {}{}", hosts.join(","), matcher.path, conditions.concat())
        };
        matching.alternatives.iter().map(one).collect()
    }

    #[test]
    fn keys_become_matchers() {
        for (keys, expected) in [
            (vec![("host", "A.example.com *.b.example.com, a.example.com")], vec!["a.example.com,*.b.example.com /"]),
            (vec![("host", "a.b"), ("path", "/x/")], vec!["a.b /x"]),
            (vec![("host", "a.b"), ("path", "=/x/")], vec!["a.b =/x/"]),
            (vec![("host", "a.b"), ("path", "/{x}/:y")], vec!["a.b /{x}/:y"]),
            (vec![("host", "a.b"), ("path", "/k%c3%a4se")], vec!["a.b /käse"]),
            (vec![("host", "a.b"), ("method", "post, Get")], vec!["a.b / Method(`GET`)", "a.b / Method(`POST`)"]),
            (
                vec![("host", "a.b"), ("header", "X-Beta = 1, x-y=a b=c\nX-Z")],
                vec!["a.b / Header(`X-Beta`, `1`) Header(`X-Y`, `a b=c`) HeaderRegexp(`X-Z`, ``)"],
            ),
            (vec![("host", "a.b"), ("query", "beta=1,debug")], vec!["a.b / Query(`beta`, `1`) QueryRegexp(`debug`, ``)"]),
            (vec![("rule", "PathPrefix(`/`)")], vec!["* /"]),
            (vec![("rule", "Host(`a.b`) || Path(`/x/y`)"), ("path", "/x")], vec!["a.b /x", "* =/x/y"]),
            (vec![("rule", "!Method(`GET`)"), ("host", "a.b")], vec!["a.b / !Method(`GET`)"]),
        ] {
            let (matching, findings) = read(&keys);
            assert_eq!(findings, [], "{keys:?}");
            assert_eq!(written(&matching.unwrap()), expected, "{keys:?}");
        }
    }

    /// (keys, is there still a route, code, what the finding points at, what its help says)
    type Mistake<'a> = (&'a [(&'a str, &'a str)], bool, &'a str, &'a str, &'a str);

    #[test]
    fn a_mistake_takes_the_key_or_the_route_and_says_what_to_write() {
        let mistakes: &[Mistake<'_>] = &[
            (&[("path", "/x")], false, "no-host", "skep.api.path", "skep.api.host"),
            (&[], false, "no-host", "", "skep.api.host"),
            (&[("host", "a.b, c:80")], true, "bad-host", ":80", "write `c`"),
            (&[("host", "http://a.b")], false, "bad-host", "http://", "write `a.b`"),
            (&[("host", "a.b"), ("path", "x")], false, "bad-path", "x", "write `/x`"),
            (&[("host", "a.b"), ("path", "/x/*")], false, "bad-path", "*", "write `/x`"),
            (&[("host", "a.b"), ("path", "/*")], false, "bad-path", "*", "leave `path` out"),
            (&[("host", "a.b"), ("path", "/x?y")], false, "bad-path", "?y", "write `/x`"),
            (&[("host", "a.b"), ("path", "/x/%2e%2e/y")], false, "bad-path", "/x/%2e%2e/y", "write `/y`"),
            (&[("host", "a.b"), ("path", "/x//y")], false, "bad-path", "/x//y", "write `/x/y`"),
            (&[("host", "a.b"), ("path", "/x%2fy")], false, "bad-path", "/x%2fy", "write `/x/y`"),
            (&[("host", "a.b"), ("path", "/x;v=1")], false, "bad-path", "/x;v=1", "write `/x`"),
            (&[("host", "a.b"), ("path", "/x%")], false, "bad-path", "/x%", "write it like"),
            (&[("host", "a.b"), ("priority", "high")], true, "bad-priority", "high", "a whole number"),
            (&[("host", "a.b"), ("method", "GET, PSOT")], true, "bad-method", "PSOT", "did you mean `POST`?"),
            (&[("host", "a.b"), ("method", "G/T")], false, "bad-method", "G/T", "GET"),
            (&[("host", "a.b"), ("header", "X-Beta: 1")], false, "bad-header", "X-Beta: 1", "write `X-Beta=1`"),
            (&[("host", "a.b"), ("header", "X Beta=1")], false, "bad-header", "X Beta", "write it like"),
            (&[("host", "a.b"), ("query", "=1")], false, "bad-query", "=1", "write `name=value`"),
            (&[("host", "a.b"), ("rule", "Hots(`x`)")], false, "bad-rule", "Hots", "did you mean `Host`?"),
            (&[("host", "a.b"), ("rule", "Host(`c.d`)")], false, "never-matches", "Host(`c.d`)", "at the same time"),
            (
                &[("host", "a.b"), ("rule", "Host(`c.d`) || Path(`/`)")],
                true,
                "never-matches",
                "Host(`c.d`) || Path(`/`)",
                "take that part out",
            ),
            (&[("host", "a.b"), ("redirect-from", "w.b a.b")], true, "redirect-loop", "a.b", "take `a.b` out"),
            (&[("host", "a.b"), ("redirect-from", "*.b")], true, "bad-host", "*.b", "write the hosts, like `www.a.b`"),
            (&[("host", "*.b"), ("redirect-from", "w.b")], true, "redirect-without-host", "w.b", "without a wildcard"),
        ];
        for (keys, lives, code, at, help) in mistakes {
            let (matching, findings) = read(keys);
            assert_eq!(matching.is_some(), *lives, "{keys:?}");
            let [finding] = findings.as_slice() else { panic!("{keys:?}: {findings:?}") };
            let pointed = match &finding.place {
                Some(Place::Label { key, span, in_key: true, .. }) => &key[span.clone()],
                Some(Place::Label { value, span, .. }) => &value[span.clone()],
                _ => "",
            };
            assert_eq!((finding.code.as_str(), pointed), (*code, *at), "{keys:?}");
            assert!(finding.help.as_ref().is_some_and(|said| said.contains(help)), "{keys:?}: {finding:?}");
            assert_eq!(finding.severity == Severity::Warning, *lives && *code == "never-matches", "{keys:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let (_, findings) = read(&[("host", "a b:1"), ("path", "x"), ("method", "G/T"), ("header", ":"), ("rule", "("), ("priority", "x")]);
        let codes: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(codes, ["bad-host", "bad-path", "bad-method", "bad-header", "bad-rule", "bad-priority"]);
    }

    #[test]
    fn redirects_lead_to_the_first_exact_host() {
        for (host, rule, first) in [
            ("*.x.b, a.b, c.d", "PathPrefix(`/`)", Some("a.b")),
            ("*.x.b", "Host(`y.x.b`)", Some("y.x.b")),
            ("*.x.b", "PathPrefix(`/`)", None),
        ] {
            let (matching, _) = read(&[("host", host), ("rule", rule), ("redirect-from", "www.b, w.b www.b")]);
            let matching = matching.unwrap();
            assert_eq!(matching.first_host.as_deref(), first, "{host}");
            let sources: Vec<_> = matching.redirect_from.iter().map(|(name, value)| (name.as_str(), value.offset)).collect();
            assert_eq!(sources, if first.is_some() { vec![("www.b", 0), ("w.b", 7)] } else { vec![] });
        }
    }
}
