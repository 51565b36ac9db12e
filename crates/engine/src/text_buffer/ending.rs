//! How a call ends. When the worker has ended the text and the reader has taken all
//! of it, or has left, the buffer hands the call to the committer. The last event is
//! held back until the session is committed.

use std::sync::{Arc, MutexGuard};
use std::task::Waker;

use charlstm_model::decode_step::HiddenState;
use charlstm_store::session::{CommitOutcome, SessionError};

use super::{BufferState, TextBuffer};
use crate::error::GenerateError;
use crate::event::{FinishReason, Finished};
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

/// A text that the worker has ended.
pub(crate) struct EndedText {
    pub(crate) ending: Result<Completion, GenerateError>,
    /// The call's side of its session, if it has one, and the state after the
    /// last generated character, if it is at hand.
    pub(crate) session: Option<(Progress, Option<HiddenState>)>,
}

/// Where a call is.
pub(super) enum Phase {
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

/// Why a commit did not succeed.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// The storage rejected it or failed.
    Session(SessionError),
    /// Its task was dropped or panicked.
    Abandoned,
}

impl TextBuffer {
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

    /// Hands the call to the committer if its text has ended and the reader
    /// has taken all of it or does not get the rest. Returns the reader to
    /// wake, if there is something for it to take.
    pub(super) fn settle_if_read(
        self: &Arc<Self>,
        mut guard: MutexGuard<'_, BufferState>,
    ) -> Option<Waker> {
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
}

impl BufferState {
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
