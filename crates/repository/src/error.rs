//! Errors of the model repository.

use std::io;
use std::path::{Path, PathBuf};

use charlstm_model::decode_step::DecodeError;
use charlstm_model::model_file::ModelFileError;
use charlstm_model::model_id::{InvalidModelName, InvalidModelReference};
use charlstm_store::disk_error;
use charlstm_store::session::Owner;
use thiserror::Error;

use super::ModelId;

/// A model could not be found, read or stored.
///
/// The `Display` text may contain paths of the server and is meant for the
/// log; [`Self::client_message`] returns the text for a client.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// The text is not a valid model name.
    #[error(transparent)]
    BadName(#[from] InvalidModelName),
    /// The text is not a reference to a model.
    #[error(transparent)]
    BadReference(InvalidModelReference),
    /// There is no such model or version.
    #[error("there is no model {reference:?}; available: {available}")]
    NotFound {
        /// The reference that was looked up.
        reference: String,
        /// Names or versions that exist, for people.
        available: String,
    },
    /// No model was named, and there is none.
    #[error("there are no models yet; train or import one")]
    NoModels,
    /// No model was named, and there are several.
    #[error("no model was named, and there are several: {available}")]
    Ambiguous {
        /// Names that exist, for people.
        available: String,
    },
    /// The version is on disk, but its bytes are not those that were stored.
    #[error("model {id} is damaged: {reason}")]
    Damaged {
        /// The version.
        id: ModelId,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not known which version numbers of a model were used before, so
    /// no new version can be stored under that name.
    #[error(
        "no new version of model {name} can be stored: {reason}; write the highest \
         version number that {name} has ever had to models/{name}/last_version in the data folder"
    )]
    VersionsUnknown {
        /// The name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The version is not computed in int8.
    #[error("model {id} is not computed in int8: {reason}")]
    NoInt8 {
        /// The version.
        id: ModelId,
        /// Why not.
        reason: String,
    },
    /// The name belongs to another principal.
    #[error(
        "the model name {name:?} belongs to the principal {owner}; use another name (to publish \
         or delete under this one, the role admin is required)"
    )]
    OtherOwner {
        /// The name.
        name: String,
        /// Its owner.
        owner: Owner,
    },
    /// The device could not take the model, or failed.
    #[error("model {id} cannot be used on the device: {source}")]
    Device {
        /// The version.
        id: ModelId,
        /// What happened.
        source: DecodeError,
    },
    /// A file to be stored is not a model.
    #[error("this file is not a model: {0}")]
    NotAModel(#[source] ModelFileError),
    /// The database or the object store that the replicas share is not
    /// available.
    #[error("the shared models cannot be read or changed: {reason}")]
    Unavailable {
        /// Which, and why, for the log.
        reason: String,
    },
    /// A training has published its version already, from another replica.
    #[error("the training has published version {version} already")]
    PublishedBefore {
        /// The version.
        version: u64,
    },
    /// The disk reported an error.
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
            error @ InvalidModelReference::Version { .. } => Self::BadReference(error),
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

    /// Returns the error of the disk, if it is one.
    pub fn disk_error(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the same attempt may succeed later without a change: the disk or
    /// the shared storage failed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Unavailable { .. })
    }

    /// Returns the text for a client: without paths and without the system's
    /// own words.
    pub fn client_message(&self) -> String {
        match self {
            Self::Io { source, .. } => disk_error::message(source).to_owned(),
            Self::Unavailable { .. } => {
                "the storage that the replicas share is not available; try again".to_owned()
            }
            Self::Device { .. } => "the device failed; the server's log has the details".to_owned(),
            error => error.to_string(),
        }
    }
}
