//! A target behind a real sshd, whose key may only append: what a server that was broken into cannot take away.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::stream;
use jiff::Timestamp;
use skep::backup::Repository;
use skep::backup::borg::{Borg, quiet};
use skep::backup::command::Source;
use skep::backup::failure::Kind;
use skep::config;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::borgs::{LIMIT, Place, name, shell, versions};

/// An sshd of our own that lets one key run one command.
struct Host {
    directory: TempDir,
    daemon: Child,
    port: u16,
}

impl Host {
    /// `None`, loudly: there is no sshd, or we may not start one.
    fn start(borg: &Path) -> Option<Host> {
        if !Path::new("/usr/sbin/sshd").exists() {
            assert!(std::env::var_os("CI").is_none(), "CI has an sshd");
            eprintln!("NOT CHECKED: targets over ssh, because there is no sshd (./dev test installs it)");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        shell(at, "ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f key; mkdir -p /run/sshd repositories");
        let serve = format!(
            "restrict,command=\"{} serve --append-only --restrict-to-path {}/repositories\" {}",
            borg.display(),
            at.display(),
            std::fs::read_to_string(at.join("key.pub")).expect("a key")
        );
        std::fs::write(at.join("authorized_keys"), serve).expect("written");
        let public = std::fs::read_to_string(at.join("host.pub")).expect("a key");
        std::fs::write(at.join("known_hosts"), format!("[127.0.0.1]:{port} {public}")).expect("written");
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n",
            at.display()
        );
        std::fs::write(at.join("sshd_config"), settings).expect("written");
        let mut host = Host { daemon: Host::daemon(at), directory, port };
        host.wait();
        Some(host)
    }

    fn daemon(at: &Path) -> Child {
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(at.join("sshd_config")).stderr(Stdio::null());
        command.spawn().expect("an sshd")
    }

    fn wait(&mut self) {
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("sshd does not listen: {:?}", self.daemon.try_wait());
    }

    fn repositories(&self) -> PathBuf {
        self.directory.path().join("repositories")
    }

    fn repository(&self, path: &Path) -> Repository {
        let user = shell(Path::new("/"), "id -un");
        Repository { location: format!("ssh://{}@127.0.0.1:{}{}", user.trim(), self.port, path.display()), name: "n1".into() }
    }

    /// A client with this host's key.
    async fn place(&self, borg: &Path) -> Place {
        let (key, hosts) = (self.directory.path().join("key"), self.directory.path().join("known_hosts"));
        let mut place = Place::with(borg, |config| {
            config.ssh_key = Some(key);
            config.ssh_known_hosts = Some(hosts);
        })
        .await;
        place.repository = self.repository(&self.repositories().join("n1"));
        place
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        _ = self.daemon.kill();
        _ = self.daemon.wait();
    }
}

#[tokio::test]
async fn a_key_that_may_only_append_loses_nothing() {
    for program in versions() {
        let Some(host) = Host::start(&program) else { return };
        let place = host.place(&program).await;
        shell(&place.volume, "dd if=/dev/urandom of=data bs=1M count=3 2>/dev/null; echo a >a");
        place.init().await;
        place.run(&place.create(&name(0))).await.expect("an archive");
        let local = Repository { location: host.repositories().join("n1").to_string_lossy().into_owned(), name: "n1".into() };
        // Transactions are numbered in the journal of the repository; we remember the one after the first archive.
        let before = shell(Path::new(&local.location), "cat transactions");
        let good =
            before.lines().last().and_then(|line| line.split_whitespace().nth(1)).expect("a transaction").trim_end_matches(',').to_owned();

        // Somebody who has broken in deletes everything, and makes room.
        place.run(&place.access().delete("*")).await.expect("it appears to work");
        place.run(&place.access().compact()).await.expect("it appears to work");
        assert!(place.names().await.is_empty());

        // On the target's machine: back to that transaction, as borg's documentation has it.
        let roll_back =
            format!("cd data/0; for f in *; do [ \"$f\" -le {good} ] || rm -f \"$f\"; done; cd ../..; rm -f hints.* index.* integrity.*");
        shell(Path::new(&local.location), &roll_back);
        shell(Path::new(&place.borg.base()), "rm -rf .cache .config/borg/security");
        assert_eq!(place.names().await, [name(0)]);
        let to = place.extract(&name(0)).await;
        shell(Path::new("/"), &format!("diff -r {} {}", place.volume.display(), to.display()));
    }
}

#[tokio::test]
async fn an_empty_machine_gets_its_files_back_over_the_line() {
    for program in versions() {
        let Some(host) = Host::start(&program) else { return };
        let place = host.place(&program).await;
        shell(&place.volume, "mkdir etc; echo one >etc/app.conf; dd if=/dev/urandom of=data bs=1M count=3 2>/dev/null; ln -s data link");
        place.init().await;
        place.run(&place.create(&name(0))).await.expect("an archive");
        let (home, at) = (tempfile::tempdir().expect("a directory"), host.directory.path().display());
        let settings = format!("[docker]\nenabled = false\n[backup]\nssh-key = \"{at}/key\"\nssh-known-hosts = \"{at}/known_hosts\"\n");
        std::fs::write(home.path().join("skep.toml"), settings).expect("written");
        let skep = |words: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_skep"));
            command.arg("backup").args(words).args(["--config", "skep.toml", "--repository", &place.repository.location]);
            command.arg("--passphrase-file").arg(&place.passphrase).env("SKEP_BACKUP_BORG", &program).current_dir(home.path());
            let output = command.output().expect("skep");
            assert!(output.status.success(), "{words:?}: {output:?}");
            String::from_utf8(output.stdout).expect("text")
        };
        assert!(skep(&["list"]).contains(&name(0)));
        assert_eq!(skep(&["extract", "v", "etc/app.conf", "--stdout"]), "one\n");
        skep(&["restore", "v", "--into-directory", "back"]);
        shell(home.path(), &format!("diff -r --no-dereference {} back", place.volume.display()));
    }
}

#[tokio::test]
async fn other_paths_other_keys_and_other_hosts_are_refused() {
    let borg = Path::new("borg");
    let Some(host) = Host::start(borg) else { return };
    let mut place = host.place(borg).await;
    let kind = async |place: &Place| place.run(&place.access().init()).await.expect_err("refused").kind;
    place.repository = host.repository(&host.directory.path().join("elsewhere"));
    assert_eq!(kind(&place).await, Kind::Refused);
    place.repository = host.repository(&host.repositories().join("n1"));

    let other = host.directory.path().join("other");
    shell(host.directory.path(), "ssh-keygen -q -t ed25519 -N '' -f other");
    let with = async |change: &dyn Fn(&mut config::Backup)| {
        let (key, hosts) = (host.directory.path().join("key"), host.directory.path().join("known_hosts"));
        let mut config = config::Backup { ssh_key: Some(key), ssh_known_hosts: Some(hosts), ..config::Backup::default() };
        change(&mut config);
        let client = Borg::find(&config, place.directory.path()).await.expect("borg");
        let command = client.access(&place.repository, Some(&place.passphrase), "r1").list_archives(None);
        client.run(&command, None, &quiet(), &CancellationToken::new(), LIMIT).await.expect_err("refused")
    };
    let refused = with(&|config| config.ssh_key = Some(other.clone())).await;
    assert_eq!(refused.kind, Kind::Refused, "{refused}");
    let unknown = with(&|config| config.ssh_known_hosts = Some(PathBuf::from("/dev/null"))).await;
    assert_eq!(unknown.kind, Kind::Refused, "{unknown}");
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_no_archive_and_no_lock() {
    let borg = Path::new("borg");
    let Some(mut host) = Host::start(borg) else { return };
    let place = host.place(borg).await;
    place.init().await;
    let source = Source { files: false, stdin_name: Some("dump/x"), ..place.source() };
    let command = place.access().create(&name(0), Timestamp::now(), "{}", &source);
    let (lock, serving) = (host.repositories().join("n1/lock.exclusive"), host.repositories());
    // Other bytes each time, so that borg sends them.
    let endless = stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut bytes = vec![0; 1 << 20];
        fastrand::fill(&mut bytes);
        Some((Ok(bytes.into()), ()))
    });
    let cut = async {
        while !lock.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The session's process, not the daemon: as when the line is cut.
        shell(Path::new("/"), &format!("pkill -f -- '[s]erve --append-only --restrict-to-path {}'", serving.display()));
    };
    let (ended, ()) = tokio::join!(place.feed(&command, Box::pin(endless)), cut);
    let failure = ended.expect_err("cut");
    assert_eq!(failure.kind, Kind::Unreachable, "{failure}");

    host.daemon.kill().expect("killed");
    host.daemon.wait().expect("gone");
    let failure = place.run(&place.create(&name(0))).await.expect_err("nobody is there");
    assert_eq!(failure.kind, Kind::Unreachable, "{failure}");

    host.daemon = Host::daemon(host.directory.path());
    host.wait();
    shell(&place.volume, "echo a >a");
    place.run(&place.create(&name(1))).await.expect("an archive");
    assert_eq!(place.names().await, [name(1)]);
}

/// Without its tether a borg would take the end of a killed Skep for the end of a dump.
#[tokio::test]
async fn borg_dies_with_whoever_started_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mark = directory.path().join("pid");
    let skep = env!("CARGO_BIN_EXE_skep");
    let script = format!("{skep} backup tether -- bash -c 'echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600' & wait", mark.display());
    let mut parent = Command::new("bash").args(["-c", &script]).spawn().expect("a parent");
    let mut tries = 0;
    while !mark.exists() && tries < 600 {
        tries += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pid = std::fs::read_to_string(&mark).expect("it has started").trim().to_owned();
    parent.kill().expect("killed");
    parent.wait().expect("gone");
    let process = PathBuf::from(format!("/proc/{pid}"));
    // A zombie until somebody reaps it.
    let lives = || std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let mut tries = 0;
    while lives() && tries < 200 {
        tries += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!lives(), "it lives on");
}
