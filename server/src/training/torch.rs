//! The learners of this program: `model::learner` behind the trait that the
//! trainer knows.

use std::sync::Arc;

use super::learn::{Learn, Learners};
use crate::model::learner::{LearnError, Learner, LearnerConfig, Place, Snapshot, StepOutcome};
use crate::model::parameters::Parameters;

#[cfg(test)]
mod tests;

impl Learners for Place {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn begin(
        &self,
        config: &LearnerConfig,
        tokens: Arc<[u32]>,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learn>, LearnError> {
        let learner = Learner::new(config.clone(), *self, tokens, initial)?;
        Ok(Box::new(learner))
    }

    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: Arc<[u32]>,
        snapshot: Snapshot,
    ) -> Result<Box<dyn Learn>, LearnError> {
        let learner = Learner::restore(config.clone(), *self, tokens, snapshot)?;
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

    fn evaluate(&mut self, tokens: &[u32]) -> Result<f64, LearnError> {
        Learner::evaluate(self, tokens)
    }

    fn snapshot(&self) -> Result<Snapshot, LearnError> {
        Learner::snapshot(self)
    }
}
