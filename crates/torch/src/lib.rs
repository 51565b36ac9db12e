//! Everything that uses libtorch: backpropagation through time and the
//! optimizer behind `charlstm_model::learner`, the decode step on a GPU, and
//! the detection of CUDA devices.
//!
//! All functions block the calling thread. libtorch has state that belongs to
//! the whole process, which this crate changes: on the CPU it computes on one
//! thread per call, and its random generators are seeded by every training step
//! on a GPU. Do not use libtorch elsewhere in the same process.

mod autograd;
mod bptt;
mod data_parallel;
pub mod decode_step;
pub mod device;
mod error;
pub mod learner;
mod matrix;
mod named_parameters;
mod optimizer;
mod process_state;
