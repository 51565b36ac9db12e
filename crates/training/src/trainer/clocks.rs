//! When a training tells of a step and saves a checkpoint, and how fast it
//! is.

use std::time::{Duration, Instant};

use crate::events::StepProgress;
use charlstm_model::learner::StepOutcome;

/// How often things are reported and saved.
pub(crate) struct ReportInterval {
    /// Shortest time between two step events: four a second is as much as an
    /// eye follows.
    step_events: Duration,
    /// Longest time between two checkpoints.
    pub(super) checkpoints: Duration,
}

impl ReportInterval {
    pub(crate) fn with_checkpoints_every(checkpoints: Duration) -> Self {
        Self {
            step_events: Duration::from_millis(250),
            checkpoints,
        }
    }
}

/// The clocks of one run.
pub(super) struct Clocks {
    begun: Instant,
    begun_step: u64,
    /// When the current stretch of the epoch began.
    epoch: Instant,
    /// When the last checkpoint was saved.
    pub(super) checkpoint: Instant,
    /// When the last step event was.
    reported: Option<Instant>,
    /// When and at which step the speed that is reported next is measured from.
    mark: (Instant, u64),
}

impl Clocks {
    pub(super) fn start(step: u64) -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            begun_step: step,
            epoch: now,
            checkpoint: now,
            reported: None,
            mark: (now, step),
        }
    }

    /// Seconds of the current stretch of the epoch.
    pub(super) fn epoch_seconds(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }

    /// A stretch of an epoch begins after `step`: what was done since that step,
    /// like validation, is no part of the speed that is reported next.
    pub(super) fn stretch_begins(&mut self, step: u64) {
        self.epoch = Instant::now();
        self.mark = (self.epoch, step);
    }

    /// The event of a step, where one is due: the first of a run, the last of
    /// the training, and some in between.
    pub(super) fn step_told(
        &mut self,
        outcome: &StepOutcome,
        total_steps: u64,
        batch_chars: f64,
        pace: &ReportInterval,
    ) -> Option<StepProgress> {
        let now = Instant::now();
        let due = self
            .reported
            .is_none_or(|at| now.duration_since(at) >= pace.step_events);
        if !due && outcome.step != total_steps {
            return None;
        }
        let steps_per_second = |(since, since_step): (Instant, u64)| {
            let seconds = now.duration_since(since).as_secs_f64().max(1e-9);
            (outcome.step - since_step) as f64 / seconds
        };
        self.reported = Some(now);
        let since = std::mem::replace(&mut self.mark, (now, outcome.step));
        let left = (total_steps - outcome.step) as f64;
        Some(StepProgress {
            epoch: outcome.epoch,
            step: outcome.step,
            total_steps,
            loss: outcome.loss,
            gradient_norm: outcome.gradient_norm,
            chars_per_second: steps_per_second(since) * batch_chars,
            eta_seconds: left / steps_per_second((self.begun, self.begun_step)),
            learning_rate: outcome.learning_rate,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_also_where_epochs_are_shorter_than_the_time_between_two_events() {
        let pace = ReportInterval {
            step_events: Duration::from_millis(20),
            checkpoints: Duration::MAX,
        };
        let mut clocks = Clocks::start(0);
        let reported = (1..=10).filter(|&step| {
            std::thread::sleep(Duration::from_millis(5));
            let outcome = StepOutcome {
                step,
                epoch: step as u32,
                loss: 1.0,
                gradient_norm: 1.0,
                learning_rate: 0.1,
                epoch_loss: Some(1.0),
            };
            let event = clocks.step_told(&outcome, 1000, 1.0, &pace);
            clocks.stretch_begins(step);
            event.is_some()
        });
        // The first one, and one more for every four at least.
        assert!(reported.count() >= 2);
    }
}
