//! Checks that requests follow the gRPC protocol, and reports violations.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, StatusCode, header};
use tonic::codegen::{Service, http};

use crate::rpc::status;

/// Rejects requests that are not gRPC with 415, and reports requests that
/// cannot be decoded as INVALID_ARGUMENT.
#[derive(Clone, Debug)]
pub struct ProtocolService<S> {
    inner: S,
}

impl<S> ProtocolService<S> {
    /// Wraps a service.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<http::Request<Body>> for ProtocolService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            let mut response = http::Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return std::future::ready(Ok(response)).boxed();
        }
        let response = self.inner.call(request);
        response
            .map(|response| {
                let response = response?;
                Ok(match undecoded(response.headers()) {
                    Some(reason) => status::undecodable(&reason).into_http(),
                    None => response,
                })
            })
            .boxed()
    }
}

/// Whether the content type is `application/grpc`, alone or with a codec.
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let Some(value) = value.and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let value = value.to_ascii_lowercase();
    match value.strip_prefix("application/grpc") {
        Some(rest) => rest.is_empty() || rest.starts_with('+') || rest.starts_with(';'),
        None => false,
    }
}

/// Returns the message of a response that says that the request could not be
/// decoded. The library reports that as INTERNAL, without the details that each
/// status of this server has.
fn undecoded(headers: &HeaderMap) -> Option<String> {
    let status = status::of_response(headers)?;
    let is_library = status.code() == Code::Internal && status.details().is_empty();
    is_library.then(|| status.message().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tonic::codegen::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_content_types_of_grpc_are_accepted() {
        let is_accepted = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            is_grpc(&headers)
        };
        for right in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC",
            "application/grpc; charset=utf-8",
        ] {
            assert!(is_accepted(right), "{right}");
        }
        for wrong in ["text/html", "application/json", "application/grpc-web", ""] {
            assert!(!is_accepted(wrong), "{wrong}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn an_internal_error_of_the_server_is_not_taken_for_one_of_the_client() {
        let headers = |status: tonic::Status| status.into_http::<()>().into_parts().0.headers;
        assert_eq!(undecoded(&headers(status::internal(&"a bug"))), None);
        let library = tonic::Status::internal("failed to decode Protobuf message");
        let reason = undecoded(&headers(library)).unwrap();
        assert_eq!(reason, "failed to decode Protobuf message");
    }
}
