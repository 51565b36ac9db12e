//! Learners of any device: on the CPU by `charlstm-bptt`, on a GPU by libtorch.

use charlstm_bptt::learner::{CpuLearnerFactory, NetworkLearner, TrainerFactory};
use charlstm_bptt::trainer::Trainer;
use charlstm_model::device::{Device, GpuMath};
use charlstm_model::kernels::FloatKernels;
use charlstm_model::learner::{
    LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, TrainingPrecision,
};
use charlstm_model::parameters::Parameters;
use charlstm_model::tokens::CorpusTokens;

use super::cuda_trainer::CudaTrainer;
use super::device::torch_device;
use super::failed;
use super::process_state::use_calling_thread_only;

/// Creates learners for a device.
///
/// A training is the same bit for bit only on the same type of GPU, or with the
/// same instructions of the CPU.
#[derive(Clone, Copy, Debug)]
pub struct TorchLearnerFactory {
    /// The device that computes the gradients.
    pub device: Device,
    /// Threads that compute on the CPU; a GPU needs one.
    pub threads: usize,
    /// The instruction set of trainings on the CPU.
    pub kernels: FloatKernels,
    /// How a GPU computes. Only recorded here: the caller has set it with
    /// [`environment`](super::environment).
    pub gpu_math: GpuMath,
}

impl TorchLearnerFactory {
    fn on_cpu(self) -> CpuLearnerFactory {
        CpuLearnerFactory {
            threads: self.threads,
            kernels: self.kernels,
        }
    }
}

impl TrainerFactory for TorchLearnerFactory {
    fn trainer(
        &self,
        config: &LearnerConfig,
        parameters: &Parameters,
    ) -> Result<Box<dyn Trainer>, LearnError> {
        match self.device {
            Device::Cpu => self.on_cpu().trainer(config, parameters),
            device @ Device::Cuda(_) => {
                use_calling_thread_only();
                let device = torch_device(device);
                let trainer = CudaTrainer::new(config, parameters, device).map_err(failed)?;
                Ok(Box::new(trainer))
            }
        }
    }
}

impl LearnerFactory for TorchLearnerFactory {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn fastest_precision(&self) -> TrainingPrecision {
        match self.device {
            Device::Cpu => self.on_cpu().fastest_precision(),
            Device::Cuda(_) => TrainingPrecision::Float32,
        }
    }

    fn instructions(&self, precision: TrainingPrecision) -> String {
        match self.device {
            Device::Cpu => self.on_cpu().instructions(precision),
            Device::Cuda(_) => match self.gpu_math {
                GpuMath::Float32 => "cuda".to_owned(),
                GpuMath::Tf32 => "cuda tf32".to_owned(),
            },
        }
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
