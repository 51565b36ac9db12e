//! Where the engine gets its models from.

use std::sync::Arc;

use thiserror::Error;

use charlstm_repository::{LoadedModel, ModelId, Repository, RepositoryError};

/// Finds and loads models. Both methods may block on the disk; the engine
/// calls them where blocking is allowed.
pub trait ModelSource: Send + Sync + 'static {
    /// The model that a reference means: `name` is its latest version,
    /// `name@version` that one, and an empty reference the only model there
    /// is.
    ///
    /// # Errors
    /// `NotFound`, with all that there is.
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError>;

    /// A model in memory, loaded once and shared.
    ///
    /// # Errors
    /// `Gone` where it was removed, `Failed` where it cannot be read.
    fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, ModelSourceError>;
}

/// A model cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelSourceError {
    /// There is none of that name or version; the text says which there are.
    #[error("{0}")]
    NotFound(String),
    /// The reference is not one, or means several; the text says what would
    /// be right.
    #[error("{0}")]
    BadReference(String),
    /// It was there and is not any more.
    #[error("version {} of model {:?} is gone", .0.version, .0.name)]
    Gone(ModelId),
    /// It is there and cannot be read. The text is for the log.
    #[error("a model could not be loaded: {0}")]
    Failed(String),
}

impl ModelSource for Repository {
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError> {
        Repository::resolve(self, reference).map_err(ModelSourceError::from)
    }

    fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, ModelSourceError> {
        Repository::load(self, id).map_err(|error| match error {
            RepositoryError::NotFound { .. } => ModelSourceError::Gone(id.clone()),
            other => other.into(),
        })
    }
}

impl From<RepositoryError> for ModelSourceError {
    fn from(error: RepositoryError) -> Self {
        let text = error.to_string();
        match error {
            RepositoryError::NotFound { .. } | RepositoryError::NoModels => Self::NotFound(text),
            RepositoryError::BadName(_)
            | RepositoryError::BadReference(_)
            | RepositoryError::Ambiguous { .. } => Self::BadReference(text),
            RepositoryError::Damaged { .. }
            | RepositoryError::Device { .. }
            | RepositoryError::NotAModel(_)
            | RepositoryError::Io { .. } => Self::Failed(text),
        }
    }
}
