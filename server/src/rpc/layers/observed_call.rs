//! Follows a call from its request to the end of its response, for the layers
//! that count and log calls.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::{Bytes, http};
use tonic::{Code, Status};

use super::call_outcome::StatusFinder;

/// A layer's view of one call.
pub(super) trait CallObserver: Send + Unpin + 'static {
    /// Reports the end of the call, once and before its status is sent.
    /// `headers` are those that are sent then: headers, trailers, or none.
    fn ended(&mut self, code: Code, headers: Option<&mut http::HeaderMap>);

    /// Polls the body of the response.
    fn poll<T>(&self, poll: impl FnOnce() -> T) -> T {
        poll()
    }
}

/// A call that has not ended. If it is dropped before it has a status, because
/// the client has left, it ends with CANCELLED.
pub(super) struct ObservedCall<O: CallObserver> {
    observer: O,
    status: StatusFinder,
    has_ended: bool,
}

impl<O: CallObserver> ObservedCall<O> {
    /// Follows a call whose request has arrived.
    pub(super) fn new(observer: O) -> Self {
        Self {
            observer,
            status: StatusFinder::default(),
            has_ended: false,
        }
    }

    /// Returns the observer.
    pub(super) fn observer(&self) -> &O {
        &self.observer
    }

    /// Returns the response, whose body ends the call.
    pub(super) fn respond(mut self, mut response: http::Response<Body>) -> http::Response<Body> {
        // A response without messages has its status in the headers.
        if let Some(code) = self.status.begin(&response) {
            self.end(code, Some(response.headers_mut()));
        }
        response.map(|body| Body::new(ObservedBody { body, call: self }))
    }

    fn end(&mut self, code: Code, headers: Option<&mut http::HeaderMap>) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.observer.ended(code, headers);
        }
    }
}

impl<O: CallObserver> Drop for ObservedCall<O> {
    fn drop(&mut self) {
        self.end(Code::Cancelled, None);
    }
}

/// The body of a response whose call has not ended.
struct ObservedBody<O: CallObserver> {
    body: Body,
    call: ObservedCall<O>,
}

impl<O: CallObserver> http_body::Body for ObservedBody<O> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, call } = &mut *self;
        let observer = &call.observer;
        let polled = observer.poll(|| Pin::new(&mut *body).poll_frame(context));
        let mut frame = ready!(polled).transpose()?;
        let is_end_stream = body.is_end_stream();
        if let Some(code) = call.status.after_frame(frame.as_ref(), is_end_stream) {
            call.end(code, frame.as_mut().and_then(Frame::trailers_mut));
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::rpc::status;

    impl CallObserver for mpsc::Sender<Code> {
        fn ended(&mut self, code: Code, _: Option<&mut http::HeaderMap>) {
            self.send(code).unwrap();
        }
    }

    #[test]
    fn a_call_ends_once_with_its_status_and_as_cancelled_if_it_is_dropped() {
        let (observer, ended) = mpsc::channel();
        let call = || ObservedCall::new(observer.clone());
        let codes = || ended.try_iter().collect::<Vec<_>>();
        drop(call());
        assert_eq!(codes(), [Code::Cancelled]);
        let text = http_body_util::Full::new(Bytes::from_static(b"text"));
        let response = call().respond(http::Response::new(Body::new(text)));
        assert_eq!(codes(), []);
        drop(response);
        assert_eq!(codes(), [Code::Cancelled]);
        let response = call().respond(status::request_incomplete().into_http());
        assert_eq!(codes(), [Code::Aborted]);
        drop(response);
        assert_eq!(codes(), []);
    }
}
