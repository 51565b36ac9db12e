//! Why something that is asked of the trainings cannot be done.

use std::io;

use thiserror::Error;

use crate::checkpoint::LoadError;
use crate::memory::OutOfMemory;
use crate::models::ModelsError;
use crate::spec::SpecError;
use charlstm_model::corpus::{CorpusError, ReadError};
use charlstm_model::learner::TrainingUnsupported;
use charlstm_model::vocabulary::UnknownCharacter;

/// Something that is asked of the trainings cannot be done.
#[derive(Debug, Error)]
pub enum JobsError {
    /// This build cannot train.
    #[error(transparent)]
    Unsupported(#[from] TrainingUnsupported),
    /// A field of the spec cannot be accepted.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The text cannot be trained on.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The model to begin with does not know characters of the corpus.
    #[error(
        "the model {model} that init_from begins with does not know {}; \
         extend_vocabulary adds them to its vocabulary",
        named(unknown)
    )]
    UnknownCharacters {
        /// The model.
        model: String,
        /// Each of the characters, where it comes first.
        unknown: Vec<UnknownCharacter>,
    },
    /// The model to begin with cannot be had, or the new one not be stored.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// There is no such training.
    #[error("there is no training {id:?}")]
    NotFound {
        /// The name that was asked for.
        id: String,
    },
    /// Too many trainings wait already.
    #[error("{limit} trainings wait already; try again when one has ended")]
    QueueFull {
        /// Most trainings that may wait.
        limit: usize,
    },
    /// Too many corpora are being uploaded.
    #[error("{limit} corpora are being uploaded already; try again when one is complete")]
    TooManyUploads {
        /// Most uploads at a time.
        limit: usize,
    },
    /// The training would not fit into memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// It is in a state from which it cannot be resumed.
    #[error("training {id} cannot be resumed: it is {state}")]
    NotResumable {
        /// The training.
        id: String,
        /// Its state, in words.
        state: &'static str,
    },
    /// It has no checkpoint that could be used.
    #[error("training {id} cannot be resumed: {reason}")]
    NoCheckpoint {
        /// The training.
        id: String,
        /// What is wrong.
        reason: LoadError,
    },
    /// The server is about to end.
    #[error("the server is stopping")]
    Stopping,
    /// The disk failed.
    #[error("the trainings' folder: {0}")]
    Io(#[from] io::Error),
}

impl From<ReadError> for JobsError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Text(error) => error.into(),
            ReadError::Disk(error) => error.into(),
        }
    }
}

/// Names characters with their code points and places, not more of them than
/// fit into a message.
fn named(unknown: &[UnknownCharacter]) -> String {
    const MOST: usize = 10;
    let name = |unknown: &UnknownCharacter| {
        let UnknownCharacter {
            character,
            position,
        } = *unknown;
        let code = u32::from(character);
        format!("{character:?} (U+{code:04X}) at position {position}")
    };
    let mut names: Vec<String> = unknown.iter().take(MOST).map(name).collect();
    if unknown.len() > MOST {
        names.push(format!("and {} more", unknown.len() - MOST));
    }
    format!(
        "{} of the corpus's characters: {}",
        unknown.len(),
        names.join(", ")
    )
}
