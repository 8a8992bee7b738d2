//! Why a request goes where it goes: every route that came into question, why it lost, and what becomes of the winner's tasks.
//! For `skep explain`; it asks the same table that serves requests, so it cannot disagree with them.

use serde::Serialize;

use super::State;
use super::listing::{self, Ailment, View};
use crate::diagnostic::{Diagnostic, Place};
use crate::route::Head;

/// What becomes of one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Best first; the first that matches wins.
    pub candidates: Vec<Considered>,
    pub winner: Option<View>,
    /// Findings about the services in question, and about labels that name the host.
    pub findings: Vec<Diagnostic>,
}

/// A route that came into question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Considered {
    pub route: String,
    pub service: String,
    /// Host and path, `app.example.com/api`.
    pub place: String,
    pub wins: bool,
    /// Why it does not, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

impl State {
    /// What becomes of a request with this head, as far as Docker knows.
    pub fn explain(&self, head: &Head<'_>) -> Explanation {
        self.explain_with(head, &|_| None)
    }

    /// The same with what a running edge knows.
    pub fn explain_with(&self, head: &Head<'_>, ailment: Ailment<'_>) -> Explanation {
        let mut winner: Option<String> = None;
        let mut candidates = Vec::new();
        for candidate in self.table.explain(head) {
            let lost = match (candidate.verdict, &winner) {
                (Err(reason), _) => Some(reason),
                (Ok(()), Some(better)) => Some(format!("it matches, but route `{better}` goes first")),
                (Ok(()), None) => None,
            };
            if lost.is_none() {
                winner = Some(candidate.payload.id.to_string());
            }
            candidates.push(Considered {
                route: candidate.payload.id.to_string(),
                service: candidate.payload.service.to_string(),
                place: listing::place(&candidate.host, &candidate.path),
                wins: lost.is_none(),
                lost,
            });
        }
        let winner = winner.and_then(|id| self.view_with(&id, ailment));
        let findings = self.diagnostics.iter().filter(|finding| concerns(finding, &candidates, head.host)).cloned().collect();
        Explanation { candidates, winner, findings }
    }
}

/// Is the finding about a service in question, or about a label that names the host?
fn concerns(finding: &Diagnostic, candidates: &[Considered], host: &str) -> bool {
    let subject = finding.subject.strip_prefix("service ").unwrap_or(&finding.subject);
    let names_host = match &finding.place {
        Some(Place::Label { value, .. }) => value.to_ascii_lowercase().contains(host),
        _ => false,
    };
    names_host || candidates.iter().any(|candidate| candidate.service == subject)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{build, get, service};
    use super::*;

    fn shop() -> State {
        build(vec![
            service("shop", 1, &[("skep.host", "a.example.com")]),
            service("beta", 2, &[("skep.host", "a.example.com"), ("skep.header", "X-Beta=1")]),
            service("wild", 3, &[("skep.host", "*.example.com")]),
            service("late", 4, &[("skep.host", "a.example.com")]),
        ])
    }

    #[test]
    fn every_candidate_says_why_it_lost() {
        let explanation = get("a.example.com/x", |head| shop().explain(head));
        let told: Vec<_> = explanation.candidates.iter().map(|one| (one.route.as_str(), one.place.as_str(), one.wins)).collect();
        let wanted = [("beta", "a.example.com/", false), ("shop", "a.example.com/", true), ("wild", "*.example.com/", false)];
        assert_eq!(told, wanted, "{explanation:?}");
        let lost: Vec<_> = explanation.candidates.iter().map(|one| one.lost.as_deref().unwrap_or_default()).collect();
        assert!(lost[0].contains("x-beta") || lost[0].contains("X-Beta"), "{lost:?}");
        assert_eq!((lost[1], lost[2]), ("", "it matches, but route `shop` goes first"));
        assert_eq!(explanation.winner.as_ref().map(|view| view.id.as_str()), Some("shop"));
        let codes: Vec<_> = explanation.findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(codes, ["route-taken", "route-contested"], "the refused service is found by its host");
    }

    #[test]
    fn the_winner_is_who_serves() {
        let state = shop();
        for url in ["a.example.com/", "b.example.com/x", "b.c.example.com/", "example.org/"] {
            let served = get(url, |head| state.table.find(head).map(|route| route.id.to_string()));
            assert_eq!(get(url, |head| state.explain(head)).winner.map(|view| view.id), served, "{url}");
        }
    }

    #[test]
    fn a_host_that_nobody_serves_has_no_winner() {
        let explanation = get("example.org/", |head| shop().explain(head));
        assert!(explanation.winner.is_none() && explanation.candidates.iter().all(|one| !one.wins));
    }
}
