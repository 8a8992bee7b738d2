//! `skep labels`: the reference of all labels.
//! It is printed from what the features themselves declare, so it says what this very binary reads.

use serde::Serialize;

use crate::label::haproxy::LABELS;
use crate::label::{Effect, Key, Scope};
use crate::state;

use super::{Outcome, Verdict, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  skep labels | less\n  skep labels --markdown > labels.md")]
pub(super) struct Args {
    /// Print Markdown tables
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One key as JSON.
#[derive(Serialize)]
struct Entry {
    label: String,
    scope: &'static str,
    value: &'static str,
    default: &'static str,
    about: &'static str,
    /// A finding on it, or on a misspelling of it, closes the route.
    protects: bool,
    /// What must be built until it has an effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    later: Option<&'static str>,
}

impl Entry {
    fn new(key: &Key) -> Entry {
        Entry {
            label: format!("skep.{}", key.name),
            scope: match key.scope {
                Scope::Route => "route",
                Scope::Service => "service",
                Scope::Stream => "tcp",
            },
            value: key.value,
            default: key.default,
            about: key.about,
            protects: key.guard,
            later: match key.effect {
                Effect::Now => None,
                Effect::Later(feature) => Some(feature),
            },
        }
    }

    /// The sentence, and what is still to come.
    fn sentence(&self) -> String {
        match self.later {
            None => self.about.to_owned(),
            Some(feature) => format!("{} (Read and checked; waits for: {feature}.)", self.about),
        }
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let entries: Vec<Entry> = state::keys().iter().map(Entry::new).collect();
    if args.json {
        let haproxy: Vec<_> =
            LABELS.iter().map(|one| serde_json::json!({ "label": one.label, "means": one.native, "about": one.about })).collect();
        output::json(&serde_json::json!({ "native": entries, "haproxy": haproxy }))?;
    } else if args.markdown {
        output::print(&markdown(&entries))?;
    } else {
        output::print(&text(&entries))?;
    }
    Ok(Verdict::Fine)
}

const ROUTES: &str = "skep.KEY is about a service's default route, skep.NAME.KEY about a further one of that name.";

const STREAMS: &str = "Labels of a TCP route, by a port of the edge; skep.tcp.NAME.KEY for further ones";

fn text(entries: &[Entry]) -> String {
    let mut text = format!("{ROUTES}\n");
    for (scope, title) in [("route", "Labels of a route"), ("tcp", STREAMS), ("service", "Labels of a whole service")] {
        text.push_str(&format!("\n{title}\n"));
        for entry in entries.iter().filter(|entry| entry.scope == scope) {
            let default = if entry.default.is_empty() { String::new() } else { format!(" [default: {}]", entry.default) };
            text.push_str(&format!("  {}: {}{default}\n      {}\n", entry.label, entry.value, entry.sentence()));
        }
    }
    text.push_str("\nLabels of older stacks\n");
    for meaning in LABELS {
        text.push_str(&format!("  {}\n      {} Means: {}.\n", meaning.label, meaning.about, meaning.native));
    }
    text
}

fn markdown(entries: &[Entry]) -> String {
    // A bar would end the cell.
    let cell = |text: &str| text.replace('|', "\\|");
    let mut text = format!("{ROUTES}\n\n| label | value | default | about |\n|---|---|---|---|\n");
    for entry in entries {
        let (value, default) = (cell(entry.value), cell(entry.default));
        text.push_str(&format!("| `{}` | {value} | {default} | {} |\n", entry.label, cell(&entry.sentence())));
    }
    text.push_str("\n| label of older stacks | means | about |\n|---|---|---|\n");
    for meaning in LABELS {
        text.push_str(&format!("| `{}` | {} | {} |\n", meaning.label, cell(meaning.native), cell(meaning.about)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_every_form() {
        let entries: Vec<Entry> = state::keys().iter().map(Entry::new).collect();
        let (text, markdown) = (text(&entries), markdown(&entries));
        for label in entries.iter().map(|entry| entry.label.as_str()).chain(LABELS.iter().map(|one| one.label)) {
            assert!(text.contains(&format!("  {label}")) && markdown.contains(&format!("| `{label}` |")), "{label}");
        }
        assert!(text.contains("waits for: the Docker API proxy"));
    }
}
