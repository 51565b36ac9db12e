//! The body of a request, with guarantees that every service relies on.
//!
//! - Its messages end only if the client has half-closed the request. The
//!   transport ends them in the same way whether the client has half-closed it,
//!   has cancelled it, or has reset it with NO_ERROR: a service that acts at
//!   the end of its messages would act on half an upload.
//! - A client that sends nothing for a time gets an error, and so does one that
//!   is still sending when the server shuts down: no upload holds resources for
//!   ever.
//! - A unary request has one message.
//! - The messages that have begun and are not complete have a limited size in
//!   total.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use charlstm_proto::METHODS;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, http};

use crate::rpc::status;

/// Length of the prefix of a message: a flag and the length.
const PREFIX_BYTES: usize = 5;

/// A large message may take the time limit for each part of this size.
const PART_BYTES: usize = 1024 * 1024;

/// Maximum size of one message to the server, in bytes. Models and corpora
/// arrive in chunks; this bounds the corpus of `StartTraining`, which is one
/// message.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Maximum size of all incomplete messages together, in KiB: eight of the
/// largest ones.
const MAX_BUFFERED_KIB: usize = 8 * MAX_MESSAGE_BYTES / 1024;

/// Messages below this size are not counted: a connection has a limited number
/// of calls, and the flow control of its connection bounds what they buffer.
const MIN_COUNTED_BYTES: usize = 64 * 1024;

/// Delay before a retry of a call whose message did not fit.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Gives requests their bodies.
#[derive(Clone, Debug)]
pub struct RequestBodyLayer {
    timeout: Duration,
    shutdown: CancellationToken,
    /// Paths of the methods whose request has one message.
    unary: Arc<HashSet<&'static str>>,
    buffered_kib: Arc<Semaphore>,
}

impl RequestBodyLayer {
    /// Bodies fail if the client sends nothing for `timeout`, and after
    /// `shutdown` was cancelled.
    pub fn new(timeout: Duration, shutdown: CancellationToken) -> Self {
        let unary = METHODS.iter().filter(|method| !method.client_streaming);
        Self {
            timeout,
            shutdown,
            unary: Arc::new(unary.map(|method| method.path).collect()),
            buffered_kib: Arc::new(Semaphore::new(MAX_BUFFERED_KIB)),
        }
    }

    /// Returns the request with such a body.
    pub fn wrap(&self, request: http::Request<Body>) -> http::Request<Body> {
        // HTTP/1 has the length of a body or its last chunk, which hyper checks.
        let marks_end = request.version() == http::Version::HTTP_2;
        let is_unary = self.unary.contains(request.uri().path());
        request.map(|body| {
            Body::new(RequestBody {
                body,
                marks_end,
                timeout: self.timeout,
                timer: None,
                shutdown: Box::pin(self.shutdown.clone().cancelled_owned()),
                messages: Messages::new(is_unary, Arc::clone(&self.buffered_kib)),
            })
        })
    }
}

struct RequestBody {
    body: Body,
    /// Whether the transport reports END_STREAM.
    marks_end: bool,
    timeout: Duration,
    /// Runs while the next part of a message is awaited.
    timer: Option<Pin<Box<Sleep>>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    messages: Messages,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.poll_limits(context).map(|status| Some(Err(status)));
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => match self.messages.received(frame.data_ref()) {
                Ok(is_part_complete) => {
                    if is_part_complete {
                        self.timer = None;
                    }
                    Some(Ok(frame))
                }
                Err(status) => Some(Err(status)),
            },
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

impl RequestBody {
    /// Returns why the client is not awaited any longer.
    fn poll_limits(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if self.shutdown.as_mut().poll(context).is_ready() {
            return Poll::Ready(status::server_stopping());
        }
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        timer
            .as_mut()
            .poll(context)
            .map(|()| status::request_stalled(timeout))
    }
}

/// Follows the messages in the bytes of a request.
struct Messages {
    is_unary: bool,
    buffered_kib: Arc<Semaphore>,
    /// Bytes of the current prefix.
    prefix: Vec<u8>,
    /// Bytes that the current message still lacks.
    missing: usize,
    /// Bytes since the last part was complete.
    since_part: usize,
    /// Whether a message was complete.
    had_message: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Messages {
    fn new(is_unary: bool, buffered_kib: Arc<Semaphore>) -> Self {
        Self {
            is_unary,
            buffered_kib,
            prefix: Vec::with_capacity(PREFIX_BYTES),
            missing: 0,
            since_part: 0,
            had_message: false,
            _permit: None,
        }
    }

    /// Takes the next bytes. Returns whether a message, or a large part of one,
    /// is complete.
    fn received(&mut self, data: Option<&Bytes>) -> Result<bool, Status> {
        let mut data: &[u8] = data.map_or(&[], |data| data);
        let mut is_part_complete = false;
        while !data.is_empty() {
            if self.missing > 0 {
                let taken = data.len().min(self.missing);
                data = &data[taken..];
                self.missing -= taken;
                self.since_part += taken;
                if self.missing == 0 || self.since_part >= PART_BYTES {
                    self.since_part = 0;
                    is_part_complete = true;
                }
                self.had_message |= self.missing == 0;
                continue;
            }
            if self.had_message && self.is_unary {
                return Err(status::second_message());
            }
            let taken = data.len().min(PREFIX_BYTES - self.prefix.len());
            self.prefix.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if let [_, a, b, c, d] = self.prefix[..] {
                self.prefix.clear();
                self.begin(u32::from_be_bytes([a, b, c, d]) as usize)?;
                is_part_complete |= self.missing == 0;
            }
        }
        Ok(is_part_complete)
    }

    /// Begins a message of this length.
    fn begin(&mut self, length: usize) -> Result<(), Status> {
        // The service has taken the previous message.
        self._permit = None;
        self.missing = length;
        self.had_message |= length == 0;
        if length < MIN_COUNTED_BYTES {
            return Ok(());
        }
        // The decoder rejects what is longer than any message.
        let kib = u32::try_from(length.min(MAX_MESSAGE_BYTES).div_ceil(1024));
        let kib = kib.unwrap_or(u32::MAX);
        match Arc::clone(&self.buffered_kib).try_acquire_many_owned(kib) {
            Ok(permit) => self._permit = Some(permit),
            Err(_) => return Err(status::too_many_large_messages(RETRY_AFTER)),
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;

    use super::*;

    const UNARY: &str = "/charlstm.v1.ModelService/GetModel";
    const STREAM: &str = "/charlstm.v1.TrainingService/Train";

    fn layer() -> RequestBodyLayer {
        RequestBodyLayer::new(Duration::from_secs(60), CancellationToken::new())
    }

    /// Bytes of a message of this length.
    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(bytes.len() + length as usize, 7);
        bytes
    }

    fn body(layer: &RequestBodyLayer, path: &str, parts: Vec<Vec<u8>>, is_endless: bool) -> Body {
        let frames = stream::iter(parts).map(|part| Ok::<_, Status>(Frame::data(part.into())));
        let rest = match is_endless {
            true => stream::pending().left_stream(),
            false => stream::empty().right_stream(),
        };
        let body = Body::new(StreamBody::new(frames.chain(rest)));
        let request = http::Request::post(path).version(http::Version::HTTP_11);
        layer.wrap(request.body(body).unwrap()).into_body()
    }

    async fn read(body: Body) -> Result<usize, Code> {
        let collected = body.collect().await.map_err(|status| status.code())?;
        Ok(collected.to_bytes().len())
    }

    #[tokio::test]
    async fn a_unary_request_has_one_message_however_it_is_divided() {
        for part in [1, 3, 8, 100] {
            let parts = |bytes: Vec<u8>| bytes.chunks(part).map(<[u8]>::to_vec).collect();
            let one = body(&layer(), UNARY, parts(message(20)), false);
            assert_eq!(read(one).await, Ok(25));
            for second in [0, 20] {
                let two = parts([message(20), message(second)].concat());
                let two = body(&layer(), UNARY, two, false);
                assert_eq!(read(two).await, Err(Code::InvalidArgument));
            }
            let two = parts([message(0), message(0)].concat());
            assert_eq!(
                read(body(&layer(), UNARY, two.clone(), false)).await,
                Err(Code::InvalidArgument)
            );
            assert_eq!(read(body(&layer(), STREAM, two, false)).await, Ok(10));
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_for_the_time_limit_gets_an_error() {
        let layer = RequestBodyLayer {
            timeout: Duration::from_millis(1),
            ..layer()
        };
        let silent = body(&layer, STREAM, vec![message(4)], true);
        assert_eq!(read(silent).await, Err(Code::ResourceExhausted));
    }

    #[tokio::test]
    async fn a_shutdown_ends_the_requests_that_are_not_complete() {
        let layer = layer();
        let silent = body(&layer, STREAM, vec![message(4)], true);
        layer.shutdown.cancel();
        assert_eq!(read(silent).await, Err(Code::Unavailable));
    }

    #[tokio::test]
    async fn incomplete_messages_have_a_limited_size_in_total() {
        let layer = layer();
        let prefix = [&[0][..], &(64_u32 << 20).to_be_bytes()].concat();
        let mut bodies = Vec::new();
        let open = || body(&layer, STREAM, vec![prefix.clone()], true);
        for _ in 0..8 {
            let mut body = open();
            assert!(body.frame().await.unwrap().is_ok());
            bodies.push(body);
        }
        let refused = open().frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        bodies.pop();
        assert!(open().frame().await.unwrap().is_ok());
    }
}
