//! Carries jobs out, step by step, so that applications come back whatever happens, and every run ends as a [`Run`] that says how it went.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::borg::{Borg, OURSELVES};
use super::engine::Engine;
use super::execution::Work;
use super::guard::{Charge, bring_back};
use super::journal::{Action, Entry, undo};
use super::quiet::SETTLE;
use super::shelf::{Dead, Journal, Shelf};
use super::step::{Step, steps};
use super::vault::{Account, Vault};
use super::{Job, Run, Sink, Subject, Task, Verdict, archive, command, keys, step, trial, unlock};
use crate::config;
use crate::store::Store;

/// A check that nobody gave a limit.
const CHECK_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// At start-up, for what died with this process' predecessor.
const RECOVERY: Duration = Duration::from_secs(60);

/// One node's runs.
#[derive(Clone)]
pub struct Runner {
    pub config: config::Backup,
    pub docker: config::Docker,
    /// The state directory.
    pub state: PathBuf,
    pub shelf: Shelf,
    pub borg: Borg,
    /// Skep itself: what guards containers is started as it.
    pub program: PathBuf,
}

impl Runner {
    /// With what `config` says, below its state directory. `store` is where runs are remembered.
    ///
    /// # Errors
    /// There is no borg that can be used, or the directory cannot be written; a sentence.
    pub async fn open(config: &config::Config, state: &Path, store: Arc<dyn Store>) -> Result<Runner, String> {
        let shelf = Shelf::open(state, store).map_err(|error| error.to_string())?;
        let borg = Borg::find(&config.backup, state).await.map_err(|failure| failure.to_string())?;
        let (backup, docker, program) = (config.backup.clone(), config.docker.clone(), PathBuf::from(OURSELVES));
        Ok(Runner { config: backup, docker, state: state.to_owned(), shelf, borg, program })
    }

    /// What carrying out a job would do, were it now: each step in words, with borg's command where it has one. Nothing is done.
    pub fn outline(&self, job: &Job, subject: Option<&Subject>) -> Vec<(Step, Option<command::Command>)> {
        let passphrase = keys::place(&self.config, &self.state);
        let access = self.borg.access(&job.repository, Some(&passphrase), "RUN");
        let now = Timestamp::now();
        let with_command = |step: Step| {
            let command = step::command(&step, &access, subject, now);
            (step, command)
        };
        steps(job, subject, &self.config).into_iter().map(with_command).collect()
    }

    /// Does whatever a job asks for, and remembers how that went. `subject` is its volume.
    pub async fn carry_out(&self, job: &Job, subject: Option<&Subject>, sink: &Sink, stop: &CancellationToken) -> Run {
        match (job.task, subject) {
            (Task::Save, Some(subject)) => self.save(job, subject, sink, stop).await,
            (Task::Drill, Some(subject)) => {
                // Without an engine a dump is only looked at.
                let engine = Engine::connect(&self.docker).await.ok();
                trial::drill(self, engine.as_ref(), job, &subject.node, sink, stop).await
            }
            (Task::Save | Task::Drill, None) => Run::failed(job, Timestamp::now(), "the volume is gone".to_owned()),
            (Task::CheckRepository | Task::CheckArchives | Task::VerifyData, _) => self.check(job, sink, stop).await,
        }
    }

    /// Saves one volume to one target, and remembers how that went.
    pub async fn save(&self, job: &Job, subject: &Subject, sink: &Sink, stop: &CancellationToken) -> Run {
        self.stepped(job, Some(subject), (sink, stop), None).await
    }

    /// The same on behalf of the restore `within`, which has the volume.
    pub(super) async fn save_within(&self, within: &str, job: &Job, subject: &Subject, sink: &Sink, stop: &CancellationToken) -> Run {
        self.stepped(job, Some(subject), (sink, stop), Some(within)).await
    }

    /// Checks one repository, and remembers how that went.
    pub async fn check(&self, job: &Job, sink: &Sink, stop: &CancellationToken) -> Run {
        self.stepped(job, None, (sink, stop), None).await
    }

    async fn stepped(&self, job: &Job, subject: Option<&Subject>, (sink, stop): (&Sink, &CancellationToken), within: Option<&str>) -> Run {
        let mut run = self.begun(job).await;
        match self.begin(&run.id, job, subject, (sink, stop), within).await {
            Ok(mut work) => {
                let judgement = work.carry_out(subject).await;
                let (journal, account) = work.end();
                run.verdict = judgement.verdict;
                run.message = judgement.reasons.join("; ");
                (run.archive, run.stats, run.census) = (account.archive, account.stats, account.census);
                (run.warnings, run.more_warnings) = (account.warnings, account.more_warnings);
                close(journal).await;
            }
            Err(why) => run.message = why,
        }
        self.ended(run, stop).await
    }

    /// Says that a run begins, after what died here before, which may hold containers and locks, is undone.
    pub(super) async fn begun(&self, job: &Job) -> Run {
        let run = Run::begun(job, Timestamp::now(), fastrand::u32(..));
        tracing::info!(run = run.id, volume = run.what(), target = run.target, "a backup's work begins: {:?}", run.task);
        self.recover().await;
        run
    }

    /// Says how a run ended, and remembers it.
    pub(super) async fn ended(&self, run: Run, stop: &CancellationToken) -> Run {
        let run = Run { ended: Timestamp::now(), ..run };
        let (id, volume, target) = (&run.id, run.what(), &run.target);
        if run.verdict == Verdict::Failed && stop.is_cancelled() {
            // Neither a failure nor a success: the next plan finds it still to be done.
            tracing::warn!(run = id, volume, target, "it was stopped");
            return run;
        }
        match run.verdict {
            Verdict::Failed => tracing::error!(run = id, volume, target, "it failed: {}", run.message),
            Verdict::Warning => tracing::warn!(run = id, volume, target, "it is done: {}", run.message),
            Verdict::Good => tracing::info!(run = id, volume, target, "it is done: {}", run.message),
        }
        if let Err(error) = self.shelf.note(run.clone()).await {
            tracing::error!(run = id, "how a backup went cannot be remembered: {error}");
        }
        run
    }

    async fn begin<'a>(
        &'a self,
        id: &str,
        job: &'a Job,
        subject: Option<&'a Subject>,
        (sink, stop): (&'a Sink, &'a CancellationToken),
        within: Option<&str>,
    ) -> Result<Work<'a>, String> {
        let until = Instant::now() + subject.map_or(CHECK_LIMIT, |subject| subject.settings.timeout);
        let vault = Vault::open(self, id, job, subject, (sink, stop), until)?;
        let entry = Entry {
            archive: vault.archive.as_ref().map(|name| archive::unproven(name)),
            ..Entry::new(id, Timestamp::now(), job.task, job.volume.as_deref(), &job.target, &job.repository)
        };
        let journal = self.shelf.occupy(entry, within).await?;
        Ok(Work { runner: self, job, journal, vault, sink, stop, account: Account::default() })
    }

    /// Undoes what runs left half done whose processes died: containers first. What was done, and what could not be, as sentences; what
    /// could not be is tried again the next time.
    pub async fn recover(&self) -> Vec<String> {
        let journals = match self.shelf.journals().await {
            Ok(journals) => journals,
            Err(error) => return vec![format!("journals of backups cannot be read: {error}")],
        };
        let mut said = journals.findings;
        for dead in journals.dead {
            self.undo(dead, &mut said).await;
        }
        said.iter().for_each(|text| tracing::warn!("{text}"));
        said
    }

    async fn undo(&self, mut dead: Dead, said: &mut Vec<String>) {
        let whose = dead.found.entry.as_ref().map_or_else(
            || "a run whose journal is damaged".to_owned(),
            |entry| {
                format!(
                    "the run {} of {}, which ended at `{}`",
                    entry.run,
                    entry.volume.as_deref().unwrap_or(&entry.repository.name),
                    entry.step
                )
            },
        );
        match self.bring_back(&dead).await {
            Ok(done) => said.extend(done.iter().map(|action| format!("{whose}: did {action}"))),
            Err(error) => return said.push(format!("{whose}: its containers are not brought back yet: {error}")),
        }
        if let Err(error) = dead.brought_back().await {
            said.push(format!("{whose}: its journal cannot be written: {error}"));
        }
        if let Some(entry) = &dead.found.entry {
            let runs = self.shelf.runs().await.unwrap_or_default();
            let is_known = runs.values().filter_map(|series| series.success.as_ref()).any(|run| run.repository == entry.repository);
            match unlock::free(&self.borg, entry, is_known).await {
                Ok(true) => said.push(format!("{whose}: broke its lock on {}", entry.repository.location)),
                Ok(false) => {}
                Err(error) => return said.push(format!("{whose}: its lock on {} is left for now: {error}", entry.repository.location)),
            }
        }
        match dead.forget().await {
            Ok(()) => said.push(format!("{whose}: undone")),
            Err(error) => said.push(format!("{whose}: its journal cannot be removed: {error}")),
        }
    }

    /// Containers of a dead run go on; what was to be done.
    async fn bring_back(&self, dead: &Dead) -> Result<Vec<Action>, String> {
        let (paused, stopped) = dead.found.entry.as_ref().map(|entry| (entry.paused.clone(), entry.stopped.clone())).unwrap_or_default();
        let paused: Vec<String> = paused.into_iter().chain(dead.found.named.clone()).collect();
        if paused.is_empty() && stopped.is_empty() {
            return Ok(Vec::new());
        }
        let engine = Engine::connect(&self.docker).await.map_err(|error| error.to_string())?;
        let inventory = engine.inventory(self.config.volumes.as_deref()).await.map_err(|error| error.to_string())?;
        let actions = undo(&dead.found, &inventory).into_iter();
        let actions = actions.filter(|action| matches!(action, Action::Unpause { .. } | Action::Start { .. })).collect();
        // All of them, also those that run now: the engine may still be stopping what it was asked to a moment ago.
        let settle = if stopped.is_empty() { SETTLE } else { 3 * SETTLE };
        let settle = settle.saturating_sub(dead.age);
        bring_back(&self.docker, &Charge { paused, stopped, settle, ..Charge::default() }, RECOVERY).await?;
        Ok(actions)
    }
}

/// The journal goes if all is as it was; else it stays for [`Runner::recover`].
async fn close(journal: Journal) {
    let left = journal.entry().is_some_and(|entry| !entry.paused.is_empty() || !entry.stopped.is_empty());
    if !left && let Err(error) = journal.end().await {
        tracing::warn!("the journal of a backup that is over cannot be removed: {error}");
    }
}
