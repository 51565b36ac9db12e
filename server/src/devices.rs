//! The devices that this build can use for training and generation. Training
//! and float32 on a GPU are computed by libtorch, with the cargo feature
//! `torch`; int8 on a GPU, and the scores of such a server, by the project's own
//! kernels, in every build.

use std::sync::Arc;

use charlstm_cuda::{CudaDecoder, CudaEvent};
use charlstm_model::decode_step::{Int8Processor, Precision, Processor};
use charlstm_model::device::{Device, DeviceChoice, DeviceError, GpuMath};
use charlstm_model::kernels::{FloatKernels, Kernels};
use charlstm_model::learner::LearnerFactory;
use charlstm_repository::DecodeDevices;
use tokio_util::sync::CancellationToken;

use crate::config::GpuFailure;

/// Selects the configured device. May take seconds, if a CUDA driver must be
/// started.
///
/// # Errors
/// The device is not available.
pub(crate) fn select(choice: DeviceChoice) -> Result<Device, DeviceError> {
    #[cfg(feature = "torch")]
    let cuda_devices = charlstm_torch::device::cuda_devices;
    #[cfg(not(feature = "torch"))]
    let cuda_devices = || charlstm_cuda::devices().map_or(0, |devices| devices.len());
    choice.select(cuda_devices)
}

/// The decode devices of a server.
pub(crate) struct Generation {
    /// Prepare models.
    pub(crate) devices: DecodeDevices,
    /// Number of threads that generate.
    pub(crate) threads: usize,
    /// Cancelled if the GPU fails and the server is to end then.
    pub(crate) failed: CancellationToken,
}

/// The settings that [`generation`] needs.
pub(crate) struct GenerationSettings {
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    pub(crate) kernels: Kernels,
    /// Largest batch.
    #[cfg_attr(not(feature = "torch"), expect(dead_code))]
    pub(crate) max_rows: usize,
    /// Threads for the CPU.
    pub(crate) threads: usize,
    pub(crate) gpu_failure: GpuFailure,
}

/// Returns the decode devices, which prepare models for generation. The
/// precision of the server is computed on its device; sessions of the other
/// one are computed on the CPU. Scores are computed on the GPU if there is one,
/// and otherwise on the CPU. Blocks for seconds if kernels must be compiled for
/// a GPU.
pub(crate) fn generation(settings: &GenerationSettings) -> Generation {
    let GenerationSettings {
        device, precision, ..
    } = *settings;
    let int8_on_cpu = Int8Processor {
        kernel: settings.kernels.int8,
    };
    let float32_on_cpu = Processor {
        kernels: settings.kernels.float32,
    };
    let mut generation = Generation {
        devices: DecodeDevices {
            float32: Arc::new(float32_on_cpu),
            int8: Arc::new(int8_on_cpu),
            precision,
        },
        threads: settings.threads,
        failed: CancellationToken::new(),
    };
    match (device, precision) {
        #[cfg(feature = "torch")]
        (Device::Cuda(_), Precision::Float32) => {
            let max_rows = settings.max_rows;
            generation.devices.float32 =
                Arc::new(charlstm_torch::decode_step::TorchDevice { device, max_rows });
            // Every step computes a batch of full size.
            generation.threads = 1;
        }
        (Device::Cuda(ordinal), Precision::Int8) => {
            let on_event = on_event(device, settings.gpu_failure, generation.failed.clone());
            match CudaDecoder::open(ordinal, int8_on_cpu, on_event) {
                Ok(decoder) => {
                    generation.devices.float32 = Arc::new(decoder.scoring(float32_on_cpu));
                    generation.devices.int8 = Arc::new(decoder);
                    generation.threads = threads_with_gpu(settings.threads);
                }
                Err(error) => {
                    tracing::warn!(%device, %error, "generation and scores run on the CPU");
                }
            }
        }
        _ => {}
    }
    generation
}

/// Returns how many threads generate with a GPU, each with a batch of its own. While
/// the GPU computes the step of one batch, the characters of others are sampled: with
/// many rows, that takes longer than the step. The threads wait for the GPU without
/// sleeping, and the other cores have the messages to write.
fn threads_with_gpu(threads: usize) -> usize {
    (threads / 4).clamp(1, 4)
}

/// Returns what handles an event of the GPU: logs it, and ends the server if it
/// is to end.
fn on_event(
    device: Device,
    gpu_failure: GpuFailure,
    failed: CancellationToken,
) -> charlstm_cuda::OnEvent {
    Box::new(move |event| match event {
        CudaEvent::ModelOnProcessor(error) => {
            tracing::warn!(%device, %error, "a model runs on the CPU");
        }
        CudaEvent::ScoresOnProcessor(error) => {
            tracing::warn!(%device, %error, "a model is scored on the CPU");
        }
        CudaEvent::Failed(error) => {
            tracing::error!(%device, %error, "the GPU failed and is not used any more");
            if gpu_failure == GpuFailure::Exit {
                failed.cancel();
            }
        }
    })
}

/// Returns the factory of the learners, which train networks.
#[cfg(feature = "torch")]
pub(crate) fn learners(
    device: Device,
    threads: usize,
    kernels: FloatKernels,
    gpu_math: GpuMath,
) -> Arc<dyn LearnerFactory> {
    Arc::new(charlstm_torch::learner::TorchLearnerFactory {
        device,
        threads,
        kernels,
        gpu_math,
    })
}

/// Returns a factory that rejects every training: this build has no training
/// arithmetic.
#[cfg(not(feature = "torch"))]
pub(crate) fn learners(
    device: Device,
    _threads: usize,
    _kernels: FloatKernels,
    _gpu_math: GpuMath,
) -> Arc<dyn LearnerFactory> {
    Arc::new(inference_only::NoLearners { device })
}

#[cfg(not(feature = "torch"))]
mod inference_only {
    use charlstm_model::device::Device;
    use charlstm_model::learner::{
        LearnError, Learner, LearnerConfig, LearnerFactory, LearnerState, TrainingPrecision,
        TrainingUnsupported,
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

        fn instructions(&self, _: TrainingPrecision) -> String {
            String::new()
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
