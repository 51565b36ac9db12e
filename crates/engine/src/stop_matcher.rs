//! Stop strings: which characters may be the beginning of one, and when one is
//! complete. The matching is that of Knuth, Morris and Pratt (1977), with one
//! automaton for each stop string.

/// Finds stop strings in the generated characters.
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    strings: Vec<StopString>,
}

/// What is known after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This many of the last characters may be the beginning of a stop string.
    Undecided(usize),
    /// The last characters, this many, are a stop string.
    Stop(usize),
}

#[derive(Debug)]
struct StopString {
    tokens: Vec<u32>,
    /// For each length of a match, the length of the next shorter one.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    /// Creates a matcher for strings of which none is empty.
    pub(crate) fn new(strings: Vec<Vec<u32>>) -> Self {
        let strings = strings.into_iter().map(StopString::new).collect();
        Self { strings }
    }

    /// True if no character is ever held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Takes the next character. If several strings end here, the longest one
    /// counts.
    pub(crate) fn push(&mut self, token: u32) -> Verdict {
        let mut undecided = 0;
        let mut complete = 0;
        for string in &mut self.strings {
            string.push(token);
            if string.matched == string.tokens.len() {
                complete = complete.max(string.matched);
            }
            undecided = undecided.max(string.matched);
        }
        if complete > 0 {
            Verdict::Stop(complete)
        } else {
            Verdict::Undecided(undecided)
        }
    }
}

impl StopString {
    fn new(tokens: Vec<u32>) -> Self {
        let mut shorter = vec![0; tokens.len() + 1];
        let mut length = 0;
        for end in 1..tokens.len() {
            while length > 0 && tokens[end] != tokens[length] {
                length = shorter[length];
            }
            if tokens[end] == tokens[length] {
                length += 1;
            }
            shorter[end + 1] = length;
        }
        Self {
            tokens,
            shorter,
            matched: 0,
        }
    }

    fn push(&mut self, token: u32) {
        if self.matched == self.tokens.len() {
            self.matched = self.shorter[self.matched];
        }
        while self.matched > 0 && self.tokens[self.matched] != token {
            self.matched = self.shorter[self.matched];
        }
        if self.tokens[self.matched] == token {
            self.matched += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    fn verdicts(stops: &[&str], text: &str) -> Vec<Verdict> {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| tokens(stop)).collect());
        tokens(text).into_iter().map(|t| matcher.push(t)).collect()
    }

    #[test]
    fn a_beginning_is_held_back_until_it_is_decided() {
        use Verdict::{Stop, Undecided};
        assert_eq!(
            verdicts(&["END"], "aEENDb"),
            [
                Undecided(0),
                Undecided(1),
                Undecided(1),
                Undecided(2),
                Stop(3),
                Undecided(0)
            ]
        );
    }

    #[test]
    fn a_text_that_overlaps_itself_is_found() {
        let verdicts = verdicts(&["abab!"], "ababab!");
        assert_eq!(verdicts[4], Verdict::Undecided(3));
        assert_eq!(verdicts[6], Verdict::Stop(5));
    }

    #[test]
    fn the_longest_of_several_that_end_together_counts() {
        let verdicts = verdicts(&["b", "aab"], "aab");
        assert_eq!(verdicts[2], Verdict::Stop(3));
    }
}
