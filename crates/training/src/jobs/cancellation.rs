//! How a training is cancelled: while it waits, while it runs, and while it is
//! being resumed.

use std::sync::Arc;

use super::{Jobs, JobsError, lock};
use crate::job::{Job, StopRequest};

impl Jobs {
    /// Asks a training to end. A waiting one ends immediately, a running one
    /// saves a checkpoint first. Has no effect on one that has ended.
    ///
    /// # Errors
    /// There is no such training.
    pub fn cancel(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        self.cancel_if(id, |_, _| true)
    }

    /// As [`Self::cancel`], unless the training has been resumed since that run
    /// (see [`crate::events::Summary::run`]) began.
    ///
    /// # Errors
    /// There is no such training.
    pub fn cancel_run(&self, id: &str, run: u32) -> Result<Arc<Job>, JobsError> {
        // While a training is being resumed, its last run is over.
        self.cancel_if(id, |job, is_resuming| {
            !is_resuming && job.summary().run == run
        })
    }

    fn cancel_if(
        &self,
        id: &str,
        condition: impl FnOnce(&Job, bool) -> bool,
    ) -> Result<Arc<Job>, JobsError> {
        let mut state = lock(&self.shared.state);
        let job = self.shared.get(&state, id)?;
        let is_resuming = state.resuming.contains(id);
        if !condition(&job, is_resuming) {
            return Ok(job);
        }
        if let Some(sharing) = &self.shared.sharing {
            drop(state);
            self.shared.cancel_shared(sharing, &job)?;
            return Ok(job);
        }
        if let Some(place) = state.queue.iter().position(|other| other.id() == id) {
            state.queue.remove(place);
            drop(state);
            job.cancel_waiting();
        } else if (is_resuming || state.running.as_ref().is_some_and(|other| other.id() == id))
            && job.stop_request() == StopRequest::Nothing
        {
            job.request_stop(StopRequest::Cancel);
        }
        Ok(job)
    }
}
