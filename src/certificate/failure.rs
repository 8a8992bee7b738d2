//! Why an authority gave no certificate, sorted by who has to do something about it. Retries are decided elsewhere, from this.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use instant_acme::{Error, Identifier, Problem};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::diagnostic::brief;

/// What an order came to, if not to a certificate. Texts are single sentences for people; they hold no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// These names cannot be had. The others of the request are not to blame, and may be had without these.
    Names(BTreeMap<String, Refusal>),
    /// The authority wants to be left alone until then, with orders for `names` (none: with any order of this account).
    RateLimited { until: Timestamp, names: BTreeSet<String>, text: String },
    /// The authority cannot be reached, is slow, or answers nonsense. It may say when to come back.
    Unavailable { retry_after: Option<Timestamp>, text: String },
    /// Only a person can help: terms, keys and accounts.
    Account { problem: AccountProblem, text: String },
    /// Something on this machine: a file, the store, a DNS provider that is not configured.
    Local(String),
}

/// Why one name cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The last part of the ACME problem type (RFC 8555, 6.7): `dns`, `connection`, `caa`, `rejectedIdentifier`, ...
    pub kind: String,
    pub text: String,
    pub blame: Blame,
    /// The authority tried to validate the name, which counts towards its limit of failed authorizations.
    pub tried: bool,
}

/// Who has to do something before the name can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// Whoever owns the name: its DNS records, its CAA record, a firewall; or the name itself is not allowed.
    Name,
    /// The authority.
    Authority,
    /// Whoever runs this edge: the challenge, the DNS provider.
    Edge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccountProblem {
    /// `acme.agree-tos` is not set, or the terms have changed.
    Terms,
    /// The authority wants an external account binding, or refuses ours.
    Binding,
    /// Revoked, deactivated, or unknown to the authority, even after registering again.
    Gone,
    /// The contact address is refused.
    Contact,
}

/// An answer of an authority that is an error, with what its problem document does not tell.
#[derive(Clone, Debug)]
pub struct Refused {
    pub status: u16,
    pub retry_after: Option<Timestamp>,
    /// `None`: the body is no problem document.
    pub problem: Option<Problem>,
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Some(problem) => formatter.write_str(&detail(problem)),
            None => write!(formatter, "it answers {}", self.status),
        }
    }
}

impl std::error::Error for Refused {}

/// How long we stay away when the authority says "too often" and not until when.
const UNTOLD: Duration = Duration::from_secs(3600);
/// No limit of a known authority is longer than a week.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);

impl Failure {
    /// What `error` means for an order of `names`.
    pub fn of(error: &Error, names: &BTreeSet<String>, now: Timestamp) -> Failure {
        match error {
            Error::Api(problem) => of_problem(problem, None, names, now),
            Error::Other(inner) => match inner.downcast_ref::<Refused>() {
                Some(Refused { problem: Some(problem), retry_after, .. }) => of_problem(problem, *retry_after, names, now),
                Some(refused @ Refused { status: 429, .. }) => rate_limited(refused.retry_after, BTreeSet::new(), refused.to_string(), now),
                Some(refused) => Failure::Unavailable { retry_after: refused.retry_after, text: refused.to_string() },
                None => Failure::unavailable(with_causes(inner.as_ref())),
            },
            Error::Json(error) => Failure::unavailable(format!("it answers what is not ACME: {error}")),
            other => Failure::unavailable(other.to_string()),
        }
    }

    pub fn unavailable(text: impl Into<String>) -> Failure {
        Failure::Unavailable { retry_after: None, text: text.into() }
    }

    /// The same refusal for one name.
    pub fn name(name: &str, refusal: Refusal) -> Failure {
        Failure::Names(BTreeMap::from([(name.to_owned(), refusal)]))
    }
}

impl Refusal {
    /// What the authority says of a name that it `tried` to validate, or never did.
    pub fn of(problem: &Problem, tried: bool) -> Refusal {
        let kind = kind(problem);
        let blame = match kind {
            "serverInternal" | "rateLimited" | "badNonce" => Blame::Authority,
            "incorrectResponse" | "unauthorized" if tried => Blame::Edge,
            _ => Blame::Name,
        };
        Refusal { kind: kind.to_owned(), text: detail(problem), blame, tried }
    }

    /// One that we know of before anybody is asked.
    pub fn ours(kind: &str, blame: Blame, text: impl Into<String>) -> Refusal {
        Refusal { kind: kind.to_owned(), text: text.into(), blame, tried: false }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Names(names) => {
                let told: Vec<String> = names.iter().map(|(name, refusal)| format!("{name}: {}", refusal.text)).collect();
                formatter.write_str(&told.join("; "))
            }
            Failure::RateLimited { until, text, .. } => write!(formatter, "the authority's limit is reached until {until}: {text}"),
            Failure::Unavailable { text, .. } => write!(formatter, "the authority cannot be used: {text}"),
            Failure::Account { text, .. } | Failure::Local(text) => formatter.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

/// The last part of a problem's type; other namespaces keep their whole type.
pub fn kind(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or("unknown");
    kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind)
}

/// The problem type that `error` carries, whichever way it came.
pub fn kind_of(error: &Error) -> Option<&str> {
    match error {
        Error::Api(problem) => Some(kind(problem)),
        Error::Other(inner) => inner.downcast_ref::<Refused>().and_then(|refused| refused.problem.as_ref()).map(kind),
        _ => None,
    }
}

/// May the very same request succeed in a moment?
pub fn is_passing(error: &Error) -> bool {
    match error {
        Error::Api(problem) => matches!(kind(problem), "badNonce" | "serverInternal"),
        Error::Other(inner) => match inner.downcast_ref::<Refused>() {
            Some(Refused { problem: Some(problem), .. }) => matches!(kind(problem), "badNonce" | "serverInternal"),
            Some(refused) => refused.status >= 500,
            None => true, // no answer at all
        },
        _ => false,
    }
}

fn of_problem(problem: &Problem, retry_after: Option<Timestamp>, names: &BTreeSet<String>, now: Timestamp) -> Failure {
    let account = |problem_kind, text: String| Failure::Account { problem: problem_kind, text };
    match kind(problem) {
        "rateLimited" => rate_limited(retry_after, about(problem, names), detail(problem), now),
        "serverInternal"
        | "badNonce"
        | "malformed"
        | "badSignatureAlgorithm"
        | "badRevocationReason"
        | "alreadyRevoked"
        | "orderNotReady"
        | "alreadyReplaced"
        | "badCSR"
        | "badPublicKey"
            if problem.subproblems.is_empty() =>
        {
            Failure::Unavailable { retry_after, text: detail(problem) }
        }
        "accountDoesNotExist" => account(AccountProblem::Gone, detail(problem)),
        "externalAccountRequired" => account(AccountProblem::Binding, detail(problem)),
        "userActionRequired" => account(AccountProblem::Terms, detail(problem)),
        "invalidContact" | "unsupportedContact" => account(AccountProblem::Contact, detail(problem)),
        "invalidProfile" => Failure::Local(format!("the profile is refused: {}", detail(problem))),
        "unauthorized" if problem.subproblems.is_empty() => account(AccountProblem::Gone, detail(problem)),
        _ => Failure::Names(refused_names(problem, names)),
    }
}

/// Which of `names` a problem is about: those of its subproblems, else those that its text quotes, else all.
fn refused_names(problem: &Problem, names: &BTreeSet<String>) -> BTreeMap<String, Refusal> {
    let mut found = BTreeMap::new();
    for part in &problem.subproblems {
        let own = Problem { r#type: part.r#type.clone(), detail: part.detail.clone(), status: None, subproblems: Vec::new() };
        let about = match &part.identifier {
            Some(Identifier::Dns(name)) => [name.clone(), format!("*.{name}")].into_iter().filter(|name| names.contains(name)).collect(),
            Some(Identifier::Ip(address)) => vec![address.to_string()],
            _ => Vec::new(),
        };
        found.extend(about.into_iter().map(|name| (name, Refusal::of(&own, false))));
    }
    if found.is_empty() {
        let quoted = about(problem, names);
        let about = if quoted.is_empty() { names } else { &quoted };
        found.extend(about.iter().map(|name| (name.clone(), Refusal::of(problem, false))));
    }
    found
}

/// Those of `names` that the problem's text names, or of which it names a parent (`example.com` for a limit of the registered name).
fn about(problem: &Problem, names: &BTreeSet<String>) -> BTreeSet<String> {
    let text = problem.detail.as_deref().unwrap_or_default().to_ascii_lowercase();
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '*' | '_');
    let words: BTreeSet<&str> =
        text.split(|letter| !is_of_name(letter)).map(|word| word.trim_matches('.')).filter(|word| word.contains('.')).collect();
    let named = |name: &&String| words.iter().any(|word| *name == word || name.strip_suffix(word).is_some_and(|rest| rest.ends_with('.')));
    let exact: BTreeSet<String> = names.iter().filter(|name| words.contains(name.as_str())).cloned().collect();
    if exact.is_empty() { names.iter().filter(named).cloned().collect() } else { exact }
}

fn rate_limited(retry_after: Option<Timestamp>, names: BTreeSet<String>, text: String, now: Timestamp) -> Failure {
    let until = retry_after.unwrap_or(now + UNTOLD).min(now + LONGEST);
    Failure::RateLimited { until, names, text }
}

fn detail(problem: &Problem) -> String {
    let text = problem.detail.as_deref().unwrap_or("it gives no reason");
    match kind(problem) {
        "unknown" => one_line(text),
        kind => format!("{} ({})", one_line(text), brief(kind)),
    }
}

/// An authority's text, short and on one line.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(LONGEST).collect();
    line.truncate(line.trim_end().len());
    line
}

/// hyper's errors say little themselves; what happened is in their causes.
fn with_causes(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    one_line(&text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> BTreeSet<String> {
        ["a.example.com", "*.b.example.com", "other.test"].map(str::to_owned).into()
    }

    fn told(kind: &str, detail: &str) -> Failure {
        let problem = serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail});
        Failure::of(&Error::Api(serde_json::from_value(problem).expect("a problem")), &names(), Timestamp::UNIX_EPOCH)
    }

    /// Texts as Let's Encrypt writes them.
    #[test]
    fn a_limit_is_one_of_the_names_that_its_text_names() {
        let hour = Timestamp::UNIX_EPOCH + UNTOLD;
        for (detail, expected) in [
            (
                "too many certificates (50) already issued for \"example.com\" in the last 168h0m0s",
                &["*.b.example.com", "a.example.com"][..],
            ),
            ("too many failed authorizations (5) for \"other.test\" in the last 1h0m0s", &["other.test"]),
            (
                "too many certificates (5) already issued for this exact set of identifiers: A.example.com, other.test.",
                &["a.example.com", "other.test"],
            ),
            ("too many new orders (300) from this account in the last 3h0m0s", &[]),
            ("see https://letsencrypt.org/docs/rate-limits/", &[]),
        ] {
            match told("rateLimited", detail) {
                Failure::RateLimited { until, names, .. } => {
                    assert_eq!((until, names.iter().map(String::as_str).collect::<Vec<_>>()), (hour, expected.to_vec()), "{detail}");
                }
                other => panic!("{detail}: {other:?}"),
            }
        }
    }

    #[test]
    fn problems_are_sorted_by_who_must_do_something() {
        let gone = |failure| matches!(failure, Failure::Account { problem: AccountProblem::Gone, .. });
        assert!(gone(told("accountDoesNotExist", "")) && gone(told("unauthorized", "Account is not valid, has status \"deactivated\"")));
        assert!(matches!(told("externalAccountRequired", ""), Failure::Account { problem: AccountProblem::Binding, .. }));
        assert!(matches!(told("unsupportedContact", ""), Failure::Account { problem: AccountProblem::Contact, .. }));
        assert!(matches!(told("serverInternal", ""), Failure::Unavailable { .. }));
        assert!(matches!(told("invalidProfile", ""), Failure::Local(_)));
        for kind in ["caa", "dns", "rejectedIdentifier", "unsupportedIdentifier", "something-new"] {
            let Failure::Names(refused) = told(kind, "cannot issue for \"other.test\"") else { panic!("{kind}") };
            assert!(refused.keys().eq(["other.test"]), "{kind}: {refused:?}");
            let Failure::Names(refused) = told(kind, "no") else { panic!("{kind}") };
            assert_eq!(refused.len(), 3, "where nobody is named, all are: {kind}");
        }
    }

    #[test]
    fn subproblems_name_their_names() {
        let part = |kind: &str, name: &str| serde_json::json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "no", "identifier": {"type": "dns", "value": name}});
        let problem = serde_json::json!({
            "type": "urn:ietf:params:acme:error:malformed", "detail": "some are refused",
            "subproblems": [part("caa", "b.example.com"), part("rejectedIdentifier", "other.test")],
        });
        let error = Error::Api(serde_json::from_value(problem).expect("a problem"));
        let Failure::Names(refused) = Failure::of(&error, &names(), Timestamp::UNIX_EPOCH) else { panic!() };
        let kinds: Vec<_> = refused.iter().map(|(name, refusal)| (name.as_str(), refusal.kind.as_str())).collect();
        assert_eq!(kinds, [("*.b.example.com", "caa"), ("other.test", "rejectedIdentifier")]);
    }

    proptest! {
        #[test]
        fn any_problem_is_sorted(kind in "\\PC{0,30}", detail in "\\PC{0,200}") {
            let failure = told(&kind, &detail);
            prop_assert!(!failure.to_string().chars().any(|letter| letter.is_control() && letter != '\n'));
            if let Failure::Names(refused) = failure {
                prop_assert!(!refused.is_empty() && refused.keys().all(|name| names().contains(name)));
            }
        }
    }
}
