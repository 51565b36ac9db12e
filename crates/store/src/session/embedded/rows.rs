//! The keys and values of the database's tables.

use std::collections::HashSet;

use bytes::Bytes;

use super::change::{reason_code, reason_of};
use crate::session::encoding::{Reader, Writer};
use crate::session::error::RecordError;
use crate::session::identity::SessionIdentity;
use crate::session::index::IndexRow;
use crate::session::name::{Owner, SessionId, SessionKey};
use crate::session::tombstones::{NameDigest, Tombstone};

/// The key of a session in the tables: names contain no zero byte.
pub(super) fn database_key(key: &SessionKey) -> Vec<u8> {
    let (owner, id) = (key.owner.as_str(), key.id.as_str());
    let mut bytes = Vec::with_capacity(owner.len() + 1 + id.len());
    bytes.extend_from_slice(owner.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(id.as_bytes());
    bytes
}

/// The session of a key.
pub(super) fn session_key(bytes: &[u8]) -> Option<SessionKey> {
    let (owner, id) = std::str::from_utf8(bytes).ok()?.split_once('\0')?;
    Some(SessionKey::new(
        Owner::new(owner).ok()?,
        SessionId::new(id).ok()?,
    ))
}

/// Encodes a row. Its checksum covers the key as well.
pub(super) fn encode_row(key: &[u8], row: &IndexRow) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(160));
    writer.u64(row.mark);
    writer.u64(row.last_used_ms);
    writer.u64(row.created_unix_ms);
    writer.u64(row.position);
    writer.u64(row.last_call_position);
    writer.bytes(&row.bytes.to_le_bytes());
    writer.precision(row.identity.precision);
    writer.u16(row.identity.revision);
    writer.text(&row.identity.model.name);
    writer.u64(row.identity.model.version);
    writer.bytes(&row.identity.digest);
    let checksum = row_checksum(key, &writer.0);
    writer.bytes(&checksum.to_le_bytes());
    writer.0
}

fn row_checksum(key: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), content)
}

pub(super) fn decode_row(
    key: &[u8],
    bytes: &[u8],
    identities: &mut HashSet<SessionIdentity>,
) -> Result<IndexRow, RecordError> {
    let (content, checksum) = bytes.split_last_chunk::<4>().ok_or(RecordError::Checksum)?;
    if row_checksum(key, content).to_le_bytes() != *checksum {
        return Err(RecordError::Checksum);
    }
    let content = Bytes::copy_from_slice(content);
    let mut reader = Reader::new(&content);
    let mut row = IndexRow {
        mark: reader.u64()?,
        last_used_ms: reader.u64()?,
        created_unix_ms: reader.u64()?,
        position: reader.u64()?,
        last_call_position: reader.u64()?,
        bytes: u32::from_le_bytes(reader.array()?),
        identity: {
            let precision = reader.precision()?;
            let revision = reader.u16()?;
            let (model, digest) = reader.model()?;
            SessionIdentity {
                model,
                digest,
                precision,
                revision,
            }
        },
    };
    reader.finish()?;
    match identities.get(&row.identity) {
        Some(shared) => row.identity = shared.clone(),
        None => {
            identities.insert(row.identity.clone());
        }
    }
    Ok(row)
}

pub(super) fn encode_tombstone(tombstone: &Tombstone) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = reason_code(tombstone.reason);
    bytes[1..].copy_from_slice(&tombstone.sequence.to_le_bytes());
    bytes
}

pub(super) fn decode_tombstone(name: u64, bytes: &[u8]) -> Result<Tombstone, RecordError> {
    let short = RecordError::Content("a tombstone is too short");
    let (&reason, sequence) = bytes.split_first().ok_or(short.clone())?;
    Ok(Tombstone {
        name: NameDigest(name),
        reason: reason_of(reason)?,
        sequence: u64::from_le_bytes(*sequence.first_chunk().ok_or(short)?),
    })
}
