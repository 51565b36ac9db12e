//! The list of trainings of a replica: it follows the shared store. `claims`
//! runs what the replica claims there, and `requests` asks the store for every
//! change.

mod claims;
mod copies;
mod requests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::claims::renew;
use super::{Jobs, JobsError, Shared, lock};
use crate::job::Job;
use crate::shared::{SharedState, SharedTrainings};

pub(super) use self::copies::clear;

/// Time between two looks at what other replicas have changed, if there may be
/// something.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two renewals of a claim.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);

/// The shared store, as one replica sees it.
pub(super) struct Sharing {
    pub(super) trainings: Arc<dyn SharedTrainings>,
    /// What the list has. Held while it is refreshed.
    revision: Mutex<u64>,
}

impl Sharing {
    pub(super) fn new(trainings: Arc<dyn SharedTrainings>) -> Self {
        Self {
            trainings,
            revision: Mutex::default(),
        }
    }
}

impl Jobs {
    /// Reads what other replicas have changed; does nothing if nothing is
    /// shared. Blocks on the network.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn refresh(&self) -> Result<(), JobsError> {
        match &self.shared.sharing {
            Some(sharing) => self.shared.refresh(sharing),
            None => Ok(()),
        }
    }
}

impl Shared {
    /// Updates the list to the shared store.
    pub(super) fn refresh(&self, sharing: &Sharing) -> Result<(), JobsError> {
        let mut revision = lock(&sharing.revision);
        let changes = sharing.trainings.changes(*revision)?;
        let known = |id: &str| lock(&self.state).jobs.get(id).cloned();
        let mut changed = Vec::new();
        for training in changes.trainings {
            if training.state == SharedState::Deleted {
                lock(&self.state).jobs.remove(&training.id);
                continue;
            }
            let job = match known(&training.id) {
                Some(job) => job,
                None => {
                    let folder = self.config.folder.join(&training.id);
                    match Job::shared(training.metadata.as_bytes(), folder) {
                        Ok(job) => Arc::new(job),
                        Err(error) => {
                            tracing::error!(%error, id = training.id, "a shared training cannot be read; it is ignored");
                            continue;
                        }
                    }
                }
            };
            job.set_checkpoint_step(training.checkpoint_step);
            changed.push((job, training.state));
        }
        for (id, event) in changes.events {
            let new = changed.iter().find(|(job, _)| job.id() == id);
            let job = new.map(|(job, _)| Arc::clone(job)).or_else(|| known(&id));
            if let Some(job) = job {
                job.history().follow([event]);
            }
        }
        let mut state = lock(&self.state);
        for (job, shared_state) in changed {
            if !job.summary().state.has_ended() {
                match shared_state {
                    SharedState::Queued => job.history().set_queued(),
                    SharedState::Running => job.history().set_running(),
                    SharedState::Ended | SharedState::Deleted => {}
                }
            }
            state.jobs.entry(job.id().to_owned()).or_insert(job);
        }
        drop(state);
        *revision = changes.revision;
        Ok(())
    }

    fn refresh_if_changed(&self, sharing: &Sharing) -> Result<(), String> {
        let revision = *lock(&sharing.revision);
        match sharing.trainings.may_have_changed(revision) {
            true => self.refresh(sharing).map_err(|error| error.to_string()),
            false => Ok(()),
        }
    }

    /// Follows the shared store and renews the claim of this replica, until the
    /// training thread has ended. Runs on a thread of its own.
    pub(super) fn follow(&self, sharing: &Sharing) {
        let mut has_failed = false;
        let mut renewed = Instant::now();
        loop {
            let state = lock(&self.state);
            let (state, _) = self
                .changed
                .wait_timeout_while(state, SYNC_INTERVAL, |state| !state.thread_ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.thread_ended {
                return;
            }
            let running = state.running.clone();
            drop(state);
            let mut followed = self.refresh_if_changed(sharing);
            if renewed.elapsed() >= RENEW_INTERVAL {
                renewed = Instant::now();
                if let Some(job) = running {
                    followed = followed.and(renew(&job).map_err(|error| error.to_string()));
                }
            }
            match followed {
                Ok(()) => {
                    if std::mem::take(&mut has_failed) {
                        tracing::info!("the shared trainings can be read again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(
                            error,
                            "changes of the shared trainings are not seen at the moment"
                        );
                    }
                }
            }
        }
    }
}
