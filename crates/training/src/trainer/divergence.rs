//! Detects weights that have diverged, by a loss or a gradient.

use charlstm_model::learner::StepOutcome;

use super::rollback::MAX_ROLLBACKS;
use super::{Failure, Run};
use crate::collapse::Health;

/// Weights have exploded if their loss is this many times the loss of a uniform
/// guess.
const EXPLODED: f64 = 10.0;

/// Characters on which weights are checked that no step follows.
const CHECK_CHARS: usize = 64;

/// What shows that the weights have diverged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Divergence {
    pub(super) reason: &'static str,
    pub(super) loss: f64,
}

/// Weights from which training cannot continue.
pub(super) const NOT_FINITE: Divergence = Divergence {
    reason: "the weights are not all finite numbers",
    loss: f64::NAN,
};

impl Run<'_> {
    /// Computes the loss on a short text, which shows whether the weights have
    /// diverged.
    pub(super) fn check_weights(&mut self) -> Result<Option<Divergence>, Failure> {
        let training = &self.tokens.training;
        let Some(text) = training.range(0..training.len().min(CHECK_CHARS)) else {
            return Ok(None);
        };
        let parameters = self.learner.parameters()?;
        let loss = self.learner.evaluate(&parameters, &text)?;
        Ok(self.divergence_of(loss))
    }

    /// Judges the network by a step, and records its loss.
    pub(super) fn divergence_of_step(&mut self, outcome: &StepOutcome) -> Option<Divergence> {
        if outcome.loss.is_finite() && !outcome.gradient_norm.is_finite() {
            // The weights are useless already, though this loss does not show it.
            let loss = outcome.loss;
            let reason = "the gradient is not a number";
            return Some(Divergence { reason, loss });
        }
        let divergence = self.divergence_of(outcome.loss);
        if divergence.is_some() {
            return divergence;
        }
        self.health = self.position.loss_trend.add(outcome.loss, self.entropy);
        if self.position.rollbacks == MAX_ROLLBACKS {
            // A poor model is better than none, and the text itself may be random here.
            self.health = Health::Sound;
        }
        (self.health == Health::Collapsed).then_some(Divergence {
            reason: "the network now predicts no better than the frequencies of the characters",
            loss: outcome.loss,
        })
    }

    pub(super) fn divergence_of(&self, loss: f64) -> Option<Divergence> {
        let vocabulary_size = self.config.architecture.vocabulary_size;
        let uniform_loss = (vocabulary_size.max(2) as f64).ln();
        let reason = if !loss.is_finite() {
            "the loss is not a number"
        } else if loss > EXPLODED * uniform_loss {
            "the loss has exploded"
        } else {
            return None;
        };
        Some(Divergence { reason, loss })
    }
}
