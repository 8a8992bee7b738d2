//! Which route a request belongs to: every clause of the precedence as a row, and the index against a naive table.
//! A route is written as `name @day | key: value | ...` (the day it was created), a request as `METHOD host/path?query Header=value from=ip`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};
use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;
use skep::label::{Dialect, RouteSpec, Value};
use skep::route::{self, Entry, Head, HostPattern, Matcher, PathPattern, Table};

/// What a route line says, ready for the table.
fn entries(line: &str) -> Vec<Entry<String>> {
    let mut parts = line.split(" | ");
    let (owner, day) = parts.next().unwrap().split_once('@').unwrap();
    let mut values = BTreeMap::new();
    for part in parts {
        let (key, value) = part.split_once(':').unwrap();
        let key = route::KEYS.iter().find(|known| known.name == key.trim()).unwrap();
        values.insert(key.name, Value::new(&format!("skep.{}", key.name), value).unwrap());
    }
    let spec = RouteSpec { name: String::new(), dialect: Dialect::Native, values, closed: None };
    let (matching, findings) = route::parse(&spec);
    let matching = matching.unwrap_or_else(|| panic!("{line}: {findings:?}"));
    assert_eq!(findings, [], "{line}");
    let created = Timestamp::UNIX_EPOCH + (24 * day.trim().parse::<i64>().unwrap()).hours();
    let entry = |matcher| Entry { matcher, created, owner: owner.trim().to_owned(), payload: owner.trim().to_owned() };
    matching.alternatives.into_iter().map(entry).collect()
}

/// A request line, owned.
struct Request {
    method: Method,
    host: String,
    path: String,
    query: String,
    headers: HeaderMap,
    client: IpAddr,
}

impl Request {
    fn new(line: &str) -> Request {
        let mut words = line.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let url = words.next().unwrap();
        let (url, query) = url.split_once('?').unwrap_or((url, ""));
        let at = url.find('/').unwrap();
        let (host, path) = url.split_at(at);
        let mut request = Request {
            method,
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            client: "192.0.2.1".parse().unwrap(),
        };
        for word in words {
            match word.split_once('=').unwrap() {
                ("from", client) => request.client = client.parse().unwrap(),
                (name, value) => drop(request.headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap())),
            }
        }
        request
    }

    fn head(&self) -> Head<'_> {
        Head { host: &self.host, path: &self.path, query: &self.query, method: &self.method, headers: &self.headers, client: self.client }
    }
}

/// Checks `requests` (line, winner or `-`) against the table of `routes`, given in this order and backwards.
fn check(routes: &[&str], requests: &[(&str, &str)]) {
    let forwards: Vec<_> = routes.iter().flat_map(|line| entries(line)).collect();
    let backwards: Vec<_> = forwards.iter().rev().cloned().collect();
    for input in [forwards, backwards] {
        let (table, _) = Table::build(input);
        for (line, winner) in requests {
            let request = Request::new(line);
            let found = table.find(&request.head()).map_or("-", String::as_str);
            assert_eq!(found, *winner, "{line} among {routes:#?}: {:#?}", table.explain(&request.head()));
            let explained = table.explain(&request.head()).into_iter().find(|candidate| candidate.verdict.is_ok());
            assert_eq!(explained.map_or("-", |candidate| candidate.payload), *winner, "explain: {line}");
        }
    }
}

#[test]
fn exact_host_before_wildcard_before_any() {
    check(
        &["exact @9 | host: app.example.com", "wild @5 | host: *.example.com", "long @1 | host: *.example.com | path: /very/long"],
        &[
            ("GET app.example.com/", "exact"),
            // Even a longer path under a wildcard does not take an exact host's request.
            ("GET app.example.com/very/long", "exact"),
            ("GET www.example.com/", "wild"),
            ("GET www.example.com/very/long", "long"),
            // One label deep.
            ("GET a.b.example.com/", "-"),
            ("GET example.com/", "-"),
            ("GET .example.com/", "-"),
            ("GET other.org/", "-"),
        ],
    );
}

#[test]
fn longer_path_and_exact_path_first() {
    check(
        &[
            "root @1 | host: a.example.com",
            "api @2 | host: a.example.com | path: /api",
            "v1 @3 | host: a.example.com | path: /api/v1/",
            "exact @4 | host: a.example.com | path: =/api",
        ],
        &[
            ("GET a.example.com/", "root"),
            ("GET a.example.com/apix", "root"),
            ("GET a.example.com/api", "exact"),
            ("GET a.example.com/api/", "api"),
            ("GET a.example.com/api/v1", "v1"),
            ("GET a.example.com/api/v1/users", "v1"),
            ("GET a.example.com/api/v10", "api"),
        ],
    );
}

#[test]
fn more_conditions_then_age_then_name() {
    check(
        &[
            "plain @1 | host: a.example.com",
            "beta @2 | host: a.example.com | header: X-Beta=1",
            "both @3 | host: a.example.com | header: X-Beta=1 | query: debug",
            "post @4 | host: a.example.com | method: POST, PUT",
            "late @9 | host: b.example.com | header: X-One",
            "early @8 | host: b.example.com | header: X-Two",
            "bee @7 | host: c.example.com | header: X-One",
            "ant @7 | host: c.example.com | header: X-Two",
        ],
        &[
            ("GET a.example.com/", "plain"),
            ("GET a.example.com/ X-Beta=1", "beta"),
            ("GET a.example.com/ X-Beta=0", "plain"),
            ("GET a.example.com/?debug=x X-Beta=1", "both"),
            ("GET a.example.com/?debug X-Beta=1", "both"),
            ("POST a.example.com/", "post"),
            ("PUT a.example.com/", "post"),
            // One condition each: the older one.
            ("PUT a.example.com/ X-Beta=1", "beta"),
            ("GET b.example.com/ X-One=1 X-Two=2", "early"),
            ("GET c.example.com/ X-One=1 X-Two=2", "ant"),
            ("GET c.example.com/ X-One=1", "bee"),
            ("GET c.example.com/", "-"),
        ],
    );
}

#[test]
fn explicit_priority_beats_everything() {
    check(
        &[
            "exact @1 | host: a.example.com | path: =/x | header: X-Beta=1",
            "wild @2 | host: *.example.com | priority: 5",
            "last @0 | host: a.example.com | path: /y | priority: -1",
        ],
        &[("GET a.example.com/x X-Beta=1", "wild"), ("GET b.example.com/", "wild"), ("GET a.example.com/y", "wild")],
    );
    check(
        &["usual @2 | host: a.example.com", "last @1 | host: a.example.com | path: /y | priority: -1"],
        &[("GET a.example.com/y", "usual")],
    );
}

#[test]
fn rules_beside_hosts_and_paths() {
    check(
        &[
            "site @1 | host: a.example.com",
            "api @2 | host: a.example.com | path: /api",
            "start @1 | rule: Host(`a.example.com`) && PathPrefix(`/api`)",
            "either @3 | rule: Host(`b.example.com`) && (Path(`/x`) || PathPrefix(`/y/`)) && !Query(`off`)",
            "teams @4 | rule: HostRegexp(`^team-[0-9]+\\.example\\.com$`)",
            "inside @5 | rule: ClientIP(`10.0.0.0/8`) && PathPrefix(`/inside`)",
            "old @6 | host: c.example.com | rule: PathRegexp(`^/v[12]/`)",
            "wild @7 | host: *.wild.example.com",
        ],
        &[
            ("GET a.example.com/", "site"),
            // For equal texts segments go before the string prefix, whatever their age.
            ("GET a.example.com/api/x", "api"),
            ("GET a.example.com/apix", "start"),
            ("GET a.example.com/ap", "site"),
            ("GET b.example.com/x", "either"),
            ("GET b.example.com/y/z", "either"),
            ("GET b.example.com/y", "-"),
            ("GET b.example.com/x?off=", "-"),
            ("GET b.example.com/x?off=1", "either"),
            ("GET team-7.example.com/", "teams"),
            ("GET team-x.example.com/", "-"),
            ("GET other.org/inside/x from=10.1.2.3", "inside"),
            ("GET other.org/inside/x from=11.1.2.3", "-"),
            // A host goes before a path on any host.
            ("GET a.example.com/inside from=10.1.2.3", "site"),
            ("GET x.wild.example.com/inside from=10.1.2.3", "wild"),
            ("GET team-7.example.com/inside from=10.1.2.3", "inside"),
            ("GET c.example.com/v1/x", "old"),
            ("GET c.example.com/v3/x", "-"),
        ],
    );
}

#[test]
fn explain_says_why_every_other_route_lost() {
    let routes = [
        "exact @1 | host: a.example.com | path: =/x",
        "deep @2 | host: a.example.com | path: /x/y",
        "beta @3 | host: a.example.com | path: /x | header: X-Beta=1 | query: q",
        "wild @4 | host: *.example.com",
        "any @5 | rule: PathPrefix(`/z`)",
        "elsewhere @6 | host: b.example.com",
    ];
    let (table, _) = Table::build(routes.iter().flat_map(|line| entries(line)).collect());
    let explain = |line: &str| {
        let request = Request::new(line);
        let candidates = table.explain(&request.head());
        candidates.into_iter().map(|one| format!("{}: {}", one.payload, one.verdict.err().unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(
        explain("GET a.example.com/x/1 X-Beta=0"),
        [
            "deep: path is /x/1, wants /x/y or below it",
            "exact: path is /x/1, wants exactly /x",
            "beta: header X-Beta is \"0\", wants Header(`X-Beta`, `1`); query parameter q is missing, wants QueryRegexp(`q`, ``)",
            "wild: ",
            "any: path is /x/1, wants one that starts with /z",
        ]
    );
    assert_eq!(explain("GET other.org/"), ["any: path is /, wants one that starts with /z"]);
    let refused = explain("GET w.example.com//x");
    assert_eq!(refused[0], "wild: ", "all readings lead to it");
    let refused = explain("GET a.example.com/%2fx");
    assert_eq!(refused[3], "wild: some servers read /%2Fx as /x, which is not this route's: refused");
    assert_eq!(explain("GET a.example.com/%")[3], "wild: path \"/%\" is malformed, or servers read it differently");
}

#[test]
fn no_spelling_of_a_path_leads_around_a_longer_route() {
    check(
        &[
            "open @1 | host: a.example.com",
            "guarded @2 | host: a.example.com | path: /admin",
            "at @3 | host: a.example.com | path: /@me/käse",
        ],
        &[
            ("GET a.example.com/admin", "guarded"),
            ("GET a.example.com/%61dmin", "guarded"),
            ("GET a.example.com/x/../admin", "guarded"),
            ("GET a.example.com/x/%2e%2e/admin", "guarded"),
            ("GET a.example.com/./admin/", "guarded"),
            ("GET a.example.com/admin/../x", "open"),
            ("GET a.example.com/admin//x", "guarded"),
            ("GET a.example.com/%40me/k%c3%a4se", "at"),
            // Harmless oddities pass.
            ("GET a.example.com/projects/group%2Fname", "open"),
            ("GET a.example.com/fetch/http://other.org//x", "open"),
            ("GET a.example.com/page;jsessionid=1", "open"),
            ("GET a.example.com/100%25/%FF", "open"),
            // What a laxer server would read as /admin belongs to nobody.
            ("GET a.example.com//admin", "-"),
            ("GET a.example.com/%2Fadmin", "-"),
            ("GET a.example.com/%5cadmin", "-"),
            ("GET a.example.com/;/admin", "-"),
            ("GET a.example.com/;x=y/admin", "-"),
            ("GET a.example.com/admin;x", "-"),
            ("GET a.example.com/admin%3Bx", "-"),
            ("GET a.example.com/admin%2Fx", "-"),
            ("GET a.example.com/x/..%2fadmin", "-"),
            ("GET a.example.com/x/..;/admin", "-"),
            ("GET a.example.com/x//../admin", "-"),
            ("GET a.example.com/%zz", "-"),
        ],
    );
}

#[test]
fn the_same_place_twice_is_a_conflict_that_the_older_service_wins() {
    let lines = [
        "young @5 | host: a.example.com, b.example.com | path: /x | header: X-B, X-A",
        "old @3 | host: a.example.com | path: /x/ | header: X-A, X-B",
        "twin @5 | host: b.example.com | path: /x | header: X-A, X-B",
        "other @9 | host: a.example.com | path: /x | header: X-A, X-B | priority: 1",
    ];
    let input: Vec<_> = lines.iter().flat_map(|line| entries(line)).collect();
    let (table, conflicts) = Table::build(input);
    let conflicts: Vec<_> =
        conflicts.iter().map(|one| (lines[one.kept], lines[one.refused], one.host.to_string(), one.path.to_string())).collect();
    let place = |host: &str| (host.to_owned(), "/x".to_owned());
    let wanted = [(lines[1], lines[0], place("a.example.com")), (lines[2], lines[0], place("b.example.com"))];
    let wanted: Vec<_> = wanted.into_iter().map(|(kept, refused, (host, path))| (kept, refused, host, path)).collect();
    assert_eq!(conflicts, wanted);
    assert_eq!(table.hosts().map(HostPattern::to_string).collect::<Vec<_>>(), ["a.example.com", "b.example.com"]);
}

/// The table as one would write it without thinking of speed.
fn naive<'a>(entries: &'a [Entry<u32>], head: &Head<'_>) -> Option<&'a u32> {
    let fits = |matcher: &Matcher, host: &HostPattern| {
        host.fits(head.host) && matcher.path.fits(head.path) && matcher.conditions.iter().all(|condition| condition.holds(head, head.path))
    };
    let order = |entry: &Entry<u32>, host: &HostPattern| {
        let Matcher { path, conditions, priority, .. } = &entry.matcher;
        let host = match host {
            HostPattern::Exact(_) => 2,
            HostPattern::Wildcard(_) => 1,
            HostPattern::Any => 0,
        };
        let kind = match path {
            PathPattern::Exact(_) => 2,
            PathPattern::Prefix(_) => 1,
            PathPattern::Start(_) => 0,
        };
        (priority.unwrap_or(0), host, path.text().len(), kind, conditions.len(), Reverse((entry.created, entry.owner.clone())))
    };
    let rows = entries.iter().flat_map(|entry| entry.matcher.hosts.iter().map(move |host| (entry, host)));
    let best = rows.filter(|(entry, host)| fits(&entry.matcher, host)).max_by_key(|(entry, host)| order(entry, host));
    best.map(|(entry, _)| &entry.payload)
}

fn host() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        Just(HostPattern::Any),
        prop_oneof![Just("x"), Just("b.x")].prop_map(|suffix| HostPattern::Wildcard(suffix.to_owned())),
        prop_oneof![Just("a.x"), Just("b.x"), Just("a.b.x"), Just("x")].prop_map(|name| HostPattern::Exact(name.to_owned())),
    ]
}

fn path() -> impl Strategy<Value = PathPattern> {
    let text = "(/[ab{]{1,2}){0,3}";
    prop_oneof![
        text.prop_map(|text| PathPattern::Prefix(if text.is_empty() { "/".to_owned() } else { text })),
        (text, "/?").prop_map(|(text, slash)| PathPattern::Exact(if text.is_empty() { "/".to_owned() } else { text + &slash })),
        (text, "/?").prop_map(|(text, slash)| PathPattern::Start(if text.is_empty() { "/".to_owned() } else { text + &slash })),
    ]
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let condition = prop_oneof![Just("GET"), Just("PUT")]
        .prop_map(|method| route::Condition { test: route::condition::Test::Method(method.to_owned()), negated: method == "PUT" });
    let conditions = prop::collection::btree_set(condition, 0..3).prop_map(|set| set.into_iter().collect());
    (host(), path(), conditions, prop::option::weighted(0.2, -1..2)).prop_map(|(host, path, conditions, priority)| Matcher {
        hosts: vec![host],
        path,
        conditions,
        priority,
    })
}

fn table() -> impl Strategy<Value = Vec<Entry<u32>>> {
    prop::collection::vec((matcher(), 0..3i64), 0..40).prop_map(|rows| {
        let entry = |(payload, (matcher, day)): (u32, (Matcher, i64))| {
            let created = Timestamp::UNIX_EPOCH + (24 * day).hours();
            Entry { matcher, created, owner: format!("service{payload}"), payload }
        };
        (0..).zip(rows).map(entry).collect()
    })
}

proptest! {
    #[test]
    fn the_index_finds_what_a_naive_table_finds(
        entries in table(),
        order in any::<prop::sample::Index>(),
        heads in prop::collection::vec(("(a|b|c)\\.(b\\.)?x|x", "(/[ab{]{1,2}){0,4}/?", prop_oneof![Just("GET"), Just("PUT")]), 1..20),
    ) {
        let mut turned = entries.clone();
        if !turned.is_empty() {
            turned.rotate_left(order.index(entries.len()));
        }
        let (table, conflicts) = Table::build(entries.clone());
        let (other, _) = Table::build(turned);
        for (host, path, method) in heads {
            let request = Request::new(&format!("{method} {host}{}", if path.is_empty() { "/" } else { &path }));
            let head = request.head();
            prop_assert_eq!(table.find(&head), naive(&entries, &head));
            prop_assert_eq!(table.find(&head), other.find(&head));
        }
        for conflict in conflicts {
            let (kept, refused) = (&entries[conflict.kept], &entries[conflict.refused]);
            prop_assert!((kept.created, &kept.owner) < (refused.created, &refused.owner));
        }
    }
}

/// One of the ways to write a character of a path that some server reads as that character.
fn spelling(character: char) -> BoxedStrategy<String> {
    let plain = character.to_string();
    match character {
        '/' => prop::sample::select(vec!["/", "/", "/", "//", "/./", "/;p=1/", "/x/../", "%2F", "%2f", "\\", "%5c", "/.;/", "/y/..;/"])
            .prop_map(str::to_owned)
            .boxed(),
        _ => {
            prop_oneof![Just(plain), Just(format!("%{:02x}", u32::from(character))), Just(format!("%{:02X}", u32::from(character)))].boxed()
        }
    }
}

proptest! {
    #[test]
    fn a_guarded_path_in_any_spelling_never_reaches_the_open_route(spelled in "/@dmin/x".chars().map(spelling).collect::<Vec<_>>(), end in ";q=1|/|//|") {
        let routes = ["open @1 | host: a.example.com", "guarded @2 | host: a.example.com | path: /@dmin"];
        let (table, _) = Table::build(routes.iter().flat_map(|line| entries(line)).collect());
        let path = spelled.concat() + &end;
        let request = Request::new(&format!("GET a.example.com{}{path}", if path.starts_with('/') { "" } else { "/" }));
        let found = table.find(&request.head());
        prop_assert!(found.is_none_or(|found| found == "guarded"), "{} {:?}", path, found);
    }
}
