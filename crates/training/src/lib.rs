//! Trainings as durable jobs: what is asked (`spec`), the list of jobs on disk
//! (`jobs`), the loop that trains one (`trainer`), what it tells (`events`,
//! `history`). The arithmetic is in `model::learner`; the gRPC side in
//! `rpc::training`.

pub mod checkpoint;
mod digesting;
pub mod events;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod history;
pub mod job;
pub mod jobs;
pub mod memory;
pub mod models;
pub mod sample;
pub mod spec;
mod tensorboard;
mod trainer;
