//! Errors in the format of OpenAI's API. The errors of calls are the statuses
//! of gRPC, with the fields named as in this API.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use utoipa::ToSchema;

use crate::rpc::layers::call_outcome::CallOutcome;
use crate::rpc::status::shorten;

/// Header that says whether OpenAI's clients should repeat a failed request.
const SHOULD_RETRY: &str = "x-should-retry";

/// Codes of HTTP that `http` has no name for.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The body of an error response.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    pub(super) error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// What is wrong, where, and what would be right; for people.
    pub(super) message: String,
    /// Kind of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// The field of the request that is wrong.
    pub(super) param: Option<String>,
    /// The reason, as in `ErrorInfo` of the gRPC API.
    pub(super) code: Option<String>,
    /// Values that clients need, such as the `position` of a session.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: BTreeMap<String, String>,
}

/// An error, as a response.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    /// The same error in gRPC, for metrics and the log.
    grpc: Code,
    detail: Box<ErrorDetail>,
    retry_after: Option<Duration>,
    /// Whether a client may repeat the request as it is.
    may_repeat: bool,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&str>, message: impl Into<String>) -> Self {
        Self {
            status,
            grpc: grpc_code(status),
            detail: Box::new(ErrorDetail {
                message: shorten(message.into()),
                kind: kind(status),
                param: None,
                code: code.map(str::to_owned),
                metadata: BTreeMap::new(),
            }),
            retry_after: None,
            may_repeat: false,
        }
    }

    /// 400: a field is wrong. The message follows the name of the field.
    pub(super) fn invalid(field: &str, message: impl Display) -> Self {
        let message = format!("{field}: {message}");
        let mut error = Self::new(StatusCode::BAD_REQUEST, None, message);
        error.detail.param = Some(field.to_owned());
        error
    }

    /// 400: the body is not what it must be.
    pub(super) fn bad_body(message: impl Display) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Some("INVALID_BODY"),
            message.to_string(),
        )
    }

    /// 403: the host or the origin is not allowed.
    pub(super) fn forbidden(rejection: &dyn Display) -> Self {
        let message = rejection.to_string();
        Self::new(StatusCode::FORBIDDEN, Some("ORIGIN_NOT_ALLOWED"), message)
    }

    /// 404: there is nothing at this path.
    pub(super) fn unknown_path() -> Self {
        let message = "there is nothing at this path; GET /openapi.json describes the API";
        Self::new(StatusCode::NOT_FOUND, Some("UNKNOWN_PATH"), message)
    }

    /// 405: the path has other methods, which `Allow` names.
    pub(super) fn method_not_allowed() -> Self {
        let message = "this path does not have this method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Some("METHOD_NOT_ALLOWED"),
            message,
        )
    }

    /// 409: the request is a repeat of one whose outcome is unknown.
    pub(super) fn unsafe_repeat() -> Self {
        let message = "this is an automatic repeat of a request in a session, which could advance \
                       the session twice: send expected_position, or turn off automatic retries";
        Self::new(StatusCode::CONFLICT, Some("UNSAFE_REPEAT"), message)
    }

    /// 413: the body is too large.
    pub(super) fn too_large(max_bytes: usize) -> Self {
        let message = format!("the body must have at most {max_bytes} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Some("BODY_TOO_LARGE"),
            message,
        )
    }

    /// 415: the content type is not served.
    pub(super) fn unsupported_media_type(message: &str) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, Some("UNSUPPORTED_MEDIA_TYPE"), message)
    }

    /// Returns the same error, which a client must not repeat by itself.
    pub(super) fn not_to_be_repeated(mut self) -> Self {
        self.may_repeat = false;
        self
    }

    /// Returns the same error; if it is internal, with the id of its request: the
    /// log has more under it.
    pub(super) fn with_request_id(mut self, id: &str) -> Self {
        if self.grpc == Code::Internal {
            let metadata = &mut self.detail.metadata;
            metadata.insert("request_id".to_owned(), id.to_owned());
        }
        self
    }

    /// Returns what is wrong.
    pub(super) fn message(&self) -> &str {
        &self.detail.message
    }

    /// Returns the body, for a stream that fails after its beginning.
    pub(super) fn body(self) -> ErrorBody {
        ErrorBody {
            error: *self.detail,
        }
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let mut error = Self::new(http_status(status.code()), None, status.message());
        error.grpc = status.code();
        if let Some(info) = details.error_info() {
            error.detail.code = Some(info.reason.clone());
            error.detail.metadata = info.metadata.clone().into_iter().collect();
        }
        let violations = details.bad_request().map(|bad| &bad.field_violations);
        if let Some(violation) = violations.and_then(|all| all.first()) {
            let field = field_name(&violation.field);
            error.detail.message = format!("{field}: {}", violation.description);
            error.detail.param = Some(field);
        }
        error.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        error.may_repeat = error.retry_after.is_some();
        error
    }
}

/// Returns the name in this API of a field of the gRPC API.
fn field_name(field: &str) -> String {
    let field = field.strip_prefix("sampling.").unwrap_or(field);
    match field {
        "prime" => "prompt",
        "max_chars" => "max_tokens",
        other => other,
    }
    .to_owned()
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled => {
            StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST)
        }
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Returns the gRPC code of an error that only HTTP has.
fn grpc_code(status: StatusCode) -> Code {
    match status {
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
        StatusCode::CONFLICT => Code::Aborted,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Unknown,
    }
}

/// What OpenAI's API calls the errors with a status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let should_retry = HeaderValue::from_static(if self.may_repeat { "true" } else { "false" });
        let mut response = (
            self.status,
            Json(ErrorBody {
                error: *self.detail,
            }),
        )
            .into_response();
        let outcome = CallOutcome::failed(self.grpc);
        response.extensions_mut().insert(outcome);
        let headers = response.headers_mut();
        headers.insert(SHOULD_RETRY, should_retry);
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(delay) = self.retry_after {
            // In whole seconds, and never too early.
            let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<ApiError> for Response<Body> {
    fn from(error: ApiError) -> Self {
        error.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::status;

    #[test]
    fn a_status_becomes_an_error_that_names_the_field_as_in_this_api() {
        for (grpc, http) in [
            ("prime", "prompt"),
            ("max_chars", "max_tokens"),
            ("sampling.top_p", "top_p"),
            ("stop[1]", "stop[1]"),
        ] {
            let error = ApiError::from(status::invalid(grpc, "must be smaller"));
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert_eq!(error.detail.param.as_deref(), Some(http));
            assert_eq!(error.detail.message, format!("{http}: must be smaller"));
        }
    }

    #[test]
    fn only_a_rejection_with_a_delay_may_be_repeated() {
        let delay = Duration::from_millis(1200);
        let error = ApiError::from(status::full("OVERLOADED", "full", delay));
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-should-retry"], "true");

        let error = ApiError::from(status::refused(Code::Aborted, "SESSION_BUSY", "busy"));
        assert_eq!(error.detail.code.as_deref(), Some("SESSION_BUSY"));
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(response.headers()["x-should-retry"], "false");
    }
}
