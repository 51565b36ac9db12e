//! Training step by step: batches in order, gradients, clipping, Adam. Knows
//! nothing of jobs, files or events; those are in `training`.

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

use super::bptt::dropout::subkey;
use super::data_parallel::DataParallel;
use super::device::torch_device;
use super::error::TorchError;
use super::network::{CharLstm, TorchState, numbers_to_state, state_to_numbers};
use super::optimizer::{Adam, clip_scale, norm};

/// What a training computes with. A different number of threads gives
/// different last bits.
#[derive(Clone, Copy, Debug)]
pub struct TorchLearners {
    /// Where to train.
    pub device: Device,
    /// Threads on the CPU.
    pub threads: usize,
}

/// Where gradients come from.
enum Backend {
    Cpu(DataParallel),
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
pub struct TorchLearner {
    config: LearnerConfig,
    place: TorchLearners,
    tokens: CorpusTokens,
    batches: Batches,
    backend: Backend,
    adam: Adam,
    step: u64,
    epoch_loss_sum: f64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl TorchLearner {
    /// Prepares a training on `tokens`, from `initial` parameters or new ones.
    ///
    /// # Errors
    /// Too few tokens for one batch; no memory; no threads.
    pub fn new(
        config: LearnerConfig,
        place: TorchLearners,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Self, LearnError> {
        let batches = Batches::new(tokens.len(), config.batch_size, config.sequence_length)?;
        let initial = initial.unwrap_or_else(|| {
            let rule = config.optimizer.initial;
            rule.parameters(config.architecture, config.seed)
        });
        let OptimizerConfig {
            beta2,
            weight_decay,
            ..
        } = config.optimizer;
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
        place: TorchLearners,
        tokens: CorpusTokens,
        snapshot: LearnerState,
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
                return Err(LearnError::State {
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
            Backend::Torch { state, .. } => {
                numbers_to_state(&snapshot.hidden, state).map_err(TorchError::from)?;
            }
        }
        Ok(learner)
    }

    /// Where the ring of the text is cut in an epoch, from 1.
    fn offset(&self, epoch: u32) -> usize {
        if !self.config.optimizer.rotate {
            return 0;
        }
        let draw = subkey(subkey(self.config.seed, OFFSETS), u64::from(epoch));
        (draw % self.tokens.len() as u64) as usize
    }
}

impl Learner for TorchLearner {
    fn steps_per_epoch(&self) -> u64 {
        self.batches.steps() as u64
    }

    fn step(&mut self) -> Result<StepOutcome, LearnError> {
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
        let schedule = self.config.optimizer.schedule;
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

    fn parameters(&self) -> Result<Parameters, LearnError> {
        let values = match &self.backend {
            Backend::Cpu(shards) => shards.parameters().to_vec(),
            Backend::Torch { parameters, .. } => parameters.clone(),
        };
        Ok(Parameters {
            architecture: self.config.architecture,
            values,
        })
    }

    fn evaluate(&mut self, tokens: &CorpusTokens) -> Result<f64, LearnError> {
        let parameters = self.parameters()?;
        Ok(evaluate::mean_loss(&parameters, tokens, self.place.threads))
    }

    fn state(&self) -> Result<LearnerState, LearnError> {
        Ok(LearnerState {
            step: self.step,
            epoch_loss_sum: self.epoch_loss_sum,
            parameters: self.parameters()?.values,
            first_moments: self.adam.first_moments.clone(),
            second_moments: self.adam.second_moments.clone(),
            hidden: match &self.backend {
                Backend::Cpu(shards) => shards.state()?,
                Backend::Torch { state, .. } => {
                    state_to_numbers(state).map_err(TorchError::from)?
                }
            },
        })
    }
}

impl Backend {
    fn new(
        config: &LearnerConfig,
        place: TorchLearners,
        initial: &Parameters,
    ) -> Result<Self, TorchError> {
        match place.device {
            Device::Cpu => Ok(Self::Cpu(DataParallel::new(
                initial,
                config.batch_size,
                config.sequence_length,
                config.dropout,
                place.threads,
            )?)),
            Device::Cuda(index) => {
                let network = CharLstm::new(initial, torch_device(Device::Cuda(index)))?;
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
    ) -> Result<f64, TorchError> {
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
    fn publish(&mut self) -> Result<(), TorchError> {
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

impl LearnerFactory for TorchLearners {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn start(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = TorchLearner::new(config.clone(), *self, tokens, initial)?;
        Ok(Box::new(learner))
    }

    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = TorchLearner::restore(config.clone(), *self, tokens, state)?;
        Ok(Box::new(learner))
    }
}

#[cfg(test)]
mod tests;
