//! How a training that has ended without success continues: it reserves a place
//! in the queue, its files are verified, and it is reported that it continues.

use std::sync::Arc;

use super::{Jobs, JobsError, Requester, Shared, lock};
use crate::checkpoint::{LoadError, Verified};
use crate::events::{EventKind, Resumed, State};
use crate::job::{Job, Resumability, StopRequest};

impl Jobs {
    /// Queues a training that has ended without success, to continue from its
    /// last checkpoint, or from the beginning if none was ever saved.
    ///
    /// # Errors
    /// There is no such training; it is waiting, running or has succeeded; its
    /// checkpoints or its corpus are damaged; the queue is full; the requester's
    /// quota of trainings is reached; or the disk does not accept the event that
    /// reports it.
    pub fn resume(&self, id: &str, requester: &Requester) -> Result<Arc<Job>, JobsError> {
        let shared = &self.shared;
        shared.context.learners.check_supported()?;
        if let Some(sharing) = &shared.sharing {
            return shared.resume_shared(sharing, id, requester);
        }
        let job = shared.reserve_resume(id, requester)?;
        let resumed = shared.report_resume(&job);
        shared.complete_resume(&job, resumed)?;
        Ok(job)
    }

    /// Resumes all interrupted trainings, oldest first, as far as the queue has
    /// space. A shared training is never interrupted: another replica continues.
    /// A training that cannot be resumed is logged.
    pub fn resume_interrupted(&self) {
        for job in self.list().into_iter().rev() {
            if job.summary().state == State::Interrupted
                && let Err(error) = self.resume(job.id(), &Requester::admin())
            {
                tracing::warn!(%error, id = job.id(), "a training could not be resumed");
            }
        }
    }
}

impl Shared {
    /// Reserves a place in the queue for a training to resume. Until
    /// [`Self::complete_resume`], it is neither deleted nor resumed again.
    pub(super) fn reserve_resume(
        &self,
        id: &str,
        requester: &Requester,
    ) -> Result<Arc<Job>, JobsError> {
        let mut state = lock(&self.state);
        let job = self.get(&state, id)?;
        if state.resuming.contains(id) {
            return Err(not_resumable(id, "is being resumed already"));
        }
        check_ended_without_success(&job)?;
        self.check_space_in_queue(&state, requester)?;
        state.resuming.insert(id.to_owned());
        job.request_stop(StopRequest::Nothing);
        Ok(job)
    }

    /// Verifies that a training can be resumed, and reports that it is.
    pub(super) fn report_resume(&self, job: &Job) -> Result<(), JobsError> {
        let id = || job.id().to_owned();
        if job.resumability() == Resumability::Impossible {
            return Err(JobsError::NoCorpus { id: id() });
        }
        let verified = match job.checkpoints().verify() {
            Ok(verified) => verified,
            Err(LoadError::Missing) => Verified::default(),
            Err(reason) => return Err(JobsError::NoCheckpoint { id: id(), reason }),
        };
        let run = job.summary().run.saturating_add(1);
        let resumed = self.resumed(job, run, verified, "");
        job.history().append_durable(EventKind::Resumed(resumed))?;
        job.forget_outcome();
        Ok(())
    }

    /// Returns the event of a run of this server that continues from a
    /// checkpoint.
    pub(super) fn resumed(&self, job: &Job, run: u32, from: Verified, replica: &str) -> Resumed {
        let learners = &self.context.learners;
        let precision = job.metadata().spec.precision;
        let instructions = learners.instructions(precision);
        let message = if from.instructions.is_empty() || from.instructions == instructions {
            String::new()
        } else {
            format!(
                "the checkpoint was computed with {} and the training continues with \
                 {instructions}: it is the same training, but the last bits of its weights differ \
                 from those without the interruption",
                from.instructions
            )
        };
        Resumed {
            run,
            step: from.step,
            replica: replica.to_owned(),
            device: learners.device(),
            threads: u32::try_from(learners.threads()).unwrap_or(u32::MAX),
            precision: precision.name().to_owned(),
            instructions,
            message,
        }
    }

    /// Moves a training that was resumed to the queue, or ends it if it was
    /// cancelled or the server stopped meanwhile.
    pub(super) fn complete_resume(
        &self,
        job: &Arc<Job>,
        resumed: Result<(), JobsError>,
    ) -> Result<(), JobsError> {
        let mut state = lock(&self.state);
        state.resuming.remove(job.id());
        resumed?;
        if state.stopping {
            drop(state);
            job.interrupt(job.resumability());
            return Err(JobsError::Stopping);
        }
        if job.stop_request() == StopRequest::Cancel {
            drop(state);
            job.cancel_waiting();
            return Ok(());
        }
        state.queue.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

/// Checks that a training has ended in a state from which it can be resumed.
pub(super) fn check_ended_without_success(job: &Job) -> Result<(), JobsError> {
    let state = match job.summary().state {
        State::Cancelled | State::Failed | State::Interrupted => return Ok(()),
        State::Queued => "is waiting for its turn",
        State::Running => "is running",
        State::Succeeded => "has succeeded",
    };
    Err(not_resumable(job.id(), state))
}

pub(super) fn not_resumable(id: &str, state: &'static str) -> JobsError {
    let id = id.to_owned();
    JobsError::NotResumable { id, state }
}
