//! The generation engine: many texts under way at once, a character at a time
//! in one batch. `engine` is the handle that the services hold; `worker` is
//! the thread that computes; `scheduler` decides who is in the batch; a
//! `stream` lies between the worker and the reader of each text.
//!
//! The way of a character: a call is checked and its session opened in
//! `engine`; the job goes to the `inbox` of the least loaded worker; the
//! `scheduler` gives it a place; the worker primes it in chunks and gives it a
//! row of the `batch`; each turn steps all rows, draws a character for each,
//! holds back what may be a stop text, and appends the rest to the `stream`;
//! the reader takes what is there as one event, and `rpc` makes a message of
//! it. When the reader has taken the end, or left, the `progress` of the call
//! says where its session stands, and `sessions` keeps it.

mod admission;
mod batch;
mod engine;
mod error;
mod flush_policy;
mod inbox;
mod job;
mod models;
mod progress;
mod request;
mod scheduler;
mod score;
mod session_manager;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

pub use engine::{Engine, EngineConfig, EngineLoad};
pub use error::{GenerateError, ImportError};
pub use models::{ModelSource, ModelSourceError};
pub use request::{
    FinishReason, Finished, GenerateCall, GeneratedText, GenerationEvent, ScoreCall, Scored,
    Started,
};
pub use stream::GenerationStream;
