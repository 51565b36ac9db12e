//! What the store knows of every session without reading its states, in
//! memory: some 200 bytes a session.
//!
//! All rules that need no disk are here: leases, positions, limits, the order
//! of use, tombstones. A change is planned here ([`Plan`]), made durable by a
//! backend, and then applied ([`Index::apply`]) or taken back
//! ([`Index::take_back`]). Between plan and outcome every session that the
//! change touches is leased, by the call or by the store itself, so that two
//! changes never meet.

use std::collections::hash_map::RandomState as HashState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashTable;

use super::error::{EvictionReason, SessionError};
use super::identity::{ARITHMETIC_REVISION, ModelVersion, SessionIdentity};
use super::lease::{LeaseState, LeaseStatus, StartPoint};
use super::name::{Owner, SessionId, SessionKey};
use super::record::SessionRecord;
use super::storage::{
    ListRequest, OpenRequest, PageToken, SessionInfo, SessionLimits, SessionPage, SessionStats,
};
use super::tombstones::{NameDigest, Tombstone, Tombstones};

/// Memory of a session in the index, with its id, as measured with a million.
const SESSION_BYTES: u64 = 300;

/// Memory of a tombstone.
const TOMBSTONE_BYTES: u64 = 60;

/// Maximum number of deleted model versions that are remembered. An `open`
/// that looked its model up before the deletion is milliseconds old.
const MAX_RETIRED_MODELS: usize = 10_000;

/// What is stored of a session next to its record, and loaded at startup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IndexRow {
    pub(super) identity: SessionIdentity,
    /// Place in the order of use: grows with each commit, over all sessions.
    pub(super) mark: u64,
    pub(super) last_used_ms: u64,
    pub(super) created_unix_ms: u64,
    pub(super) position: u64,
    pub(super) last_call_position: u64,
    /// Size of the record.
    pub(super) bytes: u32,
}

/// A change that a backend makes durable as a whole or not at all.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) puts: Vec<(SessionKey, IndexRow, Bytes)>,
    pub(super) deletes: Vec<SessionKey>,
    /// Sessions whose records are to be moved aside.
    pub(super) damaged: Vec<SessionKey>,
    pub(super) tombstones: Vec<Tombstone>,
    pub(super) dropped_tombstones: Vec<NameDigest>,
}

/// A change, and what it does to the index once it is durable.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) change: Change,
    effects: Vec<Effect>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }
}

#[derive(Debug)]
enum Effect {
    /// The session has a new record.
    Put {
        slot: SlotRef,
        row: IndexRow,
        record: Arc<SessionRecord>,
        lease: Arc<LeaseState>,
        growth: Growth,
    },
    /// The session is gone.
    Remove {
        slot: SlotRef,
        lease: Arc<LeaseState>,
        evicted: Option<Tombstone>,
        growth: Growth,
    },
    /// The id of an evicted session is free again.
    ForgetName(NameDigest),
}

/// What a change adds to the store.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    sessions: i64,
    bytes: i64,
}

impl Growth {
    fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.sessions -= other.sessions;
        self.bytes -= other.bytes;
    }
}

/// A slot, and which of the sessions that had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotRef {
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

/// What `open` found.
#[derive(Debug)]
pub(super) enum OpenStep {
    /// The session is to be created.
    Reserved(Arc<LeaseState>),
    /// The session exists, and its record is to be read.
    Leased {
        lease: Arc<LeaseState>,
        start: StartPoint,
        identity: SessionIdentity,
        mark: u64,
    },
    /// The store itself uses the session: try again after this lease.
    Wait(Arc<LeaseState>),
    /// The session was idle for too long, and the plan evicts it: try again
    /// once that is durable.
    Expired(Plan),
}

#[derive(Debug)]
pub(super) struct Index {
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
    pub(super) is_closed: bool,
}

impl Index {
    pub(super) fn new(limits: SessionLimits) -> Self {
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
    pub(super) fn open(
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
        let mark = entry.mark;
        let lease = LeaseState::of_call(key.clone());
        self.hold(slot, &lease);
        Ok(OpenStep::Leased {
            lease,
            start,
            identity,
            mark,
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
    pub(super) fn reserve(
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
    pub(super) fn load(&mut self, key: &SessionKey, row: &IndexRow) {
        self.unload(key);
        self.next_mark = self.next_mark.max(row.mark + 1);
        let slot = self.insert(key, row, false);
        self.add_to_order(slot);
        self.bytes += u64::from(row.bytes);
    }

    /// Removes a session at startup that was loaded and is gone.
    pub(super) fn unload(&mut self, key: &SessionKey) {
        if let Some(slot) = self.find(key) {
            self.remove(slot);
        }
    }

    /// Adds a tombstone at startup for a session whose row is damaged.
    pub(super) fn load_damaged(&mut self, key: &SessionKey) -> Tombstone {
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
    pub(super) fn contains(&self, key: &SessionKey) -> bool {
        self.find(key).is_some()
    }

    /// Removes a tombstone at startup.
    pub(super) fn unload_tombstone(&mut self, name: NameDigest) {
        self.tombstones.remove(name);
    }

    /// Adds a stored tombstone at startup.
    pub(super) fn load_tombstone(&mut self, tombstone: Tombstone) {
        self.next_mark = self.next_mark.max(tombstone.sequence + 1);
        self.tombstones.insert(tombstone);
    }

    /// Plans to store a record for a leased session.
    ///
    /// # Errors
    /// `Deleted` if the lease is not held any more.
    pub(super) fn plan_put(
        &mut self,
        lease: &Arc<LeaseState>,
        record: Arc<SessionRecord>,
        encoded: Bytes,
        plan: &mut Plan,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        let slot = self.held(lease).ok_or(SessionError::Deleted)?;
        let entry = self.entry(slot);
        let (is_pending, old_bytes, serial) = (entry.is_pending, entry.bytes, entry.serial);
        let bytes = u32::try_from(encoded.len()).expect("records are limited to some megabytes");
        let row = IndexRow {
            identity: record.identity.clone(),
            mark: self.next_mark(),
            last_used_ms: record.last_used_ms,
            created_unix_ms: record.created_unix_ms,
            position: record.end.position,
            last_call_position: record.begin.position,
            bytes,
        };
        let growth = Growth {
            sessions: i64::from(is_pending),
            bytes: i64::from(bytes) - i64::from(old_bytes),
        };
        self.planned.add(growth);
        let name = NameDigest::of(&record.key);
        if self.tombstones.reason(name).is_some() {
            plan.change.dropped_tombstones.push(name);
            plan.effects.push(Effect::ForgetName(name));
        }
        let key = record.key.clone();
        plan.change.puts.push((key, row.clone(), encoded));
        plan.effects.push(Effect::Put {
            slot: SlotRef { slot, serial },
            row,
            record,
            lease: Arc::clone(lease),
            growth,
        });
        self.plan_room(plan);
        Ok(())
    }

    /// Plans to delete a session or its tombstone. A call in it loses its
    /// lease.
    ///
    /// # Errors
    /// `Unknown`, `Stopping`.
    pub(super) fn plan_delete(&mut self, key: &SessionKey) -> Result<Plan, SessionError> {
        self.check_open()?;
        let mut plan = Plan::default();
        let name = NameDigest::of(key);
        if self.tombstones.reason(name).is_some() {
            plan.change.dropped_tombstones.push(name);
            plan.effects.push(Effect::ForgetName(name));
        }
        let Some(slot) = self.find(key) else {
            return if plan.is_empty() {
                Err(SessionError::Unknown)
            } else {
                Ok(plan)
            };
        };
        if let Some(holder) = &self.entry(slot).holder {
            holder.revoke(LeaseStatus::Deleted);
        }
        self.plan_removal(slot, None, &mut plan);
        Ok(plan)
    }

    /// Plans to evict the sessions that were idle for too long, at most `max`.
    pub(super) fn plan_expiry(&mut self, now_ms: u64, max: usize) -> Plan {
        let mut plan = Plan::default();
        for _ in 0..max {
            let expired = self.oldest_idle();
            let Some(slot) = expired.filter(|&slot| self.is_expired(self.entry(slot), now_ms))
            else {
                break;
            };
            self.plan_eviction(slot, EvictionReason::Idle, &mut plan);
        }
        plan
    }

    /// Plans to evict the idle sessions of a model version, at most `max`.
    pub(super) fn plan_model_eviction(&mut self, model: &ModelVersion, max: usize) -> Plan {
        let of_model = |entry: &Entry| self.identities.get(entry.identity).model == *model;
        let slots: Vec<u32> = (0..)
            .zip(&self.entries)
            .filter_map(|(slot, entry)| {
                let entry = entry.as_ref()?;
                (!entry.is_pending && entry.holder.is_none() && of_model(entry)).then_some(slot)
            })
            .take(max)
            .collect();
        let mut plan = Plan::default();
        for slot in slots {
            self.plan_eviction(slot, EvictionReason::ModelGone, &mut plan);
        }
        plan
    }

    /// Plans to move the damaged record with this mark aside. `None` if the
    /// session is gone, has another record, or if somebody else than `lease`
    /// has it.
    pub(super) fn plan_damaged(
        &mut self,
        key: &SessionKey,
        mark: u64,
        lease: Option<&Arc<LeaseState>>,
    ) -> Option<Plan> {
        let slot = self.find(key)?;
        if self.entry(slot).mark != mark {
            return None;
        }
        match (&self.entry(slot).holder, lease) {
            (None, _) => {}
            (Some(holder), Some(lease)) if Arc::ptr_eq(holder, lease) => {}
            _ => return None,
        }
        let mut plan = Plan::default();
        self.plan_removal(slot, Some(EvictionReason::Damaged), &mut plan);
        plan.change.damaged = std::mem::take(&mut plan.change.deletes);
        Some(plan)
    }

    /// Plans evictions until the limits hold.
    fn plan_room(&mut self, plan: &mut Plan) {
        let over = |count: u64, planned: i64, max: u64| count.saturating_add_signed(planned) > max;
        let limits = self.limits;
        while over(self.sessions(), self.planned.sessions, limits.max_sessions)
            || over(self.bytes, self.planned.bytes, limits.max_bytes)
        {
            let Some(slot) = self.oldest_idle() else {
                break;
            };
            self.plan_eviction(slot, EvictionReason::Capacity, plan);
        }
    }

    fn plan_eviction(&mut self, slot: u32, reason: EvictionReason, plan: &mut Plan) {
        self.plan_removal(slot, Some(reason), plan);
    }

    fn plan_removal(&mut self, slot: u32, reason: Option<EvictionReason>, plan: &mut Plan) {
        let key = self.key(slot);
        let evicted = reason.map(|reason| Tombstone {
            name: NameDigest::of(&key),
            reason,
            sequence: self.next_mark(),
        });
        if let Some(tombstone) = evicted {
            let dropped = self.tombstones.insert(tombstone);
            plan.change.tombstones.push(tombstone);
            plan.change.dropped_tombstones.extend(dropped);
        }
        let lease = LeaseState::internal(key.clone());
        self.hold(slot, &lease);
        let entry = self.entry(slot);
        let serial = entry.serial;
        let growth = Growth {
            sessions: -i64::from(!entry.is_pending),
            bytes: -i64::from(entry.bytes),
        };
        self.planned.add(growth);
        self.removing += growth.sessions.unsigned_abs();
        plan.change.deletes.push(key);
        plan.effects.push(Effect::Remove {
            slot: SlotRef { slot, serial },
            lease,
            evicted,
            growth,
        });
    }

    /// Applies a change that is durable. Returns the new records, by mark, and
    /// the leases that have ended.
    pub(super) fn apply(&mut self, plan: Plan) -> Applied {
        let mut applied = Applied::default();
        for effect in plan.effects {
            match effect {
                Effect::Put {
                    slot,
                    row,
                    record,
                    lease,
                    growth,
                } => {
                    self.planned.subtract(growth);
                    self.finish_put(slot, &row);
                    applied.records.push((row.mark, record));
                    self.unhold(slot, &lease);
                    applied.ended.push(lease);
                }
                Effect::Remove {
                    slot,
                    lease,
                    evicted,
                    growth,
                } => {
                    self.planned.subtract(growth);
                    self.removing -= growth.sessions.unsigned_abs();
                    if let Some(entry) = self.entry_of(slot) {
                        applied.dropped.push(entry.mark);
                        self.remove(slot.slot);
                    }
                    if let Some(tombstone) = evicted {
                        *self.evicted.entry(tombstone.reason).or_default() += 1;
                    }
                    applied.ended.push(lease);
                }
                Effect::ForgetName(name) => self.tombstones.remove(name),
            }
        }
        applied.index_bytes = self.memory_bytes();
        applied
    }

    fn finish_put(&mut self, slot: SlotRef, row: &IndexRow) {
        let Some(entry) = self.entry_of(slot) else {
            return;
        };
        let (is_pending, old_bytes) = (entry.is_pending, entry.bytes);
        self.bytes = self.bytes + u64::from(row.bytes) - u64::from(old_bytes);
        if is_pending {
            self.count_pending(slot.slot, false);
        } else {
            self.remove_from_order(slot.slot);
        }
        let entry = self.entry_mut(slot.slot);
        entry.is_pending = false;
        entry.mark = row.mark;
        entry.last_used_ms = row.last_used_ms;
        entry.created_unix_ms = row.created_unix_ms;
        entry.position = row.position;
        entry.last_call_position = row.last_call_position;
        entry.bytes = row.bytes;
        self.add_to_order(slot.slot);
    }

    /// Takes back a change that could not be made durable. Returns the leases
    /// that have ended.
    pub(super) fn take_back(&mut self, plan: Plan) -> Applied {
        let mut applied = Applied::default();
        for effect in plan.effects {
            match effect {
                Effect::Put {
                    slot,
                    lease,
                    growth,
                    ..
                } => {
                    self.planned.subtract(growth);
                    self.end_lease(slot, &lease);
                    applied.ended.push(lease);
                }
                Effect::Remove {
                    slot,
                    lease,
                    evicted,
                    growth,
                } => {
                    self.planned.subtract(growth);
                    self.removing -= growth.sessions.unsigned_abs();
                    if let Some(tombstone) = evicted {
                        self.tombstones.take_back(tombstone);
                    }
                    self.end_lease(slot, &lease);
                    applied.ended.push(lease);
                }
                Effect::ForgetName(_) => {}
            }
        }
        applied
    }

    /// Ends a lease without a change: a session that was to be created is
    /// gone. The caller wakes those that wait for it.
    pub(super) fn release(&mut self, lease: &Arc<LeaseState>) {
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
    pub(super) fn holder(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        let slot = self.find(key)?;
        self.entry(slot).holder.clone()
    }

    /// The lease that the store itself holds on a session now.
    pub(super) fn internal_holder(&self, key: &SessionKey) -> Option<Arc<LeaseState>> {
        self.holder(key).filter(|holder| holder.is_internal)
    }

    /// The mark of a session that nobody uses.
    ///
    /// # Errors
    /// `Unknown`, `Evicted`, `Busy`, `UnknownRevision`.
    pub(super) fn idle(&self, key: &SessionKey, now_ms: u64) -> Result<u64, SessionError> {
        let slot = self.existing(key, now_ms)?;
        let entry = self.entry(slot);
        if let Some(holder) = &entry.holder {
            return Err(SessionError::Busy {
                leaving: holder.is_internal || holder.is_leaving(),
                replica: None,
            });
        }
        check_revision(self.identities.get(entry.identity))?;
        Ok(entry.mark)
    }

    pub(super) fn info(&self, key: &SessionKey, now_ms: u64) -> Result<SessionInfo, SessionError> {
        let slot = self.existing(key, now_ms)?;
        Ok(self.info_of(slot, now_ms))
    }

    fn info_of(&self, slot: u32, now_ms: u64) -> SessionInfo {
        let entry = self.entry(slot);
        SessionInfo {
            key: self.key(slot),
            identity: self.identities.get(entry.identity).clone(),
            position: entry.position,
            last_call_position: entry.last_call_position,
            busy: entry
                .holder
                .as_ref()
                .is_some_and(|holder| !holder.is_internal),
            idle: Duration::from_millis(now_ms.saturating_sub(entry.last_used_ms)),
            bytes: entry.bytes.into(),
            created_unix_ms: entry.created_unix_ms,
        }
    }

    pub(super) fn list(&self, request: &ListRequest, now_ms: u64) -> SessionPage {
        let before = request.after.map_or(u64::MAX, |token| token.0);
        let owner = match &request.owner {
            None => None,
            Some(owner) => match self.owners.find(owner) {
                Some(owner) => Some(owner),
                None => return SessionPage::default(),
            },
        };
        let slots: Box<dyn Iterator<Item = (u64, u32)>> = match owner {
            None => Box::new(
                self.order
                    .range(..before)
                    .rev()
                    .map(|(&m, &slot)| (m, slot)),
            ),
            Some(owner) => {
                let range = self.order_of_owner.range((owner, 0)..(owner, before));
                Box::new(range.rev().map(|(&(_, mark), &slot)| (mark, slot)))
            }
        };
        let mut page = SessionPage {
            total: match owner {
                None => self.sessions(),
                Some(owner) => self.owners.count(owner) - self.pending_of(owner),
            },
            ..SessionPage::default()
        };
        let mut last = None;
        for (mark, slot) in slots {
            if self.is_expired(self.entry(slot), now_ms) {
                // All others were used even longer ago.
                break;
            }
            if page.sessions.len() == request.max_sessions {
                page.next = last.map(PageToken);
                break;
            }
            page.sessions.push(self.info_of(slot, now_ms));
            last = Some(mark);
        }
        page
    }

    pub(super) fn count_by_model(&self, model: &ModelVersion) -> u64 {
        let identities = self.identities.iter();
        identities
            .filter(|(identity, _)| identity.model == *model)
            .map(|(_, count)| count)
            .sum()
    }

    pub(super) fn retire_model(
        &mut self,
        model: &ModelVersion,
        force: bool,
    ) -> Result<(), SessionError> {
        self.check_open()?;
        let sessions = self.count_by_model(model);
        if sessions > 0 && !force {
            return Err(SessionError::ModelInUse {
                model: model.clone(),
                sessions,
            });
        }
        if self.retired.len() >= MAX_RETIRED_MODELS {
            self.retired.clear();
        }
        self.retired.insert(model.clone());
        Ok(())
    }

    pub(super) fn reinstate_model(&mut self, model: &ModelVersion) -> Result<(), SessionError> {
        self.check_open()?;
        self.retired.remove(model);
        Ok(())
    }

    pub(super) fn stats(&self) -> SessionStats {
        SessionStats {
            sessions: self.sessions(),
            pending_creates: self.pending,
            in_use: self.in_use,
            bytes: self.bytes,
            cached_bytes: 0,
            tombstones: self.tombstones.len() as u64,
            evicted: self.evicted.clone(),
            damaged: 0,
            available: true,
        }
    }

    pub(super) fn check_open(&self) -> Result<(), SessionError> {
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
    pub(super) fn memory_bytes(&self) -> u64 {
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

    pub(super) fn next_mark(&mut self) -> u64 {
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
    pub(super) fn held_session(&self, lease: &Arc<LeaseState>) -> Option<HeldSession> {
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

/// What a lease holds.
#[derive(Debug)]
pub(super) struct HeldSession {
    pub(super) identity: SessionIdentity,
    /// `None` if the session is to be created.
    pub(super) created_unix_ms: Option<u64>,
    pub(super) position: u64,
    pub(super) last_call_position: u64,
}

/// What follows from an applied change outside of the index.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// New records, by mark.
    pub(super) records: Vec<(u64, Arc<SessionRecord>)>,
    /// Marks of records that are gone.
    pub(super) dropped: Vec<u64>,
    /// Leases that have ended.
    pub(super) ended: Vec<Arc<LeaseState>>,
    /// Memory of the index now, in bytes.
    pub(super) index_bytes: u64,
}

fn check_revision(identity: &SessionIdentity) -> Result<(), SessionError> {
    if identity.revision != ARITHMETIC_REVISION {
        return Err(SessionError::UnknownRevision(identity.revision));
    }
    Ok(())
}

/// Values that many sessions share, each stored once and counted.
#[derive(Debug)]
struct Interned<T> {
    numbers: HashMap<T, u32>,
    values: Vec<Option<(T, u64)>>,
    free: Vec<u32>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            values: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    fn add(&mut self, value: &T) -> u32 {
        if let Some(&number) = self.numbers.get(value) {
            if let Some((_, count)) = &mut self.values[number as usize] {
                *count += 1;
            }
            return number;
        }
        let shared = Some((value.clone(), 1));
        let number = match self.free.pop() {
            Some(number) => {
                self.values[number as usize] = shared;
                number
            }
            None => {
                self.values.push(shared);
                u32::try_from(self.values.len() - 1).expect("fewer than 2^32 sessions")
            }
        };
        self.numbers.insert(value.clone(), number);
        number
    }

    fn release(&mut self, number: u32) {
        let Some((value, count)) = &mut self.values[number as usize] else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.numbers.remove(value);
            self.values[number as usize] = None;
            self.free.push(number);
        }
    }

    fn find(&self, value: &T) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    fn get(&self, number: u32) -> &T {
        let (value, _) = self.values[number as usize]
            .as_ref()
            .expect("numbers in use have a value");
        value
    }

    fn count(&self, number: u32) -> u64 {
        self.values[number as usize]
            .as_ref()
            .map_or(0, |(_, count)| *count)
    }

    fn count_of(&self, value: &T) -> u64 {
        self.find(value).map_or(0, |number| self.count(number))
    }

    fn iter(&self) -> impl Iterator<Item = (&T, u64)> {
        let values = self.values.iter().flatten();
        values.map(|(value, count)| (value, *count))
    }
}
