//! When unread text is worth a message.
//!
//! What a client has not read lies in the flow-control windows of its
//! connection, which this side does not see. There each message is a frame,
//! and an HTTP/2 client that finds too many small frames unread takes the
//! server for an attacker and closes the whole connection (h2 since 0.4.6: 256
//! bytes less the size of the frame count against a budget of half the
//! connection's window, some 11,000 characters by default). So a text that has
//! become long is sent in larger pieces.

use std::time::{Duration, Instant};

/// Number of characters of a call that each have a message of their own.
const SINGLE_CHARS: u64 = 2_000;
/// In a longer text, a piece has one part in this many of what was sent
/// before: sending ten times as much takes some 1,200 messages.
const SENT_CHARS_PER_CHAR: u64 = 500;
/// Maximum time that a character waits for the rest of its piece.
const MAX_WAIT: Duration = Duration::from_millis(50);
/// Maximum time that a character of a text of usual length waits while the
/// machine is saturated; too short to be seen.
const MAX_SATURATED_WAIT: Duration = Duration::from_millis(10);

/// Decides when the text of one call is sent.
#[derive(Debug, Default)]
pub(crate) struct FlushPolicy {
    /// When the oldest character arrived that waits.
    since: Option<Instant>,
}

impl FlushPolicy {
    /// Returns whether `unread` characters, the last of which just arrived,
    /// are to be sent after `sent` others. On a saturated machine a message
    /// waits for `min_chars`; otherwise that is 1. The first character of a
    /// text never waits.
    pub(crate) fn is_due(
        &mut self,
        sent: u64,
        unread: u64,
        min_chars: u64,
        now: impl Fn() -> Instant,
    ) -> bool {
        let (piece, max_wait) = if sent < SINGLE_CHARS {
            (min_chars.min(sent), MAX_SATURATED_WAIT)
        } else {
            (min_chars.max(sent / SENT_CHARS_PER_CHAR), MAX_WAIT)
        };
        unread >= piece || now() - *self.since.get_or_insert_with(&now) >= max_wait
    }

    /// Records that all unread text was sent.
    pub(crate) fn sent(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of messages for a text whose characters arrive at this interval,
    /// and the characters of the longest one.
    fn messages(chars: u64, min_chars: u64, interval: Duration) -> (u64, u64) {
        let (mut policy, begin) = (FlushPolicy::default(), Instant::now());
        let (mut sent, mut unread, mut messages, mut longest) = (0, 0, 0, 0);
        for n in 0..chars {
            unread += 1;
            if policy.is_due(sent, unread, min_chars, || begin + interval * n as u32) {
                longest = unread.max(longest);
                (sent, unread) = (sent + unread, 0);
                policy.sent();
                messages += 1;
            }
        }
        (messages, longest)
    }

    #[test]
    fn a_text_of_usual_length_is_sent_character_by_character() {
        assert_eq!(messages(2_000, 1, Duration::ZERO), (2_000, 1));
    }

    #[test]
    fn a_million_characters_take_some_thousand_messages() {
        let (messages, _) = messages(1_000_000, 1, Duration::ZERO);
        assert!((4_000..6_000).contains(&messages), "{messages}");
    }

    #[test]
    fn no_piece_of_a_slow_text_waits_longer_than_the_limit() {
        let (_, longest) = messages(100_000, 1, Duration::from_millis(10));
        assert_eq!(longest, 6);
        assert_eq!(messages(5_000, 1, Duration::from_millis(50)).1, 2);
    }

    #[test]
    fn on_a_saturated_machine_a_message_waits_for_characters_but_not_for_long() {
        assert_eq!(messages(2_000, 8, Duration::ZERO).1, 8);
        assert!(messages(2_000, 8, Duration::ZERO).0 < 260);
        let (_, longest) = messages(1_000, 8, Duration::from_millis(5));
        assert_eq!(longest, 3, "10 ms after the first of them");
        let mut policy = FlushPolicy::default();
        assert!(policy.is_due(0, 1, 8, Instant::now), "the first character");
    }
}
