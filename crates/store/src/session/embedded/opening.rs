//! Reads a folder of sessions at startup: opens the database, reads the logs that
//! it does not have, fills the index, and repairs what is damaged.

use std::fmt;
use std::io;
use std::path::Path;

use super::change::{self, Payload};
use super::checkpoint_thread::open_database;
use super::database::{Database, DatabaseError};
use super::disk::{Disk, remove_if_there};
use super::log::{self, LogContent, LogError};
use super::open_error::OpenError;
use super::rows::session_key;
use super::{DATABASE, ImportedLegacy, legacy};
use crate::session::index::{Change, Index};
use crate::session::name::SessionKey;
use crate::session::record::SessionRecord;

/// Reads a folder at startup.
pub(super) struct Opening<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) folder: &'a Path,
    pub(super) cache_bytes: usize,
}

/// What the logs contain that the database does not have.
#[derive(Default)]
pub(super) struct Logs {
    pub(super) changes: Vec<Change>,
    pub(super) clock_ms: u64,
    /// Number of the last log that the database has.
    pub(super) applied: u64,
    /// Number of the last log.
    pub(super) last: u64,
    /// Where the valid part of each log ends.
    pub(super) ends: Vec<(u64, u64)>,
}

impl Opening<'_> {
    pub(super) fn io(&self, source: io::Error) -> OpenError {
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
    pub(super) fn read<T>(&self, result: Result<T, DatabaseError>) -> Result<T, OpenError> {
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
    pub(super) fn database(&self) -> Result<(Database, Option<DatabaseError>), OpenError> {
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
    pub(super) fn logs(&self, database: &Database) -> Result<Logs, OpenError> {
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
    pub(super) fn load(
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
            let Some(key) = session_key(&key) else {
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
    pub(super) fn import_legacy(
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
