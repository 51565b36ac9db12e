//! The devices that this build can use for training and generation: those of
//! libtorch with the cargo feature `torch`, otherwise only the CPU.

use std::sync::Arc;

use charlstm_model::decode_step::{DecodeDevice, Processor};
use charlstm_model::device::{Device, DeviceChoice, DeviceError};
use charlstm_model::learner::LearnerFactory;

/// Selects the configured device. May take seconds, if a CUDA driver must be
/// started.
///
/// # Errors
/// The device is not available.
pub(crate) fn select(choice: DeviceChoice) -> Result<Device, DeviceError> {
    #[cfg(feature = "torch")]
    let cuda_devices = charlstm_torch::device::cuda_devices;
    #[cfg(not(feature = "torch"))]
    let cuda_devices = || 0;
    choice.select(cuda_devices)
}

/// Returns the decode device, which prepares models for generation in batches
/// of at most `max_rows` rows.
pub(crate) fn decode_device(device: Device, max_rows: usize) -> Arc<dyn DecodeDevice> {
    match device {
        #[cfg(feature = "torch")]
        Device::Cuda(_) => Arc::new(charlstm_torch::decode_step::TorchDevice { device, max_rows }),
        _ => {
            let _ = max_rows;
            Arc::new(Processor)
        }
    }
}

/// Returns the factory of the learners, which train networks.
#[cfg(feature = "torch")]
pub(crate) fn learners(device: Device, threads: usize) -> Arc<dyn LearnerFactory> {
    Arc::new(charlstm_torch::learner::TorchLearnerFactory { device, threads })
}

/// Returns a factory that rejects every training: this build has no training
/// arithmetic.
#[cfg(not(feature = "torch"))]
pub(crate) fn learners(device: Device, _threads: usize) -> Arc<dyn LearnerFactory> {
    Arc::new(inference_only::NoLearners { device })
}

#[cfg(not(feature = "torch"))]
mod inference_only {
    use charlstm_model::device::Device;
    use charlstm_model::learner::{
        LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, TrainingUnsupported,
    };
    use charlstm_model::parameters::Parameters;
    use charlstm_model::tokens::CorpusTokens;

    #[derive(Debug)]
    pub(super) struct NoLearners {
        pub(super) device: Device,
    }

    impl LearnerFactory for NoLearners {
        fn device(&self) -> String {
            self.device.to_string()
        }

        fn threads(&self) -> usize {
            0
        }

        fn check_supported(&self) -> Result<(), TrainingUnsupported> {
            Err(TrainingUnsupported)
        }

        fn start(
            &self,
            _: &LearnerConfig,
            _: CorpusTokens,
            _: Option<Parameters>,
        ) -> Result<Box<dyn Learner>, LearnError> {
            Err(TrainingUnsupported.into())
        }

        fn resume(
            &self,
            _: &LearnerConfig,
            _: CorpusTokens,
            _: LearnerState,
        ) -> Result<Box<dyn Learner>, LearnError> {
            Err(TrainingUnsupported.into())
        }
    }
}
