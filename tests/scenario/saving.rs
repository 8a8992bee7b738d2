//! Carrying a backup out on a real engine: what is saved, and that the application always comes back.
//! Images are made of this machine's own programs (tests/images.sh); without an engine the stories are skipped, loudly.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep::backup::borg::{Borg, quiet};
use skep::backup::command::Access;
use skep::backup::engine::Throwaway;
use skep::backup::guard::{Charge, Guard};
use skep::backup::inventory::{MountKind, Volume};
use skep::backup::journal::Entry;
use skep::backup::report::Archives;
use skep::backup::runner::Runner;
use skep::backup::shelf::Shelf;
use skep::backup::{Census, Database, Job, Keep, Mode, OnError, Reason, Repository, Run, Settings, Subject, Task, Verdict, dump, keys};
use skep::config::{self, Config};
use skep::store::keyed::Keyed;
use tokio_util::sync::CancellationToken;

use crate::place::Place;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_tells_what_it_has_and_does_as_asked() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    let options = ["-v", &format!("{volume}:/data"), "-v", "/tmp:/host:ro", "-e", "PGDATA=/data/x", "-e", "POSTGRES_PASSWORD=hush"];
    let id = place.container("skep-test:1", &options, &["sleep", "1000"]);

    let inventory = place.engine.inventory(None).await.unwrap();
    let known = inventory.volumes.iter().find(|known| known.name == volume).unwrap();
    assert_eq!((known.path.as_path(), known.labels["backup.enable"].as_str(), known.anonymous), (path.as_path(), "true", false));
    assert!(known.created.is_some() && !inventory.node.is_empty());
    let container = inventory.containers.iter().find(|container| container.id == id).unwrap();
    assert_eq!((container.state.as_str(), container.mount(&volume).unwrap().destination.as_path()), ("running", Path::new("/data")));
    assert!(container.mounts.iter().any(|mount| mount.kind == MountKind::Bind && mount.source == "/tmp" && !mount.writable));
    assert_eq!(container.environment["PGDATA"], "/data/x");
    assert!(container.digest.starts_with("sha256:") && !format!("{inventory:?}").contains("hush"));
    let moved = place.engine.inventory(Some(Path::new("/elsewhere"))).await.unwrap();
    assert!(moved.volumes.iter().any(|known| known.path == Path::new("/elsewhere").join(&volume).join("_data")));
    assert_eq!(place.engine.containers(Some(&volume)).await.unwrap().len(), 1);

    let engine = &place.engine;
    let state = async || engine.state(&id).await.unwrap();
    engine.pause(&id).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("paused"));
    assert!(engine.pause(&id).await.is_err(), "it is paused already");
    engine.unpause(&id).await.unwrap();
    engine.unpause(&id).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("running"));
    engine.stop(&id, Duration::from_secs(1)).await.unwrap();
    engine.stop(&id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(state().await.as_deref(), Some("exited"));
    engine.start(&id).await.unwrap();
    engine.start(&id).await.unwrap();
    assert_eq!((state().await.as_deref(), engine.state("nobody").await.unwrap()), (Some("running"), None));
    engine.unpause("nobody").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_in_containers_are_heard_to_their_end() {
    let Some(mut place) = Place::new().await else { return };
    let id = place.container("skep-test:1", &[], &["sleep", "1000"]);
    let run = async |text: &str| {
        let words = ["sh", "-c", text].map(str::to_owned);
        place.engine.exec(&id, &words, None).await.unwrap().collect(64 << 20).await.unwrap()
    };
    let (output, ended) = run("echo to >&2; printf 'a\\000\\001\\377b'; exit 3").await;
    assert_eq!((output.as_slice(), ended.code, ended.complaint.as_str()), (&b"a\x00\x01\xffb"[..], 3, "to"));
    let (output, ended) = run("head -c 20000000 /dev/zero").await;
    assert_eq!((output.len(), ended.code), (20_000_000, 0));
    let words = ["cat".to_owned()];
    let fed = std::io::Cursor::new(vec![7; 3_000_000]);
    let (output, ended) = place.engine.exec_fed(&id, &words, None, fed).await.unwrap().collect(64 << 20).await.unwrap();
    assert_eq!((output.len(), ended.code), (3_000_000, 0));
    // A command that is killed, and a container that is: no output is taken for whole.
    let (_, ended) = run("kill -9 $$").await;
    assert_ne!(ended.code, 0);
    let mut exec = place.engine.exec(&id, &["sh", "-c", "while :; do echo x; sleep 0.1; done"].map(str::to_owned), None).await.unwrap();
    assert!(exec.next().await.unwrap().is_ok());
    place.scratch.docker(&["kill", &id]);
    while let Some(Ok(_)) = exec.next().await {}
    assert_ne!(exec.ended().await.map(|ended| ended.code).unwrap_or(-1), 0);
    assert!(place.engine.exec(&id, &words, None).await.is_err(), "it does not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn throwaways_live_without_a_network_and_go() {
    let Some(mut place) = Place::new().await else { return };
    let engine = place.engine.clone();
    assert!(engine.has_image("skep-test:1").await.unwrap() && !engine.has_image("no/such/image:1").await.unwrap());
    let name = place.name("made");
    place.volumes.push(name.clone());
    let labels = [("a".to_owned(), "b".to_owned())].into();
    engine.create_volume(&name, "local", &Default::default(), &labels).await.unwrap();
    let made = engine.volume(&name, None).await.unwrap().unwrap();
    assert_eq!(made.labels["a"], "b");
    std::fs::write(made.path.join("file"), "here").unwrap();
    let wanted = Throwaway {
        image: "skep-test:1".into(),
        command: ["sh", "-c", "cat /in/file; ip -o link | grep -c . ; touch /in/x; exit 4"].map(str::to_owned).to_vec(),
        binds: vec![format!("{name}:/in:ro")],
        ..Throwaway::default()
    };
    let id = engine.throwaway(&wanted).await.unwrap();
    assert!(engine.throwaways().await.unwrap().contains(&id));
    assert_eq!(engine.wait(&id, Duration::from_secs(20)).await.unwrap(), 4);
    let log = engine.logs(&id, 100).await.unwrap();
    assert!(log.contains("here") && log.contains("Read-only"), "{log}");
    engine.remove(&id).await.unwrap();
    engine.remove(&id).await.unwrap();
    engine.remove_volume(&name).await.unwrap();
    engine.remove_volume(&name).await.unwrap();
    assert!(engine.volume(&name, None).await.unwrap().is_none());
    assert!(engine.throwaway(&Throwaway { image: "no/such/image:1".into(), ..wanted }).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_brings_back_what_nobody_else_does() {
    let Some(mut place) = Place::new().await else { return };
    let (one, other) = (place.container("skep-test:1", &[], &["sleep", "1000"]), place.container("skep-test:1", &[], &["sleep", "1000"]));
    let settle = Duration::from_secs(3);
    let charge = Charge { paused: vec![one.clone()], stopped: vec![other.clone()], limit: Duration::from_secs(600), settle };
    let quiet = async |place: &Place| {
        place.engine.pause(&one).await.unwrap();
        place.engine.stop(&other, Duration::from_secs(1)).await.unwrap();
    };

    // Told that all is well, it does nothing.
    let guard = Guard::start(Path::new(SKEP), &place.docker, &charge).await.unwrap();
    quiet(&place).await;
    guard.dismiss().await;
    assert_eq!(place.engine.state(&one).await.unwrap().as_deref(), Some("paused"));

    // Whoever started it is gone.
    drop(Guard::start(Path::new(SKEP), &place.docker, &charge).await.unwrap());
    place.until(&one, "running").await;
    place.until(&other, "running").await;

    // Whoever started it hangs, while the engine still does what it was asked to.
    let soon = Charge { limit: Duration::from_secs(1), ..charge.clone() };
    let guard = Guard::start(Path::new(SKEP), &place.docker, &soon).await.unwrap();
    quiet(&place).await;
    place.until(&one, "running").await;
    place.until(&other, "running").await;
    guard.dismiss().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_outlives_its_parent_and_signals_to_its_group() {
    let Some(mut place) = Place::new().await else { return };
    let id = place.container("skep-test:1", &[], &["sleep", "1000"]);
    // A shell holds the pipe as Skep would, in a process group of its own.
    let script = format!(
        "mkfifo {dir}/in; {SKEP} backup guard --endpoint {} --seconds 600 --unpause {id} <{dir}/in >{dir}/out & exec 9>{dir}/in; echo $! >{dir}/pid; wait",
        place.docker.endpoint,
        dir = place.directory.path().display()
    );
    let mut shell = Command::new("setsid").args(["sh", "-c", &script]).spawn().unwrap();
    let read = |name: &str| std::fs::read_to_string(place.directory.path().join(name)).unwrap_or_default();
    while read("out") != "ready\n" || read("pid").is_empty() {
        assert!(shell.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    place.engine.pause(&id).await.unwrap();
    let (group, guard) = (format!("-{}", shell.id()), read("pid").trim().to_owned());
    for (signal, whom) in [("-TERM", guard.as_str()), ("-INT", &guard), ("-HUP", &guard)] {
        assert!(Command::new("kill").args([signal, "--", whom]).status().unwrap().success());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("paused"), "it still watches");
    assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    shell.wait().unwrap();
    place.until(&id, "running").await;
}

/// borg with a brake: it waits at the subcommand that the file `hang` names until that file is gone, fails at the one that `fail` names,
/// and notes every subcommand.
const BRAKE: &str = r#"#!/bin/sh
what=other
for word; do case $word in init|create|list|info|rename|delete|prune|compact|check|extract|break-lock) what=$word; break ;; esac; done
echo "$what" >>DIR/log
if [ "$what" = "$(cat DIR/fail 2>/dev/null)" ]; then echo broken >&2; exit 2; fi
while [ "$what" = "$(cat DIR/hang 2>/dev/null)" ]; do echo "$what" >DIR/hanging; sleep 0.05; done
exec borg "$@"
"#;

/// One volume's jobs against one target, all of it below the place's directory.
struct Saving<'a> {
    place: &'a Place,
    subject: Subject,
    job: Job,
    runner: Runner,
    brake: PathBuf,
}

/// What a process of its own needs to do the same.
#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    endpoint: String,
    directory: PathBuf,
    volume: String,
    path: PathBuf,
    mode: Mode,
    pause_limit: u64,
}

impl<'a> Saving<'a> {
    async fn new(place: &'a Place, volume: &str, path: &Path, mode: Mode) -> Saving<'a> {
        let directory = place.directory.path();
        Saving::at(place, volume, path, mode, &directory.join("target")).await
    }

    async fn at(place: &'a Place, volume: &str, path: &Path, mode: Mode, target: &Path) -> Saving<'a> {
        let (subject, job, runner) = parts(place.directory.path(), &place.docker, volume, path, mode, target).await;
        Saving { place, subject, job, runner, brake: place.directory.path().join("brake") }
    }

    async fn run(&self) -> Run {
        self.runner.save(&self.job, &self.subject, &quiet(), &CancellationToken::new()).await
    }

    fn set(&self, what: &str, value: &str) {
        std::fs::write(self.brake.join(what), value).unwrap();
    }

    fn clear(&self, what: &str) {
        _ = std::fs::remove_file(self.brake.join(what));
    }

    async fn until_hanging(&self, what: &str) {
        let began = Instant::now();
        while std::fs::read_to_string(self.brake.join("hanging")).unwrap_or_default().trim() != what {
            assert!(began.elapsed() < Duration::from_secs(40), "it never came to {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.clear("hanging");
    }

    fn access<'b>(&'b self, passphrase: &'b Path) -> Access<'b> {
        self.runner.borg.access(&self.job.repository, Some(passphrase), "test")
    }

    /// Names of all archives that there are, also unfinished ones.
    async fn archives(&self) -> Vec<String> {
        let passphrase = keys::passphrase(&self.runner.config, &self.runner.state).unwrap();
        let output = self.ask(&self.access(&passphrase).list_archives(None)).await;
        output.json::<Archives>().unwrap().archives.into_iter().map(|archive| archive.name).collect()
    }

    async fn ask(&self, command: &skep::backup::command::Command) -> skep::backup::borg::Output {
        let done = self.runner.borg.run(command, None, &quiet(), &CancellationToken::new(), Duration::from_secs(60)).await;
        done.unwrap_or_else(|failure| panic!("{command}: {failure}"))
    }

    /// What one archive holds, extracted.
    async fn extracted(&self, archive: &str) -> tempfile::TempDir {
        let passphrase = keys::passphrase(&self.runner.config, &self.runner.state).unwrap();
        let directory = tempfile::tempdir().unwrap();
        self.ask(&self.access(&passphrase).extract(archive, directory.path(), &[])).await;
        directory
    }

    async fn is_quiet(&self) {
        let journals = self.runner.shelf.journals().await.unwrap();
        assert!(journals.dead.is_empty() && journals.living.is_empty() && journals.findings.is_empty(), "{journals:?}");
    }

    /// A process that does the same, to be killed.
    fn child(&self, pause_limit: u64) -> Child {
        let order = Order {
            endpoint: self.place.docker.endpoint.clone(),
            directory: self.place.directory.path().to_owned(),
            volume: self.subject.volume.name.clone(),
            path: self.subject.volume.path.clone(),
            mode: self.subject.settings.mode.clone(),
            pause_limit,
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "saving::one_job_in_a_process_of_its_own", "--nocapture"]);
        command.env("SKEP_TEST_ORDER", serde_json::to_string(&order).unwrap());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

async fn parts(directory: &Path, docker: &config::Docker, volume: &str, path: &Path, mode: Mode, target: &Path) -> (Subject, Job, Runner) {
    let (state, brake) = (directory.join("state"), directory.join("brake"));
    std::fs::create_dir_all(&brake).unwrap();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).unwrap();
    let script = brake.join("borg");
    if !script.exists() {
        std::fs::write(&script, BRAKE.replace("DIR", &brake.display().to_string())).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let repository = Repository { location: target.join("n1").display().to_string(), name: "n1".into() };
    let config = config::Backup {
        nice: 0,
        io_idle: false,
        compression: "none".into(),
        lock_wait: Duration::from_secs(2),
        min_free: 0,
        borg: script.display().to_string(),
        ..config::Backup::default()
    };
    let borg = Borg::find(&config, &state).await.unwrap().with_tether(Path::new(SKEP));
    let (keyed, _) = Keyed::open(&state).unwrap();
    let shelf = Shelf::open(&state, Arc::new(keyed)).unwrap();
    let runner = Runner { config, docker: docker.clone(), state, shelf, borg, program: SKEP.into() };
    let settings = Settings {
        schedule: "0 2 * * *".into(),
        keep: Keep { daily: 7, ..Keep::default() },
        exclude: Vec::new(),
        mode,
        pre: None,
        post: None,
        timeout: Duration::from_secs(120),
        on_error: OnError::Fail,
    };
    let volume = Volume { name: volume.into(), driver: "local".into(), path: path.into(), ..Volume::default() };
    let job = Job {
        task: Task::Save,
        volume: Some(volume.name.clone()),
        target: "local".into(),
        repository,
        due: jiff::Timestamp::now(),
        reason: Reason::Asked,
    };
    let subject = Subject { volume, node: "n1".into(), service: None, stack: None, owner: None, settings, containers: Vec::new() };
    (subject, job, runner)
}

/// Does nothing unless another test starts it, to kill it.
#[tokio::test(flavor = "multi_thread")]
async fn one_job_in_a_process_of_its_own() {
    let Ok(order) = std::env::var("SKEP_TEST_ORDER") else { return };
    let order: Order = serde_json::from_str(&order).unwrap();
    let docker = config::Docker { endpoint: order.endpoint, ..Config::default().docker };
    let target = order.directory.join("target");
    let (subject, job, mut runner) = parts(&order.directory, &docker, &order.volume, &order.path, order.mode, &target).await;
    runner.config.pause_limit = Duration::from_secs(order.pause_limit);
    // As the daemon does.
    let run = tokio::spawn(async move { runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await }).await.unwrap();
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
}

fn fill(path: &Path) {
    std::fs::create_dir_all(path.join("sub/dir")).unwrap();
    std::fs::write(path.join("sub/dir/file"), "content").unwrap();
    std::fs::write(path.join("random"), (0..200_000).map(|_| fastrand::u8(..)).collect::<Vec<_>>()).unwrap();
    std::os::unix::fs::symlink("sub/dir/file", path.join("link")).unwrap();
}

fn same(one: &Path, other: &Path) {
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_vanish_are_missed() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    std::fs::write(path.join("file"), "x").unwrap();
    let mut saving = Saving::new(&place, &volume, &path, Mode::Hot).await;
    saving.subject.settings.keep = Keep { last: 3, ..Keep::default() };
    for (expected, found, left) in [(None, 0, 1), (Some(1), 1, 2), (Some(2), 2, 3), (Some(3), 3, 3), (Some(3), 3, 3)] {
        let run = saving.run().await;
        assert_eq!(run.census, Some(Census { expected, found, left: Some(left) }), "{run:?}");
    }
    let passphrase = keys::passphrase(&saving.runner.config, &saving.runner.state).unwrap();
    saving.ask(&saving.access(&passphrase).delete("*")).await;
    let run = saving.run().await;
    assert_eq!(run.census, Some(Census { expected: Some(3), found: 0, left: Some(1) }), "{run:?}");
    let runs = saving.runner.shelf.runs().await.unwrap();
    assert_eq!(runs[&saving.job.key()].missed(&saving.job.repository), Some((3, 0)));
    assert_eq!(runs[&saving.job.key()].left(&saving.job.repository), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_saved_while_it_is_used() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    std::fs::write(path.join("left-out.log"), "x").unwrap();
    let id = place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let mut saving = Saving::new(&place, &volume, &path, Mode::Hot).await;
    saving.subject.settings.exclude = vec!["*.log".into()];
    saving.subject.settings.pre = Some("echo before >/data/hooks".into());
    saving.subject.settings.post = Some("echo after >>/data/hooks".into());
    let run = saving.run().await;
    assert_eq!((run.verdict, run.warnings.len()), (Verdict::Good, 0), "{run:?}");
    assert!(run.stats.files == 3 && run.stats.original > 200_000 && run.stats.deduplicated > 200_000, "{run:?}");
    assert_eq!(saving.archives().await, [run.archive.clone().unwrap()]);
    let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
    assert_eq!(std::fs::read_to_string(extracted.path().join("hooks")).unwrap(), "before\n");
    assert_eq!(std::fs::read_to_string(path.join("hooks")).unwrap(), "before\nafter\n");
    std::fs::remove_file(path.join("left-out.log")).unwrap();
    std::fs::write(path.join("hooks"), "before\n").unwrap();
    same(&path, extracted.path());

    // A hook that fails ends the run, or is a warning.
    saving.subject.settings.pre = Some("echo no room >&2; exit 7".into());
    let failed = saving.run().await;
    assert_eq!(failed.verdict, Verdict::Failed);
    assert!(failed.message.contains("exit code 7: no room"), "{}", failed.message);
    assert_eq!(std::fs::read_to_string(path.join("hooks")).unwrap(), "before\nafter\n", "the other hook ran");
    saving.subject.settings.on_error = OnError::Continue;
    let warned = saving.run().await;
    assert_eq!(warned.verdict, Verdict::Warning, "{warned:?}");
    assert_eq!(saving.archives().await.len(), 2, "of one day the last is kept, and the first of all as long as there are few");
    let runs = saving.runner.shelf.runs().await.unwrap();
    assert_eq!(runs[&saving.job.key()].runs.len(), 3);
    saving.is_quiet().await;
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("running"));

    // Checks of the same repository.
    for task in [Task::CheckRepository, Task::CheckArchives, Task::VerifyData] {
        let job = Job { task, volume: None, ..saving.job.clone() };
        let run = saving.runner.check(&job, &quiet(), &CancellationToken::new()).await;
        assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    }
    // A target that was there and is gone is not made anew.
    std::fs::rename(&saving.job.repository.location, place.directory.path().join("away")).unwrap();
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("is its disk mounted"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_paused_or_stopped_while_their_volume_is_read_and_come_back() {
    let Some(mut place) = Place::new().await else { return };
    for (mode, during) in [(Mode::Pause, "paused"), (Mode::Stop, "exited")] {
        let (volume, path) = place.volume();
        fill(&path);
        let mount = format!("{volume}:/data");
        let writer = place.container("skep-test:1", &["-v", &mount], &["sleep", "1000"]);
        let reader = place.container("skep-test:1", &["-v", &format!("{mount}:ro")], &["sleep", "1000"]);
        let frozen = place.container("skep-test:1", &["-v", &mount], &["sleep", "1000"]);
        place.engine.pause(&frozen).await.unwrap();
        let saving = Saving::new(&place, &volume, &path, mode).await;
        saving.set("hang", "create");
        let task = tokio::spawn({
            let (runner, job, subject) = (saving.runner.clone(), saving.job.clone(), saving.subject.clone());
            async move { runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await }
        });
        saving.until_hanging("create").await;
        let state = async |id: &str| place.engine.state(id).await.unwrap().unwrap();
        assert_eq!((state(&writer).await.as_str(), state(&reader).await.as_str()), (during, "running"));
        let living = saving.runner.shelf.journals().await.unwrap().living;
        assert_eq!((living[0].paused.len() + living[0].stopped.len(), living[0].deadline.is_some()), (1, true), "it is written down");
        saving.set("hang", "info");
        saving.until_hanging("info").await;
        assert_eq!(state(&writer).await, "running", "before anything else is done");
        saving.clear("hang");
        let run = task.await.unwrap();
        assert_eq!(run.verdict, Verdict::Good, "{run:?}");
        assert_eq!(state(&frozen).await, "paused", "what somebody else paused is none of ours");
        saving.is_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_would_be_gone_is_not_stopped() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    let id = place.container("skep-test:1", &["--rm", "-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let saving = Saving::new(&place, &volume, &path, Mode::Stop).await;
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("--rm"), "{run:?}");
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("running"));
    saving.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_at_its_deadline_though_not_all_is_read() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    let id = place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let mut saving = Saving::new(&place, &volume, &path, Mode::Pause).await;
    saving.runner.config.pause_limit = Duration::from_secs(1);
    saving.set("hang", "create");
    let task = tokio::spawn({
        let (runner, job, subject) = (saving.runner.clone(), saving.job.clone(), saving.subject.clone());
        async move { runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await }
    });
    place.until(&id, "paused").await;
    place.until(&id, "running").await;
    saving.until_hanging("create").await;
    saving.clear("hang");
    let run = task.await.unwrap();
    assert!(run.verdict == Verdict::Warning && run.message.contains("pause-limit"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_runs_after_every_failure() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    let id = place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let mut saving = Saving::new(&place, &volume, &path, Mode::Pause).await;
    let running = async || assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("running"));
    let failed = |run: &Run, part: &str| {
        assert!(run.verdict == Verdict::Failed && run.message.contains(part), "{part}: {run:?}");
    };

    // borg fails at each of its steps; the last three do no harm to a good archive.
    for what in ["init", "create", "info", "rename"] {
        saving.set("fail", what);
        failed(&saving.run().await, "");
        running().await;
    }
    saving.set("fail", "prune");
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Warning && run.warnings[0].contains("could not delete older archives"), "{run:?}");
    assert_eq!(saving.archives().await, [run.archive.unwrap()], "what was unfinished is gone");
    saving.clear("fail");

    // Told to stop in the middle.
    saving.set("hang", "create");
    let stop = CancellationToken::new();
    let task = tokio::spawn({
        let (runner, job, subject, stop) = (saving.runner.clone(), saving.job.clone(), saving.subject.clone(), stop.clone());
        async move { runner.save(&job, &subject, &quiet(), &stop).await }
    });
    saving.until_hanging("create").await;
    stop.cancel();
    failed(&task.await.unwrap(), "told to stop");
    running().await;

    // Dropped in the middle, which nobody should do: the guard is there.
    let task = tokio::spawn({
        let (runner, job, subject) = (saving.runner.clone(), saving.job.clone(), saving.subject.clone());
        async move { runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await }
    });
    saving.until_hanging("create").await;
    // Another one of the same volume does not get in between.
    let second = saving.runner.save(&saving.job, &saving.subject, &quiet(), &CancellationToken::new()).await;
    failed(&second, "works on the same volume since");
    task.abort();
    place.until(&id, "running").await;
    saving.clear("hang");

    // Its time is over.
    saving.subject.settings.timeout = Duration::from_secs(3);
    saving.set("hang", "create");
    failed(&saving.run().await, "longer than");
    running().await;
    saving.clear("hang");
    saving.subject.settings.timeout = Duration::from_secs(120);

    // No room: seen before anything is paused.
    saving.runner.config.min_free = u64::MAX;
    failed(&saving.run().await, "min-free");
    saving.runner.config.min_free = 0;

    // A target that is none, and one behind a port where nobody listens.
    let good = saving.job.repository.clone();
    for location in ["/proc/nowhere/n1", "ssh://nobody@127.0.0.1:1/nowhere"] {
        saving.job.repository.location = location.into();
        failed(&saving.run().await, "");
        running().await;
    }
    saving.job.repository = good;

    // The volume is not where it should be.
    let there = std::mem::replace(&mut saving.subject.volume.path, "/nowhere/at/all".into());
    failed(&saving.run().await, "backup.volumes");
    saving.subject.volume.path = there;
    saving.runner.recover().await;
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    saving.is_quiet().await;
}

/// A small file system in memory, gone at the end.
struct Small(PathBuf);

impl Small {
    fn new(path: &Path, size: &str) -> Small {
        std::fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(path).status().unwrap();
        assert!(mounted.success());
        Small(path.to_owned())
    }

    fn fill_up(&self) {
        _ = std::fs::write(self.0.join("ballast"), vec![1; 64 << 20]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_stop_no_application() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    std::fs::write(path.join("big"), (0..12 << 20).map(|_| fastrand::u8(..)).collect::<Vec<_>>()).unwrap();
    let id = place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    // The target's.
    let target = Small::new(&place.directory.path().join("small"), "6m");
    let saving = Saving::at(&place, &volume, &path, Mode::Pause, &target.0).await;
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("space"), "{run:?}");
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("running"));
    // Our own: what cannot be written down is not done.
    let journal = Small::new(&place.directory.path().join("state/backup/journal"), "64k");
    journal.fill_up();
    let saving = Saving::new(&place, &volume, &path, Mode::Pause).await;
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("could not be written down"), "{run:?}");
    assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some("running"));
    assert!(!saving.brake.join("log").exists() || !std::fs::read_to_string(saving.brake.join("log")).unwrap().ends_with("create\n"));
    drop(journal);
    assert_eq!(saving.run().await.verdict, Verdict::Good);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_skep_leaves_nothing_that_stands_still() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    let id = place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let saving = Saving::new(&place, &volume, &path, Mode::Pause).await;
    for what in ["list", "init", "create", "info", "rename", "prune", "compact"] {
        saving.set("hang", what);
        let mut child = saving.child(600);
        saving.until_hanging(what).await;
        assert_eq!(saving.runner.shelf.journals().await.unwrap().living.len(), 1, "{what}");
        let expected = if what == "create" { "paused" } else { "running" };
        assert_eq!(place.engine.state(&id).await.unwrap().as_deref(), Some(expected), "{what}");
        child.kill().unwrap();
        child.wait().unwrap();
        saving.clear("hang");
        // By its guard, before anybody starts Skep again.
        place.until(&id, "running").await;
        let said = saving.runner.recover().await;
        assert!(said.iter().any(|text| text.contains("undone")), "{what}: {said:?}");
        saving.is_quiet().await;
    }
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    let archives = saving.archives().await;
    assert!(archives.iter().all(|name| !name.contains("unproven")) && archives.contains(&run.archive.unwrap()), "{archives:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lost_its_power_brings_everything_back_when_it_starts() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    let mount = format!("{volume}:/data");
    let (one, other) =
        (place.container("skep-test:1", &["-v", &mount], &["sleep", "1000"]), place.container("skep-test:1", &[], &["sleep", "1"]));
    let saving = Saving::new(&place, &volume, &path, Mode::Pause).await;
    // Neither Skep nor its guard is left: only what was written down.
    place.engine.pause(&one).await.unwrap();
    place.until(&other, "exited").await;
    let entry = Entry {
        run: "gone".into(),
        task: Task::Save,
        volume: Some(volume.clone()),
        target: "local".into(),
        repository: saving.job.repository.clone(),
        holder: "skep-gone".into(),
        archive: None,
        began: jiff::Timestamp::now(),
        deadline: None,
        step: "save".into(),
        paused: vec![one.clone()],
        stopped: vec![other.clone()],
    };
    std::fs::create_dir_all(&saving.job.repository.location).unwrap();
    drop(saving.runner.shelf.begin(entry).await.unwrap());
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    let written = saving.runner.state.join("backup/journal/gone.journal");
    std::fs::File::options().write(true).open(written).unwrap().set_modified(hour).unwrap();
    let said = saving.runner.recover().await.join("\n");
    assert!(said.contains("did unpause") && said.contains("did start") && said.contains("undone"), "{said}");
    assert_eq!(place.engine.state(&one).await.unwrap().as_deref(), Some("running"));
    saving.is_quiet().await;
    assert!(saving.runner.recover().await.is_empty());
    // A journal that the disk has spoiled: what it names goes on, and it is said.
    place.engine.pause(&one).await.unwrap();
    std::fs::write(saving.runner.state.join("backup/journal/x.journal"), format!("garbage {one}\n")).unwrap();
    let said = saving.runner.recover().await.join("\n");
    assert!(said.contains("is damaged") && said.contains("did unpause"), "{said}");
    assert_eq!(place.engine.state(&one).await.unwrap().as_deref(), Some("running"));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_the_dead_are_broken_and_of_the_living_are_not() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    fill(&path);
    place.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "1000"]);
    let endless = Mode::Dump(Database::Custom("echo first; sleep 1000".into()));
    let mut saving = Saving::new(&place, &volume, &path, endless).await;
    let mut child = saving.child(600);
    let lock = Path::new(&saving.job.repository.location).join("lock.exclusive");
    let began = Instant::now();
    // borg holds it while it reads the dump, which is after the listing and the making.
    while !std::fs::read_to_string(saving.brake.join("log")).unwrap_or_default().ends_with("create\n") || !lock.exists() {
        assert!(began.elapsed() < Duration::from_secs(40));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    saving.subject.settings.mode = Mode::Hot;
    // Another volume of the same repository.
    let (own, other) = (saving.subject.volume.name.clone(), "other".to_owned());
    (saving.subject.volume.name, saving.job.volume) = (other.clone(), Some(other));
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("lock"), "it lives: {run:?}");
    (saving.subject.volume.name, saving.job.volume) = (own.clone(), Some(own));
    child.kill().unwrap();
    child.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(lock.exists(), "borg died with Skep, so nobody took its lock away");
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    assert_eq!(saving.archives().await.len(), 1, "half a dump is none");
    saving.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_says_itself_what_is_in_it() {
    let Some(mut place) = Place::new().await else { return };
    let image = place.image("postgres");
    let (volume, path) = place.volume();
    let id = place.container(&image, &["-v", &format!("{volume}:/var/lib/postgresql/data"), "-e", "POSTGRES_USER=shop"], &[]);
    place
        .said(&id, &["psql", "-U", "shop", "-d", "postgres", "-c", "CREATE TABLE wares (name text); INSERT INTO wares VALUES ('Hönig')"])
        .await;
    let saving = Saving::new(&place, &volume, &path, Mode::Dump(Database::Postgres)).await;
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
    let files: Vec<_> = std::fs::read_dir(extracted.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["dump"], "the database's own files are left out");
    let text = std::fs::read(extracted.path().join("dump/postgres.sql")).unwrap();
    assert!(String::from_utf8_lossy(&text).contains("Hönig"));

    // Into a fresh one, as a drill does.
    let load = dump::load(&Database::Postgres, &[("POSTGRES_USER".to_owned(), "shop".to_owned())].into()).unwrap();
    let fresh = place.engine.throwaway(&Throwaway { image, environment: load.environment.clone(), ..Throwaway::default() }).await.unwrap();
    place.containers.push(fresh.clone());
    let words = |words: &[String]| words.to_vec();
    place.said(&fresh, &load.ready.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let loaded = place.engine.exec_fed(&fresh, &words(&load.load), None, std::io::Cursor::new(text)).await.unwrap();
    let (_, ended) = loaded.collect(1 << 20).await.unwrap();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(place.said(&fresh, &load.count.iter().map(String::as_str).collect::<Vec<_>>()).await.trim(), "1");
    assert_eq!(place.said(&fresh, &["psql", "-U", "shop", "-d", "postgres", "-Atc", "SELECT name FROM wares"]).await.trim(), "Hönig");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_dies_in_the_middle_is_no_backup() {
    let Some(mut place) = Place::new().await else { return };
    let image = place.image("postgres");
    let (volume, path) = place.volume();
    let id = place.container(&image, &["-v", &format!("{volume}:/var/lib/postgresql/data")], &[]);
    place.said(&id, &["psql", "-U", "postgres", "-c", "CREATE TABLE wares (name text)"]).await;
    let saving = Saving::new(&place, &volume, &path, Mode::Dump(Database::Postgres)).await;
    // Somebody holds a table, for which pg_dump waits.
    let lock = ["psql", "-U", "postgres", "-c", "BEGIN; LOCK TABLE wares; SELECT pg_sleep(600)"].map(str::to_owned);
    let _held = place.engine.exec(&id, &lock, None).await.unwrap();
    let task = tokio::spawn({
        let (runner, job, subject) = (saving.runner.clone(), saving.job.clone(), saving.subject.clone());
        async move { runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await }
    });
    let killed = "for process in /proc/[0-9]*; do case $(cat $process/comm 2>/dev/null) in pg_dump) kill -9 ${process#/proc/}; found=1 ;; esac; done; [ -n \"$found\" ]";
    place.said(&id, &["sh", "-c", killed]).await;
    let run = task.await.unwrap();
    assert!(run.verdict == Verdict::Failed && run.message.contains("the PostgreSQL dump"), "{run:?}");
    assert!(saving.archives().await.is_empty(), "no archive is left that looks like one");
    // A server that is away, a tool that is, and nobody who runs.
    place.scratch.docker(&["stop", "-t", "1", &id]);
    assert!(saving.run().await.message.contains("no container that mounts the volume runs"));
    let mut saving = saving;
    let other =
        place.scratch.docker(&["run", "-d", "--rm", "--network", "none", "-v", &format!("{volume}:/data"), "skep-test:1", "sleep", "1000"]);
    saving.subject.settings.mode = Mode::Dump(Database::Sqlite("x.db".into()));
    let run = saving.run().await;
    assert!(run.verdict == Verdict::Failed && run.message.contains("there is no sqlite3 in the container"), "{run:?}");
    saving.subject.settings.mode = Mode::Dump(Database::Custom("true".into()));
    assert!(saving.run().await.message.contains("is empty"));
    place.scratch.docker(&["kill", &other]);
    assert!(saving.archives().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_databases_say_it_too() {
    let Some(mut place) = Place::new().await else { return };
    // Redis, with a password, and a file of somebody else's beside it.
    let image = place.image("redis");
    let (volume, path) = place.volume();
    let id = place.container(&image, &["-v", &format!("{volume}:/data"), "-e", "REDIS_PASSWORD=it's secret"], &[]);
    let client = [
        "sh",
        "-c",
        r#"REDISCLI_AUTH=$REDIS_PASSWORD redis-cli --no-auth-warning set ware honey && REDISCLI_AUTH=$REDIS_PASSWORD redis-cli save"#,
    ];
    assert!(place.said(&id, &client).await.contains("OK"));
    std::fs::write(path.join("redis.conf"), "# mine").unwrap();
    let saving = Saving::new(&place, &volume, &path, Mode::Dump(Database::Redis)).await;
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
    assert!(extracted.path().join("redis.conf").exists() && !extracted.path().join("dump.rdb").exists());
    let restored = tempfile::tempdir().unwrap();
    std::fs::copy(extracted.path().join("dump/redis.rdb"), restored.path().join("dump.rdb")).unwrap();
    let fresh = place.container(&image, &["-v", &format!("{}:/data", restored.path().display())], &[]);
    assert_eq!(place.said(&fresh, &["redis-cli", "get", "ware"]).await.trim(), "honey");
    let checked = Command::new("redis-check-rdb").arg(restored.path().join("dump.rdb")).output();
    assert!(checked.is_err() || checked.unwrap().status.success(), "nothing is behind its end");

    // SQLite, in a file of many.
    let image = place.image("sqlite");
    let (volume, path) = place.volume();
    std::fs::write(path.join("upload.bin"), "x").unwrap();
    let id = place.container(&image, &["-v", &format!("{volume}:/srv/it's here")], &[]);
    let sql = "PRAGMA journal_mode=wal; CREATE TABLE wares (name); INSERT INTO wares VALUES ('honey'); PRAGMA user_version=42;";
    place.said(&id, &["sqlite3", "/srv/it's here/app.db", sql]).await;
    let saving = Saving::new(&place, &volume, &path, Mode::Dump(Database::Sqlite("app.db".into()))).await;
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
    assert!(extracted.path().join("upload.bin").exists() && !extracted.path().join("app.db").exists());
    let load = format!(
        "sqlite3 {0}/new.db <{0}/dump/sqlite.sql && sqlite3 {0}/new.db 'PRAGMA user_version; SELECT name FROM wares'",
        extracted.path().display()
    );
    let read = Command::new("sh").args(["-c", &load]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&read.stdout), "42\nhoney\n");

    // Whatever somebody's command says.
    let saving = Saving::new(&place, &volume, &path, Mode::Dump(Database::Custom("head -c 3000000 /dev/zero".into()))).await;
    let run = saving.run().await;
    assert_eq!(run.verdict, Verdict::Good, "{run:?}");
    let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
    assert_eq!(std::fs::metadata(extracted.path().join("dump/custom")).unwrap().len(), 3_000_000);
    assert!(extracted.path().join("app.db").exists() && extracted.path().join("upload.bin").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_says_it_with_its_password_in_a_file() {
    let Some(mut place) = Place::new().await else { return };
    if !Path::new("/usr/sbin/mariadbd").exists() {
        assert!(std::env::var("CI").is_err(), "no mariadbd: install mariadb-server-core and mariadb-client");
        return eprintln!("SKIPPED: no mariadbd on this machine");
    }
    let image = place.image("mariadb");
    let (volume, path) = place.volume();
    let options = ["-v", &format!("{volume}:/var/lib/mysql"), "-e", "MYSQL_ROOT_PASSWORD=it's \"secret\""];
    let id = place.container(&image, &options, &[]);
    let client = r#"MYSQL_PWD=$MYSQL_ROOT_PASSWORD exec mariadb -uroot -e "CREATE DATABASE IF NOT EXISTS shop; CREATE OR REPLACE TABLE shop.wares (name text); INSERT INTO shop.wares VALUES ('honey')""#;
    place.said(&id, &["sh", "-c", client]).await;
    for database in [Database::Mariadb, Database::Mysql] {
        let name = dump::name(&database);
        let saving = Saving::new(&place, &volume, &path, Mode::Dump(database)).await;
        let run = saving.run().await;
        assert_eq!(run.verdict, Verdict::Good, "{run:?}");
        let extracted = saving.extracted(run.archive.as_deref().unwrap()).await;
        let text = std::fs::read_to_string(extracted.path().join(name)).unwrap();
        assert!(text.contains("'honey'") && std::fs::read_dir(extracted.path()).unwrap().count() == 1);
    }
    // The password by a file, as a secret of Swarm is; and a wrong one.
    place.said(&id, &["sh", "-c", "printf %s \"$MYSQL_ROOT_PASSWORD\" >/tmp/secret"]).await;
    let script = dump::command(&Database::Mariadb, Path::new("/var/lib/mysql"))[2].clone();
    let run = async |prefix: &str| {
        let words = ["sh", "-c", &format!("{prefix}\n{script}")].map(str::to_owned);
        place.engine.exec(&id, &words, None).await.unwrap().collect(1 << 20).await.unwrap()
    };
    let (output, ended) = run("unset MYSQL_ROOT_PASSWORD; export MYSQL_ROOT_PASSWORD_FILE=/tmp/secret").await;
    assert!(ended.code == 0 && String::from_utf8_lossy(&output).contains("-- Dump completed"), "{ended:?}");
    let (_, ended) = run("export MYSQL_ROOT_PASSWORD=wrong").await;
    assert!(ended.code != 0 && ended.complaint.contains("Access denied"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_done_is_told_and_not_done() {
    let Some(mut place) = Place::new().await else { return };
    let (volume, path) = place.volume();
    let saving = Saving::new(&place, &volume, &path, Mode::Hot).await;
    let text: Vec<String> = saving
        .runner
        .outline(&saving.job, Some(&saving.subject))
        .into_iter()
        .map(|(step, command)| {
            let lines = command.map(|command| format!("{command}\n  {}", command.environment().join("\n  ")));
            format!("{step}\n  {}", lines.unwrap_or_default())
        })
        .collect();
    let text = text.join("\n");
    for part in ["save the volume's files\n  cd ", ".unproven .", "BORG_PASSCOMMAND=", "prune --keep-daily=7", "\nfree the space"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!saving.runner.state.join("backup/passphrase").exists() && !Path::new(&saving.job.repository.location).exists());
}
