//! The network and everything it is made of, in pure Rust: vocabulary,
//! corpus, parameters, model files, the decode step, the sampler. Depends on
//! no libtorch, no async runtime and no gRPC; the training arithmetic is in
//! `charlstm-torch`, behind the trait in [`learner`].

pub mod activation;
pub mod architecture;
pub mod batches;
pub mod corpus;
pub mod decode_step;
pub mod device;
pub mod evaluate;
pub mod initial;
pub mod kernel;
pub mod learner;
pub mod model_file;
pub mod model_id;
pub mod optimizer_config;
pub mod packed;
pub mod parameters;
pub mod sampler;
pub mod tokens;
pub mod torch_checkpoint;
pub mod vocabulary;
pub mod vocabulary_extension;

pub use model_id::ModelId;
