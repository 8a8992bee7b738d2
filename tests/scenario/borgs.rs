//! Real borgs for the stories: which versions there are, and a target with a passphrase, a cache and a volume of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use skep::backup::borg::{Borg, Feed, Output, quiet};
use skep::backup::command::{Access, Command as Line, Source};
use skep::backup::failure::Failure;
use skep::backup::report::{Archives, FileEntry};
use skep::backup::{Repository, archive, keys};
use skep::config;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// No command hangs; on a busy machine a hundred thousand files take a while.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Every borg of this machine: Debian's, and the one that `./dev test` puts into target/.
pub fn versions() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/borg-1.4/bin/borg");
    let there = |program: &Path| Command::new(program).arg("--version").output().is_ok();
    let found: Vec<PathBuf> = [PathBuf::from("borg"), own].into_iter().filter(|program| there(program)).collect();
    if found.len() < 2 {
        eprintln!("NOT CHECKED: borg 1.2 and 1.4 side by side; there is only {found:?} (./dev test installs both)");
    }
    found
}

/// A borg with a state directory, a repository that may be made, and a volume that may be filled.
pub struct Place {
    pub directory: TempDir,
    pub borg: Borg,
    pub config: config::Backup,
    pub repository: Repository,
    pub passphrase: PathBuf,
    pub volume: PathBuf,
}

impl Place {
    pub async fn new(program: &Path) -> Place {
        Place::with(program, |_| {}).await
    }

    pub async fn with(program: &Path, change: impl FnOnce(&mut config::Backup)) -> Place {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = config::Backup { borg: program.to_string_lossy().into_owned(), ..config::Backup::default() };
        config.lock_wait = Duration::from_secs(30);
        // Nobody is to be spared here.
        (config.nice, config.io_idle) = (0, false);
        change(&mut config);
        let borg = Borg::find(&config, directory.path()).await.expect("borg").with_tether(Path::new(env!("CARGO_BIN_EXE_skep")));
        let passphrase = keys::passphrase(&config, directory.path()).expect("a passphrase");
        let location = directory.path().join("target/n1").to_string_lossy().into_owned();
        let volume = directory.path().join("volume");
        std::fs::create_dir(&volume).expect("a volume");
        Place { borg, config, repository: Repository { location, name: "n1".into() }, passphrase, volume, directory }
    }

    pub fn access(&self) -> Access<'_> {
        self.borg.access(&self.repository, Some(&self.passphrase), "r1")
    }

    pub async fn run(&self, command: &Line) -> Result<Output, Failure> {
        self.borg.run(command, None, &quiet(), &CancellationToken::new(), LIMIT).await
    }

    /// A first run: the repository is made.
    pub async fn init(&self) {
        self.run(&self.access().init()).await.expect("a repository");
    }

    pub fn source(&self) -> Source<'_> {
        Source { directory: &self.volume, files: true, exclude: &[], stdin_name: None }
    }

    pub fn create(&self, name: &str) -> Line {
        self.access().create(name, Timestamp::now(), "{}", &self.source())
    }

    pub async fn feed(&self, command: &Line, feed: Feed) -> Result<Output, Failure> {
        self.borg.run(command, Some(feed), &quiet(), &CancellationToken::new(), LIMIT).await
    }

    pub async fn names(&self) -> Vec<String> {
        let output = self.run(&self.access().list_archives(None)).await.expect("a list");
        output.json::<Archives>().expect("JSON").archives.into_iter().map(|archive| archive.name).collect()
    }

    pub async fn files(&self, name: &str) -> Vec<FileEntry> {
        let mut found = Vec::new();
        let command = self.access().list_files(name, true, &[]);
        let mut each = |line: &str| {
            found.push(serde_json::from_str(line).expect("an entry"));
            true
        };
        self.borg.lines(&command, &mut each, &CancellationToken::new(), LIMIT).await.expect("a list");
        found
    }

    /// Extracts all of an archive next to the volume.
    pub async fn extract(&self, name: &str) -> PathBuf {
        let to = self.directory.path().join("extracted");
        std::fs::create_dir_all(&to).expect("a directory");
        self.run(&self.access().extract(name, &to, &[])).await.expect("files");
        to
    }
}

/// The final name of an archive of the volume `v` on the node `n1`, so many days after a fixed one.
pub fn name(day: i64) -> String {
    archive::name("v", "n1", Timestamp::from_second(1_800_000_000 + day * 86_400).expect("a time"))
}

/// What a shell says, which must go well.
pub fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-euc", script]).current_dir(directory).output().expect("a shell");
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything about the files below `directory` but their inodes: contents, modes, owners, times, links, attributes, holes.
pub fn census(directory: &Path) -> String {
    const SCRIPT: &str = "find . -mindepth 1 -printf '%P|%y|%m|%U|%G|%s|%Ts|%l|%n\\n' | sort; \
        find . -type f -print0 | sort -z | xargs -0r sha256sum; getfattr -R -d -m - . 2>/dev/null; getfacl -R -n . 2>/dev/null";
    shell(directory, SCRIPT)
}
