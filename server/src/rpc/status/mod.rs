//! How errors become gRPC statuses. A `Status` is created only here: the
//! builders are in this file, and the errors of each crate are mapped in a
//! file of their own, with an exhaustive `match`.

mod disk;
mod excerpt;
mod generation;
mod repository;
mod session;
pub(super) mod training;
mod transfer;

use std::time::Duration;

use tonic::codegen::http;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) use self::repository::repository;
pub(super) use self::repository::{model_in_use, model_in_use_by_others};
use super::principal::Role;
use charlstm_replicas::database::DatabaseError;
pub(crate) use excerpt::shorten;
pub(super) use generation::{
    bad_precision, bad_sampling, generate_error, invalid_snapshot, no_snapshots,
};
pub(super) use session::{
    bad_session_id, import_error, invalid_export, session_error, session_store_error,
};
pub(super) use transfer::{
    request_stalled, response_unread, too_many_large_messages, too_many_transfers,
    transfer_evicted, transfers_too_large,
};

/// `ErrorInfo.domain` of every status.
const DOMAIN: &str = "charlstm.v1";

/// Retry delay if the storage that the replicas share is not available, or if
/// another replica can carry out the call.
const SHARED_STORAGE_RETRY: Duration = Duration::from_secs(1);

/// Returns INVALID_ARGUMENT with a `BadRequest` violation of `field`, which is
/// named as in the contract.
pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Status {
    violation(field, None, message.into())
}

/// Returns the status of [`invalid`], with an `ErrorInfo` reason that clients can
/// act on.
pub(super) fn invalid_because(field: &str, reason: &str, message: impl Into<String>) -> Status {
    violation(field, Some(reason), message.into())
}

fn violation(field: &str, reason: Option<&str>, message: String) -> Status {
    let message = shorten(message);
    let mut details = ErrorDetails::with_bad_request_violation(field, &message);
    if let Some(reason) = reason {
        details.set_error_info(reason, DOMAIN, []);
    }
    let text = format!("{field}: {message}");
    Status::with_error_details(Code::InvalidArgument, text, details)
}

/// Returns a status with an `ErrorInfo` reason, in UPPER_SNAKE_CASE.
pub(crate) fn refused(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, shorten(message.into()), details)
}

/// Returns RESOURCE_EXHAUSTED with the delay after which a retry is worthwhile.
pub(crate) fn full(reason: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(retry_after));
    details.set_error_info(reason, DOMAIN, []);
    Status::with_error_details(Code::ResourceExhausted, shorten(message.into()), details)
}

/// Returns RESOURCE_EXHAUSTED for a call beyond a quota of its principal, with the
/// delay after which a retry is worthwhile; `None` if it never is.
pub(super) fn quota(message: impl Into<String>, retry_after: Option<Duration>) -> Status {
    let message = shorten(message.into());
    let mut details = ErrorDetails::with_quota_failure_violation("principal", &message);
    details.set_error_info("QUOTA", DOMAIN, []);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Returns the status of a generation beyond the quota of its principal. One may
/// end at any time; a second is the time of some hundred characters.
pub(super) fn stream_quota(limit: u64) -> Status {
    let message =
        format!("the limit of {limit} generations at a time for this principal is reached");
    quota(message, Some(Duration::from_secs(1)))
}

/// Returns UNAVAILABLE with the delay after which a retry is worthwhile.
/// Clients retry it after that delay, and do not take it for a broken
/// connection.
pub(super) fn unavailable(
    reason: &str,
    message: impl Into<String>,
    retry_after: Duration,
) -> Status {
    unavailable_with(reason, message, retry_after, [])
}

/// Returns the status of [`unavailable`] with metadata, see [`refused_with`].
pub(super) fn unavailable_with<const N: usize>(
    reason: &str,
    message: impl Into<String>,
    retry_after: Duration,
    metadata: [(&str, String); N],
) -> Status {
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value));
    let mut details = ErrorDetails::with_retry_info(Some(retry_after));
    details.set_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(Code::Unavailable, shorten(message.into()), details)
}

/// Returns a status with an `ErrorInfo` reason and metadata: values that
/// clients need, by name.
pub(super) fn refused_with<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: [(&str, String); N],
) -> Status {
    let metadata = metadata.map(|(name, value)| (name.to_owned(), value));
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, shorten(message.into()), details)
}

/// Returns the status of a call that needs the storage which the replicas share,
/// while it is not available. The cause is for the log.
pub(super) fn shared_storage_unavailable(message: impl Into<String>) -> Status {
    unavailable("STORAGE_UNAVAILABLE", message, SHARED_STORAGE_RETRY)
}

/// Returns the status of a list that the database cannot return at the moment.
pub(super) fn database_unavailable(error: &DatabaseError) -> Status {
    tracing::warn!(%error, "the database cannot be read");
    shared_storage_unavailable("the database cannot be read, see the server's log")
}

/// Returns INTERNAL with a fixed text. The error is logged: its details are
/// not for the client.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Status {
    tracing::error!(%error, "internal error");
    refused(
        Code::Internal,
        "INTERNAL",
        "internal error of the server; see its log for details",
    )
}

/// Adds the id of the request to an error that is in headers or trailers.
pub(super) fn add_request_id(headers: &mut http::HeaderMap, id: &str) {
    let Some(status) = Status::from_header_map(headers) else {
        return;
    };
    let mut details = status.get_error_details();
    details.set_request_info(id, "");
    let message = format!("{} (request id {id})", status.message());
    let code = status.code();
    let status = Status::with_error_details(code, message, details);
    // Sending fails only for a message that is no header; this one was one.
    let _ = status.add_header(headers);
}

/// Returns the status of a response that consists of nothing else.
pub(crate) fn of_response(headers: &http::HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

/// Returns the trailers of a response that ends with a status.
pub(super) fn trailers(status: Status) -> http::HeaderMap {
    let mut trailers = status.into_http::<()>().into_parts().0.headers;
    trailers.remove(http::header::CONTENT_TYPE);
    trailers
}

/// Returns UNAUTHENTICATED: the call has no token, or an unknown one.
pub(super) fn unauthenticated() -> Status {
    refused(
        Code::Unauthenticated,
        "TOKEN_NEEDED",
        "this server requires a valid access token: send `authorization: Bearer TOKEN`",
    )
}

/// Returns UNAUTHENTICATED: the credentials of a call in flight were removed.
pub(super) fn revoked() -> Status {
    refused(
        Code::Unauthenticated,
        "CREDENTIALS_REVOKED",
        "the access token or the principal of this call was removed",
    )
}

/// Returns ABORTED: the request was not completed. Few clients see it, since
/// most have left.
pub(super) fn request_incomplete() -> Status {
    refused(
        Code::Aborted,
        "REQUEST_INCOMPLETE",
        "the request ended before its client had completed it; nothing was started",
    )
}

/// Returns INVALID_ARGUMENT: the library could not decode the request.
pub(super) fn undecodable(reason: &str) -> Status {
    invalid("request", format!("cannot be decoded: {reason}"))
}

/// Returns INVALID_ARGUMENT: a unary request has a second message.
pub(super) fn second_message() -> Status {
    invalid("request", "must be exactly one message")
}

/// Returns UNAVAILABLE: the server does not wait for the rest of a request.
pub(super) fn server_stopping() -> Status {
    refused(
        Code::Unavailable,
        "SERVER_STOPPING",
        "the server is shutting down",
    )
}

/// Returns DEADLINE_EXCEEDED: the deadline of the caller has passed.
pub(super) fn deadline_exceeded() -> Status {
    refused(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "the deadline of the call has passed",
    )
}

/// Returns PERMISSION_DENIED: the caller lacks a role.
pub(super) fn permission_denied(role: Role) -> Status {
    let role = role.name();
    refused_with(
        Code::PermissionDenied,
        "ROLE_REQUIRED",
        format!("this call requires the role {role}"),
        [("role", role.to_owned())],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a status takes in the headers, percent-encoded and as base64.
    fn header_bytes(status: Status) -> usize {
        let headers = status.into_http::<()>().into_parts().0.headers;
        let sizes = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len());
        sizes.sum()
    }

    #[test]
    fn a_status_about_a_huge_text_of_the_client_fits_into_its_headers() {
        // Four bytes of UTF-8, which are twelve in the header.
        for text in ["\u{1f980}", "é", "x", "\u{1}"].map(|text| text.repeat(100_000)) {
            let message = format!("invalid model name {text:?}: use letters");
            for status in [
                invalid("model", &message),
                refused(Code::NotFound, "MODEL_NOT_FOUND", &message),
                full("OVERLOADED", &message, Duration::from_secs(1)),
                invalid("model", &text),
            ] {
                // Clients accept 16 KiB of headers by default, some 8 KiB.
                assert!(header_bytes(status) < 8192);
            }
        }
    }
}
