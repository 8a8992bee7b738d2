//! From an expression to alternatives: each one host pattern, one path pattern and the conditions that remain, so that it can be indexed.
//! An alternative that no request can satisfy is left out here, and what contradicts what is told.

use std::collections::{BTreeMap, BTreeSet};

use super::Matcher;
use super::condition::{Condition, Test};
use super::pattern::{HostPattern, PathPattern};
use super::rule::Expression;

/// The most alternatives of one route.
const MOST: usize = 256;
/// The most pairs that are looked at for one `&&`.
const MOST_PAIRS: usize = 4096;

/// A conjunction. The empty one holds for every request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alternative {
    host: HostPattern,
    path: PathPattern,
    /// Never a positive host or path.
    conditions: BTreeSet<Condition>,
}

/// What an expression comes to.
#[derive(Debug, Default)]
pub(super) struct Spread {
    pub alternatives: Vec<Alternative>,
    /// Why parts of it never match, each said once: `host is both a and b`.
    pub contradictions: BTreeSet<String>,
}

impl Alternative {
    pub(super) fn host(host: &HostPattern) -> Alternative {
        Alternative { host: host.clone(), path: PathPattern::Prefix("/".to_owned()), conditions: BTreeSet::new() }
    }

    fn of(condition: Condition) -> Result<Alternative, String> {
        let mut all = Alternative::host(&HostPattern::Any);
        match condition {
            Condition { test: Test::Host(host), negated: false } => all.host = host,
            Condition { test: Test::Path(path), negated: false } => all.path = path,
            other => drop(all.conditions.insert(other)),
        }
        all.settled()
    }

    fn and(&self, other: &Alternative) -> Result<Alternative, String> {
        let both = |what: &str, one: &dyn std::fmt::Display, two: &dyn std::fmt::Display| format!("{what} is both {one} and {two}");
        let host = self.host.both(&other.host).ok_or_else(|| both("host", &self.host, &other.host))?;
        let path = self.path.both(&other.path).ok_or_else(|| both("path", &self.path, &other.path))?;
        Alternative { host, path, conditions: self.conditions.union(&other.conditions).cloned().collect() }.settled()
    }

    /// Leaves out conditions that host, path or method imply; `Err` when one contradicts them.
    fn settled(mut self) -> Result<Alternative, String> {
        let mut kept = BTreeSet::new();
        for condition in &self.conditions {
            let opposite = Condition { test: condition.test.clone(), negated: !condition.negated };
            if self.conditions.contains(&opposite) {
                return Err(format!("{} is asked for and excluded", condition.test));
            }
            match self.implied(condition) {
                Some(true) => {}
                Some(false) => return Err(format!("{condition} excludes all that the rest asks for")),
                None => drop(kept.insert(condition.clone())),
            }
        }
        self.conditions = kept;
        Ok(self)
    }

    /// What the rest of this alternative says about `condition`: always so, never so, or nothing.
    fn implied(&self, condition: &Condition) -> Option<bool> {
        let excluded = |all: bool, none: bool| if all { Some(false) } else { none.then_some(true) };
        match (&condition.test, condition.negated) {
            (Test::Host(host), true) => {
                let both = self.host.both(host);
                excluded(both.as_ref() == Some(&self.host), both.is_none())
            }
            (Test::Path(path), true) => {
                let both = self.path.both(path);
                excluded(both.as_ref() == Some(&self.path), both.is_none())
            }
            (Test::Method(method), negated) => {
                let wanted = self.conditions.iter().find_map(|one| match &one.test {
                    Test::Method(other) if !one.negated && other != method => Some(other),
                    _ => None,
                });
                wanted.map(|_| negated)
            }
            _ => None,
        }
    }
}

/// The alternatives of `expression`; `None` when there are too many.
pub(super) fn spread(expression: &Expression) -> Option<Spread> {
    let mut spread = Spread::default();
    spread.alternatives = expand(expression, false, &mut spread.contradictions)?;
    Some(spread)
}

fn expand(expression: &Expression, negated: bool, contradictions: &mut BTreeSet<String>) -> Option<Vec<Alternative>> {
    match expression {
        Expression::Test(test) => Some(collect([Alternative::of(Condition { test: test.clone(), negated })], contradictions)),
        Expression::Not(inner) => expand(inner, !negated, contradictions),
        Expression::And(parts) if !negated => all_of(parts, negated, contradictions),
        Expression::Or(parts) if negated => all_of(parts, negated, contradictions),
        Expression::And(parts) | Expression::Or(parts) => {
            let mut alternatives = Vec::new();
            for part in parts {
                alternatives.extend(expand(part, negated, contradictions)?);
            }
            (alternatives.len() <= MOST).then_some(alternatives)
        }
    }
}

fn all_of(parts: &[Expression], negated: bool, contradictions: &mut BTreeSet<String>) -> Option<Vec<Alternative>> {
    let mut alternatives = vec![Alternative::host(&HostPattern::Any)];
    for part in parts {
        let more = expand(part, negated, contradictions)?;
        alternatives = product(&alternatives, &more, contradictions)?;
    }
    Some(alternatives)
}

/// All pairs of `one` and `two` that some request can satisfy; `None` when there are too many.
fn product(one: &[Alternative], two: &[Alternative], contradictions: &mut BTreeSet<String>) -> Option<Vec<Alternative>> {
    if one.len() * two.len() > MOST_PAIRS {
        return None;
    }
    let pairs = one.iter().flat_map(|left| two.iter().map(move |right| left.and(right)));
    let alternatives = collect(pairs, contradictions);
    (alternatives.len() <= MOST).then_some(alternatives)
}

fn collect(results: impl IntoIterator<Item = Result<Alternative, String>>, contradictions: &mut BTreeSet<String>) -> Vec<Alternative> {
    let mut seen = BTreeSet::new();
    let mut alternatives = Vec::new();
    for result in results {
        match result {
            Ok(alternative) if seen.contains(&alternative) => {}
            Ok(alternative) => {
                seen.insert(alternative.clone());
                alternatives.push(alternative);
            }
            Err(why) => drop(contradictions.insert(why)),
        }
    }
    alternatives
}

/// The alternatives on the given hosts (all hosts when there are none), those that differ in their host only put together.
pub(super) fn matchers(spread: &mut Spread, hosts: &[HostPattern], priority: Option<i32>) -> Vec<Matcher> {
    let hosts: Vec<_> =
        if hosts.is_empty() { vec![Alternative::host(&HostPattern::Any)] } else { hosts.iter().map(Alternative::host).collect() };
    let mut matchers: Vec<Matcher> = Vec::new();
    let mut places = BTreeMap::new();
    for alternative in &spread.alternatives {
        let on_hosts = hosts.iter().map(|host| alternative.and(host));
        let mut contradictions = BTreeSet::new();
        let found = collect(on_hosts, &mut contradictions);
        if found.is_empty() {
            // One host of several not fitting is what the user wants: only a part that fits none of them is worth telling.
            spread.contradictions.append(&mut contradictions);
        }
        for Alternative { host, path, conditions } in found {
            let at = *places.entry((path.clone(), conditions.clone())).or_insert(matchers.len());
            if at == matchers.len() {
                matchers.push(Matcher { hosts: Vec::new(), path, conditions: conditions.into_iter().collect(), priority });
            }
            if !matchers[at].hosts.contains(&host) {
                matchers[at].hosts.push(host);
            }
        }
    }
    matchers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::Value;
    use crate::route::rule;

    fn written(matcher: &Matcher) -> String {
        let hosts = matcher.hosts.iter().map(HostPattern::to_string).collect::<Vec<_>>().join(",");
        let conditions = matcher.conditions.iter().map(|one| format!(" {one}")).collect::<String>();
        format!("{hosts}{}{conditions}", matcher.path)
    }

    fn read(rule: &str) -> Option<Spread> {
        let value = Value::new("skep.rule", rule).expect("a test's rule is not blank");
        let (expression, findings) = rule::parse(&value);
        assert_eq!(findings, [], "{rule}");
        spread(&expression.unwrap())
    }

    #[test]
    fn a_rule_becomes_hosts_paths_and_what_remains() {
        for (rule, expected) in [
            ("Host(`a.b`)", vec!["a.b/"]),
            ("PathPrefix(`/`)", vec!["*/"]),
            ("Host(`a.b`) && PathPrefix(`/api`)", vec!["a.b/api*"]),
            ("(Host(`a.b`) || Host(`c.d`)) && Path(`/x`)", vec!["a.b,c.d=/x"]),
            ("Host(`a.b`) || Host(`c.d`) && Path(`/x`)", vec!["a.b/", "c.d=/x"]),
            ("Host(`*.b`) && Host(`a.b`)", vec!["a.b/"]),
            ("PathPrefix(`/a`) && PathPrefix(`/a/b`)", vec!["*/a/b*"]),
            ("Host(`a.b`) && !Path(`/x`)", vec!["a.b/ !Path(`/x`)"]),
            ("Host(`a.b`) && !Host(`c.d`)", vec!["a.b/"]),
            ("Host(`*.b`) && !Host(`a.b`)", vec!["*.b/ !Host(`a.b`)"]),
            ("Path(`/a`) && !PathPrefix(`/b`)", vec!["*=/a"]),
            ("Method(`GET`) && !Method(`PUT`)", vec!["*/ Method(`GET`)"]),
            ("!(Host(`a.b`) || Method(`GET`))", vec!["*/ !Host(`a.b`) !Method(`GET`)"]),
            ("!(Host(`a.b`) && Method(`GET`))", vec!["*/ !Host(`a.b`)", "*/ !Method(`GET`)"]),
            ("!!Host(`a.b`)", vec!["a.b/"]),
            ("Host(`a.b`) && Header(`X`, `1`) && Header(`X`, `2`)", vec!["a.b/ Header(`X`, `1`) Header(`X`, `2`)"]),
            ("Host(`a.b`) || Host(`a.b`)", vec!["a.b/"]),
        ] {
            let mut spread = read(rule).unwrap();
            assert_eq!(matchers(&mut spread, &[], None).iter().map(written).collect::<Vec<_>>(), expected, "{rule}");
            assert!(spread.contradictions.is_empty(), "{rule}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_left_out_and_told() {
        for (rule, left, why) in [
            ("Host(`a.b`) && Host(`c.d`)", 0, "host is both a.b and c.d"),
            ("Path(`/a`) && PathPrefix(`/b`) || Host(`a.b`)", 1, "path is both =/a and /b*"),
            ("Method(`GET`) && Method(`PUT`)", 0, "Method(`GET`) excludes all that the rest asks for"),
            ("Host(`a.b`) && !Host(`*.b`)", 0, "!Host(`*.b`) excludes all that the rest asks for"),
            ("Path(`/a/b`) && !PathPrefix(`/a`)", 0, "!PathPrefix(`/a`) excludes all that the rest asks for"),
            ("!PathPrefix(`/`)", 0, "!PathPrefix(`/`) excludes all that the rest asks for"),
            ("Header(`X`, `1`) && !Header(`X`, `1`)", 0, "Header(`X`, `1`) is asked for and excluded"),
        ] {
            let spread = read(rule).unwrap();
            assert_eq!(spread.alternatives.len(), left, "{rule}");
            assert_eq!(spread.contradictions.into_iter().collect::<Vec<_>>(), [why], "{rule}");
        }
    }

    #[test]
    fn too_many_alternatives_are_refused_before_they_are_made() {
        let one_of = |name: &str| (0..16).map(|n| format!("Query(`{name}`, `{n}`)")).collect::<Vec<_>>().join(" || ");
        assert_eq!(read(&format!("({}) && ({})", one_of("a"), one_of("b"))).unwrap().alternatives.len(), MOST);
        assert!(read(&format!("({}) && ({}) && ({})", one_of("a"), one_of("b"), one_of("c"))).is_none());
    }

    #[test]
    fn the_host_key_narrows_every_alternative() {
        let host = |name: &str| HostPattern::Exact(name.to_owned());
        let mut spread = read("Host(`a.b`) && Path(`/x`) || Host(`e.f`) || Path(`/y`) && !Host(`c.d`)").unwrap();
        let matchers = matchers(&mut spread, &[host("a.b"), host("c.d")], Some(7));
        assert_eq!(matchers.iter().map(written).collect::<Vec<_>>(), ["a.b=/x", "a.b=/y"]);
        assert!(matchers.iter().all(|matcher| matcher.priority == Some(7)));
        let told: Vec<_> = spread.contradictions.into_iter().collect();
        assert_eq!(told, ["host is both e.f and a.b", "host is both e.f and c.d"]);
    }
}
