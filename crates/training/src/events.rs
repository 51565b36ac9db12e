//! The events that a training reports, and the summary of them. `history`
//! stores them.

use serde::{Deserialize, Deserializer, Serialize};

/// State of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waiting for its turn.
    Queued,
    /// Running.
    Running,
    /// Ended, and a model version was published.
    Succeeded,
    /// Ended because it was cancelled.
    Cancelled,
    /// Ended with an error.
    Failed,
    /// The server stopped while the training was running or waiting.
    Interrupted,
}

impl State {
    /// Returns true if nothing more happens until the training is resumed.
    pub fn has_ended(self) -> bool {
        match self {
            State::Queued | State::Running => false,
            State::Succeeded | State::Cancelled | State::Failed | State::Interrupted => true,
        }
    }
}

/// One event of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number within the training, from 0, ascending.
    pub sequence: u64,
    /// The event.
    pub event: EventKind,
}

/// What an event reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The spec and the corpus are valid.
    Accepted(Accepted),
    /// A step was taken.
    Step(StepProgress),
    /// An epoch was completed.
    Epoch(EpochProgress),
    /// A checkpoint was saved.
    Checkpoint(CheckpointSaved),
    /// A checkpoint, or the finished model, could not be saved.
    CheckpointFailed(CheckpointFailed),
    /// The training diverged and was rolled back to a checkpoint.
    RolledBack(RolledBack),
    /// The training was resumed after it had ended.
    Resumed(Resumed),
    /// The training ended.
    Finished(Finished),
}

/// The training is valid, and starts or waits for its turn. The resolved spec
/// is in the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Number of characters in the corpus, after `skip_chars`.
    pub corpus_chars: u64,
    /// Number of distinct characters in the corpus.
    pub vocabulary_size: u32,
    /// Optimizer steps per epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps of the whole training.
    pub total_steps: u64,
    /// Number of trainable parameters.
    pub parameters: u64,
    /// Device that trains; empty if it is not known any more.
    pub device: String,
}

/// Progress within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// Current epoch, from 1.
    pub epoch: u32,
    /// Steps taken in the whole training.
    pub step: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Loss of this step, in nats per character.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Characters per second since the last step event.
    pub chars_per_second: f64,
    /// Estimated seconds until the end.
    pub eta_seconds: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// An epoch was completed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochProgress {
    /// The epoch, from 1.
    pub epoch: u32,
    /// Steps taken in the whole training.
    pub step: u64,
    /// Mean training loss, in nats per character.
    pub train_loss: f64,
    /// Loss on the held-out text, in nats per character.
    pub validation_loss: Option<f64>,
    /// The validation loss (if not set, the training loss) in bits per
    /// character.
    pub bits_per_char: f64,
    /// Duration of the epoch in seconds.
    pub seconds: f64,
    /// Characters per second over the epoch.
    pub chars_per_second: f64,
    /// Text generated after this epoch, including its prompt. Empty if it was
    /// dropped from a long history.
    pub sample: String,
    /// True if its validation loss is the lowest so far.
    #[serde(default)]
    pub best: bool,
}

/// A checkpoint was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSaved {
    /// Steps taken at the checkpoint.
    pub step: u64,
}

/// A checkpoint, or the finished model, could not be saved. The training
/// continues, and the server tries again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFailed {
    /// Steps taken at the state that could not be saved.
    pub step: u64,
    /// The reason, for people.
    pub message: String,
}

/// A training diverged and was rolled back to a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Steps taken when it diverged.
    pub step: u64,
    /// The loss then; it may be NaN or infinite, for which JSON has `null`.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// Steps taken at the checkpoint.
    pub checkpoint_step: u64,
    /// Learning rate from there on.
    pub learning_rate: f64,
    /// Number of rollbacks so far, from 1.
    pub attempt: u32,
    /// The reason, for people.
    pub message: String,
}

/// JSON has no NaN and no infinity; both are written as `null`.
fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A training that had ended was resumed and waits for its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Number of the run that begins: 2 at the first resume.
    pub run: u32,
    /// Steps taken at the checkpoint from which it resumes; 0 if it starts
    /// from the beginning.
    pub step: u64,
    /// Name of the server that resumes it; empty for a server without replicas.
    pub replica: String,
    /// Device that trains.
    pub device: String,
    /// CPU threads that train. Their number does not change the result.
    pub threads: u32,
    /// Type of the inputs of all products.
    pub precision: String,
    /// Instruction set that trains. Events of version 0.1 have none.
    #[serde(default)]
    pub instructions: String,
    /// Set if the training was computed with other instructions before.
    #[serde(default)]
    pub message: String,
}

/// The training ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Final state.
    pub state: State,
    /// Version that was published, from 1; 0 if none was.
    pub version: u64,
    /// Mean training loss of the last completed epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the published model.
    pub validation_loss: Option<f64>,
    /// If it did not succeed: the reason, for people.
    pub message: String,
    /// Epoch whose weights were published.
    #[serde(default)]
    pub best_epoch: Option<u32>,
}

/// Summary of the events of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its state.
    pub state: State,
    /// Number of its current or last run, from 1; resuming adds one.
    pub run: u32,
    /// Epochs completed.
    pub epochs_completed: u32,
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Mean training loss of the last completed epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the last completed epoch.
    pub validation_loss: Option<f64>,
    /// Version that was published; 0 if none was.
    pub version: u64,
    /// Number of rollbacks so far; each has halved the learning rate.
    pub rollbacks: u32,
    /// Step of the checkpoint that it was last rolled back to, unless a later
    /// one was saved since.
    pub rolled_back_to: Option<u64>,
    /// If it did not succeed: the reason, for people.
    pub message: String,
    /// The last step that was reported.
    pub last_step: Option<StepProgress>,
}

impl Summary {
    /// Returns the summary of a training that has not reported anything.
    pub fn new() -> Self {
        Self {
            state: State::Queued,
            run: 1,
            epochs_completed: 0,
            step: 0,
            total_steps: 0,
            train_loss: None,
            validation_loss: None,
            version: 0,
            rollbacks: 0,
            rolled_back_to: None,
            message: String::new(),
            last_step: None,
        }
    }

    /// Adds the next event.
    pub fn add(&mut self, event: &EventKind) {
        match event {
            EventKind::Accepted(accepted) => self.total_steps = accepted.total_steps,
            EventKind::Step(step) => {
                self.set_running();
                self.step = step.step;
                self.last_step = Some(*step);
            }
            EventKind::Epoch(epoch) => {
                self.set_running();
                self.epochs_completed = epoch.epoch;
                self.step = epoch.step;
                self.train_loss = Some(epoch.train_loss);
                self.validation_loss = epoch.validation_loss;
            }
            EventKind::Checkpoint(_) => {
                self.set_running();
                self.rolled_back_to = None;
            }
            EventKind::CheckpointFailed(_) => self.set_running(),
            EventKind::RolledBack(back) => {
                self.set_running();
                self.step = back.checkpoint_step;
                self.rollbacks = back.attempt;
                self.rolled_back_to = Some(back.checkpoint_step);
            }
            EventKind::Resumed(resumed) => {
                self.state = State::Queued;
                self.run = resumed.run;
                self.step = resumed.step;
                self.message.clear();
            }
            EventKind::Finished(finished) => {
                self.state = finished.state;
                self.version = finished.version;
                self.message.clone_from(&finished.message);
            }
        }
    }

    /// Version 0.1 resumed a training without an event: what a training reports
    /// after its end shows that it was resumed.
    pub fn set_running(&mut self) {
        self.state = State::Running;
        self.message.clear();
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self::new()
    }
}
