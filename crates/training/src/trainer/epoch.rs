//! The end of an epoch: the held-out text is scored, a sample is generated, the
//! epoch is reported, and the best weights so far are kept.

use std::sync::Arc;

use charlstm_model::parameters::Parameters;

use super::divergence::NOT_FINITE;
use super::{Failure, Run};
use crate::checkpoint::Best;
use crate::events::{EpochProgress, EventKind};
use crate::sample::SampleRequest;

impl Run<'_> {
    pub(super) fn end_epoch(&mut self, epoch: u32, train_loss: f64) -> Result<(), Failure> {
        let seconds = self.position.epoch_seconds + self.clocks.epoch_seconds();
        let is_last = self.step == self.total_steps;
        let evaluated = self.evaluate_epoch()?;
        let validation_loss = evaluated.as_ref().map(|(loss, _)| *loss);
        let divergence = match validation_loss {
            Some(loss) => self.divergence_of(loss),
            // No step follows that would show it.
            None if is_last => self.check_weights()?,
            None => None,
        };
        if let Some(divergence) = divergence {
            return self.roll_back(divergence);
        }
        self.position.train_loss = Some(train_loss);
        self.position.validation_loss = validation_loss;
        let best_so_far = self.position.best.map(|best| best.validation_loss);
        let best = validation_loss.filter(|&loss| best_so_far.is_none_or(|lowest| loss < lowest));
        let is_reported = epoch > self.reported_epochs;
        let with_sample = is_reported && self.job.metadata().spec.sample_chars > 0;
        let parameters = match evaluated {
            Some((_, parameters)) => Some(parameters),
            None if with_sample => Some(self.last_parameters()?),
            None => None,
        };
        if is_reported {
            let chars = self.learner.steps_per_epoch() as f64 * self.batch_chars();
            let sample = match &parameters {
                Some(parameters) if with_sample => self.sample(epoch, parameters),
                _ => String::new(),
            };
            self.report(EventKind::Epoch(EpochProgress {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
                bits_per_char: validation_loss.unwrap_or(train_loss) / std::f64::consts::LN_2,
                seconds,
                chars_per_second: chars / seconds.max(1e-9),
                sample,
                best: best.is_some(),
            }));
            self.reported_epochs = epoch;
        }
        if let (Some(validation_loss), Some(parameters)) = (best, parameters) {
            self.best_parameters = Some(Arc::new(parameters.values));
            self.position.best = Some(Best {
                epoch,
                step: self.step,
                train_loss,
                validation_loss,
            });
        }
        self.position.epoch_seconds = 0.0;
        self.clocks.restart_epoch(self.step);
        // After the event: an epoch whose checkpoint is saved was reported.
        if is_last {
            let checkpoint = self.capture()?;
            if !checkpoint.learner.is_finite() {
                return self.roll_back(NOT_FINITE);
            }
            self.last_is_saved = self.save_with_space(&checkpoint);
        } else if self.checkpoint_is_due() {
            self.capture_pending()?;
        }
        Ok(())
    }

    /// Returns the validation loss of the weights, or, if that is lower, of their
    /// moving average, with the weights that have this loss; `None` if nothing is
    /// held out.
    fn evaluate_epoch(&mut self) -> Result<Option<(f64, Parameters)>, Failure> {
        let held_out = &self.tokens.validation;
        if held_out.is_empty() {
            return Ok(None);
        }
        let parameters = self.learner.parameters()?;
        let loss = self.learner.evaluate(&parameters, held_out)?;
        let Some(average) = self.learner.average()? else {
            return Ok(Some((loss, parameters)));
        };
        let average_loss = self.learner.evaluate(&average, held_out)?;
        // A loss that is not a number must be seen.
        if average_loss < loss {
            Ok(Some((average_loss, average)))
        } else {
            Ok(Some((loss, parameters)))
        }
    }

    /// Returns the weights that are published if nothing is held out: their
    /// average, or the last ones if there is none.
    pub(super) fn last_parameters(&mut self) -> Result<Parameters, Failure> {
        match self.learner.average()? {
            Some(average) => Ok(average),
            None => Ok(self.learner.parameters()?),
        }
    }

    /// Returns the text generated after an epoch, including its prompt. If it
    /// cannot be generated, the training continues without it.
    fn sample(&self, epoch: u32, parameters: &Parameters) -> String {
        let spec = &self.job.metadata().spec;
        let vocabulary = self.job.vocabulary();
        let first = String::from(vocabulary.character(self.tokens.first));
        let prime = spec.sample_prime.as_deref().unwrap_or(&first);
        // It was found in the vocabulary when the training was accepted.
        let Ok(tokens) = vocabulary.encode(prime) else {
            return String::new();
        };
        let written = (self.context.sampler)(&SampleRequest {
            parameters,
            vocabulary,
            prime: &tokens,
            chars: spec.sample_chars as usize,
            seed: spec.seed.wrapping_add(u64::from(epoch)),
        });
        match written {
            Ok(text) => format!("{prime}{text}"),
            Err(error) => {
                tracing::warn!(%error, "a sample could not be generated");
                String::new()
            }
        }
    }
}
