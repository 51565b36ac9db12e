//! Training step by step: batches in order, gradients, clipping, Adam. The
//! loop around it, with jobs, files and events, is in `charlstm-training`.

use charlstm_model::batches::Batches;
use charlstm_model::device::Device;
use charlstm_model::evaluate;
use charlstm_model::learner::{
    LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, StepOutcome,
};
use charlstm_model::optimizer_config::OptimizerConfig;
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;
use tch::{TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, read_state, write_state};
use super::bptt::dropout::subkey;
use super::data_parallel::DataParallel;
use super::device::torch_device;
use super::error::TorchError;
use super::optimizer::{Adam, clip_scale, norm};
use super::process_state::seed_generator;

/// Creates learners that compute with libtorch.
///
/// A training is the same bit for bit only with the same number of threads and
/// on the same type of CPU or GPU: both decide the order of summation.
#[derive(Clone, Copy, Debug)]
pub struct TorchLearnerFactory {
    /// The device that computes the gradients.
    pub device: Device,
    /// Threads on the CPU. On a GPU, they run the optimizer and evaluate.
    pub threads: usize,
}

impl LearnerFactory for TorchLearnerFactory {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn start(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = TorchLearner::start(*self, config.clone(), tokens, initial)?;
        Ok(Box::new(learner))
    }

    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = TorchLearner::resume(*self, config.clone(), tokens, state)?;
        Ok(Box::new(learner))
    }
}

/// Computes the gradient of a batch, and holds the parameters.
enum GradientBackend {
    Cpu(DataParallel),
    Cuda {
        network: AutogradNetwork,
        state: DeviceState,
        /// Copies in main memory, where the optimizer runs.
        parameters: Vec<f32>,
        gradient: Vec<f32>,
    },
}

/// Derives the key of the offsets from the seed; no step has this number.
const OFFSET_KEY: u64 = u64::MAX;

/// A network in training. Its methods block the calling thread.
struct TorchLearner {
    config: LearnerConfig,
    threads: usize,
    tokens: CorpusTokens,
    batches: Batches,
    backend: GradientBackend,
    adam: Adam,
    /// Optimizer steps taken.
    step: u64,
    epoch_loss_sum: f64,
    /// Buffers for a batch, `[time, batch]`.
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl TorchLearner {
    /// Starts a training on `tokens`, from `initial` parameters or new ones.
    ///
    /// # Errors
    /// There are too few tokens for one batch, libtorch failed, or a thread
    /// could not be started.
    fn start(
        factory: TorchLearnerFactory,
        config: LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Self, LearnError> {
        let batches = Batches::new(tokens.len(), config.batch_size, config.sequence_length)?;
        let initial = initial.unwrap_or_else(|| {
            let initialization = config.optimizer.initial;
            initialization.parameters(config.architecture, config.seed)
        });
        let OptimizerConfig {
            beta2,
            weight_decay,
            ..
        } = config.optimizer;
        let characters = config.batch_size * config.sequence_length;
        Ok(Self {
            backend: GradientBackend::new(&config, factory, &initial)?,
            threads: factory.threads,
            adam: Adam::new(initial.values.len(), beta2, weight_decay),
            tokens,
            batches,
            step: 0,
            epoch_loss_sum: 0.0,
            inputs: vec![0; characters],
            targets: vec![0; characters],
            config,
        })
    }

    /// Resumes a training from a saved state.
    ///
    /// # Errors
    /// As [`Self::start`], or the state is of another network or batch size.
    fn resume(
        factory: TorchLearnerFactory,
        config: LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
    ) -> Result<Self, LearnError> {
        let count = config.architecture.parameter_count();
        let hidden = config.batch_size * config.architecture.state_len();
        for (what, given, expected) in [
            ("parameters", state.parameters.len(), count),
            ("first moments", state.first_moments.len(), count),
            ("second moments", state.second_moments.len(), count),
            ("hidden state", state.hidden.len(), hidden),
        ] {
            if given != expected {
                return Err(LearnError::State {
                    what,
                    given,
                    expected,
                });
            }
        }
        let parameters = Parameters {
            architecture: config.architecture,
            values: state.parameters,
        };
        let mut learner = Self::start(factory, config, tokens, Some(parameters))?;
        learner.adam.first_moments = state.first_moments;
        learner.adam.second_moments = state.second_moments;
        learner.step = state.step;
        learner.epoch_loss_sum = state.epoch_loss_sum;
        learner.backend.set_hidden(&state.hidden)?;
        Ok(learner)
    }

    /// Returns the offset at which the ring of the text is cut in an epoch,
    /// counted from 1.
    fn offset(&self, epoch: u32) -> usize {
        if !self.config.optimizer.rotate {
            return 0;
        }
        let draw = subkey(subkey(self.config.seed, OFFSET_KEY), u64::from(epoch));
        (draw % self.tokens.len() as u64) as usize
    }
}

impl Learner for TorchLearner {
    fn steps_per_epoch(&self) -> u64 {
        self.batches.steps() as u64
    }

    fn step_count(&self) -> u64 {
        self.step
    }

    fn step(&mut self) -> Result<StepOutcome, LearnError> {
        let steps = self.steps_per_epoch();
        let step_in_epoch = self.step % steps;
        let epoch = (self.step / steps) as u32 + 1;
        self.batches
            .fill(
                &self.tokens,
                self.offset(epoch),
                step_in_epoch as usize,
                &mut self.inputs,
                &mut self.targets,
            )
            .map_err(LearnError::Text)?;
        let first = step_in_epoch == 0;
        let key = subkey(self.config.seed, self.step);
        let loss = self
            .backend
            .compute(&self.config, &self.inputs, &self.targets, first, key)?;
        let total = steps * u64::from(self.config.epochs);
        let schedule = self.config.optimizer.schedule;
        let learning_rate = self.config.learning_rate * schedule.factor(self.step, total);
        self.step += 1;
        let (parameters, gradient) = self.backend.parameters_and_gradient();
        let gradient_norm = norm(gradient);
        let scale = clip_scale(gradient_norm, self.config.clip_norm);
        self.adam.update(
            parameters,
            gradient,
            scale,
            learning_rate,
            self.step,
            self.threads,
        );
        self.backend.upload_parameters()?;

        if first {
            self.epoch_loss_sum = 0.0;
        }
        self.epoch_loss_sum += loss;
        let last = step_in_epoch + 1 == steps;
        Ok(StepOutcome {
            step: self.step,
            epoch,
            loss,
            gradient_norm,
            learning_rate,
            epoch_loss: last.then(|| self.epoch_loss_sum / steps as f64),
        })
    }

    fn parameters(&self) -> Result<Parameters, LearnError> {
        Ok(Parameters {
            architecture: self.config.architecture,
            values: self.backend.parameters().to_vec(),
        })
    }

    fn evaluate(&mut self, tokens: &CorpusTokens) -> Result<f64, LearnError> {
        let parameters = self.parameters()?;
        evaluate::mean_loss(&parameters, tokens, self.threads).map_err(LearnError::Text)
    }

    fn state(&self) -> Result<LearnerState, LearnError> {
        Ok(LearnerState {
            step: self.step,
            epoch_loss_sum: self.epoch_loss_sum,
            parameters: self.backend.parameters().to_vec(),
            first_moments: self.adam.first_moments.clone(),
            second_moments: self.adam.second_moments.clone(),
            hidden: self.backend.hidden()?,
        })
    }
}

impl GradientBackend {
    fn new(
        config: &LearnerConfig,
        factory: TorchLearnerFactory,
        initial: &Parameters,
    ) -> Result<Self, TorchError> {
        match factory.device {
            Device::Cpu => Ok(Self::Cpu(DataParallel::new(
                initial,
                config.batch_size,
                config.sequence_length,
                config.dropout,
                factory.threads,
            )?)),
            device @ Device::Cuda(_) => {
                let network = AutogradNetwork::new(initial, torch_device(device))?;
                Ok(Self::Cuda {
                    state: network.zero_state(config.batch_size)?,
                    network,
                    parameters: initial.values.clone(),
                    gradient: Vec::new(),
                })
            }
        }
    }

    /// Returns the mean loss of a batch of token ids, `[time, batch]`, in nats
    /// per character; [`Self::parameters_and_gradient`] returns its gradient.
    /// With `reset_state`, the hidden states start from zero. `key` determines
    /// the dropout masks.
    fn compute(
        &mut self,
        config: &LearnerConfig,
        inputs: &[u32],
        targets: &[u32],
        reset_state: bool,
        key: u64,
    ) -> Result<f64, TorchError> {
        match self {
            Self::Cpu(shards) => shards.step(inputs, targets, reset_state, key),
            Self::Cuda {
                network,
                state,
                gradient,
                ..
            } => {
                if reset_state {
                    *state = network.zero_state(config.batch_size)?;
                }
                let to_device = |batch: &[u32]| -> Result<Tensor, TchError> {
                    let batch: Vec<i64> = batch.iter().map(|&token| i64::from(token)).collect();
                    Tensor::f_from_slice(&batch)?
                        .f_view([-1, config.batch_size as i64])?
                        .f_to_device(network.device())
                };
                let (inputs, targets) = (to_device(inputs)?, to_device(targets)?);
                // Seeded in each step, so that a resumed training draws the
                // same masks.
                let _generator = seed_generator(key);
                let (loss, values) =
                    network.loss_and_gradient(&inputs, &targets, state, |_, output| {
                        output.f_dropout(config.dropout, true)
                    })?;
                *gradient = values;
                Ok(loss)
            }
        }
    }

    /// Returns the parameters, to be updated, and the gradient of the last
    /// batch.
    fn parameters_and_gradient(&mut self) -> (&mut [f32], &[f32]) {
        match self {
            Self::Cpu(shards) => shards.parameters_and_gradient(),
            Self::Cuda {
                parameters,
                gradient,
                ..
            } => (parameters, gradient),
        }
    }

    /// Copies updated parameters to the device, if it has its own memory.
    fn upload_parameters(&mut self) -> Result<(), TorchError> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda {
                network,
                parameters,
                ..
            } => Ok(network.set_parameters(parameters)?),
        }
    }

    /// Returns the parameters.
    fn parameters(&self) -> &[f32] {
        match self {
            Self::Cpu(shards) => shards.parameters(),
            Self::Cuda { parameters, .. } => parameters,
        }
    }

    /// Returns the hidden states, `[batch, layers, 2, hidden]`.
    fn hidden(&self) -> Result<Vec<f32>, TorchError> {
        match self {
            Self::Cpu(shards) => shards.state(),
            Self::Cuda { state, .. } => Ok(read_state(state)?),
        }
    }

    /// Sets the hidden states, in the layout of [`Self::hidden`].
    fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), TorchError> {
        match self {
            Self::Cpu(shards) => shards.set_state(hidden),
            Self::Cuda { state, .. } => Ok(write_state(hidden, state)?),
        }
    }
}

#[cfg(test)]
mod tests;
