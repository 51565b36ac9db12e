//! Changes, from the plan to the outcome.

use std::sync::Arc;

use bytes::Bytes;

use super::{Index, IndexRow, SlotRef, stored_bytes};
use crate::session::error::{EvictionReason, SessionError};
use crate::session::identity::ModelVersion;
use crate::session::lease::{LeaseState, LeaseStatus};
use crate::session::name::SessionKey;
use crate::session::record::SessionRecord;
use crate::session::tombstones::{NameDigest, Tombstone};

/// A change that a backend makes durable as a whole or not at all.
#[derive(Clone, Debug, Default)]
pub(in crate::session) struct Change {
    pub(in crate::session) puts: Vec<(SessionKey, IndexRow, Bytes)>,
    pub(in crate::session) deletes: Vec<SessionKey>,
    /// Sessions whose records are to be moved aside.
    pub(in crate::session) damaged: Vec<SessionKey>,
    pub(in crate::session) tombstones: Vec<Tombstone>,
    pub(in crate::session) dropped_tombstones: Vec<NameDigest>,
}

/// A change, and what it does to the index once it is durable.
#[derive(Debug, Default)]
pub(in crate::session) struct Plan {
    pub(in crate::session) change: Change,
    effects: Vec<Effect>,
}

impl Plan {
    pub(in crate::session) fn is_empty(&self) -> bool {
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
pub(super) struct Growth {
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

/// What follows from an applied change outside of the index.
#[derive(Debug, Default)]
pub(in crate::session) struct Applied {
    /// New records, by mark.
    pub(in crate::session) records: Vec<(u64, Arc<SessionRecord>)>,
    /// Marks of records that are gone.
    pub(in crate::session) dropped: Vec<u64>,
    /// Leases that have ended.
    pub(in crate::session) ended: Vec<Arc<LeaseState>>,
    /// Memory of the index now, in bytes.
    pub(in crate::session) index_bytes: u64,
}

impl Index {
    /// Plans to store a record for a leased session.
    ///
    /// # Errors
    /// `Deleted` if the lease is not held any more.
    pub(in crate::session) fn plan_put(
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
        let bytes = stored_bytes(encoded.len());
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
    pub(in crate::session) fn plan_delete(
        &mut self,
        key: &SessionKey,
    ) -> Result<Plan, SessionError> {
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
    pub(in crate::session) fn plan_expiry(&mut self, now_ms: u64, max: usize) -> Plan {
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

    /// Plans to evict the idle sessions of a model version, at most `max`, from
    /// slot `from` on. Returns the slot at which to continue. The plan is empty
    /// at the end.
    pub(in crate::session) fn plan_model_eviction(
        &mut self,
        model: &ModelVersion,
        from: u32,
        max: usize,
    ) -> (Plan, u32) {
        let mut plan = Plan::default();
        let end = u32::try_from(self.entries.len()).expect("fewer than 2^32 sessions");
        for slot in from..end {
            if plan.effects.len() == max {
                return (plan, slot);
            }
            let is_idle = self.entries[slot as usize].as_ref().is_some_and(|entry| {
                let of_model = self.identities.get(entry.identity).model == *model;
                of_model && !entry.is_pending && entry.holder.is_none()
            });
            if is_idle {
                self.plan_eviction(slot, EvictionReason::ModelGone, &mut plan);
            }
        }
        (plan, end)
    }

    /// Plans to move the damaged record with this mark aside. `None` if the
    /// session is gone, has another record, or if somebody else than `lease`
    /// has it.
    pub(in crate::session) fn plan_damaged(
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

    pub(super) fn plan_eviction(&mut self, slot: u32, reason: EvictionReason, plan: &mut Plan) {
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
    pub(in crate::session) fn apply(&mut self, plan: Plan) -> Applied {
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

    /// Rolls back a change that could not be made durable. Returns the leases
    /// that have ended.
    pub(in crate::session) fn roll_back(&mut self, plan: Plan) -> Applied {
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
                        self.tombstones.roll_back(tombstone);
                    }
                    self.end_lease(slot, &lease);
                    applied.ended.push(lease);
                }
                Effect::ForgetName(_) => {}
            }
        }
        applied
    }
}
