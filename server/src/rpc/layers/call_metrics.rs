//! Counts the calls by method and status code.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use crate::metrics::{Metrics, StartedCall};

/// Counts each call when it starts and when it ends, also those that an inner
/// layer rejects.
#[derive(Clone, Debug)]
pub struct CallMetricsLayer {
    metrics: Metrics,
}

impl CallMetricsLayer {
    /// Counts in `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for CallMetricsLayer {
    type Service = CallMetricsService<S>;

    fn layer(&self, inner: S) -> CallMetricsService<S> {
        CallMetricsService {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// A service behind a [`CallMetricsLayer`].
#[derive(Clone, Debug)]
pub struct CallMetricsService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Service<http::Request<Body>> for CallMetricsService<S>
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
        let mut call = CallGuard {
            call: self.metrics.call_started(request.uri().path()),
            counted: false,
            metrics: self.metrics.clone(),
        };
        let response = self.inner.call(request);
        let counted = response.map(|response| {
            let response = response?;
            // A response without messages has its status in the headers.
            call.look_for_status(response.headers());
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.look_for_status(trailers);
                    }
                    frame
                }))
            }))
        });
        counted.boxed()
    }
}

/// A call that has not ended. It is counted before its status is sent; if it
/// is dropped before that, because the client has left, it is counted as
/// CANCELLED.
struct CallGuard {
    call: StartedCall,
    counted: bool,
    metrics: Metrics,
}

impl CallGuard {
    fn look_for_status(&mut self, headers: &http::HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.count(Code::from_bytes(code.as_bytes()));
        }
    }

    fn count(&mut self, code: Code) {
        if !self.counted {
            self.counted = true;
            self.metrics.call_handled(self.call, code);
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}
