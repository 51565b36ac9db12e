//! What makes it safe to repeat a call whose connection broke: which text was
//! shown already, and how long to wait. No input or output.

use std::time::Duration;

/// Waits between the tries, in milliseconds: the first ones bridge a hiccup
/// of the network, the last ones a server that restarts. About 16 seconds
/// together.
const WAITS_MS: [u64; 7] = [100, 300, 800, 2000, 4000, 4000, 5000];

/// Waits that grow from try to try, until there are no more.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: usize,
}

impl Backoff {
    /// How long to wait before the next try; `None` where it is time to give
    /// up.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        let wait = WAITS_MS.get(self.tries).copied();
        self.tries += 1;
        wait.map(Duration::from_millis)
    }

    /// Begins again: the last try brought something new.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// How far the text of one generation has been shown, over all tries.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Where the session stood when the first try began.
    began_at: Option<u64>,
    /// Characters that were shown.
    shown: u64,
    /// Characters of this try that are still to be left out.
    skip: u64,
}

impl Replay {
    /// Takes note of where a try began; true for the first one.
    pub(crate) fn started(&mut self, position: u64) -> bool {
        let first = self.began_at.is_none();
        self.began_at.get_or_insert(position);
        first
    }

    /// The part of `text` that has not been shown yet.
    pub(crate) fn unseen<'t>(&mut self, text: &'t str) -> &'t str {
        let mut rest = text;
        while self.skip > 0 {
            let mut characters = rest.chars();
            if characters.next().is_none() {
                break;
            }
            rest = characters.as_str();
            self.skip -= 1;
        }
        self.shown += rest.chars().count() as u64;
        rest
    }

    /// Characters that were shown so far.
    pub(crate) fn shown(&self) -> u64 {
        self.shown
    }

    /// Prepares the next try: the `expected_position` that makes the server
    /// rewind and give the same text again. `None` where no try has begun, so
    /// that nobody knows where the session stands.
    pub(crate) fn again(&mut self) -> Option<u64> {
        self.skip = self.shown;
        self.began_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_left_out_of_the_next_try() {
        let mut replay = Replay::default();
        assert!(replay.started(40));
        assert_eq!(replay.unseen("né"), "né");
        assert_eq!(replay.unseen("w"), "w");
        assert_eq!(replay.again(), Some(40));
        assert!(!replay.started(40));
        assert_eq!(replay.unseen("n"), "");
        assert_eq!(replay.unseen("éw t"), " t");
        assert_eq!(replay.unseen("ext"), "ext");
        assert_eq!(replay.shown(), 8);
    }

    #[test]
    fn a_try_that_breaks_within_the_old_text_changes_nothing() {
        let mut replay = Replay::default();
        replay.started(0);
        replay.unseen("abcd");
        replay.again();
        assert_eq!(replay.unseen("ab"), "");
        assert_eq!(replay.again(), Some(0));
        assert_eq!(replay.unseen("abcde"), "e");
        assert_eq!(replay.shown(), 5);
    }

    #[test]
    fn without_a_known_beginning_nothing_is_repeated() {
        assert_eq!(Replay::default().again(), None);
    }

    #[test]
    fn the_waits_end_and_begin_again_after_a_success() {
        let mut backoff = Backoff::default();
        let waits = std::iter::from_fn(|| backoff.next()).count();
        assert_eq!(waits, WAITS_MS.len());
        backoff.reset();
        assert_eq!(backoff.next(), Some(Duration::from_millis(100)));
    }
}
