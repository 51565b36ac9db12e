//! Generation and sessions: many texts at once, one character per decode step
//! in one batch, and sessions that keep their state between calls.
//!
//! # Request path
//!
//! 1. [`Engine::generate`] admits the call (`admission`), opens its session,
//!    which takes the session's lease, loads the model and encodes the prompt.
//! 2. The job goes to the `inbox` of the least loaded worker.
//! 3. The `scheduler` of the `worker` gives it a slot. The worker feeds the
//!    prompt in chunks between decode steps (prefill), then gives it a row of
//!    the `batch`.
//! 4. Each turn of the worker steps all rows, draws a character for each,
//!    holds back what may be the beginning of a stop string (`stop_matcher`),
//!    and appends the rest to the `text_buffer`.
//! 5. The reader takes what is there from the [`GenerationStream`], one event
//!    at a time. A reader that is behind gets several characters per event; a
//!    full buffer parks the job.
//! 6. When the job has ended and the reader has taken all text, or has left,
//!    the `committer` commits the session at the reader's position (`progress`
//!    computes the state there). Once the commit is durable, the reader gets
//!    [`GenerationEvent::Finished`].
//!
//! Step 6 is the only place that changes a session during a call. The stream
//! only reads: it does no storage operation, neither when it is polled nor
//! when it is dropped.
//!
//! # Threads
//!
//! Each worker is a named thread that owns its batches. If one ends
//! unexpectedly, its calls end with an error and [`Engine::failed`] completes.
//! Commits run as tasks of the tokio runtime on which the engine was started.

mod admission;
mod batch;
mod caller;
mod commit_times;
mod committer;
mod engine;
mod error;
mod event;
mod flush_policy;
mod inbox;
mod job;
mod message_size;
mod model_source;
mod parameters_digest;
mod partner_policy;
mod prefill_budget;
mod progress;
mod prompt_cache;
mod request;
mod scheduler;
mod score;
mod stop_matcher;
mod stream;
mod surplus_budget;
#[cfg(test)]
mod tests;
mod text_buffer;
mod worker;
mod worker_load;

pub use caller::CallerId;
pub use commit_times::{COMMIT_BUCKETS, CommitTimes};
pub use engine::{Engine, EngineConfig, EngineStats, PartScore, TextScorer};
pub use error::{GenerateError, ImportError};
pub use event::{FinishReason, Finished, GeneratedText, GenerationEvent, Started};
pub use model_source::{ModelSource, ModelSourceError};
pub use prompt_cache::PromptCacheStats;
pub use request::{GenerateCall, ScoreCall, Scored, SessionSource, UnknownCharacters};
pub use stream::GenerationStream;
