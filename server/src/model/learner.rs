//! Training step by step: batches in order, gradients, clipping, Adam. Knows
//! nothing of jobs, files or events; those are in `training`.

use std::sync::Arc;

use tch::{TchError, Tensor};
use thiserror::Error;

use super::architecture::Architecture;
use super::batches::{Batches, BatchesError};
use super::device::Device;
use super::evaluate;
use super::method::Method;
use super::network::{CharLstm, TorchState, numbers_to_state, state_to_numbers};
use super::optimizer::{Adam, clip_scale, norm};
use super::parameters::Parameters;
use super::pass::dropout::subkey;
use super::shards::Shards;

/// What to train and how. The values are taken as valid.
#[derive(Clone, Debug)]
pub struct LearnerConfig {
    /// Shape of the network.
    pub architecture: Architecture,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Characters of a sequence.
    pub sequence_length: usize,
    /// Passes over the text.
    pub epochs: u32,
    /// Probability of dropping, under 1.
    pub dropout: f64,
    /// Step size of the optimizer, at its peak.
    pub learning_rate: f64,
    /// Largest norm of a gradient.
    pub clip_norm: f64,
    /// Seed of the initial parameters and of dropout.
    pub seed: u64,
    /// How it begins and moves.
    pub method: Method,
}

/// What a training computes with. Another number of threads gives other last
/// bits.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where to train.
    pub device: Device,
    /// Threads on the CPU.
    pub threads: usize,
}

/// A step could not be taken.
#[derive(Debug, Error)]
pub enum LearnError {
    /// The text does not fill one batch.
    #[error(transparent)]
    Batches(#[from] BatchesError),
    /// libtorch failed (out of memory, a device that is gone).
    #[error("libtorch failed: {0}")]
    Torch(#[from] TchError),
    /// A thread could not be started.
    #[error("a training thread could not be started: {0}")]
    Thread(std::io::Error),
    /// A training thread panicked; the log says where.
    #[error("a training thread panicked")]
    Panicked,
    /// A snapshot does not fit the network or the batches.
    #[error("the snapshot has {given} numbers of {what}, and the training {expected}")]
    Snapshot {
        /// Which numbers.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// How many there should be.
        expected: usize,
    },
}

/// What a step brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Steps taken in the whole training, this one included.
    pub step: u64,
    /// Epoch of this step, from 1.
    pub epoch: u32,
    /// Mean training loss, in nats per character.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Step size of this step.
    pub learning_rate: f64,
    /// Mean training loss of the epoch, at its last step.
    pub epoch_loss: Option<f64>,
}

/// All that a training needs to go on bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Steps taken.
    pub step: u64,
    /// Sum of the losses of the epoch's steps so far.
    pub epoch_loss_sum: f64,
    /// Parameters.
    pub parameters: Vec<f32>,
    /// Adam's first moments.
    pub first_moments: Vec<f32>,
    /// Adam's second moments.
    pub second_moments: Vec<f32>,
    /// Carried hidden state, `[batch, layers, 2, hidden]`.
    pub hidden: Vec<f32>,
}

/// Where gradients come from.
enum Backend {
    Cpu(Shards),
    Torch {
        network: CharLstm,
        state: TorchState,
        parameters: Vec<f32>,
        gradients: Vec<f32>,
    },
}

/// Part of the seed that draws offsets; no step has this number.
const OFFSETS: u64 = u64::MAX;

/// A network in training. Lives on one thread, which its methods block.
pub struct Learner {
    config: LearnerConfig,
    place: Place,
    tokens: Arc<[u32]>,
    batches: Batches,
    backend: Backend,
    adam: Adam,
    step: u64,
    epoch_loss_sum: f64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Learner {
    /// Prepares a training on `tokens`, from `initial` parameters or new ones.
    ///
    /// # Errors
    /// Too few tokens for one batch; no memory; no threads.
    pub fn new(
        config: LearnerConfig,
        place: Place,
        tokens: Arc<[u32]>,
        initial: Option<Parameters>,
    ) -> Result<Self, LearnError> {
        let batches = Batches::new(tokens.len(), config.batch_size, config.sequence_length)?;
        let initial = initial.unwrap_or_else(|| {
            let rule = config.method.initial;
            rule.parameters(config.architecture, config.seed)
        });
        let Method {
            beta2,
            weight_decay,
            ..
        } = config.method;
        let characters = config.batch_size * config.sequence_length;
        Ok(Self {
            backend: Backend::new(&config, place, &initial)?,
            adam: Adam::new(initial.values.len(), beta2, weight_decay),
            tokens,
            batches,
            step: 0,
            epoch_loss_sum: 0.0,
            inputs: vec![0; characters],
            targets: vec![0; characters],
            config,
            place,
        })
    }

    /// Goes on from a snapshot.
    ///
    /// # Errors
    /// As [`Self::new`]; a snapshot of another network or batch size.
    pub fn restore(
        config: LearnerConfig,
        place: Place,
        tokens: Arc<[u32]>,
        snapshot: Snapshot,
    ) -> Result<Self, LearnError> {
        let count = config.architecture.parameter_count();
        let hidden = config.batch_size * config.architecture.state_len();
        for (what, given, expected) in [
            ("parameters", snapshot.parameters.len(), count),
            ("first moments", snapshot.first_moments.len(), count),
            ("second moments", snapshot.second_moments.len(), count),
            ("hidden state", snapshot.hidden.len(), hidden),
        ] {
            if given != expected {
                return Err(LearnError::Snapshot {
                    what,
                    given,
                    expected,
                });
            }
        }
        let parameters = Parameters {
            architecture: config.architecture,
            values: snapshot.parameters,
        };
        let mut learner = Self::new(config, place, tokens, Some(parameters))?;
        learner.adam.first_moments = snapshot.first_moments;
        learner.adam.second_moments = snapshot.second_moments;
        learner.step = snapshot.step;
        learner.epoch_loss_sum = snapshot.epoch_loss_sum;
        match &mut learner.backend {
            Backend::Cpu(shards) => shards.set_state(&snapshot.hidden)?,
            Backend::Torch { state, .. } => numbers_to_state(&snapshot.hidden, state)?,
        }
        Ok(learner)
    }

    /// Optimizer steps in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.batches.steps() as u64
    }

    /// Takes one optimizer step. The hidden state goes on within an epoch, cut
    /// from the graph, and begins at zero in each.
    ///
    /// # Errors
    /// libtorch's, or a panic of a training thread; the learner is of no
    /// further use then.
    pub fn step(&mut self) -> Result<StepOutcome, LearnError> {
        let steps = self.steps_per_epoch();
        let within = self.step % steps;
        let epoch = (self.step / steps) as u32 + 1;
        self.batches.fill(
            &self.tokens,
            self.offset(epoch),
            within as usize,
            &mut self.inputs,
            &mut self.targets,
        );
        let key = subkey(self.config.seed, self.step);
        let loss =
            self.backend
                .gradients(&self.config, &self.inputs, &self.targets, within == 0, key)?;
        let total = steps * u64::from(self.config.epochs);
        let schedule = self.config.method.schedule;
        let learning_rate = self.config.learning_rate * schedule.factor(self.step, total);
        self.step += 1;
        let (parameters, gradients) = self.backend.parts();
        let gradient_norm = norm(gradients);
        let scale = clip_scale(gradient_norm, self.config.clip_norm);
        self.adam.update(
            parameters,
            gradients,
            scale,
            learning_rate,
            self.step,
            self.place.threads,
        );
        self.backend.publish()?;

        if within == 0 {
            self.epoch_loss_sum = 0.0;
        }
        self.epoch_loss_sum += loss;
        let last = within + 1 == steps;
        Ok(StepOutcome {
            step: self.step,
            epoch,
            loss,
            gradient_norm,
            learning_rate,
            epoch_loss: last.then(|| self.epoch_loss_sum / steps as f64),
        })
    }

    /// Where the ring of the text is cut in an epoch, from 1.
    fn offset(&self, epoch: u32) -> usize {
        if !self.config.method.rotate {
            return 0;
        }
        let draw = subkey(subkey(self.config.seed, OFFSETS), u64::from(epoch));
        (draw % self.tokens.len() as u64) as usize
    }

    /// A copy of the parameters.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn parameters(&self) -> Result<Parameters, LearnError> {
        let values = match &self.backend {
            Backend::Cpu(shards) => shards.parameters().to_vec(),
            Backend::Torch { parameters, .. } => parameters.clone(),
        };
        Ok(Parameters {
            architecture: self.config.architecture,
            values,
        })
    }

    /// Mean loss on other tokens without dropout, in nats per character. The
    /// training is not touched.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn evaluate(&mut self, tokens: &[u32]) -> Result<f64, LearnError> {
        let parameters = self.parameters()?;
        Ok(evaluate::mean_loss(&parameters, tokens, self.place.threads))
    }

    /// All that is needed to go on from here.
    ///
    /// # Errors
    /// libtorch's.
    pub fn snapshot(&self) -> Result<Snapshot, LearnError> {
        Ok(Snapshot {
            step: self.step,
            epoch_loss_sum: self.epoch_loss_sum,
            parameters: self.parameters()?.values,
            first_moments: self.adam.first_moments.clone(),
            second_moments: self.adam.second_moments.clone(),
            hidden: match &self.backend {
                Backend::Cpu(shards) => shards.state()?,
                Backend::Torch { state, .. } => state_to_numbers(state)?,
            },
        })
    }
}

impl Backend {
    fn new(config: &LearnerConfig, place: Place, initial: &Parameters) -> Result<Self, LearnError> {
        match place.device {
            Device::Cpu => Ok(Self::Cpu(Shards::new(
                initial,
                config.batch_size,
                config.sequence_length,
                config.dropout,
                place.threads,
            )?)),
            Device::Cuda(index) => {
                let network = CharLstm::new(initial, tch::Device::Cuda(index))?;
                Ok(Self::Torch {
                    state: network.zero_state(config.batch_size)?,
                    network,
                    parameters: initial.values.clone(),
                    gradients: Vec::new(),
                })
            }
        }
    }

    /// Mean loss of a batch, `[time, batch]`; the gradient is in `parts` then.
    fn gradients(
        &mut self,
        config: &LearnerConfig,
        inputs: &[u32],
        targets: &[u32],
        fresh: bool,
        key: u64,
    ) -> Result<f64, LearnError> {
        match self {
            Self::Cpu(shards) => shards.step(inputs, targets, fresh, key),
            Self::Torch {
                network,
                state,
                gradients,
                ..
            } => {
                if fresh {
                    *state = network.zero_state(config.batch_size)?;
                }
                // A seed for each step: a resumed training draws the same.
                tch::manual_seed(key as i64);
                let to_device = |batch: &[u32]| -> Result<Tensor, TchError> {
                    let batch: Vec<i64> = batch.iter().map(|&token| i64::from(token)).collect();
                    Tensor::f_from_slice(&batch)?
                        .f_view([-1, config.batch_size as i64])?
                        .f_to_device(network.device())
                };
                let (inputs, targets) = (to_device(inputs)?, to_device(targets)?);
                let (loss, values) = network.gradients(&inputs, &targets, state, |_, output| {
                    output.f_dropout(config.dropout, true)
                })?;
                *gradients = values;
                Ok(loss)
            }
        }
    }

    /// The parameters, to be changed, and the gradient of the last batch.
    fn parts(&mut self) -> (&mut [f32], &[f32]) {
        match self {
            Self::Cpu(shards) => shards.parts(),
            Self::Torch {
                parameters,
                gradients,
                ..
            } => (parameters, gradients),
        }
    }

    /// Makes changed parameters known to whoever computes with them.
    fn publish(&mut self) -> Result<(), LearnError> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Torch {
                network,
                parameters,
                ..
            } => Ok(network.set_parameters(parameters)?),
        }
    }
}

#[cfg(test)]
mod tests;
