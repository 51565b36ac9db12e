//! The training arithmetic as the training loop sees it: a network that takes
//! optimizer steps. `charlstm-torch` implements it with libtorch; tests of the
//! loop use a fake.

use std::error::Error;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::architecture::Architecture;
use super::batches::BatchesError;
use super::optimizer_config::OptimizerConfig;
use super::parameters::Parameters;
use super::tokens::CorpusTokens;

/// What to train and how. The caller has validated all values.
#[derive(Clone, Debug)]
pub struct LearnerConfig {
    /// Shape of the network.
    pub architecture: Architecture,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Characters of a sequence.
    pub sequence_length: usize,
    /// Number of passes over the text.
    pub epochs: u32,
    /// Probability of dropping an output of a layer, from 0 to below 1.
    pub dropout: f64,
    /// Learning rate of the optimizer at its peak.
    pub learning_rate: f64,
    /// Maximum norm of the gradient; a longer one is scaled down to it.
    pub clip_norm: f64,
    /// Seed of the initial parameters and of dropout.
    pub seed: u64,
    /// Initialisation, optimizer and schedule.
    pub optimizer: OptimizerConfig,
    /// What is done in training only.
    pub techniques: Techniques,
    /// The type of the inputs of products.
    pub precision: TrainingPrecision,
}

/// Regularisation and averaging, which leave no trace in the shape of a model.
/// By default all are off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Techniques {
    /// Whether dropout drops the same outputs at all time steps of a sequence
    /// (Gal and Ghahramani, 2016).
    pub locked_dropout: bool,
    /// Probability of dropping a recurrent weight during a batch (DropConnect;
    /// Merity et al., 2018).
    pub recurrent_dropout: f64,
    /// Probability of dropping a character of the vocabulary as an input during
    /// a batch.
    pub input_dropout: f64,
    /// Decay rate of an exponential moving average of the weights; `None`: there
    /// is no average.
    pub average_decay: Option<f64>,
}

/// The type of the inputs of all products of a training. Sums, cells, gradients
/// summed over time, moments and weights are float32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingPrecision {
    /// float32.
    #[default]
    Float32,
    /// bfloat16.
    Bf16,
}

impl TrainingPrecision {
    /// Returns the name in specs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A training could not be started or a step could not be computed.
#[derive(Debug, Error)]
pub enum LearnError {
    /// The text does not fill one batch.
    #[error(transparent)]
    Batches(#[from] BatchesError),
    /// The numeric library failed (out of memory, a lost device).
    #[error("the training arithmetic failed: {0}")]
    Backend(#[source] Box<dyn Error + Send + Sync>),
    /// This build cannot train.
    #[error(transparent)]
    Unsupported(#[from] TrainingUnsupported),
    /// The text could not be read.
    #[error("the training text cannot be read: {0}")]
    Text(#[source] std::io::Error),
    /// A thread could not be started.
    #[error("a training thread could not be started: {0}")]
    Thread(std::io::Error),
    /// A training thread panicked; the log says where.
    #[error("a training thread panicked")]
    Panicked,
    /// A saved state does not fit the network or the batches.
    #[error("the saved state has {given} values of {what}, but the training needs {expected}")]
    State {
        /// Which values.
        what: &'static str,
        /// Number of values in the saved state.
        given: usize,
        /// Number of values that the training needs.
        expected: usize,
    },
}

/// This build of the program cannot train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "this build of charlstm-server only generates text; to train, use a build with the \
     cargo feature \"torch\" (the default)"
)]
pub struct TrainingUnsupported;

/// The result of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Steps taken in the whole training, including this one.
    pub step: u64,
    /// Epoch of this step, from 1.
    pub epoch: u32,
    /// Mean training loss, in nats per character.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Mean training loss of the epoch; set at its last step.
    pub epoch_loss: Option<f64>,
}

/// Everything needed to resume a training bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnerState {
    /// Steps taken.
    pub step: u64,
    /// Sum of the losses of the epoch's steps so far.
    pub epoch_loss_sum: f64,
    /// Parameters.
    pub parameters: Vec<f32>,
    /// First moments of Adam.
    pub first_moments: Vec<f32>,
    /// Second moments of Adam.
    pub second_moments: Vec<f32>,
    /// Moving average of the parameters; empty if there is none.
    pub average: Vec<f32>,
    /// Carried hidden state, `[batch, layers, 2, hidden]`.
    pub hidden: Vec<f32>,
}

impl LearnerState {
    /// Returns whether all values are finite, so that a training can continue
    /// from them.
    pub fn is_finite(&self) -> bool {
        let all = |values: &[f32]| values.iter().all(|value| value.is_finite());
        all(&self.parameters)
            && all(&self.first_moments)
            && all(&self.second_moments)
            && all(&self.average)
            && all(&self.hidden)
            && self.epoch_loss_sum.is_finite()
    }
}

/// Trains one network. Belongs to one thread, which its methods block.
pub trait Learner {
    /// Returns the number of optimizer steps in an epoch.
    fn steps_per_epoch(&self) -> u64;

    /// Returns the number of optimizer steps taken in the whole training.
    fn step_count(&self) -> u64;

    /// Takes one optimizer step.
    ///
    /// # Errors
    /// The text could not be read, or the backend failed. The learner must be
    /// dropped then.
    fn step(&mut self) -> Result<StepOutcome, LearnError>;

    /// Returns a copy of the weights.
    ///
    /// # Errors
    /// The backend failed.
    fn parameters(&mut self) -> Result<Parameters, LearnError>;

    /// Returns a copy of the moving average of the weights, if there is one.
    ///
    /// # Errors
    /// The backend failed.
    fn average(&mut self) -> Result<Option<Parameters>, LearnError>;

    /// Returns the mean loss of some weights on a text, without dropout, in nats
    /// per character.
    ///
    /// # Errors
    /// The backend failed.
    fn evaluate(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError>;

    /// Returns everything needed to resume from here.
    ///
    /// # Errors
    /// The backend failed.
    fn state(&mut self) -> Result<LearnerState, LearnError>;
}

/// Creates learners for one device. Called on the training thread.
pub trait LearnerFactory: Send + Sync {
    /// Returns the device: `cpu` or `cuda:N`.
    fn device(&self) -> String;

    /// Returns the number of CPU threads that a learner computes with.
    fn threads(&self) -> usize;

    /// Returns the precision in which this device trains fastest.
    fn fastest_precision(&self) -> TrainingPrecision {
        TrainingPrecision::Float32
    }

    /// Returns the instruction set, or the type of the device, that a learner of
    /// this precision computes with. With another, it computes other bits.
    fn instructions(&self, precision: TrainingPrecision) -> String;

    /// Checks whether this factory can create learners at all, so that a
    /// training is rejected before its corpus is uploaded.
    ///
    /// # Errors
    /// [`TrainingUnsupported`] in a build without training arithmetic.
    fn check_supported(&self) -> Result<(), TrainingUnsupported> {
        Ok(())
    }

    /// Creates a learner that starts training on `tokens`, from `initial`
    /// parameters or from new ones.
    ///
    /// # Errors
    /// Too few tokens for one batch, or a backend that failed.
    fn start(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learner>, LearnError>;

    /// Creates a learner that resumes from a saved state.
    ///
    /// # Errors
    /// As [`Self::start`], or a state of another network or batch size.
    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
    ) -> Result<Box<dyn Learner>, LearnError>;
}
