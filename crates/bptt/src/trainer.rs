//! A network in training on the CPU: its parameters, its optimizer, and the
//! threads that compute.

use std::sync::OnceLock;
use std::time::Instant;

use charlstm_model::architecture::Architecture;
use charlstm_model::evaluate;
use charlstm_model::learner::{LearnError, LearnerConfig};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;

use super::dropout::Dropout;
use super::instructions::{Instructions, OnArithmetic};
use super::network::{Batch, Dropouts, Network, Sizes};
use super::optimizer::{Optimizer, OptimizerState, Update};
use super::product::Arithmetic;
use super::team::{Panicked, Team};
use super::team_size::TeamSize;

/// What to train and how, in plain numbers. The caller has validated them.
#[derive(Clone, Copy, Debug)]
pub struct TrainerConfig {
    /// Shape of the network.
    pub architecture: Architecture,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Characters of a sequence.
    pub sequence_length: usize,
    /// Probability of dropping an output of a layer.
    pub dropout: f64,
    /// Whether the outputs dropped are the same at all time steps.
    pub locked_dropout: bool,
    /// Probability of dropping a recurrent weight during a batch.
    pub recurrent_dropout: f64,
    /// Probability of dropping a character of the vocabulary as an input during
    /// a batch.
    pub input_dropout: f64,
    /// Decay rate of the second moments.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Maximum norm of the gradient.
    pub clip_norm: f64,
    /// Decay rate of the moving average of the parameters; `None`: there is no
    /// average.
    pub average_decay: Option<f64>,
}

impl TrainerConfig {
    /// Takes what a trainer needs from the configuration of a learner.
    pub fn of(config: &LearnerConfig) -> Self {
        Self {
            architecture: config.architecture,
            batch_size: config.batch_size,
            sequence_length: config.sequence_length,
            dropout: config.dropout,
            locked_dropout: config.techniques.locked_dropout,
            recurrent_dropout: config.techniques.recurrent_dropout,
            input_dropout: config.techniques.input_dropout,
            beta2: config.optimizer.beta2,
            weight_decay: config.optimizer.weight_decay,
            clip_norm: config.clip_norm,
            average_decay: config.techniques.average_decay,
        }
    }

    /// Returns what the optimizer does in a step.
    pub fn update(&self, input: &StepInput<'_>) -> Update {
        Update {
            step: input.step,
            learning_rate: input.learning_rate,
            clip_norm: self.clip_norm,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
            average_decay: self.average_decay.unwrap_or(1.0),
        }
    }
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean loss, in nats per character.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
}

/// Trains one network: gradients and optimizer, on some device. All methods
/// block.
pub trait Trainer {
    /// Takes an optimizer step on a batch of token ids. The hidden states
    /// continue from the last batch.
    ///
    /// # Errors
    /// The device failed, or a thread panicked, for example because a token is
    /// outside the vocabulary. The trainer must be dropped then.
    fn step(&mut self, input: StepInput<'_>) -> Result<Step, LearnError>;

    /// Returns the gradient of the last step, before clipping, in the order of
    /// `charlstm_model::parameters::layout`.
    ///
    /// # Errors
    /// The device failed.
    fn gradient(&mut self) -> Result<Vec<f32>, LearnError>;

    /// Returns the parameters, in the same order.
    ///
    /// # Errors
    /// The device failed.
    fn parameters(&mut self) -> Result<Vec<f32>, LearnError>;

    /// Returns the moving average of the parameters; empty if there is none.
    ///
    /// # Errors
    /// The device failed.
    fn average(&mut self) -> Result<Vec<f32>, LearnError>;

    /// Returns parameters, moments and average.
    ///
    /// # Errors
    /// The device failed.
    fn optimizer_state(&mut self) -> Result<OptimizerState, LearnError>;

    /// Replaces parameters, moments and average.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If one of them has another length.
    fn set_optimizer_state(&mut self, state: &OptimizerState) -> Result<(), LearnError>;

    /// Returns the mean loss of `parameters` on a text, as
    /// [`evaluate::mean_loss`] defines it.
    ///
    /// # Errors
    /// The text could not be read, or the device failed.
    fn mean_loss(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError>;

    /// Returns the hidden states, `[batch, layers, 2, hidden]`.
    ///
    /// # Errors
    /// The device failed.
    fn hidden(&mut self) -> Result<Vec<f32>, LearnError>;

    /// Sets the hidden states, in the same layout.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// If there are fewer values.
    fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), LearnError>;
}

/// The input of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// Token ids, `[time, batch]`.
    pub inputs: &'a [u32],
    /// Token ids, `[time, batch]`.
    pub targets: &'a [u32],
    /// Start from hidden states of zero.
    pub reset_state: bool,
    /// Determines the dropout masks.
    pub key: u64,
    /// Counted from 1.
    pub step: u64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// Creates a trainer that computes with some instructions on `threads` threads,
/// of which the calling thread is one.
///
/// # Errors
/// A thread could not be started.
///
/// # Panics
/// If `parameters` does not have the number of parameters of the architecture.
pub fn start(
    config: TrainerConfig,
    instructions: Instructions,
    parameters: &[f32],
    threads: usize,
) -> std::io::Result<Box<dyn Trainer>> {
    struct Start<'a> {
        config: TrainerConfig,
        parameters: &'a [f32],
        threads: usize,
    }

    impl OnArithmetic for Start<'_> {
        type Output = std::io::Result<Box<dyn Trainer>>;

        fn run<A: Arithmetic>(self, arithmetic: A) -> Self::Output {
            let trainer =
                NetworkTrainer::start(arithmetic, self.config, self.parameters, self.threads)?;
            Ok(Box::new(trainer))
        }
    }

    instructions.with_arithmetic(Start {
        config,
        parameters,
        threads,
    })
}

struct NetworkTrainer<A: Arithmetic> {
    config: TrainerConfig,
    network: Network<A>,
    optimizer: Optimizer,
    team: Team,
    team_size: TeamSize,
}

impl<A: Arithmetic> NetworkTrainer<A> {
    fn start(
        arithmetic: A,
        config: TrainerConfig,
        parameters: &[f32],
        threads: usize,
    ) -> std::io::Result<Self> {
        let architecture = &config.architecture;
        assert_eq!(parameters.len(), architecture.parameter_count());
        let sizes = Sizes::new(architecture, config.batch_size, config.sequence_length);
        let dropout = |probability: f64| (probability > 0.0).then(|| Dropout::new(probability));
        let dropouts = Dropouts {
            outputs: dropout(config.dropout),
            locked: config.locked_dropout,
            recurrent: dropout(config.recurrent_dropout),
            inputs: dropout(config.input_dropout),
        };
        Ok(Self {
            network: Network::new(arithmetic, architecture, sizes, dropouts),
            optimizer: Optimizer::new(parameters, config.average_decay.is_some()),
            team: Team::start(threads)?,
            team_size: TeamSize::new(threads),
            config,
        })
    }
}

impl<A: Arithmetic> Trainer for NetworkTrainer<A> {
    fn step(&mut self, input: StepInput<'_>) -> Result<Step, LearnError> {
        let characters = self.config.batch_size * self.config.sequence_length;
        assert_eq!(input.inputs.len(), characters, "inputs");
        assert_eq!(input.targets.len(), characters, "targets");
        let batch = Batch {
            inputs: input.inputs,
            targets: input.targets,
            reset_state: input.reset_state,
            key: input.key,
        };
        let update = self.config.update(&input);
        let norm = OnceLock::new();
        let (network, optimizer) = (&self.network, &self.optimizer);
        let count = self.config.architecture.parameter_count();
        let arch = network.arch();
        let begin = Instant::now();
        self.team
            .run(self.team_size.next(), &|member| {
                // SAFETY: the parameters are only written after the barrier.
                let parameters = unsafe { optimizer.parameters.part(0..count) };
                network.compute(member, parameters, &batch);
                member.barrier();
                let value = optimizer.update(arch, member, network.gradient(), &update);
                // All members compute the same.
                let _ = norm.set(value);
            })
            .map_err(|Panicked| LearnError::Panicked)?;
        self.team_size.record(begin.elapsed());
        Ok(Step {
            loss: self.network.mean_loss(),
            gradient_norm: norm.into_inner().unwrap_or(f64::NAN),
        })
    }

    fn gradient(&mut self) -> Result<Vec<f32>, LearnError> {
        Ok(self.network.gradient_mut().to_vec())
    }

    fn parameters(&mut self) -> Result<Vec<f32>, LearnError> {
        Ok(self.optimizer.parameters.all().to_vec())
    }

    fn average(&mut self) -> Result<Vec<f32>, LearnError> {
        Ok(self.optimizer.average.all().to_vec())
    }

    fn optimizer_state(&mut self) -> Result<OptimizerState, LearnError> {
        Ok(self.optimizer.state())
    }

    fn set_optimizer_state(&mut self, state: &OptimizerState) -> Result<(), LearnError> {
        self.optimizer.set_state(state);
        Ok(())
    }

    fn mean_loss(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError> {
        evaluate::mean_loss(parameters, tokens, self.team.size()).map_err(LearnError::Text)
    }

    fn hidden(&mut self) -> Result<Vec<f32>, LearnError> {
        Ok(self.network.state())
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), LearnError> {
        self.network.set_state(hidden);
        Ok(())
    }
}
