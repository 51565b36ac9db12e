//! Makes the repetition of an interrupted generation invisible: the server
//! generates the same text again, and what was printed already is dropped.
//! Performs no I/O.

use charlstm_proto::v1::{GenerateRequest, GenerationFinished, GenerationStarted};

/// Number of characters that a call generates if it does not say so, from the
/// contract.
const DEFAULT_MAX_CHARS: u32 = 200;

/// A call and how much of its text was printed, over all its attempts. If the
/// server shuts down during a call, the generation continues with another leg.
#[derive(Debug)]
pub(super) struct Leg {
    /// What the next attempt sends. Once the first attempt has started, it
    /// names the model version and the precision that the server reported, so
    /// that every attempt generates the same text.
    request: GenerateRequest,
    /// Position at the start of the first attempt.
    start: Option<u64>,
    /// The text that was printed.
    printed: String,
    printed_chars: u64,
    /// Number of bytes of `printed` that this attempt has generated again.
    repeated: usize,
    /// True once this attempt has started.
    has_started: bool,
}

/// A repeated call that does not generate the text that was printed.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Diverged {
    /// The session is at another position than before.
    #[error("the repeated call began at position {found} instead of {expected}")]
    Start {
        /// Where the first attempt began.
        expected: u64,
        /// Where this attempt began.
        found: u64,
    },
    /// The text is another one.
    #[error(
        "the repeated call generated another text after {chars} of {printed} characters: the \
         model, the session or the server's arithmetic has changed"
    )]
    Text {
        /// Number of characters that were the same.
        chars: u64,
        /// Number of characters that were printed.
        printed: u64,
    },
}

impl Leg {
    /// Creates the leg of a call of which nothing was printed yet. The request
    /// should contain everything that the text depends on, in particular the
    /// seed and, in a session, the position.
    pub(super) fn new(request: GenerateRequest) -> Self {
        Self {
            request,
            start: None,
            printed: String::new(),
            printed_chars: 0,
            repeated: 0,
            has_started: false,
        }
    }

    /// Starts an attempt and returns its request.
    pub(super) fn next_attempt(&mut self) -> GenerateRequest {
        self.repeated = 0;
        self.has_started = false;
        self.request.clone()
    }

    /// Records that this attempt has started. Returns true for the first
    /// attempt of the leg that gets this far.
    pub(super) fn record_start(&mut self, started: &GenerationStarted) -> Result<bool, Diverged> {
        self.has_started = true;
        if let Some(expected) = self.start {
            let found = started.position;
            return if found == expected || !self.in_session() {
                Ok(false)
            } else {
                Err(Diverged::Start { expected, found })
            };
        }
        self.start = Some(started.position);
        if !started.model.is_empty() {
            self.request.model = format!("{}@{}", started.model, started.version);
        }
        if !started.precision.is_empty() {
            self.request.precision = Some(started.precision.clone());
        }
        if self.in_session() {
            self.request.expected_position = Some(started.position);
        }
        Ok(true)
    }

    /// Returns the part of `text` that was not printed before, and counts it
    /// as printed.
    pub(super) fn new_part<'t>(&mut self, text: &'t str) -> Result<&'t str, Diverged> {
        let expected = &self.printed[self.repeated..];
        if expected.starts_with(text) {
            self.repeated += text.len();
            return Ok("");
        }
        let Some(new) = text.strip_prefix(expected) else {
            let both = expected.chars().zip(text.chars());
            let same = both.take_while(|(expected, found)| expected == found);
            let before = self.printed[..self.repeated].chars().count();
            return Err(Diverged::Text {
                chars: (before + same.count()) as u64,
                printed: self.printed_chars,
            });
        };
        self.printed.push_str(new);
        self.printed_chars += new.chars().count() as u64;
        self.repeated = self.printed.len();
        Ok(new)
    }

    /// Checks at the end of an attempt that it has repeated everything that
    /// was printed.
    pub(super) fn check_end(&self) -> Result<(), Diverged> {
        if self.repeated == self.printed.len() {
            return Ok(());
        }
        Err(Diverged::Text {
            chars: self.printed[..self.repeated].chars().count() as u64,
            printed: self.printed_chars,
        })
    }

    /// Returns the number of characters that were printed so far.
    pub(super) fn printed_chars(&self) -> u64 {
        self.printed_chars
    }

    /// Returns true if the current attempt has started.
    pub(super) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Returns the session of the call.
    pub(super) fn session(&self) -> Option<&str> {
        self.request
            .session_id
            .as_deref()
            .filter(|id| !id.is_empty())
    }

    /// Returns the position at which the call began, if it is known.
    pub(super) fn start(&self) -> Option<u64> {
        self.start.or(self.request.expected_position)
    }

    /// Returns the leg that generates the rest of the text, after the server
    /// has ended this one because it shuts down: in a session, a new call at
    /// the position that the server reported. Returns `None` if nothing is left
    /// to generate. A call without a session is repeated from its beginning.
    pub(super) fn after_shutdown(self, finished: &GenerationFinished) -> Option<Self> {
        if !self.in_session() {
            return Some(self);
        }
        let max_chars = self.request.max_chars.unwrap_or(DEFAULT_MAX_CHARS);
        let mut request = self.request;
        request.expected_position = Some(finished.position);
        if self.printed_chars == 0 {
            // The prompt may have been read in part. No random number was drawn,
            // so that the seed, if there is one, is still to be set.
            let read = finished.position.saturating_sub(self.start.unwrap_or(0));
            let read = usize::try_from(read).unwrap_or(usize::MAX);
            request.prime = request.prime.chars().skip(read).collect();
            return Some(Self::new(request));
        }
        let rest = u64::from(max_chars).checked_sub(self.printed_chars)?;
        if rest == 0 {
            return None;
        }
        request.prime.clear();
        request.max_chars = u32::try_from(rest).ok();
        // The session keeps its random state.
        if let Some(sampling) = &mut request.sampling {
            sampling.seed = None;
        }
        Some(Self::new(request))
    }

    fn in_session(&self) -> bool {
        self.session().is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_proto::v1::Sampling;

    use super::*;

    fn leg() -> Leg {
        Leg::new(GenerateRequest {
            model: "book".into(),
            prime: "né".into(),
            max_chars: Some(10),
            session_id: Some("tale".into()),
            expected_position: Some(40),
            sampling: Some(Sampling {
                seed: Some(7),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn started(position: u64) -> GenerationStarted {
        GenerationStarted {
            model: "book".into(),
            version: 3,
            precision: "int8".into(),
            position,
            ..Default::default()
        }
    }

    fn finished(position: u64) -> GenerationFinished {
        GenerationFinished {
            position,
            ..Default::default()
        }
    }

    #[test]
    fn a_repeated_attempt_names_the_version_and_the_precision_that_were_reported() {
        let mut leg = leg();
        assert_eq!(leg.next_attempt().model, "book");
        assert_eq!(leg.record_start(&started(40)), Ok(true));
        let repeated = leg.next_attempt();
        assert_eq!(repeated.model, "book@3");
        assert_eq!(repeated.precision(), "int8");
        assert_eq!(repeated.expected_position, Some(40));
        assert_eq!(repeated.sampling.unwrap().seed, Some(7));
        assert_eq!(repeated.prime, "né");
    }

    #[test]
    fn text_that_was_printed_is_dropped_from_the_next_attempt() {
        let mut leg = leg();
        leg.record_start(&started(40)).unwrap();
        assert_eq!(leg.new_part("né"), Ok("né"));
        assert_eq!(leg.new_part("w"), Ok("w"));
        leg.next_attempt();
        assert_eq!(leg.record_start(&started(40)), Ok(false));
        assert_eq!(leg.new_part("n"), Ok(""));
        assert!(leg.check_end().is_err());
        assert_eq!(leg.new_part("éw t"), Ok(" t"));
        assert_eq!(leg.new_part("ext"), Ok("ext"));
        assert_eq!(leg.printed_chars(), 8);
        assert_eq!(leg.check_end(), Ok(()));
    }

    #[test]
    fn an_attempt_that_fails_within_the_old_text_changes_nothing() {
        let mut leg = leg();
        leg.new_part("abcd").unwrap();
        leg.next_attempt();
        assert_eq!(leg.new_part("ab"), Ok(""));
        leg.next_attempt();
        assert_eq!(leg.new_part("abcde"), Ok("e"));
        assert_eq!(leg.printed_chars(), 5);
    }

    #[test]
    fn a_repeated_attempt_with_another_text_or_position_is_an_error() {
        let mut leg = leg();
        leg.record_start(&started(40)).unwrap();
        leg.new_part("abcd").unwrap();
        leg.next_attempt();
        let (expected, found) = (40, 0);
        let start = Err(Diverged::Start { expected, found });
        assert_eq!(leg.record_start(&started(0)), start);
        assert_eq!(leg.new_part("ab"), Ok(""));
        let (chars, printed) = (3, 4);
        let text = Err(Diverged::Text { chars, printed });
        assert_eq!(leg.new_part("cX"), text);
    }

    #[test]
    fn after_a_shutdown_the_rest_is_a_new_call_at_the_reported_position() {
        let mut leg = leg();
        leg.record_start(&started(40)).unwrap();
        leg.new_part("abcd").unwrap();
        let mut rest = leg.after_shutdown(&finished(46)).unwrap();
        let request = rest.next_attempt();
        assert_eq!(request.prime, "");
        assert_eq!(request.max_chars, Some(6));
        assert_eq!(request.expected_position, Some(46));
        assert_eq!(request.sampling.unwrap().seed, None);
        assert_eq!(request.model, "book@3");
        assert_eq!(rest.printed_chars(), 0);
    }

    #[test]
    fn after_a_shutdown_within_the_prompt_the_rest_of_the_prompt_is_sent() {
        let mut leg = leg();
        leg.record_start(&started(40)).unwrap();
        let request = leg.after_shutdown(&finished(41)).unwrap().next_attempt();
        assert_eq!(request.prime, "é");
        assert_eq!(request.max_chars, Some(10));
        assert_eq!(request.expected_position, Some(41));
        assert_eq!(request.sampling.unwrap().seed, Some(7));
    }

    #[test]
    fn nothing_is_left_after_a_shutdown_at_the_last_character() {
        let mut leg = leg();
        leg.record_start(&started(40)).unwrap();
        leg.new_part("0123456789").unwrap();
        assert!(leg.after_shutdown(&finished(52)).is_none());
    }
}
