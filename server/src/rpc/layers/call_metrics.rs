//! Counts the calls by method and status code.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::{Code, Status};
use tower::Layer;

use super::call_outcome::StatusFinder;
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
            status: StatusFinder::default(),
        };
        let response = self.inner.call(request);
        let counted = response.map(|response| {
            let response = response?;
            // A response without messages has its status in the headers.
            if let Some(code) = call.status.begin(&response) {
                call.count(code);
            }
            Ok(response.map(|body| Body::new(CountedBody { body, call })))
        });
        counted.boxed()
    }
}

/// The body of a response whose call is counted.
struct CountedBody {
    body: Body,
    call: CallGuard,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, call } = &mut *self;
        let frame = std::task::ready!(Pin::new(&mut *body).poll_frame(context));
        if let Some(Err(_)) = frame {
            return Poll::Ready(frame);
        }
        let sent = frame.as_ref().and_then(|frame| frame.as_ref().ok());
        if let Some(code) = call.status.after_frame(sent, body.is_end_stream()) {
            call.count(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A call that has not ended. It is counted before its status is sent; if it
/// is dropped before that, because the client has left, it is counted as
/// CANCELLED.
struct CallGuard {
    call: StartedCall,
    counted: bool,
    metrics: Metrics,
    status: StatusFinder,
}

impl CallGuard {
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
