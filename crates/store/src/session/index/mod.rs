//! What the store knows of every session without reading its states, in
//! memory: some 200 bytes a session.
//!
//! All rules that need no disk are here: leases, positions, limits, the order
//! of use, tombstones. A change is planned here ([`Plan`]), made durable by a
//! backend, and then applied ([`Index::apply`]) or rolled back
//! ([`Index::roll_back`]). Between plan and outcome every session that the
//! change touches is leased, by the call or by the store itself, so that two
//! changes never meet.

mod interned;
mod plan;
mod queries;

use std::collections::hash_map::RandomState as HashState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;

use super::commit_plan::HeldSession;
use super::error::{EvictionReason, SessionError};
use super::identity::{ARITHMETIC_REVISION, ModelVersion, SessionIdentity};
use super::lease::{LeaseState, StartPoint};
use super::name::{Owner, SessionId, SessionKey};
use super::record::SessionRecord;
use super::storage::{OpenRequest, SessionLimits};
use super::tombstones::{NameDigest, Tombstone, Tombstones};

use interned::Interned;
use plan::Growth;
pub(in crate::session) use plan::{Applied, Change, Plan};

/// Memory of a session in the index, with its id, as measured with a million.
const SESSION_BYTES: u64 = 300;

/// Memory of a tombstone.
const TOMBSTONE_BYTES: u64 = 60;

/// Maximum number of deleted model versions that are remembered. An `open`
/// that looked its model up before the deletion is milliseconds old.
const MAX_RETIRED_MODELS: usize = 10_000;

/// The space that a session takes with a record of some size, in bytes, in
/// every backend. redb stores a value of more than a page in a power of two of pages.
pub(in crate::session) fn stored_bytes(record_bytes: usize) -> u32 {
    /// Page of redb.
    const PAGE: usize = 4096;
    /// Key and length of a value in its page.
    const ENTRY: usize = 100;
    /// Row of the index, in pages that are two thirds full.
    const ROW: usize = 256;
    let pages = (record_bytes + ENTRY).div_ceil(PAGE).next_power_of_two();
    u32::try_from(pages * PAGE + ROW).expect("records are limited to some megabytes")
}

/// What is stored of a session next to its record, and loaded at startup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) struct IndexRow {
    pub(in crate::session) identity: SessionIdentity,
    /// Place in the order of use: grows with each commit, over all sessions.
    pub(in crate::session) mark: u64,
    pub(in crate::session) last_used_ms: u64,
    pub(in crate::session) created_unix_ms: u64,
    pub(in crate::session) position: u64,
    pub(in crate::session) last_call_position: u64,
    /// Space that the session takes, see [`stored_bytes`].
    pub(in crate::session) bytes: u32,
}

/// A slot, and which of the sessions that had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) struct SlotRef {
    slot: u32,
    serial: u64,
}

#[derive(Debug)]
struct Entry {
    id: SessionId,
    owner: u32,
    identity: u32,
    serial: u64,
    mark: u64,
    last_used_ms: u64,
    created_unix_ms: u64,
    position: u64,
    last_call_position: u64,
    bytes: u32,
    /// Reserved by a call, a fork or an import that has not committed yet.
    is_pending: bool,
    holder: Option<Arc<LeaseState>>,
}

/// Which of the records of a session is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) struct RecordVersion {
    /// Given to no other record of any session.
    pub(in crate::session) mark: u64,
    position: u64,
    last_call_position: u64,
    last_used_ms: u64,
}

impl RecordVersion {
    /// Whether a record that was read is this one: a damaged database may
    /// return an older one.
    pub(in crate::session) fn is(&self, record: &SessionRecord) -> bool {
        self.position == record.end.position
            && self.last_call_position == record.begin.position
            && self.last_used_ms == record.last_used_ms
    }
}

impl Entry {
    fn version(&self) -> RecordVersion {
        RecordVersion {
            mark: self.mark,
            position: self.position,
            last_call_position: self.last_call_position,
            last_used_ms: self.last_used_ms,
        }
    }
}

/// What `open` found.
#[derive(Debug)]
pub(in crate::session) enum OpenStep {
    /// The session is to be created.
    Reserved(Arc<LeaseState>),
    /// The session exists, and its record is to be read.
    Leased {
        lease: Arc<LeaseState>,
        start: StartPoint,
        identity: SessionIdentity,
        version: RecordVersion,
    },
    /// The store itself uses the session: try again after this lease.
    Wait(Arc<LeaseState>),
    /// The session was idle for too long, and the plan evicts it: try again
    /// once that is durable.
    Expired(Plan),
}

#[derive(Debug)]
pub(in crate::session) struct Index {
    limits: SessionLimits,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    hash: HashState,
    /// The least recently used first; without pending sessions.
    order: BTreeMap<u64, u32>,
    order_of_owner: BTreeMap<(u32, u64), u32>,
    owners: Interned<Owner>,
    identities: Interned<SessionIdentity>,
    tombstones: Tombstones,
    retired: HashSet<ModelVersion>,
    next_mark: u64,
    pending: u64,
    pending_of_owner: HashMap<u32, u64>,
    in_use: u64,
    bytes: u64,
    /// What the changes that are not durable yet will add.
    planned: Growth,
    /// Sessions that such changes remove.
    removing: u64,
    evicted: BTreeMap<EvictionReason, u64>,
    pub(in crate::session) is_closed: bool,
}

impl Index {
    pub(in crate::session) fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            entries: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            hash: HashState::new(),
            order: BTreeMap::new(),
            order_of_owner: BTreeMap::new(),
            owners: Interned::default(),
            identities: Interned::default(),
            tombstones: Tombstones::new(limits.max_tombstones),
            retired: HashSet::new(),
            next_mark: 1,
            pending: 0,
            pending_of_owner: HashMap::new(),
            in_use: 0,
            bytes: 0,
            planned: Growth::default(),
            removing: 0,
            evicted: BTreeMap::new(),
            is_closed: false,
        }
    }

    /// Opens a session for a call.
    pub(in crate::session) fn open(
        &mut self,
        request: &OpenRequest,
        now_ms: u64,
    ) -> Result<OpenStep, SessionError> {
        self.check_open()?;
        let key = &request.key;
        let Some(slot) = self.find(key) else {
            return self.reserve_for_call(request);
        };
        let entry = self.entry(slot);
        if let Some(holder) = &entry.holder {
            if holder.is_internal {
                return Ok(OpenStep::Wait(Arc::clone(holder)));
            }
            return Err(SessionError::Busy {
                leaving: holder.is_leaving(),
                replica: None,
            });
        }
        if self.is_expired(entry, now_ms) {
            let mut plan = Plan::default();
            self.plan_eviction(slot, EvictionReason::Idle, &mut plan);
            return Ok(OpenStep::Expired(plan));
        }
        let identity = self.identities.get(entry.identity).clone();
        check_revision(&identity)?;
        let (position, last_call_position) = (entry.position, entry.last_call_position);
        let is_rewind = match request.expected_position {
            None => false,
            Some(expected) if expected == position => false,
            Some(expected) if expected == last_call_position => true,
            Some(expected) => {
                return Err(SessionError::PositionMismatch {
                    expected,
                    position,
                    last_call_position,
                });
            }
        };
        let start = StartPoint {
            position: if is_rewind {
                last_call_position
            } else {
                position
            },
            is_rewind,
            parameters: None,
        };
        let version = entry.version();
        let lease = LeaseState::of_call(key.clone());
        self.hold(slot, &lease);
        Ok(OpenStep::Leased {
            lease,
            start,
            identity,
            version,
        })
    }

    fn reserve_for_call(&mut self, request: &OpenRequest) -> Result<OpenStep, SessionError> {
        let key = &request.key;
        self.check_not_evicted(key)?;
        if let Some(expected) = request.expected_position.filter(|&expected| expected != 0) {
            return Err(SessionError::PositionMismatch {
                expected,
                position: 0,
                last_call_position: 0,
            });
        }
        let identity = request.create.as_ref().ok_or(SessionError::Unknown)?;
        let lease = LeaseState::of_call(key.clone());
        self.reserve(key, identity, request.owner_limit, &lease)?;
        Ok(OpenStep::Reserved(lease))
    }

    /// Reserves the key of a session that is to be created, and leases it.
    pub(in crate::session) fn reserve(
        &mut self,
        key: &SessionKey,
        identity: &SessionIdentity,
        owner_limit: Option<u64>,
        lease: &Arc<LeaseState>,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        check_revision(identity)?;
        if self.retired.contains(&identity.model) {
            return Err(SessionError::ModelRetired(identity.model.clone()));
        }
        if self.find(key).is_some() {
            return Err(SessionError::Exists);
        }
        if let Some(limit) = owner_limit
            && self.owners.count_of(&key.owner) >= limit
        {
            return Err(SessionError::OwnerLimit { limit });
        }
        let all = self.sessions() - self.removing + self.pending;
        if all >= self.limits.max_sessions && self.oldest_idle().is_none() {
            return Err(SessionError::Full);
        }
        let row = IndexRow {
            identity: identity.clone(),
            mark: 0,
            last_used_ms: 0,
            created_unix_ms: 0,
            position: 0,
            last_call_position: 0,
            bytes: 0,
        };
        let slot = self.insert(key, &row, true);
        self.hold(slot, lease);
        Ok(())
    }

    /// Adds a stored session at startup, in place of an earlier version.
    pub(in crate::session) fn load(&mut self, key: &SessionKey, row: &IndexRow) {
        self.unload(key);
        self.next_mark = self.next_mark.max(row.mark + 1);
        let slot = self.insert(key, row, false);
        self.add_to_order(slot);
        self.bytes += u64::from(row.bytes);
    }

    /// Removes a session at startup that was loaded and is gone.
    pub(in crate::session) fn unload(&mut self, key: &SessionKey) {
        if let Some(slot) = self.find(key) {
            self.remove(slot);
        }
    }

    /// Adds a tombstone at startup for a session whose row is damaged.
    pub(in crate::session) fn load_damaged(&mut self, key: &SessionKey) -> Tombstone {
        self.unload(key);
        let tombstone = Tombstone {
            name: NameDigest::of(key),
            reason: EvictionReason::Damaged,
            sequence: self.next_mark(),
        };
        self.tombstones.insert(tombstone);
        tombstone
    }

    /// Whether there is a session of a key, pending or not.
    pub(in crate::session) fn contains(&self, key: &SessionKey) -> bool {
        self.find(key).is_some()
    }

    /// Removes a tombstone at startup.
    pub(in crate::session) fn unload_tombstone(&mut self, name: NameDigest) {
        self.tombstones.remove(name);
    }

    /// Adds a stored tombstone at startup.
    pub(in crate::session) fn load_tombstone(&mut self, tombstone: Tombstone) {
        self.next_mark = self.next_mark.max(tombstone.sequence + 1);
        self.tombstones.insert(tombstone);
    }

    /// Ends a lease without a change: a session that was to be created is
    /// gone. The caller wakes those that wait for it.
    pub(in crate::session) fn release(&mut self, lease: &Arc<LeaseState>) {
        if let Some(slot) = self.held(lease) {
            let serial = self.entry(slot).serial;
            self.end_lease(SlotRef { slot, serial }, lease);
        }
    }

    fn end_lease(&mut self, slot: SlotRef, lease: &Arc<LeaseState>) {
        self.unhold(slot, lease);
        let gone = self
            .entry_of(slot)
            .is_some_and(|entry| entry.is_pending && entry.holder.is_none());
        if gone {
            self.remove(slot.slot);
        }
    }

    /// The lease that is held on a session now.
    pub(in crate::session) fn holder(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        let slot = self.find(key)?;
        self.entry(slot).holder.clone()
    }

    /// The lease that the store itself holds on a session now.
    pub(in crate::session) fn internal_holder(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        self.holder(key).filter(|holder| holder.is_internal)
    }

    /// Which record a session has that nobody uses.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Busy`, `UnknownRevision`.
    pub(in crate::session) fn idle(
        &self,
        key: &SessionKey,
        now_ms: u64,
    ) -> Result<RecordVersion, SessionError> {
        let slot = self.existing(key, now_ms)?;
        let entry = self.entry(slot);
        if let Some(holder) = &entry.holder {
            return Err(SessionError::Busy {
                leaving: holder.is_internal || holder.is_leaving(),
                replica: None,
            });
        }
        check_revision(self.identities.get(entry.identity))?;
        Ok(entry.version())
    }

    pub(in crate::session) fn check_open(&self) -> Result<(), SessionError> {
        if self.is_closed {
            return Err(SessionError::Stopping);
        }
        Ok(())
    }

    fn check_not_evicted(&self, key: &SessionKey) -> Result<(), SessionError> {
        match self.tombstones.reason(NameDigest::of(key)) {
            Some(reason) => Err(SessionError::Evicted(reason)),
            None => Ok(()),
        }
    }

    /// A session that exists for readers.
    fn existing(&self, key: &SessionKey, now_ms: u64) -> Result<u32, SessionError> {
        let slot = self.find(key).filter(|&slot| !self.entry(slot).is_pending);
        let Some(slot) = slot else {
            self.check_not_evicted(key)?;
            return Err(SessionError::Unknown);
        };
        if self.is_expired(self.entry(slot), now_ms) {
            return Err(SessionError::Evicted(EvictionReason::Idle));
        }
        Ok(slot)
    }

    fn is_expired(&self, entry: &Entry, now_ms: u64) -> bool {
        let in_call = entry
            .holder
            .as_ref()
            .is_some_and(|holder| !holder.is_internal);
        let idle = u128::from(now_ms.saturating_sub(entry.last_used_ms));
        !in_call && !entry.is_pending && idle >= self.limits.max_idle.as_millis()
    }

    /// The least recently used session that nobody holds. Held ones are few:
    /// the calls that run are bounded.
    fn oldest_idle(&self) -> Option<u32> {
        let mut slots = self.order.values().copied();
        slots.find(|&slot| self.entry(slot).holder.is_none())
    }

    /// An estimate of the memory that the index takes.
    pub(in crate::session) fn memory_bytes(&self) -> u64 {
        self.sessions() * SESSION_BYTES + self.tombstones.len() as u64 * TOMBSTONE_BYTES
    }

    fn sessions(&self) -> u64 {
        self.order.len() as u64
    }

    fn pending_of(&self, owner: u32) -> u64 {
        self.pending_of_owner.get(&owner).copied().unwrap_or(0)
    }

    /// Counts a pending session in or out.
    fn count_pending(&mut self, slot: u32, is_new: bool) {
        let owner = self.entry(slot).owner;
        let of_owner = self.pending_of_owner.entry(owner).or_default();
        if is_new {
            *of_owner += 1;
            self.pending += 1;
            return;
        }
        *of_owner -= 1;
        self.pending -= 1;
        if *of_owner == 0 {
            self.pending_of_owner.remove(&owner);
        }
    }

    pub(in crate::session) fn next_mark(&mut self) -> u64 {
        let mark = self.next_mark;
        self.next_mark += 1;
        mark
    }

    fn hash(&self, owner: u32, id: &SessionId) -> u64 {
        self.hash.hash_one((owner, id))
    }

    fn find(&self, key: &SessionKey) -> Option<u32> {
        let owner = self.owners.find(&key.owner)?;
        let hash = self.hash(owner, &key.id);
        let found = self.by_key.find(hash, |&slot| {
            let entry = self.entry(slot);
            entry.owner == owner && entry.id == key.id
        });
        found.copied()
    }

    fn key(&self, slot: u32) -> SessionKey {
        let entry = self.entry(slot);
        SessionKey::new(self.owners.get(entry.owner).clone(), entry.id.clone())
    }

    fn insert(&mut self, key: &SessionKey, row: &IndexRow, is_pending: bool) -> u32 {
        let entry = Entry {
            id: key.id.clone(),
            owner: self.owners.add(&key.owner),
            identity: self.identities.add(&row.identity),
            serial: self.next_mark(),
            mark: row.mark,
            last_used_ms: row.last_used_ms,
            created_unix_ms: row.created_unix_ms,
            position: row.position,
            last_call_position: row.last_call_position,
            bytes: row.bytes,
            is_pending,
            holder: None,
        };
        let hash = self.hash(entry.owner, &entry.id);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 sessions")
            }
        };
        let (entries, state) = (&self.entries, &self.hash);
        self.by_key.insert_unique(hash, slot, |&slot| {
            let entry = entries[slot as usize]
                .as_ref()
                .expect("listed slots are filled");
            state.hash_one((entry.owner, &entry.id))
        });
        if is_pending {
            self.count_pending(slot, true);
        }
        slot
    }

    fn remove(&mut self, slot: u32) {
        if self.entry(slot).is_pending {
            self.count_pending(slot, false);
        } else {
            self.remove_from_order(slot);
        }
        let Some(entry) = self.entries[slot as usize].take() else {
            return;
        };
        self.in_use -= u64::from(entry.holder.is_some());
        if !entry.is_pending {
            self.bytes -= u64::from(entry.bytes);
        }
        let hash = self.hash(entry.owner, &entry.id);
        if let Ok(found) = self.by_key.find_entry(hash, |&other| other == slot) {
            found.remove();
        }
        self.owners.release(entry.owner);
        self.identities.release(entry.identity);
        self.free.push(slot);
    }

    fn add_to_order(&mut self, slot: u32) {
        let entry = self.entry(slot);
        let (mark, owner) = (entry.mark, entry.owner);
        self.order.insert(mark, slot);
        self.order_of_owner.insert((owner, mark), slot);
    }

    fn remove_from_order(&mut self, slot: u32) {
        let entry = self.entry(slot);
        let (mark, owner) = (entry.mark, entry.owner);
        self.order.remove(&mark);
        self.order_of_owner.remove(&(owner, mark));
    }

    fn hold(&mut self, slot: u32, lease: &Arc<LeaseState>) {
        let entry = self.entry_mut(slot);
        let was_held = entry.holder.replace(Arc::clone(lease)).is_some();
        self.in_use += u64::from(!was_held);
    }

    fn unhold(&mut self, slot: SlotRef, lease: &Arc<LeaseState>) {
        let held = self
            .entry_of(slot)
            .and_then(|entry| entry.holder.as_ref())
            .is_some_and(|holder| Arc::ptr_eq(holder, lease));
        if held {
            self.entry_mut(slot.slot).holder = None;
            self.in_use -= 1;
        }
    }

    /// The slot that a lease holds, unless it was taken away.
    fn held(&self, lease: &Arc<LeaseState>) -> Option<u32> {
        let slot = self.find(&lease.key)?;
        let holder = self.entry(slot).holder.as_ref()?;
        Arc::ptr_eq(holder, lease).then_some(slot)
    }

    /// Identity and positions of the session that a lease holds.
    pub(in crate::session) fn held_session(&self, lease: &Arc<LeaseState>) -> Option<HeldSession> {
        let entry = self.entry(self.held(lease)?);
        Some(HeldSession {
            identity: self.identities.get(entry.identity).clone(),
            created_unix_ms: (!entry.is_pending).then_some(entry.created_unix_ms),
            position: entry.position,
            last_call_position: entry.last_call_position,
        })
    }

    fn entry(&self, slot: u32) -> &Entry {
        self.entries[slot as usize]
            .as_ref()
            .expect("listed slots are filled")
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        self.entries[slot as usize]
            .as_mut()
            .expect("listed slots are filled")
    }

    fn entry_of(&self, slot: SlotRef) -> Option<&Entry> {
        let entry = self.entries.get(slot.slot as usize)?.as_ref()?;
        (entry.serial == slot.serial).then_some(entry)
    }
}

fn check_revision(identity: &SessionIdentity) -> Result<(), SessionError> {
    if identity.revision != ARITHMETIC_REVISION {
        return Err(SessionError::UnknownRevision(identity.revision));
    }
    Ok(())
}
