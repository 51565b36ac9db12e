//! The charlstm server: gRPC services that train character-level LSTMs, store
//! them, and generate text from them for many sessions at once. This crate
//! contains the settings, the services and the wiring; see ARCHITECTURE.md for
//! the crates below it.

pub mod access;
pub mod backup;
pub mod config;
mod data_folder;
mod devices;
mod http;
mod listener;
pub mod metrics;
pub mod migrate;
pub mod rpc;
pub mod serve;
pub mod shutdown;
pub mod traces;
pub mod training_log;
