//! The charlstm server: trains character-level LSTMs, keeps them, and
//! generates text from them for many sessions at once. ARCHITECTURE.md is
//! the map; each module says what lives in it and what does not.

pub mod config;
mod devices;
pub mod metrics;
pub mod rpc;
pub mod serve;
pub mod shutdown;
