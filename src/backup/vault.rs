//! One run's view of its repository: what borg is asked for within the run's time, and what it answered, kept for the account.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::archive;
use super::borg::{Feed, Output};
use super::command::{Access, Command};
use super::failure::{Failure, Kind};
use super::report::Archives;
use super::runner::Runner;
use super::step::{Step, command};
use super::{Census, Job, MAX_WARNINGS, Progress, Sink, Stats, Subject, keys};

/// What a run has to say of its archive.
#[derive(Debug, Default)]
pub struct Account {
    pub archive: Option<String>,
    pub stats: Stats,
    pub warnings: Vec<String>,
    pub more_warnings: u64,
    pub census: Option<Census>,
}

impl Account {
    /// Keeps a warning, and tells it.
    pub fn warn(&mut self, sink: &Sink, text: String) {
        sink(Progress::Warning { text: text.clone() });
        self.keep(text);
    }

    fn keep(&mut self, text: String) {
        match self.warnings.len() < MAX_WARNINGS {
            true => self.warnings.push(text),
            false => self.more_warnings += 1,
        }
    }

    /// What borg warned of, which it has told already.
    fn heard(&mut self, output: &mut Output) {
        std::mem::take(&mut output.warnings).into_iter().for_each(|text| self.keep(text));
        self.more_warnings += output.more_warnings;
    }
}

/// A repository, as one run asks for it.
pub struct Vault<'a> {
    runner: &'a Runner,
    run: String,
    job: &'a Job,
    subject: Option<&'a Subject>,
    /// The final name of the archive that is to be.
    pub archive: Option<String>,
    at: Timestamp,
    passphrase: PathBuf,
    sink: &'a Sink,
    stop: &'a CancellationToken,
    until: Instant,
}

impl<'a> Vault<'a> {
    /// # Errors
    /// There is no passphrase that can be used; a sentence.
    pub fn open(
        runner: &'a Runner,
        run: &str,
        job: &'a Job,
        subject: Option<&'a Subject>,
        (sink, stop): (&'a Sink, &'a CancellationToken),
        until: Instant,
    ) -> Result<Vault<'a>, String> {
        let passphrase = keys::passphrase(&runner.config, &runner.state).map_err(|failure| failure.to_string())?;
        let at = Timestamp::now();
        let archive = subject.map(|subject| archive::name(&subject.volume.name, &subject.node, at));
        Ok(Vault { runner, run: run.to_owned(), job, subject, archive, at, passphrase, sink, stop, until })
    }

    /// What is left of the run's time.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn access(&self) -> Access<'_> {
        self.runner.borg.access(&self.job.repository, Some(&self.passphrase), &self.run)
    }

    fn command(&self, step: &Step) -> Result<Command, String> {
        command(step, &self.access(), self.subject, self.at).ok_or_else(|| "it is about no volume".to_owned())
    }

    /// A step that has no answer but that it went well.
    async fn simply(&self, step: &Step, account: &mut Account) -> Result<(), String> {
        self.ask(&self.command(step)?, account).await.map(drop).map_err(|failure| failure.to_string())
    }

    /// Asks borg. A lock that only the dead hold is broken on the way, once.
    async fn ask(&self, command: &Command, account: &mut Account) -> Result<Output, Failure> {
        let first = self.fed(command, None, account).await;
        match first {
            Err(failure) if failure.kind == Kind::Locked && !self.runner.recover().await.is_empty() => {
                self.fed(command, None, account).await
            }
            done => done,
        }
    }

    async fn fed(&self, command: &Command, feed: Option<Feed>, account: &mut Account) -> Result<Output, Failure> {
        let mut output = self.runner.borg.run(command, feed, self.sink, self.stop, self.left()).await?;
        account.heard(&mut output);
        Ok(output)
    }

    /// Makes the repository at its first use. One that had archives and is gone is not made again: its disk may not be mounted. How many
    /// archives the volume has in it.
    ///
    /// # Errors
    /// A sentence.
    pub async fn init(&self, account: &mut Account) -> Result<u64, String> {
        match self.ask(&self.list(), account).await {
            Ok(output) => number(&output),
            Err(failure) if failure.kind == Kind::NoRepository => {
                let runs = self.runner.shelf.runs().await.map_err(|error| error.to_string())?;
                if runs.values().filter_map(|series| series.success.as_ref()).any(|run| run.repository == self.job.repository) {
                    return Err(format!("{} is not there any more: is its disk mounted?", self.job.repository.location));
                }
                // It warns of borg 1.0, and that the key is to be kept, which we say ourselves.
                self.simply(&Step::Init, &mut Account::default()).await?;
                Ok(0)
            }
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// How many archives the volume has.
    ///
    /// # Errors
    /// A sentence.
    pub async fn count(&self, account: &mut Account) -> Result<u64, String> {
        let output = self.ask(&self.list(), account).await.map_err(|failure| failure.to_string())?;
        number(&output)
    }

    /// Asks for the archives of the volume that have their final names.
    fn list(&self) -> Command {
        let glob = self.subject.map(|subject| archive::glob(&subject.volume.name, &subject.node));
        self.access().list_archives(glob.as_deref())
    }

    /// Makes the archive, by a name that says that nobody has looked at it yet.
    ///
    /// # Errors
    /// A sentence.
    pub async fn create(&self, step: &Step, subject: &Subject, feed: Option<Feed>, account: &mut Account) -> Result<(), String> {
        let wanted = command(step, &self.access(), Some(subject), self.at).ok_or("it makes no archive")?;
        let output = self.fed(&wanted, feed, account).await.map_err(|failure| failure.to_string())?;
        account.stats = output.stats;
        account.archive = Some(self.unproven()?);
        Ok(())
    }

    /// What the repository says of the archive; `None`: it is not there.
    ///
    /// # Errors
    /// A sentence.
    pub async fn prove(&self, account: &mut Account) -> Result<Option<Stats>, String> {
        let name = self.unproven()?;
        let told = match self.ask(&self.command(&Step::Prove)?, account).await {
            Ok(output) => output.json::<Archives>().map_err(|failure| failure.to_string())?,
            Err(failure) if failure.kind == Kind::NoArchive => return Ok(None),
            Err(failure) => return Err(failure.to_string()),
        };
        Ok(told.archives.into_iter().find(|archive| archive.name == name).map(|archive| archive.stats.into()))
    }

    /// Gives the archive its name.
    ///
    /// # Errors
    /// A sentence.
    pub async fn rename(&self, account: &mut Account) -> Result<(), String> {
        self.simply(&Step::Rename, account).await?;
        account.archive.clone_from(&self.archive);
        Ok(())
    }

    /// Deletes what earlier runs left unfinished.
    ///
    /// # Errors
    /// A sentence.
    pub async fn delete_unproven(&self, account: &mut Account) -> Result<(), String> {
        let glob = self.subject.map(|subject| archive::unproven_glob(&subject.volume.name, &subject.node));
        let told = self.ask(&self.access().list_archives(glob.as_deref()), account).await.map_err(|failure| failure.to_string())?;
        // Most of the time there is none, and looking is quicker.
        match told.json::<Archives>().map_err(|failure| failure.to_string())?.archives.is_empty() {
            true => Ok(()),
            false => self.simply(&Step::DeleteUnproven, account).await,
        }
    }

    /// Prunes or compacts.
    ///
    /// # Errors
    /// A sentence.
    pub async fn tidy(&self, step: &Step, account: &mut Account) -> Result<(), String> {
        self.simply(step, account).await
    }

    /// Checks the repository or its archives.
    ///
    /// # Errors
    /// What is damaged, as a sentence.
    pub async fn check(&self, step: &Step, account: &mut Account) -> Result<String, String> {
        self.simply(step, account).await?;
        Ok(if *step == Step::CheckRepository { "the repository is whole" } else { "the archives are whole" }.to_owned())
    }

    /// Reads all data of the archives whose turn it is.
    ///
    /// # Errors
    /// The first archive that is damaged, as a sentence.
    pub async fn verify(&self, slices: u32, account: &mut Account) -> Result<String, String> {
        let told = self.ask(&self.access().list_archives(None), account).await.map_err(|failure| failure.to_string())?;
        let told = told.json::<Archives>().map_err(|failure| failure.to_string())?;
        let ours = |name: &String| archive::parse(name).is_some_and(|name| !name.unproven);
        let mut names: Vec<String> = told.archives.into_iter().map(|archive| archive.name).filter(ours).collect();
        names.sort_unstable();
        let turn = turn(self.job.due, self.runner.config.verify_data, slices);
        let all = names.len();
        let chosen: Vec<String> = names.into_iter().rev().skip(turn).step_by(slices as usize).collect();
        for name in &chosen {
            let read = self.ask(&self.access().verify(name), account).await;
            read.map_err(|failure| format!("{name} cannot be read: {failure}"))?;
        }
        Ok(format!("all data of {} of {all} archives was read and is whole", chosen.len()))
    }

    fn unproven(&self) -> Result<String, String> {
        self.archive.as_deref().map(archive::unproven).ok_or_else(|| "it makes no archive".to_owned())
    }
}

fn number(output: &Output) -> Result<u64, String> {
    let told = output.json::<Archives>().map_err(|failure| failure.to_string())?;
    Ok(told.archives.len() as u64)
}

/// Which slice of the archives, counted from the newest, it is when: each one once in `slices` periods.
fn turn(due: Timestamp, every: Option<Duration>, slices: u32) -> usize {
    let period = every.map_or(7 * 24 * 3600, |every| every.as_secs().max(1)).cast_signed();
    let turn = due.as_second().div_euclid(period).rem_euclid(i64::from(slices.max(1)));
    usize::try_from(turn).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slice_has_its_turn() {
        let week = Duration::from_secs(7 * 24 * 3600);
        let turns: Vec<usize> = (0..8).map(|n| turn(Timestamp::from_second(n * 604_800 + 5).expect("a time"), Some(week), 4)).collect();
        assert_eq!(turns, [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}
