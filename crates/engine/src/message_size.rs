//! How many characters of a text are put into one message.
//!
//! A message costs about as much as three decode steps of a row in a full
//! batch: waking a task, a frame, a part of a system call, and the same on the
//! side of the client. While cores are idle, that is nobody's loss, and each
//! character is sent at once. When they are not, the messages take the time
//! that the steps need.

use std::time::Duration;

/// Rows below which the messages of a worker are too few to matter.
const MIN_ROWS: usize = 4;

/// Maximum number of characters that a message is made to wait for: with eight,
/// messages take a sixth of the time.
const MAX_CHARS: u64 = 8;

/// Characters per unit of the share of its core that others take from a worker:
/// four, if that is a third.
const CHARS_PER_SHARE: f64 = 12.0;

/// Weight of the last turn in the average: the number follows the load within a
/// few hundred turns. A number that changed more often would make the intervals
/// between messages uneven.
const WEIGHT: f64 = 1.0 / 256.0;

/// How far the average must be beyond the next number before that is used, in
/// characters.
const HYSTERESIS: f64 = 0.25;

/// Measures which part of its core a worker has to share, and decides by that
/// how many characters a message waits for.
#[derive(Debug)]
pub(crate) struct MessageSize {
    /// Moving average of the part of the time, 0 to 1, that others take.
    share: f64,
    chars: u64,
}

impl Default for MessageSize {
    fn default() -> Self {
        Self {
            share: 0.0,
            chars: 1,
        }
    }
}

impl MessageSize {
    /// Records a turn of the worker: how long it worked, and how long others
    /// then had the core although the worker had more to do.
    pub(crate) fn turned(&mut self, worked: Duration, waited: Duration) {
        let total = (worked + waited).as_secs_f64();
        if total > 0.0 {
            self.share += WEIGHT * (waited.as_secs_f64() / total - self.share);
        }
        let wanted = 1.0 + self.share * CHARS_PER_SHARE;
        let chars = self.chars as f64;
        if wanted < chars - HYSTERESIS || wanted >= chars + 1.0 + HYSTERESIS {
            self.chars = (wanted as u64).clamp(1, MAX_CHARS);
        }
    }

    /// Number of characters for which a message waits while the worker steps
    /// this number of rows; 1 means that it does not wait.
    pub(crate) fn min_chars(&self, rows: usize) -> u64 {
        if rows < MIN_ROWS {
            return 1;
        }
        self.chars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(worked: u64, waited: u64) -> MessageSize {
        let mut size = MessageSize::default();
        for _ in 0..5_000 {
            size.turned(Duration::from_micros(worked), Duration::from_micros(waited));
        }
        size
    }

    #[test]
    fn every_character_is_sent_at_once_while_there_are_idle_cores() {
        assert_eq!(MessageSize::default().min_chars(256), 1);
        assert_eq!(after(300, 5).min_chars(256), 1);
    }

    #[test]
    fn messages_get_longer_the_more_of_the_core_others_take() {
        assert_eq!(after(200, 110).min_chars(64), 5);
        assert_eq!(after(100, 900).min_chars(64), 8);
    }

    #[test]
    fn few_streams_are_sent_character_by_character_on_a_busy_machine_too() {
        assert_eq!(after(100, 900).min_chars(3), 1);
    }

    #[test]
    fn the_load_of_the_past_is_forgotten() {
        let mut size = after(100, 900);
        for _ in 0..2_000 {
            size.turned(Duration::from_micros(100), Duration::ZERO);
        }
        assert_eq!(size.min_chars(64), 1);
    }

    #[test]
    fn the_number_does_not_follow_every_fluctuation() {
        let mut size = after(200, 110);
        for turn in 0..2_000 {
            size.turned(
                Duration::from_micros(200),
                Duration::from_micros(90 + 40 * (turn % 2)),
            );
            assert_eq!(size.min_chars(64), 5);
        }
    }
}
