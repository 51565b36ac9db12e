//! The checkpoint of a training on disk: everything to go on bit for bit. What
//! is in a snapshot is `model::learner`'s business; model files for use are in
//! `model::checkpoint`.
//!
//! A file is: eight bytes of magic with the format's version, the length of a
//! JSON header as a little-endian u32, the header, the numbers as
//! little-endian f32, and the SHA-256 of all that.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::digesting::Digesting;
use charlstm_model::learner::LearnerState;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"CLSTMCP\x01";
const CURRENT: &str = "checkpoint.bin";
const PREVIOUS: &str = "checkpoint.previous.bin";
const ASIDE: &str = "checkpoint.new";
const DIGEST_BYTES: usize = 32;
/// Most bytes of the header, which holds a dozen numbers.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// A training at some step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The state of the learner.
    pub snapshot: LearnerState,
    /// What the trainer knows besides.
    pub position: Position,
    /// Weights of the best epoch so far, where a text is held out.
    pub best_parameters: Option<Vec<f32>>,
}

/// What the trainer knows besides the learner's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// How often the training fell back on a checkpoint because it diverged;
    /// each time halves the learning rate.
    pub rollbacks: u32,
    /// Seconds spent on the epoch under way.
    pub epoch_seconds: f64,
    /// Mean training loss of the last complete epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the last complete epoch.
    pub validation_loss: Option<f64>,
    /// The epoch with the lowest validation loss.
    pub best: Option<Best>,
}

/// The epoch with the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The epoch, from 1.
    pub epoch: u32,
    /// Steps taken at its end.
    pub step: u64,
    /// Its mean training loss.
    pub train_loss: f64,
    /// Its validation loss.
    pub validation_loss: f64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    training_id: String,
    step: u64,
    epoch_loss_sum: f64,
    position: Position,
    /// Lengths of the parameters, the two moments, the hidden state and the
    /// best parameters.
    lengths: [usize; 5],
}

/// A checkpoint cannot be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is none.
    #[error("there is no checkpoint")]
    Missing,
    /// Neither the last nor the one before it is sound.
    #[error("the checkpoint is damaged ({current}), and so is the one before it ({previous})")]
    Damaged {
        /// What is wrong with the last one.
        current: String,
        /// What is wrong with the one before it.
        previous: String,
    },
}

#[derive(Debug, Error)]
enum ReadError {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Damaged(&'static str),
    #[error("{0}")]
    Io(io::Error),
}

/// Saves a checkpoint in the folder of its training. The last one stays until
/// the new one is whole and on the disk, and then as the previous one.
///
/// # Errors
/// The disk's; the checkpoints that were there are unharmed.
pub fn save(folder: &Path, training_id: &str, checkpoint: &Checkpoint) -> io::Result<()> {
    let aside = folder.join(ASIDE);
    let written = File::create(&aside).and_then(|file| {
        let file = write(file, training_id, checkpoint)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // Half a checkpoint on a full disk is only in the way.
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    let current = folder.join(CURRENT);
    match fs::rename(&current, folder.join(PREVIOUS)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&aside, &current)?;
    File::open(folder)?.sync_all()
}

/// Reads the last sound checkpoint: the previous one where the last is
/// damaged or was just being put into place, which the log says.
///
/// # Errors
/// No checkpoint, or none that is sound.
pub fn load(folder: &Path, training_id: &str) -> Result<Checkpoint, LoadError> {
    let of = |name: &str| -> (PathBuf, Result<Checkpoint, ReadError>) {
        let path = folder.join(name);
        let read = read(&path, training_id);
        (path, read)
    };
    let (path, current) = of(CURRENT);
    let current = match current {
        Ok(checkpoint) => return Ok(checkpoint),
        Err(error) => error,
    };
    match (current, of(PREVIOUS).1) {
        (current, Ok(checkpoint)) => {
            let step = checkpoint.snapshot.step;
            tracing::warn!(error = %current, path = %path.display(), step,
                "a checkpoint cannot be used; the one before it is");
            Ok(checkpoint)
        }
        (ReadError::Missing, Err(ReadError::Missing)) => Err(LoadError::Missing),
        (current, Err(previous)) => Err(LoadError::Damaged {
            current: current.to_string(),
            previous: previous.to_string(),
        }),
    }
}

/// The files that [`save`] writes; some or all may not be there.
pub(super) fn files(folder: &Path) -> [PathBuf; 3] {
    [CURRENT, PREVIOUS, ASIDE].map(|name| folder.join(name))
}

fn write(file: File, training_id: &str, checkpoint: &Checkpoint) -> io::Result<File> {
    let snapshot = &checkpoint.snapshot;
    let parts = parts(checkpoint);
    let header = serde_json::to_vec(&Header {
        training_id: training_id.to_owned(),
        step: snapshot.step,
        epoch_loss_sum: snapshot.epoch_loss_sum,
        position: checkpoint.position.clone(),
        lengths: parts.map(<[f32]>::len),
    })?;
    let mut out = Digesting::new(file);
    out.write_all(MAGIC)?;
    let length = u32::try_from(header.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::with_capacity(1 << 16);
    for chunk in parts.iter().flat_map(|part| part.chunks(1 << 14)) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|number| number.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    let (mut file, digest) = out.finish()?;
    file.write_all(&digest)?;
    Ok(file)
}

fn parts(checkpoint: &Checkpoint) -> [&[f32]; 5] {
    let snapshot = &checkpoint.snapshot;
    [
        &snapshot.parameters,
        &snapshot.first_moments,
        &snapshot.second_moments,
        &snapshot.hidden,
        checkpoint.best_parameters.as_deref().unwrap_or_default(),
    ]
}

fn read(path: &Path, training_id: &str) -> Result<Checkpoint, ReadError> {
    let bytes = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::Io(error),
    })?;
    parse(&bytes, training_id).map_err(ReadError::Damaged)
}

fn parse(bytes: &[u8], training_id: &str) -> Result<Checkpoint, &'static str> {
    const CUT: &str = "it is cut short";
    if !bytes.starts_with(MAGIC) {
        return Err("it is no checkpoint");
    }
    let covered = bytes.len().checked_sub(DIGEST_BYTES).ok_or(CUT)?;
    let (covered, digest) = bytes.split_at(covered);
    if Sha256::digest(covered).as_slice() != digest {
        return Err("its checksum does not match");
    }
    let rest = covered.strip_prefix(MAGIC).ok_or(CUT)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(CUT)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_HEADER_BYTES || length > rest.len() {
        return Err(CUT);
    }
    let (header, numbers) = rest.split_at(length);
    let header: Header = serde_json::from_slice(header).map_err(|_| "its header is unreadable")?;
    if header.training_id != training_id {
        return Err("it belongs to another training");
    }
    let total = header
        .lengths
        .iter()
        .try_fold(0usize, |sum, &length| sum.checked_add(length))
        .and_then(|count| count.checked_mul(4));
    if total != Some(numbers.len()) {
        return Err("its lengths do not add up");
    }
    let mut numbers = numbers;
    let mut part = |length: usize| -> Vec<f32> {
        let (bytes, rest) = numbers.split_at(4 * length);
        numbers = rest;
        let (four, _) = bytes.as_chunks::<4>();
        four.iter().map(|four| f32::from_le_bytes(*four)).collect()
    };
    let [parameters, first, second, hidden, best] = header.lengths;
    Ok(Checkpoint {
        snapshot: LearnerState {
            step: header.step,
            epoch_loss_sum: header.epoch_loss_sum,
            parameters: part(parameters),
            first_moments: part(first),
            second_moments: part(second),
            hidden: part(hidden),
        },
        best_parameters: (best > 0).then(|| part(best)),
        position: header.position,
    })
}
