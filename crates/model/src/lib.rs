//! The character LSTM in pure Rust: vocabulary, corpus, parameters, model
//! files, the decode step and the sampler. This crate depends neither on
//! libtorch nor on an async runtime or gRPC; the training arithmetic is in
//! `charlstm-torch`, behind the traits in [`learner`].
//!
//! A *token id* is the index of a character in the vocabulary. *Hidden* is the
//! width of an LSTM layer; shapes are written `[rows, columns]`, row by row.

pub mod activation;
pub mod architecture;
pub mod batches;
pub mod corpus;
pub mod decode_step;
pub mod device;
pub mod evaluate;
pub mod initial;
pub mod kernel;
pub mod kernels;
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

pub use charlstm_int8::float_control;
pub use model_id::ModelId;
