//! Changes that are in the log and not in the database yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::rows::database_key;
use crate::session::index::{Change, IndexRow};
use crate::session::name::SessionKey;
use crate::session::tombstones::{NameDigest, Tombstone};

/// Several changes as one: of each session only the last one counts.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Records by the key of the database; `None`: the session is gone.
    pub(super) records: BTreeMap<Vec<u8>, Option<(IndexRow, Bytes)>>,
    /// Sessions whose record in the database is moved aside first.
    pub(super) damaged: Vec<Vec<u8>>,
    pub(super) tombstones: BTreeMap<NameDigest, Option<Tombstone>>,
    /// Running time of the server at the last change.
    pub(super) clock_ms: u64,
    /// Size of the records, for limits.
    pub(super) bytes: u64,
}

/// Memory of an entry of a batch besides its record.
const ENTRY_BYTES: u64 = 300;

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.tombstones.is_empty() && self.damaged.is_empty()
    }

    pub(super) fn add(&mut self, change: Change, clock_ms: u64) {
        self.clock_ms = self.clock_ms.max(clock_ms);
        for key in &change.damaged {
            self.damaged.push(database_key(key));
        }
        for key in change.deletes.iter().chain(&change.damaged) {
            self.put(database_key(key), None);
        }
        for (key, row, record) in change.puts {
            self.put(database_key(&key), Some((row, record)));
        }
        for name in change.dropped_tombstones {
            self.tombstones.insert(name, None);
        }
        for tombstone in change.tombstones {
            self.tombstones.insert(tombstone.name, Some(tombstone));
        }
    }

    fn put(&mut self, key: Vec<u8>, record: Option<(IndexRow, Bytes)>) {
        let size = |record: &Option<(IndexRow, Bytes)>| {
            ENTRY_BYTES + record.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64)
        };
        self.bytes += size(&record);
        if let Some(old) = self.records.insert(key, record) {
            self.bytes -= size(&old);
        }
    }
}

/// All changes that are not in the database.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Changes that are in the log that is being written.
    active: Batch,
    /// Changes of earlier logs, the oldest first, each with the number of the
    /// last log that it comes from.
    closed: VecDeque<(u64, Arc<Batch>)>,
}

impl Pending {
    pub(super) fn add(&mut self, change: Change, clock_ms: u64) {
        self.active.add(change, clock_ms);
    }

    /// The record of a session, if it is here: `Some(None)` if it is gone.
    pub(super) fn find(&self, key: &SessionKey) -> Option<Option<Bytes>> {
        let key = database_key(key);
        let closed = self.closed.iter().rev().map(|(_, batch)| &**batch);
        let mut batches = std::iter::once(&self.active).chain(closed);
        batches.find_map(|batch| {
            let record = batch.records.get(&key)?;
            Some(record.as_ref().map(|(_, bytes)| bytes.clone()))
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|(_, batch)| batch.bytes).sum();
        self.active.bytes + closed
    }

    pub(super) fn is_active_empty(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Closes the active batch, which ends with log `number`.
    pub(super) fn close(&mut self, number: u64) {
        let batch = std::mem::take(&mut self.active);
        self.add_closed(number, batch);
    }

    /// Adds a closed batch that ends with log `number`.
    pub(super) fn add_closed(&mut self, number: u64, batch: Batch) {
        self.closed.push_back((number, Arc::new(batch)));
    }

    /// The oldest closed batch.
    pub(super) fn oldest_closed(&self) -> Option<(u64, Arc<Batch>)> {
        self.closed.front().cloned()
    }

    /// Forgets the oldest closed batch, which is in the database now.
    pub(super) fn forget_oldest(&mut self) {
        self.closed.pop_front();
    }
}
