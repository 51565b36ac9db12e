//! What a replica asks the shared store for its clients: to start, cancel, resume
//! and delete trainings.

use std::sync::Arc;

use charlstm_store::session::Owner;

use super::{Sharing, lock};
use crate::checkpoint::Verified;
use crate::events::{EventKind, State};
use crate::job::{Job, NewJob, StopRequest};
use crate::jobs::resumption::{check_ended_without_success, not_resumable};
use crate::jobs::{JobsError, Requester, Shared};
use crate::shared::{NewTraining, QueueLimits, SharedTrainingsError};

impl Shared {
    /// Stores a new training for all replicas.
    pub(in crate::jobs) fn start_shared(
        &self,
        sharing: &Sharing,
        new: &NewJob<'_>,
        requester: &Requester,
    ) -> Result<Arc<Job>, JobsError> {
        let folder = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&self.config.folder)?;
        let device = self.context.learners.device();
        let (metadata, accepted, tokens) = new.write_shared(folder.path(), device)?;
        let stored = sharing.trainings.insert(&NewTraining {
            id: new.id,
            metadata: &metadata,
            accepted,
            tokens: &tokens,
            limits: self.queue_limits(requester, &requester.publisher.owner),
        });
        stored.map_err(|error| self.of_shared(error, new.id, requester))?;
        self.refresh(sharing)?;
        // It can begin at once.
        self.changed.notify_all();
        self.get(&lock(&self.state), new.id)
    }

    /// Asks whichever replica has the training to end it.
    pub(in crate::jobs) fn cancel_shared(
        &self,
        sharing: &Sharing,
        job: &Arc<Job>,
    ) -> Result<(), JobsError> {
        if job.run().is_some() && job.stop_request() == StopRequest::Nothing {
            // By this replica: at once.
            job.request_stop(StopRequest::Cancel);
        }
        let finished = job.cancelled_while_waiting();
        sharing.trainings.cancel(job.id(), finished)?;
        self.refresh(sharing)
    }

    /// Lets a training that has ended wait for a replica again.
    pub(in crate::jobs) fn resume_shared(
        &self,
        sharing: &Sharing,
        id: &str,
        requester: &Requester,
    ) -> Result<Arc<Job>, JobsError> {
        self.refresh(sharing)?;
        let job = self.get(&lock(&self.state), id)?;
        check_ended_without_success(&job)?;
        let run = job.summary().run.saturating_add(1);
        let from = Verified {
            step: job.checkpoint_step().unwrap_or(0),
            // What the checkpoint was computed with is known to the replica that
            // reads it, which reports it.
            instructions: String::new(),
        };
        let resumed = self.resumed(&job, run, from, sharing.trainings.replica());
        let resumed = EventKind::Resumed(resumed);
        let limits = self.queue_limits(requester, job.owner());
        match sharing.trainings.resume(id, resumed, limits) {
            Err(SharedTrainingsError::NotEnded) => {
                return Err(not_resumable(id, "is being resumed already"));
            }
            other => other.map_err(|error| self.of_shared(error, id, requester))?,
        }
        self.refresh(sharing)?;
        self.changed.notify_all();
        Ok(job)
    }

    /// Deletes a training that has ended, for all replicas.
    pub(in crate::jobs) fn delete_shared(
        &self,
        sharing: &Sharing,
        id: &str,
    ) -> Result<Arc<Job>, JobsError> {
        let job = self.get(&lock(&self.state), id)?;
        match sharing.trainings.delete(id) {
            Err(SharedTrainingsError::NotEnded) => {
                let state = match job.summary().state {
                    State::Queued => "is waiting for its turn",
                    _ => "is running",
                };
                let id = id.to_owned();
                return Err(JobsError::NotDeletable { id, state });
            }
            Err(SharedTrainingsError::NotFound) => return Err(JobsError::not_found(id)),
            other => other?,
        }
        lock(&self.state).jobs.remove(id);
        tracing::info!(id, "a training was deleted");
        Ok(job)
    }

    /// Deletes the oldest ended trainings beyond the maximum, for all replicas.
    pub(in crate::jobs) fn delete_old_shared(&self, sharing: &Sharing, ids: &[String]) {
        for id in ids {
            match sharing.trainings.delete(id) {
                Ok(()) => tracing::info!(id, "an old training was deleted"),
                // Another replica was faster, or it was resumed.
                Err(SharedTrainingsError::NotFound | SharedTrainingsError::NotEnded) => {}
                Err(error) => {
                    tracing::warn!(%error, id, "an old training could not be deleted");
                }
            }
        }
    }

    fn queue_limits<'a>(&self, requester: &Requester, owner: &'a Owner) -> QueueLimits<'a> {
        QueueLimits {
            max_queued: self.config.max_queued,
            owner,
            max_of_owner: requester.max_trainings,
        }
    }

    fn of_shared(&self, error: SharedTrainingsError, id: &str, requester: &Requester) -> JobsError {
        match error {
            SharedTrainingsError::QueueFull => JobsError::QueueFull {
                limit: self.config.max_queued,
            },
            SharedTrainingsError::Quota => JobsError::TrainingQuota {
                limit: requester.max_trainings.unwrap_or_default(),
            },
            SharedTrainingsError::NotFound => JobsError::not_found(id),
            error => error.into(),
        }
    }
}
