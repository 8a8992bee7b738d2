//! A repository as somebody who restores sees it: its archives, what is in them, and files out of them. Nothing here writes to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::archive::Comment;
use super::borg::{Borg, Output, quiet};
use super::command::{Access, Command};
use super::contents::{Contents, Entry, Kind};
use super::failure::{self, Failure};
use super::listing::Archive;
use super::report::{Archives, Change, FileEntry};
use super::{Repository, Sink, Stats};
use crate::diagnostic::Diagnostic;

/// For what reads lists; an archive of a million files over a slow line.
const LISTING: Duration = Duration::from_secs(6 * 3600);
/// For what reads data. It has a bound so that nothing is forgotten.
const READING: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a mount's answer; it has none that matters.
const SMALL: Duration = Duration::from_secs(120);

/// A repository, and how it is opened.
#[derive(Clone, Debug)]
pub struct Reader {
    borg: Borg,
    pub repository: Repository,
    /// `None`: it is not encrypted.
    passphrase: Option<PathBuf>,
    /// On whose behalf it is read: the holder of its locks.
    run: String,
    /// Somebody named the repository by hand: borg need not have seen it before.
    foreign: bool,
}

/// Why something was not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Borg(#[from] Failure),
    /// Of what somebody asked for, or of what is in the archive.
    #[error("{}", .0.message)]
    Finding(Diagnostic),
    #[error("{0}")]
    Said(String),
}

/// One archive, in full.
#[derive(Clone, Debug)]
pub struct Known {
    pub archive: Archive,
    pub stats: Stats,
    pub hostname: String,
    /// `None`: somebody else's archive.
    pub comment: Option<Comment>,
}

impl Reader {
    pub fn new(borg: Borg, repository: Repository, passphrase: Option<PathBuf>, run: String) -> Reader {
        Reader { borg, repository, passphrase, run, foreign: false }
    }

    /// The same for a repository that somebody named by hand.
    pub fn foreign(self) -> Reader {
        Reader { foreign: true, ..self }
    }

    fn access(&self) -> Access<'_> {
        let access = self.borg.access(&self.repository, self.passphrase.as_deref(), &self.run);
        Access { foreign: self.foreign, ..access }
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, command: &Command, stop: &CancellationToken) -> Result<T, Failure> {
        self.borg.run(command, None, &quiet(), stop, LISTING).await?.json()
    }

    /// All archives, as borg has them.
    ///
    /// # Errors
    /// borg's.
    pub async fn archives(&self, stop: &CancellationToken) -> Result<Vec<Archive>, Failure> {
        let listed: Archives = self.ask(&self.access().list_archives(None), stop).await?;
        Ok(listed.archives.iter().map(|archive| Archive::of(&archive.name, time(&archive.start))).collect())
    }

    /// What one archive was. Over a slow line this takes a while, as borg reads all lists of files.
    ///
    /// # Errors
    /// borg's; there is no such archive.
    pub async fn known(&self, name: &str, stop: &CancellationToken) -> Result<Known, Failure> {
        let listed: Archives = self.ask(&self.access().info(name), stop).await?;
        let Some(found) = listed.archives.into_iter().next() else {
            return Err(Failure::new(failure::Kind::NoArchive, format!("there is no archive {name}")));
        };
        Ok(Known {
            archive: Archive::of(&found.name, time(&found.start)),
            stats: found.stats.into(),
            hostname: found.hostname,
            comment: Comment::read(&found.comment),
        })
    }

    /// What the archive says of itself, without reading more than that.
    ///
    /// # Errors
    /// borg's.
    pub async fn comment(&self, name: &str, stop: &CancellationToken) -> Result<Option<Comment>, Failure> {
        // A name in a glob stands for itself: borg's globs know `*`, `?` and `[`.
        let glob: String = name.chars().map(|c| if "*?[".contains(c) { format!("[{c}]") } else { c.to_string() }).collect();
        let listed: Archives = self.ask(&self.access().list_archives(Some(&glob)), stop).await?;
        Ok(listed.archives.iter().find(|archive| archive.name == name).and_then(|archive| Comment::read(&archive.comment)))
    }

    /// Looks at the list of files: of all, or of `wanted` paths. `each` sees every line, wanted or not.
    ///
    /// # Errors
    /// borg's, or a line is none.
    pub async fn contents(
        &self,
        name: &str,
        wanted: &[String],
        each: &mut (dyn FnMut(&FileEntry) + Send),
        stop: &CancellationToken,
    ) -> Result<Contents, Error> {
        let mut contents = Contents::of(wanted);
        let mut broken = None;
        let mut line = |text: &str| match read::<FileEntry>(text) {
            Ok(entry) => {
                contents.push(Entry { path: &entry.path, kind: kind(&entry), source: &entry.linktarget, size: entry.size });
                each(&entry);
                true
            }
            Err(error) => {
                broken = Some(error);
                false
            }
        };
        self.borg.lines(&self.access().list_files(name, false, &[]), &mut line, stop, LISTING).await?;
        match broken {
            None => Ok(contents),
            Some(error) => Err(Error::Said(format!("borg's list of files cannot be read: {error}"))),
        }
    }

    /// As [`Reader::contents`], refused where it cannot be extracted safely, or not all that is wanted is there.
    ///
    /// # Errors
    /// As there, and the refusal.
    pub async fn checked(&self, name: &str, wanted: &[String], stop: &CancellationToken) -> Result<Contents, Error> {
        let contents = self.contents(name, wanted, &mut |_| {}, stop).await?;
        contents.check().map_err(Error::Finding)?;
        Ok(contents)
    }

    /// The entries below `paths`, with borg's own SHA-256 of regular files.
    ///
    /// # Errors
    /// borg's: also that the data is damaged.
    pub async fn hashes(&self, name: &str, paths: &[String], stop: &CancellationToken) -> Result<Vec<FileEntry>, Failure> {
        let mut found = Vec::new();
        let mut line = |text: &str| {
            found.extend(read::<FileEntry>(text).ok());
            true
        };
        self.borg.lines(&self.access().list_files(name, true, paths), &mut line, stop, READING).await?;
        Ok(found)
    }

    /// Extracts all, or what lies below `paths`, into a directory that is empty, or whose owner does not work against us meanwhile. Ask
    /// [`Reader::checked`] before. `without` are exact paths that stay out; `flags`: also flags of files such as `immutable`.
    ///
    /// # Errors
    /// borg's. What it only warns of is in the output.
    pub async fn extract(&self, what: &Extraction<'_>, sink: &Sink, stop: &CancellationToken) -> Result<Output, Failure> {
        self.borg.run(&self.extraction(what), None, sink, stop, READING).await
    }

    /// The command of [`Reader::extract`].
    pub fn extraction(&self, what: &Extraction<'_>) -> Command {
        let mut command = self.access().extract(what.archive, what.into, what.paths);
        let mut options: Vec<String> = what.without.iter().map(|path| format!("--exclude=pf:{path}")).collect();
        if !what.flags {
            options.push("--noflags".to_owned());
        }
        let place = command.words.iter().position(|word| word == "--").unwrap_or(command.words.len());
        command.words.splice(place..place, options);
        command
    }

    /// One file's bytes.
    ///
    /// # Errors
    /// borg's, or `to` takes no more.
    pub async fn file(
        &self,
        name: &str,
        path: &str,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        stop: &CancellationToken,
    ) -> Result<Output, Failure> {
        let output = self.borg.copy(&self.access().extract_stdout(name, path), to, stop, READING).await;
        if output.is_ok() {
            // Whoever reads on the other side must see the end; whether it still reads is its own matter.
            _ = to.shutdown().await;
        }
        output
    }

    /// What differs between two archives, line by line, until `each` says `false`.
    ///
    /// # Errors
    /// borg's.
    pub async fn differences(
        &self,
        one: &str,
        other: &str,
        each: &mut (dyn FnMut(Change) -> bool + Send),
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut line = |text: &str| read(text).map_or(true, &mut *each);
        self.borg.lines(&self.access().diff(one, other), &mut line, stop, READING).await.map(drop)
    }

    /// Shows an archive as a directory, by FUSE, until [`Reader::unmount`].
    ///
    /// # Errors
    /// borg's: this machine has no FUSE, or borg was installed without it.
    pub async fn mount(&self, name: &str, directory: &Path, stop: &CancellationToken) -> Result<(), Failure> {
        self.borg.run(&self.access().mount(name, directory), None, &quiet(), stop, SMALL).await.map(drop)
    }

    /// Takes a mounted archive away.
    ///
    /// # Errors
    /// borg's: it is in use, or none.
    pub async fn unmount(&self, directory: &Path, stop: &CancellationToken) -> Result<(), Failure> {
        self.borg.run(&self.access().umount(directory), None, &quiet(), stop, SMALL).await.map(drop)
    }
}

/// What is extracted where.
#[derive(Clone, Copy, Debug)]
pub struct Extraction<'a> {
    pub archive: &'a str,
    pub into: &'a Path,
    /// Paths in the archive, each with all below it; none: everything.
    pub paths: &'a [String],
    /// Exactly these stay out.
    pub without: &'a [String],
    /// Flags as `immutable` are restored, which not even root gets rid of by deleting.
    pub flags: bool,
}

/// A line of borg's JSON. Some of them have half surrogates for bytes that are not UTF-8, which no JSON may have: they become `?`, as borg
/// itself writes them elsewhere.
fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let mut parts = text.split("\\udc");
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let is_byte = part.len() >= 2 && part.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
            whole.push_str(if is_byte { "?" } else { "\\udc" });
            whole.push_str(if is_byte { &part[2..] } else { part });
        }
        serde_json::from_str(&whole).map_err(|_| error)
    })
}

/// borg's time: by UTC, as every borg that we start is told to.
fn time(text: &str) -> Option<jiff::Timestamp> {
    let time: jiff::civil::DateTime = text.parse().ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp())
}

fn kind(entry: &FileEntry) -> Kind {
    // borg says of a hard link in the mode alone that it is one.
    if entry.mode.starts_with('h') || entry.kind == "h" {
        return Kind::HardLink;
    }
    match entry.kind.as_str() {
        "-" => Kind::File,
        "d" => Kind::Directory,
        "l" => Kind::Symlink,
        _ => Kind::Special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_utf8_are_read_as_borg_writes_them_elsewhere() {
        let change: Change = read(r#"{"path": "n\udcff\udc80é", "changes": []}"#).unwrap();
        assert_eq!(change.path, "n??é");
        let change: Change = read(r#"{"path": "a\ud83d\ude00b", "changes": []}"#).unwrap();
        assert_eq!(change.path, "a😀b");
        assert!(read::<Change>(r#"{"path": "\udc"}"#).is_err() && read::<Change>("{").is_err());
    }

    #[test]
    fn times_are_by_utc() {
        assert_eq!(time("2026-11-23T14:01:21.000000").map(|at| at.to_string()), Some("2026-11-23T14:01:21Z".to_owned()));
        assert_eq!(time("yesterday"), None);
    }
}
