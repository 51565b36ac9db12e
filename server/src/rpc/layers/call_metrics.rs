//! Counts the calls by method and status code.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use super::observed_call::{CallObserver, ObservedCall};
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
        let call = ObservedCall::new(CountedCall {
            call: self.metrics.call_started(request.uri().path()),
            metrics: self.metrics.clone(),
        });
        let response = self.inner.call(request);
        response.map(|response| Ok(call.respond(response?))).boxed()
    }
}

/// A call that is counted when it ends.
struct CountedCall {
    call: StartedCall,
    metrics: Metrics,
}

impl CallObserver for CountedCall {
    fn ended(&mut self, code: Code, _: Option<&mut http::HeaderMap>) {
        self.metrics.call_handled(self.call, code);
    }
}
