//! Sessions in memory only, for tests and for engines without a data folder.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::cache::RecordCache;
use super::clock::RunningClock;
use super::error::{RecordError, SessionError, StorageUnavailable};
use super::index::{Change, Index};
use super::local::{Backing, Done, LocalSessions, OnLocalSessions, ReadError, Submitted};
use super::name::SessionKey;
use super::storage::{Durability, SessionLimits, StorageFuture};

/// Sessions that end with the process. The same rules as on disk, and the
/// same encoding, without the disk.
#[derive(Clone, Debug)]
pub struct MemorySessions {
    sessions: Arc<LocalSessions>,
}

impl MemorySessions {
    /// An empty store.
    pub fn new(limits: SessionLimits) -> Self {
        Self::with_clock(limits, Arc::new(RunningClock::starting_at(0)))
    }

    /// An empty store that measures idle time with a clock of the caller's.
    pub fn with_clock(limits: SessionLimits, clock: Arc<RunningClock>) -> Self {
        let index = Index::new(limits);
        let cache = RecordCache::new(0);
        let backing = Arc::new(Memory::default());
        let sessions = LocalSessions::new(index, cache, backing, clock, Durability::Committed);
        Self { sessions }
    }
}

impl OnLocalSessions for MemorySessions {
    fn local(&self) -> &Arc<LocalSessions> {
        &self.sessions
    }
}

#[derive(Debug, Default)]
struct Memory {
    records: Mutex<HashMap<SessionKey, Bytes>>,
}

impl Memory {
    fn records(&self) -> MutexGuard<'_, HashMap<SessionKey, Bytes>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for Memory {
    fn submit(&self, change: Change, done: Done) -> Submitted {
        let mut records = self.records();
        for (key, _, bytes) in change.puts {
            records.insert(key, bytes);
        }
        for key in change.deletes.iter().chain(&change.damaged) {
            records.remove(key);
        }
        Submitted::Now(done, Ok(()))
    }

    fn read(&self, key: &SessionKey) -> StorageFuture<'static, Result<Bytes, ReadError>> {
        let record = self.records().get(key).cloned();
        let missing = ReadError::Damaged(RecordError::Content("the record is missing"));
        Box::pin(std::future::ready(record.ok_or(missing)))
    }

    fn check(&self) -> Result<(), StorageUnavailable> {
        Ok(())
    }

    fn damaged(&self) -> u64 {
        0
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn backup(&self, _folder: &Path) -> StorageFuture<'static, Result<(), SessionError>> {
        let nothing = StorageUnavailable {
            retry_after: Duration::MAX,
            cause: "sessions are kept in memory only: there is nothing to back up".into(),
        };
        Box::pin(std::future::ready(Err(nothing.into())))
    }

    fn shutdown(&self) -> StorageFuture<'static, Result<(), SessionError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
