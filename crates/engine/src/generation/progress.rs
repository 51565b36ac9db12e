//! How far a call has moved its session, kept so that the session can be left
//! standing after any character that the reader has taken.

use std::sync::Arc;

use super::session_manager::SessionGuard;
use crate::sessions::store::{Commit, MAX_REPLAY_CHARS};
use crate::sessions::{ModelKey, SessionState, TokenIds};
use charlstm_model::decode_step::HiddenState;

/// A state is copied every so many characters. Where the session ends up in
/// between, the characters since are fed again when it goes on: at most this
/// many and those that were not read.
const ANCHOR_CHARS: usize = 256;

/// A state in the middle of a call.
#[derive(Debug)]
struct Anchor {
    hidden: Arc<HiddenState>,
    /// The character that was seen last and not fed in.
    last: u32,
    /// Characters generated before it.
    at: u64,
}

/// The progress of a call in a session.
pub(super) struct Progress {
    guard: SessionGuard,
    model: ModelKey,
    begin: SessionState,
    /// What the call has seen, prime and text; `None` once it is too much.
    call: Option<Vec<u32>>,
    prime_chars: u64,
    /// A state that the reader has caught up with.
    base: Option<Anchor>,
    /// A later one, for when the reader has.
    next: Option<Anchor>,
    /// Characters generated since `base`.
    tail: Vec<u32>,
}

/// Where a call leaves its session.
pub(super) enum CommitPoint {
    /// At the end of the call, whatever of it was sent.
    End,
    /// After so many generated characters.
    After(u64),
}

impl Progress {
    /// A call that goes on from `begin` with `prime`.
    pub(super) fn new(
        guard: SessionGuard,
        model: ModelKey,
        begin: SessionState,
        prime: &[u32],
    ) -> Self {
        Self {
            guard,
            model,
            begin,
            call: (prime.len() <= MAX_REPLAY_CHARS).then(|| prime.to_vec()),
            prime_chars: prime.len() as u64,
            base: None,
            next: None,
            tail: Vec::new(),
        }
    }

    /// True once the session was deleted.
    pub(super) fn is_cancelled(&self) -> bool {
        self.guard.is_cancelled()
    }

    /// The beginning, written with all but its last character fed: so a
    /// session that was left standing in the middle of a call does not carry
    /// those characters along for ever.
    pub(super) fn begun(&mut self, hidden: &HiddenState, last: u32) {
        self.begin.hidden = Some(Arc::new(hidden.clone()));
        self.begin.unfed = TokenIds::from([last].as_slice());
    }

    /// The prime was fed, all but its last character.
    pub(super) fn primed(&mut self, hidden: &HiddenState, last: u32) {
        self.base = Some(Anchor {
            hidden: Arc::new(hidden.clone()),
            last,
            at: 0,
        });
    }

    /// A character was drawn. `hidden` is the state before it is fed in, and
    /// `taken` how many characters the reader has; both are asked for rarely.
    pub(super) fn generated(
        &mut self,
        token: u32,
        hidden: impl FnOnce() -> HiddenState,
        taken: impl FnOnce() -> u64,
    ) {
        self.tail.push(token);
        if let Some(call) = &mut self.call {
            call.push(token);
            if call.len() > MAX_REPLAY_CHARS {
                self.call = None;
            }
        }
        if self.tail.len().is_multiple_of(ANCHOR_CHARS) {
            self.move_anchors(token, hidden, taken());
        }
    }

    fn move_anchors(&mut self, last: u32, hidden: impl FnOnce() -> HiddenState, taken: u64) {
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
                hidden: Arc::new(hidden()),
                last,
                at,
            });
        }
    }

    /// Leaves the session standing. `end` is the state after the last
    /// generated character, where it is at hand.
    pub(super) fn commit(self, standing: CommitPoint, end: Option<HiddenState>) {
        // Without a base the priming was not over, and nothing was sent.
        let Some(base) = &self.base else {
            return;
        };
        let total = base.at + self.tail.len() as u64;
        let after = match standing {
            // A call of which nothing was taken did not happen.
            CommitPoint::After(0) => return,
            CommitPoint::After(chars) => chars,
            CommitPoint::End => total,
        };
        let anchor = match &self.next {
            Some(next) if next.at <= after => next,
            _ => base,
        };
        let place = |at: u64| usize::try_from(at - base.at).expect("a tail fits the memory");
        let since = &self.tail[place(anchor.at)..place(after)];
        let last = since.last().copied().unwrap_or(anchor.last);
        let (hidden, unfed) = match end {
            Some(hidden) if after == total => (Arc::new(hidden), TokenIds::from([last].as_slice())),
            _ => {
                let mut unfed = vec![anchor.last];
                unfed.extend_from_slice(since);
                (Arc::clone(&anchor.hidden), TokenIds::from(unfed.as_slice()))
            }
        };
        let seen = self.prime_chars + after;
        let call = self.call.as_ref().and_then(|call| {
            let seen = usize::try_from(seen).ok()?;
            Some(TokenIds::from(call.get(..seen)?))
        });
        let commit = Commit {
            model: self.model,
            end: SessionState {
                hidden: Some(hidden),
                unfed,
                random: self.begin.random.after(after),
                position: self.begin.position + seen,
            },
            begin: self.begin,
            call,
        };
        self.guard.commit(commit);
    }
}
