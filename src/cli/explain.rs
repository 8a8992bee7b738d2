//! `skep explain`: what becomes of one request, with every route that came into question and the tasks of the winner.
//! It asks the same table that serves requests.

use std::net::{IpAddr, Ipv4Addr};

use clap::builder::{StringValueParser, TypedValueParser};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::Serialize;

use crate::diagnostic::{nearest, render};
use crate::route::{Head, HostPattern};
use crate::state::{Action, ActionView, Ailment, Explanation, State, TaskView, View};
use crate::traffic::LimitNow;
use crate::traffic::circuit::Standing;
use crate::upstream::Backend;

use super::source::Source;
use super::{Failure, Outcome, Verdict, output};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The URL that is asked for
    #[arg(value_name = "URL", value_parser = StringValueParser::new().try_map(|text| url(&text)))]
    url: Uri,
    /// The request's method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    method: Method,
    /// A header of the request (repeatable)
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The client's address
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    client: IpAddr,
    #[command(flatten)]
    source: Source,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  skep explain http://shop.example.com/cart
  skep explain -X POST -H 'X-Beta: 1' --client 203.0.113.7 http://shop.example.com/api
  skep explain --snapshot bug.json http://shop.example.com/

Exit codes: 0 a task would get the request, 1 none would, 2 could not look.";

/// `shop.example.com/cart` is meant as http.
fn url(text: &str) -> Result<Uri, String> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = whole.parse().map_err(|error| format!("{error}; write it like http://shop.example.com/cart"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        (_, None) => Err("it names no host; write it like http://shop.example.com/cart".to_owned()),
        _ => Err("only http and https are routed".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it like 'X-Beta: 1'")?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is not a header's name"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is not a header's value"))?;
    Ok((name, value))
}

/// One task of the winner with what only the running edge knows.
#[derive(Debug, Serialize)]
struct Destination {
    service: String,
    #[serde(flatten)]
    task: TaskView,
    /// Docker's name of the network that the address is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// Requests in flight; only a running edge knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_flight: Option<u32>,
}

/// All that is said of the request.
#[derive(Debug, Serialize)]
struct Answer {
    request: String,
    #[serde(flatten)]
    explanation: Explanation,
    tasks: Vec<Destination>,
    /// Hosts that the asked one may have been meant to be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    near: Vec<String>,
    /// How the winner's limits stand; only a running edge knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<LimitNow>,
    outcome: String,
    #[serde(skip)]
    served: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut facts = args.source.read()?;
    let limits = std::mem::take(&mut facts.limits);
    let asked = !facts.ledger.is_empty();
    let (state, ledger) = facts.state();
    let mut answer =
        answer(args, &state, |backend| asked.then(|| ledger.get(&*backend.id).map_or(0, |counters| counters.in_flight)), &|backend| {
            ledger.get(&*backend.id)?.ailment.clone()
        })?;
    let winner = answer.explanation.winner.as_ref();
    answer.limits = limits.into_iter().find(|now| winner.is_some_and(|view| *view.id == *now.route));
    if answer.limits.as_ref().is_some_and(|now| now.circuit == Some(Standing::Open)) {
        answer.outcome = format!("503: the circuit is open, so the service is left alone; else {}", answer.outcome);
    }
    if args.json {
        output::json(&answer)?
    } else {
        output::print(&text(&answer))?
    }
    Ok(if answer.served { Verdict::Fine } else { Verdict::Wrong })
}

fn answer(args: &Args, state: &State, in_flight: impl Fn(&Backend) -> Option<u32>, ailment: Ailment<'_>) -> Result<Answer, Failure> {
    let headers: HeaderMap = args.headers.iter().cloned().collect();
    let host = args.url.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let (path, query) = (args.url.path(), args.url.query().unwrap_or_default());
    let head = Head { host: &host, path, query, method: &args.method, headers: &headers, client: args.client };
    let explanation = state.explain_with(&head, ailment);
    let tasks = explanation.winner.as_ref().map(|view| destinations(view, state, in_flight)).unwrap_or_default();
    let near = if explanation.candidates.is_empty() { near(&host, state) } else { Vec::new() };
    let (outcome, served) = outcome(&explanation, &tasks, &host, path);
    Ok(Answer { request: format!("{} {}", args.method, args.url), explanation, tasks, near, limits: None, outcome, served })
}

/// The winner's tasks, with network and load.
fn destinations(view: &View, state: &State, in_flight: impl Fn(&Backend) -> Option<u32>) -> Vec<Destination> {
    let ActionView::Forward { services, .. } = &view.action else { return Vec::new() };
    let pool = state.routes.get(&view.id).and_then(|listing| match &listing.route.action {
        Action::Forward { pool, .. } => Some(pool),
        Action::RedirectHost(_) => None,
    });
    let backends: Vec<&Backend> = pool.into_iter().flat_map(|pool| &pool.groups).flat_map(|group| &group.backends).collect();
    let destination = |service: &str, task: &TaskView| {
        let backend = backends.iter().find(|backend| {
            let address = task.address.as_ref().and_then(|address| address.rsplit("://").next());
            *backend.service == *service && *backend.task == *task.task && Some(backend.address.to_string().as_str()) == address
        });
        Destination {
            service: service.to_owned(),
            task: task.clone(),
            network: backend.and_then(|backend| network(state, backend)),
            in_flight: backend.and_then(|backend| in_flight(backend)),
        }
    };
    services.iter().flat_map(|share| share.tasks.iter().map(|task| destination(&share.service, task))).collect()
}

/// The network that the backend's address is on.
fn network(state: &State, backend: &Backend) -> Option<String> {
    let services = state.snapshot.services.iter().filter(|service| service.name == *backend.service);
    let addresses = services.flat_map(|service| &service.tasks).filter(|task| task.name == *backend.task).flat_map(|task| &task.addresses);
    addresses.into_iter().find(|(_, ip)| **ip == backend.address.ip()).map(|(network, _)| network.clone())
}

/// Hosts of the table that `host` may have been meant to be, or that are below or above it.
fn near(host: &str, state: &State) -> Vec<String> {
    const MOST: usize = 5;
    let hosts: Vec<String> = state.table.hosts().filter(|pattern| !matches!(pattern, HostPattern::Any)).map(ToString::to_string).collect();
    let spelled = nearest(host, hosts.iter().map(String::as_str)).map(str::to_owned);
    let parent = host.split_once('.').map_or(host, |(_, parent)| parent);
    let related = hosts.iter().filter(|other| parent.contains('.') && other.ends_with(&format!(".{parent}"))).cloned();
    let mut near: Vec<String> = spelled.into_iter().chain(related).collect();
    let mut seen = std::collections::BTreeSet::new();
    near.retain(|host| seen.insert(host.clone()));
    near.truncate(MOST);
    near
}

/// What the client gets, and whether it is from a task or a redirect that was asked for.
fn outcome(explanation: &Explanation, tasks: &[Destination], host: &str, path: &str) -> (String, bool) {
    let Some(winner) = &explanation.winner else {
        let why = if explanation.candidates.is_empty() { format!("no route names the host `{host}`") } else { "no route fits".to_owned() };
        return (format!("404: {why}"), false);
    };
    if let Some(reason) = &winner.closed {
        return (format!("503: route `{}` is closed: {reason}", winner.id), false);
    }
    match &winner.action {
        ActionView::Redirect { host } => (format!("a redirect to {host}{path}"), true),
        ActionView::Forward { balance, .. } => {
            let usable: Vec<_> = tasks.iter().filter(|one| one.task.usable).collect();
            let way = if winner.tls.starts_with("passthrough") { "over http a redirect; its TLS is passed through: " } else { "" };
            match usable.as_slice() {
                [] => (format!("503: route `{}` has no task that can take it", winner.id), false),
                [one] => (format!("{way}it goes to task {}", one.task.task), true),
                several => (format!("{way}it goes to one of {} tasks, chosen by {balance}", several.len()), true),
            }
        }
    }
}

fn text(answer: &Answer) -> String {
    let mut text = format!("{}\n\n", output::harmless(&answer.request));
    let rows: Vec<Vec<String>> = answer
        .explanation
        .candidates
        .iter()
        .map(|one| {
            let verdict = if one.wins { "wins" } else { "lost" };
            vec![verdict.to_owned(), one.route.clone(), one.place.clone(), one.lost.clone().unwrap_or_default()]
        })
        .collect();
    text.push_str(&output::aligned(&rows, 2));
    if let Some(winner) = &answer.explanation.winner {
        let rows: Vec<Vec<String>> = answer.tasks.iter().map(task_row).collect();
        text.push_str(&format!("\nroute {}, access: {}\n", output::harmless(&winner.id), output::harmless(&winner.access)));
        text.push_str(&output::aligned(&rows, 2));
        if !winner.limits.is_empty() {
            text.push_str(&format!("\nlimits: {}\n", output::harmless(&super::routes::limits(winner, answer.limits.as_ref()))));
        }
    }
    if !answer.near.is_empty() {
        text.push_str(&format!("  hosts near to it: {}\n", output::harmless(&answer.near.join(", "))));
    }
    if !answer.explanation.findings.is_empty() {
        text.push_str(&format!("\n{}", render(&answer.explanation.findings, output::color())));
    }
    text.push_str(&format!("\n{}\n", output::harmless(&answer.outcome)));
    text
}

/// Task, node, network, address, health, requests in flight.
fn task_row(one: &Destination) -> Vec<String> {
    let task = &one.task;
    let node = if task.node.is_empty() { String::new() } else { format!("on {}", task.node) };
    let network = one.network.as_ref().map(|network| format!("network {network}")).unwrap_or_default();
    let state = match (&task.why, one.in_flight) {
        (Some(why), _) => format!("gets nothing: {why}"),
        (None, Some(count)) => format!("healthy, {count} in flight"),
        (None, None) => "healthy".to_owned(),
    };
    vec![task.task.clone(), node, network, task.address.clone().unwrap_or_else(|| "no address".to_owned()), state]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_headers_are_read_as_people_write_them() {
        assert_eq!(url("shop.example.com/cart?x=1").unwrap(), "http://shop.example.com/cart?x=1");
        assert_eq!(url("https://[::1]:8443").unwrap().path(), "/");
        for bad in ["ftp://a.de/", "http://", "/path", "http://a b/"] {
            assert!(url(bad).is_err(), "{bad}");
        }
        assert_eq!(header("X-Beta:  1 ").unwrap(), (HeaderName::from_static("x-beta"), HeaderValue::from_static("1")));
        assert!(header("X-Beta").is_err() && header("X Beta: 1").is_err());
    }
}
