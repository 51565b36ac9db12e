//! The records of recently used sessions, in memory.

use std::sync::Arc;

use charlstm_store::session::{SessionKey, SessionRecord};
use hashlink::LruCache;
use uuid::Uuid;

/// Memory that a cached record takes besides its states and characters.
const RECORD_BYTES: u64 = 700;

/// Records, the least recently used of which make room when a limit on bytes
/// is reached. A record is used only if the database names the same commit.
pub(super) struct RecordCache {
    max_bytes: u64,
    bytes: u64,
    records: LruCache<SessionKey, Cached>,
}

#[derive(Clone)]
pub(super) struct Cached {
    pub(super) commit_id: Uuid,
    pub(super) record: Arc<SessionRecord>,
}

impl RecordCache {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            bytes: 0,
            records: LruCache::new_unbounded(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&mut self, key: &SessionKey) -> Option<Cached> {
        self.records.get(key).cloned()
    }

    pub(super) fn insert(&mut self, commit_id: Uuid, record: Arc<SessionRecord>) {
        self.remove(&record.key);
        let bytes = size_of_record(&record);
        if bytes > self.max_bytes {
            return;
        }
        self.bytes += bytes;
        let key = record.key.clone();
        self.records.insert(key, Cached { commit_id, record });
        while self.bytes > self.max_bytes
            && let Some((_, oldest)) = self.records.remove_lru()
        {
            self.bytes -= size_of_record(&oldest.record);
        }
    }

    pub(super) fn remove(&mut self, key: &SessionKey) {
        if let Some(cached) = self.records.remove(key) {
            self.bytes -= size_of_record(&cached.record);
        }
    }
}

impl std::fmt::Debug for RecordCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordCache")
            .field("records", &self.records.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

fn size_of_record(record: &SessionRecord) -> u64 {
    RECORD_BYTES + record.content_bytes() as u64
}
