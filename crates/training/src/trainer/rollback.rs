//! How a training that has diverged is rolled back to a checkpoint.

use charlstm_model::learner::LearnerConfig;

use super::clocks::Clocks;
use super::divergence::Divergence;
use super::initial::initial;
use super::{Failure, Run, load};
use crate::checkpoint::Position;
use crate::events::{EventKind, RolledBack};

/// Maximum number of rollbacks of a training.
pub(super) const MAX_ROLLBACKS: u32 = 3;

impl Run<'_> {
    /// Rolls back to the last checkpoint, with half the learning rate. If the
    /// training diverges from the same checkpoint again, rolls back to the one
    /// before it.
    pub(super) fn roll_back(&mut self, divergence: Divergence) -> Result<(), Failure> {
        self.pending = None;
        let Divergence { reason, loss } = divergence;
        let step = self.step;
        let rollbacks = self.position.rollbacks + 1;
        if rollbacks > MAX_ROLLBACKS {
            return Err(Failure::Diverged { step, reason });
        }
        let mut saved = load(&self.checkpoints)?;
        if let Some(newest) = &saved
            && self.rolled_back_to == Some(newest.learner.step)
            && let Ok(previous) = self.checkpoints.load_previous()
            && previous.learner.step < newest.learner.step
        {
            saved = Some(previous);
        }
        let config = slowed(&self.config, rollbacks);
        let checkpoint_step = saved.as_ref().map_or(0, |saved| saved.learner.step);
        tracing::warn!(
            id = self.job.id(),
            step,
            reason,
            checkpoint_step,
            learning_rate = config.learning_rate,
            "a training diverged and is rolled back to a checkpoint"
        );
        self.report(EventKind::RolledBack(RolledBack {
            step,
            loss,
            checkpoint_step,
            learning_rate: config.learning_rate,
            attempt: rollbacks,
            message: reason.to_owned(),
        }));
        let training = self.tokens.training.clone();
        let learners = &self.context.learners;
        match saved {
            Some(mut saved) => {
                // The new learning rate counts from here, also after a crash.
                // The checkpoint before this one is kept.
                saved.position.rollbacks = rollbacks;
                let replaced = self.checkpoints.replace(&saved);
                self.last_is_saved = replaced.is_ok();
                if let Err(error) = replaced {
                    tracing::error!(%error, id = self.job.id(), "a rollback could not be saved");
                }
                self.position = saved.position;
                self.best_parameters = saved.best_parameters;
                self.learner = learners.resume(&config, training, saved.learner)?;
            }
            None => {
                self.position = Position {
                    rollbacks,
                    instructions: std::mem::take(&mut self.position.instructions),
                    ..Position::default()
                };
                self.best_parameters = None;
                let initial = initial(self.job, self.context)?;
                self.learner = learners.start(&config, training, initial)?;
                self.last_is_saved = false;
            }
        }
        self.step = checkpoint_step;
        self.rolled_back_to = Some(checkpoint_step);
        self.clocks = Clocks::start(self.step);
        Ok(())
    }
}

pub(super) fn slowed(config: &LearnerConfig, rollbacks: u32) -> LearnerConfig {
    LearnerConfig {
        learning_rate: config.learning_rate * 0.5f64.powi(rollbacks as i32),
        ..config.clone()
    }
}
