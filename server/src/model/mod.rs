//! The network and everything it is made of: vocabulary, corpus, parameters,
//! the step that generates, the pass that trains, the sampler. No gRPC, no
//! protobuf, no async runtime here.

mod activation;
pub mod architecture;
pub mod batches;
mod buffer;
pub mod checkpoint;
pub mod corpus;
pub mod device;
pub mod evaluate;
pub mod extension;
pub mod initial;
mod kernel;
pub mod learner;
pub mod method;
mod network;
pub mod notebook;
pub mod optimizer;
mod packed;
pub mod parameters;
mod pass;
pub mod sampler;
mod shards;
pub mod step;
pub mod tokens;
mod views;
pub mod vocabulary;
