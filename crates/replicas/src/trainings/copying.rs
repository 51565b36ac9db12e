//! Copies the trainings of a data folder, once or again.

use charlstm_training::copying::TrainingCopy;

use super::{ReplicaTrainings, folder, tokens_key};
use crate::copying::{Copied, CopyError};

impl ReplicaTrainings {
    /// Copies a training, unless it was copied before.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn copy(&self, training: &TrainingCopy) -> Result<Copied, CopyError> {
        if self.rows.exists(&training.id).await? {
            return Ok(Copied::Before);
        }
        if let Some(tokens) = &training.tokens {
            self.objects
                .upload(&tokens_key(&training.id), tokens)
                .await?;
        }
        let mut keys = [None, None];
        for ((key, name), path) in keys
            .iter_mut()
            .zip(["newest", "previous"])
            .zip(&training.checkpoints)
        {
            if let Some(path) = path {
                let object = format!("{}/checkpoints/0/{name}.bin", folder(&training.id));
                self.objects.upload(&object, path).await?;
                *key = Some(object);
            }
        }
        match self.rows.insert_copy(training, &keys).await? {
            true => Ok(Copied::Now),
            // By another process, at the same time.
            false => Ok(Copied::Before),
        }
    }
}
