//! `skep completions`: the script that lets a shell complete commands and options.
//! It is made from the command line's own description, so it cannot lag behind.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Outcome, Verdict, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skep completions bash > /etc/bash_completion.d/skep")]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "skep", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Verdict::Fine)
}
