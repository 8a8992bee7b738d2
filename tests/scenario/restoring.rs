//! Having again what was saved: files, volumes, databases, from nothing but a repository; and whether drills tell what is damaged.
//! Real borg, and a real engine where volumes and containers matter; without one those stories are skipped, loudly.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use skep::backup::borg::{Borg, quiet};
use skep::backup::plan::repository;
use skep::backup::runner::Runner;
use skep::backup::shelf::Shelf;
use skep::backup::{Database, Job, Mode, Reason, Repository, Run, Task, Verdict, keys, restore, trial};
use skep::config;
use skep::store::keyed::Keyed;
use tokio_util::sync::CancellationToken;

use crate::borgs::{self, census, name, shell, versions};
use crate::place::Place;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(command: &mut Command) -> Said {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn fine(self) -> Said {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self
    }

    /// It did not go well, and says why.
    fn refused(self, why: &str) -> Said {
        assert!(self.code != Some(0) && self.err.contains(why), "{:?} {}{}", self.code, self.out, self.err);
        self
    }
}

/// A command on a machine that has nothing: no configuration, no state, no Docker.
fn bare(words: &[&str]) -> Command {
    let mut command = Command::new(SKEP);
    command.args(words);
    for (name, _) in std::env::vars() {
        if name.starts_with("SKEP_") || name.starts_with("DOCKER_") || name.starts_with("BORG_") {
            command.env_remove(name);
        }
    }
    command.env("SKEP_DOCKER_ENDPOINT", "unix:///nowhere/docker.sock").env("SKEP_STATE_DIRECTORY", "/nowhere/state");
    command
}

/// Files as volumes have them.
fn fill(volume: &Path) {
    shell(
        volume,
        "mkdir -p etc/deep; echo one > etc/app.conf; ln etc/app.conf etc/hard; ln -s app.conf etc/soft; mkfifo pipe; \
         head -c 3000000 /dev/urandom > big; truncate -s 5M sparse; echo x > etc/deep/\"a b\"; chmod 4711 big; chmod 1777 etc/deep; \
         chown 70:71 big etc; setfattr -n user.colour -v blue etc/app.conf; setfacl -m u:70:r big; chmod 2750 .; chown 33:33 .",
    );
    std::fs::write(volume.join(std::ffi::OsStr::from_bytes(b"n\xff\xfe")), "bytes").unwrap();
}

fn root(directory: &Path) -> (u32, u32, u32) {
    let facts = std::fs::metadata(directory).unwrap();
    (facts.mode() & 0o7777, facts.uid(), facts.gid())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_but_repository_and_passphrase() {
    for program in versions() {
        let place = borgs::Place::new(&program).await;
        place.init().await;
        fill(&place.volume);
        place.run(&place.create(&name(0))).await.unwrap();
        let first = census(&place.volume);
        std::fs::write(place.volume.join("etc/app.conf"), "two").unwrap();
        place.run(&place.create(&name(1))).await.unwrap();
        place.run(&place.create(&format!("{}.unproven", name(2)))).await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let (location, passphrase) = (place.repository.location.clone(), place.passphrase.display().to_string());
        let skep = |words: &[&str]| {
            let mut command = bare(&["backup"]);
            command.args(words).args(["--repository", &location, "--passphrase-file", &passphrase]).current_dir(home.path());
            command.env("SKEP_BACKUP_BORG", &place.config.borg);
            Said::of(&mut command)
        };

        let listed = skep(&["list"]).fine();
        assert!(listed.out.contains(&name(0)) && listed.out.contains(&name(1)) && listed.out.ends_with("2 archives\n"), "{}", listed.out);
        assert!(listed.err.contains("--unproven shows them"), "{}", listed.err);
        let json: serde_json::Value = serde_json::from_str(&skep(&["list", "v", "--json", "--unproven"]).fine().out).unwrap();
        assert_eq!((json.as_array().unwrap().len(), json[2]["verdict"].as_str()), (3, Some("unproven")));
        skep(&["list", "w"]).refused("there is no archive of `w`");

        // One file, from the latest, from an archive, from a time.
        assert_eq!(skep(&["extract", "v", "etc/app.conf", "--stdout"]).fine().out, "two");
        assert_eq!(skep(&["extract", &format!("v::{}", name(0)), "/etc/app.conf", "--stdout"]).fine().out, "one\n");
        let between = Timestamp::from_second(1_800_000_000 + 3600).unwrap().to_string();
        assert_eq!(skep(&["extract", "v", "--at", &between, "etc/hard", "--stdout"]).fine().out, "one\n");
        skep(&["extract", "v", "--at", "2020-01-01", "etc/hard", "--stdout"]).refused("the oldest is v@n1-");
        skep(&["extract", "v", "etc", "--stdout"]).refused("is no file");
        skep(&["extract", "v", "etc/app.conf", "big", "--to", "some"]).fine();
        assert_eq!(std::fs::read_to_string(home.path().join("some/app.conf")).unwrap(), "two");
        assert_eq!(std::fs::metadata(home.path().join("some/big")).unwrap().uid(), 70);

        // What is there stays, paths do not lead out, misspellings are told.
        std::fs::write(home.path().join("some/app.conf"), "mine").unwrap();
        skep(&["extract", "v", "etc/app.conf", "--to", "some"]).refused("--force replaces");
        assert_eq!(std::fs::read_to_string(home.path().join("some/app.conf")).unwrap(), "mine");
        skep(&["extract", "v", "etc/app.conf", "--to", "some", "--force"]).fine();
        assert_eq!(std::fs::read_to_string(home.path().join("some/app.conf")).unwrap(), "two");
        skep(&["extract", "v", "etc/../../x", "--to", "some"]).refused("leads out of the volume");
        assert!(skep(&["extract", "v", "etc/ap.conf"]).refused("there is no `etc/ap.conf`").err.contains("did you mean `etc/app.conf`?"));

        // All of it, byte for byte.
        skep(&["restore", "--archive", &name(0), "--into-directory", "all"]).fine();
        let all = home.path().join("all");
        assert_eq!(census(&all), first);
        assert_eq!(root(&all), root(&place.volume));
        skep(&["restore", "--archive", &name(0), "--into-directory", "all"]).refused("is not empty");

        let shown = skep(&["show", &name(0), "--files"]).fine();
        assert!(shown.out.contains("etc/app.conf") && shown.out.contains("n??"), "{}", shown.out);
        assert!(skep(&["diff", &name(0), &name(1)]).fine().out.contains("M etc/app.conf"));
        skep(&["diff", &name(0), &name(5)]).refused("there is no archive");

        // A wrong passphrase, and one that others may read.
        let wrong = home.path().join("wrong");
        std::fs::write(&wrong, "wrong\n").unwrap();
        let mut command = bare(&["backup", "list", "--repository", &location, "--passphrase-file"]);
        Said::of(command.arg(&wrong)).refused("may be read by others");
        shell(home.path(), "chmod 600 wrong");
        Said::of(&mut command).refused("assphrase");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_repositories_without_encryption_are_read() {
    let home = tempfile::tempdir().unwrap();
    shell(
        home.path(),
        "export BORG_BASE_DIR=$PWD/base; borg init -e none old; mkdir data; echo hello > data/file; \
         cd data; borg create --timestamp 2019-03-01T04:05:06 ../old::box-2019-03-01 .; echo new > file; borg create ../old::box-2020-01-01 . ",
    );
    let skep =
        |words: &[&str]| Said::of(bare(&["backup"]).args(words).args(["--repository", "old", "--unencrypted"]).current_dir(home.path()));
    assert!(skep(&["list"]).fine().out.contains("box-2019-03-01  2019-03-01 04:05  -      -     not ours"));
    assert_eq!(skep(&["extract", "::box-2019-03-01", "file", "--stdout"]).fine().out, "hello\n");
    skep(&["restore", "box-2019-03-01", "--into-directory", "there"]).fine();
    assert_eq!(std::fs::read_to_string(home.path().join("there/file")).unwrap(), "hello\n");
    assert_eq!(skep(&["extract", "::", "--at", "2019-12-31", "file", "--stdout"]).fine().out, "hello\n");
    Said::of(bare(&["backup", "list", "--repository", "old"]).current_dir(home.path())).refused("--unencrypted");
}

/// borg follows links that an archive holds. Who can write to a repository must not write to the machine that restores from it.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_write_nowhere_else() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("outside")).unwrap();
    let script = r#"
import tarfile, io
t = tarfile.open("evil.tar", "w")
link = tarfile.TarInfo("x"); link.type = tarfile.SYMTYPE; link.linkname = "OUTSIDE"; t.addfile(link)
file = tarfile.TarInfo("x/written"); file.size = 4; t.addfile(file, io.BytesIO(b"oops"))
file = tarfile.TarInfo("fine"); file.size = 4; t.addfile(file, io.BytesIO(b"fine"))
t.close()
"#;
    let script = script.replace("OUTSIDE", &home.path().join("outside").display().to_string());
    std::fs::write(home.path().join("evil.py"), script).unwrap();
    shell(home.path(), "export BORG_BASE_DIR=$PWD/base; python3 evil.py; borg init -e none r; borg import-tar r::evil evil.tar");
    let skep =
        |words: &[&str]| Said::of(bare(&["backup"]).args(words).args(["--repository", "r", "--unencrypted"]).current_dir(home.path()));
    skep(&["restore", "--archive", "evil", "--into-directory", "to"]).refused("hostile-archive");
    skep(&["extract", "::evil", ".", "--to", "to"]).refused("hostile-archive");
    skep(&["extract", "::evil", "x", "--to", "to"]).refused("hostile-archive");
    assert_eq!(std::fs::read_dir(home.path().join("outside")).unwrap().count(), 0);
    skep(&["extract", "::evil", "fine", "--to", "to"]).fine();
    // The test itself: borg alone does write there.
    shell(home.path(), "export BORG_BASE_DIR=$PWD/base; mkdir borg; cd borg; borg extract ../r::evil; test -f ../outside/written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_looked_around_in() {
    let home = tempfile::tempdir().unwrap();
    shell(
        home.path(),
        "export BORG_BASE_DIR=$PWD/base; borg init -e none r; mkdir data m; echo hi > data/file; cd data; borg create ../r::a .",
    );
    let skep = |words: &[&str]| Said::of(bare(&["backup"]).args(words).current_dir(home.path()));
    let mounted = skep(&["mount", "::a", "m", "--repository", "r", "--unencrypted"]);
    if mounted.code != Some(0) {
        assert!(mounted.err.contains("fuse") || mounted.err.contains("FUSE"), "{}", mounted.err);
        eprintln!("NOT CHECKED: mounting; this machine has no FUSE for borg");
        return;
    }
    assert_eq!(std::fs::read_to_string(home.path().join("m/file")).unwrap(), "hi\n");
    skep(&["umount", "m"]).fine();
    assert_eq!(std::fs::read_dir(home.path().join("m")).unwrap().count(), 0);
    skep(&["umount", "m"]).refused("cannot be unmounted");
}

/// A node with an engine, a target, and a configuration that commands read.
struct House {
    place: Place,
    runner: Runner,
    node: String,
}

impl std::ops::Deref for House {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl std::ops::DerefMut for House {
    fn deref_mut(&mut self) -> &mut Place {
        &mut self.place
    }
}

impl House {
    async fn new() -> Option<House> {
        let place = Place::new().await?;
        let (directory, docker) = (&place.directory, place.docker.clone());
        let node = place.engine.inventory(None).await.unwrap().node;
        let (state, target) = (directory.path().join("state"), directory.path().join("target"));
        shell(directory.path(), "mkdir -m 700 state");
        std::fs::write(
            directory.path().join("skep.toml"),
            format!(
                "[state]\ndirectory = {state:?}\n[docker]\nendpoint = \"{}\"\n[backup]\ntargets = [\"disk={}\"]\nmin-free = \"1M\"\nio-idle = false\n",
                docker.endpoint,
                target.display()
            ),
        )
        .unwrap();
        let targets = vec![config::backup::Target { name: "disk".into(), location: target.display().to_string() }];
        let config = config::Backup { targets, min_free: 1 << 20, ..config::Backup::default() };
        let borg = Borg::find(&config, &state).await.unwrap().with_tether(Path::new(SKEP));
        let shelf = Shelf::open(&state, Arc::new(Keyed::open(&state).unwrap().0)).unwrap();
        let runner = Runner { config, docker, state, shelf, borg, program: SKEP.into() };
        Some(House { place, runner, node })
    }

    fn repository(&self) -> Repository {
        repository(&self.runner.config.targets[0], &self.node, None)
    }

    async fn save(&self, volume: &str, mode: Mode) -> Run {
        // Names of archives have seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let containers = self.engine.containers(Some(volume)).await.unwrap();
        let known = self.engine.volume(volume, None).await.unwrap().unwrap();
        let subject = restore::subject(&known, &self.node, &containers, None, mode, Duration::from_secs(300));
        let job = Job {
            task: Task::Save,
            volume: Some(volume.to_owned()),
            target: "disk".into(),
            repository: self.repository(),
            due: Timestamp::now(),
            reason: Reason::Asked,
        };
        let run = self.runner.save(&job, &subject, &quiet(), &CancellationToken::new()).await;
        assert_ne!(run.verdict, Verdict::Failed, "{run:?}");
        run
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(SKEP);
        for (name, _) in std::env::vars() {
            if name.starts_with("SKEP_") || name.starts_with("BORG_") {
                command.env_remove(name);
            }
        }
        command.arg("backup").args(words).env("SKEP_CONFIG", self.directory.path().join("skep.toml")).current_dir(self.directory.path());
        command
    }

    fn skep(&self, words: &[&str]) -> Said {
        Said::of(&mut self.command(words))
    }

    async fn state(&self, container: &str) -> String {
        self.engine.state(container).await.unwrap().unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_comes_back_beside_itself_and_after_it_was_destroyed() {
    let Some(mut house) = House::new().await else { return };
    let (volume, path) = house.volume();
    fill(&path);
    let run = house.save(&volume, Mode::Hot).await;
    let (before, owner) = (census(&path), root(&path));

    let copy = house.name("copy");
    house.volumes.push(copy.clone());
    let plan = house.skep(&["restore", &volume, "--into", &copy, "--dry-run"]).fine();
    assert!(plan.out.contains(&format!("1. make the volume {copy} (local)\n2. extract ")), "{}", plan.out);
    house.skep(&["restore", &volume, "--into", &copy]).fine();
    let there = house.mountpoint(&copy);
    assert_eq!((census(&there), root(&there)), (before.clone(), owner));
    let labels = house.scratch.docker(&["volume", "inspect", "-f", "{{json .Labels}}", &copy]);
    assert_eq!(labels, r#"{"team":"a"}"#, "a copy is not saved each night");
    house.skep(&["restore", &volume, "--into", &copy]).refused("there is a volume");

    house.scratch.docker(&["volume", "rm", &volume]);
    house.skep(&["restore", &volume]).fine();
    let there = house.mountpoint(&volume);
    assert_eq!((census(&there), root(&there)), (before, owner));
    assert!(house.scratch.docker(&["volume", "inspect", "-f", "{{json .Labels}}", &volume]).contains(r#""backup.enable":"true""#));
    let listed = house.skep(&["list", &volume]).fine();
    assert!(listed.out.contains(run.archive.as_deref().unwrap()) && listed.out.contains("good"), "{}", listed.out);
    let shown = house.skep(&["show", &volume]).fine();
    assert!(shown.out.contains("team=a") && shown.out.contains("hot"), "{}", shown.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_the_old_state_is_kept_and_the_application_comes_back() {
    let Some(mut house) = House::new().await else { return };
    let (volume, path) = house.volume();
    fill(&path);
    let wanted = census(&path);
    house.save(&volume, Mode::Hot).await;
    let id = house.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "100000"]);
    shell(&path, "rm -rf etc; echo precious > new; ln -s /etc/passwd link");
    house.skep(&["restore", &volume]).refused("say so with --yes");
    let plan = house.skep(&["restore", &volume, "--dry-run"]).fine();
    assert!(plan.out.contains("safety archive") && plan.out.lines().count() == 5, "{}", plan.out);
    assert_eq!(std::fs::read_to_string(path.join("new")).unwrap(), "precious\n");

    let done = house.skep(&["restore", &volume, "--yes"]).fine();
    assert_eq!(census(&path), wanted);
    assert!(!path.join("new").exists() && Path::new("/etc/passwd").exists());
    house.until(&id, "running").await;
    // What it was before is an archive like others.
    let safety = done.out.lines().find_map(|line| line.strip_prefix("as it was before this: ")).unwrap().to_owned();
    assert_eq!(house.skep(&["extract", &format!("::{safety}"), "new", "--stdout"]).fine().out, "precious\n");
    house.skep(&["restore", &format!("{volume}::{safety}"), "--yes", "--no-safety"]).fine();
    assert_eq!(std::fs::read_to_string(path.join("new")).unwrap(), "precious\n");
    assert!(!path.join("etc").exists());
    house.until(&id, "running").await;
    assert!(house.runner.shelf.journals().await.unwrap().living.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_half_way_leaves_application_and_safety_archive() {
    let Some(mut house) = House::new().await else { return };
    let (volume, path) = house.volume();
    shell(&path, "for n in $(seq 3000); do head -c 20000 /dev/urandom > f$n; done");
    house.save(&volume, Mode::Hot).await;
    shell(&path, "echo precious > new");
    let id = house.container("skep-test:1", &["-v", &format!("{volume}:/data")], &["sleep", "100000"]);
    let mut child: Child =
        house.command(&["restore", &volume, "--yes"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It has been emptied, and is being filled.
    let began = Instant::now();
    while path.join("new").exists() || std::fs::read_dir(&path).unwrap().count() < 20 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        assert!(began.elapsed() < Duration::from_secs(120));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(house.state(&id).await, "exited");
    child.kill().unwrap();
    child.wait().unwrap();
    house.until(&id, "running").await;
    let files = std::fs::read_dir(&path).unwrap().count();
    assert!(files < 3000, "it died half way");
    let undone = house.runner.recover().await;
    assert!(undone.iter().any(|text| text.contains("as it was before")), "{undone:?}");
    // The newest archive is the safety archive, and brings everything back.
    house.skep(&["restore", &volume, "--yes", "--no-safety"]).fine();
    assert_eq!(std::fs::read_to_string(path.join("new")).unwrap(), "precious\n");
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 3001);
    house.until(&id, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_a_service_is_not_pulled_from_under_swarm() {
    let Some(mut house) = House::new().await else { return };
    if house.scratch.docker(&["info", "-f", "{{.Swarm.LocalNodeState}}"]) != "active" {
        return;
    }
    let (volume, path) = house.volume();
    shell(&path, "echo one > file");
    house.save(&volume, Mode::Hot).await;
    shell(&path, "echo two > file");
    let service = house.name("service");
    let mount = format!("type=volume,source={volume},target=/data");
    house.scratch.docker(&["service", "create", "--name", &service, "--no-resolve-image", "--mount", &mount, "skep-test:1"]);
    let said = house.skep(&["restore", &volume, "--yes"]).refused("swarm-service");
    assert!(said.err.contains(&format!("docker service scale {service}=0")) && said.err.contains(&format!("{service}=1")), "{}", said.err);
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "two\n");
    house.skep(&["restore", &volume, "--yes", "--force-running"]).fine();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "one\n");
    house.scratch.docker(&["service", "rm", &service]);
}

#[tokio::test(flavor = "multi_thread")]
async fn drills_tell_what_is_damaged() {
    let Some(mut house) = House::new().await else { return };
    let (volume, path) = house.volume();
    fill(&path);
    house.save(&volume, Mode::Hot).await;
    // The live volume has gone on since: nobody minds.
    shell(&path, "rm -rf etc");
    let good = house.skep(&["drill", &volume]).fine();
    assert!(good.out.contains(": good: 6 files"), "{}", good.out);
    let scratch = house.runner.state.join("backup/scratch");
    let left = || std::fs::read_dir(&scratch).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(left(), 0);
    assert!(house.skep(&["list", &volume]).fine().out.contains("good, drilled"));
    // One that is told to stop has told nothing of the archive.
    let due = Timestamp::now();
    let (volume_of, repository) = (Some(volume.clone()), house.repository());
    let job = Job { task: Task::Drill, volume: volume_of, target: "disk".into(), repository, due, reason: Reason::Scheduled };
    let stop = CancellationToken::new();
    stop.cancel();
    let stopped = trial::drill(&house.runner, None, &job, &house.node, &quiet(), &stop).await;
    assert_eq!(stopped.verdict, Verdict::Failed);
    let drills = house.runner.shelf.runs().await.unwrap().remove(&job.key()).unwrap();
    assert_eq!((drills.runs.len(), drills.runs[0].verdict), (1, Verdict::Good), "{drills:?}");
    assert!(house.skep(&["check"]).fine().out.contains("good"));

    // A disk that forgets: bytes in the largest segment turn over.
    let data = PathBuf::from(house.repository().location).join("data/0");
    let mut segments: Vec<PathBuf> = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(segments.last().unwrap()).unwrap();
    let length = file.metadata().unwrap().len();
    for at in [length / 4, length / 2, length / 4 * 3] {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, at).unwrap();
        file.write_all_at(&bytes.map(|byte| !byte), at).unwrap();
    }
    let bad = house.skep(&["drill", &volume]);
    assert!(bad.code == Some(1) && bad.out.contains("FAILED"), "{:?} {}{}", bad.code, bad.out, bad.err);
    assert_eq!(left(), 0, "what a failed drill restored goes, too");
    assert!(house.skep(&["list", &volume]).fine().out.contains("drill FAILED"));
    assert_eq!(house.skep(&["check"]).code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_restored_from_its_dump_and_drilled_in_a_container_of_its_own() {
    let Some(mut house) = House::new().await else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images.sh");
    let made = Command::new(script).args(["postgres", &house.scratch.socket()]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (volume, _) = house.volume();
    let path = house.mountpoint(&volume);
    shell(&path, "chown 70:70 .; chmod 700 .");
    let id = house.container("skep-test:postgres", &["-v", &format!("{volume}:/var/lib/postgresql/data")], &[]);
    let sql = |text: &str| ["psql", "-h", "127.0.0.1", "-U", "postgres", "-At", "-c", text].map(str::to_owned);
    let ask = async |house: &House, text: &str| {
        let words = sql(text);
        house.said(&id, &words.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    ask(&house, "SELECT 1").await;
    ask(&house, "CREATE TABLE goods AS SELECT generate_series(1, 1000) AS n").await;
    house.save(&volume, Mode::Dump(Database::Postgres)).await;

    let drilled = house.skep(&["drill", &volume]).fine();
    assert!(drilled.out.contains("the PostgreSQL dump was loaded: 1 tables"), "{}{}", drilled.out, drilled.err);
    assert!(house.engine.throwaways().await.unwrap().is_empty());

    ask(&house, "DELETE FROM goods; CREATE TABLE wrong AS SELECT 1").await;
    let by_hand = house.skep(&["restore", &volume, "--dry-run"]).fine();
    assert!(by_hand.out.contains("--stdout | docker exec -i"), "{}", by_hand.out);
    let done = house.skep(&["restore", &volume, "--load", "--yes"]).fine();
    assert_eq!(ask(&house, "SELECT count(*) FROM goods").await, "1000\n");
    assert_eq!(ask(&house, "SELECT count(*) FROM pg_tables WHERE tablename = 'wrong'").await, "0\n");
    // The safety archive has the files of the stopped database.
    let safety = done.out.lines().find_map(|line| line.strip_prefix("as it was before this: ")).unwrap().to_owned();
    house.skep(&["restore", &format!("{volume}::{safety}"), "--yes", "--no-safety"]).fine();
    assert_eq!(ask(&house, "SELECT count(*) FROM pg_tables WHERE tablename = 'wrong'").await, "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_exported_and_its_copy_compared() {
    let Some(house) = House::new().await else { return };
    house.skep(&["key", "export", "--to", "keys.txt"]).fine();
    assert_eq!(std::fs::metadata(house.directory.path().join("keys.txt")).unwrap().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(house.directory.path().join("keys.txt")).unwrap();
    let passphrase = std::fs::read_to_string(keys::passphrase(&house.runner.config, &house.runner.state).unwrap()).unwrap();
    assert!(text.contains(passphrase.trim()) && text.contains(&house.repository().location));
    assert!(house.runner.shelf.confirmed().await.unwrap().is_empty());
    std::fs::write(house.directory.path().join("torn.txt"), &text[..text.len() / 2]).unwrap();
    house.skep(&["key", "confirm", "torn.txt"]).refused("");
    house.skep(&["key", "confirm", "keys.txt"]).fine();
    assert!(house.runner.shelf.confirmed().await.unwrap().contains(&house.repository()));
    house.skep(&["key", "export", "--to", "keys.txt"]).refused("exists");
}
