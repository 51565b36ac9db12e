//! Writes what happens to trainings to the log, and exports each as a trace.

use std::sync::Arc;

use charlstm_training::events::{Event, EventKind, State};
use charlstm_training::job::Job;

use crate::traces::{Tracing, TrainingTrace};

/// Follows trainings from their start to their end. Clones share everything.
#[derive(Clone, Debug)]
pub struct TrainingLog {
    tracing: Tracing,
}

impl TrainingLog {
    /// Exports traces with `tracing`.
    pub fn new(tracing: Tracing) -> Self {
        Self { tracing }
    }

    /// Follows the last run of a training, which has not ended, in the
    /// background.
    ///
    /// # Panics
    /// If called outside of a tokio runtime.
    pub fn follow(&self, job: Arc<Job>) {
        let run = job.summary().run;
        let mut follower = Follower {
            trace: self.tracing.training(job.id(), &job.metadata().spec.model),
            job,
            is_current: run <= 1,
            is_started: false,
        };
        tokio::spawn(async move {
            let mut events = follower.job.watch(0);
            while let Some(event) = events.next().await {
                if let EventKind::Resumed(resumed) = &event.event
                    && resumed.run >= run
                {
                    follower.is_current = true;
                }
                if follower.is_current {
                    follower.log(&event);
                }
            }
        });
    }
}

/// One run of a training.
struct Follower {
    job: Arc<Job>,
    trace: TrainingTrace,
    /// The events are no longer those of earlier runs.
    is_current: bool,
    is_started: bool,
}

impl Follower {
    fn log(&mut self, event: &Event) {
        let (id, owner) = (self.job.id(), self.job.owner());
        let model = self.job.metadata().spec.model.as_str();
        match &event.event {
            EventKind::Accepted(accepted) => tracing::info!(
                id, %owner, model,
                corpus_chars = accepted.corpus_chars,
                parameters = accepted.parameters,
                device = accepted.device,
                "training accepted"
            ),
            EventKind::Resumed(resumed) => tracing::info!(
                id, %owner, model, run = resumed.run, step = resumed.step, "training resumed"
            ),
            EventKind::Step(step) => {
                if !std::mem::replace(&mut self.is_started, true) {
                    tracing::info!(id, %owner, model, step = step.step, "training started");
                    self.trace.started();
                }
            }
            EventKind::Epoch(epoch) => {
                tracing::info!(
                    id, %owner, model,
                    epoch = epoch.epoch,
                    train_loss = epoch.train_loss,
                    validation_loss = epoch.validation_loss,
                    seconds = epoch.seconds,
                    chars_per_second = epoch.chars_per_second,
                    "training epoch"
                );
                self.trace
                    .epoch(epoch.epoch, epoch.seconds, epoch.train_loss);
            }
            EventKind::RolledBack(back) => tracing::warn!(
                id, %owner, model, step = back.step, message = back.message, "training rolled back"
            ),
            EventKind::CheckpointFailed(failed) => tracing::warn!(
                id, %owner, model, step = failed.step, message = failed.message,
                "a checkpoint of a training failed"
            ),
            EventKind::Finished(finished) => {
                let state = format!("{:?}", finished.state).to_lowercase();
                let version = (finished.version > 0).then_some(finished.version);
                tracing::info!(
                    id, %owner, model, state, version, message = finished.message, "training ended"
                );
                self.trace
                    .ended(finished.state == State::Succeeded, &finished.message);
            }
            EventKind::Checkpoint(_) => {}
        }
    }
}
