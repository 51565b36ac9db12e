//! The network and everything it is made of: vocabulary, corpus, parameters,
//! the step that generates, the pass that trains, the sampler. No gRPC, no
//! protobuf, no async runtime here.

mod activation;
pub mod architecture;
mod kernel;
mod packed;
pub mod parameters;
pub mod sampler;
pub mod step;
pub mod vocabulary;
