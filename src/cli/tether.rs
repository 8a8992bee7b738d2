//! `skep backup tether`, which Skep puts in front of borg: the program dies when whoever started it does. Otherwise the end of a killed
//! Skep would look to borg like the end of a dump.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::{Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The program, with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(Failure::said)?;
    // Dead in between: nobody would tell us any more.
    if getppid() != parent || parent.is_none() {
        return Err(Failure::said("whoever started this is gone"));
    }
    let Some((program, rest)) = args.words.split_first() else { return Err(Failure::said("no program is named")) };
    Err(Failure::said(format!("{} cannot be started: {}", program.to_string_lossy(), Command::new(program).args(rest).exec())))
}
