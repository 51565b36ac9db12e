//! The queue of trainings: how many wait and run, and how many may.

use charlstm_store::session::Owner;

use super::{Jobs, JobsError, ListState, Requester, Shared, lock};
use crate::events::State;

/// Number of trainings by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Running trainings: 0 or 1.
    pub running: usize,
    /// Waiting trainings.
    pub queued: usize,
}

impl Jobs {
    /// Returns the number of running and waiting trainings. Does not block.
    pub fn load(&self) -> Load {
        let state = lock(&self.shared.state);
        Load {
            running: usize::from(state.running.is_some()),
            queued: match self.shared.sharing {
                Some(_) => state.count_queued(),
                None => state.queue.len() + state.resuming.len(),
            },
        }
    }

    /// Returns the number of waiting and running trainings of an owner. Does not
    /// block.
    pub fn unfinished_of(&self, owner: &Owner) -> u64 {
        let state = lock(&self.shared.state);
        match self.shared.sharing {
            Some(_) => state.shared_unfinished_of(owner),
            None => state.unfinished_of(owner),
        }
    }
}

impl Shared {
    /// Checks that one more training may wait, or start immediately.
    pub(super) fn check_space_in_queue(
        &self,
        state: &ListState,
        requester: &Requester,
    ) -> Result<(), JobsError> {
        if state.stopping {
            return Err(JobsError::Stopping);
        }
        let limit = self.config.max_queued;
        if self.sharing.is_some() {
            // The shared store counts exactly.
            return match state.count_queued() >= limit {
                true => Err(JobsError::QueueFull { limit }),
                false => Ok(()),
            };
        }
        let waiting = state.queue.len() + state.resuming.len();
        // A training that can start immediately does not wait.
        let idle = state.running.is_none() && waiting == 0;
        if !idle && waiting >= limit {
            return Err(JobsError::QueueFull { limit });
        }
        requester.check_trainings(state)
    }
}

impl ListState {
    /// Number of trainings of an owner that wait or run.
    pub(super) fn unfinished_of(&self, owner: &Owner) -> u64 {
        let resuming = self.resuming.iter().filter_map(|id| self.jobs.get(id));
        let unfinished = self.queue.iter().chain(&self.running).chain(resuming);
        let of_owner = unfinished.filter(|job| job.owner() == owner);
        of_owner.count() as u64
    }

    /// Number of waiting trainings, of this replica or shared.
    fn count_queued(&self) -> usize {
        let jobs = self.jobs.values();
        jobs.filter(|job| job.summary().state == State::Queued)
            .count()
    }

    /// Number of waiting and running shared trainings of an owner.
    fn shared_unfinished_of(&self, owner: &Owner) -> u64 {
        let unfinished = self
            .jobs
            .values()
            .filter(|job| job.owner() == owner && !job.summary().state.has_ended());
        unfinished.count() as u64
    }
}
