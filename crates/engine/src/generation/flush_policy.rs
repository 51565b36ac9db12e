//! When a text is worth a message. What a reader has not read lies in the
//! windows of its connection, where this side does not see it; there each
//! message is a frame, and an HTTP/2 client that finds too many small frames
//! unread takes the server for an attacker and ends the whole connection (h2
//! from 0.4.6 on does: 256 bytes less the frame's size count against a budget
//! of half the connection's window, some 11,000 characters by default). So a
//! text that has become long goes out in larger pieces.

use std::time::{Duration, Instant};

/// Characters of a call that each have a message of their own.
const SINGLE: u64 = 2_000;
/// Of a longer text a piece has this part of what was sent before: to send ten
/// times as much takes some 1,200 messages.
const PART: u64 = 500;
/// A piece waits no longer than this for its rest.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The pieces of one text.
#[derive(Debug, Default)]
pub(super) struct FlushPolicy {
    /// When the oldest character came that waits.
    since: Option<Instant>,
}

impl FlushPolicy {
    /// Whether `waiting` characters, the last of which just came, are to be
    /// sent after `sent` others.
    pub(super) fn due(&mut self, sent: u64, waiting: u64, now: impl Fn() -> Instant) -> bool {
        if sent < SINGLE || waiting >= sent / PART {
            return true;
        }
        now() - *self.since.get_or_insert_with(&now) >= LONGEST_WAIT
    }

    /// All that waited is sent.
    pub(super) fn sent(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages for a text whose characters come at such intervals.
    fn messages(chars: u64, interval: Duration) -> (u64, u64) {
        let (mut pace, begin) = (FlushPolicy::default(), Instant::now());
        let (mut sent, mut waiting, mut messages, mut most) = (0, 0, 0, 0);
        for n in 0..chars {
            waiting += 1;
            if pace.due(sent, waiting, || begin + interval * n as u32) {
                most = waiting.max(most);
                (sent, waiting) = (sent + waiting, 0);
                pace.sent();
                messages += 1;
            }
        }
        (messages, most)
    }

    #[test]
    fn a_text_of_usual_length_comes_character_by_character() {
        assert_eq!(messages(2_000, Duration::ZERO), (2_000, 1));
    }

    #[test]
    fn a_million_characters_are_some_thousand_messages() {
        let (messages, _) = messages(1_000_000, Duration::ZERO);
        assert!((4_000..6_000).contains(&messages), "{messages}");
    }

    #[test]
    fn no_piece_of_a_slow_text_waits_longer_than_the_limit() {
        let (_, most) = messages(100_000, Duration::from_millis(10));
        assert_eq!(most, 6);
        assert_eq!(messages(5_000, Duration::from_millis(50)).1, 2);
    }
}
