//! Ends calls whose credentials are no longer accepted.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, http};

use crate::rpc::status;

/// A signal that is polled next to what it ends.
struct Revocation(Pin<Box<WaitForCancellationFutureOwned>>);

impl Revocation {
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        self.0.as_mut().poll(context).is_ready()
    }
}

/// A call that ends with UNAUTHENTICATED when its credentials are revoked.
pub struct RevocableCall<F> {
    /// `None` once there is a response.
    call: Option<(Pin<Box<F>>, Revocation)>,
}

impl<F> RevocableCall<F> {
    pub(super) fn new(call: F, revoked: CancellationToken) -> Self {
        let revocation = Revocation(Box::pin(revoked.cancelled_owned()));
        Self {
            call: Some((Box::pin(call), revocation)),
        }
    }
}

impl<F> Future for RevocableCall<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some((call, revocation)) = &mut self.call else {
            return Poll::Pending;
        };
        if revocation.poll(context) {
            self.call = None;
            return Poll::Ready(Ok(status::revoked().into_http()));
        }
        let Poll::Ready(Ok(response)) = call.as_mut().poll(context) else {
            return Poll::Pending;
        };
        let Some((_, revocation)) = self.call.take() else {
            return Poll::Pending;
        };
        Poll::Ready(Ok(response.map(|body| {
            Body::new(RevocableBody {
                stream: Some((body, revocation)),
            })
        })))
    }
}

/// The body of a response, which ends early when the credentials of the call are
/// revoked.
struct RevocableBody {
    /// `None` once it was ended.
    stream: Option<(Body, Revocation)>,
}

impl http_body::Body for RevocableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some((body, revocation)) = &mut self.stream else {
            return Poll::Ready(None);
        };
        if !revocation.poll(context) {
            return Pin::new(body).poll_frame(context);
        }
        // Dropping the body ends the call behind it.
        self.stream = None;
        let trailers = status::trailers(status::revoked());
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream
            .as_ref()
            .is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.stream
            .as_ref()
            .map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::{pending, ready};

    use http_body_util::BodyExt;
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_call_without_a_response_ends_when_it_is_revoked() {
        let revoked = CancellationToken::new();
        let call = RevocableCall::new(pending(), revoked.clone());
        revoked.cancel();
        let Ok(response) = call.await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
    }

    #[tokio::test]
    async fn a_stream_ends_with_a_status_when_it_is_revoked() {
        let revoked = CancellationToken::new();
        let frames = tokio_stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(b"a")))]);
        let endless = frames.chain(tokio_stream::pending());
        let body = Body::new(http_body_util::StreamBody::new(endless));
        let call = RevocableCall::new(ready(Ok(http::Response::new(body))), revoked.clone());
        let Ok(response) = call.await;
        let mut body = response.into_body();
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(data, "a");
        revoked.cancel();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers();
        let status = Status::from_header_map(&trailers.unwrap()).unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(body.frame().await.is_none());
    }
}
