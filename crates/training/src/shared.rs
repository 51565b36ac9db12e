//! Trainings that several replicas share: what `jobs` needs of the database and
//! the object store that hold them.
//!
//! A training belongs to the replica that has claimed it, under an epoch that
//! grows with every claim. Whatever a replica does under an older epoch has no
//! effect: a replica that was suspended cannot disturb the one that has taken
//! over.

use std::io;
use std::path::Path;
use std::sync::Arc;

use charlstm_store::session::Owner;
use thiserror::Error;

use super::events::{Event, EventKind, Finished};

/// The authoritative store of trainings that several replicas share. Methods block
/// on the network unless they say otherwise.
pub trait SharedTrainings: Send + Sync {
    /// Name of this replica.
    fn replica(&self) -> &str;

    /// Returns whether something may have changed after `revision`. Does not block.
    fn may_have_changed(&self, _revision: u64) -> bool {
        true
    }

    /// Returns whether there may be a training to claim that [`Self::changes`] does not
    /// report: one whose replica has not renewed its claim in time. Does not block.
    fn may_be_waiting(&self) -> bool {
        true
    }

    /// Returns every training that has changed after `revision`, and every event
    /// that was added. Revision 0 is before every change.
    ///
    /// # Errors
    /// `Unavailable`.
    fn changes(&self, revision: u64) -> Result<TrainingChanges, SharedTrainingsError>;

    /// Stores a new training, which waits from then on.
    ///
    /// # Errors
    /// `QueueFull`, `Quota`, `Unavailable`, `Local`. There is no such training
    /// then.
    fn insert(&self, training: &NewTraining<'_>) -> Result<(), SharedTrainingsError>;

    /// Claims the training that has waited longest, or one whose replica has not
    /// renewed its claim in time; `None` if there is none.
    ///
    /// # Errors
    /// `Unavailable`.
    fn claim(&self) -> Result<Option<Claim>, SharedTrainingsError>;

    /// Renews a claim. Must be called every few seconds. Returns whether the
    /// training is to be cancelled.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`.
    fn renew(&self, claim: &Claim) -> Result<bool, SharedTrainingsError>;

    /// Gives a claim back: the training waits again, in its old place.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`.
    fn release(&self, claim: &Claim) -> Result<(), SharedTrainingsError>;

    /// Adds events of a claimed training. If the last one is its end, the claim
    /// ends as well. Events that are there already are not added again.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`.
    fn append(&self, claim: &Claim, events: &[Arc<Event>]) -> Result<(), SharedTrainingsError>;

    /// Deletes the events of a claimed training but for those with the sequence
    /// numbers `kept`.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`.
    fn keep_only(&self, claim: &Claim, kept: &[u64]) -> Result<(), SharedTrainingsError>;

    /// Stores a checkpoint of a claimed training as the newest. The one before
    /// it is kept as the previous one, unless it `replaces` that one.
    ///
    /// # Errors
    /// `Fenced`, `Unavailable`, `Local`.
    fn save_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &SavedCheckpoint<'_>,
    ) -> Result<(), SharedTrainingsError>;

    /// Stores an event file for TensorBoard of a claimed training, or replaces it if the
    /// same claim has stored a file of this name.
    ///
    /// # Errors
    /// `Unavailable`, `Local`.
    fn save_event_file(&self, claim: &Claim, file: &Path) -> Result<(), SharedTrainingsError>;

    /// Writes the newest checkpoint and the previous one to two paths. A file
    /// whose checkpoint does not exist is not created.
    ///
    /// # Errors
    /// `NotFound` about the training, `Unavailable`, `Local`.
    fn fetch_checkpoints(
        &self,
        id: &str,
        newest: &Path,
        previous: &Path,
    ) -> Result<(), SharedTrainingsError>;

    /// Writes the token ids of the corpus to a path.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Local`.
    fn fetch_tokens(&self, id: &str, path: &Path) -> Result<(), SharedTrainingsError>;

    /// Ends a waiting training with `finished`, or asks the replica that runs it
    /// to cancel it. Has no effect on one that has ended.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    fn cancel(&self, id: &str, finished: Finished) -> Result<(), SharedTrainingsError>;

    /// Lets a training that has ended wait again, with `resumed` as its next
    /// event.
    ///
    /// # Errors
    /// `NotFound`, `NotEnded`, `QueueFull`, `Quota`, `Unavailable`.
    fn resume(
        &self,
        id: &str,
        resumed: EventKind,
        limits: QueueLimits<'_>,
    ) -> Result<(), SharedTrainingsError>;

    /// Deletes a training that has ended.
    ///
    /// # Errors
    /// `NotFound`, `NotEnded`, `Unavailable`.
    fn delete(&self, id: &str) -> Result<(), SharedTrainingsError>;

    /// Deletes the corpus and the checkpoints of a training that has succeeded.
    ///
    /// # Errors
    /// `Unavailable`.
    fn delete_files(&self, id: &str) -> Result<(), SharedTrainingsError>;
}

/// The right to run a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Id of the training.
    pub id: String,
    /// Number of the claim, from 1.
    pub epoch: u64,
}

/// A training that is to be stored.
pub struct NewTraining<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its metadata, as text.
    pub metadata: &'a str,
    /// Its first event.
    pub accepted: EventKind,
    /// The file of token ids.
    pub tokens: &'a Path,
    /// How many trainings there may be.
    pub limits: QueueLimits<'a>,
}

/// How many trainings there may be.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits<'a> {
    /// Maximum number of waiting trainings.
    pub max_queued: usize,
    /// Who the training belongs to.
    pub owner: &'a Owner,
    /// Maximum number of waiting and running trainings of the owner.
    pub max_of_owner: Option<u64>,
}

/// A checkpoint that was written to the disk.
#[derive(Clone, Copy, Debug)]
pub struct SavedCheckpoint<'a> {
    /// Its file.
    pub file: &'a Path,
    /// Steps taken.
    pub step: u64,
    /// Whether it takes the place of the newest one.
    pub replaces: bool,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct TrainingChanges {
    /// The revision now.
    pub revision: u64,
    /// The trainings that have changed.
    pub trainings: Vec<SharedTraining>,
    /// New events by training, in their order within each.
    pub events: Vec<(String, Event)>,
}

/// A training as it is now.
#[derive(Clone, Debug)]
pub struct SharedTraining {
    /// Its id.
    pub id: String,
    /// Its metadata, as text.
    pub metadata: String,
    /// Who has it.
    pub state: SharedState,
    /// Steps taken at its newest checkpoint; `None` if it has none.
    pub checkpoint_step: Option<u64>,
}

/// Who has a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedState {
    /// Nobody yet.
    Queued,
    /// A replica runs it.
    Running,
    /// Nobody any more.
    Ended,
    /// It was deleted.
    Deleted,
}

/// A shared training cannot be read or changed.
#[derive(Debug, Error)]
pub enum SharedTrainingsError {
    /// Another replica has taken the training over, or it was cancelled.
    #[error("another replica has taken over the training")]
    Fenced,
    /// There is no such training, or no such file of it.
    #[error("it does not exist")]
    NotFound,
    /// The training waits or runs.
    #[error("the training has not ended")]
    NotEnded,
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull,
    /// The owner has as many trainings as it may have.
    #[error("the quota of trainings is reached")]
    Quota,
    /// The database or the object store is not available; the text says which
    /// and why, for the log.
    #[error("{0}")]
    Unavailable(String),
    /// A file of this machine could not be read or written.
    #[error("{0}")]
    Local(io::Error),
}
