//! Training on a GPU: the gradient by libtorch's automatic differentiation, the
//! optimizer in main memory.

use charlstm_bptt::optimizer::{HostOptimizer, OptimizerState};
use charlstm_bptt::trainer::{Step, StepInput, Trainer, TrainerConfig};
use charlstm_model::learner::{LearnError, LearnerConfig};
use charlstm_model::parameters::Parameters;
use tch::{Device, Kind, TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, Drops, read_state, write_state};
use super::process_state::seed_generator;

/// A network whose gradient is computed by libtorch on a device.
pub(super) struct CudaTrainer {
    config: LearnerConfig,
    network: AutogradNetwork,
    state: DeviceState,
    /// Has copies of parameters and gradient in main memory.
    optimizer: HostOptimizer,
}

impl CudaTrainer {
    /// Copies the parameters to the device. The optimizer computes on `threads`
    /// threads.
    ///
    /// # Errors
    /// libtorch failed, or a thread could not be started.
    pub(super) fn new(
        config: &LearnerConfig,
        initial: &Parameters,
        device: Device,
        threads: usize,
    ) -> Result<Self, LearnError> {
        let network = AutogradNetwork::new(initial, device).map_err(failed)?;
        let keeps_average = config.techniques.average_decay.is_some();
        Ok(Self {
            state: network.zero_state(config.batch_size).map_err(failed)?,
            network,
            optimizer: HostOptimizer::start(&initial.values, keeps_average, threads)
                .map_err(LearnError::Thread)?,
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
        self.optimizer.gradient().copy_from_slice(&gradient);
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
        let update = TrainerConfig::of(&self.config).update(&input);
        let gradient_norm = self.optimizer.step(&update)?;
        self.network
            .set_parameters(self.optimizer.state().parameters)
            .map_err(failed)?;
        Ok(Step {
            loss,
            gradient_norm,
        })
    }

    fn gradient(&mut self) -> &[f32] {
        self.optimizer.gradient()
    }

    fn optimizer_state(&mut self) -> OptimizerState<'_> {
        self.optimizer.state()
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
