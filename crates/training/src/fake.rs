//! Fakes for tests: a learner that a test can hold, fail or let diverge at a
//! step, models in memory, and a small training.

mod learner;
mod models;
mod training;

use std::sync::{Mutex, PoisonError};

pub use self::learner::{FakeLearners, Fault, Hold, Losses};
pub use self::models::FakeModels;
pub use self::training::{CORPUS, sampler, spec, start};

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
