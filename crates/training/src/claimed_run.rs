//! A shared training that this replica has claimed: its events and checkpoints
//! go to the shared store under the epoch of the claim.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::CheckpointSink;
use super::events::Event;
use super::history::{EventSink, History};
use super::shared::{Claim, SavedCheckpoint, SharedTrainings, SharedTrainingsError};
use super::tensorboard;

/// A claimed training.
pub(super) struct ClaimedRun {
    trainings: Arc<dyn SharedTrainings>,
    claim: Claim,
    is_lost: AtomicBool,
}

/// Where the checkpoints of a claimed training go.
pub(super) struct RunCheckpoints {
    /// Of the training, in the folder of the replica.
    pub(super) folder: PathBuf,
    pub(super) run: Arc<ClaimedRun>,
    pub(super) history: Arc<History>,
}

impl ClaimedRun {
    pub(super) fn new(trainings: Arc<dyn SharedTrainings>, claim: Claim) -> Self {
        Self {
            trainings,
            claim,
            is_lost: AtomicBool::new(false),
        }
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whether another replica has taken over. What this one does has no effect
    /// then.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Renews the claim; returns whether the training is to be cancelled.
    pub(super) fn renew(&self) -> io::Result<bool> {
        self.observe(self.trainings.renew(&self.claim))
    }

    /// Lets another replica continue.
    pub(super) fn release(&self) -> io::Result<()> {
        self.observe(self.trainings.release(&self.claim))
    }

    /// Stores the event files for TensorBoard, if there are any, as they are now, unless
    /// another replica has taken over. A failure is logged: the training does not need them.
    pub(super) fn save_event_files(&self, folder: &Path) {
        if self.is_lost() {
            return;
        }
        let saved = tensorboard::event_files(folder).and_then(|files| {
            for file in files {
                self.trainings.save_event_file(&self.claim, &file)?;
            }
            Ok(())
        });
        if let Err(error) = saved {
            let id = &self.claim.id;
            tracing::warn!(%error, id, "events for TensorBoard are not in the object store");
        }
    }

    fn observe<T>(&self, result: Result<T, SharedTrainingsError>) -> io::Result<T> {
        if matches!(result, Err(SharedTrainingsError::Fenced))
            && !self.is_lost.swap(true, Ordering::AcqRel)
        {
            let Claim { id, epoch } = &self.claim;
            tracing::warn!(id, epoch, "another replica has taken over this training");
        }
        result.map_err(io::Error::from)
    }
}

impl EventSink for ClaimedRun {
    fn append(&self, events: &[Arc<Event>]) -> io::Result<()> {
        self.observe(self.trainings.append(&self.claim, events))
    }

    fn keep_only(&self, sequences: &[u64]) -> io::Result<()> {
        self.observe(self.trainings.keep_only(&self.claim, sequences))
    }
}

impl CheckpointSink for RunCheckpoints {
    fn store(&self, checkpoint: &SavedCheckpoint<'_>) -> io::Result<()> {
        // What the checkpoint includes must have been reported: it is not
        // computed again after another replica has taken over.
        self.history.flush()?;
        let run = &self.run;
        run.observe(run.trainings.save_checkpoint(&run.claim, checkpoint))?;
        run.save_event_files(&self.folder);
        Ok(())
    }
}

impl From<SharedTrainingsError> for io::Error {
    fn from(error: SharedTrainingsError) -> Self {
        match error {
            SharedTrainingsError::Local(error) => error,
            error => Self::other(error),
        }
    }
}
