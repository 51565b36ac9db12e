//! The file of one checkpoint.
//!
//! It consists of eight bytes of magic, which include the version of the format;
//! the length of a JSON header as a little-endian u32; the header; the values as
//! little-endian f32; and the SHA-256 of all that.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use charlstm_model::learner::LearnerState;
use charlstm_store::atomic_file::Digesting;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Checkpoint, Position, Verified};

const MAGIC: &[u8; 8] = b"CLSTMCP\x01";

const DIGEST_BYTES: u64 = 32;

/// Maximum length of the header, which has a dozen numbers.
const MAX_HEADER_BYTES: u64 = 64 * 1024;

/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 1 << 20;

const CUT_SHORT: &str = "it is cut short";

#[derive(Serialize, Deserialize)]
struct Header {
    training_id: String,
    step: u64,
    epoch_loss_sum: f64,
    position: Position,
    /// Lengths of the parameters, the two moments, the hidden state, the best
    /// parameters and, if there is one, the moving average of the parameters.
    lengths: Vec<usize>,
}

#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Damaged(&'static str),
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged(CUT_SHORT),
            _ => Self::Io(error),
        }
    }
}

/// Writes a checkpoint of the training with that id; returns the file, which is
/// not durable yet.
pub(super) fn write(file: File, training_id: &str, checkpoint: &Checkpoint) -> io::Result<File> {
    let learner = &checkpoint.learner;
    let best = checkpoint.best_parameters.as_deref();
    let mut parts: Vec<&[f32]> = vec![
        &learner.parameters,
        &learner.first_moments,
        &learner.second_moments,
        &learner.hidden,
        best.map_or(&[], Vec::as_slice),
    ];
    if !learner.average.is_empty() {
        parts.push(&learner.average);
    }
    let header = serde_json::to_vec(&Header {
        training_id: training_id.to_owned(),
        step: learner.step,
        epoch_loss_sum: learner.epoch_loss_sum,
        position: checkpoint.position.clone(),
        lengths: parts.iter().map(|part| part.len()).collect(),
    })?;
    let mut out = Digesting::new(BufWriter::with_capacity(BUFFER_BYTES, file));
    out.write_all(MAGIC)?;
    let length = u32::try_from(header.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::with_capacity(1 << 16);
    for chunk in parts.iter().flat_map(|part| part.chunks(1 << 14)) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    let (mut file, digest) = out.finish();
    file.write_all(&digest)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

/// Reads a checkpoint of the training with that id.
pub(super) fn read(path: &Path, training_id: &str) -> Result<Checkpoint, ReadError> {
    let mut reader = CheckpointReader::open(path)?;
    let header = reader.header(training_id)?;
    let mut lengths = header.lengths.into_iter();
    let mut next = || reader.values(lengths.next().unwrap_or(0));
    let mut learner = LearnerState {
        step: header.step,
        epoch_loss_sum: header.epoch_loss_sum,
        parameters: next()?,
        first_moments: next()?,
        second_moments: next()?,
        hidden: next()?,
        average: Vec::new(),
    };
    let best = next()?;
    learner.average = next()?;
    let checkpoint = Checkpoint {
        learner,
        best_parameters: (!best.is_empty()).then(|| Arc::new(best)),
        position: header.position,
    };
    reader.finish()?;
    Ok(checkpoint)
}

/// Checks a checkpoint of the training with that id, as [`read`], but holds no
/// weights in memory.
pub(super) fn verify(path: &Path, training_id: &str) -> Result<Verified, ReadError> {
    let mut reader = CheckpointReader::open(path)?;
    let header = reader.header(training_id)?;
    for length in header.lengths {
        reader.skip(length)?;
    }
    reader.finish()?;
    Ok(Verified {
        step: header.step,
        instructions: header.position.instructions,
    })
}

/// Reads the parts of a checkpoint file in order.
struct CheckpointReader {
    reader: Digesting<BufReader<File>>,
    /// Bytes between what was read and the digest at the end.
    rest: u64,
}

impl CheckpointReader {
    fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Io(error),
        })?;
        let bytes = file.metadata().map_err(ReadError::Io)?.len();
        Ok(Self {
            rest: bytes
                .checked_sub(DIGEST_BYTES)
                .ok_or(ReadError::Damaged(CUT_SHORT))?,
            reader: Digesting::new(BufReader::with_capacity(BUFFER_BYTES, file)),
        })
    }

    fn header(&mut self, training_id: &str) -> Result<Header, ReadError> {
        let mut magic = [0; MAGIC.len()];
        self.bytes(&mut magic)?;
        if magic != *MAGIC {
            return Err(ReadError::Damaged("it is not a checkpoint"));
        }
        let mut length = [0; 4];
        self.bytes(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if length > MAX_HEADER_BYTES.min(self.rest) {
            return Err(ReadError::Damaged(CUT_SHORT));
        }
        let mut header = vec![0; length as usize];
        self.bytes(&mut header)?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|_| ReadError::Damaged("its header is unreadable"))?;
        if header.training_id != training_id {
            return Err(ReadError::Damaged("it belongs to another training"));
        }
        // Bounds the memory that is allocated below by the size of the file.
        let values = header
            .lengths
            .iter()
            .try_fold(0usize, |sum, &length| sum.checked_add(length))
            .and_then(|count| count.checked_mul(4));
        if values.map(|bytes| bytes as u64) != Some(self.rest) {
            return Err(ReadError::Damaged("its lengths do not match its size"));
        }
        if !(5..=6).contains(&header.lengths.len()) {
            return Err(ReadError::Damaged("it does not have five or six parts"));
        }
        Ok(header)
    }

    fn values(&mut self, length: usize) -> Result<Vec<f32>, ReadError> {
        let mut values = Vec::with_capacity(length);
        self.chunks(length, |bytes| {
            let (chunks, _) = bytes.as_chunks::<4>();
            values.extend(chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        })?;
        Ok(values)
    }

    fn skip(&mut self, length: usize) -> Result<(), ReadError> {
        self.chunks(length, |_| {})
    }

    fn chunks(&mut self, length: usize, mut take: impl FnMut(&[u8])) -> Result<(), ReadError> {
        let mut buffer = vec![0; 1 << 16];
        let mut left = 4 * length;
        while left > 0 {
            let count = left.min(buffer.len());
            let chunk = &mut buffer[..count];
            self.bytes(chunk)?;
            take(chunk);
            left -= count;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &mut [u8]) -> Result<(), ReadError> {
        self.rest = self
            .rest
            .checked_sub(bytes.len() as u64)
            .ok_or(ReadError::Damaged(CUT_SHORT))?;
        Ok(self.reader.read_exact(bytes)?)
    }

    /// Compares the digest at the end of the file.
    fn finish(self) -> Result<(), ReadError> {
        let (mut reader, digest) = self.reader.finish();
        let mut expected = [0; DIGEST_BYTES as usize];
        reader.read_exact(&mut expected)?;
        if digest == expected {
            Ok(())
        } else {
            Err(ReadError::Damaged("its checksum does not match"))
        }
    }
}
