//! How each wanted name stands: computed from what the plan is computed from, so that no view can tell another story.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Source;
use super::coverage::{Coverage, Service};
use super::due::pressing;
use super::names;
use super::plan::{Action, Scene, plan};
use super::ready::never;
use crate::diagnostic::Diagnostic;

/// One wanted name. For `skep certs`, the admin listener and the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub name: String,
    pub service: String,
    pub source: Source,
    pub state: State,
    /// Of the certificate that serves it, or served it last.
    pub expires: Option<Timestamp>,
    pub issuer: Option<String>,
    pub record: Option<String>,
    /// What stands in the way of a new one.
    pub error: Option<String>,
    pub help: Option<String>,
    /// What is being done, and when something is done next.
    pub doing: Option<String>,
    pub next: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Valid,
    /// Valid, but its renewal fails or is late.
    Expiring,
    /// No valid certificate yet: a self-signed one answers meanwhile.
    Waiting,
    /// No configured authority can certify the name: a self-signed one answers.
    Refused,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Valid => "valid",
            State::Expiring => "expiring",
            State::Waiting => "waiting",
            State::Refused => "refused",
        }
    }
}

/// All that is to be told of certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub names: Vec<Standing>,
    /// What is done next, as of now.
    pub plan: Vec<Action>,
    pub under_way: Vec<Action>,
}

/// All wanted names, in the order of their names.
pub fn standings(scene: &Scene<'_>) -> Vec<Standing> {
    let coverage = Coverage::new(scene.records, scene.now, scene.seed);
    let ahead = Ahead::of(scene);
    let wanted = scene.wishes.iter().flat_map(|wish| wish.names.iter().map(move |name| (name, wish)));
    let mut found: Vec<Standing> = wanted
        .map(|(name, wish)| {
            let served = coverage.of(name, wish.source);
            let record = served.record();
            let refusal = if wish.source == Source::Acme { never(scene.policy, name) } else { None };
            let mut standing = Standing {
                name: name.clone(),
                service: wish.service.clone(),
                source: record.map_or(wish.source, |record| record.source),
                state: State::Valid,
                expires: record.map(|record| record.not_after),
                issuer: record.and_then(|record| record.issuer.clone()),
                record: record.map(|record| record.id.clone()),
                error: ahead.error(name),
                help: None,
                doing: ahead.doing(name),
                next: ahead.next(name, record.map_or(&[], |record| &record.names)),
            };
            standing.state = match served {
                Service::Fresh(_) => State::Valid,
                Service::Due(record) if standing.error.is_some() || pressing(record) <= scene.now => State::Expiring,
                Service::Due(_) => State::Valid,
                Service::Missing(_) if refusal.is_some() => State::Refused,
                Service::Missing(_) => State::Waiting,
            };
            if let (State::Refused | State::Expiring, Some(refusal)) = (standing.state, refusal) {
                (standing.error, standing.help) = (Some(refusal.message), Some(refusal.help.to_owned()));
            }
            standing
        })
        .collect();
    found.sort_by(|one, other| (&one.name, &one.service).cmp(&(&other.name, &other.service)));
    found
}

impl Standing {
    /// The finding about a name that has no certificate, or will have none soon, and why.
    pub fn finding(&self) -> Option<Diagnostic> {
        let error = self.error.as_deref()?;
        let name = &self.name;
        let finding = match self.state {
            State::Valid => return None,
            State::Expiring => Diagnostic::warning("certificate-expiring", format!("the certificate of `{name}` is not renewed: {error}")),
            State::Waiting => Diagnostic::error("no-certificate", format!("`{name}` has no certificate: {error}")),
            State::Refused => Diagnostic::error("no-certificate", format!("`{name}` cannot have a certificate: {error}")),
        };
        let finding = finding.of(format!("service {}", self.service));
        Some(match (&self.help, self.next) {
            (Some(help), _) => finding.help(help.clone()),
            (None, Some(next)) => finding.help(format!("it is tried again at {next:.0}")),
            (None, None) => finding,
        })
    }
}

/// What the plan has in store for each name.
#[derive(Default)]
struct Ahead {
    doing: BTreeMap<String, String>,
    errors: BTreeMap<String, String>,
    next: BTreeMap<String, Timestamp>,
}

impl Ahead {
    fn of(scene: &Scene<'_>) -> Ahead {
        let mut ahead = Ahead::default();
        for action in scene.under_way.iter().map(|started| &started.action) {
            ahead.note(action);
        }
        for action in plan(scene) {
            ahead.note(&action);
            let Action::Wait { names, until, reason } = action else { continue };
            for name in names {
                if let Some(error) = reason.error() {
                    ahead.errors.entry(name.clone()).or_insert(error);
                }
                // Waits come in the order of time: the first one is the next.
                ahead.next.entry(name).or_insert(until);
            }
        }
        ahead
    }

    fn note(&mut self, action: &Action) {
        let (names, doing) = match action {
            Action::Issue { names, .. } => (names, "issuing it".to_owned()),
            Action::Probe { names } => (names, "asking whether the name reaches this edge".to_owned()),
            Action::Order(order) => (&order.names, format!("ordering it from {}", order.issuer)),
            _ => return,
        };
        for name in names {
            self.doing.entry(name.clone()).or_insert_with(|| doing.clone());
        }
    }

    fn doing(&self, name: &str) -> Option<String> {
        self.doing.get(name).cloned()
    }

    fn error(&self, name: &str) -> Option<String> {
        self.errors.get(name).cloned()
    }

    /// A name that is served by a wildcard is renewed with it.
    fn next(&self, name: &str, served_by: &[String]) -> Option<Timestamp> {
        let mut all = served_by.iter().filter(|own| names::covers(own, name)).filter_map(|own| self.next.get(own));
        self.next.get(name).or_else(|| all.next()).copied()
    }
}
