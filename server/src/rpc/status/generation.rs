//! What the errors of the generation engine are on the wire.

use tonic::{Code, Status};

use super::{full, internal, invalid, refused, session_error};
use charlstm_engine::generation::{GenerateError, ModelSourceError};
use charlstm_model::sampler::SamplingError;

/// A sampling setting outside its limits.
pub(in crate::rpc) fn bad_sampling(error: &SamplingError) -> Status {
    invalid(&format!("sampling.{}", error.field), error.to_string())
}

/// Why a text could not be generated or scored; `text_field` is where the
/// request has its text.
pub(in crate::rpc) fn generate_error(error: &GenerateError, text_field: &str) -> Status {
    let text = error.to_string();
    match error {
        GenerateError::Model(error) => model_source_error(error),
        GenerateError::UnknownCharacter(_)
        | GenerateError::EmptyPrime
        | GenerateError::PrimeTooLong { .. }
        | GenerateError::TextTooShort(_) => invalid(text_field, text),
        GenerateError::Session { id, error } => session_error(id, *error),
        GenerateError::OtherModel { .. } => {
            refused(Code::FailedPrecondition, "SESSION_OTHER_MODEL", text)
        }
        GenerateError::SessionModelGone { .. } => {
            refused(Code::FailedPrecondition, "SESSION_MODEL_GONE", text)
        }
        GenerateError::Overloaded { retry_after } => full("OVERLOADED", text, *retry_after),
        GenerateError::Deadline => refused(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", text),
        GenerateError::Stalled(_) => refused(Code::ResourceExhausted, "STREAM_STALLED", text),
        GenerateError::Stopping => refused(Code::Unavailable, "SERVER_STOPPING", text),
        GenerateError::Internal(error) => internal(error),
    }
}

fn model_source_error(error: &ModelSourceError) -> Status {
    let text = error.to_string();
    match error {
        ModelSourceError::BadReference(_) => invalid("model", text),
        ModelSourceError::NotFound(_) => refused(Code::NotFound, "MODEL_NOT_FOUND", text),
        ModelSourceError::Gone(_) => refused(Code::NotFound, "MODEL_GONE", text),
        ModelSourceError::Failed(error) => internal(error),
    }
}
