//! Saves the volumes of this node: asks for the plan whenever something happened, begins what is ready, publishes how all of it
//! stands, and tells who wants to hear. One process of a node has this duty; another one beside it (an upgrade) waits for its end.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::backup::borg::{Borg, OURSELVES};
use crate::backup::courier::Courier;
use crate::backup::duty::Duty;
use crate::backup::engine::Engine;
use crate::backup::notice::{Told, notices};
use crate::backup::plan::{Held, Scene, held, plan, ready, unkept};
use crate::backup::runner::Runner;
use crate::backup::shelf::Shelf;
use crate::backup::standing::{Facts, standing};
use crate::backup::survey::{Survey, survey};
use crate::backup::{Job, Progress, Run, Runs, Sink, Verdict, room};
use crate::config::Config;
use crate::config::notify::unheard;
use crate::diagnostic::{Diagnostic, Severity, render};
use crate::state::Live;
use crate::store::{self, Store};

use super::standing::{Shown, Standing};

/// The node is looked at again at least so often: volumes come without an event.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// After something that has to be there was not.
const AGAIN: Duration = Duration::from_secs(15);
/// Between two looks, whatever happens.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Another process' end is looked for so often.
const DUTY: Duration = Duration::from_secs(1);
/// What was told, so that a restart does not tell it again.
const TOLD: &str = "backup/told";
/// How long a stop waits for notices that are under way.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The one task that saves volumes.
pub struct Saving {
    config: Arc<Config>,
    live: Arc<Live>,
    store: Arc<dyn Store>,
    /// The state directory.
    state: PathBuf,
    standing: Standing,
    courier: Option<Courier>,
    borg: Option<Borg>,
    node: String,
    /// As of the last look that went well.
    survey: Survey,
    under_way: Vec<UnderWay>,
    tasks: JoinSet<Run>,
    told: Told,
    /// Findings that were logged, as a text.
    findings: String,
    /// The trouble that was logged, until it is over.
    trouble: Option<String>,
    /// Held by the one process that saves.
    duty: Option<Duty>,
    /// Ends what is under way.
    stop: CancellationToken,
}

/// A job that runs.
struct UnderWay {
    job: Job,
    id: task::Id,
    progress: Shown,
}

/// What a look needs of the shelf.
struct Remembered {
    runs: Runs,
    jobs: Vec<Job>,
    held: Vec<Held>,
    findings: Vec<Diagnostic>,
}

impl Saving {
    /// Nothing is done yet. `None` where there is no engine, or no state directory to remember anything in.
    pub fn new(config: Arc<Config>, live: Arc<Live>, store: Arc<dyn Store>) -> Option<Saving> {
        let state = config.state.directory.as_ref().filter(|_| config.docker.enabled)?.clone();
        Some(Saving {
            config,
            live,
            store,
            state,
            standing: Standing::default(),
            courier: None,
            borg: None,
            node: String::new(),
            survey: Survey::default(),
            under_way: Vec::new(),
            tasks: JoinSet::new(),
            told: Told::default(),
            findings: String::new(),
            trouble: None,
            duty: None,
            stop: CancellationToken::new(),
        })
    }

    /// How the backups stand, for whoever looks.
    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Works until `stopping` turns true; then ends what is under way, which brings its applications back.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let ends = async move {
            // An error means that the sender is gone: whoever would have told us has ended.
            _ = stopping.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            () = ends => {}
            () = self.work() => {}
        }
        self.stop.cancel();
        while let Some(done) = self.tasks.join_next_with_id().await {
            self.ended(done);
        }
        if let Some(courier) = &self.courier {
            courier.flush(LAST_WORDS).await;
        }
    }

    async fn work(&mut self) {
        if let Some(finding) = unheard(&self.config) {
            tracing::warn!("{}", render(&[finding], false).trim_end());
        }
        self.duty = Some(self.duty().await);
        let shelf = self.shelf().await;
        match store::read::<Told>(&*self.store, TOLD).await {
            Ok(Some((told, _))) => self.told = told,
            Ok(None) => {}
            Err(error) => tracing::warn!("what was told of backups before is not known, and may be told again: {error}"),
        }
        let mut recovered = false;
        loop {
            if !recovered && let Some(runner) = self.runner(&shelf).await {
                runner.recover().await;
                recovered = true;
            }
            let rest = self.look(&shelf).await.max(SHORTEST_REST);
            tokio::select! {
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(done),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Waits until no other process of this node has it.
    async fn duty(&mut self) -> Duty {
        loop {
            match Duty::take(&self.state) {
                Ok(Some(duty)) => {
                    self.fine();
                    return duty;
                }
                Ok(None) => {
                    if self.trouble.replace("another".to_owned()).is_none() {
                        tracing::info!("another Skep of this node saves its volumes; this one waits for its end");
                    }
                    tokio::time::sleep(DUTY).await;
                }
                Err(error) => {
                    self.trouble(format!("{} cannot be used: {error}", self.state.display()));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn shelf(&mut self) -> Shelf {
        loop {
            match Shelf::open(&self.state, self.store.clone()) {
                Ok(shelf) => return shelf,
                Err(error) => self.trouble(error.to_string()),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Looks, begins what is ready, publishes and tells. How long to rest unless something happens.
    async fn look(&mut self, shelf: &Shelf) -> Duration {
        if let Err(why) = self.list().await {
            self.trouble(why);
        } else {
            self.fine();
        }
        let remembered = match self.remembered(shelf).await {
            Ok(remembered) => remembered,
            Err(error) => {
                self.trouble(error.to_string());
                return AGAIN;
            }
        };
        self.tell(&remembered.findings);
        let now = Timestamp::now();
        let busy: Vec<Job> = self.under_way.iter().map(|under_way| under_way.job.clone()).collect();
        for job in ready(&remembered.jobs, &busy, &self.config.backup, now) {
            self.begin(job, shelf).await;
        }
        self.publish(&remembered).await;
        let busy = |job: &&Job| !self.under_way.iter().any(|under_way| under_way.job.key() == job.key());
        let next = remembered.jobs.iter().filter(busy).map(|job| job.due).filter(|due| *due > now).min();
        next.map_or(LONGEST_REST, |due| due.duration_since(now).unsigned_abs()).min(LONGEST_REST)
    }

    async fn list(&mut self) -> Result<(), String> {
        let engine = Engine::connect(&self.config.docker).await.map_err(|error| error.to_string())?;
        let inventory = engine.inventory(self.config.backup.volumes.as_deref()).await.map_err(|error| error.to_string())?;
        let state = self.live.load();
        self.survey = survey(&inventory, &state.snapshot.services, &self.config);
        self.node = inventory.node;
        let courier = |node: &str| Courier::new(&self.config.notify, node);
        self.courier.get_or_insert_with(|| courier(&self.node));
        Ok(())
    }

    async fn remembered(&self, shelf: &Shelf) -> Result<Remembered, crate::backup::shelf::Error> {
        let (runs, confirmed) = (shelf.runs().await?, shelf.confirmed().await?);
        let (subjects, config) = (&self.survey.subjects, &self.config.backup);
        let scene = Scene { subjects, config, runs: &runs, now: Timestamp::now(), confirmed: &confirmed };
        let (jobs, held) = (plan(&scene), held(&scene));
        let findings = self.survey.findings.iter().cloned().chain(unkept(&scene)).collect();
        Ok(Remembered { jobs, held, findings, runs })
    }

    /// Logs what should not be as it is, whenever that changes.
    fn tell(&mut self, findings: &[Diagnostic]) {
        let text = render(findings, false);
        if text == self.findings {
            return;
        }
        match findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Info) => tracing::info!("backups:\n{}", text.trim_end()),
            Some(_) => tracing::warn!("backups:\n{}", text.trim_end()),
            None => {}
        }
        self.findings = text;
    }

    async fn begin(&mut self, job: Job, shelf: &Shelf) {
        let Some(runner) = self.runner(shelf).await else { return self.cannot(job, shelf).await };
        let subject =
            job.volume.as_ref().and_then(|name| self.survey.subjects.iter().find(|subject| subject.volume.name == *name)).cloned();
        let progress = Shown::default();
        let shown = progress.clone();
        let sink: Sink = Arc::new(move |now| *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(now));
        if let Some(courier) = &self.courier {
            courier.began(&job);
        }
        let (stop, doing) = (self.stop.clone(), job.clone());
        let handle = self.tasks.spawn(async move { runner.carry_out(&doing, subject.as_ref(), &sink, &stop).await });
        self.under_way.push(UnderWay { job, id: handle.id(), progress });
    }

    /// Without borg a job fails, which is remembered and told as any failure is.
    async fn cannot(&mut self, job: Job, shelf: &Shelf) {
        let now = Timestamp::now();
        let message = self.trouble.clone().unwrap_or_else(|| "borg is not there".to_owned());
        let run = Run::failed(&job, now, message);
        if let Some(courier) = &self.courier {
            courier.ended(&run);
        }
        if let Err(error) = shelf.note(run).await {
            tracing::error!("how a backup went cannot be remembered: {error}");
        }
    }

    /// Who carries out; `None`: there is no borg, which was said.
    async fn runner(&mut self, shelf: &Shelf) -> Option<Runner> {
        // Where nothing is to be saved, nobody misses borg.
        if self.config.backup.targets.is_empty() {
            return None;
        }
        if self.borg.is_none() {
            let found = Borg::find(&self.config.backup, &self.state).await;
            match found {
                Ok(borg) => self.borg = Some(borg),
                Err(failure) => self.trouble(failure.to_string()),
            }
        }
        Some(Runner {
            config: self.config.backup.clone(),
            docker: self.config.docker.clone(),
            state: self.state.clone(),
            shelf: shelf.clone(),
            borg: self.borg.clone()?,
            program: PathBuf::from(OURSELVES),
        })
    }

    fn ended(&mut self, done: Result<(task::Id, Run), JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        self.under_way.retain(|under_way| under_way.id != id);
        match done {
            Ok((_, run)) => {
                if run.verdict == Verdict::Failed && !self.stop.is_cancelled() {
                    // It may have been upgraded, or removed.
                    self.borg = None;
                }
                if let Some(courier) = &self.courier {
                    courier.ended(&run);
                }
            }
            Err(error) => tracing::error!(%error, "a backup's task broke off; its application is brought back by its guard"),
        }
    }

    async fn publish(&mut self, remembered: &Remembered) {
        let under_way: Vec<(Job, Option<Progress>)> = self.under_way.iter().map(|under_way| (under_way.job.clone(), None)).collect();
        let free = room::of_targets(&self.config.backup).await;
        let now = Timestamp::now();
        let report = standing(&Facts {
            node: &self.node,
            subjects: &self.survey.subjects,
            unprotected: &self.survey.unprotected,
            runs: &remembered.runs,
            jobs: &remembered.jobs,
            under_way: &under_way,
            held: &remembered.held,
            free: &free,
            seen: self.told.seen(),
            config: &self.config.backup,
            now,
        });
        if let Some(courier) = &self.courier {
            let (notices, told) = notices(&self.told, &report, now, &self.config.notify);
            notices.iter().for_each(|notice| courier.send(notice));
            self.remember(told).await;
        }
        let under_way = self.under_way.iter().map(|under_way| (under_way.job.clone(), under_way.progress.clone())).collect();
        let counts = self.courier.as_ref().map(Courier::counts).unwrap_or_default();
        self.standing.publish(report, counts, under_way);
    }

    async fn remember(&mut self, told: Told) {
        let changed = told.differs(&self.told);
        self.told = told;
        if !changed {
            return;
        }
        let version = match self.store.get(TOLD).await {
            Ok(entry) => entry.map(|entry| entry.version),
            Err(error) => return tracing::warn!("what was told of backups cannot be kept: {error}"),
        };
        if let Err(error) = store::write(&*self.store, TOLD, &self.told, version.as_ref()).await {
            tracing::warn!("what was told of backups cannot be kept: {error}");
        }
    }

    fn trouble(&mut self, why: String) {
        if self.trouble.as_ref() != Some(&why) {
            match self.config.backup.targets.is_empty() {
                // Nothing is to be saved: then it is at most a label that is not seen.
                true => tracing::debug!("backups: {why}"),
                false => tracing::error!("backups: {why}"),
            }
            self.trouble = Some(why);
        }
    }

    fn fine(&mut self) {
        if self.trouble.take().is_some() && !self.config.backup.targets.is_empty() {
            tracing::info!("backups: what was in the way is over");
        }
    }
}
