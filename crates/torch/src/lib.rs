//! Everything that uses libtorch: backpropagation through time, the optimizer
//! loop behind `charlstm_model::learner`, the decode step of a GPU, and the
//! detection of CUDA devices.

mod bptt;
mod data_parallel;
pub mod decode_step;
pub mod device;
mod error;
pub mod learner;
mod network;
pub mod optimizer;
mod shared_buffer;
mod shared_slices;
