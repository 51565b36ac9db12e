//! The records of recently used sessions, in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::record::SessionRecord;

/// Memory that a cached record takes besides its states and characters.
const RECORD_BYTES: u64 = 600;

/// Records, the least recently used of which make room when a limit on bytes
/// is reached. Keyed by the mark that each version of each session has alone,
/// so that an old version is never taken for a newer one.
#[derive(Debug)]
pub(super) struct RecordCache {
    max_bytes: u64,
    /// Memory that other parts of the store take out of `max_bytes`.
    reserved_bytes: u64,
    bytes: u64,
    uses: u64,
    records: HashMap<u64, Cached>,
    /// Marks by last use.
    order: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Cached {
    record: Arc<SessionRecord>,
    bytes: u64,
    used: u64,
}

impl RecordCache {
    /// An empty cache of at most `max_bytes`; 0 caches nothing.
    pub(super) fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            reserved_bytes: 0,
            bytes: 0,
            uses: 0,
            records: HashMap::new(),
            order: BTreeMap::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets how many of its bytes the other parts of the store take.
    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes = bytes;
    }

    /// At least a quarter stays, whatever the others take.
    fn max_bytes(&self) -> u64 {
        let rest = self.max_bytes.saturating_sub(self.reserved_bytes);
        rest.max(self.max_bytes / 4)
    }

    pub(super) fn get(&mut self, mark: u64) -> Option<Arc<SessionRecord>> {
        let cached = self.records.get_mut(&mark)?;
        self.uses += 1;
        self.order.remove(&cached.used);
        self.order.insert(self.uses, mark);
        cached.used = self.uses;
        Some(Arc::clone(&cached.record))
    }

    pub(super) fn insert(&mut self, mark: u64, record: Arc<SessionRecord>) {
        self.remove(mark);
        let bytes = RECORD_BYTES + record.content_bytes() as u64;
        let max_bytes = self.max_bytes();
        if bytes > max_bytes {
            return;
        }
        self.uses += 1;
        let used = self.uses;
        let cached = Cached {
            record,
            bytes,
            used,
        };
        self.bytes += bytes;
        self.records.insert(mark, cached);
        self.order.insert(used, mark);
        while self.bytes > max_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.remove(oldest);
        }
    }

    pub(super) fn remove(&mut self, mark: u64) {
        if let Some(cached) = self.records.remove(&mark) {
            self.bytes -= cached.bytes;
            self.order.remove(&cached.used);
        }
    }
}
