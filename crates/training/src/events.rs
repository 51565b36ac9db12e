//! What a training tells, and what can be summed up from it. Where the events
//! are kept and how they are watched is in `history`.

use serde::{Deserialize, Deserializer, Serialize};

/// State of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its turn.
    Queued,
    /// It trains.
    Running,
    /// It ended, and a model version was published.
    Succeeded,
    /// Somebody cancelled it.
    Cancelled,
    /// It ended on an error.
    Failed,
    /// The server stopped while it ran or waited.
    Interrupted,
}

impl State {
    /// True where nothing more happens by itself.
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
    /// Its number within the training, from 0.
    pub sequence: u64,
    /// What happened.
    pub event: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Spec and corpus are valid.
    Accepted(Accepted),
    /// A step was taken.
    Step(StepProgress),
    /// An epoch was completed.
    Epoch(EpochProgress),
    /// A checkpoint is on disk.
    Checkpoint(CheckpointSaved),
    /// It diverged and went back to a checkpoint.
    RolledBack(RolledBack),
    /// The training ended.
    Finished(Finished),
}

/// The training is valid and begins, or waits for its turn. The resolved spec
/// is with the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Characters of the corpus, after `skip_chars`.
    pub corpus_chars: u64,
    /// Distinct characters of the corpus.
    pub vocabulary_size: u32,
    /// Optimizer steps in an epoch.
    pub steps_per_epoch: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Trainable numbers.
    pub parameters: u64,
    /// Where it trains.
    pub device: String,
}

/// Progress within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// Epoch under way, from 1.
    pub epoch: u32,
    /// Steps taken in the whole training.
    pub step: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Loss of this step, in nats per character.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Characters a second since the last step event.
    pub chars_per_second: f64,
    /// Seconds until the end, at the speed so far.
    pub eta_seconds: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// An epoch is complete.
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
    /// Bits per character of the validation loss, or of the training loss.
    pub bits_per_char: f64,
    /// Seconds that the epoch took.
    pub seconds: f64,
    /// Characters a second over the epoch.
    pub chars_per_second: f64,
    /// Text of the model after this epoch, its prime included.
    pub sample: String,
    /// Whether its validation loss is the lowest so far.
    #[serde(default)]
    pub best: bool,
}

/// A checkpoint is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSaved {
    /// Steps taken when it was saved.
    pub step: u64,
}

/// A training diverged and went back to its last good checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Steps taken when it diverged.
    pub step: u64,
    /// The loss that was seen; may be no number, which JSON calls `null`.
    #[serde(deserialize_with = "number_or_nan")]
    pub loss: f64,
    /// Steps taken at the checkpoint.
    pub checkpoint_step: u64,
    /// Learning rate that it goes on with.
    pub learning_rate: f64,
    /// How often it went back so far, from 1.
    pub attempt: u32,
    /// What was wrong, in words.
    pub message: String,
}

/// JSON has no NaN and no infinity; both are written as `null`.
fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The training ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// How it ended.
    pub state: State,
    /// Version that was published, from 1; 0 where none was.
    pub version: u64,
    /// Mean training loss of the last complete epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the published model.
    pub validation_loss: Option<f64>,
    /// What happened, in words, where it did not succeed.
    pub message: String,
    /// Epoch whose weights were published.
    #[serde(default)]
    pub best_epoch: Option<u32>,
}

/// Where a training stands, summed up from its events.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its state.
    pub state: State,
    /// Epochs completed.
    pub epochs_completed: u32,
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Mean training loss of the last complete epoch.
    pub train_loss: Option<f64>,
    /// Validation loss of the last complete epoch.
    pub validation_loss: Option<f64>,
    /// Version that was published; 0 where none was.
    pub version: u64,
    /// Whether a checkpoint was ever saved.
    pub has_checkpoint: bool,
    /// What happened, in words, where it did not succeed.
    pub message: String,
    /// The last step that was reported.
    pub last_step: Option<StepProgress>,
}

impl Summary {
    /// Of a training that has reported nothing yet.
    pub fn new() -> Self {
        Self {
            state: State::Queued,
            epochs_completed: 0,
            step: 0,
            total_steps: 0,
            train_loss: None,
            validation_loss: None,
            version: 0,
            has_checkpoint: false,
            message: String::new(),
            last_step: None,
        }
    }

    /// Takes the next event in.
    pub fn take(&mut self, event: &EventKind) {
        match event {
            EventKind::Accepted(accepted) => self.total_steps = accepted.total_steps,
            EventKind::Step(step) => {
                self.step = step.step;
                self.last_step = Some(*step);
            }
            EventKind::Epoch(epoch) => {
                self.epochs_completed = epoch.epoch;
                self.step = epoch.step;
                self.train_loss = Some(epoch.train_loss);
                self.validation_loss = epoch.validation_loss;
            }
            EventKind::Checkpoint(_) => self.has_checkpoint = true,
            EventKind::RolledBack(back) => self.step = back.checkpoint_step,
            EventKind::Finished(finished) => {
                self.state = finished.state;
                self.version = finished.version;
                self.message.clone_from(&finished.message);
            }
        }
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self::new()
    }
}
