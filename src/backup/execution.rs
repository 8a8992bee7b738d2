//! One run under way: its steps, one after the other, so that the application comes back whichever of them fails.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::borg::Feed;
use super::engine::Engine;
use super::judge::{Evidence, Judgement, judge, size};
use super::quiet::{Quieted, quiesce};
use super::runner::Runner;
use super::shelf::Journal;
use super::step::{Hook, Quiet, Step, steps};
use super::vault::{Account, Vault};
use super::{Census, Job, OnError, Progress, Series, Sink, Subject, Verdict, feed, room};

/// What a hook may take that brings things back after the time of its run is over.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// Of a hook's output.
const MAX_SAID: usize = 4 << 10;

/// One run under way.
pub struct Work<'a> {
    pub runner: &'a Runner,
    pub job: &'a Job,
    pub journal: Journal,
    pub vault: Vault<'a>,
    pub sink: &'a Sink,
    pub stop: &'a CancellationToken,
    pub account: Account,
}

impl Work<'_> {
    /// Carries all steps out, and says how that went.
    pub async fn carry_out(&mut self, subject: Option<&Subject>) -> Judgement {
        let failed = |why: String| Judgement { verdict: Verdict::Failed, reasons: vec![why] };
        let Some(subject) = subject else {
            return self.checked().await.unwrap_or_else(failed);
        };
        match self.saved(subject).await {
            Ok(judgement) => judgement,
            Err(why) => failed(why),
        }
    }

    pub fn end(self) -> (Journal, Account) {
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
            dump: state.dump.as_ref().map(|count| count.load(Ordering::Relaxed)),
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
