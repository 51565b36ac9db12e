//! Trainings as durable jobs.
//!
//! - [`spec`]: what a client asks for, and the validated result.
//! - [`jobs`]: the list of trainings: accepts, queues, cancels, resumes.
//! - [`job`]: one training on disk.
//! - `trainer`: the loop that trains a job.
//! - [`events`] and [`history`]: what a training reports, and where it is kept.
//! - [`shared`]: trainings that several replicas share.
//! - [`checkpoint`]: the state from which a training resumes.
//!
//! The arithmetic is behind the trait [`charlstm_model::learner::Learner`]; the
//! gRPC service is in the server.

pub mod checkpoint;
mod claimed_run;
mod collapse;
pub mod copying;
pub mod events;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod history;
pub mod job;
pub mod jobs;
pub mod memory;
pub mod models;
pub mod sample;
pub mod shared;
pub mod spec;
mod tensorboard;
mod trainer;
