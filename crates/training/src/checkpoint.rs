//! The checkpoints of a training on disk: everything needed to resume it bit
//! for bit. Model files are a different format, in
//! [`charlstm_model::model_file`].
//!
//! A checkpoint file consists of eight bytes of magic, which include the
//! version of the format; the length of a JSON header as a little-endian u32;
//! the header; the values as little-endian f32; and the SHA-256 of all that.
//!
//! There are up to three files. A new checkpoint is written to
//! `checkpoint.new` and made durable. Then `checkpoint.bin` becomes
//! `checkpoint.previous.bin`, and the new one becomes `checkpoint.bin`. A crash
//! at any moment leaves at least one sound file, and [`Checkpoints::load`]
//! finds the newest.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_model::learner::LearnerState;
use charlstm_store::atomic_file::{self, Digesting};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::shared::SavedCheckpoint;

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"CLSTMCP\x01";
const CURRENT: &str = "checkpoint.bin";
const PREVIOUS: &str = "checkpoint.previous.bin";
const NEW: &str = "checkpoint.new";
/// A damaged file is moved here, in place of an earlier one.
const DAMAGED: &str = "checkpoint.damaged.bin";
const DIGEST_BYTES: u64 = 32;
/// Maximum length of the header, which has a dozen numbers.
const MAX_HEADER_BYTES: u64 = 64 * 1024;
/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The state of a training at some step.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The state of the learner.
    pub learner: LearnerState,
    /// The state of the training loop.
    pub position: Position,
    /// Weights of the best epoch so far, if a text is held out.
    pub best_parameters: Option<Arc<Vec<f32>>>,
}

/// The state of the training loop apart from the learner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Number of rollbacks so far; each has halved the learning rate.
    pub rollbacks: u32,
    /// Seconds spent on the current epoch.
    pub epoch_seconds: f64,
    /// Mean training loss of the last completed epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the last completed epoch.
    pub validation_loss: Option<f64>,
    /// The epoch with the lowest validation loss so far.
    pub best: Option<Best>,
    /// What the learner computed with
    /// (`charlstm_model::learner::LearnerFactory::instructions`). Empty if a
    /// version of the server that did not store it saved the checkpoint.
    #[serde(default)]
    pub instructions: String,
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

/// A sound checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Steps taken.
    pub step: u64,
    /// What it was computed with ([`Position::instructions`]).
    pub instructions: String,
}

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

/// No checkpoint can be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// None was ever saved.
    #[error("there is no checkpoint")]
    Missing,
    /// There are files, and none is sound.
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

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged(CUT_SHORT),
            _ => Self::Io(error),
        }
    }
}

const CUT_SHORT: &str = "it is cut short";

/// The checkpoints in the folder of one training. All methods block on the
/// disk.
pub struct Checkpoints {
    folder: PathBuf,
    training_id: String,
    sink: Option<Box<dyn CheckpointSink>>,
}

/// Where a checkpoint is stored as well, after it was written to the disk.
pub trait CheckpointSink: Send + Sync {
    /// Stores a checkpoint. The previous one is kept, unless this one `replaces`
    /// the newest.
    ///
    /// # Errors
    /// It could not be stored; the earlier ones are unchanged then.
    fn store(&self, checkpoint: &SavedCheckpoint<'_>) -> io::Result<()>;
}

impl Checkpoints {
    /// The checkpoints of the training with that id, in its folder.
    pub fn new(folder: &Path, training_id: &str) -> Self {
        Self {
            folder: folder.to_owned(),
            training_id: training_id.to_owned(),
            sink: None,
        }
    }

    /// A checkpoint is saved only once it is in the sink as well.
    pub fn with_sink(mut self, sink: Box<dyn CheckpointSink>) -> Self {
        self.sink = Some(sink);
        self
    }

    /// Replaces all files by those that `fetch` writes to the paths of the
    /// newest checkpoint and of the previous one.
    ///
    /// # Errors
    /// The disk's, or that of `fetch`.
    pub(super) fn fetch(
        &self,
        fetch: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        self.delete()?;
        let [newest, previous] = self.paths();
        fetch(&newest, &previous)
    }

    /// Returns the paths of the newest checkpoint and of the previous one.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [CURRENT, PREVIOUS].map(|name| self.folder.join(name))
    }

    /// Saves a checkpoint as the newest. The one before it is kept as the
    /// previous one. Must only be called if the current one is sound or
    /// missing, as it is after [`Self::load`].
    ///
    /// # Errors
    /// The disk's. The earlier checkpoints are unchanged then, and `load` finds
    /// one of them or this one.
    pub fn save(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        self.write_new(checkpoint)?;
        self.put_new_in_place(true)?;
        self.store(checkpoint, false)
    }

    /// Saves a checkpoint in place of the newest. The previous one is kept.
    ///
    /// # Errors
    /// As for [`Self::save`].
    pub fn replace(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        self.write_new(checkpoint)?;
        self.put_new_in_place(false)?;
        self.store(checkpoint, true)
    }

    fn store(&self, checkpoint: &Checkpoint, replaces: bool) -> io::Result<()> {
        match &self.sink {
            None => Ok(()),
            Some(sink) => sink.store(&SavedCheckpoint {
                file: &self.folder.join(CURRENT),
                step: checkpoint.learner.step,
                replaces,
            }),
        }
    }

    /// Reads the newest sound checkpoint. Completes a [`Self::save`] that a
    /// crash has interrupted. A damaged checkpoint is moved out of the way, so
    /// that it never takes the place of a sound one, and is logged.
    ///
    /// # Errors
    /// There is no checkpoint, or no sound one; nothing is changed then.
    pub fn load(&self) -> Result<Checkpoint, LoadError> {
        if let Some(checkpoint) = self.load_new() {
            return Ok(checkpoint);
        }
        let current = match self.read(CURRENT) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(error) => error,
        };
        let previous = match self.read(PREVIOUS) {
            Ok(checkpoint) => {
                if !matches!(current, ReadError::Missing) {
                    self.move_damaged(&current);
                }
                return Ok(checkpoint);
            }
            Err(error) => error,
        };
        Err(load_error(&current, &previous))
    }

    /// Reads the checkpoint before the newest.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load_previous(&self) -> Result<Checkpoint, LoadError> {
        self.read(PREVIOUS)
            .map_err(|error| load_error(&ReadError::Missing, &error))
    }

    /// Checks the newest sound checkpoint, as [`Self::load`] would find it, and
    /// describes it. Changes nothing, and holds no weights in memory.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn verify(&self) -> Result<Verified, LoadError> {
        let verify = |name: &str| {
            let mut reader = CheckpointReader::open(&self.folder.join(name))?;
            let header = reader.header(&self.training_id)?;
            for length in header.lengths {
                reader.skip(length)?;
            }
            reader.finish()?;
            Ok(Verified {
                step: header.step,
                instructions: header.position.instructions,
            })
        };
        let verified = verify(NEW).or_else(|_: ReadError| verify(CURRENT));
        verified
            .or_else(|current| verify(PREVIOUS).map_err(|previous| load_error(&current, &previous)))
    }

    /// Returns true if there is a file of a checkpoint, sound or not. Fast.
    pub fn exist(&self) -> bool {
        let [current, previous, new, _] = self.files();
        [current, previous, new].iter().any(|path| path.is_file())
    }

    /// Deletes the checkpoint before the newest and damaged files, to free
    /// space. Returns whether there were any.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete_previous(&self) -> io::Result<bool> {
        let previous = remove_if_exists(&self.folder.join(PREVIOUS))?;
        let damaged = remove_if_exists(&self.folder.join(DAMAGED))?;
        Ok(previous || damaged)
    }

    /// Deletes all checkpoints, for a training that does not need them any
    /// more.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete(&self) -> io::Result<()> {
        for path in self.files() {
            remove_if_exists(&path)?;
        }
        Ok(())
    }

    fn files(&self) -> [PathBuf; 4] {
        [CURRENT, PREVIOUS, NEW, DAMAGED].map(|name| self.folder.join(name))
    }

    fn write_new(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let path = self.folder.join(NEW);
        let written = File::create(&path)
            .and_then(|file| write(file, &self.training_id, checkpoint))
            .and_then(|file| file.sync_all());
        if written.is_err() {
            // Half a checkpoint on a full disk only takes space.
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// Gives the new file its name. If this fails midway, the file is still
    /// there, and `load` completes it.
    fn put_new_in_place(&self, keep_current: bool) -> io::Result<()> {
        let current = self.folder.join(CURRENT);
        if keep_current {
            match atomic_file::rename(&current, &self.folder.join(PREVIOUS)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        atomic_file::rename(&self.folder.join(NEW), &current)
    }

    /// Reads a new file that a crash has left, and gives it its name. An
    /// incomplete one is removed: it never was a checkpoint.
    fn load_new(&self) -> Option<Checkpoint> {
        let new = match self.read(NEW) {
            Ok(new) => new,
            Err(ReadError::Damaged(_)) => {
                let _ = fs::remove_file(self.folder.join(NEW));
                return None;
            }
            Err(ReadError::Missing) => return None,
            Err(ReadError::Io(error)) => {
                tracing::error!(%error, folder = %self.folder.display(), "a new checkpoint cannot be read");
                return None;
            }
        };
        let keep_current = match self.read(CURRENT) {
            // One of the same or a later step is what this one replaces.
            Ok(current) => current.learner.step < new.learner.step,
            Err(ReadError::Missing) => false,
            Err(error) => {
                self.move_damaged(&error);
                false
            }
        };
        if let Err(error) = self.put_new_in_place(keep_current) {
            tracing::error!(%error, folder = %self.folder.display(), "a new checkpoint cannot be put in place");
        }
        Some(new)
    }

    fn move_damaged(&self, reason: &ReadError) {
        let (from, to) = (self.folder.join(CURRENT), self.folder.join(DAMAGED));
        tracing::error!(error = %reason, path = %from.display(),
            "a checkpoint is damaged; the one before it is used, and the file is moved to checkpoint.damaged.bin");
        if let Err(error) = atomic_file::rename(&from, &to) {
            tracing::error!(%error, path = %from.display(), "a damaged checkpoint cannot be moved");
        }
    }

    fn read(&self, name: &str) -> Result<Checkpoint, ReadError> {
        let mut reader = CheckpointReader::open(&self.folder.join(name))?;
        let header = reader.header(&self.training_id)?;
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
}

fn load_error(current: &ReadError, previous: &ReadError) -> LoadError {
    match (current, previous) {
        (ReadError::Missing, ReadError::Missing) => LoadError::Missing,
        (current, previous) => LoadError::Damaged {
            current: current.to_string(),
            previous: previous.to_string(),
        },
    }
}

/// Returns whether there was such a file.
fn remove_if_exists(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write(file: File, training_id: &str, checkpoint: &Checkpoint) -> io::Result<File> {
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
            let (fours, _) = bytes.as_chunks::<4>();
            values.extend(fours.iter().map(|four| f32::from_le_bytes(*four)));
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
