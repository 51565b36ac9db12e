//! One text that is being generated, wherever it is: waiting, being primed,
//! in the batch, or parked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::admission::LoadShare;
use super::error::GenerateError;
use super::progress::Progress;
use super::request::{FinishReason, Finished};
use super::stop::{StopMatcher, Verdict};
use super::stream::{PendingCommit, TextBuffer};
use charlstm_model::decode_step::HiddenState;
use charlstm_model::sampler::{Draws, Sampler, SamplingSettings, log_probability};
use charlstm_repository::LoadedModel;

/// What a job is made of.
pub(super) struct JobParts {
    pub(super) buffer: Arc<TextBuffer>,
    pub(super) model: Arc<LoadedModel>,
    pub(super) settings: SamplingSettings,
    pub(super) draws: Draws,
    pub(super) stops: StopMatcher,
    pub(super) logprobs: bool,
    pub(super) max_chars: u64,
    pub(super) deadline: Option<Instant>,
    /// State to begin with.
    pub(super) state: HiddenState,
    /// Characters to feed: those of the session that were not fed yet, then
    /// the prime. Never empty.
    pub(super) feed: Vec<u32>,
    /// How many of them were the session's.
    pub(super) unfed: usize,
    /// Position of the session after the prime.
    pub(super) primed_position: u64,
    /// Characters of the prime.
    pub(super) prime_chars: u64,
    /// The session's side of the call.
    pub(super) progress: Option<Progress>,
    pub(super) load: LoadShare,
}

/// One text under way. Dropped before its end, it ends as failed.
pub(super) struct Job {
    parts: JobParts,
    /// Characters fed of `feed`; its last one is fed by the first step.
    fed: usize,
    /// Whether the state is primed, but for the last character.
    primed: bool,
    /// The character to feed next.
    last: u32,
    generated: u64,
    sent: u64,
    /// Drawn, and perhaps the beginning of a stop text.
    held: VecDeque<(char, Option<f32>)>,
    first_drawn: Option<Instant>,
    last_drawn: Option<Instant>,
    ended: bool,
}

/// A character that was drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    token: u32,
    logprob: Option<f32>,
}

/// What becomes of a job after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It goes on.
    Continue,
    /// Its reader is behind: it leaves the batch until it has read.
    Park,
    /// It is over.
    Finish(FinishReason),
}

impl Job {
    pub(super) fn new(parts: JobParts) -> Self {
        let last = parts.feed.last().copied().unwrap_or_default();
        Self {
            parts,
            fed: 0,
            primed: false,
            last,
            generated: 0,
            sent: 0,
            held: VecDeque::new(),
            first_drawn: None,
            last_drawn: None,
            ended: false,
        }
    }

    pub(super) fn model(&self) -> &Arc<LoadedModel> {
        &self.parts.model
    }

    pub(super) fn buffer(&self) -> &Arc<TextBuffer> {
        &self.parts.buffer
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.parts.deadline
    }

    /// The character to feed next.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// True once nothing is left to prime.
    pub(super) fn is_primed(&self) -> bool {
        self.primed
    }

    /// True where no character is wanted, only the priming.
    pub(super) fn wants_no_text(&self) -> bool {
        self.parts.max_chars == 0
    }

    /// The state, while the job is in no batch.
    pub(super) fn state(&self) -> &HiddenState {
        &self.parts.state
    }

    /// Puts back the state that a batch held.
    pub(super) fn set_state(&mut self, state: HiddenState) {
        self.parts.state = state;
    }

    /// True where the job must end before its time: its reader left, its
    /// session was deleted, or its deadline passed.
    pub(super) fn must_leave(&self, now: Instant) -> bool {
        self.parts.buffer.is_done() || self.interruption(now).is_some()
    }

    /// Why the job must end before its time, if it must.
    pub(super) fn interruption(&self, now: Instant) -> Option<Result<FinishReason, GenerateError>> {
        if self
            .parts
            .progress
            .as_ref()
            .is_some_and(Progress::is_cancelled)
        {
            return Some(Ok(FinishReason::Cancelled));
        }
        if self.parts.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Err(GenerateError::Deadline));
        }
        None
    }

    /// The next stretch to prime, of at most `most` characters, and the state
    /// to prime; `None` once it is all done.
    pub(super) fn stretch(&mut self, most: usize) -> Option<(&mut HiddenState, &[u32])> {
        let parts = &mut self.parts;
        let end = parts.feed.len() - 1;
        // The stretch ends where the session stood, to remember that point.
        let cut = parts.unfed.saturating_sub(1);
        let stop = if self.fed < cut { cut } else { end };
        let stop = stop.min(self.fed + most);
        let stretch = &parts.feed[self.fed..stop];
        (!stretch.is_empty()).then_some((&mut parts.state, stretch))
    }

    /// A stretch of `chars` was primed.
    pub(super) fn advance_prefill(&mut self, chars: usize) {
        self.fed += chars;
        let parts = &mut self.parts;
        if chars > 0
            && self.fed + 1 == parts.unfed
            && let Some(progress) = &mut parts.progress
        {
            progress.begun(&parts.state, parts.feed[self.fed]);
        }
        if !self.primed && self.fed + 1 == parts.feed.len() {
            self.primed = true;
            if let Some(progress) = &mut parts.progress {
                progress.primed(&parts.state, self.last);
            }
            parts.feed = Vec::new();
            parts.load.primed();
        }
    }

    /// Draws the next character from its logits.
    pub(super) fn draw(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Drawn {
        let uniform = self.parts.draws.uniform();
        let token = sampler.choose(&self.parts.settings, logits, uniform);
        let logprob = self
            .parts
            .logprobs
            .then(|| log_probability(logits, token) as f32);
        Drawn { token, logprob }
    }

    /// Takes a drawn character; `hidden` gives the state that it was drawn
    /// in. Readers who are to be woken are added to `readers`.
    pub(super) fn take(
        &mut self,
        drawn: Drawn,
        hidden: impl FnOnce() -> HiddenState,
        now: Instant,
        readers: &mut Vec<Waker>,
    ) -> Next {
        self.last = drawn.token;
        self.generated += 1;
        self.first_drawn.get_or_insert(now);
        self.last_drawn = Some(now);
        let parts = &mut self.parts;
        if let Some(progress) = &mut parts.progress {
            progress.generated(drawn.token, hidden, || parts.buffer.taken());
        }
        let character = parts.model.vocabulary.character(drawn.token);
        let full = self.generated == parts.max_chars;
        if parts.stops.is_empty() {
            let parked = self.send(std::iter::once((character, drawn.logprob)), readers);
            return next(parked, full);
        }
        self.held.push_back((character, drawn.logprob));
        let decided = match self.parts.stops.push(drawn.token) {
            Verdict::Stop(chars) => {
                let decided = self.held.len() - chars;
                self.send_held(decided, readers);
                self.held.clear();
                return Next::Finish(FinishReason::Stop);
            }
            Verdict::Undecided(_) if full => self.held.len(),
            Verdict::Undecided(chars) => self.held.len() - chars,
        };
        let parked = self.send_held(decided, readers);
        next(parked, full)
    }

    fn send_held(&mut self, chars: usize, readers: &mut Vec<Waker>) -> bool {
        if chars == 0 {
            return false;
        }
        let decided: Vec<_> = self.held.drain(..chars).collect();
        self.send(decided.into_iter(), readers)
    }

    /// Hands characters to the reader. Returns whether that fills the buffer.
    fn send(
        &mut self,
        characters: impl ExactSizeIterator<Item = (char, Option<f32>)>,
        readers: &mut Vec<Waker>,
    ) -> bool {
        self.sent += characters.len() as u64;
        let (full, reader) = self.parts.buffer.append(characters);
        readers.extend(reader);
        full
    }

    /// Ends the job, out of its batch, as finished.
    pub(super) fn finish(mut self, reason: FinishReason) -> Option<Waker> {
        let seen = match reason {
            FinishReason::Length | FinishReason::Stop => self.generated,
            FinishReason::Cancelled | FinishReason::Shutdown => self.sent,
        };
        // A call of which nothing was sent leaves the session untouched.
        let untouched = seen == 0 && !matches!(reason, FinishReason::Length | FinishReason::Stop);
        let unprimed = if untouched { self.parts.prime_chars } else { 0 };
        let seconds = match (self.first_drawn, self.last_drawn) {
            (Some(first), Some(last)) => last.duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        let finished = Finished {
            reason,
            chars: self.sent,
            position: self.parts.primed_position - unprimed + seen,
            seconds,
        };
        let none = HiddenState(Box::default());
        let end = std::mem::replace(&mut self.parts.state, none);
        self.end(Ok(finished), self.primed.then_some(end))
    }

    /// Ends the job as failed.
    pub(super) fn fail(mut self, error: GenerateError) -> Option<Waker> {
        self.end(Err(error), None)
    }

    fn end(
        &mut self,
        ending: Result<Finished, GenerateError>,
        end: Option<HiddenState>,
    ) -> Option<Waker> {
        self.ended = true;
        let progress = self.parts.progress.take();
        let pending_commit = progress.map(|progress| Box::new(PendingCommit { progress, end }));
        self.parts.buffer.end(ending, pending_commit)
    }
}

/// What follows a character that was sent.
fn next(parked: bool, full: bool) -> Next {
    if full {
        Next::Finish(FinishReason::Length)
    } else if parked {
        Next::Park
    } else {
        Next::Continue
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            let error = GenerateError::Internal("a worker failed".to_owned());
            if let Some(reader) = self.end(Err(error), None) {
                reader.wake();
            }
        }
    }
}
