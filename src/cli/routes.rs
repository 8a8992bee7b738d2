//! `skep routes`: the whole table, one line a route, as the edge has it.
//! Findings are only counted here; `skep check` shows them.

use crate::diagnostic::{Diagnostic, Severity, brief, summary};
use crate::snapshot::Condition;
use crate::state::{ActionView, ShareView, View};

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
    let (state, ledger) = args.source.read()?.state();
    let routes = state.list_with(&|backend| ledger.get(&*backend.id)?.ailment.clone());
    if args.json {
        output::json(&serde_json::json!({ "routes": routes, "findings": state.diagnostics }))?;
    } else {
        output::print(&text(&routes, &state.diagnostics))?;
    }
    let wrong = state.diagnostics.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

fn text(routes: &[View], findings: &[Diagnostic]) -> String {
    let head = ["ROUTE", "SERVICE", "DIALECT", "TASKS", "ACCESS", "ACTION", "MATCHES"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(routes.iter().map(row)).collect();
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
