//! A replica that cannot reach database and object store.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use charlstm_training::events::{Event, EventKind, Finished};
use charlstm_training::shared::{
    Claim, NewTraining, QueueLimits, SavedCheckpoint, SharedTrainings, SharedTrainingsError,
    TrainingChanges,
};

use crate::trainings::{Outcome, ReplicaTrainings};

/// The trainings of a replica that can be cut off from database and object store.
pub(super) struct CutOff {
    trainings: ReplicaTrainings,
    is_cut_off: AtomicBool,
}

impl CutOff {
    pub(super) fn new(trainings: ReplicaTrainings) -> Self {
        Self {
            trainings,
            is_cut_off: AtomicBool::new(false),
        }
    }

    fn check(&self) -> Outcome<()> {
        match self.is_cut_off.load(Ordering::Acquire) {
            true => Err(SharedTrainingsError::Unavailable("cut off".to_owned())),
            false => Ok(()),
        }
    }

    pub(super) fn set(&self, is_cut_off: bool) {
        self.is_cut_off.store(is_cut_off, Ordering::Release);
    }
}

impl SharedTrainings for CutOff {
    fn replica(&self) -> &str {
        self.trainings.replica()
    }
    fn changes(&self, revision: u64) -> Outcome<TrainingChanges> {
        self.check()?;
        self.trainings.changes(revision)
    }
    fn insert(&self, training: &NewTraining<'_>) -> Outcome<()> {
        self.check()?;
        self.trainings.insert(training)
    }
    fn claim(&self) -> Outcome<Option<Claim>> {
        self.check()?;
        self.trainings.claim()
    }
    fn renew(&self, claim: &Claim) -> Outcome<bool> {
        self.check()?;
        self.trainings.renew(claim)
    }
    fn release(&self, claim: &Claim) -> Outcome<()> {
        self.check()?;
        self.trainings.release(claim)
    }
    fn append(&self, claim: &Claim, events: &[Arc<Event>]) -> Outcome<()> {
        self.check()?;
        self.trainings.append(claim, events)
    }
    fn keep_only(&self, claim: &Claim, kept: &[u64]) -> Outcome<()> {
        self.check()?;
        self.trainings.keep_only(claim, kept)
    }
    fn save_checkpoint(&self, claim: &Claim, checkpoint: &SavedCheckpoint<'_>) -> Outcome<()> {
        self.check()?;
        self.trainings.save_checkpoint(claim, checkpoint)
    }
    fn save_event_file(&self, claim: &Claim, file: &Path) -> Outcome<()> {
        self.check()?;
        self.trainings.save_event_file(claim, file)
    }
    fn fetch_checkpoints(&self, id: &str, newest: &Path, previous: &Path) -> Outcome<()> {
        self.check()?;
        self.trainings.fetch_checkpoints(id, newest, previous)
    }
    fn fetch_tokens(&self, id: &str, path: &Path) -> Outcome<()> {
        self.check()?;
        self.trainings.fetch_tokens(id, path)
    }
    fn cancel(&self, id: &str, finished: Finished) -> Outcome<()> {
        self.check()?;
        self.trainings.cancel(id, finished)
    }
    fn resume(&self, id: &str, resumed: EventKind, limits: QueueLimits<'_>) -> Outcome<()> {
        self.check()?;
        self.trainings.resume(id, resumed, limits)
    }
    fn delete(&self, id: &str) -> Outcome<()> {
        self.check()?;
        self.trainings.delete(id)
    }
    fn delete_files(&self, id: &str) -> Outcome<()> {
        self.check()?;
        self.trainings.delete_files(id)
    }
}
