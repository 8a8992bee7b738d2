//! Real borgs, 1.2 and 1.4: what goes into an archive comes out of it, and whatever goes wrong has its name.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;
use skep::backup::command::Source;
use skep::backup::failure::Kind;
use skep::backup::report::Archives;
use skep::backup::{Keep, archive, lock};
use tokio_util::sync::CancellationToken;

use super::borgs::{LIMIT, Place, census, name, shell, versions};

#[tokio::test]
async fn everything_about_files_comes_back() {
    for program in versions() {
        let place = Place::new(&program).await;
        shell(
            &place.volume,
            "echo text >plain; ln plain hard; ln -s /etc/passwd soft; mkdir -p deep/er; echo x >deep/er/x; chmod 640 deep/er/x; chown 1234:4321 deep/er/x
             truncate -s 64M sparse; echo end >>sparse; mkfifo pipe; mkdir empty; chmod 1777 empty; touch -d '2001-02-03 04:05:06' old
             setfattr -n user.colour -v blue plain; setfacl -m u:1234:r plain; printf x >$'bad\\xff\\xfename'; printf y >'new
line'; chmod 4755 old
             python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'",
        );
        place.init().await;
        let began = Instant::now();
        let output = place.run(&place.create(&name(0))).await.expect("an archive");
        assert!(began.elapsed() < LIMIT, "a pipe must not hang");
        assert!(output.stats.files >= 6 && output.stats.original > 64 << 20, "{:?}", output.stats);
        // A socket is nothing without who listens: borg leaves it out.
        std::fs::remove_file(place.volume.join("sock")).expect("a socket");
        let before = census(&place.volume);
        let to = place.extract(&name(0)).await;
        let after = census(&to);
        let files =
            |text: &str| text.lines().filter(|line| line.starts_with("empty|") || !line.contains("|d|")).collect::<Vec<_>>().join("\n");
        assert_eq!(files(&after), files(&before), "{program:?}");
        let blocks = shell(&to, "stat -c %b sparse").trim().parse::<u64>().expect("a number");
        assert!(blocks < 4096, "holes stay holes: {blocks}");
    }
}

#[tokio::test]
async fn a_dump_is_streamed_beside_the_files_and_a_broken_one_leaves_no_archive() {
    for program in versions() {
        let place = Place::new(&program).await;
        shell(&place.volume, "mkdir data; echo raw >data/raw; echo kept >kept; mkdir cache; echo c >cache/c; echo l >a.log");
        place.init().await;
        let exclude = ["pp:data".to_owned(), "cache/".to_owned(), "*.log".to_owned()];
        let source = Source { exclude: &exclude, stdin_name: Some("dump/postgres.sql"), ..place.source() };
        let command = place.access().create(&name(0), Timestamp::now(), r#"{"skep":1,"volume":"v"}"#, &source);
        let chunks = (0..200).map(|_| Ok(Bytes::from(vec![b'x'; 10_000])));
        place.feed(&command, Box::pin(stream::iter(chunks))).await.expect("an archive");
        let files: Vec<(String, u64)> =
            place.files(&name(0)).await.into_iter().filter(|file| file.kind == "-").map(|file| (file.path, file.size)).collect();
        assert_eq!(files, [("dump/postgres.sql".to_owned(), 2_000_000), ("kept".to_owned(), 5)]);
        let answer: Archives = place.run(&place.access().list_archives(None)).await.expect("a list").json().expect("JSON");
        assert_eq!(archive::Comment::read(&answer.archives[0].comment).expect("ours").volume, "v");

        let broken = place.access().create(&name(1), Timestamp::now(), "{}", &source);
        let chunks = vec![Ok(Bytes::from_static(b"half")), Err("pg_dump was killed".to_owned())];
        let failure = place.feed(&broken, Box::pin(stream::iter(chunks))).await.expect_err("half a dump");
        assert_eq!((failure.kind, failure.message.as_str()), (Kind::Feed, "pg_dump was killed"));
        assert_eq!(place.names().await, [name(0)]);
    }
}

#[tokio::test]
async fn what_goes_wrong_has_its_name() {
    for program in versions() {
        let place = Place::with(&program, |config| config.lock_wait = Duration::from_secs(1)).await;
        shell(&place.volume, "echo a >a");
        let kind = async |command| place.run(&command).await.expect_err("a failure").kind;
        assert_eq!(kind(place.create(&name(0))).await, Kind::NoRepository);
        place.init().await;
        place.run(&place.create(&name(0))).await.expect("an archive");
        assert_eq!(kind(place.access().info("nope")).await, Kind::NoArchive);
        let to = place.directory.path().join("to");
        std::fs::create_dir(&to).expect("a directory");
        assert_eq!(kind(place.access().extract(&name(0), &to, &["nope".to_owned()])).await, Kind::NoFile);

        let other = place.directory.path().join("other");
        std::fs::write(&other, "wrong\n").expect("a file");
        assert_eq!(kind(place.borg.access(&place.repository, Some(&other), "r1").info(&name(0))).await, Kind::WrongPassphrase);

        // Another client has it.
        let sleeping = format!(
            "BORG_BASE_DIR={} BORG_PASSCOMMAND='cat {}' exec {} with-lock {} sleep 30 >/dev/null 2>&1",
            place.borg.base().display(),
            place.passphrase.display(),
            program.display(),
            place.repository.location
        );
        let mut holder = Command::new("bash").args(["-c", &sleeping]).spawn().expect("a client");
        let lock = Path::new(&place.repository.location).join("lock.exclusive");
        while !lock.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(kind(place.create(&name(1))).await, Kind::Locked);
        holder.kill().expect("killed");
        holder.wait().expect("gone");
        shell(Path::new("/"), &format!("rm -rf {}/lock.exclusive {}/lock.roster", place.repository.location, place.repository.location));

        // A repository whose data is damaged.
        shell(
            Path::new(&place.repository.location),
            "f=$(ls -S data/0/* | head -1); dd if=/dev/urandom of=$f bs=1 seek=200 count=64 conv=notrunc 2>/dev/null",
        );
        assert_eq!(kind(place.access().check_repository()).await, Kind::Damaged);
    }
}

#[tokio::test]
async fn a_full_and_a_read_only_target_say_so() {
    for program in versions() {
        let place = Place::new(&program).await;
        let target = place.directory.path().join("target");
        std::fs::create_dir(&target).expect("a directory");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&target).status();
        if !mounted.is_ok_and(|status| status.success()) {
            return eprintln!("NOT CHECKED: a full target, because nothing can be mounted here");
        }
        let unmount = Unmount(target.clone());
        place.init().await;
        shell(&place.volume, "dd if=/dev/urandom of=big bs=1M count=24 2>/dev/null");
        let failure = place.run(&place.create(&name(0))).await.expect_err("full");
        assert_eq!(failure.kind, Kind::NoSpace, "{failure}");
        shell(&target, "mount -o remount,ro .");
        let failure = place.run(&place.create(&name(0))).await.expect_err("read-only");
        assert_eq!(failure.kind, Kind::ReadOnly, "{failure}");
        // Room again, and nothing stays locked.
        shell(&target, "mount -o remount,rw,size=64m .");
        place.run(&place.create(&name(0))).await.expect("an archive");
        drop(unmount);
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: a borg may still be there after a failed assertion.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn prune_keeps_to_its_volume_and_the_unproven_go() {
    for program in versions() {
        let place = Place::new(&program).await;
        shell(&place.volume, "echo a >a");
        place.init().await;
        let at = |day: i64| Timestamp::from_second(1_800_000_000 + day * 86_400).expect("a time");
        for day in 0..5 {
            let command = place.access().create(&archive::unproven(&name(day)), at(day), "{}", &place.source());
            place.run(&command).await.expect("an archive");
            if day != 1 {
                place.run(&place.access().rename(&archive::unproven(&name(day)), &name(day))).await.expect("its name");
            }
        }
        let neighbour = archive::name("v-n1", "n1", at(0));
        place.run(&place.create(&neighbour)).await.expect("an archive");
        place.run(&place.access().delete(&archive::unproven_glob("v", "n1"))).await.expect("gone");
        let keep = Keep { daily: 2, ..Keep::default() };
        place.run(&place.access().prune(&archive::glob("v", "n1"), &keep)).await.expect("pruned");
        place.run(&place.access().compact()).await.expect("compacted");
        let mut names = place.names().await;
        names.sort();
        assert_eq!(names, [neighbour, name(3), name(4)]);
        for command in [place.access().check_repository(), place.access().check_archives(), place.access().verify(&name(4))] {
            place.run(&command).await.expect("whole");
        }
        let changes = place.run(&place.access().diff(&name(3), &name(4))).await.expect("a difference");
        assert!(String::from_utf8_lossy(&changes.stdout).lines().count() <= 2);
    }
}

#[tokio::test]
async fn a_killed_borg_leaves_a_lock_that_only_proof_breaks() {
    for program in versions() {
        let place = Place::with(&program, |config| config.lock_wait = Duration::from_secs(1)).await;
        place.init().await;
        let source = Source { files: false, stdin_name: Some("dump/x"), ..place.source() };
        let command = place.access().create(&name(0), Timestamp::now(), "{}", &source);
        let location = place.repository.location.clone();
        let killed = async {
            let lock = Path::new(&location).join("lock.exclusive");
            while !lock.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            shell(Path::new("/"), &format!("pkill -9 -f -- '{location}::'"));
        };
        let (ended, ()) = tokio::join!(place.feed(&command, Box::pin(stream::pending())), killed);
        assert_eq!(ended.expect_err("killed").kind, Kind::Killed);
        let holders: Vec<String> = std::fs::read_dir(Path::new(&place.repository.location).join("lock.exclusive"))
            .expect("a lock")
            .map(|entry| entry.expect("a holder").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(lock::may_break(&holders, &["other".to_owned()].into()).is_err(), "{holders:?}");
        let next = place.borg.access(&place.repository, Some(&place.passphrase), "r2");
        let create = next.create(&name(1), Timestamp::now(), "{}", &place.source());
        assert_eq!(place.run(&create).await.expect_err("still locked").kind, Kind::Locked);
        assert_eq!(lock::may_break(&holders, &["r1".to_owned()].into()), Ok(()), "{holders:?}");
        place.run(&next.break_lock()).await.expect("broken");
        place.run(&create).await.expect("an archive");
        assert_eq!(place.names().await, [name(1)]);
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_or_late_lets_go() {
    let place = Place::new(Path::new("borg")).await;
    place.init().await;
    let source = Source { files: false, stdin_name: Some("dump/x"), ..place.source() };
    let command = place.access().create(&name(0), Timestamp::now(), "{}", &source);
    let stop = CancellationToken::new();
    let sink = skep::backup::borg::quiet();
    let soon = tokio::time::sleep(Duration::from_secs(2));
    let run = place.borg.run(&command, Some(Box::pin(stream::pending())), &sink, &stop, LIMIT);
    let (ended, ()) = tokio::join!(run, async {
        soon.await;
        stop.cancel();
    });
    assert_eq!(ended.expect_err("stopped").kind, Kind::Stopped);
    let late = place.borg.run(&command, Some(Box::pin(stream::pending())), &sink, &CancellationToken::new(), Duration::from_secs(2)).await;
    assert_eq!(late.expect_err("late").kind, Kind::Timeout);
    assert!(!Path::new(&place.repository.location).join("lock.exclusive").exists(), "the lock is gone with it");
    shell(&place.volume, "echo a >a");
    place.run(&place.create(&name(1))).await.expect("an archive");
}

#[tokio::test]
async fn a_hundred_thousand_files() {
    let place = Place::new(Path::new("borg")).await;
    shell(
        &place.volume,
        "python3 -c \"import os
for d in range(100):
    os.mkdir(str(d))
    for f in range(1000):
        with open(f'{d}/{f}', 'w') as file: file.write(str(f))\"",
    );
    place.init().await;
    let output = place.run(&place.create(&name(0))).await.expect("an archive");
    assert_eq!(output.stats.files, 100_000);
    let mut count = 0;
    let mut each = |_: &str| {
        count += 1;
        count < 5_000
    };
    // Whoever has seen enough ends the list.
    let command = place.access().list_files(&name(0), false, &[]);
    place.borg.lines(&command, &mut each, &CancellationToken::new(), LIMIT).await.expect("a part of the list");
    assert_eq!(count, 5_000);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_a_warning() {
    for program in versions() {
        let place = Place::new(&program).await;
        shell(&place.volume, "dd if=/dev/urandom of=changing bs=1M count=40 2>/dev/null");
        place.init().await;
        let mut writer = Command::new("bash")
            .args(["-c", "while :; do printf x | dd of=changing bs=1 seek=$((RANDOM * 1000)) conv=notrunc 2>/dev/null; done"])
            .current_dir(&place.volume)
            .spawn()
            .expect("a writer");
        let output = place.run(&place.create(&name(0))).await;
        writer.kill().expect("killed");
        writer.wait().expect("gone");
        let warnings = output.expect("an archive all the same").warnings;
        assert!(warnings.iter().any(|text| text.contains("changing") && text.contains("changed")), "{warnings:?}");
    }
}
