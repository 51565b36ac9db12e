//! Why the engine cannot do what it is asked for.

use std::time::Duration;

use charlstm_model::ModelId;
use charlstm_model::decode_step::Precision;
use charlstm_model::vocabulary::UnknownCharacter;
use charlstm_store::session::{SealError, SessionError, SessionId};
use thiserror::Error;

use crate::model_source::ModelSourceError;

/// A text could not be generated or scored. Texts about the prompt and the
/// scored text follow the name of the field.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GenerateError {
    /// The model is not available.
    #[error(transparent)]
    Model(#[from] ModelSourceError),
    /// The prompt or the scored text contains a character that the model does
    /// not know.
    #[error("{0}")]
    UnknownCharacter(UnknownCharacter),
    /// The prompt is empty and there is no session to continue.
    #[error(
        "must not be empty unless the call continues a session: the model needs a first character"
    )]
    EmptyPrompt,
    /// The prompt or the scored text is longer than the engine accepts.
    #[error("must have at most {max} characters, not {chars}")]
    TextTooLong {
        /// Number of characters.
        chars: usize,
        /// Maximum number of characters.
        max: usize,
    },
    /// The text to score has fewer than two characters.
    #[error("must have at least 2 characters, not {0}: each is predicted from those before it")]
    TextTooShort(usize),
    /// The session cannot be used.
    #[error("session {id}: {error}")]
    Session {
        /// The session.
        id: SessionId,
        /// Why.
        error: SessionError,
    },
    /// The session belongs to another model than the requested one.
    #[error("session {id} belongs to model {}@{}, not to {requested:?}", model.name, model.version)]
    OtherModel {
        /// The session.
        id: SessionId,
        /// Its model.
        model: ModelId,
        /// The requested model.
        requested: String,
    },
    /// The model version of the session was deleted.
    #[error(
        "session {id} belongs to model {}@{}, which this server no longer has; \
         delete the session to use its id again",
        model.name,
        model.version
    )]
    SessionModelGone {
        /// The session.
        id: SessionId,
        /// Its model.
        model: ModelId,
    },
    /// The session was computed in another precision than the requested one.
    #[error("session {id} is computed in {precision}, not in {requested}")]
    OtherPrecision {
        /// The session.
        id: SessionId,
        /// Its precision.
        precision: Precision,
        /// The requested precision.
        requested: Precision,
    },
    /// The snapshot cannot be continued with this call.
    #[error(transparent)]
    Snapshot(#[from] SealError),
    /// The snapshot is at another position than the caller expected.
    #[error("the snapshot is at position {position}; {expected} was expected")]
    SnapshotPosition {
        /// The position that the caller expected.
        expected: u64,
        /// The position of the snapshot.
        position: u64,
    },
    /// The call would move the session beyond the maximum position.
    #[error(
        "the session is at position {position}; with this call it would exceed the maximum of {max}"
    )]
    PositionLimit {
        /// Where the call begins.
        position: u64,
        /// Maximum position.
        max: u64,
    },
    /// The batch and its queue are full.
    #[error("the maximum number of generations is running and the queue is full")]
    Overloaded {
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// The deadline of the call passed.
    #[error("the deadline passed before the generation ended")]
    Deadline,
    /// The reader took no text for too long.
    #[error("no text was read for {0:?}; the session is at the last text that was read")]
    Stalled(Duration),
    /// The engine is shutting down or has failed.
    #[error("the server is shutting down")]
    Stopping,
    /// Something failed inside. The text is for the log.
    #[error("{0}")]
    Internal(String),
}

/// A session could not be imported.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ImportError {
    /// This server does not have the model version that the session needs.
    #[error("the session belongs to model {}@{}, which this server does not have", .0.name, .0.version)]
    ModelMissing(ModelId),
    /// This server has another model of that name and version.
    #[error("the session belongs to another model than the {}@{} of this server", .0.name, .0.version)]
    ModelDiffers(ModelId),
    /// The model is not computed in the precision of the session; the text
    /// says why.
    #[error("{0}")]
    PrecisionUnavailable(String),
    /// The content does not fit the model.
    #[error("the state does not fit the model that it names")]
    StateMismatch,
    /// The session could not be stored.
    #[error("session {id}: {error}")]
    Session {
        /// The session.
        id: SessionId,
        /// Why.
        error: SessionError,
    },
    /// The storage that replicas share cannot be read at the moment; the text is
    /// for clients.
    #[error("{0}")]
    Unavailable(String),
    /// The model could not be read. The text is for the log.
    #[error("{0}")]
    Internal(String),
}
