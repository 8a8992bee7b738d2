//! `skep check`: what labels do and what is wrong with them, before or after they are deployed.
//! Files are judged without Docker; beside what runs already it also says what they would add, change and take.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::backup;
use crate::config::Config;
use crate::diagnostic::{Diagnostic, Place, Severity, render, summary};
use crate::snapshot::{Labels, Snapshot};
use crate::state::{self, View};

use super::compare::{Change, Comparison, compare};
use super::file::{self, StackFile};
use super::settings::ConfigFile;
use super::source::{Source, edge_at_hand, from_docker};
use super::{Outcome, Verdict, meaning, output};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Stack files that are to be deployed
    #[arg(value_name = "STACK.yml", required_unless_present = "live")]
    files: Vec<PathBuf>,
    /// Check what runs (the edge's view, else Docker's); with files: compare them with Docker even if no edge runs here
    #[arg(long)]
    live: bool,
    /// The stack's name, as in `docker stack deploy -c stack.yml NAME` [default: the file's `name`, else a running stack like it]
    #[arg(long, value_name = "NAME", requires = "files")]
    stack: Option<String>,
    /// The running edge's admin listener [default: as the settings say]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    config: ConfigFile,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  skep check stack.yml          what each label will do, and every mistake
  skep check --live             every finding about what runs

Exit codes: 0 no errors (warnings do not count), 1 errors, 2 could not look.";

/// What `check` found.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Explained>,
    routes: Vec<View>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change>,
    findings: Vec<Diagnostic>,
    summary: String,
}

/// One line of a file and what it does.
#[derive(Debug, Serialize)]
struct Explained {
    file: String,
    /// `service web`, `volume data`.
    subject: String,
    line: String,
    meaning: String,
    /// The label alone, to find what is said of it.
    #[serde(skip)]
    label: String,
}

impl Explained {
    /// A label that an error points at does not do what it says: then the error is its meaning.
    fn corrected(mut self, findings: &[Diagnostic]) -> Explained {
        let about = |finding: &&Diagnostic| {
            finding.severity == Severity::Error
                && finding.subject == self.subject
                && matches!(&finding.place, Some(Place::Label { key, .. }) if *key == self.label)
        };
        if let Some(finding) = findings.iter().find(about) {
            self.meaning = format!("error, see below: {}", finding.message);
        }
        self
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let report = if args.files.is_empty() { live(args)? } else { of_files(args)? };
    if args.json {
        output::json(&report)?
    } else {
        output::print(&text(&report))?
    }
    let wrong = report.findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if wrong { Verdict::Wrong } else { Verdict::Fine })
}

/// The findings about what runs.
fn live(args: &Args) -> Result<Report, super::Failure> {
    let (state, _) = Source { config: args.config.clone(), admin: args.admin, ..Source::default() }.read()?.state();
    let routes = state.list();
    let known = format!("{} of {}", output::count(routes.len(), "route"), output::count(state.snapshot.services.len(), "service"));
    let summary = format!("{known}; {}", summary(&state.diagnostics));
    Ok(Report { labels: Vec::new(), routes, changes: Vec::new(), findings: state.diagnostics, summary })
}

/// What the files say, and what would become of what runs.
fn of_files(args: &Args) -> Result<Report, super::Failure> {
    let mut files = args.files.iter().map(|path| file::read(path)).collect::<Result<Vec<_>, _>>()?;
    let config = Arc::new(args.config.read_aloud()?);
    let running = running(args, &config)?;
    for file in &mut files {
        file.stack = args.stack.clone().or(file.stack.take());
    }
    let explained: Vec<Explained> = files.iter().flat_map(|file| explain(file, &config)).collect();
    let mut findings: Vec<Diagnostic> = files.iter_mut().flat_map(|file| std::mem::take(&mut file.findings)).collect();
    findings.extend(files.iter().flat_map(|file| &file.volumes).flat_map(|(volume, labels)| of_volume(volume, labels)));
    let Comparison { routes, changes, findings: found, against } = compare(files, running, config);
    findings.extend(found);
    let labels = explained.into_iter().map(|line| line.corrected(&findings)).collect();
    let mut parts = sentences(&changes);
    parts.extend(against);
    parts.push(summary(&findings));
    Ok(Report { labels, routes, changes, findings, summary: parts.join("; ") })
}

/// What runs already: Docker is only asked when that is wanted, an edge whenever one is there.
fn running(args: &Args, config: &Config) -> Result<Option<Snapshot>, super::Failure> {
    match edge_at_hand(args.admin.or(config.admin.listen)) {
        Some(snapshot) => Ok(Some(snapshot)),
        None if args.live => from_docker(config).map(Some),
        None => Ok(None),
    }
}

/// What is wrong with the labels of a volume.
fn of_volume(volume: &str, labels: &Labels) -> impl Iterator<Item = Diagnostic> {
    let subject = format!("volume {volume}");
    backup::label::of_volume(labels).2.into_iter().map(move |finding| finding.of(subject.clone()))
}

fn explain(file: &StackFile, config: &Config) -> Vec<Explained> {
    let keys = state::keys();
    let mut lines = Vec::new();
    let mut say = |subject: &str, label: &str, line: String, meaning: String| {
        let (subject, label) = (subject.to_owned(), label.to_owned());
        lines.push(Explained { file: file.path.clone(), subject, line, meaning, label });
    };
    let written = |label: &str, value: &str| format!("{label}: {}", meaning::shown(label, value));
    for service in &file.services {
        let subject = format!("service {}", service.name);
        for (label, value) in &service.labels {
            let meaning = meaning::of_label(label, value, &service.labels, &keys, config.labels.sismics_auth);
            say(&subject, label, written(label, value), meaning);
        }
        for constraint in &service.constraints {
            say(&subject, "", format!("placement {constraint}"), meaning::of_constraint(constraint));
        }
    }
    for (volume, labels) in &file.volumes {
        for (label, value) in labels {
            say(&format!("volume {volume}"), label, written(label, value), meaning::of_volume_label(label, value));
        }
    }
    lines
}

/// `adds 2 routes`, `takes a.de/ from stack shop (service web)`.
fn sentences(changes: &[Change]) -> Vec<String> {
    let number = |wanted: fn(&Change) -> bool| changes.iter().filter(|change| wanted(change)).count();
    let counted = [
        ("adds", number(|change| matches!(change, Change::Adds { .. }))),
        ("changes", number(|change| matches!(change, Change::Changes { .. }))),
        ("removes", number(|change| matches!(change, Change::Removes { .. }))),
    ];
    let counted: Vec<String> = counted
        .iter()
        .filter(|(_, number)| *number > 0)
        .map(|(verb, number)| format!("{verb} {}", output::count(*number, "route")))
        .collect();
    let taken = changes.iter().filter_map(|change| match change {
        Change::Takes { place, from, stack: Some(stack), .. } => Some(format!("takes {place} from stack {stack} (service {from})")),
        Change::Takes { place, from, stack: None, .. } => Some(format!("takes {place} from service {from}")),
        _ => None,
    });
    let mut sentences: Vec<String> = counted.into_iter().chain(taken).collect();
    if sentences.is_empty() {
        sentences.push("adds no route".to_owned());
    }
    sentences
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for of_file in report.labels.chunk_by(|one, two| one.file == two.file) {
        text.push_str(&format!("{}\n", output::harmless(&of_file[0].file)));
        for of_subject in of_file.chunk_by(|one, two| one.subject == two.subject) {
            text.push_str(&format!("  {}\n", output::harmless(&of_subject[0].subject)));
            let rows: Vec<_> = of_subject.iter().map(|one| vec![one.line.clone(), one.meaning.clone()]).collect();
            text.push_str(&output::aligned(&rows, 4));
        }
        text.push('\n');
    }
    let changes: Vec<_> = report.changes.iter().map(Change::row).collect();
    if !changes.is_empty() {
        text.push_str(&output::aligned(&changes, 0));
        text.push('\n');
    }
    if !report.findings.is_empty() {
        text.push_str(&render(&report.findings, output::color()));
        text.push('\n');
    }
    text.push_str(&output::harmless(&report.summary));
    text
}
