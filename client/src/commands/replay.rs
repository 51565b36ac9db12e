//! Makes the repetition of an interrupted generation invisible: the server
//! generates the same text again, and what was printed already is dropped.
//! Performs no I/O.

/// How much of the text of one generation was printed, over all attempts.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Position of the session at the start of the first attempt.
    start: Option<u64>,
    /// Number of characters that were printed.
    printed: u64,
    /// Number of characters of this attempt that are still to be dropped.
    to_drop: u64,
}

impl Replay {
    /// Records the position at which an attempt starts. Returns true for the
    /// first attempt.
    pub(super) fn record_start(&mut self, position: u64) -> bool {
        let is_first = self.start.is_none();
        self.start.get_or_insert(position);
        is_first
    }

    /// Returns the part of `text` that was not printed before, and counts it
    /// as printed.
    pub(super) fn new_part<'t>(&mut self, text: &'t str) -> &'t str {
        let mut rest = text;
        while self.to_drop > 0 {
            let mut characters = rest.chars();
            if characters.next().is_none() {
                break;
            }
            rest = characters.as_str();
            self.to_drop -= 1;
        }
        self.printed += rest.chars().count() as u64;
        rest
    }

    /// Returns the number of characters that were printed so far.
    pub(super) fn printed(&self) -> u64 {
        self.printed
    }

    /// Prepares the next attempt. Returns the `expected_position` that makes
    /// the server rewind the session and generate the same text again, or
    /// `None` if no attempt has started: then it is unknown where the session
    /// stood.
    pub(super) fn restart(&mut self) -> Option<u64> {
        self.to_drop = self.printed;
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_was_printed_is_dropped_from_the_next_attempt() {
        let mut replay = Replay::default();
        assert!(replay.record_start(40));
        assert_eq!(replay.new_part("né"), "né");
        assert_eq!(replay.new_part("w"), "w");
        assert_eq!(replay.restart(), Some(40));
        assert!(!replay.record_start(40));
        assert_eq!(replay.new_part("n"), "");
        assert_eq!(replay.new_part("éw t"), " t");
        assert_eq!(replay.new_part("ext"), "ext");
        assert_eq!(replay.printed(), 8);
    }

    #[test]
    fn an_attempt_that_fails_within_the_old_text_changes_nothing() {
        let mut replay = Replay::default();
        replay.record_start(0);
        replay.new_part("abcd");
        replay.restart();
        assert_eq!(replay.new_part("ab"), "");
        assert_eq!(replay.restart(), Some(0));
        assert_eq!(replay.new_part("abcde"), "e");
        assert_eq!(replay.printed(), 5);
    }

    #[test]
    fn a_generation_that_never_started_cannot_be_repeated() {
        assert_eq!(Replay::default().restart(), None);
    }
}
