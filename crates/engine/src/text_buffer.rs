//! The bounded buffer between the worker that generates a text and its reader.
//!
//! The worker appends, and the reader takes all that is there as one event. What
//! follows when the text has ended is in `ending`.

mod ending;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use charlstm_store::session::{LeaseHandle, LeaseStatus, SessionId};

use self::ending::Phase;
use crate::admission::Permit;
use crate::committer::Committer;
use crate::error::GenerateError;
use crate::event::{GeneratedText, GenerationEvent, Started};
use crate::flush_policy::FlushPolicy;
use crate::inbox::Inbox;

pub(crate) use self::ending::{CommitError, Completion, EndedText};

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

    fn lock(&self) -> MutexGuard<'_, BufferState> {
        // Nothing panics under the lock unless memory runs out.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
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
}
