//! How far a call has advanced its session, kept so that the session can be
//! committed after any character that the reader has taken.

use std::sync::Arc;

use bytes::Bytes;
use charlstm_model::decode_step::HiddenState;
use charlstm_store::session::{
    LastCall, LeaseStatus, MAX_REPLAY_CHARS, Owner, ParametersDigest, SessionCommit, SessionId,
    SessionIdentity, SessionLease, SessionSnapshot, SessionState, TokenIds,
};

/// Number of characters between two copies of the state. If the session is
/// committed in between, its next call feeds the characters since the last
/// copy again: at most this many, and those that were not read.
pub(crate) const ANCHOR_CHARS: usize = 256;

/// A state in the middle of a call.
#[derive(Debug)]
struct Anchor {
    state: Arc<HiddenState>,
    /// The character that was seen last and not fed yet.
    last: u32,
    /// Characters generated up to here.
    at: u64,
}

/// Where the session of a call goes.
pub(crate) enum Destination {
    /// To the storage, with the right to change it there.
    Storage(SessionLease),
    /// To the client, as a snapshot for this principal.
    Client(Owner),
}

/// A session that was opened for a call.
pub(crate) struct OpenSession {
    pub(crate) destination: Destination,
    /// Model, precision and arithmetic.
    pub(crate) identity: SessionIdentity,
    /// Where the call begins, with the call's random sequence.
    pub(crate) begin: SessionState,
}

/// The progress of a call in a session.
pub(crate) struct Progress {
    session: OpenSession,
    parameters: ParametersDigest,
    /// Characters that the call has added, prompt and text; `None` once there
    /// are too many to be kept.
    added: Option<Vec<u32>>,
    prompt_chars: u64,
    /// The latest state that the reader has reached. `None` during prefill.
    base: Option<Anchor>,
    /// A later one, for when the reader has reached it.
    next: Option<Anchor>,
    /// Characters generated since `base`.
    tail: Vec<u32>,
}

/// Where a call leaves its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitPoint {
    /// The end of the call, which is complete.
    End,
    /// After this many generated characters; the call was cut off. After 0 it
    /// leaves the session as it was.
    After(u64),
}

/// How a call leaves its session.
pub(crate) enum SessionEnd {
    /// To be committed.
    Commit(SessionLease, Box<SessionCommit>),
    /// To be sent to the client.
    Snapshot(Box<SessionSnapshot>),
}

impl Progress {
    /// A call that continues `session` with `prompt`.
    pub(crate) fn new(session: OpenSession, parameters: ParametersDigest, prompt: &[u32]) -> Self {
        Self {
            session,
            parameters,
            added: (prompt.len() <= MAX_REPLAY_CHARS).then(|| prompt.to_vec()),
            prompt_chars: prompt.len() as u64,
            base: None,
            next: None,
            tail: Vec::new(),
        }
    }

    /// Whether the call may continue.
    pub(crate) fn lease_status(&self) -> LeaseStatus {
        match &self.session.destination {
            Destination::Storage(lease) => lease.status(),
            Destination::Client(_) => LeaseStatus::Held,
        }
    }

    /// Where the call began.
    pub(crate) fn begin_position(&self) -> u64 {
        self.session.begin.position
    }

    /// The id of a stored session.
    pub(crate) fn id(&self) -> Option<&SessionId> {
        match &self.session.destination {
            Destination::Storage(lease) => Some(&lease.key().id),
            Destination::Client(_) => None,
        }
    }

    /// Records the state at the beginning of the call, in which all characters
    /// of the session but the last were fed, so that a session that was
    /// committed in the middle of a call does not carry them along for ever.
    pub(crate) fn begin_reached(&mut self, state: &HiddenState, last: u32) {
        self.session.begin.network = Some(encode(state));
        self.session.begin.unfed = TokenIds::from([last].as_slice());
    }

    /// Records the state in which all characters of the prompt but the last
    /// were fed.
    pub(crate) fn prefilled(&mut self, state: &HiddenState, last: u32) {
        self.base = Some(Anchor {
            state: Arc::new(state.clone()),
            last,
            at: 0,
        });
    }

    /// Records a character that was drawn. `state` is the state before it is
    /// fed, and `taken` the number of characters that the reader has taken;
    /// both are only called once every [`ANCHOR_CHARS`] characters.
    pub(crate) fn generated(
        &mut self,
        token: u32,
        state: impl FnOnce() -> HiddenState,
        taken: impl FnOnce() -> u64,
    ) {
        self.tail.push(token);
        if let Some(added) = &mut self.added {
            added.push(token);
            if added.len() > MAX_REPLAY_CHARS {
                self.added = None;
            }
        }
        if self.tail.len().is_multiple_of(ANCHOR_CHARS) {
            self.move_anchors(token, state, taken());
        }
    }

    fn move_anchors(&mut self, last: u32, state: impl FnOnce() -> HiddenState, taken: u64) {
        let Some(base) = &mut self.base else {
            return;
        };
        let at = base.at + self.tail.len() as u64;
        if let Some(next) = self.next.take_if(|next| next.at <= taken) {
            let read = usize::try_from(next.at - base.at).expect("a tail fits the memory");
            self.tail.drain(..read);
            *base = next;
        }
        if self.next.is_none() {
            self.next = Some(Anchor {
                state: Arc::new(state()),
                last,
                at,
            });
        }
    }

    /// Returns what leaves the session at `point`. `end` is the state after
    /// the last generated character, if it is at hand.
    pub(crate) fn leave_at(self, point: CommitPoint, end: Option<HiddenState>) -> SessionEnd {
        let end = self.state_at(point, end);
        let OpenSession {
            destination,
            identity,
            begin,
        } = self.session;
        let (end, tokens) = match end {
            Some((end, tokens)) => (end, tokens),
            None => (begin.clone(), None),
        };
        let lease = match destination {
            Destination::Storage(lease) => lease,
            Destination::Client(principal) => {
                return SessionEnd::Snapshot(Box::new(SessionSnapshot {
                    principal,
                    id: None,
                    identity,
                    state: end,
                }));
            }
        };
        let last_call = LastCall {
            tokens,
            parameters: Some(self.parameters),
        };
        let commit = SessionCommit {
            identity,
            begin,
            end,
            last_call,
            cut_off: point != CommitPoint::End,
        };
        SessionEnd::Commit(lease, Box::new(commit))
    }

    /// The state at `point`, and the characters of the call up to there.
    /// `None` if the call leaves the session as it was.
    fn state_at(
        &self,
        point: CommitPoint,
        end: Option<HiddenState>,
    ) -> Option<(SessionState, Option<TokenIds>)> {
        // During prefill nothing was sent.
        let base = self.base.as_ref()?;
        let total = base.at + self.tail.len() as u64;
        let after = match point {
            CommitPoint::After(0) => return None,
            CommitPoint::After(chars) => chars,
            CommitPoint::End => total,
        };
        let anchor = match &self.next {
            Some(next) if next.at <= after => next,
            _ => base,
        };
        let index = |at: u64| usize::try_from(at - base.at).expect("a tail fits the memory");
        let since = &self.tail[index(anchor.at)..index(after)];
        let (network, unfed) = match end {
            Some(end) if after == total => {
                let last = since.last().copied().unwrap_or(anchor.last);
                (encode(&end), [last].into_iter().collect())
            }
            _ => {
                let unfed = [anchor.last].into_iter().chain(since.iter().copied());
                (encode(&anchor.state), unfed.collect())
            }
        };
        let begin = &self.session.begin;
        let added_chars = self.prompt_chars + after;
        let tokens = self.added.as_ref().and_then(|added| {
            let added_chars = usize::try_from(added_chars).ok()?;
            Some(TokenIds::from(added.get(..added_chars)?))
        });
        let state = SessionState {
            network: Some(network),
            unfed,
            random: begin.random.after(after),
            position: begin.position + added_chars,
        };
        Some((state, tokens))
    }
}

/// The form of a state in the session record.
fn encode(state: &HiddenState) -> Bytes {
    state.to_bytes().into()
}
