//! Training on a GPU, by libtorch. Parameters, gradient, moments and hidden states
//! stay on the device; a step copies its tokens there, and its loss and the norm of
//! its gradient back.

use charlstm_bptt::optimizer::OptimizerState;
use charlstm_bptt::trainer::{Step, StepInput, Trainer, TrainerConfig};
use charlstm_model::learner::{LearnError, LearnerConfig};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;
use tch::{Device, TchError, Tensor};

use super::autograd::{read_state, to_host, write_state};
use super::cuda_graph::{CudaGraphs, TrainingStream};
use super::device_evaluation;
use super::device_step::DeviceStep;
use super::failed;
use super::step_launcher::StepLauncher;

/// A network in training on a device.
pub(super) struct CudaTrainer {
    /// Dropped before the tensors that it works on.
    launcher: StepLauncher,
    step: DeviceStep,
    /// All work of this trainer runs there, whichever thread calls.
    stream: TrainingStream,
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
        let (stream, launcher) = launching_on(device);
        let _current = stream.enter()?;
        Ok(Self {
            launcher,
            step: DeviceStep::new(TrainerConfig::of(config), initial, device)?,
            stream,
        })
    }

    /// Runs `work` on the stream of this trainer.
    fn on_stream<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TchError>,
    ) -> Result<T, LearnError> {
        let _current = self.stream.enter().map_err(failed)?;
        work(self).map_err(failed)
    }

    fn try_state(&mut self) -> Result<OptimizerState, TchError> {
        Ok(OptimizerState {
            parameters: to_host(self.step.network.flat())?,
            first_moments: to_host(&self.step.optimizer.first_moments)?,
            second_moments: to_host(&self.step.optimizer.second_moments)?,
            average: self.try_average()?,
        })
    }

    fn try_average(&self) -> Result<Vec<f32>, TchError> {
        let average = self.step.optimizer.average.as_ref();
        average.map_or(Ok(Vec::new()), to_host)
    }

    fn try_set_state(&mut self, state: &OptimizerState) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        let DeviceStep {
            network, optimizer, ..
        } = &mut self.step;
        let mut copies = vec![
            (network.flat(), &state.parameters),
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

/// Returns how the steps of a training reach a device. A GPU of which no stream can
/// be reserved uses the default one, where nothing can be captured.
fn launching_on(device: Device) -> (TrainingStream, StepLauncher) {
    let Device::Cuda(index) = device else {
        return (TrainingStream::default(), StepLauncher::Plain);
    };
    match TrainingStream::new(index) {
        Ok(stream) => (stream, StepLauncher::capturing(Box::new(CudaGraphs))),
        Err(error) => (
            TrainingStream::default(),
            StepLauncher::plain_because(&error),
        ),
    }
}

impl Trainer for CudaTrainer {
    fn step(&mut self, input: StepInput<'_>) -> Result<Step, LearnError> {
        self.on_stream(|trainer| trainer.launcher.step(&mut trainer.step, &input))
    }

    fn gradient(&mut self) -> Result<Vec<f32>, LearnError> {
        self.on_stream(|trainer| to_host(&trainer.step.gradient))
    }

    fn parameters(&mut self) -> Result<Vec<f32>, LearnError> {
        self.on_stream(|trainer| to_host(trainer.step.network.flat()))
    }

    fn average(&mut self) -> Result<Vec<f32>, LearnError> {
        self.on_stream(|trainer| trainer.try_average())
    }

    fn optimizer_state(&mut self) -> Result<OptimizerState, LearnError> {
        self.on_stream(Self::try_state)
    }

    fn set_optimizer_state(&mut self, state: &OptimizerState) -> Result<(), LearnError> {
        self.on_stream(|trainer| trainer.try_set_state(state))
    }

    fn mean_loss(
        &mut self,
        parameters: &Parameters,
        tokens: &CorpusTokens,
    ) -> Result<f64, LearnError> {
        let _current = self.stream.enter().map_err(failed)?;
        device_evaluation::mean_loss(parameters, self.step.network.device(), tokens)
    }

    fn hidden(&mut self) -> Result<Vec<f32>, LearnError> {
        self.on_stream(|trainer| read_state(&trainer.step.state))
    }

    fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), LearnError> {
        self.on_stream(|trainer| write_state(hidden, &mut trainer.step.state))
    }
}

#[cfg(test)]
mod tests;
