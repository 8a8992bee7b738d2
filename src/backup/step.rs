//! What carrying out a job means, step by step: what `--dry-run` prints is what the runner does.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use super::archive::{self, Comment};
use super::command::{Access, Command, Source};
use super::dump::{self, Raw, raw, title};
use super::inventory::Container;
use super::judge::size;
use super::{Database, Job, Keep, Mode, Subject, Task};
use crate::config;

/// One of them, in the order of carrying out.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Is there room at a target that is a directory?
    FreeSpace {
        location: String,
        bytes: u64,
    },
    /// Make the repository, if it is not there.
    Init,
    Pre(Hook),
    Quiesce(Quiesce),
    Create {
        /// Who writes the dump, where there is one.
        dump: Option<Dump>,
        /// Are the volume's files read?
        files: bool,
        /// Patterns relative to the volume's root.
        exclude: Vec<String>,
    },
    /// Comes whatever happened since [`Step::Quiesce`].
    Resume(Quiesce),
    /// Comes whatever happened since [`Step::Pre`].
    Post(Hook),
    /// Ask for the archive again, and judge it.
    Prove,
    /// Only what is proven gets its name.
    Rename,
    /// Archives of runs that did not end well.
    DeleteUnproven,
    Prune {
        keep: Keep,
    },
    Compact,
    CheckRepository,
    CheckArchives,
    VerifyData {
        slices: u32,
    },
}

/// A command of a label, in the container that mounts the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub command: String,
    pub container: Option<Named>,
}

/// The containers that do not write while the volume is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiesce {
    pub how: Quiet,
    pub containers: Vec<Named>,
    pub limit: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    Pause,
    Stop,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    pub database: Database,
    /// `None`: no container that mounts the volume runs, so there can be no dump.
    pub container: Option<Box<Container>>,
}

/// A container's id and its name for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub id: String,
    pub name: String,
}

impl From<&Container> for Named {
    fn from(container: &Container) -> Named {
        Named { id: container.id.clone(), name: container.name.clone() }
    }
}

/// The steps of a job. `subject` is what a [`Task::Save`] saves, with the containers as they are now.
pub fn steps(job: &Job, subject: Option<&Subject>, config: &config::Backup) -> Vec<Step> {
    match (job.task, subject) {
        (Task::Save, Some(subject)) => save(job, subject, config),
        // Without a volume there is nothing to save; drills are not carried out by steps.
        (Task::Save | Task::Drill, _) => Vec::new(),
        (Task::CheckRepository, _) => vec![Step::CheckRepository],
        (Task::CheckArchives, _) => vec![Step::CheckArchives],
        (Task::VerifyData, _) => vec![Step::VerifyData { slices: config.verify_slices.max(1) }],
    }
}

fn save(job: &Job, subject: &Subject, config: &config::Backup) -> Vec<Step> {
    let settings = &subject.settings;
    let mut steps = Vec::new();
    if is_local(&job.repository.location) && config.min_free > 0 {
        steps.push(Step::FreeSpace { location: job.repository.location.clone(), bytes: config.min_free });
    }
    steps.push(Step::Init);
    let hook = |command: &String| Hook { command: command.clone(), container: running(subject).map(Named::from) };
    steps.extend(settings.pre.as_ref().map(hook).map(Step::Pre));
    let quiesce = quiesce(subject, config);
    steps.extend(quiesce.clone().map(Step::Quiesce));
    steps.push(create(subject));
    steps.extend(quiesce.map(Step::Resume));
    steps.extend(settings.post.as_ref().map(hook).map(Step::Post));
    steps.extend([Step::Prove, Step::Rename, Step::DeleteUnproven]);
    if settings.keep != Keep::default() {
        // Without a rule borg would refuse, and deleting everything is not what it means.
        steps.extend([Step::Prune { keep: settings.keep }, Step::Compact]);
    }
    steps
}

fn create(subject: &Subject) -> Step {
    let mut exclude = subject.settings.exclude.clone();
    let Mode::Dump(database) = &subject.settings.mode else { return Step::Create { dump: None, files: true, exclude } };
    let container = running(subject);
    let mount = container.and_then(|container| Some((container, container.mount(&subject.volume.name)?)));
    let raw = mount.map(|(container, mount)| raw(database, &mount.destination, &container.environment));
    let files = raw != Some(Raw::All);
    if let Some(Raw::Paths(paths)) = raw {
        exclude.extend(paths);
    }
    let container = container.cloned().map(Box::new);
    Step::Create { dump: Some(Dump { database: database.clone(), container }), files, exclude }
}

/// The first container, by name, that runs and mounts the volume.
fn running(subject: &Subject) -> Option<&Container> {
    let run = subject.containers.iter().filter(|container| container.state == "running" && container.mount(&subject.volume.name).is_some());
    run.min_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)))
}

/// Those that run and may write. One that somebody paused stays paused.
fn quiesce(subject: &Subject, config: &config::Backup) -> Option<Quiesce> {
    let (how, limit) = match subject.settings.mode {
        Mode::Pause => (Quiet::Pause, config.pause_limit),
        Mode::Stop => (Quiet::Stop, subject.settings.timeout),
        Mode::Hot | Mode::Dump(_) => return None,
    };
    let writes = |container: &&Container| container.mount(&subject.volume.name).is_some_and(|mount| mount.writable);
    let mut containers: Vec<Named> =
        subject.containers.iter().filter(|container| container.state == "running").filter(writes).map(Named::from).collect();
    containers.sort_by(|one, other| one.name.cmp(&other.name));
    (!containers.is_empty()).then_some(Quiesce { how, containers, limit })
}

/// What borg is asked for in a step: what `--dry-run` shows is what the runner gives. `at` is the moment of the run. `None`: it is not
/// borg's to do, or there is no volume.
pub fn command(step: &Step, access: &Access<'_>, subject: Option<&Subject>, at: Timestamp) -> Option<Command> {
    let names = subject.map(|subject| (subject.volume.name.as_str(), subject.node.as_str()));
    let name = names.map(|(volume, node)| archive::name(volume, node, at));
    Some(match step {
        Step::Init => access.init(),
        Step::Create { dump, files, exclude } => {
            let subject = subject?;
            let stdin_name = dump.as_ref().map(|dump| dump::name(&dump.database));
            let source = Source { directory: &subject.volume.path, files: *files, exclude, stdin_name };
            access.create(&archive::unproven(&name?), at, &Comment::of(subject).text(), &source)
        }
        Step::Prove => access.info(&archive::unproven(&name?)),
        Step::Rename => {
            let name = name?;
            access.rename(&archive::unproven(&name), &name)
        }
        Step::DeleteUnproven => names.map(|(volume, node)| access.delete(&archive::unproven_glob(volume, node)))?,
        Step::Prune { keep } => names.map(|(volume, node)| access.prune(&archive::glob(volume, node), keep))?,
        Step::Compact => access.compact(),
        Step::CheckRepository => access.check_repository(),
        Step::CheckArchives => access.check_archives(),
        // Each of the archives whose turn it is.
        Step::VerifyData { .. } => access.verify("ARCHIVE"),
        Step::FreeSpace { .. } | Step::Pre(_) | Step::Post(_) | Step::Quiesce(_) | Step::Resume(_) => return None,
    })
}

/// Is the repository a directory of this node?
pub fn is_local(location: &str) -> bool {
    location.starts_with('/') || location.starts_with("file://")
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::FreeSpace { location, bytes } => write!(formatter, "see that {} are free at {location}", size(*bytes)),
            Step::Init => formatter.write_str("make the repository, if it is not there"),
            Step::Pre(hook) => write!(formatter, "before it, {hook}"),
            Step::Post(hook) => write!(formatter, "after it, {hook}"),
            Step::Quiesce(quiesce) => match quiesce.how {
                Quiet::Pause => write!(formatter, "pause {}, for at most {} s", list(&quiesce.containers), quiesce.limit.as_secs()),
                Quiet::Stop => write!(formatter, "stop {}", list(&quiesce.containers)),
            },
            Step::Resume(quiesce) => match quiesce.how {
                Quiet::Pause => write!(formatter, "un-pause {}, whatever happened", list(&quiesce.containers)),
                Quiet::Stop => write!(formatter, "start {}, whatever happened", list(&quiesce.containers)),
            },
            Step::Create { dump: Some(Dump { database, container }), files, .. } => {
                let whence =
                    container.as_ref().map_or("no running container mounts the volume, so this will fail", |container| &container.name);
                let beside = if *files { ", and the volume's other files" } else { "" };
                write!(formatter, "save a {} dump from {whence}{beside}", title(database))
            }
            Step::Create { dump: None, .. } => formatter.write_str("save the volume's files"),
            Step::Prove => formatter.write_str("see that the archive is there, not empty, and not much smaller than those before it"),
            Step::Rename => formatter.write_str("give the archive its name"),
            Step::DeleteUnproven => formatter.write_str("delete what earlier runs left unfinished"),
            Step::Prune { keep } => write!(formatter, "delete older archives of the volume but {}", keeping(keep)),
            Step::Compact => formatter.write_str("free the space of what was deleted"),
            Step::CheckRepository => formatter.write_str("check the repository"),
            Step::CheckArchives => formatter.write_str("check the archives"),
            Step::VerifyData { slices } => write!(formatter, "read all data of one in {slices} archives"),
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.container {
            Some(container) => write!(formatter, "run `{}` in {}", self.command, container.name),
            None => write!(formatter, "run `{}`: no container that mounts the volume runs, so this will fail", self.command),
        }
    }
}

/// As a sentence has them.
pub fn list(containers: &[Named]) -> String {
    containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn keeping(keep: &Keep) -> String {
    let rules = [
        (keep.last, "last"),
        (keep.hourly, "hourly"),
        (keep.daily, "daily"),
        (keep.weekly, "weekly"),
        (keep.monthly, "monthly"),
        (keep.yearly, "yearly"),
    ];
    rules.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::inventory::{Mount, MountKind, Volume};
    use crate::backup::{OnError, Reason, Repository, Settings};

    fn container(name: &str, state: &str, writable: bool) -> Container {
        let mount = Mount { kind: MountKind::Volume, source: "shop_data".into(), destination: "/data".into(), writable };
        Container { id: name.repeat(3), name: name.into(), state: state.into(), mounts: vec![mount], ..Container::default() }
    }

    fn said(mode: Mode, change: impl FnOnce(&mut Subject)) -> Vec<String> {
        let mut subject = Subject {
            volume: Volume { name: "shop_data".into(), ..Volume::default() },
            node: "n1".into(),
            service: None,
            stack: None,
            owner: None,
            settings: Settings {
                schedule: String::new(),
                keep: Keep { daily: 7, monthly: 36, ..Keep::default() },
                exclude: vec!["cache".into()],
                mode,
                pre: None,
                post: None,
                timeout: Duration::from_secs(3600),
                on_error: OnError::Fail,
            },
            containers: vec![
                container("b", "running", true),
                container("a", "running", true),
                container("0", "exited", true),
                container("c", "running", false),
                container("d", "paused", true),
            ],
        };
        change(&mut subject);
        let job = Job {
            task: Task::Save,
            volume: Some("shop_data".into()),
            target: "local".into(),
            repository: Repository { location: "/srv/b/n1".into(), name: "n1".into() },
            due: Timestamp::UNIX_EPOCH,
            reason: Reason::Asked,
        };
        let steps = steps(&job, Some(&subject), &config::Backup::default());
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_that_is_read_while_it_is_used() {
        assert_eq!(
            said(Mode::Hot, |_| {}),
            [
                "see that 1.1 GB are free at /srv/b/n1",
                "make the repository, if it is not there",
                "save the volume's files",
                "see that the archive is there, not empty, and not much smaller than those before it",
                "give the archive its name",
                "delete what earlier runs left unfinished",
                "delete older archives of the volume but 7 daily, 36 monthly",
                "free the space of what was deleted",
            ]
        );
    }

    #[test]
    fn who_writes_is_paused_or_stopped_and_comes_back_before_anything_else() {
        let middle = |mode| said(mode, |subject| subject.settings.pre = Some("sync".into()))[2..6].to_vec();
        assert_eq!(
            middle(Mode::Pause),
            ["before it, run `sync` in a", "pause a, b, for at most 60 s", "save the volume's files", "un-pause a, b, whatever happened"]
        );
        assert_eq!(middle(Mode::Stop)[1..], ["stop a, b", "save the volume's files", "start a, b, whatever happened"]);
        let nobody = said(Mode::Pause, |subject| subject.containers.clear());
        assert!(!nobody.iter().any(|step| step.contains("pause")), "{nobody:?}");
    }

    #[test]
    fn a_dump_comes_from_the_first_that_runs() {
        assert_eq!(said(Mode::Dump(Database::Redis), |_| {})[2], "save a Redis dump from a, and the volume's other files");
        let own = |subject: &mut Subject| {
            subject.containers.iter_mut().for_each(|container| container.mounts[0].destination = "/var/lib/postgresql/data".into());
        };
        assert_eq!(said(Mode::Dump(Database::Postgres), own)[2], "save a PostgreSQL dump from a");
        let nobody = said(Mode::Dump(Database::Postgres), |subject| subject.containers.clear());
        assert!(nobody[2].contains("this will fail"), "{nobody:?}");
    }

    #[test]
    fn without_a_rule_nothing_is_deleted() {
        let steps = said(Mode::Hot, |subject| subject.settings.keep = Keep::default());
        assert_eq!(steps.last().map(String::as_str), Some("delete what earlier runs left unfinished"));
    }
}
