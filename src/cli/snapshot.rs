//! `skep snapshot`: what the providers said, as JSON. With it every route can be explained elsewhere, so it is a bug report and a fixture.

use super::source::Source;
use super::{Outcome, Verdict, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  skep snapshot > bug.json && skep explain --snapshot bug.json http://shop.example.com/\n\n\
                  It holds labels, names and addresses as they are: read it before you send it to others.")]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    /// Print JSON (as it does anyway)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    output::json(&args.source.read()?.snapshot)?;
    Ok(Verdict::Fine)
}
