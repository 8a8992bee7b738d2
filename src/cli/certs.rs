//! `skep certs`: how the names of the running edge stand, and what is going to be done about them.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::certificate::plan::Action;
use crate::certificate::standing::{Report, Standing, State};
use crate::diagnostic::{Diagnostic, render};

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, ask, output};

const PATIENT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  skep certs\n  skep certs plan\n  skep certs root > root.pem\n  skep certs --json | jq '.names[] | select(.state != \"valid\")'"
)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// Ask the edge whose admin listener is here [default: as the settings say]
    #[arg(long, value_name = "ADDR", global = true)]
    admin: Option<SocketAddr>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum What {
    /// What is being done and will be done, and when
    Plan,
    /// The root of the internal authority, for clients that are to trust it
    Root,
}

pub(super) fn run(args: &Args) -> Outcome {
    let config = args.config.read_aloud()?;
    let Some(address) = args.admin.or(config.admin.listen) else {
        return Err(Failure::said("the settings name no admin listener (`admin.listen`): name one with --admin"));
    };
    if matches!(args.what, Some(What::Root)) {
        return root(address);
    }
    let report = fetch(address).map_err(|reason| Failure::said(format!("the edge at {address} does not tell: {reason}")))?;
    let findings: Vec<Diagnostic> = report.names.iter().filter_map(Standing::finding).collect();
    match (args.json, args.what) {
        (true, None) => output::json(&serde_json::json!({ "names": report.names, "findings": findings }))?,
        (true, Some(_)) => output::json(&serde_json::json!({ "under_way": report.under_way, "plan": report.plan }))?,
        (false, None) => {
            output::print(&table(&report.names))?;
            if !findings.is_empty() {
                output::note(render(&findings, output::color_on_stderr()).trim_end());
            }
        }
        (false, Some(_)) => output::print(&planned(&report))?,
    }
    let wrong = report.names.iter().any(|standing| standing.state != State::Valid);
    Ok(if wrong && args.what.is_none() { Verdict::Wrong } else { Verdict::Fine })
}

/// Prints the PEM text as it is, for a file.
fn root(address: SocketAddr) -> Outcome {
    match ask::get(address, "/certificates/root.pem", PATIENT) {
        Ok((200, body)) => output::print(&String::from_utf8_lossy(&body)).map(|()| Verdict::Fine),
        Ok((_, body)) => Err(Failure::said(format!("the edge at {address} has none: {}", String::from_utf8_lossy(&body).trim_end()))),
        Err(error) => Err(Failure::said(format!("the edge at {address} does not tell: {error}"))),
    }
}

fn fetch(address: SocketAddr) -> Result<Report, String> {
    match ask::get(address, "/certificates", PATIENT) {
        Ok((200, body)) => serde_json::from_slice(&body).map_err(|error| format!("its answer cannot be read: {error}")),
        Ok((status, _)) => Err(format!("/certificates answers {status}")),
        Err(error) => Err(error.to_string()),
    }
}

fn table(names: &[Standing]) -> String {
    let head = ["NAME", "STATE", "FROM", "EXPIRES", "NEXT", "SERVICE", "ERROR"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(names.iter().map(row)).collect();
    let table = if names.is_empty() { String::new() } else { output::aligned(&rows, 0) + "\n" };
    let lacking = names.iter().filter(|standing| standing.state != State::Valid).count();
    format!("{table}{}, {lacking} without a good certificate\n", output::count(names.len(), "name"))
}

fn row(standing: &Standing) -> Vec<String> {
    let from = standing.issuer.clone().unwrap_or_else(|| standing.source.word().to_owned());
    let next = standing.doing.clone().map(|_| "now".to_owned()).unwrap_or_else(|| time(standing.next));
    let error = standing.error.clone().or_else(|| standing.doing.clone()).unwrap_or_default();
    vec![standing.name.clone(), standing.state.word().to_owned(), from, time(standing.expires), next, standing.service.clone(), error]
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string())
}

/// One line an action, what is under way first.
fn planned(report: &Report) -> String {
    let line = |when: &str, action: &Action| vec![when.to_owned(), action.to_string(), action.names().join(" ")];
    let under_way = report.under_way.iter().map(|action| line("under way", action));
    let rows = report.plan.iter().map(|action| match action {
        Action::Wait { until, .. } => line(&time(Some(*until)), action),
        _ => line("now", action),
    });
    let rows: Vec<Vec<String>> = under_way.chain(rows).collect();
    if rows.is_empty() { "nothing to do\n".to_owned() } else { output::aligned(&rows, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Source;
    use crate::certificate::plan::Reason;

    #[test]
    fn names_and_plans_are_told_in_lines() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let standing = Standing {
            name: "a.example.com".to_owned(),
            service: "shop".to_owned(),
            source: Source::Acme,
            state: State::Waiting,
            expires: None,
            issuer: None,
            record: None,
            error: Some("the name does not reach this edge: no such host".to_owned()),
            help: None,
            doing: None,
            next: Some(at(1_800_000_000)),
        };
        let text = table(std::slice::from_ref(&standing));
        assert!(text.contains("a.example.com  waiting  acme  -        2027-01-15 08:00  shop     the name does not reach"), "{text}");
        assert!(text.ends_with("1 name, 1 without a good certificate\n"));
        let wait = Action::Wait {
            names: vec!["a.example.com".to_owned()],
            until: at(1_800_000_000),
            reason: Reason::Unreachable { error: "no such host".to_owned() },
        };
        let report = Report { names: vec![standing], plan: vec![wait], under_way: Vec::new() };
        assert_eq!(planned(&report), "2027-01-15 08:00  the name does not reach this edge: no such host  a.example.com\n");
        let read: Report = serde_json::from_str(&serde_json::to_string(&report).expect("JSON")).expect("the same");
        assert_eq!(read, report);
    }
}
