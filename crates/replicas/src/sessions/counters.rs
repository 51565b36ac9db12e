//! Counters for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use charlstm_store::session::{EvictionReason, SessionStats};

/// What has happened to leases since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseCounters {
    /// Calls that were rejected because another replica held the session.
    pub conflicts: u64,
    /// Calls that lost their session to another replica.
    pub fenced: u64,
    /// Calls that opened a session whose state was in memory.
    pub cache_hits: u64,
    /// Calls that had to read it.
    pub cache_misses: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) conflicts: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
    /// As the database reported them last.
    stats: Mutex<SessionStats>,
    evicted: Mutex<BTreeMap<EvictionReason, u64>>,
}

impl Counters {
    pub(super) fn snapshot(&self) -> LeaseCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LeaseCounters {
            conflicts: get(&self.conflicts),
            fenced: get(&self.fenced),
            cache_hits: get(&self.cache_hits),
            cache_misses: get(&self.cache_misses),
        }
    }

    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_evicted(&self, reason: EvictionReason, sessions: u64) {
        if sessions > 0 {
            let mut evicted = self.evicted.lock().unwrap_or_else(PoisonError::into_inner);
            *evicted.entry(reason).or_default() += sessions;
        }
    }

    pub(super) fn set_stats(&self, stats: SessionStats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    pub(super) fn stats(&self) -> SessionStats {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let evicted = self.evicted.lock().unwrap_or_else(PoisonError::into_inner);
        SessionStats {
            evicted: evicted.clone(),
            ..stats.clone()
        }
    }
}
