//! Runs the cases of `tests/labels/*.md`: a stack file, and what Skep says about it.
//! `README.md` beside them says how a case is written; `BLESS=1` fills in what is said now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use skep::config::Config;
use skep::diagnostic;
use skep::provider::compose;
use skep::snapshot::{Condition, Labels, Origin, Service, Snapshot, Swarm, Task};
use skep::state::{ActionView, State, View};

/// One case, and where its expectation stands in the file.
struct Case {
    title: String,
    stack: String,
    is_file: bool,
    expected: std::ops::Range<usize>,
}

/// The fenced block that begins at the first "```{language}" at or after `from`: its info string and the range of its content.
fn block<'a>(text: &'a str, from: usize, language: &str) -> Option<(&'a str, std::ops::Range<usize>)> {
    let fence = format!("\n```{language}");
    let open = from + text[from..].find(&fence)?;
    let start = open + 1 + text[open + 1..].find('\n')? + 1;
    let end = start + format!("\n{}", &text[start..]).find("\n```")?;
    Some((text[open + fence.len()..start].trim(), start..end))
}

fn cases(text: &str) -> Vec<Case> {
    let headings: Vec<usize> = text.match_indices("\n## ").map(|(at, _)| at).collect();
    let read = |&at: &usize| {
        let title = text[at + 4..].lines().next().unwrap().to_owned();
        let (info, stack) = block(text, at, "yaml").unwrap_or_else(|| panic!("{title}: no stack"));
        let (_, expected) = block(text, at, "text").unwrap_or_else(|| panic!("{title}: no expectation"));
        let next = headings.iter().find(|next| **next > at).copied().unwrap_or(text.len());
        assert!(stack.end < expected.start && expected.end <= next, "{title}: a case is a stack, then an expectation");
        Case { stack: text[stack].to_owned(), is_file: info == "file", expected, title }
    };
    headings.iter().map(read).collect()
}

/// What a swarm makes of a service: healthy tasks on each of its networks, labels and containers' labels apart.
fn deployed(number: usize, service: Service) -> Service {
    let tasks = (1..=service.replicas.unwrap_or(1) as u8).map(|slot| Task {
        id: format!("{}{slot}", service.name),
        name: format!("{}.{slot}", service.name),
        condition: Condition::Healthy,
        addresses: (0u8..)
            .zip(&service.networks)
            .map(|(network, name)| (name.clone(), Ipv4Addr::new(10, network, number as u8, slot).into()))
            .collect(),
        ..Task::default()
    });
    // A file's labels are those under `deploy` and those beside it; in a swarm only the former are the service's.
    let labels: Labels =
        service.labels.clone().into_iter().filter(|(label, text)| service.container_labels.get(label) != Some(text)).collect();
    Service { origin: Origin::Swarm, tasks: tasks.collect(), labels, ..service }
}

fn neighbour() -> Service {
    let labels = [("skep.host", "neighbour.example.org"), ("skep.port", "80")];
    let service = Service {
        id: "neighbour".to_owned(),
        name: "neighbour".to_owned(),
        labels: labels.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect(),
        networks: vec!["edge".to_owned()],
        replicas: Some(1),
        ..Service::default()
    };
    deployed(200, service)
}

fn build(mut services: Vec<Service>, names: BTreeMap<String, Vec<IpAddr>>) -> State {
    for (hours, service) in (0i64..).zip(&mut services) {
        service.created = Timestamp::UNIX_EPOCH + hours.hours();
    }
    // The youngest: whoever takes something from it would be told to have taken it.
    services.push(Service { created: Timestamp::UNIX_EPOCH + 1000.hours(), ..neighbour() });
    let mut snapshot = Snapshot { services, names, ..Snapshot::default() };
    snapshot.engine.id = "engine".to_owned();
    snapshot.engine.swarm = Swarm::Manager;
    snapshot.engine.edge.networks = vec!["edge".to_owned(), "second".to_owned()];
    let mut config = Config::default();
    config.tcp.ports = vec![5432..=5432, 20000..=20100];
    config.certificates.authorities = Some("/etc/skep/authorities".into());
    State::build(Arc::new(config), Arc::new(snapshot))
}

/// What is said about a case: findings, then routes.
fn said(case: &Case) -> String {
    let (snapshot, mut findings) = compose::parse("stack.yml", &case.stack, &|_| None);
    let snapshot = snapshot.unwrap_or_else(|| panic!("{}: {}", case.title, diagnostic::render(&findings, false)));
    let services = match case.is_file {
        true => snapshot.services,
        false => (0usize..).zip(snapshot.services).map(|(number, service)| deployed(number, service)).collect(),
    };
    let state = build(services, snapshot.names);
    let alone = build(Vec::new(), BTreeMap::new());
    assert_eq!(state.view("neighbour"), alone.view("neighbour"), "{}: the neighbour is untouched", case.title);
    assert!(state.diagnostics.iter().all(|finding| finding.subject != "service neighbour"), "{}", case.title);
    findings.extend(state.diagnostics.iter().cloned());
    let mut text = diagnostic::render(&findings, false);
    let routes: Vec<View> = state.list().into_iter().filter(|view| view.service != "neighbour").collect();
    if !text.is_empty() {
        text.push('\n');
    }
    if routes.is_empty() {
        text.push_str("no route\n");
    }
    for view in routes {
        line(&mut text, &view);
    }
    text
}

/// `shop: shop.example.com/ -> http://10.0.0.1:80`.
fn line(text: &mut String, view: &View) {
    let target = match &view.action {
        ActionView::Redirect { host } => format!("redirect to {host}"),
        ActionView::Forward { services, .. } => {
            let tasks = services.iter().flat_map(|share| share.tasks.iter().filter(|task| task.usable));
            let addresses: Vec<&str> = tasks.filter_map(|task| task.address.as_deref()).collect();
            if addresses.is_empty() { "503".to_owned() } else { addresses.join(", ") }
        }
    };
    let target = match &view.closed {
        Some(reason) => format!("closed: {reason}"),
        None => target,
    };
    writeln!(text, "{}: {} -> {target}", view.id, view.matches.join(", ")).unwrap();
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/labels");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != "README.md"));
    files.sort();
    files
}

#[test]
fn cases_say_what_is_written() {
    let bless = std::env::var_os("BLESS").is_some();
    let (mut count, mut wrong) = (0, String::new());
    for path in files() {
        let mut text = fs::read_to_string(&path).unwrap();
        // Backwards, so that a filled-in expectation does not move those that are still to come.
        for case in cases(&text).into_iter().rev() {
            count += 1;
            let said = said(&case);
            if said == text[case.expected.clone()] {
                continue;
            }
            if bless {
                text.replace_range(case.expected, &said);
            } else {
                let name = path.file_name().unwrap().to_string_lossy();
                writeln!(wrong, "--- {name}: {}\nexpected:\n{}\nsaid:\n{said}", case.title, &text[case.expected]).unwrap();
            }
        }
        if bless {
            fs::write(&path, text).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count >= 60, "the cases are found: {count}");
}
