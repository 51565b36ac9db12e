//! Training on a GPU: the gradient by libtorch's automatic differentiation, the
//! optimizer in main memory.

use charlstm_bptt::trainer::{OptimizerState, Step, StepInput, Trainer};
use charlstm_model::learner::{LearnError, LearnerConfig};
use charlstm_model::parameters::Parameters;
use tch::{Device, Kind, TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, Drops, read_state, write_state};
use super::optimizer::{Adam, clip_scale, norm};
use super::process_state::seed_generator;

/// A network whose gradient is computed by libtorch on a device.
pub(super) struct CudaTrainer {
    config: LearnerConfig,
    /// Threads of the optimizer.
    threads: usize,
    network: AutogradNetwork,
    state: DeviceState,
    /// Copies in main memory, where the optimizer runs.
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    /// Moving average of the parameters; empty if there is none.
    average: Vec<f32>,
    adam: Adam,
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
        threads: usize,
    ) -> Result<Self, LearnError> {
        let network = AutogradNetwork::new(initial, device).map_err(failed)?;
        let optimizer = &config.optimizer;
        Ok(Self {
            state: network.zero_state(config.batch_size).map_err(failed)?,
            network,
            threads,
            parameters: initial.values.clone(),
            average: match config.techniques.average_decay {
                Some(_) => initial.values.clone(),
                None => Vec::new(),
            },
            gradient: vec![0.0; initial.values.len()],
            adam: Adam::new(
                initial.values.len(),
                optimizer.beta2,
                optimizer.weight_decay,
            ),
            config: config.clone(),
        })
    }

    /// Computes the loss of a batch, and its gradient.
    fn compute(&mut self, input: &StepInput<'_>) -> Result<f64, TchError> {
        if input.reset_state {
            self.state = self.network.zero_state(self.config.batch_size)?;
        }
        let to_device = |batch: &[u32]| -> Result<Tensor, TchError> {
            let batch: Vec<i64> = batch.iter().map(|&token| i64::from(token)).collect();
            Tensor::f_from_slice(&batch)?
                .f_view([-1, self.config.batch_size as i64])?
                .f_to_device(self.network.device())
        };
        let (inputs, targets) = (to_device(input.inputs)?, to_device(input.targets)?);
        // Seeded in each step, so that a resumed training draws the same masks.
        let _generator = seed_generator(input.key);
        let drops = RandomDrops {
            config: &self.config,
        };
        let (loss, gradient) =
            self.network
                .loss_and_gradient(&inputs, &targets, &mut self.state, &drops)?;
        self.gradient = gradient;
        Ok(loss)
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

    fn recurrent(&self, _layer: usize, weight: &Tensor) -> Result<Tensor, TchError> {
        match self.config.techniques.recurrent_dropout {
            0.0 => Ok(weight.shallow_clone()),
            probability => weight.f_dropout(probability, true),
        }
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
        let loss = self.compute(&input).map_err(failed)?;
        let gradient_norm = norm(&self.gradient);
        self.adam.update(
            &mut self.parameters,
            &self.gradient,
            clip_scale(gradient_norm, self.config.clip_norm),
            input.learning_rate,
            input.step,
            self.threads,
        );
        if let Some(decay) = self.config.techniques.average_decay {
            let rest = 1.0 - decay as f32;
            for (average, parameter) in self.average.iter_mut().zip(&self.parameters) {
                *average += rest * (parameter - *average);
            }
        }
        self.network
            .set_parameters(&self.parameters)
            .map_err(failed)?;
        Ok(Step {
            loss,
            gradient_norm,
        })
    }

    fn gradient(&mut self) -> &[f32] {
        &self.gradient
    }

    fn optimizer_state(&mut self) -> OptimizerState<'_> {
        OptimizerState {
            parameters: &mut self.parameters,
            first_moments: &mut self.adam.first_moments,
            second_moments: &mut self.adam.second_moments,
            average: &mut self.average,
        }
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

fn failed(error: TchError) -> LearnError {
    LearnError::Backend(Box::new(error))
}
