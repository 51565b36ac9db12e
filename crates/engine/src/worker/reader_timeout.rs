//! The time limit of a reader that takes nothing.

use std::time::{Duration, Instant};

use crate::text_buffer::TextBuffer;

/// For how long a reader has shown no activity.
pub(super) struct ReaderTimeout {
    activity: u64,
    pub(super) since: Instant,
}

impl ReaderTimeout {
    pub(super) fn new(buffer: &TextBuffer, now: Instant) -> Self {
        Self {
            activity: buffer.reader_activity(),
            since: now,
        }
    }

    /// Whether the reader has shown no activity for `limit`.
    pub(super) fn has_passed(
        &mut self,
        buffer: &TextBuffer,
        now: Instant,
        limit: Duration,
    ) -> bool {
        let activity = buffer.reader_activity();
        if activity != self.activity {
            (self.activity, self.since) = (activity, now);
        }
        now.duration_since(self.since) >= limit
    }
}
