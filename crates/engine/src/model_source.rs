//! Where the engine gets models from.

use std::sync::Arc;

use charlstm_model::decode_step::Precision;
use charlstm_repository::{LoadedModel, ModelId, Repository, RepositoryError};
use thiserror::Error;

/// Finds and loads models.
pub trait ModelSource: Send + Sync + 'static {
    /// Returns the version that a reference means: `name` is its latest
    /// version, `name@version` that one, and an empty reference the only model
    /// that exists. Answers from memory.
    ///
    /// # Errors
    /// `NotFound`, with a text that lists what exists; `BadReference`.
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError>;

    /// Reads the list of versions again, before a reference is rejected: another
    /// replica may have stored a version a moment ago. Blocks on the network; does
    /// nothing if there are no replicas.
    ///
    /// # Errors
    /// `Unavailable`.
    fn refresh(&self) -> Result<(), ModelSourceError> {
        Ok(())
    }

    /// Returns a model if it is in memory in a precision, without blocking.
    /// `None` if it has to be loaded first, or does not exist. Without a
    /// precision, it is the one in which the model generates on this server.
    fn loaded(&self, id: &ModelId, precision: Option<Precision>) -> Option<Arc<LoadedModel>>;

    /// Loads a model, once however many ask for it. Blocks on the disk: the
    /// engine calls it on a thread that may block.
    ///
    /// # Errors
    /// `Gone` if it was deleted, `Damaged` if its bytes are wrong, `Failed` if
    /// it cannot be read, `Unavailable`, `PrecisionUnavailable`.
    fn load(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, ModelSourceError>;
}

/// A model is not available.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelSourceError {
    /// No model has that name or version; the text lists what exists.
    #[error("{0}")]
    NotFound(String),
    /// The reference is invalid or ambiguous; the text says what would be
    /// right.
    #[error("{0}")]
    BadReference(String),
    /// The version was deleted.
    #[error("version {} of model {:?} was deleted", .0.version, .0.name)]
    Gone(ModelId),
    /// The bytes of the version are not those that were stored; the text says
    /// what is wrong.
    #[error("{0}")]
    Damaged(String),
    /// The version is not computed in the requested precision; the text says
    /// why.
    #[error("precision {precision} is not available: {reason}")]
    PrecisionUnavailable {
        /// The requested precision.
        precision: Precision,
        /// Why not.
        reason: String,
    },
    /// The storage that replicas share cannot be read at the moment; the text is
    /// for clients.
    #[error("{0}")]
    Unavailable(String),
    /// The version exists and cannot be read. The text is for the log.
    #[error("a model could not be loaded: {0}")]
    Failed(String),
}

impl ModelSource for Repository {
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError> {
        Repository::resolve(self, reference).map_err(ModelSourceError::from)
    }

    fn refresh(&self) -> Result<(), ModelSourceError> {
        Ok(Repository::refresh(self)?)
    }

    fn loaded(&self, id: &ModelId, precision: Option<Precision>) -> Option<Arc<LoadedModel>> {
        self.get_loaded(id, precision)
    }

    fn load(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, ModelSourceError> {
        Repository::load(self, id, precision).map_err(|error| match error {
            RepositoryError::NotFound { .. } => ModelSourceError::Gone(id.clone()),
            other => other.into(),
        })
    }
}

impl From<RepositoryError> for ModelSourceError {
    fn from(error: RepositoryError) -> Self {
        let text = error.to_string();
        match error {
            RepositoryError::Unavailable { .. } => {
                // The log has more detail than the message for the client.
                tracing::warn!(%error, "a model could not be loaded");
                Self::Unavailable(error.client_message())
            }
            RepositoryError::NotFound { .. } | RepositoryError::NoModels => Self::NotFound(text),
            RepositoryError::BadName(_)
            | RepositoryError::BadReference(_)
            | RepositoryError::Ambiguous { .. } => Self::BadReference(text),
            RepositoryError::Damaged { .. } => Self::Damaged(text),
            RepositoryError::NoInt8 { .. } => Self::PrecisionUnavailable {
                precision: Precision::Int8,
                reason: text,
            },
            RepositoryError::Device { .. }
            | RepositoryError::NotAModel(_)
            | RepositoryError::VersionsUnknown { .. }
            | RepositoryError::OtherOwner { .. }
            | RepositoryError::PublishedBefore { .. }
            | RepositoryError::Io { .. } => Self::Failed(text),
        }
    }
}
