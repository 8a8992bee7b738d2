//! `skep backup`: what is saved of the volumes of this node, and how that goes.

use super::{Outcome, archives, drill, extract, guard, key, notify, restore, saving, standings, tether};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Which archives there are
    List(archives::ListArgs),
    /// What an archive was, and its files
    Show(archives::ShowArgs),
    /// What differs between two archives
    Diff(archives::DiffArgs),
    /// Take files out of an archive
    Extract(extract::ExtractArgs),
    /// A volume as it was: in place, as a new one, or into a directory
    Restore(Box<restore::Args>),
    /// Show an archive as a directory
    Mount(extract::MountArgs),
    /// Take a mounted archive away
    Umount(extract::UmountArgs),
    /// Restore the newest archives on trial
    Drill(drill::DrillArgs),
    /// Are the repositories whole?
    Check(drill::CheckArgs),
    /// Keep what opens the repositories in another place
    Key(key::Args),
    /// How the backups of this node stand
    Status(standings::StatusArgs),
    /// Try out whether notices arrive
    Notify(notify::Args),
    /// What will be done and when, and what is not protected
    Plan(saving::PlanArgs),
    /// Save volumes now
    Run(saving::RunArgs),
    /// Bring containers back when Skep does not; started by Skep itself
    #[command(hide = true)]
    Guard(guard::Args),
    /// Run a program that ends when Skep does; started by Skep itself
    #[command(hide = true)]
    Tether(tether::Args),
}

pub(super) fn run(args: Args) -> Outcome {
    match args.what {
        What::List(args) => archives::list(&args),
        What::Show(args) => archives::show(&args),
        What::Diff(args) => archives::diff(&args),
        What::Extract(args) => extract::extract(&args),
        What::Restore(args) => restore::run(&args),
        What::Mount(args) => extract::mount(&args),
        What::Umount(args) => extract::umount(&args),
        What::Drill(args) => drill::drill(&args),
        What::Check(args) => drill::check(&args),
        What::Key(args) => key::run(&args),
        What::Status(args) => standings::status(&args),
        What::Notify(args) => notify::run(&args),
        What::Plan(args) => saving::plan(&args),
        What::Run(args) => saving::run(&args),
        What::Guard(args) => guard::run(args),
        What::Tether(args) => tether::run(&args),
    }
}
