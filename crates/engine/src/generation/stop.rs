//! Stop texts: which characters may still be part of one, and when one is
//! complete. The matching is that of Knuth, Morris and Pratt (1977), one
//! automaton for each text.

/// Watches the generated characters for stop texts.
#[derive(Debug, Default)]
pub(super) struct StopMatcher {
    texts: Vec<StopText>,
}

/// What a character decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// So many of the last characters may be the beginning of a stop text.
    Undecided(usize),
    /// The last so many characters are a stop text.
    Stop(usize),
}

#[derive(Debug)]
struct StopText {
    tokens: Vec<u32>,
    /// For each length of a match, that of the next shorter one.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopMatcher {
    /// A matcher for texts of which none is empty.
    pub(super) fn new(texts: Vec<Vec<u32>>) -> Self {
        let texts = texts.into_iter().map(StopText::new).collect();
        Self { texts }
    }

    /// True where no character is ever held back.
    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Takes the next character. Of several texts that end here the longest
    /// counts.
    pub(super) fn push(&mut self, token: u32) -> Verdict {
        let mut undecided = 0;
        let mut complete = 0;
        for text in &mut self.texts {
            text.push(token);
            if text.matched == text.tokens.len() {
                complete = complete.max(text.matched);
            }
            undecided = undecided.max(text.matched);
        }
        if complete > 0 {
            Verdict::Stop(complete)
        } else {
            Verdict::Undecided(undecided)
        }
    }
}

impl StopText {
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
