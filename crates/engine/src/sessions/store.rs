//! Which sessions there are, who uses them, and which must go.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::id::SessionId;
use super::snapshot::Snapshot;
use super::state::ModelKey;
use super::tombstones::{Reason, Tombstones};
use entry::{ENTRY_BYTES, Entry, Kept, Use, facts, opened, snapshot};

mod entry;
mod interface;
#[cfg(test)]
mod tests;

pub use entry::MAX_REPLAY_CHARS;
pub use interface::{
    Commit, Lease, LeaseMark, Opening, SessionError, SessionLimits, SessionPage, SessionSummary,
};

/// The sessions. Every method is quick: logarithmic in the number of
/// sessions, and none does arithmetic.
#[derive(Debug)]
pub struct SessionStore {
    limits: SessionLimits,
    entries: HashMap<SessionId, Entry>,
    /// The least recently used first.
    order: BTreeMap<u64, SessionId>,
    /// Sessions that keep both states, the longest ago first. A stale mark
    /// means that the session was used again since.
    ready: VecDeque<(u64, SessionId)>,
    models: HashMap<ModelKey, Arc<ModelKey>>,
    tombstones: Tombstones,
    /// Sessions that are to be created by a call under way.
    pending_creates: usize,
    bytes: usize,
    next_mark: u64,
}

impl SessionStore {
    /// An empty store.
    pub fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            ready: VecDeque::new(),
            models: HashMap::new(),
            tombstones: Tombstones::new(limits.max_remembered),
            pending_creates: 0,
            bytes: 0,
            next_mark: 0,
        }
    }

    /// Sessions there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    /// Memory that all sessions take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Opens a session for a call. One that is to be created takes the room
    /// of another only when it is settled: a call that comes to nothing costs
    /// no session. With `expected`, it must stand there, or its last call must
    /// have begun there: then the call goes on from that beginning.
    ///
    /// # Errors
    /// All but `Exists` and `Unknown`.
    pub fn open(
        &mut self,
        id: &SessionId,
        expected: Option<u64>,
        now: Instant,
    ) -> Result<Opening, SessionError> {
        self.expire(now);
        let kept = match self.entries.get(id) {
            Some(entry) => Some(opened(entry, expected)?),
            None => None,
        };
        if kept.is_none() {
            if let Some(reason) = self.tombstones.reason(id) {
                return Err(SessionError::Evicted(reason));
            }
            if let Some(expected) = expected.filter(|&e| e != 0) {
                return Err(SessionError::PositionMismatch {
                    expected,
                    position: 0,
                    last_call_position: 0,
                });
            }
            if self.len() >= self.limits.max_sessions && self.oldest_idle().is_none() {
                return Err(SessionError::Full);
            }
            self.pending_creates += 1;
            self.insert(id, None, now);
        }
        let lease = self.lease(id);
        Ok(Opening { lease, kept })
    }

    /// Gives the right to move on a session that is there and free.
    fn lease(&mut self, id: &SessionId) -> Lease {
        let ticket = self.new_mark();
        let cancelled = Arc::new(AtomicBool::new(false));
        if let Some(entry) = self.entries.get_mut(id) {
            self.order.remove(&entry.mark);
            self.order.insert(ticket, id.clone());
            entry.mark = ticket;
            entry.in_use = Some(Use {
                ticket,
                cancelled: Arc::clone(&cancelled),
                leaving: false,
            });
        }
        Lease {
            id: id.clone(),
            ticket,
            cancelled,
        }
    }

    /// The entry that a lease is for, unless it was deleted since.
    fn leased(&mut self, id: &SessionId, ticket: u64) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(id)?;
        let held = entry.in_use.as_ref()?.ticket == ticket;
        held.then_some(entry)
    }

    /// Tells that the reader of a call has left.
    pub fn leave(&mut self, lease: &LeaseMark) {
        if let Some(entry) = self.leased(&lease.id, lease.ticket)
            && let Some(in_use) = &mut entry.in_use
        {
            in_use.leaving = true;
        }
    }

    /// Ends a call that moved its session.
    pub fn commit(&mut self, lease: Lease, commit: Commit, now: Instant) {
        let mark = self.new_mark();
        let model = self.shared_key(commit.model);
        let Some(entry) = self.leased(&lease.id, lease.ticket) else {
            return;
        };
        entry.in_use = None;
        let kept = Kept {
            model,
            begin: commit.begin,
            end: commit.end,
            call: commit.call,
        };
        let bytes = ENTRY_BYTES + kept.bytes();
        let old_bytes = std::mem::replace(&mut entry.bytes, bytes);
        let old_mark = std::mem::replace(&mut entry.mark, mark);
        let is_new = entry.kept.replace(kept).is_none();
        entry.ready_mark = mark;
        entry.last_used = now;
        self.pending_creates -= usize::from(is_new);
        self.bytes = self.bytes + bytes - old_bytes;
        self.order.remove(&old_mark);
        self.order.insert(mark, lease.id.clone());
        self.ready.push_back((mark, lease.id));
        self.shrink_old();
        self.keep_within_limits();
    }

    /// Ends a call that did not move its session: it stands as before, and
    /// one that was to be created is not there.
    pub fn abandon(&mut self, lease: Lease) {
        let Some(entry) = self.leased(&lease.id, lease.ticket) else {
            return;
        };
        entry.in_use = None;
        if entry.kept.is_none() {
            self.remove(&lease.id);
        }
    }

    /// Describes a session.
    ///
    /// # Errors
    /// `Unknown` or `Evicted`.
    pub fn get(&mut self, id: &SessionId, now: Instant) -> Result<SessionSummary, SessionError> {
        self.expire(now);
        let entry = self.entries.get(id).ok_or_else(|| self.missing(id))?;
        Ok(facts(id, entry, now))
    }

    /// A page of sessions, the most recently used first, after the mark of
    /// the page before.
    pub fn list(&mut self, most: usize, after: Option<u64>, now: Instant) -> SessionPage {
        self.expire(now);
        let mut sessions = Vec::new();
        let mut last = None;
        let mut next = None;
        for (&mark, id) in self.order.range(..after.unwrap_or(u64::MAX)).rev() {
            if sessions.len() == most {
                next = last;
                break;
            }
            sessions.push(facts(id, &self.entries[id], now));
            last = Some(mark);
        }
        SessionPage {
            sessions,
            next,
            total: self.len(),
        }
    }

    /// Makes a second session that stands where the first one stands. The
    /// states are shared.
    ///
    /// # Errors
    /// `Unknown` or `Evicted` for the first, `Exists` for the second, `Busy`,
    /// `Full`.
    pub fn fork(
        &mut self,
        id: &SessionId,
        new: &SessionId,
        now: Instant,
    ) -> Result<SessionSummary, SessionError> {
        let kept = self.idle(id, now)?.clone();
        self.create(new, kept, now)
    }

    /// Forgets a session, and that it was let go, if it was. A call that
    /// generates in it is told to end.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn delete(&mut self, id: &SessionId) -> Result<(), SessionError> {
        if self.tombstones.remove(id) {
            return Ok(());
        }
        let entry = self.remove(id).ok_or(SessionError::Unknown)?;
        if let Some(in_use) = entry.in_use {
            in_use.cancelled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A session as it can be written.
    ///
    /// # Errors
    /// `Unknown`, `Evicted` or `Busy`.
    pub fn export(&mut self, id: &SessionId, now: Instant) -> Result<Snapshot, SessionError> {
        let kept = self.idle(id, now)?;
        Ok(snapshot(id, kept))
    }

    /// Makes a session from one that was written. Whether it fits its model
    /// is for the caller to check.
    ///
    /// # Errors
    /// `Exists` or `Full`.
    pub fn import(
        &mut self,
        id: &SessionId,
        snapshot: Snapshot,
        now: Instant,
    ) -> Result<SessionSummary, SessionError> {
        self.expire(now);
        let kept = Kept {
            model: self.shared_key(snapshot.model),
            begin: snapshot.begin,
            end: snapshot.end,
            call: snapshot.call,
        };
        self.create(id, kept, now)
    }

    /// Lets go of the sessions that were not used for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(id) = self.oldest_idle() {
            let last_used = self.entries[&id].last_used;
            if now.saturating_duration_since(last_used) < self.limits.max_idle {
                break;
            }
            self.let_go(&id, Reason::Idle);
        }
    }

    /// Remembers a session that could not be brought back, unless it is there
    /// or was let go for another reason. Returns whether it is news.
    pub(super) fn remember_lost(&mut self, id: &SessionId, reason: Reason) -> bool {
        let news = !self.entries.contains_key(id) && self.tombstones.reason(id).is_none();
        if news {
            self.tombstones.insert(id, reason);
        }
        news
    }

    /// Takes back that a session was lost: it was deleted.
    pub(super) fn forget_lost(&mut self, id: &SessionId) {
        if self.tombstones.reason(id) == Some(Reason::Restart) {
            self.tombstones.remove(id);
        }
    }

    /// Remembers a name that was let go before a restart.
    pub(super) fn remember_digest(&mut self, digest: u64, reason: Reason) {
        self.tombstones.insert_digest(digest, reason);
    }

    /// The names that are remembered as let go.
    pub(super) fn remembered(&self) -> impl Iterator<Item = (u64, Reason)> + '_ {
        self.tombstones.iter()
    }

    /// Every session that is not in use, the least recently used first, as it
    /// can be written.
    pub fn snapshots(&self) -> impl Iterator<Item = Snapshot> + '_ {
        self.order.values().filter_map(|id| {
            let kept = self.entries[id].kept.as_ref()?;
            Some(snapshot(id, kept))
        })
    }

    /// The names of all sessions.
    pub fn ids(&self) -> impl Iterator<Item = &SessionId> {
        self.order.values()
    }

    /// What a session that no call uses has.
    fn idle(&mut self, id: &SessionId, now: Instant) -> Result<&Kept, SessionError> {
        self.expire(now);
        let entry = self.entries.get(id).ok_or_else(|| self.missing(id))?;
        if let Some(in_use) = &entry.in_use {
            return Err(SessionError::Busy {
                leaving: in_use.leaving,
            });
        }
        entry.kept.as_ref().ok_or(SessionError::Unknown)
    }

    fn missing(&self, id: &SessionId) -> SessionError {
        self.tombstones
            .reason(id)
            .map_or(SessionError::Unknown, SessionError::Evicted)
    }

    /// Adds a session that was not made by a call.
    fn create(
        &mut self,
        id: &SessionId,
        kept: Kept,
        now: Instant,
    ) -> Result<SessionSummary, SessionError> {
        if self.entries.contains_key(id) {
            return Err(SessionError::Exists);
        }
        if self.len() >= self.limits.max_sessions && self.oldest_idle().is_none() {
            return Err(SessionError::Full);
        }
        self.insert(id, Some(kept), now);
        self.tombstones.remove(id);
        let entry = &self.entries[id];
        let facts = facts(id, entry, now);
        self.ready.push_back((entry.ready_mark, id.clone()));
        self.shrink_old();
        self.keep_within_limits();
        Ok(facts)
    }

    /// Adds an entry.
    fn insert(&mut self, id: &SessionId, kept: Option<Kept>, now: Instant) {
        let mark = self.new_mark();
        let bytes = ENTRY_BYTES + kept.as_ref().map_or(0, Kept::bytes);
        self.bytes += bytes;
        self.order.insert(mark, id.clone());
        let entry = Entry {
            kept,
            in_use: None,
            mark,
            ready_mark: mark,
            last_used: now,
            bytes,
        };
        self.entries.insert(id.clone(), entry);
    }

    fn remove(&mut self, id: &SessionId) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.order.remove(&entry.mark);
        self.bytes -= entry.bytes;
        self.pending_creates -= usize::from(entry.kept.is_none());
        Some(entry)
    }

    fn let_go(&mut self, id: &SessionId, reason: Reason) {
        self.remove(id);
        self.tombstones.insert(id, reason);
    }

    /// The least recently used session that no call uses. Those in use are
    /// few: the batch and its queue are bounded.
    fn oldest_idle(&self) -> Option<SessionId> {
        self.order
            .values()
            .find(|id| self.entries[*id].in_use.is_none())
            .cloned()
    }

    fn keep_within_limits(&mut self) {
        while self.len() - self.pending_creates > self.limits.max_sessions
            || self.bytes > self.limits.max_bytes
        {
            let Some(oldest) = self.oldest_idle() else {
                break;
            };
            self.let_go(&oldest, Reason::Capacity);
        }
    }

    /// Drops the second state of sessions that were not used lately.
    fn shrink_old(&mut self) {
        while self.ready.len() > self.limits.max_ready {
            let Some((mark, id)) = self.ready.pop_front() else {
                break;
            };
            let Some(entry) = self.entries.get_mut(&id).filter(|e| e.ready_mark == mark) else {
                continue;
            };
            if let Some(kept) = &mut entry.kept {
                kept.shrink();
                let bytes = ENTRY_BYTES + kept.bytes();
                self.bytes = self.bytes - entry.bytes + bytes;
                entry.bytes = bytes;
            }
        }
    }

    /// One shared copy of a key, so that a session costs a pointer.
    fn shared_key(&mut self, key: ModelKey) -> Arc<ModelKey> {
        if let Some(shared) = self.models.get(&key) {
            return Arc::clone(shared);
        }
        // Keys that no session has any more go when a new one comes.
        self.models
            .retain(|_, shared| Arc::strong_count(shared) > 1);
        let shared = Arc::new(key.clone());
        self.models.insert(key, Arc::clone(&shared));
        shared
    }

    fn new_mark(&mut self) -> u64 {
        self.next_mark += 1;
        self.next_mark
    }
}
