//! A training step on a device: tensors that stay where they are, and the operations
//! between them, which can be captured and replayed.

use charlstm_bptt::trainer::{Step, StepInput, TrainerConfig};
use charlstm_model::parameters::Parameters;
use tch::{Device, Kind, TchError, Tensor};

use super::autograd::{AutogradNetwork, DeviceState, Drops, to_host};
use super::device_optimizer::DeviceOptimizer;

/// Everything that a step reads and writes.
pub(super) struct DeviceStep {
    config: TrainerConfig,
    pub(super) network: AutogradNetwork,
    pub(super) optimizer: DeviceOptimizer,
    pub(super) state: DeviceState,
    /// Of the last step, before clipping.
    pub(super) gradient: Tensor,
    /// Inputs and targets, `[2, time, rows]`.
    tokens: Tensor,
    /// Loss and norm of the gradient of the last step.
    outcome: Tensor,
}

impl DeviceStep {
    /// Copies the parameters to the device.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn new(
        config: TrainerConfig,
        initial: &Parameters,
        device: Device,
    ) -> Result<Self, TchError> {
        let mut network = AutogradNetwork::new(initial, device)?;
        let (rows, time) = (config.batch_size, config.sequence_length);
        Ok(Self {
            state: network.zero_state(rows)?,
            optimizer: DeviceOptimizer::new(network.flat(), config.average_decay.is_some())?,
            gradient: network.flat().f_zeros_like()?,
            tokens: Tensor::f_zeros([2, time as i64, rows as i64], (Kind::Int64, device))?,
            outcome: Tensor::f_zeros([2], (Kind::Float, device))?,
            network,
            config,
        })
    }

    /// Copies what is new in a step to the device.
    ///
    /// # Errors
    /// libtorch failed, for example because there are not as many tokens as in a
    /// batch.
    pub(super) fn set_input(&mut self, input: &StepInput<'_>) -> Result<(), TchError> {
        if input.reset_state {
            for tensor in self.state.iter_mut().flatten() {
                let _ = tensor.f_zero_()?;
            }
        }
        let tokens = input.inputs.iter().chain(input.targets);
        let tokens: Vec<i64> = tokens.copied().map(i64::from).collect();
        let tokens = Tensor::f_from_slice(&tokens)?.f_view(&*self.tokens.size())?;
        self.tokens.f_copy_(&tokens)?;
        self.optimizer.set_factors(&self.config.update(input))
    }

    /// Computes the step: only launches operations, always the same ones on the same
    /// tensors, and does not wait for the device.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn run(&mut self) -> Result<(), TchError> {
        let (inputs, targets) = (self.tokens.f_select(0, 0)?, self.tokens.f_select(0, 1)?);
        let drops = RandomDrops {
            config: &self.config,
        };
        let mut state = handles(&self.state);
        let mean_loss =
            self.network
                .gradient(&inputs, &targets, &mut state, &drops, &self.gradient)?;
        for (old, new) in self.state.iter_mut().flatten().zip(state.iter().flatten()) {
            old.f_copy_(new)?;
        }
        let norm = self
            .optimizer
            .step(self.network.flat(), &self.gradient, &self.config)?;
        let _ = Tensor::f_stack_out(&self.outcome, &[&mean_loss, &norm], 0)?;
        Ok(())
    }

    /// Waits for the device and returns the outcome of the last step.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn outcome(&self) -> Result<Step, TchError> {
        let outcome = to_host(&self.outcome)?;
        Ok(Step {
            loss: f64::from(outcome[0]),
            gradient_norm: f64::from(outcome[1]),
        })
    }

    /// Copies everything that a step changes.
    ///
    /// # Errors
    /// The device has too little memory.
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, TchError> {
        let copies = self
            .changed()
            .into_iter()
            .map(|tensor| tensor.f_detach_copy());
        Ok(Snapshot(copies.collect::<Result<_, _>>()?))
    }

    /// Restores everything that a step changes.
    ///
    /// # Errors
    /// libtorch failed.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        for (mut tensor, copy) in self.changed().into_iter().zip(&snapshot.0) {
            tensor.f_copy_(copy)?;
        }
        Ok(())
    }

    /// Waits for the device; returns whether everything that a step changes has the
    /// bits of a snapshot.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn equals(&mut self, snapshot: &Snapshot) -> Result<bool, TchError> {
        for (tensor, copy) in self.changed().iter().zip(&snapshot.0) {
            let (values, copies) = (bits(tensor)?, bits(copy)?);
            if values != copies {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns handles to the same tensors.
    #[cfg(test)]
    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            config: self.config,
            network: self.network.shallow_clone(),
            optimizer: self.optimizer.shallow_clone(),
            state: handles(&self.state),
            gradient: self.gradient.shallow_clone(),
            tokens: self.tokens.shallow_clone(),
            outcome: self.outcome.shallow_clone(),
        }
    }

    /// Returns handles to the tensors that a step changes.
    pub(super) fn changed(&mut self) -> Vec<Tensor> {
        let mut changed: Vec<Tensor> = [
            self.network.flat(),
            &mut self.optimizer.first_moments,
            &mut self.optimizer.second_moments,
            &mut self.gradient,
            &mut self.outcome,
        ]
        .map(|tensor| tensor.shallow_clone())
        .into();
        let average = self.optimizer.average.iter();
        let rest = average.chain(self.state.iter().flatten());
        changed.extend(rest.map(Tensor::shallow_clone));
        changed
    }
}

/// Returns handles to the same tensors.
fn handles(state: &DeviceState) -> DeviceState {
    let layers = state.iter();
    layers
        .map(|layer| layer.each_ref().map(Tensor::shallow_clone))
        .collect()
}

/// Copies the bits of a tensor to main memory.
fn bits(tensor: &Tensor) -> Result<Vec<u32>, TchError> {
    let values = to_host(&tensor.f_reshape([-1])?)?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// A copy of everything that a step changes.
pub(super) struct Snapshot(Vec<Tensor>);

/// Drops what libtorch's generator draws.
struct RandomDrops<'a> {
    config: &'a TrainerConfig,
}

/// Returns a mask of scaled ones and zeros for a tensor.
fn mask(shape: &[i64], tensor: &Tensor, probability: f64) -> Result<Tensor, TchError> {
    Tensor::f_ones(shape, (Kind::Float, tensor.device()))?.f_dropout(probability, true)
}

impl Drops for RandomDrops<'_> {
    fn inputs(&self, one_hot: Tensor) -> Result<Tensor, TchError> {
        let probability = self.config.input_dropout;
        if probability == 0.0 {
            return Ok(one_hot);
        }
        let vocabulary = self.config.architecture.vocabulary_size as i64;
        one_hot.f_mul(&mask(&[vocabulary], &one_hot, probability)?)
    }

    fn recurrent(&self, _layer: usize, weight: &Tensor) -> Result<Option<Tensor>, TchError> {
        let probability = self.config.recurrent_dropout;
        if probability == 0.0 {
            return Ok(None);
        }
        Ok(Some(mask(&weight.size(), weight, probability)?))
    }

    fn output(&self, _layer: usize, output: Tensor) -> Result<Tensor, TchError> {
        if !self.config.locked_dropout {
            return output.f_dropout(self.config.dropout, true);
        }
        let (_, rows, hidden) = output.size3()?;
        output.f_mul(&mask(&[1, rows, hidden], &output, self.config.dropout)?)
    }
}
