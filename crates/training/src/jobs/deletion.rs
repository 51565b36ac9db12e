//! How trainings that have ended are deleted: by a request, and the oldest ones
//! beyond a maximum.

use std::fs;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Jobs, JobsError, ListState, Shared, age_order, folder, lock};
use crate::events::State;
use crate::job::Job;

/// Maximum time that a deletion waits for a training that has just ended: far
/// longer than its last files take.
const END_PATIENCE: Duration = Duration::from_secs(10);

impl Jobs {
    /// Deletes a training that has ended, with all its files. Its watchers keep
    /// its events. Returns the training as it was.
    ///
    /// # Errors
    /// There is no such training, it is waiting, running or being resumed, or
    /// the disk fails; then the training stays.
    pub fn delete(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        let shared = &self.shared;
        if let Some(sharing) = &shared.sharing {
            return shared.delete_shared(sharing, id);
        }
        let state = lock(&shared.state);
        let job = shared.get(&state, id)?;
        let is_running =
            |state: &ListState| state.running.as_ref().is_some_and(|job| job.id() == id);
        // For a moment after its last event, the thread still has its files.
        let (mut state, _) = shared
            .changed
            .wait_timeout_while(state, END_PATIENCE, |state| {
                is_running(state) && job.summary().state.has_ended()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let not_deletable = |state| {
            let id = id.to_owned();
            Err(JobsError::NotDeletable { id, state })
        };
        if state.resuming.contains(id) {
            return not_deletable("is being resumed");
        }
        match job.summary().state {
            State::Queued => return not_deletable("is waiting for its turn"),
            _ if is_running(&state) => return not_deletable("is running"),
            State::Running => return not_deletable("is running"),
            State::Succeeded | State::Cancelled | State::Failed | State::Interrupted => {}
        }
        let removed = folder::remove(&shared.config.folder, job.folder(), id)?;
        state.jobs.remove(id);
        drop(state);
        // The training is gone; what this leaves, the next start removes.
        if let Err(error) = fs::remove_dir_all(&removed) {
            tracing::warn!(%error, id, "the files of a deleted training stay until the next start");
        }
        tracing::info!(id, "a training was deleted");
        Ok(job)
    }
}

impl Shared {
    /// Deletes the oldest ended trainings beyond the maximum.
    pub(super) fn delete_old(&self) {
        let mut state = lock(&self.state);
        let has_ended = |job: &Job| match job.summary().state {
            State::Succeeded | State::Cancelled | State::Failed => true,
            State::Queued | State::Running | State::Interrupted => false,
        };
        let is_current = |job: &Job| {
            state.resuming.contains(job.id())
                || state
                    .running
                    .as_ref()
                    .is_some_and(|running| running.id() == job.id())
        };
        let mut ended: Vec<Arc<Job>> = state
            .jobs
            .values()
            .filter(|job| has_ended(job) && !is_current(job))
            .cloned()
            .collect();
        ended.sort_by_key(|job| age_order(job));
        let surplus = ended.len().saturating_sub(self.config.keep_ended);
        ended.truncate(surplus);
        if let Some(sharing) = &self.sharing {
            drop(state);
            let ids: Vec<String> = ended.iter().map(|job| job.id().to_owned()).collect();
            return self.delete_old_shared(sharing, &ids);
        }
        for job in &ended {
            state.jobs.remove(job.id());
        }
        drop(state);
        for job in ended {
            tracing::info!(id = job.id(), "an old training is deleted");
            if let Err(error) = fs::remove_dir_all(job.folder()) {
                tracing::warn!(%error, id = job.id(), "an old training could not be deleted");
            }
        }
    }
}
