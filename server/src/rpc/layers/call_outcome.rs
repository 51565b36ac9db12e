//! How a call ends, for the layers that count and log calls. A call of gRPC has
//! its status in the headers or the trailers of its response; the HTTP API, which
//! has none, puts a [`CallOutcome`] into the extensions of its response.

use std::sync::{Arc, OnceLock};

use http_body::Body;
use tonic::Code;
use tonic::codegen::{Bytes, http};

/// How a call of the HTTP API ends. Clones share it. The call has succeeded when
/// its response was sent completely, unless it has failed before.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallOutcome(Arc<OnceLock<Code>>);

impl CallOutcome {
    /// Returns the outcome of a call that is rejected.
    pub(crate) fn failed(code: Code) -> Self {
        Self(Arc::new(OnceLock::from(code)))
    }

    /// Records that the call fails after its response has begun. The first
    /// failure counts.
    pub(crate) fn fail(&self, code: Code) {
        let _ = self.0.set(code);
    }
}

/// Finds the status of a call in its response.
#[derive(Debug, Default)]
pub(super) struct StatusFinder {
    /// `None` for a call of gRPC.
    outcome: Option<CallOutcome>,
}

impl StatusFinder {
    /// Takes the beginning of the response. Returns the status if it is already
    /// known.
    pub(super) fn begin<B: Body>(&mut self, response: &http::Response<B>) -> Option<Code> {
        self.outcome = response.extensions().get().cloned();
        match &self.outcome {
            None => in_headers(response.headers()),
            Some(CallOutcome(failure)) => failure.get().copied().or_else(|| {
                let is_empty = response.body().is_end_stream();
                is_empty.then_some(Code::Ok)
            }),
        }
    }

    /// Returns the status if it is known after a frame of the body, or `None`
    /// after its last one. `is_end_stream` is that of the body: a transport
    /// does not ask for more frames then.
    pub(super) fn after_frame(
        &self,
        frame: Option<&http_body::Frame<Bytes>>,
        is_end_stream: bool,
    ) -> Option<Code> {
        match &self.outcome {
            None => in_headers(frame?.trailers_ref()?),
            Some(CallOutcome(failure)) => {
                let is_last = frame.is_none() || is_end_stream;
                is_last.then(|| failure.get().copied().unwrap_or(Code::Ok))
            }
        }
    }
}

fn in_headers(headers: &http::HeaderMap) -> Option<Code> {
    let code = headers.get("grpc-status")?;
    Some(Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn response() -> http::Response<tonic::body::Body> {
        let text = http_body_util::Full::new(Bytes::from_static(b"text"));
        http::Response::new(tonic::body::Body::new(text))
    }

    #[test]
    fn a_call_of_the_http_api_has_succeeded_when_its_last_frame_was_sent() {
        let mut response = response();
        response.extensions_mut().insert(CallOutcome::default());
        let mut finder = StatusFinder::default();
        assert_eq!(finder.begin(&response), None);
        let frame = http_body::Frame::data(Bytes::from_static(b"text"));
        assert_eq!(finder.after_frame(Some(&frame), false), None);
        assert_eq!(finder.after_frame(Some(&frame), true), Some(Code::Ok));
        assert_eq!(finder.after_frame(None, false), Some(Code::Ok));
    }

    #[test]
    fn a_call_of_the_http_api_can_fail_before_and_after_its_response_has_begun() {
        let mut response = response();
        let outcome = CallOutcome::default();
        response.extensions_mut().insert(outcome.clone());
        let mut finder = StatusFinder::default();
        finder.begin(&response);
        outcome.fail(Code::Aborted);
        outcome.fail(Code::Internal);
        assert_eq!(finder.after_frame(None, true), Some(Code::Aborted));
        assert_eq!(
            StatusFinder::default().begin(&response),
            Some(Code::Aborted)
        );
    }

    #[test]
    fn a_call_of_grpc_has_its_status_in_headers_or_trailers() {
        let mut response = response();
        let mut finder = StatusFinder::default();
        assert_eq!(finder.begin(&response), None);
        assert_eq!(finder.after_frame(None, true), None, "it was cut off");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        let frame = http_body::Frame::trailers(trailers.clone());
        assert_eq!(finder.after_frame(Some(&frame), true), Some(Code::NotFound));
        *response.headers_mut() = trailers;
        assert_eq!(finder.begin(&response), Some(Code::NotFound));
    }
}
