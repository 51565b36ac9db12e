//! How errors become gRPC statuses. The only place where a `Status` is made:
//! the builders are here, the mapping of each layer's errors in a file of its
//! own, each one exhaustive `match`.

mod disk;
mod generation;
mod repository;
mod session;
pub(super) mod training;

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(super) use self::repository::repository;
pub(super) use generation::{bad_sampling, generate_error};
pub(super) use session::{bad_session_id, import_error, session_error};

/// `ErrorInfo.domain` of every status.
const DOMAIN: &str = "charlstm.v1";

/// INVALID_ARGUMENT with a `BadRequest` violation of `field`, as it is named
/// in the contract.
pub(super) fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = ErrorDetails::with_bad_request_violation(field, &message);
    let text = format!("{field}: {message}");
    Status::with_error_details(Code::InvalidArgument, text, details)
}

/// A status with an `ErrorInfo` reason, in UPPER_SNAKE_CASE.
pub(super) fn refused(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, message, details)
}

/// RESOURCE_EXHAUSTED that tells when to try again.
pub(super) fn full(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(retry_after));
    details.set_error_info(reason, DOMAIN, []);
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// INTERNAL with a fixed text. The detail goes to the log, not to the caller.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Status {
    tracing::error!(%error, "internal error");
    refused(
        Code::Internal,
        "INTERNAL",
        "the server failed on this request; its log says why",
    )
}

/// UNAUTHENTICATED: no token, or none of those that are known.
pub(super) fn unauthenticated() -> Status {
    refused(
        Code::Unauthenticated,
        "TOKEN_NEEDED",
        "this server needs a token that it knows: send `authorization: Bearer TOKEN`",
    )
}

/// FAILED_PRECONDITION with an `ErrorInfo` reason.
pub(super) fn precondition(reason: &str, message: impl Into<String>) -> Status {
    refused(Code::FailedPrecondition, reason, message)
}
