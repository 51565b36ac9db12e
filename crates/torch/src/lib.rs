//! Everything that uses libtorch: training on a GPU, the float32 decode step on a
//! GPU, and the detection of CUDA devices.
//!
//! All functions block the calling thread. libtorch has state that belongs to
//! the whole process, which this crate changes: on the CPU it computes on one
//! thread per call, and its random generators are seeded by every training step
//! on a GPU. Do not use libtorch elsewhere in the same process.

mod autograd;
mod cuda_graph;
mod cuda_trainer;
pub mod decode_step;
pub mod device;
mod device_evaluation;
mod device_optimizer;
mod device_step;
pub mod environment;
#[cfg(test)]
mod gradient_tests;
pub mod learner;
mod named_parameters;
mod process_state;
mod step_launcher;

use charlstm_model::learner::LearnError;
use tch::TchError;

fn failed(error: TchError) -> LearnError {
    LearnError::Backend(Box::new(error))
}
