//! The devices that this build can use for training and generation: those of
//! libtorch with the cargo feature `torch`, otherwise only the CPU.

use std::sync::Arc;

use charlstm_model::decode_step::{DecodeDevice, Int8Processor, Precision, Processor};
use charlstm_model::device::{Device, DeviceChoice, DeviceError};
use charlstm_model::kernels::Kernels;
use charlstm_model::learner::LearnerFactory;
use charlstm_repository::DecodeDevices;

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

/// Returns the decode devices, which prepare models for generation in batches
/// of at most `max_rows` rows. A GPU computes the float32 decode steps of a
/// server whose precision is float32; everything else is computed on the CPU.
pub(crate) fn decode_devices(
    device: Device,
    precision: Precision,
    kernels: Kernels,
    max_rows: usize,
) -> DecodeDevices {
    let float32: Arc<dyn DecodeDevice> = match (device, precision) {
        #[cfg(feature = "torch")]
        (Device::Cuda(_), Precision::Float32) => {
            Arc::new(charlstm_torch::decode_step::TorchDevice { device, max_rows })
        }
        _ => {
            let _ = max_rows;
            Arc::new(Processor {
                kernels: kernels.float32,
            })
        }
    };
    DecodeDevices {
        float32,
        int8: Arc::new(Int8Processor {
            kernel: kernels.int8,
        }),
        precision,
    }
}

/// Returns the number of threads that generate. A GPU computes one large batch
/// faster than several small ones.
pub(crate) fn generation_threads(device: Device, precision: Precision, threads: usize) -> usize {
    match (device, precision) {
        (Device::Cuda(_), Precision::Float32) => 1,
        _ => threads,
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
