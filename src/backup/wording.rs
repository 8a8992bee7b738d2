//! The words of notices: what happened in one line, and what to do about it.

use super::notice::{About, Kind};

/// What happened to `count` things, of which `about` are the first.
pub fn title(kind: Kind, about: &[About], count: u64, target: Option<&str>, repeated: bool) -> String {
    let one = about.first().filter(|_| count == 1);
    let to = target.map(|target| format!(" to {target}")).unwrap_or_default();
    let at = target.map(|target| format!(" at {target}")).unwrap_or_default();
    let volumes = match one.and_then(|about| about.volume.as_deref()) {
        Some(volume) => format!("volume {volume}"),
        None => format!("{count} volumes"),
    };
    let repositories = match one.and_then(|about| about.repository.as_deref()) {
        Some(repository) => format!("repository {repository}"),
        None => format!("{count} repositories"),
    };
    let of_repositories = about.iter().all(|about| about.volume.is_none());
    let retried = about.iter().all(|about| about.retry.is_some());
    let text = match kind {
        Kind::Failed if retried => format!("Saving {volumes}{to} failed and will be tried again"),
        Kind::Failed => format!("Saving {volumes}{to} failed"),
        Kind::Overdue => format!("There is no recent backup of {volumes}{at}"),
        Kind::Warned => match of_repositories {
            true => format!("The check of {repositories}{at} has something to say"),
            false => format!("The backup of {volumes}{to} has something to say"),
        },
        Kind::CheckFailed => format!("The check of {repositories}{at} failed"),
        Kind::CheckOverdue => format!("The check of {repositories}{at} is overdue"),
        Kind::DrillFailed => format!("The restore on trial of {volumes}{at} failed"),
        Kind::DrillOverdue => format!("The restore on trial of {volumes}{at} is overdue"),
        Kind::Held => format!("Nothing is saved to {repositories}{at} before the key is kept elsewhere"),
        Kind::SpaceLow => format!("There is little room left for {repositories}{at}"),
        Kind::ArchivesLost => format!("Archives are gone from {repositories}{at}"),
        Kind::Dropped => format!("No longer saved{to}: {volumes}"),
        Kind::Recovered => match of_repositories {
            true => format!("Good again: {repositories}{at}"),
            false => format!("Good again: the backup of {volumes}{to}"),
        },
        Kind::Saved => format!("Saved{to}: {volumes}"),
        Kind::Trial => "This is a trial: notices about backups arrive".to_owned(),
    };
    if repeated { format!("Still: {text}") } else { text }
}

/// What to do.
pub fn help(kind: Kind, about: &[About]) -> String {
    let volume = about.iter().find_map(|about| about.volume.as_deref());
    let run = match (volume, about.len()) {
        (Some(volume), 1) => format!("`skep backup run --now {volume}`"),
        _ => "`skep backup run --now`".to_owned(),
    };
    let text = match kind {
        Kind::Failed if about.iter().all(|about| about.retry.is_some()) => {
            "Nothing has to be done unless the next tries fail too, which is told."
        }
        Kind::Failed => return format!("Mend what the message names, then run {run}; `skep backup status` shows all."),
        Kind::Overdue => {
            return format!("Look at `skep backup status` and Skep's log on this node for why nothing was saved, then run {run}.");
        }
        Kind::Warned => {
            "The work was done. `skep backup status` shows the warnings; files that need not be saved are left out by an `exclude` label."
        }
        Kind::CheckFailed => {
            "Do not delete archives. Look at the disk of the target, read `borg check --help` before you repair, and save to another target meanwhile."
        }
        Kind::DrillFailed => {
            "Do not rely on this backup: restore it by hand (`skep backup restore` into a new volume) and look at what the message names."
        }
        Kind::CheckOverdue | Kind::DrillOverdue => "Look at `skep backup plan` and Skep's log for what keeps it from being run.",
        Kind::Held => "Run `skep backup key export`, keep what it writes away from this machine, and confirm it.",
        Kind::SpaceLow => "Make room on the target, or keep fewer archives; saving stops when it is full.",
        Kind::ArchivesLost => {
            "Find out who deleted them before anything else is saved: with an append-only target, what was deleted can be brought back."
        }
        Kind::Dropped => "If that was not meant, bring the volume's or its service's `backup.enable` label back.",
        Kind::Recovered | Kind::Saved | Kind::Trial => "",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_and_what_to_do() {
        let volume = |name: &str| About { volume: Some(name.into()), repository: Some("/b/n1".into()), ..About::default() };
        let retried = |name: &str| About { retry: Some(jiff::Timestamp::UNIX_EPOCH), ..volume(name) };
        let repository = || About { repository: Some("/b/n1".into()), ..About::default() };
        let table = [
            (Kind::Failed, vec![volume("db")], "Saving volume db to offsite failed", "run `skep backup run --now db`"),
            (Kind::Failed, vec![retried("db")], "Saving volume db to offsite failed and will be tried again", "unless"),
            (Kind::Failed, vec![volume("a"), volume("b")], "Saving 2 volumes to offsite failed", "run `skep backup run --now`;"),
            (Kind::Overdue, vec![volume("db")], "There is no recent backup of volume db at offsite", "log"),
            (Kind::Warned, vec![volume("db")], "The backup of volume db to offsite has something to say", "exclude"),
            (Kind::Warned, vec![repository()], "The check of repository /b/n1 at offsite has something to say", "status"),
            (Kind::CheckFailed, vec![repository()], "The check of repository /b/n1 at offsite failed", "borg check --help"),
            (Kind::CheckOverdue, vec![repository()], "The check of repository /b/n1 at offsite is overdue", "plan"),
            (Kind::DrillFailed, vec![volume("db")], "The restore on trial of volume db at offsite failed", "restore"),
            (Kind::DrillOverdue, vec![volume("db")], "The restore on trial of volume db at offsite is overdue", "plan"),
            (
                Kind::Held,
                vec![repository()],
                "Nothing is saved to repository /b/n1 at offsite before the key is kept elsewhere",
                "key export",
            ),
            (Kind::SpaceLow, vec![repository()], "There is little room left for repository /b/n1 at offsite", "room"),
            (Kind::ArchivesLost, vec![repository()], "Archives are gone from repository /b/n1 at offsite", "append-only"),
            (Kind::Dropped, vec![volume("db")], "No longer saved to offsite: volume db", "label"),
            (Kind::Recovered, vec![volume("db")], "Good again: the backup of volume db to offsite", ""),
            (Kind::Recovered, vec![repository(), repository()], "Good again: 2 repositories at offsite", ""),
            (Kind::Saved, vec![volume("db")], "Saved to offsite: volume db", ""),
        ];
        for (kind, about, words, todo) in table {
            assert_eq!(title(kind, &about, about.len() as u64, Some("offsite"), false), words);
            let help = help(kind, &about);
            assert!(help.contains(todo) && help.is_empty() == todo.is_empty(), "{kind:?}: {help}");
        }
        assert_eq!(title(Kind::Saved, &[volume("db")], 1, None, true), "Still: Saved: volume db");
    }
}
