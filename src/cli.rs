//! The command line: what can be asked of Skep, one file a command.
//! Results go to standard output, notes to standard error; the exit code says 0 fine, 1 something is wrong, 2 could not look.

mod archives;
mod ask;
mod backup;
mod bar;
mod certs;
mod check;
mod compare;
mod completions;
mod demo;
mod desk;
mod drill;
mod explain;
mod extract;
mod file;
mod guard;
mod health;
mod key;
mod labels;
mod meaning;
mod notify;
mod output;
mod repositories;
mod restore;
mod routes;
mod run;
mod saving;
mod settings;
mod snapshot;
mod source;
mod standings;
mod tether;
mod upgrade;
mod user;

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::diagnostic::{Diagnostic, render};

/// The front door of a Docker Swarm: routes requests by the labels of your services.
#[derive(Debug, Parser)]
#[command(name = "skep", version, arg_required_else_help = true, max_term_width = 120, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  skep demo                                   try it, without Docker
  skep run                                    serve what Docker runs here, on port 80
  skep check stack.yml                        what will these labels do?
  skep explain http://shop.example.com/cart   why does a request go where it goes?

Exit codes: 0 fine, 1 something is wrong (findings, not healthy), 2 could not look (usage, unreadable file, no Docker).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: route requests to the services of Docker and of stack files
    Run(run::Args),
    /// Serve a few built-in services on free ports, to try things out
    Demo(demo::Args),
    /// Say what labels do and what is wrong with them, before or after they are deployed
    Check(check::Args),
    /// List all routes: what they match and where they lead
    Routes(routes::Args),
    /// Say why a request goes where it goes
    Explain(explain::Args),
    /// How the names stand that want certificates, and what is done about them
    Certs(certs::Args),
    /// Volumes of this node: what is saved of them, and restoring it
    Backup(backup::Args),
    /// The file of users: add, remove, list, set and check passwords
    User(user::Args),
    /// The reference of all labels
    Labels(labels::Args),
    /// Print what Docker said, as JSON: a bug report that can be asked again
    Snapshot(snapshot::Args),
    /// Is the edge on this machine serving? For HEALTHCHECK
    Health(health::Args),
    /// Put a new binary in the place of the running edge, without a pause
    Upgrade(upgrade::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// How a command ended when it could say what it had to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Wrong,
}

/// Why a command could not look.
#[derive(Debug)]
enum Failure {
    /// A sentence.
    Said(String),
    /// A user's text that cannot be used.
    Findings(Vec<Diagnostic>),
    /// Whoever reads our output has seen enough.
    PipeClosed,
}

impl Failure {
    fn said(reason: impl Display) -> Failure {
        Failure::Said(reason.to_string())
    }
}

type Outcome = Result<Verdict, Failure>;

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(&args),
        Command::Routes(args) => routes::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Backup(args) => backup::run(args),
        Command::User(args) => user::run(args),
        Command::Labels(args) => labels::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    match outcome {
        Ok(Verdict::Fine) | Err(Failure::PipeClosed) => ExitCode::SUCCESS,
        Ok(Verdict::Wrong) => ExitCode::from(1),
        Err(Failure::Said(reason)) => {
            output::note(&format!("skep: {reason}"));
            ExitCode::from(2)
        }
        Err(Failure::Findings(findings)) => {
            output::note(render(&findings, output::color_on_stderr()).trim_end());
            ExitCode::from(2)
        }
    }
}

/// A runtime for what needs one; the commands that only read do not start all the threads of an edge.
fn on_one_thread<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::said)?;
    Ok(runtime.block_on(future))
}

/// The runtime of an edge.
fn on_all_threads<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::said)?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
