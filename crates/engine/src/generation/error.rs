//! What can keep the engine from doing what it is asked for.

use std::time::Duration;

use thiserror::Error;

use super::models::ModelSourceError;
use crate::sessions::SessionId;
use crate::sessions::snapshot::SnapshotError;
use crate::sessions::store::SessionError;
use charlstm_model::vocabulary::UnknownCharacter;
use charlstm_repository::ModelId;

/// A text could not be generated or scored.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GenerateError {
    /// The model cannot be had.
    #[error(transparent)]
    Model(#[from] ModelSourceError),
    /// The prime or the scored text holds a character that the model does
    /// not know.
    #[error("{0}")]
    UnknownCharacter(UnknownCharacter),
    /// There is nothing to go on from.
    #[error("must not be empty where no session goes on: the model needs a first character")]
    EmptyPrime,
    /// The prime is longer than the server takes.
    #[error("must have at most {most} characters, not {chars}")]
    PrimeTooLong {
        /// Characters given.
        chars: usize,
        /// Most characters.
        most: usize,
    },
    /// The text to score has fewer than two characters.
    #[error("must have at least 2 characters, not {0}: each is predicted from those before it")]
    TextTooShort(usize),
    /// The session cannot be had.
    #[error("session {id}: {error}")]
    Session {
        /// The session.
        id: SessionId,
        /// Why.
        error: SessionError,
    },
    /// The session belongs to another model than the one asked for.
    #[error("session {id} belongs to {}@{}, not to {asked:?}", model.name, model.version)]
    OtherModel {
        /// The session.
        id: SessionId,
        /// Its model.
        model: ModelId,
        /// The model asked for.
        asked: String,
    },
    /// The model version that the session belongs to is gone.
    #[error(
        "session {id} belongs to {}@{}, which this server does not have any more",
        model.name,
        model.version
    )]
    SessionModelGone {
        /// The session.
        id: SessionId,
        /// Its model.
        model: ModelId,
    },
    /// The batch and its queue are full.
    #[error("the server generates as many texts as it can, and the queue is full")]
    Overloaded {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The caller's time is over.
    #[error("the deadline passed before the end")]
    Deadline,
    /// The reader read nothing for too long.
    #[error("the text was not read for {0:?}; the session stands after the last text taken")]
    Stalled(Duration),
    /// The server stops.
    #[error("the server is stopping")]
    Stopping,
    /// Something broke. The text is for the log.
    #[error("{0}")]
    Internal(String),
}

/// A session could not be made from bytes.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ImportError {
    /// They are not a session.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The model version it belongs to is not here.
    #[error("it belongs to {}@{}, which this server does not have", .0.name, .0.version)]
    ModelMissing(ModelId),
    /// There is another model of that name and version here.
    #[error("it belongs to another model than the {}@{} of this server", .0.name, .0.version)]
    ModelDiffers(ModelId),
    /// The content does not fit the model.
    #[error("its state does not fit the model it names")]
    Unfit,
    /// It could not be kept.
    #[error("session {id}: {error}")]
    Session {
        /// The session.
        id: SessionId,
        /// Why.
        error: SessionError,
    },
    /// The model could not be read.
    #[error("{0}")]
    Internal(String),
}
