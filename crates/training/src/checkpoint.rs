//! The checkpoints of a training on disk: everything needed to resume it bit
//! for bit. Model files are a different format, in
//! [`charlstm_model::model_file`].
//!
//! There are up to three files, whose format is in `file`. A new checkpoint is
//! written to `checkpoint.new` and made durable. Then `checkpoint.bin` becomes
//! `checkpoint.previous.bin`, and the new one becomes `checkpoint.bin`. A crash
//! at any moment leaves at least one sound file, and [`Checkpoints::load`]
//! finds the newest.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use charlstm_model::learner::LearnerState;
use charlstm_store::atomic_file;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::file::ReadError;
use super::collapse::LossTrend;
use super::shared::SavedCheckpoint;

mod file;
#[cfg(test)]
mod tests;

const CURRENT: &str = "checkpoint.bin";
const PREVIOUS: &str = "checkpoint.previous.bin";
const NEW: &str = "checkpoint.new";
/// A damaged file is moved here, in place of an earlier one.
const DAMAGED: &str = "checkpoint.damaged.bin";

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
    /// The losses so far; empty if the checkpoint is of a version that did not store it.
    #[serde(default)]
    pub loss_trend: LossTrend,
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
        let verify = |name: &str| file::verify(&self.folder.join(name), &self.training_id);
        let verified = verify(NEW).or_else(|_| verify(CURRENT));
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
            .and_then(|file| file::write(file, &self.training_id, checkpoint))
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

    fn read(&self, name: &str) -> Result<Checkpoint, ReadError> {
        file::read(&self.folder.join(name), &self.training_id)
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
