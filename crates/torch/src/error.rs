//! The error type inside this crate; outside, it is a [`LearnError`].

use charlstm_model::batches::BatchesError;
use charlstm_model::learner::LearnError;
use tch::TchError;
use thiserror::Error;

/// A training could not be started, or a step could not be computed.
#[derive(Debug, Error)]
pub(crate) enum TorchError {
    /// libtorch failed: out of memory, or the device was lost.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// Any other cause.
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
