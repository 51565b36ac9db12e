//! One text that is being generated, wherever it is: queued, in prefill, in
//! the batch, or parked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use charlstm_model::decode_step::{Chunk, HiddenState};
use charlstm_model::sampler::{Draws, HighestLogits, Sampler, SamplingSettings, log_probability};
use charlstm_repository::LoadedModel;
use charlstm_store::session::{LeaseStatus, SessionError};

use crate::admission::Permit;
use crate::caller::CallerId;
use crate::error::GenerateError;
use crate::event::FinishReason;
use crate::progress::Progress;
use crate::prompt_cache::PromptRecorder;
use crate::scheduler::Schedulable;
use crate::stop_matcher::{StopMatcher, Verdict};
use crate::text_buffer::{Completion, EndedText, TextBuffer};
use crate::worker_load::LoadShare;

/// What a job is made of.
pub(crate) struct JobParts {
    pub(crate) caller: CallerId,
    pub(crate) buffer: Arc<TextBuffer>,
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) settings: SamplingSettings,
    pub(crate) draws: Draws,
    pub(crate) stops: StopMatcher,
    pub(crate) logprobs: bool,
    pub(crate) max_chars: u64,
    pub(crate) deadline: Option<Instant>,
    /// State to begin with.
    pub(crate) state: HiddenState,
    /// Characters to feed: those of the session that were not fed yet, then
    /// the prompt. Never empty.
    pub(crate) feed: Vec<u32>,
    /// How many of them are the session's.
    pub(crate) unfed: usize,
    /// How many of them are in `state` already.
    pub(crate) fed: usize,
    /// Keeps states of the prompt, if it starts from the zero state.
    pub(crate) recorder: Option<PromptRecorder>,
    /// The call's side of its session.
    pub(crate) progress: Option<Progress>,
    pub(crate) load: LoadShare,
    /// Share of the budget of prompt characters, until they are fed.
    pub(crate) prompt_permit: Permit,
}

/// A text that is being generated. If it is dropped before its end, it ends
/// with an error.
pub(crate) struct Job {
    buffer: Arc<TextBuffer>,
    model: Arc<LoadedModel>,
    settings: SamplingSettings,
    draws: Draws,
    stops: StopMatcher,
    logprobs: bool,
    max_chars: u64,
    deadline: Option<Instant>,
    state: HiddenState,
    feed: Vec<u32>,
    unfed: usize,
    recorder: Option<PromptRecorder>,
    progress: Option<Progress>,
    load: LoadShare,
    prompt_permit: Option<Permit>,
    caller: CallerId,
    /// The step since which it has its slot.
    slot_since: u64,
    /// Characters fed of `feed`; the first decode step feeds its last one.
    fed: usize,
    /// Whether all of `feed` but its last character was fed.
    is_prefilled: bool,
    /// The character to feed next.
    last: u32,
    generated: u64,
    /// Drawn, and perhaps the beginning of a stop string.
    held_back: VecDeque<(char, Option<f32>)>,
    first_drawn: Option<Instant>,
    last_drawn: Option<Instant>,
    has_ended: bool,
}

/// What a step leaves for the readers of its texts.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Readers to wake at the end of the turn.
    pub(crate) readers: Vec<Waker>,
    /// Number of characters for which a message waits; see
    /// [`MessageSize`](crate::message_size::MessageSize).
    pub(crate) min_chars: u64,
}

impl Outbox {
    /// Wakes the readers.
    pub(crate) fn wake_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.wake();
        }
    }
}

/// A character that was drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawn {
    token: u32,
    logprob: Option<f32>,
}

/// What follows for a job after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It stays in the batch.
    Continue,
    /// Its reader is behind: it leaves the batch until the reader has caught
    /// up.
    Park,
    /// It has ended.
    Finish(FinishReason),
}

impl Job {
    pub(crate) fn new(parts: JobParts) -> Self {
        let last = parts.feed.last().copied().unwrap_or_default();
        Self {
            buffer: parts.buffer,
            model: parts.model,
            settings: parts.settings,
            draws: parts.draws,
            stops: parts.stops,
            logprobs: parts.logprobs,
            max_chars: parts.max_chars,
            deadline: parts.deadline,
            state: parts.state,
            feed: parts.feed,
            unfed: parts.unfed,
            recorder: parts.recorder,
            progress: parts.progress,
            load: parts.load,
            prompt_permit: Some(parts.prompt_permit),
            caller: parts.caller,
            slot_since: 0,
            fed: parts.fed,
            is_prefilled: false,
            last,
            generated: 0,
            held_back: VecDeque::new(),
            first_drawn: None,
            last_drawn: None,
            has_ended: false,
        }
    }

    pub(crate) fn model(&self) -> &Arc<LoadedModel> {
        &self.model
    }

    pub(crate) fn buffer(&self) -> &Arc<TextBuffer> {
        &self.buffer
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The character to feed next.
    pub(crate) fn last(&self) -> u32 {
        self.last
    }

    /// True once nothing is left to prefill.
    pub(crate) fn is_prefilled(&self) -> bool {
        self.is_prefilled
    }

    /// True if no text is requested, only to feed the prompt.
    pub(crate) fn is_prompt_only(&self) -> bool {
        self.max_chars == 0
    }

    /// The state, while the job is in no batch.
    pub(crate) fn state(&self) -> &HiddenState {
        &self.state
    }

    /// Puts back the state that a batch held.
    pub(crate) fn set_state(&mut self, state: HiddenState) {
        self.state = state;
    }

    /// True if the job must end early: its reader has left, its lease was
    /// lost, or its deadline has passed.
    pub(crate) fn must_end(&self, now: Instant) -> bool {
        self.buffer.reader_left() || self.interruption(now).is_some()
    }

    /// Why the job must end early, unless because its reader has left.
    pub(crate) fn interruption(&self, now: Instant) -> Option<Result<FinishReason, GenerateError>> {
        let progress = self.progress.as_ref();
        if let Some((progress, id)) = progress.and_then(|p| Some((p, p.id()?))) {
            match progress.lease_status() {
                LeaseStatus::Held => {}
                LeaseStatus::Deleted => return Some(Ok(FinishReason::Cancelled)),
                LeaseStatus::Fenced { replica } => {
                    return Some(Err(GenerateError::Session {
                        id: id.clone(),
                        error: SessionError::Fenced { replica },
                    }));
                }
                LeaseStatus::Expired => {
                    let position = progress.begin_position();
                    return Some(Err(GenerateError::Session {
                        id: id.clone(),
                        error: SessionError::LeaseExpired { position },
                    }));
                }
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Err(GenerateError::Deadline));
        }
        None
    }

    /// The next chunk to prefill, of at most `max_chars` characters, and the
    /// state to feed it to; `None` once all is fed.
    pub(crate) fn next_chunk(&mut self, max_chars: usize) -> Option<Chunk<'_>> {
        if self.is_prefilled {
            return None;
        }
        // The chunk ends where the session was, to record the state there.
        let session_end = self.unfed.saturating_sub(1);
        let end = if self.fed < session_end {
            session_end
        } else {
            // It also ends where a state is kept for later prompts.
            let boundary = self.recorder.as_ref().and_then(|r| r.next_boundary());
            boundary.unwrap_or(self.feed.len() - 1)
        };
        let chunk = &self.feed[self.fed..end.min(self.fed + max_chars)];
        (!chunk.is_empty()).then_some((&mut self.state, chunk))
    }

    /// Records that a chunk of `chars` characters was fed; without one, that the
    /// prompt may be complete already.
    pub(crate) fn advance_prefill(&mut self, chars: usize) {
        if self.is_prefilled {
            return;
        }
        self.fed += chars;
        if let Some(recorder) = &mut self.recorder {
            recorder.reached(self.fed, &self.state);
        }
        if chars > 0
            && self.fed + 1 == self.unfed
            && let Some(progress) = &mut self.progress
        {
            progress.begin_reached(&self.state, self.feed[self.fed]);
        }
        if self.fed + 1 == self.feed.len() {
            self.is_prefilled = true;
            if let Some(progress) = &mut self.progress {
                progress.prefilled(&self.state, self.last);
            }
            self.feed = Vec::new();
            self.recorder = None;
            self.prompt_permit = None;
            self.load.prefilled();
        }
    }

    /// Draws the next character from its logits.
    pub(crate) fn draw(&mut self, sampler: &mut Sampler, logits: &[f32]) -> Drawn {
        let uniform = self.draws.uniform();
        let token = sampler.choose(&self.settings, logits, uniform);
        let logprob = self.logprobs.then(|| log_probability(logits, token) as f32);
        Drawn { token, logprob }
    }

    /// Whether [`Self::draw_of_highest`] is enough.
    pub(crate) fn needs_only_highest(&self) -> bool {
        self.settings.need_only_highest()
    }

    /// As [`Self::draw`], from the highest of its logits.
    pub(crate) fn draw_of_highest(
        &mut self,
        sampler: &mut Sampler,
        highest: &HighestLogits<'_>,
    ) -> Drawn {
        let uniform = self.draws.uniform();
        let token = sampler.choose_of_highest(&self.settings, highest, uniform);
        let logprob = self.logprobs.then(|| highest.log_probability(token) as f32);
        Drawn { token, logprob }
    }

    /// Takes a drawn character; `state` returns the state that it was drawn
    /// in. Readers to be woken are added to `outbox`.
    pub(crate) fn take(
        &mut self,
        drawn: Drawn,
        state: impl FnOnce() -> HiddenState,
        now: Instant,
        outbox: &mut Outbox,
    ) -> Next {
        self.last = drawn.token;
        self.generated += 1;
        self.first_drawn.get_or_insert(now);
        self.last_drawn = Some(now);
        if let Some(progress) = &mut self.progress {
            progress.generated(drawn.token, state, || self.buffer.taken());
        }
        let character = self.model.vocabulary.character(drawn.token);
        let is_last = self.generated == self.max_chars;
        if self.stops.is_empty() {
            let is_full = self.send(std::iter::once((character, drawn.logprob)), outbox);
            return next(is_full, is_last);
        }
        self.held_back.push_back((character, drawn.logprob));
        let decided = match self.stops.push(drawn.token) {
            Verdict::Stop(chars) => {
                let decided = self.held_back.len() - chars;
                self.send_decided(decided, outbox);
                return Next::Finish(FinishReason::Stop);
            }
            Verdict::Undecided(_) if is_last => self.held_back.len(),
            Verdict::Undecided(chars) => self.held_back.len() - chars,
        };
        let is_full = self.send_decided(decided, outbox);
        next(is_full, is_last)
    }

    /// Sends the first `chars` of the characters that were held back.
    fn send_decided(&mut self, chars: usize, outbox: &mut Outbox) -> bool {
        if chars == 0 {
            return false;
        }
        let decided: Vec<_> = self.held_back.drain(..chars).collect();
        self.send(decided.into_iter(), outbox)
    }

    /// Appends characters to the buffer. Returns whether it is full.
    fn send(
        &mut self,
        characters: impl Iterator<Item = (char, Option<f32>)>,
        outbox: &mut Outbox,
    ) -> bool {
        let (is_full, reader) = self.buffer.append(characters, outbox.min_chars);
        outbox.readers.extend(reader);
        is_full
    }

    /// Ends the job, which is in no batch, as finished. Returns the reader to
    /// wake.
    pub(crate) fn finish(mut self, reason: FinishReason) -> Option<Waker> {
        let seconds = match (self.first_drawn, self.last_drawn) {
            (Some(first), Some(last)) => last.duration_since(first).as_secs_f64(),
            _ => 0.0,
        };
        let stop_chars = match reason {
            FinishReason::Stop => self.held_back.len() as u64,
            FinishReason::Length | FinishReason::Cancelled | FinishReason::Shutdown => 0,
        };
        let completion = Completion {
            reason,
            stop_chars,
            seconds,
        };
        let nothing = HiddenState::Float32(Box::default());
        let state = std::mem::replace(&mut self.state, nothing);
        self.end(Ok(completion), self.is_prefilled.then_some(state))
    }

    /// Ends the job with an error. Returns the reader to wake.
    pub(crate) fn fail(mut self, error: GenerateError) -> Option<Waker> {
        self.end(Err(error), None)
    }

    fn end(
        &mut self,
        ending: Result<Completion, GenerateError>,
        end_state: Option<HiddenState>,
    ) -> Option<Waker> {
        self.has_ended = true;
        let progress = self.progress.take();
        self.buffer.end(EndedText {
            ending,
            session: progress.map(|progress| (progress, end_state)),
        })
    }
}

impl Schedulable for Job {
    fn caller(&self) -> &CallerId {
        &self.caller
    }

    fn slot_since(&self) -> u64 {
        self.slot_since
    }

    fn set_slot_since(&mut self, step: u64) {
        self.slot_since = step;
    }
}

/// What follows after a character that was sent.
fn next(is_full: bool, is_last: bool) -> Next {
    if is_last {
        Next::Finish(FinishReason::Length)
    } else if is_full {
        Next::Park
    } else {
        Next::Continue
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.has_ended {
            let error = GenerateError::Internal("a worker failed".to_owned());
            if let Some(reader) = self.end(Err(error), None) {
                reader.wake();
            }
        }
    }
}
