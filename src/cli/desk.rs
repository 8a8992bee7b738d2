//! What commands about backups work with: the settings, what Docker says of services and of this node's volumes, what was done before.
//! They stand beside the running edge and share its state directory.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::backup::borg::{Borg, OURSELVES};
use crate::backup::engine::Engine;
use crate::backup::plan::{Held, Scene, held, plan, unkept};
use crate::backup::runner::Runner;
use crate::backup::shelf::Shelf;
use crate::backup::survey::{Survey, survey};
use crate::backup::{Job, Runs, Subject};
use crate::config::Config;
use crate::diagnostic::{Diagnostic, nearest};
use crate::provider::docker;
use crate::store::keyed::Keyed;

use super::{Failure, output};

/// The plan as of now.
pub(super) struct Outlook {
    /// The next of each series.
    pub jobs: Vec<Job>,
    /// Repositories that wait for their key to be kept elsewhere.
    pub held: Vec<Held>,
    pub findings: Vec<Diagnostic>,
}

/// All of it, as of now.
pub(super) struct Desk {
    pub config: Config,
    pub state: PathBuf,
    pub shelf: Shelf,
    pub node: String,
    pub survey: Survey,
    pub runs: Runs,
    pub now: Timestamp,
}

impl Desk {
    /// Asks Docker and reads what is kept.
    ///
    /// # Errors
    /// There is no engine, or nowhere to remember anything.
    pub async fn open(config: Config) -> Result<Desk, Failure> {
        let (state, shelf) = shelf(&config)?;
        if !config.docker.enabled {
            return Err(Failure::said("docker.enabled is false, and volumes are Docker's: there is nothing to save"));
        }
        let snapshot = docker::once(&config.docker).await.map_err(|error| Failure::said(format!("Docker cannot be asked: {error}")))?;
        let engine = Engine::connect(&config.docker).await.map_err(Failure::said)?;
        let inventory = engine.inventory(config.backup.volumes.as_deref()).await.map_err(Failure::said)?;
        let survey = survey(&inventory, &snapshot.services, &config);
        let runs = shelf.runs().await.map_err(Failure::said)?;
        Ok(Desk { config, state, shelf, node: inventory.node, survey, runs, now: Timestamp::now() })
    }

    /// What is to be done, what waits, and what should not be as it is.
    pub async fn plan(&self) -> Result<Outlook, Failure> {
        let confirmed = self.shelf.confirmed().await.map_err(Failure::said)?;
        let scene =
            Scene { subjects: &self.survey.subjects, config: &self.config.backup, runs: &self.runs, now: self.now, confirmed: &confirmed };
        let findings = self.survey.findings.iter().cloned().chain(unkept(&scene)).collect();
        Ok(Outlook { jobs: plan(&scene), held: held(&scene), findings })
    }

    /// Who carries out.
    ///
    /// # Errors
    /// borg is not there.
    pub async fn runner(&self) -> Result<Runner, Failure> {
        let borg = Borg::find(&self.config.backup, &self.state).await.map_err(Failure::said)?;
        Ok(Runner {
            config: self.config.backup.clone(),
            docker: self.config.docker.clone(),
            state: self.state.clone(),
            shelf: self.shelf.clone(),
            borg,
            program: PathBuf::from(OURSELVES),
        })
    }

    /// The subjects with these names; all without any.
    ///
    /// # Errors
    /// One of them is none, with what to do about it.
    pub fn subjects(&self, names: &[String]) -> Result<Vec<&Subject>, Failure> {
        if names.is_empty() {
            return Ok(self.survey.subjects.iter().collect());
        }
        names.iter().map(|name| self.subject(name)).collect()
    }

    fn subject(&self, name: &str) -> Result<&Subject, Failure> {
        if let Some(subject) = self.survey.subjects.iter().find(|subject| subject.volume.name == name) {
            return Ok(subject);
        }
        if let Some(entry) = self.survey.unprotected.iter().find(|entry| entry.what == format!("volume {name}")) {
            return Err(Failure::said(format!("the volume {name} is not to be saved: {}", entry.why)));
        }
        let near = nearest(name, self.survey.subjects.iter().map(|subject| subject.volume.name.as_str()));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        Err(Failure::said(format!("this node has no volume {name}{hint}")))
    }

    /// The targets with this name; all without one.
    ///
    /// # Errors
    /// There is none, or nowhere to save to at all.
    pub fn targets(&self, name: Option<&str>) -> Result<Vec<&crate::config::backup::Target>, Failure> {
        let all = &self.config.backup.targets;
        if all.is_empty() {
            return Err(Failure::said("there is no place to save to: write targets = [\"/srv/backups\"] in [backup] of the configuration"));
        }
        let Some(name) = name else { return Ok(all.iter().collect()) };
        match all.iter().find(|target| target.name == name) {
            Some(target) => Ok(vec![target]),
            None => {
                let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
                Err(Failure::said(format!(
                    "there is no target {name}; there {} {}",
                    if names.len() == 1 { "is" } else { "are" },
                    names.join(", ")
                )))
            }
        }
    }
}

/// Where backups are remembered: in the same store as the running edge's.
pub(super) fn shelf(config: &Config) -> Result<(PathBuf, Shelf), Failure> {
    let state = config.state.directory.clone();
    let state =
        state.ok_or_else(|| Failure::said("state.directory is off, and backups have to be remembered somewhere: name a directory"))?;
    let (store, findings) = Keyed::open(&state).map_err(Failure::said)?;
    if !findings.is_empty() {
        output::note(crate::diagnostic::render(&findings, output::color_on_stderr()).trim_end());
    }
    let shelf = Shelf::open(&state, Arc::new(store)).map_err(Failure::said)?;
    Ok((state, shelf))
}
