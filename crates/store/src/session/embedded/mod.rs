//! Sessions in a folder of the local disk.
//!
//! # Files
//!
//! | file | content |
//! | --- | --- |
//! | `sessions.redb` | the database: records, index, tombstones, damaged records |
//! | `sessions-N.log` | changes that are not in the database yet |
//! | `lock` | locked while a server uses the folder |
//!
//! # When a change is durable
//!
//! One thread writes the log: it takes all changes that wait, writes them with
//! one write and makes them durable with one sync; then they are visible and
//! answered. Every 32 MB or 30 seconds the log is closed, and a second thread
//! moves its changes into the database, of each session only the last.
//! After a crash, the logs that the database does not have yet are read again.
//!
//! After an error of the log, nothing is written to that log any more, because
//! a second sync that succeeds would not prove that the data is on the disk.
//! A new log records how far the old one is valid; until it exists, no change
//! is accepted, and reads continue. After an error of the database it is opened
//! again, and the changes are still in the log and in memory.
//!
//! # Damage
//!
//! Records, rows of the index and frames of the log have checksums. A damaged
//! record is moved to the table of damaged ones, and its session gets a
//! tombstone that says so; a damaged row is restored from its record; of a
//! damaged log, all other frames are read. A damaged *name* in the database
//! may hide its neighbours in the same page: they are reported as damaged as
//! well. If the database cannot be read at all, opening fails and changes
//! nothing.
//!
//! # Why redb with a log in front of it
//!
//! redb 4.6 and fjall 3.1 were measured with 64 concurrent writers of 12 KB
//! records over 100,000 sessions of 8.4 KB, a group commit, and a page cache
//! of 32 MB, on a disk whose `fdatasync` takes 4 ms:
//!
//! | | commits/s | latency p50, p99 at 1,000 commits/s | open | disk | memory |
//! | --- | ---: | ---: | ---: | ---: | ---: |
//! | redb, one sync | 7,750 | 5, 16 ms | 5 ms; after a crash it reads the whole file | 1.6 GB | 44 MB |
//! | redb, quick repair (two syncs) | 5,425 | 11, 44 ms | 5 ms | 1.6 GB | 44 MB |
//! | fjall, separated values | 9,950 | 4, 31 ms | 500 to 800 ms | 1.0 to 2.3 GB | 75 to 250 MB |
//!
//! redb is chosen: one file, a stable format, flat memory, and a storage
//! interface beneath it, so that the tests can cut its power; fjall writes
//! many files by itself. What redb alone does not give is a commit with one
//! sync *and* a quick start after a crash. The log gives both: a commit is one
//! sequential write and one sync, and the two syncs of redb are paid once for
//! thousands of changes, during which commits continue.
//!
//! Measured with this store (`cargo bench -p charlstm-store --bench sessions`)
//! on two shared cores and the same disk:
//!
//! | | |
//! | --- | ---: |
//! | commits/s, 64 callers without pause, 12 KB records | 5,600 to 8,700 |
//! | latency of a commit at 200/s, p50, p99 | 1.9, 9.8 ms |
//! | latency of a commit at 1,000/s, p50, p99 | 2.4, 13 ms |
//! | open with 100,000 sessions; after a kill | 0.3 s; 0.5 s |
//! | open with 1,000,000 sessions | 2.1 to 3.0 s |
//! | open a cold session among 1,000,000, p50, p99 | 0.04, 0.24 ms |
//! | resident with 1,000,000 idle sessions | 290 MB |

mod backing;
mod change;
mod checkpoint_thread;
mod database;
mod disk;
mod legacy;
mod log;
mod log_thread;
mod open_error;
mod opened;
mod opening;
mod pending;
mod redb_file;
mod redb_panic;
mod rows;
mod tables;
mod view;

#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::backing::{EmbeddedBacking, Shared, Tuning};
use self::checkpoint_thread::CheckpointThread;
use self::disk::{Disk, Folder};
pub(super) use self::legacy::parse_export as parse_export_of_version_0_1;
use self::log::LogWriter;
use self::log_thread::LogThread;
pub use self::open_error::OpenError;
use self::opening::Opening;
use self::pending::{Batch, Pending};
use super::cache::RecordCache;
use super::clock::RunningClock;
use super::index::Index;
use super::local::{LocalSessions, OnLocalSessions};
use super::storage::{Durability, SessionLimits};

/// Name of the database file.
const DATABASE: &str = "sessions.redb";

/// Settings of [`EmbeddedSessions`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedSettings {
    /// How much is stored.
    pub limits: SessionLimits,
    /// When a change is durable.
    pub durability: Durability,
    /// Memory for recently used states, for the page cache of the database,
    /// for changes that are not in the database yet, and for the index of all
    /// sessions (some 300 bytes each), in bytes. The states always have a
    /// quarter of it.
    pub cache_bytes: u64,
}

/// Space for sessions that a store in a folder may take by default: 10 GB, but
/// at most half of what is free on the disk, together with what the store has
/// already.
///
/// # Errors
/// The disk reports an error. A folder that does not exist yet is no error: its
/// parent is asked.
pub fn default_max_bytes(folder: &Path) -> io::Result<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir());
    let there = there.unwrap_or(Path::new("."));
    let free = rustix::fs::statvfs(there)?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    let own = match std::fs::metadata(folder.join(DATABASE)) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok((free.saturating_add(own) / 2).min(SessionLimits::default().max_bytes))
}

impl Default for EmbeddedSettings {
    /// The defaults of the limits, committed, and 512 MB.
    fn default() -> Self {
        Self {
            limits: SessionLimits::default(),
            durability: Durability::Committed,
            cache_bytes: 512_000_000,
        }
    }
}

impl EmbeddedSettings {
    fn tuning(&self) -> Tuning {
        Tuning {
            durability: self.durability,
            // Some thousand commits: redb then writes each touched page once
            // for many of them, and of a session that is used often only its
            // last state. Reading as much after a crash takes a tenth of a
            // second.
            log_bytes: 32 << 20,
            log_age: Duration::from_secs(30),
            // Longer than the commits of all calls that can run at once: a
            // thousand, of 12 KB each.
            reserve_bytes: 16 << 20,
            // Two logs, and as much again while the database is slow.
            max_pending_bytes: 128 << 20,
            page_cache_bytes: usize::try_from(self.cache_bytes / 8).unwrap_or(usize::MAX),
            retry_after: Duration::from_secs(1),
            tick: Duration::from_secs(1),
        }
    }
}

/// Sessions in a folder, which survive crashes and power cuts as
/// [`Durability`] says.
pub struct EmbeddedSessions {
    sessions: Arc<LocalSessions>,
    imported: ImportedLegacy,
}

/// What was imported from files of version 0.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportedLegacy {
    /// Sessions that continue.
    pub sessions: u64,
    /// Sessions that are known to be lost; they have tombstones now.
    pub lost: u64,
    /// Records that are damaged; they were moved aside.
    pub damaged: u64,
}

impl fmt::Debug for EmbeddedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbeddedSessions")
            .field(&self.sessions)
            .finish()
    }
}

impl OnLocalSessions for EmbeddedSessions {
    fn local(&self) -> &Arc<LocalSessions> {
        &self.sessions
    }
}

impl EmbeddedSessions {
    /// Opens the sessions of a folder, which is created if necessary. Imports
    /// the files of version 0.1, once. Blocks on the disk: for some hundred
    /// milliseconds with 100,000 sessions, none of whose states are read.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(folder: &Path, settings: EmbeddedSettings) -> Result<Self, OpenError> {
        let disk = Folder::open(folder).map_err(|source| match source.kind() {
            io::ErrorKind::ResourceBusy => OpenError::InUse(folder.to_owned()),
            _ => OpenError::Io {
                folder: folder.to_owned(),
                source,
            },
        })?;
        let tuning = settings.tuning();
        Self::open_on(Arc::new(disk), folder, settings, tuning, None)
    }

    /// What was imported from files of version 0.1 when the folder was opened.
    pub fn imported(&self) -> ImportedLegacy {
        self.imported
    }

    /// As `open`, on any disk. `folder` is only for messages.
    fn open_on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        settings: EmbeddedSettings,
        tuning: Tuning,
        clock: Option<Arc<RunningClock>>,
    ) -> Result<Self, OpenError> {
        let opening = Opening {
            disk: &*disk,
            folder,
            cache_bytes: tuning.page_cache_bytes,
        };
        let (database, only_read) = opening.database()?;
        let imported = opening.import_legacy(&database, only_read.is_some())?;
        let logs = opening.logs(&database)?;
        let mut index = Index::new(settings.limits);
        let repaired = opening.load(&database, &logs.changes, &mut index)?;
        let clock_ms = opening.read(database.clock_ms())?;
        let clock_ms = clock_ms.max(logs.clock_ms);
        let clock = clock.unwrap_or_else(|| Arc::new(RunningClock::starting_at(clock_ms)));
        let mut batch = Batch::default();
        for change in logs.changes {
            batch.add(change, clock_ms);
        }
        batch.add(repaired, clock_ms);
        let mut pending = Pending::default();
        if !batch.is_empty() {
            pending.add_closed(logs.last, batch);
        }
        let number = logs.last + 1;
        let space = tuning.log_bytes + tuning.reserve_bytes;
        let log = LogWriter::create(&*disk, number, space, None);
        let shared = Shared::new(
            Arc::clone(&disk),
            tuning,
            Arc::clone(&clock),
            database,
            pending,
            number + 1,
        );
        shared.applied_log.store(logs.applied, Ordering::Relaxed);
        if let Some(error) = &only_read {
            tracing::error!(%error, "the session database cannot be written");
            shared.health().database = Some(error.to_string().into());
        }
        let backing = EmbeddedBacking::start(Arc::clone(&shared));
        let backing = backing.map_err(|error| opening.io(error))?;
        let mut cache = RecordCache::new(settings.cache_bytes);
        cache.reserve(tuning.page_cache_bytes as u64 + index.memory_bytes());
        let backing = Arc::new(backing);
        let sessions = LocalSessions::new(index, cache, backing, clock, settings.durability);
        shared.set_sessions(&sessions);
        let started = LogThread::start(Arc::clone(&shared), log, logs.last, logs.ends)
            .and_then(|()| CheckpointThread::start(Arc::clone(&shared), only_read.is_some()));
        if let Err(error) = started {
            disk.unlock();
            return Err(opening.io(error));
        }
        Ok(Self { sessions, imported })
    }
}
