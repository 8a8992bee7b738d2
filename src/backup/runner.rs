//! Carries jobs out, step by step, so that applications come back whatever happens, and every run ends as a [`Run`] that says how it went.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::borg::{Borg, Feed, OURSELVES};
use super::engine::Engine;
use super::guard::{Charge, bring_back};
use super::journal::{Action, Entry, undo};
use super::judge::{Evidence, Judgement, judge, size};
use super::quiet::{Quieted, SETTLE, quiesce};
use super::shelf::{Dead, Journal, Shelf};
use super::step::{Hook, Quiet, Step, steps};
use super::vault::{Account, Vault};
use super::{Census, Job, OnError, Progress, Run, Series, Sink, Subject, Verdict, archive, command, feed, keys, room, step, unlock};
use crate::config;
use crate::store::Store;

/// What a hook may take that brings things back after the time of its run is over.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// A check that nobody gave a limit.
const CHECK_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// At start-up, for what died with this process' predecessor.
const RECOVERY: Duration = Duration::from_secs(60);
/// Of a hook's output.
const MAX_SAID: usize = 4 << 10;

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

/// One run under way.
struct Work<'a> {
    runner: &'a Runner,
    job: &'a Job,
    journal: Journal,
    vault: Vault<'a>,
    sink: &'a Sink,
    stop: &'a CancellationToken,
    account: Account,
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

    /// Saves one volume to one target, and remembers how that went.
    pub async fn save(&self, job: &Job, subject: &Subject, sink: &Sink, stop: &CancellationToken) -> Run {
        self.carry_out(job, Some(subject), subject.settings.timeout, sink, stop).await
    }

    /// Checks one repository, and remembers how that went.
    pub async fn check(&self, job: &Job, sink: &Sink, stop: &CancellationToken) -> Run {
        self.carry_out(job, None, CHECK_LIMIT, sink, stop).await
    }

    async fn carry_out(&self, job: &Job, subject: Option<&Subject>, limit: Duration, sink: &Sink, stop: &CancellationToken) -> Run {
        let began = Timestamp::now();
        let id = format!("{}-{:08x}", began.strftime("%Y%m%dT%H%M%S"), fastrand::u32(..));
        let mut run = Run {
            id: id.clone(),
            task: job.task,
            volume: job.volume.clone(),
            target: job.target.clone(),
            repository: job.repository.clone(),
            archive: None,
            began,
            ended: began,
            verdict: Verdict::Failed,
            message: String::new(),
            warnings: Vec::new(),
            more_warnings: 0,
            stats: super::Stats::default(),
            census: None,
            reason: job.reason,
        };
        let what = job.volume.as_deref().unwrap_or(&job.repository.name);
        tracing::info!(run = id, volume = what, target = job.target, "a backup's work begins: {:?}", job.task);
        // What died here before may hold containers and locks.
        self.recover().await;
        match self.begin(&id, job, subject, limit, (sink, stop)).await {
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
        run.ended = Timestamp::now();
        if run.verdict == Verdict::Failed && stop.is_cancelled() {
            // Neither a failure nor a success: the next plan finds it still to be done.
            tracing::warn!(run = id, volume = what, target = job.target, "it was stopped");
            return run;
        }
        match run.verdict {
            Verdict::Failed => tracing::error!(run = id, volume = what, target = job.target, "it failed: {}", run.message),
            Verdict::Warning => tracing::warn!(run = id, volume = what, target = job.target, "it is done: {}", run.message),
            Verdict::Good => tracing::info!(run = id, volume = what, target = job.target, "it is done: {}", run.message),
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
        limit: Duration,
        (sink, stop): (&'a Sink, &'a CancellationToken),
    ) -> Result<Work<'a>, String> {
        let until = Instant::now() + limit;
        let vault = Vault::open(self, id, job, subject, (sink, stop), until)?;
        let entry = Entry {
            run: id.to_owned(),
            task: job.task,
            volume: job.volume.clone(),
            target: job.target.clone(),
            repository: job.repository.clone(),
            holder: command::holder(id),
            archive: vault.archive.as_ref().map(|name| archive::unproven(name)),
            began: Timestamp::now(),
            deadline: None,
            step: String::new(),
            paused: Vec::new(),
            stopped: Vec::new(),
        };
        let journal = self.shelf.begin(entry).await;
        let journal = journal.map_err(|error| format!("nothing was done, as it could not be written down first: {error}"))?;
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

impl Work<'_> {
    async fn carry_out(&mut self, subject: Option<&Subject>) -> Judgement {
        let failed = |why: String| Judgement { verdict: Verdict::Failed, reasons: vec![why] };
        let Some(subject) = subject else {
            return self.checked().await.unwrap_or_else(failed);
        };
        match self.saved(subject).await {
            Ok(judgement) => judgement,
            Err(why) => failed(why),
        }
    }

    fn end(self) -> (Journal, Account) {
        (self.journal, self.account)
    }

    async fn saved(&mut self, subject: &Subject) -> Result<Judgement, String> {
        let engine = Engine::connect(&self.runner.docker).await.map_err(|error| error.to_string())?;
        // As they are now: Swarm may have replaced them since the plan was made.
        let containers = engine.containers(Some(&subject.volume.name)).await.map_err(|error| error.to_string())?;
        let subject = &Subject { containers, ..subject.clone() };
        room::volume(subject).await?;
        let before = self.runner.shelf.runs().await.unwrap_or_default().remove(&self.job.key()).unwrap_or_default();
        let mut state = State { engine, subject, before, quieted: None, is_quiet: false, is_prepared: false, dump: None, judgement: None };
        let mut failure = None;
        for step in steps(self.job, Some(subject), &self.runner.config) {
            let is_owed = match &step {
                Step::Resume(_) => state.quieted.is_some(),
                Step::Post(_) => state.is_prepared || failure.is_none(),
                _ => failure.is_none(),
            };
            if !is_owed {
                continue;
            }
            if let Err(why) = self.step(&step, &mut state).await {
                failure.get_or_insert(why);
            }
        }
        match (failure, state.judgement) {
            (Some(why), _) => Err(why),
            (None, Some(judgement)) => {
                self.count().await;
                Ok(self.summed(judgement))
            }
            (None, None) => Err("it ended before the archive was looked at".to_owned()),
        }
    }

    async fn step(&mut self, step: &Step, state: &mut State<'_>) -> Result<(), String> {
        let bringing_back = matches!(step, Step::Resume(_) | Step::Post(_));
        if !bringing_back {
            self.may_go_on()?;
            (self.sink)(Progress::Phase { text: step.to_string() });
            let text = step.to_string();
            // Only for people: what must be written down is, where it must.
            _ = self.journal.change(|entry| entry.step = text).await;
        }
        match step {
            Step::FreeSpace { location, bytes } => room::free(location, *bytes).await,
            Step::Init => {
                let found = self.vault.init(&mut self.account).await?;
                self.account.census = Some(Census { expected: state.before.left(&self.job.repository), found, left: None });
                Ok(())
            }
            Step::Pre(hook) => {
                state.is_prepared = true;
                match (self.hook(&state.engine, hook, self.vault.left(), self.stop).await, state.subject.settings.on_error) {
                    (Err(why), OnError::Continue) => {
                        self.account.warn(self.sink, why);
                        Ok(())
                    }
                    (done, _) => done,
                }
            }
            Step::Quiesce(wanted) => {
                let runner = self.runner;
                if wanted.how == Quiet::Stop && state.subject.containers.iter().any(|container| container.service.is_some()) {
                    return Err("Swarm replaces a task that is stopped: use mode pause, hot or a dump".to_owned());
                }
                let quieted = quiesce(&state.engine, &runner.docker, &runner.program, &mut self.journal, wanted).await?;
                (state.quieted, state.is_quiet) = (Some(quieted), wanted.how == Quiet::Pause);
                Ok(())
            }
            Step::Create { dump, .. } => {
                let feed = match dump {
                    None => None,
                    Some(dump) => {
                        let nobody = "no container that mounts the volume runs, so there is nobody to dump it";
                        let container = dump.container.as_ref().ok_or(nobody)?;
                        let (feed, count) = feed::dump(&state.engine, container, &state.subject.volume.name, &dump.database).await?;
                        state.dump = Some(count);
                        Some(feed)
                    }
                };
                self.create(step, state, feed).await
            }
            Step::Resume(_) => self.resume(state, true).await,
            // Also when it was told to stop, and after its time.
            Step::Post(hook) => match self.hook(&state.engine, hook, self.vault.left().max(LAST_WORDS), &CancellationToken::new()).await {
                // The archive is none the worse for it.
                Err(why) => {
                    self.account.warn(self.sink, why);
                    Ok(())
                }
                done => done,
            },
            Step::Prove => self.prove(state).await,
            Step::Rename => self.vault.rename(&mut self.account).await,
            Step::DeleteUnproven => {
                let done = self.vault.delete_unproven(&mut self.account).await;
                self.forgive(step, done);
                Ok(())
            }
            // Without these the archive is as good.
            Step::Prune { .. } | Step::Compact => {
                let done = self.vault.tidy(step, &mut self.account).await;
                self.forgive(step, done);
                Ok(())
            }
            Step::CheckRepository | Step::CheckArchives | Step::VerifyData { .. } => Ok(()),
        }
    }

    /// What is left for the next run to find.
    async fn count(&mut self) {
        let counted = self.vault.count(&mut self.account).await;
        match (counted, &mut self.account.census) {
            (Ok(left), Some(census)) => census.left = Some(left),
            (Ok(_), None) => {}
            (Err(why), _) => self.account.warn(self.sink, format!("it could not count the archives that are left: {why}")),
        }
    }

    /// What failed is a warning.
    fn forgive(&mut self, step: &Step, done: Result<(), String>) {
        if let Err(why) = done {
            self.account.warn(self.sink, format!("it could not {step}: {why}"));
        }
    }

    fn may_go_on(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("it was told to stop".to_owned());
        }
        match self.vault.left().is_zero() {
            true => Err("its time is over (timeout)".to_owned()),
            false => Ok(()),
        }
    }

    /// Makes the archive. A pause ends at its deadline, whether all is read or not.
    async fn create(&mut self, step: &Step, state: &mut State<'_>, feed: Option<Feed>) -> Result<(), String> {
        let Work { vault, account, journal, runner, sink, .. } = self;
        let mut lesson = None;
        let mut account_of_create = std::mem::take(account);
        let made = {
            let mut create = std::pin::pin!(vault.create(step, state.subject, feed, &mut account_of_create));
            let limit = runner.config.pause_limit;
            tokio::select! {
                made = &mut create => made,
                () = tokio::time::sleep(limit), if state.is_quiet => {
                    let resumed = match state.quieted.take() {
                        Some(quieted) => quieted.resume(&state.engine, journal, true).await,
                        None => Ok(()),
                    };
                    lesson = Some(match resumed {
                        Ok(()) => format!("its containers went on after {} s (backup.pause-limit), and the rest was read while they ran", limit.as_secs()),
                        Err(why) => why,
                    });
                    create.await
                }
            }
        };
        *account = account_of_create;
        lesson.into_iter().for_each(|text| account.warn(sink, text));
        made
    }

    async fn resume(&mut self, state: &mut State<'_>, is_settled: bool) -> Result<(), String> {
        match state.quieted.take() {
            Some(quieted) => quieted.resume(&state.engine, &mut self.journal, is_settled).await,
            None => Ok(()),
        }
    }

    async fn hook(&self, engine: &Engine, hook: &Hook, limit: Duration, stop: &CancellationToken) -> Result<(), String> {
        let Some(container) = &hook.container else {
            return Err(format!("`{}` was not run: no container that mounts the volume runs", hook.command));
        };
        let failed = |why: String| format!("`{}` in {} {why}", hook.command, container.name);
        let words = ["sh", "-c", &hook.command].map(str::to_owned);
        let work = async {
            let exec = engine.exec(&container.id, &words, None).await?;
            exec.collect(MAX_SAID).await
        };
        let (output, ended) = tokio::select! {
            done = tokio::time::timeout(limit, work) => match done {
                Ok(done) => done.map_err(|error| failed(format!("failed: {error}")))?,
                Err(_) => return Err(failed(format!("did not end within {} s", limit.as_secs()))),
            },
            () = stop.cancelled() => return Err("it was told to stop".to_owned()),
        };
        if ended.code == 0 {
            return Ok(());
        }
        let said = if ended.complaint.is_empty() { String::from_utf8_lossy(&output).trim().to_owned() } else { ended.complaint };
        Err(failed(format!("failed with exit code {}{}{said}", ended.code, if said.is_empty() { "" } else { ": " })))
    }

    async fn prove(&mut self, state: &mut State<'_>) -> Result<(), String> {
        let archive = self.vault.prove(&mut self.account).await?;
        let evidence = Evidence {
            archive,
            dump: state.dump.as_ref().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)),
            warnings: 0, // all of them are counted at the end
        };
        let judgement = judge(&evidence, &state.before, self.runner.config.shrink);
        if judgement.verdict == Verdict::Failed {
            return Err(judgement.reasons.join("; "));
        }
        state.judgement = Some(judgement);
        Ok(())
    }

    /// With what was warned of, and what was done.
    fn summed(&self, mut judgement: Judgement) -> Judgement {
        let stats = &self.account.stats;
        let warnings = self.account.warnings.len() as u64 + self.account.more_warnings;
        if warnings > 0 {
            judgement.verdict = judgement.verdict.max(Verdict::Warning);
            let plural = if warnings == 1 { "" } else { "s" };
            judgement
                .reasons
                .push(format!("{warnings} warning{plural}, the first: {}", self.account.warnings.first().map_or("", String::as_str)));
        }
        let plural = if stats.files == 1 { "" } else { "s" };
        let done = format!("{} file{plural}, {}, of which {} are new", stats.files, size(stats.original), size(stats.deduplicated));
        judgement.reasons.insert(0, done);
        judgement
    }

    async fn checked(&mut self) -> Result<Judgement, String> {
        let mut done = String::new();
        for step in steps(self.job, None, &self.runner.config) {
            self.may_go_on()?;
            (self.sink)(Progress::Phase { text: step.to_string() });
            let text = step.to_string();
            _ = self.journal.change(|entry| entry.step = text).await;
            done = match step {
                Step::CheckRepository | Step::CheckArchives => self.vault.check(&step, &mut self.account).await?,
                Step::VerifyData { slices } => self.vault.verify(slices, &mut self.account).await?,
                _ => continue,
            };
        }
        if done.is_empty() {
            return Err(format!("{:?} is nothing that can be done without a volume", self.job.task));
        }
        let judgement = Judgement { verdict: Verdict::Good, reasons: vec![done] };
        Ok(match self.account.warnings.first() {
            Some(first) => Judgement { verdict: Verdict::Warning, reasons: vec![judgement.reasons.join("; "), first.clone()] },
            None => judgement,
        })
    }
}

/// What the steps of one run leave to each other.
struct State<'a> {
    engine: Engine,
    subject: &'a Subject,
    before: Series,
    quieted: Option<Quieted>,
    /// Is it a pause, which has a deadline of its own?
    is_quiet: bool,
    /// Was the hook before it begun?
    is_prepared: bool,
    dump: Option<feed::Count>,
    judgement: Option<Judgement>,
}
