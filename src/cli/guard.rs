//! `skep backup guard`, which Skep starts itself before it pauses or stops a container: brings it back when Skep does not.

use std::path::PathBuf;
use std::time::Duration;

use super::{Failure, Outcome, Verdict, on_one_thread};
use crate::backup::guard::{Charge, docker, watch};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As `docker.endpoint`
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// As `docker.tls`
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// How long to wait for the word
    #[arg(long)]
    seconds: u64,
    /// How long to look again at what runs
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    settle: u64,
    #[arg(long, value_name = "CONTAINER")]
    unpause: Vec<String>,
    #[arg(long, value_name = "CONTAINER")]
    start: Vec<String>,
}

pub(super) fn run(args: Args) -> Outcome {
    let charge = Charge {
        paused: args.unpause,
        stopped: args.start,
        limit: Duration::from_secs(args.seconds),
        settle: Duration::from_secs(args.settle),
    };
    let docker = docker(args.endpoint, args.tls);
    on_one_thread(watch(&docker, &charge))?.map_err(Failure::Said).map(|()| Verdict::Fine)
}
