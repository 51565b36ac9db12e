//! Separates gRPC from HTTP, and applies the rules for browsers to all that is
//! not gRPC before anything else sees it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response, Version, header};
use axum::routing::future::RouteFuture;
use futures_util::future::Either;
use tower::Service;

use super::api_error::ApiError;
use super::origin_policy::OriginPolicy;
use crate::rpc::peer::Peer;

/// The services of the port.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// gRPC over HTTP/2. A browser cannot send it: without TLS no browser
    /// speaks HTTP/2, and with TLS it accepts only the names of the certificate.
    pub(super) grpc: Router,
    pub(super) grpc_web: Router,
    pub(super) web: Router,
    pub(super) policy: Arc<OriginPolicy>,
}

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    GrpcWeb,
    Http,
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<RouteFuture<Infallible>, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routers are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_grpc(&request) {
            return Either::Left(self.grpc.call(request));
        }
        let (parts, body) = request.into_parts();
        let service = match self.admit(&parts) {
            Ok(Protocol::GrpcWeb) => &mut self.grpc_web,
            Ok(_) => &mut self.web,
            Err(error) => {
                let peer = Peer::of(&parts.extensions).address;
                let peer = peer.map(tracing::field::display);
                tracing::info!(peer, reason = error.message(), "request rejected");
                return Either::Right(ready(Ok(error.into())));
            }
        };
        Either::Left(service.call(Request::from_parts(parts, body)))
    }
}

impl Dispatch {
    /// Checks a request that is not gRPC, and returns what it is.
    fn admit(&self, request: &Parts) -> Result<Protocol, ApiError> {
        let checked = self.policy.check(request);
        checked.map_err(|rejection| ApiError::forbidden(&rejection))?;
        // No other method changes anything.
        if request.method != Method::POST {
            return Ok(Protocol::Http);
        }
        match protocol(&request.headers) {
            Some(Protocol::Grpc) => Err(ApiError::unsupported_media_type(
                "gRPC requires HTTP/2; over HTTP/1.1 use application/grpc-web+proto",
            )),
            Some(protocol) => Ok(protocol),
            None => Err(ApiError::unsupported_media_type(
                "content-type must be application/json",
            )),
        }
    }
}

fn is_grpc(request: &Request<Body>) -> bool {
    request.version() == Version::HTTP_2
        && protocol(request.headers()) == Some(Protocol::Grpc)
        && !request.headers().contains_key(header::ORIGIN)
}

/// What the content type says; `None` if it is none of those that are served. A
/// form can send none of them.
fn protocol(headers: &HeaderMap) -> Option<Protocol> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split_once(';').map_or(value, |(essence, _)| essence);
    let essence = essence.trim().to_ascii_lowercase();
    match essence.strip_prefix("application/")? {
        "json" => Some(Protocol::Http),
        "grpc" => Some(Protocol::Grpc),
        rest if rest.starts_with("grpc+") => Some(Protocol::Grpc),
        rest if rest == "grpc-web" || rest.starts_with("grpc-web+") => Some(Protocol::GrpcWeb),
        rest if rest.starts_with("grpc-web-text") => Some(Protocol::GrpcWeb),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content_type: &str) -> Option<Protocol> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().ok()?);
        protocol(&headers)
    }

    #[test]
    fn the_content_type_says_what_a_request_is() {
        assert_eq!(of("application/grpc"), Some(Protocol::Grpc));
        assert_eq!(of("application/grpc+proto"), Some(Protocol::Grpc));
        assert_eq!(of("application/grpc-web+proto"), Some(Protocol::GrpcWeb));
        assert_eq!(of("application/grpc-web-text"), Some(Protocol::GrpcWeb));
        assert_eq!(of("Application/JSON; charset=utf-8"), Some(Protocol::Http));
    }

    #[test]
    fn what_a_form_can_send_is_not_served() {
        for form in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain; application/json",
            "application/jsonp",
        ] {
            assert_eq!(of(form), None, "{form}");
        }
        assert_eq!(protocol(&HeaderMap::new()), None);
    }
}
