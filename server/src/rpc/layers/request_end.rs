//! Distinguishes requests that their client has completed from those that it
//! has given up.
//!
//! The transport ends the messages of a request in the same way whether the
//! client has half-closed it, has cancelled it, or has reset it with NO_ERROR:
//! a service that acts at the end of its messages would act on half an upload.
//! Behind this layer, the messages of a request end only if the client has
//! sent END_STREAM; otherwise they end with an error.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, http};

use crate::rpc::status;

/// Returns the request with a body that ends only if the client has completed
/// it. For `tower::layer::layer_fn` and `ServiceBuilder::map_request`.
pub fn require_end(request: http::Request<Body>) -> http::Request<Body> {
    // HTTP/1 has the length of a body or its last chunk, which hyper checks.
    let marks_end = request.version() == http::Version::HTTP_2;
    request.map(|body| Body::new(CompleteBody { body, marks_end }))
}

/// The body of a request.
struct CompleteBody {
    body: Body,
    /// Whether the transport reports END_STREAM.
    marks_end: bool,
}

impl http_body::Body for CompleteBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(_)) => Some(Err(status::request_incomplete())),
            None if self.marks_end && !self.body.is_end_stream() => {
                Some(Err(status::request_incomplete()))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
