//! The trainings that replicas share: rows in the database for what they are,
//! who runs them, and their events; corpora, checkpoints and event files for TensorBoard
//! in the object store.
//!
//! A claim lasts ten seconds by the clock of the database and is renewed every
//! three. It has an epoch, which every statement of the replica that runs the
//! training names: after another replica has claimed it, the statements of the
//! first one match no row. A checkpoint is an object under the epoch, and the
//! training has it only once the row points to it.

mod change;
mod copying;
mod rows;
#[cfg(test)]
mod tests;
mod values;

use std::path::Path;
use std::sync::Arc;

use charlstm_training::events::{Event, EventKind, Finished};
use charlstm_training::shared::{
    Claim, NewTraining, QueueLimits, SavedCheckpoint, SharedTrainings, SharedTrainingsError,
    TrainingChanges,
};

use self::rows::TrainingRows;
use crate::blocking::Blocking;
use crate::changes::Changes;
use crate::database::{Database, DatabaseError};
use crate::object_store::{ObjectStoreError, Objects};

/// The trainings that replicas share.
#[derive(Debug)]
pub struct ReplicaTrainings {
    replica: String,
    rows: TrainingRows,
    objects: Objects,
    blocking: Blocking,
    changes: Option<Changes>,
}

type Outcome<T> = Result<T, SharedTrainingsError>;

impl ReplicaTrainings {
    /// Must be called in a runtime with several threads, which the methods use
    /// from threads that may block.
    pub fn new(replica: String, database: Database, objects: Objects) -> Self {
        Self {
            replica,
            changes: None,
            rows: TrainingRows::new(database),
            objects,
            blocking: Blocking::current(),
        }
    }

    /// Asks the database for changes only if there may be some.
    pub fn following(mut self, changes: Changes) -> Self {
        self.changes = Some(changes);
        self
    }

    async fn store(&self, training: &NewTraining<'_>) -> Outcome<()> {
        let key = tokens_key(training.id);
        self.objects.upload(&key, training.tokens).await?;
        let inserted = self.rows.insert(training).await;
        // If the outcome is not known, the corpus may be needed.
        if matches!(
            inserted,
            Err(SharedTrainingsError::QueueFull | SharedTrainingsError::Quota)
        ) {
            self.delete_object(&key).await;
        }
        inserted
    }

    async fn store_checkpoint(
        &self,
        claim: &Claim,
        checkpoint: &SavedCheckpoint<'_>,
    ) -> Outcome<()> {
        // Random: an object that a row points to is never overwritten.
        let random = uuid::Uuid::new_v4().simple();
        let (folder, epoch, step) = (folder(&claim.id), claim.epoch, checkpoint.step);
        let key = format!("{folder}/checkpoints/{epoch}/{step}-{random}.bin");
        self.objects.upload(&key, checkpoint.file).await?;
        match self.rows.move_pointer(claim, &key, checkpoint).await {
            Ok(obsolete) => {
                if let Some(obsolete) = obsolete {
                    self.delete_object(&obsolete).await;
                }
                Ok(())
            }
            Err(error) => {
                // If the outcome is not known, the row may point to it.
                if matches!(error, SharedTrainingsError::Fenced) {
                    self.delete_object(&key).await;
                }
                Err(error)
            }
        }
    }

    async fn fetch_both(&self, id: &str, newest: &Path, previous: &Path) -> Outcome<()> {
        let keys = self.rows.checkpoints(id).await?;
        for (key, path) in keys.into_iter().zip([newest, previous]) {
            if let Some(key) = key {
                self.objects.download(&key, path).await?;
            }
        }
        Ok(())
    }

    async fn store_event_file(&self, claim: &Claim, file: &Path) -> Outcome<()> {
        // The epoch: two replicas may have files of the same name.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{}/{name}.{}", event_folder(&claim.id), claim.epoch);
        Ok(self.objects.upload(&key, file).await?)
    }

    async fn delete_object(&self, key: &str) {
        if let Err(error) = self.objects.delete(key).await {
            tracing::warn!(%error, "an object that is no longer needed remains");
        }
    }
}

impl SharedTrainings for ReplicaTrainings {
    fn replica(&self) -> &str {
        &self.replica
    }

    fn may_have_changed(&self, revision: u64) -> bool {
        let newest = self.changes.as_ref().and_then(Changes::trainings);
        newest.is_none_or(|newest| newest > revision)
    }

    fn may_be_waiting(&self) -> bool {
        let changes = self.changes.as_ref();
        changes
            .and_then(Changes::is_training_waiting)
            .unwrap_or(true)
    }

    fn changes(&self, revision: u64) -> Outcome<TrainingChanges> {
        self.blocking.wait(self.rows.changes(revision))
    }

    fn insert(&self, training: &NewTraining<'_>) -> Outcome<()> {
        self.blocking.wait(self.store(training))
    }

    fn claim(&self) -> Outcome<Option<Claim>> {
        self.blocking.wait(self.rows.claim(&self.replica))
    }

    fn renew(&self, claim: &Claim) -> Outcome<bool> {
        self.blocking.wait(self.rows.renew(claim))
    }

    fn release(&self, claim: &Claim) -> Outcome<()> {
        self.blocking.wait(self.rows.release(claim))
    }

    fn append(&self, claim: &Claim, events: &[Arc<Event>]) -> Outcome<()> {
        self.blocking.wait(self.rows.append(claim, events))
    }

    fn keep_only(&self, claim: &Claim, kept: &[u64]) -> Outcome<()> {
        self.blocking.wait(self.rows.keep_only(claim, kept))
    }

    fn save_checkpoint(&self, claim: &Claim, checkpoint: &SavedCheckpoint<'_>) -> Outcome<()> {
        self.blocking.wait(self.store_checkpoint(claim, checkpoint))
    }

    fn save_event_file(&self, claim: &Claim, file: &Path) -> Outcome<()> {
        self.blocking.wait(self.store_event_file(claim, file))
    }

    fn fetch_checkpoints(&self, id: &str, newest: &Path, previous: &Path) -> Outcome<()> {
        self.blocking.wait(self.fetch_both(id, newest, previous))
    }

    fn fetch_tokens(&self, id: &str, path: &Path) -> Outcome<()> {
        let key = tokens_key(id);
        Ok(self.blocking.wait(self.objects.download(&key, path))?)
    }

    fn cancel(&self, id: &str, finished: Finished) -> Outcome<()> {
        let finished = EventKind::Finished(finished);
        self.blocking.wait(self.rows.cancel(id, &finished))
    }

    fn resume(&self, id: &str, resumed: EventKind, limits: QueueLimits<'_>) -> Outcome<()> {
        self.blocking.wait(self.rows.resume(id, &resumed, limits))
    }

    fn delete(&self, id: &str) -> Outcome<()> {
        self.blocking.wait(async {
            self.rows.delete(id).await?;
            for folder in [folder(id), event_folder(id)] {
                if let Err(error) = self.objects.delete_folder(&folder).await {
                    tracing::warn!(%error, id, "files of a deleted training remain in the object store");
                }
            }
            Ok(())
        })
    }

    fn delete_files(&self, id: &str) -> Outcome<()> {
        self.blocking.wait(async {
            self.rows.forget_checkpoints(id).await?;
            Ok(self.objects.delete_folder(&folder(id)).await?)
        })
    }
}

fn folder(id: &str) -> String {
    format!("trainings/{id}")
}

/// The folder of event files, which stay as long as the training is listed. One folder for
/// each training is what TensorBoard expects.
fn event_folder(id: &str) -> String {
    format!("tensorboard/{id}")
}

fn tokens_key(id: &str) -> String {
    format!("{}/tokens.bin", folder(id))
}

impl From<ObjectStoreError> for SharedTrainingsError {
    fn from(error: ObjectStoreError) -> Self {
        match error {
            ObjectStoreError::Local { source, .. } => Self::Local(source),
            ObjectStoreError::NotFound { .. } => Self::NotFound,
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<DatabaseError> for SharedTrainingsError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
