//! The write-ahead log: changes in the order in which they were made, each
//! durable once the log is synced. Numbers are little-endian.
//!
//! ```text
//! file     header, frames
//! header   "CHSLOG\0\0", format u16 (now 1), 6 zero bytes, number u64,
//!          CRC-32C u32 of the above, 4 zero bytes               32 bytes
//! frame    magic u32, length u32 of the payload, number u64 of the log,
//!          offset u64 of the frame, synced u64, CRC-32C u32 of the payload,
//!          CRC-32C u32 of the above                             40 bytes
//!          payload, zeros up to a multiple of 8 bytes
//! ```
//!
//! `synced` is how far the log was durable when the frame was written. It
//! tells the two reasons apart for which a frame can be invalid: after the
//! last sync, a power cut may leave any part of what was written, and nobody
//! got an answer that relies on it; before it, the disk has damaged the frame.
//! Everything else is found by its number and offset, so a file can be used
//! again for a later log without being cleared.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use super::disk::{Disk, DiskFile};

const MAGIC: &[u8; 8] = b"CHSLOG\0\0";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 32;
const FRAME_MAGIC: u32 = 0x4d52_4643;
const FRAME_HEADER_BYTES: usize = 40;
/// Frames begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Longest payload. A change has one record of some megabytes at most, and
/// some hundred names.
const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// Bytes that are filled at once: a few milliseconds, for which another sync may
/// have to wait.
const FILL_BYTES: u64 = 1 << 20;

/// Name of the log file of a number. Fixed width, so that names sort.
pub(super) fn name(number: u64) -> String {
    format!("sessions-{number:016}.log")
}

/// The number in the name of a log file.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("sessions-")?.strip_suffix(".log")?;
    let is_number = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// A log that is being written.
#[derive(Debug)]
pub(super) struct LogWriter {
    file: Arc<dyn DiskFile>,
    pub(super) number: u64,
    /// Where the next frame goes.
    end: u64,
    /// How far the file is durable.
    synced: u64,
    /// How far the disk has space for the file.
    allocated: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Creates an empty log with space for `allocate` bytes, under its name
    /// and durably. `spare` is the file of an old log to use again.
    pub(super) fn create(
        disk: &dyn Disk,
        number: u64,
        allocate: u64,
        spare: Option<&str>,
    ) -> io::Result<Self> {
        let new = format!("{}.new", name(number));
        let file = match spare {
            Some(spare) => {
                let file = disk.open(spare)?;
                disk.rename(spare, &new)?;
                file
            }
            None => {
                super::disk::remove_if_there(disk, &new)?;
                disk.create(&new)?
            }
        };
        let created = Self::begin(Arc::clone(&file), number, allocate).and_then(|log| {
            disk.rename(&new, &name(number))?;
            disk.sync_folder()?;
            Ok(log)
        });
        if created.is_err() {
            // What is left of it would only take space that is short.
            let _ = disk.remove(&new);
        }
        created
    }

    fn begin(file: Arc<dyn DiskFile>, number: u64, allocate: u64) -> io::Result<Self> {
        file.allocate(allocate)?;
        file.write_at(0, &header(number))?;
        file.sync()?;
        let allocated = file.len()?;
        Ok(Self {
            file,
            number,
            end: HEADER_BYTES as u64,
            synced: HEADER_BYTES as u64,
            allocated,
            buffer: Vec::new(),
        })
    }

    /// Adds a frame to what the next `write` writes.
    pub(super) fn push(&mut self, payload: &[u8]) {
        let offset = self.end + self.buffer.len() as u64;
        push_frame(&mut self.buffer, self.number, offset, self.synced, payload);
    }

    /// Writes the frames that were pushed. After an error, the log must not
    /// be used any more.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.file.write_at(self.end, &self.buffer)?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes all that was written durable. After an error, the log must not be
    /// used any more: a second sync that succeeds would prove nothing.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.synced = self.end;
        Ok(())
    }

    /// True if nothing was written to it.
    pub(super) fn is_new(&self) -> bool {
        self.end == HEADER_BYTES as u64 && self.buffer.is_empty()
    }

    /// Space that is left for frames, in bytes.
    pub(super) fn space(&self) -> u64 {
        self.allocated.saturating_sub(self.end)
    }

    /// Bytes of frames.
    pub(super) fn bytes(&self) -> u64 {
        self.end - HEADER_BYTES as u64
    }

    /// How far the log is durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced
    }

    /// Asks the disk for more space.
    pub(super) fn extend(&mut self, bytes: u64) -> io::Result<()> {
        self.file.allocate(self.allocated + bytes)?;
        self.allocated += bytes;
        Ok(())
    }

    /// Prepares the space so that syncs of frames in it are quick; see
    /// [`DiskFile::fill_unwritten`]. Blocks for some hundred milliseconds.
    pub(super) fn fill(&self) -> io::Result<()> {
        while self.file.fill_unwritten(FILL_BYTES)? {}
        Ok(())
    }

    /// Forgets what was written after the header, for another attempt.
    pub(super) fn restart(&mut self) {
        self.end = HEADER_BYTES as u64;
        self.synced = self.end;
        self.buffer.clear();
    }
}

fn header(number: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..24]);
    header[24..28].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn push_frame(buffer: &mut Vec<u8>, number: u64, offset: u64, synced: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("payloads are limited to some megabytes");
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&number.to_le_bytes());
    header[16..24].copy_from_slice(&offset.to_le_bytes());
    header[24..32].copy_from_slice(&synced.to_le_bytes());
    header[32..36].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let checksum = crc32c::crc32c(&header[..36]);
    header[36..].copy_from_slice(&checksum.to_le_bytes());
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(payload);
    buffer.resize(buffer.len().next_multiple_of(ALIGNMENT), 0);
}

/// A log that cannot be read.
#[derive(Debug, Error)]
pub(super) enum LogError {
    /// The disk reports an error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is of another format.
    #[error("log format {0} is not supported; this version reads format {FORMAT}")]
    Format(u16),
    /// It neither begins as a log does nor contains anything of one.
    #[error("it is not a log, or it is damaged from the first byte on")]
    NotALog,
}

/// What was found in a log.
#[derive(Debug)]
pub(super) struct LogContent {
    /// Valid frames in order, with the offset at which each ends.
    pub(super) frames: Vec<(u64, Bytes)>,
    /// Parts of the file that were durable and are damaged: offset and bytes.
    pub(super) damaged: Vec<(u64, Bytes)>,
    /// What follows the first part that is invalid and not known to have been
    /// durable.
    doubtful: Vec<Part>,
    bytes: Bytes,
}

impl LogContent {
    /// Where the valid frames end.
    pub(super) fn end(&self) -> u64 {
        let last = self.frames.last();
        last.map_or(HEADER_BYTES as u64, |(end, _)| *end)
    }

    /// Reads a log.
    pub(super) fn read(file: &dyn DiskFile, number: u64) -> Result<Self, LogError> {
        let length = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        file.read_at(0, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        let is_header_valid = check_header(&bytes, number)?;
        let content = Self::parse(&bytes, number);
        if !is_header_valid && content.frames.is_empty() {
            return Err(LogError::NotALog);
        }
        Ok(content)
    }

    fn parse(bytes: &Bytes, number: u64) -> Self {
        let mut content = Self {
            frames: Vec::new(),
            damaged: Vec::new(),
            doubtful: Vec::new(),
            bytes: bytes.clone(),
        };
        let mut at = HEADER_BYTES;
        while let Some(header) = bytes.get(at..at + FRAME_HEADER_BYTES) {
            let Some(frame) = FrameHeader::parse(header, number, at) else {
                match content.doubtful.last_mut() {
                    Some(Part::Invalid { to, .. }) if *to == at => *to += ALIGNMENT,
                    _ => content.doubtful.push(Part::Invalid {
                        from: at,
                        to: at + ALIGNMENT,
                    }),
                }
                at += ALIGNMENT;
                continue;
            };
            let begin = at + FRAME_HEADER_BYTES;
            let end = (begin + frame.length).next_multiple_of(ALIGNMENT);
            let payload = bytes.get(begin..begin + frame.length);
            if payload.is_none_or(|payload| crc32c::crc32c(payload) != frame.checksum) {
                content.doubtful.push(Part::Invalid { from: at, to: end });
                at = end;
                continue;
            }
            content.confirm(frame.synced);
            let part = Part::Frame {
                from: at,
                end: end as u64,
                payload: bytes.slice(begin..begin + frame.length),
            };
            if content.doubtful.is_empty() {
                content.keep(part);
            } else {
                content.doubtful.push(part);
            }
            at = end;
        }
        content
    }

    /// Takes note that the log was durable up to an offset: what is invalid
    /// before it was damaged later.
    pub(super) fn confirm(&mut self, synced: u64) {
        let synced = usize::try_from(synced).unwrap_or(usize::MAX);
        let known = self.doubtful.partition_point(|part| part.from() < synced);
        let known: Vec<_> = self.doubtful.drain(..known).collect();
        for part in known {
            self.keep(part);
        }
    }

    fn keep(&mut self, part: Part) {
        match part {
            Part::Invalid { from, to } => {
                let to = to.min(self.bytes.len());
                let invalid = self.bytes.slice(from..to);
                self.damaged.push((from as u64, invalid));
            }
            Part::Frame { end, payload, .. } => self.frames.push((end, payload)),
        }
    }
}

/// A part of a log file.
#[derive(Debug)]
enum Part {
    Invalid {
        from: usize,
        to: usize,
    },
    Frame {
        from: usize,
        end: u64,
        payload: Bytes,
    },
}

impl Part {
    fn from(&self) -> usize {
        match self {
            Self::Invalid { from, .. } | Self::Frame { from, .. } => *from,
        }
    }
}

/// Whether the header is valid.
fn check_header(bytes: &[u8], number: u64) -> Result<bool, LogError> {
    let Some(found) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(false);
    };
    if *found == header(number) {
        return Ok(true);
    }
    let (content, checksum) = (&found[..24], &found[24..28]);
    let format = u16::from_le_bytes([found[8], found[9]]);
    let is_whole = crc32c::crc32c(content).to_le_bytes() == checksum;
    if is_whole && content.starts_with(MAGIC) && format != FORMAT {
        return Err(LogError::Format(format));
    }
    Ok(false)
}

struct FrameHeader {
    length: usize,
    synced: u64,
    checksum: u32,
}

impl FrameHeader {
    fn parse(header: &[u8], number: u64, offset: usize) -> Option<Self> {
        let u32_at = |at: usize| {
            let bytes = header.get(at..)?.first_chunk::<4>()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let u64_at = |at: usize| {
            let bytes = header.get(at..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*bytes))
        };
        let is_valid = u32_at(0)? == FRAME_MAGIC
            && u64_at(8)? == number
            && u64_at(16)? == offset as u64
            && u32_at(36)? == crc32c::crc32c(header.get(..36)?);
        let length = u32_at(4)? as usize;
        (is_valid && length <= MAX_PAYLOAD_BYTES).then_some(Self {
            length,
            synced: u64_at(24)?,
            checksum: u32_at(32)?,
        })
    }
}
