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
mod pending;
mod redb_panic;
mod view;

#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thiserror::Error;

use self::backing::{EmbeddedBacking, Shared, Tuning};
use self::change::Payload;
use self::checkpoint_thread::{CheckpointThread, open_database};
use self::database::{Database, DatabaseError};
use self::disk::{Disk, Folder, remove_if_there};
pub(super) use self::legacy::parse_export as parse_export_of_version_0_1;
use self::log::{LogContent, LogError, LogWriter};
use self::log_thread::LogThread;
use self::pending::{Batch, Pending};
use super::cache::RecordCache;
use super::clock::RunningClock;
use super::index::{Change, Index};
use super::local::{LocalSessions, OnLocalSessions};
use super::name::SessionKey;
use super::record::SessionRecord;
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

/// A folder of sessions that cannot be opened. Nothing in it was deleted.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The disk reports an error.
    #[error("cannot use the session folder {}: {source}", .folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Another process uses the folder.
    #[error("the session folder {} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// A file was written by another version.
    #[error(
        "{} was written by another version of the server: {detail}; start that version, or move \
         the folder aside to begin without sessions. Nothing was changed", .file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
        /// Which version it has and which would be right.
        detail: String,
    },
    /// A file is damaged as a whole.
    #[error(
        "{} is damaged ({detail}); restore the folder from a backup, or move it aside to begin \
         without sessions. Nothing was changed", .file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// There are logs without their database.
    #[error(
        "{} is missing although there are session logs next to it; restore it from a backup, or \
         move the folder aside to begin without sessions. Nothing was changed", .0.display()
    )]
    DatabaseMissing(PathBuf),
    /// A file of version 0.1 appeared after its sessions had been imported.
    #[error(
        "{} was written by version 0.1 after the sessions had been imported, and is not merged: \
         move it aside to start with the sessions of this version, or start version 0.1 to \
         continue those in the file", .0.display()
    )]
    LegacyFileAppeared(PathBuf),
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

/// Reads a folder at startup.
struct Opening<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    cache_bytes: usize,
}

/// What the logs contain that the database does not have.
#[derive(Default)]
struct Logs {
    changes: Vec<Change>,
    clock_ms: u64,
    /// Number of the last log that the database has.
    applied: u64,
    /// Number of the last log.
    last: u64,
    /// Where the valid part of each log ends.
    ends: Vec<(u64, u64)>,
}

impl Opening<'_> {
    fn io(&self, source: io::Error) -> OpenError {
        OpenError::Io {
            folder: self.folder.to_owned(),
            source,
        }
    }

    fn damaged(&self, file: &str, detail: impl fmt::Display) -> OpenError {
        OpenError::Damaged {
            file: self.folder.join(file),
            detail: detail.to_string(),
        }
    }

    /// Explains an error of the database.
    fn read<T>(&self, result: Result<T, DatabaseError>) -> Result<T, OpenError> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let is_of_the_disk = error.is_of_the_disk();
        Err(match error {
            DatabaseError::Format { .. } => OpenError::Format {
                file: self.folder.join(DATABASE),
                detail: error.to_string(),
            },
            DatabaseError::Redb(error) => match *error {
                redb::Error::Io(source) if is_of_the_disk => self.io(source),
                redb::Error::UpgradeRequired(version) => OpenError::Format {
                    file: self.folder.join(DATABASE),
                    detail: format!("file format {version} of redb is not supported"),
                },
                error => self.damaged(DATABASE, error),
            },
            DatabaseError::Damaged(_) => self.damaged(DATABASE, error),
        })
    }

    /// Opens the database, or creates it. With an error, it can only be read.
    fn database(&self) -> Result<(Database, Option<DatabaseError>), OpenError> {
        let names = self.disk.names().map_err(|error| self.io(error))?;
        if names.iter().any(|name| name == DATABASE) {
            return self.read(open_database(self.disk, self.cache_bytes));
        }
        if names.iter().any(|name| log::number_of(name).is_some()) {
            return Err(OpenError::DatabaseMissing(self.folder.join(DATABASE)));
        }
        // Under another name, so that a crash leaves no half of a database.
        let new = format!("{DATABASE}.new");
        let created = remove_if_there(self.disk, &new).and_then(|()| self.disk.create(&new));
        let file = created.map_err(|error| self.io(error))?;
        drop(self.read(Database::create(file))?);
        let renamed = self.disk.rename(&new, DATABASE);
        let synced = renamed.and_then(|()| self.disk.sync_folder());
        synced.map_err(|error| self.io(error))?;
        self.read(open_database(self.disk, self.cache_bytes))
    }

    /// Reads the logs that the database does not have, and removes the others.
    fn logs(&self, database: &Database) -> Result<Logs, OpenError> {
        let mut logs = Logs {
            applied: self.read(database.applied_log())?,
            ..Logs::default()
        };
        logs.last = logs.applied;
        let mut numbers = Vec::new();
        for name in self.disk.names().map_err(|error| self.io(error))? {
            match log::number_of(&name) {
                Some(number) if number > logs.applied => numbers.push(number),
                Some(_) => self.remove(&name)?,
                // Creating it was not finished.
                None if name.ends_with(".log.new") => self.remove(&name)?,
                None => {}
            }
        }
        numbers.sort_unstable();
        let mut contents = Vec::new();
        for number in numbers {
            contents.push((number, self.log(number)?));
        }
        logs.ends = valid_ends(&mut contents);
        for ((number, content), &(_, valid_end)) in contents.iter().zip(&logs.ends) {
            logs.last = *number;
            self.keep_damaged(database, *number, content, valid_end);
            let valid = content.frames.iter().filter(|(end, _)| *end <= valid_end);
            for (end, frame) in valid {
                match Payload::decode(frame) {
                    Ok(Payload::Begin(_)) => {}
                    Ok(Payload::Change { clock_ms, change }) => {
                        logs.clock_ms = logs.clock_ms.max(clock_ms);
                        logs.changes.push(change);
                    }
                    Err(error) => {
                        tracing::error!(%error, "a change in a session log cannot be read");
                        self.move_aside(database, *number, *end, frame);
                    }
                }
            }
        }
        Ok(logs)
    }

    fn remove(&self, name: &str) -> Result<(), OpenError> {
        self.disk.remove(name).map_err(|error| self.io(error))
    }

    fn log(&self, number: u64) -> Result<LogContent, OpenError> {
        let name = log::name(number);
        let file = self.disk.open(&name).map_err(|error| self.io(error))?;
        // What is read is relied on: after a crash of the process it may not
        // be on the disk yet.
        file.sync().map_err(|error| self.io(error))?;
        LogContent::read(&*file, number).map_err(|error| match error {
            LogError::Io(error) => self.io(error),
            LogError::Format(_) => OpenError::Format {
                file: self.folder.join(&name),
                detail: error.to_string(),
            },
            LogError::NotALog => self.damaged(&name, error),
        })
    }

    fn keep_damaged(&self, database: &Database, number: u64, content: &LogContent, valid_end: u64) {
        for (offset, bytes) in &content.damaged {
            if *offset < valid_end {
                self.move_aside(database, number, *offset, bytes);
            }
        }
        if content.end() < valid_end {
            let name = log::name(number);
            tracing::error!(
                log = name,
                "the end of a session log is missing; the sessions that changed there are at \
                 earlier positions"
            );
        }
    }

    fn move_aside(&self, database: &Database, number: u64, offset: u64, bytes: &[u8]) {
        let log = log::name(number);
        tracing::error!(
            log,
            offset,
            "a part of a session log is damaged; the sessions that changed there are at earlier \
             positions"
        );
        // The log itself stays until the database has the rest of it.
        if let Err(error) = database.keep_damaged(&format!("{log}/{offset}"), bytes) {
            tracing::error!(%error, "the damaged part cannot be kept");
        }
    }

    /// Fills the index. Returns what must be stored to repair it.
    fn load(
        &self,
        database: &Database,
        changes: &[Change],
        index: &mut Index,
    ) -> Result<Change, OpenError> {
        let loaded = database.load(|key, row| index.load(&key, &row));
        let loaded = self.read(loaded)?;
        for tombstone in loaded.tombstones {
            index.load_tombstone(tombstone);
        }
        for change in changes {
            for key in change.deletes.iter().chain(&change.damaged) {
                index.unload(key);
            }
            for (key, row, _) in &change.puts {
                index.load(key, row);
            }
            for name in &change.dropped_tombstones {
                index.unload_tombstone(*name);
            }
            for tombstone in &change.tombstones {
                index.load_tombstone(*tombstone);
            }
        }
        if loaded.damaged.is_empty() {
            return Ok(Change::default());
        }
        self.repair(database, loaded.damaged, index)
    }

    /// Restores the rows of sessions from their records. What is left of the
    /// damaged rows is moved aside.
    fn repair(
        &self,
        database: &Database,
        damaged: Vec<Vec<u8>>,
        index: &mut Index,
    ) -> Result<Change, OpenError> {
        let mut repaired = Change::default();
        let mut orphans = Vec::new();
        let has_row = |key: &SessionKey| index.contains(key);
        let found = database.orphans(has_row, |key, record| orphans.push((key, record)));
        self.read(found)?;
        for (key, bytes) in orphans {
            let record = SessionRecord::decode(&bytes).ok();
            let Some(record) = record.filter(|record| record.key == key) else {
                continue;
            };
            let row = change::row_of(&record, index.next_mark(), &bytes);
            tracing::warn!(session = %key, "the index entry of a session was damaged and was restored");
            index.load(&key, &row);
            repaired.puts.push((key, row, bytes));
        }
        for key in damaged {
            let name = String::from_utf8_lossy(&key).replace('\0', "/");
            let Some(key) = database::session_key(&key) else {
                tracing::error!(
                    session = name,
                    "an index entry is damaged, and its session is not known"
                );
                continue;
            };
            if !index.contains(&key) {
                tracing::error!(session = name, "a session is damaged and is moved aside");
                repaired.tombstones.push(index.load_damaged(&key));
                repaired.damaged.push(key);
            }
        }
        Ok(repaired)
    }

    /// Imports the files of version 0.1, once.
    fn import_legacy(
        &self,
        database: &Database,
        is_only_read: bool,
    ) -> Result<ImportedLegacy, OpenError> {
        legacy::Import {
            disk: self.disk,
            database,
            is_only_read,
        }
        .run()
        .map_err(|error| match error {
            legacy::ImportError::Io(error) => self.io(error),
            legacy::ImportError::Database(error) => match self.read::<()>(Err(error)) {
                Err(error) => error,
                Ok(()) => unreachable!("an error stays an error"),
            },
            legacy::ImportError::Appeared(name) => {
                OpenError::LegacyFileAppeared(self.folder.join(name))
            }
            legacy::ImportError::NotSessions(name, detail) => self.damaged(name, detail),
        })
    }
}

/// Where the valid part of each log ends: where its frames end, or where a
/// later log says that it does.
fn valid_ends(contents: &mut [(u64, LogContent)]) -> Vec<(u64, u64)> {
    let mut known = Vec::new();
    for (_, content) in contents.iter() {
        let first = content.frames.first();
        if let Some(Ok(Payload::Begin(ends))) = first.map(|(_, frame)| Payload::decode(frame)) {
            known.extend(ends);
        }
    }
    let mut ends = Vec::new();
    for (number, content) in contents {
        let found = known.iter().find(|(known, _)| known == number);
        if let Some((_, end)) = found {
            content.confirm(*end);
        }
        ends.push((*number, found.map_or(content.end(), |(_, end)| *end)));
    }
    ends
}
