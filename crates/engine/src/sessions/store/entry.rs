//! What the store has of one session.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::interface::{SessionError, SessionSummary};
use crate::sessions::id::SessionId;
use crate::sessions::snapshot::Snapshot;
use crate::sessions::state::{ModelKey, SessionState, TokenIds};

/// Longest call, in characters, of which the end is worked out again rather
/// than kept: a few tenths of a second of priming.
pub const MAX_REPLAY_CHARS: usize = 2048;

/// Bytes that a session takes beside its points: its entries in the maps and
/// its name. An estimate, for the limit on bytes.
pub(super) const ENTRY_BYTES: usize = 448;

/// What a session has once its first call is over.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) model: Arc<ModelKey>,
    pub(super) begin: SessionState,
    pub(super) end: SessionState,
    pub(super) call: Option<TokenIds>,
}

impl Kept {
    pub(super) fn bytes(&self) -> usize {
        self.begin.bytes_beside(None)
            + self.end.bytes_beside(Some(&self.begin))
            + self.call.as_ref().map_or(0, TokenIds::bytes)
    }

    /// Drops the state of the end where it can be worked out again.
    pub(super) fn shrink(&mut self) {
        // A session that began from nothing has one state only: its end.
        if self.begin.hidden.is_none() || self.begin.shares_hidden(&self.end) {
            return;
        }
        if let Some(call) = self.call.take()
            && self.begin.unfed.len() + call.len() <= MAX_REPLAY_CHARS
        {
            self.end.unfed = self.begin.unfed.followed_by(&call);
            self.end.hidden = self.begin.hidden.clone();
        }
    }
}

#[derive(Debug)]
pub(super) struct Use {
    pub(super) ticket: u64,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) leaving: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kept: Option<Kept>,
    pub(super) in_use: Option<Use>,
    /// Place in the order of use.
    pub(super) mark: u64,
    /// Place among the sessions that keep both states.
    pub(super) ready_mark: u64,
    pub(super) last_used: Instant,
    pub(super) bytes: usize,
}

/// The model and the point from which a call goes on in a session.
pub(super) fn opened(
    entry: &Entry,
    expected: Option<u64>,
) -> Result<(Arc<ModelKey>, SessionState), SessionError> {
    let busy = |leaving| SessionError::Busy { leaving };
    if let Some(in_use) = &entry.in_use {
        return Err(busy(in_use.leaving));
    }
    // An entry without contents is always in use.
    let kept = entry.kept.as_ref().ok_or(busy(true))?;
    let point = match expected {
        None => &kept.end,
        Some(position) if position == kept.end.position => &kept.end,
        Some(position) if position == kept.begin.position => &kept.begin,
        Some(expected) => {
            return Err(SessionError::PositionMismatch {
                expected,
                position: kept.end.position,
                last_call_position: kept.begin.position,
            });
        }
    };
    Ok((Arc::clone(&kept.model), point.clone()))
}

pub(super) fn facts(id: &SessionId, entry: &Entry, now: Instant) -> SessionSummary {
    let kept = entry.kept.as_ref();
    SessionSummary {
        id: id.clone(),
        model: kept.map(|kept| Arc::clone(&kept.model)),
        position: kept.map_or(0, |kept| kept.end.position),
        last_call_position: kept.map_or(0, |kept| kept.begin.position),
        busy: entry.in_use.is_some(),
        idle: now.saturating_duration_since(entry.last_used),
        bytes: entry.bytes,
    }
}

pub(super) fn snapshot(id: &SessionId, kept: &Kept) -> Snapshot {
    Snapshot {
        id: id.clone(),
        model: (*kept.model).clone(),
        begin: kept.begin.clone(),
        end: kept.end.clone(),
        call: kept.call.clone(),
    }
}
