//! The learners of this program: `model::learner` behind the trait that the
//! trainer knows.

use super::learn::{Learn, LearnConfig, Learners};
use super::spec::Recipe;
use crate::model::device::Device;
use crate::model::learner::{LearnError, Learner, LearnerConfig, Snapshot, StepOutcome};
use crate::model::parameters::Parameters;
use crate::model::tokens::Tokens;

#[cfg(test)]
mod tests;

/// Makes learners for one device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLearners {
    /// Where to train.
    pub device: Device,
    /// Threads on the CPU.
    pub threads: usize,
}

impl DeviceLearners {
    fn config(&self, config: &LearnConfig) -> LearnerConfig {
        match config.recipe {
            Recipe::Notebook => LearnerConfig {
                architecture: config.architecture,
                batch_size: config.batch_size,
                sequence_length: config.sequence_length,
                epochs: config.epochs,
                dropout: config.dropout,
                learning_rate: config.learning_rate,
                clip_norm: config.clip_norm,
                seed: config.seed,
                threads: self.threads,
                device: self.device,
            },
        }
    }
}

impl Learners for DeviceLearners {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn begin(
        &self,
        config: &LearnConfig,
        tokens: Tokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learn>, LearnError> {
        Ok(Box::new(Learner::new(
            self.config(config),
            tokens,
            initial,
        )?))
    }

    fn resume(
        &self,
        config: &LearnConfig,
        tokens: Tokens,
        snapshot: Snapshot,
    ) -> Result<Box<dyn Learn>, LearnError> {
        let learner = Learner::restore(self.config(config), tokens, snapshot)?;
        Ok(Box::new(learner))
    }
}

impl Learn for Learner {
    fn steps_per_epoch(&self) -> u64 {
        Learner::steps_per_epoch(self)
    }

    fn step(&mut self) -> Result<StepOutcome, LearnError> {
        Learner::step(self)
    }

    fn parameters(&self) -> Result<Parameters, LearnError> {
        Learner::parameters(self)
    }

    fn evaluate(&mut self, tokens: &Tokens) -> Result<f64, LearnError> {
        Learner::evaluate(self, tokens)
    }

    fn snapshot(&self) -> Result<Snapshot, LearnError> {
        Learner::snapshot(self)
    }
}
