//! The errors of the list of trainings.

use std::io;

use charlstm_model::corpus::{CorpusError, ReadError};
use charlstm_model::learner::TrainingUnsupported;
use charlstm_model::vocabulary::UnknownCharacter;
use charlstm_repository::RepositoryError;
use thiserror::Error;

use crate::checkpoint::LoadError;
use crate::memory::OutOfMemory;
use crate::shared::SharedTrainingsError;
use crate::spec::SpecError;

/// A training could not be started, found, cancelled, resumed or deleted.
#[derive(Debug, Error)]
pub enum JobsError {
    /// This build cannot train.
    #[error(transparent)]
    Unsupported(#[from] TrainingUnsupported),
    /// A field of the spec is not valid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The text cannot be trained on.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The corpus has characters that the model of `init_from` does not have.
    #[error(
        "the model {model} of init_from does not have {}; set extend_vocabulary to add them \
         to its vocabulary",
        named(unknown)
    )]
    UnknownCharacters {
        /// The model.
        model: String,
        /// Each of the characters, at its first position.
        unknown: Vec<UnknownCharacter>,
    },
    /// The model of `init_from` cannot be read, or the name of the model belongs
    /// to another principal.
    #[error(transparent)]
    Model(#[from] RepositoryError),
    /// There is no such training.
    #[error("there is no training {id:?}")]
    NotFound {
        /// The id, shortened if it is long.
        id: String,
    },
    /// The queue is full.
    #[error("{limit} trainings are waiting already; try again when one has ended")]
    QueueFull {
        /// Maximum number of waiting trainings.
        limit: usize,
    },
    /// The principal has as many waiting and running trainings as it may have.
    #[error(
        "the limit of {limit} waiting or running trainings for this principal is reached; \
         try again when one has ended"
    )]
    TrainingQuota {
        /// Maximum number of waiting and running trainings.
        limit: u64,
    },
    /// The corpus is longer than the principal's corpora may be.
    #[error("the limit of {limit} bytes of a corpus for this principal is exceeded")]
    CorpusQuota {
        /// Maximum number of bytes.
        limit: u64,
    },
    /// Too many corpora are being uploaded.
    #[error("{limit} corpora are being uploaded already; try again when one is complete")]
    TooManyUploads {
        /// Maximum number of concurrent uploads.
        limit: usize,
    },
    /// The training would not fit into memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The database or the object store that replicas share is not available.
    #[error("the shared trainings cannot be read or changed: {reason}")]
    Unavailable {
        /// Which, and why, for the log.
        reason: String,
    },
    /// The training is in a state from which it cannot be resumed.
    #[error("training {id} cannot be resumed: it {state}")]
    NotResumable {
        /// Id of the training.
        id: String,
        /// Its state, as a verb.
        state: &'static str,
    },
    /// The training has not ended.
    #[error("training {id} cannot be deleted: it {state}; cancel it first")]
    NotDeletable {
        /// Id of the training.
        id: String,
        /// Its state, as a verb.
        state: &'static str,
    },
    /// Its checkpoints are damaged.
    #[error("training {id} cannot be resumed: {reason}")]
    NoCheckpoint {
        /// Id of the training.
        id: String,
        /// What is wrong.
        reason: LoadError,
    },
    /// Its corpus is gone.
    #[error("training {id} cannot be resumed: its corpus is missing or damaged")]
    NoCorpus {
        /// Id of the training.
        id: String,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// The disk reported an error. The text is for the log.
    #[error("the folder of the trainings: {0}")]
    Io(#[from] io::Error),
}

impl From<SharedTrainingsError> for JobsError {
    fn from(error: SharedTrainingsError) -> Self {
        match error {
            SharedTrainingsError::Local(error) => error.into(),
            error => Self::Unavailable {
                reason: error.to_string(),
            },
        }
    }
}

impl JobsError {
    /// There is no training of this id, or none that the caller may see.
    pub fn not_found(id: &str) -> Self {
        // A client may send an id of any length.
        Self::NotFound {
            id: id.chars().take(100).collect(),
        }
    }
}

impl From<ReadError> for JobsError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Text(error) => error.into(),
            ReadError::Disk(error) => error.into(),
        }
    }
}

/// Lists characters with their code points and positions, as many as fit into
/// a message.
fn named(unknown: &[UnknownCharacter]) -> String {
    const LIMIT: usize = 10;
    let name = |unknown: &UnknownCharacter| {
        let UnknownCharacter {
            character,
            position,
        } = *unknown;
        let code = u32::from(character);
        format!("{character:?} (U+{code:04X}) at position {position}")
    };
    let mut names: Vec<String> = unknown.iter().take(LIMIT).map(name).collect();
    if unknown.len() > LIMIT {
        names.push(format!("and {} more", unknown.len() - LIMIT));
    }
    format!(
        "{} of the corpus's characters: {}",
        unknown.len(),
        names.join(", ")
    )
}
