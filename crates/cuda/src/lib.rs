//! The int8 decode step of a character LSTM on NVIDIA GPUs, and its scores in
//! float32.
//!
//! The kernels are this crate's own CUDA sources (`src/kernels/`). NVRTC
//! compiles them for the device when it is opened; libcuda and libnvrtc are
//! loaded at run time, so building needs no CUDA toolkit and a machine without
//! them gets an error value. The results are bit for bit those of
//! [`charlstm_int8::reference`], for any number of rows, in any order, so a
//! session can move between a CPU and a GPU. Scores ([`CudaScorer`]) have the
//! bits of the CPU's float32 decode step.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use charlstm_cuda::{CudaBatch, CudaDevice, CudaNetwork, CudaError};
//! # fn example(network: &charlstm_int8::QuantisedNetwork) -> Result<(), CudaError> {
//! let device = CudaDevice::open(0)?;
//! let weights = Arc::new(CudaNetwork::upload(&device, network)?);
//! let mut batch = CudaBatch::new(weights, 256)?;
//! let slot = batch.push(&charlstm_int8::State::zeros(network.shape()))?;
//! batch.prefill(&[(slot, &[3, 1, 4])])?;
//! let logits = batch.step(&[(slot, 1)])?;
//! # let _ = logits;
//! # Ok(())
//! # }
//! ```
//!
//! A [`CudaBatch`] and a [`CudaScorer`] are owned by one thread at a time. Every
//! call blocks until the device has finished, spinning rather than sleeping: a
//! step takes tens of microseconds.

mod batch;
mod compiler;
mod decode_device;
mod device;
mod error;
mod fragments;
mod graph;
mod health;
#[cfg(test)]
mod host_kernels;
mod launch;
mod library;
mod memory;
mod network;
mod score;
mod score_device;
mod state_layout;

pub use batch::{BatchOptions, CudaBatch, MAX_CAPACITY, Slot};
pub use compiler::{CompiledKernels, compile_kernels};
pub use decode_device::CudaDecoder;
pub use device::{CudaDevice, DeviceInfo, devices};
pub use error::CudaError;
pub use health::{CudaEvent, OnEvent};
pub use network::CudaNetwork;
pub use score::{CudaFloatNetwork, CudaScorer};
pub use score_device::CudaScoring;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_can_move_between_threads_and_a_network_can_be_shared() {
        fn sent<T: Send>() {}
        fn shared<T: Send + Sync>() {}
        sent::<CudaBatch>();
        sent::<CudaScorer>();
        shared::<CudaNetwork>();
        shared::<CudaFloatNetwork>();
        shared::<CudaDevice>();
        shared::<CudaError>();
    }

    #[test]
    fn without_a_driver_there_is_an_error_and_not_a_panic() {
        match devices() {
            Ok(_) => {}
            Err(error) => assert!(matches!(error, CudaError::LibraryMissing { .. }), "{error}"),
        }
    }
}
