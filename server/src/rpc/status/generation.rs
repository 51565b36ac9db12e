//! How the errors of the generation engine become statuses.

use charlstm_engine::{GenerateError, ModelSourceError};
use charlstm_model::sampler::SamplingError;
use charlstm_store::session::SealError;
use tonic::{Code, Status};

use super::session::positions;
use super::{
    full, internal, invalid, invalid_because, refused, refused_with, session_error,
    shared_storage_unavailable,
};

/// Returns the status of a sampling parameter that is out of range.
pub(in crate::rpc) fn bad_sampling(error: &SamplingError) -> Status {
    invalid(&format!("sampling.{}", error.field), error.to_string())
}

/// Returns the status of a precision that does not exist.
pub(in crate::rpc) fn bad_precision(name: &str) -> Status {
    invalid(
        "precision",
        format!("must be float32 or int8, not {name:?}"),
    )
}

/// Returns the status of a snapshot that a call cannot continue.
pub(in crate::rpc) fn invalid_snapshot(error: &SealError) -> Status {
    invalid("session_snapshot", error.to_string())
}

/// Returns the status of a session that the client is to hold, if the replicas
/// have no keys in common.
pub(in crate::rpc) fn no_snapshots() -> Status {
    let text = "sessions that clients hold need a key that all replicas have: \
                start them with --snapshot-key-file";
    refused(Code::Unimplemented, "SNAPSHOTS_UNAVAILABLE", text)
}

/// Returns the status of a generation or a score that failed. `text_field` is
/// the field of the request that contains the text.
pub(in crate::rpc) fn generate_error(error: &GenerateError, text_field: &str) -> Status {
    let text = error.to_string();
    match error {
        GenerateError::Model(error) => model_source_error(error),
        GenerateError::UnknownCharacter(_) => {
            invalid_because(text_field, "UNKNOWN_CHARACTER", text)
        }
        GenerateError::EmptyPrompt
        | GenerateError::TextTooLong { .. }
        | GenerateError::TextTooShort(_) => invalid(text_field, text),
        GenerateError::Session { id, error } => session_error(id, error),
        GenerateError::OtherModel { .. } => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_MODEL", text)
        }
        GenerateError::SessionModelGone { .. } => {
            refused(Code::FailedPrecondition, "SESSION_MODEL_GONE", text)
        }
        GenerateError::OtherPrecision { .. } => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_PRECISION", text)
        }
        GenerateError::Snapshot(error) => invalid_snapshot(error),
        GenerateError::SnapshotPosition { position, .. } => position_mismatch(text, *position),
        GenerateError::PositionLimit { .. } => {
            refused(Code::FailedPrecondition, "POSITION_LIMIT", text)
        }
        GenerateError::Overloaded { retry_after } => full("OVERLOADED", text, *retry_after),
        GenerateError::Deadline => refused(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text),
        GenerateError::Stalled(_) => refused(Code::ResourceExhausted, "STREAM_STALLED", text),
        GenerateError::Stopping => refused(Code::Unavailable, "SERVER_STOPPING", text),
        GenerateError::Internal(error) => internal(error),
    }
}

/// The status of a snapshot that is elsewhere: it cannot be rewound.
fn position_mismatch(text: String, position: u64) -> Status {
    let positions = positions(position, position);
    refused_with(
        Code::FailedPrecondition,
        "POSITION_MISMATCH",
        text,
        positions,
    )
}

fn model_source_error(error: &ModelSourceError) -> Status {
    let text = error.to_string();
    match error {
        ModelSourceError::BadReference(_) => invalid("model", text),
        ModelSourceError::NotFound(_) => refused(Code::NotFound, "MODEL_NOT_FOUND", text),
        ModelSourceError::Gone(_) => refused(Code::NotFound, "MODEL_GONE", text),
        ModelSourceError::Damaged(_) => refused(Code::DataLoss, "MODEL_DAMAGED", text),
        ModelSourceError::PrecisionUnavailable { .. } => {
            refused(Code::FailedPrecondition, "PRECISION_UNAVAILABLE", text)
        }
        ModelSourceError::Unavailable(_) => shared_storage_unavailable(text),
        ModelSourceError::Failed(error) => internal(error),
    }
}
