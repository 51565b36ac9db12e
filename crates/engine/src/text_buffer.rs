//! The bounded buffer between the worker that generates a text and its reader.
//!
//! The worker appends, and the reader takes all that is there as one event.
//! When the worker has ended the text and the reader has taken all of it, or
//! has left, the buffer hands the call to the committer. The last event is
//! held back until the session is committed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use charlstm_model::decode_step::HiddenState;
use charlstm_store::session::{CommitOutcome, LeaseHandle, LeaseStatus, SessionError, SessionId};

use crate::admission::Permit;
use crate::committer::Committer;
use crate::error::GenerateError;
use crate::event::{FinishReason, Finished, GeneratedText, GenerationEvent, Started};
use crate::flush_policy::FlushPolicy;
use crate::inbox::Inbox;
use crate::progress::{CommitPoint, Progress, SessionEnd};

/// How the worker ended a text.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) reason: FinishReason,
    /// Characters generated and not sent that count all the same: those of the
    /// stop string.
    pub(crate) stop_chars: u64,
    /// Seconds from the first generated character to the last.
    pub(crate) seconds: f64,
}

/// A text that the worker has ended.
pub(crate) struct EndedText {
    pub(crate) ending: Result<Completion, GenerateError>,
    /// The call's side of its session, if it has one, and the state after the
    /// last generated character, if it is at hand.
    pub(crate) session: Option<(Progress, Option<HiddenState>)>,
}

/// The session of a call, as its reader sees it.
pub(crate) struct ReaderSession {
    pub(crate) id: SessionId,
    pub(crate) lease: LeaseHandle,
}

/// The buffer of one call.
pub(crate) struct TextBuffer {
    content: Mutex<BufferState>,
    /// The reader has left.
    reader_left: AtomicBool,
    session: Option<ReaderSession>,
    capacity_chars: usize,
    /// Inbox of the worker that computes the text.
    inbox: Arc<Inbox>,
    committer: Arc<Committer>,
}

/// What a buffer is made of.
pub(crate) struct TextBufferParts {
    pub(crate) started: Started,
    pub(crate) prompt_chars: u64,
    pub(crate) session: Option<ReaderSession>,
    /// Maximum number of unread characters.
    pub(crate) capacity_chars: usize,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) committer: Arc<Committer>,
    pub(crate) permit: Permit,
}

struct BufferState {
    /// The first event, until the reader has taken it.
    started: Option<Started>,
    /// The call has a slot, so the first event may be taken.
    may_start: bool,
    text: String,
    chars: usize,
    logprobs: Vec<f32>,
    flush_policy: FlushPolicy,
    /// The unread text is worth a message. A reader that comes earlier waits.
    is_due: bool,
    /// Text was dropped instead of read.
    is_cut_off: bool,
    /// The reader passes the text on only once it is complete.
    is_whole: bool,
    /// Characters that the reader has taken.
    taken: u64,
    /// See [`TextBuffer::reader_activity`].
    reader_activity: u64,
    begin_position: u64,
    prompt_chars: u64,
    phase: Phase,
    reader: Option<Waker>,
    /// The worker has parked the job until the buffer is drained.
    is_parked: bool,
    permit: Option<Permit>,
}

/// Where a call is.
enum Phase {
    /// The worker has the job.
    Generating,
    /// The text has ended, and the reader has not taken all of it yet.
    Ended(Box<EndedText>),
    /// The session is being committed.
    Committing(Result<Completion, GenerateError>),
    /// The last event waits for the reader.
    Settled(Result<Finished, GenerateError>),
    /// The last event was taken.
    Over,
}

impl TextBuffer {
    pub(crate) fn new(parts: TextBufferParts) -> Arc<Self> {
        let content = BufferState {
            begin_position: parts.started.position,
            prompt_chars: parts.prompt_chars,
            started: Some(parts.started),
            may_start: false,
            text: String::new(),
            chars: 0,
            logprobs: Vec::new(),
            flush_policy: FlushPolicy::default(),
            is_due: false,
            is_cut_off: false,
            is_whole: false,
            taken: 0,
            reader_activity: 0,
            phase: Phase::Generating,
            reader: None,
            is_parked: false,
            permit: Some(parts.permit),
        };
        Arc::new(Self {
            content: Mutex::new(content),
            reader_left: AtomicBool::new(false),
            session: parts.session,
            capacity_chars: parts.capacity_chars,
            inbox: parts.inbox,
            committer: parts.committer,
        })
    }

    /// True once the reader has left: nobody takes any more text.
    pub(crate) fn reader_left(&self) -> bool {
        self.reader_left.load(Ordering::Acquire)
    }

    /// True if the worker has ended the text and the reader has not taken all
    /// of it.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(self.lock().phase, Phase::Ended(_))
    }

    /// Changes whenever the reader takes something, or calls
    /// [`Self::keep_alive`].
    pub(crate) fn reader_activity(&self) -> u64 {
        self.lock().reader_activity
    }

    /// Restarts the time limit of the reader.
    pub(crate) fn keep_alive(&self) {
        self.lock().reader_activity += 1;
    }

    /// Characters that the reader has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Makes a call that fails, or whose reader leaves, leave its session as it
    /// was, whatever the reader has taken.
    pub(crate) fn set_whole(&self) {
        self.lock().is_whole = true;
    }

    /// Lets the reader take the first event: the call has a slot. Returns the
    /// reader to wake.
    pub(crate) fn start(&self) -> Option<Waker> {
        let mut content = self.lock();
        content.may_start = true;
        content.reader.take()
    }

    /// Appends characters. Returns whether the buffer is full, which parks the
    /// job, and the reader to wake if there is a message's worth. A reader is
    /// woken once for all that arrived since. On a saturated machine a message
    /// waits for `min_chars`.
    pub(crate) fn append(
        &self,
        characters: impl Iterator<Item = (char, Option<f32>)>,
        min_chars: u64,
    ) -> (bool, Option<Waker>) {
        let mut guard = self.lock();
        let content = &mut *guard;
        for (character, logprob) in characters {
            content.text.push(character);
            content.chars += 1;
            content.logprobs.extend(logprob);
        }
        content.is_parked = content.chars >= self.capacity_chars;
        if content.is_parked {
            content.release_slot();
        }
        let unread = content.chars as u64;
        content.is_due = content.is_parked
            || content
                .flush_policy
                .is_due(content.taken, unread, min_chars, Instant::now);
        let reader = if content.is_due {
            content.reader.take()
        } else {
            None
        };
        (content.is_parked, reader)
    }

    /// Lets the reader take all text that is there: no more comes soon. Returns
    /// the reader to wake.
    pub(crate) fn flush(&self) -> Option<Waker> {
        let mut content = self.lock();
        if content.chars == 0 || content.is_due {
            return None;
        }
        content.is_due = true;
        content.reader.take()
    }

    /// True while a parked job waits for its reader.
    pub(crate) fn is_parked(&self) -> bool {
        self.lock().is_parked
    }

    /// Ends the text. If the worker failed, text that was not read is dropped:
    /// the reader gets the error after the commit. Returns the reader to wake.
    pub(crate) fn end(self: &Arc<Self>, ended: EndedText) -> Option<Waker> {
        let mut content = self.lock();
        match &ended.ending {
            Ok(_) => content.may_start = true,
            Err(_) => content.drop_text(),
        }
        content.is_due = true;
        content.release_slot();
        content.phase = Phase::Ended(Box::new(ended));
        self.settle_if_read(content)
    }

    /// Replaces the ending of a text whose reader does not take it: what was
    /// not read is dropped. Returns the reader to wake.
    pub(crate) fn give_up(self: &Arc<Self>, error: GenerateError) -> Option<Waker> {
        let mut content = self.lock();
        let Phase::Ended(ended) = &mut content.phase else {
            return None;
        };
        ended.ending = Err(error);
        content.drop_text();
        self.settle_if_read(content)
    }

    /// Records that the reader has left, and drops what it did not read.
    pub(crate) fn leave(self: &Arc<Self>) {
        let mut content = self.lock();
        self.reader_left.store(true, Ordering::Release);
        if let Some(session) = &self.session {
            session.lease.mark_leaving();
        }
        content.drop_text();
        content.reader = None;
        self.settle_if_read(content);
        self.inbox.wake();
    }

    /// Polls for the next event; a text has at most `max_chars` characters.
    pub(crate) fn poll_take(
        self: &Arc<Self>,
        context: &Context<'_>,
        max_chars: usize,
    ) -> Poll<Option<Result<GenerationEvent, GenerateError>>> {
        let mut content = self.lock();
        if content.may_start
            && let Some(started) = content.started.take()
        {
            // The reader is here: it needs no waking.
            self.settle_if_read(content);
            return Poll::Ready(Some(Ok(GenerationEvent::Started(started))));
        }
        if content.chars > 0 && self.lease_is_lost() {
            // The session is somebody else's by now: the worker ends the call.
            content.drop_text();
            content.store_reader(context);
            self.settle_if_read(content);
            self.inbox.wake();
            return Poll::Pending;
        }
        if content.chars > 0 && content.is_due {
            let text = content.take_text(max_chars);
            // A reader that takes small pieces first empties the buffer.
            let unpark = content.chars == 0 && std::mem::take(&mut content.is_parked);
            if unpark && let Some(permit) = &mut content.permit {
                permit.reacquire();
            }
            self.settle_if_read(content);
            if unpark {
                self.inbox.wake();
            }
            return Poll::Ready(Some(Ok(GenerationEvent::Text(text))));
        }
        match std::mem::replace(&mut content.phase, Phase::Over) {
            Phase::Settled(ending) => Poll::Ready(Some(ending.map(GenerationEvent::Finished))),
            Phase::Over => Poll::Ready(None),
            phase => {
                content.phase = phase;
                content.store_reader(context);
                Poll::Pending
            }
        }
    }

    fn lease_is_lost(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.lease.status() != LeaseStatus::Held)
    }

    /// Hands the call to the committer if its text has ended and the reader
    /// has taken all of it or does not get the rest. Returns the reader to
    /// wake, if there is something for it to take.
    fn settle_if_read(self: &Arc<Self>, mut guard: MutexGuard<'_, BufferState>) -> Option<Waker> {
        let content = &mut *guard;
        let phase = std::mem::replace(&mut content.phase, Phase::Generating);
        let ended = match phase {
            Phase::Ended(ended) => ended,
            other => {
                content.phase = other;
                return None;
            }
        };
        let reader_left = self.reader_left();
        let is_read = content.chars == 0 && content.started.is_none();
        if !(is_read || reader_left || ended.ending.is_err()) {
            content.phase = Phase::Ended(ended);
            return content.reader.take();
        }
        let point = match &ended.ending {
            Ok(completion) if completion.is_complete() && !reader_left && !content.is_cut_off => {
                CommitPoint::End
            }
            // The caller gets nothing of a whole text that fails.
            ending if content.is_whole && (reader_left || ending.is_err()) => CommitPoint::After(0),
            _ => CommitPoint::After(content.taken),
        };
        let session = ended
            .session
            .map(|(progress, end_state)| progress.leave_at(point, end_state));
        let snapshot = match session {
            Some(SessionEnd::Commit(lease, commit)) => {
                content.phase = Phase::Committing(ended.ending);
                drop(guard);
                self.committer.submit(lease, commit, Arc::clone(self));
                return None;
            }
            Some(SessionEnd::Snapshot(snapshot)) => Some(snapshot),
            None => None,
        };
        let finished = ended.ending.map(|ending| Finished {
            snapshot: snapshot.filter(|snapshot| snapshot.state.position > 0),
            ..content.finished(&ending, None)
        });
        content.settle(finished)
    }

    /// Releases the last event, with the outcome of the commit.
    pub(crate) fn commit_ended(&self, outcome: Result<CommitOutcome, CommitError>) {
        let mut content = self.lock();
        let ending = match std::mem::replace(&mut content.phase, Phase::Over) {
            Phase::Committing(ending) => ending,
            // A call is committed once.
            other => {
                content.phase = other;
                return;
            }
        };
        let finished = match (ending, outcome) {
            // The commit is reported by the error that ended the call already.
            (Err(error), _) => Err(error),
            (Ok(ending), Ok(outcome)) => Ok(content.finished(&ending, Some(outcome.position))),
            (Ok(ending), Err(CommitError::Session(SessionError::Deleted))) => {
                let cancelled = Completion {
                    reason: FinishReason::Cancelled,
                    stop_chars: 0,
                    ..ending
                };
                Ok(content.finished(&cancelled, None))
            }
            (Ok(_), Err(CommitError::Session(error))) => Err(self.session_error(error)),
            (Ok(_), Err(CommitError::Abandoned)) => {
                let text = "a commit task ended before its commit".to_owned();
                Err(GenerateError::Internal(text))
            }
        };
        let reader = content.settle(finished);
        drop(content);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn session_error(&self, error: SessionError) -> GenerateError {
        match &self.session {
            Some(session) => GenerateError::Session {
                id: session.id.clone(),
                error,
            },
            None => GenerateError::Internal(error.to_string()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BufferState> {
        // Nothing panics under the lock unless memory runs out.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a commit did not succeed.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// The storage rejected it or failed.
    Session(SessionError),
    /// Its task was dropped or panicked.
    Abandoned,
}

impl Completion {
    /// Whether the text reached its length or a stop string, so that its end
    /// is where the session continues.
    fn is_complete(&self) -> bool {
        match self.reason {
            FinishReason::Length | FinishReason::Stop => true,
            FinishReason::Cancelled | FinishReason::Shutdown => false,
        }
    }
}

impl BufferState {
    /// Frees the slot: nothing is to be done for the call until its reader
    /// comes or its commit ends.
    fn release_slot(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.release();
        }
    }

    fn take_text(&mut self, max_chars: usize) -> GeneratedText {
        let chars = self.chars.min(max_chars);
        let rest = self.text.char_indices().nth(chars);
        let rest = rest.map_or(self.text.len(), |(start, _)| start);
        let text_after = self.text.split_off(rest);
        let logprobs_after = self.logprobs.split_off(chars.min(self.logprobs.len()));
        self.taken += chars as u64;
        self.chars -= chars;
        self.reader_activity += 1;
        self.is_due = self.chars > 0 || !matches!(self.phase, Phase::Generating);
        self.flush_policy.sent();
        GeneratedText {
            text: std::mem::replace(&mut self.text, text_after),
            logprobs: std::mem::replace(&mut self.logprobs, logprobs_after),
            position: self.read_position(),
        }
    }

    /// Drops the text that was not read.
    fn drop_text(&mut self) {
        self.is_cut_off |= self.chars > 0;
        self.chars = 0;
        self.text = String::new();
        self.logprobs = Vec::new();
    }

    fn store_reader(&mut self, context: &Context<'_>) {
        match &mut self.reader {
            Some(reader) => reader.clone_from(context.waker()),
            None => self.reader = Some(context.waker().clone()),
        }
    }

    /// Position after the characters that the reader has taken.
    fn read_position(&self) -> u64 {
        self.begin_position + self.prompt_chars + self.taken
    }

    /// The last event. `committed` is the position of the session; without
    /// one, it is what it would be.
    fn finished(&self, ending: &Completion, committed: Option<u64>) -> Finished {
        let position = committed.unwrap_or_else(|| {
            if ending.is_complete() || self.taken > 0 {
                self.read_position() + ending.stop_chars
            } else {
                // A call that was cut off before its text did not happen.
                self.begin_position
            }
        });
        Finished {
            reason: ending.reason,
            chars: self.taken,
            position,
            seconds: ending.seconds,
            snapshot: None,
        }
    }

    fn settle(&mut self, finished: Result<Finished, GenerateError>) -> Option<Waker> {
        self.phase = Phase::Settled(finished);
        self.permit = None;
        self.reader.take()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_model::ModelId;
    use charlstm_model::decode_step::Precision;
    use charlstm_store::session::{MemorySessions, SessionLimits};
    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::admission::Admission;
    use crate::caller::CallerId;
    use crate::stream::GenerationStream;

    /// The buffer of a call without a session.
    fn buffer() -> Arc<TextBuffer> {
        let storage = Arc::new(MemorySessions::new(SessionLimits::default()));
        let started = Started {
            model: ModelId {
                name: "m".to_owned(),
                version: 1,
            },
            precision: Precision::Float32,
            position: 0,
            unknown_chars: 0,
            seed: 0,
            session: None,
        };
        TextBuffer::new(TextBufferParts {
            started,
            prompt_chars: 1,
            session: None,
            capacity_chars: 10_000,
            inbox: Arc::default(),
            committer: Committer::new(storage, tokio::runtime::Handle::current()),
            permit: Admission::new(1).admit(&CallerId::default(), 1).unwrap(),
        })
    }

    #[tokio::test]
    async fn a_reader_that_polls_all_the_time_gets_a_long_text_in_pieces_too() {
        let buffer = buffer();
        let mut stream = GenerationStream::new(Arc::clone(&buffer));
        buffer.start();
        let mut next = || stream.next().now_or_never().flatten();
        assert!(matches!(next(), Some(Ok(GenerationEvent::Started(_)))));
        let mut pieces = Vec::new();
        for _ in 0..4_000 {
            buffer.append(std::iter::once(('a', None)), 1);
            if let Some(Ok(GenerationEvent::Text(piece))) = next() {
                pieces.push(piece.text.len());
            }
        }
        assert_eq!(pieces[..2_000], [1; 2_000]);
        // Four characters each, unless this test was kept from running.
        assert!(pieces.len() < 2_600, "{}", pieces.len());
    }

    #[tokio::test]
    async fn text_that_waits_for_the_rest_of_its_message_is_flushed() {
        let buffer = buffer();
        let mut stream = GenerationStream::new(Arc::clone(&buffer));
        buffer.start();
        let mut next = || stream.next().now_or_never().flatten();
        assert!(matches!(next(), Some(Ok(GenerationEvent::Started(_)))));
        buffer.append("0123456789".chars().map(|digit| (digit, None)), 8);
        assert!(next().is_some(), "the first characters do not wait");
        buffer.append("bc".chars().map(|character| (character, None)), 8);
        assert!(next().is_none());
        buffer.flush();
        let Some(Ok(GenerationEvent::Text(piece))) = next() else {
            panic!("no text");
        };
        assert_eq!(piece.text, "bc");
    }
}
