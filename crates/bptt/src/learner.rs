//! Training step by step: batches in order, learning rates, epochs. The loop
//! around it, with jobs, files and events, is in `charlstm-training`; the
//! arithmetic is that of a [`Trainer`].

use charlstm_model::batches::Batches;
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{
    LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, StepOutcome,
    TrainingPrecision,
};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;

use super::dropout::subkey;
use super::instructions::Instructions;
use super::optimizer::OptimizerState;
use super::trainer::{self, StepInput, Trainer, TrainerConfig};

#[cfg(test)]
mod tests;

/// Creates learners that compute on the CPU.
///
/// A training is the same bit for bit only with the same instructions; the
/// number of threads does not matter.
#[derive(Clone, Copy, Debug)]
pub struct CpuLearnerFactory {
    /// Threads that compute.
    pub threads: usize,
    /// The instruction set; if it is the fastest of this CPU, its instructions
    /// for bfloat16 are used, too.
    pub kernels: FloatKernels,
}

impl LearnerFactory for CpuLearnerFactory {
    fn device(&self) -> String {
        "cpu".to_owned()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn fastest_precision(&self) -> TrainingPrecision {
        match Instructions::for_bf16(self.kernels) {
            Some(_) => TrainingPrecision::Bf16,
            None => TrainingPrecision::Float32,
        }
    }

    fn instructions(&self, precision: TrainingPrecision) -> String {
        Instructions::choose(precision, self.kernels).to_string()
    }

    fn start(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = NetworkLearner::start(config, tokens, initial, self)?;
        Ok(Box::new(learner))
    }

    fn resume(
        &self,
        config: &LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
    ) -> Result<Box<dyn Learner>, LearnError> {
        let learner = NetworkLearner::resume(config, tokens, state, self)?;
        Ok(Box::new(learner))
    }
}

/// Creates the trainer of a learner: on the CPU, or on another device.
pub trait TrainerFactory {
    /// Creates a trainer that starts at some parameters, in the order of
    /// `charlstm_model::parameters::layout`.
    ///
    /// # Errors
    /// The device failed, or a thread could not be started.
    fn trainer(
        &self,
        config: &LearnerConfig,
        parameters: &Parameters,
    ) -> Result<Box<dyn Trainer>, LearnError>;
}

impl TrainerFactory for CpuLearnerFactory {
    fn trainer(
        &self,
        config: &LearnerConfig,
        parameters: &Parameters,
    ) -> Result<Box<dyn Trainer>, LearnError> {
        let instructions = Instructions::choose(config.precision, self.kernels);
        let config = TrainerConfig::of(config);
        trainer::start(config, instructions, &parameters.values, self.threads)
            .map_err(LearnError::Thread)
    }
}

/// Derives the key of the offsets from the seed; no step has this number.
const OFFSET_KEY: u64 = u64::MAX;

/// A network in training. Its methods block the calling thread.
pub struct NetworkLearner {
    config: LearnerConfig,
    tokens: CorpusTokens,
    batches: Batches,
    trainer: Box<dyn Trainer>,
    /// Optimizer steps taken.
    step: u64,
    epoch_loss_sum: f64,
    /// Buffers for a batch, `[time, batch]`.
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl NetworkLearner {
    /// Starts a training on `tokens`, from `initial` parameters or new ones.
    ///
    /// # Errors
    /// There are too few tokens for one batch, or the trainer could not be
    /// created.
    pub fn start(
        config: &LearnerConfig,
        tokens: CorpusTokens,
        initial: Option<Parameters>,
        factory: &dyn TrainerFactory,
    ) -> Result<Self, LearnError> {
        let batches = Batches::new(tokens.len(), config.batch_size, config.sequence_length)?;
        let initial = initial.unwrap_or_else(|| {
            let initialization = config.optimizer.initial;
            initialization.parameters(config.architecture, config.seed)
        });
        let characters = config.batch_size * config.sequence_length;
        Ok(Self {
            trainer: factory.trainer(config, &initial)?,
            tokens,
            batches,
            step: 0,
            epoch_loss_sum: 0.0,
            inputs: vec![0; characters],
            targets: vec![0; characters],
            config: config.clone(),
        })
    }

    /// Resumes a training from a saved state.
    ///
    /// # Errors
    /// As [`Self::start`], or the state is of another network or batch size.
    pub fn resume(
        config: &LearnerConfig,
        tokens: CorpusTokens,
        state: LearnerState,
        factory: &dyn TrainerFactory,
    ) -> Result<Self, LearnError> {
        let count = config.architecture.parameter_count();
        let hidden = config.batch_size * config.architecture.state_len();
        let average = if config.techniques.average_decay.is_some() {
            count
        } else {
            0
        };
        for (what, given, expected) in [
            ("parameters", state.parameters.len(), count),
            ("first moments", state.first_moments.len(), count),
            ("second moments", state.second_moments.len(), count),
            ("average", state.average.len(), average),
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
        let optimizer = OptimizerState {
            parameters: parameters.values.clone(),
            first_moments: state.first_moments,
            second_moments: state.second_moments,
            average: state.average,
        };
        let mut learner = Self::start(config, tokens, Some(parameters), factory)?;
        learner.trainer.set_optimizer_state(&optimizer)?;
        learner.trainer.set_hidden(&state.hidden)?;
        learner.step = state.step;
        learner.epoch_loss_sum = state.epoch_loss_sum;
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

    fn of_architecture(&self, values: Vec<f32>) -> Parameters {
        Parameters {
            architecture: self.config.architecture,
            values,
        }
    }
}

impl Learner for NetworkLearner {
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
        let total = steps * u64::from(self.config.epochs);
        let schedule = self.config.optimizer.schedule;
        let learning_rate = self.config.learning_rate * schedule.factor(self.step, total);
        let trained = self.trainer.step(StepInput {
            inputs: &self.inputs,
            targets: &self.targets,
            reset_state: first,
            key: subkey(self.config.seed, self.step),
            step: self.step + 1,
            learning_rate,
        })?;
        self.step += 1;
        if first {
            self.epoch_loss_sum = 0.0;
        }
        self.epoch_loss_sum += trained.loss;
        let last = step_in_epoch + 1 == steps;
        Ok(StepOutcome {
            step: self.step,
            epoch,
            loss: trained.loss,
            gradient_norm: trained.gradient_norm,
            learning_rate,
            epoch_loss: last.then(|| self.epoch_loss_sum / steps as f64),
        })
    }

    fn parameters(&mut self) -> Result<Parameters, LearnError> {
        let values = self.trainer.parameters()?;
        Ok(self.of_architecture(values))
    }

    fn average(&mut self) -> Result<Option<Parameters>, LearnError> {
        let values = self.trainer.average()?;
        Ok((!values.is_empty()).then(|| self.of_architecture(values)))
    }

    fn evaluate(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError> {
        self.trainer.mean_loss(parameters, tokens)
    }

    fn state(&mut self) -> Result<LearnerState, LearnError> {
        let hidden = self.trainer.hidden()?;
        let OptimizerState {
            parameters,
            first_moments,
            second_moments,
            average,
        } = self.trainer.optimizer_state()?;
        Ok(LearnerState {
            step: self.step,
            epoch_loss_sum: self.epoch_loss_sum,
            parameters,
            first_moments,
            second_moments,
            average,
            hidden,
        })
    }
}
