//! What can go wrong with stored models.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::ModelId;
use charlstm_model::decode_step::DecodeError;
use charlstm_model::model_file::ModelFileError;
use charlstm_model::model_id::{InvalidModelName, InvalidModelReference};

/// A model could not be found, read or stored.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// The text is not a valid model name.
    #[error(transparent)]
    BadName(#[from] InvalidModelName),
    /// The text is not a reference to a model.
    #[error(transparent)]
    BadReference(InvalidModelReference),
    /// There is no such model or version.
    #[error("there is no model {reference:?}; there is {available}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// What there is, in words.
        available: String,
    },
    /// No model was named, and there is none.
    #[error("there is no model yet: train or import one")]
    NoModels,
    /// No model was named, and there are several.
    #[error("no model was named, and there are several: {available}")]
    Ambiguous {
        /// What there is, in words.
        available: String,
    },
    /// The version is on disk, but not as it was stored.
    #[error("model {id} is damaged: {reason}")]
    Damaged {
        /// The version.
        id: ModelId,
        /// What is wrong with it.
        reason: String,
    },
    /// The device could not take the model, or failed.
    #[error("model {id} cannot be stepped on the device: {source}")]
    Device {
        /// The version.
        id: ModelId,
        /// What happened.
        source: DecodeError,
    },
    /// A file that should be stored is not a model.
    #[error("this file is not a model: {0}")]
    NotAModel(#[source] ModelFileError),
    /// The disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl From<InvalidModelReference> for RepositoryError {
    fn from(error: InvalidModelReference) -> Self {
        match error {
            InvalidModelReference::Name(error) => Self::BadName(error),
            error => Self::BadReference(error),
        }
    }
}

impl RepositoryError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
