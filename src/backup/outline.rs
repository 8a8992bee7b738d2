//! What borg would be asked for at each step of a job: the exact command lines that `--dry-run` prints.

use jiff::Timestamp;

use super::archive::{self, Comment};
use super::command::{Access, Command, Source};
use super::step::Step;
use super::{Subject, dump};

/// The commands of one step that begins at `at`. What is asked in between (is the repository there, are there archives to delete) is
/// decided by the answers of those before.
pub fn commands(step: &Step, access: &Access<'_>, subject: Option<&Subject>, at: Timestamp) -> Vec<Command> {
    match step {
        Step::FreeSpace { .. } | Step::Pre(_) | Step::Quiesce(_) | Step::Resume(_) | Step::Post(_) => Vec::new(),
        Step::Init => vec![access.init()],
        Step::CheckRepository => vec![access.check_repository()],
        Step::CheckArchives => vec![access.check_archives()],
        Step::VerifyData { .. } => vec![access.list_archives(None), access.verify("ARCHIVE")],
        Step::Compact => vec![access.compact()],
        _ => subject.map_or_else(Vec::new, |subject| of_archive(step, access, subject, at)),
    }
}

fn of_archive(step: &Step, access: &Access<'_>, subject: &Subject, at: Timestamp) -> Vec<Command> {
    let (volume, node) = (subject.volume.name.as_str(), subject.node.as_str());
    let name = archive::name(volume, node, at);
    let unproven = archive::unproven(&name);
    match step {
        Step::Create { dump, files, exclude } => {
            let stdin_name = dump.as_ref().map(|dump| dump::name(&dump.database));
            let source = Source { directory: &subject.volume.path, files: *files, exclude, stdin_name };
            vec![access.create(&unproven, at, &Comment::of(subject).text(), &source)]
        }
        Step::Prove => vec![access.info(&unproven)],
        Step::Rename => vec![access.rename(&unproven, &name)],
        Step::DeleteUnproven => vec![access.delete(&archive::unproven_glob(volume, node))],
        Step::Prune { keep } => vec![access.prune(&archive::glob(volume, node), keep)],
        _ => Vec::new(),
    }
}
