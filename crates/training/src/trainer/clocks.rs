//! When a training reports a step and saves a checkpoint, and how fast it is.

use std::time::{Duration, Instant};

use charlstm_model::learner::StepOutcome;

use crate::events::StepProgress;

/// How often things happen.
pub(crate) struct Intervals {
    /// Minimum time between two step events: four a second is as much as an
    /// eye follows.
    step_events: Duration,
    /// Time between two checkpoints.
    pub(super) checkpoints: Duration,
    /// Time between two attempts to publish a finished model.
    pub(super) publishing: Duration,
}

impl Intervals {
    pub(crate) fn new(checkpoints: Duration, publishing: Duration) -> Self {
        Self {
            step_events: Duration::from_millis(250),
            checkpoints,
            publishing,
        }
    }
}

/// The clocks of one run.
pub(super) struct Clocks {
    begin: Instant,
    begin_step: u64,
    /// Begin of the part of the epoch that is being timed.
    epoch: Instant,
    /// Time of the last attempt to save a checkpoint.
    pub(super) checkpoint: Instant,
    /// Time of the last step event.
    reported: Option<Instant>,
    /// Time and step from which the speed that is reported next is measured.
    speed_from: (Instant, u64),
}

impl Clocks {
    pub(super) fn start(step: u64) -> Self {
        let now = Instant::now();
        Self {
            begin: now,
            begin_step: step,
            epoch: now,
            checkpoint: now,
            reported: None,
            speed_from: (now, step),
        }
    }

    /// Returns the seconds since the last [`Self::restart_epoch`].
    pub(super) fn epoch_seconds(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }

    /// Begins to time the epoch after `step`. What was done since that step,
    /// such as validation, does not count in the speed that is reported next.
    pub(super) fn restart_epoch(&mut self, step: u64) {
        self.epoch = Instant::now();
        self.speed_from = (self.epoch, step);
    }

    /// Returns the event of a step if one is due: for the first step of a run,
    /// the last step of the training, and some in between.
    pub(super) fn step_event(
        &mut self,
        outcome: &StepOutcome,
        total_steps: u64,
        batch_chars: f64,
        intervals: &Intervals,
    ) -> Option<StepProgress> {
        let now = Instant::now();
        let due = self
            .reported
            .is_none_or(|at| now.duration_since(at) >= intervals.step_events);
        if !due && outcome.step != total_steps {
            return None;
        }
        let steps_per_second = |(since, since_step): (Instant, u64)| {
            let seconds = now.duration_since(since).as_secs_f64().max(1e-9);
            (outcome.step - since_step) as f64 / seconds
        };
        self.reported = Some(now);
        let since = std::mem::replace(&mut self.speed_from, (now, outcome.step));
        let left = (total_steps - outcome.step) as f64;
        Some(StepProgress {
            epoch: outcome.epoch,
            step: outcome.step,
            total_steps,
            loss: outcome.loss,
            gradient_norm: outcome.gradient_norm,
            chars_per_second: steps_per_second(since) * batch_chars,
            eta_seconds: left / steps_per_second((self.begin, self.begin_step)),
            learning_rate: outcome.learning_rate,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_reported_even_if_epochs_are_shorter_than_the_time_between_two_events() {
        let intervals = Intervals {
            step_events: Duration::from_millis(20),
            checkpoints: Duration::MAX,
            publishing: Duration::MAX,
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
            let event = clocks.step_event(&outcome, 1000, 1.0, &intervals);
            clocks.restart_epoch(step);
            event.is_some()
        });
        // The first one, and at least one more for every four.
        assert!(reported.count() >= 2);
    }
}
