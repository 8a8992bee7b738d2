//! `skep upgrade`: the running edge starts a new binary, which takes its listening sockets over while connections go on.
//! The edge does the work; this only asks for it and tells what came of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::handover::{Answer, Ask};
use crate::server::handover::READY;
use crate::server::talk::Talk;

use super::settings::ConfigFile;
use super::{Failure, Outcome, Verdict, on_one_thread, output};

/// The edge itself gives up after [`READY`].
const LIMIT: Duration = READY.saturating_add(Duration::from_secs(10));

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// The new binary [default: the path that the running edge was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// The running edge's upgrade socket [default: as the settings say]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  mv skep-new /usr/local/bin/skep && skep upgrade
  docker cp skep-new edge:/tmp/skep && docker exec edge skep upgrade --binary /tmp/skep

The new binary gets the arguments and the environment of the running edge and reads the configuration again.
If it does not come to serve, the running edge goes on as if nothing had been.

Exit codes: 0 the new one serves, 1 it does not and the old one goes on, 2 the edge could not be asked.";

pub(super) fn run(args: &Args) -> Outcome {
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => {
            let (config, _) = args.config.read().map_err(Failure::Findings)?;
            let off = "upgrades are switched off in the settings (upgrade.socket, state.directory): give --socket PATH";
            config.upgrade_socket().ok_or_else(|| Failure::said(off))?
        }
    };
    // The edge has another working directory.
    let binary = args.binary.as_ref().map(std::path::absolute).transpose().map_err(Failure::said)?;
    let answer = on_one_thread(ask(&socket, Ask::Start { binary }))?.map_err(|error| {
        Failure::said(format!("cannot ask the edge at {}: {error}; is it running, and as this user?", socket.display()))
    })?;
    match &answer {
        _ if args.json => output::json(&answer)?,
        Answer::Upgraded { old, new, drain_seconds } => output::print(&format!(
            "upgraded: process {new} serves now; process {old} finishes what it has, for at most {drain_seconds} s"
        ))?,
        Answer::Refused { reason } => output::print(&format!("not upgraded, the running edge goes on: {}", output::harmless(reason)))?,
        other => return Err(Failure::said(format!("the edge answered something else: {other:?}"))),
    }
    Ok(if matches!(answer, Answer::Upgraded { .. }) { Verdict::Fine } else { Verdict::Wrong })
}

async fn ask(socket: &Path, ask: Ask) -> std::io::Result<Answer> {
    let mut talk = Talk::connect(socket).await?;
    talk.say(&ask, &[]).await?;
    talk.hear(LIMIT).await
}
