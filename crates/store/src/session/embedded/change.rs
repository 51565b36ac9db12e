//! A change as the payload of a frame of the log. Numbers are little-endian.
//!
//! ```text
//! begin    kind u8 = 1, count u32, then (number u64, end u64) each:
//!          where the valid part of each earlier log ends
//! change   kind u8 = 2, clock u64,
//!          records     count u32, then mark u64, length u32, record each
//!          deletes     count u32, then owner and id as text each
//!          damaged     count u32, then owner and id as text each
//!          tombstones  count u32, then name u64, reason u8, sequence u64 each
//!          dropped     count u32, then name u64 each
//! ```

use bytes::Bytes;

use crate::session::encoding::{Reader, Writer};
use crate::session::error::{EvictionReason, RecordError};
use crate::session::index::{Change, IndexRow, stored_bytes};
use crate::session::name::SessionKey;
use crate::session::record::SessionRecord;
use crate::session::tombstones::{NameDigest, Tombstone};

/// A payload of the log.
#[derive(Debug)]
pub(super) enum Payload {
    /// The first frame of a log: where the valid parts of earlier logs end. A
    /// log whose sync failed may continue beyond.
    Begin(Vec<(u64, u64)>),
    /// A change, and the running time of the server when it was made.
    Change { clock_ms: u64, change: Change },
}

impl Payload {
    pub(super) fn encode_begin(ends: &[(u64, u64)]) -> Vec<u8> {
        let mut writer = Writer(Vec::new());
        writer.u8(1);
        writer.count(ends.len());
        for (number, end) in ends {
            writer.u64(*number);
            writer.u64(*end);
        }
        writer.0
    }

    pub(super) fn encode_change(change: &Change, clock_ms: u64) -> Vec<u8> {
        let records: usize = change.puts.iter().map(|put| put.2.len() + 16).sum();
        let mut writer = Writer(Vec::with_capacity(256 + records));
        writer.u8(2);
        writer.u64(clock_ms);
        writer.count(change.puts.len());
        for (_, row, record) in &change.puts {
            writer.u64(row.mark);
            writer.count(record.len());
            writer.bytes(record);
        }
        for keys in [&change.deletes, &change.damaged] {
            writer.count(keys.len());
            for key in keys {
                writer.text(key.owner.as_str());
                writer.text(key.id.as_str());
            }
        }
        writer.count(change.tombstones.len());
        for tombstone in &change.tombstones {
            writer.u64(tombstone.name.0);
            writer.u8(reason_code(tombstone.reason));
            writer.u64(tombstone.sequence);
        }
        writer.count(change.dropped_tombstones.len());
        for name in &change.dropped_tombstones {
            writer.u64(name.0);
        }
        writer.0
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let payload = match reader.u8()? {
            1 => {
                let count = reader.count()?;
                let ends = (0..count).map(|_| Ok((reader.u64()?, reader.u64()?)));
                Self::Begin(ends.collect::<Result<_, RecordError>>()?)
            }
            2 => Self::Change {
                clock_ms: reader.u64()?,
                change: change(&mut reader)?,
            },
            _ => return Err(RecordError::Content("a frame is of an unknown kind")),
        };
        reader.finish()?;
        Ok(payload)
    }
}

fn change(reader: &mut Reader<'_>) -> Result<Change, RecordError> {
    let mut change = Change::default();
    for _ in 0..reader.count()? {
        let mark = reader.u64()?;
        let length = reader.count()?;
        let encoded = reader.slice(length)?;
        let record = SessionRecord::decode(&encoded)?;
        let row = row_of(&record, mark, &encoded);
        change.puts.push((record.key, row, encoded));
    }
    for keys in [&mut change.deletes, &mut change.damaged] {
        for _ in 0..reader.count()? {
            keys.push(SessionKey::new(reader.owner()?, reader.id()?));
        }
    }
    for _ in 0..reader.count()? {
        change.tombstones.push(Tombstone {
            name: NameDigest(reader.u64()?),
            reason: reason_of(reader.u8()?)?,
            sequence: reader.u64()?,
        });
    }
    for _ in 0..reader.count()? {
        change.dropped_tombstones.push(NameDigest(reader.u64()?));
    }
    Ok(change)
}

/// The row of the index for a record.
pub(super) fn row_of(record: &SessionRecord, mark: u64, encoded: &Bytes) -> IndexRow {
    IndexRow {
        identity: record.identity.clone(),
        mark,
        last_used_ms: record.last_used_ms,
        created_unix_ms: record.created_unix_ms,
        position: record.end.position,
        last_call_position: record.begin.position,
        bytes: stored_bytes(encoded.len()),
    }
}

pub(super) fn reason_code(reason: EvictionReason) -> u8 {
    match reason {
        EvictionReason::Idle => 1,
        EvictionReason::Capacity => 2,
        EvictionReason::Restart => 3,
        EvictionReason::ModelGone => 4,
        EvictionReason::Damaged => 5,
    }
}

pub(super) fn reason_of(code: u8) -> Result<EvictionReason, RecordError> {
    Ok(match code {
        1 => EvictionReason::Idle,
        2 => EvictionReason::Capacity,
        3 => EvictionReason::Restart,
        4 => EvictionReason::ModelGone,
        5 => EvictionReason::Damaged,
        _ => return Err(RecordError::Content("the reason of an eviction is unknown")),
    })
}
