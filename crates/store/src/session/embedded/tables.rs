//! The tables of the database, and the changes to their rows.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | `format` u32; `applied_log`, `clock_ms` u64; of the import of version 0.1, see there |
//! | `records` | owner, 0, id | the record |
//! | `index` | owner, 0, id | what is loaded at startup |
//! | `tombstones` | u64 of the name | reason u8, sequence u64 |
//! | `damaged` | where it was found | bytes that were moved aside |

use redb::{ReadableTable, TableDefinition};

use super::database::DatabaseError;
use super::rows::{encode_row, encode_tombstone};
use crate::session::index::IndexRow;
use crate::session::tombstones::{NameDigest, Tombstone};

pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
pub(super) const INDEX: TableDefinition<&[u8], &[u8]> = TableDefinition::new("index");
pub(super) const TOMBSTONES: TableDefinition<u64, &[u8]> = TableDefinition::new("tombstones");
pub(super) const DAMAGED: TableDefinition<&[u8], &[u8]> = TableDefinition::new("damaged");

/// The tables in a transaction.
pub(super) struct Tables<'a> {
    pub(super) meta: redb::Table<'a, &'static str, &'static [u8]>,
    records: redb::Table<'a, &'static [u8], &'static [u8]>,
    index: redb::Table<'a, &'static [u8], &'static [u8]>,
    tombstones: redb::Table<'a, u64, &'static [u8]>,
    damaged: redb::Table<'a, &'static [u8], &'static [u8]>,
}

impl<'a> Tables<'a> {
    /// Opens all tables for a change, and creates those that are missing.
    pub(super) fn open(transaction: &'a redb::WriteTransaction) -> Result<Self, DatabaseError> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            records: transaction.open_table(RECORDS)?,
            index: transaction.open_table(INDEX)?,
            tombstones: transaction.open_table(TOMBSTONES)?,
            damaged: transaction.open_table(DAMAGED)?,
        })
    }

    /// Stores a session.
    pub(super) fn put(
        &mut self,
        key: &[u8],
        row: &IndexRow,
        record: &[u8],
    ) -> Result<(), DatabaseError> {
        self.records.insert(key, record)?;
        self.index.insert(key, encode_row(key, row).as_slice())?;
        Ok(())
    }

    /// Removes a session.
    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), DatabaseError> {
        self.records.remove(key)?;
        self.index.remove(key)?;
        Ok(())
    }

    /// Moves the record of a session, or what there is instead, to the damaged
    /// ones.
    pub(super) fn move_aside(&mut self, key: &[u8], clock_ms: u64) -> Result<(), DatabaseError> {
        let place = aside_key(key, clock_ms);
        if let Some(record) = self.records.remove(key)? {
            self.damaged.insert(place.as_slice(), record.value())?;
        } else if let Some(row) = self.index.get(key)? {
            self.damaged.insert(place.as_slice(), row.value())?;
        }
        self.index.remove(key)?;
        Ok(())
    }

    /// Stores a tombstone.
    pub(super) fn put_tombstone(&mut self, tombstone: &Tombstone) -> Result<(), DatabaseError> {
        let value = encode_tombstone(tombstone);
        self.tombstones.insert(tombstone.name.0, value.as_slice())?;
        Ok(())
    }

    /// Removes a tombstone.
    pub(super) fn remove_tombstone(&mut self, name: NameDigest) -> Result<(), DatabaseError> {
        self.tombstones.remove(name.0)?;
        Ok(())
    }

    /// Keeps bytes that could not be read, with where they were found.
    pub(super) fn keep_damaged(&mut self, place: &str, bytes: &[u8]) -> Result<(), DatabaseError> {
        self.damaged.insert(place.as_bytes(), bytes)?;
        Ok(())
    }

    /// Sets an entry of `meta`.
    pub(super) fn set(&mut self, name: &str, value: &[u8]) -> Result<(), DatabaseError> {
        self.meta.insert(name, value)?;
        Ok(())
    }
}

fn aside_key(key: &[u8], clock_ms: u64) -> Vec<u8> {
    let mut place = key.to_vec();
    place.push(0);
    place.extend_from_slice(&clock_ms.to_be_bytes());
    place
}

/// Reads a number of up to eight bytes from `meta`.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<u64>, DatabaseError> {
    let Some(value) = meta.get(name)? else {
        return Ok(None);
    };
    let bytes = value.value();
    let mut number = [0; 8];
    let Some(part) = number.get_mut(..bytes.len()) else {
        return Err(DatabaseError::Damaged(format!("its {name} is too long")));
    };
    part.copy_from_slice(bytes);
    Ok(Some(u64::from_le_bytes(number)))
}
