//! The error inside this crate: libtorch's own, or one of the learner.

use charlstm_model::batches::BatchesError;
use charlstm_model::learner::LearnError;
use tch::TchError;
use thiserror::Error;

/// The training arithmetic failed.
#[derive(Debug, Error)]
pub(crate) enum TorchError {
    /// libtorch failed (out of memory, a lost device).
    #[error(transparent)]
    Torch(#[from] TchError),
    /// Anything else that [`LearnError`] names.
    #[error(transparent)]
    Learn(#[from] LearnError),
}

impl From<BatchesError> for TorchError {
    fn from(error: BatchesError) -> Self {
        Self::Learn(error.into())
    }
}

impl From<TorchError> for LearnError {
    fn from(error: TorchError) -> Self {
        match error {
            TorchError::Torch(error) => Self::Backend(Box::new(error)),
            TorchError::Learn(error) => error,
        }
    }
}
