//! Training on a GPU, by libtorch. Parameters, gradient, moments and hidden states
//! stay on the device; a step copies its tokens there, and its loss and the norm of
//! its gradient back.

use charlstm_bptt::optimizer::OptimizerState;
use charlstm_bptt::trainer::{Step, StepInput, Trainer, TrainerConfig};
use charlstm_model::learner::{LearnError, LearnerConfig};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;
use tch::{Device, Kind, TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, Drops, read_state, to_host, write_state};
use super::device_evaluation;
use super::device_optimizer::DeviceOptimizer;
use super::failed;
use super::process_state::seed_generator;

/// A network in training on a device.
pub(super) struct CudaTrainer {
    config: LearnerConfig,
    network: AutogradNetwork,
    state: DeviceState,
    optimizer: DeviceOptimizer,
    /// Of the last step, before clipping.
    gradient: Tensor,
}

impl CudaTrainer {
    /// Copies the parameters to the device.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn new(
        config: &LearnerConfig,
        initial: &Parameters,
        device: Device,
    ) -> Result<Self, TchError> {
        let mut network = AutogradNetwork::new(initial, device)?;
        let keeps_average = config.techniques.average_decay.is_some();
        Ok(Self {
            state: network.zero_state(config.batch_size)?,
            optimizer: DeviceOptimizer::new(network.flat(), keeps_average)?,
            gradient: network.flat().f_zeros_like()?,
            network,
            config: config.clone(),
        })
    }

    fn try_step(&mut self, input: &StepInput<'_>) -> Result<Step, TchError> {
        if input.reset_state {
            self.state = self.network.zero_state(self.config.batch_size)?;
        }
        let tokens = [input.inputs, input.targets].concat();
        let tokens: Vec<i64> = tokens.into_iter().map(i64::from).collect();
        let tokens = Tensor::f_from_slice(&tokens)?
            .f_view([2, -1, self.config.batch_size as i64])?
            .f_to_device(self.network.device())?;
        let (inputs, targets) = (tokens.f_select(0, 0)?, tokens.f_select(0, 1)?);
        // Seeded in each step, so that a resumed training draws the same masks.
        let generator = seed_generator(input.key);
        let drops = RandomDrops {
            config: &self.config,
        };
        let gradient = self
            .network
            .gradient(&inputs, &targets, &mut self.state, &drops)?;
        drop(generator);
        self.gradient = gradient.flat;
        let update = TrainerConfig::of(&self.config).update(input);
        let norm = self
            .optimizer
            .step(self.network.flat(), &self.gradient, &update)?;
        // Waits for the device.
        let outcome = to_host(&Tensor::f_stack(&[&gradient.mean_loss, &norm], 0)?)?;
        Ok(Step {
            loss: f64::from(outcome[0]),
            gradient_norm: f64::from(outcome[1]),
        })
    }

    fn try_state(&mut self) -> Result<OptimizerState, TchError> {
        Ok(OptimizerState {
            parameters: to_host(self.network.flat())?,
            first_moments: to_host(&self.optimizer.first_moments)?,
            second_moments: to_host(&self.optimizer.second_moments)?,
            average: self.try_average()?,
        })
    }

    fn try_average(&self) -> Result<Vec<f32>, TchError> {
        let average = self.optimizer.average.as_ref();
        average.map_or(Ok(Vec::new()), to_host)
    }

    fn try_set_state(&mut self, state: &OptimizerState) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        let optimizer = &mut self.optimizer;
        let mut copies = vec![
            (self.network.flat(), &state.parameters),
            (&mut optimizer.first_moments, &state.first_moments),
            (&mut optimizer.second_moments, &state.second_moments),
        ];
        if let Some(average) = &mut optimizer.average {
            copies.push((average, &state.average));
        }
        for (tensor, values) in copies {
            assert_eq!(tensor.numel(), values.len(), "the state of another network");
            tensor.f_copy_(&Tensor::f_from_slice(values)?)?;
        }
        Ok(())
    }
}

/// Drops what libtorch's generator draws.
struct RandomDrops<'a> {
    config: &'a LearnerConfig,
}

/// Returns a mask of scaled ones and zeros for a tensor.
fn mask(shape: &[i64], tensor: &Tensor, probability: f64) -> Result<Tensor, TchError> {
    Tensor::f_ones(shape, (Kind::Float, tensor.device()))?.f_dropout(probability, true)
}

impl Drops for RandomDrops<'_> {
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError> {
        let probability = self.config.techniques.input_dropout;
        if probability == 0.0 {
            return Ok(one_hot);
        }
        let vocabulary = self.config.architecture.vocabulary_size as i64;
        one_hot.f_mul(&mask(&[vocabulary], &one_hot, probability)?)
    }

    fn recurrent(&self, _layer: usize, weight: &Tensor) -> Result<Option<Tensor>, TchError> {
        let probability = self.config.techniques.recurrent_dropout;
        if probability == 0.0 {
            return Ok(None);
        }
        Ok(Some(mask(&weight.size(), weight, probability)?))
    }

    fn output(&self, _layer: usize, output: Tensor) -> Result<Tensor, TchError> {
        if !self.config.techniques.locked_dropout {
            return output.f_dropout(self.config.dropout, true);
        }
        let (_, rows, hidden) = output.size3()?;
        output.f_mul(&mask(&[1, rows, hidden], &output, self.config.dropout)?)
    }
}

impl Trainer for CudaTrainer {
    fn step(&mut self, input: StepInput<'_>) -> Result<Step, LearnError> {
        self.try_step(&input).map_err(failed)
    }

    fn gradient(&mut self) -> Result<Vec<f32>, LearnError> {
        to_host(&self.gradient).map_err(failed)
    }

    fn parameters(&mut self) -> Result<Vec<f32>, LearnError> {
        to_host(self.network.flat()).map_err(failed)
    }

    fn average(&mut self) -> Result<Vec<f32>, LearnError> {
        self.try_average().map_err(failed)
    }

    fn optimizer_state(&mut self) -> Result<OptimizerState, LearnError> {
        self.try_state().map_err(failed)
    }

    fn set_optimizer_state(&mut self, state: &OptimizerState) -> Result<(), LearnError> {
        self.try_set_state(state).map_err(failed)
    }

    fn mean_loss(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError> {
        device_evaluation::mean_loss(parameters, self.network.device(), tokens)
    }

    fn hidden(&mut self) -> Result<Vec<f32>, LearnError> {
        read_state(&self.state).map_err(failed)
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), LearnError> {
        write_state(hidden, &mut self.state).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
