//! Ends calls whose deadline has passed before they have a response.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::codegen::{Service, http};

use crate::rpc::deadline::{Deadline, deadline};
use crate::rpc::status;

/// A service whose calls end with DEADLINE_EXCEEDED if they have no response
/// when their `grpc-timeout` has passed. A response that has begun is not cut
/// off: the service ends it, or the client does.
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S> DeadlineService<S> {
    /// Wraps a service.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<http::Request<Body>> for DeadlineService<S>
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let deadline = deadline(request.headers());
        if let Some(deadline) = deadline {
            // For services whose response outlasts this layer.
            request.extensions_mut().insert(Deadline(deadline));
        }
        let response = self.inner.call(request);
        Box::pin(async move {
            let Some(deadline) = deadline else {
                return response.await;
            };
            let expired = || Ok(status::deadline_exceeded().into_http());
            tokio::time::timeout_at(deadline.into(), response)
                .await
                .unwrap_or_else(|_| expired())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn code(timeout: &str) -> String {
        let service = service_fn(|_| std::future::pending());
        let request = http::Request::builder()
            .header("grpc-timeout", timeout)
            .body(Body::empty());
        let Ok(response) = DeadlineService::new(service)
            .oneshot(request.unwrap())
            .await;
        let code: &http::HeaderValue = &response.headers()["grpc-status"];
        code.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_call_without_a_response_ends_at_its_deadline() {
        for timeout in ["0m", "1n", "20m"] {
            assert_eq!(code(timeout).await, "4", "DEADLINE_EXCEEDED");
        }
    }
}
