//! What can go wrong with stored models.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::ModelId;
use charlstm_model::decode_step::DecodeError;
use charlstm_model::model_file::CheckpointError;

/// A model could not be found, read or stored.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// The text cannot be the name of a model.
    #[error(
        "{0:?} is no model name: 1 to 64 of A-Z a-z 0-9 . _ - are allowed, \
         the first of them a letter or a digit"
    )]
    BadName(String),
    /// The text after `@` is no version.
    #[error("{0:?} is no model: use NAME or NAME@VERSION, with VERSION from 1")]
    BadReference(String),
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
    NotAModel(#[source] CheckpointError),
    /// The disk failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl RepositoryError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
