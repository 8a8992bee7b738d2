//! What opens the repositories: the passphrase in its file, and the keys as documents that somebody keeps elsewhere.
//! Who loses both has no backups.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::Repository;
use super::borg::{Borg, quiet};
use super::failure::{Failure, Kind};
use crate::config;

/// Of the file; whatever is longer is none.
const MAX_PASSPHRASE: u64 = 64 << 10;
const MAX_DOCUMENT: u64 = 1 << 20;
const BITS: usize = 256;
/// Opening a repository over a slow line.
const LIMIT: Duration = Duration::from_secs(300);
const BEGIN: &str = "----- key -----";
const END: &str = "----- end of key -----";

/// The file with the passphrase: the configuration's, or one of our own, which is made where there is none.
///
/// # Errors
/// It cannot be read, others may read it, or it is empty.
pub fn passphrase(config: &config::Backup, state: &Path) -> Result<PathBuf, Failure> {
    let path = place(config, state);
    if config.passphrase_file.is_none() && !path.exists() {
        make(&path).map_err(|error| failure(&path, &format!("cannot be made: {error}")))?;
    }
    check(&path).map_err(|why| failure(&path, &why))?;
    Ok(path)
}

/// Where the passphrase is, or will be.
pub fn place(config: &config::Backup, state: &Path) -> PathBuf {
    config.passphrase_file.clone().unwrap_or_else(|| state.join("backup").join("passphrase"))
}

fn failure(path: &Path, why: &str) -> Failure {
    let message = format!("the passphrase file {} {why}", path.display());
    Failure { kind: Kind::Other, message, help: "it must hold the passphrase alone, and be readable for Skep only (chmod 600)".to_owned() }
}

/// Is `path` a file with a passphrase that nobody else reads?
///
/// # Errors
/// Why not.
pub fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let facts = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    // Docker gives secrets to its containers as 0444, in a memory of their own.
    if facts.mode() & 0o077 != 0 && !path.starts_with("/run/secrets") {
        return Err(format!("may be read by others (mode {:o})", facts.mode() & 0o777));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_PASSPHRASE + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err("is empty".to_owned()),
        line if line.contains('\n') || text.len() as u64 > MAX_PASSPHRASE => Err("has more than one line".to_owned()),
        _ => Ok(()),
    }
}

/// Never over another one, and all of it or nothing.
fn make(path: &Path) -> io::Result<()> {
    let mut bytes = Zeroizing::new([0u8; BITS / 8]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| io::Error::other("there are no random numbers"))?;
    let text = Zeroizing::new(format!("{}\n", BASE64_URL_SAFE_NO_PAD.encode(*bytes)));
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    // A link fails where somebody else was faster, whose passphrase then counts.
    match std::fs::hard_link(&new, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::remove_file(&new)?;
    File::open(directory)?.sync_all()
}

/// All that opens `repository` one day on an empty machine, as a text for paper, a safe or another machine. It is secret.
///
/// # Errors
/// borg's, or the passphrase cannot be read.
pub async fn export(borg: &Borg, repository: &Repository, passphrase: &Path) -> Result<Zeroizing<String>, Failure> {
    let key = key(borg, repository, passphrase).await?;
    let words =
        Zeroizing::new(std::fs::read_to_string(passphrase).map_err(|error| failure(passphrase, &format!("cannot be read: {error}")))?);
    let (location, words) = (&repository.location, words.trim_end());
    Ok(Zeroizing::new(format!(
        "This opens the backups in {location}\n\
         Keep it where neither the servers nor their backups are. Whoever has it can read everything that was saved.\n\
         \n\
         repository: {location}\n\
         passphrase: {words}\n\
         \n\
         {BEGIN}\n{}\n{END}\n\
         \n\
         On an empty machine with Skep and borg, with the passphrase alone in a file of mode 600:\n\
         \x20   skep backup list --repository {location} --passphrase-file FILE\n\
         \x20   skep backup restore --repository {location} --passphrase-file FILE --archive ARCHIVE --into-directory DIR\n\
         With borg alone:\n\
         \x20   borg list {location}\n\
         \x20   borg extract {location}::ARCHIVE\n\
         If the repository has lost its own copy of the key: put the lines between the marks into a file, and\n\
         \x20   borg key import {location} FILE\n",
        key.trim_end()
    )))
}

/// Does `document` hold what opens `repository`? So is known that the copy that was carried elsewhere is whole.
///
/// # Errors
/// borg's, or what is wrong with the document.
pub async fn confirm(borg: &Borg, repository: &Repository, passphrase: &Path, document: &Path) -> Result<(), Failure> {
    let wrong = |why: &str| {
        let help = "`skep backup key export --to FILE` writes it; carry that file elsewhere and confirm the copy".to_owned();
        Failure { kind: Kind::Other, message: format!("{} {why}", document.display()), help }
    };
    let mut text = Zeroizing::new(String::new());
    let file = File::open(document).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    file.take(MAX_DOCUMENT).read_to_string(&mut text).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let words =
        Zeroizing::new(std::fs::read_to_string(passphrase).map_err(|error| failure(passphrase, &format!("cannot be read: {error}")))?);
    let theirs = text.lines().find_map(|line| line.strip_prefix("passphrase: "));
    if theirs != Some(words.trim_end()) {
        return Err(wrong("does not hold this repository's passphrase"));
    }
    let inside = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).map(|(key, _)| key.trim());
    match inside {
        Some(inside) if inside == key(borg, repository, passphrase).await?.trim() => Ok(()),
        _ => Err(wrong("does not hold this repository's key")),
    }
}

async fn key(borg: &Borg, repository: &Repository, passphrase: &Path) -> Result<Zeroizing<String>, Failure> {
    let command = borg.access(repository, Some(passphrase), "key").key_export();
    let output = borg.run(&command, None, &quiet(), &CancellationToken::new(), LIMIT).await?;
    String::from_utf8(output.stdout).map(Zeroizing::new).map_err(|_| Failure::new(Kind::Other, "the key is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_made_once_and_for_us_alone() {
        let state = tempfile::tempdir().expect("a directory");
        let config = config::Backup::default();
        let path = passphrase(&config, state.path()).expect("a file");
        let first = std::fs::read_to_string(&path).expect("text");
        assert_eq!(first.trim_end().len(), 43);
        assert_eq!(std::fs::metadata(&path).expect("facts").mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(passphrase(&config, state.path()).expect("a file")).expect("text"), first);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        let refused = passphrase(&config, state.path()).expect_err("read by others").to_string();
        assert!(refused.contains("may be read by others (mode 644)") && !refused.contains(first.trim_end()), "{refused}");
        for (text, why) in [("", "is empty"), ("\n", "is empty"), ("a\nb\n", "more than one line")] {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
            assert!(check(&path).expect_err(why).contains(why), "{text:?}");
        }
    }
}
