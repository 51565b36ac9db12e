//! The reader's end of a generation.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::Stream;

use crate::error::GenerateError;
use crate::event::GenerationEvent;
use crate::text_buffer::TextBuffer;

/// The events of one generation. The last one is `Finished` or an error.
///
/// In a session, both come after the session was committed: if the last event
/// is `Finished`, the session's new state is durable.
///
/// Dropping the stream ends the generation within a step, and commits the
/// session at the last text that was taken.
pub struct GenerationStream {
    buffer: Arc<TextBuffer>,
    max_chars: usize,
    has_ended: bool,
}

impl GenerationStream {
    pub(crate) fn new(buffer: Arc<TextBuffer>) -> Self {
        Self {
            buffer,
            max_chars: usize::MAX,
            has_ended: false,
        }
    }

    /// Returns the same events with at most this number of characters in each
    /// text, at least one.
    pub fn with_max_chars(mut self, max_chars: usize) -> Self {
        self.max_chars = max_chars.max(1);
        self
    }

    /// Restarts the time limit for readers, for a reader that takes nothing at
    /// the moment but has not left.
    pub fn keep_alive(&self) {
        self.buffer.keep_alive();
    }

    /// Returns the same events for a reader that collects the whole text before
    /// it passes any of it on: if the generation fails, or if the stream is
    /// dropped before its end, the session stays as it was before the call.
    pub fn whole(self) -> Self {
        self.buffer.set_whole();
        self
    }
}

impl Stream for GenerationStream {
    type Item = Result<GenerationEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.buffer.poll_take(context, self.max_chars));
        self.has_ended = matches!(
            event,
            Some(Ok(GenerationEvent::Finished(_)) | Err(_)) | None
        );
        Poll::Ready(event)
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        if !self.has_ended {
            self.buffer.leave();
        }
    }
}
