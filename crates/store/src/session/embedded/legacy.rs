//! Sessions of version 0.1: two files that its server wrote when it stopped.
//! Numbers are little-endian.
//!
//! ```text
//! sessions.bin   "CHLF" version u16 = 1
//!                records     length u32 (not 0), record each
//!                end         length u32 = 0
//!                tombstones  count u64, then name u64 and reason u8 each
//! sessions.ids   a line for each session, "!" before one that was deleted:
//!                those that are not in sessions.bin were lost
//!
//! record         "CHLS" version u16 = 1
//!                id text, model text, version u64, digest [u8; 32]
//!                begin state, end state
//!                call u8 (0, 1), tokens if 1
//!                SHA-256 of all of the above
//! text           length u16, UTF-8
//! tokens         count u32, u32 each
//! state          position u64, seed u64, draws u64, unfed tokens,
//!                network u8: 0 none, 1 own (count u32, f32 each),
//!                2 that of `begin`
//! ```
//!
//! The import is one transaction with the entry `import` of `meta`: 1 while
//! the files still have their names, 2 once they are renamed. A crash in
//! between repeats what is missing. Files that appear later, because version
//! 0.1 ran again, are not merged.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::ImportedLegacy;
use super::change::{reason_of, row_of};
use super::database::{Database, DatabaseError};
use super::disk::{Disk, DiskFile};
use super::rows::database_key;
use super::tables::Tables;
use crate::atomic_file::Digesting;
use crate::session::encoding::Reader;
use crate::session::error::{EvictionReason, RecordError};
use crate::session::identity::{Precision, SessionIdentity};
use crate::session::name::{MAX_NAME_CHARS, Owner, SessionId, SessionKey};
use crate::session::record::{
    LastCall, MAX_REPLAY_CHARS, RandomState, SessionRecord, SessionState,
};
use crate::session::token_ids::TokenIds;
use crate::session::tombstones::{NameDigest, Tombstone};
use crate::unix_time::now_ms;

const SESSIONS: &str = "sessions.bin";
const NAMES: &str = "sessions.ids";

const FILE_MAGIC: &[u8; 6] = b"CHLF\x01\x00";
const RECORD_MAGIC: &[u8; 4] = b"CHLS";
const RECORD_FORMAT: u16 = 1;
const DIGEST_BYTES: usize = 32;

/// Longest record that version 0.1 wrote.
const MAX_RECORD_BYTES: u32 = 256 << 20;

/// Most tombstones that version 0.1 kept.
const MAX_TOMBSTONES: u64 = 200_000;

/// The entry of `meta`.
const IMPORT: &str = "import";
const STORED: &[u8] = &[1];
const RENAMED: &[u8] = &[2];

/// Files of version 0.1 that cannot be imported.
#[derive(Debug, Error)]
pub(super) enum ImportError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The sessions had been imported before.
    #[error("{0} appeared after the import")]
    Appeared(&'static str),
    /// The file is something else.
    #[error("{0}: {1}")]
    NotSessions(&'static str, &'static str),
}

/// The import into a database.
pub(super) struct Import<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) database: &'a Database,
    /// What is written to the database does not reach the disk.
    pub(super) is_only_read: bool,
}

impl Import<'_> {
    /// Imports the files, unless that was done before.
    pub(super) fn run(&self) -> Result<ImportedLegacy, ImportError> {
        let names = self.disk.names()?;
        let there: Vec<_> = [SESSIONS, NAMES]
            .into_iter()
            .filter(|name| names.iter().any(|other| other == name))
            .collect();
        let state = self.database.meta(IMPORT)?;
        if state.as_deref() == Some(RENAMED) {
            return match there.first() {
                Some(name) => Err(ImportError::Appeared(name)),
                None => Ok(ImportedLegacy::default()),
            };
        }
        if self.is_only_read {
            let full = io::Error::other("the database must be written, and cannot be");
            return Err(full.into());
        }
        let mut imported = ImportedLegacy::default();
        if state.is_none() {
            self.database
                .change(|tables| self.import(tables, &there, &mut imported))?;
        }
        for name in there {
            let expected = self.database.meta(&digest_entry(name))?;
            if state.is_some() && expected != Some(self.digest(name)?.to_vec()) {
                return Err(ImportError::Appeared(name));
            }
            self.disk.rename(name, &format!("{name}.imported"))?;
        }
        self.disk.sync_folder()?;
        self.database.change(|tables| tables.set(IMPORT, RENAMED))?;
        Ok(imported)
    }

    fn digest(&self, name: &str) -> io::Result<[u8; DIGEST_BYTES]> {
        let mut reader = Digesting::new(self.reader(name)?);
        io::copy(&mut reader, &mut io::sink())?;
        Ok(reader.finish().1)
    }

    fn reader(&self, name: &str) -> io::Result<BufReader<FileReader>> {
        let file = self.disk.open(name)?;
        let reader = FileReader {
            end: file.len()?,
            file,
            at: 0,
        };
        Ok(BufReader::with_capacity(1 << 20, reader))
    }

    fn import(
        &self,
        tables: &mut Tables<'_>,
        there: &[&'static str],
        imported: &mut ImportedLegacy,
    ) -> Result<(), ImportError> {
        let mut sessions = Sessions {
            tables,
            names: std::collections::HashSet::new(),
            buried: std::collections::HashSet::new(),
            sequence: 0,
            now_unix_ms: now_ms(),
            imported,
        };
        if there.contains(&SESSIONS) {
            let mut file = Digesting::new(self.reader(SESSIONS)?);
            sessions.read(&mut file)?;
            // What follows is part of the digest as well.
            io::copy(&mut file, &mut io::sink())?;
            let digest = file.finish().1;
            sessions.tables.set(&digest_entry(SESSIONS), &digest)?;
        }
        if there.contains(&NAMES) {
            let mut file = Digesting::new(self.reader(NAMES)?);
            sessions.read_names(&mut BufReader::new(&mut file))?;
            let digest = file.finish().1;
            sessions.tables.set(&digest_entry(NAMES), &digest)?;
        }
        Ok(sessions.tables.set(IMPORT, STORED)?)
    }
}

fn digest_entry(name: &str) -> String {
    format!("import/{name}")
}

/// Stores what is read.
struct Sessions<'a, 'b> {
    tables: &'a mut Tables<'b>,
    /// Sessions that are stored.
    names: std::collections::HashSet<NameDigest>,
    buried: std::collections::HashSet<NameDigest>,
    /// Mark or place of the last session or tombstone.
    sequence: u64,
    now_unix_ms: u64,
    imported: &'a mut ImportedLegacy,
}

impl Sessions<'_, '_> {
    /// Reads `sessions.bin`. Whatever is damaged is kept aside.
    fn read(&mut self, file: &mut impl Read) -> Result<(), ImportError> {
        let mut magic = [0; FILE_MAGIC.len()];
        let is_long_enough = fill(file, &mut magic)? == magic.len();
        if !is_long_enough || magic != *FILE_MAGIC {
            let detail = "it is not a file of sessions of version 0.1";
            return Err(ImportError::NotSessions(SESSIONS, detail));
        }
        let mut offset = magic.len() as u64;
        loop {
            let mut length = [0; 4];
            if fill(file, &mut length)? < length.len() {
                return self.cut_off(offset, &[]);
            }
            let length = u32::from_le_bytes(length);
            if length == 0 {
                break;
            }
            if length > MAX_RECORD_BYTES {
                return self.cut_off(offset, &[]);
            }
            let mut bytes = Vec::new();
            file.by_ref().take(length.into()).read_to_end(&mut bytes)?;
            if bytes.len() < length as usize {
                return self.cut_off(offset, &bytes);
            }
            offset += 4 + u64::from(length);
            match parse(&bytes.into()) {
                Ok(record) => self.store(record)?,
                Err((error, bytes)) => self.keep_aside(offset, &bytes, &error)?,
            }
        }
        let mut count = [0; 8];
        if fill(file, &mut count)? < count.len() {
            return self.cut_off(offset, &[]);
        }
        for _ in 0..u64::from_le_bytes(count).min(MAX_TOMBSTONES) {
            let mut entry = [0; 9];
            if fill(file, &mut entry)? < entry.len() {
                return self.cut_off(offset, &[]);
            }
            let (name, reason) = entry.split_at(8);
            let name = name
                .iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | u64::from(byte));
            // Version 0.1 took reasons that it did not know as this one.
            let reason = match reason_of(reason[0]) {
                Ok(reason @ (EvictionReason::Idle | EvictionReason::Capacity)) => reason,
                _ => EvictionReason::Restart,
            };
            self.put_tombstone(NameDigest(name), reason)?;
        }
        Ok(())
    }

    fn store(&mut self, mut record: SessionRecord) -> Result<(), ImportError> {
        record.created_unix_ms = self.now_unix_ms;
        self.sequence += 1;
        match record.encode() {
            Ok(encoded) => {
                let row = row_of(&record, self.sequence, &encoded);
                self.tables
                    .put(&database_key(&record.key), &row, &encoded)?;
                self.names.insert(NameDigest::of(&record.key));
                self.imported.sessions += 1;
                Ok(())
            }
            // Its content makes no sense, though its checksum is right.
            Err(error) => self.keep_aside(self.sequence, &[], &error),
        }
    }

    fn keep_aside(
        &mut self,
        offset: u64,
        bytes: &[u8],
        error: &RecordError,
    ) -> Result<(), ImportError> {
        tracing::error!(offset, %error, "a session in {SESSIONS} is damaged and was moved aside");
        self.imported.damaged += 1;
        let place = format!("{SESSIONS}/{offset}");
        Ok(self.tables.keep_damaged(&place, bytes)?)
    }

    fn cut_off(&mut self, offset: u64, rest: &[u8]) -> Result<(), ImportError> {
        self.keep_aside(offset, rest, &RecordError::Content("it ends too early"))
    }

    fn put_tombstone(
        &mut self,
        name: NameDigest,
        reason: EvictionReason,
    ) -> Result<(), ImportError> {
        self.sequence += 1;
        self.buried.insert(name);
        Ok(self.tables.put_tombstone(&Tombstone {
            name,
            reason,
            sequence: self.sequence,
        })?)
    }

    /// Reads `sessions.ids`.
    fn read_names(&mut self, lines: &mut impl BufRead) -> Result<(), ImportError> {
        // Whether each name that is not stored was lost, by its last line.
        let mut lost = std::collections::HashMap::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line without end, after a crash, must not fill the memory.
            let most = MAX_NAME_CHARS as u64 + 2;
            if lines.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let name = std::str::from_utf8(&line).unwrap_or_default().trim_end();
            let (is_lost, name) = match name.strip_prefix('!') {
                Some(name) => (false, name),
                None => (true, name),
            };
            if let Ok(id) = SessionId::new(name) {
                let name = NameDigest::of(&SessionKey::new(Owner::admin(), id));
                lost.insert(name, is_lost);
            }
        }
        for (name, is_lost) in lost {
            if is_lost && !self.names.contains(&name) && !self.buried.contains(&name) {
                self.put_tombstone(name, EvictionReason::Restart)?;
                self.imported.lost += 1;
            }
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends. Returns the bytes read.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            count => read += count,
        }
    }
    Ok(read)
}

/// Reads a record of version 0.1, as it is in `sessions.bin` and as
/// `sessions export` of version 0.1 wrote it.
///
/// # Errors
/// Why the bytes are not such a record.
pub(crate) fn parse_export(bytes: &Bytes) -> Result<SessionRecord, RecordError> {
    let mut reader = Reader::new(bytes);
    if reader.take(RECORD_MAGIC.len()) != Ok(RECORD_MAGIC) {
        return Err(RecordError::Magic);
    }
    let format = reader.u16().map_err(|_| RecordError::Magic)?;
    if format != RECORD_FORMAT {
        return Err(RecordError::Format(format));
    }
    let end = bytes.len().checked_sub(DIGEST_BYTES);
    let (content, digest) = end
        .and_then(|end| bytes.split_at_checked(end))
        .ok_or(RecordError::Checksum)?;
    if Sha256::digest(content).as_slice() != digest {
        return Err(RecordError::Checksum);
    }
    reader.end_at(content.len());
    let id = reader.id()?;
    let (model, digest) = reader.model()?;
    let begin = state(&mut reader, None)?;
    let end = state(&mut reader, Some(&begin))?;
    let tokens = match reader.u8()? {
        0 => None,
        1 => Some(tokens(&mut reader)?),
        _ => return Err(RecordError::Content("its last call is of an unknown kind")),
    };
    reader.finish()?;
    // Longer calls are not repeated.
    let tokens = tokens.filter(|tokens| tokens.len() <= MAX_REPLAY_CHARS);
    let record = SessionRecord {
        key: SessionKey::new(Owner::admin(), id),
        identity: SessionIdentity {
            model,
            digest,
            // What version 0.1 computed with.
            precision: Precision::Float32,
            revision: 1,
        },
        begin,
        end,
        last_call: LastCall {
            tokens,
            parameters: None,
        },
        created_unix_ms: 0,
        last_used_ms: 0,
    };
    record.check()?;
    Ok(record)
}

fn parse(bytes: &Bytes) -> Result<SessionRecord, (RecordError, Bytes)> {
    parse_export(bytes).map_err(|error| (error, bytes.clone()))
}

fn tokens(reader: &mut Reader<'_>) -> Result<TokenIds, RecordError> {
    Ok(words(reader)?
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

/// A count, and four bytes for each.
fn words(reader: &mut Reader<'_>) -> Result<Bytes, RecordError> {
    let bytes = reader
        .count()?
        .checked_mul(4)
        .ok_or(RecordError::Content("a count is too large"))?;
    reader.slice(bytes)
}

fn state(
    reader: &mut Reader<'_>,
    begin: Option<&SessionState>,
) -> Result<SessionState, RecordError> {
    let position = reader.u64()?;
    let random = RandomState {
        seed: reader.u64()?,
        draws: reader.u64()?,
    };
    let unfed = tokens(reader)?;
    let network = match (reader.u8()?, begin) {
        (0, _) => None,
        (1, _) => Some(words(reader)?),
        (2, Some(begin)) => begin.network.clone(),
        _ => return Err(RecordError::Content("a state is of an unknown kind")),
    };
    Ok(SessionState {
        network,
        unfed,
        random,
        position,
    })
}

/// Reads a file from its beginning.
struct FileReader {
    file: Arc<dyn DiskFile>,
    at: u64,
    end: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        self.file.read_at(self.at, &mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}
