//! `skep backup`: what is saved of the volumes of this node, and how that goes.

use super::{Outcome, guard, tether};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Bring containers back when Skep does not; started by Skep itself
    #[command(hide = true)]
    Guard(guard::Args),
    /// Run a program that ends when Skep does; started by Skep itself
    #[command(hide = true)]
    Tether(tether::Args),
}

pub(super) fn run(args: Args) -> Outcome {
    match args.what {
        What::Guard(args) => guard::run(args),
        What::Tether(args) => tether::run(&args),
    }
}
