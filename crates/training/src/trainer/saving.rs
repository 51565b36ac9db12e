//! When a checkpoint is saved, and what happens if it cannot be.
//!
//! The loss of a step is computed before the weights are updated, so it says
//! nothing about the weights after the step. A checkpoint must not contain weights
//! from which training cannot continue. Therefore the state is captured after a
//! step, and saved after the next step has shown that its loss is sound; otherwise,
//! it is captured again. If there is no next step, at the end of the training or
//! when it stops, the loss on a short text is computed instead.

use std::io;
use std::time::Instant;

use charlstm_store::disk_error;

use super::divergence::NOT_FINITE;
use super::{Failure, Run};
use crate::checkpoint::Checkpoint;
use crate::events::{CheckpointFailed, CheckpointSaved, EventKind};

impl Run<'_> {
    pub(super) fn checkpoint_is_due(&self) -> bool {
        self.clocks.checkpoint.elapsed() >= self.context.intervals.checkpoints
    }

    /// Captures the current state, to be saved after the next step.
    pub(super) fn capture_pending(&mut self) -> Result<(), Failure> {
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() {
            return self.roll_back(NOT_FINITE);
        }
        self.pending = Some(checkpoint);
        Ok(())
    }

    pub(super) fn capture(&mut self) -> Result<Checkpoint, Failure> {
        let within_epoch = !self.step.is_multiple_of(self.learner.steps_per_epoch());
        if within_epoch {
            self.position.epoch_seconds += self.clocks.epoch_seconds();
        }
        self.clocks.restart_epoch(self.step);
        Ok(Checkpoint {
            learner: self.learner.state()?,
            position: self.position.clone(),
            best_parameters: self.best_parameters.clone(),
        })
    }

    /// Saves the state before the first step.
    pub(super) fn save_first(&mut self) -> Result<(), Failure> {
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() {
            let text = "its weights are not all finite numbers";
            return Err(Failure::Initial(text.to_owned()));
        }
        self.last_is_saved = self.save(&checkpoint);
        Ok(())
    }

    /// Saves the current state if it is sound, because the training stops.
    pub(super) fn save_last(&mut self) -> Result<(), Failure> {
        self.pending = None;
        if self.last_is_saved {
            return Ok(());
        }
        let checkpoint = self.capture()?;
        if !checkpoint.learner.is_finite() || self.check_weights()?.is_some() {
            tracing::warn!(
                id = self.job.id(),
                step = self.step,
                "the weights have diverged; the last checkpoint is kept instead"
            );
            return Ok(());
        }
        self.last_is_saved = self.save(&checkpoint);
        Ok(())
    }

    /// Saves a checkpoint, and reports that it is saved or is not. If the disk
    /// does not accept it, the earlier ones are kept, and the training
    /// continues.
    pub(super) fn save(&mut self, checkpoint: &Checkpoint) -> bool {
        self.clocks.checkpoint = Instant::now();
        let saved = self.checkpoints.save(checkpoint);
        self.report_saved(checkpoint, saved)
    }

    /// As [`Self::save`], for the last checkpoint of a training: on a full disk,
    /// the one before it makes space.
    pub(super) fn save_with_space(&mut self, checkpoint: &Checkpoint) -> bool {
        let mut saved = self.checkpoints.save(checkpoint);
        if saved.as_ref().is_err_and(disk_error::is_full)
            && self
                .checkpoints
                .delete_previous()
                .is_ok_and(|deleted| deleted)
        {
            saved = self.checkpoints.save(checkpoint);
        }
        self.report_saved(checkpoint, saved)
    }

    fn report_saved(&mut self, checkpoint: &Checkpoint, saved: io::Result<()>) -> bool {
        let step = checkpoint.learner.step;
        match saved {
            Ok(()) => {
                self.rolled_back_to = None;
                self.report(EventKind::Checkpoint(CheckpointSaved { step }));
                true
            }
            Err(error) => {
                tracing::error!(%error, id = self.job.id(), step, "a checkpoint could not be saved");
                let reason = disk_error::message(&error);
                let message = format!("the checkpoint of step {step} could not be saved: {reason}");
                self.report(EventKind::CheckpointFailed(CheckpointFailed {
                    step,
                    message,
                }));
                false
            }
        }
    }
}
