//! Tracks the calls in flight, so that a shutdown can wait for them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tower::Layer;

/// Tracks each call from its request to the last byte of its response.
#[derive(Clone, Debug)]
pub struct InFlightLayer {
    calls: TaskTracker,
}

impl InFlightLayer {
    /// Tracks in `calls`.
    pub fn new(calls: TaskTracker) -> Self {
        Self { calls }
    }
}

impl<S> Layer<S> for InFlightLayer {
    type Service = InFlightService<S>;

    fn layer(&self, inner: S) -> InFlightService<S> {
        InFlightService {
            inner,
            calls: self.calls.clone(),
        }
    }
}

/// A service behind an [`InFlightLayer`].
#[derive(Clone, Debug)]
pub struct InFlightService<S> {
    inner: S,
    calls: TaskTracker,
}

impl<S> Service<http::Request<Body>> for InFlightService<S>
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
        let token = self.calls.token();
        let response = self.inner.call(request);
        let tracked = response.map(|response| {
            Ok(response?.map(|body| {
                Body::new(TrackedBody {
                    body,
                    _token: token,
                })
            }))
        });
        tracked.boxed()
    }
}

/// The body of a response. While it lives, its call is in flight.
struct TrackedBody {
    body: Body,
    _token: TaskTrackerToken,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tower::service_fn;

    use super::*;

    #[tokio::test]
    async fn a_call_is_in_flight_until_its_response_is_dropped() {
        let calls = TaskTracker::new();
        let mut service = InFlightLayer::new(calls.clone()).layer(service_fn(async |_| {
            let body = http_body_util::Full::new(Bytes::from_static(b"message"));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        assert!(calls.is_empty());
        let call = service.call(http::Request::new(Body::empty()));
        assert_eq!(calls.len(), 1, "before there is a response");
        let Ok(response) = call.await;
        assert_eq!(calls.len(), 1, "while the response is sent");
        drop(response);
        assert!(calls.is_empty());
    }
}
