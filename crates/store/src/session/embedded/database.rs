//! The database file: records, their index, tombstones. Its tables are in
//! `tables`.
//!
//! Every commit syncs twice and stores the state of redb's allocator
//! (`set_quick_repair`), so that opening after a crash does not have to read
//! the whole file.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, TableError};
use thiserror::Error;

use super::disk::DiskFile;
use super::pending::Batch;
use super::redb_file::RedbFile;
use super::redb_panic::guarded;
use super::rows::{decode_row, decode_tombstone, session_key};
use super::tables::{DAMAGED, INDEX, META, RECORDS, TOMBSTONES, Tables, number};
use crate::session::index::IndexRow;
use crate::session::name::SessionKey;
use crate::session::tombstones::Tombstone;

/// Version of the tables that is written, and the only one that is read.
pub(super) const FORMAT: u32 = 1;

/// The database cannot be read or written.
#[derive(Debug, Error)]
pub(super) enum DatabaseError {
    /// The disk reports an error, or redb finds the file damaged.
    #[error(transparent)]
    Redb(Box<redb::Error>),
    /// The file is damaged so that redb did not expect it.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The tables are of another version.
    #[error("format {found} is not supported; this version reads format {FORMAT}")]
    Format {
        /// The version.
        found: u32,
    },
}

impl DatabaseError {
    /// The disk reports an error, and the file may be in order.
    pub(super) fn is_of_the_disk(&self) -> bool {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        match self {
            Self::Redb(error) => match &**error {
                redb::Error::Io(error) => !matches!(error.kind(), UnexpectedEof | InvalidData),
                redb::Error::PreviousIo => true,
                _ => false,
            },
            Self::Damaged(_) | Self::Format { .. } => false,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for DatabaseError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

/// What is loaded at startup in addition to the index.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// In the order of evictions.
    pub(super) tombstones: Vec<Tombstone>,
    /// Keys of sessions whose row in the index is damaged.
    pub(super) damaged: Vec<Vec<u8>>,
}

/// An open database. All methods block.
#[derive(Debug)]
pub(super) struct Database {
    /// Only empty while it is dropped.
    redb: Option<redb::Database>,
    is_detached: Arc<AtomicBool>,
}

impl Drop for Database {
    /// Closing may write, and may panic if the file is damaged.
    fn drop(&mut self) {
        let redb = self.redb.take();
        let closed = guarded(|| {
            drop(redb);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(%error, "the session database could not be closed");
        }
    }
}

impl Database {
    /// Creates the tables in an empty file.
    pub(super) fn create(file: Arc<dyn DiskFile>) -> Result<Self, DatabaseError> {
        let database = Self::open_redb(file, 0)?;
        guarded(|| {
            let transaction = database.redb()?.begin_write()?;
            Tables::open(&transaction)?.set("format", &FORMAT.to_le_bytes())?;
            commit(transaction)
        })?;
        Ok(database)
    }

    /// Opens an existing database with a page cache of `cache_bytes`. After a
    /// crash, this repairs it first.
    pub(super) fn open(file: Arc<dyn DiskFile>, cache_bytes: usize) -> Result<Self, DatabaseError> {
        // redb would make a new database of an empty file.
        let length = file.len().map_err(redb::Error::Io)?;
        if length == 0 {
            return Err(DatabaseError::Damaged("it is empty".to_owned()));
        }
        let database = Self::open_redb(file, cache_bytes)?;
        database.check_format()?;
        Ok(database)
    }

    fn open_redb(file: Arc<dyn DiskFile>, cache_bytes: usize) -> Result<Self, DatabaseError> {
        guarded(|| {
            let mut builder = redb::Builder::new();
            builder.set_cache_size(cache_bytes);
            let is_detached = Arc::new(AtomicBool::new(false));
            let file = RedbFile {
                file,
                is_detached: Arc::clone(&is_detached),
            };
            let redb = builder.create_with_backend(file)?;
            Ok(Self {
                redb: Some(redb),
                is_detached,
            })
        })
    }

    fn redb(&self) -> Result<&redb::Database, DatabaseError> {
        let closed = || DatabaseError::Damaged("it is closed".to_owned());
        self.redb.as_ref().ok_or_else(closed)
    }

    /// Ends all access to the file, so that it can be opened again while
    /// readers still hold this.
    pub(super) fn detach(&self) {
        self.is_detached.store(true, Ordering::Release);
    }

    fn check_format(&self) -> Result<(), DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            let meta = match transaction.open_table(META) {
                Err(TableError::TableDoesNotExist(_)) => {
                    return Err(DatabaseError::Damaged(
                        "it is not a database of sessions".to_owned(),
                    ));
                }
                meta => meta?,
            };
            let format = number(&meta, "format")?.unwrap_or(0);
            let format = u32::try_from(format).unwrap_or(u32::MAX);
            if format != FORMAT {
                return Err(DatabaseError::Format { found: format });
            }
            Ok(())
        })
    }

    /// Number of the last log whose changes are all in the database.
    pub(super) fn applied_log(&self) -> Result<u64, DatabaseError> {
        self.number("applied_log")
    }

    /// Running time of the server at the last change, in milliseconds.
    pub(super) fn clock_ms(&self) -> Result<u64, DatabaseError> {
        self.number("clock_ms")
    }

    fn number(&self, name: &str) -> Result<u64, DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            let meta = transaction.open_table(META)?;
            Ok(number(&meta, name)?.unwrap_or(0))
        })
    }

    /// Reads what is kept in memory of all sessions.
    pub(super) fn load(
        &self,
        mut each: impl FnMut(SessionKey, IndexRow),
    ) -> Result<Loaded, DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            let mut loaded = Loaded::default();
            // Sessions share the names of their models.
            let mut identities = HashSet::new();
            let index = transaction.open_table(INDEX)?;
            let mut rows = 0;
            for entry in index.iter()? {
                let (key, value) = entry?;
                rows += 1;
                let row = decode_row(key.value(), value.value(), &mut identities);
                match (session_key(key.value()), row) {
                    (Some(key), Ok(row)) => each(key, row),
                    _ => loaded.damaged.push(key.value().to_vec()),
                }
            }
            if rows != index.len()? {
                let detail = format!("its index has {rows} rows instead of {}", index.len()?);
                return Err(DatabaseError::Damaged(detail));
            }
            for entry in transaction.open_table(TOMBSTONES)?.iter()? {
                let (name, value) = entry?;
                // A tombstone that cannot be read is as good as dropped.
                if let Ok(tombstone) = decode_tombstone(name.value(), value.value()) {
                    loaded.tombstones.push(tombstone);
                }
            }
            let sequence = |tombstone: &Tombstone| tombstone.sequence;
            loaded.tombstones.sort_unstable_by_key(sequence);
            Ok(loaded)
        })
    }

    /// Reads the record of a session, by the key of the tables.
    pub(super) fn record(&self, key: &[u8]) -> Result<Option<Bytes>, DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            let records = transaction.open_table(RECORDS)?;
            let record = records.get(key)?;
            Ok(record.map(|record| Bytes::copy_from_slice(record.value())))
        })
    }

    /// Looks for the records of sessions without a row in the index. Reads the
    /// whole file: only for when rows are damaged.
    pub(super) fn orphans(
        &self,
        has_row: impl Fn(&SessionKey) -> bool,
        mut each: impl FnMut(SessionKey, Bytes),
    ) -> Result<(), DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            for entry in transaction.open_table(RECORDS)?.iter()? {
                let (key, record) = entry?;
                if let Some(key) = session_key(key.value())
                    && !has_row(&key)
                {
                    each(key, Bytes::copy_from_slice(record.value()));
                }
            }
            Ok(())
        })
    }

    /// Number of records that were moved aside.
    pub(super) fn damaged(&self) -> Result<u64, DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            Ok(transaction.open_table(DAMAGED)?.len()?)
        })
    }

    /// The bytes of an entry of `meta`.
    pub(super) fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
        guarded(|| {
            let transaction = self.redb()?.begin_read()?;
            let meta = transaction.open_table(META)?;
            Ok(meta.get(name)?.map(|value| value.value().to_vec()))
        })
    }

    /// Stores a batch, durably, and that the database has all logs up to
    /// `applied_log`.
    pub(super) fn apply(&self, batch: &Batch, applied_log: u64) -> Result<(), DatabaseError> {
        self.change(|tables| {
            for key in &batch.damaged {
                tables.move_aside(key, batch.clock_ms)?;
            }
            for (key, record) in &batch.records {
                match record {
                    Some((row, record)) => tables.put(key, row, record)?,
                    None => tables.remove(key)?,
                }
            }
            for (name, tombstone) in &batch.tombstones {
                match tombstone {
                    Some(tombstone) => tables.put_tombstone(tombstone)?,
                    None => tables.remove_tombstone(*name)?,
                }
            }
            let clock_ms = number(&tables.meta, "clock_ms")?.unwrap_or(0);
            let clock_ms = clock_ms.max(batch.clock_ms);
            tables.set("clock_ms", &clock_ms.to_le_bytes())?;
            tables.set("applied_log", &applied_log.to_le_bytes())
        })
    }

    /// Keeps bytes that could not be read, durably, under a name that says
    /// where they were found.
    pub(super) fn keep_damaged(&self, place: &str, bytes: &[u8]) -> Result<(), DatabaseError> {
        self.change(|tables| tables.keep_damaged(place, bytes))
    }

    /// Makes a change to the tables, durably and as a whole. An error of
    /// `change` leaves everything as it was.
    pub(super) fn change<E: From<DatabaseError>>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut outcome = Ok(());
        let stored = guarded(|| {
            let transaction = self.redb()?.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            outcome = change(&mut tables);
            drop(tables);
            if outcome.is_ok() {
                commit(transaction)
            } else {
                Ok(transaction.abort()?)
            }
        });
        stored?;
        outcome
    }

    /// Copies everything as it is now into an empty database.
    pub(super) fn copy_to(&self, target: &Database) -> Result<(), DatabaseError> {
        guarded(|| {
            let source = self.redb()?.begin_read()?;
            let transaction = target.redb()?.begin_write()?;
            copy_table(&source, &transaction, META)?;
            copy_table(&source, &transaction, RECORDS)?;
            copy_table(&source, &transaction, INDEX)?;
            copy_table(&source, &transaction, TOMBSTONES)?;
            copy_table(&source, &transaction, DAMAGED)?;
            commit(transaction)
        })
    }
}

fn commit(mut transaction: redb::WriteTransaction) -> Result<(), DatabaseError> {
    transaction.set_quick_repair(true);
    Ok(transaction.commit()?)
}

fn copy_table<K: redb::Key + 'static>(
    source: &redb::ReadTransaction,
    target: &redb::WriteTransaction,
    table: TableDefinition<K, &'static [u8]>,
) -> Result<(), DatabaseError> {
    let mut copy = target.open_table(table)?;
    for entry in source.open_table(table)?.iter()? {
        let (key, value) = entry?;
        copy.insert(key.value(), value.value())?;
    }
    Ok(())
}
