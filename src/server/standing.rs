//! How the backups of this node stand, for whoever looks: the metrics, `/backups`, and through it `skep backup status`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backup::courier::Counts;
use crate::backup::standing::{self, Doing, Report};
use crate::backup::{Job, Progress};
use crate::telemetry::backup::BackupsNow;

/// How far a run is; `None`: it has said nothing yet.
pub(super) type Shown = Arc<Mutex<Option<Progress>>>;

/// How the backups of this node stand: as of the last look, and what is under way right now.
#[derive(Clone, Default)]
pub struct Standing(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    report: Report,
    counts: Counts,
    under_way: Vec<(Job, Shown)>,
}

impl Standing {
    /// As of this look.
    pub(super) fn publish(&self, report: Report, counts: Counts, under_way: Vec<(Job, Shown)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Known { report, counts, under_way };
    }

    /// For whoever looks.
    pub fn now(&self) -> BackupsNow {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = known.report.clone();
        for (job, progress) in &known.under_way {
            let now = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let is_its =
                |standing: &&mut standing::Standing| job.volume.as_ref() == Some(&standing.volume) && job.target == standing.target;
            if let Some(standing) = report.volumes.iter_mut().find(is_its) {
                standing.doing = Some(Doing { task: job.task, progress: now });
            }
        }
        BackupsNow { report, delivered: known.counts.delivered, lost: known.counts.lost }
    }
}
