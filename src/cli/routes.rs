//! `skep routes`: the whole table, one line a route, as the edge has it.
//! Findings are only counted here; `skep check` shows them.

use crate::diagnostic::{Diagnostic, Severity, brief, summary};
use crate::snapshot::Condition;
use crate::state::{ActionView, ShareView, View};
use crate::traffic::LimitNow;
use crate::traffic::circuit::Standing;

use super::source::Source;
use super::{Outcome, Verdict, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skep routes\n  skep routes --file stack.yml\n  skep routes --json | jq '.routes[].matches'")]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut facts = args.source.read()?;
    let limits = std::mem::take(&mut facts.limits);
    let (state, ledger) = facts.state();
    let routes = state.list_with(&|backend| ledger.get(&*backend.id)?.ailment.clone());
    if args.json {
        output::json(&serde_json::json!({ "routes": routes, "limits": limits, "findings": state.diagnostics }))?;
    } else {
        output::print(&text(&routes, &limits, &state.diagnostics))?;
    }
    let wrong = state.diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

fn text(routes: &[View], now: &[LimitNow], findings: &[Diagnostic]) -> String {
    let head = ["ROUTE", "SERVICE", "DIALECT", "TASKS", "ACCESS", "ACTION", "MATCHES"].map(str::to_owned).to_vec();
    let mut rows: Vec<Vec<String>> = std::iter::once(head).chain(routes.iter().map(row)).collect();
    if routes.iter().any(|view| !view.limits.is_empty()) {
        rows[0].push("LIMITS".to_owned());
        for (row, view) in rows[1..].iter_mut().zip(routes) {
            row.push(limits(view, now.iter().find(|now| *now.route == *view.id)));
        }
    }
    let table = if routes.is_empty() { String::new() } else { output::aligned(&rows, 0) + "\n" };
    let ailing: String = routes.iter().flat_map(ailing).collect();
    format!("{table}{ailing}{}; {}\n", output::count(routes.len(), "route"), summary(findings))
}

/// Tasks that are up and get no requests all the same: only the edge knows why, so it is said here.
fn ailing(view: &View) -> Vec<String> {
    let ActionView::Forward { services, .. } = &view.action else { return Vec::new() };
    let tasks =
        services.iter().flat_map(|share| &share.tasks).filter(|task| task.condition == Condition::Healthy && task.address.is_some());
    let told = tasks.filter_map(|task| Some(format!("{}: {} gets nothing: {}", view.id, task.task, task.why.as_ref()?)));
    told.map(|line| output::harmless(&line) + "\n").collect()
}

fn row(view: &View) -> Vec<String> {
    let (tasks, action) = match &view.action {
        ActionView::Redirect { host } => ("-".to_owned(), format!("redirect to {host}")),
        ActionView::Forward { balance, sticky, services, .. } => {
            let all: Vec<_> = services.iter().flat_map(|share| &share.tasks).collect();
            let usable = all.iter().filter(|task| task.usable).count();
            let sticky = sticky.as_ref().map(|cookie| format!(", sticky {cookie}")).unwrap_or_default();
            (format!("{usable}/{}", all.len()), format!("{}{balance}{sticky}", shares(services)))
        }
    };
    let access = match &view.closed {
        Some(_) => format!("{} (closed: 503)", view.access),
        None => view.access.clone(),
    };
    let matches = brief_list(&view.matches);
    vec![view.id.clone(), view.service.clone(), view.dialect.to_owned(), tasks, access, action, matches]
}

/// As the labels have them; a circuit that is not closed says so.
pub(super) fn limits(view: &View, now: Option<&LimitNow>) -> String {
    let standing = now.and_then(|now| now.circuit).filter(|standing| *standing != Standing::Closed);
    let word = |word: &String| match standing {
        Some(standing) if word.starts_with("circuit ") => format!("{word}: {}", standing.to_string().to_uppercase()),
        _ => word.clone(),
    };
    view.limits.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// `shop 9, shop-next 1; ` where several services share the route.
fn shares(services: &[ShareView]) -> String {
    match services {
        [] | [_] => String::new(),
        several => several.iter().map(|share| format!("{} {}", share.service, share.weight)).collect::<Vec<_>>().join(", ") + "; ",
    }
}

fn brief_list(matches: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = matches.iter().take(SHOWN).map(|place| brief(place)).collect();
    if matches.len() > SHOWN {
        shown.push(format!("and {} more", matches.len() - SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::{Origin, Service, Snapshot};
    use crate::state::State;

    #[test]
    fn limits_have_a_column_and_an_open_circuit_says_so() {
        let labels = [("skep.host", "a.de"), ("skep.address", "10.0.0.1:80"), ("skep.circuit", "on"), ("skep.max-body", "1MB")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let service = Service { name: "shop".to_owned(), origin: Origin::File, labels, ..Service::default() };
        let state = State::build(Arc::default(), Arc::new(Snapshot { services: vec![service], ..Snapshot::default() }));
        let said = |standing| {
            let now = LimitNow { route: "shop".into(), circuit: standing, ..LimitNow::default() };
            text(&state.list(), &[now], &[])
        };
        assert!(said(Some(Standing::Open)).contains("max-body 1000000, circuit 50% of 20 in 10s for 15s: OPEN"), "{}", said(None));
        assert!(!said(Some(Standing::Closed)).contains("CLOSED") && said(None).contains("LIMITS"));
    }
}
