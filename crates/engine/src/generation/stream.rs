//! The bounded buffer between the worker that makes a text and the one who
//! reads it.
//!
//! The worker appends; the reader takes all that is there as one event. Who
//! comes last at the end, the reader or the worker, leaves the session
//! standing where the reader has come to.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_util::Stream;

use super::admission::Permit;
use super::error::GenerateError;
use super::flush_policy::FlushPolicy;
use super::inbox::Inbox;
use super::progress::{CommitPoint, Progress};
use super::request::{FinishReason, Finished, GeneratedText, GenerationEvent, Started};
use super::session_manager::SessionManager;
use crate::sessions::store::LeaseMark;
use charlstm_model::decode_step::HiddenState;

/// How a generation ended.
pub(super) type Ending = Result<Finished, GenerateError>;

/// What is left of a call when its generation is over: enough to leave its
/// session standing.
pub(super) struct PendingCommit {
    pub(super) progress: Progress,
    pub(super) end: Option<HiddenState>,
}

impl PendingCommit {
    fn commit(self, standing: CommitPoint) {
        self.progress.commit(standing, self.end);
    }
}

/// Both ends of a text.
pub(super) struct TextBuffer {
    content: Mutex<Content>,
    /// The reader has taken the end, or has left.
    done: AtomicBool,
    capacity_chars: usize,
    inbox: Arc<Inbox>,
}

struct Content {
    /// Taken by the reader as the first event, once the worker lets it.
    started: Option<Started>,
    may_start: bool,
    text: String,
    chars: usize,
    logprobs: Vec<f32>,
    pace: FlushPolicy,
    /// What is there is worth a message. A reader that comes earlier waits.
    due: bool,
    /// Characters that the reader has taken.
    taken: u64,
    /// Position of the session before the first generated character.
    primed_position: u64,
    ending: Option<Ending>,
    pending_commit: Option<Box<PendingCommit>>,
    reader: Option<Waker>,
    /// The worker has parked the text until the buffer is drained.
    parked: bool,
    permit: Option<Permit>,
}

/// What the reader finds.
enum Taken {
    Nothing,
    Event(GenerationEvent),
    End(Ending, Option<Box<PendingCommit>>),
}

impl TextBuffer {
    /// An empty buffer for `capacity_chars` unread characters, whose worker
    /// looks into `inbox`.
    pub(super) fn new(
        started: Started,
        prime_chars: u64,
        capacity_chars: usize,
        inbox: Arc<Inbox>,
        permit: Permit,
    ) -> Arc<Self> {
        let content = Content {
            primed_position: started.position + prime_chars,
            started: Some(started),
            may_start: false,
            text: String::new(),
            chars: 0,
            logprobs: Vec::new(),
            pace: FlushPolicy::default(),
            due: false,
            taken: 0,
            ending: None,
            pending_commit: None,
            reader: None,
            parked: false,
            permit: Some(permit),
        };
        Arc::new(Self {
            content: Mutex::new(content),
            done: AtomicBool::new(false),
            capacity_chars,
            inbox,
        })
    }

    /// True once nobody will read on: the end was taken or the reader left.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Characters that the reader has taken.
    pub(super) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// The call has its place: the reader is told so.
    pub(super) fn start(&self) -> Option<Waker> {
        let mut content = self.lock();
        content.may_start = true;
        content.reader.take()
    }

    /// Appends characters. Returns whether the buffer is full, which parks
    /// the text, and the reader to wake where there is a message's worth, who
    /// is woken once for all that came since.
    pub(super) fn append(
        &self,
        characters: impl Iterator<Item = (char, Option<f32>)>,
    ) -> (bool, Option<Waker>) {
        let mut guard = self.lock();
        let content = &mut *guard;
        for (character, logprob) in characters {
            content.text.push(character);
            content.chars += 1;
            content.logprobs.extend(logprob);
        }
        content.parked = content.chars >= self.capacity_chars;
        if content.parked {
            content.release();
        }
        let waiting = content.chars as u64;
        content.due = content.parked || content.pace.due(content.taken, waiting, Instant::now);
        let reader = if content.due {
            content.reader.take()
        } else {
            None
        };
        (content.parked, reader)
    }

    /// True while a parked text waits for its reader.
    pub(super) fn is_parked(&self) -> bool {
        self.lock().parked
    }

    /// Ends the text. A finished one is left to the reader, who settles the
    /// session when all is taken; a failed one is settled at once, and what
    /// was not read is dropped.
    pub(super) fn end(
        &self,
        ending: Ending,
        pending_commit: Option<Box<PendingCommit>>,
    ) -> Option<Waker> {
        let mut content = self.lock();
        content.may_start |= ending.is_ok();
        let settle_now = ending.is_err() || self.is_done();
        content.ending = Some(ending);
        content.pending_commit = pending_commit;
        content.release();
        if settle_now {
            return self.settle_at_taken(content);
        }
        content.reader.take()
    }

    /// Ends a text for good whose end is not being read.
    pub(super) fn give_up(&self, error: GenerateError) -> Option<Waker> {
        let mut content = self.lock();
        if self.is_done() {
            return None;
        }
        content.ending = Some(Err(error));
        self.settle_at_taken(content)
    }

    /// Drops what was not read, and leaves the session where the reader is.
    fn settle_at_taken(&self, mut content: MutexGuard<'_, Content>) -> Option<Waker> {
        content.text = String::new();
        content.logprobs = Vec::new();
        content.chars = 0;
        content.permit = None;
        let taken = content.taken;
        let pending_commit = content.pending_commit.take();
        let reader = content.reader.take();
        // Outside of the lock: the session store has a lock of its own.
        drop(content);
        if let Some(pending_commit) = pending_commit {
            pending_commit.commit(CommitPoint::After(taken));
        }
        reader
    }

    fn take(&self, context: &mut Context<'_>) -> Taken {
        let mut content = self.lock();
        if content.may_start
            && let Some(started) = content.started.take()
        {
            return Taken::Event(GenerationEvent::Started(started));
        }
        if content.chars > 0 && (content.due || content.ending.is_some()) {
            let text = content.take_text();
            let unpark = std::mem::take(&mut content.parked);
            if unpark && let Some(permit) = &mut content.permit {
                permit.reacquire();
            }
            drop(content);
            if unpark {
                self.inbox.wake();
            }
            return Taken::Event(GenerationEvent::Text(text));
        }
        if let Some(ending) = content.ending.take() {
            self.done.store(true, Ordering::Release);
            content.permit = None;
            return Taken::End(ending, content.pending_commit.take());
        }
        let known = content
            .reader
            .as_ref()
            .is_some_and(|reader| reader.will_wake(context.waker()));
        if !known {
            content.reader = Some(context.waker().clone());
        }
        Taken::Nothing
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Nothing panics under the lock but for want of memory.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    /// Nothing is to be done for the text until its reader comes.
    fn release(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.release();
        }
    }

    fn take_text(&mut self) -> GeneratedText {
        self.taken += self.chars as u64;
        self.chars = 0;
        self.due = false;
        self.pace.sent();
        GeneratedText {
            text: std::mem::take(&mut self.text),
            logprobs: std::mem::take(&mut self.logprobs),
            position: self.primed_position + self.taken,
        }
    }
}

/// The events of one generation. Dropping it ends the generation within a
/// step, and leaves the session after the last text taken.
pub struct GenerationStream {
    buffer: Arc<TextBuffer>,
    book: Arc<SessionManager>,
    lease: Option<LeaseMark>,
    ended: bool,
}

impl GenerationStream {
    pub(super) fn new(
        buffer: Arc<TextBuffer>,
        book: Arc<SessionManager>,
        lease: Option<LeaseMark>,
    ) -> Self {
        Self {
            buffer,
            book,
            lease,
            ended: false,
        }
    }
}

impl Stream for GenerationStream {
    type Item = Result<GenerationEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.buffer.take(context) {
            Taken::Nothing => Poll::Pending,
            Taken::Event(event) => Poll::Ready(Some(Ok(event))),
            Taken::End(ending, pending_commit) => {
                self.ended = true;
                if let Some(pending_commit) = pending_commit {
                    pending_commit.commit(standing(&ending, self.buffer.taken()));
                }
                self.buffer.inbox.wake();
                Poll::Ready(Some(ending.map(GenerationEvent::Finished)))
            }
        }
    }
}

/// Where a session stands whose end was taken.
fn standing(ending: &Ending, taken: u64) -> CommitPoint {
    match ending {
        Ok(finished) => match finished.reason {
            FinishReason::Length | FinishReason::Stop => CommitPoint::End,
            FinishReason::Cancelled | FinishReason::Shutdown => CommitPoint::After(taken),
        },
        Err(_) => CommitPoint::After(taken),
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut content = self.buffer.lock();
        self.buffer.done.store(true, Ordering::Release);
        content.permit = None;
        let taken = content.taken;
        let pending_commit = content.pending_commit.take();
        drop(content);
        match pending_commit {
            Some(pending_commit) => pending_commit.commit(CommitPoint::After(taken)),
            // The worker has them, and settles when it notices.
            None => {
                if let Some(lease) = &self.lease {
                    self.book.leave(lease);
                }
            }
        }
        self.buffer.inbox.wake();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::StreamExt;

    use super::*;
    use crate::generation::admission::Admission;
    use crate::sessions::store::SessionLimits;
    use charlstm_repository::ModelId;

    #[test]
    fn a_reader_that_looks_all_the_time_gets_a_long_text_in_pieces_too() {
        let started = Started {
            model: ModelId {
                name: "m".to_owned(),
                version: 1,
            },
            position: 0,
            seed: 0,
            session: None,
        };
        let permit = Admission::new(1).admit().unwrap();
        let buffer = TextBuffer::new(started, 1, 10_000, Arc::default(), permit);
        let (book, _) = SessionManager::open(SessionLimits::default(), None).unwrap();
        let mut stream = GenerationStream::new(Arc::clone(&buffer), book, None);
        buffer.start();
        let mut next = || stream.next().now_or_never().flatten();
        assert!(matches!(next(), Some(Ok(GenerationEvent::Started(_)))));
        let mut pieces = Vec::new();
        for _ in 0..4_000 {
            buffer.append(std::iter::once(('a', None)));
            if let Some(Ok(GenerationEvent::Text(piece))) = next() {
                pieces.push(piece.text.len());
            }
        }
        assert_eq!(pieces[..2_000], [1; 2_000]);
        // Four characters each, but where this test was kept from running.
        assert!(pieces.len() < 2_600, "{}", pieces.len());
    }
}
