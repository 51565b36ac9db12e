//! Tracks the calls in flight, so that a shutdown can wait for them, and ends
//! those whose client does not read their response.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tower::Layer;

use crate::rpc::status;

/// How often unread responses are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Time after which a response counts as unread during a shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Tracks each call from its request to the last byte of its response.
#[derive(Clone, Debug)]
pub struct InFlightLayer {
    calls: TaskTracker,
    responses: Arc<Responses>,
}

/// The responses that are being sent.
#[derive(Debug, Default)]
struct Responses {
    bodies: Mutex<SentBodies>,
}

/// The bodies of the responses, by an id that is not used again.
#[derive(Debug, Default)]
struct SentBodies {
    next_id: u64,
    by_id: HashMap<u64, Arc<Mutex<SentBody>>>,
}

impl InFlightLayer {
    /// Tracks in `calls`.
    pub fn new(calls: TaskTracker) -> Self {
        Self {
            calls,
            responses: Arc::default(),
        }
    }

    /// Ends the responses whose clients have read nothing for `timeout`, or for
    /// 2 s after `shutdown` was cancelled: their services release everything
    /// that they hold. Does not end by itself.
    ///
    /// The transport asks for the next message of a response only when the
    /// client has room for it, and a response that is not asked for cannot end
    /// itself.
    pub async fn end_unread(&self, timeout: Duration, shutdown: CancellationToken) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let limit = match shutdown.is_cancelled() {
                true => SHUTDOWN_TIMEOUT.min(timeout),
                false => timeout,
            };
            self.responses.end_unread(limit);
        }
    }
}

impl Responses {
    /// Ends the responses whose clients have read nothing for `limit`.
    fn end_unread(&self, limit: Duration) {
        for body in self.all() {
            // Dropped without the lock, since that ends the call.
            let unread = lock(&body).take_if_unread(limit);
            drop(unread);
        }
    }

    fn all(&self) -> Vec<Arc<Mutex<SentBody>>> {
        lock(&self.bodies).by_id.values().map(Arc::clone).collect()
    }

    fn add(&self, body: Arc<Mutex<SentBody>>) -> u64 {
        let mut bodies = lock(&self.bodies);
        let id = bodies.next_id;
        bodies.next_id += 1;
        bodies.by_id.insert(id, body);
        id
    }

    fn remove(&self, id: u64) {
        lock(&self.bodies).by_id.remove(&id);
    }
}

/// No code panics while it holds one of these locks, except for a service that
/// is polled: what it leaves is not used any more.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S> Layer<S> for InFlightLayer {
    type Service = InFlightService<S>;

    fn layer(&self, inner: S) -> InFlightService<S> {
        InFlightService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service behind an [`InFlightLayer`].
#[derive(Clone, Debug)]
pub struct InFlightService<S> {
    inner: S,
    layer: InFlightLayer,
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
        let token = self.layer.calls.token();
        let responses = Arc::clone(&self.layer.responses);
        let response = self.inner.call(request);
        let tracked = response.map(|response| {
            Ok(response?.map(|body| {
                let sent = Arc::new(Mutex::new(SentBody {
                    live: Some((body, token)),
                    unread_since: Some(Instant::now()),
                    has_ended: false,
                }));
                Body::new(TrackedBody {
                    id: responses.add(Arc::clone(&sent)),
                    sent,
                    responses,
                })
            }))
        });
        tracked.boxed()
    }
}

/// The body of a response. While it lives, its call is in flight.
struct TrackedBody {
    sent: Arc<Mutex<SentBody>>,
    id: u64,
    responses: Arc<Responses>,
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.responses.remove(self.id);
    }
}

#[derive(Debug)]
struct SentBody {
    /// `None` if it was ended because it was not read.
    live: Option<(Body, TaskTrackerToken)>,
    /// When it had a message for the client, which has not asked for the next
    /// one since. `None` while the service has nothing to send.
    unread_since: Option<Instant>,
    has_ended: bool,
}

impl SentBody {
    fn take_if_unread(&mut self, limit: Duration) -> Option<(Body, TaskTrackerToken)> {
        let is_unread = self.unread_since.is_some_and(|at| at.elapsed() >= limit);
        is_unread.then(|| self.live.take()).flatten()
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut sent = lock(&self.sent);
        let sent = &mut *sent;
        let Some((body, _)) = &mut sent.live else {
            if std::mem::replace(&mut sent.has_ended, true) {
                return Poll::Ready(None);
            }
            let trailers = status::trailers(status::response_unread());
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        };
        let frame = Pin::new(body).poll_frame(context);
        sent.unread_since = frame.is_ready().then(Instant::now);
        frame
    }

    fn is_end_stream(&self) -> bool {
        let sent = lock(&self.sent);
        match &sent.live {
            Some((body, _)) => body.is_end_stream(),
            None => sent.has_ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let sent = lock(&self.sent);
        match &sent.live {
            Some((body, _)) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;

    /// The response of a service that sends one message.
    async fn respond(layer: &InFlightLayer) -> http::Response<Body> {
        let mut service = layer.layer(service_fn(async |_| {
            let body = http_body_util::Full::new(Bytes::from_static(b"message"));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        let call = service.call(http::Request::new(Body::empty()));
        assert_eq!(layer.calls.len(), 1, "before there is a response");
        let Ok(response) = call.await;
        response
    }

    #[tokio::test]
    async fn a_call_is_in_flight_until_its_response_is_dropped() {
        let layer = InFlightLayer::new(TaskTracker::new());
        assert!(layer.calls.is_empty());
        let response = respond(&layer).await;
        assert_eq!(layer.calls.len(), 1, "while the response is sent");
        drop(response);
        assert!(layer.calls.is_empty());
        assert!(layer.responses.all().is_empty());
    }

    #[tokio::test]
    async fn a_response_that_is_not_read_is_ended() {
        let layer = InFlightLayer::new(TaskTracker::new());
        let mut response = respond(&layer).await;
        layer.responses.end_unread(Duration::from_secs(3600));
        assert_eq!(layer.calls.len(), 1);
        layer.responses.end_unread(Duration::ZERO);
        assert!(layer.calls.is_empty());
        let frame = response.body_mut().frame().await;
        let trailers = frame.and_then(|frame| frame.ok()?.into_trailers().ok());
        let code = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
        assert_eq!(code.as_ref().map(|code| code.as_bytes()), Some(&b"8"[..]));
        assert!(response.body_mut().frame().await.is_none());
    }

    #[tokio::test]
    async fn a_response_whose_service_has_nothing_to_send_yet_is_not_unread() {
        let layer = InFlightLayer::new(TaskTracker::new());
        let mut service = layer.layer(service_fn(async |_| {
            let messages = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
            let body = Body::new(http_body_util::StreamBody::new(messages));
            Ok::<_, Infallible>(http::Response::new(body))
        }));
        let Ok(mut response) = service.call(http::Request::new(Body::empty())).await;
        assert!(response.body_mut().frame().now_or_never().is_none());
        layer.responses.end_unread(Duration::ZERO);
        assert_eq!(layer.calls.len(), 1);
    }
}
