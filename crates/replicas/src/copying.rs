//! Copies the data of one server to the place that replicas share: what has been
//! copied before is left as it is.

use charlstm_repository::shared::SharedModelsError;
use charlstm_training::shared::SharedTrainingsError;
use thiserror::Error;

use crate::database::DatabaseError;
use crate::object_store::ObjectStoreError;

/// What copying has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It was copied now.
    Now,
    /// It was copied before, and may have been deleted since.
    Before,
}

/// Something could not be copied. Nothing of it is visible.
#[derive(Debug, Error)]
pub enum CopyError {
    /// Something else is in its place; the text says what.
    #[error("{0}")]
    Conflict(String),
    /// The database or the object store is not available; the text says which
    /// and why.
    #[error("{0}")]
    Unavailable(String),
}

impl From<DatabaseError> for CopyError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<ObjectStoreError> for CopyError {
    fn from(error: ObjectStoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<SharedModelsError> for CopyError {
    fn from(error: SharedModelsError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<SharedTrainingsError> for CopyError {
    fn from(error: SharedTrainingsError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
