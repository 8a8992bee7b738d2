//! What restoring a volume means, step by step: what `--dry-run` prints is what is carried out. The application is stopped before the safety
//! archive is made, so that what it wrote last is in there, and nothing is deleted before that archive is known to be good.

use std::fmt;
use std::time::Duration;

use super::archive::Comment;
use super::dump;
use super::inventory::{Container, Volume};
use super::judge::size;
use super::step::{Named, Quiesce, Quiet, list};
use super::{Database, Keep, Mode, OnError, Settings, Subject};
use crate::diagnostic::{Diagnostic, brief};
use crate::snapshot::Labels;

/// A container that a restore stopped is started after so long, whether the volume is restored or not.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What somebody wants, and what the archive says.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub archive: &'a str,
    /// The volume that is written.
    pub volume: &'a str,
    /// It is another one than the archive's: `--into`.
    pub is_copy: bool,
    pub comment: Option<&'a Comment>,
    /// The archive's dump, where it has one.
    pub dump: Option<&'a Database>,
    /// Of what is extracted.
    pub bytes: u64,
    pub safety: bool,
    pub force_running: bool,
    pub load: bool,
    /// A copy, too, gets the labels by which it is saved.
    pub keep_labels: bool,
}

/// What there is now.
#[derive(Clone, Debug, Default)]
pub struct Scene<'a> {
    /// The volume that is written; `None`: there is none of that name.
    pub volume: Option<&'a Volume>,
    /// Running or not, those that mount it.
    pub containers: &'a [Container],
    /// Nothing is in it.
    pub is_empty: bool,
}

/// One of them, in the order of carrying out.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    MakeVolume {
        name: String,
        driver: String,
        options: Labels,
        labels: Labels,
    },
    Stop(Quiesce),
    Safety {
        volume: String,
        mode: Mode,
    },
    Empty {
        volume: String,
    },
    Extract {
        archive: String,
        volume: String,
        without: Vec<String>,
        bytes: u64,
    },
    /// A dump that is itself a data file of the database.
    Place {
        archive: String,
        from: String,
        to: String,
    },
    /// Comes whatever happened since [`Step::Stop`].
    Start(Quiesce),
    Load {
        archive: String,
        file: String,
        database: Database,
        container: Named,
    },
    /// What is left for somebody to do.
    Say(String),
}

/// The steps of a restore.
///
/// # Errors
/// It must not, or cannot, be done like this; what to do instead.
pub fn plan(request: &Request<'_>, scene: &Scene<'_>) -> Result<Vec<Step>, Diagnostic> {
    let mut steps = Vec::new();
    let Some(volume) = scene.volume else {
        steps.extend(make(request)?);
        steps.push(extract(request));
        steps.extend(by_hand(request, None).map(Step::Say));
        return Ok(steps);
    };
    if request.is_copy && !(scene.is_empty && scene.containers.is_empty()) {
        let finding = Diagnostic::error(
            "volume-exists",
            format!("there is a volume `{}` already, and it is not empty or in use", brief(request.volume)),
        );
        return Err(finding.help("name a new one with --into; to restore a volume in place, leave --into out"));
    }
    let stopped = quiesce(request, scene)?;
    check_mounted(volume, scene.containers, stopped.as_ref())?;
    if request.load && request.force_running {
        // Nobody is stopped, so nothing of the database's files may be touched.
        steps.extend(safety(request, scene, false));
        steps.push(load(request, scene)?);
        return Ok(steps);
    }
    let loaded = if request.load { Some(load(request, scene)?) } else { None };
    steps.extend(stopped.clone().map(Step::Stop));
    let rests = stopped.is_some() || !scene.containers.iter().any(writes);
    steps.extend(safety(request, scene, rests));
    if !scene.is_empty {
        steps.push(Step::Empty { volume: request.volume.to_owned() });
    }
    steps.push(extract(request));
    if let (true, Some(Database::Redis)) = (request.load, request.dump) {
        let from = dump::name(&Database::Redis).to_owned();
        steps.push(Step::Place { archive: request.archive.to_owned(), from, to: "dump.rdb".to_owned() });
    }
    steps.extend(stopped.map(Step::Start));
    match loaded {
        Some(Step::Load { database: Database::Redis, .. }) => {}
        Some(load) => steps.push(load),
        None => steps.extend(by_hand(request, scene.containers.iter().find(|container| writes(container))).map(Step::Say)),
    }
    Ok(steps)
}

/// May the container write to the volume now? Only containers that mount it are asked.
fn writes(container: &Container) -> bool {
    container.is_running() && container.mounts.iter().any(|mount| mount.writable)
}

fn make(request: &Request<'_>) -> Result<Vec<Step>, Diagnostic> {
    let unknown = Comment::default();
    let known = request.comment.unwrap_or(&unknown);
    let mut said = Vec::new();
    let (mut driver, mut options, mut labels) = (known.driver.clone(), known.options.clone(), known.labels.clone());
    if options.contains_key("device") {
        if !request.is_copy {
            let pairs: String = options.iter().map(|(key, value)| format!(" --opt {key}={value}")).collect();
            let finding = Diagnostic::error(
                "mounted-volume",
                format!("the volume `{}` was a mount, which the engine makes only while a container uses it", brief(request.volume)),
            );
            return Err(finding.help(format!(
                "make it (docker volume create{pairs} {name}), let a container hold it (docker run -d --rm -v {name}:/v:ro IMAGE sleep 1d), and restore again",
                name = request.volume
            )));
        }
        (driver, options) = ("local".to_owned(), Labels::new());
        said.push(Step::Say("the archive's volume was a mount of something else: this one is a plain volume of this node".to_owned()));
    }
    if request.is_copy && !request.keep_labels {
        labels.retain(|key, _| !is_backup_label(key));
    }
    if known.shortened {
        said.push(Step::Say("the archive does not know all labels of the volume: they were too long".to_owned()));
    }
    let name = request.volume.to_owned();
    Ok([vec![Step::MakeVolume { name, driver, options, labels }], said].concat())
}

/// A copy is for looking into: it is not saved each night beside the original.
fn is_backup_label(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["backup", "skep.backup"]
        .iter()
        .any(|prefix| key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-'])))
}

fn extract(request: &Request<'_>) -> Step {
    // A database refuses to begin in a directory with something in it.
    let without = request.dump.map(|database| dump::name(database).to_owned()).into_iter().collect();
    Step::Extract { archive: request.archive.to_owned(), volume: request.volume.to_owned(), without, bytes: request.bytes }
}

/// Who is stopped.
fn quiesce(request: &Request<'_>, scene: &Scene<'_>) -> Result<Option<Quiesce>, Diagnostic> {
    let mut running: Vec<&Container> = scene.containers.iter().filter(|container| writes(container)).collect();
    running.sort_by(|one, other| one.name.cmp(&other.name));
    if running.is_empty() || request.force_running {
        return Ok(None);
    }
    if let Some(task) = running.iter().find(|container| container.service.is_some()) {
        let service = task.service.as_deref().unwrap_or_default();
        let tasks = running.iter().filter(|container| container.service.as_deref() == Some(service)).count();
        let finding = Diagnostic::error(
            "swarm-service",
            format!("{} is a task of the service {service}: stopped, Swarm would at once start another one on the same volume", task.name),
        );
        return Err(finding.help(format!(
            "docker service scale {service}=0\n  then this command again, and then\n  docker service scale {service}={tasks}\n(or --force-running, which restores below a running application)"
        )));
    }
    if let Some(paused) = running.iter().find(|container| container.state == "paused") {
        let finding =
            Diagnostic::error("paused-container", format!("{} is paused: it cannot be stopped and come back as it is", paused.name));
        return Err(finding.help(format!("docker unpause {0}, or docker stop {0}, and restore again", paused.name)));
    }
    Ok(Some(Quiesce { how: Quiet::Stop, containers: running.into_iter().map(Named::from).collect(), limit: LIMIT }))
}

/// The engine unmounts such a volume with its last container.
fn check_mounted(volume: &Volume, containers: &[Container], stopped: Option<&Quiesce>) -> Result<(), Diagnostic> {
    if !volume.options.contains_key("device") {
        return Ok(());
    }
    let is_stopped = |container: &Container| stopped.is_some_and(|stopped| stopped.containers.iter().any(|named| named.id == container.id));
    if containers.iter().any(|container| container.is_running() && !is_stopped(container)) {
        return Ok(());
    }
    let name = &volume.name;
    let finding = Diagnostic::error(
        "mounted-volume",
        format!("the volume `{}` is a mount, which the engine makes only while a container uses it", brief(name)),
    );
    Err(finding
        .help(format!("let a container hold it that only reads (docker run -d --rm -v {name}:/v:ro IMAGE sleep 1d), and restore again")))
}

/// A safety archive. When nobody writes, the files as they lie there are all that it needs; otherwise it is made as the archive was.
fn safety(request: &Request<'_>, scene: &Scene<'_>, rests: bool) -> Option<Step> {
    if !request.safety || scene.is_empty {
        return None;
    }
    let mode = match request.comment.and_then(|comment| comment.mode.clone()) {
        Some(mode @ (Mode::Dump(_) | Mode::Pause)) if !rests => mode,
        _ => Mode::Hot,
    };
    Some(Step::Safety { volume: request.volume.to_owned(), mode })
}

fn load(request: &Request<'_>, scene: &Scene<'_>) -> Result<Step, Diagnostic> {
    let Some(database) = request.dump else {
        return Err(Diagnostic::error("no-dump", format!("there is no dump in {}", request.archive))
            .help("leave --load out: its files are all there is"));
    };
    let running = scene.containers.iter().filter(|container| container.state == "running" && writes(container));
    let Some(container) = running.min_by(|one, other| one.name.cmp(&other.name)) else {
        let finding = Diagnostic::error(
            "no-container",
            format!("no running container has the volume `{}`: nobody could load the dump", brief(request.volume)),
        );
        return Err(finding.help("restore without --load, start the database, and restore with --load then"));
    };
    if dump::load(database, &container.environment).is_none() && *database != Database::Redis || matches!(database, Database::Sqlite(_)) {
        let finding = Diagnostic::error("no-loader", format!("a {} dump is not loaded by Skep", dump::title(database)));
        return Err(finding.help(format!("load it yourself: {}", command(request, database, Some(container)))));
    }
    let file = dump::name(database).to_owned();
    Ok(Step::Load { archive: request.archive.to_owned(), file, database: database.clone(), container: container.into() })
}

/// How the dump is loaded, where that is left to somebody.
fn by_hand(request: &Request<'_>, container: Option<&Container>) -> Option<String> {
    let database = request.dump?;
    let begin = if container.is_some() { "" } else { "start the database; then " };
    Some(format!("the {} dump is not loaded yet: {begin}{}", dump::title(database), command(request, database, container)))
}

/// A line for a shell.
fn command(request: &Request<'_>, database: &Database, container: Option<&Container>) -> String {
    let (file, archive) = (dump::name(database), request.archive);
    let name = container.map_or("CONTAINER", |container| container.name.as_str());
    let extract = format!("skep backup extract '::{archive}' {file} --stdout");
    let into = match database {
        Database::Postgres => format!("docker exec -i {name} sh -c 'psql -q -X -U \"${{POSTGRES_USER:-postgres}}\" -d postgres'"),
        Database::Mysql | Database::Mariadb => {
            format!(
                "docker exec -i {name} sh -c '$(command -v mariadb || command -v mysql) -uroot -p\"${{MYSQL_ROOT_PASSWORD:-$MARIADB_ROOT_PASSWORD}}\"'"
            )
        }
        Database::Mongodb => format!("docker exec -i {name} mongorestore --archive"),
        Database::Sqlite(file) => format!("docker exec -i {name} sqlite3 /PATH/TO/{file} (which must not be there yet)"),
        Database::Redis => {
            return format!("{extract} > dump.rdb, which belongs into the volume while the database is stopped (--load does that)");
        }
        Database::Custom(_) => return format!("{extract} | whatever reads what `{}` wrote", brief(&database_command(database))),
    };
    format!("{extract} | {into}")
}

fn database_command(database: &Database) -> String {
    match database {
        Database::Custom(command) => command.clone(),
        _ => String::new(),
    }
}

/// What a safety archive is made of: the whole volume, and no older archive goes for it.
pub fn subject(volume: &Volume, node: &str, containers: &[Container], comment: Option<&Comment>, mode: Mode, timeout: Duration) -> Subject {
    let first = containers.iter().min_by(|one, other| one.name.cmp(&other.name));
    Subject {
        volume: volume.clone(),
        node: node.to_owned(),
        service: first.map(|container| container.service.clone().unwrap_or_else(|| container.name.clone())),
        stack: first.and_then(|container| container.stack.clone()),
        owner: comment.and_then(|comment| comment.owner.clone()),
        settings: Settings {
            schedule: String::new(),
            // Without a rule nothing is pruned: the archive that is restored may be the one that a rule would drop for this one.
            keep: Keep::default(),
            exclude: Vec::new(),
            mode,
            pre: None,
            post: None,
            timeout,
            on_error: OnError::Fail,
        },
        containers: containers.to_vec(),
    }
}

/// Warnings of an extraction that mean that something is not there, or is not what it was. The others are about what a file system cannot
/// keep, such as attributes.
pub fn losses(warnings: &[String]) -> Vec<&str> {
    const LOSS: [&str; 9] = [
        "No space left",
        "quota exceeded",
        "Input/output error",
        "Read-only file system",
        "missing chunks",
        "Integrity",
        "integrity",
        "mkdir",
        "open:",
    ];
    warnings.iter().map(String::as_str).filter(|warning| LOSS.iter().any(|loss| warning.contains(loss))).collect()
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MakeVolume { name, driver, options, .. } => {
                let driver = if driver.is_empty() { "local" } else { driver };
                let options: String = options.iter().map(|(key, value)| format!(" {key}={value}")).collect();
                write!(formatter, "make the volume {name} ({driver}{options})")
            }
            Step::Stop(quiesce) => write!(formatter, "stop {}", list(&quiesce.containers)),
            Step::Safety { volume, mode: Mode::Hot } => write!(formatter, "save {volume} as it is now, as a safety archive"),
            Step::Safety { volume, mode: Mode::Dump(database) } => {
                write!(formatter, "save a {} dump of {volume} as it is now, as a safety archive", dump::title(database))
            }
            Step::Safety { volume, .. } => write!(formatter, "pause who writes and save {volume} as it is now, as a safety archive"),
            Step::Empty { volume } => write!(formatter, "delete everything in {volume}"),
            Step::Extract { archive, volume, without, bytes } => {
                let without = without.iter().map(|path| format!(", without {path}")).collect::<String>();
                write!(formatter, "extract {archive} into {volume} ({}{without})", size(*bytes))
            }
            Step::Place { from, to, .. } => write!(formatter, "put {from} there as {to}"),
            Step::Start(quiesce) => write!(formatter, "start {}, whatever happened", list(&quiesce.containers)),
            Step::Load { file, container, .. } => write!(formatter, "load {file} into {}, once it answers", container.name),
            Step::Say(text) => formatter.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::inventory::{Mount, MountKind};

    fn comment(mode: Mode) -> Comment {
        let labels = [("backup.enable", "true"), ("skep.backup-keep", "7d"), ("backups", "mine"), ("team", "a")];
        Comment {
            skep: 1,
            volume: "shop".into(),
            driver: "local".into(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            mode: Some(mode),
            ..Comment::default()
        }
    }

    fn container(name: &str, state: &str, service: Option<&str>, writable: bool) -> Container {
        let mount = Mount { kind: MountKind::Volume, source: "shop".into(), destination: "/data".into(), writable };
        Container {
            id: name.into(),
            name: name.into(),
            state: state.into(),
            service: service.map(str::to_owned),
            mounts: vec![mount],
            ..Container::default()
        }
    }

    fn request(comment: &Comment) -> Request<'_> {
        Request {
            archive: "shop@n1-2026-11-23T02:00:00",
            volume: "shop",
            is_copy: false,
            comment: Some(comment),
            dump: comment.database(),
            bytes: 2_000_000,
            safety: true,
            force_running: false,
            load: false,
            keep_labels: false,
        }
    }

    fn said(request: &Request<'_>, scene: &Scene<'_>) -> Vec<String> {
        match plan(request, scene) {
            Ok(steps) => steps.iter().map(ToString::to_string).collect(),
            Err(finding) => vec![format!("{}; {}", finding.message, finding.help.unwrap_or_default())],
        }
    }

    #[test]
    fn in_place_nothing_is_deleted_before_there_is_a_safety_archive() {
        let (comment, volume) = (comment(Mode::Hot), Volume { name: "shop".into(), ..Volume::default() });
        let containers =
            [container("b", "running", None, true), container("a", "restarting", None, true), container("c", "exited", None, true)];
        let scene = Scene { volume: Some(&volume), containers: &containers, is_empty: false };
        assert_eq!(
            said(&request(&comment), &scene),
            [
                "stop a, b",
                "save shop as it is now, as a safety archive",
                "delete everything in shop",
                "extract shop@n1-2026-11-23T02:00:00 into shop (2.0 MB)",
                "start a, b, whatever happened",
            ]
        );
        let without = said(&Request { safety: false, ..request(&comment) }, &scene);
        assert!(!without.iter().any(|step| step.contains("safety")), "{without:?}");
        let empty = said(&request(&comment), &Scene { is_empty: true, ..scene });
        assert!(!empty.iter().any(|step| step.contains("safety") || step.contains("delete")), "{empty:?}");
    }

    #[test]
    fn a_task_of_a_service_is_not_stopped_but_scaled() {
        let (comment, volume) = (comment(Mode::Hot), Volume { name: "shop".into(), ..Volume::default() });
        let containers = [container("shop.1", "running", Some("shop"), true), container("shop.2", "running", Some("shop"), true)];
        let scene = Scene { volume: Some(&volume), containers: &containers, is_empty: false };
        let refused = said(&request(&comment), &scene).concat();
        assert!(refused.contains("docker service scale shop=0") && refused.contains("docker service scale shop=2"), "{refused}");
        let forced = said(&Request { force_running: true, ..request(&comment) }, &scene);
        assert_eq!(forced[0], "save shop as it is now, as a safety archive");
        assert!(!forced.iter().any(|step| step.contains("stop")), "{forced:?}");
        let gone = [container("shop.1", "exited", Some("shop"), true)];
        assert_eq!(said(&request(&comment), &Scene { containers: &gone, ..scene.clone() }).len(), 3);
        let paused = [container("p", "paused", None, true)];
        assert!(said(&request(&comment), &Scene { containers: &paused, ..scene }).concat().contains("docker unpause p"));
    }

    #[test]
    fn a_volume_that_is_gone_comes_back_as_it_was_and_a_copy_is_not_saved_again() {
        let comment = comment(Mode::Hot);
        let Ok(steps) = plan(&request(&comment), &Scene::default()) else { panic!("refused") };
        let Step::MakeVolume { labels, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(labels, &comment.labels);
        let copy = Request { volume: "copy", is_copy: true, ..request(&comment) };
        let Ok(steps) = plan(&copy, &Scene::default()) else { panic!("refused") };
        let Step::MakeVolume { name, labels, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!((name.as_str(), labels.keys().map(String::as_str).collect::<Vec<_>>()), ("copy", vec!["backups", "team"]));
        let volume = Volume { name: "copy".into(), ..Volume::default() };
        let there = Scene { volume: Some(&volume), ..Scene::default() };
        assert!(said(&copy, &there).concat().contains("there is a volume `copy` already"));
        assert!(said(&copy, &Scene { is_empty: true, ..there })[0].starts_with("extract"));
    }

    #[test]
    fn a_mount_is_never_written_while_it_is_not_mounted() {
        let device = Labels::from([("device".to_owned(), ":/export/shop".to_owned()), ("type".to_owned(), "nfs".to_owned())]);
        let comment = Comment { options: device.clone(), ..comment(Mode::Hot) };
        assert!(
            said(&request(&comment), &Scene::default())
                .concat()
                .contains("docker volume create --opt device=:/export/shop --opt type=nfs shop")
        );
        let copy = said(&Request { volume: "copy", is_copy: true, ..request(&comment) }, &Scene::default());
        assert_eq!(copy[0], "make the volume copy (local)", "never the same place twice");
        let volume = Volume { name: "shop".into(), options: device, ..Volume::default() };
        let writer = [container("w", "running", None, true)];
        let scene = Scene { volume: Some(&volume), containers: &writer, is_empty: false };
        assert!(said(&request(&comment), &scene).concat().contains("let a container hold it"));
        let both = [container("w", "running", None, true), container("r", "running", None, false)];
        assert_eq!(said(&request(&comment), &Scene { containers: &both, ..scene })[0], "stop w");
    }

    #[test]
    fn a_dump_is_loaded_into_a_database_that_begins_empty() {
        let (comment, volume) = (comment(Mode::Dump(Database::Postgres)), Volume { name: "shop".into(), ..Volume::default() });
        let containers = [container("db", "running", None, true)];
        let scene = Scene { volume: Some(&volume), containers: &containers, is_empty: false };
        let steps = said(&Request { load: true, ..request(&comment) }, &scene);
        assert_eq!(
            steps,
            [
                "stop db",
                "save shop as it is now, as a safety archive",
                "delete everything in shop",
                "extract shop@n1-2026-11-23T02:00:00 into shop (2.0 MB, without dump/postgres.sql)",
                "start db, whatever happened",
                "load dump/postgres.sql into db, once it answers",
            ]
        );
        let by_hand = said(&request(&comment), &scene);
        assert!(
            by_hand[5].contains("extract '::shop@n1-2026-11-23T02:00:00' dump/postgres.sql --stdout | docker exec -i db sh"),
            "{by_hand:?}"
        );
        let forced = said(&Request { load: true, force_running: true, ..request(&comment) }, &scene);
        assert_eq!(
            forced,
            ["save a PostgreSQL dump of shop as it is now, as a safety archive", "load dump/postgres.sql into db, once it answers"]
        );
        let nobody = Scene { containers: &[], ..scene };
        assert!(said(&Request { load: true, ..request(&comment) }, &nobody).concat().contains("nobody could load the dump"));
    }

    #[test]
    fn what_was_lost_is_told_from_what_a_disk_cannot_keep() {
        let warnings = [
            "a/b: write: [Errno 28] No space left on device",
            "c: when setting extended attribute user.x: [Errno 95] Operation not supported",
            "d: File has missing chunks, which were replaced",
        ]
        .map(str::to_owned);
        assert_eq!(losses(&warnings).len(), 2);
    }
}
